"""States in fewer bytes: how far off the updates are, what real training makes of it, and what a step takes.

python benches/bench_states.py --output benches/record/states.md --picture docs/states.png

Updates are compared with those of Adam in float64 (β = 0.9, 0.999) from the same gradients, for 32 blocks of 256
elements whose gradients have scales from a lognormal distribution. The lines "to the nearest" are what codes with exact
roots make without chance, written here in NumPy. Training: handwritten digits, and the next character of ravine's own
documentation from the 16 before, by a network of embeddings; five seeds each, and all precisions see the same numbers.
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import ravine as rv
from ravine.bench import machine

STATES = (None, "bfloat16", "8bit")
SEEDS = range(5)
BLOCKS, BLOCK = 32, 256
LAST, HALF, LATE = 4000, 1500, 3000
BETAS = (np.float32(0.9), np.float32(0.999))
DOCS = Path(__file__).parent.parent / "docs"
CONTEXT, WIDTH, HIDDEN = 16, 24, 192
#: Color (Okabe and Ito's), width and style: they lie on one another.
LINES = {None: ("#0072B2", 5, "-"), "bfloat16": ("#E69F00", 2.5, "-"), "8bit": ("black", 1.2, "--")}


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


def digits(states, seed):
    """Give the test loss after each epoch, and the accuracy in the end."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    x, y = (images[order] / 16).astype(np.float32), labels[order]
    net = rv.nn.Sequential(rv.nn.Linear(64, 128, rng, init=rv.init.he_normal), rv.nn.ReLU(), rv.nn.Linear(128, 10, rng))
    opt = rv.AdamW(net.params, lr=3e-3, weight_decay=0.01, states=states)
    losses = []
    for _ in range(30):
        for batch, target in rv.data.minibatches(x[:1437], y[:1437], batch_size=32, rng=rng):
            _, gradient = rv.nn.softmax_cross_entropy(net.forward(batch), target)
            net.backward(gradient)
            opt.step(net.grads)
        scores = net.forward(x[1437:], training=False)
        losses.append(float(rv.nn.softmax_cross_entropy(scores, y[1437:])[0]))
    return losses, 100 * float((scores.argmax(1) == y[1437:]).mean())


def characters(states, seed):
    """Give the validation loss, in bits a character, every 200 steps, and in the end."""
    rng = np.random.default_rng(seed)
    text = "\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    known = sorted(set(text))
    coded = np.array([known.index(c) for c in text])
    train, test = coded[: len(coded) * 9 // 10], coded[len(coded) * 9 // 10 :]
    params = {
        "embedding": rng.standard_normal((len(known), WIDTH)).astype(np.float32) * np.float32(0.1),
        "hidden": {"w": rv.init.xavier_normal((CONTEXT * WIDTH, HIDDEN), rng), "b": np.zeros(HIDDEN, np.float32)},
        "out": {"w": rv.init.xavier_normal((HIDDEN, len(known)), rng), "b": np.zeros(len(known), np.float32)},
    }
    opt = rv.AdamW(params, lr=rv.schedules.cosine(3e-3, 2000), weight_decay=0.01, clip_norm=1.0, states=states)
    windows = np.lib.stride_tricks.sliding_window_view
    contexts, held_out = windows(train, CONTEXT + 1), windows(test, CONTEXT + 1)[::7]

    def forward(batch):
        x = params["embedding"][batch[:, :-1]].reshape(len(batch), -1)
        h = np.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
        loss, d = rv.nn.softmax_cross_entropy(h @ params["out"]["w"] + params["out"]["b"], batch[:, -1])
        return loss / np.log(2), x, h, d

    losses = []
    for step in range(2000):
        batch = contexts[rng.integers(0, len(contexts), 64)]
        _, x, h, d = forward(batch)
        dh = (d @ params["out"]["w"].T) * (1 - h * h)
        embedding = np.zeros_like(params["embedding"])
        np.add.at(embedding, batch[:, :-1], (dh @ params["hidden"]["w"].T).reshape(len(batch), CONTEXT, WIDTH))
        opt.step(
            {
                "embedding": embedding,
                "hidden": {"w": x.T @ dh, "b": dh.sum(0)},
                "out": {"w": h.T @ d, "b": d.sum(0)},
            }
        )
        if step % 200 == 199:
            losses.append(float(forward(held_out)[0]))
    return losses, losses[-1]


def training_table(curves):
    yield "| states | digits: test accuracy, % | digits: test loss | characters: bits each |"
    yield "|---|--:|--:|--:|"
    for states in STATES:
        accuracy, text = (sorted(end for _, end in curves[task, states]) for task in (digits, characters))
        loss = sorted(losses[-1] for losses, _ in curves[digits, states])
        cells = [
            f"{statistics.median(x):{form}} [{x[0]:{form}}, {x[-1]:{form}}]"
            for x, form in ((accuracy, ".1f"), (loss, ".3f"), (text, ".3f"))
        ]
        yield f"| {states or 'float32'} | {' | '.join(cells)} |"


def draw(curves, path):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, task, every, title in zip(
        axes, (digits, characters), (1, 200), ("Digits: test loss", "Characters: bits each"), strict=True
    ):
        for states in STATES:
            losses = np.array([losses for losses, _ in curves[task, states]])
            steps = every * np.arange(1, losses.shape[1] + 1)
            color, width, style = LINES[states]
            axis.plot(steps, np.median(losses, 0), style, color=color, linewidth=width, label=states or "float32")
            axis.fill_between(steps, losses.min(0), losses.max(0), color=color, alpha=0.12, linewidth=0)
        axis.set(title=title + ", median and range of five seeds", xlabel="epoch" if every == 1 else "step")
        axis.legend()
    figure.savefig(path, dpi=110)


# Time


def time_table(rounds):
    """A step of 64 Mi parameters, in ns a parameter, all in turn; the memory of the states as NumPy holds it."""
    n = 64 << 20
    gradient = np.random.default_rng(0).standard_normal(n, np.float32)
    calls, memory = {}, {}
    for states in STATES:
        opt = rv.AdamW(np.zeros(n, np.float32), lr=1e-3, states=states)
        calls[f"ravine, {states or 'float32'}"] = lambda opt=opt: opt.step(gradient)
        memory[f"ravine, {states or 'float32'}"] = sum(a.nbytes for a in opt._states()["params"].values()) / n
    try:
        import torch
    except ModuleNotFoundError:
        pass
    else:
        torch.set_num_threads(rv.num_threads())
        parameter = torch.nn.Parameter(torch.zeros(n))
        parameter.grad = torch.from_numpy(gradient)
        calls[f"torch {torch.__version__}, fused, float32"] = torch.optim.AdamW([parameter], lr=1e-3, fused=True).step
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            calls[name]()
            times[name].append(1e9 * (time.perf_counter() - start) / n)
    first = next(iter(times.values()))
    yield "| AdamW | states, bytes a parameter | ns a parameter | float32 / this |"
    yield "|---|--:|--:|--:|"
    for name, t in times.items():
        ratio = statistics.median(a / b for a, b in zip(first, t, strict=True))
        spread = f"{statistics.median(t):.3f} [{min(t):.3f}, {max(t):.3f}]"
        yield f"| {name} | {memory.get(name, 8):.2f} | {spread} | {ratio:.2f} [{min(first) / min(t):.2f}] |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    rv.set_num_threads(args.threads)
    date, load = datetime.datetime.now(datetime.UTC), os.getloadavg()[0]
    time_lines = list(time_table(args.rounds))
    runs = [(task, states) for task in (digits, characters) for states in STATES]
    curves = {(task, states): [task(states, seed) for seed in SEEDS] for task, states in runs}
    lines = [
        "# States in fewer bytes",
        "",
        f"* Date: {date:%Y-%m-%d %H:%M} UTC; {machine()}, {rv._core.simd_level()}, {args.threads} threads, "
        f"{args.rounds} rounds",
        f"* ravine {rv.__version__}, NumPy {np.__version__}, Python {platform.python_version()}; "
        f"load of the machine before the first round: {load:.1f}",
        f"* Command: `python benches/bench_states.py --threads {args.threads}`",
        "",
        f"Relative RMS error of the updates, at steps {HALF} (before) and {LATE} (after); how far a parameter went by "
        f"step {LAST} whose gradient was 0 from step {HALF} on, in learning rates:",
        "",
        "<!-- updates -->",
        *update_table(),
        "<!-- /updates -->",
        "",
        "Training, median and range of five seeds:",
        "",
        "<!-- training -->",
        *training_table(curves),
        "<!-- /training -->",
        "",
        "A step of 64 Mi parameters, median and range; the ratio is the median of those within a round, and in "
        "brackets that of the fastest, which tells more on a busy machine:",
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
        draw(curves, args.picture)


if __name__ == "__main__":
    main()
