"""NumPy arrays: the compiled core."""

from __future__ import annotations

from typing import Any

import numpy as np

from ravine._core import Engine

__all__ = ["Engine", "zeros"]


def zeros(shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    """Return a new state array. NumPy asks for huge pages from 4 MB on: the first step is five times as fast."""
    return np.zeros(shape, dtype)
