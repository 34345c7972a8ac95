"""AdamW in float32, whole ``opt.step(grads)``: ravine against what its users would take instead, in one process.

    python -m ravine bench --quick
    python -m ravine bench --threads 1 --cases 1e6,resnet50 --output adamw.md

Peers: torch (fused), DeepSpeed, optax (jit, donated), thinc, a numba loop, NumPy in place, as far as they are
installed, and the yardsticks, C over the whole list, compiled here with ``cc``: a plain loop, one written by hand for
AVX-512, and one that only reads and writes the same. They tell a slow peer from a slow moment of the machine.

Every case first checks that all peers agree with AdamW in float64. Then rounds: one sample of each peer in turn,
forwards and backwards alternately; a sample is about 8 ms of steps, or one step, after as many that do not count. The
ratios are medians of the ratios within each round, so a change of the machine's mood between rounds cancels out.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import importlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["add_arguments", "main"]

LR, BETA1, BETA2, EPS, WEIGHT_DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01
SAMPLE_SECONDS = 8e-3
SPINNING = 20e-3  # seconds that threads of the peer before may go on; OpenMP's do for 6 ms
TOLERANCE = 1e-5
# Gradients of the steps that are checked, as multiples (powers of two: exact) of those that are timed. They differ,
# since Adam hardly notices a constant factor, and a clip that does nothing would pass.
CHECKED_STEPS = (1.0, -0.5, 4.0, 1.0)
SLICE = 1000
PARALLEL_FROM = 1 << 16  # elements; of the numba loop

Arrays = dict[str, np.ndarray]
Call = Callable[[], object]
Shapes = list[tuple[int, ...]]


# What is stepped.


def resnet50() -> Shapes:
    """List ResNet-50's parameters in torchvision's order: 161 tensors, 25 557 032 elements."""

    def convolution(out: int, into: int, size: int) -> Shapes:
        return [(out, into, size, size), (out,), (out,)]  # with its batch norm

    shapes = convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, into, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, into, 1)
            into = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2() -> Shapes:
    """List GPT-2 small's parameters: 148 tensors, 124 439 808 elements."""
    d = 768
    block = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(50257, d), (1024, d), *(12 * block), (d,), (d,)]


CASES: dict[str, Shapes] = {
    # One tensor.
    **{name: [(int(float(name)),)] for name in ("1", "10", "1e2", "1e3", "1e4", "1e5", "1e6", "1e7", "64e6", "1e8")},
    # A million elements in several.
    "10x1e5": [(100_000,)] * 10,
    "100x1e4": [(10_000,)] * 100,
    "1000x1000": [(1_000,)] * 1000,
    "10000x100": [(100,)] * 10_000,
    "resnet50": resnet50(),
    "gpt2": gpt2(),
    "gpt2-clip": gpt2(),
}
QUICK = ["10", "1e3", "1e5", "1e6", "1000x1000"]


# Who steps it. A peer has parameters and states of its own, and only reads the gradients, which all share.


class Peer:
    name = ""

    def __init__(self, params: Arrays, grads: Arrays, clip_norm: float | None) -> None:
        self.grads = grads
        self.clip_norm = clip_norm
        self.set_up({name: p.copy() for name, p in params.items()})
        self.gradients_changed()

    checked = True
    most: int | None = None  # tensors

    @property
    def label(self) -> str:
        return self.name if self.clip_norm is None else f"{self.name}, clip_norm={self.clip_norm:g}"

    def set_up(self, params: Arrays) -> None:
        self.params = params

    def gradients_changed(self) -> None:
        """Take over new values of the shared gradients, if they were copied."""

    prepare: Any = None  # what has to precede each step and is not timed

    def step(self) -> None:
        raise NotImplementedError

    def read(self, name: str) -> np.ndarray:
        return self.params[name]


class Ravine(Peer):
    name = "ravine"

    def set_up(self, params: Arrays) -> None:
        import ravine as rv

        super().set_up(params)
        self.optimizer = rv.AdamW(self.params, lr=LR, weight_decay=WEIGHT_DECAY, clip_norm=self.clip_norm)

    def step(self) -> None:
        self.optimizer.step(self.grads)


class NumpyInPlace(Peer):
    name = "NumPy in place"

    def set_up(self, params: Arrays) -> None:
        super().set_up(params)
        self.m = {name: np.zeros_like(p) for name, p in params.items()}
        self.v = {name: np.zeros_like(p) for name, p in params.items()}
        room = [np.empty(max(p.size for p in params.values()), np.float32) for _ in range(2)]
        self.room = {name: [r[: p.size].reshape(p.shape) for r in room] for name, p in params.items()}
        self.t = 0

    def step(self) -> None:
        self.t += 1
        rate, root_c2 = LR / (1 - BETA1**self.t), float(np.sqrt(1 - BETA2**self.t))
        scale = 1.0
        if self.clip_norm is not None:
            norm = float(np.sqrt(sum(float(np.vdot(g, g)) for g in self.grads.values())))
            scale = min(1.0, self.clip_norm / norm)
        for name, p in self.params.items():
            g, m, v, (a, b) = self.grads[name], self.m[name], self.v[name], self.room[name]
            if scale != 1:
                g = np.multiply(g, scale, out=b)
            m *= BETA1
            m += np.multiply(g, 1 - BETA1, out=a)
            np.multiply(g, g, out=a)
            a *= 1 - BETA2
            v *= BETA2
            v += a
            np.sqrt(v, out=a)
            a /= root_c2
            a += EPS
            np.divide(m, a, out=a)
            a *= rate
            p *= 1 - LR * WEIGHT_DECAY
            p -= a


class TorchFused(Peer):
    name = "torch fused"

    def set_up(self, params: Arrays) -> None:
        import torch

        self.params = params
        self.tensors = {name: torch.nn.Parameter(torch.from_numpy(p)) for name, p in params.items()}
        # torch scales gradients in place, so with a clip it gets its own.
        own = self.grads if self.clip_norm is None else {name: g.copy() for name, g in self.grads.items()}
        for name, tensor in self.tensors.items():
            tensor.grad = torch.from_numpy(own[name])
        self.own = own
        self.list = list(self.tensors.values())
        self.optimizer = torch.optim.AdamW(self.list, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
        self.clip = torch.nn.utils.clip_grad_norm_

    def gradients_changed(self) -> None:
        if self.own is not self.grads:
            for name, g in self.grads.items():
                np.copyto(self.own[name], g)

    def step(self) -> None:
        if self.clip_norm is not None:
            self.clip(self.list, self.clip_norm)
        self.optimizer.step()


class OptaxJit(Peer):
    name = "optax jit"
    most = 1000  # to compile a step over 10 000 tensors takes minutes

    def set_up(self, params: Arrays) -> None:
        import jax
        import jax.numpy as jnp
        import optax

        self.array, self.wait = jnp.array, jax.block_until_ready
        rule = optax.adamw(LR, b1=BETA1, b2=BETA2, eps=EPS, weight_decay=WEIGHT_DECAY)
        if self.clip_norm is not None:
            rule = optax.chain(optax.clip_by_global_norm(self.clip_norm), rule)

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.update = jax.jit(update, donate_argnums=(0, 1))
        self.params = {name: jnp.array(p) for name, p in params.items()}
        self.state = rule.init(self.params)

    def gradients_changed(self) -> None:
        self.device_grads = {name: self.array(g) for name, g in self.grads.items()}

    def step(self) -> None:
        self.params, self.state = self.update(self.params, self.state, self.device_grads)
        self.wait(self.params)

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self.params[name])


class Thinc(Peer):
    name = "thinc"

    def set_up(self, params: Arrays) -> None:
        from thinc.api import Adam

        self.params = params
        self.optimizer = Adam(LR, L2=WEIGHT_DECAY, beta1=BETA1, beta2=BETA2, eps=EPS, grad_clip=0.0, use_averages=False)
        self.own = {name: np.empty_like(g) for name, g in self.grads.items()}
        self.keys = {name: (k, name) for k, name in enumerate(params)}

    def prepare(self) -> None:
        # thinc zeroes the gradients that it is given.
        for name, g in self.grads.items():
            np.copyto(self.own[name], g)

    def step(self) -> None:
        for name, key in self.keys.items():
            self.params[name], self.own[name] = self.optimizer(key, self.params[name], self.own[name])


class DeepSpeed(Peer):
    name = "DeepSpeed"

    def set_up(self, params: Arrays) -> None:
        import torch
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        self.params = params
        tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params.values()]
        for tensor, g in zip(tensors, self.grads.values(), strict=True):
            tensor.grad = torch.from_numpy(g)
        numbers = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS, "weight_decay": WEIGHT_DECAY}
        self.optimizer = DeepSpeedCPUAdam(tensors, **numbers, adamw_mode=True)

    def step(self) -> None:
        self.optimizer.step()


class Numba(Peer):
    """The loop that users write, over one tensor after the other; in parallel where that is faster."""

    name = "numba loop"

    def set_up(self, params: Arrays) -> None:
        super().set_up(params)
        self.m = {name: np.zeros_like(p) for name, p in params.items()}
        self.v = {name: np.zeros_like(p) for name, p in params.items()}
        # Views of one dimension, made once.
        lists = (params, self.grads, self.m, self.v)
        self.flat = [tuple(arrays[name].reshape(-1) for arrays in lists) for name in params]
        self.t = 0
        self.loops = numba_loops()

    def step(self) -> None:
        self.t += 1
        rate, correction = LR / (1 - BETA1**self.t), 1 / (1 - BETA2**self.t) ** 0.5
        numbers = [np.float32(x) for x in (LR * WEIGHT_DECAY, rate, BETA1, BETA2, correction, EPS)]
        for arrays in self.flat:
            self.loops[arrays[0].size >= PARALLEL_FROM](*arrays, *numbers)


def numba_loops() -> tuple[Any, Any]:
    """Compile the loop, serial and parallel."""
    import numba

    def loop(
        p: Any, g: Any, m: Any, v: Any, decay: Any, rate: Any, b1: Any, b2: Any, correction: Any, eps: Any
    ) -> None:
        one = np.float32(1)
        for i in numba.prange(p.size):
            m[i] = b1 * m[i] + (one - b1) * g[i]
            v[i] = b2 * v[i] + (one - b2) * (g[i] * g[i])
            p[i] = (one - decay) * p[i] - rate * (m[i] / (np.sqrt(v[i]) * correction + eps))

    serial = numba.njit(loop, error_model="numpy")
    return serial, numba.njit(loop, error_model="numpy", parallel=True) if numba.get_num_threads() > 1 else serial


class AdamW(ctypes.Structure):
    """The struct of yardstick.c."""

    _fields_ = (
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("sizes", "p", "g", "m", "v")),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "max_norm")),
        ("t", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("kind", ctypes.c_int64),
    )


class Yardstick(Peer):
    name = "C loop (yardstick)"
    kind = 0  # of the loops in yardstick.c
    library: Any = None
    threads = 1

    @classmethod
    def compile(cls, directory: str, threads: int) -> str | None:
        """Compile yardstick.c; returns the command, or None without a C compiler."""
        source, target = Path(__file__).with_name("yardstick.c"), Path(directory) / "yardstick.so"
        flags = ["-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC"]
        compiler = shutil.which(os.environ.get("CC", "cc"))
        for openmp in (["-fopenmp"], []):
            command = [str(compiler), *flags, *openmp, str(source), "-o", str(target), "-lm"]
            if compiler and subprocess.run(command, capture_output=True, check=False).returncode == 0:
                Yardstick.library = ctypes.CDLL(str(target))
                Yardstick.threads = threads if openmp else 1
                return shlex.join(["cc", *flags, *openmp, "yardstick.c"])
        return None

    def set_up(self, params: Arrays) -> None:
        self.params = params
        self.m = {name: np.zeros_like(p) for name, p in params.items()}
        self.v = {name: np.zeros_like(p) for name, p in params.items()}
        count = len(params)
        sizes = (ctypes.c_int64 * count)(*(p.size for p in params.values()))
        lists = [
            (ctypes.c_void_p * count)(*(arrays[name].ctypes.data for name in params))
            for arrays in (params, self.grads, self.m, self.v)
        ]
        self.alive: list[Any] = [sizes, *lists]
        addresses = [ctypes.addressof(array) for array in self.alive]
        numbers = (LR, BETA1, BETA2, EPS, WEIGHT_DECAY, self.clip_norm or 0)
        self.optimizer = AdamW(count, *addresses, *numbers, 0, self.threads, self.kind)
        # One argument: at ten elements the call itself is what is measured.
        self.call = self.library.yardstick_adamw
        self.call.argtypes, self.call.restype = [ctypes.c_void_p], None
        self.pointer = ctypes.addressof(self.optimizer)

    def step(self) -> None:
        self.call(self.pointer)


class Traffic(Yardstick):
    """The yardstick's reads and writes, hardly any arithmetic."""

    name = "traffic alone (C)"
    kind = 1
    checked = False


class ByHand(Yardstick):
    name = "AVX-512 by hand (C)"
    kind = 2


PEERS: list[type[Peer]] = [
    Ravine,
    TorchFused,
    DeepSpeed,
    OptaxJit,
    Thinc,
    Numba,
    NumpyInPlace,
    Yardstick,
    ByHand,
    Traffic,
]
MODULES = {
    Ravine: ["ravine"],
    TorchFused: ["torch"],
    DeepSpeed: ["deepspeed"],
    OptaxJit: ["optax", "jax"],
    Thinc: ["thinc"],
    Numba: ["numba"],
}
CLIPPING = (Ravine, TorchFused, Yardstick)


def installed(threads: int, directory: str) -> tuple[list[type[Peer]], list[str]]:
    """Find the peers that can run, and describe them and the others."""
    peers, notes = [], []
    for peer in PEERS:
        if peer is Yardstick:
            command = Yardstick.compile(directory, threads)
            notes.append(f"yardstick: {command}" if command else "yardstick: no C compiler, left out")
            found = command is not None
        elif issubclass(peer, Yardstick):
            found = Yardstick.library is not None and bool(Yardstick.library.yardstick_has(peer.kind))
        else:
            modules = MODULES.get(peer, ["numpy"])
            try:
                for module in modules:
                    importlib.import_module(module)
                notes.append(", ".join(f"{module} {importlib.metadata.version(module)}" for module in modules))
                found = True
            except ImportError:
                notes.append(f"{' or '.join(modules)}: not installed, left out")
                found = False
        if found:
            peers.append(peer)
    if Ravine in peers:
        import ravine as rv

        rv.set_num_threads(threads)
    if TorchFused in peers:
        import torch

        torch.set_num_threads(threads)
    if Numba in peers:
        import numba

        numba.set_num_threads(threads)
    return peers, notes


# The check.


def expected(p: np.ndarray, g: np.ndarray, norm: float, clip_norm: float | None) -> np.ndarray:
    """Take the checked steps of AdamW in float64 (Loshchilov and Hutter 2019, Algorithm 2)."""
    w, m, v = p.astype(np.float64), np.zeros(p.shape), np.zeros(p.shape)
    for t, factor in enumerate(CHECKED_STEPS, 1):
        scale = 1.0 if clip_norm is None else min(1.0, clip_norm / (norm * abs(factor)))
        d = g * (factor * scale)
        m = BETA1 * m + (1 - BETA1) * d
        v = BETA2 * v + (1 - BETA2) * d * d
        update = m / (1 - BETA1**t) / (np.sqrt(v / (1 - BETA2**t)) + EPS)
        w = (1 - LR * WEIGHT_DECAY) * w - LR * update
    return w


def check(peers: list[Peer], params: Arrays, grads: Arrays) -> dict[str, float]:
    """Take the checked steps with every peer; returns the largest relative deviations from float64."""
    names = dict.fromkeys((next(iter(params)), list(params)[-1]))
    norm = float(np.sqrt(sum(float(np.sum(np.square(g), dtype=np.float64)) for g in grads.values())))
    slices = {name: grads[name].reshape(-1)[:SLICE].astype(np.float64) for name in names}
    previous = 1.0
    for factor in CHECKED_STEPS:
        if factor != previous:
            for g in grads.values():
                g *= factor / previous
        previous = factor
        for peer in peers:
            peer.gradients_changed()
            if peer.prepare:
                peer.prepare()
            peer.step()
    deviations = {}
    for peer in peers:
        if not peer.checked:
            continue
        worst = 0.0
        for name, g in slices.items():
            want = expected(params[name].reshape(-1)[:SLICE], g, norm, peer.clip_norm)
            got = peer.read(name).reshape(-1)[:SLICE]
            worst = max(worst, float(np.max(np.abs(got - want) / np.abs(want))))
        # A NaN deviates too.
        if not worst <= TOLERANCE:
            raise SystemExit(f"{peer.label}: deviates from AdamW in float64 by {worst:.1e}, more than {TOLERANCE:g}")
        deviations[peer.label] = worst
    return deviations


# The measurement.


def sample(call: Call, calls: int, prepare: Call | None = None) -> float:
    """Time so many calls, each without what has to precede it; returns seconds a call."""
    clock = time.perf_counter
    if prepare is None:
        start = clock()
        for _ in range(calls):
            call()
        return (clock() - start) / calls
    spent = 0.0
    for _ in range(calls):
        prepare()
        start = clock()
        call()
        spent += clock() - start
    return spent / calls


def in_turn(
    calls: dict[str, Call], rounds: int, seconds: float = SAMPLE_SECONDS, prepare: dict[str, Call] | None = None
) -> dict[str, list[float]]:
    """Sample all in turn, for about so many seconds or one call; returns seconds a call, one entry a round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        sample(call, 1, (prepare or {}).get(name))  # the first makes what is used again
    gc.collect()
    gc.disable()
    try:
        for r in range(rounds):
            for name in list(calls)[:: 1 if r % 2 == 0 else -1]:
                call, before = calls[name], (prepare or {}).get(name)
                time.sleep(SPINNING)
                # Its data come back into the cache and its threads awake: on a virtual machine, an idle processor needs
                # 0.06 to 4 ms for it.
                count, start = 0, time.perf_counter()
                while time.perf_counter() - start < seconds:
                    sample(call, 1, before)
                    count += 1
                times[name].append(sample(call, max(count, 1), before))
    finally:
        gc.enable()
    return times


def ratio(times: list[float], others: list[float]) -> float:
    """Take the median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


@dataclass
class Result:
    case: str
    tensors: int
    elements: int
    times: dict[str, list[float]]
    deviations: dict[str, float]
    clips: dict[str, str] = field(default_factory=dict)  # label with a clip: label of the same peer without

    def ratio(self, label: str, other: str) -> float | None:
        return ratio(self.times[label], self.times[other]) if other in self.times else None

    def markdown(self) -> str:
        tensors = f"{self.tensors} tensors" if self.tensors > 1 else "1 tensor"
        lines = [f"## {self.case}: {tensors}, {self.elements:_} elements".replace("_", " "), ""]
        lines += ["| peer | median µs | min | max | time / ravine's | time / yardstick's | deviation |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|"]
        for label, times in self.times.items():
            suffix = label.partition(", ")[2]
            ratios = [self.ratio(label, ", ".join(filter(None, (other.name, suffix)))) for other in (Ravine, Yardstick)]
            cells = [f"{1e6 * x:.4g}" for x in (statistics.median(times), min(times), max(times))]
            cells += ["–" if ratio is None else f"{ratio:.3g}" for ratio in ratios]
            deviation = f"{self.deviations[label]:.0e}" if label in self.deviations else "–"
            lines.append(f"| {label} | {' | '.join(cells)} | {deviation} |")
        for label, plain in self.clips.items():
            lines += ["", f"{label}: {self.ratio(label, plain):.3g} times the step without"]
        return "\n".join(lines) + "\n"


def run(case: str, peers: list[type[Peer]], rounds: int, shapes: Shapes | None = None) -> Result:
    """Check and time a case: one of `CASES`, or these shapes."""
    shapes = shapes or CASES[case]
    rng = np.random.default_rng(0)
    # Far enough from 0 that relative deviations mean something, for w, and that ε does not matter, for g.
    params = {f"p{k}": rng.random(shape, np.float32) + np.float32(0.5) for k, shape in enumerate(shapes)}
    grads = {name: rng.random(p.shape, np.float32) + np.float32(0.05) for name, p in params.items()}
    for g in grads.values():
        g.reshape(-1)[::2] *= -1
    fitting = [peer for peer in peers if peer.most is None or len(shapes) <= peer.most]
    variants: list[tuple[type[Peer], float | None]] = [(peer, None) for peer in fitting]
    if case.endswith("-clip"):
        own = [peer for peer in peers if peer in CLIPPING]
        variants = [(peer, clip) for peer in own for clip in (None, 1.0)] + [(NumpyInPlace, 1.0)]
    built = [peer(params, grads, clip) for peer, clip in variants]
    deviations = check(built, params, grads)
    prepare = {peer.label: peer.prepare for peer in built if peer.prepare}
    times = in_turn({peer.label: peer.step for peer in built}, rounds, prepare=prepare)
    clips = {peer.label: peer.name for peer in built if peer.clip_norm is not None and peer.name in times}
    return Result(case, len(shapes), sum(p.size for p in params.values()), times, deviations, clips)


# The record.


def summary(results: list[Result]) -> str:
    """Make one table of all cases: what each peer takes, as a multiple of ravine's time."""
    labels = [peer.name for peer in PEERS if any(peer.name in result.times for result in results)]
    others = [label for label in labels if label != Ravine.name]
    lines = ["## All cases: time / ravine's", "", "<!-- summary -->"]
    lines += [f"| case | ravine, µs | {' | '.join(others)} |", "|---|--:" + "|--:" * len(others) + "|"]
    for result in results:
        if Ravine.name not in result.times:
            continue
        ratios = [result.ratio(label, Ravine.name) if label in result.times else None for label in others]
        cells = ["–" if ratio is None else f"{ratio:.3g}" for ratio in ratios]
        median = 1e6 * statistics.median(result.times[Ravine.name])
        lines.append(f"| {result.case} | {median:.4g} | {' | '.join(cells)} |")
    return "\n".join([*lines, "<!-- /summary -->", ""])


def machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return f"{model}, {os.cpu_count()} CPUs{memory}, {platform.system()} {platform.machine()}"


def header(threads: int, rounds: int, notes: list[str]) -> str:
    now = datetime.datetime.now(datetime.UTC)
    lines = [
        f"# AdamW, float32, {threads} thread{'s' * (threads != 1)}",
        "",
        f"* Date: {now:%Y-%m-%d %H:%M} UTC",
        f"* Machine: {machine()}",
        f"* Python {platform.python_version()}; {'; '.join(notes)}",
        f"* Command: `{shlex.join(['python', '-m', 'ravine', *sys.argv[1:]])}`",
        f"* {rounds} rounds, all peers in each, forwards and backwards alternately; ratios are medians "
        "of those within a round",
        f"* Deviation: the largest relative one from AdamW in float64 after {len(CHECKED_STEPS)} steps; "
        f"above {TOLERANCE:g} nothing is timed",
        "",
    ]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe what `main` takes."""
    parser.add_argument("--cases", help=f"comma-separated, of {', '.join(CASES)} (all)")
    parser.add_argument("--threads", type=int, default=2, help="of every peer (2)")
    parser.add_argument("--rounds", type=int, help="samples of each peer (11; quick: 5)")
    parser.add_argument("--quick", action="store_true", help=f"few rounds of {', '.join(QUICK)}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record as Markdown, too")


def set_threads(threads: int) -> None:
    """Start again with the environment that thread pools read when they are loaded, on as many CPUs as threads."""
    names = ["OMP", "MKL", "OPENBLAS", "BLIS", "NUMBA", "RAVINE"]
    environment = {f"{name}_NUM_THREADS": str(threads) for name in names} | {"JAX_PLATFORMS": "cpu"}
    # Or its workers would spin for 200 ms, through the samples of all the others.
    environment |= {"KMP_BLOCKTIME": "1"}
    if all(os.environ.get(name) == value for name, value in environment.items()):
        return
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cpus[-threads:])  # interrupts tend to fall on the first
    os.execve(sys.executable, sys.orig_argv, os.environ | environment)


def main(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Measure, and print the record."""
    cases = arguments.cases.split(",") if arguments.cases else QUICK if arguments.quick else list(CASES)
    rounds = arguments.rounds or (5 if arguments.quick else 11)
    if unknown := [case for case in cases if case not in CASES]:
        parser.error(f"--cases: expected some of {', '.join(CASES)}, got {', '.join(unknown)}")
    if arguments.threads < 1 or rounds < 1:
        parser.error("--threads, --rounds: expected at least 1")
    set_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        peers, notes = installed(arguments.threads, directory)
        record = header(arguments.threads, rounds, notes)
        print(record, flush=True)
        results = []
        for case in cases:
            results.append(run(case, peers, rounds))
            gc.collect()
            part = results[-1].markdown()
            print(part, flush=True)
            record += "\n" + part
        print(part := summary(results))
        record += "\n" + part
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(record, encoding="utf-8")
