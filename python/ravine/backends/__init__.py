"""NumPy or CuPy? The only place that asks."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ravine import _core
from ravine.backends import cpu

__all__ = ["backend_for"]


def backend_for(tree: Any) -> ModuleType:
    """Return the module whose ``Engine`` and ``zeros`` serve the arrays of ``tree``."""
    for name, leaf in _core.flatten(tree):
        if type(leaf).__module__.partition(".")[0] == "cupy":
            raise TypeError(f"params[{name!r}]: CuPy arrays have no optimizer yet; pass cupy.asnumpy(...)")
    return cpu
