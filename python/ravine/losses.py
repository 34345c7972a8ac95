r"""Losses with their gradients. Half precision is summed and divided in float32, and rounded once at the end."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from ravine.backends import array_module as _xp
from ravine.backends import backend_of, is_array
from ravine.backends.foreign import adopt

__all__ = ["mean_squared_error", "softmax_cross_entropy", "squared_error"]

Array: TypeAlias = Any


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    r"""Compare scores with the right classes: minus the log-probability of the label, averaged over the batch.

    .. math:: L = \frac1N \sum_n \Big(\log \sum_k e^{z_{nk}} - z_{n, label_n}\Big), \qquad
        dz_{nk} = \frac1N (\mathrm{softmax}(z_n)_k - [k = label_n])

    Args:
        logits: z, of shape (N, classes), floating; the largest of each row is taken off before exp.
        labels: N integers in [0, classes), an array or a list.

    Raises:
        ValueError: shapes that do not fit, an empty batch, or a label out of range.
        TypeError: logits that are not floating, labels that are not integers.

    >>> loss, dz = rv.nn.softmax_cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(loss, 4), dz.tolist()
    (1.3863, [[0.25, 0.25, -0.75, 0.25]])
    """
    logits, labels = _array("logits", logits), _array("labels", labels, logits)
    xp = _xp(logits)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.size == 0:
        raise ValueError(f"labels: expected (N,) for logits (N, classes), got {labels.shape} for {logits.shape}")
    _check_floating("logits", logits)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got {labels.dtype}; labels.astype(np.int64), or argmax of one-hot")
    n, classes = logits.shape
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels: expected integers in [0, {classes}), got {low if low < 0 else high}")
    z = wide(logits)
    shifted = z - z.max(axis=1, keepdims=True)
    exp = xp.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    own = (xp.arange(n), labels)
    loss = (xp.log(total[:, 0]) - shifted[own]).mean(dtype=np.float64)
    gradient = exp / total
    gradient[own] -= 1
    gradient /= n
    return float(loss), narrow(gradient, logits)


def mean_squared_error(y: Array, t: Array) -> tuple[float, Array]:
    r"""Average the squared differences over all elements: L = mean (y − t)², dy = 2(y − t)/size.

    Arguments, result and errors are those of `squared_error`; y must not be empty.

    >>> rv.nn.mean_squared_error(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (2.0, array([0., 2.]))
    """
    y, difference = _difference(y, t)
    if y.size == 0:
        raise ValueError(f"y: expected at least one element, got shape {y.shape}")
    return 2 * _half_square(difference) / y.size, narrow(difference * difference.dtype.type(2 / y.size), y)


def squared_error(y: Array, t: Array) -> tuple[float, Array]:
    r"""Add up half the squared differences over all elements: L = ½ Σ (y − t)², dy = y − t.

    Args:
        y: predictions, floating.
        t: targets of the same shape; nothing is broadcast. Lists are taken for both.

    Raises:
        ValueError: shapes that differ.
        TypeError: y not floating.

    >>> rv.nn.squared_error(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (2.0, array([0., 2.]))
    """
    y, difference = _difference(y, t)
    return _half_square(difference), narrow(difference, y)


def wide(x: Array) -> Array:
    """Give x itself, or float32 numbers of an array in half precision."""
    return x.astype(np.float32) if x.dtype.name in ("float16", "bfloat16") else x


def narrow(x: Array, like: Array) -> Array:
    """Round what was computed with `wide` numbers of ``like`` to its dtype."""
    return x.astype(like.dtype) if like.dtype.name in ("float16", "bfloat16") else x


def _difference(y: Array, t: Array) -> tuple[Array, Array]:
    y, t = _array("y", y), _array("t", t, y)
    if y.shape != t.shape:
        raise ValueError(f"t: expected shape {y.shape} like y, got {t.shape}")
    _check_floating("y", y)
    return y, (wide(y) - wide(t)).astype(wide(y).dtype, copy=False)


def _half_square(difference: Array) -> float:
    return 0.5 * float(_xp(difference).square(difference.astype(np.float64)).sum())


def _array(name: str, x: Any, beside: Any = None) -> Array:
    """Give an array as it is, another library's as NumPy's or CuPy's, a list as one where the array beside it is."""
    if is_array(x) or is_array(x := adopt(x, name, False)):
        return x
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array or a list of numbers, got {type(x).__name__}: {error}") from None
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected an array or a list of numbers, got {type(x).__name__} of {array.dtype}")
    return backend_of(beside).put(array)


def _check_floating(name: str, x: Array) -> None:
    if x.dtype.kind in "biu":
        raise TypeError(f"{name}: expected a floating dtype, got {x.dtype}; {name}.astype(np.float32)")
