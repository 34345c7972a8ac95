"""Batch and layer normalisation, float32: ravine beside torch, NumPy and plain C loops, in one process.

python benches/bench_norm.py --threads 2 --output benches/record/norm-2-threads.md

Forward in training, backward and evaluation; the channels in torch's place, and last. ravine's layers and the C loops
(benches/norm.c) write into results that they use again. torch is timed as it is called, where it makes its result, and
where it has one ``out=`` (forward of batch norm), with that, too; NumPy, forward only, in its plainest form. ``C loop``
sums in float32, as torch does; ``C loop, f64`` in float64, as ravine does. ``limit``
is what reading and writing the same arrays takes, with the better of two ways to write, from wherever they lie, cache
or memory: once, and where the channels are last as many times as there are passes: the mean precedes the variance.

All are called in turn, forwards and backwards alternately; the ratios are medians of those within a round. Every result
is compared with the formulas in float64 first.
"""

import argparse
import ctypes
import datetime
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

import ravine as rv
from ravine.bench import in_turn, machine, ratio, set_threads

SHAPES = [(128, 1024), (4096, 256), (8, 512, 14, 14), (32, 256, 28, 28), (32, 64, 56, 56)]
ROWS = [(4096, 1024), (16, 512)]
EPS = 1e-5
PEERS = ["torch", "torch, out", "NumPy", "C loop", "C loop, f64", "limit"]


class Norm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner")),
        *((name, ctypes.c_void_p) for name in ("x", "dy", "weight", "bias")),
        *((name, ctypes.c_void_p) for name in ("y", "dx", "dweight", "dbias", "mean", "inv_std")),
        ("eps", ctypes.c_double),
        ("threads", ctypes.c_int64),
        ("training", ctypes.c_int64),
    )


class Traffic(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "passes", "streaming", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "dy", "out")),
        ("seen", ctypes.c_float),
    )


def compile_loops(directory):
    """Compile norm.c; returns the library with sums of each type, and the command; nothing without a C compiler."""
    source = Path(__file__).with_name("norm.c")
    flags = ["-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC"]
    compiler, libraries = str(shutil.which(os.environ.get("CC", "cc"))), {}
    for kind in ("float", "double"):
        target = Path(directory) / f"norm_{kind}.so"
        command = [compiler, *flags, f"-DSUM={kind}", str(source), "-o", str(target), "-lm"]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return {}, None
        libraries[kind] = ctypes.CDLL(str(target))
    return libraries, shlex.join(["cc", *flags, "norm.c"])


def call(library, name, struct, **arguments):
    """A call of C's, with the arrays that it uses; they stay alive as long as it does."""
    arrays = [value for value in arguments.values() if isinstance(value, np.ndarray)]
    fields = {
        key: value.ctypes.data if isinstance(value, np.ndarray) else value
        for key, value in arguments.items()
        if value is not None
    }
    filled, function = struct(**fields), getattr(library, name)
    function.argtypes, function.restype = [ctypes.c_void_p], None
    address = ctypes.addressof(filled)

    def run(keep=(filled, arrays)):
        function(address)

    return run


class Case:
    """An operation on a shape: what is timed, by peer, and what each leaves in canonical form."""

    def __init__(self, operation, shape, last, torch, libraries, threads):
        self.operation, self.shape, self.calls, self.results = operation, shape, {}, {}
        self.name = f"{operation}{', channels last' if last else ''}, {' × '.join(map(str, shape))}"
        rng = np.random.default_rng(0)
        x, dy = (rng.standard_normal(shape, np.float32) * 2 + 1 for _ in range(2))
        layer_norm = operation.startswith("layer")
        n = shape[-1] if layer_norm else shape[1]
        self.small = [rng.random(n, np.float32) + np.float32(0.5) for _ in range(4)]
        if last:
            x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
        self.x, self.dy, self.axis = x, dy, x.ndim - 1 if last or layer_norm else 1
        # What is summed over, of x as it lies.
        self.over = (1,) if layer_norm else tuple(a for a in range(x.ndim) if a != self.axis)
        self.backward, self.training = "backward" in operation, "evaluation" not in operation
        self.layer_norm = layer_norm
        self.of_ravine()
        if torch:
            self.of_torch(torch, last)
        if not self.backward:
            self.of_numpy()
        for kind, library in libraries.items():
            self.of_c(kind, library, threads)

    def of_ravine(self):
        weight, bias, mean, var = self.small
        layer = rv.LayerNorm(len(weight)) if self.layer_norm else rv.BatchNorm(len(weight), axis=self.axis)
        layer.params["weight"][:], layer.params["bias"][:] = weight, bias
        if not self.layer_norm:
            layer.buffers["running_mean"][:], layer.buffers["running_var"][:] = mean, var
        x, dy, training = self.x, self.dy, self.training
        if self.backward:
            layer(x)
            self.calls["ravine"] = lambda: layer.backward(dy)
            self.results["ravine"] = lambda: [layer.backward(dy), layer.grads["weight"], layer.grads["bias"]]
        else:
            self.calls["ravine"] = lambda: layer(x, training)
            self.results["ravine"] = lambda: [layer(x, training)]

    def of_torch(self, torch, last):
        weight, bias, mean, var = (torch.from_numpy(a) for a in self.small)
        x, dy = torch.from_numpy(self.x), torch.from_numpy(self.dy)
        if last:  # torch's own way to have them last
            x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
        back = (lambda a: a.permute(0, 2, 3, 1).numpy()) if last else (lambda a: a.numpy())
        aten, all_of_them = torch.ops.aten, [True, True, True]
        if self.layer_norm:
            units = [x.shape[-1]]
            _, *saved = aten.native_layer_norm(x, units, weight, bias, EPS)
            if self.backward:
                run = partial(aten.native_layer_norm_backward, dy, x, units, *saved, weight, bias, all_of_them)
            else:
                run = partial(torch.nn.functional.layer_norm, x, units, weight, bias, EPS)
        elif self.backward:
            _, *saved = aten.native_batch_norm(x, weight, bias, None, None, True, 0.1, EPS)
            given = (dy, x, weight, None, None, *saved, True, EPS, all_of_them)
            run = partial(aten.native_batch_norm_backward, *given)
        else:
            training, running = self.training, [mean.clone(), var.clone()]
            run = partial(torch.nn.functional.batch_norm, x, *running, weight, bias, training, 0.1, EPS)
            out = [torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)]
            keys = ("out", "save_mean", "save_invstd")
            into = dict(zip(keys, out, strict=True))
            own = partial(aten.native_batch_norm.out, x, weight, bias, *running, training, 0.1, EPS, **into)
            self.calls["torch, out"] = own
            self.results["torch, out"] = lambda: [back(own()[0])]
        self.calls["torch"] = run
        several = run if self.backward else lambda: [run()]
        self.results["torch"] = lambda: [back(a) if a.shape == x.shape else a.numpy() for a in several()]

    def of_numpy(self):
        x, over = self.x, self.over
        weight, bias, *running = (a.reshape([-1 if i == self.axis else 1 for i in range(x.ndim)]) for a in self.small)

        def forward():
            mean, var = (x.mean(over, keepdims=True), x.var(over, keepdims=True)) if self.training else running
            return weight * (x - mean) / np.sqrt(var + np.float32(EPS)) + bias

        self.calls["NumPy"] = forward
        self.results["NumPy"] = lambda: [forward()]

    def of_c(self, summed_in, library, threads):
        x, dy = self.x, self.dy
        n = x.shape[self.axis]
        outer = int(np.prod(x.shape[: self.axis]))
        weight, bias, mean, var = (a.copy() for a in self.small)
        if self.training:
            sums = x.astype(np.float64)
            mean = sums.mean(self.over).astype(np.float32)
            var = sums.var(self.over).astype(np.float32)
        out, inv_std = np.empty_like(x), 1 / np.sqrt(var + np.float32(EPS))
        dweight, dbias = np.empty_like(weight), np.empty_like(bias)
        arrays = {"x": x, "dy": dy, "weight": weight, "bias": bias, "y": out, "dx": out, "dweight": dweight}
        arrays |= {"dbias": dbias, "mean": mean, "inv_std": inv_std}
        kind = "layer" if self.layer_norm else "last" if self.axis == x.ndim - 1 else "batch"
        name = f"c_{kind}_{'backward' if self.backward else 'forward'}"
        numbers = {"outer": outer, "channels": n, "inner": x.size // outer // n, "eps": EPS, "threads": threads}
        run = call(library, name, Norm, **numbers, training=int(self.training), **arrays)
        peer = "C loop" if summed_in == "float" else "C loop, f64"
        self.calls[peer] = run
        self.results[peer] = lambda: (run(), [out, dweight, dbias] if self.backward else [out])[1]
        if summed_in == "double":
            return
        # One read and one write where a channel fits the cache.
        passes = 1 if kind != "last" or not self.training else 2 if self.backward else 3
        given = {"x": x, "dy": dy if self.backward else None, "out": np.empty_like(x), "threads": threads}
        for streaming in (0, 1):
            self.calls[f"limit {streaming}"] = call(
                library, "c_traffic", Traffic, n=x.size, passes=passes, streaming=streaming, **given
            )

    def check(self):
        """Compare with the formulas in float64."""
        x, dy, over = self.x.astype(np.float64), self.dy.astype(np.float64), self.over
        of_unit = [-1 if i == self.axis else 1 for i in range(x.ndim)]
        weight, bias, mean, var = (a.astype(np.float64).reshape(of_unit) for a in self.small)
        if self.training:
            mean, var = x.mean(over, keepdims=True), x.var(over, keepdims=True)
        inv = 1 / np.sqrt(var + EPS)
        normal = (x - mean) * inv
        if self.backward:
            sums = tuple(a for a in range(x.ndim) if a != self.axis)
            d, count = weight * dy, np.prod([x.shape[a] for a in over])
            inner = (d.sum(over, keepdims=True) + normal * (d * normal).sum(over, keepdims=True)) / count
            expected = [inv * (d - inner), (dy * normal).sum(sums), dy.sum(sums)]
        else:
            expected = [normal * weight + bias]
        for peer, results in self.results.items():
            for got, want in zip(results(), expected, strict=True):
                scale = np.abs(want).max()
                assert np.abs(got - want).max() <= 1e-3 * scale, f"{peer} is wrong: {self.name}"


def cases(torch, libraries, threads):
    for operation in ("forward", "backward", "evaluation"):
        for shape in SHAPES:
            for last in (False, True) if len(shape) > 2 else (False,):
                yield Case(f"batch norm, {operation}", shape, last, torch, libraries, threads)
        for shape in ROWS:
            if operation != "evaluation":
                yield Case(f"layer norm, {operation}", shape, False, torch, libraries, threads)


def measure(calls, rounds):
    times = in_turn(calls, rounds)
    if "limit 0" in times:
        times["limit"] = list(map(min, times.pop("limit 0"), times.pop("limit 1")))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", default="", help="only those whose name has this in it")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    rv.set_num_threads(args.threads)
    try:
        import torch
    except ImportError:
        torch = None
    else:
        torch.set_num_threads(args.threads)
    date, load = datetime.datetime.now(datetime.UTC), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        libraries, command = compile_loops(directory)
        lines = [
            f"# Batch and layer norm, float32, {args.threads} thread{'s' * (args.threads != 1)}",
            "",
            f"* Date: {date:%Y-%m-%d %H:%M} UTC",
            f"* Machine: {machine()}; {rv._core.simd_level()}; its load before the first round: {load:.1f}",
            f"* ravine {rv.__version__}, torch {torch.__version__ if torch else 'not installed'}, "
            f"NumPy {np.__version__}, Python {platform.python_version()}; "
            f"{command or 'no C compiler: no C loops, no limit'}",
            f"* Command: `python benches/bench_norm.py --threads {args.threads}`; {args.rounds} rounds",
            "* ravine: median µs and [least, most]; the others: their time / ravine's, the median of those within a "
            "round, and in brackets that of the fastest, which tells more on a busy machine",
            "",
            "<!-- table -->",
            f"| case | ravine | {' | '.join(PEERS)} |",
            f"|---|--:|{'--:|' * len(PEERS)}",
        ]
        print("\n".join(lines), flush=True)
        for case in cases(torch, libraries, args.threads):
            if args.cases not in case.name:
                continue
            case.check()
            times = measure(case.calls, args.rounds)
            own = [1e6 * t for t in times["ravine"]]
            cells = [f"{statistics.median(own):.4g} [{min(own):.4g}, {max(own):.4g}]"]
            for peer in PEERS:
                if peer in times:
                    fastest = min(times[peer]) / min(times["ravine"])
                    cells.append(f"{ratio(times[peer], times['ravine']):.2f} [{fastest:.2f}]")
                else:
                    cells.append("–")
            lines.append(f"| {case.name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join([*lines, "<!-- /table -->", ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
