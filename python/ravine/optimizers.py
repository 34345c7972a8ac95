"""The optimizers: one class each, one ``step(grads)``."""

from __future__ import annotations

import difflib
import inspect
import math
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

import numpy as np

from ravine import _core, backends, checkpoint, sparse, trees

__all__ = [
    "ADOPT",
    "ASGD",
    "MADGRAD",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Lion",
    "NAdam",
    "Optimizer",
    "Options",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "SignSGD",
    "Signum",
    "Yogi",
]

Value: TypeAlias = float | Callable[[int], float]
"""A number, or a schedule: a callable of the number of steps already taken."""

Groups: TypeAlias = Sequence[tuple[str, Mapping[str, Any]]]
"""Pairs of a glob pattern on dotted names and the values that differ there; later pairs win."""


class OptionsButDecay(TypedDict, total=False):
    """What AdamW takes besides its own arguments: all of :class:`Options` but the decay, which is an argument there.

    Args:
        l2: coupled decay λ ≥ 0: g ← g + λ·w, before the rule sees g.
        maximize: ascend instead: g ← −g.
        clip_value: cut each element of the gradients off at ± this, > 0.
        clip_norm: scale all gradients together down to this global norm, > 0.
        nonfinite: ``"propagate"``, ``"skip"`` (the step does not happen) or ``"raise"``, for gradients that hold NaN,
            inf or, in rules that square them, more than the root of the largest number.
        groups: ``[(pattern, {name: value})]``: values that differ for the parameters whose names match.
    """

    l2: Value
    maximize: bool
    clip_value: float | None
    clip_norm: float | None
    nonfinite: Literal["propagate", "skip", "raise"]
    groups: Groups


class Options(OptionsButDecay, total=False):
    """What every optimizer takes besides its own arguments.

    Args:
        weight_decay: decoupled decay λ ≥ 0: w ← (1 − γλ)·w before the update is subtracted.
        l2, maximize, clip_value, clip_norm, nonfinite, groups: see :class:`OptionsButDecay`.
    """

    weight_decay: Value


#: The options that are numbers of a group, with their defaults.
_COMMON: dict[str, Value] = {"weight_decay": 0.0, "l2": 0.0, "maximize": False}


class Optimizer:
    """What all optimizers share: binding parameters, groups, schedules, the step, and the state.

    The order of a step is fixed: sign (``maximize``) → finite check → clip by value → clip by norm → coupled l2 → rule,
    with decoupled decay on the old parameter.
    """

    def __init__(self, params: Any, rule: str, hyper: Mapping[str, Value], options: Options) -> None:
        self._check_names(options, {**OptionsButDecay.__annotations__, **Options.__annotations__}, "option")
        defaults: dict[str, Any] = {**hyper, **_COMMON, **{k: v for k, v in options.items() if k in _COMMON}}
        params, groups, self._torch_groups = _torch_groups(params, list(options.get("groups") or ()))
        self._rule = rule
        self._params = params
        self._values: list[dict[str, Any]] = []
        self._group_of: list[int] = []
        self._backend = backends.backend_for(params)

        def group_of(names: list[str]) -> list[int]:
            self._group_of, self._values = self._resolve(names, defaults, groups)
            return self._group_of

        self._options: dict[str, Any] = {
            "clip_value": options.get("clip_value"),
            "clip_norm": options.get("clip_norm"),
            "nonfinite": options.get("nonfinite", "propagate"),
        }
        self._engine: _core.Engine = self._new_engine(params, group_of)
        self._lock = threading.Lock()
        #: Whether a gradient was `RowSparse`: then the steps look for more of them.
        self._sparse = False
        self._scheduled = [
            (group, name, value)
            for group, values in enumerate(self._values)
            for name, value in _engine_values(values, self._about["hyperparameters"]).items()
            if callable(value)
        ]
        for group, values in enumerate(self._values):
            for name, value in _engine_values(values, self._about["hyperparameters"]).items():
                if not callable(value):
                    self._engine.set_hyper(group, name, _number(name, value))
        self._start()

    def step(self, grads: Any) -> _core.StepInfo:
        """Update all parameters in place from their gradients.

        Args:
            grads: arrays in the same nesting as the parameters, of their shapes; only read. ``None`` in the place of an
                array leaves that parameter, its states and its update count as they are. :class:`RowSparse` is the
                gradient of some rows.

        Returns:
            step (completed steps), lr (of the first parameter's group), grad_norm (after clipping by value, before
            clipping by norm; None unless ``clip_norm`` is set), skipped, nonfinite (None unless checked; else name →
            how many elements, C-order index of the first).

        Raises:
            ValueError: names, shapes or memory that do not fit; a schedule out of range. Nothing was changed.
            TypeError: a gradient of another dtype. Nothing was changed.
            FloatingPointError: gradients that are not finite, under ``nonfinite="raise"``. Nothing was changed.

        >>> w = np.array([1.0, 2.0]); opt = rv.SGD(w, lr=0.5)
        >>> opt.step(w.copy())
        StepInfo(step=1, lr=0.5, grad_norm=None, skipped=False, nonfinite=None)
        >>> w
        array([0.5, 1. ])
        """
        step = self._careful_step if self._scheduled or self._torch_groups or self._sparse else self._engine.step
        try:
            return step(grads)
        except (TypeError, ValueError):
            # Looked for here, so that dense steps do not pay for it.
            if self._sparse or not sparse.has_rows(grads):
                raise
        self._sparse = True
        return self._careful_step(grads)

    def _careful_step(self, grads: Any) -> _core.StepInfo:
        """Step where Python code runs before the core's: no other thread may come in between."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("step: another thread is inside a step of this optimizer; give each thread its own")
        try:
            self._check_torch_groups()
            values = self._schedule_values(self._engine.steps)
            if self._sparse and sparse.has_rows(grads):
                info: _core.StepInfo = sparse.step(self, grads, values)
                return info
            return self._engine.step(grads, values)
        finally:
            self._lock.release()

    def _bound_alike(self, params: dict[str, Any], states: Sequence[Sequence[Any]]) -> Any:
        """Bind other arrays in the places of the parameters and their states, with the present numbers and counts.

        It skips a step where this optimizer would raise.
        """
        of_each, nonfinite = iter(states), self._options["nonfinite"]
        engine = self._backend.Engine(
            self._rule,
            params,
            lambda names: self._group_of,
            lambda parameter, dtype: list(next(of_each)),
            self._options["clip_value"],
            self._options["clip_norm"],
            "skip" if nonfinite == "raise" else nonfinite,
        )
        for group in range(len(self._values)):
            for name in {**self._about["hyperparameters"], **_COMMON}:
                engine.set_hyper(group, name, self._engine.hyper(group, name))
        self._backend.copy_counters(engine, self._engine)
        return engine

    def _check_torch_groups(self) -> None:
        for i, (group, params) in enumerate(self._torch_groups):
            if group["params"] is not params:
                raise ValueError(f"params[{i}]['params'] was replaced; assign into it, or make a new optimizer")

    @property
    def lr(self) -> float:
        """The learning rate of the first parameter's group, at the last step; setting it sets every group's."""
        return self._engine.lr

    @lr.setter
    def lr(self, value: float) -> None:
        value = _number("lr", value)
        if any(name == "lr" for _, name, _ in self._scheduled):
            raise ValueError("lr: a schedule sets it; give the optimizer a number to set it by hand")
        for group, values in enumerate(self._values):
            self._engine.set_hyper(group, "lr", value)
            values["lr"] = value

    @contextmanager
    def _on_trial(self) -> Iterator[Callable[[float], None]]:
        """Undo in the end what happens to states, counts and rates; the parameters are the caller's.

        Give a function that sets the rate of the first group, and the others' in their present ratios to it. Schedules
        of the rate are put aside meanwhile.
        """
        state, scheduled = self.state_dict(), self._scheduled
        changing = {(group, name) for group, name, _ in scheduled} | {
            (group, "lr") for group in range(len(self._values))
        }
        before = {(group, name): self._engine.hyper(group, name) for group, name in changing}
        rates = [before[group, "lr"] for group in range(len(self._values))]
        ratios = [rate / rates[0] if rates[0] > 0 else 1.0 for rate in rates]

        def set_lr(value: float) -> None:
            for group, ratio in enumerate(ratios):
                self._engine.set_hyper(group, "lr", value * ratio)

        self._scheduled = [entry for entry in scheduled if entry[1] != "lr"]
        try:
            yield set_lr
        finally:
            self._scheduled = scheduled
            self.load_state_dict(state)
            # Loading asks the schedules about the next step; these are the last one's.
            for (group, name), value in before.items():
                self._engine.set_hyper(group, name, value)

    @property
    def steps(self) -> int:
        """How many steps were completed."""
        return self._engine.steps

    def formula(self) -> str:
        """Return the update as configured, from the very rule that runs.

        >>> print(rv.RMSprop(np.zeros(3), lr=0.01, l2=0.1).formula())
        g ← g + λ₂·w
        v ← β·v + (1 − β)·g²
        w ← w − γ·g/(√v + ε)
        γ = 0.01, β = 0.99, ε = 1e-08, λ₂ = 0.1
        """
        rule = self._about["hyperparameters"]
        scheduled = {name: value for group, name, value in self._scheduled if group == 0}
        # What is 0 is left out, unless a schedule may change that.
        values = {name: math.nan if name in scheduled else self._engine.hyper(0, name) for name in [*rule, *_COMMON]}
        lines, symbols = [], {name: values[name] for name, kind in rule.items() if kind != "switch"}
        if values["maximize"]:
            lines.append("g ← −g")
        if self._options["clip_value"] is not None:
            lines.append(f"g ← min(max(g, −{self._options['clip_value']}), {self._options['clip_value']})")
        if self._options["clip_norm"] is not None:
            lines.append(f"g ← g·min(1, {self._options['clip_norm']}/‖g‖)")
        if values["l2"]:
            lines.append(f"g ← g + {_core.symbol('l2')}·w")
            symbols["l2"] = values["l2"]
        if values["weight_decay"] and "weight_decay" not in rule:
            lines.append(f"w ← (1 − {_core.symbol('lr')}·{_core.symbol('weight_decay')})·w")
            symbols["weight_decay"] = values["weight_decay"]
        lines += self._formula_lines(values)
        used = {name: value for name, value in symbols.items() if value or name == "lr"}
        lines.append(", ".join(f"{_core.symbol(name)} = {scheduled.get(name, value)}" for name, value in used.items()))
        return "\n".join(lines)

    def _formula_lines(self, values: Mapping[str, float]) -> list[str]:
        """Return the rule's own lines."""
        return _core.formula(self._rule, [values[name] for name in self._about["hyperparameters"]]).splitlines()

    @property
    def _about(self) -> Mapping[Any, Mapping[str, str]]:
        """The rule's hyperparameters and states."""
        return _core.rules()[self._rule]

    def _states(self) -> dict[str, dict[str, Any]]:
        """Give the arrays that are the states of each parameter, by name."""
        kinds, engine = self._about["states"], self._engine
        return {
            name: dict(zip(kinds, states, strict=True))
            for name, states in zip(engine.names, engine.states, strict=True)
        }

    def _new_engine(self, params: Any, group_of: Callable[[list[str]], list[int]]) -> Any:
        """Bind the parameters, with new states."""
        backend, kinds = self._backend, self._about["states"]
        return backend.Engine(
            self._rule,
            params,
            group_of,
            lambda parameter, dtype: [backend.zeros(parameter.shape, dtype) for _ in kinds],
            self._options["clip_value"],
            self._options["clip_norm"],
            self._options["nonfinite"],
        )

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that a run needs to go on, bit for bit: plain dicts of arrays and numbers.

        >>> opt = rv.Adam({"w": np.ones(2)}); _ = opt.step({"w": np.ones(2)})
        >>> opt.state_dict()["updates"], sorted(opt.state_dict()["states"]["w"])
        ({'w': 1}, ['m', 'v'])
        """
        states = {
            name: {kind: state.copy() for kind, state in states.items()} for name, states in self._states().items()
        }
        updates = dict(zip(self._engine.names, self._engine.updates, strict=True))
        return {"format": 1, "rule": self._rule, "step": self.steps, "updates": updates, "states": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, matched by the parameters' names.

        Args:
            state: what ``state_dict`` returned; hyperparameters are this optimizer's own.

        Raises:
            ValueError: another rule, other names, shapes or dtypes, all of them listed. Nothing was changed.

        >>> a, b = rv.Adam(np.ones(2)), rv.Adam(np.ones(2))
        >>> _ = a.step(np.ones(2)); b.load_state_dict(a.state_dict()); b.steps
        1
        """
        names = self._engine.names
        own = self._states()
        wrong = _state_differences(state, self._rule, own)
        if wrong:
            raise ValueError("state: " + "; ".join(wrong) + ". Nothing was loaded.")
        for name in names:
            for kind, array in own[name].items():
                self._backend.assign(array, state["states"][name][kind])
        self._engine.set_counters(int(state["step"]), [int(state["updates"][name]) for name in names])
        self._start()

    def save(self, path: str | os.PathLike[str], *, keep: int = 1, params: bool = True) -> None:
        """Write all that a run needs to go on, bit for bit, to one safetensors file: whole, or not at all.

        The file is written beside its place, brought to the disk and renamed: killed, out of space or out of power, you
        have what was saved before, or this. See `ravine.checkpoint` for what stands in it.

        Args:
            path: the file, in a folder that exists; replaced if it is there. Of a link, what it leads to is replaced.
            keep: how many files to have in the end, ≥ 1 (1): with 3, what was ``path`` becomes ``path.1``, and what was
                that ``path.2``. Files with higher numbers are left alone.
            params: whether the parameters are saved, too.

        Raises:
            OSError: the file could not be written. Unless it says otherwise, what was saved before is still there.
            ValueError: keep < 1; a parameter that was replaced in its container.
            RuntimeError: someone else saves to this path now, or steps meanwhile. Nothing was written.
            ModuleNotFoundError: safetensors is not installed; ``pip install 'ravine[io]'``.

        >>> w = np.array([1.0, 2.0]); opt = rv.SGD(w, lr=0.5, momentum=0.5)
        >>> _ = opt.step(w.copy()); opt.save("run.safetensors")
        >>> w[:] = 7; opt.load("run.safetensors").step, w
        (1, array([0.5, 1. ]))
        """
        checkpoint.save(self, path, keep, params)

    def load(
        self, path: str | os.PathLike[str], *, params: bool = True, hyper: bool = True, strict: bool = True
    ) -> checkpoint.Loaded:
        """Go on from a file that `save` wrote, matched by the parameters' names: bit for bit as if uninterrupted.

        States and parameters are written in place; they may be on another device than those that were saved. All is
        checked before any of it is changed. Another file than the one asked for is never loaded; where that is damaged
        or missing, the error names the one that ``keep`` has kept.

        Args:
            path: the file.
            params: whether the parameters are loaded, too.
            hyper: whether numbers become those of the file, also those set while it ran. Schedules cannot be read from
                a file: the optimizer must have been made with the same. False keeps all of the optimizer's own.
            strict: False leaves out what has another name, shape or dtype; the result tells what.

        Returns:
            path, step, what changed and what was left out, and a ``message`` in words.

        Raises:
            ValueError: a file that is damaged or of another format version; another rule, other names, shapes or
                dtypes; with ``hyper``, another schedule, group, formula or clipping. All of it listed, nothing changed.
            OSError: the file cannot be read. Nothing was changed.
            ModuleNotFoundError: safetensors is not installed; ``pip install 'ravine[io]'``.

        >>> w = np.array([1.0, 2.0]); opt = rv.SGD(w, lr=0.5); opt.save("run.safetensors")
        >>> rv.SGD(np.zeros(2), lr=0.25).load("run.safetensors").restored
        ('lr: 0.5, was 0.25',)
        """
        return checkpoint.load(self, path, params, hyper, strict)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self._values[0].items() if value is not False)
        return f"{type(self).__name__}({len(self._engine.names)} parameters, {values})"

    def _flat_values(self, group: int) -> dict[str, Any]:
        """Give a group's values by the core's names."""
        return _engine_values(self._values[group], self._about["hyperparameters"])

    def _set_number(self, group: int, name: str, value: float) -> None:
        """Set a number of a group by the core's name, checked before."""
        self._engine.set_hyper(group, name, value)
        values = self._values[group]
        for whole, parts in _TUPLES.items():
            if name in parts and whole in values:
                known = [part for part in parts if part in self._about["hyperparameters"]]
                values[whole] = tuple(value if p == name else v for p, v in zip(known, values[whole], strict=True))
                return
        values["momentum_before" if name == "momentum" and name not in values else name] = value

    def _start(self) -> None:
        """Bring the schedules to where the count of steps is."""
        for group, name, value in self._schedule_values(self._engine.steps):
            self._engine.set_hyper(group, name, value)

    def _schedule_values(self, step: int) -> list[tuple[int, str, float]]:
        """Ask all schedules, and check what they say before any of it counts."""
        values = []
        for group, name, schedule in self._scheduled:
            try:
                value = _number(name, schedule(step))
                self._engine.check_hyper(name, value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{error}, from the schedule {schedule!r} at step {step}") from None
            values.append((group, name, value))
        return values

    def _resolve(
        self, names: list[str], defaults: dict[str, Any], groups: Groups
    ) -> tuple[list[int], list[dict[str, Any]]]:
        """Return each parameter's group number, and the values of each group; the first is the first parameter's."""
        changeable = {name for name, value in defaults.items() if name not in self._shapes}
        for pattern, overrides in groups:
            self._check_names(overrides, changeable, f"value in group {pattern!r}")
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"groups: pattern {pattern!r} matches none of {names}")
        distinct: list[dict[str, Any]] = []
        numbers = []
        for name in names:
            values = dict(defaults)
            for pattern, overrides in groups:
                if fnmatchcase(name, pattern):
                    values.update(overrides)
            if values not in distinct:
                distinct.append(values)
            numbers.append(distinct.index(values))
        return numbers, distinct or [defaults]

    #: Values that stand for the rule's shape, so that groups cannot differ in them.
    _shapes: frozenset[str] = frozenset()

    def _check_names(self, given: Mapping[str, Any], known: Collection[str], what: str) -> None:
        own = [p for p in inspect.signature(type(self)).parameters if p not in ("params", "options")]
        for name in given:
            if name in known:
                continue
            if name in own:
                raise TypeError(f"{type(self).__name__}: {name!r} is the same for all parameters; it is no {what}")
            names = sorted({*own, *known})
            near = difflib.get_close_matches(name, names, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it takes {names}"
            raise TypeError(f"{type(self).__name__}: unknown {what} {name!r}; {hint}")


def _is_torch(params: Any) -> bool:
    return (
        isinstance(params, list | tuple) and bool(params) and all(isinstance(g, dict) and "params" in g for g in params)
    )


def _torch_groups(
    params: Any, groups: list[tuple[str, Mapping[str, Any]]]
) -> tuple[Any, Groups, list[tuple[dict[str, Any], Any]]]:
    """Turn torch's ``[{"params": ..., "lr": ...}, ...]`` into a list of nestings and patterns on their numbers.

    The last result are the dicts with what is in them, to see that it stays there.
    """
    if not _is_torch(params):
        return params, groups, []
    for i, group in enumerate(params):
        overrides = {name: value for name, value in group.items() if name != "params"}
        if overrides:
            alone = not isinstance(group["params"], dict | list | tuple)
            groups.append((f"{i}" if alone else f"{i}.*", overrides))
    return [group["params"] for group in params], groups, [(group, group["params"]) for group in params]


#: Arguments that are several of the core's numbers.
_TUPLES = {
    "betas": ("beta1", "beta2", "beta3"),
    "etas": ("eta_minus", "eta_plus"),
    "step_sizes": ("step_min", "step_max"),
    "eps": ("eps1", "eps2"),
    "ns_coefficients": ("ns_a", "ns_b", "ns_c"),
}


def _engine_values(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Give the core's names: ``betas`` are two or three, and where momentum stands is the rule's business."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        parts = [part for part in _TUPLES.get(name, ()) if part in known]
        if not parts:
            flat[{"momentum_before": "momentum"}.get(name, name)] = value
            continue
        try:
            flat |= zip(parts, value, strict=True)
        except (TypeError, ValueError):
            count = {2: "two", 3: "three"}[len(parts)]
            where = " in [0, 1)" if name == "betas" else ""
            raise ValueError(f"{name}: expected {count} numbers{where}, got {value!r}") from None
    return flat


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError  # float("0.1") would do, and hide that a setting was not parsed
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number or a schedule, got {value!r}") from None


def _state_differences(state: Mapping[str, Any], rule: str, own: dict[str, dict[str, Any]]) -> list[str]:
    missing = [key for key in ("format", "rule", "step", "updates", "states") if key not in state]
    if missing:
        return [f"missing {missing}; expected what state_dict() returned"]
    wrong = [
        f"{key}: expected {expected!r}, got {state[key]!r}"
        for key, expected in (("format", 1), ("rule", rule))
        if state[key] != expected
    ]
    for key in ("updates", "states"):
        if not isinstance(state[key], Mapping):
            return [*wrong, f"{key}: expected a dict by parameter name, got {type(state[key]).__name__}"]
        wrong += [f"{key}: missing parameters {sorted(own.keys() - state[key])}"] if own.keys() - state[key] else []
        wrong += [f"{key}: unknown parameters {sorted(state[key].keys() - own)}"] if state[key].keys() - own else []
    counts = {"step": state["step"], **{f"updates[{name!r}]": count for name, count in state["updates"].items()}}
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or not 0 <= count < 2**63:
            wrong.append(f"{name}: expected a whole number >= 0, got {count!r}")
    if state["rule"] != rule:
        return wrong
    for name in own.keys() & state["states"].keys():
        given = state["states"][name]
        if not isinstance(given, Mapping):
            wrong.append(f"states[{name!r}]: expected a dict of {list(own[name])}, got {type(given).__name__}")
            continue
        for kind, array in own[name].items():
            other = given.get(kind)
            found = "nothing" if other is None else f"{np.shape(other)} {getattr(other, 'dtype', type(other).__name__)}"
            if found != f"{array.shape} {array.dtype}":
                wrong.append(f"states[{name!r}][{kind!r}]: expected {array.shape} {array.dtype}, got {found}")
    return wrong


class SGD(Optimizer):
    r"""Gradient descent, plain or with one of four momentum forms.

    .. math:: w \leftarrow w - \gamma g

    ===============  ===============================================================================
    ``form``         with momentum μ
    ===============  ===============================================================================
    accumulate       b ← μb + (1−τ)g, first b = g;  w ← w − γb   (torch's, the default)
    velocity         v ← μv − γg;  w ← w + v   (Keras, Chainer; γ lives in the buffer)
    heavy_ball       w ← w − γg + μ(w − w⁻), first w⁻ = w   (stores w⁻: a change from outside is motion)
    average          b ← μb + (1−μ)g, first b = (1−μ)g;  w ← w − γb
    ===============  ===============================================================================

    Args:
        params: array, or any nesting of dict, list and tuple of arrays (float64, float32, float16, bfloat16); changed
            in place. Or torch's list of ``{"params": ..., "lr": ...}``.
        lr: γ ≥ 0, or a schedule.
        momentum: μ in [0, 1), or a schedule; 0 is plain descent, without a buffer.
        dampening: τ ≥ 0, with ``form="accumulate"`` only.
        nesterov: look ahead: g + μb in place of b, or μv − γg in place of v; undampened accumulate and velocity only.
        form: ``"accumulate"``, ``"velocity"``, ``"heavy_ball"`` or ``"average"``.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, or a combination that has no formula.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986, eq. 9; Polyak,
    "Some methods of speeding up the convergence of iteration methods", 1964, eq. 9; Sutskever et al., "On the
    importance of initialization and momentum in deep learning", 2013, eq. 3-4.

    >>> w = np.array([1.0, -2.0]); opt = rv.SGD(w, lr=0.1, momentum=0.9)
    >>> for _ in range(2): _ = opt.step(2 * w)
    >>> w.round(3)
    array([ 0.46, -0.92])
    """

    _shapes = frozenset({"average"})

    def __init__(
        self,
        params: Any,
        lr: Value,
        *,
        momentum: Value = 0.0,
        dampening: Value = 0.0,
        nesterov: bool = False,
        form: Literal["accumulate", "velocity", "heavy_ball", "average"] = "accumulate",
        **options: Unpack[Options],
    ) -> None:
        rules = {"accumulate": "momentum", "velocity": "velocity", "heavy_ball": "heavy_ball", "average": "momentum"}
        if form not in rules:
            near = difflib.get_close_matches(str(form), rules, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"form: expected one of {sorted(rules)}, got {form!r}{hint}")
        groups: Any = [overrides for _, overrides in options.get("groups") or ()]
        groups += params if _is_torch(params) else []
        plain = not callable(momentum) and momentum == 0 and all("momentum" not in group for group in groups)
        if nesterov and (plain or form not in ("accumulate", "velocity") or callable(dampening) or dampening != 0):
            raise ValueError(
                "nesterov: expected momentum > 0, dampening = 0 and form='accumulate' or 'velocity', "
                f"got momentum={momentum!r}, dampening={dampening!r}, form={form!r}"
            )
        if (callable(dampening) or dampening != 0) and (plain or form != "accumulate"):
            raise ValueError(
                "dampening: expected momentum > 0 and form='accumulate', "
                f"got momentum={momentum!r}, form={form!r}, dampening={dampening!r}"
            )
        hyper: dict[str, Value] = {"lr": lr}
        rule = "sgd"
        if not plain:
            hyper["momentum"] = momentum
            rule = rules[form]
            if nesterov:
                rule = {"momentum": "nesterov", "velocity": "velocity_nesterov"}[rule]
            if rule == "momentum":
                hyper |= {"average": True} if form == "average" else {"dampening": dampening, "average": False}
        super().__init__(params, rule, hyper, options)


class Adagrad(Optimizer):
    r"""Divide each gradient by the root of the sum, or the mean, of all its squares so far.

    .. math:: v \leftarrow v + g^2 \;\text{ or }\; v + (g^2 - v)/t, \qquad
        w \leftarrow w - \gamma\, g / (\sqrt{v} + \epsilon)

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0, or a schedule.
        eps: ε ≥ 0 (1e-10), added to the root. Where the denominator is 0 the update is 0.
        accumulate: ``"sum"``, or ``"mean"``: a running mean, which does not stall in float32 as a sum does.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
    2011, section 1.3.

    >>> w = np.array([1.0, -2.0]); opt = rv.Adagrad(w, lr=0.5)
    >>> _ = opt.step(2 * w); w
    array([ 0.5, -1.5])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 0.01,
        *,
        eps: Value = 1e-10,
        accumulate: Literal["sum", "mean"] = "sum",
        **options: Unpack[Options],
    ) -> None:
        rules = {"sum": "adagrad", "mean": "adagrad_mean"}
        if accumulate not in rules:
            raise ValueError(f"accumulate: expected 'sum' or 'mean', got {accumulate!r}")
        super().__init__(params, rules[accumulate], {"lr": lr, "eps": eps}, options)


class RMSprop(Optimizer):
    r"""Divide each gradient by a running root mean square of its past values.

    .. math:: v \leftarrow \beta v + (1-\beta) g^2, \qquad w \leftarrow w - \gamma\, g / (\sqrt{v} + \epsilon)

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0, or a schedule.
        decay: β in [0, 1), the weight of the past (0.99). Some texts write κ = 1 − β.
        eps: ε ≥ 0 (1e-8), added outside the root unless ``eps_inside``. At |g| = 1e-5 the two differ 99-fold in the
            first step. Where the denominator is 0 the update is 0.
        eps_inside: √(v + ε) in place of √v + ε.
        first: ``"zero"`` starts v at 0, so the first step is γ/√(1−β) whatever g is; ``"square"`` starts at g².
        centered: divide by the standard deviation instead: v − a² in place of v, a ← βa + (1−β)g.
        momentum: μ in [0, 1) on the normalised gradient: b ← μb + g/(√v + ε), w ← w − γb.
        momentum_before: λ in [0, 1) on the gradient: m ← λm + g, w ← w − γ·m/(√v + ε); neither with ``momentum`` nor
            ``centered``.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, or a combination that has no formula.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012; centered: Graves, "Generating Sequences
    With Recurrent Neural Networks", 2013, eq. 38-45.

    >>> w = np.array([1.0, -2.0]); opt = rv.RMSprop(w, lr=0.1)
    >>> _ = opt.step(2 * w); w.round(3)
    array([ 0., -1.])
    """

    _shapes = frozenset({"first_square"})

    def __init__(
        self,
        params: Any,
        lr: Value = 0.01,
        *,
        decay: Value = 0.99,
        eps: Value = 1e-8,
        eps_inside: bool = False,
        first: Literal["zero", "square"] = "zero",
        centered: bool = False,
        momentum: Value = 0.0,
        momentum_before: Value = 0.0,
        **options: Unpack[Options],
    ) -> None:
        if first not in ("zero", "square"):
            raise ValueError(f"first: expected 'zero' or 'square', got {first!r}")
        after, before = (callable(value) or value != 0 for value in (momentum, momentum_before))
        if before and (after or centered):
            raise ValueError("momentum_before: cannot be combined with momentum or centered; choose one")
        rule = "rmsprop" + "_centered" * bool(centered) + "_momentum" * (after or before) + "_before" * before
        hyper = {"lr": lr, "decay": decay, "eps": eps, "eps_inside": eps_inside, "first_square": first == "square"}
        if after or before:
            hyper |= {"momentum": momentum} if after else {"momentum_before": momentum_before}
        super().__init__(params, rule, hyper, options)


class Adam(Optimizer):
    r"""Adaptive moments: momentum over a running root mean square, both corrected for their start at 0.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        w \leftarrow w - \gamma\, \hat m / (\sqrt{\hat v} + \epsilon)

    with :math:`\hat m = m/(1-\beta_1^t)` and :math:`\hat v = v/(1-\beta_2^t)`, t this parameter's number of updates.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-3), or a schedule.
        betas: (β₁, β₂), each in [0, 1), the weights of the past (0.9, 0.999); each may be a schedule.
        eps: ε ≥ 0 (1e-8), added to √v̂. Where the denominator is 0 the update is 0.
        eps_inside: √(v̂ + ε) in place of √v̂ + ε.
        eps_hat: the paper's shorter form, γ√(1−β₂ᵗ)/(1−β₁ᵗ)·m/(√v + ε): ε before the correction (Keras, Chainer).
        bias_correction: False takes m and v for m̂ and v̂; the first step is then (1−β₁)/√(1−β₂) = 3.16 times as long.
        amsgrad: the largest v so far in place of v (of the uncorrected v, as in torch).
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, or a combination that has no formula.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, Algorithm 1 and the end of section 2;
    amsgrad: Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", 2018, Algorithm 2.

    >>> w = np.array([1.0, -2.0]); opt = rv.Adam(w, lr=0.1)
    >>> _ = opt.step(2 * w); w.round(6)
    array([ 0.9, -1.9])
    """

    _shapes = frozenset({"eps_inside", "eps_hat"})

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        *,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        eps_inside: bool = False,
        eps_hat: bool = False,
        bias_correction: bool = True,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if eps_inside and eps_hat:
            raise ValueError("eps_hat: cannot be combined with eps_inside; ε stands in one place")
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        hyper |= {"bias_correction": bias_correction, "eps_inside": eps_inside, "eps_hat": eps_hat}
        super().__init__(params, "adam_amsgrad" if amsgrad else "adam", hyper, options)


class AdamW(Adam):
    r"""Adam with decoupled weight decay, on by default.

    .. math:: w \leftarrow (1-\gamma\lambda)\, w - \gamma\, \hat m / (\sqrt{\hat v} + \epsilon)

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-3), or a schedule.
        weight_decay: λ ≥ 0 (0.01), multiplied by γ, on the old w.
        options: those of :class:`Adam`, and :class:`Options`.

    Raises:
        ValueError: a value out of range, or a combination that has no formula.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, Algorithm 2, with γ in the place of
    both its α and its schedule multiplier, as torch and optax do.

    >>> w = np.array([1.0, -2.0]); opt = rv.AdamW(w, lr=0.1, weight_decay=0.5)
    >>> _ = opt.step(2 * w); w.round(6)
    array([ 0.85, -1.8 ])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        *,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.01,
        eps_inside: bool = False,
        eps_hat: bool = False,
        bias_correction: bool = True,
        amsgrad: bool = False,
        **options: Unpack[OptionsButDecay],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas=betas,
            eps=eps,
            eps_inside=eps_inside,
            eps_hat=eps_hat,
            bias_correction=bias_correction,
            amsgrad=amsgrad,
            weight_decay=weight_decay,
            **options,
        )


class Lion(Optimizer):
    r"""The sign of an interpolated momentum: every element moves by γ.

    .. math:: w \leftarrow w - \gamma\, \mathrm{sign}(\beta_1 m + (1-\beta_1) g), \qquad
        m \leftarrow \beta_2 m + (1-\beta_2) g

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-4), or a schedule; a third to a tenth of what Adam needs.
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.99); each may be a schedule.
        options: see :class:`Options`; its weight decay is decoupled, and wants 3 to 10 times Adam's.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, Algorithm 2.

    >>> w = np.array([1.0, -2.0, 0.0]); opt = rv.Lion(w, lr=0.1)
    >>> _ = opt.step(2 * w); w
    array([ 0.9, -1.9,  0. ])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-4,
        *,
        betas: tuple[Value, Value] = (0.9, 0.99),
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas}
        super().__init__(params, "lion", hyper, options)


class SignSGD(Optimizer):
    r"""The sign of the gradient: every element moves by γ.

    .. math:: w \leftarrow w - \gamma\, \mathrm{sign}(g)

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-4), or a schedule. Near a minimum every element goes to and fro by γ, so let it fall.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Bernstein, Wang, Azizzadenesheli and Anandkumar, "signSGD: Compressed Optimisation for Non-Convex Problems",
    2018, Algorithm 1.

    >>> w = np.array([1.0, -2.0, 0.0]); opt = rv.SignSGD(w, lr=0.25)
    >>> _ = opt.step(2 * w); w
    array([ 0.75, -1.75,  0.  ])
    """

    def __init__(self, params: Any, lr: Value = 1e-4, **options: Unpack[Options]) -> None:
        super().__init__(params, "sign_sgd", {"lr": lr}, options)


class Signum(Optimizer):
    r"""The sign of a running mean of gradients: every element moves by γ.

    .. math:: m \leftarrow \mu m + (1-\mu) g, \qquad w \leftarrow w - \gamma\, \mathrm{sign}(m)

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-4), or a schedule.
        momentum: μ in [0, 1) (0.9), or a schedule; 0 is :class:`SignSGD` with a state. :class:`Lion` uses two.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Bernstein, Wang, Azizzadenesheli and Anandkumar, "signSGD: Compressed Optimisation for Non-Convex Problems",
    2018, Algorithm 2.

    >>> w = np.array([1.0, -2.0, 0.0]); opt = rv.Signum(w, lr=0.25)
    >>> _ = opt.step(2 * w); w
    array([ 0.75, -1.75,  0.  ])
    """

    def __init__(self, params: Any, lr: Value = 1e-4, *, momentum: Value = 0.9, **options: Unpack[Options]) -> None:
        super().__init__(params, "signum", {"lr": lr, "momentum": momentum}, options)


class Adamax(Optimizer):
    r"""Adam with the largest of the decayed gradients in place of their root mean square.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad u \leftarrow \max(\beta_2 u,\, |g| + \epsilon), \quad
        w \leftarrow w - \frac{\gamma}{1-\beta_1^t} \frac{m}{u}

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (2e-3), or a schedule.
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999); each may be a schedule.
        eps: ε ≥ 0 (1e-8), added to |g| as in torch; 0 is the paper's. Where u is 0 the update is 0.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, Algorithm 2.

    >>> w = np.array([1.0, -2.0]); opt = rv.Adamax(w, lr=0.1)
    >>> _ = opt.step(2 * w); w.round(6)
    array([ 0.9, -1.9])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 2e-3,
        *,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__(params, "adamax", hyper, options)


class Adadelta(Optimizer):
    r"""Scale each gradient by the root mean square of past updates over that of past gradients.

    .. math:: v \leftarrow \rho v + (1-\rho) g^2, \quad d = \frac{\sqrt{u + \epsilon}}{\sqrt{v + \epsilon}}\, g, \quad
        u \leftarrow \rho u + (1-\rho) d^2, \quad w \leftarrow w - \gamma d

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1), or a schedule; the paper has none.
        rho: ρ in [0, 1) (0.9), the weight of the past, or a schedule.
        eps: ε ≥ 0 (1e-6), in both roots. It sets the first steps, of √(ε/(1−ρ)) whatever g is: with 0 nothing moves.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, Algorithm 1.

    >>> w = np.array([1.0, -2.0]); opt = rv.Adadelta(w, rho=0.75, eps=0.04)
    >>> _ = opt.step(np.array([0.8, 0.0])); w  # v = 0.16, d = 0.2/√0.2·0.8
    array([ 0.64222912, -2.        ])
    """

    def __init__(
        self, params: Any, lr: Value = 1.0, *, rho: Value = 0.9, eps: Value = 1e-6, **options: Unpack[Options]
    ) -> None:
        super().__init__(params, "adadelta", {"lr": lr, "rho": rho, "eps": eps}, options)


class NAdam(Optimizer):
    r"""Adam that looks ahead by one step of a momentum that warms up.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        w \leftarrow w - \frac{\gamma}{\sqrt{\hat v} + \epsilon} \left(\frac{1-\mu_t}{1-\prod_{i \le t} \mu_i}\, g
        + \frac{\mu_{t+1}}{1-\prod_{i \le t+1} \mu_i}\, m\right)

    with :math:`\mu_t = \beta_1 (1 - \tfrac12 \cdot 0.96^{\psi t})` and :math:`\hat v = v/(1-\beta_2^t)`.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (2e-3), or a schedule.
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999); each may be a schedule. The product is computed as if β₁ and ψ had
            always been what they are.
        eps: ε ≥ 0 (1e-8), added to √v̂. Where the denominator is 0 the update is 0.
        momentum_decay: ψ ≥ 0 (4e-3), how fast μ rises from β₁/2 to β₁: half of the way takes 17/ψ updates.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", 2016, Algorithm 2, with the momentum of its experiments,
    as torch does.

    >>> w = np.array([1.0, -2.0]); opt = rv.NAdam(w, lr=0.5, betas=(0.0, 0.999), eps=0)  # β₁ = 0: by γ
    >>> _ = opt.step(2 * w); w.round(6)
    array([ 0.5, -1.5])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 2e-3,
        *,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        momentum_decay: Value = 4e-3,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "momentum_decay": momentum_decay}
        super().__init__(params, "nadam", hyper, options)


class RAdam(Optimizer):
    r"""Adam that divides by √v̂ only once it has seen enough squares, rectified for how few they were.

    .. math:: \rho_\infty = \frac{2}{1-\beta_2} - 1, \qquad \rho = \rho_\infty - \frac{2 t \beta_2^t}{1-\beta_2^t},
        \qquad r = \sqrt{\frac{(\rho-4)(\rho-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho}}

    .. math:: w \leftarrow w - \gamma \hat m\, r \sqrt{1-\beta_2^t} / (\sqrt v + \epsilon)
        \;\text{ if } \rho > 5, \text{ else }\; w \leftarrow w - \gamma \hat m

    with m, v and :math:`\hat m = m/(1-\beta_1^t)` as in :class:`Adam`.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-3), or a schedule.
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999); each may be a schedule. At 0.999 the first 5 updates do not
            divide, so their size is the gradient's; up to 2/3 none does.
        eps: ε ≥ 0 (1e-8), added to √v as in torch; the paper has none. Where the denominator is 0 the update is 0.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", 2020, Algorithm 2, with a threshold
    of 5 as in torch; the algorithm says 4.

    >>> w = np.array([1.0, -2.0]); opt = rv.RAdam(w, lr=0.25)  # the first update is γg
    >>> _ = opt.step(2 * w); w.round(6)
    array([ 0.5, -1. ])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        *,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__(params, "radam", hyper, options)


class Rprop(Optimizer):
    r"""A step size for each element: it grows while the gradient keeps its sign, and shrinks when that changes.

    .. math:: s \leftarrow \min(\max(s \cdot \eta, s_{\min}), s_{\max}), \qquad
        w \leftarrow w - s\, \mathrm{sign}(g) \text{, but not where the sign has changed}

    η is η₊ where g has the sign that it had, η₋ where it has the other one, and 1 where one of both is 0; after a
    change of sign the next update counts as if the gradient had been 0. For full batches: noise changes signs, too.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (0.01), all step sizes before the first update; a later change does nothing, but for ``weight_decay``.
        etas: (η₋, η₊), in [0, 1) and ≥ 1 (0.5, 1.2); each may be a schedule.
        step_sizes: (s_min, s_max), each ≥ 0 (1e-6, 50); each may be a schedule.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm",
    1993, without its backtracking, as torch does: iRprop⁻ of Igel and Hüsken, "Improving the Rprop Learning Algorithm",
    2000.

    >>> w = np.array([1.0, -2.0]); opt = rv.Rprop(w, lr=0.25, etas=(0.5, 2.0))
    >>> for _ in range(2): _ = opt.step(2 * w)  # by 0.25, then by 0.5
    >>> w
    array([ 0.25, -1.25])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-2,
        *,
        etas: tuple[Value, Value] = (0.5, 1.2),
        step_sizes: tuple[Value, Value] = (1e-6, 50.0),
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "etas": etas, "step_sizes": step_sizes}
        super().__init__(params, "rprop", hyper, options)


class AdaBelief(Optimizer):
    r"""Adam that divides by how far gradients lie from their own running mean.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2)(g - m)^2 + \epsilon,
        \quad w \leftarrow w - \gamma\, \hat m / (\sqrt{\hat v} + \epsilon)

    with :math:`\hat m = m/(1-\beta_1^t)` and :math:`\hat v = v/(1-\beta_2^t)`.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-3), or a schedule.
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999); each may be a schedule.
        eps: ε ≥ 0 (1e-16, as in the authors' code), in both places, and summed up in v: in the long run it weighs
            ε/(1−β₂) there. Where the denominator is 0 the update is 0.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", 2020,
    Algorithm 2.

    >>> w = np.array([1.0, -2.0]); opt = rv.AdaBelief(w, lr=0.1, betas=(0.5, 0.9))  # m = g/2, g − m = g/2
    >>> _ = opt.step(2 * w); w.round(6)
    array([ 0.8, -1.8])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        *,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-16,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__(params, "adabelief", hyper, options)


class Yogi(Optimizer):
    r"""Adam whose second moment moves by (1−β₂)g² towards g², however far away it is.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow v - (1-\beta_2)\, \mathrm{sign}(v - g^2)\,
        g^2, \quad w \leftarrow w - \gamma\, m / (\sqrt{v} + \epsilon)

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (0.01), or a schedule.
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999); each may be a schedule.
        eps: ε ≥ 0 (1e-3), added to √v. Where the denominator is 0 the update is 0.
        bias_correction: m/(1−β₁ᵗ) and v/(1−β₂ᵗ) in place of m and v, as optax does; the paper has none (False).
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Zaheer et al., "Adaptive Methods for Nonconvex Optimization", 2018, Algorithm 2. m and v start at 0 as
    there; optax starts both at 1e-6.

    >>> w = np.array([1.0, -2.0]); opt = rv.Yogi(w, lr=0.1, eps=0, bias_correction=True)
    >>> _ = opt.step(2 * w); w.round(6)
    array([ 0.9, -1.9])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 0.01,
        *,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-3,
        bias_correction: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "bias_correction": bias_correction}
        super().__init__(params, "yogi", hyper, options)


class AdEMAMix(Optimizer):
    r"""Adam with a second, much slower mean of gradients beside the first.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad n \leftarrow \beta_3 n + (1-\beta_3) g, \quad
        v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        w \leftarrow w - \gamma\, (\hat m + \alpha n) / (\sqrt{\hat v} + \epsilon)

    with :math:`\hat m = m/(1-\beta_1^t)` and :math:`\hat v = v/(1-\beta_2^t)`; n is not corrected.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-3), or a schedule.
        betas: (β₁, β₂, β₃), each in [0, 1) (0.9, 0.999, 0.9999); each may be a schedule. In the
            paper β₃ rises from β₁ in T steps: log β₁·log β₃/((1 − t/T)·log β₃ + t/T·log β₁) is the logarithm at t.
        eps: ε ≥ 0 (1e-8), added to √v̂. Where the denominator is 0 the update is 0.
        alpha: α ≥ 0 (5), the weight of the slow mean, or a schedule; 4 to 10 in the paper, which lets it rise linearly:
            ``rv.schedules.warmup(T) * 5.0``.
        options: see :class:`Options`; decay is off by default.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", 2024, Algorithm 1.

    >>> w = np.array([1.0, -2.0]); opt = rv.AdEMAMix(w, lr=0.1, betas=(0.9, 0.999, 0.5), alpha=1.0)
    >>> _ = opt.step(2 * w); w.round(6)  # m̂ = g, n = g/2, √v̂ = |g|
    array([ 0.85, -1.85])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        *,
        betas: tuple[Value, Value, Value] = (0.9, 0.999, 0.9999),
        eps: Value = 1e-8,
        alpha: Value = 5.0,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "alpha": alpha}
        super().__init__(params, "ademamix", hyper, options)


class ADOPT(Optimizer):
    r"""Divide each gradient by the second moment as it was before, then take momentum.

    .. math:: n = \mathrm{clip}\!\left(\frac{g}{\max(\sqrt v, \epsilon)},\, \pm (t-1)^{1/4}\right), \quad
        m \leftarrow \beta_1 m + (1-\beta_1) n, \quad w \leftarrow w - \gamma m, \quad
        v \leftarrow \beta_2 v + (1-\beta_2) g^2

    The first gradient only makes v = g²: the parameters do not move, but by weight decay.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-3), or a schedule.
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.9999); each may be a schedule.
        eps: ε ≥ 0 (1e-6), the least denominator. Where the denominator is 0 the update is 0.
        clip: limit n as above (True); False is Algorithm 1, which divides by ε after a first gradient of 0.
        options: see :class:`Options`.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal Rate", 2024, Algorithm 2;
    the paper's t is 0 at the first gradient.

    >>> w = np.array([1.0, -2.0]); opt = rv.ADOPT(w, lr=0.5, betas=(0.5, 0.9999))
    >>> for _ in range(2): _ = opt.step(2 * w)  # v = g²; n = sign(g), m = n/2
    >>> w
    array([ 0.75, -1.75])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        *,
        betas: tuple[Value, Value] = (0.9, 0.9999),
        eps: Value = 1e-6,
        clip: bool = True,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "clip": clip}
        super().__init__(params, "adopt", hyper, options)


class Adan(Optimizer):
    r"""Adam with a mean of the gradients' differences, which looks ahead without a second gradient.

    .. math:: d = g - g^-, \quad m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) d,
        \quad n \leftarrow \beta_3 n + (1-\beta_3)(g + \beta_2 d)^2

    .. math:: w \leftarrow w - \gamma\, (\hat m + \beta_2 \hat v) / (\sqrt{\hat n} + \epsilon)

    with :math:`g^-` the gradient before, d = 0 at the first, and :math:`\hat m = m/(1-\beta_1^t)`,
    :math:`\hat v = v/(1-\beta_2^t)`, :math:`\hat n = n/(1-\beta_3^t)`.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-3), or a schedule.
        betas: (β₁, β₂, β₃), each in [0, 1) (0.98, 0.92, 0.99), the weights of the past: 1 minus the paper's; each may
            be a schedule.
        eps: ε ≥ 0 (1e-8), added to √n̂. Where the denominator is 0 the update is 0.
        options: see :class:`Options`. ``weight_decay`` is (1 − γλ)·w as in all optimizers here; the paper divides the
            new w by 1 + γλ.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", 2022, Algorithm
    1, with the bias corrections of the authors' code; the algorithm has none.

    >>> w = np.array([1.0, -2.0]); opt = rv.Adan(w, lr=0.1)
    >>> _ = opt.step(2 * w); w.round(6)
    array([ 0.9, -1.9])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        *,
        betas: tuple[Value, Value, Value] = (0.98, 0.92, 0.99),
        eps: Value = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__(params, "adan", hyper, options)


class MADGRAD(Optimizer):
    r"""Average all gradients, step from where the run began, and divide by the cube root of their squares.

    .. math:: s \leftarrow s + \gamma \sqrt t\, g, \qquad v \leftarrow v + \gamma \sqrt t\, g^2, \qquad
        w \leftarrow \mu w + (1-\mu) \left(x_0 - \frac{s}{\sqrt[3]{v} + \epsilon}\right)

    x₀ is the parameter before its first update, and is kept: a change of w from outside is undone in the long run.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (0.01), or a schedule.
        momentum: μ in [0, 1) (0.9), or a schedule; the paper's c is 1 − μ.
        eps: ε ≥ 0 (1e-6), added to ∛v. Where the denominator is 0 that part of the update is 0.
        options: see :class:`Options`. The authors' code couples its decay: ``l2``. ``weight_decay`` pulls w to 0, and
            the rule pulls it back to x₀.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Defazio and Jelassi, "Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method
    for Stochastic Optimization", 2021, Algorithm 1.

    >>> w = np.array([1.0, -2.0]); opt = rv.MADGRAD(w, lr=0.125, momentum=0.0, eps=0.0)
    >>> _ = opt.step(np.array([8.0, -1.0])); w  # s = g/8, ∛v = ∛(g²/8): 2 and 1/2
    array([ 0.5 , -1.75])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 0.01,
        *,
        momentum: Value = 0.9,
        eps: Value = 1e-6,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, "madgrad", {"lr": lr, "momentum": momentum, "eps": eps}, options)


class _Averaging(Optimizer):
    """What optimizers share that keep an average of the parameters besides the parameters themselves."""

    def __init__(self, params: Any, rule: str, hyper: Mapping[str, Value], options: Options) -> None:
        super().__init__(params, rule, hyper, options)
        self._nesting = params

    def averages(self) -> Any:
        """Return the averages: new arrays, nested as the parameters are, in their dtypes.

        >>> w = {"w": np.array([1.0])}; opt = rv.ScheduleFreeSGD(w, lr=0.5, momentum=0.5)
        >>> for _ in range(2): _ = opt.step({"w": np.ones(1)})  # z: 0.5, then 0; x: 0.5, then 0.25
        >>> opt.averages(), w
        ({'w': array([0.25])}, {'w': array([0.125])})
        """
        engine = self._engine
        rows = zip(self._group_of, engine.parameters, engine.states, engine.updates, strict=True)
        made = iter([self._average(*row) for row in rows])
        nesting = [group["params"] for group in self._nesting] if _is_torch(self._nesting) else self._nesting
        return trees.map(lambda _: next(made), nesting)

    def _average(self, group: int, parameter: Any, states: Sequence[Any], t: int) -> Any:
        raise NotImplementedError


class ASGD(_Averaging):
    r"""Gradient descent with a rate that falls, and the average of the parameters it passes.

    .. math:: \eta = \frac{\gamma}{(1 + \kappa \gamma (t-1))^\alpha}, \qquad w \leftarrow (1 - \kappa\eta) w - \eta g,
        \qquad a \leftarrow a + \frac{w - a}{\max(1, t - 1 - t_0)}

    a is w itself until t₀ + 2 updates are done, then the mean of w; ``averages()`` returns it.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (0.01), or a schedule.
        lambd: κ ≥ 0 (1e-4), torch's λ: how fast η falls, and a decay of its own.
        alpha: α ≥ 0 (0.75), the power of the fall.
        t0: t₀ ≥ 0 (1e6), when averaging starts.
        options: see :class:`Options`; ``weight_decay`` takes (1 − γλ)·w, with γ and not η.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; η and κ are those of
    Bottou, "Large-Scale Machine Learning with Stochastic Gradient Descent", 2010, section 5, as torch writes them.

    >>> w = np.array([1.0]); opt = rv.ASGD(w, lr=0.5, lambd=0.0, t0=0.0)
    >>> for _ in range(3): _ = opt.step(np.ones(1))  # 0.5, 0, −0.5
    >>> w, opt.averages()
    (array([-0.5]), array([-0.25]))
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 0.01,
        *,
        lambd: Value = 1e-4,
        alpha: Value = 0.75,
        t0: Value = 1e6,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, "asgd", {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0}, options)

    def _average(self, group: int, parameter: Any, states: Sequence[Any], t: int) -> Any:
        return states[0].astype(parameter.dtype) if t else parameter.copy()


class ScheduleFreeSGD(_Averaging):
    r"""Gradient descent whose gradients are taken between a fast iterate and its average, in place of a schedule.

    .. math:: z \leftarrow z - \gamma_t (g + \lambda w), \qquad x \leftarrow (1 - c)\, x + c z, \qquad
        w = (1 - \mu) z + \mu x, \qquad c = \gamma_t^2 / \textstyle\sum_{i \le t} \gamma_i^2

    w is the parameter, where gradients are to be taken; x, which ``averages()`` returns, is what has learned: evaluate
    and keep that. Of both z and x only the difference is stored.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1), a constant: a schedule works, but its values do not weigh in c.
        momentum: μ in [0, 1) (0.9), a constant.
        warmup_steps: T ≥ 0 (0), a whole number: γₜ = γ·min(1, t/T).
        options: see :class:`Options`; ``weight_decay`` is λ above, of z alone.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Defazio et al., "The Road Less Scheduled", 2024, equations 3 to 5, with the warm-up of Algorithm 1.

    >>> w = np.array([1.0]); opt = rv.ScheduleFreeSGD(w, lr=0.5, momentum=0.5)
    >>> for _ in range(2): _ = opt.step(np.ones(1))  # z: 0.5, then 0; x: 0.5, then 0.25
    >>> w, opt.averages()
    (array([0.125]), array([0.25]))
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 1.0,
        *,
        momentum: Value = 0.9,
        warmup_steps: Value = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "momentum": momentum, "warmup_steps": warmup_steps}
        super().__init__(params, "schedule_free_sgd", hyper, options)

    def _average(self, group: int, parameter: Any, states: Sequence[Any], t: int) -> Any:
        return _less(parameter, 1.0 - self._engine.hyper(group, "momentum"), states[0])


class ScheduleFreeAdamW(_Averaging):
    r"""AdamW whose gradients are taken between a fast iterate and its average, in place of momentum and a schedule.

    .. math:: v \leftarrow \beta_2 v + (1-\beta_2) g^2, \qquad
        z \leftarrow z - \gamma_t \left(\frac{g}{\sqrt{\hat v} + \epsilon} + \lambda w\right), \qquad
        x \leftarrow (1 - c)\, x + c z, \qquad w = (1 - \beta_1) z + \beta_1 x

    with :math:`\hat v = v/(1-\beta_2^t)` and :math:`c = \gamma_t^2 / \sum_{i \le t} \gamma_i^2`. w is the parameter,
    where gradients are to be taken; x, which ``averages()`` returns, is what has learned: evaluate and keep that.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (2.5e-3), a constant: a schedule works, but its values do not weigh in c.
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999); β₁ a constant.
        eps: ε ≥ 0 (1e-8), added to √v̂. Where the denominator is 0 that part of the update is 0.
        warmup_steps: T ≥ 0 (0), a whole number: γₜ = γ·min(1, t/T).
        options: see :class:`Options`; ``weight_decay`` is λ above, of z alone, and off by default.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Defazio et al., "The Road Less Scheduled", 2024, Algorithm 1.

    >>> w = np.array([1.0, -2.0]); opt = rv.ScheduleFreeAdamW(w, lr=0.1)
    >>> _ = opt.step(2 * w); w.round(6), opt.averages().round(6)
    (array([ 0.9, -1.9]), array([ 0.9, -1.9]))
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 2.5e-3,
        *,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        warmup_steps: Value = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "warmup_steps": warmup_steps}
        super().__init__(params, "schedule_free_adamw", hyper, options)

    def _average(self, group: int, parameter: Any, states: Sequence[Any], t: int) -> Any:
        return _less(parameter, 1.0 - self._engine.hyper(group, "beta1"), states[0])


def _less(parameter: Any, factor: float, difference: Any) -> Any:
    """Return w − factor·d, computed in d's dtype."""
    return (parameter.astype(difference.dtype) - factor * difference).astype(parameter.dtype)
