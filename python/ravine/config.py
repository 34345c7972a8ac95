"""What runs, and on how many threads."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ravine import _core

__all__ = ["get_include", "get_library", "num_threads", "set_num_threads", "show_config"]

_VARIABLES = ("RAVINE_NUM_THREADS", "OMP_NUM_THREADS", "RAVINE_SIMD")


def set_num_threads(n: int) -> int:
    """Let a step use up to ``n`` threads from now on; return how many it will use. No result depends on it.

    The start value is the environment variable ``RAVINE_NUM_THREADS``, else the first number of ``OMP_NUM_THREADS``,
    else the number of processors, at most 8. ``threadpoolctl.threadpool_limits`` limits it, as ``"ravine"``.

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
    """Print versions, instruction set, threads, the environment variables behind them, and the GPUs that CuPy can use.

    The instruction set can be lowered with ``RAVINE_SIMD=baseline`` or ``avx2``, the number of threads with
    ``RAVINE_NUM_THREADS``; no result depends on them. Any other word there is an error when ravine is imported.
    """
    print(f"ravine       {_core.__version__}")
    print(f"instructions {_core.simd_level()}")
    print(f"threads      {_core.num_threads()}")
    print(f"processors   {os.cpu_count()}")
    print(f"environment  {', '.join(f'{name}={os.environ[name]}' for name in _VARIABLES if name in os.environ) or '-'}")
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


def _register(threadpoolctl: ModuleType) -> None:
    """Tell threadpoolctl how to ask and limit our threads, as it does for BLAS and OpenMP."""
    if not hasattr(threadpoolctl, "register"):  # before 3.2
        return

    class Controller(threadpoolctl.LibController):  # type: ignore[misc, name-defined]
        user_api = internal_api = "ravine"
        #: The extension module, which is the C library as well, and that library alone.
        filename_prefixes = ("_core", "libravine")
        check_symbols = ("rv_num_threads",)

        def get_num_threads(self) -> int:
            return int(self.dynlib.rv_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.rv_set_num_threads(ctypes.c_size_t(num_threads))

        def get_version(self) -> str:
            return _core.__version__

    threadpoolctl.register(Controller)


class _Threadpoolctl:
    """Finds threadpoolctl when it is imported after us, and registers then: to import it for that would take 5 ms."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "threadpoolctl":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                if cls in sys.meta_path:
                    sys.meta_path.remove(cls)
                    _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "threadpoolctl" in sys.modules:
    _register(sys.modules["threadpoolctl"])
else:
    sys.meta_path.insert(0, _Threadpoolctl)
