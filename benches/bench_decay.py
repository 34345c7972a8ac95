"""Decoupled decay in float32 beside its peers: the mean decay of a step, as a multiple of γλ.

    python benches/bench_decay.py --output benches/record/decay.md

AdamW over 100 000 parameters between 1 and 2, 300 steps of normal gradients, from the same numbers in every library.
The steps without decay are those of AdamW in float64.
"""

import argparse
import platform
from pathlib import Path

import numpy as np

import ravine as rv
from ravine.bench import machine

PAIRS = [(1e-6, 0.005), (1e-6, 0.01), (2e-6, 0.01), (3e-6, 0.01), (1e-5, 0.01), (3e-5, 0.1), (1e-4, 0.01), (1e-3, 0.01)]
N, STEPS = 100_000, 300


def gradients():
    rng = np.random.default_rng(0)
    return (rng.standard_normal(N).astype(np.float32) for _ in range(STEPS))


def start():
    return np.random.default_rng(1).uniform(1, 2, N).astype(np.float32)


def ravine(dtype=np.float32, **options):
    def run(lr, weight_decay):
        w = start().astype(dtype)
        opt = rv.AdamW(w, lr=lr, weight_decay=weight_decay, **options)
        for g in gradients():
            opt.step(g.astype(w.dtype))
        return w

    return run


def lion(lr, weight_decay, dtype=np.float32):
    w = start().astype(dtype)
    opt = rv.Lion(w, lr=lr, weight_decay=weight_decay)
    for g in gradients():
        opt.step(g.astype(dtype))
    return w


def torch_adamw(fused):
    import torch

    def run(lr, weight_decay):
        w = torch.nn.Parameter(torch.from_numpy(start()))
        opt = torch.optim.AdamW([w], lr=lr, weight_decay=weight_decay, fused=fused)
        for g in gradients():
            w.grad = torch.from_numpy(g)
            opt.step()
        return w.detach().numpy()

    return run


def deepspeed_adamw():
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    def run(lr, weight_decay):
        w = torch.nn.Parameter(torch.from_numpy(start()))
        opt = DeepSpeedCPUAdam([w], lr=lr, weight_decay=weight_decay, adamw_mode=True)
        for g in gradients():
            w.grad = torch.from_numpy(g)
            opt.step()
        return w.detach().numpy()

    return run


def optax_adamw():
    import jax
    import jax.numpy as jnp
    import optax

    def run(lr, weight_decay):
        rule = optax.adamw(lr, weight_decay=weight_decay)
        w = jnp.array(start())
        state = rule.init(w)

        @jax.jit
        def step(w, state, g):
            updates, state = rule.update(g, state, w)
            return optax.apply_updates(w, updates), state

        for g in gradients():
            w, state = step(w, state, jnp.array(g))
        return np.asarray(w)

    return run


def peers():
    """Name those that are installed."""
    made = {"ravine": lambda: ravine(), "torch": lambda: torch_adamw(False), "torch fused": lambda: torch_adamw(True)}
    made |= {"DeepSpeed": deepspeed_adamw, "optax": optax_adamw}
    for name, make in made.items():
        try:
            yield name, make()
        except ImportError:
            continue


def mean_decay(w, undecayed):
    w0 = start().astype(np.float64)
    return float(np.mean((undecayed - w.astype(np.float64)) / w0)) / STEPS


def versions():
    found = [f"Python {platform.python_version()}", f"NumPy {np.__version__}"]
    for name in ("torch", "deepspeed", "optax", "jax"):
        try:
            found.append(f"{name} {__import__(name).__version__}")
        except ImportError:
            continue
    return ", ".join(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record as Markdown, too")
    output = parser.parse_args().output
    runs = dict(peers())
    lines = ["# Decoupled decay in float32", "", f"* Machine: {machine()}", f"* {versions()}"]
    lines += [f"* AdamW, {N:_} parameters, {STEPS} steps; the mean decay of a step over γλ, right is 1", ""]
    lines += ["| γ | λ | γλ | " + " | ".join(runs) + " | Lion of ravine |", "|---" * (len(runs) + 4) + "|"]
    for lr, weight_decay in PAIRS:
        part = lr * weight_decay
        undecayed = ravine(np.float64)(lr, 0.0)
        values = [mean_decay(run(lr, weight_decay), undecayed) / part for run in runs.values()]
        values.append(mean_decay(lion(lr, weight_decay), lion(lr, 0.0, np.float64)) / part)
        lines.append(
            f"| {lr:g} | {weight_decay:g} | {part:.0e} | " + " | ".join(f"{value:.3f}" for value in values) + " |"
        )
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if output:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
