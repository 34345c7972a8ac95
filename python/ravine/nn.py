r"""A few layers and losses with their gradients, in plain array code that runs on NumPy and CuPy alike.

Each layer has ``forward(x, training=True)``, also spelt ``layer(x)``; ``backward(dy)``, which takes ∂L/∂y, fills
``grads`` and gives ∂L/∂x; and ``params`` and ``grads``, two dicts with the same names. The gradient arrays are made
once and overwritten by each ``backward``, so an optimizer and a loop may hold on to them.

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
from ravine.init import uniform_fan_in, zeros

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

Array: TypeAlias = Any
Generator: TypeAlias = Any
Init: TypeAlias = Callable[..., Array]


class Layer:
    """What the layers share: the protocol, and the memory between forward and backward.

    A layer of your own defines ``_forward(x)``, which gives (y, what backward needs), and ``_backward(dy, needed)``,
    which fills ``self.grads`` in place and gives ∂L/∂x.
    """

    def __init__(self, **params: Array) -> None:
        self.params: dict[str, Array] = params
        self.grads: dict[str, Array] = {name: _xp(p).zeros_like(p) for name, p in params.items()}
        self._kept: tuple[tuple[int, ...], Any] | None = None

    def forward(self, x: Array, training: bool = True) -> Array:
        """Give the layer's output for x; ``training`` is for layers that behave differently at test time.

        Raises:
            TypeError: x of another dtype than the parameters.
            ValueError: x of a shape that does not fit the layer.
        """
        y, kept = self._forward(x)
        self._kept = (y.shape, kept)
        return y

    __call__ = forward

    def backward(self, dy: Array) -> Array:
        """Fill ``grads`` and give ∂L/∂x, from ∂L/∂y at the last forward.

        Raises:
            RuntimeError: before any forward.
            ValueError: dy of another shape than the output.
        """
        if self._kept is None:
            raise RuntimeError(f"{type(self).__name__}.backward: nothing to go back through; call forward first")
        shape, kept = self._kept
        if dy.shape != shape:
            raise ValueError(f"{type(self).__name__}: dy: expected shape {shape} like the output, got {dy.shape}")
        return self._backward(dy, kept)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={p.shape}" for name, p in self.params.items())
        return f"{type(self).__name__}({sizes})"

    def _forward(self, x: Array) -> tuple[Array, Any]:
        raise NotImplementedError

    def _backward(self, dy: Array, kept: Any, /) -> Array:
        raise NotImplementedError

    def _check(self, x: Array, dtype: Any, features: int | None = None) -> None:
        name = type(self).__name__
        if x.dtype != dtype:
            raise TypeError(f"{name}: x: expected {dtype} like the parameters, got {x.dtype}; x.astype(np.{dtype})")
        if not x.shape or (features is not None and x.shape[-1] != features):
            raise ValueError(f"{name}: x: expected shape (..., {features or 'N'}), got {x.shape}")


class Linear(Layer):
    r"""Map n_in features to n_out: ``y = x @ weight + bias``, with weight of shape (n_in, n_out).

    .. math:: y = x W + b, \qquad dW = \sum x^T dy, \quad db = \sum dy, \quad dx = dy\, W^T

    The sums go over all leading axes of x.

    Args:
        n_in: features of x.
        n_out: features of y.
        rng: a NumPy or CuPy Generator; the parameters live where it draws.
        init: a function of `ravine.init` for the weight; the bias starts at zero.
        dtype: the parameters' dtype (float32), and the one that x must have.

    >>> layer = rv.nn.Linear(2, 1, np.random.default_rng(0), init=rv.init.ones)
    >>> layer(np.array([[1.0, 2.0]], np.float32))
    array([[3.]], dtype=float32)
    """

    def __init__(
        self, n_in: int, n_out: int, rng: Generator, *, init: Init = uniform_fan_in, dtype: Any = np.float32
    ) -> None:
        super().__init__(weight=init((n_in, n_out), rng, dtype), bias=zeros(n_out, rng, dtype))

    def _forward(self, x: Array) -> tuple[Array, Any]:
        weight, bias = self.params["weight"], self.params["bias"]
        self._check(x, weight.dtype, weight.shape[0])
        return x @ weight + bias, x

    def _backward(self, dy: Array, x: Array, /) -> Array:
        _xp(x).matmul(_rows(x).T, _rows(dy), out=self.grads["weight"])
        _xp(x).sum(_rows(dy), axis=0, out=self.grads["bias"])
        return dy @ self.params["weight"].T


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
        xp = _xp(x)
        # In float64: the squares of small float32 weights would vanish.
        norms = xp.sqrt(xp.square(weight.astype(np.float64)).sum(axis=0)).astype(weight.dtype)
        if bool((norms == 0).any()):
            unit = int((norms == 0).argmax())
            raise ValueError(f"WeightNormLinear: weight[:, {unit}]: expected a norm > 0, got 0; do not start at zeros")
        y = (x @ weight + bias) / norms
        return y, (x, y, norms)

    def _backward(self, dy: Array, kept: tuple[Array, Array, Array], /) -> Array:
        x, y, norms = kept
        weight, dw = self.params["weight"], self.grads["weight"]
        g = dy / norms
        _xp(x).matmul(_rows(x).T, _rows(g), out=dw)
        dw -= weight * (_rows(g * y).sum(axis=0) / norms)
        _xp(x).sum(_rows(g), axis=0, out=self.grads["bias"])
        return g @ weight.T


class TwoTap(Layer):
    r"""Add two samples of a sequence that stand two apart, with one weight and one bias for all places.

    .. math::
        y_i &= a\, (x_i + x_{i+2}) + b, \qquad i = 1 \dots N - 2 \\
        da &= \sum dy_i\, (x_i + x_{i+2}), \quad db = \sum dy_i, \quad
        dx_j = a\, (dy_j [j \le N - 2] + dy_{j-2} [j \ge 3])

    The last axis is the sequence, N ≥ 3; da and db sum over the leading axes too. ``a`` and ``b`` have shape (1,).

    Args:
        rng: a NumPy or CuPy Generator; a is drawn from ±1/√2, two inputs a unit, and b starts at zero.
        dtype: the parameters' dtype (float32), and the one that x must have.

    >>> layer = rv.nn.TwoTap(np.random.default_rng(0), dtype=np.float64)
    >>> layer.params["a"][:] = 10
    >>> layer(np.array([1.0, 2.0, 3.0, 4.0])).tolist(), layer.backward(np.array([1.0, 2.0])).tolist()
    ([40.0, 60.0], [10.0, 20.0, 10.0, 20.0])
    """

    def __init__(self, rng: Generator, *, dtype: Any = np.float32) -> None:
        super().__init__(a=uniform_fan_in((2, 1), rng, dtype)[0].copy(), b=zeros(1, rng, dtype))

    def _forward(self, x: Array) -> tuple[Array, Any]:
        self._check(x, self.params["a"].dtype)
        if x.shape[-1] < 3:
            raise ValueError(f"TwoTap: x: expected at least 3 places along the last axis, got shape {x.shape}")
        taps = x[..., :-2] + x[..., 2:]
        return self.params["a"] * taps + self.params["b"], taps

    def _backward(self, dy: Array, taps: Array, /) -> Array:
        self.grads["a"][0] = (dy * taps).sum()
        self.grads["b"][0] = dy.sum()
        dx = _xp(dy).zeros((*dy.shape[:-1], dy.shape[-1] + 2), dtype=dy.dtype)
        dx[..., :-2] += dy
        dx[..., 2:] += dy
        return self.params["a"] * dx


class ReLU(Layer):
    r"""Cut off what is negative: y = max(x, 0), dx = dy·[x > 0], so the derivative at 0 is 0; NaN stays NaN.

    >>> rv.nn.ReLU()(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def _forward(self, x: Array) -> tuple[Array, Any]:
        return _xp(x).maximum(x, 0), x > 0

    def _backward(self, dy: Array, positive: Array, /) -> Array:
        return _xp(dy).where(positive, dy, dy.dtype.type(0))  # dy·0 would be NaN for an infinite dy


class Tanh(Layer):
    r"""Squash to (−1, 1): y = tanh x, dx = dy·(1 − y²).

    >>> rv.nn.Tanh()(np.array([0.0, 100.0]))
    array([0., 1.])
    """

    def _forward(self, x: Array) -> tuple[Array, Any]:
        y = _xp(x).tanh(x)
        return y, y

    def _backward(self, dy: Array, y: Array, /) -> Array:
        return dy * ((1 - y) * (1 + y))


class Sigmoid(Layer):
    r"""Squash to (0, 1): y = 1/(1 + e⁻ˣ), dx = dy·y·(1 − y); no overflow for any x.

    >>> rv.nn.Sigmoid()(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """

    def _forward(self, x: Array) -> tuple[Array, Any]:
        small = _xp(x).exp(-abs(x))  # at most 1, whatever x is
        y = _xp(x).where(x < 0, small, x.dtype.type(1)) / (1 + small)
        return y, small / (1 + small) ** 2  # y·(1 − y) would lose its digits where y is near 1

    def _backward(self, dy: Array, slope: Array, /) -> Array:
        return dy * slope


class Sequential:
    """Apply layers one after the other; ``params`` and ``grads`` are lists with one entry per layer.

    A parameter's dotted name is its layer's place and its own name: ``"0.weight"``. Any object with ``forward``,
    ``backward``, ``params`` and ``grads`` is a layer, another Sequential too.

    Raises:
        TypeError: something that is no layer, named by its place.

    >>> net = rv.nn.Sequential(rv.nn.Linear(4, 2, np.random.default_rng(0)), rv.nn.Tanh())
    >>> net
    Sequential(Linear(weight=(4, 2), bias=(2,)), Tanh())
    >>> [sorted(p) for p in net.params]
    [['bias', 'weight'], []]
    """

    def __init__(self, *layers: Any) -> None:
        for i, layer in enumerate(layers):
            missing = [name for name in ("forward", "backward", "params", "grads") if not hasattr(layer, name)]
            if isinstance(layer, type) or missing:
                what = f"the class {layer.__name__}; call it" if isinstance(layer, type) else f"{layer!r}"
                raise TypeError(f"layers[{i}]: expected a layer with forward, backward, params and grads, got {what}")
        self.layers = layers

    @property
    def params(self) -> list[Any]:
        """The layers' params, in order."""
        return [layer.params for layer in self.layers]

    @property
    def grads(self) -> list[Any]:
        """The layers' grads, in order."""
        return [layer.grads for layer in self.layers]

    def forward(self, x: Array, training: bool = True) -> Array:
        """Give the last layer's output; ``training`` is handed to every layer."""
        for layer in self.layers:
            x = layer.forward(x, training=training)
        return x

    def backward(self, dy: Array) -> Array:
        """Go back through all layers, filling their grads, and give ∂L/∂x."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    __call__ = forward

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    r"""Compare scores with the right classes: minus the log-probability of the label, averaged over the batch.

    .. math:: L = \frac1N \sum_n \Big(\log \sum_k e^{z_{nk}} - z_{n, label_n}\Big), \qquad
        dz_{nk} = \frac1N (\mathrm{softmax}(z_n)_k - [k = label_n])

    Args:
        logits: z, of shape (N, classes), floating; the largest of each row is taken off before exp.
        labels: N integers in [0, classes).

    Raises:
        ValueError: shapes that do not fit, an empty batch, or a label out of range.
        TypeError: labels that are not integers.

    >>> loss, dz = rv.nn.softmax_cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(loss, 4), dz.tolist()
    (1.3863, [[0.25, 0.25, -0.75, 0.25]])
    """
    xp = _xp(logits)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.size == 0:
        raise ValueError(f"labels: expected (N,) for logits (N, classes), got {labels.shape} for {logits.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got {labels.dtype}; labels.astype(np.int64), or argmax of one-hot")
    n, classes = logits.shape
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels: expected integers in [0, {classes}), got {low if low < 0 else high}")
    shifted = logits - logits.max(axis=1, keepdims=True)
    exp = xp.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    own = (xp.arange(n), labels)
    loss = (xp.log(total[:, 0]) - shifted[own]).mean(dtype=np.float64)
    gradient = exp / total
    gradient[own] -= 1
    gradient /= n
    return float(loss), gradient


def mean_squared_error(y: Array, t: Array) -> tuple[float, Array]:
    r"""Average the squared differences over all elements: L = mean (y − t)², dy = 2(y − t)/size.

    Arguments, result and errors are those of `squared_error`; y must not be empty.

    >>> rv.nn.mean_squared_error(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (2.0, array([0., 2.]))
    """
    loss, difference = squared_error(y, t)
    if y.size == 0:
        raise ValueError(f"y: expected at least one element, got shape {y.shape}")
    return 2 * loss / y.size, difference * y.dtype.type(2 / y.size)


def squared_error(y: Array, t: Array) -> tuple[float, Array]:
    r"""Add up half the squared differences over all elements: L = ½ Σ (y − t)², dy = y − t.

    Args:
        y: predictions, floating.
        t: targets of the same shape; nothing is broadcast.

    Raises:
        ValueError: shapes that differ.
        TypeError: y not floating.

    >>> rv.nn.squared_error(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (2.0, array([0., 2.]))
    """
    if y.shape != t.shape:
        raise ValueError(f"t: expected shape {y.shape} like y, got {t.shape}")
    if y.dtype.kind in "biu":
        raise TypeError(f"y: expected a floating dtype, got {y.dtype}; y.astype(np.float32)")
    difference = (y - t).astype(y.dtype, copy=False)
    return 0.5 * float(_xp(y).square(difference.astype(np.float64)).sum()), difference


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
