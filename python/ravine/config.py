"""What runs, and on how many threads."""

from __future__ import annotations

import importlib.util

from ravine import _core

__all__ = ["num_threads", "set_num_threads", "show_config"]


def set_num_threads(n: int) -> int:
    """Let a step use up to ``n`` threads from now on; return how many it will use. No result depends on it.

    The start value is ``RAVINE_NUM_THREADS``, else the number of processors, at most 8.

    Args:
        n: at least 1.

    Raises:
        ValueError: n < 1.

    >>> before = rv.num_threads()
    >>> rv.set_num_threads(1), rv.set_num_threads(before) == before
    (1, True)
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    return _core.set_num_threads(n)


def num_threads() -> int:
    """Return how many threads a step may use."""
    return _core.num_threads()


def show_config() -> None:
    """Print version, instruction set, threads, and whether CuPy is installed.

    The instruction set can be lowered with ``RAVINE_SIMD=baseline`` or ``avx2``; no result depends on it.
    """
    cupy = "found" if importlib.util.find_spec("cupy") else "not found"
    print(f"ravine       {_core.__version__}")
    print(f"instructions {_core.simd_level()}")
    print(f"threads      {_core.num_threads()}")
    print(f"CuPy         {cupy}")
