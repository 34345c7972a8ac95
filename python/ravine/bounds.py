"""Bounds of parameters: how they are given, and what they hold back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ravine import trees
from ravine.backends import is_array
from ravine.objective import Array, Objective, Tree

__all__ = ["Box", "bounds_of"]


class Box:
    """Lower and upper bounds of every element, as vectors.

    Args:
        low, high: the bounds; −inf and inf where there is none.
        xp: the vectors' array library.

    >>> box = rv.bounds.Box(np.array([0.0, -np.inf]), np.array([1.0, np.inf]), np)
    >>> box.clip(np.array([2.0, 2.0])), box.free(np.array([1.0, 2.0]), np.array([-3.0, -3.0]))
    (array([1., 2.]), array([ 0., -3.]))
    """

    def __init__(self, low: Array, high: Array, xp: Any) -> None:
        self.low, self.high, self._xp = low, high, xp

    def clip(self, x: Array) -> Array:
        """Return the nearest point within the bounds."""
        return self._xp.minimum(self._xp.maximum(x, self.low), self.high)

    def held(self, x: Array, gradient: Array) -> Array:
        """Return where a bound holds back what descends: at it, with the gradient pointing inwards."""
        return ((x <= self.low) & (gradient > 0)) | ((x >= self.high) & (gradient < 0))

    def free(self, x: Array, gradient: Array) -> Array:
        """Return the projected gradient: x less the nearest point to x − g, the gradient as far as bounds let it go."""
        # Not by x − g itself, in which a small g is lost.
        xp = self._xp
        return xp.where(gradient > 0, xp.minimum(gradient, x - self.low), xp.maximum(gradient, x - self.high))

    def diameter(self, among: Array) -> float:
        """Return how far two points can be apart in some elements; 1 where that has no limit, or is 0."""
        with np.errstate(over="ignore"):
            width = (self.high - self.low)[among]
            length = math.sqrt(float((width * width).sum()))
        return length if 0 < length < math.inf else 1.0

    def reach(self, x: Array, direction: Array) -> float:
        """Return the largest α with x + α·direction within the bounds, inf if there is none."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            room = self._xp.where(direction > 0, self.high - x, self.low - x) / direction
        room = self._xp.where(direction == 0, math.inf, room)
        return float(room.min())


def bounds_of(bounds: Any, objective: Objective) -> Box:
    """Return the bounds of all elements, rounded inwards to what the parameters' dtypes hold.

    Args:
        bounds: a pair (low, high) for all; or a nesting like the parameters' with a pair for each array, or None. Low
            and high are numbers, None or arrays that broadcast to the parameter. As scipy has them: ``Bounds(lb, ub)``
            in place of a pair, and for one parameter of n elements a list of n pairs.
        objective: what has the parameters.

    Raises:
        TypeError, ValueError: another nesting or shape, low above high, NaN, named by the parameter.

    >>> from ravine.objective import Objective
    >>> rv.bounds.bounds_of((0, None), Objective(lambda w: (w @ w, 2 * w), np.zeros(2))).low
    array([0., 0.])
    """
    lows, highs = [], []
    for (name, array), pair in zip(objective.leaves.items(), _pairs(objective.params, bounds, ""), strict=True):
        low, high = (_array(end, none, name, array) for end, none in zip(pair, (-math.inf, math.inf), strict=True))
        wrong = np.argwhere(~(low <= high))
        if len(wrong):
            at = tuple(wrong[0].tolist())
            of = f"{name}{list(at)}" if at else name
            raise ValueError(f"bounds: {of}: expected low <= high, got low {low[at]} and high {high[at]}")
        low, high = _inwards(low, array.dtype, math.inf), _inwards(high, array.dtype, -math.inf)
        if not bool(((low <= high) & (low < math.inf) & (high > -math.inf)).all()):
            raise ValueError(f"bounds: {name}: expected a {array.dtype.name} between low and high, got none")
        lows.append(low.reshape(-1))
        highs.append(high.reshape(-1))
    return Box(objective.put(np.concatenate(lows)), objective.put(np.concatenate(highs)), objective.xp)


def _is_end(x: Any) -> bool:
    return x is None or np.isscalar(x) or hasattr(x, "__array__")


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple | list) and len(x) == 2 and all(map(_is_end, x))


def _pairs(params: Tree, bounds: Any, path: str) -> Iterator[tuple[Any, Any]]:
    """Give low and high of each parameter, in the order of the leaves; a pair holds for all that is nested below."""
    if bounds is None:
        bounds = (None, None)
    elif hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        bounds = (bounds.lb, bounds.ub)
    if not isinstance(params, dict | list | tuple):
        yield _of_leaf(params, bounds, path or "params")
    elif _is_pair(bounds):
        for _ in trees.leaves(params):
            yield bounds
    elif isinstance(params, dict):
        if not isinstance(bounds, dict) or bounds.keys() != params.keys():
            got = list(bounds) if isinstance(bounds, dict) else type(bounds).__name__
            raise ValueError(f"bounds{path and ': ' + path}: expected a pair or a dict of {list(params)}, got {got}")
        for key, item in params.items():
            yield from _pairs(item, bounds[key], f"{path}.{key}" if path else str(key))
    else:
        if not isinstance(bounds, list | tuple) or len(bounds) != len(params):
            got = f"{len(bounds)}" if isinstance(bounds, list | tuple) else type(bounds).__name__
            raise ValueError(f"bounds{path and ': ' + path}: expected a pair or {len(params)} of them, got {got}")
        for i, (item, inner) in enumerate(zip(params, bounds, strict=True)):
            yield from _pairs(item, inner, f"{path}.{i}" if path else str(i))


def _of_leaf(array: Array, bounds: Any, name: str) -> tuple[Any, Any]:
    if _is_pair(bounds):
        return bounds[0], bounds[1]
    rows = list(bounds) if isinstance(bounds, list | tuple) or getattr(bounds, "ndim", 0) == 2 else []
    if array.ndim == 1 and len(rows) == array.size and all(len(row) == 2 for row in rows if not _is_end(row)):
        pairs = [(None, None) if row is None else tuple(row) for row in rows]
        return [-math.inf if low is None else low for low, _ in pairs], [
            math.inf if high is None else high for _, high in pairs
        ]
    raise ValueError(
        f"bounds: {name}: expected (low, high), None for an open end, or {array.size} such pairs, got {bounds!r:.60}"
    )


def _array(end: Any, none: float, name: str, array: Array) -> np.ndarray[Any, Any]:
    """Return one end for every element."""
    if is_array(end):
        end = trees.to_host(end)
    try:
        return np.broadcast_to(np.asarray(none if end is None else end, np.float64), array.shape)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"bounds: {name}: expected numbers of shape {array.shape}, got {end!r:.60}: {error}"
        ) from error


def _inwards(end: np.ndarray[Any, Any], dtype: Any, towards: float) -> np.ndarray[Any, Any]:
    """Return numbers of the dtype, as float64, that are not outside."""
    with np.errstate(over="ignore"):
        rounded = end.astype(dtype)
        outside = rounded < end if towards > 0 else rounded > end
        return np.where(outside, np.nextafter(rounded, dtype.type(towards)), rounded).astype(np.float64)
