"""The second driver: rules whose update of an element depends on the whole parameter that it is in.

The core does what it does for all rules, in two steps. The first prepares the gradients: it steps zeros in the
parameters' places at a rate of 1, so that signs, checks, clipping, and a momentum if the rule has one, leave in them
the negative of what is to be transformed. Then each is transformed, by the array library. The second step is plain
descent by what comes out: w ← w − (γλ·w + γ·u), with groups, schedules and any dtype. All that can be refused is
refused before the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ravine import _core, trees
from ravine.lock import StepLock
from ravine.optimizers import Optimizer
from ravine.report import StepInfo

__all__ = ["Driver", "WholeOptimizer"]

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "not_negative": (lambda x: 0 <= x < math.inf, "a finite number >= 0"),
    "not_positive": (lambda x: -math.inf < x <= 0, "a finite number <= 0"),
    "positive": (lambda x: 0 < x < math.inf, "a finite number > 0"),
    "fraction": (lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "finite": (math.isfinite, "a finite number"),
    "whole": (lambda x: 0 <= x <= 2**53 and x == int(x), "a whole number >= 0"),
    "switch": (lambda x: x in (0, 1), "0 or 1"),
}


class WholeOptimizer(Optimizer):
    """What optimizers share whose update needs a parameter as a whole."""

    #: The rule's hyperparameters with their ranges, the rate first, and its states.
    _rule_about: ClassVar[Mapping[str, Mapping[str, str]]]

    @property
    def _about(self) -> Mapping[Any, Mapping[str, str]]:
        return self._rule_about

    def _states(self) -> dict[str, dict[str, Any]]:
        driver: Any = self._engine
        states: dict[str, dict[str, Any]] = driver.named_states
        return states

    def _new_engine(self, params: Any, group_of: Callable[[list[str]], list[int]]) -> Any:
        return Driver(self, params, group_of)

    def _checked_precision(self, states: str | None) -> None:
        if states is not None:
            raise ValueError(f"states: {type(self).__name__} keeps its states in full, got {states!r}; leave it out")

    @staticmethod
    def _last_line(step: str, decay: str | None) -> str:
        """Return the formula's last line: the step, and decay of the old parameter, ``"scaled"`` by the rate or not."""
        part = {None: "", "scaled": "γ·λ·w + ", "unscaled": "λ·w + "}[decay]
        return f"w ← w − ({part}{step})" if part else f"w ← w − {step}"

    # What a rule says.

    def _check_parameter(self, name: str, parameter: Any) -> None:
        """Refuse a parameter that the rule has no formula for."""

    def _new_states(self, parameter: Any, dtype: type) -> dict[str, Any]:
        """Make a parameter's states; ``dtype`` is what it computes in."""
        raise NotImplementedError

    def _preparation(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Give the hyperparameters of the rule that prepares the gradients, but the rate."""
        return {}

    #: That rule, and which of the states are its own.
    _prepared_by: str = "sgd"
    _prepared_states: tuple[str, ...] = ()

    def _update(
        self, parameter: Any, d: Any, states: Mapping[str, Any], numbers: Mapping[str, float], t: int
    ) -> tuple[Any, dict[str, Any]]:
        """Return u of the negative gradient d, in d's dtype, and states as they are to be; change nothing.

        ``t`` is the number of this parameter's update, 1 at the first.
        """
        raise NotImplementedError


@dataclass
class _Work:
    """A step whose gradients are prepared."""

    grads: Any
    prepared: dict[str, Any]
    #: Steps of the second kind before it.
    before: int
    #: What the counters will be.
    steps: int
    updates: list[int]
    done: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)


class Driver:
    """What `ravine._core.Engine` is to the others."""

    def __init__(self, opt: WholeOptimizer, params: Any, group_of: Callable[[list[str]], list[int]]) -> None:
        self._opt, self._backend, options = opt, opt._backend, opt._options
        self._limits = (options["clip_value"], options["clip_norm"], options["nonfinite"])
        self._clip_eps = options["clip_eps"]
        _core.Engine("sgd", {}, lambda _: [], lambda *_: [], *self._limits)  # refuses limits that are none

        def groups(names: list[str]) -> list[int]:
            self._groups = group_of(names)
            return self._groups

        # Without limits, which are the first step's; it takes float32 for half precision.
        # What follows the rule follows this; the transformed gradient saw a half-precision parameter as it is stored.
        self._core = self._backend.Engine(
            *("sgd", params, groups, lambda *_: [], None, None, "propagate", opt._after_rule(), 0.0, True),
            rounding=opt._rounding,
        )
        self.names: list[str] = self._core.names
        for name in self._core.complex_names:
            called = "params" if name == "params" else f"params[{name!r}]"
            kind = type(opt).__name__
            raise TypeError(
                f"{called}: expected real numbers, got complex ones, for which {kind} has no formula; give it an "
                "optimizer of its own, such as rv.AdamW"
            )
        for name, parameter in zip(self.names, self.parameters, strict=True):
            opt._check_parameter(name, parameter)
        self._numbers: list[dict[str, float]] = [{} for _ in range(max(self._groups, default=0) + 1)]
        self.named_states: dict[str, dict[str, Any]] = {
            name: opt._new_states(parameter, _computed(parameter))
            for name, parameter in zip(self.names, self.parameters, strict=True)
        }
        self.steps, self.updates = 0, [0] * len(self.names)
        self._lock = StepLock()

    @property
    def parameters(self) -> list[Any]:
        """The parameters, in order."""
        parameters: list[Any] = self._core.parameters
        return parameters

    @property
    def arrays(self) -> list[Any]:
        """The same: none is complex."""
        return self.parameters

    #: The names of those that hold complex numbers.
    complex_names: tuple[()] = ()

    @property
    def states(self) -> list[tuple[Any, ...]]:
        """The state arrays of each parameter, in order."""
        return [tuple(self.named_states[name].values()) for name in self.names]

    @property
    def lr(self) -> float:
        """The learning rate of the first group."""
        return self.hyper(0, "lr")

    @property
    def kept(self) -> list[dict[str, Any]]:
        """What is kept for each parameter besides, by name."""
        kept: list[dict[str, Any]] = self._core.kept
        return kept

    #: Σn of the gradients accumulated: none are.
    accumulated = None

    def accumulate(self, *_: Any) -> None:
        """Refuse."""
        raise TypeError(
            f"accumulate: {type(self._opt).__name__} takes one gradient a step; add them up, and pass the mean"
        )

    def step_accumulated(self, *_: Any) -> StepInfo:
        """Refuse, as an optimizer without accumulated gradients does."""
        raise ValueError("step: expected grads")

    def discard(self) -> None:
        """Do nothing: nothing is accumulated."""

    #: The products that correct biases: of no rule here.
    products: tuple[()] = ()

    def set_counters(self, steps: int, updates: list[int], _products: Any = None) -> None:
        """Set the number of steps completed, and how often each parameter was updated."""
        self._core.set_counters(steps, updates)
        self.steps, self.updates = steps, list(updates)

    def check_hyper(self, name: str, value: float) -> None:
        """Refuse a value out of range."""
        if name == "l2" and value:
            kind = type(self._opt).__name__
            raise ValueError(f"l2: {kind} has no coupled decay, got {value!r}; pass weight_decay, which is decoupled")
        own = self._opt._about["hyperparameters"]
        if name not in own:
            self._core.check_hyper(name, value)
            return
        inside, expected = _RANGES[own[name]]
        if not inside(value):
            raise ValueError(f"{name}: expected {expected}, got {value!r}")

    def set_hyper(self, group: int, name: str, value: float) -> None:
        """Set a value."""
        self.check_hyper(name, value)
        self._numbers[group][name] = value
        # Descent, decay and its form are the second step's; the sign was the first's, and l2 is 0.
        if name == "lr" or name not in (*self._opt._about["hyperparameters"], "maximize", "l2"):
            self._core.set_hyper(group, name, value)

    def hyper(self, group: int, name: str) -> float:
        """Return a value."""
        return self._numbers[group][name]

    def check(self, grads: Any) -> None:
        """Refuse gradients that do not fit; take none of them."""
        self._core.check(grads)

    def check_fresh(self, grads: Any) -> None:
        """Refuse gradients that were used by a step before, and that no backward has filled anew."""
        self._core.check_fresh(grads)

    def spend(self, grads: Any) -> None:
        """Take note that a step has used these gradients."""
        self._core.spend(grads)

    def step(
        self,
        grads: Any,
        values: list[tuple[int, str, float]] | None = None,
        grad_scale: float | None = None,
        skip: bool = False,
    ) -> StepInfo:
        """Do one step, with these values of (group, name) from now on; see `ravine.Optimizer.step`."""
        return self._lock.hold(lambda: self._locked_step(grads, values or [], grad_scale, skip))

    def _locked_step(
        self, grads: Any, values: list[tuple[int, str, float]], grad_scale: float | None, skip: bool
    ) -> StepInfo:
        if self._backend.capturing():
            raise RuntimeError(f"step: {type(self._opt).__name__} cannot be captured; step outside of the graph")
        self._core.check(grads, True)
        given = dict(_core.flatten(grads))
        prepared, first = self._preparing(given)
        first.check(given)
        for value in values:
            self.set_hyper(*value)
        for group, numbers in enumerate(self._numbers):
            for name, number in {"lr": 1.0, **self._opt._preparation(numbers)}.items():
                first.set_hyper(group, name, number)
            first.set_hyper(group, "maximize", numbers["maximize"])
        first.set_counters(self.steps, self.updates)
        updates = [t + (given[name] is not None) for name, t in zip(self.names, self.updates, strict=True)]
        there = {name: prepared[name] for name in self.names if given[name] is not None}
        work = _Work(grads, there, self._core.steps, self.steps + 1, updates)

        def whole() -> StepInfo:
            try:
                info = StepInfo(first.step(given, [], grad_scale, skip), lr=self.lr)
                if (skip or self._limits[2] != "propagate") and info.skipped:
                    if self._limits[2] == "raise" and not skip:
                        raise info.error()
                    self.spend(grads)
                    return info
                self._finish(work)
            except KeyboardInterrupt:  # of the caller's own; the step finishes, if anything was changed
                if first.steps > work.steps - 1:
                    _core.uninterrupted(lambda: self._finish(work), again=True)
                raise
            return info

        return _core.uninterrupted(whole)

    def _preparing(self, given: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Return zeros in the parameters' places, and bind them; without a gradient, an empty array keeps the place."""
        prepared, states = {}, []
        for name, parameter in zip(self.names, self.parameters, strict=True):
            here, dtype = given[name] is not None, _computed(parameter)
            prepared[name] = self._backend.zeros(parameter.shape if here else (0,), dtype)
            own = self.named_states[name]
            states.append([own[kind] if here else prepared[name].copy() for kind in self._opt._prepared_states])
        clip_value, clip_norm, nonfinite = self._limits
        of_each, policy = iter(states), "skip" if nonfinite == "raise" else nonfinite
        engine = self._backend.Engine(
            self._opt._prepared_by,
            prepared,
            lambda names: self._groups,
            lambda *_: next(of_each),
            clip_value,
            clip_norm,
            policy,
            None,
            self._clip_eps,
        )
        return prepared, engine

    def _finish(self, work: _Work) -> None:
        """Transform, descend and count; what an earlier call has done already is not done again."""
        of_each = dict(zip(self.names, zip(self.parameters, self._groups, work.updates, strict=True), strict=True))
        with np.errstate(all="ignore"):
            for name, d in work.prepared.items():
                if name not in work.done:
                    parameter, group, t = of_each[name]
                    update = self._opt._update if d.size else _nothing
                    work.done[name] = update(parameter, d, self.named_states[name], self._numbers[group], t)
        leaves = iter([work.done.get(name, (None,))[0] for name, _ in _core.flatten(work.grads)])
        if self._core.steps == work.before:
            self._core.step(trees.map(lambda _: next(leaves), work.grads))
        for name, (_, states) in work.done.items():
            for kind, state in states.items():
                self._backend.assign(self.named_states[name][kind], state)
        self.spend(work.grads)
        self.set_counters(work.steps, work.updates)


def _nothing(parameter: Any, d: Any, *_: Any) -> tuple[Any, dict[str, Any]]:
    return d, {}


def _computed(parameter: Any) -> type:
    return np.float64 if parameter.dtype == np.float64 else np.float32
