"""Sums of rows on a device: `ravine._core.sum_rows`, with the device in front, and its bits."""

from __future__ import annotations

from functools import cache

import numpy as np

from ravine import _core
from ravine.cuda.device import Array, Device, source

__all__ = ["rows_source", "sum_rows"]

_THREADS = 256
_ARGS = np.dtype([(name, "u8") for name in ("values", "sums", "order", "starts", "count", "width")])
#: As numbered in storage.cu.
_STORAGES = ("F64", "F32", "F16", "BF16")


@cache
def rows_source(values: int, sums: int) -> str:
    """Return the text of the kernel for terms and sums of these storages."""
    return source("storage", "rows", VALUES=_STORAGES[values], SUMS=_STORAGES[sums])


def sum_rows(
    device: Device,
    values: Array,
    order: np.ndarray[tuple[int], np.dtype[np.int64]],
    starts: np.ndarray[tuple[int], np.dtype[np.int64]],
    out: Array,
) -> None:
    """Write the rows of ``out``, a new array; order and starts are the host's, and fit, which the caller sees to."""
    words, _ = _core.norm_tables([("values", values)], False)
    (storage,) = _core.norm_tables([("out", out)], True)[0][3:4].tolist()
    if not out.size:
        return
    xp = device.xp
    described, order_there, starts_there = xp.asarray(words), xp.asarray(order), xp.asarray(starts)
    args = np.zeros(1, _ARGS)
    args["values"], args["sums"] = described.data.ptr, out.data.ptr
    args["order"], args["starts"] = order_there.data.ptr, starts_there.data.ptr
    args["count"], args["width"] = len(out), out.size // len(out)
    kernel = device.load(rows_source(int(words[3]), storage))["sum_rows"]
    device.launch(kernel, min(len(out), 32 * device.multiprocessors), _THREADS, args)
