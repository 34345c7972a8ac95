"""1-bit gradients beside a copy of the same array, in one process: bytes of gradient per second.

python benches/bench_onebit.py --threads 2 --output benches/record/onebit.md

The copy is ``np.copyto`` of the gradient onto another array, by one thread, which is how NumPy copies. Encoding makes
its two arrays anew each time, decoding writes onto an array that is there. All are called in turn, forwards and
backwards alternately; the ratios are medians of those within a round, and a ratio of 0.5 is half the copy's bandwidth.
The projection of what is decoded onto the gradient is looked at first.
"""

import argparse
import datetime
import os
import platform
import statistics
from pathlib import Path

import numpy as np

import ravine as rv
from ravine.bench import in_turn, machine, ratio

#: Elements: in the second-level cache with the copy, in the third-level cache, in memory.
SIZES = [1 << 16, 1 << 20, 1 << 25]
WAYS = {
    "minmax": {},
    "minmax, block=256": {"block": 256},
    "minmax, block=4096": {"block": 4096},
    "rotated": {"scheme": "rotated"},
}


def cases(g, out):
    """Give {name: function}; the copy is the first."""
    functions = {"np.copyto": lambda: np.copyto(out, g)}
    for name, way in WAYS.items():
        code = rv.onebit.encode(g, 1, 2, **way)
        decoded = rv.onebit.decode(code, out).astype(np.float64)
        projection = decoded @ g.astype(np.float64) / np.sum(g.astype(np.float64) ** 2)
        assert abs(projection - 1) < (1e-5 if name == "rotated" else 0.2), name
        functions[f"encode, {name}"] = lambda way=way: rv.onebit.encode(g, 1, 2, **way)
        functions[f"decode, {name}"] = lambda code=code: rv.onebit.decode(code, out)
    return functions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rv.set_num_threads(args.threads)
    date = datetime.datetime.now(datetime.UTC)
    load = os.getloadavg()[0]
    lines = [
        f"# 1-bit gradients, float32, {args.threads} threads",
        "",
        f"* Date: {date:%Y-%m-%d %H:%M} UTC; {machine()}, {rv._core.simd_level()}, {args.rounds} rounds",
        f"* ravine {rv.__version__}, NumPy {np.__version__}, Python {platform.python_version()}; "
        f"load of the machine before the first round: {load:.1f}",
        f"* Command: `python benches/bench_onebit.py --threads {args.threads}`",
        "* GB/s are of gradient, 4 bytes an element, also for the copy. The last columns are the copy's time over this "
        "one's, the median of the rounds, and of the fastest calls, which tells more on a busy machine: 0.5 is half "
        "the copy's bandwidth",
        "",
        "| elements | what | median µs | min | max | GB/s | bandwidth / copy's | of the fastest |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for size in SIZES:
        g = np.random.default_rng(0).standard_normal(size, np.float32)
        functions = cases(g, np.empty_like(g))
        times = in_turn(functions, args.rounds)
        for name, seconds in times.items():
            median = statistics.median(seconds)
            spread = f"{median * 1e6:.4g} | {min(seconds) * 1e6:.4g} | {max(seconds) * 1e6:.4g}"
            fastest = min(times["np.copyto"]) / min(seconds)
            rates = f"{4e-9 * size / median:.1f} | {ratio(times['np.copyto'], seconds):.2f} | {fastest:.2f}"
            lines.append(f"| {size} | {name} | {spread} | {rates} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
