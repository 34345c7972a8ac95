"""Pictures show what they are given, and leave the parameters as they were."""

import dataclasses
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

import ravine as rv
from tests.conftest import JaxLike, WithArray

mpl.use("agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def half_square(params):
    return 0.5 * sum(float((w * w).sum()) for w in params["a"]), {"a": [w.copy() for w in params["a"]]}


def nested(xp=np):
    return {"a": [xp.asarray([[1.0, 2.0], [3.0, 4.0]], np.float32).T, xp.asarray(0.5, np.float32)]}


UNIT = {"a": [np.array([[1.0, 0.0], [0.0, 0.0]]), np.array(0.0)]}
OTHER = {"a": [np.array([[0.0, 0.0], [0.0, 3.0]]), np.array(4.0)]}


def along(xp, tree):
    return rv.trees.map(xp.asarray, tree)


def lines(ax):
    """What is drawn, by its label."""
    return {curve.get_label(): np.array(curve.get_data()) for curve in ax.lines}


def test_a_line_shows_the_loss_along_it_on_both_backends(gpu):
    for xp in (np, gpu):
        params = nested(xp)
        before = [rv.to_host(w).tobytes() for w in params["a"]]
        ax = rv.plot.line(half_square, params, along(xp, UNIT), extent=(-2, 3), points=6, label="x")
        x, y = lines(ax)["x"]
        assert x.tolist() == [-2, -1, 0, 1, 2, 3]
        rest = 0.5 * (4 + 9 + 16 + 0.25)
        np.testing.assert_allclose(y, rest + 0.5 * (1 + x) ** 2)
        assert [rv.to_host(w).tobytes() for w in params["a"]] == before


def test_a_line_to_another_place_ends_there():
    there = rv.trees.map(lambda w: 0 * w, nested())
    ax = rv.plot.line(half_square, nested(), to=there, points=31, label="x")
    x, y = lines(ax)["x"]
    np.testing.assert_allclose(y, half_square(nested())[0] * (1 - x) ** 2, rtol=1e-6, atol=1e-12)
    marks = lines(ax)["_marks"]
    assert marks.tolist() == [[0, 1], [half_square(nested())[0], 0]]


def test_curves_on_the_same_axes_have_different_colours():
    ax = rv.plot.line(half_square, nested(), UNIT, label="one")
    assert rv.plot.line(half_square, nested(), OTHER, label="two", ax=ax) is ax
    colors = {curve.get_label(): curve.get_color() for curve in ax.lines}
    assert colors["one"] == rv.plot.COLORS[0]
    assert colors["two"] == rv.plot.COLORS[1]


@pytest.mark.parametrize("directions", [None, (np.array([0.0, 2.0]), np.array([1.0, 1.0]))])
def test_a_path_is_drawn_where_it_was(directions):
    w = np.array([3.0, -1.0])
    path = [np.array([3.0, -1.0]), np.array([1.0, 0.0]), np.array([0.0, 0.5])]
    ax = rv.plot.contour(lambda w: float(w @ w), w, directions=directions, paths={"p": path}, points=5)
    found = lines(ax)["p"]
    if directions is None:
        np.testing.assert_allclose(found, np.transpose(path))
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("w[0]", "w[1]")
    else:
        u, v = directions
        np.testing.assert_allclose(w[:, None] + np.outer(u, found[0]) + np.outer(v, found[1]), np.transpose(path))
    low_x, high_x = ax.get_xlim()
    assert low_x < found[0].min() <= found[0].max() < high_x


def test_two_parameters_of_two_names_are_the_axes():
    params = {"slope": np.array(1.0), "height": np.array(2.0)}
    ax = rv.plot.contour(lambda p: float(p["slope"] ** 2 + p["height"] ** 2), params, points=5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("slope", "height")
    assert ax.get_xlim() == (0, 2)
    assert ax.get_ylim() == (1, 3)


def test_contour_evaluates_the_loss_on_the_plane_and_restores(gpu):
    for xp in (np, gpu):
        params, seen = nested(xp), []

        def loss(params, seen=seen):
            seen.append(np.concatenate([rv.to_host(w).ravel() for w in params["a"]]))
            return half_square(params)

        before = [rv.to_host(w).tobytes() for w in params["a"]]
        directions = along(xp, UNIT), along(xp, OTHER)
        rv.plot.contour(loss, params, directions=directions, extent=(-1, 1, 0, 2), points=3)
        at = [[1.0, 3, 2, 4, 0.5]]
        expected = at + np.array([[a, 0, 0, 3 * b, 4 * b] for b in (0, 1, 2) for a in (-1, 0, 1)])
        np.testing.assert_array_equal(seen, expected)
        assert [rv.to_host(w).tobytes() for w in params["a"]] == before


def test_without_directions_the_plane_is_that_of_the_paths():
    rng = np.random.default_rng(0)
    u, v = np.linalg.qr(rng.standard_normal((9, 2)))[0].T
    w = rng.standard_normal(9)
    path = [w + a * u + b * v for a, b in rng.standard_normal((7, 2))]
    ax = rv.plot.contour(lambda w: float(w @ w), w, paths={"p": path}, points=5)
    found = lines(ax)["p"].T
    # The plane holds all of it: distances are as they were.
    for i, one in enumerate(path):
        np.testing.assert_allclose(
            np.linalg.norm(found - found[i], axis=1), np.linalg.norm(np.array(path) - one, axis=1)
        )


def test_places_without_a_finite_loss_are_left_out():
    with np.errstate(invalid="ignore", divide="ignore"):
        ax = rv.plot.contour(lambda w: float(np.log(w[0]) + w[1]), np.ones(2), extent=(-1, 1, -1, 1), points=9)
        assert ax.get_xlim() == (-1, 1)
        ax = rv.plot.surface(lambda w: float(np.log(w[0]) + w[1]), np.ones(2), extent=(-1, 1, -1, 1), points=9)
        assert ax.get_zlabel() == "loss"


def test_a_flat_loss_can_be_drawn():
    rv.plot.contour(lambda w: 1.0, np.ones(2), points=5).figure.canvas.draw()


@given(low=st.floats(-1e6, 1e6), range_=st.floats(1e-3, 1e6), count=st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_levels_rise_from_the_least_loss_to_the_greatest(low, range_, count):
    values = np.array([[low, low + range_]])
    found = np.array(rv.plot._levels(values, count))
    assert len(found) == count + 1
    assert (np.diff(found) >= 0).all()
    assert found[0] <= values.min()
    np.testing.assert_allclose(found[-1], values.max(), rtol=1e-9)


def test_what_cannot_be_drawn_is_named():
    w = np.ones(2)

    def loss(w):
        return float(w @ w)

    with pytest.raises(ValueError, match="either direction or to, got neither"):
        rv.plot.line(loss, w)
    with pytest.raises(ValueError, match="either direction or to, got both"):
        rv.plot.line(loss, w, w, to=w)
    with pytest.raises(ValueError, match=r"direction unlike params: params: expected shape \(2,\), got \(3,\)"):
        rv.plot.line(loss, w, np.ones(3))
    with pytest.raises(ValueError, match="not parallel"):
        rv.plot.contour(loss, w, directions=(w, -2 * w))
    with pytest.raises(ValueError, match=r"paths\['GD'\] unlike params"):
        rv.plot.contour(loss, w, paths={"GD": [np.ones(3)]})
    with pytest.raises(ValueError, match="directions: expected two that are finite"):
        rv.plot.contour(loss, w, directions=(w, np.array([np.nan, 1])))
    with pytest.raises(ValueError, match=r"paths\['GD'\]: expected at least one place, got none"):
        rv.plot.contour(loss, w, paths={"GD": []})
    with pytest.raises(ValueError, match=r"loss: expected a finite one somewhere in \(0.0, 2.0, 0.0, 2.0\), got none"):
        rv.plot.contour(lambda w: np.nan, w, points=3)
    with pytest.raises(TypeError, match="loss: expected a function, which comes before params, got ndarray"):
        rv.plot.contour(w, loss)
    with pytest.raises(TypeError, match=r"loss: expected one number as loss, got shape \(2,\)"):
        rv.plot.line(lambda w: w, w, w)
    with pytest.raises(ValueError, match=r"runs\['a'\]: expected one number a step, got shape \(2, 2\)"):
        rv.plot.learning_curves({"a": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"runs: expected one number a step, got shape \(\)"):
        rv.plot.learning_curves(0.5)
    with pytest.raises(ValueError, match=r"values\['a'\]: expected one number a step, got shape \(\)"):
        rv.plot.layers({"a": 1.0})
    with pytest.raises(TypeError, match=r"smoothing: expected a number in \[0, 1\), got str"):
        rv.plot.learning_curves([1.0], smoothing="0.5")
    with pytest.raises(ValueError, match=r"smoothing: expected a number in \[0, 1\), got 1"):
        rv.plot.learning_curves([1.0], smoothing=1)


def test_smoothing_is_the_bias_corrected_average():
    values, beta = np.array([4.0, 1.0, 0.5, 3.0]), 0.7
    ax = rv.plot.learning_curves({"run": values}, smoothing=beta)
    expected = [
        sum(beta ** (t - i) * values[i] for i in range(t + 1)) / sum(beta ** (t - i) for i in range(t + 1))
        for t in range(4)
    ]
    x, y = lines(ax)["run"]
    assert x.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(y, expected)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), values)


def colors(ax):
    return [mpl.colors.to_hex(curve.get_color()) for curve in ax.lines]


def found_spectrum():
    h = np.array([1.0, 2.0, 5.0])
    return rv.hessian.spectrum_density(lambda w: (float(h @ w**2) / 2, h * w), np.ones(3), probes=1, steps=3)


def found_noise():
    x = np.random.default_rng(0).standard_normal(64) + 1.0
    return rv.diagnose.noise_scale(lambda w, x: (w * x.mean(), x.mean()), np.array(1.0), x)


def found_rates():
    return SimpleNamespace(lrs=[0.1, 1.0, 10.0], losses=[1.0, 0.5, np.inf], smoothed=[1.0, 0.7, np.nan], suggested=0.5)


#: Each draws on the Axes it is given, and how many colours of its own that takes.
DRAWN_TWICE = {
    "learning_curves": (lambda ax: rv.plot.learning_curves([1.0, 0.5], ax=ax), 1),
    "learning_curves, smoothed": (lambda ax: rv.plot.learning_curves([1.0, 0.5], smoothing=0.5, ax=ax), 1),
    "learning_curves, two": (lambda ax: rv.plot.learning_curves({"a": [1.0, 0.5], "b": [1.0, 0.2]}, ax=ax), 2),
    "line": (lambda ax: rv.plot.line(half_square, nested(), UNIT, ax=ax), 1),
    "schedules": (lambda ax: rv.plot.schedules({"a": lambda t: t, "b": lambda t: 2 * t}, 3, ax=ax), 2),
    "layers": (lambda ax: rv.plot.layers({"a": [1.0, 2.0], "b": [2.0, 3.0], "c": [1.0, 1.0]}, ax=ax), 3),
    "lr_range": (lambda ax: rv.plot.lr_range(found_rates(), ax=ax), 1),
    "noise_scale": (lambda ax: rv.plot.noise_scale(found_noise(), ax=ax), 2),
    "spectrum": (lambda ax: rv.plot.spectrum(found_spectrum(), ax=ax), 1),
    "paths": (
        lambda ax: rv.plot.contour(
            lambda w: float(w @ w), np.ones(2), paths={"p": [np.ones(2), np.zeros(2)]}, points=5, ax=ax
        ),
        1,
    ),
}


@pytest.mark.parametrize("draw, own", DRAWN_TWICE.values(), ids=DRAWN_TWICE)
def test_what_is_drawn_beside_other_curves_has_other_colours(draw, own):
    ax = plt.figure().add_subplot()
    seen = set()
    for _ in range(3):
        before = len(ax.lines)
        draw(ax)
        drawn = set(colors(ax)[before:]) - {"#555555"}
        if len(drawn) > own:  # the suggestion of the first
            drawn.remove(mpl.colors.to_hex(rv.plot.COLORS[4]))
        assert len(drawn) == own
        assert not drawn & seen
        seen |= drawn


def test_twenty_curves_have_twenty_colours():
    ax = rv.plot.learning_curves({str(i): [1.0, 0.5] for i in range(20)})
    assert len(set(colors(ax))) == 20
    ax = rv.plot.schedules({str(i): lambda t: t for i in range(20)}, 3)
    assert len(set(colors(ax))) == 20


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_poison_the_average(missing):
    values, beta = np.array([missing, 4.0, 1.0, missing, 0.5, 3.0]), 0.7
    x, y = lines(rv.plot.learning_curves({"run": values}, smoothing=beta))["run"]
    there = [1, 2, 4, 5]
    for t in there:
        i = [k for k in there if k <= t]
        weights = beta ** (t - np.array(i, float))
        assert y[t] == pytest.approx((weights * values[i]).sum() / weights.sum())
    assert np.isnan(y[[0, 3]]).all()
    assert x.tolist() == [1, 2, 3, 4, 5, 6]


def test_numbers_between_gaps_are_marked():
    """A line through one point is none: a loss that is measured at every other step would not show at all."""
    values = np.full(101, np.nan)
    values[::2] = 1.0
    values[1] = 1.0
    for ax in (rv.plot.learning_curves(values), rv.plot.layers({"a": values})):
        (curve,) = ax.lines
        assert curve.get_marker() != "None"
        assert curve.get_markevery() == list(range(4, 101, 2))


@pytest.mark.parametrize(
    "draw",
    [
        lambda v, ax=None, **o: rv.plot.learning_curves({"a": v}, ax=ax, **o),
        lambda v, ax=None, **o: rv.plot.layers({"a": v}, ax=ax, **o),
    ],
)
def test_numbers_that_are_not_positive_show(draw):
    ax = draw([1.0, 0.1, 0.01])
    assert (ax.get_yscale(), "(" in ax.get_ylabel()) == ("log", False)
    # Beside what is there: a negative number shows, whichever came first.
    draw([1.0, -2.0, np.nan], ax)
    assert ax.get_yscale() == "linear"
    assert ax.get_ylabel().endswith("(linear: some are below 0)")
    draw([1.0, 2.0], ax)
    assert ax.get_yscale() == "linear"
    low, high = ax.get_ylim()
    assert low < -2 < 2 < high
    ax = draw([1.0, 0.0, 1e-5, np.inf])
    assert ax.get_yscale() == "symlog"
    assert ax.get_ylabel().endswith("(linear next to 0: some are 0)")
    ax.figure.canvas.draw()
    at = [ax.transData.transform((1, y))[1] for y in (0.0, 1e-5, 1.0)]
    assert np.isfinite(at).all()
    assert sorted(at) == at
    assert at[1] - at[0] > 5  # pixels
    assert draw([0.0, 0.0]).get_yscale() == "linear"
    assert draw([-1.0, 1.0], log=False).get_yscale() == "linear"


def test_a_variance_of_zero_shows():
    found = dataclasses.replace(found_noise(), variances=np.array([1.0, 0.5, 0.2, 0.1, 0.0]))
    ax = rv.plot.noise_scale(found)
    assert ax.get_yscale() == "symlog"
    assert "some are 0" in ax.get_ylabel()


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("directions", [False, True])
@pytest.mark.filterwarnings("error")
def test_a_path_that_leaves_the_numbers_is_drawn_as_far_as_it_goes(size, directions):
    rng = np.random.default_rng(0)
    path = list(rng.standard_normal((6, size)))
    broken = [*path[:4], np.full(size, np.nan), np.append(np.inf, np.ones(size - 1))]
    given = tuple(np.eye(size)[:2]) if directions else None
    ax = rv.plot.contour(
        lambda w: float(w @ w), np.ones(size), directions=given, paths={"p": broken, "q": path}, points=5
    )
    ax.figure.canvas.draw()
    curve = lines(ax)["p"].T
    assert np.isfinite(curve[:4]).all()
    assert not np.isfinite(curve[4:]).any(axis=1).all()
    start, star = (c for c in ax.lines[1:3])
    assert np.array(star.get_data()).ravel() == pytest.approx(curve[3])
    assert np.array(start.get_data()).ravel() == pytest.approx(curve[0])
    (low_x, high_x), (low_y, high_y) = ax.get_xlim(), ax.get_ylim()
    assert np.isfinite([low_x, high_x, low_y, high_y]).all()
    rv.plot.contour(lambda w: float(w @ w), np.ones(size), paths={"p": broken[4:]}, points=5).figure.canvas.draw()


def test_runs_of_other_libraries_are_drawn():
    pandas_like = WithArray([1.0, 0.5])
    pandas_like.get = None  # as a Series has, and CuPy's arrays
    for run in (JaxLike([1.0, 0.5]), pandas_like, memoryview(np.array([1.0, 0.5])), (1.0, 0.5)):
        assert lines(rv.plot.learning_curves({"a": run}))["a"].tolist() == [[1, 2], [1, 0.5]]
        assert lines(rv.plot.layers({"a": run}))["a"][1].tolist() == [1, 0.5]


def test_layers_are_coloured_in_their_order():
    ax = rv.plot.layers({str(i): [1.0, 2.0] for i in range(4)})
    brightness = [sum(curve.get_color()[:3]) for curve in ax.lines]
    assert brightness == sorted(brightness)
    assert len(set(brightness)) == 4


def test_schedules_are_drawn_step_by_step():
    half = rv.schedules.linear(1.0, 0.0, 4)
    ax = rv.plot.schedules({"half": half, "own": lambda step: step**2}, steps=6)
    assert lines(ax)["half"][1].tolist() == [half(t) for t in range(6)]
    assert lines(ax)["own"][1].tolist() == [0, 1, 4, 9, 16, 25]


def test_new_axes_are_not_those_of_before():
    first, second = rv.plot.schedules(lambda t: t, 3), rv.plot.schedules(lambda t: t, 3)
    assert first is not second
    assert len(first.lines) == 1


def test_without_matplotlib_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ravine\[plot\]'"):
        rv.plot.schedules(lambda t: t, 3)
