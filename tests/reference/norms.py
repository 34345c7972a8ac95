"""Batch and layer normalisation, their backward passes, and norms, in float64, as their papers write them.

Batch norm works per index of ``axis``, the channel, over all other axes; layer norm over the last ``n`` axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable

Array = NDArray[np.float64]


def float64(x: ArrayLike) -> Array:
    return np.array(x, np.float64)


def batch_axes(ndim: int, axis: int) -> tuple[int, ...]:
    """Name the axes that are averaged over: all but the channel's."""
    return tuple(a for a in range(ndim) if a != axis % ndim)


def per_channel(values: ArrayLike, ndim: int, axis: int) -> Array:
    """Shape one number a channel so that it broadcasts along ``axis``."""
    shape = [1] * ndim
    shape[axis] = -1
    return float64(values).reshape(shape)


def batch_statistics(x: ArrayLike, *, axis: int = 1) -> tuple[Array, Array]:
    """Compute μ and the biased σ² of each channel, in two passes.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015, Algorithm 1, lines 1 and 2.
    """
    x = float64(x)
    axes = batch_axes(x.ndim, axis)
    mean = x.mean(axis=axes)
    deviation = x - per_channel(mean, x.ndim, axis)
    return mean, (deviation * deviation).mean(axis=axes)


def batch_norm_eval(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    *,
    axis: int = 1,
    eps: float = 1e-5,
) -> Array:
    """Normalise by given statistics: y = α(x − μ)/√(σ² + ε) + β.

    Source: Ioffe and Szegedy 2015, Algorithm 2, line 11.
    """
    x = float64(x)
    weight, bias, mean, var = (per_channel(s, x.ndim, axis) for s in (weight, bias, mean, var))
    return weight * (x - mean) / np.sqrt(var + eps) + bias


def batch_norm_training(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike, *, axis: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Normalise by the batch's own statistics; returns y, μ and the biased σ².

    Source: Ioffe and Szegedy 2015, Algorithm 1.
    """
    mean, var = batch_statistics(x, axis=axis)
    return batch_norm_eval(x, weight, bias, mean, var, axis=axis, eps=eps), mean, var


def update_running(
    running_mean: ArrayLike,
    running_var: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    *,
    count: int,
    momentum: float = 0.1,
) -> tuple[Array, Array]:
    """running ← (1−m)·running + m·batch, of the unbiased variance σ²·M/(M−1); M = ``count`` elements a channel.

    Source: torch.nn.BatchNorm2d; the unbiased variance is line 10 of Ioffe and Szegedy's Algorithm 2.
    """
    unbiased = float64(var) * (count / (count - 1))
    return (
        (1 - momentum) * float64(running_mean) + momentum * float64(mean),
        (1 - momentum) * float64(running_var) + momentum * unbiased,
    )


def batch_norm_backward(
    dy: ArrayLike, x: ArrayLike, weight: ArrayLike, *, axis: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Differentiate training: dx = α/√(σ²+ε)·(dy − dβ/M − x̂·dα/M), dα = Σdy·x̂, dβ = Σdy; returns dx, dα, dβ.

    Source: Ioffe and Szegedy 2015, section 3, the chain rule after Algorithm 1, simplified.
    """
    dy, x = float64(dy), float64(x)
    axes = batch_axes(x.ndim, axis)
    mean, var = (per_channel(s, x.ndim, axis) for s in batch_statistics(x, axis=axis))
    normalised = (x - mean) / np.sqrt(var + eps)
    dweight, dbias = (dy * normalised).sum(axis=axes), dy.sum(axis=axes)
    count = x.size // x.shape[axis]
    centred = dy - per_channel(dbias, x.ndim, axis) / count - normalised * per_channel(dweight, x.ndim, axis) / count
    return per_channel(weight, x.ndim, axis) / np.sqrt(var + eps) * centred, dweight, dbias


def batch_norm_eval_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    *,
    axis: int = 1,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Differentiate with constant statistics: dx = α·dy/√(σ²+ε); returns dx, dα, dβ.

    Source: the derivative of Ioffe and Szegedy 2015, Algorithm 2, line 11.
    """
    dy, x = float64(dy), float64(x)
    axes = batch_axes(x.ndim, axis)
    mean, var = (per_channel(s, x.ndim, axis) for s in (mean, var))
    normalised = (x - mean) / np.sqrt(var + eps)
    dx = per_channel(weight, x.ndim, axis) * dy / np.sqrt(var + eps)
    return dx, (dy * normalised).sum(axis=axes), dy.sum(axis=axes)


def layer_norm(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike, *, n: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """y = α(x − μ)/√(σ² + ε) + β with μ, σ² over the last n axes of each sample; returns y, μ, σ² (n axes less).

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 3 and 4.
    """
    x = float64(x)
    axes = tuple(range(x.ndim - n, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=axes, keepdims=True)
    y = float64(weight) * (x - mean) / np.sqrt(var + eps) + float64(bias)
    return y, mean.squeeze(axes), var.squeeze(axes)


def layer_norm_backward(
    dy: ArrayLike, x: ArrayLike, weight: ArrayLike, *, n: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """d = α⊙dy; dx = (d − mean d − x̂·mean(d·x̂))/√(σ²+ε); dα, dβ summed over samples (all, if α is a scalar).

    Source: the derivative of Ba, Kiros and Hinton 2016, equations 3 and 4.
    """
    dy, x, weight = float64(dy), float64(x), float64(weight)
    axes = tuple(range(x.ndim - n, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=axes, keepdims=True)
    normalised = (x - mean) / np.sqrt(var + eps)
    d = weight * dy
    projection = normalised * (d * normalised).mean(axis=axes, keepdims=True)
    dx = (d - d.mean(axis=axes, keepdims=True) - projection) / np.sqrt(var + eps)
    summed = tuple(range(x.ndim - weight.ndim))
    return dx, (dy * normalised).sum(axis=summed), dy.sum(axis=summed)


def global_norm(tensors: Iterable[ArrayLike]) -> float:
    """√Σx² over all elements of all tensors."""
    with np.errstate(all="ignore"):
        return float(np.sqrt(sum(np.sum(float64(x) ** 2) for x in tensors)))


def clip_scale(norm: float, clip_norm: float) -> float:
    """Scale that brings a norm to at most ``clip_norm``: 1 if norm ≤ c, else c/norm; NaN for a NaN norm.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, Algorithm 1.
    """
    return 1.0 if norm <= clip_norm else clip_norm / norm
