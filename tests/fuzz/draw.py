"""What a target draws from an input's bytes."""

import struct

#: Numbers that find something more often than others.
NUMBERS = [
    *(0.0, -0.0, 1.0, -1.0, 0.5, 0.1, 0.9, 0.999, 1e-8, 2.0, 3.0, 1e-3, 1e-300, 5e-324, 1e300, 1.7e308, 3.5e38, 1e39),
    *(
        float("inf"),
        float("-inf"),
        float("nan"),
        65504.0,
        1e-45,
        2.0**24,
        2.0**53,
        2.0**63,
        -1e-3,
        1 - 2**-53,
        2.0**-126,
    ),
]


class Draw:
    """Values from bytes; where they have run out, the first of every choice."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def byte(self):
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def below(self, n):
        return (self.byte() if n <= 256 else self.byte() * 256 + self.byte()) % n

    def pick(self, choices):
        return choices[self.below(len(choices))]

    def often(self, of=8):
        """True, but in one of so many cases."""
        return self.below(of) != of - 1

    def number(self):
        if self.often(4):
            return self.pick(NUMBERS)
        raw = bytes(self.byte() for _ in range(8))
        return struct.unpack("<d", raw)[0]

    def usual(self):
        """A number that options mostly take."""
        return self.pick([0.1, 0.01, 0.5, 0.9, 0.0, 1.0, 1e-8]) if self.often() else self.number()
