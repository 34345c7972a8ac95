"""States in fewer bytes: how far off the updates are, what real training makes of it, and what a step takes.

python benches/bench_states.py --output benches/record/states.md --picture docs/states.png

Updates are compared with those of Adam in float64 (β = 0.9, 0.999) from the same gradients, for 32 blocks of 256
elements whose gradients have scales from a lognormal distribution. The lines "to the nearest" are what codes with exact
roots make without chance, written here in NumPy. Training: handwritten digits, and the next character of ravine's own
documentation by a small transformer; five seeds each, and all ways see the same numbers. Where parameters are bfloat16,
so are gradients, and the network computes in float32 with the parameters as they are stored.
"""

import argparse
import datetime
import os
import platform
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np
import transformer
from sklearn.datasets import load_digits

import ravine as rv
from ravine.bench import in_turn, machine, ratio

BF16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
#: The dtype of parameters and gradients, and options.
WAYS = {
    "float32": (FLOAT32, {}),
    "bfloat16": (FLOAT32, {"states": "bfloat16"}),
    "8bit": (FLOAT32, {"states": "8bit"}),
    "8bit, split parameters": (BF16, {"states": "8bit", "master": "split"}),
    "8bit, parameters at random": (BF16, {"states": "8bit", "rounding": "stochastic"}),
    "8bit, parameters to the nearest": (BF16, {"states": "8bit"}),
}
SEEDS = 5
BLOCKS, BLOCK = 32, 256
LAST, HALF, LATE = 4000, 1500, 3000
BETAS = (np.float32(0.9), np.float32(0.999))
DOCS = Path(__file__).parent.parent / "docs"
CONTEXT, WIDTH, HEADS = 32, 48, 4
#: Color (Okabe and Ito's), width and style: they lie on one another.
LINES = dict(
    zip(
        WAYS,
        [
            ("#0072B2", 6, "-"),
            ("#E69F00", 4, "-"),
            ("#009E73", 2.5, "-"),
            ("black", 1.5, "--"),
            ("#D55E00", 1.5, ":"),
            ("#CC79A7", 1.5, "-"),
        ],
        strict=True,
    )
)


# Updates


class Ours:
    """Adam with lr = 1 from w = 0, so that w is the update."""

    def __init__(self, states):
        self.w = np.zeros(BLOCKS * BLOCK, np.float32)
        self.opt = rv.Adam(self.w, lr=1.0, eps=1e-8, bias_correction=False, states=states)

    def update(self, g):
        self.w[:] = 0
        self.opt.step(g)
        return -self.w


class Nearest:
    """The same in NumPy, each state stored and read to the nearest number that can be kept."""

    def __init__(self, states):
        self.m = self.v = np.zeros(BLOCKS * BLOCK, np.float32)
        of_8_bits = (nearest_signed, nearest_unsigned)
        self.keep = of_8_bits if states == "8bit" else (nearest_bfloat16, nearest_bfloat16)

    def update(self, g):
        (one, two), (keep_m, keep_v) = BETAS, self.keep
        m, v = one * self.m + (1 - one) * g, two * self.v + (1 - two) * (g * g)
        self.m, self.v = keep_m(m), keep_v(v)
        return m / (np.sqrt(v) + np.float32(1e-8))


def nearest_bfloat16(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def nearest_signed(x):
    blocks = x.reshape(BLOCKS, BLOCK)
    scale = np.maximum(np.abs(blocks).max(1, keepdims=True), np.float32(1e-38))
    q = np.rint(np.sqrt(np.abs(blocks) / scale) * 127)
    return (np.sign(blocks) * scale * (q / 127) ** 2).astype(np.float32).reshape(-1)


def nearest_unsigned(x):
    blocks = x.reshape(BLOCKS, BLOCK)
    scale = np.maximum(blocks.max(1, keepdims=True), np.float32(1e-38))
    q = np.maximum(np.rint((blocks / scale) ** 0.25 * 255), blocks > 0)
    return (scale * (q / 255) ** 4).astype(np.float32).reshape(-1)


def errors(kept, sigma, fall, part):
    """Relative RMS error of the updates of those that fall, over 100 steps; and how far they move for nothing."""
    rng = np.random.default_rng(0)
    scale = np.exp(sigma * rng.standard_normal(BLOCKS * BLOCK)).astype(np.float32)
    falls = rng.random(BLOCKS * BLOCK) < part
    m, v = np.zeros(BLOCKS * BLOCK), np.zeros(BLOCKS * BLOCK)
    found, squares, moved = [], np.zeros(2), np.zeros(BLOCKS * BLOCK)
    for step in range(1, LAST + 1):
        g = rng.standard_normal(BLOCKS * BLOCK).astype(np.float32) * scale
        if step > HALF:
            g[falls] *= np.float32(fall)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.astype(np.float64) ** 2
        exact, got = m / (np.sqrt(v) + 1e-8), kept.update(g)
        if step > HALF + 100:
            moved += got
        squares += np.sum((got - exact)[falls] ** 2), np.sum(exact[falls] ** 2)
        if step % 100 == 0:
            found.append(np.sqrt(squares[0] / max(squares[1], 1e-30)))
            squares[:] = 0
    return found[HALF // 100 - 1], found[LATE // 100 - 1], np.abs(moved[falls]).max()


def update_table():
    yield "| states | all fall tenfold: before | after | half fall tenfold: after | half get 0: moves, in rates |"
    yield "|---|--:|--:|--:|--:|"
    ways = {
        "float32": lambda: Ours(None),
        "bfloat16": lambda: Ours("bfloat16"),
        "bfloat16, to the nearest": lambda: Nearest("bfloat16"),
        "8bit": lambda: Ours("8bit"),
        "8bit, to the nearest": lambda: Nearest("8bit"),
    }
    for name, make in ways.items():
        before, after, _ = errors(make(), 1.0, 0.1, 1.0)
        _, half, _ = errors(make(), 1.0, 0.1, 0.5)
        *_, moved = errors(make(), 1.0, 0.0, 0.5)
        yield f"| {name} | {before:.3f} | {after:.3f} | {half:.3f} | {moved:.1f} |"


# Training


def optimizer(params, way, **numbers):
    """Give a function that takes float32 gradients and changes float32 parameters, which are what is stored."""
    dtype, options = WAYS[way]
    stored = params if dtype == np.float32 else rv.trees.map(lambda w: w.astype(dtype), params)
    opt = rv.AdamW(stored, **numbers, **options)
    if stored is params:
        return opt.step
    pairs = list(zip(rv.trees.leaves(params).values(), rv.trees.leaves(stored).values(), strict=True))

    def show():
        for w, x in pairs:
            w[...] = x

    def step(grads):
        opt.step(rv.trees.map(lambda g: g.astype(dtype), grads))
        show()

    show()
    return step


def digits(way, seed, epochs):
    """Give the test loss after each epoch, and the accuracy in the end."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    x, y = (images[order] / 16).astype(np.float32), labels[order]
    net = rv.nn.Sequential(rv.nn.Linear(64, 128, rng, init=rv.init.he_normal), rv.nn.ReLU(), rv.nn.Linear(128, 10, rng))
    step = optimizer(net.params, way, lr=3e-3, weight_decay=0.01)
    losses = []
    for _ in range(epochs):
        for batch, target in rv.data.minibatches(x[:1437], y[:1437], batch_size=32, rng=rng):
            _, gradient = rv.nn.softmax_cross_entropy(net.forward(batch), target)
            net.backward(gradient)
            step(net.grads)
        scores = net.forward(x[1437:], training=False)
        losses.append(float(rv.nn.softmax_cross_entropy(scores, y[1437:])[0]))
    return losses, 100 * float((scores.argmax(1) == y[1437:]).mean())


def characters(way, seed, steps):
    """Give the validation loss, in bits a character, at each tenth of the steps, and in the end."""
    rng = np.random.default_rng(seed)
    text = "\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    known = sorted(set(text))
    coded = np.array([known.index(c) for c in text])
    train, test = coded[: len(coded) * 9 // 10], coded[len(coded) * 9 // 10 :]
    windows = np.lib.stride_tricks.sliding_window_view
    texts, held_out = windows(train, CONTEXT + 1), windows(test, CONTEXT + 1)[::CONTEXT]
    params = transformer.new_params(rng, len(known), length=CONTEXT, width=WIDTH, blocks=2)
    lr = rv.schedules.warmup(steps // 20) * rv.schedules.cosine(3e-3, steps)
    step = optimizer(params, way, lr=lr, weight_decay=0.01, clip_norm=1.0)
    losses = []
    for number in range(steps):
        batch = texts[rng.integers(0, len(texts), 16)]
        step(transformer.loss_and_grads(params, batch, heads=HEADS)[1])
        if number % (steps // 10) == steps // 10 - 1:
            loss, _ = transformer.loss_and_grads(params, held_out, heads=HEADS, gradients=False)
            losses.append(float(loss / np.log(2)))
    return losses, losses[-1]


def training_table(curves):
    yield "| | digits: test accuracy, % | digits: test loss | characters: bits each |"
    yield "|---|--:|--:|--:|"
    for way in WAYS:
        accuracy, text = (sorted(end for _, end in curves[task, way]) for task in (digits, characters))
        loss = sorted(losses[-1] for losses, _ in curves[digits, way])
        cells = [
            f"{statistics.median(x):{form}} [{x[0]:{form}}, {x[-1]:{form}}]"
            for x, form in ((accuracy, ".1f"), (loss, ".3f"), (text, ".3f"))
        ]
        yield f"| {way} | {' | '.join(cells)} |"


def draw(curves, path, lengths):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axis, task, title in zip(
        axes, (digits, characters), ("Digits: test loss", "Characters: bits each"), strict=True
    ):
        for way, (color, width, style) in LINES.items():
            losses = np.array([losses for losses, _ in curves[task, way]])
            steps = lengths[task] / losses.shape[1] * np.arange(1, losses.shape[1] + 1)
            axis.plot(steps, np.median(losses, 0), style, color=color, linewidth=width, label=way)
            axis.fill_between(steps, losses.min(0), losses.max(0), color=color, alpha=0.1, linewidth=0)
        axis.set(title=title + ", median and range", xlabel="epoch" if task is digits else "step")
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


# Time


def resident():
    """Bytes that the process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def time_table(n, rounds):
    """A step of n parameters, in ns a parameter, all in turn; what the states take, as NumPy and the system have it."""
    gradient = np.random.default_rng(0).standard_normal(n, np.float32)
    gradients = {np.dtype(np.float32): gradient, BF16: gradient.astype(BF16)}
    calls, memory = {}, {}
    cases = {f"ravine, {way}": (dtype, dtype, options) for way, (dtype, options) in WAYS.items()}
    cases["ravine, 8bit, bfloat16 gradients"] = (np.dtype(np.float32), BF16, {"states": "8bit"})
    cases["ravine, float32, bfloat16 gradients"] = (np.dtype(np.float32), BF16, {})
    for name, (dtype, of_gradients, options) in cases.items():
        parameter, g = np.ones(n, dtype), gradients[of_gradients]
        before = resident()
        opt = rv.AdamW(parameter, lr=1e-3, **options)
        opt.step(g)
        arrays = sum(a.nbytes for a in opt._arrays()["params"].values())
        memory[name] = dtype.itemsize, of_gradients.itemsize, arrays / n, (resident() - before) / n
        calls[name] = lambda opt=opt, g=g: opt.step(g)
    reference = None
    try:
        import torch
    except ModuleNotFoundError:
        pass
    else:
        torch.set_num_threads(rv.num_threads())
        parameter = torch.nn.Parameter(torch.ones(n))
        parameter.grad = torch.from_numpy(gradient)
        reference = f"torch {torch.__version__}, fused, float32"
        optimizer, before = torch.optim.AdamW([parameter], lr=1e-3, fused=True), resident()
        optimizer.step()
        memory[reference] = 4, 4, 8, (resident() - before) / n
        calls[reference] = optimizer.step
    times = {name: [1e9 * t / n for t in seconds] for name, seconds in in_turn(calls, rounds).items()}

    def gain(of, to):
        return f"{ratio(of, to):.2f} [{min(of) / min(to):.2f}]"

    takes = "bytes a parameter: itself, gradient, states (resident)"
    yield f"| AdamW | {takes} | ns a parameter | float32 / this | torch / this |"
    yield "|---|--:|--:|--:|--:|"
    for name, t in times.items():
        *bytes_of, held = memory[name]
        spread = f"{statistics.median(t):.3f} [{min(t):.3f}, {max(t):.3f}]"
        others = gain(next(iter(times.values())), t), gain(times[reference], t) if reference else ""
        takes = f"{bytes_of[0]}, {bytes_of[1]}, {bytes_of[2]:.2f} ({held:.2f})"
        yield f"| {name} | {takes} | {spread} | {' | '.join(others)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument(
        "--quick", action="store_true", help="a 64th of the parameters, two seeds, few steps: does it run?"
    )
    args = parser.parse_args()
    rv.set_num_threads(args.threads)
    date, load = datetime.datetime.now(datetime.UTC), os.getloadavg()[0]
    n, seeds = (1 << 20, 2) if args.quick else (64 << 20, SEEDS)
    lengths = {digits: 3, characters: 100} if args.quick else {digits: 30, characters: 1000}
    time_lines = list(time_table(n, args.rounds))
    curves = {
        (task, way): [task(way, seed, length) for seed in range(seeds)]
        for task, length in lengths.items()
        for way in WAYS
    }
    lines = [
        "# States in fewer bytes",
        "",
        f"* Date: {date:%Y-%m-%d %H:%M} UTC; {machine()}, {rv._core.simd_level()}, {args.threads} threads, "
        f"{args.rounds} rounds",
        f"* ravine {rv.__version__}, NumPy {np.__version__}, Python {platform.python_version()}; "
        f"load of the machine before the first round: {load:.1f}",
        f"* Command: `python benches/bench_states.py --threads {args.threads}{' --quick' if args.quick else ''}`",
        "",
        f"Relative RMS error of the updates, at steps {HALF} (before) and {LATE} (after); how far a parameter went by "
        f"step {LAST} whose gradient was 0 from step {HALF} on, in learning rates:",
        "",
        "<!-- updates -->",
        *update_table(),
        "<!-- /updates -->",
        "",
        f"Training, median and range of {seeds} seeds; of the transformer {lengths[characters]} steps:",
        "",
        "<!-- training -->",
        *training_table(curves),
        "<!-- /training -->",
        "",
        f"A step of {n >> 20} Mi parameters, median and range; a ratio is the median of those within a round, and in "
        "brackets that of the fastest, which tells more on a busy machine. States, remainders among them, as NumPy has "
        "them, and what the process has grown by when they were made and stepped once:",
        "",
        "<!-- time -->",
        *time_lines,
        "<!-- /time -->",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.write_text(text)
    if args.picture:
        draw(curves, args.picture, lengths)


if __name__ == "__main__":
    main()
