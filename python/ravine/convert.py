r"""Runs in other words: decay outside the momentum as L2 inside it and back, and runs of torch and optax here.

`from_torch` and `from_optax` make an optimizer here that goes on where one there stands; they import neither.

Weight decay: decoupled is v ← μv + g, w ← (1 − γλ)w − γv: ``SGD(momentum=, weight_decay=)``. Coupled is
v ← μv + g + λw, w ← w − γv: ``SGD(momentum=, l2=)``. Without v each is a recurrence of second order in w,

    decoupled:  w⁺ = (r + μ)w − μr·w⁻ − γg, with r = 1 − γλ;    coupled:  w⁺ = (1 + μ' − γ'λ')w − μ'w⁻ − γ'g,

and equal coefficients give the hyperparameters, an equal first step the buffer.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from ravine import conventions, optimizers, trees
from ravine.backends import as_reals
from ravine.backends.foreign import adopt

__all__ = ["Conversion", "coupled_to_decoupled", "decoupled_to_coupled", "from_optax", "from_torch"]

Form = Literal["accumulate", "average"]

# The boundary of the discriminant is reached by hyperparameters that were themselves rounded.
_ROUNDING = 2.0**-50


@dataclass(frozen=True)
class Conversion:
    """Hyperparameters, and buffers if they were asked for, of the other description of a run.

    Args:
        lr: γ, the learning rate.
        momentum: μ.
        weight_decay: decoupled λ; 0 in a coupled description.
        l2: coupled λ; 0 in a decoupled description.
        form: of the momentum, as it was given.
        buffers: new arrays nested like the parameters, or None.

    >>> rv.convert.decoupled_to_coupled(lr=0.5, momentum=0.5, weight_decay=0.5)
    Conversion(lr=0.5, momentum=0.375, weight_decay=0.0, l2=0.25, form='accumulate', buffers=None)
    """

    lr: float
    momentum: float
    weight_decay: float
    l2: float
    form: Form
    buffers: Any = None


def decoupled_to_coupled(
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    form: Form = "accumulate",
    params: Any = None,
    buffers: Any = None,
    nesterov: bool = False,
    dampening: float = 0.0,
) -> Conversion:
    r"""Describe momentum with decoupled weight decay as momentum with L2 inside.

    .. math:: \gamma' = \gamma, \quad \mu' = \mu(1 - \gamma\lambda), \quad \lambda' = (1 - \mu)\lambda, \quad
        v' = \frac{v + \lambda w}{1 - \gamma\lambda}

    and for the averaged form γ' = γ(1 − μ)/(1 − μ'), λ' = λ, v' = (γ/γ')(v + λw)/(1 − γλ).

    Args:
        lr: γ ≥ 0, a constant: under a schedule no constant μ' exists.
        momentum: μ in [0, 1).
        weight_decay: λ ≥ 0, with γλ < 1.
        form: ``"accumulate"``, v ← μv + g, or ``"average"``, v ← μv + (1 − μ)g.
        params: the current parameters, an array or any nesting of dict, list and tuple of arrays. Without ``buffers``
            they are those of a fresh run, whose v is 0; its v' is not.
        buffers: the current v, nested like the parameters.
        nesterov: only False; here for ``**settings`` of an optimizer.
        dampening: only 0; here for ``**settings`` of an optimizer.

    Returns:
        The same path: from the returned buffers, every later step gives the same parameters up to rounding.

    Raises:
        ValueError: a hyperparameter out of range, γλ ≥ 1, Nesterov, dampening, buffers that do not fit the parameters.
        TypeError: a schedule or other non-number for a hyperparameter, or a buffer that is no floating-point array.

    Source: equate the coefficients of w, w⁻ and g in the module's two recurrences.

    >>> w = np.array([1.0, -2.0])
    >>> new = rv.convert.decoupled_to_coupled(lr=0.5, momentum=0.5, weight_decay=0.5, params=w)
    >>> new.momentum, new.l2, new.buffers.round(3)
    (0.375, 0.25, array([ 0.667, -1.333]))
    """
    gamma, mu, lam = _hyperparameters(lr, momentum, "weight_decay", weight_decay, form, nesterov, dampening)
    if gamma * lam >= 1:
        raise ValueError(
            f"lr * weight_decay: expected less than 1, got {gamma * lam}: a step would forget w altogether; "
            "lower lr or weight_decay"
        )
    kept = 1 - gamma * lam
    new_mu = mu * kept
    # How much of g the buffer takes in: 1 in an accumulating form.
    old_share, new_share = (1.0, 1.0) if form == "accumulate" else (1 - mu, 1 - new_mu)
    new_gamma = gamma * old_share / new_share
    new_lam = (1 - mu) * lam if form == "accumulate" else lam
    # γ/γ' as the quotient of the shares, which γ = 0 has as well.
    ratio = new_share / old_share / kept

    def convert(v: Any, w: Any) -> Any:
        return ratio * (v + lam * w)

    return Conversion(new_gamma, new_mu, 0.0, new_lam, form, _convert_buffers(convert, params, buffers))


def coupled_to_decoupled(
    *,
    lr: float,
    momentum: float,
    l2: float,
    form: Form = "accumulate",
    params: Any = None,
    buffers: Any = None,
    nesterov: bool = False,
    dampening: float = 0.0,
) -> Conversion:
    r"""Describe momentum with L2 inside as momentum with decoupled weight decay.

    .. math:: s = 1 + \mu' - \gamma'\lambda', \quad \mu = \frac{2\mu'}{s + \sqrt{s^2 - 4\mu'}}, \quad
        \lambda = \frac{\lambda'}{1 - \mu}, \quad v = (1 - \gamma\lambda)v' - \lambda w

    and γ = γ'. For the averaged form s = 1 + μ' − γ'(1 − μ')λ', γ = γ'(1 − μ')/(1 − μ), λ = λ',
    v = (γ'/γ)(1 − γλ)v' − λw.

    r = 1 − γλ and μ are the roots of x² − sx + μ' = 0, and exchangeable; r is taken to be the greater one. So
    converting there and back returns the hyperparameters of a decoupled run if μ ≤ 1 − γλ, else an equivalent pair.

    Args:
        lr: γ' ≥ 0, a constant.
        momentum: μ' in [0, 1).
        l2: λ' ≥ 0, with γ'λ' ≤ (1 − √μ')², or for the averaged form γ'(1 − μ')λ' ≤ (1 − √μ')².
        form: ``"accumulate"``, v ← μv + g + λw, or ``"average"``, v ← μv + (1 − μ)(g + λw).
        params: the current parameters, an array or any nesting of dict, list and tuple of arrays. Without ``buffers``
            they are those of a fresh run, whose v' is 0; its v is not.
        buffers: the current v', nested like the parameters.
        nesterov: only False; here for ``**settings`` of an optimizer.
        dampening: only 0; here for ``**settings`` of an optimizer.

    Returns:
        The same path: from the returned buffers, every later step gives the same parameters up to rounding.

    Raises:
        ValueError: a hyperparameter out of range, a path that no decoupled run takes (the roots are not real: w
            oscillates), γλ ≥ 1, Nesterov, dampening, buffers that do not fit the parameters.
        TypeError: a schedule or other non-number for a hyperparameter, or a buffer that is no floating-point array.

    Source: equate the coefficients of w, w⁻ and g in the module's two recurrences.

    >>> new = rv.convert.coupled_to_decoupled(lr=0.5, momentum=0.375, l2=0.25)
    >>> round(new.momentum, 12), round(new.weight_decay, 12)
    (0.5, 0.5)
    """
    gamma, mu, lam = _hyperparameters(lr, momentum, "l2", l2, form, nesterov, dampening)
    share = 1.0 if form == "accumulate" else 1 - mu
    pull = gamma * share * lam
    limit = (1 - math.sqrt(mu)) ** 2
    if mu == 0 and pull >= 1:
        raise ValueError(f"lr * l2: expected less than 1, got {pull}: a step would forget w altogether; lower lr or l2")
    if pull > limit + _ROUNDING:
        raise ValueError(
            f"l2: expected at most {limit / (gamma * share)} for lr = {gamma}, momentum = {mu} and form = {form!r}, "
            f"got {lam}: no decoupled run takes this path; lower l2, lr or momentum"
        )
    # s² − 4μ' = (s − 2√μ')(s + 2√μ'), without the cancellation of the left side.
    discriminant = max(limit - pull, 0.0) * ((1 + math.sqrt(mu)) ** 2 - pull)
    kept = (1 + mu - pull + math.sqrt(discriminant)) / 2
    new_mu = mu / kept
    old_share, new_share = (1.0, 1.0) if form == "accumulate" else (1 - mu, 1 - new_mu)
    new_gamma = gamma * old_share / new_share
    new_lam = lam / (1 - new_mu) if form == "accumulate" else lam
    ratio = new_share / old_share * kept

    def convert(v: Any, w: Any) -> Any:
        return ratio * v - new_lam * w

    return Conversion(new_gamma, new_mu, new_lam, 0.0, form, _convert_buffers(convert, params, buffers))


def _hyperparameters(
    lr: float, momentum: float, decay_name: str, decay: float, form: str, nesterov: bool, dampening: float
) -> tuple[float, float, float]:
    if form not in ("accumulate", "average"):
        raise ValueError(
            f'form: expected "accumulate" or "average", got {form!r}; '
            "a velocity divided by -lr is an accumulated buffer"
        )
    if nesterov:
        raise ValueError(f"nesterov: expected False, got {nesterov!r}; the two forms of decay differ under Nesterov")
    if dampening != 0:
        raise ValueError(f'dampening: expected 0, got {dampening!r}; form="average" is the form that can be converted')
    if callable(lr):
        raise TypeError(
            f"lr: expected a constant, got the schedule {lr!r}; under a changing rate no constant momentum will do"
        )
    for name, value in (("lr", lr), ("momentum", momentum), (decay_name, decay)):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name}: expected a number, got {value!r} of type {type(value).__name__}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}")
    if momentum >= 1:
        raise ValueError(f"momentum: expected less than 1, got {momentum!r}")
    return float(lr), float(momentum), float(decay)


def _convert_buffers(convert: Callable[[Any, Any], Any], params: Any, buffers: Any) -> Any:
    if params is None:
        if buffers is not None:
            raise ValueError("params: expected the current parameters beside buffers, got None; pass both")
        return None
    weights = trees.leaves(params)
    old: dict[str, Any] = dict.fromkeys(weights) if buffers is None else trees.leaves(buffers)
    if old.keys() != weights.keys():
        missing, extra = sorted(weights.keys() - old), sorted(old.keys() - weights)
        raise ValueError(f"buffers: expected the names of params, got missing {missing}, extra {extra}")
    new = {}
    for name, w in weights.items():
        where = f"[{name!r}]" if isinstance(params, dict | list | tuple) else ""
        _check_float(f"params{where}", w)
        if buffers is None:
            new[name] = convert(0.0, w)[...]  # [...] keeps the result of a 0-d array an array
            continue
        v = old[name]
        _check_float(f"buffers{where}", v)
        if v.shape != w.shape:
            raise ValueError(f"buffers{where}: expected shape {w.shape} like its parameter, got {v.shape}")
        # In the buffer's precision, which may exceed a float16 parameter's.
        new[name] = convert(v, w.astype(v.dtype))[...]
    values = iter(new.values())
    return trees.map(lambda _: next(values), params)


def _check_float(name: str, array: Any) -> None:
    if not (hasattr(array, "dtype") and hasattr(array, "shape")):
        raise TypeError(f"{name}: expected an array, got {type(array).__name__}; make it one with np.asarray")
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected floating-point numbers, got {array.dtype}; convert with astype")


# Runs of torch.


@dataclass(frozen=True)
class _Torch:
    """A class of torch.optim: where its group's numbers and its states are here."""

    #: Argument here → entry of the group.
    numbers: Mapping[str, str]
    #: Our state → theirs.
    states: Mapping[str, str]
    #: Arguments that all groups must have in common, of the same name there.
    shapes: tuple[str, ...] = ()


_MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}
_ADAMS_NUMBERS = {"lr": "lr", "betas": "betas", "eps": "eps"}
_TORCH = {
    "SGD": _Torch(
        {"lr": "lr", "momentum": "momentum", "dampening": "dampening"}, {"b": "momentum_buffer"}, ("nesterov",)
    ),
    "Adagrad": _Torch({"lr": "lr", "eps": "eps", "initial": "initial_accumulator_value"}, {"v": "sum"}),
    "RMSprop": _Torch(
        {"lr": "lr", "decay": "alpha", "eps": "eps", "momentum": "momentum"},
        {"v": "square_avg", "a": "grad_avg", "b": "momentum_buffer"},
        ("centered",),
    ),
    "Adam": _Torch(_ADAMS_NUMBERS, {**_MOMENTS, "v_max": "max_exp_avg_sq"}, ("amsgrad",)),
    "AdamW": _Torch(_ADAMS_NUMBERS, {**_MOMENTS, "v_max": "max_exp_avg_sq"}, ("amsgrad",)),
    "Adadelta": _Torch({"lr": "lr", "rho": "rho", "eps": "eps"}, {"v": "square_avg", "u": "acc_delta"}),
    "Adamax": _Torch(_ADAMS_NUMBERS, {"m": "exp_avg", "u": "exp_inf"}),
    "NAdam": _Torch({**_ADAMS_NUMBERS, "momentum_decay": "momentum_decay"}, _MOMENTS),
    "RAdam": _Torch(_ADAMS_NUMBERS, _MOMENTS),
    "Rprop": _Torch(
        {"lr": "lr", "etas": "etas", "step_sizes": "step_sizes"}, {"g_previous": "prev", "size": "step_size"}
    ),
    "ASGD": _Torch({"lr": "lr", "lambd": "lambd", "alpha": "alpha", "t0": "t0"}, {"average": "ax"}),
    "Lion": _Torch({"lr": "lr", "betas": "betas"}, {"m": "exp_avg"}),
}


def from_torch(optimizer: Any, params: Any = None, **options: Any) -> optimizers.Optimizer:
    """Go on here where an optimizer of torch.optim stands: its groups' numbers, its states, its counts.

    Its rate is taken as it is now; a scheduler of torch's becomes an ``lr=`` of yours. torch itself is not imported.

    Args:
        optimizer: of a class of torch.optim that has a counterpart here, or of ``ravine.torch``; it is only read.
        params: arrays for the run to go on with, of the tensors' shapes and in their order, in any nesting. None: the
            tensors' own memory, by the names that the groups have, else as a list.
        options: more arguments of the class here, which count before torch's.

    Returns:
        An optimizer of the class of the same name, made with ``like="torch"``.

    Raises:
        TypeError: an optimizer of another class.
        ValueError: parameters that do not fit; groups of which some have what is one for all here, such as
            ``amsgrad``; ``lr_decay``, which is a schedule here; a state that is missing.

    >>> class Adam:  # as torch.optim.Adam is seen from here
    ...     param_groups = [{"params": [np.ones(2)], "lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-8, "weight_decay": 0}]
    ...     def state_dict(self):
    ...         states = {"step": 1.0, "exp_avg": np.full(2, 0.5), "exp_avg_sq": np.full(2, 0.1)}
    ...         return {"param_groups": [{**self.param_groups[0], "params": [0]}], "state": {0: states}}
    >>> opt = rv.convert.from_torch(Adam()); opt.steps, opt.lr, opt.state_dict()["states"]["0"]["m"]
    (1, 0.1, array([0.5, 0.5]))
    """
    kind = next((base.__name__ for base in type(optimizer).__mro__ if base.__name__ in _TORCH), None)
    if kind is None:
        raise TypeError(f"optimizer: expected one of torch's {', '.join(_TORCH)}, got {type(optimizer).__name__}")
    there, saved = _TORCH[kind], optimizer.state_dict()
    _check_torch(there, kind, saved)
    groups = saved["param_groups"]
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    params = _torch_params(optimizer, tensors, params)
    names = list(trees.leaves(params))
    decoupled = {bool(g.get("decoupled_weight_decay", kind in ("AdamW", "Lion"))) for g in groups}
    shapes = [{name: bool(g.get(name, False)) for name in there.shapes} for g in groups]
    if len(decoupled) > 1 or any(shape != shapes[0] for shape in shapes):
        what = [*there.shapes, "decoupled_weight_decay"]
        raise ValueError(f"optimizer: groups differ in one of {what}; make an optimizer for each")
    outside = decoupled.pop()
    numbers = [_torch_numbers(there, group, "weight_decay" if outside else "l2") for group in groups]
    ids, overrides = [number for group in groups for number in group["params"]], []
    for group, own in zip(groups, numbers, strict=True):
        different = {name: value for name, value in own.items() if value != numbers[0][name]}
        mine = [names[ids.index(number)] for number in group["params"]]
        overrides += [(glob.escape(name), different) for name in mine] if different else []
    cls: Any = getattr(optimizers, "AdamW" if kind == "Adam" and outside else kind)
    settings = {**numbers[0], **shapes[0], "groups": overrides, **options}
    if "like" not in settings and "torch" in conventions.systems(cls):
        settings["like"] = "torch"
    opt: optimizers.Optimizer = cls(params, **settings)
    states, counts = {}, {}
    for name, number in zip(names, ids, strict=True):
        own = saved["state"].get(number) or {}
        found = {ours: own.get(theirs) for ours, theirs in there.states.items() if own.get(theirs) is not None}
        counts[name] = int(float(own["step"])) if "step" in own else int(bool(found))
        # Adagrad's sum is there before the first step, with what it starts at.
        states[name] = found if counts[name] else {}
    return _filled(opt, states, counts, max(counts.values(), default=0))


#: Entries of a group that say nothing of the numbers: how the steps ran, and what schedulers note.
_NOTES = frozenset(
    {
        *("params", "param_names", "foreach", "fused", "capturable", "differentiable"),
        *("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr"),
    }
)


def _check_torch(there: _Torch, kind: str, saved: Mapping[str, Any]) -> None:
    """Refuse what would be dropped: numbers of a subclass, and a product of momenta that no constant β₁ has."""
    known = {*there.numbers.values(), *there.shapes, *_NOTES, "weight_decay", "maximize", "decoupled_weight_decay"}
    for group in saved["param_groups"]:
        if unknown := {k: v for k, v in group.items() if k not in known | {"lr_decay"} and v}:
            raise ValueError(f"optimizer: its groups have {unknown}; torch's {kind} has none of them, nor has ravine's")
        for number in group["params"] if kind == "NAdam" else ():
            own = saved["state"].get(number) or {}
            product, beta, decay = 1.0, float(group["betas"][0]), float(group["momentum_decay"])
            for t in range(1, int(float(own.get("step", 0))) + 1):
                product *= beta * (1 - 0.5 * 0.96 ** (t * decay))
                if product < 1e-9:
                    break
            if abs(product - float(own.get("mu_product", product))) > 1e-4:
                raise ValueError(
                    f"state[{number}]['mu_product']: expected {product}, of {beta} in every step, got "
                    f"{float(own['mu_product'])}: betas have changed, which has no place here"
                )


def _torch_params(optimizer: Any, tensors: list[Any], params: Any) -> Any:
    if params is None:
        names = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
        named = len({*names}) == len(tensors)
        arrays = [adopt(p, f"params[{i}]", True) for i, p in enumerate(tensors)]
        return dict(zip(names, arrays, strict=True)) if named else arrays
    leaves = trees.leaves(params)
    shapes = [tuple(p.shape) for p in tensors]
    if [tuple(w.shape) for w in leaves.values()] != shapes:
        raise ValueError(
            f"params: expected arrays of the shapes {shapes}, in this order, got "
            f"{ {name: tuple(w.shape) for name, w in leaves.items()} }"
        )
    return params


def _torch_numbers(there: _Torch, group: Mapping[str, Any], decay: str) -> dict[str, Any]:
    """Give a group's numbers by their names here."""
    if float(group.get("lr_decay", 0)):
        raise ValueError(f"lr_decay: expected 0, got {group['lr_decay']!r}; set it to 0, and pass lr= a schedule")
    given = {**there.numbers, decay: "weight_decay"}
    values = {ours: group[theirs] for ours, theirs in given.items() if theirs in group}
    plain = {k: tuple(map(float, v)) if isinstance(v, tuple | list) else float(v) for k, v in values.items()}
    if not plain.get("momentum", 1.0):
        plain.pop("dampening", None)  # of a buffer that there is not
    return plain | {"maximize": bool(group.get("maximize", False))}


# Runs of optax.

_ADAMS_STATE = {"m": ("ScaleByAdamState", "mu"), "v": ("ScaleByAdamState", "nu")}
_OF_RMS, _OF_STDDEV = (
    {"v": ("ScaleByRmsState", "nu")},
    {
        "v": ("ScaleByRStdDevState", "nu"),
        "a": ("ScaleByRStdDevState", "mu"),
    },
)
_TRACE = {"b": ("TraceState", "trace")}
#: Our rule → our state → the kind of state there, and its field.
_OPTAX: dict[str, dict[str, tuple[str, str]]] = {
    "sgd": {},
    "sign_sgd": {},
    "momentum": _TRACE,
    "nesterov": _TRACE,
    "adagrad": {"v": ("ScaleByRssState", "sum_of_squares")},
    "rmsprop": _OF_RMS,
    "rmsprop_momentum": _OF_RMS | _TRACE,
    "rmsprop_centered": _OF_STDDEV,
    "rmsprop_centered_momentum": _OF_STDDEV | _TRACE,
    "adam": _ADAMS_STATE,
    "adam_amsgrad": {
        "m": ("ScaleByAmsgradState", "mu"),
        "v": ("ScaleByAmsgradState", "nu"),
        "v_max": ("ScaleByAmsgradState", "nu_max"),
    },
    "adadelta": {"v": ("ScaleByAdaDeltaState", "e_g"), "u": ("ScaleByAdaDeltaState", "e_x")},
    "adamax": {"m": ("ScaleByAdamState", "mu"), "u": ("ScaleByAdamState", "nu")},
    "nadam": _ADAMS_STATE,
    "radam": _ADAMS_STATE,
    "lion": {"m": ("ScaleByLionState", "mu")},
    "signum": {"m": ("EmaState", "ema")},
    "adabelief": {"m": ("ScaleByBeliefState", "mu"), "v": ("ScaleByBeliefState", "nu")},
    "yogi": _ADAMS_STATE,
    "adan": {k: ("ScaleByAdanState", v) for k, v in {"m": "m", "v": "v", "n": "n", "g_previous": "g"}.items()},
    "ademamix": {k: ("ScaleByAdemamixState", v) for k, v in {"m": "m1", "n": "m2", "v": "nu"}.items()},
    "adopt": _ADAMS_STATE,
    "schedule_free_sgd": {"d": ("ScheduleFreeState", "z")},
    "schedule_free_adamw": {"d": ("ScheduleFreeState", "z"), "v": ("ScaleByRmsWithCountState", "nu")},
}
#: What ``optax.inject_hyperparams`` keeps → our argument; b1, b2 and b3 are betas.
_INJECTED = {
    "learning_rate": "lr",
    "momentum": "momentum",
    "decay": "decay",
    "rho": "rho",
    "eps": "eps",
    "weight_decay": "weight_decay",
    "initial_accumulator_value": "initial",
    "alpha": "alpha",
    "beta": "momentum",
}


#: States of optax that hold others, or a number that is taken.
_HOLDERS = ("MultiStepsState", "MaskedState", "ApplyIfFiniteState", "InjectHyperparamsState")
#: Those whose effect no state tells: the argument here that has to say it, and how.
_SAID = {
    "MaskedState": ("groups", "the mask is not in it: say with groups=[(pattern, {…})] which parameters differ, or []"),
    "ApplyIfFiniteState": ("nonfinite", "steps that are not finite were left out: say nonfinite='skip'"),
}


def from_optax(
    optimizer: type[optimizers.Optimizer],
    state: Any,
    params: Any,
    *,
    steps: int | None = None,
    pending: Literal["mean", "drop"] | None = None,
    **settings: Any,
) -> optimizers.Optimizer:
    """Go on here where a run of optax stands: its states and counts, in the class here that you name.

    optax's rules are functions, which tell nobody their numbers: you say them once more, in the words of the class;
    what is left out is optax's default. Where ``optax.inject_hyperparams`` keeps them in the state, they are taken from
    there. Neither optax nor jax is imported.

    Args:
        optimizer: the class here, such as ``rv.AdamW`` for ``optax.adamw``.
        state: what ``init`` or ``update`` of optax returned, of a rule or a chain with one; it is only read.
        params: writable arrays, NumPy's or CuPy's, in the nesting that optax has: ``jax.tree.map(np.array, params)``.
        steps: completed steps, where the state does not count them: for SGD, RMSprop, Adagrad and Adadelta with a
            constant rate. None: as many as it counts, else 1. Only schedules need it.
        pending: what to do with gradients that ``optax.MultiSteps`` has not used yet. ``"mean"``: they are the mean of
            so many micro-batches, as MultiSteps keeps them unless ``use_grad_mean=False``; they go where `accumulate`
            puts the next ones, for ``step()`` to take the mean of all. ``"drop"``: forget them. None: raise if there
            are any, for the state does not say whether they are a mean or a sum.
        settings: arguments of the class, ``lr`` above all.

    Returns:
        An optimizer made with ``like="optax"``.

    Raises:
        ValueError: a state without what the rule needs, or with what it does not know, such as that of ``lookahead``,
            named; other names or shapes, several rules in one state; gradients that are pending; a mask, a schedule or
            ``apply_if_finite``, of which the state does not hold all, unless ``settings`` has the argument for it; what
            ``like="optax"`` refuses.
        TypeError: no ``lr``.

    >>> from typing import NamedTuple
    >>> class ScaleByAdamState(NamedTuple):  # as optax's is seen from here
    ...     count: int
    ...     mu: dict
    ...     nu: dict
    >>> state = (ScaleByAdamState(1, {"w": np.full(2, 0.5)}, {"w": np.full(2, 0.1)}), ())
    >>> opt = rv.convert.from_optax(rv.AdamW, state, {"w": np.ones(2)}, lr=0.1)
    >>> opt.steps, opt.state_dict()["states"]["w"]["m"]
    (1, array([0.5, 0.5]))
    """
    nodes = list(_nodes(state))
    held = _pending(nodes, pending)
    opt = optimizer(params, **{"like": "optax", **_injected(nodes, settings), **settings})
    rule = opt._rule
    if rule not in _OPTAX:
        raise ValueError(f"optimizer: no state of optax is known for the rule {rule!r} of {optimizer.__name__}")
    _check_known(nodes, {kind for kind, _ in _OPTAX[rule].values()}, settings)
    t = _completed(nodes) if steps is None else steps
    found: dict[str, dict[str, Any]] = {name: {} for name in opt._engine.names}
    for ours, (kind, name) in _OPTAX[rule].items() if t else ():
        those = [getattr(node, name) for node in nodes if type(node).__name__ == kind]
        if len(those) != 1:
            have = sorted({type(node).__name__ for node in nodes})
            raise ValueError(
                f"state: expected one {kind} in it for {optimizer.__name__}, got {len(those)} among {have}"
            )
        leaves = trees.leaves(those[0])
        if leaves.keys() != found.keys():
            raise ValueError(f"state: {kind}.{name} is of the parameters {list(leaves)}, params are {list(found)}")
        for parameter, leaf in leaves.items():
            found[parameter][ours] = leaf
    if rule.startswith("rmsprop"):
        signs = {"b": -1.0}  # it adds what the trace holds
        found = {
            n: {k: signs[k] * adopt(x, n, False) if k in signs else x for k, x in of.items()} for n, of in found.items()
        }
    if rule.startswith("schedule_free") and t:
        # w = (1 − β)z + βx, so z − x = (z − w)/β.
        beta = opt._engine.hyper(0, "momentum" if rule == "schedule_free_sgd" else "beta1")
        for (name, of), w in zip(found.items(), opt._engine.parameters, strict=True):
            of["d"] = (adopt(of["d"], name, False).astype("float64") - w.astype("float64")) / beta
    _filled(opt, found, dict.fromkeys(found, t), t)
    if held is not None:
        opt.accumulate(_like_parameters(opt, held.acc_grads, params), weight=float(held.mini_step))
    return opt


def _pending(nodes: list[Any], choice: str | None) -> Any:
    """Give the state of MultiSteps if its gradients are to be taken."""
    if choice not in (None, "mean", "drop"):
        raise ValueError(f"pending: expected 'mean', 'drop' or None, got {choice!r}")
    held = [node for node in nodes if type(node).__name__ == "MultiStepsState" and int(node.mini_step)]
    if held and choice is None:
        raise ValueError(
            f"state: MultiStepsState holds the gradients of {int(held[0].mini_step)} micro-batches that no step has "
            "used, and not whether they are a mean; pass pending='mean' to go on with them (MultiSteps keeps the mean "
            "unless use_grad_mean=False), or pending='drop'"
        )
    return held[0] if held and choice == "mean" else None


def _like_parameters(opt: optimizers.Optimizer, gradients: Any, params: Any) -> Any:
    """Give gradients in the parameters' dtypes and nesting."""
    leaves, made = trees.leaves(gradients), []
    for name, w in zip(opt._engine.names, opt._engine.parameters, strict=True):
        where = f"state: MultiStepsState.acc_grads[{name!r}]"
        if name not in leaves:
            raise ValueError(f"{where}: expected one like its parameter, got those of {list(leaves)}")
        made.append(adopt(leaves[name], where, False).astype(w.dtype))
    given = iter(made)
    return trees.map(lambda _: next(given), params)


def _check_known(nodes: list[Any], own: set[str], settings: Mapping[str, Any]) -> None:
    """Refuse states that would be dropped; those of a count alone are taken by it."""
    for node in nodes:
        kind = type(node).__name__
        if kind in _SAID and _SAID[kind][0] not in settings:
            raise ValueError(f"state: {kind}: {_SAID[kind][1]}")
        counts = {*node._fields} <= {"count", "t", "step"}
        known = kind in own or kind in _HOLDERS or "hyperparams" in node._fields or counts
        if kind.endswith("State") and not known:
            raise ValueError(
                f"state: expected {sorted(own) or 'no states'} in it, got {kind} as well, which has no place here "
                f"(fields {list(node._fields)}); give the part of the state that is the rule's"
            )


def _nodes(state: Any) -> Iterator[Any]:
    """Give all named tuples in a state, and what they hold."""
    if hasattr(state, "_fields"):
        yield state
    if type(state).__name__ == "WrappedScheduleState":  # of a number there: `_injected` asks for it
        return
    children = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    for child in children:
        yield from _nodes(child)


def _completed(nodes: list[Any]) -> int:
    """Give the count of steps in a state; 1 if it has none."""
    counts = [getattr(node, name) for node in nodes for name in ("count", "t", "gradient_step") if name in node._fields]
    # Schedule-free rules count the step to come.
    counts += [node.step_count - 1 for node in nodes if "step_count" in node._fields]
    return max((int(count) for count in counts if getattr(count, "shape", ()) == ()), default=1)


def _injected(nodes: list[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the numbers that ``inject_hyperparams`` has put into a state."""
    injected = [node for node in nodes if "hyperparams" in node._fields]
    kept = {k: float(v) for node in injected for k, v in node.hyperparams.items()}
    scheduled = {k for node in injected for k in getattr(node, "hyperparams_states", None) or ()}
    places = {k: "betas" if k in ("b1", "b2", "b3") else _INJECTED.get(k, k) for k in (*kept, *scheduled)}
    for name in sorted(scheduled):
        if places[name] not in settings:
            raise ValueError(f"state: {name} is a schedule there, which it does not hold; pass {places[name]}=")
    unknown = {k: v for k, v in kept.items() if k not in _INJECTED and places[k] not in (*settings, "betas") and v}
    if unknown:
        raise ValueError(
            f"state: inject_hyperparams holds {unknown}, which have no place here; say them as arguments of the class"
        )
    numbers: dict[str, Any] = {_INJECTED[name]: value for name, value in kept.items() if name in _INJECTED}
    betas = tuple(kept[name] for name in ("b1", "b2", "b3") if name in kept)
    if len(betas) == 1 and "betas" not in settings:
        raise ValueError(f"state: inject_hyperparams holds one of the betas, {betas[0]}; pass betas=")
    return numbers | ({"betas": betas} if len(betas) > 1 else {})


def _filled(
    opt: optimizers.Optimizer, found: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int], steps: int
) -> optimizers.Optimizer:
    """Put states and counts into a new optimizer."""
    state, pairs = opt.state_dict(), opt._engine.complex_names
    for name, arrays in state["states"].items():
        for kind, own in arrays.items() if counts[name] else ():
            given = found[name].get(kind)
            if given is None:
                raise ValueError(
                    f"state of {name!r}: expected {kind}, which {opt._rule!r} needs, got {list(found[name])}"
                )
            array = adopt(given, f"state of {name!r}: {kind}", False)
            array = as_reals(array) if name in pairs else array
            if array.shape != own.shape:
                raise ValueError(f"state of {name!r}: expected {kind} of shape {own.shape}, got {array.shape}")
            arrays[kind] = array.astype(own.dtype)
    opt.load_state_dict(state | {"step": steps, "updates": dict(counts)})
    return opt
