"""What other systems mean by an optimizer's name: the table behind ``like=``.

``rv.Adam(w, like="keras")`` computes what Keras's Adam computes: its place of ε, its first buffer, its decay, its
defaults. An argument that you give overrides a default; one that asks for another formula than the system's raises, and
so does a number left out that the system wants to be given. Options of ravine that a system does not have, such as
``nonfinite``, stay as they are. ``"paper"`` is the paper that the class names as its source.

``tests/test_conventions.py`` compares with the systems themselves, over 20 steps: torch 2.15, Keras 3.15, optax 0.2.8,
Chainer 7.8, MLX 0.32. ``python -m ravine formula adam --like keras`` prints a formula:

>>> print(rv.Adam(np.zeros(1), like="keras").formula())
m ← β₁·m + (1 − β₁)·g
v ← β₂·v + (1 − β₂)·g²
w ← w − γ·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·m/(√v + ε)
γ = 0.001, β₁ = 0.9, β₂ = 0.999, ε = 1e-07
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

__all__ = ["Convention", "System", "convention", "systems"]

System: TypeAlias = Literal["torch", "keras", "optax", "chainer", "mlx", "paper"]
"""What ``like=`` takes."""


@dataclass(frozen=True)
class Convention:
    """How one system has one optimizer, in the words of the class here.

    Args:
        name: its name there.
        defaults: arguments that have these values there if they are not given.
        fixed: arguments that make up the formula: they cannot be given otherwise.
        needs: arguments that have no default there.
        refused: arguments that mean something else there, or nothing: the values that they may have, and why.
        meaning: of an argument's value, what it is here.

    >>> rv.conventions.convention(rv.AdamW, "optax").defaults
    {'betas': (0.9, 0.999), 'eps': 1e-08, 'weight_decay': 0.0001}
    """

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    refused: Mapping[str, tuple[tuple[Any, ...], str]] = field(default_factory=dict)
    meaning: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)


Given: TypeAlias = Mapping[str, Any]
#: A line of the table, or what chooses it by the arguments, where a system has two optimizers for one class.
Line: TypeAlias = Convention | Callable[[Given], Convention]


def _line(name: str, defaults: Given, fixed: Given | None = None, *refused: Given, needs: str = "") -> Convention:
    merged = {key: value for some in refused for key, value in some.items()}
    return Convention(name, defaults, fixed or {}, tuple(needs.split()), merged)


def _on(given: Given, name: str) -> bool:
    """Whether an argument that is off at 0 is given and on."""
    value = given.get(name, 0)
    return callable(value) or bool(value)


# What is refused, and why.

_COUPLED: Given = {"weight_decay": ((0,), "its decay is coupled, g ← g + λw: pass l2")}
_NO_DAMPENING: Given = {"dampening": ((0,), "it has none")}
_NO_FORM: Given = {"nesterov": ((False, True), "that form is Chainer's")}
_NO_NESTEROV: Given = {"nesterov": ((False,), "it has none")}
_NO_MOMENTUM: Given = {"momentum": ((0,), "it has none"), "momentum_before": ((0,), "it has none")}
_NO_BEFORE: Given = {"momentum_before": ((0,), "its momentum is on the divided gradient")}
_NO_CENTERED: Given = {"centered": ((False,), "it has none")}
_NO_AMSGRAD: Given = {"amsgrad": ((False,), "it has none")}
_NO_WARMUP: Given = {"warmup_steps": ((0,), "its steps of the warm-up weigh otherwise in the average")}
_NO_DECAY: Given = {"weight_decay": ((0,), "its decay is of w and not of z")}

# What makes up the formulas.

_FORMULA_OF_ADAM: Given = {"eps_inside": False, "eps_hat": False, "bias_correction": True}
_EPS_HAT: Given = {"eps_inside": False, "eps_hat": True, "bias_correction": True}
_OUTSIDE: Given = {"eps_inside": False}
_INSIDE: Given = {"eps_inside": True}
_PLAIN_SUM: Given = {"accumulate": "sum", "initial": 0.0, "eps_inside": False}
_BETAS: Given = {"betas": (0.9, 0.999)}
_BETAS_OF_LION: Given = {"betas": (0.9, 0.99)}
_BETAS_OF_ADAN: Given = {"betas": (0.98, 0.92, 0.99)}
_BETAS_OF_ADEMAMIX: Given = {"betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "eps": 1e-8}


def _chainer_sgd(given: Given) -> Convention:
    refused, defaults = {**_COUPLED, **_NO_DAMPENING}, {"lr": 0.01}
    if given.get("form") == "accumulate":
        return _line("CorrectedMomentumSGD", defaults | {"momentum": 0.9}, {}, refused, _NO_NESTEROV)
    if given.get("nesterov"):
        nesterov = _line("NesterovAG", defaults | {"momentum": 0.9}, {"form": "velocity"}, refused)
        return replace(nesterov, meaning={"nesterov": {True: "chainer"}})
    if "momentum" in given:
        return _line("MomentumSGD", defaults, {"form": "velocity"}, refused)
    return _line("SGD", defaults, {}, refused)


def _with_inside(line: Convention) -> Line:
    """Have γ in the buffer, if there is one."""
    return lambda given: replace(line, fixed={**line.fixed, "lr_inside": True}) if _on(given, "momentum") else line


def _with_fixed(line: Convention, switch: str, fixed: Given, **defaults: Any) -> Line:
    """Have more in the formula, and other defaults, if a switch is on."""
    more = replace(line, fixed={**line.fixed, **fixed}, defaults={**line.defaults, **defaults})
    return lambda given: more if given.get(switch) else line


#: Defaults, and what makes up the formula.
_GRAVES: tuple[Given, Given] = (
    {"lr": 1e-4, "decay": 0.95, "eps": 1e-4, "momentum": 0.9},
    {"eps_inside": True, "first": "zero", "lr_inside": True},
)


def _or_graves(line: Convention, name: str, *refused: Given) -> Line:
    graves = _line(name, *_GRAVES, _NO_BEFORE, *refused)
    return lambda given: graves if given.get("centered") else line


_KERAS_ADAM = {**_BETAS, "lr": 1e-3, "eps": 1e-7}
_OPTAX_ADAM = {**_BETAS, "eps": 1e-8}
_TORCH_ADAM = {**_BETAS, "lr": 1e-3, "eps": 1e-8}

#: System → class → line. A class that a system does not have has no line.
TABLE: dict[str, dict[str, Line]] = {
    "torch": {
        "SGD": _line("SGD", {"lr": 1e-3}, {"form": "accumulate", "dampen_first": False}, _COUPLED, _NO_FORM),
        "Adagrad": _line("Adagrad", {"lr": 0.01, "eps": 1e-10}, {"accumulate": "sum", "eps_inside": False}, _COUPLED),
        "RMSprop": _line(
            "RMSprop",
            {"lr": 0.01, "decay": 0.99, "eps": 1e-8},
            {"eps_inside": False, "first": "zero", "lr_inside": False},
            _COUPLED,
            _NO_BEFORE,
        ),
        "Adam": _line("Adam", _TORCH_ADAM, {**_FORMULA_OF_ADAM, "max_corrected": False}, _COUPLED),
        "AdamW": _line("AdamW", {**_TORCH_ADAM, "weight_decay": 0.01}, {**_FORMULA_OF_ADAM, "max_corrected": False}),
        "Adadelta": _line("Adadelta", {"lr": 1.0, "rho": 0.9, "eps": 1e-6}, {}, _COUPLED),
        "Adamax": _line(
            "Adamax", {**_TORCH_ADAM, "lr": 2e-3}, {"eps_outside": False, "bias_correction": True}, _COUPLED
        ),
        "NAdam": _line("NAdam", {**_TORCH_ADAM, "lr": 2e-3, "momentum_decay": 4e-3}, {"constant_momentum": False}),
        "RAdam": _line("RAdam", _TORCH_ADAM, {"eps_hat": True, "threshold": 5}),
        "Rprop": _line("Rprop", {"lr": 0.01, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)}),
        "ASGD": _line("ASGD", {"lr": 0.01, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6}, {}, _COUPLED),
    },
    "keras": {
        "SGD": _line("SGD", {"lr": 0.01}, {"form": "velocity"}, _NO_DAMPENING, _NO_FORM),
        "Adagrad": _line(
            "Adagrad", {"lr": 1e-3, "eps": 1e-7, "initial": 0.1}, {"accumulate": "sum", "eps_inside": True}
        ),
        "RMSprop": _with_inside(
            _line(
                "RMSprop",
                {"lr": 1e-3, "decay": 0.9, "eps": 1e-7},
                {"eps_inside": True, "first": "zero"},
                _NO_BEFORE,
            )
        ),
        "Adam": _line("Adam", _KERAS_ADAM, {**_EPS_HAT, "max_corrected": False}),
        "AdamW": _line("AdamW", {**_KERAS_ADAM, "weight_decay": 4e-3}, {**_EPS_HAT, "max_corrected": False}),
        "Adadelta": _line("Adadelta", {"lr": 1e-3, "rho": 0.95, "eps": 1e-7}),
        "Adamax": _line("Adamax", _KERAS_ADAM, {"eps_outside": True, "bias_correction": True}),
        "NAdam": _line("Nadam", _KERAS_ADAM, {"momentum_decay": 1.0, "constant_momentum": False}),
        "Lion": _line("Lion", {**_BETAS_OF_LION, "lr": 1e-3}),
        "ScheduleFreeAdamW": _line(
            "ScheduleFreeAdamW", {**_BETAS, "lr": 2.5e-3, "eps": 1e-8}, {}, _NO_WARMUP, _NO_DECAY
        ),
    },
    "optax": {
        "SGD": _line("sgd", {}, {"form": "accumulate"}, _NO_DAMPENING, _NO_FORM, needs="lr"),
        "Adagrad": _line(
            "adagrad", {"eps": 1e-7, "initial": 0.1}, {"accumulate": "sum", "eps_inside": True}, needs="lr"
        ),
        "RMSprop": _with_inside(
            _line("rmsprop", {"decay": 0.9, "eps": 1e-8, "eps_inside": True}, {"first": "zero"}, _NO_BEFORE, needs="lr")
        ),
        "Adam": _with_fixed(
            _line("adam", _OPTAX_ADAM, {"eps_hat": False, "bias_correction": True}, needs="lr"),
            "amsgrad",
            {},
            max_corrected=True,
        ),
        "AdamW": _with_fixed(
            _line(
                "adamw",
                {**_OPTAX_ADAM, "weight_decay": 1e-4},
                {"eps_hat": False, "bias_correction": True},
                needs="lr",
            ),
            "amsgrad",
            {},
            max_corrected=True,
        ),
        "Adadelta": _line("adadelta", {"rho": 0.9, "eps": 1e-6}, {}, _COUPLED, needs="lr"),
        "Adamax": _line("adamax", _OPTAX_ADAM, {"eps_outside": False, "bias_correction": True}, needs="lr"),
        "NAdam": _line("nadam", _OPTAX_ADAM, {"constant_momentum": True}, needs="lr"),
        "RAdam": _line("radam", {**_OPTAX_ADAM, "threshold": 5}, {"eps_hat": False}, needs="lr"),
        "Lion": _line("lion", {**_BETAS_OF_LION, "weight_decay": 1e-3}, needs="lr"),
        "SignSGD": _line("sign_sgd", {}, needs="lr"),
        "Signum": _line("signum", {"momentum": 0.9}, needs="lr"),
        "AdaBelief": _line("adabelief", {**_BETAS, "eps": 1e-16, "eps_root": 1e-16}, needs="lr"),
        "Yogi": _line("yogi", {**_BETAS, "eps": 1e-3}, {"bias_correction": True, "initial": 1e-6}, needs="lr"),
        "Adan": _line(
            "adan",
            {**_BETAS_OF_ADAN, "eps": 1e-8, "eps_root": 1e-8},
            {"bias_correction": True, "look_less": True},
            needs="lr",
        ),
        "AdEMAMix": _line("contrib.ademamix", _BETAS_OF_ADEMAMIX, needs="lr"),
        "ADOPT": _line("contrib.adopt", {"betas": (0.9, 0.9999), "eps": 1e-6, "clip": True}, needs="lr"),
        "ScheduleFreeSGD": _line("contrib.schedule_free_sgd", {"lr": 1.0, "momentum": 0.9}, {}, _NO_WARMUP),
        "ScheduleFreeAdamW": _line(
            "contrib.schedule_free_adamw", {**_BETAS, "lr": 2.5e-3, "eps": 1e-8}, {}, _NO_WARMUP
        ),
    },
    "chainer": {
        "SGD": _chainer_sgd,
        "Adagrad": _line("AdaGrad", {"lr": 1e-3, "eps": 1e-8}, _PLAIN_SUM, _COUPLED),
        "RMSprop": _or_graves(
            _line(
                "RMSprop",
                {"lr": 0.01, "decay": 0.99, "eps": 1e-8, "eps_inside": False},
                {"first": "zero"},
                _COUPLED,
                _NO_MOMENTUM,
            ),
            "RMSpropGraves",
            _COUPLED,
        ),
        "Adam": _line("Adam", _TORCH_ADAM, {**_EPS_HAT, "max_corrected": False, "decay_unscaled": True}),
        "AdamW": _line(
            "AdamW",
            {**_TORCH_ADAM, "weight_decay": 0.0},
            {**_EPS_HAT, "max_corrected": False, "decay_unscaled": True},
        ),
        "Adadelta": _line("AdaDelta", {"rho": 0.95, "eps": 1e-6}, {"lr": 1.0}, _COUPLED),
    },
    "mlx": {
        "SGD": _with_fixed(
            _line("SGD", {}, {"form": "accumulate"}, _COUPLED, _NO_FORM, needs="lr"),
            "dampening",
            {"dampen_first": True},
        ),
        "Adagrad": _line("Adagrad", {"eps": 1e-8}, _PLAIN_SUM, needs="lr"),
        "RMSprop": _line(
            "RMSprop",
            {"decay": 0.99, "eps": 1e-8},
            {"eps_inside": False, "first": "zero"},
            _NO_MOMENTUM,
            _NO_CENTERED,
            needs="lr",
        ),
        "Adam": _line(
            "Adam",
            {**_OPTAX_ADAM, "bias_correction": False},
            {"eps_inside": False, "eps_hat": False},
            _NO_AMSGRAD,
            needs="lr",
        ),
        "AdamW": _line(
            "AdamW",
            {**_OPTAX_ADAM, "weight_decay": 0.01, "bias_correction": False},
            {"eps_inside": False, "eps_hat": False},
            _NO_AMSGRAD,
            needs="lr",
        ),
        "Adadelta": _line("AdaDelta", {"rho": 0.9, "eps": 1e-6}, needs="lr"),
        "Adamax": _line("Adamax", _OPTAX_ADAM, {"eps_outside": True, "bias_correction": False}, needs="lr"),
        "Lion": _line("Lion", _BETAS_OF_LION, needs="lr"),
    },
    "paper": {
        "SGD": _line(
            "Rumelhart et al. 1986, Sutskever et al. 2013",
            {"form": "velocity"},
            {},
            _NO_DAMPENING,
            _NO_FORM,
            needs="lr",
        ),
        "Adagrad": _line("Duchi et al. 2011", {}, _PLAIN_SUM),
        "RMSprop": _or_graves(
            _line(
                "Hinton 2012",
                {"decay": 0.9, "eps": 0.0},
                {"eps_inside": False, "first": "zero"},
                _NO_MOMENTUM,
            ),
            "Graves 2013",
        ),
        "Adam": _with_fixed(
            _line("Kingma and Ba 2015, Algorithm 1", _TORCH_ADAM, {"eps_inside": False, "eps_hat": False}),
            "amsgrad",
            {"bias_correction": False, "max_corrected": False},
            eps=0.0,
        ),
        "AdamW": _line(
            "Loshchilov and Hutter 2019, Algorithm 2",
            _TORCH_ADAM,
            {**_FORMULA_OF_ADAM, "decay_unscaled": True},
            _NO_AMSGRAD,
            needs="weight_decay",
        ),
        "Adadelta": _line("Zeiler 2012", {"rho": 0.95, "eps": 1e-6}, {"lr": 1.0}),
        "Adamax": _line(
            "Kingma and Ba 2015, Algorithm 2", {**_BETAS, "lr": 2e-3}, {"eps": 0.0, "bias_correction": True}
        ),
        "RAdam": _line("Liu et al. 2020", _BETAS, {"eps": 0.0, "threshold": 4}),
        "Lion": _line("Chen et al. 2023", _BETAS_OF_LION),
        "SignSGD": _line("Bernstein et al. 2018, Algorithm 1", {}),
        "Signum": _line("Bernstein et al. 2018, Algorithm 2", {"momentum": 0.9}),
        "AdaBelief": _line("Zhuang et al. 2020", _BETAS),
        "Yogi": _line("Zaheer et al. 2018", {**_BETAS, "lr": 0.01, "eps": 1e-3}, {"bias_correction": False}),
        "AdEMAMix": _line("Pagliardini et al. 2024", _BETAS_OF_ADEMAMIX),
        "ADOPT": _line("Taniguchi et al. 2024", {"betas": (0.9, 0.9999), "eps": 1e-6, "clip": True}),
        "Adan": _line(
            "Xie et al. 2022, Algorithm 1",
            {**_BETAS_OF_ADAN, "eps": 1e-8},
            {"bias_correction": False, "look_less": False, "eps_root": 0.0, "decay_implicit": True},
        ),
        "ScheduleFreeSGD": _line("Defazio et al. 2024, equations 3 to 5", {"momentum": 0.9}),
        "ScheduleFreeAdamW": _line("Defazio et al. 2024, Algorithm 1", {**_BETAS, "eps": 1e-8}),
    },
}

#: Arguments as other systems spell them, and as they are spelled here, where a class has them.
NAMES_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "alpha": ("lr",),
    "step_size": ("lr",),
    "beta_1": ("betas",),
    "beta_2": ("betas",),
    "beta1": ("betas",),
    "beta2": ("betas",),
    "b1": ("betas",),
    "b2": ("betas",),
    "epsilon": ("eps",),
    "weight_decay_rate": ("weight_decay",),
    "decay_rate": ("decay", "rho"),
    "rho": ("decay",),
    "momentum": ("betas",),
    "clipnorm": ("clip_norm",),
    "global_clipnorm": ("clip_norm",),
    "max_norm": ("clip_norm",),
    "max_grad_norm": ("clip_norm",),
    "clipvalue": ("clip_value",),
    "use_ema": ("average",),
    "ema_momentum": ("average",),
}

#: What a system has in every optimizer, unless its line says otherwise.
EVERYWHERE: dict[str, Given] = {
    system: {
        "clip_eps": 1e-6 if system in ("torch", "mlx") else 0.0,
        "decay_after": False,
        "decay_implicit": False,
        "decay_unscaled": False,
    }
    for system in get_args(System)
}

#: Classes that take the decay themselves, and have no form of it.
_DECAYING = ("ScheduleFreeSGD", "ScheduleFreeAdamW")


def systems(optimizer: type) -> tuple[System, ...]:
    """Name the systems that have an optimizer of this class, those that ``like=`` takes.

    Args:
        optimizer: one of the classes here.

    >>> rv.conventions.systems(rv.Rprop)
    ('torch',)
    """
    return tuple(system for system in get_args(System) if optimizer.__name__ in TABLE[system])


def convention(optimizer: type, like: System, **given: Any) -> Convention:
    """Return what a system has under an optimizer's name.

    Args:
        optimizer: one of the classes here.
        like: the system.
        given: arguments that choose between several optimizers of that system, such as ``centered=True``.

    Raises:
        ValueError: no such system, or one without this optimizer; the message names those that there are.

    >>> rv.conventions.convention(rv.RMSprop, "chainer", centered=True).name
    'RMSpropGraves'
    """
    if like not in TABLE:
        near = difflib.get_close_matches(str(like).lower(), TABLE, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"like: expected one of {list(TABLE)}, got {like!r}{hint}")
    name = optimizer.__name__
    if name not in TABLE[like]:
        have = systems(optimizer)
        which = f"those that have it: {', '.join(map(repr, have))}" if have else "no system's is known here"
        raise ValueError(f"like: {like!r} has no {name} as a convention; {which}. Leave it out for ravine's own")
    line = TABLE[like][name]
    return line(given) if callable(line) else line


def _same(value: Any, other: Any) -> bool:
    return not callable(value) and value == other


def resolve(optimizer: type, like: System, given: Given, groups: Sequence[Given] = ()) -> dict[str, Any]:
    """Return the arguments of a class as a system has them, those in ``given`` included.

    Raises:
        ValueError: as `convention`; an argument that asks for another formula than the system's.
        TypeError: a number that the system has no default for, and that is not given.
    """
    line = convention(optimizer, like, **given)
    where = f"{like!r} ({line.name})"
    everywhere = {k: v for k, v in EVERYWHERE[like].items() if optimizer.__name__ not in _DECAYING or k == "clip_eps"}
    # All of them correct by the present β.
    corrects = "correction" in inspect.signature(optimizer).parameters
    fixed = everywhere | ({"correction": "current"} if corrects else {}) | dict(line.fixed)
    # What groups set is given too, the way of torch included.
    parts = [given, *_overrides(given.get("groups")), *groups]
    for part in parts:
        for name, value in part.items():
            if name in fixed and not _same(value, fixed[name]):
                raise ValueError(
                    f"{name}: {where} has {fixed[name]!r}, got {value!r}; leave it out, or leave out like="
                )
            allowed, why = line.refused.get(name, ((value,), ""))
            if name in line.refused and not any(_same(value, one) for one in allowed):
                raise ValueError(f"{name}: in {where} {why}; got {value!r}")
    missing = [name for name in line.needs if name not in given]
    if missing:
        raise TypeError(f"{missing[0]}: {where} has no default for it; give one")
    meant = {k: line.meaning[k].get(v, v) if k in line.meaning else v for k, v in given.items()}
    return {**line.defaults, **fixed, **meant}


def _overrides(groups: Any) -> list[Given]:
    """Give what groups set, of pairs; the class refuses others."""
    pairs = [] if groups is None or isinstance(groups, Mapping | str) else groups
    return [
        pair[1] for pair in pairs if isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], dict)
    ]


def take_like(optimizer: type) -> None:
    """Have a class of this package resolve ``like=`` before its arguments count."""
    init: Callable[..., None] | None = vars(optimizer).get("__init__")
    # A user's subclass hands it on to the class here that it extends.
    if init is None or not optimizer.__module__.startswith("ravine."):
        return
    signature = inspect.signature(init)

    @functools.wraps(init)
    def taking_like(self: Any, *arguments: Any, like: System | None = None, **named: Any) -> None:
        if like is None:
            return init(self, *arguments, **named)
        bound = signature.bind_partial(self, *arguments, **named).arguments
        given = {k: v for k, v in bound.items() if k not in ("self", "params", "options")} | bound.get("options", {})
        params = {"params": bound["params"]} if "params" in bound else {}
        leaves = params.get("params")
        parts = leaves if isinstance(leaves, list | tuple) else []
        groups = [part for part in parts if isinstance(part, dict) and "params" in part]
        self._conventional = like
        return init(self, **params, **resolve(optimizer, like, given, groups))

    setattr(optimizer, "__init__", taking_like)  # noqa: B010, mypy allows no other assignment
