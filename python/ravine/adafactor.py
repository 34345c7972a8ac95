"""Adafactor: a second moment of a number a row and a column."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Unpack

from ravine import _core, backends, schedules
from ravine.optimizers import Options, Value
from ravine.whole import WholeOptimizer

__all__ = ["RELATIVE_STEP", "Adafactor"]

#: min(1e-2, 1/√t) at the t-th step: the paper's relative step size.
RELATIVE_STEP = schedules.constant(1e-2).then(schedules.inverse_time(1e-2, 1e-4, power=0.5), after=9999)


class Adafactor(WholeOptimizer):
    r"""Divide by a second moment of which only the sums of rows and columns are kept, and limit the update's size.

    .. math:: R \leftarrow \beta_t R + (1-\beta_t) (g^2 + \epsilon_1) 1, \qquad
        C \leftarrow \beta_t C + (1-\beta_t) 1^\top (g^2 + \epsilon_1), \qquad
        U = g \Big/ \sqrt{R C / 1^\top R}

    .. math:: w \leftarrow w - \gamma\, \max(\epsilon_2, \mathrm{RMS}(w))\, \frac{U}{\max(1, \mathrm{RMS}(U)/d)},
        \qquad \beta_t = 1 - t^{\delta}

    A parameter of one axis or none keeps its second moment V whole, and U = g/√V. Of more than two axes, the last two
    are rows and columns. A second moment of n·m numbers becomes one of n + m, in float64; there is no first moment.

    The sums of rows and columns are float64 and have one order, and RMS is the norm's tree: the bits are the same on
    NumPy and CuPy, and for any number of threads. They may differ where a float32 number is subnormal: CuPy's own
    kernels take it as 0.

    Args:
        params: array, or any nesting of dict, list and tuple of arrays; changed in place.
        lr: γ ≥ 0, or a schedule; None (the default) is the paper's relative step size, min(0.01, 1/√t) at step t.
        beta2_decay: δ ≤ 0 (−0.8); βₜ is 0 at the first update.
        eps: (ε₁, ε₂), each ≥ 0 (1e-30, 1e-3): added to g², and the least scale of a parameter. Where a second moment is
            0 the update is 0.
        d: > 0 (1): the largest root mean square of U.
        scale_parameter: γ is relative to RMS(w), as above (True), or absolute: the factor max(ε₂, RMS(w)) is left out.
        options: see :class:`Options`; ``l2`` is refused. ``weight_decay`` takes γλ·w, with γ as above.

    Raises:
        ValueError: a value out of range, named.
        TypeError: a parameter that is not a writable float array, named by its path.

    Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018, Algorithms 4 and
    5, with the hyperparameters of section 9. torch.optim.Adafactor keeps means where the paper keeps sums, takes
    min(γ, 1/√t) for every γ, and with its ε₁ limits the rows' mean from below.

    >>> w = np.array([[1.0, 2.0], [3.0, 4.0]]); opt = rv.Adafactor(w, lr=0.5, eps=(0.0, 0.0), scale_parameter=False)
    >>> _ = opt.step(np.array([[1.0, -2.0], [2.0, -4.0]])); w  # R and C tell g² exactly: U = sign(g)
    array([[0.5, 2.5],
           [2.5, 4.5]])
    """

    _rule_about: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "hyperparameters": {
            "lr": "not_negative",
            "beta2_decay": "not_positive",
            "eps1": "not_negative",
            "eps2": "not_negative",
            "d": "positive",
            "scale_parameter": "switch",
        },
        "states": {"r": "second", "c": "second", "v": "second"},
    }
    _shapes = frozenset({"scale_parameter"})

    def __init__(
        self,
        params: Any,
        lr: Value | None = None,
        *,
        beta2_decay: Value = -0.8,
        eps: tuple[Value, Value] = (1e-30, 1e-3),
        d: Value = 1.0,
        scale_parameter: bool = True,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {
            "lr": RELATIVE_STEP if lr is None else lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "scale_parameter": scale_parameter,
        }
        super().__init__(params, "adafactor", hyper, options)

    def _new_states(self, parameter: Any, dtype: type) -> dict[str, Any]:
        shape, zeros = parameter.shape, self._backend.zeros
        if len(shape) < 2:
            return {"v": zeros(shape, "float64")}
        return {"r": zeros(shape[:-1], "float64"), "c": zeros((*shape[:-2], shape[-1]), "float64")}

    def _update(
        self, parameter: Any, d: Any, states: Mapping[str, Any], numbers: Mapping[str, float], t: int
    ) -> tuple[Any, dict[str, Any]]:
        xp, norm = backends.array_module(d), self._backend.global_norm
        new = 1.0 / _core.raised(float(t), -numbers["beta2_decay"])  # 1 − βₜ
        transform = _whole if "v" in states else _factored
        made, u = transform(xp, d, states, numbers["eps1"], new, self._backend.AT_ONCE)
        root = math.sqrt(d.size)
        factor = -1.0 / xp.maximum(xp.asarray(norm([("u", u)])) / root / numbers["d"], 1.0)
        if numbers["scale_parameter"]:
            factor = factor * xp.maximum(xp.asarray(norm([("w", parameter)])) / root, numbers["eps2"])
        u *= factor.astype(d.dtype)
        return u, made

    def _formula_lines(self, values: Mapping[str, float], decay: str | None) -> list[str]:
        scale = "max(ε₂, rms(w))·" if values["scale_parameter"] else ""
        lines = ["β ← 1 − t^δ", "V ← β·V + (1 − β)·(g² + ε₁)"]
        if any(parameter.ndim > 1 for parameter in self._engine.parameters):
            lines[1:] = ["R ← β·R + (1 − β)·(g² + ε₁)·1", "C ← β·C + (1 − β)·1ᵀ·(g² + ε₁)", "V ← R·C/(1ᵀ·R)"]
        return [*lines, "U ← g/√V", self._last_line(f"γ·{scale}U/max(1, rms(U)/d)", decay)]


def _whole(
    xp: Any, d: Any, states: Mapping[str, Any], eps: float, new: float, at_once: int
) -> tuple[dict[str, Any], Any]:
    """Return the second moment, and d over its root, in d's dtype."""
    v, u = xp.empty(d.size), xp.empty_like(d)
    flat, old, result = d.reshape(-1), states["v"].reshape(-1), u.reshape(-1)
    for start in range(0, d.size, at_once):
        part = slice(start, start + at_once)
        g = flat[part].astype("float64")
        v[part] = _capped(xp, (1.0 - new) * old[part] + new * (g * g + eps))
        result[part] = g * _inverse_root(xp, v[part])
    return {"v": v.reshape(d.shape)}, u


def _factored(
    xp: Any, d: Any, states: Mapping[str, Any], eps: float, new: float, at_once: int
) -> tuple[dict[str, Any], Any]:
    """Return the sums of rows and columns, and d over the root of what they stand for, in d's dtype."""
    n, m = d.shape[-2:]
    matrices, u = d.reshape(-1, n, m), xp.empty_like(d)
    count = len(matrices)
    rows, slabs = xp.empty((count, n)), xp.empty((count, -(-n // _SLAB), m))
    for i, j in _pieces(count, n, m, at_once):
        g = matrices[i, j].astype("float64")
        square = g * g + eps
        rows[i, j] = summed(square, 2)
        slabs[i, j.start // _SLAB : -(-j.stop // _SLAB)] = _slabs(xp, square)
    moments = {"r": rows, "c": summed(slabs, 1)}
    made = {k: _capped(xp, (1.0 - new) * states[k] + new * x.reshape(states[k].shape)) for k, x in moments.items()}
    r, c = made["r"].reshape(count, n), made["c"].reshape(count, m)
    total = _capped(xp, summed(r, 1)[:, None])
    of_rows = _inverse_root(xp, xp.where(r == 0, 0.0, r / total))  # 0/0 is no share
    of_columns = _inverse_root(xp, c)
    result = u.reshape(-1, n, m)
    for i, j in _pieces(count, n, m, at_once):
        g = matrices[i, j].astype("float64")
        result[i, j] = g * of_rows[i, j, None] * of_columns[i, None]
    return made, u


def _capped(xp: Any, v: Any) -> Any:
    """Give the largest finite number in the place of ∞, so that a second moment decays again."""
    return xp.minimum(v, sys.float_info.max)


def _inverse_root(xp: Any, v: Any) -> Any:
    """1/√v; 0 where v is 0, for the update to be."""
    return xp.where(v == 0, 0.0, 1.0 / xp.sqrt(v))


#: Rows that are summed by themselves first, column by column. Part of the order of the sums.
_SLAB = 64


def _pieces(count: int, n: int, m: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Cut matrices into pieces of about so many elements: several matrices, or whole slabs of one."""
    if n * m < at_once:
        several = at_once // (n * m)
        yield from ((slice(i, i + several), slice(0, n)) for i in range(0, count, several))
        return
    height = max(1, at_once // (m * _SLAB)) * _SLAB
    for i in range(count):
        yield from ((slice(i, i + 1), slice(j, min(n, j + height))) for j in range(0, n, height))


def _slabs(xp: Any, x: Any) -> Any:
    """Sum the columns of each slab of some matrices."""
    count, n, m = x.shape
    even = n - n % _SLAB
    sums = [summed(x[:, :even].reshape(count, -1, _SLAB, m), 2)] if even else []
    return xp.concatenate([*sums, summed(x[:, even:], 1)[:, None]] if even < n else sums, 1)


def summed(x: Any, axis: int) -> Any:
    """Sum along an axis that is not empty, in this order: the second half onto the first, again and again."""
    x = x.swapaxes(axis, 0)
    n = len(x)
    if n > 1:
        half = (n + 1) // 2
        folded = x[:half].copy()
        folded[: n - half] += x[half:]
        x, n = folded, half
    while n > 1:
        half = (n + 1) // 2
        x[: n - half] += x[half:n]
        n = half
    return x[:1].swapaxes(axis, 0).squeeze(axis)
