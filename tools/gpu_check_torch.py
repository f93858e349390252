"""Measures PyTorch as `train bench` and `infer bench` measure Hearth, one JSON object a line, for gpu-check.sh.

Channels last; autocast for other types than f32; f32 uses TF32 where PyTorch's default allows it (convolutions). One
further row, with torch.compile, for the first network, batch and last type in each mode.
"""

import argparse
import json
import statistics
import sys
import time

import torch

try:
    import torchvision
except ImportError:
    sys.exit("error: torchvision is not installed, which has the networks")

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def device():
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def synchronize(where):
    if where.type == "cuda":
        torch.cuda.synchronize()
    elif where.type == "mps":
        torch.mps.synchronize()


def build(name, where, mode):
    arguments = {"aux_logits": mode == "train", "init_weights": False} if name == "googlenet" else {}
    network = getattr(torchvision.models, name)(weights=None, **arguments)
    network.train(mode == "train")
    return network.to(where, memory_format=torch.channels_last)


def measure(name, mode, batch, dtype, compiled, where, options):
    torch.manual_seed(0)
    network = build(name, where, mode)
    size = options.size or 224
    images = torch.randn(batch, 3, size, size, device=where).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=where)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(where.type, enabled=dtype == "f16" and where.type == "cuda")
    run = torch.compile(network) if compiled else network

    def autocast():
        return torch.autocast(where.type, dtype=TYPES[dtype], enabled=dtype != "f32")

    def loss_of(output):
        loss = torch.nn.functional.cross_entropy
        if hasattr(output, "aux_logits1"):
            aux = loss(output.aux_logits1, labels) + loss(output.aux_logits2, labels)
            return loss(output.logits, labels) + 0.3 * aux
        return loss(output, labels)

    def train():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = loss_of(run(images))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    @torch.inference_mode()
    def infer():
        with autocast():
            return run(images).float().cpu()

    step = train if mode == "train" else infer
    seconds = []
    for _ in range(options.warmup + options.iters):
        synchronize(where)
        start = time.perf_counter()
        step()
        synchronize(where)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[options.warmup :])
    return {
        "peer": "pytorch",
        "version": torch.__version__,
        "model": name,
        "mode": mode,
        "batch": batch,
        "size": size,
        "device": torch.cuda.get_device_name() if where.type == "cuda" else where.type,
        "dtype": dtype,
        "compiled": compiled,
        "first_step_s": seconds[0],
        "median_s": median,
        "images_per_s": batch / median,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="resnet50")
    parser.add_argument("--batches", default="64")
    parser.add_argument("--dtypes", default="f32")
    parser.add_argument("--iters", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--size", type=int)
    parser.add_argument("--seconds", type=float, default=60.0, help="start no row after this time")
    options = parser.parse_args()
    networks = [name for name in options.networks.split() if hasattr(torchvision.models, name)]
    batches = [int(batch) for batch in options.batches.split()]
    dtypes = options.dtypes.split()
    rows = [
        (name, mode, batch, dtype, False)
        for batch in batches
        for dtype in dtypes
        for name in networks
        for mode in ("train", "infer")
    ]
    # Compilation takes long, so it comes last.
    rows += [(name, mode, batches[0], dtypes[-1], True) for name in networks[:1] for mode in ("train", "infer")]
    where, start, failed = device(), time.perf_counter(), 0
    for name, mode, batch, dtype, compiled in rows:
        key = {"peer": "pytorch", "mode": mode, "model": name, "batch": batch, "dtype": dtype, "compiled": compiled}
        if time.perf_counter() - start > options.seconds:
            print(json.dumps({**key, "skipped": "no time was left"}, separators=(",", ":")), flush=True)
            continue
        try:
            row = measure(name, mode, batch, dtype, compiled, where, options)
        except Exception as error:  # One row's failure, such as too little memory, must not end the others.
            failed += 1
            row = {**key, "failed": " ".join(str(error).split())[:300].replace('"', "'")}
            if where.type == "cuda":
                torch.cuda.empty_cache()
        print(json.dumps(row, separators=(",", ":")), flush=True)
    sys.exit("error: every row failed" if failed == len(rows) else 0)


if __name__ == "__main__":
    main()
