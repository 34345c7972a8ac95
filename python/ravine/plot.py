"""Pictures of training: curves, landscapes with the optimizers' paths, spectra; one line each.

Every function draws on ``ax``, or on new Axes, and returns the Axes: titles, limits and files are matplotlib's. Colours
are those of Okabe and Ito, which colour-blind people tell apart, and viridis where there is an order; curves that are
there already keep theirs to themselves. Numbers that are not finite leave gaps. Where a logarithmic axis would hide
numbers that are not positive, it is another one, and its label says so. They need matplotlib:
``pip install 'ravine[plot]'``.

>>> ax = rv.plot.schedules({"cosine": rv.schedules.warmup(10) * rv.schedules.cosine(0.1, 100)}, steps=100)
>>> ax.get_xlabel()
'step'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ravine.backends import is_array
from ravine.objective import Array, Objective, Tree, number, readable
from ravine.trees import to_host

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLORS",
    "contour",
    "layers",
    "learning_curves",
    "line",
    "lr_range",
    "noise_scale",
    "schedules",
    "spectrum",
    "surface",
]

Host: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Loss: TypeAlias = Callable[[Tree], Any]

#: Okabe and Ito's, without yellow and the greys: blue, orange, green, purple, vermilion, sky blue, black.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
#: Where there is an order; the next one if the Axes have curves of the one before.
_ORDERED = ("viridis", "plasma", "cividis", "magma")


def learning_curves(
    runs: Any, key: str = "loss", *, smoothing: float = 0.0, log: bool = True, ax: Axes | None = None
) -> Axes:
    r"""Draw what was recorded over the steps, one curve a run.

    .. math:: \sum_{i \le t} \beta^{t-i} x_i \Big/ \sum_{i \le t} \beta^{t-i}
        \qquad \text{over the } x_i \text{ that are finite}

    Args:
        runs: a `History`, or a dict of them by name; or plain arrays of one value a step in their place.
        key: what to draw of a History.
        smoothing: β in [0, 1), the weight of the past; the values themselves stay visible, pale.
        log: a logarithmic axis; linear if there are numbers below 0, and linear next to 0 if there are zeros.
        ax: Axes to draw on, also beside other curves; new ones unless given.

    Returns:
        The Axes.

    Raises:
        KeyError: a History without that key.
        ValueError: smoothing out of its range, or a run that is not one number a step.

    >>> ax = rv.plot.learning_curves({"SGD": [1.0, 0.5, 0.25], "Adam": [1.0, 0.3, 0.1]})
    >>> [curve.get_label() for curve in ax.lines]
    ['SGD', 'Adam']
    """
    smoothing = number("smoothing", smoothing, "a number in [0, 1)", lambda x: 0 <= x < 1)
    named = runs if isinstance(runs, Mapping) else {None: runs}
    curves = {name: _curve(name, run, key) for name, run in named.items()}
    ax = _axes(ax)
    for i, (name, (steps, values)) in enumerate(curves.items()):
        color = _color(ax)
        if smoothing and len(values):
            ax.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
            values = _smoothed(values, smoothing)
        marked = slice(None) if len(values) <= 50 else _alone(values)
        marks: dict[str, Any] = {"marker": _MARKERS[i % len(_MARKERS)], "markersize": 4, "markevery": marked}
        ax.plot(steps, values, linewidth=1.8, color=color, label=name, **marks)
    ax.set(xlabel="step", ylabel=key.replace("_", " "))
    _log_y(ax, log)
    return _finish(ax, legend=len(named) > 1)


def contour(
    loss: Loss,
    params: Tree,
    *,
    directions: tuple[Tree, Tree] | None = None,
    paths: Mapping[str, Sequence[Tree]] | None = None,
    extent: tuple[float, float, float, float] | None = None,
    points: int = 81,
    levels: int | Sequence[float] = 16,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the loss over a plane of parameters, with the optimizers' paths on it.

    .. math:: (a, b) \mapsto L(w + a u + b v)

    With two parameters in all, and no directions, the axes are these two parameters. Otherwise a and b count from
    ``params``, along ``directions``; without them along the two principal directions of the paths, or two random ones,
    of length 1. What of a path lies beside the plane is projected onto it.

    Args:
        loss: a function of the parameters that gives the loss, or a tuple that starts with it.
        params: w: any nesting of writable float arrays (NumPy or CuPy); moved, and restored bit for bit.
        directions: u and v, nestings like params.
        paths: by name, the places where an optimizer was, at least one: nestings like params. Places that are not
            finite leave gaps; the star is at the last one that is.
        extent: (least a, greatest a, least b, greatest b); the paths with a margin unless given, or -1 to 1.
        points: along each axis.
        levels: how many lines, closer together at low losses; or the losses themselves, rising.
        ax: Axes to draw on; new ones unless given.

    Returns:
        The Axes.

    Raises:
        ValueError: directions that are parallel, not finite, or of another nesting or shape than params; a path without
            a place; a loss that is finite nowhere.

    >>> w = np.array([1.0, 1.0])
    >>> ax = rv.plot.contour(lambda w: float(w[0]**2 + 4 * w[1]**2), w, paths={"GD": [w, w / 2, w / 4]}, points=9)
    >>> ax.get_legend_handles_labels()[1]
    ['GD']
    """
    plane = _Plane(loss, params, directions, paths or {})
    a, b, values = plane.grid(extent, points)
    ax = _axes(ax)
    lines = _levels(values, levels)
    # Shades by the cube root, as the lines: else all but the rim would be white.
    shades: dict[str, Any] = {"cmap": "Greys", "norm": "linear" if values.min() == values.max() else _cube_root(lines)}
    filled = ax.contourf(a, b, values, lines, alpha=0.45, extend="max", **shades)
    ax.contour(a, b, values, lines, colors="#555555", linewidths=0.4)
    bar = ax.figure.colorbar(filled, ax=ax, label="loss", format="%.3g", ticks=lines[::4])
    bar.minorticks_off()
    for name, path in plane.paths.items():
        color, finite = _color(ax), path[np.isfinite(path).all(axis=1)]
        ax.plot(*path.T, color=color, marker=".", markersize=4, linewidth=1.3, label=name)
        ax.plot(*finite[:1].T, color=color, marker="o", markersize=7, fillstyle="none")
        ax.plot(*finite[-1:].T, color=color, marker="*", markersize=11)
    ax.set(xlim=(a[0], a[-1]), ylim=(b[0], b[-1]), xlabel=plane.names[0], ylabel=plane.names[1])
    return _finish(ax, legend=bool(plane.paths), grid=False)


def surface(
    loss: Loss,
    params: Tree,
    *,
    directions: tuple[Tree, Tree] | None = None,
    extent: tuple[float, float, float, float] | None = None,
    points: int = 81,
    ax: Axes | None = None,
) -> Axes:
    """Draw what `contour` draws, in three dimensions and without paths.

    Args:
        loss: as for `contour`.
        params: the same.
        directions: the same.
        extent: the same.
        points: the same.
        ax: Axes with ``projection="3d"``; new ones unless given.

    Returns:
        The Axes.

    Raises:
        ValueError: as `contour`.

    >>> ax = rv.plot.surface(lambda w: float(w[0]**2 - w[1]**2), np.zeros(2), points=9)
    >>> ax.get_zlabel()
    'loss'
    """
    plane = _Plane(loss, params, directions, {})
    a, b, values = plane.grid(extent, points)
    ax = _axes(ax, projection="3d")
    room: Any = ax  # Axes3D, whose methods Axes does not have
    room.plot_surface(*np.meshgrid(a, b), values, cmap="viridis", rcount=points, ccount=points, linewidth=0)
    room.set(xlabel=plane.names[0], ylabel=plane.names[1])
    room.set_zlabel("loss", labelpad=8)
    room.locator_params(nbins=5)
    room.set_box_aspect(None, zoom=0.85)  # the labels stand outside
    return ax


def line(
    loss: Loss,
    params: Tree,
    direction: Tree | None = None,
    *,
    to: Tree | None = None,
    extent: tuple[float, float] | None = None,
    points: int = 101,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the loss along a line through the parameters.

    .. math:: a \mapsto L(w + a u)

    A loss is convex only if every such curve lies under its chords, the straight pieces between two of its points.

    Args:
        loss: a function of the parameters that gives the loss, or a tuple that starts with it.
        params: w: any nesting of writable float arrays (NumPy or CuPy); moved, and restored bit for bit.
        direction: u, a nesting like params; not scaled.
        to: instead of a direction, the place at a = 1: u is the way there.
        extent: least and greatest a; (-1, 1), or (-0.25, 1.25) with ``to``.
        points: how many.
        label: of the curve, for the legend.
        ax: Axes to draw on, also beside other curves; new ones unless given.

    Returns:
        The Axes.

    Raises:
        ValueError: neither or both of direction and to; another nesting or shape than params.

    >>> ax = rv.plot.line(lambda w: float(w @ w), np.array([1.0, 0.0]), to=np.array([-1.0, 0.0]), points=5)
    >>> ax.lines[0].get_ydata().min()
    np.float64(0.0)
    """
    if (direction is None) == (to is None):
        raise ValueError("line: expected either direction or to, got " + ("neither" if to is None else "both"))
    with Objective(loss, params, "loss") as objective:
        start = objective.point()
        if to is None:
            unit, (low, high), label_x = objective.vector(direction, "direction"), extent or (-1.0, 1.0), "a in w + a·u"
        else:
            unit, (low, high) = objective.vector(to, "to") - start, extent or (-0.25, 1.25)
            label_x = "way from w (0) to the other (1)"
        a = np.linspace(low, high, points)
        values = [objective.loss(start + at * unit) for at in a]
        marks = [at for at in ((0.0,) if to is None else (0.0, 1.0)) if low <= at <= high]
        there = [objective.loss(start + at * unit) for at in marks]
    ax = _axes(ax)
    ax.plot(a, values, color=_color(ax), linewidth=1.8, label=label)
    ax.plot(marks, there, "o", color=ax.lines[-1].get_color(), markersize=6, label="_marks")
    ax.set(xlabel=label_x, ylabel="loss")
    return _finish(ax, legend=label is not None)


def schedules(curves: Any, steps: int, *, ax: Axes | None = None) -> Axes:
    """Draw schedules over the steps.

    Args:
        curves: a schedule, any function of the step, or a dict of them by name.
        steps: how many steps to draw.
        ax: Axes to draw on; new ones unless given.

    Returns:
        The Axes.

    >>> rv.plot.schedules(rv.schedules.linear(1.0, 0.0, 10), steps=10).lines[0].get_ydata()[:3]
    array([1. , 0.9, 0.8])
    """
    named = curves if isinstance(curves, Mapping) else {None: curves}
    ax = _axes(ax)
    for name, curve in named.items():
        ax.plot([float(curve(t)) for t in range(steps)], color=_color(ax), linewidth=1.8, label=name)
    ax.set(xlabel="step", ylabel="learning rate")
    return _finish(ax, legend=len(named) > 1)


def layers(values: Mapping[str, Any], *, ylabel: str = "norm", log: bool = True, ax: Axes | None = None) -> Axes:
    """Draw one number of each layer over the steps: norms of gradients or activations, fractions of flat units.

    The colour runs from the first layer (dark) to the last (bright), so that what grows or vanishes with depth shows.

    Args:
        values: by the layer's name, from the first layer to the last, the numbers over the steps.
        ylabel: what they are.
        log: a logarithmic axis; linear if there are numbers below 0, and linear next to 0 if there are zeros.
        ax: Axes to draw on, also beside other curves; new ones unless given.

    Returns:
        The Axes.

    >>> ax = rv.plot.layers({"hidden": [1.0, 0.9], "out": [0.1, 0.2]}, ylabel="gradient norm")
    >>> [curve.get_label() for curve in ax.lines]
    ['hidden', 'out']
    """
    curves = {name: _series(f"values[{name!r}]", series) for name, series in values.items()}
    ax = _axes(ax)
    for (name, series), color in zip(curves.items(), _ordered_colors(ax, len(curves)), strict=True):
        alone: dict[str, Any] = {"marker": ".", "markevery": _alone(series)}
        ax.plot(series, color=color, linewidth=1.6, label=name, **alone)
    ax.set(xlabel="step", ylabel=ylabel)
    _log_y(ax, log)
    return _finish(ax, legend=True)


def lr_range(result: Any, *, ax: Axes | None = None) -> Axes:
    """Draw a learning-rate range test, with the suggested rate marked.

    Args:
        result: what `lr_range_test` found.
        ax: Axes to draw on; new ones unless given.

    Returns:
        The Axes.

    >>> w = np.array([1.0, -2.0])
    >>> found = rv.lr_range_test(lambda w: (float(w @ w), 2 * w), w, rv.SGD(w, lr=0.1))
    >>> rv.plot.lr_range(found).get_xscale()
    'log'
    """
    ax = _axes(ax)
    color, accent = _color(ax), _accent(ax)
    ax.plot(result.lrs, result.losses, color=color, linewidth=0.8, alpha=0.35, label="loss")
    ax.plot(result.lrs, result.smoothed, color=color, linewidth=1.8, label="smoothed")
    if result.suggested is not None:
        ax.axvline(result.suggested, color=accent, linestyle="--", label=f"suggested: {result.suggested:.2g}")
    ax.set(xlabel="learning rate", ylabel="loss", xscale="log")
    return _finish(ax, legend=True)


def spectrum(density: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the density of the Hessian's eigenvalues.

    Args:
        density: what `ravine.hessian.spectrum_density` found.
        ax: Axes to draw on; new ones unless given.

    Returns:
        The Axes, with a logarithmic axis: few large eigenvalues stand beside many near 0.

    >>> h = np.array([1.0, 2.0, 5.0])
    >>> found = rv.hessian.spectrum_density(lambda w: (float(h @ w**2) / 2, h * w), np.ones(3))
    >>> rv.plot.spectrum(found).get_xlabel()
    'eigenvalue of the Hessian'
    """
    ax = _axes(ax)
    grid, values = _host(density.grid), _host(density.density)
    floor, color = 1e-6 * values.max(), _color(ax)
    before = [np.asarray(curve.get_ydata(), np.float64) for curve in _curves(ax)]
    lowest = min([floor, *(float(y[y > 0].min(initial=floor)) for y in before)])
    ax.fill_between(grid, np.maximum(values, floor), floor, color=color, alpha=0.25, linewidth=0)
    ax.plot(grid, np.maximum(values, floor), color=color, linewidth=1.4)
    ax.axvline(0, color="#555555", linewidth=0.8, linestyle=":")
    ax.set(xlabel="eigenvalue of the Hessian", ylabel="density", yscale="log", ylim=(lowest, None))
    return _finish(ax, legend=False)


def noise_scale(result: Any, *, ax: Axes | None = None) -> Axes:
    r"""Draw the variance of the minibatch gradient over the batch size S, beside the law of independent samples.

    .. math:: \operatorname{Var} g_S = \operatorname{tr} \Sigma / S

    Args:
        result: what `ravine.diagnose.noise_scale` found. Without replacement, large batches lie below the law.
        ax: Axes to draw on; new ones unless given.

    Returns:
        The Axes.

    >>> x = np.random.default_rng(0).standard_normal(512) + 1.0
    >>> found = rv.diagnose.noise_scale(lambda w, x: (w * x.mean(), x.mean()), np.array(1.0), x)
    >>> rv.plot.noise_scale(found).get_xlabel()
    'batch size'
    """
    ax = _axes(ax)
    sizes, accent = _host(result.batch_sizes), _accent(ax)
    ax.plot(sizes, _host(result.variances), "o", color=_color(ax), markersize=6, label="measured")
    if result.noise_trace > 0:
        ax.plot(sizes, result.noise_trace / sizes, color=_color(ax), linewidth=1.6, label="tr Σ / S")
    if result.suggested_batch is not None:
        label = f"suggested: {result.suggested_batch}"
        ax.axvline(result.suggested_batch, color=accent, linestyle="--", label=label)
    ax.set(xlabel="batch size", ylabel="variance of the gradient", xscale="log")
    _log_y(ax, True)
    return _finish(ax, legend=True)


class _Plane:
    """Two directions through a place, the loss on the plane of the two, and paths seen from it."""

    def __init__(
        self, loss: Loss, params: Tree, directions: tuple[Tree, Tree] | None, paths: Mapping[str, Sequence[Tree]]
    ) -> None:
        self.objective = Objective(loss, params, "loss")
        point = self.objective.point()
        flat = {name: [self.objective.vector(w, f"paths[{name!r}]") for w in path] for name, path in paths.items()}
        for name, path in flat.items():
            if not path:
                raise ValueError(f"paths[{name!r}]: expected at least one place, got none")
        self.origin, self.names = point, ("a", "b")
        if directions is not None:
            u, v = (self.objective.vector(d, f"directions[{i}]") for i, d in enumerate(directions))
        elif self.objective.size == 2:
            self.origin, self.names = 0 * point, self._two_names()
            u, v = self.objective.put(np.array([1.0, 0.0])), self.objective.put(np.array([0.0, 1.0]))
        else:
            u, v = self._principal([w - point for path in flat.values() for w in path])
        self.u, self.v = u, v
        gram = np.array([[_dot(x, y) for y in (u, v)] for x in (u, v)])
        if not (np.isfinite(gram).all() and np.linalg.cond(gram) < 1e12):
            raise ValueError("directions: expected two that are finite, not parallel, nor 0")
        self.paths = {name: np.array([self._seen(gram, w) for w in path]) for name, path in flat.items()}

    def _seen(self, gram: Host, w: Array) -> Host:
        """Return where a place is on the plane; NaN for one that is not finite."""
        if not bool(self.objective.xp.isfinite(w).all()):
            return np.full(2, math.nan)
        rest = w - self.origin
        return _host(np.linalg.solve(gram, [_dot(self.u, rest), _dot(self.v, rest)]))

    def _two_names(self) -> tuple[str, str]:
        leaves = self.objective.leaves
        if len(leaves) == 2:
            first, second = leaves
            return first, second
        name = next(iter(leaves)).replace("params", "w")
        return f"{name}[0]", f"{name}[1]"

    def _principal(self, differences: Iterable[Array]) -> tuple[Array, Array]:
        rows = [row for row in map(_host, differences) if np.isfinite(row).all()]
        if len(rows) < 3:
            rng = np.random.default_rng(0)
            rows = [rng.standard_normal(self.objective.size) for _ in range(2)]
        _, _, vectors = np.linalg.svd(np.array(rows), full_matrices=False)
        return self.objective.put(vectors[0]), self.objective.put(vectors[1])

    def grid(self, extent: tuple[float, float, float, float] | None, points: int) -> tuple[Host, Host, Host]:
        low_a, high_a, low_b, high_b = extent or self._extent()
        a, b = np.linspace(low_a, high_a, points), np.linspace(low_b, high_b, points)
        with self.objective as objective:
            values = [[objective.loss(self.origin + i * self.u + j * self.v) for i in a] for j in b]
        found = np.ma.masked_invalid(np.array(values))
        if found.mask.all():
            raise ValueError(f"loss: expected a finite one somewhere in {tuple(extent or self._extent())}, got none")
        return a, b, found

    def _extent(self) -> tuple[float, float, float, float]:
        found = np.concatenate(
            [path[np.isfinite(path).all(axis=1)] for path in self.paths.values()] or [np.zeros((0, 2))]
        )
        if not len(found):
            at = [
                _dot(self.u, self.objective.point() - self.origin),
                _dot(self.v, self.objective.point() - self.origin),
            ]
            return at[0] - 1, at[0] + 1, at[1] - 1, at[1] + 1
        low, high = found.min(axis=0), found.max(axis=0)
        margin = 0.15 * np.maximum(high - low, 0.3 * (high - low).max() or 1.0)
        return (
            float(low[0] - margin[0]),
            float(high[0] + margin[0]),
            float(low[1] - margin[1]),
            float(high[1] + margin[1]),
        )


def _levels(values: Host, levels: int | Sequence[float]) -> Sequence[float]:
    if not isinstance(levels, int):
        return levels
    low, high = float(values.min()), float(values.max())
    if 0 <= low < 1e-12 * high:
        low = 0.0  # what rounding leaves of it is no label
    if not high > low:
        high = low + (abs(low) or 1.0)
    rising: Sequence[float] = (low + (high - low) * np.linspace(0, 1, levels + 1) ** 3).tolist()
    return rising


def _cube_root(levels: Sequence[float]) -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(1 / 3, levels[0], levels[-1])


def _curve(name: str | None, run: Any, key: str) -> tuple[Host, Host]:
    if hasattr(run, "record"):
        series = run[key]
        return _host(series.steps), _host(series.values)
    values = _series("runs" if name is None else f"runs[{name!r}]", run)
    return np.arange(1, len(values) + 1, dtype=np.float64), values


def _series(argument: str, x: Any) -> Host:
    values = _host(x, argument)
    if values.ndim != 1:
        raise ValueError(f"{argument}: expected one number a step, got shape {values.shape}")
    return values


def _smoothed(values: Host, beta: float) -> Host:
    """Return the bias-corrected average of what is finite, at the steps where it is."""
    mean, weight, out = 0.0, 0.0, np.full_like(values, math.nan)
    for t, value in enumerate(values):
        mean, weight = beta * mean, beta * weight
        if math.isfinite(value):
            mean, weight = mean + (1 - beta) * value, weight + (1 - beta)
            out[t] = mean / weight
    return out


def _alone(values: Host) -> list[int]:
    """Return where a number has a gap on both sides: a line does not show it."""
    finite = np.pad(np.isfinite(values), 1)
    return np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:]).tolist()


def _host(x: Any, argument: str = "values") -> Host:
    array = readable(x, argument)
    return np.asarray(to_host(array) if is_array(array) else array, np.float64)


def _dot(x: Array, y: Array) -> float:
    return float((x * y).sum())


def _curves(ax: Axes) -> list[Any]:
    """Return the curves that are there already; lines across the Axes are none."""
    return [curve for curve in ax.lines if curve.get_transform().contains_branch_seperately(ax.transData)[1]]


def _color(ax: Axes) -> Any:
    """Return the first colour that no line has: after the seven, paler shades of them."""
    from matplotlib.colors import to_hex

    used = {to_hex(curve.get_color()) for curve in ax.lines}
    return next(color for color in _shades() if to_hex(color) not in used)


def _shades() -> Iterator[Any]:
    from matplotlib.colors import to_rgb

    yield from COLORS
    for share in np.linspace(0.3, 0.8, 21):  # after 154 curves nobody tells them apart
        for color in COLORS:
            yield tuple(share + (1 - share) * part for part in to_rgb(color))
    yield from iter(lambda: COLORS[0], None)


def _ordered_colors(ax: Axes, count: int) -> list[Any]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    used = {to_hex(curve.get_color()) for curve in ax.lines}
    choices = [[colormaps[name](0.9 * i / max(count - 1, 1)) for i in range(count)] for name in _ORDERED]
    return next((colors for colors in choices if not used & set(map(to_hex, colors))), choices[0])


def _accent(ax: Axes) -> Any:
    """Return the colour of what is marked: vermilion, or that of the next curve if there are several to tell apart."""
    return _color(ax) if ax.lines else COLORS[4]


def _log_y(ax: Axes, log: bool) -> None:
    """Make the axis logarithmic if that shows all there is; if not, as near to it as does, and say so."""
    values = np.concatenate([[], *(np.asarray(curve.get_ydata(), np.float64) for curve in _curves(ax))])
    values = values[np.isfinite(values)]
    if not log or not (values != 0).any():
        ax.set_yscale("linear")
    elif (values < 0).any():
        ax.set_yscale("linear")
        ax.set_ylabel(f"{ax.get_ylabel()} (linear: some are below 0)")
    elif (values == 0).any():
        ax.set_yscale("symlog", linthresh=float(values[values > 0].min()))
        ax.set_ylabel(f"{ax.get_ylabel()} (linear next to 0: some are 0)")
    else:
        ax.set_yscale("log")


def _axes(ax: Axes | None, **options: Any) -> Axes:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ModuleNotFoundError("ravine.plot: matplotlib is not installed: pip install 'ravine[plot]'") from error
    _, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained", subplot_kw=options)
    return ax


def _finish(ax: Axes, *, legend: bool, grid: bool = True) -> Axes:
    if grid:
        ax.grid(alpha=0.3)
    if legend:
        ax.legend()
    return ax
