"""The learning-rate range test: which rates train at all, found in one short run that leaves no trace."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ravine import _core, trees
from ravine.objective import Tree, loss_of
from ravine.optimizers import Optimizer

__all__ = ["LearningRateRange", "lr_range_test"]

#: How many steps at one rate show whether it trains.
_TRIAL = 50


@dataclass(frozen=True)
class LearningRateRange:
    """What `lr_range_test` measured.

    Attributes:
        lrs: the rates that were tried, rising geometrically.
        losses: the loss before the step at each of them.
        smoothed: the running average of the losses, corrected for its start.
        suggested: the rate at which the smoothed loss falls fastest, per factor of the rate, and after whose step it is
            lower; None if it does not fall.
        message: why the test ended, and what is suggested, in words.
    """

    lrs: np.ndarray[Any, np.dtype[np.float64]]
    losses: np.ndarray[Any, np.dtype[np.float64]]
    smoothed: np.ndarray[Any, np.dtype[np.float64]]
    suggested: float | None
    message: str


def lr_range_test(
    loss_and_grad: Callable[..., tuple[Any, Tree]],
    params: Tree,
    optimizer: Optimizer,
    batches: Iterable[Any] | None = None,
    *,
    lr_min: float = 1e-7,
    lr_max: float = 10.0,
    steps: int = 100,
    smoothing: float | None = None,
    stop_factor: float = 4.0,
) -> LearningRateRange:
    r"""Train with a rate that rises until the loss explodes; suggest one, and restore parameters and optimizer.

    .. math:: \gamma_i = \gamma_{\min} (\gamma_{\max}/\gamma_{\min})^{i/(n-1)}, \qquad
        \bar L_i = \frac{1-\beta}{1-\beta^{i+1}} \sum_{j \le i} \beta^{i-j} L_j

    Lᵢ₊₁ is the loss after the step at γᵢ. The suggestion is the γᵢ at which dL̄/d log γ is most negative, of those whose
    step came before the lowest L̄, so never the last. The first 1/(1 − β) points are not asked: there L̄ is the mean of
    few losses, and moves as they do. Without batches, 50 steps at the suggestion must not raise the loss; the next
    lower rate that passes is suggested otherwise. It is a start for trials, not an optimum: it depends on where
    training stands, and L̄ lags by about β/(1 − β) steps.

    Args:
        loss_and_grad: gives (loss, gradients in the nesting of params) of ``(params, *batch)``.
        params: what the optimizer was made from; restored bit for bit, also if an error is raised.
        optimizer: any of ravine's; its states, counts, rates and schedules are restored as well. Groups keep the ratios
            of their rates, and γ is the rate of the first parameter's. A schedule of the rate is put aside, others run.
        batches: tuples of arrays, or arrays, such as ``list(rv.data.minibatches(…))``; gone through again where they
            end, if they can be. None calls ``loss_and_grad(params)``.
        lr_min, lr_max: the first and the last rate, 0 < lr_min < lr_max.
        steps: n ≥ 3, how many rates.
        smoothing: β in [0, 1); 0.9 with batches, 0 without them, unless given.
        stop_factor: f > 1: end where L̄ is above the lowest so far, L*, by more than (f − 1)·max(|L*|, L̄₀ − L*): above a
            multiple of the best, and of what was gained, as momentum makes a small loss swing.

    Returns:
        A `LearningRateRange`.

    Raises:
        TypeError: an optimizer that is not ravine's.
        ValueError: params that are not the optimizer's, no batches, a first loss that is not finite, or an argument out
            of range.

    What else a step changes, such as the running statistics of batch normalisation, is the caller's to restore.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3; the smoothing, the end and
    the point of steepest descent are later practice.

    >>> w = np.array([1.0]); opt = rv.SGD(w, lr=0.1)
    >>> found = rv.lr_range_test(lambda w: (0.5 * (w**2).sum(), w.copy()), w, opt, lr_min=1e-3, lr_max=100.0)
    >>> 0.01 < found.suggested < 2                      # above 2 this loss grows at each step
    True
    >>> w, opt.lr
    (array([1.]), 0.1)
    """
    n, beta = operator.index(steps), (0.0 if batches is None else 0.9) if smoothing is None else float(smoothing)
    if not 0 < lr_min < lr_max < math.inf:
        raise ValueError(f"lr_min, lr_max: expected 0 < lr_min < lr_max, got {lr_min!r} and {lr_max!r}")
    if n < 3:
        raise ValueError(f"steps: expected an integer >= 3, got {n}")
    if not 0 <= beta < 1:
        raise ValueError(f"smoothing: expected a number in [0, 1), got {smoothing!r}")
    if not 1 < stop_factor < math.inf:
        raise ValueError(f"stop_factor: expected a finite number > 1, got {stop_factor!r}")
    arrays = _arrays(params, optimizer)
    lrs = np.geomspace(lr_min, lr_max, n)
    saved = [array.copy() for array in arrays]

    def put_back() -> None:
        for array, copy in zip(arrays, saved, strict=True):
            array[...] = copy

    def train(rates: list[float], given: Iterable[Any] | None) -> tuple[list[float], list[float], str]:
        try:
            with optimizer._on_trial() as set_lr:
                return _train(loss_and_grad, params, optimizer, set_lr, rates, _endless(given), beta, stop_factor)
        finally:
            _core.uninterrupted(put_back, again=True)

    losses, smoothed, end = train(lrs.tolist(), batches)
    lrs = lrs[: len(losses)]
    fastest = _steepest(lrs, smoothed, skip=round(1 / (1 - beta)) - 1)
    if fastest is None:
        return LearningRateRange(
            lrs, np.array(losses), np.array(smoothed), None, f"{end}; the loss does not fall at any of these rates"
        )
    suggested, message = fastest, f"{end}; it falls fastest at {lrs[fastest]:.2g}"
    while batches is None and suggested > 0 and not _trains(*train([float(lrs[suggested])] * _TRIAL, None)[:2]):
        suggested -= 1
    if suggested < fastest:
        message += f", where {_TRIAL} steps raise it; at {lrs[suggested]:.2g} they do not"
    return LearningRateRange(lrs, np.array(losses), np.array(smoothed), float(lrs[suggested]), message)


def _trains(losses: list[float], smoothed: list[float]) -> bool:
    """Whether the steps at one rate were all made and end no higher than they began."""
    return len(losses) == _TRIAL and smoothed[-1] <= smoothed[0]


def _train(
    loss_and_grad: Callable[..., tuple[Any, Tree]],
    params: Tree,
    optimizer: Optimizer,
    set_lr: Callable[[float], None],
    lrs: list[float],
    batches: Iterator[tuple[Any, ...]],
    beta: float,
    stop_factor: float,
) -> tuple[list[float], list[float], str]:
    losses: list[float] = []
    smoothed: list[float] = []
    average, best = 0.0, math.inf
    for i, lr in enumerate(lrs):
        batch = next(batches, None)
        if batch is None:
            if not losses:
                raise ValueError("batches: expected at least one, got none")
            return losses, smoothed, f"the batches ended after {i} steps, at the rate {lrs[i - 1]:.2g}"
        result = loss_and_grad(params, *batch)
        if not (isinstance(result, tuple | list) and len(result) == 2):
            raise TypeError(f"loss_and_grad: expected (loss, gradients), got {type(result).__name__}; return both")
        value, grads = result
        loss = loss_of(value)
        if not math.isfinite(loss):
            if not losses:
                raise ValueError(f"loss_and_grad: expected a finite loss at the start, got {loss}")
            return losses, smoothed, f"the loss is not finite from the rate {lr:.2g} on"
        average = beta * average + (1 - beta) * loss
        losses.append(loss)
        smoothed.append(average / (1 - beta ** (i + 1)))
        best = min(best, smoothed[-1])
        if smoothed[-1] > best + (stop_factor - 1) * max(abs(best), smoothed[0] - best):
            return losses, smoothed, f"the loss exploded at the rate {lr:.2g}"
        set_lr(lr)
        try:
            optimizer.step(grads)
        except FloatingPointError:  # nonfinite="raise"
            return losses, smoothed, f"the gradients are not finite from the rate {lr:.2g} on"
    return losses, smoothed, f"all rates up to {lrs[-1]:.2g} were tried and the loss did not explode"


def _steepest(lrs: np.ndarray[Any, Any], smoothed: list[float], skip: int) -> int | None:
    lowest = int(np.argmin(smoothed))
    if lowest <= skip:
        return None
    slopes = np.gradient(np.array(smoothed), np.log(lrs))
    # Not the rate of the lowest loss itself: what its step does is seen in the next loss, which is higher or unknown.
    return skip + int(np.argmin(slopes[skip:lowest]))


def _endless(batches: Iterable[Any] | None) -> Iterator[tuple[Any, ...]]:
    """Give arguments for each step, until the batches end that cannot be gone through again."""
    while True:
        batch = None
        for batch in [()] if batches is None else batches:
            yield tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if batch is None:
            return


def _arrays(params: Tree, optimizer: Optimizer) -> list[Any]:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected one of ravine's, got {type(optimizer).__name__}")
    leaves = trees.leaves(params)
    if {id(array) for array in leaves.values()} != {id(array) for array in optimizer._engine.arrays}:
        raise ValueError("params: expected the arrays that the optimizer was made from, got others")
    bound: list[Any] = optimizer._engine.arrays
    return bound
