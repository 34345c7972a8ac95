r"""Layer normalisation: each sample by the mean and variance of its own units, forward and backward, in fused kernels.

The same bits for any number of threads, any instruction set, contiguous memory or not: a sample's sums go to 64 float64
accumulators in turn, the sums over samples for dα and dβ to 8. There are no running statistics.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ravine.backends import backend_of, backend_on, is_array
from ravine.batch_norm import check_settings, contiguous, dtype_of, gradient_arrays, output
from ravine.layers import Gradients, Stateful, WorkSpace, count_backward

__all__ = ["LayerNorm", "LayerNormSaved", "layer_norm", "layer_norm_backward"]


@dataclass(frozen=True)
class LayerNormSaved:
    """What `layer_norm` keeps for `layer_norm_backward`.

    Args:
        mean: μ of each sample, float64, in C order, of x's array library.
        inv_std: 1/√(σ²+ε) of each sample, likewise.
        axes: how many trailing axes were normalised over.

    >>> rv.layer_norm(np.array([[1.0, 3.0]]), eps=0)[1]
    LayerNormSaved(mean=array([2.]), inv_std=array([1.]), axes=1)
    """

    mean: Any
    inv_std: Any
    axes: int


def layer_norm(
    x: Any, weight: Any = None, bias: Any = None, *, axes: int = 1, eps: float = 1e-5, out: Any = None
) -> tuple[Any, LayerNormSaved]:
    r"""Normalise each sample of x by the mean and variance over its last ``axes`` axes, its units.

    .. math:: y = \alpha \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Args:
        x: float32 or float64 array (NumPy or CuPy, and then so are all others); not contiguous works, by way of a copy.
        weight: α, one number per unit (x's last axes), or one for all (any array of one element); x's dtype; None is 1.
        bias: β, likewise; None is 0.
        axes: how many trailing axes are units (1).
        eps: ε ≥ 0 (1e-5).
        out: where y goes: C-contiguous, x's shape and dtype, no memory in common with x; None makes a new array.

    Returns:
        y, and what `layer_norm_backward` needs of the statistics.

    Raises:
        ValueError: a shape that does not fit, ``out`` that overlaps x or cannot be written, axes or eps out of range.
        TypeError: not an array of x's library, or of another dtype than float32, float64, x's.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 3 and 4.

    >>> y, saved = rv.layer_norm(np.array([[1.0, 3.0], [20.0, 10.0]])); y.round(4), saved.mean
    (array([[-1.,  1.],
           [ 1., -1.]]), array([ 2., 15.]))
    """
    return _forward(x, weight, bias, _axes(axes), eps, out)


def _forward(
    x: Any, weight: Any, bias: Any, axes: int, eps: float, out: Any, **room: Any
) -> tuple[Any, LayerNormSaved]:
    x = contiguous(x)
    out = output(x, out)
    mean, inv_std = backend_of(x).layer_norm(x, axes, weight, bias, eps, out, **room)
    return out, LayerNormSaved(mean, inv_std, axes)


def layer_norm_backward(
    dy: Any, x: Any, saved: LayerNormSaved, weight: Any = None, bias: Any = None, *, out: Any = None
) -> tuple[Any, Any, Any]:
    r"""Differentiate `layer_norm`: ∂L/∂x, ∂L/∂α and ∂L/∂β from ∂L/∂y.

    .. math::
        dx = \frac{d - \overline{d} - \hat x\,\overline{d \hat x}}{\sqrt{\sigma^2+\epsilon}}, \quad d = \alpha \odot dy,
        \qquad d\alpha = \sum dy \odot \hat x, \quad d\beta = \sum dy

    The means go over the units of a sample, the sums over samples, and over units, too, where one number serves all.

    Args:
        dy: ∂L/∂y, x's shape and dtype.
        x: what went forward, unchanged since.
        saved: what `layer_norm` returned with y.
        weight: the α that went forward; None gives a dα per unit.
        bias: the β that went forward, for its shape only; None gives a dβ per unit.
        out: where dx goes; as in `layer_norm`, and no memory in common with dy.

    Returns:
        dx like x; dα and dβ, shaped like α and β, x's dtype.

    Raises:
        ValueError: a shape that does not fit, ``out`` that overlaps an input or cannot be written.
        TypeError: not an array of x's library, or of another dtype than float32, float64, x's.

    Source: the derivative of Ba, Kiros and Hinton 2016, equations 3 and 4.

    >>> x = np.array([[1.0, 2.0, 6.0]]); y, saved = rv.layer_norm(x)
    >>> dx, dweight, dbias = rv.layer_norm_backward(np.array([[1.0, 0.0, 0.0]]), x, saved)
    >>> dx.round(4), dweight.round(4), dbias
    (array([[ 0.1763, -0.2204,  0.0441]]), array([-0.9258,  0.    ,  0.    ]), array([1., 0., 0.]))
    """
    shapes = (_shape(x)[-saved.axes :] if like is None else _shape(like) for like in (weight, bias))
    dweight, dbias = (backend_of(x).empty(shape, dtype_of(x)) for shape in shapes)
    return _backward(dy, x, saved, weight, out, dweight, dbias)


def _backward(
    dy: Any, x: Any, saved: LayerNormSaved, weight: Any, out: Any, dweight: Any, dbias: Any
) -> tuple[Any, Any, Any]:
    dy, x = contiguous(dy), contiguous(x)
    out = output(x, out)
    backend_of(x).layer_norm_backward(dy, x, saved.axes, weight, saved.mean, saved.inv_std, out, dweight, dbias)
    return out, dweight, dbias


def _shape(x: Any) -> tuple[int, ...]:
    return x.shape if is_array(x) else ()


def _axes(axes: int) -> int:
    number = operator.index(axes)
    if number < 1:
        raise ValueError(f"axes: expected how many trailing axes are normalised over, at least 1, got {number}")
    return number


class LayerNorm(Stateful):
    r"""Layer normalisation as a layer: parameters, and work space that is used again.

    .. math:: y = \alpha \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    ``params`` and ``grads`` are dicts with "weight" (α, ones at first) and "bias" (β, zeros), made once and changed in
    place; gradients are None before the first ``backward``. In training, ``forward`` and ``backward`` write to an array
    of an earlier call that nobody holds any more, or to ``out``. Evaluation makes a new one.

    Args:
        shape: the units: the length of x's last axis, or a tuple of the lengths of its last axes.
        eps: ε ≥ 0 (1e-5).
        affine: whether there are α and β.
        scalar: one α and one β for all units, instead of one each.
        dtype: float32 or float64, x's.
        device: where the arrays are made, and x must be: ``"cpu"`` for NumPy, ``"cuda"`` or ``"cuda:1"`` for CuPy.

    Raises:
        ValueError: a length < 1, eps out of range, ``scalar`` without ``affine``, no such device.
        TypeError: another dtype.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 3 and 4.

    >>> layer = rv.LayerNorm(2)
    >>> y = layer(np.array([[1.0, 3.0], [20.0, 10.0]], np.float32)); y.round(4)
    array([[-1.,  1.],
           [ 1., -1.]], dtype=float32)
    >>> layer.backward(np.ones_like(y)), layer.grads["bias"]
    (array([[0., 0.],
           [0., 0.]], dtype=float32), array([2., 2.], dtype=float32))
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        eps: float = 1e-5,
        affine: bool = True,
        scalar: bool = False,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        try:
            self.shape = tuple(map(operator.index, shape if isinstance(shape, (tuple, list)) else (shape,)))
        except TypeError:
            raise TypeError(f"shape: expected an integer or a tuple of integers, got {shape!r}") from None
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape: expected the length of one axis or more, each at least 1, got {shape}")
        if scalar and not affine:
            raise ValueError("scalar: expected False where affine is False: there are no α and β")
        check_settings(eps, 0.0, dtype)
        self.eps = eps
        put, units = backend_on(device).put, () if scalar else self.shape
        self.params: dict[str, Any] = (
            {"weight": put(np.ones(units, dtype)), "bias": put(np.zeros(units, dtype))} if affine else {}
        )
        self.grads = Gradients.fromkeys(self.params)
        self._space = WorkSpace()

    def forward(self, x: Any, training: bool = True, *, out: Any = None) -> Any:
        """Give y; ``training`` changes no number, a sample needs no other. See `layer_norm`."""
        x = contiguous(x)
        if is_array(x) and x.shape[-len(self.shape) :] != self.shape:
            expected = ", ".join(map(str, ("...", *self.shape)))
            raise ValueError(f"x: expected shape ({expected}), got {x.shape}; reshape it")
        weight, bias, axes = self.params.get("weight"), self.params.get("bias"), len(self.shape)
        room = self._space.statistics(x, _shape(x)[:-axes])
        if out is None and training:
            out = self._space.array("y", x)
        y, saved = _forward(x, weight, bias, axes, self.eps, out, **room)
        self._keep((x, saved), training)
        return y

    def backward(self, dy: Any, *, out: Any = None) -> Any:
        """Fill ``grads`` and give ∂L/∂x, from ∂L/∂y at the last forward, whose x must be as it was.

        An evaluation is no last forward while one in training waits for its backward.

        Raises:
            RuntimeError: before any forward.
        """
        if self._kept is None:
            raise RuntimeError("LayerNorm.backward: nothing to go back through; call forward first")
        x, saved = self._kept.value
        weight, dx = self.params.get("weight"), self._space.array("dx", x) if out is None else out
        if weight is None:
            dx = layer_norm_backward(dy, x, saved, out=dx)[0]
        else:
            dweight, dbias = gradient_arrays(self)
            _backward(dy, x, saved, weight, dx, dweight, dbias)
            self.grads["weight"], self.grads["bias"] = dweight, dbias
        self._kept.waiting = False
        count_backward(self.grads)
        return dx

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._space = WorkSpace()

    def __repr__(self) -> str:
        scalar = bool(self.params) and self.params["weight"].ndim == 0
        return f"LayerNorm({self.shape}, eps={self.eps}, affine={bool(self.params)}, scalar={scalar})"
