"""AdamW in float32 at its limits: threads, subnormal states, the first step, a billion parameters.

python benches/bench_limits.py --threads 2 --output benches/record/limits.md

All that is compared takes turns in one process; ratios are medians of those within a round.
"""

import argparse
import datetime
import os
import platform
import statistics
from functools import partial
from pathlib import Path

import numpy as np

import ravine as rv
from ravine.bench import in_turn, machine, ratio, sample

LIST = 1000  # tensors of as many elements


def optimizer(elements, tensors=1, **options):
    """Give a step over random numbers."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(elements, np.float32) for _ in range(tensors)]
    grads = [rng.standard_normal(elements, np.float32) for _ in range(tensors)]
    opt = rv.AdamW(params, lr=1e-3, **options)
    opt.step(grads)
    return opt, lambda: opt.step(grads)


def on(threads, step):
    def stepped():
        rv.set_num_threads(threads)
        step()

    return stepped


def thread_table(threads, rounds):
    yield f"| parameters | 1 thread, µs | {threads} threads, µs | {threads} threads / 1 |"
    yield "|--:|--:|--:|--:|"
    sizes = [(10**k, 1) for k in range(9)] + [(3 * 10**k, 1) for k in range(3, 6)] + [(LIST, LIST)]
    for elements, tensors in sorted(sizes, key=lambda size: (size[1], size[0])):
        _, step = optimizer(elements, tensors)
        alone, together = in_turn({"alone": on(1, step), "together": on(threads, step)}, rounds).values()
        name = f"{elements:,}" if tensors == 1 else f"{tensors:,} × {elements:,}"
        medians = [f"{1e6 * statistics.median(times):.4g}" for times in (alone, together)]
        yield f"| {name.replace(',', ' ')} | {' | '.join(medians)} | {ratio(together, alone):.2f} |"


def subnormal_table(threads, rounds):
    """States of 1e-40 under gradients that keep them there: m by 0.9 and 0.1, v by its own decay next to 1."""
    yield "| parameters | threads | normal states, µs | subnormal / normal |"
    yield "|--:|--:|--:|--:|"
    for elements in (10_000, 1_000_000, 16_000_000):
        steps = {}
        for name, size in (("normal", 1e-10), ("subnormal", 1e-40)):
            params, grads = np.ones(elements, np.float32), np.full(elements, size, np.float32)
            opt = rv.AdamW(params, lr=1e-3, betas=(0.9, 0.9999999))
            state = opt.state_dict()
            for array in state["states"]["params"].values():
                array[...] = size
            opt.load_state_dict(state)
            steps[name] = lambda opt=opt, grads=grads: opt.step(grads)
        for count in dict.fromkeys((1, threads)):
            times = in_turn({name: on(count, step) for name, step in steps.items()}, rounds)
            median, slower = statistics.median(times["normal"]), ratio(times["subnormal"], times["normal"])
            yield f"| {elements:,} | {count} | {1e6 * median:.4g} | {slower:.2f} |".replace(",", " ")


def size_table():
    """As large as fits into half of the memory that is there."""
    yield "| parameters | first step, s | a step, s | ns a parameter | GB/s |"
    yield "|--:|--:|--:|--:|--:|"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for elements in (10**7, 10**8, 3 * 10**8, 10**9):
        if 16 * elements > 0.75 * memory:
            continue
        params, grads = np.ones(elements, np.float32), np.ones(elements, np.float32)
        opt = rv.AdamW(params, lr=1e-3)
        step = partial(opt.step, grads)
        first, seconds = sample(step, 1), statistics.median(sample(step, 1) for _ in range(5))
        yield (
            f"| {elements:,} | {first:.3g} | {seconds:.3g} | {1e9 * seconds / elements:.3f} "
            f"| {28 * elements / seconds / 1e9:.0f} |"
        ).replace(",", " ")
        del opt, params, grads, step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    date = datetime.datetime.now(datetime.UTC)
    threads, subnormal = list(thread_table(args.threads, args.rounds)), list(subnormal_table(args.threads, args.rounds))
    rv.set_num_threads(args.threads)
    lines = [
        "# AdamW at its limits",
        "",
        f"* Date: {date:%Y-%m-%d %H:%M} UTC; {machine()}, {rv._core.simd_level()}, {args.rounds} rounds",
        f"* ravine {rv.__version__}, NumPy {np.__version__}, Python {platform.python_version()}",
        f"* Command: `python benches/bench_limits.py --threads {args.threads}`",
        "",
        "<!-- threads -->",
        *threads,
        "<!-- /threads -->",
        "",
        "<!-- subnormal -->",
        *subnormal,
        "<!-- /subnormal -->",
        "",
        f"On {args.threads} threads:",
        "",
        "<!-- sizes -->",
        *size_table(),
        "<!-- /sizes -->",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
