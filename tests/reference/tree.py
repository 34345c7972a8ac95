"""The canonical summation tree, literally: the order in which sums are taken, to be compared byte for byte.

A sequence is cut into blocks of 4096; in a block, lane i mod 64 adds its terms in rising order of i, from +0.0; lanes
fold by halving; blocks combine by adjacent pairs, level by level, an odd last one moving up. A lane without terms stays
+0.0 and takes part in the folding. Each tensor starts a new block, tensors combine by the same pairs.

Channels-last data, (rows, channels), has a tree per channel: blocks of 4096 rows, 8 lanes, the same pairs.

Every sum here is a float64 addition of two numbers; none is NumPy's own ``sum``, which chooses its order itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Values = Callable[[Array], Array]

BLOCK = 4096
LANES = 64
ROW_LANES = 8


def combine(sums: Sequence[float]) -> float:
    """Combine by adjacent pairs, level by level; an odd last one moves up as it is. Nothing gives +0.0."""
    level = [np.float64(s) for s in sums]
    if not level:
        return 0.0
    with np.errstate(all="ignore"):
        while len(level) > 1:
            pairs = [level[k] + level[k + 1] for k in range(0, len(level) - 1, 2)]
            level = pairs + level[len(level) // 2 * 2 :]
    return float(level[0])


def block_sum(terms: Array) -> float:
    """Sum one block of at most 4096 terms by 64 lanes."""
    lanes = np.zeros(LANES)
    for start in range(0, len(terms), LANES):
        row = terms[start : start + LANES]
        lanes[: len(row)] += row
    width = LANES
    while width > 1:
        width //= 2
        for l in range(width):
            lanes[l] += lanes[l + width]
    return float(lanes[0])


def sum_tree(terms: ArrayLike, values: Values | None = None) -> float:
    """Sum a tensor's terms in logical C order; ``values`` maps its elements, as float64, to the terms."""
    x = np.asarray(terms).astype(np.float64).reshape(-1)
    with np.errstate(all="ignore"):
        x = x if values is None else values(x)
        return combine([block_sum(x[start : start + BLOCK]) for start in range(0, len(x), BLOCK)])


def sum_tensors(tensors: Sequence[ArrayLike], values: Values | None = None) -> float:
    """Sum a list of tensors: each by its own tree, an empty one gives +0.0, then ``combine``."""
    return combine([sum_tree(tensor, values) for tensor in tensors])


def sum_squares(tensors: Sequence[ArrayLike]) -> float:
    """Sum the squares of all elements of all tensors."""
    return sum_tensors(tensors, np.square)


class Norm(float):
    """The root of a sum of squares: root·2^power, which does not overflow, and its float, which may."""

    root: float
    power: int

    def __new__(cls, root: float, power: int = 0) -> Self:
        with np.errstate(all="ignore"):
            norm = super().__new__(cls, np.ldexp(root, power))
        norm.root, norm.power = float(root), power
        return norm


def norm_tensors(tensors: Sequence[ArrayLike]) -> Norm:
    """Take the root of the sum of squares: by a scaled pass where, and only where, the squares overflow or underflow.

    That is: all elements are finite and the sum is not, or the sum is below 2^-900 and some element is not 0. Then all
    elements are multiplied by 2^-k, k the exponent of the largest.
    """
    total = sum_squares(tensors)
    if total == np.inf or total < 2.0**-900:
        elements = [np.abs(np.asarray(tensor).astype(np.float64)).reshape(-1) for tensor in tensors]
        largest = max((float(x.max()) for x in elements if x.size), default=0.0)
        if 0.0 < largest < np.inf:
            power = int(np.frexp(largest)[1]) - 1
            return Norm(np.sqrt(sum_tensors(tensors, lambda x: np.square(np.ldexp(x, -power)))), power)
    return Norm(np.sqrt(total))


def sum_tree_rows(terms: ArrayLike, values: Values | None = None) -> Array:
    """Sum (rows, channels) over its rows: block = row // 4096, lane = row mod 8, lanes fold by +4, +2, +1."""
    x = np.asarray(terms).astype(np.float64)
    with np.errstate(all="ignore"):
        x = x if values is None else values(x)
        rows, channels = x.shape
        blocks = []
        for start in range(0, rows, BLOCK):
            block = x[start : start + BLOCK]
            lanes = np.zeros((ROW_LANES, channels))
            for r in range(len(block)):
                lanes[r % ROW_LANES] += block[r]
            for width in (4, 2, 1):
                for l in range(width):
                    lanes[l] += lanes[l + width]
            blocks.append(lanes[0])
    return np.array([combine([block[c] for block in blocks]) for c in range(channels)], np.float64)
