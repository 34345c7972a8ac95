"""The readable specification of states in fewer bytes: NumPy in float32, byte for byte what the kernels do."""

from __future__ import annotations

import numpy as np

from tests.reference.philox import rounding_bytes

F = np.float32
#: Kinds of states that are kept in fewer bytes.
COMPACT = ("first", "second", "size")
BLOCK = 256


def shares(step, tensor, n):
    """Give where between two neighbours each element is cut at a step, in float32: above −½ and below ½."""
    return np.array(rounding_bytes(step, tensor, n), F) * F(1 / 256) - F(0.5 - 1 / 512)


def to_bfloat16(x, step, tensor):
    """Round at random to the bits of bfloat16."""
    old = x.reshape(-1).view(np.uint32)
    byte = np.array(rounding_bytes(step, tensor, x.size), np.uint32)
    special = (old & 0x7F800000) == 0x7F800000
    nan = (old & 0x7FFFFFFF) > 0x7F800000
    new = np.where(special, old, old + (byte << np.uint32(8)) + np.uint32(0x80)) >> np.uint32(16)
    return (new | np.where(nan, np.uint32(0x40), np.uint32(0))).astype(np.uint16).reshape(x.shape)


def from_bfloat16(bits):
    """Read bfloat16 numbers."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(F)


def to_codes(x, kind, step, tensor):
    """Give codes and scales."""
    flat, signed = x.reshape(-1), kind == "first"
    share = shares(step, tensor, x.size)
    codes, scales = np.zeros(x.size, np.int8 if signed else np.uint8), np.zeros(-(-x.size // BLOCK), F)
    for number in range(len(scales)):
        here = slice(number * BLOCK, (number + 1) * BLOCK)
        size = np.abs(flat[here])
        largest = np.nan if np.isnan(size).any() else size.max()
        scales[number] = max(largest, F(2.0**-126)) if 0 < largest < np.inf else largest
        if not 0 < largest < np.inf:
            continue
        root = np.sqrt(size * (F(1) / scales[number]))
        q = root * F(127) if signed else np.sqrt(root) * F(255)
        q = np.rint(q + share[here] + F(3 * 2.0**22)) - F(3 * 2.0**22)
        codes[here] = np.copysign(q, flat[here]) if signed else np.maximum(q, size > 0)
    return codes.reshape(x.shape), scales


def from_codes(codes, scales):
    """Read codes."""
    q, scale = codes.reshape(-1).astype(F), np.repeat(scales, BLOCK)[: codes.size]
    if codes.dtype == np.int8:
        x = scale * (q * np.abs(q) * F(1 / 16129))
    else:
        root = q * q * F(1 / 65025)
        x = scale * (root * root)
    return x.reshape(codes.shape)


def load(kinds, arrays, states):
    """Read the states of a parameter from the arrays that keep them."""
    arrays = iter(arrays)
    read = {"bfloat16": lambda: from_bfloat16(next(arrays)), "8bit": lambda: from_codes(next(arrays), next(arrays))}
    return [read[states]() if kind in COMPACT else next(arrays) for kind in kinds]


def store(kinds, numbers, states, step, tensor):
    """Give the arrays that keep the states of a parameter after the step that follows so many."""
    arrays = []
    for kind, x in zip(kinds, numbers, strict=True):
        if kind not in COMPACT:
            arrays.append(x)
        elif states == "bfloat16":
            arrays.append(to_bfloat16(x, step, tensor))
        else:
            arrays.extend(to_codes(x, kind, step, tensor))
    return arrays
