"""A run that goes on where it was killed, bit for bit: python resume.py run.safetensors.

Trains a net with batch norm, noise from a generator, an average and a loss scale. Every 7 steps, so within an epoch,
too, it saves all of these to one file. Start it again after Ctrl-C, or kill -9, and it goes on from there.
"""

import hashlib
import os
import signal
import sys

import numpy as np

import ravine as rv

STEPS = 40


def main(path, kill_after=None):
    """Train to the end; ``kill_after`` steps, for a demonstration, the process kills itself."""
    data = np.random.default_rng(0)
    x = data.standard_normal((50, 4)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(int) + (x[:, 2] > 0)

    rng = np.random.default_rng(1)
    net = rv.nn.Sequential(rv.nn.Linear(4, 8, 2), rv.BatchNorm(8), rv.nn.ReLU(), rv.nn.Linear(8, 3, 3))
    rate = rv.schedules.warmup(5) * rv.schedules.cosine(0.05, STEPS)
    opt = rv.AdamW(net.params, lr=rate, clip_norm=1.0, average=rv.EMA(0.9), nonfinite="skip")
    scale = rv.DynamicLossScale(2.0**10, growth_interval=4)
    batches, history = rv.data.minibatches(x, y, batch_size=16, rng=rng), rv.History()

    # All that the run needs besides what the optimizer has. Numbers come back by what `load` returns.
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
    outcome = [evaluated, *rv.trees.leaves(net.params).values(), *rv.trees.leaves(net.state_dict()).values()]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in outcome))
    digest.update(repr([history.state_dict(), rng.bit_generator.state, scale.state_dict(), best]).encode())
    accuracy = (evaluated.argmax(1) == y).mean()
    print(f"{opt.steps} steps, best loss {best:.4f}, accuracy {accuracy:.0%}, all bits: {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
