"""1-bit gradients on a device: `ravine._core`'s functions, with the device in front, and its bits."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ravine import _core
from ravine.cuda.device import Array, Device, source

__all__ = ["decode", "encode", "onebit_source"]

# These are onebit.cu's.
_THREADS, _WARPS, _ROTATED = 256, 8, 1024
_ARGS = np.dtype(
    [(name, "u8") for name in ("array", "bits", "scales", "pieces", "n", "block", "blocks", "piece", "in_block")]
    + [(name, "u8") for name in ("seed", "step", "tensor")]
)
#: As numbered in storage.cu.
_STORAGES = ("F64", "F32", "F16", "BF16")
#: A warp reads so many elements of a block, or more, so that a block has no more pieces than this.
_PIECE, _MOST_PIECES = 4096, 2048


@cache
def onebit_source(storage: int) -> str:
    """Return the text of the kernels for arrays of this storage."""
    return source("storage", "tree", "random", "onebit", STORAGE=_STORAGES[storage])


class _Call:
    """One operation's arguments, and its launches."""

    def __init__(self, device: Device, name: str, array: Array, key: tuple[int, int, int], block: int) -> None:
        words, _ = _core.norm_tables([(name, array)], name == "out")
        self.device, self.n = device, array.size
        self.kernels = device.load(onebit_source(int(words[3])))
        self.described = device.xp.asarray(words)
        self.args = np.zeros(1, _ARGS)
        self.set(array=self.described.data.ptr, seed=key[0], step=key[1], tensor=key[2], n=self.n)
        length = min(block, max(self.n, 1)) if block else _ROTATED
        self.blocks = -(-self.n // length)
        self.set(block=length, blocks=self.blocks)
        self.dtype = np.float64 if int(words[3]) == 0 else np.float32

    def set(self, **fields: int) -> None:
        for name, value in fields.items():
            self.args[name] = value

    def launch(self, name: str, blocks: int) -> None:
        if blocks:
            self.device.launch(self.kernels[name], blocks, _THREADS, self.args)

    def by_bytes(self, name: str) -> None:
        """Launch a kernel whose threads take a byte of bits at a time."""
        blocks = -(-self.n // (8 * _THREADS))
        self.launch(name, min(blocks, 32 * self.device.multiprocessors))

    def by_warps(self, name: str, warps: int) -> None:
        """Launch a kernel whose warps take a part each."""
        self.launch(name, -(-warps // _WARPS))


def encode(device: Device, g: Array, seed: int, step: int, tensor: int, block: int) -> tuple[Array, Array]:
    """Return packed bits and scales; block 0 stands for the rotated scheme."""
    call = _Call(device, "g", g, (seed, step, tensor), block)
    nbytes, count = _core.onebit_sizes(call.n, block)
    bits, scales = device.xp.empty(nbytes, np.uint8), device.xp.empty(count, call.dtype)
    call.set(bits=bits.data.ptr, scales=scales.data.ptr)
    if not block:
        call.by_warps("encode_rotated", call.blocks)
        return bits, scales
    length = int(call.args["block"][0])
    piece = max(_PIECE, -(-length // _MOST_PIECES))
    in_block = -(-length // piece)
    pieces = device.xp.empty(3 * call.blocks * in_block if in_block > 1 else 0, call.dtype)
    call.set(piece=piece, in_block=in_block, pieces=pieces.data.ptr)
    call.by_warps("extremes", call.blocks * in_block)
    if in_block > 1:
        call.launch("merge_pieces", call.blocks)
    call.by_bytes("encode_minmax")
    return bits, scales


def decode(
    device: Device, bits: Array, scales: Array, seed: int, step: int, tensor: int, block: int, out: Array
) -> None:
    """Write the elements of ``out``; the arrays fit one another, which the caller has checked."""
    call = _Call(device, "out", out, (seed, step, tensor), block)
    first, last = bits.data.ptr, bits.data.ptr + bits.size
    if call.n and _overlap((first, last), out):
        raise ValueError("out: shares memory with encoded.bits; pass another array")
    if _overlap((scales.data.ptr, scales.data.ptr + scales.nbytes), out):
        scales = scales.copy()
    call.set(bits=first, scales=scales.data.ptr)
    if block:
        call.by_bytes("decode_minmax")
    else:
        call.by_warps("decode_rotated", call.blocks)


def _overlap(addresses: tuple[int, int], array: Any) -> bool:
    """Whether an address lies in an array's extent."""
    low = high = array.data.ptr
    for length, stride in zip(array.shape, array.strides, strict=True):
        low, high = low + min(0, (length - 1) * stride), high + max(0, (length - 1) * stride)
    return bool(array.size and addresses[0] < high + array.dtype.itemsize and low < addresses[1])
