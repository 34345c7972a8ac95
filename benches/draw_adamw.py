"""The record of ``python -m ravine bench`` as pictures and a table of bounds: what docs/performance.md shows.

python benches/draw_adamw.py benches/record/adamw-2-threads.md --picture docs/performance.png

The picture: time a parameter against the number of parameters, in one tensor and in many; and the same over the time
that C takes for the same reads and writes, with next to no arithmetic (`yardstick.c`).
"""

import argparse
import re
from pathlib import Path

import matplotlib.pyplot as plt

STYLES = {
    "ravine": ("#c1272d", 2.6, "o-"),
    "torch fused": ("#ee8434", 1.4, "s-"),
    "DeepSpeed": ("#1b7f5c", 1.4, "D-"),
    "optax jit": ("#6a4c93", 1.4, "^-"),
    "thinc": ("#8d6e63", 1.4, "v-"),
    "numba loop": ("#0077b6", 1.4, "P-"),
    "NumPy in place": ("#7f8c8d", 1.4, "X-"),
    "C loop (yardstick)": ("#333333", 1.0, "--"),
    "C, AVX-512 by hand": ("#333333", 1.0, ":"),
    "C, memory traffic alone": ("#aaaaaa", 1.0, "-"),
}


def read(path):
    """Give {case: (tensors, elements, {peer: (median, min, max) in µs})}."""
    cases = {}
    text, _, _ = path.read_text(encoding="utf-8").partition("<!-- summary -->")
    for line in text.splitlines():
        if found := re.fullmatch(r"## (\S+): (\d+) tensors?, ([\d ]+) elements", line):
            name, tensors, elements = found.groups()
            cases[name] = (int(tensors), int(elements.replace(" ", "")), {})
        elif line.startswith("| ") and cases and not line.startswith("| peer"):
            peer, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            list(cases.values())[-1][2][peer] = tuple(float(cell) for cell in cells[:3])
    return cases


def lines_of(cases, chosen, x):
    """Give {peer: (xs, µs)} of these cases."""
    lines = {}
    for tensors, elements, peers in chosen:
        for peer, (median, *_) in peers.items():
            if peer in STYLES:
                xs, ys = lines.setdefault(peer, ([], []))
                xs.append(x(tensors, elements))
                ys.append(median)
    return lines


def draw(cases, path):
    one = [case for case in cases.values() if case[0] == 1]
    many = [case for case in cases.values() if case[1] == 1_000_000]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
    traffic = {elements: peers["C, memory traffic alone"][0] for _, elements, peers in one if len(peers) > 1}
    for peer, (color, width, style) in STYLES.items():
        look = {"color": color, "linewidth": width, "markersize": 4, "label": peer}
        for axis, chosen, x, y in (
            (axes[0], one, lambda _, n: n, lambda n, us: 1e3 * us / n),
            (axes[1], one, lambda _, n: n, lambda n, us: us / traffic[n]),
            (axes[2], many, lambda k, _: k, lambda _, us: us),
        ):
            if peer in (lines := lines_of(cases, chosen, x)):
                xs, ys = lines[peer]
                axis.loglog(xs, [y(n, us) for n, us in zip(xs, ys, strict=True)], style, **look)
    for axis, title, x, y in zip(
        axes,
        (
            "One tensor: time a parameter",
            "The same over its memory traffic alone",
            "A million parameters, in many tensors",
        ),
        ("parameters", "parameters", "tensors"),
        ("ns", "times", "µs a step"),
        strict=True,
    ):
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.grid(which="major", color="#e6e6e6")
        axis.set_axisbelow(True)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--picture", type=Path, required=True)
    args = parser.parse_args()
    draw(read(args.record), args.picture)


if __name__ == "__main__":
    main()
