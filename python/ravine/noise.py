"""How noisy are minibatch gradients? The variance against the batch size, and the batch that pays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ravine.backends import backend_of
from ravine.hessian import generator
from ravine.norms import length
from ravine.objective import Array, Objective, Tree, check_function, integer

__all__ = ["NoiseScale", "noise_scale"]

Host: TypeAlias = np.ndarray[Any, Any]

#: C of C·u, the share of ‖g‖ that rounding may move from batch to batch.
_ROUNDING = 8.0


@dataclass(frozen=True, eq=False)
class NoiseScale:
    """What `noise_scale` found.

    Attributes:
        scale: B = tr Σ/‖G‖², in samples; NaN if undetermined.
        scale_error: its standard error, to first order; NaN if undetermined.
        suggested_batch: the power of two next to B, at most all samples; None if undetermined.
        gradient_square: the estimate of ‖G‖², G the gradient of all samples.
        noise_trace: the estimate of tr Σ, the variance of one sample's gradient.
        batch_sizes: S, rising.
        squares: the mean of ‖g_S‖² for each.
        variances: the variance of g_S for each, summed over all elements.
        exponent: p of the fitted variance ~ S^p; −1 is the law. NaN if fewer than two variances are positive.
        message: the same in words.
    """

    scale: float
    scale_error: float
    suggested_batch: int | None
    gradient_square: float
    noise_trace: float
    batch_sizes: Host
    squares: Host
    variances: Host
    exponent: float
    message: str


def noise_scale(
    loss_and_grad: Callable[..., tuple[Any, Tree]],
    params: Tree,
    data: Any,
    *,
    batch_sizes: Sequence[int] | None = None,
    repeats: int = 16,
    replace: bool = False,
    rng: np.random.Generator | int | None = None,
) -> NoiseScale:
    r"""Measure how the gradient's variance falls with the batch size S, and suggest a batch.

    .. math::
        \operatorname{Var} g_S &= c_S \operatorname{tr} \Sigma, \qquad
        c_S = \tfrac1S \text{ with replacement, } \quad \tfrac1S \tfrac{N - S}{N - 1} \text{ without} \\
        \lVert G \rVert^2 &\approx \frac{c_b \lVert g_{b'} \rVert^2 - c_{b'} \lVert g_b \rVert^2}{c_b - c_{b'}},
        \quad \operatorname{tr} \Sigma \approx
        \frac{\lVert g_b \rVert^2 - \lVert g_{b'} \rVert^2}{c_b - c_{b'}},
        \quad B = \frac{\operatorname{tr} \Sigma}{\lVert G \rVert^2}

    b is the smallest batch size, b' the largest. The squares are averaged over the repeats, and only then divided. Up
    to a batch of about B, twice the batch is worth nearly two steps; beyond, hardly more than one. The exponent is
    fitted to the variances of all sizes: −1 but for chance, if the loss is a mean over the batch; +1 if it is a sum.

    Args:
        loss_and_grad: a function of ``params`` and a batch, ``loss_and_grad(params, x, y)`` for ``data=(x, y)``, that
            gives (mean loss, gradients in the nesting of params).
        params: array, or any nesting of dict, list and tuple of arrays (NumPy or CuPy); restored bit for bit.
        data: array, or tuple of arrays, all with the N samples along axis 0; of NumPy, CuPy, torch or JAX. Series and
            DataFrames of pandas are taken by position, whatever their index says, and each batch is numbered from 0.
        batch_sizes: at least two, in [1, N]; five from about N/256 to N/4 unless given.
        repeats: batches of each size, at least 2.
        replace: draw each batch with replacement, or without, as `ravine.data.minibatches` does.
        rng: a NumPy Generator or a seed for the batches; the same ones each time unless given.

    Returns:
        A `NoiseScale`; its ``scale`` is NaN if ‖G‖² came out as zero or less, or tr Σ as no more than rounding, which
        more repeats may cure.

    Raises:
        TypeError: a parameter that is no writable float array, or an array of another library than its parameter.
        ValueError: an argument out of range, gradients of another nesting or shape, or numbers that are not finite.

    Source: McCandlish, Kaplan, Amodei et al., "An Empirical Model of Large-Batch Training", 2018, (2.9) and appendix
    A.1; without replacement: Cochran, "Sampling Techniques", 1977, theorem 2.2.

    >>> x = np.array([1.0, 3.0, 1.0, 3.0])  # gradients of mean 2 and variance 1
    >>> found = rv.diagnose.noise_scale(lambda w, x: (w * x.mean(), x.mean()), np.array(1.0), x, batch_sizes=[2, 4])
    >>> round(found.gradient_square, 6)  # a batch of all four has no variance
    4.0
    """
    arrays = data if isinstance(data, tuple) else (data,)
    n = _samples(arrays)
    sizes = _batch_sizes(batch_sizes, n, replace)
    repeats = integer("repeats", repeats, 2)
    check_function("loss_and_grad", loss_and_grad)
    rng = generator(rng)
    batch: tuple[Array, ...] = ()
    squares, variances = np.empty((2, len(sizes)))
    doubts = np.empty(len(sizes))
    power = None
    with Objective(lambda p: loss_and_grad(p, *batch), params) as objective:
        x = objective.point()
        for i, size in enumerate(sizes):
            norms, first, total, spread = [], None, 0.0, 0.0
            for _ in range(repeats):
                chosen = rng.integers(0, n, size) if replace else rng.permutation(n)[:size]
                batch = tuple(_rows(array, chosen) for array in arrays)
                _, g = objective.finite(x, f"on a batch of {size}")
                # Gradients whose squares leave float64's range are measured in another unit, which B does not see.
                power = _far(length(g)) if power is None else power
                g = g * 2.0**-power
                norms.append(length(g) ** 2)
                # Differences from one of them: the square of the mean would swallow a small variance.
                first = g if first is None else first
                total = total + (g - first)
                spread += length(g - first) ** 2
            variances[i] = max(0.0, spread - length(total) ** 2 / repeats) / (repeats - 1)
            squares[i], doubts[i] = np.mean(norms), np.std(norms, ddof=1) / math.sqrt(repeats)
    shares = np.array([1 / size * (1 if replace else (n - size) / (n - 1)) for size in sizes])
    rounding, power = _ROUNDING * objective.roundoff, 2 * (power or 0)
    found = _noise_scale(np.array(sizes), n, shares, squares, doubts, variances, rounding, power)
    return dataclasses.replace(found, message=found.message + objective.precision.message)


def _rows(array: Array, chosen: Host) -> Array:
    """Return rows by position: what has labels as well, as pandas does, looks numbers up among the labels."""
    if not hasattr(array, "iloc"):
        return array[backend_of(array).put(chosen)]
    rows = array.iloc[chosen]
    # Arithmetic of two such would pair rows by label again.
    return rows.reset_index(drop=True) if hasattr(rows, "reset_index") else rows


def _far(norm: float) -> int:
    """Return 0 for an ordinary norm, else its exponent, as far as a power of two can be."""
    exponent = math.frexp(norm)[1] if math.isfinite(norm) else 1024
    return 0 if norm == 0 or abs(exponent) <= 400 else max(-1022, min(1022, exponent))


def _noise_scale(
    sizes: Host, n: int, shares: Host, squares: Host, doubts: Host, variances: Host, rounding: float, power: int
) -> NoiseScale:
    """Conclude; the squares are in units of 2ᵏ, k = ``power``."""
    (few, many), (c, d) = squares[[0, -1]], shares[[0, -1]]
    gradient_square, noise_trace = float((c * many - d * few) / (c - d)), float((few - many) / (c - d))
    told = (shares > 0) & (variances > rounding**2 * squares)
    exponent = math.nan
    if told.sum() >= 2:
        # What drawing without replacement takes off is no part of the law.
        exponent = float(np.polyfit(np.log(sizes[told]), np.log(variances[told] / (shares * sizes)[told]), 1)[0])
    law = f"the variance falls as S^{exponent:.2f}, the law is S^-1"
    if exponent > -0.5:
        law += "; is the loss a mean over the batch?"
    if gradient_square <= 0 or few - many <= rounding * few:
        scale, error, batch = math.nan, math.nan, None
        what = "‖G‖² is not positive" if gradient_square <= 0 else "tr Σ is not above rounding"
        message = f"undetermined: the estimate of {what}; more repeats, or batch sizes further apart"
    else:
        scale = noise_trace / gradient_square
        # d ln B by the two means, which are independent.
        by_few = 1 / noise_trace + d / gradient_square
        by_many = 1 / noise_trace + c / gradient_square
        error = scale * math.hypot(by_few * doubts[0], by_many * doubts[-1]) / (c - d)
        batch = min(n, 2 ** max(0, round(math.log2(scale))))
        message = f"noise scale {scale:.3g} (±{error:.2g}) samples: a batch of {batch} of {n}"
        if error > scale / 2:
            message += "; uncertain, more repeats would tell"
    with np.errstate(over="ignore", under="ignore"):
        square, trace, squares, variances = (
            np.ldexp(x, power) for x in (gradient_square, noise_trace, squares, variances)
        )
    message = f"{message}; {law}"
    return NoiseScale(
        scale, float(error), batch, float(square), float(trace), sizes, squares, variances, exponent, message
    )


def _samples(arrays: tuple[Array, ...]) -> int:
    for i, array in enumerate(arrays):
        if not getattr(array, "shape", ()):
            raise ValueError(f"data[{i}]: expected an array with a sample in each row, got {type(array).__name__}")
    lengths = [array.shape[0] for array in arrays]
    if len(set(lengths)) != 1 or lengths[0] < 2:
        raise ValueError(f"data: expected arrays of the same number of samples, at least 2, got {lengths}")
    return int(lengths[0])


def _batch_sizes(batch_sizes: Sequence[int] | None, n: int, replace: bool) -> list[int]:
    if batch_sizes is None:
        return sorted({round(size) for size in np.geomspace(max(1, n // 256), max(2, n // 4), 5)})
    sizes = sorted({integer("batch_sizes", size, 0) for size in batch_sizes})
    if len(sizes) < 2 or sizes[0] < 1 or (sizes[-1] > n and not replace):
        most = "" if replace else f" and at most {n}, all samples"
        raise ValueError(
            f"batch_sizes: expected at least two different ones, at least 1{most}, got {list(batch_sizes)}"
        )
    return sizes
