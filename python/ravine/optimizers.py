"""The optimizers: one class each, one ``step(grads)``."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import os
import pickle
import re
import textwrap
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self, TypeAlias, TypedDict, Unpack

import numpy as np

from ravine import _core, backends, checkpoint, conventions, sparse, trees
from ravine.averages import EMA, LATER, SWA, Lookahead, after_rule, rest_beside
from ravine.checkpoint.layout import listed
from ravine.groups import Group, GroupList, Past, Rates, checked_past, matches
from ravine.lock import StepLock
from ravine.loss_scale import DynamicLossScale

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
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
    "NovoGrad",
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

Correction: TypeAlias = Literal["product", "current"]
"""What corrects a bias where β changes: 1 − the product of those that were used, or 1 − βᵗ by the present one."""

Groups: TypeAlias = Sequence[tuple[str, Mapping[str, Any]]]
"""Pairs of a glob pattern on dotted names and the values that differ there; later pairs win."""


class OptionsButDecay(TypedDict, total=False):
    """What AdamW takes besides its own arguments: all of :class:`Options` but the decay, which is an argument there.

    Args:
        l2: coupled decay λ ≥ 0: g ← g + λ·w, before the rule sees g.
        maximize: ascend instead: g ← −g.
        clip_value: cut each element of the gradients off at ± this, > 0.
        clip_norm: scale all gradients together down to this global norm, > 0; ``math.inf`` only measures it, for
            ``info.grad_norm``.
        nonfinite: ``"propagate"``, ``"skip"`` (the step does not happen) or ``"raise"``, for gradients that hold NaN,
            inf or, in rules that square them, more than the root of the largest number.
        groups: ``[(pattern, {name: value})]``: values that differ for the parameters whose names match; ``lr_scale``
            there multiplies the rate, be it a number or a schedule's.
        lookahead: a :class:`ravine.Lookahead`: every k updates go only a part of the way.
        average: a :class:`ravine.EMA` or :class:`ravine.SWA` of the parameters, for :meth:`Optimizer.averages`.
        master: ``"float32"`` keeps an exact copy of each float16 or bfloat16 parameter, which is then its rounding: the
            step reads and writes the copy, and updates smaller than the parameter's last bit add up. Where a parameter
            is not its copy's rounding, it was changed from outside, and that element counts as it is. float32 and
            float64 parameters are their own. ``"split"``, for bfloat16 parameters, keeps only the 16 bits that the
            rounding loses, 2 bytes an element: parameter and remainder together are the exact copy. Ties are rounded
            away from 0; an element changed from outside counts as a number that is rounded to it.
        states: ``"bfloat16"`` or ``"8bit"`` keeps each state in 2 bytes an element, or in 1.02, rounded at random; what
            must be exact stays as it is. For parameters that compute in float32; see docs/states.md.
        rounding: ``"stochastic"``, for bfloat16 parameters without an exact copy: the new parameter, decay included, is
            computed in float32 and rounded up or down at random, the nearer the more likely, so that updates smaller
            than its last bit add up on average. ``"nearest"`` (the default) loses those below half of it.
        like: another system's formula and defaults: ``"torch"``, ``"keras"``, ``"optax"``, ``"chainer"``, ``"mlx"`` or
            ``"paper"``; see :mod:`ravine.conventions`. What you say overrides a default, and must not contradict the
            formula.
        clip_eps: ε ≥ 0 (0): ``clip_norm`` divides by ‖g‖ + ε. torch and MLX have 1e-6.
        decay_after: decoupled decay of the new w: with s the rule's step, w ← w − (s + γλ·(w − s)).
        decay_implicit: of the new w, with the decay in it: w ← w − (s + γλ·w)/(1 + γλ), which is (w − s)/(1 + γλ).
        decay_unscaled: λ in the place of γλ; a schedule of ``weight_decay`` is then its own.
    """

    l2: Value
    maximize: bool
    clip_value: float | None
    clip_norm: float | None
    nonfinite: Literal["propagate", "skip", "raise"]
    groups: Groups
    lookahead: Lookahead | None
    average: EMA | SWA | None
    master: Literal["float32", "split"] | None
    states: Literal["bfloat16", "8bit"] | None
    rounding: Literal["nearest", "stochastic"]
    like: conventions.System | None
    clip_eps: float
    decay_after: bool
    decay_implicit: bool
    decay_unscaled: bool


class Options(OptionsButDecay, total=False):
    """What every optimizer takes besides its own arguments.

    Args:
        weight_decay: decoupled decay λ ≥ 0: with s the rule's step, w ← w − (γλ·w + s), rounded once.
        l2, maximize, clip_value, clip_norm, nonfinite, groups: see :class:`OptionsButDecay`.
        lookahead, average, master, states, rounding, like, clip_eps: see :class:`OptionsButDecay`.
        decay_after, decay_implicit, decay_unscaled: see :class:`OptionsButDecay`.
    """

    weight_decay: Value


def _with_options(cls: type) -> str | None:
    """Give a class's docstring with all options in it, if it takes any: `help` is what a user looks at."""
    text = cls.__doc__
    found = text and re.search(r"^( *)options: (see|those of) .*:class:`(Options|OptionsButDecay)`", text, re.MULTILINE)
    if not text or not found or re.search(r"^ *Options:$", text, re.MULTILINE):
        return text
    rows = _arguments(OptionsButDecay)
    if found[2] == "those of":
        rows = {**_arguments(cls.__mro__[1]), **rows}
    elif found[3] == "Options":
        rows = {"weight_decay": _arguments(Options)["weight_decay"], **rows}
    own = {*_arguments(cls), *re.findall(r"``(\w+)`` is refused", text)}
    listed = "\n".join(row for name, row in rows.items() if name not in own)
    indent = found[1][4:]
    section = textwrap.indent(f"Options:\n{listed}\n\n", indent)
    raises = re.search(rf"^{indent}Raises:", text, re.MULTILINE)
    at = raises.start() if raises else len(text)
    return f"{text[:at]}{section}{text[at:]}"


def _arguments(cls: type) -> dict[str, str]:
    """Give what a class's docstring says of each argument, by name."""
    listed = inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")[2]
    block = re.match(r"(?:    .*\n?)*", listed)
    rows = re.split(r"^(?=    \w[^:]*: )", block[0] if block else "", flags=re.MULTILINE)
    return {row.strip().partition(":")[0]: row.rstrip() for row in rows if row.strip()}


#: The options that are numbers of a group, with their defaults.
_COMMON: dict[str, Value] = {
    "weight_decay": 0.0,
    "l2": 0.0,
    "maximize": False,
    "decay_after": False,
    "decay_implicit": False,
    "decay_unscaled": False,
}


class Optimizer:
    """What all optimizers share: binding parameters, groups, schedules, the step, and the state.

    The order of a step is fixed: unscale (``grad_scale``) → sign (``maximize``) → finite check → clip by value → clip
    by norm → coupled l2 → rule → its step, with decoupled decay, subtracted in one rounding → Lookahead → average →
    rounding to the parameter's dtype. Complex parameters are stepped as pairs of reals, their two parts.
    """

    #: Rules whose states hold where the parameter was, or lie about it: it must not be moved behind their back.
    _sequences: frozenset[str] = frozenset(
        {"heavy_ball", "asgd", "madgrad", "schedule_free_sgd", "schedule_free_adamw"}
    )
    #: Whether the averages stand in the parameters' place.
    _swapped = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Have the class take ``like=``, if there is a line for it in the table of conventions."""
        super().__init_subclass__(**arguments)
        conventions.take_like(cls)
        cls.__doc__ = _with_options(cls)

    def __init__(
        self,
        params: Any,
        rule: str,
        hyper: Mapping[str, Value],
        options: Options,
        correction: Correction = "product",
    ) -> None:
        self._check_names(options, {**OptionsButDecay.__annotations__, **Options.__annotations__}, "option")
        if options.get("like") is not None:
            raise ValueError(f"like: {type(self).__name__} has no conventions; give it to a class of this package")
        if options.get("decay_after") and options.get("decay_implicit"):
            raise ValueError("decay_implicit: cannot be combined with decay_after; both act on the new w")
        if options.get("clip_eps") and options.get("clip_norm") is None and not self._conventional:
            raise ValueError("clip_eps: expected clip_norm with it, got None")
        if correction not in ("product", "current"):
            raise ValueError(f"correction: expected 'product' or 'current', got {correction!r}")
        _check_limits(options)
        _check_params(params)
        defaults: dict[str, Any] = {**hyper, **_COMMON, **{k: v for k, v in options.items() if k in _COMMON}}
        given = params
        params, groups, self._torch_groups = _torch_groups(params, _checked_groups(options.get("groups")))
        self._rule = rule
        self._given = given
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
            "clip_eps": options.get("clip_eps", 0.0),
        }
        self._lookahead, self._averaging, self._master = self._after(options)
        self._precision = self._checked_precision(options.get("states"))
        after: dict[str, Any] = {"lookahead": self._lookahead, "average": self._averaging, "master": self._master}
        self._rounding: str = options.get("rounding", "nearest")
        after |= {"states": self._precision, "rounding": None if self._rounding == "nearest" else self._rounding}
        after |= {"correction": None if correction == "product" else correction}
        self._options |= {name: str(value) for name, value in after.items() if value is not None}
        self._engine: _core.Engine = self._new_engine(params, group_of)
        self._check_complex()
        if correction == "current":
            for group in range(len(self._values)):
                self._engine.set_hyper(group, "current_correction", 1.0)
        self._lock = StepLock()
        #: Whether a gradient was `RowSparse`: then the steps look for more of them.
        self._sparse = False
        self._scheduled = [
            (group, name, value)
            for group, values in enumerate(self._values)
            for name, value in _engine_values(values, self._about["hyperparameters"]).items()
            if callable(value)
        ]
        self._rates = Rates(self._values)
        for group, values in enumerate(self._values):
            if "lr_scale" in values:
                values["lr_scale"] = _factor("lr_scale", values["lr_scale"], least=0.0)
            for name, value in self._flat_values(group).items():
                if not callable(value):
                    self._check_number(group, name, number := _number(name, value))
                    self._put_number(group, name, number)
        self._start()

    def step(self, grads: Any = ..., *, grad_scale: float | DynamicLossScale | None = None) -> _core.StepInfo:
        """Update all parameters in place from their gradients.

        Args:
            grads: arrays in the same nesting as the parameters, of their shapes; only read. ``None`` in the place of an
                array leaves that parameter, its states and its update count as they are. Of a complex parameter
                z = x + iy it is ∂L/∂x + i·∂L/∂y, as torch has it; JAX's is the conjugate. :class:`RowSparse` is the
                gradient of some rows. A parameter without axes also takes NumPy's scalars of its dtype, and plain
                numbers. Left out: the mean of what `accumulate` was given since the last step.
            grad_scale: s in [2⁻¹²⁶, 2¹²⁶], if the gradients come multiplied by it. Before anything else g ← g·(1/s),
                with 1/s rounded once to the dtype that is computed in; exact for powers of two, but for results below
                the smallest normal number. A :class:`DynamicLossScale` gives its value, leaves the step out if a
                gradient is not finite, whatever ``nonfinite`` says, and changes its value afterwards.

        Returns:
            step (completed steps), lr (of the first parameter's group), grad_norm (unscaled, after clipping by value,
            before clipping by norm; None unless ``clip_norm`` is set), skipped (gradients that are not finite, or
            accumulated ones that all weigh 0: nothing was changed), nonfinite (None unless checked; else
            name → how many elements, C-order index of the first; of complex ones, how many of their parts).

        Raises:
            ValueError: names, shapes or memory that do not fit; a schedule or a scale out of range; neither or both of
                ``grads`` and accumulated gradients. Nothing was changed.
            TypeError: a gradient of another dtype. Nothing was changed.
            FloatingPointError: gradients that are not finite, under ``nonfinite="raise"``. Nothing was changed, but for
                accumulated gradients, which are gone.

        >>> w = np.array([1.0, 2.0]); opt = rv.SGD(w, lr=0.5)
        >>> opt.step(8 * w, grad_scale=8)
        StepInfo(step=1, lr=0.5, grad_norm=None, skipped=False, nonfinite=None)
        >>> w
        array([0.5, 1. ])
        """
        if self._swapped:
            self._check_own("step")
        careful = grad_scale is not None or grads is ... or self._scheduled or self._torch_groups or self._sparse
        try:
            return self._careful_step(grads, grad_scale) if careful else self._engine.step(grads)
        except (TypeError, ValueError):
            # Looked for here, so that dense steps do not pay for it.
            _check_alone(grads, self._params)
            if self._sparse or grads is ... or not sparse.has_rows(grads):
                raise
        self._sparse = True
        return self._careful_step(grads, grad_scale)

    #: Rules that do the same to a complex number as to its two parts.
    _linear: frozenset[str] = frozenset({"sgd", "momentum", "nesterov"})

    def _check_complex(self) -> None:
        """Refuse another system's formula for complex numbers."""
        if self._conventional == "optax" and self._rule not in self._linear:
            for name in self._engine.complex_names:
                called = "params" if name == "params" else f"params[{name!r}]"
                raise TypeError(
                    f"{called}: complex, where optax's {type(self).__name__} takes |g|, and this one each part on its "
                    "own, as torch's; leave like out"
                )

    def _after(self, options: Options) -> tuple[Lookahead | None, EMA | SWA | None, str | None]:
        """Return what follows the rule: each checked by its class, and that this optimizer can do it."""
        lookahead, average, master = (options.get(name) for name in ("lookahead", "average", "master"))
        if lookahead is not None and not isinstance(lookahead, Lookahead):
            raise TypeError(f"lookahead: expected a ravine.Lookahead or None, got {lookahead!r}")
        if average is not None and not isinstance(average, EMA | SWA):
            raise TypeError(f"average: expected a ravine.EMA, a ravine.SWA or None, got {average!r}")
        if master not in (None, "float32", "split"):
            raise ValueError(f"master: expected 'float32', 'split' or None, got {master!r}")
        if lookahead is not None and self._rule in self._sequences:
            raise ValueError(
                f"lookahead: the states of {type(self).__name__} (rule {self._rule!r}) refer to where the parameter "
                "was, and would take the way back for motion; use another rule"
            )
        return lookahead, average, master

    def _checked_precision(self, states: str | None) -> str | None:
        """Refuse to keep states in fewer bytes where there are none, or none that may be inexact."""
        kept, full = (_core.state_arrays(self._rule, (1,), "float32", way) for way in (states, None))
        if states is not None and kept == full:
            raise ValueError(
                f"states: {type(self).__name__} (rule {self._rule!r}) has no states that may be kept in fewer bytes, "
                f"got {states!r}; leave it out"
            )
        return states

    def _careful_step(self, grads: Any, grad_scale: float | DynamicLossScale | None) -> _core.StepInfo:
        """Step where Python code runs before the core's: no other thread may come in between."""
        return self._lock.hold(lambda: self._locked_step(grads, grad_scale))

    def _locked_step(self, grads: Any, grad_scale: float | DynamicLossScale | None) -> _core.StepInfo:
        self._check_torch_groups()
        values = self._schedule_values(self._engine.steps) if self._scheduled else []

        def step(scale: Any = None, skip: bool = False) -> _core.StepInfo:
            if grads is ...:
                return self._engine.step_accumulated(values, scale, skip)
            if self._sparse and sparse.has_rows(grads):
                info: _core.StepInfo = sparse.step(self, grads, values, scale, skip)
                return info
            return self._engine.step(grads, values, scale, skip)

        if isinstance(grad_scale, DynamicLossScale):
            return grad_scale._step(self, step)
        if grad_scale is None:
            return step()
        return step(_number("grad_scale", grad_scale, "a number or a DynamicLossScale"))

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
            None,
            self._options["clip_eps"],
        )
        for group in range(len(self._values)):
            for name in (*self._about["hyperparameters"], *_COMMON, "current_correction"):
                engine.set_hyper(group, name, self._engine.hyper(group, name))
        self._backend.copy_counters(engine, self._engine)
        return engine

    def accumulate(self, grads: Any, *, weight: float = 1.0) -> None:
        r"""Add the gradients of a micro-batch to those before; ``step()`` then takes their mean, and forgets them.

        .. math:: g = \frac{\sum_k n_k g_k}{\sum_k n_k}

        Sums are kept in float64 for float64 parameters, else in float32, and added in the order of the calls, each in
        one pass: n₁·g₁ + n₂·g₂ + …, every operation rounded once. The step multiplies by 1/Σn, or under ``grad_scale``
        by 1/(s·Σn), rounded once, before anything else; so all micro-batches of a step need the same scale. Their
        memory, one array a parameter, is asked for at the first call and kept. A step that is left out forgets them,
        too; so does loading.

        Args:
            grads: as of `step`; free to be overwritten afterwards. None adds nothing, but its weight counts; a
                parameter that never had a gradient has none in the step.
            weight: n, 0 or from 2⁻¹²⁶ to 2¹²⁶ (1): where the gradients are means, how many examples there were. With
                0, such as of a micro-batch that is masked as a whole, names, shapes and dtypes are checked; no number
                is read, so NaN does no harm, and the others' mean is as if it had not come. Where all are 0, the step
                is left out: it changes nothing, t and loss scale included, and says so in ``info.skipped``.

        Raises:
            ValueError: names, shapes or memory that do not fit; a weight out of range. Nothing was added.
            TypeError: a gradient of another dtype. Nothing was added.
            MemoryError: no room for the sums. Nothing was added.

        >>> w = np.array([1.0, 2.0]); opt = rv.SGD(w, lr=0.5)
        >>> opt.accumulate(np.array([1.0, 1.0])); opt.accumulate(np.array([3.0, 5.0]))
        >>> opt.step().step, w
        (1, array([0. , 0.5]))
        """
        self._check_torch_groups()

        def new_sum(parameter: Any, dtype: str) -> list[Any]:
            return [self._backend.zeros(parameter.shape, dtype)]

        self._engine.accumulate(grads, _number("weight", weight, "a number"), new_sum)

    def discard_accumulated(self) -> None:
        """Forget what `accumulate` was given since the last step."""
        self._engine.discard()

    def flush_moments(self, below: float) -> None:
        r"""Set moments that are nearer to 0 than this to 0.

        .. math:: m \leftarrow 0 \quad\text{where } |m| < \text{below}

        Moments of parameters whose gradients have ended decay until they are subnormal, which makes some processors
        slow. They are computed rightly all the same; this is for speed, now and then, with the same result on every
        backend. Copies of parameters among the states are left alone.

        Args:
            below: at least the smallest normal number of each state's dtype: 1.2e-38 in float32, 2.3e-308 in float64.

        Raises:
            ValueError: a smaller one, or one that is not finite. Nothing was changed.
            RuntimeError: averages stand in the parameters' place.

        >>> opt = rv.Adam(np.zeros(2)); _ = opt.step(np.array([1e-25, 1.0]))
        >>> opt.flush_moments(1e-30); opt.state_dict()["states"]["params"]["v"]
        array([0.   , 0.001])
        """
        self._check_own("flush_moments")
        if self._precision is not None:
            raise ValueError(f"flush_moments: expected states in full, got states={self._precision!r}")
        kinds = self._about["states"]
        states = [(state, kinds[kind]) for own in self._states().values() for kind, state in own.items()]
        moments = [state for state, kind in states if kind != "weight"]
        least = max((float(np.finfo(state.dtype).tiny) for state in moments), default=0.0)
        if not least <= below < math.inf:
            raise ValueError(f"below: expected a finite number >= {least}, the smallest normal one, got {below!r}")
        for state in moments:
            state[abs(state) < below] = 0

    def _check_torch_groups(self) -> None:
        for i, (group, params) in enumerate(self._torch_groups):
            if group["params"] is not params:
                raise ValueError(f"params[{i}]['params'] was replaced; assign into it, or make a new optimizer")

    @property
    def lr(self) -> float:
        """The learning rate, at the last step; setting it sets that of all parameters.

        It is the ``lr`` of the first parameter's group, before the group's ``lr_scale``, if it has one; ``info.lr`` is
        the product. Where groups have rates of their own, `scale_lr` multiplies all of them, and
        ``opt.groups[i]["lr"]`` sets one.

        Raises:
            ValueError: set where a schedule sets it, or where groups have different rates; out of range. Nothing was
                changed.
            TypeError: set to what is no number. Nothing was changed.
        """
        return self._rates.lr(0, self._engine.lr)  # which a step of another thread does not keep waiting

    @lr.setter
    def lr(self, value: float) -> None:
        value = _number("lr", value, "a number")
        if any(name == "lr" for _, name, _ in self._scheduled):
            raise ValueError(
                "lr: a schedule sets it; give the optimizer a number to set it by hand, or multiply it by "
                "opt.scale_lr(f)"
            )
        rates = [self._rate(group) for group in range(len(self._values))]
        if len({*rates}) > 1:
            raise ValueError(
                f"lr: expected groups with one rate, which this would set, got {_some(rates)}; multiply all of them by "
                'opt.scale_lr(f), or set each by opt.groups[i]["lr"] = …'
            )
        for group in range(len(self._values)):
            self._check_number(group, "lr", value)
        for group in range(len(self._values)):
            self._set_number(group, "lr", value)

    def scale_lr(self, factor: float) -> None:
        r"""Multiply the learning rates of all groups, from the next step on; their ratios stay.

        .. math:: \gamma_i \leftarrow f\, \gamma_i

        A group's ``lr`` is multiplied where it is a number, its ``lr_scale`` where a schedule sets ``lr``. Both are
        saved in checkpoints.

        Args:
            factor: f > 0.

        Raises:
            ValueError: a factor out of range, or a rate that would be. Nothing was changed.
            TypeError: a factor that is no number. Nothing was changed.

        >>> opt = rv.SGD({"w": np.ones(2), "b": np.ones(2)}, lr=0.5, groups=[("b", {"lr": 0.25})])
        >>> opt.scale_lr(0.5); [group["lr"] for group in opt.groups]
        [0.25, 0.125]
        """
        factor = _factor("factor", factor, least=math.ulp(0.0))
        scheduled = {group for group, name, _ in self._scheduled if name == "lr"}
        new = {}
        for group in range(len(self._values)):
            if group in scheduled:
                new[group, "lr_scale"] = self._checked_scale(group, self._rates.scale(group) * factor)
            else:
                new[group, "lr"] = self._rate(group) * factor
                self._check_number(group, "lr", new[group, "lr"])
        for (group, name), number in new.items():
            self._set_number(group, name, number)

    @property
    def groups(self) -> GroupList:
        """The hyperparameters as they are now, a mapping for each group; set them there, from the next step on.

        >>> opt = rv.AdamW(np.ones(3))
        >>> opt.groups[0]["betas"] = (0.5, 0.75); opt.groups[0]["betas"]
        (0.5, 0.75)
        """
        return GroupList(self)

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
        before = {
            (group, name): self._rate(group) if name == "lr" else self._engine.hyper(group, name)
            for group, name in changing
        }
        rates = [before[group, "lr"] for group in range(len(self._values))]
        ratios = [rate / rates[0] if rates[0] > 0 else 1.0 for rate in rates]

        def set_lr(value: float) -> None:
            for group, ratio in enumerate(ratios):
                self._put_number(group, "lr", value * ratio)

        def undo() -> None:
            self._scheduled = scheduled
            self.load_state_dict(state)
            # Loading asks the schedules about the next step; these are the last one's.
            for (group, name), value in before.items():
                self._put_number(group, name, value)

        try:
            self._scheduled = [entry for entry in scheduled if entry[1] != "lr"]
            yield set_lr
        finally:
            _core.uninterrupted(undo, again=True)

    @property
    def steps(self) -> int:
        """How many steps were completed."""
        return self._engine.steps

    @property
    def params(self) -> Any:
        """The parameters, in the very container that the optimizer was given; of a copied optimizer, copies of them.

        >>> w = {"w": np.ones(2)}; opt = rv.SGD(w, lr=0.5)
        >>> import copy; opt.params is w, copy.deepcopy(opt).params is w
        (True, False)
        """
        return self._given

    def formula(self) -> str:
        """Return the update as configured, from the very rule that runs.

        >>> print(rv.RMSprop(np.zeros(3), lr=0.01, l2=0.1).formula())
        g ← g + λ₂·w
        v ← β·v + (1 − β)·g²
        w ← w − γ·g/(√v + ε)
        γ = 0.01, β = 0.99, ε = 1e-08, λ₂ = 0.1
        """
        rule = self._about["hyperparameters"]
        scheduled: dict[str, Any] = {name: value for group, name, value in self._scheduled if group == 0}
        if "lr" in scheduled and (scale := self._rates.scale(0)) != 1:
            scheduled["lr"] = f"{scale}·({scheduled['lr']})"
        # What is 0 is left out, unless a schedule may change that.
        values = {name: math.nan if name in scheduled else self._engine.hyper(0, name) for name in [*rule, *_COMMON]}
        lines, symbols = [], {name: values[name] for name, kind in rule.items() if kind != "switch"}
        if values["maximize"]:
            lines.append("g ← −g")
        if self._options["clip_value"] is not None:
            lines.append(f"g ← min(max(g, −{self._options['clip_value']}), {self._options['clip_value']})")
        if (clip_norm := self._options["clip_norm"]) is not None and clip_norm < math.inf:
            eps = self._options["clip_eps"]
            lines.append(f"g ← g·min(1, {clip_norm}/{f'(‖g‖ + {eps})' if eps else '‖g‖'})")
        if values["l2"]:
            lines.append(f"g ← g + {_core.symbol('l2')}·w")
            symbols["l2"] = values["l2"]
        decays = values["weight_decay"] and "weight_decay" not in rule
        later = decays and (values["decay_after"] or values["decay_implicit"])
        form = "unscaled" if values["decay_unscaled"] else "scaled"
        lines += self._formula_lines(values, form if decays and not later else None)
        lines += [self._later_decay(values)] if later else []
        if decays:
            symbols["weight_decay"] = values["weight_decay"]
        lines += self._after_formula()
        text = "\n".join(lines)
        used = {n: value for n, value in symbols.items() if (value and _core.symbol(n) in text) or n == "lr"}
        lines.append(", ".join(f"{_core.symbol(name)} = {scheduled.get(name, value)}" for name, value in used.items()))
        return "\n".join(lines)

    def _formula_lines(self, values: Mapping[str, float], decay: str | None) -> list[str]:
        """Return the rule's own lines, with decay of the old parameter in the last, ``"scaled"`` by the rate or not."""
        given = dict(values)
        pasts = [
            zip(self._about["products"], past, [t] * len(past), strict=True)
            for group, past, t in zip(self._group_of, self._engine.products, self._engine.updates, strict=True)
            if group == 0
        ]
        given |= {name: math.nan for past in pasts for name, (_, constant, _), t in past if constant != t}
        if self._options.get("correction") == "current":  # any number is a constant
            given |= {name: 0.5 for name in self._about["products"] if math.isnan(given[name])}
        return _core.formula(self._rule, [given[name] for name in self._about["hyperparameters"]], decay).splitlines()

    @property
    def _about(self) -> Mapping[Any, Mapping[str, str]]:
        """The rule's hyperparameters and states."""
        return _core.rules()[self._rule]

    def _states(self) -> dict[str, dict[str, Any]]:
        """Give the arrays that are the states of each parameter, by name."""
        names = [name for name, *_ in _core.state_arrays(self._rule, (), "float32", self._precision)]
        engine = self._engine
        return {
            name: dict(zip(names, states, strict=True))
            for name, states in zip(engine.names, engine.states, strict=True)
        }

    def _new_engine(self, params: Any, group_of: Callable[[list[str]], list[int]]) -> Any:
        """Bind the parameters, with new states."""
        backend = self._backend
        new_states = backends.states_maker(backend, self._rule, self._precision)
        return backend.Engine(
            self._rule,
            params,
            group_of,
            lambda parameter, dtype: new_states(parameter.shape, dtype),
            self._options["clip_value"],
            self._options["clip_norm"],
            self._options["nonfinite"],
            self._after_rule(),
            self._options["clip_eps"],
            states=self._precision,
            rounding=self._rounding,
        )

    def _after_rule(self) -> Any:
        """Describe to an engine what follows the rule."""
        return after_rule(self._backend.zeros, lookahead=self._lookahead, average=self._averaging, master=self._master)

    def _later_decay(self, values: Mapping[str, Any]) -> str:
        lam = _core.symbol("weight_decay")
        part = lam if values["decay_unscaled"] else f"{_core.symbol('lr')}·{lam}"
        return f"w ← w/(1 + {part})" if values["decay_implicit"] else f"w ← (1 − {part})·w"

    def _after_formula(self) -> list[str]:
        lines = []
        if self._lookahead is not None:
            lines.append(f"w ← s + {self._lookahead.alpha}·(w − s), s ← w   every {self._lookahead.k} updates")
        if (average := self._averaging) is not None:
            c = "/n"
            if isinstance(average, EMA):
                decay = f"min({average.decay}, (1 + n)/(10 + n))" if average.warmup else f"{average.decay}"
                c = f"·(1 − {decay})"
            when = f", every {average.every} updates" if average.every > 1 else ""
            when += f", from {average.start} on" if average.start else ""
            lines.append(f"a ← a + (w − a){c}   point n{when}; a ← w at the first")
        return lines

    def averages(self) -> Any:
        """Return the averages of ``average=``: new arrays, nested as the parameters are, in their dtypes.

        What no point was counted of yet is the parameter itself. Averages of float16 and bfloat16 parameters in float32
        are in ``state_dict()``, as ``average``; ``average_rest`` is what that has lost to its own rounding.

        Raises:
            ValueError: an optimizer that keeps none.

        >>> w = {"w": np.array([4.0])}; opt = rv.SGD(w, lr=1.0, average=rv.SWA())
        >>> for _ in range(2): _ = opt.step({"w": np.ones(1)})  # 3, then 2
        >>> opt.averages(), w
        ({'w': array([2.5])}, {'w': array([2.])})
        """
        pairs, averages = self._engine.complex_names, zip(self._engine.names, self._averages(), strict=True)
        made = iter([backends.as_complex(a) if name in pairs else a for name, a in averages])
        return trees.map(lambda _: next(made), self._params)

    def _averages(self) -> list[Any]:
        """Return a new array for each parameter."""
        self._check_own("averages")
        if (average := self._averaging) is None:
            raise ValueError(f"averages: {type(self).__name__} keeps none; make it with average=rv.EMA(), or rv.SWA()")
        engine = self._engine
        rows = zip(engine.parameters, engine.kept, engine.updates, strict=True)
        return [
            kept["average"].astype(parameter.dtype) if t - average.start >= average.every else parameter.copy()
            for parameter, kept, t in rows
        ]

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """Put the averages in the parameters' place, to evaluate with them.

        In the end the parameters are back, bit for bit, after an exception, too. What is written to them meanwhile is
        lost. Takes room for a copy of the parameters. ``step``, ``save``, ``load`` and their like raise meanwhile.

        Raises:
            ValueError: an optimizer that keeps no averages.
            RuntimeError: the averages are there already.

        >>> w = np.array([4.0]); opt = rv.SGD(w, lr=1.0, average=rv.SWA())
        >>> for _ in range(2): _ = opt.step(np.ones(1))
        >>> with opt.averaged_parameters(): print(w)
        [2.5]
        >>> w
        array([2.])
        """
        averages = self._averages()
        own = [parameter.copy() for parameter in self._engine.parameters]

        def undo() -> None:
            self._put(own)
            self._swapped = False

        self._swapped = True
        try:
            self._put(averages)
            yield
        finally:
            _core.uninterrupted(undo, again=True)

    def _put(self, values: list[Any]) -> None:
        for parameter, value in zip(self._engine.parameters, values, strict=True):
            self._backend.assign(parameter, value)

    def _check_own(self, what: str) -> None:
        """Refuse what would take the averages for the parameters."""
        if self._swapped:
            raise RuntimeError(
                f"{what}: the averages stand in the parameters' place; leave averaged_parameters() first"
            )

    def _arrays(self) -> dict[str, dict[str, Any]]:
        """Give, of each parameter, the states and what else is kept, by their names."""
        states, engine = self._states(), self._engine
        return {name: {**states[name], **kept} for name, kept in zip(engine.names, engine.kept, strict=True)}

    def _settle_masters(self) -> None:
        """Take changes from outside into the exact copies, as the next step would."""
        for parameter, kept in zip(self._engine.parameters, self._engine.kept, strict=True):
            if "master" in kept:
                p, master = backends.cpu.put(parameter), backends.cpu.put(kept["master"])
                with np.errstate(all="ignore"):
                    changed = master.astype(p.dtype).view(np.uint16) != np.asarray(p, order="C").view(np.uint16)
                if changed.any():
                    self._backend.assign(kept["master"], np.where(changed, p.astype(np.float32), master))

    def _round_masters(self, names: Collection[str]) -> None:
        """Make those of these parameters that have an exact copy its rounding."""
        engine = self._engine
        for name, parameter, kept in zip(engine.names, engine.parameters, engine.kept, strict=True):
            if name in names and "master" in kept:
                with np.errstate(all="ignore"):
                    self._backend.assign(parameter, backends.cpu.put(kept["master"]).astype(parameter.dtype))

    def _with_masters_as_here(
        self, state: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
    ) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """Split exact copies where remainders are kept, and join remainders and parameters where copies are.

        The other result are the parameters' upper halves where a copy was split. What does not fit is left as it is.
        """
        given = state.get("states")
        uppers: dict[str, Any] = {}
        if not isinstance(given, Mapping):
            return state, uppers
        made = dict(given)
        for name, parameter in zip(self._engine.names, self._engine.parameters, strict=True):
            here, there = own[name], given.get(name)
            if not isinstance(there, Mapping) or parameter.dtype.name != "bfloat16":
                continue
            there = dict(there)
            if "remainder" in here and "remainder" not in there and _is(there.get("master"), parameter, "float32"):
                uppers[name], there["remainder"] = _split(backends.cpu.put(there.pop("master")), parameter.dtype)
            elif "master" in here and "master" not in there and _is(there.get("remainder"), parameter, "int16"):
                there["master"] = _joined(*map(backends.cpu.put, (parameter, there.pop("remainder"))))
            made[name] = there
        return {**state, "states": made}, uppers

    #: What a copy makes anew.
    _not_copied: frozenset[str] = frozenset({"_engine", "_lock", "_backend"})

    def __getstate__(self) -> dict[str, Any]:
        self._check_own("copy")
        for name, leaf in _core.flatten(self._params):
            if isinstance(leaf, memoryview):
                raise TypeError(f"copy: params[{name!r}]: a memoryview has no copy of its kind; use np.asarray(it)")
        engine, parts = self._engine, {**self._about["hyperparameters"], **_COMMON}
        attributes = {name: value for name, value in vars(self).items() if name not in self._not_copied}
        pending = None
        if engine.accumulated is not None:
            pending = engine.accumulated, [x if x is None else x.copy() for x in engine.sums]
        return {
            "attributes": attributes,
            "state": self._state(),
            "numbers": [{part: engine.hyper(group, part) for part in parts} for group in range(len(self._values))],
            "accumulated": pending,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state["attributes"])
        self._backend, self._lock = backends.backend_for(self._params), StepLock()
        self._engine = engine = self._new_engine(self._params, lambda names: self._group_of)
        self._take_state(state["state"])
        for group, numbers in enumerate(state["numbers"]):
            for part, number in numbers.items():
                engine.set_hyper(group, part, number)
        if state["accumulated"]:
            weight, sums = state["accumulated"]
            xp = backends.array_module(engine.arrays[0])
            rows = zip(engine.arrays, sums, strict=True)
            zeros = iter([x if x is None else xp.zeros_like(w) for w, x in rows])
            self.accumulate(trees.map(lambda _: next(zeros), self._params), weight=weight)
            for here, there in zip(engine.sums, sums, strict=True):
                if there is not None:
                    self._backend.assign(here, there)

    def __reduce_ex__(self, protocol: Any) -> Any:
        for group, name, schedule in self._scheduled:
            try:
                pickle.dumps(schedule)
            except Exception as error:
                raise pickle.PicklingError(
                    f"{name} of groups[{group}]: {schedule!r} cannot be pickled ({error}); use a schedule of "
                    "ravine.schedules, or a function of a module"
                ) from error
        return super().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = memo[id(self)] = object.__new__(type(self))
        state = self.__getstate__()
        twin.__setstate__(state | {"attributes": copy.deepcopy(state["attributes"], memo)})
        return twin

    def __copy__(self) -> Self:
        return copy.deepcopy(self)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that a run needs to go on, bit for bit: plain dicts of arrays and numbers.

        Where a rule corrects biases, ``products`` has for each β of each parameter: ``base``, what it was in the first
        ``constant`` updates, and ``rest``, the product of those that were used since. Without it β counts as constant.
        States of complex parameters, which ``complex`` names, have a last axis of 2, the real and the imaginary part.

        >>> opt = rv.Adam({"w": np.ones(2)}); _ = opt.step({"w": np.ones(2)})
        >>> opt.state_dict()["updates"], sorted(opt.state_dict()["states"]["w"])
        ({'w': 1}, ['m', 'v'])
        """
        self._check_own("state_dict")
        self._check_nothing_accumulated("state_dict")
        return self._state()

    def _state(self) -> dict[str, Any]:
        self._settle_masters()
        states = {name: {kind: array.copy() for kind, array in own.items()} for name, own in self._arrays().items()}
        updates = dict(zip(self._engine.names, self._engine.updates, strict=True))
        state = {"format": 1, "rule": self._rule, "step": self.steps, "updates": updates, "states": states}
        if pairs := list(self._engine.complex_names):
            state["complex"] = pairs
        if not self._about.get("products"):
            return state
        parts = ("base", "constant", "rest")
        products = {
            name: {key: dict(zip(parts, past, strict=True)) for key, past in pasts.items()}
            for name, pasts in self._products().items()
        }
        return {**state, "products": products}

    def _products(self) -> dict[str, dict[str, Past]]:
        """Give the products that are kept of each parameter, those that are known, by the names of their numbers."""
        keys, engine = self._about.get("products", {}), self._engine
        return {
            name: {key: past for key, past in zip(keys, pasts, strict=True) if past[0] >= 0}
            for name, pasts in zip(engine.names, engine.products or [[]] * len(engine.names), strict=True)
        }

    def _product_differences(self, state: Mapping[str, Any]) -> list[str]:
        products, keys, wrong = state.get("products", {}), self._about.get("products", {}), list[str]()
        if not isinstance(products, Mapping):
            return [f"products: expected a dict by parameter name, got {type(products).__name__}"]
        for name, pasts in products.items():
            if name not in state["updates"] or not isinstance(pasts, Mapping) or pasts.keys() - keys:
                wrong.append(f"products[{name!r}]: expected of a parameter a dict of {list(keys)}, got {pasts!r}")
                continue
            for key, past in pasts.items():
                try:
                    base, *_ = checked_past(past, int(state["updates"][name]))
                    self._engine.check_hyper(key, base)
                except (TypeError, ValueError) as error:
                    wrong.append(f"products[{name!r}][{key!r}]: {error}")
        return wrong

    def _complex_differences(self, state: Mapping[str, Any]) -> list[str]:
        """Tell complex numbers from real ones on two axes, which look the same among the states."""
        here, there = self._engine.complex_names, state.get("complex", [])
        if not isinstance(there, list | tuple):
            return [f"complex: expected a list of names, got {type(there).__name__}"]
        wrong = [f"complex: expected {name!r} among the names, got {list(there)}" for name in here if name not in there]
        return wrong + [f"complex: expected real numbers, got {name!r}" for name in there if name not in here]

    def _set_counters(self, steps: int, updates: Mapping[str, int], products: Mapping[str, Mapping[str, Past]]) -> None:
        """Set the counts of steps and updates, by name, and the products that are known."""
        names, keys = self._engine.names, self._about.get("products", {})
        counts = [int(updates[name]) for name in names]
        unknown = {name: (-1.0, t, 1.0) for name, t in zip(names, counts, strict=True)}
        pasts = [[products.get(name, {}).get(key, unknown[name]) for key in keys] for name in names]
        self._engine.set_counters(steps, counts, pasts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, matched by the parameters' names.

        Parameters that have an exact copy (``master``) become its rounding; others are not in a state. A remainder
        belongs to the parameter as it was then. Exact copies can be loaded as remainders, and the other way.

        Args:
            state: what ``state_dict`` returned; hyperparameters are this optimizer's own.

        Raises:
            ValueError: another rule, other names, shapes or dtypes, all of them listed. Nothing was changed.

        >>> a, b = rv.Adam(np.ones(2)), rv.Adam(np.ones(2))
        >>> _ = a.step(np.ones(2)); b.load_state_dict(a.state_dict()); b.steps
        1
        """
        names = self._engine.names
        self._check_own("load_state_dict")
        own = self._arrays()
        state, uppers = self._with_masters_as_here(state, own)
        wrong = _state_differences(state, self._rule, own) or self._product_differences(state)
        wrong += self._complex_differences(state)
        if wrong:
            raise ValueError(f"state: {listed(wrong)}. Nothing was loaded.")

        def take() -> None:
            for parameter, name in zip(self._engine.parameters, names, strict=True):
                if name in uppers:
                    self._backend.assign(parameter, uppers[name])
            self._take_state(state)
            self._round_masters(names)
            self._start()

        _core.uninterrupted(take, again=True)

    def _take_state(self, state: Mapping[str, Any]) -> None:
        """Write arrays and counts of a state that fits."""
        for name, own in self._arrays().items():
            given = state["states"][name]
            for kind, array in own.items():
                rest = kind == "average_rest"
                self._backend.assign(array, rest_beside(given["average"], given.get(kind)) if rest else given[kind])
        products = {
            name: {key: checked_past(past, int(state["updates"][name])) for key, past in pasts.items()}
            for name, pasts in state.get("products", {}).items()
        }
        self._set_counters(int(state["step"]), state["updates"], products)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        keep: int = 1,
        params: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Write all that a run needs to go on, bit for bit, to one safetensors file: whole, or not at all.

        The file is written beside its place, brought to the disk and renamed: killed, out of space or out of power, you
        have what was saved before, or this. See `ravine.checkpoint` for what stands in it.

        Args:
            path: the file, in a folder that exists; replaced if it is there. Of a link, what it leads to is replaced.
            keep: how many files to have in the end, ≥ 1 (1): with 3, what was ``path`` becomes ``path.1``, and what was
                that ``path.2``. Files with higher numbers are left alone.
            params: whether the parameters are saved, too.
            extra: what else the run needs, by names of your own: objects with ``state_dict()`` and
                ``load_state_dict(state)`` (nets with buffers, loss scales, `History`, …), NumPy's random generators,
                arrays, numbers, texts, None, and dicts and lists of these. Numbers come back with the same bits.

        Raises:
            OSError: the file could not be written. Unless it says otherwise, what was saved before is still there.
            TypeError: something in ``extra`` that no file holds, named by its path. Nothing was written.
            ValueError: keep < 1; a parameter that was replaced in its container.
            RuntimeError: someone else saves to this path now, or steps meanwhile; gradients are accumulated, which no
                file holds. Nothing was written.
            ModuleNotFoundError: safetensors is not installed; ``pip install 'ravine[io]'``.

        >>> w = np.array([1.0, 2.0]); opt = rv.SGD(w, lr=0.5, momentum=0.5)
        >>> _ = opt.step(w.copy()); opt.save("run.safetensors")
        >>> w[:] = 7; opt.load("run.safetensors").step, w
        (1, array([0.5, 1. ]))
        """
        self._check_own("save")
        self._check_nothing_accumulated("save")
        self._settle_masters()
        checkpoint.save(self, path, keep, params, extra)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        params: bool = True,
        hyper: bool = True,
        strict: bool = True,
        extra: Mapping[str, Any] | None = None,
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
            extra: what to load besides, by the names that `save` was given: objects, generators and arrays are changed
                in place. A number, a text or None only asks for a value: all values of the file are in the result's
                ``extra``, asked for or not. An object whose state has other names, shapes or dtypes than the file's is
                refused; lists of numbers may have grown. If one raises while it loads, all get back what they had.

        Returns:
            path, step, what changed and what was left out, values that were saved as ``extra``, and a ``message`` in
            words.

        Raises:
            ValueError: a file that is damaged or of another format version; another rule, other names, shapes or
                dtypes; with ``hyper``, another schedule, group, formula or clipping; extras that are missing or do not
                fit. All of it listed, nothing changed.
            OSError: the file cannot be read. Nothing was changed.
            ModuleNotFoundError: safetensors is not installed; ``pip install 'ravine[io]'``.

        >>> w = np.array([1.0, 2.0]); opt = rv.SGD(w, lr=0.5); opt.save("run.safetensors")
        >>> rv.SGD(np.zeros(2), lr=0.25).load("run.safetensors").restored
        ('lr: 0.5, was 0.25',)
        >>> rng = np.random.default_rng(0); opt.save("run.safetensors", extra={"rng": rng, "epoch": 3})
        >>> first = rng.random(); opt.load("run.safetensors", extra={"rng": rng}).extra, rng.random() == first
        ({'epoch': 3}, True)
        """
        self._check_own("load")
        return checkpoint.load(self, path, params, hyper, strict, extra)

    def __repr__(self) -> str:
        shown = {name: value for name, value in self._values[0].items() if value is not False}
        shown |= {
            name: value for name, value in self._options.items() if value not in (None, 0.0) and value != "propagate"
        }
        shown |= {"lookahead": self._lookahead} if self._lookahead is not None else {}
        shown |= {"average": self._averaging} if self._averaging is not None else {}
        values = [f"{name}={value!r}" for name, value in shown.items()]
        if len(self._values) > 1:
            values.append(f"groups=[{', '.join(self._differing(group) for group in self.groups[1:])}]")
        return f"{type(self).__name__}({len(self._engine.names)} parameters, {', '.join(values)})"

    def _differing(self, group: Group) -> str:
        """Say how a group is unlike the first."""
        first, names = self._values[0], group.names
        own = self._values[self._group_of[self._engine.names.index(names[0])]]
        values = {name: value for name, value in own.items() if name not in first or value != first[name]}
        values |= {"lr_scale": 1.0} if "lr_scale" in first and "lr_scale" not in own else {}
        return f"({names if len(names) <= 3 else [*names[:3], f'… {len(names)} in all']}, {values})"

    def _check_nothing_accumulated(self, doing: str) -> None:
        if self._engine.accumulated is not None:
            raise RuntimeError(
                f"{doing}: gradients are accumulated, which it would not hold; call it after opt.step(), or drop them "
                "by opt.discard_accumulated()"
            )

    def _parts(self, name: str) -> list[str]:
        """Give the core's names of an argument."""
        parts = [part for part in _TUPLES.get(name, ()) if part in self._about["hyperparameters"]]
        return parts or [_CORE_NAMES.get(name, name)]

    def _is_switch(self, part: str) -> bool:
        """Whether one of the core's names is of a switch, which makes the formula."""
        return _COMMON.get(part) is False or self._about["hyperparameters"].get(part) == "switch"

    def _numbers(self, name: str, value: Any) -> dict[str, float]:
        """Give an argument's numbers by the core's names."""
        flat = _engine_values({name: value}, self._about["hyperparameters"])
        return {part: _number(part, number, "a number") for part, number in flat.items()}

    def _flat_values(self, group: int) -> dict[str, Any]:
        """Give a group's values by the core's names."""
        return _engine_values(self._values[group], self._about["hyperparameters"])

    def _rate(self, group: int) -> float:
        """Return a group's ``lr``, that of the last step where a schedule sets it, without its factor."""
        return self._rates.lr(group, self._engine.hyper(group, "lr"))

    def _check_number(self, group: int, name: str, value: float) -> None:
        """Refuse a number out of range, by the core's name; a rate also if its product is."""
        self._engine.check_hyper(name, value)
        if name == "lr" and (scale := self._rates.scale(group)) != 1:
            try:
                self._engine.check_hyper(name, value * scale)
            except ValueError as error:
                raise ValueError(f"{error}, which is {value!r} times lr_scale={scale!r}") from None

    def _checked_scale(self, group: int, value: Any) -> float:
        """Return a factor of a group's rate, which may be the group's from now on."""
        scale = _factor("lr_scale", value, least=0.0)
        try:
            self._engine.check_hyper("lr", self._rate(group) * scale)
        except ValueError as error:
            raise ValueError(f"lr_scale: with {scale!r}, {error}") from None
        return scale

    def _put_number(self, group: int, name: str, value: float) -> None:
        """Have the engine step with a number, by the core's name."""
        self._engine.set_hyper(group, name, self._rates.product(group, value) if name == "lr" else value)

    def _set_numbers(self, numbers: Mapping[tuple[int, str], float]) -> None:
        """Set numbers by group and the core's name, checked before; factors before the rates that they multiply."""
        scaled = [group for group, name in numbers if name == "lr_scale"]
        for group in scaled:
            if numbers[group, "lr_scale"] != self._rates.scale(group):
                self._values[group]["lr_scale"] = numbers[group, "lr_scale"]
        for (group, name), number in numbers.items():
            if name != "lr_scale":
                self._set_number(group, name, number)
        for group in scaled:
            if not callable(lr := self._values[group]["lr"]):
                self._put_number(group, "lr", lr)

    def _set_number(self, group: int, name: str, value: float) -> None:
        """Set a number of a group by the core's name, checked before."""
        values = self._values[group]
        if name == "lr_scale":
            lr = self._rate(group)
            values["lr_scale"] = value
            self._put_number(group, "lr", lr)
            return
        self._put_number(group, name, value)
        for whole, parts in _TUPLES.items():
            if name in parts and whole in values:
                known = [part for part in parts if part in self._about["hyperparameters"]]
                values[whole] = tuple(value if p == name else v for p, v in zip(known, values[whole], strict=True))
                return
        values["momentum_before" if name == "momentum" and name not in values else name] = value

    def _start(self) -> None:
        """Bring the schedules to where the count of steps is, and forget gradients of before."""
        self._engine.discard()
        for group, name, value in self._schedule_values(self._engine.steps):
            self._engine.set_hyper(group, name, value)

    def _schedule_values(self, step: int) -> list[tuple[int, str, float]]:
        """Ask all schedules, and check what they say before any of it counts."""
        values = []
        for group, name, schedule in self._scheduled:
            try:
                value = _number(name, schedule(step))
                self._check_number(group, name, value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{error}, from the schedule {schedule!r} at step {step}") from None
            values.append((group, name, self._rates.product(group, value) if name == "lr" else value))
        return values

    def _resolve(
        self, names: list[str], defaults: dict[str, Any], groups: Groups
    ) -> tuple[list[int], list[dict[str, Any]]]:
        """Return each parameter's group number, and the values of each group; the first is the first parameter's."""
        changeable = {name for name, value in defaults.items() if name not in self._shapes} | {"lr_scale"}
        found = matches(names, [pattern for pattern, _ in groups])
        of_name: list[list[Mapping[str, Any]]] = [[] for _ in names]
        for (pattern, overrides), matching in zip(groups, found, strict=True):
            self._check_names(overrides, changeable, f"value in group {pattern!r}")
            if not matching:
                dotted = re.sub(r"\[['\"]?([^]'\"]*)['\"]?\]", r".\1", pattern).lstrip(".")
                near = [dotted] if dotted in names else difflib.get_close_matches(pattern, names, n=3)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
                hint += " (names are dotted; [0] in a pattern is a set of characters)" if "[" in pattern else ""
                raise ValueError(f"groups: pattern {pattern!r} matches none of {_some(names)}{hint}")
            for i in matching:
                of_name[i].append(overrides)
        distinct: list[dict[str, Any]] = []
        known: dict[Any, int] = {}
        numbers = []
        for overriding in of_name:
            values = dict(defaults)
            for overrides in overriding:
                values.update(overrides)
            number = known.setdefault(tuple(map(_hashable, values.values())), len(distinct))
            if number == len(distinct):
                distinct.append(values)
            numbers.append(number)
        return numbers, distinct or [defaults]

    #: What ``like`` said, of which some may not matter.
    _conventional: conventions.System | None = None
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
            elsewhere = [own_name for own_name in conventions.NAMES_ELSEWHERE.get(name, ()) if own_name in names]
            near = elsewhere or difflib.get_close_matches(name, names, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it takes {names}"
            raise TypeError(f"{type(self).__name__}: unknown {what} {name!r}; {hint}")


def _checked_groups(groups: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the pairs of ``groups=``."""
    expected = 'expected pairs of a pattern and its values, [("*.b", {"weight_decay": 0.0})]'
    if isinstance(groups, Mapping | str):
        cure = "; pass list(groups.items())" if isinstance(groups, Mapping) else ""
        raise TypeError(f"groups: {expected}, got {groups!r}{cure}")
    pairs = []
    for i, pair in enumerate(groups or ()):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"groups[{i}]: {expected}, got {pair!r}")
        pattern, values = pair
        if not isinstance(pattern, str) or not isinstance(values, Mapping):
            raise TypeError(f"groups[{i}]: {expected}, got {pair!r}")
        pairs.append((pattern, values))
    return pairs


def _hashable(value: Any) -> Any:
    """Give something equal for equal numbers and tuples of them; lists count as tuples, other objects as themselves."""
    if isinstance(value, list):
        return tuple(value)
    return value if isinstance(value, Hashable) else id(value)


def _some(names: Sequence[Any]) -> str:
    """List names, but not thousands of them."""
    return str(list(names)) if len(names) <= 20 else f"{str(list(names[:20]))[:-1]}, … ({len(names)} in all)]"


def _check_limits(options: Mapping[str, Any]) -> None:
    """Refuse limits of gradients that are no numbers."""
    for name in ("clip_value", "clip_norm", "clip_eps"):
        value = options.get(name)
        if callable(value):
            raise TypeError(f"{name}: expected a number, got the schedule {value!r}; a limit is the same for all steps")
        if value is not None and (isinstance(value, bool | str | bytes) or not hasattr(value, "__float__")):
            raise TypeError(f"{name}: expected a number or None, got {value!r}")


def _check_params(params: Any) -> None:
    """Refuse what holds parameters, or says where they are."""
    if params is None or isinstance(params, str | bytes | os.PathLike):
        raise TypeError(f"params: expected arrays, or a nesting of dict, list and tuple of arrays, got {params!r}")
    if hasattr(params, "params") and hasattr(params, "backward"):
        raise TypeError(f"params: expected arrays, got a {type(params).__name__}; pass its .params")


def _check_alone(grads: Any, params: Any) -> None:
    """Say that a loss is no gradient, alone or with them; the core has refused it already."""
    number = (int, float, np.number)
    if isinstance(grads, tuple) and len(grads) == 2 and isinstance(grads[0], number):
        raise TypeError(
            "grads: expected gradients alone, got a tuple (number, …) such as (loss, grads); pass the second"
        )
    if isinstance(grads, number) and isinstance(params, dict | list | tuple):
        raise TypeError(f"grads: expected gradients nested like the parameters, got the number {grads}; not the loss")


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


#: Arguments that the core calls otherwise.
_CORE_NAMES = {"momentum_before": "momentum"}


def _engine_values(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Give the core's names: ``betas`` are two or three, and where momentum stands is the rule's business."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name == "lr_scale":  # the core has the product
            continue
        parts = [part for part in _TUPLES.get(name, ()) if part in known]
        if not parts:
            flat[_CORE_NAMES.get(name, name)] = value
            continue
        try:
            flat |= zip(parts, value, strict=True)
        except (TypeError, ValueError):
            count = {2: "two", 3: "three"}[len(parts)]
            where = " in [0, 1)" if name == "betas" else ""
            raise ValueError(f"{name}: expected {count} numbers{where}, got {value!r}") from None
    return flat


def _factor(name: str, value: Any, least: float) -> float:
    """Return a factor of rates: a finite number >= least, or > 0 for the least above it."""
    number = _number(name, value, "a number")
    if not least <= number < math.inf:
        raise ValueError(f"{name}: expected a finite number {'> 0' if least else '>= 0'}, got {number!r}")
    return number


def _number(name: str, value: Any, expected: str = "a number or a schedule") -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError  # float("0.1") would do, and hide that a setting was not parsed
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected {expected}, got {value!r}") from None


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
        for kind in (kind for kind in _core.KEPT if kind in given and kind not in own[name]):
            wrong.append(f"states[{name!r}][{kind!r}]: expected nothing, got one; {_without(kind)}")
        for kind, array in own[name].items():
            other = given.get(kind)
            if other is None and kind in LATER:
                continue
            found = "nothing" if other is None else f"{np.shape(other)} {getattr(other, 'dtype', type(other).__name__)}"
            if found != f"{array.shape} {array.dtype}":
                wrong.append(f"states[{name!r}][{kind!r}]: expected {array.shape} {array.dtype}, got {found}")
    return wrong


def _without(kind: str) -> str:
    """Say what to do about an array that the optimizer does not keep."""
    option = {"slow": "lookahead", "remainder": "master", "average_rest": "average"}.get(kind, kind)
    return f"make the optimizer with the same {option}=, or delete the entry"


def _is(array: Any, parameter: Any, dtype: str) -> bool:
    return getattr(array, "dtype", None) == dtype and array.shape == parameter.shape


def _split(master: Any, dtype: Any) -> tuple[Any, Any]:
    """Give the upper halves of float32 numbers as bfloat16, and the lower ones, as the core has them."""
    bits = np.asarray(master, order="C").view(np.uint32)
    nan = np.isnan(master)
    with np.errstate(over="ignore"):  # of a NaN without axes
        upper = np.where(nan, bits >> 16 | 0x40, (bits + np.uint32(0x8000)) >> 16).astype(np.uint16).view(dtype)
    return upper, np.where(nan, 0, bits).astype(np.uint16).view(np.int16)


def _joined(parameter: Any, remainder: Any) -> Any:
    """Give the float32 numbers that upper and lower halves are, as the core reads them."""
    bits = np.asarray(parameter, order="C").view(np.uint16).astype(np.uint32) << np.uint32(16)
    with np.errstate(over="ignore"):
        whole = (bits + remainder.astype(np.int32).view(np.uint32)).view(np.float32)
    return np.where(np.isnan(whole), bits.view(np.float32), whole)


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
            ``"chainer"``, with velocity only: μ²v − (1+μ)γg, whose first step is 1 + μ + μ² times γg and not 1 + μ.
        form: ``"accumulate"``, ``"velocity"``, ``"heavy_ball"`` or ``"average"``.
        dampen_first: the first b is (1−τ)g, as in MLX; with ``dampening`` only.
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

    _shapes = frozenset({"average", "dampen_first"})

    def __init__(
        self,
        params: Any,
        lr: Value,
        *,
        momentum: Value = 0.0,
        dampening: Value = 0.0,
        nesterov: bool | Literal["chainer"] = False,
        form: Literal["accumulate", "velocity", "heavy_ball", "average"] = "accumulate",
        dampen_first: bool = False,
        **options: Unpack[Options],
    ) -> None:
        rules = {"accumulate": "momentum", "velocity": "velocity", "heavy_ball": "heavy_ball", "average": "momentum"}
        if form not in rules:
            near = difflib.get_close_matches(str(form), rules, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"form: expected one of {sorted(rules)}, got {form!r}{hint}")
        groups: Any = [overrides for _, overrides in _checked_groups(options.get("groups"))]
        groups += params if _is_torch(params) else []
        plain = not callable(momentum) and momentum == 0 and all("momentum" not in group for group in groups)
        if nesterov and (plain or form not in ("accumulate", "velocity") or callable(dampening) or dampening != 0):
            raise ValueError(
                "nesterov: expected momentum > 0, dampening = 0 and form='accumulate' or 'velocity', "
                f"got momentum={momentum!r}, dampening={dampening!r}, form={form!r}"
            )
        if nesterov not in (False, True) and (nesterov != "chainer" or form != "velocity"):
            raise ValueError(f"nesterov: expected True, False or, with form='velocity', 'chainer', got {nesterov!r}")
        if dampen_first and not callable(dampening) and dampening == 0:
            raise ValueError("dampen_first: expected dampening > 0 with it, got dampening=0")
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
                rule += "_chainer" * (nesterov == "chainer")
            if rule == "momentum" and form == "average":
                hyper |= {"average": True}
            elif rule == "momentum":
                hyper |= {"dampening": dampening, "average": False, "dampen_first": dampen_first}
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
        initial: v₀ ≥ 0 (0), what the sum starts at; of the sum only.
        eps_inside: √(v + ε) in place of √v + ε; of the sum only.
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
        initial: Value = 0.0,
        eps_inside: bool = False,
        **options: Unpack[Options],
    ) -> None:
        rules = {"sum": "adagrad", "mean": "adagrad_mean"}
        if accumulate not in rules:
            raise ValueError(f"accumulate: expected 'sum' or 'mean', got {accumulate!r}")
        hyper: dict[str, Any] = {"lr": lr, "eps": eps}
        if accumulate == "sum":
            hyper |= {"initial": initial, "eps_inside": eps_inside}
        elif eps_inside or callable(initial) or initial != 0:
            raise ValueError(
                f"accumulate: expected 'sum' with initial or eps_inside, got 'mean' with {initial!r}, {eps_inside!r}"
            )
        super().__init__(params, rules[accumulate], hyper, options)


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
        lr_inside: with ``momentum``: γ lives in the buffer, b ← μb + γg/(√v + ε), w ← w − b (Keras, optax).
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

    _shapes = frozenset({"first_square", "lr_inside"})

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
        lr_inside: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if first not in ("zero", "square"):
            raise ValueError(f"first: expected 'zero' or 'square', got {first!r}")
        after, before = (callable(value) or value != 0 for value in (momentum, momentum_before))
        if before and (after or centered):
            raise ValueError("momentum_before: cannot be combined with momentum or centered; choose one")
        if lr_inside and not after:
            raise ValueError(f"lr_inside: expected momentum > 0 with it, got momentum={momentum!r}")
        rule = "rmsprop" + "_centered" * bool(centered) + "_momentum" * (after or before) + "_before" * before
        hyper = {"lr": lr, "decay": decay, "eps": eps, "eps_inside": eps_inside, "first_square": first == "square"}
        if after or before:
            hyper |= {"momentum": momentum, "lr_inside": lr_inside} if after else {"momentum_before": momentum_before}
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
        max_corrected: with ``amsgrad``, the largest v̂ so far in place of v̂, as in optax.
        correction: where a β changes, m̂ and v̂ are corrected by the product of those that were used (``"product"``),
            or by the present one to the power t (``"current"``), as in torch and others. The same while β is constant.
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

    _shapes = frozenset({"eps_inside", "eps_hat", "max_corrected"})

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
        max_corrected: bool = False,
        correction: Correction = "product",
        **options: Unpack[Options],
    ) -> None:
        if eps_inside and eps_hat:
            raise ValueError("eps_hat: cannot be combined with eps_inside; ε stands in one place")
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        if max_corrected and (eps_hat or not amsgrad):
            raise ValueError("max_corrected: expected amsgrad with it and no eps_hat, where ε is before the correction")
        hyper |= {"bias_correction": bias_correction, "eps_inside": eps_inside, "eps_hat": eps_hat}
        hyper |= {"max_corrected": max_corrected} if amsgrad else {}
        super().__init__(params, "adam_amsgrad" if amsgrad else "adam", hyper, options, correction)


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
        max_corrected: bool = False,
        correction: Correction = "product",
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
            max_corrected=max_corrected,
            correction=correction,
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
        eps: ε ≥ 0 (1e-8), added to |g| as in torch; 0 is the paper's. Where the denominator is 0 the update is 0.
        bias_correction: False takes γ for γ/(1−β₁ᵗ), as MLX does.
        eps_outside: u ← max(β₂u, |g|), and m/(u + ε), as in Keras and MLX.
        correction: where β₁ changes, m is corrected by the product of those that were used (``"product"``),
            or by the present one to the power t (``"current"``), as in torch and others. The same while β is constant.
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
        bias_correction: bool = True,
        eps_outside: bool = False,
        correction: Correction = "product",
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        hyper |= {"bias_correction": bias_correction, "eps_outside": eps_outside}
        super().__init__(params, "adamax", hyper, options, correction)


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
        constant_momentum: μ = β₁ at once, as in optax.
        correction: where a β changes, m̂ and v̂ are corrected by the product of those that were used (``"product"``),
            or by the present one to the power t (``"current"``), as in torch and others, whose ∏μ is a product, too.
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
        constant_momentum: bool = False,
        correction: Correction = "product",
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "momentum_decay": momentum_decay}
        hyper |= {"constant_momentum": constant_momentum}
        super().__init__(params, "nadam", hyper, options, correction)


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
        eps_hat: False adds ε to √v̂ in place of √v: the update is γm̂r/(√v̂ + ε), as in optax.
        threshold: 5, or 4 as in the paper: it divides where ρ is above.
        correction: where a β changes, m̂ and v̂ are corrected by the product of those that were used (``"product"``),
            or by the present one to the power t (``"current"``), as in torch and others. The same while β is constant.
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

    _shapes = frozenset({"from_four"})

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        *,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        eps_hat: bool = True,
        threshold: Literal[4, 5] = 5,
        correction: Correction = "product",
        **options: Unpack[Options],
    ) -> None:
        if threshold not in (4, 5):
            raise ValueError(f"threshold: expected 4 or 5, got {threshold!r}")
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "eps_hat": eps_hat, "from_four": threshold == 4}
        super().__init__(params, "radam", hyper, options, correction)


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
        eps_root: the ε that is summed up in v, if it is another one; None: the same.
        correction: where a β changes, m̂ and v̂ are corrected by the product of those that were used (``"product"``),
            or by the present one to the power t (``"current"``), as in torch and others. The same while β is constant.
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
        eps_root: Value | None = None,
        correction: Correction = "product",
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        hyper |= {"eps_root": eps if eps_root is None else eps_root}
        super().__init__(params, "adabelief", hyper, options, correction)


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
        initial: what m and v start at, ≥ 0 (0); optax has 1e-6.
        correction: where a β changes, m̂ and v̂ are corrected by the product of those that were used (``"product"``),
            or by the present one to the power t (``"current"``), as in torch and others. The same while β is constant.
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
        initial: Value = 0.0,
        correction: Correction = "product",
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "bias_correction": bias_correction}
        hyper |= {"initial": initial}
        super().__init__(params, "yogi", hyper, options, correction)


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
        correction: where a β changes, m̂ and v̂ are corrected by the product of those that were used (``"product"``),
            or by the present one to the power t (``"current"``), as in torch and others. The same while β is constant.
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
        correction: Correction = "product",
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "alpha": alpha}
        super().__init__(params, "ademamix", hyper, options, correction)


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
        eps_root: ε ≥ 0 (0) within the root, too: √(n̂ + ε); optax has 1e-8.
        bias_correction: False takes m, v and n for m̂, v̂ and n̂, as the paper's algorithm does.
        look_less: 1 − β₂ before d and v̂, where the paper has β₂: what optax computes.
        correction: where a β changes, m̂, v̂ and n̂ are corrected by the product of those that were used (``"product"``),
            or by the present one to the power t (``"current"``), as in torch and others. The same while β is constant.
        options: see :class:`Options`. ``weight_decay`` is of the old w as in all optimizers here; the paper divides the
            new w by 1 + γλ: ``decay_implicit=True``.

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
        eps_root: Value = 0.0,
        bias_correction: bool = True,
        look_less: bool = False,
        correction: Correction = "product",
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "eps_root": eps_root}
        hyper |= {"bias_correction": bias_correction, "look_less": look_less}
        super().__init__(params, "adan", hyper, options, correction)


class LARS(Optimizer):
    r"""Momentum whose rate is, of each tensor, in proportion to the tensor's norm over its gradient's.

    .. math:: v \leftarrow \mu v + \gamma\, r\, (g + \lambda w), \qquad w \leftarrow w - v, \qquad
        r = \frac{\eta \|w\|}{\|g\| + \lambda \|w\| + \epsilon}

    r is one number of each parameter array; 1 where ‖w‖ or ‖g‖ is 0, and with ``adapt=False``. Norms are of w before
    the step and of g as clipping and ``l2`` leave it: float64 sums in one order, see `ravine.global_norm`.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0, or a schedule; it stands inside v.
        momentum: μ in [0, 1) (0.9), or a schedule.
        trust_coefficient: η ≥ 0 (1e-3), how far a tensor may move, relative to its norm, at γ = 1.
        eps: ε ≥ 0 (0); the paper has none.
        adapt: False for r = 1. As a value of a group it excludes tensors: of biases and normalisation layers, which
            are usually left out, ``groups=[("*.b", {"adapt": False, "weight_decay": 0.0})]``.
        options: see :class:`Options`; ``weight_decay`` is λ above (the paper's β), inside v and scaled by r.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, Algorithm 1 and
    equation 6.

    >>> w = np.array([3.0, -4.0]); opt = rv.LARS(w, lr=1.0, trust_coefficient=0.1)
    >>> _ = opt.step(20 * w); w.round(6)  # ‖w‖/‖g‖ = 1/20, so that w loses a tenth of its norm
    array([ 2.7, -3.6])
    """

    def __init__(
        self,
        params: Any,
        lr: Value,
        *,
        momentum: Value = 0.9,
        trust_coefficient: Value = 1e-3,
        eps: Value = 0.0,
        adapt: bool = True,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "momentum": momentum, "trust_coefficient": trust_coefficient, "eps": eps}
        super().__init__(params, "lars", {**hyper, "adapt": adapt}, options)


class LAMB(Optimizer):
    r"""Adam's direction, with each tensor's step as long as γ times the tensor's norm.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        u = \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda w, \quad
        w \leftarrow w - \gamma\, \frac{\|w\|}{\|u\|}\, u

    with :math:`\hat m = m/(1-\beta_1^t)` and :math:`\hat v = v/(1-\beta_2^t)`. ‖w‖/‖u‖ is one number of each parameter
    array; 1 where one of the norms is 0, and with ``adapt=False``. Norms are of w and u before the step: float64 sums
    in one order, see `ravine.global_norm`. The paper's φ is the identity.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (1e-3), or a schedule.
        betas: (β₁, β₂), each in [0, 1) (0.9, 0.999); each may be a schedule.
        eps: ε ≥ 0 (1e-6), added to √v̂. Where the denominator is 0 that part of u is 0.
        adapt: False for a ratio of 1, which is AdamW. As a value of a group it excludes tensors: of biases and
            normalisation layers, which are usually left out,
            ``groups=[("*.b", {"adapt": False, "weight_decay": 0.0})]``.
        correction: where a β changes, m̂ and v̂ are corrected by the product of those that were used (``"product"``),
            or by the present one to the power t (``"current"``), as in torch and others. The same while β is constant.
        options: see :class:`Options`; ``weight_decay`` is λ above, a part of u (0; the paper's runs have 0.01).

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, Algorithm 2.

    >>> w = np.array([3.0, 4.0]); opt = rv.LAMB(w, lr=0.1, eps=0)
    >>> _ = opt.step(w.copy()); w.round(6)  # u is (1, 1), and the step 0.1·5 long
    array([2.646447, 3.646447])
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        *,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-6,
        adapt: bool = True,
        correction: Correction = "product",
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "adapt": adapt}
        super().__init__(params, "lamb", hyper, options, correction)


class NovoGrad(Optimizer):
    r"""Divide each tensor's gradient by a running norm of it, then take momentum.

    .. math:: v \leftarrow \beta_2 v + (1-\beta_2) \|g\|^2, \quad
        m \leftarrow \beta_1 m + \left(\frac{g}{\sqrt{v} + \epsilon} + \lambda w\right), \quad w \leftarrow w - \gamma m

    v is one float64 number of each parameter array, where Adam has an array; ‖g‖² after the first update. The norm is
    of g as clipping and ``l2`` leave it: a float64 sum in one order, see `ravine.global_norm`.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0 (0.01), or a schedule.
        betas: (β₁, β₂), each in [0, 1) (0.95, 0.98); each may be a schedule. m is a sum, 1/(1−β₁) gradients long.
        eps: ε ≥ 0 (1e-8), added to √v. Where the denominator is 0, g counts as 0.
        options: see :class:`Options`; ``weight_decay`` is λ above, inside m.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep
    Networks", 2019, Algorithm 1.

    >>> w = np.array([3.0, -4.0]); opt = rv.NovoGrad(w, lr=0.5, eps=0)
    >>> _ = opt.step(w.copy()); w  # g/‖g‖ = (0.6, −0.8)
    array([ 2.7, -3.6])
    >>> opt.state_dict()["states"]["params"]["v"]
    array(25.)
    """

    def __init__(
        self,
        params: Any,
        lr: Value = 0.01,
        *,
        betas: tuple[Value, Value] = (0.95, 0.98),
        eps: Value = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__(params, "novograd", hyper, options)


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

    def __init__(
        self,
        params: Any,
        rule: str,
        hyper: Mapping[str, Value],
        options: Options,
        correction: Correction = "product",
    ) -> None:
        if options.get("average") is not None:
            raise ValueError(f"average: {type(self).__name__} keeps one of its own, for averages(); use another rule")
        super().__init__(params, rule, hyper, options, correction)

    def averages(self) -> Any:
        """Return the averages: new arrays, nested as the parameters are, in their dtypes.

        >>> w = {"w": np.array([1.0])}; opt = rv.ScheduleFreeSGD(w, lr=0.5, momentum=0.5)
        >>> for _ in range(2): _ = opt.step({"w": np.ones(1)})  # z: 0.5, then 0; x: 0.5, then 0.25
        >>> opt.averages(), w
        ({'w': array([0.25])}, {'w': array([0.125])})
        """
        return super().averages()

    def _averages(self) -> list[Any]:
        self._check_own("averages")
        engine = self._engine
        rows = zip(self._group_of, engine.parameters, engine.states, engine.updates, strict=True)
        return [self._average(*row) for row in rows]

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
        options: see :class:`Options`; ``weight_decay`` leaves (1 − γλ)·w of the old w, with γ and not η.

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
        correction: where β₂ changes, v̂ is corrected by the product of those that were used (``"product"``),
            or by the present one to the power t (``"current"``), as in torch and others. The same while β is constant.
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
        correction: Correction = "product",
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "warmup_steps": warmup_steps}
        super().__init__(params, "schedule_free_adamw", hyper, options, correction)

    def _average(self, group: int, parameter: Any, states: Sequence[Any], t: int) -> Any:
        return _less(parameter, 1.0 - self._engine.hyper(group, "beta1"), states[0])


def _less(parameter: Any, factor: float, difference: Any) -> Any:
    """Return w − factor·d, computed in d's dtype."""
    return (parameter.astype(difference.dtype) - factor * difference).astype(parameter.dtype)
