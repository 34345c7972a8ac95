r"""A few layers and losses with their gradients, in plain array code that runs on NumPy and CuPy alike.

Each layer has ``forward(x, training=True)``, also spelt ``layer(x)``; ``backward(dy)``, which takes ∂L/∂y, fills
``grads`` and gives ∂L/∂x; and ``params`` and ``grads``, two dicts with the same names. The gradient arrays are made
by the first ``backward``, before which they are None, and overwritten by each other, so an optimizer and a loop may
hold on to them. A step on gradients that no backward has filled since the last step raises.

ravine's batch and layer normalisation speak the same protocol. Samples stand along the leading axes, features along
the last. The input is kept by reference until ``backward``: do not change it in between. A loss is a function that
gives its value, a Python float, and its gradient by the first argument, an array of that one's dtype.

>>> rng = np.random.default_rng(0)
>>> net = rv.nn.Sequential(rv.nn.Linear(4, 8, rng), rv.nn.ReLU(), rv.nn.Linear(8, 3, rng))
>>> x, labels = rng.standard_normal((5, 4), dtype=np.float32), np.array([0, 1, 2, 1, 0])
>>> loss, dy = rv.nn.softmax_cross_entropy(net(x), labels)
>>> net.backward(dy).shape, net.grads[0]["weight"].shape
((5, 4), (4, 8))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from ravine.backends import array_module as _xp
from ravine.backends import is_array
from ravine.init import generator, uniform_fan_in, zeros
from ravine.layers import Gradients, Stateful, count_backward
from ravine.losses import mean_squared_error, narrow, softmax_cross_entropy, squared_error, wide
from ravine.sequential import Sequential

__all__ = [
    "Layer",
    "Linear",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "TwoTap",
    "WeightNormLinear",
    "mean_squared_error",
    "softmax_cross_entropy",
    "squared_error",
]

#: Exponents up to which a weight's square and reciprocal, and their products, are ordinary float32 numbers.
_ORDINARY = 40

Array: TypeAlias = Any
Generator: TypeAlias = Any
Init: TypeAlias = Callable[..., Array]


class Layer(Stateful):
    """What the layers share: the protocol, and the memory between forward and backward.

    A layer of your own defines ``_forward(x)``, which gives (y, what backward needs), and ``_backward(dy, needed)``,
    which fills the arrays in ``self.grads`` in place and gives ∂L/∂x.
    """

    def __init__(self, **params: Array) -> None:
        self.params: dict[str, Array] = params
        self.grads: dict[str, Array] = Gradients.fromkeys(params)

    def forward(self, x: Array, training: bool = True) -> Array:
        """Give the layer's output for x; ``training`` is for layers that behave differently at test time.

        Raises:
            TypeError: x of another dtype than the parameters.
            ValueError: x of a shape that does not fit the layer.
        """
        y, kept = self._forward(x)
        self._keep((y.shape, kept), training)
        return y

    def backward(self, dy: Array) -> Array:
        """Fill ``grads`` and give ∂L/∂x, from ∂L/∂y at the last forward.

        An evaluation (``training=False``) is no last forward while one in training waits for its backward.

        Raises:
            RuntimeError: before any forward.
            ValueError: dy of another shape than the output.
        """
        if self._kept is None:
            raise RuntimeError(f"{type(self).__name__}.backward: nothing to go back through; call forward first")
        shape, kept = self._kept.value
        if dy.shape != shape:
            raise ValueError(f"{type(self).__name__}: dy: expected shape {shape} like the output, got {dy.shape}")
        first = [name for name, g in self.grads.items() if g is None]
        self.grads.update({name: _xp(self.params[name]).zeros_like(self.params[name]) for name in first})
        try:
            dx = self._backward(dy, kept)
        except BaseException:
            self.grads.update(dict.fromkeys(first))
            raise
        self._kept.waiting = False
        count_backward(self.grads)
        return dx

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={p.shape}" for name, p in self.params.items())
        return f"{type(self).__name__}({sizes})"

    def _forward(self, x: Array) -> tuple[Array, Any]:
        raise NotImplementedError

    def _backward(self, dy: Array, kept: Any, /) -> Array:
        raise NotImplementedError

    def _check(self, x: Array, dtype: Any = None, features: int | None = None) -> None:
        name = type(self).__name__
        if not is_array(x):
            cure = "" if dtype is None else f"; np.asarray(x, np.{dtype})"
            raise TypeError(f"{name}: x: expected an array, got {type(x).__name__}{cure}")
        if dtype is not None and x.dtype != dtype:
            raise TypeError(f"{name}: x: expected {dtype} like the parameters, got {x.dtype}; x.astype(np.{dtype})")
        if dtype is not None and (not x.shape or (features is not None and x.shape[-1] != features)):
            raise ValueError(f"{name}: x: expected shape (..., {features or 'N'}), got {x.shape}")


class Linear(Layer):
    r"""Map n_in features to n_out: ``y = x @ weight + bias``, with weight of shape (n_in, n_out).

    .. math:: y = x W + b, \qquad dW = \sum x^T dy, \quad db = \sum dy, \quad dx = dy\, W^T

    The sums go over all leading axes of x.

    Args:
        n_in: features of x.
        n_out: features of y.
        rng: a NumPy or CuPy Generator, where the parameters will live; or a seed, for NumPy's.
        init: a function of `ravine.init` for the weight; the bias starts at zero.
        dtype: the parameters' dtype (float32), and the one that x must have.

    >>> layer = rv.nn.Linear(2, 1, np.random.default_rng(0), init=rv.init.ones)
    >>> layer(np.array([[1.0, 2.0]], np.float32))
    array([[3.]], dtype=float32)
    """

    def __init__(
        self, n_in: int, n_out: int, rng: Generator | int, *, init: Init = uniform_fan_in, dtype: Any = np.float32
    ) -> None:
        rng = generator(rng)
        super().__init__(weight=init((n_in, n_out), rng, dtype), bias=zeros(n_out, rng, dtype))

    def _forward(self, x: Array) -> tuple[Array, Any]:
        weight, bias = self.params["weight"], self.params["bias"]
        self._check(x, weight.dtype, weight.shape[0])
        return narrow(wide(x) @ wide(weight) + wide(bias), x), x

    def _backward(self, dy: Array, x: Array, /) -> Array:
        self._sum(x, dy)
        return narrow(wide(dy) @ wide(self.params["weight"]).T, dy)

    def _sum(self, x: Array, g: Array) -> None:
        """Fill the gradients with Σxᵀg and Σg over all rows."""
        xp, weight, bias = _xp(x), self.grads["weight"], self.grads["bias"]
        if wide(x) is x:
            xp.matmul(_rows(x).T, _rows(g), out=weight)
            xp.sum(_rows(g), axis=0, out=bias)
        else:
            weight[...], bias[...] = _rows(wide(x)).T @ _rows(wide(g)), _rows(wide(g)).sum(axis=0)


class WeightNormLinear(Linear):
    r"""Map n_in features to n_out with each unit divided by the norm of its weights, its bias too.

    .. math::
        y_i &= (w_i \cdot x + b_i) / \lVert w_i \rVert, \qquad \hat g_i = dy_i / \lVert w_i \rVert \\
        db_i &= \sum \hat g_i, \quad dw_i = \sum \hat g_i\, (x - y_i w_i / \lVert w_i \rVert), \quad
        dx = \sum_i \hat g_i w_i

    The unit is a signed distance to its hyperplane, which a factor on (w_i, b_i) does not change. w_i is a column of
    ``weight``. PyTorch's weight_norm leaves the bias as it is and has a length g per unit. Arguments are `Linear`'s.

    Raises:
        ValueError: in forward, a unit whose weights are all zero.

    Source: Salimans and Kingma, "Weight Normalization", 2016, for the idea.

    >>> layer = rv.nn.WeightNormLinear(2, 1, np.random.default_rng(0))
    >>> layer.params["weight"][:, 0] = 3, 4
    >>> layer(np.array([[1.0, 3.0]], np.float32))
    array([[3.]], dtype=float32)
    """

    def _forward(self, x: Array) -> tuple[Array, Any]:
        weight, bias = self.params["weight"], self.params["bias"]
        self._check(x, weight.dtype, weight.shape[0])
        xp, weight, bias = _xp(x), wide(weight), wide(bias)
        largest = abs(weight).max(axis=0)
        if bool((largest == 0).any()):
            unit = int((largest == 0).argmax())
            raise ValueError(f"WeightNormLinear: weight[:, {unit}]: expected a norm > 0, got 0; do not start at zeros")
        # Units whose squares or reciprocals may leave the dtype's range are brought to 1, exactly.
        exponents = xp.frexp(largest)[1]
        exponents[abs(exponents) < _ORDINARY] = 0
        if scaled := bool(exponents.any()):
            weight, bias = xp.ldexp(weight, -exponents), xp.ldexp(bias, -exponents)
        norms = xp.sqrt(xp.square(weight.astype(np.float64)).sum(axis=0)).astype(weight.dtype)
        y = (wide(x) @ weight + bias) / norms
        return narrow(y, x), (x, y, weight, norms, exponents if scaled else None)

    def _backward(self, dy: Array, kept: tuple[Array, ...], /) -> Array:
        x, y, weight, norms, exponents = kept
        g = wide(dy) / norms
        dw = _rows(wide(x)).T @ _rows(g)
        dw -= weight * (_rows(g * y).sum(axis=0) / norms)
        db = _rows(g).sum(axis=0)
        if exponents is not None:
            dw, db = _xp(x).ldexp(dw, -exponents), _xp(x).ldexp(db, -exponents)
        self.grads["weight"][...], self.grads["bias"][...] = dw, db
        return narrow(g @ weight.T, dy)


class TwoTap(Layer):
    r"""Add two samples of a sequence that stand two apart, with one weight and one bias for all places.

    .. math::
        y_i &= a\, (x_i + x_{i+2}) + b, \qquad i = 1 \dots N - 2 \\
        da &= \sum dy_i\, (x_i + x_{i+2}), \quad db = \sum dy_i, \quad
        dx_j = a\, (dy_j [j \le N - 2] + dy_{j-2} [j \ge 3])

    The last axis is the sequence, N ≥ 3; da and db sum over the leading axes too. ``a`` and ``b`` have shape (1,).

    Args:
        rng: a NumPy or CuPy Generator, or a seed; a is drawn from ±1/√2, two inputs a unit, and b starts at zero.
        dtype: the parameters' dtype (float32), and the one that x must have.

    >>> layer = rv.nn.TwoTap(np.random.default_rng(0), dtype=np.float64)
    >>> layer.params["a"][:] = 10
    >>> layer(np.array([1.0, 2.0, 3.0, 4.0])).tolist(), layer.backward(np.array([1.0, 2.0])).tolist()
    ([40.0, 60.0], [10.0, 20.0, 10.0, 20.0])
    """

    def __init__(self, rng: Generator | int, *, dtype: Any = np.float32) -> None:
        rng = generator(rng)
        super().__init__(a=uniform_fan_in((2, 1), rng, dtype)[0].copy(), b=zeros(1, rng, dtype))

    def _forward(self, x: Array) -> tuple[Array, Any]:
        self._check(x, self.params["a"].dtype)
        if x.shape[-1] < 3:
            raise ValueError(f"TwoTap: x: expected at least 3 places along the last axis, got shape {x.shape}")
        taps = wide(x[..., :-2]) + wide(x[..., 2:])
        return narrow(wide(self.params["a"]) * taps + wide(self.params["b"]), x), taps

    def _backward(self, dy: Array, taps: Array, /) -> Array:
        g = wide(dy)
        self.grads["a"][0] = (g * taps).sum()
        self.grads["b"][0] = g.sum()
        dx = _xp(dy).zeros((*dy.shape[:-1], dy.shape[-1] + 2), dtype=g.dtype)
        dx[..., :-2] += g
        dx[..., 2:] += g
        return narrow(wide(self.params["a"]) * dx, dy)


class ReLU(Layer):
    r"""Cut off what is negative: y = max(x, 0), dx = dy·[x > 0], so the derivative at 0 is 0; NaN stays NaN.

    >>> rv.nn.ReLU()(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def _forward(self, x: Array) -> tuple[Array, Any]:
        self._check(x)
        return _xp(x).maximum(x, 0), x > 0

    def _backward(self, dy: Array, positive: Array, /) -> Array:
        return _xp(dy).where(positive, dy, dy.dtype.type(0))  # dy·0 would be NaN for an infinite dy


class Tanh(Layer):
    r"""Squash to (−1, 1): y = tanh x, dx = dy·(1 − y²).

    >>> rv.nn.Tanh()(np.array([0.0, 100.0]))
    array([0., 1.])
    """

    def _forward(self, x: Array) -> tuple[Array, Any]:
        self._check(x)
        y = _xp(x).tanh(x)
        return y, y

    def _backward(self, dy: Array, y: Array, /) -> Array:
        y = wide(y)
        return narrow(wide(dy) * ((1 - y) * (1 + y)), dy)


class Sigmoid(Layer):
    r"""Squash to (0, 1): y = 1/(1 + e⁻ˣ), dx = dy·y·(1 − y); no overflow for any x.

    >>> rv.nn.Sigmoid()(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """

    def _forward(self, x: Array) -> tuple[Array, Any]:
        self._check(x)
        z = wide(x)
        small = _xp(z).exp(-abs(z))  # at most 1, whatever x is
        y = _xp(z).where(z < 0, small, z.dtype.type(1)) / (1 + small)
        # y·(1 − y) would lose its digits where y is near 1.
        return narrow(y, x), small / (1 + small) ** 2

    def _backward(self, dy: Array, slope: Array, /) -> Array:
        return narrow(wide(dy) * slope, dy)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
