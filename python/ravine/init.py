r"""Initial weights: random arrays whose spread keeps signals and gradients at one size from layer to layer.

Every function takes ``(shape, rng, dtype)``. The array lives where ``rng`` draws: a NumPy Generator gives NumPy arrays,
a CuPy Generator gives CuPy arrays; an integer is the seed of a new NumPy Generator. Numbers are drawn in float64 and
rounded once, so each dtype gets the same draws.

Shapes end in (n_in, n_out), as ``y = x @ weight`` wants them. Axes before these two are a receptive field, as in a
convolution kernel (height, width, n_in, n_out), and multiply both: fan_in = height·width·n_in. Kernels that put n_out
first (PyTorch's) need their axes moved.

The formulas of Glorot and Bengio keep the variance of a linear or tanh layer. ``gain`` stretches the weights for other
activations; it is a number or a name of ``GAINS``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, SupportsIndex, TypeAlias

import numpy as np

__all__ = [
    "GAINS",
    "he_normal",
    "he_uniform",
    "ones",
    "uniform_fan_in",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

Array: TypeAlias = Any
Generator: TypeAlias = Any
Shape: TypeAlias = int | Sequence[int]

#: Gain per activation. A sigmoid has a quarter of tanh's slope at 0, a ReLU passes half of the variance.
GAINS: Mapping[str, float] = MappingProxyType({"linear": 1.0, "tanh": 1.0, "sigmoid": 4.0, "relu": math.sqrt(2.0)})


def uniform_fan_in(shape: Shape, rng: Generator | int, dtype: Any = np.float32, *, gain: float | str = 1.0) -> Array:
    r"""Draw uniform weights whose bound falls with the number of inputs.

    .. math:: w \sim U(-b, b), \qquad b = gain / \sqrt{n_{in}}

    Args:
        shape: (n_in, n_out), or a kernel (…, n_in, n_out).
        rng: a NumPy or CuPy Generator, or the seed of a NumPy one.
        dtype: a floating dtype (float32).
        gain: a number > 0, or a name of ``GAINS``: "sigmoid" is 4, "relu" is √2.

    Returns:
        An array of that shape and dtype, NumPy's or CuPy's as the rng.

    Raises:
        ValueError: a shape without two axes or with an empty one, or a gain out of range.
        TypeError: a shape that is not of integers, an rng that is no generator, a dtype that is not floating.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010,
    equation 1.

    >>> w = rv.init.uniform_fan_in((100, 10), np.random.default_rng(0))
    >>> w.shape, w.dtype.name, bool(abs(w).max() <= 0.1)
    ((100, 10), 'float32', True)
    """
    fan_in, _ = _fans(shape)
    return _uniform(shape, rng, dtype, _gain(gain) / math.sqrt(fan_in))


def xavier_uniform(shape: Shape, rng: Generator | int, dtype: Any = np.float32, *, gain: float | str = 1.0) -> Array:
    r"""Draw uniform weights that keep the variance both forward and backward, on average.

    .. math:: w \sim U(-b, b), \qquad b = gain \sqrt{6 / (n_{in} + n_{out})}

    Arguments, result and errors are those of `uniform_fan_in`.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010,
    equation 16.

    >>> w = rv.init.xavier_uniform((4, 2), np.random.default_rng(0), np.float64, gain="sigmoid")
    >>> bool(1 < abs(w).max() <= 4)
    True
    """
    return _uniform(shape, rng, dtype, _gain(gain) * math.sqrt(6 / sum(_fans(shape))))


def xavier_normal(shape: Shape, rng: Generator | int, dtype: Any = np.float32, *, gain: float | str = 1.0) -> Array:
    r"""Draw normal weights that keep the variance both forward and backward, on average.

    .. math:: w \sim N(0, s^2), \qquad s = gain \sqrt{2 / (n_{in} + n_{out})}

    Arguments, result and errors are those of `uniform_fan_in`.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010,
    equation 12.

    >>> rv.init.xavier_normal((300, 500), np.random.default_rng(0)).std().round(2).item()
    0.05000000074505806
    """
    return _normal(shape, rng, dtype, _gain(gain) * math.sqrt(2 / sum(_fans(shape))))


def he_uniform(shape: Shape, rng: Generator | int, dtype: Any = np.float32, *, gain: float | str = 1.0) -> Array:
    r"""Draw uniform weights that keep the variance forward through ReLU layers; the √2 is already inside.

    .. math:: w \sim U(-b, b), \qquad b = gain \sqrt{6 / n_{in}}

    Arguments, result and errors are those of `uniform_fan_in`.

    Source: He et al., "Delving Deep into Rectifiers", 2015, equation 10.

    >>> bool(abs(rv.init.he_uniform((6, 50), np.random.default_rng(0))).max() <= 1)
    True
    """
    fan_in, _ = _fans(shape)
    return _uniform(shape, rng, dtype, _gain(gain) * math.sqrt(6 / fan_in))


def he_normal(shape: Shape, rng: Generator | int, dtype: Any = np.float32, *, gain: float | str = 1.0) -> Array:
    r"""Draw normal weights that keep the variance forward through ReLU layers; the √2 is already inside.

    .. math:: w \sim N(0, s^2), \qquad s = gain \sqrt{2 / n_{in}}

    Arguments, result and errors are those of `uniform_fan_in`.

    Source: He et al., "Delving Deep into Rectifiers", 2015, equation 10.

    >>> rv.init.he_normal((3, 3, 16, 32), np.random.default_rng(0)).shape
    (3, 3, 16, 32)
    """
    fan_in, _ = _fans(shape)
    return _normal(shape, rng, dtype, _gain(gain) * math.sqrt(2 / fan_in))


def zeros(shape: Shape, rng: Generator | int, dtype: Any = np.float32) -> Array:
    """Give zeros where ``rng`` draws, without drawing; right for biases, while equal weights keep units equal.

    >>> rv.init.zeros(3, np.random.default_rng(0))
    array([0., 0., 0.], dtype=float32)
    """
    return np.zeros_like(_some(rng), dtype=_floating(dtype), shape=_axes(shape))


def ones(shape: Shape, rng: Generator | int, dtype: Any = np.float32) -> Array:
    """Give ones where ``rng`` draws, without drawing.

    >>> rv.init.ones(3, np.random.default_rng(0))
    array([1., 1., 1.], dtype=float32)
    """
    return np.ones_like(_some(rng), dtype=_floating(dtype), shape=_axes(shape))


def _uniform(shape: Shape, rng: Generator | int, dtype: Any, bound: float) -> Array:
    dtype = _floating(dtype)
    draws = generator(rng).random(_axes(shape))
    return ((2 * draws - 1) * bound).astype(dtype)


def _normal(shape: Shape, rng: Generator | int, dtype: Any, deviation: float) -> Array:
    dtype = _floating(dtype)
    return (generator(rng).standard_normal(_axes(shape)) * deviation).astype(dtype)


def _some(rng: Generator | int) -> Array:
    """An empty array of the rng's library; NumPy's functions on it answer in that library."""
    return generator(rng).random(0)


def _axes(shape: Shape) -> tuple[int, ...]:
    try:
        axes = tuple(map(operator.index, shape if isinstance(shape, Iterable) else (shape,)))
    except TypeError:
        raise TypeError(f"shape: expected an integer or a tuple of integers, got {shape!r}") from None
    if min(axes, default=0) < 0:
        raise ValueError(f"shape: expected lengths >= 0, got {axes}")
    return axes


def _fans(shape: Shape) -> tuple[int, int]:
    axes = _axes(shape)
    if len(axes) < 2 or min(axes) < 1:
        raise ValueError(f"shape: expected (..., n_in, n_out), all >= 1, got {axes}; biases start at init.zeros")
    field = math.prod(axes[:-2])
    return field * axes[-2], field * axes[-1]


def _gain(gain: float | str) -> float:
    if isinstance(gain, str):
        if gain not in GAINS:
            raise ValueError(f"gain: expected a number or one of {', '.join(GAINS)}, got {gain!r}")
        return GAINS[gain]
    if not (math.isfinite(gain) and gain > 0):
        raise ValueError(f"gain: expected a finite number > 0, got {gain}")
    return gain


def generator(rng: Any) -> Generator:
    """Give the generator itself, or NumPy's of a seed.

    Raises:
        TypeError: neither a generator nor an integer.
        ValueError: a negative seed.
    """
    if all(hasattr(rng, name) for name in ("random", "standard_normal", "integers")):
        return rng
    seed = seed_of(rng)
    if seed is None:
        raise TypeError(
            f"rng: expected a Generator such as np.random.default_rng(0), or a seed such as 0, got {type(rng).__name__}"
        )
    return np.random.default_rng(seed)


def seed_of(rng: Any) -> int | None:
    """Give the integer that stands for a generator; None of whatever is no integer.

    Raises:
        ValueError: a negative seed.
    """
    if not isinstance(rng, SupportsIndex) or isinstance(rng, bool | np.ndarray):
        return None
    if operator.index(rng) < 0:
        raise ValueError(f"rng: expected a seed >= 0, got {rng}")
    return operator.index(rng)


def _floating(dtype: Any) -> np.dtype[Any]:
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.kind != "f" and kind.name != "bfloat16":
        raise TypeError(f"dtype: expected a floating dtype such as np.float32, got {kind.name}")
    return kind
