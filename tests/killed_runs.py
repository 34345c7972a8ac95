"""A whole run that is killed and started again; test_extras.py compares it with one that was not.

    python -m tests.killed_runs FILE [KILL_AFTER]

Trains a net with batch norm, noise from a generator, an average, a loss scale and a history. Every 7 steps, so within
an epoch, it saves all of these to FILE; it goes on from FILE if that is there, and prints what came out.
"""

import copy
import hashlib
import os
import signal
import sys

import numpy as np

import ravine as rv

STEPS = 40


class Net(rv.nn.Sequential):
    """A net whose state is its buffers; the parameters are the optimizer's."""

    def state_dict(self):
        layers = enumerate(self.layers)
        return {f"{i}.{name}": b.copy() for i, l in layers for name, b in getattr(l, "buffers", {}).items()}

    def load_state_dict(self, state):
        for name, value in state.items():
            i, _, buffer = name.partition(".")
            self.layers[int(i)].buffers[buffer][...] = value


class Batches:
    """Minibatches in a new order each epoch; the state is the generator's at the epoch's start, and the position."""

    def __init__(self, *arrays, size, rng):
        self.arrays, self.size, self.rng = arrays, size, rng
        self.start, self.position, self.order = None, 0, None

    def __iter__(self):
        if self.order is None:
            self.start, self.position = self.rng.bit_generator.state, 0
            self.order = self.rng.permutation(len(self.arrays[0]))
        while self.position < len(self.order):
            rows = self.order[self.position : self.position + self.size]
            self.position += self.size
            yield tuple(array[rows] for array in self.arrays)
        self.order = None

    def state_dict(self):
        return {"start": self.start if self.order is not None else None, "position": self.position}

    def load_state_dict(self, state):
        self.start, self.position, self.order = state["start"], state["position"], None
        if self.start is not None:
            rng = copy.deepcopy(self.rng)
            rng.bit_generator.state = self.start
            self.order = rng.permutation(len(self.arrays[0]))


def main(path, kill_after=None):
    """Train to the end, or be killed on the way."""
    data = np.random.default_rng(0)
    x = data.standard_normal((50, 4)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(int) + (x[:, 2] > 0)
    rng = np.random.default_rng(1)
    net = Net(
        rv.nn.Linear(4, 8, np.random.default_rng(2)),
        rv.BatchNorm(8),
        rv.nn.ReLU(),
        rv.nn.Linear(8, 3, np.random.default_rng(3)),
    )
    rate = rv.schedules.warmup(5) * rv.schedules.cosine(0.05, STEPS)
    opt = rv.AdamW(net.params, lr=rate, clip_norm=1.0, average=rv.EMA(0.9), nonfinite="skip")
    scale = rv.DynamicLossScale(2.0**10, growth_interval=4)
    batches, history = Batches(x, y, size=16, rng=rng), rv.History()
    run = {"net": net, "batches": batches, "rng": rng, "scale": scale, "history": history, "best": np.inf}
    best = np.inf
    if os.path.exists(path):
        done = opt.load(path, extra=run)
        best = done.extra["best"]
        print(done.message, file=sys.stderr)

    while opt.steps < STEPS:
        for xb, yb in batches:
            noise = rng.standard_normal(xb.shape).astype(np.float32)
            loss, dy = rv.nn.softmax_cross_entropy(net(xb + 0.1 * noise), yb)
            net.backward((dy * scale.value).astype(np.float32))
            info = opt.step(net.grads, grad_scale=scale)
            history.record(info, loss=loss)
            best = min(best, float(loss))
            if opt.steps % 7 == 3:
                opt.save(path, extra=run | {"best": best})
            if opt.steps == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

    with opt.averaged_parameters():
        evaluated = net.forward(x, training=False).copy()
    outcome = [evaluated, *rv.trees.leaves(net.params).values(), *net.state_dict().values()]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in outcome))
    digest.update(repr([history.state_dict(), rng.bit_generator.state, scale.state_dict(), best]).encode())
    print(digest.hexdigest(), history, (evaluated.argmax(1) == y).mean())


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
