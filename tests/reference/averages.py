"""Averages of points and Lookahead in float64, as their papers write them: weights and sums, no running update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def chosen(points: Sequence[Any], start: int, every: int) -> list[Array]:
    """Pick what counts: the points after ``start``, each ``every``-th of them."""
    return [np.asarray(point, np.float64) for point in points[start:]][every - 1 :: every]


def swa(points: Sequence[Any], start: int = 0, every: int = 1) -> Array:
    """Mean of the points.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018, section 3.2.
    """
    return np.asarray(np.mean(chosen(points, start, every), axis=0))


def ema(points: Sequence[Any], decay: float, warmup: bool, start: int = 0, every: int = 1) -> Array:
    """Sum of all points, each with its own weight times the weights of the past of all that follow.

    The first weighs 1; the n-th 1 − d, d = decay, or with a warm-up what is smaller of it and (1 + n)/(10 + n).
    """
    counted = chosen(points, start, every)
    decays = [min(decay, (1 + n) / (10 + n)) if warmup else decay for n in range(1, len(counted) + 1)]
    decays[0] = 0.0
    weights = [(1 - d) * np.prod(decays[n + 1 :]) for n, d in enumerate(decays)]
    return np.asarray(sum(weight * point for weight, point in zip(weights, counted, strict=True)))


def lookahead(
    slow: Array, inner: Callable[[Array, Any], Array], batches: Sequence[Any], k: int, alpha: float
) -> tuple[list[Array], list[Array]]:
    """All fast and all slow weights; in the fast ones' list, slow ones stand where they replace the fast.

    Source: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", 2019, Algorithm 1.
    """
    fast_weights, slow_weights = [], [slow]
    for t in range(0, len(batches), k):
        fast = slow
        for batch in batches[t : t + k]:
            fast = inner(fast, batch)
            fast_weights.append(fast)
        if len(fast_weights) == t + k:
            slow = slow + alpha * (fast - slow)
            slow_weights.append(slow)
            fast_weights[-1] = slow
    return fast_weights, slow_weights
