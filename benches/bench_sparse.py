"""A step on some rows of a table beside a dense step on all of it, in one process.

python benches/bench_sparse.py --threads 2 --output benches/record/sparse.md

The table has 1 000 000 rows of 64 float32 numbers, 256 MB, and as much for each state. A batch looks up 1000 rows
drawn at random, or 20 000 by Zipf's law, of which many are the same. All are called in turn, forwards and backwards
alternately; the ratios are medians of those within a round. Both must agree before they are timed. ``copies`` is what
cannot be avoided: to gather and to scatter these rows of the table and the states, in NumPy.
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

ROWS, WIDTH = 1_000_000, 64
RULES = {"SGD": rv.SGD, "Adagrad": rv.Adagrad, "Adam": rv.Adam}


def lookups():
    rng = np.random.default_rng(0)
    yield "1000 at random", rng.integers(0, ROWS, 1000)
    yield "20 000 by Zipf", np.minimum(rng.zipf(1.3, 20_000), ROWS) - 1


def check(make, gradient):
    """One step of each, from the same numbers."""
    dense = np.zeros((ROWS, WIDTH), np.float32)
    np.add.at(dense, gradient.indices, gradient.values)
    one, two = np.ones_like(dense), np.ones_like(dense)
    make(one, lr=0.1).step(gradient)
    make(two, lr=0.1).step(dense)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-4)  # the dense sums are float32
    return dense


def rows_of(opt, rows):
    """Gather and scatter."""
    for array in (*opt._engine.parameters, *opt._engine.states[0]):
        array[rows] = array[rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rv.set_num_threads(args.threads)
    date, load = datetime.datetime.now(datetime.UTC), os.getloadavg()[0]
    lines = [
        f"# Steps on rows of a table, 1 000 000 × 64 float32, {args.threads} threads",
        "",
        f"* Date: {date:%Y-%m-%d %H:%M} UTC; {machine()}, {rv._core.simd_level()}, {args.rounds} rounds",
        f"* ravine {rv.__version__}, NumPy {np.__version__}, Python {platform.python_version()}; "
        f"load of the machine before the first round: {load:.1f}",
        f"* Command: `python benches/bench_sparse.py --threads {args.threads}`",
        "* Median ms and [least, most]; the ratio is the median of those within a round, and in brackets that of the "
        "fastest, which tells more on a busy machine",
        "",
        "<!-- table -->",
        "| rule | looked up | different | dense step | `RowSparse` step | copies of these rows | dense / `RowSparse` |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, make in RULES.items():
        for looked_up, indices in lookups():
            values = np.random.default_rng(1).standard_normal((len(indices), WIDTH), np.float32)
            gradient, rows = rv.RowSparse(indices, values), np.unique(indices)
            dense = check(make, gradient)
            opt = make(np.ones((ROWS, WIDTH), np.float32), lr=0.1)
            calls = {
                "dense": lambda opt=opt, dense=dense: opt.step(dense),
                "rows": lambda opt=opt, gradient=gradient: opt.step(gradient),
                "copies": lambda opt=opt, rows=rows: rows_of(opt, rows),
            }
            # Single calls: the rows of a real batch are not in the cache.
            times = in_turn(calls, args.rounds, seconds=0)
            milliseconds = [[1e3 * t for t in seconds] for seconds in times.values()]
            cells = [f"{statistics.median(t):.3g} [{min(t):.3g}, {max(t):.3g}]" for t in milliseconds]
            gain = ratio(times["dense"], times["rows"])
            fastest = min(times["dense"]) / min(times["rows"])
            lines.append(f"| {name} | {looked_up} | {len(rows)} | {' | '.join(cells)} | {gain:.0f} [{fastest:.0f}] |")
    text = "\n".join([*lines, "<!-- /table -->", ""])
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
