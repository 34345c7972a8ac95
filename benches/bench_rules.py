"""Every rule that torch has too, float32, whole steps: ravine beside ``torch.optim``, in one process.

python benches/bench_rules.py --threads 2 --output benches/record/rules-2-threads.md

torch runs its fastest form: ``fused=True`` where there is one, else ``foreach=True``. ravine is asked for torch's
conventions (``like="torch"``), and after four steps both must agree to a thousandth of the largest update, or nothing
is timed. Both are called in turn, forwards and backwards alternately; ratios are medians of those within a round.
"""

import argparse
import datetime
import inspect
import platform
import statistics
from pathlib import Path

import numpy as np
import torch

import ravine as rv
from ravine.bench import in_turn, machine

# Rule, what both are given, what torch is given besides, lr.
RULES = [
    ("SGD", {}, {}, 0.01),
    ("SGD", {"momentum": 0.9}, {}, 0.01),
    ("SGD", {"momentum": 0.9, "nesterov": True}, {}, 0.01),
    ("Adam", {}, {}, 1e-3),
    ("Adam", {"amsgrad": True}, {}, 1e-3),
    ("AdamW", {"weight_decay": 0.01}, {}, 1e-3),
    ("NAdam", {}, {}, 1e-3),
    ("RAdam", {}, {}, 1e-3),
    ("Adamax", {}, {}, 1e-3),
    ("Adagrad", {}, {}, 0.01),
    ("Adadelta", {}, {}, 1.0),
    ("RMSprop", {}, {}, 0.01),
    ("RMSprop", {"momentum": 0.9, "centered": True}, {}, 0.01),
    ("Rprop", {}, {}, 0.01),
]
SIZES = [10_000, 1_000_000, 10_000_000]
STEPS = 4


def torchs(name, params, options):
    """Give torch's optimizer in its fastest form, and which that is."""
    kind = getattr(torch.optim, name)
    for form in ("fused", "foreach"):
        if form in inspect.signature(kind).parameters:
            try:
                return kind(params, **options, **{form: True}), form
            except (RuntimeError, TypeError):  # not for this device, or with these options
                continue
    return kind(params, **options), "plain"


def pair(name, common, extra, lr, size):
    """Give both steps, checked, and torch's form."""
    rng = np.random.default_rng(0)
    w, g = rng.random(size, np.float32) + np.float32(0.5), rng.random(size, np.float32) - np.float32(0.5)
    ours, theirs = w.copy(), torch.nn.Parameter(torch.from_numpy(w.copy()))
    opt = getattr(rv, name)(ours, lr=lr, like="torch", **common)
    other, form = torchs(name, [theirs], {"lr": lr, **common, **extra})
    gradient = g.copy()
    theirs.grad = torch.from_numpy(gradient)
    for k in range(STEPS):
        gradient[:] = g * np.float32((-0.5) ** k)
        opt.step(gradient)
        other.step()
    gradient[:] = g
    apart, moved = np.abs(ours - theirs.detach().numpy()), np.abs(ours - w)
    assert apart.max() <= 1e-3 * moved.max(), f"{name} {common}: {apart.max() / moved.max():.1e} from torch's"
    return (lambda: opt.step(gradient)), other.step, form


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rv.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    date = datetime.datetime.now(datetime.UTC)
    lines = [
        f"# Every rule that torch has too, float32, {args.threads} threads",
        "",
        f"* Date: {date:%Y-%m-%d %H:%M} UTC; {machine()}, {args.rounds} rounds",
        f"* ravine {rv.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"* Command: `python benches/bench_rules.py --threads {args.threads}`",
        "* ravine's median µs a step, and torch's time as a multiple of it: the median of the ratios within a round, "
        "the least and the most",
        "",
        "<!-- rules -->",
        "| rule | torch's form | " + " | ".join(f"{size:.0e}: µs | torch".replace("e+0", "e") for size in SIZES) + " |",
        "|---|---" + "|--:" * 2 * len(SIZES) + "|",
    ]
    for name, common, extra, lr in RULES:
        cells = []
        for size in SIZES:
            step, others, form = pair(name, common, extra, lr, size)
            own, theirs = in_turn({"ravine": step, "torch": others}, args.rounds).values()
            ratios = [b / a for a, b in zip(own, theirs, strict=True)]
            cells += [f"{1e6 * statistics.median(own):.4g}"]
            cells += [f"{statistics.median(ratios):.3g} [{min(ratios):.2g}, {max(ratios):.2g}]"]
        what = ", ".join([name, *(f"{key}={value}" for key, value in common.items())])
        lines.append(f"| {what} | {form} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    text = "\n".join([*lines, "<!-- /rules -->", ""])
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
