"""thinc's optimizers over the kernels of this package: a thinc or spaCy model trains with them, on NumPy and CuPy.

The functions take the arguments of thinc's of the same name, and return what `Model.finish_update` and spaCy's training
loop call. In a spaCy configuration it is the name alone that changes::

    [training.optimizer]
    @optimizers = "ravine.Adam.v1"

What differs from thinc: SGD has momentum, and there is Lion. Decoupled decay is on the old weights, not on those that
the step has made. The averages start at the first weights, not at 0. A gradient that holds NaN is zeroed afterwards
like any other, which ``gradient *= 0`` does not do. thinc itself is not imported.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from numbers import Real
from typing import Any, Self

from ravine import _core
from ravine.backends import array_module, backend_of, new_states
from ravine.norms import clip_by_global_norm_

__all__ = ["SGD", "Adam", "Lion", "Optimizer"]


class Optimizer:
    """One update for each call, with states by key: what thinc calls an optimizer.

    Args:
        rule: a rule of this package, by its name.
        learn_rate: γ ≥ 0: a number, a list, a generator, a schedule of this package or of thinc's. The last number of a
            list or a generator stays; one without any raises.
        hyper: the rule's other numbers, each of them a number or a schedule.
        L2: λ ≥ 0, the same.
        L2_is_weight_decay: decoupled decay; else coupled, on the gradient before it is clipped.
        grad_clip: the greatest norm of a parameter's gradient, each for itself; 0 does not clip.
        use_averages: keep running averages of the weights in ``averages``, for ``Model.use_params``.

    Attributes:
        averages: key → array; None without.
        step: how often ``step_schedules`` was called.
        last_score: what the training loop last said of the model, for thinc's schedules.

    Raises:
        ValueError: an unknown rule, an empty list; in a call, an empty generator, a number out of range or arrays that
            do not fit, named by the key.
        TypeError: something else for a schedule; in a call, arrays that are not float.

    >>> optimizer = ravine.thinc.Optimizer("lion", 0.25, beta1=0.9, beta2=0.99)
    >>> w, g = np.array([1.0, 2.0], np.float32), np.array([3.0, -4.0], np.float32)
    >>> _ = optimizer((1, "W"), w, g); w, g
    (array([0.75, 2.25], dtype=float32), array([0., 0.], dtype=float32))
    """

    def __init__(
        self,
        rule: str,
        learn_rate: Any,
        *,
        L2: Any = 0.0,
        L2_is_weight_decay: bool = True,
        grad_clip: Any = 0.0,
        use_averages: bool = False,
        **hyper: Any,
    ) -> None:
        known = _core.rules()
        if rule not in known:
            raise ValueError(f"rule: expected one of {sorted(known)}, got {rule!r}")
        if unknown := hyper.keys() - known[rule]["hyperparameters"].keys():
            raise TypeError(f"{rule}: unknown {sorted(unknown)}; it takes {list(known[rule]['hyperparameters'])}")
        self._rule, self._kinds = rule, list(known[rule]["states"])
        self._decay = "weight_decay" if L2_is_weight_decay else "l2"
        numbers = {"lr": learn_rate, **hyper}
        self._numbers = {name: _Number(name, value) for name, value in numbers.items()}
        self._L2, self._grad_clip = _Number("L2", L2), _Number("grad_clip", grad_clip)
        #: The numbers that were last found to be in their ranges.
        self._checked: tuple[list[tuple[str, float]], float] | None = None
        self._states: dict[Any, list[tuple[str, Any]]] = {}
        self._updates: dict[Any, int] = {}
        self.averages: dict[Any, Any] | None = {} if use_averages else None
        self.step = 0
        self._last_score: tuple[int, float] | None = None

    def __call__(self, key: Any, weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> tuple[Any, Any]:
        """Update the weights in place, zero the gradient, and return both.

        Args:
            key: whose states to use; thinc's is ``(model id, name)``.
            weights: a NumPy or CuPy array; changed in place.
            gradient: of the same shape; zero afterwards.
            lr_scale: multiplies the learning rate.
        """
        if gradient.size == 0:
            return weights, gradient
        context = {"key": key, "last_score": self._last_score}
        hyper = [(name, number(self.step, context)) for name, number in self._numbers.items()]
        hyper[0] = ("lr", hyper[0][1] * lr_scale)
        decay, clip = self._L2(self.step, context), self._grad_clip(self.step, context)
        self._check(key, [*hyper, (self._decay, decay)], clip)
        backend = backend_of(weights)
        if key not in self._states:
            dtype = "float64" if weights.dtype == "float64" else "float32"
            states = new_states(backend, self._rule, weights.shape, dtype)
            self._states[key] = list(zip(self._kinds, states, strict=True))
        t = self._updates.get(key, 0) + 1
        try:
            if clip:
                # thinc adds the coupled decay before it clips, the core after.
                if decay and self._decay == "l2":
                    gradient += decay * weights
                    decay = 0.0
                clip_by_global_norm_(gradient, clip)
            backend.apply(self._rule, [*hyper, (self._decay, decay)], t, weights, gradient, self._states[key])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{key}: {error}") from error
        self._updates[key] = t
        gradient[...] = 0
        if self.averages is not None:
            self._average(key, weights, t)
        return weights, gradient

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # the states are its own

    def _check(self, key: Any, hyper: list[tuple[str, float]], clip: float) -> None:
        """Refuse numbers out of range before the gradient is clipped."""
        if (hyper, clip) == self._checked:
            return
        try:
            ranges = _core.Engine(self._rule, {}, lambda _: [], lambda *_: [], None, None, "propagate")
            for name, value in hyper:
                ranges.check_hyper(name, value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        if not 0 <= clip < math.inf:
            raise ValueError(f"{key}: grad_clip: expected a finite number >= 0, got {clip!r}")
        self._checked = (hyper, clip)

    def _average(self, key: Any, weights: Any, t: int) -> None:
        assert self.averages is not None
        if key not in self.averages:
            self.averages[key] = array_module(weights).array(weights, dtype="float32")
            return
        kept = min((1 + t) / (10 + t), 0.9999)
        average = self.averages[key]
        average *= kept
        average += (1 - kept) * weights

    def step_schedules(self) -> None:
        """Go on to the schedules' next values: once a batch."""
        self.step += 1

    @property
    def learn_rate(self) -> float:
        """The learning rate now."""
        return self._numbers["lr"](self.step, {"key": None, "last_score": self._last_score})

    @property
    def last_score(self) -> tuple[int, float] | None:
        """The step and the score of the last evaluation; set to the score."""
        return self._last_score

    @last_score.setter
    def last_score(self, score: float) -> None:
        self._last_score = (self.step, score)


class _Number:
    """A number at each step, from all that thinc and this package take for one."""

    def __init__(self, name: str, value: Any) -> None:
        self._name = name
        self._values: Iterator[Any] | None = None
        self._call: Callable[..., Any] | None = None
        self._told, self._at, self._last = False, -1, 0.0
        if callable(value):
            self._call, self._told = value, _is_told(value)
        elif isinstance(value, Real) or getattr(value, "shape", None) == ():
            self._last = self._float(value, "")
        elif hasattr(value, "__len__") and _is_ordered(value):
            numbers = [self._float(x, f" at place {i}") for i, x in enumerate(value)]
            if not numbers:
                raise ValueError(f"{name}: expected at least one number, got {value!r}")
            self._values = iter(numbers)
        elif hasattr(value, "__iter__") and _is_ordered(value):
            self._values = iter(value)
        else:
            raise TypeError(f"{name}: expected a number, a list, a generator or a schedule, got {value!r}")

    def __call__(self, step: int, context: dict[str, Any]) -> float:
        if self._call is not None:
            value = self._call(step, **context) if self._told else self._call(step)
            return self._float(value, f" from the schedule at step {step}")
        while self._values is not None and self._at < step:
            try:
                value = next(self._values)
            except StopIteration:  # used up: its last value stays
                if self._at < 0:
                    raise ValueError(f"{self._name}: expected at least one number, got a generator of none") from None
                break
            self._last = self._float(value, f" at place {self._at + 1}")
            self._at += 1
        return self._last

    def _float(self, value: Any, where: str) -> float:
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self._name}: expected a number{where}, got {value!r}") from error


def _is_told(schedule: Callable[..., Any]) -> bool:
    """Whether a schedule takes the key and the last score, as thinc's do."""
    try:
        parameters = inspect.signature(schedule).parameters.values()
    except (TypeError, ValueError):  # of C
        return False
    return inspect.Parameter.VAR_KEYWORD in {parameter.kind for parameter in parameters}


def _is_ordered(values: Any) -> bool:
    return not isinstance(values, str | bytes | bytearray | Mapping | AbstractSet)


def Adam(  # noqa: N802
    learn_rate: Any = 0.001,
    *,
    L2: Any = 0.0,
    beta1: Any = 0.9,
    beta2: Any = 0.999,
    eps: Any = 1e-8,
    grad_clip: Any = 1.0,
    L2_is_weight_decay: bool = True,
    use_averages: bool = True,
) -> Optimizer:
    """Make thinc's ``Adam.v1``: ε is added before the correction, as in the paper's shorter form.

    Args:
        learn_rate, L2, L2_is_weight_decay, grad_clip, use_averages: see :class:`Optimizer`.
        beta1, beta2, eps: β₁, β₂ and ε of :class:`ravine.Adam`, numbers or schedules.

    >>> from thinc.api import Linear
    >>> model = Linear(2, 3).initialize()
    >>> y, backprop = model(np.ones((4, 3), np.float32), is_train=True)
    >>> _ = backprop(y); model.finish_update(ravine.thinc.Adam(0.01))
    """
    hyper = {"beta1": beta1, "beta2": beta2, "eps": eps, "bias_correction": 1.0, "eps_hat": 1.0}
    common = {"L2": L2, "L2_is_weight_decay": L2_is_weight_decay, "grad_clip": grad_clip}
    return Optimizer("adam", learn_rate, use_averages=use_averages, **common, **hyper)


def SGD(  # noqa: N802
    learn_rate: Any,
    *,
    L2: Any = 0.0,
    grad_clip: Any = 1.0,
    L2_is_weight_decay: bool = True,
    use_averages: bool = True,
    momentum: Any = 0.0,
) -> Optimizer:
    """Make thinc's ``SGD.v1``, with the momentum that it does not have.

    Args:
        learn_rate, L2, L2_is_weight_decay, grad_clip, use_averages: see :class:`Optimizer`.
        momentum: μ of :class:`ravine.SGD`, a number or a schedule; 0 is plain descent.

    >>> optimizer = ravine.thinc.SGD(0.25, momentum=0.5, grad_clip=0)
    >>> w = np.ones(2, np.float32); _ = optimizer((1, "W"), w, np.ones(2, np.float32)); w
    array([0.75, 0.75], dtype=float32)
    """
    common = {"L2": L2, "L2_is_weight_decay": L2_is_weight_decay, "grad_clip": grad_clip, "use_averages": use_averages}
    if isinstance(momentum, Real) and momentum == 0:
        return Optimizer("sgd", learn_rate, **common)
    return Optimizer("momentum", learn_rate, momentum=momentum, **common)


def Lion(  # noqa: N802
    learn_rate: Any = 1e-4,
    *,
    L2: Any = 0.0,
    beta1: Any = 0.9,
    beta2: Any = 0.99,
    L2_is_weight_decay: bool = True,
    use_averages: bool = False,
) -> Optimizer:
    """Make a Lion for thinc. The size of its step does not depend on the gradient's, so nothing is clipped.

    Args:
        learn_rate, L2, L2_is_weight_decay, use_averages: see :class:`Optimizer`.
        beta1, beta2: β₁ and β₂ of :class:`ravine.Lion`, numbers or schedules.

    >>> ravine.thinc.Lion(0.25).learn_rate
    0.25
    """
    common = {"L2": L2, "L2_is_weight_decay": L2_is_weight_decay, "use_averages": use_averages}
    return Optimizer("lion", learn_rate, beta1=beta1, beta2=beta2, **common)
