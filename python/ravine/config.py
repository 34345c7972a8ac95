"""What runs, and on how many threads."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np

from ravine import _core

__all__ = ["get_include", "get_library", "num_threads", "set_num_threads", "show_config"]


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
    """Print versions, instruction set, threads, and the GPUs that CuPy can use.

    The instruction set can be lowered with ``RAVINE_SIMD=baseline`` or ``avx2``; no result depends on it.
    """
    print(f"ravine       {_core.__version__}")
    print(f"instructions {_core.simd_level()}")
    print(f"threads      {_core.num_threads()}")
    print(f"processors   {os.cpu_count()}")
    print(f"NumPy        {np.__version__}")
    print(f"CuPy         {_cupy()}")


def _cupy() -> str:
    """Describe CuPy and the GPUs that it sees."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        return "not installed: pip install ravine[cuda]"
    try:
        devices = range(cupy.cuda.runtime.getDeviceCount())
        names = [cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in devices]
    except Exception as error:  # no driver, one that is too old, …: whatever CuPy raises is the answer
        return f"{cupy.__version__}, no GPU: {error}"
    return f"{cupy.__version__}, {', '.join(names) or 'no GPU'}"


def get_include() -> str:
    """Return the folder of ``ravine.h``, for a C compiler's ``-I``.

    Raises:
        FileNotFoundError: this installation has none; wheels have it, and ``make install-c`` installs it.
    """
    return str(_packaged("include/ravine.h").parent)


def get_library() -> str:
    """Return the path of the C library: for ``ctypes``, other languages, and linkers.

    It is the extension module: one library for both. A program without Python may use it as well; in wheels, what it
    asks of Python is allowed to be missing.

    Raises:
        FileNotFoundError: this installation has none; wheels have it, and ``make install-c`` installs it.
    """
    _packaged("include/ravine.h")
    return str(_packaged("_core.abi3.so"))


def _packaged(name: str) -> Path:
    path = Path(__file__).parent / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: ravine's wheels for Linux have it; from its sources, make install-c installs it"
        )
    return path
