"""Philox4x32-10 from the paper, and what ravine keys it by.

Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011, section 3.3 and table 2.
"""

from __future__ import annotations

UNIFORM16, UNIFORM37, SIGNS, ROUNDING = 1, 2, 3, 4


def philox4x32_10(counter, key):
    """Give four words of a counter of four and a key of two."""
    left0, right0, left1, right1 = counter[1], counter[0], counter[3], counter[2]
    k0, k1 = key
    for _ in range(10):
        # An S-P network: both halves are multiplied, and exchange what the upper halves of the products are.
        product0, product1 = 0xD2511F53 * right0, 0xCD9E8D57 * right1
        right0, left0, right1, left1 = (
            product1 // 2**32 ^ left0 ^ k0,
            product1 % 2**32,
            product0 // 2**32 ^ left1 ^ k1,
            product0 % 2**32,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [right0, left0, right1, left1]


def block(seed, step, tensor, purpose, number):
    """Give 128 random bits as an integer, the first word lowest."""
    counter = [number % 2**32, purpose << 24 | number >> 32, step, tensor]
    words = philox4x32_10(counter, [seed % 2**32, seed >> 32])
    return sum(word << 32 * k for k, word in enumerate(words))


def uniform16(seed, step, tensor, i):
    """Give the first 16 bits of element i's uniform number."""
    return block(seed, step, tensor, UNIFORM16, i // 8) >> 16 * (i % 8) & 0xFFFF


def uniform53(seed, step, tensor, i):
    """Give all 53 bits of element i's uniform number, which is so many times 2**-53."""
    more = block(seed, step, tensor, UNIFORM37, i) % 2**64 >> 27
    return uniform16(seed, step, tensor, i) << 37 | more


def signs(seed, step, tensor, number, rotation):
    """Give the 1024 signs of a block's rotation, by place."""
    first = 16 * number + 8 * rotation
    bits = sum(block(seed, step, tensor, SIGNS, first + j) << 128 * j for j in range(8))
    words = [bits >> 32 * k & 0xFFFFFFFF for k in range(32)]
    return [-1 if words[p % 32] >> (p // 32) & 1 else 1 for p in range(1024)]


def rounding_bytes(step, tensor, n):
    """Give the bytes that round the n elements of a tensor's states at a step."""
    blocks = [block(0, step, tensor, ROUNDING, number) for number in range(16 * -(-n // 256))]
    places = [(16 * (i // 256) + i // 4 % 16, 4 * (i // 64 % 4) + i % 4) for i in range(n)]
    return [blocks[number] >> 8 * byte & 0xFF for number, byte in places]
