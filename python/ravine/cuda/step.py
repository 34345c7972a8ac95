"""Optimizer steps, one-off updates and norms on a device: what the kernels of ``step.cu`` and ``measure.cu`` are given.

A step without clipping or checks is one launch. What changes from step to step travels as a launch's parameter: the
gradients' addresses if they are new ones, values that a schedule has changed. The counts of updates and the products
of what corrects biases are kept on the device, so that a skipped step needs no answer from it, and a captured step can
be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np

from ravine import _core
from ravine.cuda.device import Array, Device, Kernel, source, text

__all__ = [
    "Engine",
    "LossScale",
    "StepInfo",
    "adaptive_clip",
    "apply",
    "clip_by_global_norm",
    "global_norm",
    "tensor_norms",
]

Named: TypeAlias = list[tuple[str, Any]]
Hyper: TypeAlias = list[tuple[int, str, float]]
Products: TypeAlias = Sequence[Sequence[tuple[float, int, float]]]
Words: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]
After: TypeAlias = tuple[
    Callable[[Any, str], list[Any]], tuple[float | None, bool, int, int] | None, tuple[int, float] | None
]
Values: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

#: As numbered in storage.cu, and words of its struct Array.
_STORAGES = {0: "F64", 1: "F32", 2: "F16", 3: "BF16", 7: "SPLIT", 8: "BF16_RANDOM"}
WORDS = 21
#: What may follow the rule, by the first of the arrays that it keeps, as numbered in step.cu.
_AFTER = ("MASTER", "AVERAGE", "LOOKAHEAD", "REMAINDER")
#: What states in fewer bytes are, by the dtype of their arrays, as named in compact.cu.
_COMPACT = {"uint16": "BFLOAT16", "int8": "SIGNED8", "uint8": "UNSIGNED8"}


def _struct(words: str, *others: tuple[Any, ...]) -> np.dtype[Any]:
    """Return the layout of a kernel's parameter: addresses and counts, then other fields; every one is 8 bytes wide."""
    return np.dtype([*((name, "u8") for name in words.split()), *others])


def _floats(names: str) -> list[tuple[str, str]]:
    return [(name, "f8") for name in names.split()]


_POKE = _struct("to stride count", ("words", "u8", 480))
_STEP = _struct(
    "parameters gradients states groups values counters products verdict ticket count blocks",
    *_floats("clip_value grad_scale"),
    *((name, "u8") for name in ("adapted", "of_blocks", "numbers", "units")),
)
_FOLLOWED_STEP = np.dtype(
    [*_STEP.descr, *_struct("kept warms start every", ("decay", "f8"), ("period", "u8"), ("alpha", "f8")).descr]
)
_MEASURE = _struct(
    "arrays squares beyond count blocks",
    ("clip_value", "f8"),
    ("limits", "f8", 2),
    ("grad_scale", "f8"),
    ("dynamic", "u8"),
)
_JUDGE = _struct(
    "arrays squares beyond sums found verdict steps ticket count blocks",
    ("clip_norm", "f8"),
    ("norms", "u8"),
    ("grad_scale", "f8"),
    ("dynamic", "u8"),
    *_floats("growth backoff least most"),
    ("interval", "u8"),
    ("clip_eps", "f8"),
)
_RESCALE = _struct("arrays squares sums verdict ticket count blocks", *_floats("clip_value clip_norm clip_eps"))
_ACCUMULATE = _struct("arrays sums count blocks", ("weight", "f8"), ("first", "u8"))
_SCALE = _struct("arrays verdict count blocks")
_VERDICT = np.dtype(
    [
        ("norm", "f8"),
        ("scale", "f8", 2),
        ("shift", "i8", 2),
        ("scales", "u8"),
        ("skip", "u8"),
        ("steps", "u8"),
        ("unscale", "f8"),
        ("rescales", "u8"),
    ]
)
#: The product of a number over all updates of a parameter.
_PAST = np.dtype([("base", "f8"), ("constant", "u8"), ("rest", "f8")])
_UNITS = _struct("parameters gradients blocks squares count units total", ("clipping", "f8"), ("eps", "f8"))

#: Threads of a block, and warps.
_THREADS, _WARPS = 256, 8

#: How many steps back an answer can still be asked for.
_REMEMBERED = 16


@cache
def step_source(
    rule: str, kinds: frozenset[tuple[int, int]], after: tuple[str, ...] = (), states: str | None = None
) -> str:
    """Return the text of a rule's step, for these storages of parameter and gradient, with what comes before and after.

    ``after``: MASTER, AVERAGE, LOOKAHEAD, REMAINDER, as far as they are on; ``states``: in how many bytes they are.
    """
    pairs = " ".join(f"X({_STORAGES[p]}, {_STORAGES[g]})" for p, g in sorted(kinds))
    layerwise = bool(_core.rules()[rule]["norms"])
    names = f"typedef rules::{rule} Rule;\nconstexpr bool LAYERWISE = {str(layerwise).lower()};\n"
    names += f"#define KINDS(X) {pairs}\n"
    stages = "".join(f"#define {stage}\n" for stage in after)
    compact = _compact(rule, states)
    if any(_STORAGES[parameter] == "BF16_RANDOM" for parameter, _ in kinds):
        compact = compact or {"COMPACT(X)": ""}
    shared = source("storage", *(("random", "compact") if compact else ()), **compact)
    before = f"\n{text('tree')}\n{text('layerwise')}" if layerwise else ""
    return f"{stages}{shared}\nnamespace rules {{\n{_core.cuda(rule)}}}\n\n{names}\n{text('step')}{before}"


def _compact(rule: str, states: str | None) -> dict[str, str]:
    """Name the states that are in fewer bytes, as a macro; nothing if there are none."""
    kept = {name: dtype for name, dtype, _ in _core.state_arrays(rule, (), "float32", states)}
    ways = [(k, _COMPACT.get(kept[name])) for k, name in enumerate(_core.rules()[rule]["states"])]
    named = " ".join(f"X({k}, {way})" for k, way in ways if way)
    return {"COMPACT(X)": named} if named else {}


@cache
def measure_source(storages: frozenset[int]) -> str:
    """Return the text of the norms' kernels, for arrays of these storages."""
    names = " ".join(f"X({_STORAGES[s]})" for s in sorted(storages))
    return source("storage", "tree", "measure", **{"STORAGES(X)": names})


class LossScale:
    """The numbers of a `ravine.DynamicLossScale` on a device, where each step changes them.

    Attributes: ``device``; ``value``, the scale itself, a float32 array without axes, always the same memory.
    """

    def __init__(
        self, device: Device, value: float, good: int, growth: float, backoff: float, interval: int, *limits: float
    ) -> None:
        self.device, self._stream = device, None
        self._words = device.xp.asarray(self._packed(value, good))
        self.value: Array = self._words.view(np.float32)[:1].reshape(())
        least, most = limits
        self._settings = {"growth": growth, "backoff": backoff, "interval": interval, "least": least, "most": most}

    @staticmethod
    def _packed(value: float, good: int) -> Words:
        words = np.array([0, good], np.uint64)
        words.view(np.float32)[0] = value
        return words

    def enter(self) -> None:
        """Make the current stream wait for the one that used it last."""
        self._stream = self.device.enter_stream(self._stream)

    def fill(self, args: np.ndarray[Any, Any]) -> None:
        """Have `judge` change it."""
        args["dynamic"] = self._words.data.ptr
        for name, number in self._settings.items():
            args[name] = number

    @property
    def address(self) -> int:
        """Where kernels read it."""
        address: int = self._words.data.ptr
        return address

    def get(self) -> tuple[float, int]:
        """Wait for the value, and how many steps in a row since it was changed."""
        self.enter()
        words: Words = self._words.get()
        return float(words.view(np.float32)[0]), int(words[1])

    def set(self, value: float, good: int) -> None:
        """Overwrite both."""
        self.enter()
        self._words.set(self._packed(value, good))


@cache
def units_source(storages: frozenset[int]) -> str:
    """Return the text of clipping by units, for arrays of these storages."""
    names = " ".join(f"X({_STORAGES[s]})" for s in sorted(storages))
    return source("storage", "tree", "units", **{"STORAGES(X)": names})


class StepInfo:
    """What a step reports; what only the device knows is asked for when it is looked at, and then waited for.

    Attributes: ``step``, ``lr``, ``grad_norm``, ``skipped``, ``nonfinite``, as of `ravine.Optimizer.step`.
    """

    def __init__(
        self,
        engine: Engine,
        call: int,
        step: int | None,
        lr: float,
        *,
        measured: bool,
        checked: bool,
        left_out: bool = False,
    ) -> None:
        self._engine, self._call, self._step = engine, call, step
        self._measured, self._checked, self._left_out = measured, checked, left_out
        self._kept: dict[str, Array] = {}
        self.lr = lr

    def keep(self) -> None:
        """Have it remembered for as long as this object lives, without waiting for the device."""
        if not self._left_out:
            self._kept = self._kept or self._engine.copies(self._call)

    def _recall(self, name: str) -> np.ndarray[Any, Any]:
        return self._engine.recall(self._call, name, self._kept.get(name))

    @cached_property
    def _verdict(self) -> np.void:
        verdict: np.void = self._recall("verdicts").view(_VERDICT)[0]
        return verdict

    @property
    def step(self) -> int:
        """Steps completed so far, this one included; of a captured call, those of the replays too."""
        if self._step is not None:
            return self._step
        return int(self._verdict["steps"]) if self._measured else self._engine.steps

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients, if it was needed."""
        return float(self._verdict["norm"]) if self._engine.clips and not self._left_out else None

    @property
    def skipped(self) -> bool:
        """Whether nothing was done: gradients were not finite, or all micro-batches of weight 0."""
        return self._left_out or bool(self._checked and self._verdict["skip"])

    @cached_property
    def nonfinite(self) -> dict[str, tuple[int, int]] | None:
        """If it was checked: name → how many elements, C-order index of the first."""
        if not self._checked:
            return None
        if self._left_out:
            return {}
        found = self._recall("found").reshape(-1, 2)
        named = zip(self._engine.names, found.tolist(), strict=True)
        return {name: (count, first) for name, (count, first) in named if count}

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied as what it says, which waits for the device."""
        found = None if self.nonfinite is None else dict(self.nonfinite)
        return _core.StepInfo, (self.step, self.lr, self.grad_norm, self.skipped, found)

    def __repr__(self) -> str:
        values = ", ".join(
            f"{name}={getattr(self, name)!r}" for name in ("step", "lr", "grad_norm", "skipped", "nonfinite")
        )
        return f"StepInfo({values})"


class Engine:
    """A rule bound to arrays on a device: the counterpart of ``ravine._core.Engine``, and made the same way."""

    def __init__(
        self,
        device: Device,
        rule: str,
        params: Any,
        group_of: Callable[[list[str]], list[int]],
        new_states: Callable[[Any, str], list[Any]],
        clip_value: float | None,
        clip_norm: float | None,
        nonfinite: str,
        after: After | None = None,
        clip_eps: float = 0.0,
        wide: bool = False,
        states: str | None = None,
        rounding: str = "nearest",
    ) -> None:
        options = (clip_value, clip_norm, nonfinite, after, clip_eps, wide, states, rounding)
        self._core = _core.Engine(rule, params, group_of, new_states, *options)
        self._precision = states
        self._device, self._rule, self._lock = device, rule, _core.Turn()
        self._clip_norm, self._nonfinite = clip_norm, nonfinite
        self._clip_value = math.inf if clip_value is None else clip_value
        self.clips = clip_norm is not None
        self.names = self._core.names
        self._steps, self._calls, self._captured, self._stream = 0, 0, False, None
        #: Whether a step may have been left out, which only the device knows.
        self._may_skip = nonfinite == "skip"
        tables, xp, count = self._core.tables(), device.xp, len(self.names)
        self._values: Values = tables["values"]
        self._words: Words = tables["gradients"]
        self._storages: list[int] = tables["parameters"][3::WORDS].tolist()
        blocks: int = tables["blocks"]
        self._blocks = blocks
        self._arrays: dict[str, Array] = {
            "parameters": xp.asarray(tables["parameters"]),
            "gradients": xp.zeros(count * WORDS, np.uint64),
            "states": xp.asarray(tables["states"]),
            "groups": xp.asarray(tables["groups"]),
            "values": xp.asarray(tables["values"]),
            "counters": xp.zeros(1 + count, np.uint64),
            "ticket": xp.zeros(1, np.uint32),
        }
        self._products = len(_core.rules()[rule]["products"])
        if self._products:
            self._arrays["products"] = xp.asarray(self._packed_products([0] * count, None))
        if self.clips:
            self._arrays |= {"squares": xp.empty(blocks, np.float64), "sums": xp.empty(count, np.float64)}
        if nonfinite != "propagate":
            self._make_room_for_checks()
        if self.clips:
            self._make_room_for_verdicts()
        self._after = _stages(tables["kept"])
        if self._after:
            self._arrays["kept"] = xp.asarray(tables["kept"])
        self._layerwise = bool(_core.rules()[rule]["norms"])
        if self._layerwise:
            self._arrays |= {
                "adapted": xp.empty(count * tables["coefficients"], np.float64),
                "of_blocks": xp.empty(2 * blocks, np.float64),
                "numbers": xp.asarray(tables["numbers"]),
                "units": xp.empty(count, np.int64),
            }
        numbers = {"clip_value": self._clip_value, **(_after_numbers(after) if self._after else {})}
        self._step_args = self._filled(_FOLLOWED_STEP if self._after else _STEP, **numbers)
        self._measure_args = self._filled(_MEASURE, clip_value=self._clip_value, limits=tables["limits"])
        limit = math.inf if clip_norm is None else clip_norm
        self._judge_args = self._filled(_JUDGE, clip_norm=limit, clip_eps=clip_eps)
        self._rescale_args = self._filled(_RESCALE, clip_value=self._clip_value, clip_norm=limit, clip_eps=clip_eps)
        self._judge_args["steps"] = self._arrays["counters"].data.ptr
        #: Of each list of arrays that may be gradients: storages of parameter and gradient that meet, and kernels.
        self._kinds: dict[str, frozenset[tuple[int, int]]] = {}
        self._kernels: dict[str, dict[str, Kernel]] = {}

    def _make_room_for_checks(self) -> None:
        xp, count = self._device.xp, len(self.names)
        if "found" not in self._arrays:
            self._arrays |= {
                "beyond": xp.empty(2 * self._blocks, np.uint64),
                "found": xp.zeros((_REMEMBERED, 2 * count), np.uint64),
            }
        self._make_room_for_verdicts()

    def _make_room_for_verdicts(self) -> None:
        if "verdicts" not in self._arrays:
            size = (_REMEMBERED, _VERDICT.itemsize // 8)
            self._arrays["verdicts"] = self._device.xp.zeros(size, np.uint64)

    def step(
        self,
        grads: Any,
        values: Hyper | None = None,
        grad_scale: float | LossScale | None = None,
        skip: bool = False,
    ) -> StepInfo:
        """Queue one step, with these values of (group, name) from now on; see `ravine.Optimizer.step`."""
        scale = None if isinstance(grad_scale, LossScale) else grad_scale

        def describe() -> float:
            addresses, words = self._core.take(grads, values or [], scale)
            self._tell("gradients", addresses, words)
            return 0.0 if grad_scale is None else 1.0 if scale is None else scale

        return self._step("gradients", describe, values, grad_scale, skip)

    def step_accumulated(
        self, values: Hyper | None = None, grad_scale: float | LossScale | None = None, skip: bool = False
    ) -> StepInfo:
        """Queue one step with the mean of what was accumulated."""
        scale = None if isinstance(grad_scale, LossScale) else grad_scale

        def describe() -> float:
            words, total = self._core.take_accumulated(values or [], scale)
            self._tell("accumulated", None, words)
            return total

        self._lock_or_raise()
        try:
            if not self._core.leave_out_accumulated(values or [], scale):
                return self._locked_step("accumulated", describe, values, grad_scale, skip)
            checks = skip or self._nonfinite != "propagate"
            # Waits for the device where only it knows the count: later it would be another.
            return StepInfo(self, 0, self.steps, self.lr, measured=False, checked=checks, left_out=True)
        finally:
            self._lock.release()

    def accumulate(self, grads: Any, weight: float, new_sum: Callable[[Any, str], list[Any]]) -> None:
        """Queue the addition of a micro-batch; see `ravine.Optimizer.accumulate`."""
        self._lock_or_raise()
        try:
            addresses, words, first = self._core.take_micro_batch(grads, weight, new_sum)
            if weight == 0:
                self._core.count(weight)
                return
            if "sums of gradients" not in self._arrays:
                xp = self._device.xp
                self._arrays["sums of gradients"] = xp.asarray(self._core.sum_tables())
                self._arrays["accumulated"] = xp.zeros(len(self.names) * WORDS, np.uint64)
            self._tell("gradients", addresses, words)
            args = np.zeros(1, _ACCUMULATE)
            args["arrays"] = self._arrays["gradients"].data.ptr
            args["sums"] = self._arrays["sums of gradients"].data.ptr
            args["count"], args["blocks"] = len(self.names), self._blocks
            args["weight"], args["first"] = weight, first
            self._launch(self._kernel("gradients", "accumulate"), self._grid(self._blocks), args)
            self._core.count(weight)
        finally:
            self._lock.release()

    def discard(self) -> None:
        """Forget what was accumulated."""
        self._core.discard()

    @property
    def accumulated(self) -> float | None:
        """The weight of what was accumulated since the last step; None: there is nothing."""
        return self._core.accumulated

    @property
    def sums(self) -> list[Any]:
        """What was accumulated, in order; None for parameters that had no gradient."""
        self._enter()
        return self._core.sums

    def _lock_or_raise(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("step: another thread is inside a step of this optimizer; give each thread its own")

    def _tell(self, table: str, addresses: Words | None, words: Words | None) -> None:
        """Tell the device what the core has taken, or have the core forget that it knows."""
        try:
            self._enter()
            self._describe(table, addresses, words)
            self._send_values()
        except BaseException:
            self._core.forget()
            raise

    def _step(
        self,
        table: str,
        describe: Callable[[], float],
        values: Hyper | None,
        grad_scale: float | LossScale | None,
        skip: bool,
    ) -> StepInfo:
        self._lock_or_raise()
        try:
            return self._locked_step(table, describe, values, grad_scale, skip)
        finally:
            self._lock.release()

    def _locked_step(
        self,
        table: str,
        describe: Callable[[], float],
        values: Hyper | None,
        grad_scale: float | LossScale | None,
        skip: bool,
    ) -> StepInfo:
        nonfinite = "skip" if skip else self._nonfinite
        checks = nonfinite != "propagate"
        if self._device.capturing():
            self._check_capture(values or [], nonfinite)
            self._captured = True
        scale = describe()
        if checks:
            self._make_room_for_checks()
        # A step that nothing is asked about has a verdict, too, if only the device knows its number.
        measured = self.clips or checks or self._may_skip
        self._may_skip = self._may_skip or nonfinite == "skip"
        call = self._calls
        self._calls += 1
        self._step_args["gradients"] = self._arrays[table].data.ptr
        self._step_args["grad_scale"], self._step_args["verdict"] = scale, 0
        if measured:
            self._measure(table, call % _REMEMBERED, checks, scale, grad_scale)
        if self._layerwise:
            self._launch(self._kernel(table, "gauge"), self._grid(-(-self._blocks // _WARPS)), self._step_args)
            self._launch(self._kernel(table, "settle"), self._grid(len(self.names)), self._step_args)
        self._launch(self._kernel(table, "step"), self._grid(self._blocks), self._step_args)
        self._core.discard()
        step = None if self._uncertain else self._steps + 1
        info = StepInfo(self, call, step, self.lr, measured=measured, checked=checks)
        if nonfinite == "raise" and info.skipped:
            raise FloatingPointError(
                f"grads: not finite, or beyond what the states can hold: {info.nonfinite} (name: count, first index in "
                "C order); nothing was changed"
            )
        self._core.spend()
        self._steps += 1
        return info

    def _enter(self) -> None:
        """Make the current stream wait for the one that was used last."""
        self._stream = self._device.enter_stream(self._stream)

    def _check_capture(self, values: Hyper, nonfinite: str) -> None:
        if values:
            raise RuntimeError("step: a captured step cannot ask a schedule; give plain numbers, and set opt.lr")
        if nonfinite == "raise":
            raise RuntimeError("step: nonfinite='raise' looks at every answer, and a captured step cannot; use 'skip'")

    @property
    def _uncertain(self) -> bool:
        """Whether only the device knows how many steps were completed."""
        return self._may_skip or self._captured

    def _describe(self, table: str, addresses: Words | None, words: Words | None) -> None:
        gradients = self._arrays[table]
        if addresses is not None:
            _poke(self._device, gradients.data.ptr, addresses, stride=WORDS)
        if words is not None:
            rows = words.reshape(-1, WORDS)
            self._kinds[table] = frozenset(
                (parameter, int(row[3])) for parameter, row in zip(self._storages, rows, strict=True) if row[0]
            )
            self._kernels[table] = {}
            _poke(self._device, gradients.data.ptr, words)

    def _kernel(self, table: str, name: str) -> Kernel:
        """Give the kernel for the storages in this list."""
        kernels = self._kernels[table]
        if name not in kernels:
            kinds = self._kinds[table]
            measures = frozenset(gradient for _, gradient in kinds)
            steps = name in ("gauge", "settle", "step")
            text = step_source(self._rule, kinds, self._after, self._precision) if steps else measure_source(measures)
            kernels[name] = self._device.load(text)[name]
        return kernels[name]

    def _send_values(self) -> None:
        """Tell the device what changed among the hyperparameters, from the first change to the last."""
        new = self._core.values()
        (changed,) = np.nonzero(new.view(np.uint64) != self._values.view(np.uint64))
        if changed.size:
            first, end = int(changed[0]), int(changed[-1]) + 1
            _poke(self._device, self._arrays["values"].data.ptr + 8 * first, new[first:end].view(np.uint64))
            self._values = new

    def _measure(self, table: str, slot: int, checks: bool, scale: float, grad_scale: float | LossScale | None) -> None:
        verdict = self._arrays["verdicts"][slot].data.ptr
        measure, judge = self._measure_args, self._judge_args
        beyond = self._arrays["beyond"].data.ptr if checks else 0
        for args in (measure, judge):
            args["arrays"], args["grad_scale"], args["beyond"], args["dynamic"] = (
                self._arrays[table].data.ptr,
                scale,
                beyond,
                0,
            )
        if checks:
            judge["found"] = self._arrays["found"][slot].data.ptr
        if isinstance(grad_scale, LossScale):
            grad_scale.enter()
            grad_scale.fill(judge)
            measure["dynamic"] = grad_scale.address
        judge["verdict"] = self._step_args["verdict"] = verdict
        if self.clips or checks:
            self._launch(self._kernel(table, "measure"), max(1, -(-self._blocks // _WARPS)), measure)
        self._launch(self._kernel(table, "judge"), self._grid(len(self.names)), judge)
        if self.clips and _may_overflow(gradient for _, gradient in self._kinds[table]):
            rescale = self._rescale_args
            rescale["arrays"], rescale["verdict"] = judge["arrays"], verdict
            self._launch(self._kernel(table, "rescale"), self._grid(-(-self._blocks // _WARPS)), rescale)

    def _grid(self, tasks: int) -> int:
        return max(1, min(tasks, 8 * self._device.multiprocessors))

    def _launch(self, kernel: Kernel, blocks: int, args: np.ndarray[Any, Any]) -> None:
        self._device.launch(kernel, blocks, _THREADS, args)

    def _filled(self, dtype: np.dtype[Any], **numbers: Any) -> np.ndarray[Any, Any]:
        """Return a launch's parameter: the addresses of the arrays of these names, and numbers."""
        args = np.zeros(1, dtype)
        args["count"], args["blocks"] = len(self.names), self._blocks
        for name in dtype.names or ():
            if name in self._arrays:
                args[name] = self._arrays[name].data.ptr
        for name, number in numbers.items():
            args[name] = number
        return args

    def recall(self, call: int, name: str, kept: Array | None) -> np.ndarray[Any, Any]:
        """Wait for what the device wrote down about a call of ``step``, or for a copy that was kept of it."""
        if kept is None:
            self._check_remembered(call)
            kept = self._arrays[name][call % _REMEMBERED]
        self._enter()
        row: np.ndarray[Any, Any] = kept.get()
        return row

    def copies(self, call: int) -> dict[str, Array]:
        """Queue copies of what the device writes down about a call of ``step``; none in a graph, which replays it."""
        if self._device.capturing():
            return {}
        names = [name for name in ("verdicts", "found") if name in self._arrays]
        if names:
            self._check_remembered(call)
            self._enter()
        with self._device.here():
            return {name: self._arrays[name][call % _REMEMBERED].copy() for name in names}

    def _check_remembered(self, call: int) -> None:
        if self._calls - call > _REMEMBERED:
            raise RuntimeError(f"info: only the last {_REMEMBERED} steps are remembered; look at it earlier")

    def check_fresh(self, grads: Any) -> None:
        """Refuse gradients that were used by a step before, and that no backward has filled anew."""
        self._core.check_fresh(grads)

    def spend(self, grads: Any) -> None:
        """Take note that a step has used these gradients."""
        self._core.spend(grads)

    def check(self, grads: Any, some: bool = False) -> None:
        """See ``ravine._core.Engine``, as for all that follows."""
        self._core.check(grads, some)

    def check_hyper(self, name: str, value: float) -> None:
        """Check a value."""
        self._core.check_hyper(name, value)

    def set_hyper(self, group: int, name: str, value: float) -> None:
        """Set a value: from the next step on, of a captured one too."""
        self._core.set_hyper(group, name, value)
        if self._captured:
            self._enter()
            self._send_values()

    def hyper(self, group: int, name: str) -> float:
        """Return a value."""
        return self._core.hyper(group, name)

    @property
    def lr(self) -> float:
        """The learning rate of the first group."""
        return self._core.hyper(0, "lr")

    @property
    def steps(self) -> int:
        """Steps completed; asks the device only where nobody else knows."""
        return int(self._counters()[0]) if self._uncertain else self._steps

    @property
    def updates(self) -> list[int]:
        """How often each parameter was updated; asks the device."""
        updates: list[int] = self._counters()[1:].tolist()
        return updates

    def _counters(self) -> Words:
        self._enter()
        counters: Words = self._arrays["counters"].get()
        return counters

    @property
    def products(self) -> list[list[tuple[float, int, float]]]:
        """Of each parameter, the products that are kept; asks the device."""
        if not self._products:
            return [[] for _ in self.names]
        self._enter()
        words: Words = self._arrays["products"].get()
        products: Any = words.view(_PAST).reshape(-1, self._products).tolist()
        return list(products)

    def set_counters(self, steps: int, updates: list[int], products: Products | None = None) -> None:
        """Set the steps completed, how often each parameter was updated, and the products, if they are known."""
        self._steps = steps
        self._enter()
        self._arrays["counters"].set(np.array([steps, *updates], np.uint64))
        if self._products:
            self._arrays["products"].set(self._packed_products(updates, products))

    def _packed_products(self, updates: list[int], products: Products | None) -> Words:
        unknown = [[(-1.0, t, 1.0)] * self._products for t in updates]
        rows = unknown if products is None else [[tuple(past) for past in of_each] for of_each in products]
        return np.array(rows, _PAST).reshape(-1).view(np.uint64)

    def copy_counters(self, source: Engine) -> None:
        """Set all of them to what they are of another engine, on the device."""
        source._enter()
        self._enter()
        self._steps = source._steps
        for name in ("counters", "products") if self._products else ("counters",):
            self._arrays[name][...] = source._arrays[name]

    @property
    def parameters(self) -> list[Any]:
        """The parameters, in order."""
        return self._core.parameters

    @property
    def states(self) -> list[tuple[Any, ...]]:
        """The state arrays of each parameter, in order, ready on the current stream."""
        self._enter()
        return self._core.states

    @property
    def kept(self) -> list[dict[str, Any]]:
        """What is kept for each parameter besides, by name, ready on the current stream."""
        self._enter()
        return self._core.kept


def _may_overflow(storages: Iterable[int]) -> bool:
    """Whether squares of arrays of some of these storages overflow or underflow in float64."""
    return any(_STORAGES[storage] == "F64" for storage in storages)


def _stages(kept: Words) -> tuple[str, ...]:
    """Name the stages that some parameter has an array for."""
    there = kept.reshape(-1, len(_core.KEPT), WORDS)[:, :, 0]
    return tuple(stage for i, stage in enumerate(_AFTER) if there[:, i].any())


def _after_numbers(after: After | None) -> dict[str, float]:
    """Give the numbers of the struct, by name."""
    _, average, lookahead = after or (None, None, None)
    numbers: dict[str, float] = {}
    if average:
        decay, warms, start, every = average
        numbers |= {"decay": -1.0 if decay is None else decay, "warms": warms, "start": start, "every": every}
    if lookahead:
        numbers |= dict(zip(("period", "alpha"), lookahead, strict=True))
    return numbers


def _poke(device: Device, to: int, words: Words, stride: int = 1) -> None:
    """Write words to the device's memory, by value, in order with the launches around."""
    kernel = device.load(source("poke"))["poke"]
    args = np.zeros(1, _POKE)
    args["stride"] = stride
    most = args["words"].size
    for start in range(0, len(words), most):
        part = words[start : start + most]
        args["to"], args["count"] = to + 8 * stride * start, len(part)
        args["words"][0, : len(part)] = part
        device.launch(kernel, 1, _THREADS, args)


def apply(
    device: Device,
    rule: str,
    hyper: list[tuple[str, float]],
    t: int,
    parameter: Any,
    gradient: Any,
    states: list[tuple[str, Any]],
) -> None:
    """Update one array, with states that the caller keeps; see ``ravine._core.apply``."""
    tables = _core.apply_tables(rule, hyper, t, parameter, gradient, states)
    described = ("parameters", "gradients", "states", "groups", "values", "numbers")
    parts = {name: tables[name].view(np.uint64) for name in described}
    parts |= {"counters": np.array([0, t - 1], np.uint64), "ticket": np.zeros(1, np.uint64)}
    words = np.concatenate(list(parts.values()))
    memory = device.xp.empty(len(words), np.uint64)
    _poke(device, memory.data.ptr, words)
    args = np.zeros(1, _STEP)
    address = memory.data.ptr
    for name, part in parts.items():
        args[name] = address
        address += 8 * len(part)
    args["count"], args["blocks"], args["clip_value"] = 1, tables["blocks"], math.inf
    storages = (int(tables["parameters"][3]), int(tables["gradients"][3]))
    kernels = device.load(step_source(rule, frozenset([storages])))
    if _core.rules()[rule]["norms"]:
        squares, adapted = (device.xp.empty(n, np.float64) for n in (2 * tables["blocks"], tables["coefficients"]))
        units = device.xp.empty(1, np.int64)
        args["of_blocks"], args["adapted"], args["units"] = squares.data.ptr, adapted.data.ptr, units.data.ptr
        warps = -(-tables["blocks"] // _WARPS)
        device.launch(kernels["gauge"], max(1, min(warps, 8 * device.multiprocessors)), _THREADS, args)
        device.launch(kernels["settle"], 1, _THREADS, args)
    device.launch(kernels["step"], max(1, min(tables["blocks"], 8 * device.multiprocessors)), _THREADS, args)


def global_norm(device: Device, arrays: Named) -> Array:
    """Return the Euclidean norm of all elements of all arrays, an array of no axes on the device."""
    return _norm(device, arrays, math.inf)


def clip_by_global_norm(device: Device, arrays: Named, max_norm: float) -> Array:
    """Scale all arrays in place so that their norm is at most ``max_norm``; return the norm before."""
    return _norm(device, arrays, max_norm, written=True)


def tensor_norms(device: Device, arrays: Named) -> Array:
    """Return the Euclidean norm of each array, an array on the device."""
    norms = device.xp.empty(len(arrays), np.float64)
    _norm(device, arrays, math.inf, norms=norms)
    return norms


def _norm(
    device: Device, arrays: Named, max_norm: float, *, written: bool = False, norms: Array | None = None
) -> Array:
    words, blocks = _core.norm_tables(arrays, written)
    xp, count = device.xp, len(arrays)
    rows = words.reshape(-1, WORDS)
    storages = frozenset(int(row[3]) for row in rows if row[1])
    kernels = device.load(measure_source(storages))
    described, squares, sums = xp.asarray(words), xp.empty(blocks, np.float64), xp.empty(count, np.float64)
    verdict, ticket = xp.empty(_VERDICT.itemsize // 8, np.float64), xp.zeros(1, np.uint32)
    measure, judge, scale = np.zeros(1, _MEASURE), np.zeros(1, _JUDGE), np.zeros(1, _SCALE)
    for args in (measure, judge, scale):
        args["arrays"], args["count"], args["blocks"] = described.data.ptr, count, blocks
    measure["squares"] = judge["squares"] = squares.data.ptr
    measure["clip_value"] = math.inf
    judge["verdict"] = scale["verdict"] = verdict.data.ptr
    judge["sums"], judge["ticket"], judge["clip_norm"] = sums.data.ptr, ticket.data.ptr, max_norm
    if norms is not None:
        judge["norms"] = norms.data.ptr
    device.launch(kernels["measure"], max(1, -(-blocks // _WARPS)), _THREADS, measure)
    device.launch(kernels["judge"], max(1, min(count, 8 * device.multiprocessors)), _THREADS, judge)
    if norms is None and _may_overflow(storages):
        rescale = np.zeros(1, _RESCALE)
        for name in ("arrays", "squares", "sums", "verdict", "ticket", "count", "blocks", "clip_norm"):
            rescale[name] = judge[name]
        rescale["clip_value"] = math.inf
        warps = -(-blocks // _WARPS)
        device.launch(kernels["rescale"], max(1, min(warps, 8 * device.multiprocessors)), _THREADS, rescale)
    if written:
        device.launch(kernels["scale"], max(1, min(blocks, 8 * device.multiprocessors)), _THREADS, scale)
    return verdict[0]


def adaptive_clip(device: Device, params: Named, grads: Named, clipping: float, eps: float, axis: int) -> None:
    """Scale each unit of the gradients in place by the norm of the same unit of their parameters."""
    tables, units, total = _core.unit_tables(params, grads, axis)
    if units == 0:
        return
    storages = {int(row[3]) for table in tables[:2] for row in table.reshape(-1, WORDS) if row[1]}
    kernel = device.load(units_source(frozenset(storages)))["clip_units"]
    parameters, gradients, blocks = (device.xp.asarray(table) for table in tables)
    squares = device.xp.empty(2 * total, np.float64)
    args = np.zeros(1, _UNITS)
    for name, array in zip(_UNITS.names or (), (parameters, gradients, blocks, squares), strict=False):
        args[name] = array.data.ptr
    args["count"], args["units"], args["total"] = len(params), units, total
    args["clipping"], args["eps"] = clipping, eps
    device.launch(kernel, max(1, min(units, 8 * device.multiprocessors)), _THREADS, args)
