"""The record of ``python -m ravine bench`` as the pictures of docs/performance.md and the table of README.md.

python benches/draw_adamw.py benches/record/adamw-2-threads.md --picture docs/performance.png --readme README.md

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
    "AVX-512 by hand (C)": ("#333333", 1.0, ":"),
    "traffic alone (C)": ("#aaaaaa", 1.0, "-"),
}


ROWS = {
    "10": "10 parameters",
    "1e3": "1 000",
    "1e5": "100 000",
    "1e6": "1 000 000",
    "1e7": "10 000 000",
    "1e8": "100 000 000",
    "1000x1000": "1000 arrays of 1000",
    "resnet50": "ResNet-50's 161 arrays",
    "gpt2": "GPT-2's 148 arrays",
}


def read(path):
    """Give {case: (tensors, elements, {peer: (median, min, max, time / ravine's) in µs})}."""
    cases = {}
    text, _, _ = path.read_text(encoding="utf-8").partition("<!-- summary -->")
    for line in text.splitlines():
        if found := re.fullmatch(r"## (\S+): (\d+) tensors?, ([\d ]+) elements", line):
            name, tensors, elements = found.groups()
            cases[name] = (int(tensors), int(elements.replace(" ", "")), {})
        elif line.startswith("| ") and cases and not line.startswith("| peer"):
            peer, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            list(cases.values())[-1][2][peer] = tuple(float(cell) for cell in cells[:4] if cell != "–")
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
    traffic = {elements: peers["traffic alone (C)"][0] for _, elements, peers in one if len(peers) > 1}
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


def time_of(us):
    """Three digits and a unit."""
    for unit, size in (("s", 1e6), ("ms", 1e3), ("µs", 1)):
        if us >= size or unit == "µs":
            digits = us / size
            return f"{digits:.3g} {unit}" if digits < 1000 else f"{digits:.0f} {unit}"
    raise AssertionError


def table(cases):
    """Make the short table: times, and ravine's over the C loop's."""
    peers = [peer for peer in STYLES if peer in cases["10"][2] and not peer.endswith("(C)")]
    names = ["C" if peer.startswith("C loop") else peer for peer in peers]
    yield f"|  | {' | '.join(names)} | ravine / C |"
    yield "|---" + "|--:" * (len(peers) + 1) + "|"
    for case, name in ROWS.items():
        times = cases[case][2]
        cells = [time_of(times[peer][0]) if peer in times else "–" for peer in peers]
        yield f"| {name} | {' | '.join(cells)} | {1 / times['C loop (yardstick)'][3]:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--readme", type=Path)
    args = parser.parse_args()
    cases = read(args.record)
    draw(cases, args.picture)
    if args.readme:
        text = args.readme.read_text(encoding="utf-8")
        before, start, rest = text.partition("<!-- rows -->\n")
        _, end, after = rest.partition("<!-- /rows -->\n")
        args.readme.write_text(before + start + "\n".join([*table(cases), ""]) + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
