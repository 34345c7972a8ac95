r"""Batch normalisation: each channel by its mean and variance over the batch, forward and backward, in fused kernels.

The statistics are float64 sums in an order of their own, so the results have the same bits for any number of threads,
any instruction set, contiguous memory or not. Which order depends on where the channel axis is: if it is the last,
``(N, C)`` or channels last, a channel's terms go to 8 accumulators in turn, row by row; else, ``(N, C, …)``, to 64.
The variance is a second pass, Σ(x−μ)²/M, never E[x²]−E[x]²: a constant channel gives β, not NaN.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np

from ravine.backends import backend_of, backend_on, is_array
from ravine.layers import Gradients, Stateful, WorkSpace, count_backward
from ravine.trees import Buffered

__all__ = ["BatchNorm", "BatchNormSaved", "batch_norm", "batch_norm_backward"]


@dataclass(frozen=True)
class BatchNormSaved:
    """What `batch_norm` keeps for `batch_norm_backward`: small, whatever the size of x.

    Args:
        mean: μ of each channel, float64, of x's array library.
        inv_std: 1/√(σ²+ε) of each channel, likewise.
        axis: number of the channel axis.
        training: whether these are the batch's own statistics, which change with x.
        relu: whether y was cut off at 0.
        bias: the β that went forward, if ``relu``; not a copy.

    >>> rv.batch_norm(np.array([[1.0], [3.0]]), eps=0)[1]
    BatchNormSaved(mean=array([2.]), inv_std=array([1.]), axis=1, training=True, relu=False, bias=None)
    """

    mean: Any
    inv_std: Any
    axis: int
    training: bool
    relu: bool = False
    bias: Any = None


def contiguous(x: Any) -> Any:
    """Give x itself, or a C-order copy of an array that is not contiguous."""
    if not is_array(x) or x.flags.c_contiguous:
        return x
    copy = backend_of(x).empty(x.shape, x.dtype)
    backend_of(x).assign(copy, x)
    return copy


def output(x: Any, out: Any) -> Any:
    """Give ``out``, or a new array like x."""
    return backend_of(x).empty(x.shape, x.dtype) if out is None and is_array(x) else out


def dtype_of(x: Any) -> Any:
    """Give x's dtype; what is no array is refused where the arrays are checked."""
    return x.dtype if is_array(x) else np.float32


def _axis(x: Any, axis: int) -> int:
    ndim = x.ndim if is_array(x) else 0
    number = operator.index(axis)
    if ndim and not -ndim <= number < ndim:
        raise ValueError(f"axis: expected -{ndim} to {ndim - 1}, one of the axes of x, shape {x.shape}, got {number}")
    return number % ndim if ndim else 0


def batch_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    *,
    axis: int = 1,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    out: Any = None,
) -> tuple[Any, BatchNormSaved]:
    r"""Normalise each channel of x, in training by the batch's mean and variance, else by the running ones.

    .. math:: y = \alpha\,\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Training also updates the running statistics, in place: r ← (1−m)·r + m·batch, of the variance the unbiased
    one, σ²·M/(M−1).

    Args:
        x: float32 or float64 array (NumPy or CuPy, and then so are all others) with C channels along ``axis``; not
            contiguous works, by way of a copy.
        weight: α, shape (C,), x's dtype; None is 1.
        bias: β, shape (C,), x's dtype; None is 0.
        running_mean: shape (C,), x's dtype, zeros at first; None: not kept, and then ``training`` must be True.
        running_var: shape (C,), x's dtype, ones at first; None with ``running_mean``.
        axis: the channels' (1); it also chooses the order of the sums, see the module.
        training: normalise by the batch and update the running statistics, or normalise by these.
        momentum: m in [0, 1], the weight of the new batch (0.1, as in PyTorch; Keras writes 1−m).
        eps: ε ≥ 0 (1e-5).
        relu: cut y off at 0 in the same pass, with the bits of ``rv.nn.ReLU`` after it: max(y, +0), NaN stays NaN.
        out: where y goes: C-contiguous, x's shape and dtype, no memory in common with x. None makes a new array; for
            large x, writing to an array that exists is several times as fast: the system has to clear each page of a
            new one first. `BatchNorm` keeps its own.

    Returns:
        y, and what `batch_norm_backward` needs of the statistics.

    Raises:
        ValueError: a shape that does not fit, one element per channel in training, ``out`` that overlaps x or cannot be
            written, eps or momentum out of range, one running statistic without the other. Nothing was changed.
        TypeError: not an array of x's library, or of another dtype than float32, float64, x's.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015, Algorithms 1 and 2.

    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    >>> y, saved = rv.batch_norm(x); y.round(4), saved.mean
    (array([[-1., -1.],
           [ 1.,  1.]], dtype=float32), array([ 2., 20.]))
    """
    return _forward(x, [weight, bias, running_mean, running_var], axis, training, momentum, eps, relu, out)


def _forward(
    x: Any,
    vectors: list[Any],
    axis: int,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
    out: Any,
    **room: Any,
) -> tuple[Any, BatchNormSaved]:
    x, training, relu = contiguous(x), bool(training), bool(relu)
    axis, out = _axis(x, axis), output(x, out)
    mean, inv_std = backend_of(x).batch_norm(x, axis, *vectors, training, momentum, eps, out, relu, **room)
    return out, BatchNormSaved(mean, inv_std, axis, training, relu, vectors[1] if relu else None)


def batch_norm_backward(
    dy: Any, x: Any, saved: BatchNormSaved, weight: Any = None, *, out: Any = None
) -> tuple[Any, Any, Any]:
    r"""Differentiate `batch_norm`: ∂L/∂x, ∂L/∂α and ∂L/∂β from ∂L/∂y.

    .. math::
        d\beta = \sum dy, \quad d\alpha = \sum dy\,\hat x, \quad
        dx = \frac{\alpha}{\sqrt{\sigma^2+\epsilon}} \Bigl(dy - \frac{d\beta}{M} - \hat x\,\frac{d\alpha}{M}\Bigr)

    With running statistics (``training=False``) dx = α·dy/√(σ²+ε). With ``relu``, dy counts only where y > 0: y is
    computed again from x, the saved statistics, α and β, which costs less than reading it.

    Args:
        dy: ∂L/∂y, x's shape and dtype.
        x: what went forward, unchanged since.
        saved: what `batch_norm` returned with y; with ``relu``, the β in it is unchanged since, too.
        weight: the α that went forward.
        out: where dx goes; as in `batch_norm`, and no memory in common with dy.

    Returns:
        dx like x; dα and dβ, shape (C,), x's dtype (also where α and β were None).

    Raises:
        ValueError: a shape that does not fit, ``out`` that overlaps an input or cannot be written.
        TypeError: not an array of x's library, or of another dtype than float32, float64, x's.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015, section 3, simplified.

    >>> x = np.array([[1.0], [2.0], [6.0]]); y, saved = rv.batch_norm(x)
    >>> dx, dweight, dbias = rv.batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), x, saved)
    >>> dx.round(4).ravel(), dweight.round(4), dbias
    (array([ 0.1763, -0.2204,  0.0441]), array([-0.9258]), array([1.]))
    """
    dweight, dbias = (backend_of(x).empty(saved.mean.shape, dtype_of(x)) for _ in range(2))
    return _backward(dy, x, saved, weight, out, dweight, dbias)


def _backward(
    dy: Any, x: Any, saved: BatchNormSaved, weight: Any, out: Any, dweight: Any, dbias: Any
) -> tuple[Any, Any, Any]:
    dy, x = contiguous(dy), contiguous(x)
    out = output(x, out)
    backend_of(x).batch_norm_backward(
        dy,
        x,
        saved.axis,
        weight,
        saved.mean,
        saved.inv_std,
        saved.training,
        out,
        dweight,
        dbias,
        saved.relu,
        saved.bias,
    )
    return out, dweight, dbias


class BatchNorm(Stateful):
    r"""Batch normalisation as a layer: parameters, running statistics, and work space that is used again.

    .. math:: y = \alpha\,\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    ``params`` and ``grads`` are dicts with "weight" (α, ones at first) and "bias" (β, zeros); ``buffers`` holds
    "running_mean" (zeros) and "running_var" (ones). The arrays are made once and changed in place; gradients are None
    before the first ``backward``.

    In training, ``forward`` and ``backward`` write to an array of an earlier call that nobody holds any more, or to
    ``out``. Evaluation makes a new one.

    Args:
        n_features: channels C.
        axis: the channels' (1); -1 for channels last.
        eps: ε ≥ 0 (1e-5).
        momentum: m in [0, 1], the weight of the new batch (0.1).
        affine: whether there are α and β.
        relu: cut y off at 0 in the same pass; as `batch_norm`.
        dtype: float32 or float64, x's.
        device: where the arrays are made, and x must be: ``"cpu"`` for NumPy, ``"cuda"`` or ``"cuda:1"`` for CuPy.

    Raises:
        ValueError: n_features < 1, eps or momentum out of range, no such device.
        TypeError: another dtype.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015, Algorithms 1 and 2.

    >>> layer = rv.BatchNorm(2)
    >>> y = layer(np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)); y.round(4)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> layer.buffers["running_mean"], layer.backward(np.ones_like(y))
    (array([0.2, 2. ], dtype=float32), array([[0., 0.],
           [0., 0.]], dtype=float32))
    """

    #: That of layers that were pickled before there was one.
    relu: bool = False

    def __init__(
        self,
        n_features: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        relu: bool = False,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        if not isinstance(n_features, SupportsIndex):
            raise TypeError(f"n_features: expected an integer, got {n_features!r}")
        if operator.index(n_features) < 1:
            raise ValueError(f"n_features: expected at least 1, got {n_features}")
        check_settings(eps, momentum, dtype)
        self.axis, self.eps, self.momentum, self.relu = operator.index(axis), eps, momentum, bool(relu)
        put, ones, zeros = backend_on(device).put, np.ones(n_features, dtype), np.zeros(n_features, dtype)
        params = {"weight": put(ones.copy()), "bias": put(zeros.copy())} if affine else {}
        self.params: dict[str, Any] = Buffered(params)
        self.grads = Gradients.fromkeys(self.params)
        self.buffers: dict[str, Any] = {"running_mean": put(zeros), "running_var": put(ones)}
        self._space = WorkSpace()

    def forward(self, x: Any, training: bool = True, *, out: Any = None) -> Any:
        """Give y, by the statistics of x if ``training``, else by the running ones; see `batch_norm`.

        Raises:
            ValueError: x with another number of channels; whatever `batch_norm` raises.
        """
        x = contiguous(x)
        mean, var = self.buffers["running_mean"], self.buffers["running_var"]
        if is_array(x) and x.shape[_axis(x, self.axis)] != mean.size:
            raise ValueError(
                f"x: expected {mean.size} channels along axis {self.axis}, as BatchNorm({mean.size}) was made for, got "
                f"{x.shape[_axis(x, self.axis)]} in shape {x.shape}"
            )
        vectors = [self.params.get("weight"), self.params.get("bias"), mean, var]
        room = self._space.statistics(x, mean.shape)
        if out is None and training:
            out = self._space.array("y", x)
        y, saved = _forward(x, vectors, self.axis, training, self.momentum, self.eps, self.relu, out, **room)
        self._keep((x, saved), training)
        return y

    def backward(self, dy: Any, *, out: Any = None) -> Any:
        """Fill ``grads`` and give ∂L/∂x, from ∂L/∂y at the last forward, whose x must be as it was.

        An evaluation is no last forward while one in training waits for its backward.

        Raises:
            RuntimeError: before any forward.
        """
        if self._kept is None:
            raise RuntimeError("BatchNorm.backward: nothing to go back through; call forward first")
        x, saved = self._kept.value
        weight, dx = self.params.get("weight"), self._space.array("dx", x) if out is None else out
        if weight is None:
            dx = batch_norm_backward(dy, x, saved, out=dx)[0]
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
        n = self.buffers["running_mean"].size
        affine, relu = bool(self.params), ", relu=True" if self.relu else ""
        return f"BatchNorm({n}, axis={self.axis}, eps={self.eps}, momentum={self.momentum}, affine={affine}{relu})"


def gradient_arrays(layer: Any) -> tuple[Any, Any]:
    """Give the arrays of ∂L/∂α and ∂L/∂β, new ones for a first backward."""
    (weight, bias), grads = (layer.params[name] for name in ("weight", "bias")), layer.grads
    if grads["weight"] is not None and grads["bias"] is not None:
        return grads["weight"], grads["bias"]
    empty = backend_of(weight).empty
    return empty(weight.shape, weight.dtype), empty(bias.shape, bias.dtype)


def check_settings(eps: float, momentum: float, dtype: Any) -> None:
    """Refuse numbers out of range, and dtypes that are not computed in."""
    if not 0 <= eps < np.inf:
        raise ValueError(f"eps: expected a finite number ≥ 0, got {eps}")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
    if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype: expected float32 or float64, got {np.dtype(dtype)}")
