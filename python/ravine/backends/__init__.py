"""NumPy or CuPy? The only place that asks."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ravine import _core
from ravine.backends import cpu, cuda, foreign

__all__ = [
    "array_module",
    "as_complex",
    "as_reals",
    "backend_for",
    "backend_of",
    "backend_on",
    "is_array",
    "new_states",
    "states_maker",
]


def array_module(x: Any) -> Any:
    """Return the module that works on ``x``: NumPy, or CuPy if x came from there; never imports CuPy."""
    if isinstance(x, np.ndarray):  # quick: a layer asks several times
        return np
    return sys.modules["cupy"] if type(x).__module__.partition(".")[0] == "cupy" else np


def is_array(x: Any) -> bool:
    """Whether ``x`` is a NumPy or a CuPy array."""
    return type(x) is np.ndarray or isinstance(x, array_module(x).ndarray)


def as_reals(x: Any) -> Any:
    """Return a complex array's real and imaginary parts on a last axis of 2, over its memory; others as they are."""
    if x.dtype.kind != "c":
        return x
    real = x.real  # the same memory, with the same strides
    strided = array_module(x).lib.stride_tricks.as_strided
    return strided(real, (*x.shape, 2), (*x.strides, real.itemsize))


def as_complex(x: Any) -> Any:
    """Return what `as_reals` makes into such an array, which is contiguous: the complex numbers, over its memory."""
    return x.view(np.result_type(x.dtype, np.complex64))[..., 0]


def backend_of(x: Any) -> Any:
    """Return what serves this array: `ravine.backends.cpu`, or one with the same functions for its GPU."""
    if isinstance(x, np.ndarray):
        return cpu
    number = x.device.id if is_array(x) else foreign.gpu_of(x)
    return cpu if number is None else cuda.backend(number)


def backend_for(tree: Any) -> Any:
    """Return what serves the arrays of ``tree``, by the first of them."""
    return backend_of(next((leaf for _, leaf in _core.flatten(tree) if leaf is not None), None))


def backend_on(device: str) -> Any:
    """Return what serves arrays on a device: ``"cpu"``, ``"cuda"`` (CuPy's current GPU) or ``"cuda:1"`` (GPU 1).

    Raises:
        ValueError: another string, or a GPU that CuPy cannot use.
        ModuleNotFoundError: CuPy is not installed.
    """
    if device == "cpu":
        return cpu
    if not isinstance(device, str) or not re.fullmatch(r"cuda(:[0-9]+)?", device):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:1' (GPU 1), got {device!r}")
    return cuda.backend_on(device)


def new_states(backend: Any, rule: str, shape: tuple[int, ...], dtype: str) -> list[Any]:
    """Return the states of a rule before the first update, of a parameter of this shape that computes in ``dtype``."""
    return states_maker(backend, rule)(shape, dtype)


def states_maker(backend: Any, rule: str, states: str | None = None) -> Callable[[tuple[int, ...], str], list[Any]]:
    """Return a function that makes the states of one parameter after the other."""
    shelves: list[Callable[[tuple[int, ...], str], Any]] = []

    def make(shape: tuple[int, ...], dtype: str) -> list[Any]:
        arrays = _core.state_arrays(rule, shape, dtype, states)
        shelves.extend(map(backend.shelf, range(len(shelves), len(arrays))))
        return [shelf(tuple(of_shape), kept) for shelf, (_, kept, of_shape) in zip(shelves, arrays, strict=False)]

    return make
