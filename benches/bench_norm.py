"""Batch and layer normalisation, float32, forward: ravine beside torch and NumPy, in one process.

python benches/bench_norm.py --threads 2 --output benches/record/norm-2-threads.md

ravine's layers write into results that they use again; torch (``F.batch_norm``, ``F.layer_norm``) has no ``out=``;
NumPy is in its plainest form. All are called in turn, forwards and backwards alternately; the ratios are medians of
those within a round. Every result is compared with NumPy's first.
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np

import ravine as rv

SHAPES = [(128, 1024), (4096, 256), (32, 64, 56, 56), (32, 256, 28, 28), (8, 512, 14, 14)]


def numpy_batch(x, axes):
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + np.float32(1e-5))


def cases(torch):
    """Give (name, elements, {peer: function that returns y})."""
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        x = rng.standard_normal(shape, np.float32) * 2 + 1
        layer, axes = rv.BatchNorm(shape[1]), (0, *range(2, len(shape)))
        peers = {"ravine": lambda x=x, layer=layer: layer(x), "NumPy": lambda x=x, axes=axes: numpy_batch(x, axes)}
        if torch:
            t, affine = torch.from_numpy(x), [torch.ones(shape[1]), torch.zeros(shape[1])]
            peers["torch"] = lambda t=t, a=affine: torch.nn.functional.batch_norm(
                t, None, None, *a, training=True
            ).numpy()
        yield f"batch norm, training, {shape}", x.size, peers
        if len(shape) == 4:
            last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
            layer = rv.BatchNorm(shape[1], axis=-1)
            peers = {"ravine": lambda x=last, layer=layer: layer(x), "NumPy": lambda x=last: numpy_batch(x, (0, 1, 2))}
            if torch:
                t = torch.from_numpy(x).to(memory_format=torch.channels_last)
                peers["torch"] = lambda t=t, a=affine: (
                    torch.nn.functional.batch_norm(t, None, None, *a, training=True).permute(0, 2, 3, 1).numpy()
                )
            yield f"the same, channels last, {shape}", x.size, peers
    x = rng.standard_normal((4096, 1024), np.float32) * 2 + 1
    layer = rv.LayerNorm(1024)
    peers = {"ravine": lambda: layer(x), "NumPy": lambda: numpy_batch(x.T, 0).T}
    if torch:
        t, affine = torch.from_numpy(x), [torch.ones(1024), torch.zeros(1024)]
        peers["torch"] = lambda: torch.nn.functional.layer_norm(t, (1024,), *affine).numpy()
    yield "layer norm, (4096, 1024)", x.size, peers


def sample(f):
    """Seconds per call, over at least 3 ms."""
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < 3e-3 or calls == 0:
        f()
        calls += 1
    return elapsed / calls


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rv.set_num_threads(args.threads)
    try:
        import torch
    except ImportError:
        torch = None
    else:
        torch.set_num_threads(args.threads)
    date = datetime.datetime.now(datetime.UTC)
    lines = [
        f"# Batch and layer norm, float32, forward, {args.threads} threads",
        "",
        f"* Date: {date:%Y-%m-%d %H:%M} UTC; {os.cpu_count()} CPUs, {platform.machine()}, {args.rounds} rounds",
        f"* ravine {rv.__version__}, torch {torch.__version__ if torch else 'not installed'}, NumPy {np.__version__}",
        f"* Command: `python benches/bench_norm.py --threads {args.threads}`",
        "",
        "| case | peer | median µs | min | max | ns/element | time / ravine's |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, size, peers in cases(torch):
        results = {peer: np.asarray(f(), np.float64) for peer, f in peers.items()}
        for peer, y in results.items():
            assert np.allclose(y, results["NumPy"], rtol=1e-4, atol=1e-4), f"{peer} is wrong: {name}"
        times = {peer: [] for peer in peers}
        for i in range(args.rounds):
            for peer in list(peers)[:: 1 if i % 2 else -1]:
                times[peer].append(sample(peers[peer]))
        for peer, seconds in times.items():
            ratio = statistics.median(t / own for t, own in zip(seconds, times["ravine"], strict=True))
            median = statistics.median(seconds)
            row = (
                f"{median * 1e6:.4g} | {min(seconds) * 1e6:.4g} | {max(seconds) * 1e6:.4g} | {median * 1e9 / size:.2f}"
            )
            lines.append(f"| {name} | {peer} | {row} | {ratio:.3g} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
