"""NumPy or CuPy? The only place that asks."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from ravine import _core
from ravine.backends import cpu

__all__ = ["array_module", "backend_for"]


def array_module(x: Any) -> Any:
    """Return the module that works on ``x``: NumPy, or CuPy if x came from there; never imports CuPy."""
    return sys.modules["cupy"] if type(x).__module__.partition(".")[0] == "cupy" else np


def backend_for(tree: Any) -> ModuleType:
    """Return the module whose ``Engine`` and ``zeros`` serve the arrays of ``tree``."""
    for name, leaf in _core.flatten(tree):
        if array_module(leaf) is not np:
            raise TypeError(f"params[{name!r}]: CuPy arrays have no optimizer yet; pass cupy.asnumpy(...)")
    return cpu
