#!/usr/bin/env python3
"""Runs every command of the documentation, literally, in a scratch folder with small data.

A command is a line of a fenced block (`text`, `console`, `sh`, `bash` or without a language) that starts with `$ ` or
with one of WORDS; of a `sh` or `bash` block, every line. A trailing comment is dropped, a trailing backslash continues.
Commands that cannot run here are in LISTED, each with its reason; those of Hearth's binaries must still parse. A command
that neither runs nor is listed fails.

    .ci/documented.py                the commands with default features; `target/debug` has the binaries
    .ci/documented.py --features     those with others, after a build of the workspace with these
    .ci/documented.py --only REGEX   some of them, while writing
    .ci/documented.py --list         what would run, and what would not
"""

import argparse, json, os, random, re, shlex, shutil, signal, socket, struct, subprocess, sys, tempfile, time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
DOCUMENTS = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")), "artifacts/README.md"]
BINARIES = ("train", "infer", "datasets")
WORDS = ("cargo", "curl", "mpirun", "srun", "target/debug/", "cat", "md5sum", "git", "HEARTH_", "RUST_LOG", *BINARIES)

# Commands that do not run here, by pattern, with the reason.
LISTED = [
    (r"--features \S*(cuda|rocm|metal)|--backend (cuda|rocm|metal)|--devices cuda", "needs a GPU; the gate compiles CUDA"),
    (r"--features vulkan", "would compile Burn once more; the gate verifies wgpu on a software adapter"),
    (r"^srun ", "needs a Slurm cluster"),
    (r"--features parquet", "needs the Hugging Face hub's files; tests of `datasets` write and read some"),
    (r"--features remote|https://HOST", "needs a server of shards; tests of `datasets` have one"),
    (r"\bverify\b", "is a step of the gate of its own"),
    (r"^cargo test\b", "is a step of the gate of its own"),
    (r"^cargo bench\b", "measures for minutes; the gate compiles it"),
    (r"study shortcuts", "trains four networks for minutes; a test of `train` runs it on fewer epochs"),
    (r"--epochs 15 .*tiny10/|tiny10/ .*--epochs 15", "trains for minutes; the same flags as `pretrain --data photos/`"),
]

# Operands that are replaced: what the documentation names cannot be made here under that name.
REPLACED = [
    (r"/data/imagenet(-1k)?\b", "imagenet"),  # Only root may make /data.
    (r"--backend wgpu\b(?!:)", "--backend wgpu:cpu"),  # A software adapter, which is used only by that name.
    (r"127\.0\.0\.1:8080", "127.0.0.1:PORT"),  # A free port, in case 8080 is taken.
    (r"((pretrain|finetune|lr-find) .*photos/.*)", r"\1 --batch-size 4 --size 64"),  # There are eight images to train on.
    (r"resume artifacts/photos-resnet18-001", "resume interrupted"),  # The other commands need that run finished.
    (r"(-- bench resnet.*)", r"\1 --iters 1"),  # To be measured on a machine that does nothing else.
    (r"(merge .*--out) results/", r"\1 merged/"),  # The guide has two ways to the same folder.
    (r"( serve --weights \S+)$", r"\1 --addr 127.0.0.1:PORT"),
]


def commands(path):
    """The commands of a document, with the number of their lines."""
    found, language, text, start = [], None, "", 0
    for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
        fence = re.match(r"\s*```+\s*([\w-]*)", line)
        if fence:
            language, text = (fence[1].lower() if language is None else None), ""
            continue
        if language not in ("", "text", "console", "sh", "bash", "shell"):
            continue
        line = line.strip()
        if not text:
            prompt = line.startswith("$ ")
            shell = language in ("sh", "bash", "shell") and line and not line.startswith("#")
            word = language != "console" and (line + " ").startswith(tuple(w if w[-1] in "/_" else w + " " for w in WORDS))
            if not (prompt or shell or word):
                continue
            start = number
        text += (" " if text else "") + line.removeprefix("$ ").removesuffix("\\").strip()
        if line.endswith("\\"):
            continue
        found.append((start, re.sub(r"\s+#\s.*$", "", text).strip()))
        text = ""
    return found


def listed(command):
    return next((reason for pattern, reason in LISTED if re.search(pattern, command)), None)


def parsed(command):
    """The binary and the arguments of a command that runs one of Hearth's."""
    match = re.search(r"cargo run .*?-p (\w+)(?:.*? -- (.*))?$", command)
    if not match and not command.startswith("cargo "):
        match = re.search(rf"(?:^|target/debug/|\s)({'|'.join(BINARIES)}) (.*)$", command)
    return match and (match[1], shlex.split(match[2] or ""))


def data(scratch):
    """Folders of classes, photographs: the images that the tests decode."""
    images = sorted(
        image for image in (ROOT / "datasets/tests/fixtures/decode").glob("*.jpg") if "broken" not in image.name
    )
    classes = [line.split("\t")[0] for line in (ROOT / "datasets/data/imagenet_classes.tsv").read_text().splitlines()]
    wnids = [name for name in classes if re.fullmatch(r"n\d{8}", name)][:3]
    for folder, names in {"photos": ["cat", "dog"], "imagenet": wnids}.items():
        for split, first, count in (("train", 0, 4), ("val", 4, 2)):
            for label, name in enumerate(names):
                for i in range(count):
                    image = images[(label * 6 + first + i) % len(images)]
                    (scratch / folder / split / name).mkdir(parents=True, exist_ok=True)
                    shutil.copy(image, scratch / folder / split / name / f"{i}.jpg")
    for i in range(3):
        shutil.copy(images[i], scratch / "photos" / f"{i}.jpg")
    rows = [image.relative_to(scratch / "photos") for image in sorted((scratch / "photos").glob("*/*/*.jpg"))]
    cells = [f"{row},{row.parent.name},{row.parts[0]}\n" for row in rows]
    (scratch / "labels.csv").write_text("image,breed,split\n" + "".join(cells))
    (scratch / "flowers").symlink_to("photos")
    for name in ("dog.jpg", "cat.jpg", "rose.jpg"):
        shutil.copy(images[0], scratch / name)
    shutil.copy(ROOT / "datasets/tests/fixtures/decode/palette.png", scratch / "digit.png")
    for part in ("train", "val"):
        (scratch / f"ILSVRC2012_img_{part}.tar").write_bytes(bytes(1024))


def weights(path, architecture, classes=1000):
    """Weights drawn between the bounds of the golden references, as safetensors without a card."""
    draw, header, offset, blocks = random.Random(0), {}, 0, []
    for tensor in json.loads((ROOT / f"models/tests/golden/{architecture}.json").read_text())["tensors"]:
        count = 1
        if tensor["key"].startswith("fc."):
            tensor["shape"][0] = classes
        for side in tensor["shape"]:
            count *= side
        few = [draw.uniform(tensor["lo"], tensor["hi"]) for _ in range(min(count, 4099))]
        block = struct.pack(f"<{len(few)}f", *few) * (count // len(few) + 1)
        blocks.append(block[: 4 * count])
        header[tensor["key"]] = {"dtype": "F32", "shape": tensor["shape"], "data_offsets": [offset, offset + 4 * count]}
        offset += 4 * count
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))


class Runner:
    def __init__(self, scratch):
        self.scratch = scratch
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        shims = scratch / ".shims"
        shims.mkdir()
        cargo = shutil.which("cargo")
        # `cargo` as the documentation calls it in the workspace's folder, but with the scratch folder as the current one.
        (shims / "cargo").write_text(
            f'#!/bin/sh\nverb=$1; shift\nexec {shlex.quote(cargo)} "$verb" --quiet --manifest-path '
            f'{shlex.quote(str(ROOT / "Cargo.toml"))} "$@"\n'
        )
        (shims / "cargo").chmod(0o755)
        os.symlink(TARGET, scratch / "target")
        self.environment = os.environ | {
            "PATH": f"{shims}:{TARGET / 'debug'}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(scratch / ".cache"),
            "CARGO_TARGET_DIR": str(TARGET),
            "CARGO_HOME": os.environ.get("CARGO_HOME", str(Path.home() / ".cargo")),
            # Nothing here may depend on a network.
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1",
            "CARGO_NET_OFFLINE": "true",
        }
        self.server = None

    def start(self, command):
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.scratch, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )

    def run(self, command):
        """Runs a command to its end; what it printed if it failed."""
        child = self.start(command)
        try:
            output, _ = child.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            return "still running after ten minutes"
        return None if child.returncode == 0 else f"exit code {child.returncode}\n{output}"

    def serve(self, command):
        """Starts a server and waits until it answers."""
        self.stop()
        self.server = self.start("exec " + command)
        for _ in range(600):
            if self.server.poll() is not None:
                return f"exit code {self.server.returncode}\n{self.server.stdout.read()}"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).close()
                return None
            except OSError:
                time.sleep(0.1)
        return "no answer within a minute"

    def stop(self):
        if self.server is not None and self.server.poll() is None:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()

    def do(self, command):
        command = command.replace("PORT", self.port)
        return self.serve(command) if " serve " in command else self.run(command)


def prepare(runner):
    """Makes what the commands name: data, weights, runs."""
    data(runner.scratch)
    binary = lambda name: shlex.quote(str(TARGET / "debug" / name))
    # A network of ImageNet's classes stands for all published weights: what exists as a path is not downloaded.
    weights(runner.scratch / "drawn.safetensors", "resnet18")
    weights(runner.scratch / "flowers.pth", "resnet18", classes=2)
    steps = [f"{binary('infer')} export --weights drawn.safetensors --arch resnet18 --to safetensors --out resnet18"]
    for name in ("resnet18.IMAGENET1K_V1", "resnet50", "resnet101", "resnext50_32x4d", "vgg16", "googlenet", "alexnet"):
        (runner.scratch / name).symlink_to("resnet18")
    train = f"{binary('train')} pretrain --data photos/ --arch resnet18 --size 64 --batch-size 4 --epochs 1 --quiet"
    digits = f"{binary('train')} --epochs 1 --quiet"
    bvlc = train.replace("resnet18", "googlenet_2014").replace("--size 64", "--size 224") + " --out bvlc"
    (runner.scratch / "bvlc_googlenet.safetensors").symlink_to("bvlc/weights.safetensors")
    for step in [*steps, train, train, digits, bvlc]:
        failure = runner.run(step)
        if failure:
            sys.exit(f"cannot prepare: {step}\n{failure}")
    # A run to resume: stopped as by Ctrl-C after its first checkpoint.
    child = runner.start(f"exec {train.replace('--epochs 1', '--epochs 20')} --out interrupted")
    while child.poll() is None and not list(runner.scratch.glob("interrupted/checkpoints/step-*")):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate()
    if child.returncode != 130:
        sys.exit(f"cannot prepare an interrupted run: exit code {child.returncode}\n{output}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", action="store_true", help="run the commands that name features of Cargo")
    parser.add_argument("--only", metavar="REGEX", default="", help="run the commands that match, after the preparation")
    parser.add_argument("--list", action="store_true", help="only print the commands")
    args = parser.parse_args()

    seen, failures, counts = set(), [], {"run": 0, "parsed": 0, "listed": 0}
    found = [(f"{path}:{line}", command) for path in DOCUMENTS for line, command in commands(path)]
    if not any(where.startswith("README.md") for where, _ in found):
        sys.exit("README.md has no commands: does the extraction still fit it?")
    scratch = Path(tempfile.mkdtemp(prefix="hearth-documented-"))
    try:
        runner = Runner(scratch)
        if not args.list:
            prepare(runner)
        for where, command in found:
            if command in seen or not re.search(args.only, command):
                continue
            seen.add(command)
            reason = listed(command)
            if not reason and ("--features" in command.split(" -- ")[0]) != args.features:
                continue
            if args.list:
                print(f"{where}: {command}" + (f"\n    not run: {reason}" if reason else ""))
                continue
            began = time.monotonic()
            if reason:
                if args.features:
                    continue
                counts["listed"] += 1
                hearth = parsed(command)
                if not hearth or "…" in command:
                    continue
                counts["parsed"] += 1
                failure = runner.run(shlex.join([str(TARGET / "debug" / hearth[0]), *hearth[1], "--help"]))
            else:
                counts["run"] += 1
                replaced = command
                if args.features:
                    # The build of the workspace with all features that the gate tests.
                    replaced = re.sub(r"cargo run (?:.*?)-p (\w+)(?:.*?) -- ", r"target/debug/\1 ", command)
                for pattern, replacement in REPLACED:
                    replaced = re.sub(pattern, replacement, replaced)
                failure = runner.do(replaced)
            print(f"{time.monotonic() - began:6.1f} s  {command}", flush=True)
            if failure:
                failures.append(f"{where}: {command}\n{failure}")
        runner.stop()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if failures:
        sys.exit("\n\n".join(failures))
    if not args.list:
        print(f"{counts['run']} commands ran; {counts['listed']} did not, of which {counts['parsed']} parse")


if __name__ == "__main__":
    main()
