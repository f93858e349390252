#!/usr/bin/env python3
"""Compares ways of transfer on small subsets, with several seeds, and prints a Markdown table.

    python3 tools/transfer_study.py --shared ../shared/data --out study --sizes 10,25 --seeds 5

A subset has so many training images of each class, drawn by the seed, and all validation images. Networks are BVLC's
GoogLeNet of 2014 (ImageNet, no batch normalization) and a ResNet-20 (CIFAR-10, with batch normalization).

    logistic   scikit-learn's LogisticRegression on the features that `infer explain --features` writes
    probe      train finetune --recipe linear-probe
    default    train finetune
    auto       train finetune --auto: the better of its two runs
    tutorial   the recipe of PyTorch's transfer learning tutorial, run by `train`: SGD with a learning rate of 0.001 and
               a momentum of 0.9, times 0.1 every 7 of 25 epochs, batches of 4, the whole network

Every number is the validation accuracy of the epoch that is best on the same validation images, as the tutorial has it,
so all but `logistic` are a little too high, by the same rule. Results are appended to OUT/results.csv; a cell that is there
is not computed again, so the study can be stopped and continued. Needs scikit-learn for `logistic` alone.
"""
import argparse, csv, io, json, math, os, random, shutil, statistics, subprocess, sys, tarfile, time
from pathlib import Path

# Two-sided 97.5 % quantiles of Student's t by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

TUTORIAL = """architecture = "{architecture}"
epochs = 25
batch_size = 4
seed = {seed}

[data]
train = "{data}"

[images]
train = [{{ name = "RandomResizedCrop", size = {size} }}, {{ name = "RandomHorizontalFlip" }}]
eval = {{ resize = {resize}, crop = {size}, rule = "{rule}" }}
{normalization}

[optimizer]
name = "sgd"
momentum = 0.9

[schedule]
learning_rate = 0.001
decay = "steps"
milestones = [7, 14, 21]

[transfer]
weights = "{weights}"
batchnorm = "train"
"""

NETWORKS = {
    "googlenet_2014": {
        "weights": "weights/bvlc_googlenet.safetensors",
        "pixels": 224,
        "rule": "squash",
        "normalization": "mean = [0.40784314, 0.45882353, 0.48235294]\n"
        "std = [0.003921569, 0.003921569, 0.003921569]\nchannel_order = \"bgr\"",
    },
    "resnet20": {
        "weights": "weights/cifar10_resnet20-12fca82f.zip.pth",
        "pixels": 32,
        "rule": "shorter",
        "normalization": "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]",
    },
}


def unpack_dogs(shared, out):
    """The sample of ImageNet's archives as folders of classes."""
    if (out / "done").exists():
        return
    sample = shared / "ilsvrc2012-sample"
    with tarfile.open(sample / "ILSVRC2012_img_train.tar") as outer:
        for member in outer:
            with tarfile.open(fileobj=io.BytesIO(outer.extractfile(member).read())) as inner:
                folder = out / "train" / Path(member.name).stem
                folder.mkdir(parents=True, exist_ok=True)
                for image in inner:
                    (folder / Path(image.name).name).write_bytes(inner.extractfile(image).read())
    with open(sample / "val_labels.csv") as table:
        classes = {row["file"]: row["wnid"] for row in csv.DictReader(table)}
    with tarfile.open(sample / "ILSVRC2012_img_val.tar") as archive:
        for image in archive:
            name = Path(image.name).name
            folder = out / "val" / classes[name]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(archive.extractfile(image).read())
    (out / "done").touch()


def subset(source, out, count, seed):
    """A folder with `count` training images of each class, and all validation images."""
    folder = out / f"{source.name}-{count}-{seed}"
    if folder.exists():
        return folder
    for classes in sorted((source / "train").iterdir()):
        images = sorted(classes.iterdir())
        if len(images) < count:
            return None
        for image in random.Random(f"{seed} {classes.name}").sample(images, count):
            target = folder / "train" / classes.name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, target)
    shutil.copytree(source / "val", folder / "val")
    return folder


def command(arguments, log):
    """Runs a program and returns what it printed."""
    result = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    with open(log, "a") as file:
        print("$", *arguments, file=file)
        file.write(result.stdout + result.stderr)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))} ended with {result.returncode}; see {log}")
    return result.stdout


def best(run):
    """The best validation accuracy of a run in percent, and its seconds."""
    result = json.loads((run / "run.json").read_text())["result"]
    return result["best"]["top1"], result["best_epoch"]


def logistic(args, cell, data, work, log):
    import numpy
    from sklearn.linear_model import LogisticRegression

    def features(split):
        # The features of a set of validation images are the same for all subsets.
        name = f"{cell['network']}-{cell['data']}-{cell['size']}-{'val' if split == 'val' else work.name}"
        path = args.out / "features" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            images = sorted((data / split).glob("*/*"))
            command([args.infer, "explain", *images, "--weights", args.weights, "--arch", cell["network"], "--features",
                     path, "-q", *sized(cell)], log)
        with open(path.with_suffix(".csv")) as table:
            labels = [Path(next(v for v in row.values() if "/" in v)).parent.name for row in csv.DictReader(table)]
        return numpy.load(path), labels

    x, y = features("train")
    classifier = LogisticRegression(max_iter=5000).fit(x, y)
    x, y = features("val")
    return 100 * classifier.score(x, y), None


def sized(cell):
    """Preprocessing flags of `infer`: the resize of validation in proportion, as `train --size` has it."""
    side = resize(cell)
    squashes = NETWORKS[cell["network"]]["rule"] == "squash"
    return ["--crop", cell["size"], "--resize", f"{side}x{side}" if squashes else side]


def resize(cell):
    """What `train --size` makes of the card's preprocessing: 256 for 224; CIFAR's images are not cropped."""
    return cell["size"] if cell["network"] == "resnet20" else 256 * cell["size"] // 224


def finetune(args, cell, data, work, log):
    run = work / cell["method"]
    shutil.rmtree(run, ignore_errors=True)
    weights = ["--weights", args.weights, "--arch", cell["network"]]
    base = [args.train, "finetune", "--seed", cell["seed"], "-q"]
    if cell["method"] == "tutorial":
        recipe = work / "tutorial.toml"
        recipe.write_text(TUTORIAL.format(
            architecture=cell["network"], seed=cell["seed"], data=data, size=cell["size"], resize=resize(cell),
            rule=NETWORKS[cell["network"]]["rule"], weights=args.weights, normalization=NETWORKS[cell["network"]]["normalization"]))
        command([*base, "--recipe", recipe, "--out", run], log)
        return best(run)
    base += [*weights, "--data", data, "--size", cell["size"]]
    if cell["method"] == "auto":
        command([*base, "--auto", "--artifacts", run], log)
        return max(best(folder.parent) for folder in run.glob("*/run.json"))
    command([*base, *(["--recipe", "linear-probe"] if cell["method"] == "probe" else []), "--out", run], log)
    return best(run)


def table(rows):
    """Means with intervals by Student's t, a row for each subset and a column for each method."""
    methods = [m for m in ["logistic", "tutorial", "probe", "default", "auto"] if any(r["method"] == m for r in rows)]
    print("| network | data | pixels | images per class | " + " | ".join(methods) + " |")
    print("|---|---|---|---|" + "---|" * len(methods))
    keys = sorted({(r["network"], r["data"], int(r["size"]), int(r["count"])) for r in rows})
    for key in keys:
        cells = []
        for method in methods:
            values = [float(r["top1"]) for r in rows
                      if (r["network"], r["data"], int(r["size"]), int(r["count"])) == key and r["method"] == method]
            if not values:
                cells.append("–")
            elif len(values) == 1:
                cells.append(f"{values[0]:.1f} (1)")
            else:
                half = T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
                cells.append(f"{statistics.mean(values):.1f} ± {half:.1f} ({len(values)})")
        print("| " + " | ".join([key[0], key[1], str(key[2]), str(key[3]), *cells]) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with tiny10, ilsvrc2012-sample and weights")
    parser.add_argument("--train", default="target/debug/train", help="the `train` binary")
    parser.add_argument("--infer", default="target/debug/infer", help="the `infer` binary")
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--networks", default="googlenet_2014", help="googlenet_2014, resnet20")
    parser.add_argument("--data", default="dogs,tiny10")
    parser.add_argument("--sizes", default="10,25,100", help="training images of each class")
    parser.add_argument("--pixels", type=int, help="side of the images [default: the network's]")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default="logistic,probe,default,auto,tutorial")
    parser.add_argument("--table", action="store_true", help="print the table of the results so far alone")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.out, args.shared = args.out.resolve(), args.shared.resolve()
    os.environ.setdefault("XDG_CACHE_HOME", str(args.out / "cache"))
    results = args.out / "results.csv"
    fields = ["network", "data", "size", "count", "seed", "method", "top1", "best_epoch", "seconds"]
    rows = list(csv.DictReader(open(results))) if results.exists() else []
    if args.table:
        return table(rows)
    sources = {"dogs": args.out / "dogs", "tiny10": args.shared / "tiny10"}
    if "dogs" in args.data:
        unpack_dogs(args.shared, sources["dogs"])
    for seed in range(args.seeds):
        for count in map(int, args.sizes.split(",")):
            for data in args.data.split(","):
                for network in args.networks.split(","):
                    folder = subset(sources[data], args.out / "subsets", count, seed)
                    for method in args.methods.split(",") if folder else []:
                        size = args.pixels or NETWORKS[network]["pixels"]
                        cell = {"network": network, "data": data, "size": size, "count": count, "seed": seed,
                                "method": method}
                        if any(all(row[key] == str(value) for key, value in cell.items()) for row in rows):
                            continue
                        args.weights = args.shared / NETWORKS[network]["weights"]
                        work = args.out / "runs" / f"{network}-{data}-{size}-{count}-{seed}"
                        work.mkdir(parents=True, exist_ok=True)
                        begun = time.monotonic()
                        run = logistic if method == "logistic" else finetune
                        top1, epoch = run(args, cell, folder, work, args.out / "log.txt")
                        row = {**cell, "top1": f"{top1:.2f}", "best_epoch": epoch,
                               "seconds": f"{time.monotonic() - begun:.0f}"}
                        rows.append({key: str(value) for key, value in row.items()})
                        is_new = not results.exists()
                        with open(results, "a", newline="") as file:
                            writer = csv.DictWriter(file, fields)
                            if is_new:
                                writer.writeheader()
                            writer.writerow(row)
                        print(*row.values(), file=sys.stderr)
                        for weights in work.rglob("*.safetensors"):
                            weights.unlink()
                        for checkpoints in work.rglob("checkpoints"):
                            shutil.rmtree(checkpoints)
    table(rows)


if __name__ == "__main__":
    main()
