"""Steps over the rows of a table that have a gradient, in float64, as torch.optim documents them for sparse gradients.

SparseAdam: "a masked version of the Adam algorithm suitable for sparse gradients": moments and parameters are updated
where the gradient has entries, with the step count of the parameter. SGD and Adagrad do the same. A row that occurs
several times has the sum of its values, as a coalesced sparse tensor has.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["lazy_adagrad", "lazy_adam", "lazy_sgd", "summed"]


def summed(indices: Any, values: Any) -> dict[int, Any]:
    """Add up the values of each row, in order of occurrence."""
    rows: dict[int, Any] = {}
    for index, value in zip(indices.tolist(), values.astype(np.float64), strict=True):
        rows[index] = rows[index] + value if index in rows else value
    return rows


def lazy_sgd(w: Any, rows: dict[int, Any], states: list[Any], t: int, lr: float) -> None:
    """Change w in place."""
    for r, g in rows.items():
        w[r] -= lr * g


def lazy_adagrad(w: Any, rows: dict[int, Any], states: list[Any], t: int, lr: float, eps: float) -> None:
    """Change w and its sum of squares in place."""
    (v,) = states
    for r, g in rows.items():
        v[r] += g * g
        w[r] -= lr * g / (np.sqrt(v[r]) + eps)


def lazy_adam(
    w: Any, rows: dict[int, Any], states: list[Any], t: int, lr: float, betas: tuple[float, float], eps: float
) -> None:
    """Change w and its moments in place."""
    m, v = states
    b1, b2 = betas
    for r, g in rows.items():
        m[r] = b1 * m[r] + (1 - b1) * g
        v[r] = b2 * v[r] + (1 - b2) * g * g
        w[r] -= lr * (m[r] / (1 - b1**t)) / (np.sqrt(v[r] / (1 - math.pow(b2, t))) + eps)
