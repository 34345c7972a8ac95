"""How do the layers fare? Saturated and dead units, exploding and vanishing activations and gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ravine.backends import array_module, is_array
from ravine.objective import Array, Tree, number, readable
from ravine.trees import leaves as leaves_of

__all__ = ["ActivationReport", "LayerReport", "activation_report"]

Host: TypeAlias = np.ndarray[Any, Any]
Bounds: TypeAlias = tuple[float, float]

#: The bounds of what a layer's function can give. The share of its largest slope that is left at y is 4t(1 − t), for
#: tanh and sigmoid alike, t being y's place between the bounds.
_BOUNDS = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
_KINDS = ("relu", "tanh", "sigmoid", "linear")


@dataclass(frozen=True, eq=False)
class LayerReport:
    """A layer at the last time, in an `ActivationReport`.

    Attributes:
        name: the layer's.
        kind: ``"relu"``, ``"tanh"``, ``"sigmoid"``, ``"linear"``, or its bounds.
        rms: root mean square of its activations.
        gradient_rms: the same of its gradients; NaN if none were given.
        saturated: share of activations at the flat ends of a bounded function; NaN for others.
        dead: share of ReLU units that are zero for all samples; NaN for others.
        findings: what is wrong with it, in words.
    """

    name: str
    kind: str
    rms: float
    gradient_rms: float
    saturated: float
    dead: float
    findings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ActivationReport:
    """What `activation_report` found.

    Attributes:
        names: of the layers, from the input to the loss.
        rms: root mean square of the activations, of shape (times, layers); inf where one is not finite.
        gradient_rms: the same of the gradients; NaN where none were given.
        saturated: share of activations at the flat ends of a bounded function; NaN for other layers.
        dead: share of ReLU units that are zero for all samples; NaN for other layers.
        rows: the layers at the last time.
        message: the findings in words.
    """

    names: tuple[str, ...]
    rms: Host
    gradient_rms: Host
    saturated: Host
    dead: Host
    rows: tuple[LayerReport, ...]
    message: str


def activation_report(
    activations: Mapping[str, Array] | Sequence[Mapping[str, Array]],
    gradients: Mapping[str, Tree] | Sequence[Mapping[str, Tree]] | None = None,
    *,
    kind: str | Bounds | Mapping[str, str | Bounds] | None = None,
    saturated_slope: float = 0.1,
    share: float = 0.5,
    factor: float = 1e3,
) -> ActivationReport:
    r"""Find saturated and dead units, and layers where activations or gradients explode or vanish.

    .. math::
        \text{saturated: } 4 t (1 - t) \le 0.1, \quad t = \frac{y - low}{high - low}, \qquad
        \text{dead: } y_{nu} = 0 \text{ for all samples } n, \qquad
        \text{rms} = \sqrt{\operatorname{mean} y^2}

    For tanh, 4t(1 − t) is 1 − y², the slope itself; for the sigmoid, the slope relative to its largest, 1/4.
    Activations explode or vanish along the layers if their rms is ``factor`` times that of the first layer, or 1/factor
    of it, and over time if it is so of their own at first. Gradients are compared with the last layer's; over time they
    may explode, but that they get smaller is what training is for.

    Args:
        activations: each layer's output by its name, from the input to the loss; samples along the leading axes, units
            along the last; NumPy, CuPy, torch or JAX, any float dtype. Or a sequence of such, over time.
        gradients: the same names with each layer's gradients, an array or a nesting of arrays; layers may be left out.
        kind: of every layer, or of each by its name: ``"relu"``, ``"tanh"``, ``"sigmoid"``, ``"linear"``, or bounds
            (low, high). What is not given is told from the numbers: between 0 and 1, never 0: sigmoid; never negative:
            relu; between −1 and 1: tanh; else linear.
        saturated_slope: in (0, 1), the share of the largest slope up to which a place is flat.
        share: in [0, 1]; more saturated activations, or dead units, than this are a finding.
        factor: > 1.

    Returns:
        An `ActivationReport`. Its arrays, of shape (times, layers), are NumPy's and ready to be plotted. Numbers that
        are not finite are reported, with the first time and layer.

    Raises:
        TypeError: a layer that is no float array, named by its layer and time.
        ValueError: no layers, an empty array, other names at another time, a kind that does not exist, or an argument
            out of range.

    Source: Glorot and Bengio, "Understanding the Difficulty of Training Deep Feedforward Neural Networks", 2010,
    section 3 (saturation) and 4.2 (gradients by layer); dead units: Maas, Hannun and Ng, "Rectifier Nonlinearities
    Improve Neural Network Acoustic Models", 2013, section 2.

    >>> report = rv.diagnose.activation_report({"hidden": np.array([[0.0, 2.0], [0.0, 1.0]])}, share=0.4)
    >>> report.dead.tolist()
    [[0.5]]
    >>> print(report.message)
    hidden: 50% of the units are dead (zero for all samples): lower the rate, or use leaky units
    """
    saturated_slope = number("saturated_slope", saturated_slope, "a number in (0, 1)", lambda x: 0 < x < 1)
    share = number("share", share, "a number in [0, 1]", lambda x: 0 <= x <= 1)
    factor = number("factor", factor, "a finite number > 1", lambda x: 1 < x < math.inf)
    times, names = _layers([activations] if isinstance(activations, Mapping) else list(activations))
    kinds = _kinds(kind, times, names)
    rms, saturated, dead, gradient_rms = np.full((4, len(times), len(names)), math.nan)
    for i, layers in enumerate(times):
        for j, name in enumerate(names):
            y = layers[name].astype(np.float64)
            rms[i, j] = _rms([y])
            if kinds[name] == "relu":
                dead[i, j] = float((y.reshape(-1, y.shape[-1]) == 0).all(axis=0).mean())
            elif (bounds := _bounds(kinds[name])) is not None:
                t = (y - bounds[0]) / (bounds[1] - bounds[0])
                saturated[i, j] = float((4 * t * (1 - t) <= saturated_slope).mean())
    for i, layers in enumerate(_gradients(gradients, len(times), names)):
        for name, tree in layers.items():
            arrays = [
                _floats(g, f"gradients[{i}][{name!r}]: {leaf}") for leaf, g in leaves_of(tree).items() if g is not None
            ]
            gradient_rms[i, names.index(name)] = _rms([g.astype(np.float64) for g in arrays if g.size])
    given = np.flatnonzero(~np.isnan(gradient_rms[-1]))
    last = int(given[-1]) if given.size else 0
    rows = []
    for j, name in enumerate(names):
        findings = _unit_findings(saturated[-1, j], dead[-1, j], share)
        findings += _trend("activations", rms, j, 0, names, factor)
        findings += _trend("gradients", gradient_rms, j, last, names, factor)
        said = str(kinds[name]).replace("(", "bounds (")
        now = [float(table[-1, j]) for table in (rms, gradient_rms, saturated, dead)]
        rows.append(LayerReport(name, said, now[0], now[1], now[2], now[3], tuple(findings)))
    message = "\n".join(f"{row.name}: {finding}" for row in rows for finding in row.findings)
    return ActivationReport(
        tuple(names), rms, gradient_rms, saturated, dead, tuple(rows), message or "nothing unusual in any layer"
    )


def _layers(given: list[Mapping[str, Array]]) -> tuple[list[Mapping[str, Array]], list[str]]:
    """Return the layers as NumPy's or CuPy's arrays, and their names."""
    for i, layers in enumerate(given):
        if not isinstance(layers, Mapping):
            raise TypeError(f"activations[{i}]: expected a dict of layers by name, got {type(layers).__name__}")
    if not given or not given[0]:
        raise ValueError("activations: expected at least one layer, got none")
    names = list(given[0])
    times: list[Mapping[str, Array]] = []
    for i, layers in enumerate(given):
        if set(layers) != set(names):
            raise ValueError(f"activations[{i}]: expected the layers {names} as at first, got {list(layers)}")
        times.append({name: _floats(layers[name], f"activations[{i}][{name!r}]") for name in names})
        for name, y in times[-1].items():
            if y.ndim == 0 or y.size == 0:
                raise ValueError(f"activations[{i}][{name!r}]: expected samples and units, got shape {y.shape}")
    return times, names


def _floats(x: Any, name: str) -> Array:
    y = readable(x, name)
    if not is_array(y) or (y.dtype.kind != "f" and y.dtype.name != "bfloat16"):
        got = y.dtype.name if is_array(y) else type(y).__name__
        raise TypeError(f"{name}: expected a float array, got {got}; pass np.asarray(x, np.float32)")
    return y


def _gradients(gradients: Any, times: int, names: list[str]) -> list[Mapping[str, Tree]]:
    if gradients is None:
        return []
    found = [gradients] if isinstance(gradients, Mapping) else list(gradients)
    if len(found) != times:
        raise ValueError(f"gradients: expected as many times as activations have, {times}, got {len(found)}")
    for i, layers in enumerate(found):
        unknown = [name for name in layers if name not in names]
        if unknown:
            raise ValueError(f"gradients[{i}]: expected layers among {names}, got {unknown} too")
    return found


def _kinds(
    kind: str | Bounds | Mapping[str, str | Bounds] | None, times: list[Mapping[str, Array]], names: list[str]
) -> dict[str, str | Bounds]:
    given = dict(kind) if isinstance(kind, Mapping) else dict.fromkeys(names, kind) if kind is not None else {}
    kinds: dict[str, str | Bounds] = {}
    for name, one in given.items():
        if name not in names:
            raise ValueError(f"kind: expected layers among {names}, got {name!r}")
        bounded = isinstance(one, tuple) and len(one) == 2 and one[0] < one[1]
        if one not in _KINDS and not bounded:
            raise ValueError(f"kind[{name!r}]: expected one of {', '.join(_KINDS)}, or bounds (low, high), got {one!r}")
        kinds[name] = one
    for name in names:
        if name not in kinds:
            ends = [float(end) for layers in times for end in (layers[name].min(), layers[name].max())]
            low, high = (f((end for end in ends if math.isfinite(end)), default=math.nan) for f in (min, max))
            if low >= 0:
                kinds[name] = "sigmoid" if low > 0 and high <= 1 else "relu"
            else:
                kinds[name] = "tanh" if low >= -1 and high <= 1 else "linear"
    return kinds


def _bounds(kind: str | Bounds) -> Bounds | None:
    return _BOUNDS.get(kind) if isinstance(kind, str) else kind


def _rms(arrays: list[Array]) -> float:
    """Return √(mean of squares) over all, scaled by the largest: its square may leave float64's range."""
    if not arrays:
        return math.nan
    sizes = [float(abs(a).max()) for a in arrays]
    if not all(map(math.isfinite, sizes)):
        return math.inf
    size = max(sizes)
    if size == 0:
        return 0.0
    total = sum(float(array_module(a).square(a / size).sum()) for a in arrays)
    return size * math.sqrt(total / sum(a.size for a in arrays))


def _unit_findings(saturated: float, dead: float, share: float) -> list[str]:
    found = []
    if saturated > share:
        found.append(
            f"{saturated:.0%} of the activations are saturated: start with smaller weights, normalise, or use relu"
        )
    if dead > share:
        found.append(f"{dead:.0%} of the units are dead (zero for all samples): lower the rate, or use leaky units")
    return found


def _trend(what: str, table: Host, j: int, reference: int, names: list[str], factor: float) -> list[str]:
    """Say how a layer's rms compares with the reference layer's now, and with its own at the first time."""
    column, now = table[:, j], table[-1, j]
    if np.isinf(column).any():
        return [f"{what} are not finite at time {int(np.isinf(column).argmax())}: lower the rate, clip the gradient"]
    found = []
    for other, where in ((table[-1, reference], f"those of {names[reference]}"), (table[0, j], "those at first")):
        if not (0 < other < math.inf) or other == now:
            continue
        numbers = f"rms {now:.2g}, {where} {other:.2g}"
        if now > factor * other:
            found.append(f"{what} explode: {numbers}; clip the gradient, start with smaller weights, normalise")
        elif now * factor < other and (what == "activations" or where != "those at first"):
            found.append(f"{what} vanish: {numbers}; start with larger weights, normalise, use relu")
    return found
