"""The readable specification of states in fewer bytes: NumPy in float32, byte for byte what the kernels do."""

from __future__ import annotations

import numpy as np

from tests.reference.philox import rounding_bytes

F = np.float32
#: Kinds of states that are kept in fewer bytes.
COMPACT = ("first", "second", "size")
BLOCK = 256
ONE = 0x3F800000


def bytes_of(step, tensor, n):
    """Give the bytes that round n elements at a step, as integers."""
    return np.array(rounding_bytes(step, tensor, n), np.uint32)


def root(x, k):
    """A root, 2nd or 4th, that is linear between powers of 2."""
    return ((x.view(np.uint32) >> np.uint32(k)) + np.uint32(ONE - (ONE >> k))).view(F)


def power(y, k):
    """What it is the root of."""
    zero = np.uint32(ONE - (ONE >> k))
    return ((np.maximum(y.view(np.uint32), zero) - zero) << np.uint32(k)).view(F)


def to_bfloat16(x, step, tensor):
    """Round a state at random to the bits of bfloat16."""
    return rounded_by(x, (bytes_of(step, tensor, x.size) << np.uint32(8)) + np.uint32(0x80))


def parameter_to_bfloat16(x, step, tensor):
    """Round a parameter at random to the bits of bfloat16."""
    own = bytes_of(step, tensor, -(-x.size // BLOCK) * BLOCK).reshape(-1, BLOCK)
    upper = np.roll(own, BLOCK // 2, axis=1)
    return rounded_by(x, (upper << np.uint32(8) | own).reshape(-1)[: x.size])


def rounded_by(x, added):
    """Give the upper halves of the numbers' bits, after something was added to them."""
    old = x.reshape(-1).view(np.uint32)
    size = old & np.uint32(0x7FFFFFFF)
    new = np.where(size < 0x7F7F0000, old + added, old) >> np.uint32(16)  # the largest finite numbers stay finite
    new = np.where(size > 0x7F800000, new | np.uint32(0x40), new)
    return new.astype(np.uint16).reshape(x.shape)


def from_bfloat16(bits):
    """Read bfloat16 numbers."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(F)


def to_codes(x, kind, step, tensor):
    """Give codes and scales."""
    flat, signed = x.reshape(-1), kind == "first"
    byte = bytes_of(step, tensor, x.size)
    codes, scales = np.zeros(x.size, np.int8 if signed else np.uint8), np.zeros(-(-x.size // BLOCK), F)
    for number in range(len(scales)):
        here = slice(number * BLOCK, (number + 1) * BLOCK)
        size = np.abs(flat[here])
        largest = np.nan if np.isnan(size).any() else size.max()
        scales[number] = max(largest, F(2.0**-126)) if 0 < largest < np.inf else largest
        if not 0 < largest < np.inf:
            continue
        ratio = size * (F(1) / scales[number])
        q = root(ratio, 1) * F(127 * 256) if signed else root(ratio, 2) * F(255 * 256)
        q = (np.rint(q).astype(np.int64) + byte[here]) >> 8
        codes[here] = np.where(np.signbit(flat[here]), -q, q) if signed else np.maximum(q, size > 0)
    return codes.reshape(x.shape), scales


def from_codes(codes, scales):
    """Read codes."""
    q, scale = codes.reshape(-1).astype(F), np.repeat(scales, BLOCK)[: codes.size]
    if codes.dtype == np.int8:
        x = np.copysign(scale * power(np.abs(q) * F(1 / 127), 1), q)
    else:
        x = scale * power(q * F(1 / 255), 2)
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


def split(x):
    """Give float32 numbers as bits of bfloat16, ties away from 0, and what the rounding has lost as int16."""
    bits = x.view(np.uint32)
    up, nan = bits >> np.uint32(15) & np.uint32(1), np.isnan(x)
    upper = np.where(nan, bits >> np.uint32(16) | np.uint32(0x40), (bits >> np.uint32(16)) + up).astype(np.uint16)
    return upper, np.where(nan, 0, bits & np.uint32(0xFFFF)).astype(np.uint16).view(np.int16)


def joined(upper, lower):
    """Read what was split; where there is no such number, the upper half alone."""
    bits = upper.astype(np.int64) << 16
    whole = ((bits + lower) % 2**32).astype(np.uint32).view(F)
    return np.where(np.isnan(whole), bits.astype(np.uint32).view(F), whole)
