"""minimize: known minima are found, and where it stops it says why, truly."""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import ravine as rv
from benches import bench_minimize as bench
from ravine.descent import LBFGS, NewtonCG
from ravine.line_search import Line, Place, search
from ravine.objective import Objective

ROOT = bench.Path(__file__).parent.parent
METHODS = ["lbfgs", "newton-cg"]
PROBLEMS = {name: (function, start, minimum) for name, function, start, minimum in bench.problems()}
RULES = {
    "sgd": {"lr": 0.1, "momentum": 0.5},
    "adam": {"lr": 0.1},
    "adamw": {"lr": 0.1, "weight_decay": 0.0},
    "rmsprop": {"lr": rv.schedules.inverse_time(0.1, 0.2)},
    "adagrad": {"lr": 0.5},
    "lion": {"lr": rv.schedules.exponential(0.1, 0.98)},
    "adopt": {"lr": 0.05},
    "asgd": {"lr": 0.1},
    "ademamix": {"lr": 0.05, "alpha": 1.0},
    "adabelief": {"lr": 0.05},
    "adadelta": {"lr": 1.0, "eps": 1e-3},
    "adamax": {"lr": 0.05},
    "adan": {"lr": 0.05},
    "lamb": {"lr": 0.05},
    "lars": {"lr": 0.1, "trust_coefficient": 0.1},
    "madgrad": {"lr": 0.1},
    "novograd": {"lr": 0.05},
    "nadam": {"lr": 0.05},
    "radam": {"lr": 0.05},
    "rprop": {"lr": 0.05},
    "schedulefreeadamw": {"lr": 0.1},
    "schedulefreesgd": {"lr": 0.5},
    "signsgd": {"lr": 0.005},
    "signum": {"lr": rv.schedules.exponential(0.1, 0.98)},
    "yogi": {"lr": 0.05},
}


def half_square(w):
    return 0.5 * (w * w).sum(), w.copy()


# Minima


# From beside the saddle L-BFGS goes to it; the tests of saddles say so.
KNOWN = [(p, m) for p in PROBLEMS for m in METHODS if PROBLEMS[p][2] is not None and (p[:6], m) != ("saddle", "lbfgs")]


@pytest.mark.parametrize("problem, method", KNOWN)
def test_known_minima_are_found(problem, method):
    function, start, minimum = PROBLEMS[problem]
    w = start.copy()
    result = rv.minimize(function, w, method)
    assert result.success, result.message
    assert result.status == 0
    assert result.fun == pytest.approx(minimum, abs=1e-6)
    assert abs(result.jac).max() <= 1e-5


@pytest.mark.parametrize("peer, problem", [(m, p) for m in METHODS for p in PROBLEMS])
def test_not_many_more_calls_than_scipy_and_the_same_minimum(problem, peer):
    """At most 1.5 times scipy's, where scipy finds the minimum; the record has the figures."""
    function, start, _ = PROBLEMS[problem]
    loss, norm, _, calls = bench.ours(function, start, peer)
    its_loss, its_norm, _, its_calls = bench.scipys(function, start, bench.METHODS[peer])
    assert norm <= bench.TOLERANCE
    if its_norm <= bench.TOLERANCE and "saddle" not in problem:
        assert loss == pytest.approx(its_loss, abs=1e-6)
        assert calls <= 1.5 * its_calls
    else:
        assert not loss > its_loss


def test_the_page_shows_the_record():
    record = (ROOT / "benches/record/minimize.md").read_text(encoding="utf-8")
    rows = [line for line in record.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(METHODS) * len(PROBLEMS)
    assert "\n".join(rows) in (ROOT / "docs/minimize.md").read_text(encoding="utf-8")


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from(METHODS))
def test_least_squares_reach_the_solution_of_the_normal_equations(seed, n, method):
    rng = np.random.default_rng(seed)
    A, b = rng.standard_normal((n + 3, n)), rng.standard_normal(n + 3)
    result = rv.minimize(
        lambda w: (0.5 * ((A @ w - b) ** 2).sum(), A.T @ (A @ w - b)), np.zeros(n), method, gradient_tolerance=1e-8
    )
    assert np.allclose(result.x, np.linalg.lstsq(A, b)[0], atol=1e-5)


@pytest.mark.parametrize("problem", ["Rosenbrock, n = 10", "Himmelblau", "Σ(w − log w), n = 10"])
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_never_rises(problem, method):
    function, start, _ = PROBLEMS[problem]
    losses = rv.minimize(function, start.copy(), method).history["loss"].values
    assert (np.diff(losses) <= 0).all()


STANDARD = list(bench.standard_rows())


def test_no_more_calls_than_scipy_on_the_problems_of_more_garbow_and_hillstrom():
    """In sum, at the same accuracy; on Powell's badly scaled function scipy ends before the minimum."""
    ours, scipys = bench.calls(STANDARD, bench.ELSEWHERE)
    assert ours <= scipys
    assert all(mine[3] <= 1.1 * its[3] + 2 for name, mine, its in STANDARD if name != bench.ELSEWHERE)


@pytest.mark.parametrize("name, loss, norm", [(name, mine[0], mine[1]) for name, mine, _ in STANDARD])
def test_standard_problems_end_at_a_minimum_that_the_paper_gives(name, loss, norm):
    assert norm <= bench.TOLERANCE or name == "Brown and Dennis"  # whose gradient is rounded to 1e-5
    assert min(abs(loss - known) for known in bench.STANDARD[name][2]) <= 1e-3 * loss + 1e-6


@pytest.mark.parametrize("name", bench.STANDARD)
@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e20, 1e150])
def test_steps_do_not_depend_on_the_scale_of_the_loss(name, scale):
    """By a power of two the loss is the same but for its exponent, and so is every step: bit for bit."""
    residuals, start, _ = bench.STANDARD[name]
    function, power = bench.squares(residuals), 2.0 ** round(math.log2(scale))
    first, second = np.array(start, float), np.array(start, float)
    rv.minimize(function, first, gradient_tolerance=0, max_iterations=10)
    rv.minimize(lambda w: tuple(power * part for part in function(w)), second, gradient_tolerance=0, max_iterations=10)
    assert first.tobytes() == second.tobytes()


# L-BFGS and its line search


def test_two_loops_are_the_dense_bfgs_update():
    """Nocedal and Wright (2006), eq. 6.17, from γI: V'HV + ρss' for each pair in turn."""
    rng, n = np.random.default_rng(3), 6
    B = rng.standard_normal((n, n))
    B = B @ B.T + np.eye(n)
    model = LBFGS(Objective(half_square, np.zeros(n)), memory=4)
    places = [Place(x, 0.0, B @ x) for x in rng.standard_normal((6, n))]
    for before, after in pairwise(places):
        model.learn(before, after)
    pairs = [(b.x - a.x, b.gradient - a.gradient) for a, b in pairwise(places)][-4:]
    s, y = pairs[-1]
    H = s @ y / (y @ y) * np.eye(n)
    for s, y in pairs:
        V = np.eye(n) - np.outer(y, s) / (y @ s)
        H = V.T @ H @ V + np.outer(s, s) / (y @ s)
    assert np.allclose(model.direction(places[-1]), -H @ places[-1].gradient)


@pytest.mark.parametrize("sy", [-1.0, 0.0, 1e-17])
def test_pairs_with_tiny_or_negative_curvature_are_rejected(sy):
    model = LBFGS(Objective(half_square, np.zeros(2)), memory=4)
    g = np.array([0.0, 3.0])
    model.learn(Place(np.zeros(2), 0.0, g), Place(np.array([1.0, 0.0]), 0.0, g + np.array([sy, 0.0])))
    assert np.allclose(model.direction(Place(np.zeros(2), 0.0, g)), [0.0, -1.0])


def test_after_a_reset_nothing_is_known():
    model = LBFGS(Objective(half_square, np.zeros(2)), memory=4)
    a, b = Place(np.ones(2), 1.0, 9 * np.ones(2)), Place(np.zeros(2), 0.0, np.array([3.0, 4.0]))
    model.learn(a, b)
    assert not np.allclose(model.direction(b), [-0.6, -0.8])
    model.reset()
    assert np.allclose(model.direction(b), [-0.6, -0.8])


def test_a_direction_that_does_not_descend_is_replaced_by_steepest_descent():
    class Uphill(LBFGS):
        resets = 0

        def direction(self, place):
            return place.gradient

        def reset(self):
            self.resets += 1

    full_batch = sys.modules["ravine.minimize"]
    w = np.array([3.0, 4.0])
    run = full_batch._Run(Objective(half_square, w), 50, None, 1e-5, 0.0, None)
    model = Uphill(run.objective, 1)
    assert full_batch._descend(run, model) == full_batch.GRADIENT_SMALL
    assert model.resets == run.iteration > 0


def line_from(function, w, direction):
    objective = Objective(function, w)
    start = Place(objective.point(), *objective.evaluate(objective.point()))
    unit = start.gradient / np.sqrt(start.gradient @ start.gradient)
    return objective, Line(objective, objective.evaluate, start, direction * unit)


@pytest.mark.parametrize("function", [bench.rosenbrock, bench.logarithm])
@pytest.mark.parametrize("length", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_steps_satisfy_the_strong_wolfe_conditions(seed, length, function, dtype):
    """Also where the first steps are far too long, and where the loss is NaN there."""
    w = (np.random.default_rng(seed).random(4) + 0.2).astype(dtype)
    objective, line = line_from(lambda w: function(w.astype(float)), w, -length)
    start, p, after = line.start, line.direction, search(line)
    slope, alpha = start.gradient @ p, (after.x - start.x) @ p / (p @ p)
    assert after.loss <= start.loss + 1e-4 * alpha * slope
    assert abs(after.gradient @ p) <= 0.9 * abs(slope)
    assert objective.point().tolist() == after.x.tolist()
    assert objective.evaluate(after.x)[0] == after.loss


def test_steps_that_are_not_finite_are_shortened_at_once():
    """From 1e6 too far, by tens: scipy's bisection alone would need 20 trials."""
    _, line = line_from(bench.logarithm, np.full(4, 1.5), -1e6)
    assert search(line).loss < line.start.loss
    assert len(line.trials) <= 12


def well(w):
    """A narrow well in a plain: far away the loss is 1, its slope 0, and no interpolation helps."""
    return 1 - np.exp(-(w[0] ** 2)), 2 * w * np.exp(-(w**2))


def test_where_the_line_search_gives_up_shorter_steps_are_tried():
    _, line = line_from(well, np.ones(1), -1e9)
    after = search(line)
    assert after.loss < line.start.loss


def test_a_fall_that_is_no_ten_thousandth_of_the_promise_is_no_descent():
    _, line = line_from(lambda w: (1e-5 * w[0], np.ones(1)), np.zeros(1), -1.0)
    assert line.at(1.0)[0] < 0
    assert search(line) is None


@pytest.mark.parametrize("offset, most", [(1.0, 40), (0.0, 60)])
def test_a_hopeless_search_ends_soon(offset, most):
    """At a kink at 0 shorter steps still move, down to 1e-308."""
    result = rv.minimize(lambda w: (offset + kink(w)[0], kink(w)[1]), np.zeros(1))
    assert result.status == 6
    assert result.nfev <= most


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("method", METHODS)
def test_trial_points_that_are_not_finite_are_too_far(bad, where, method):
    """The minimum at 0.999 lies close to where the loss ends, and the first steps reach far beyond."""

    def walled(w):
        loss, gradient = 50 * (w[0] - 0.999) ** 2, 100 * (w - 0.999)
        if w[0] > 1:
            return (bad, gradient) if where == "loss" else (loss - 1e6, gradient * bad)
        return loss, gradient

    result = rv.minimize(walled, np.array([-300.0]), method)
    assert result.success
    assert result.x[0] == pytest.approx(0.999, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_start_with_nothing_finite_around_it_is_no_success(method):
    w = np.array([3.0])
    result = rv.minimize(lambda w: (0.0 if w[0] == 3 else math.nan, np.ones(1)), w, method)
    assert result.status == 7
    assert not result.success
    assert result.message == "the next step leads to where loss or gradient is not finite"
    assert w.tolist() == [3.0]


# Saddles


def linear_network(p):
    """½‖W₂W₁ − M‖²: zero weights are a saddle, and every local minimum is global (Baldi and Hornik, 1989)."""
    r = p["second"] @ p["first"] - M
    return 0.5 * (r * r).sum(), {"first": p["second"].T @ r, "second": r @ p["first"].T}


M = np.array([[3.0, 1.0], [-1.0, 2.0]])


@pytest.mark.parametrize("seed", range(3))
def test_newton_leaves_a_saddle_where_the_gradient_is_zero(seed):
    params = {"first": np.zeros((3, 2)), "second": np.zeros((2, 3))}
    result = rv.minimize(linear_network, params, "newton-cg", options={"seed": seed})
    assert result.success
    assert result.fun < 1e-8
    assert np.allclose(params["second"] @ params["first"], M, atol=1e-3)
    assert result.history["loss"].values[0] == 7.5
    assert result.message.endswith("Hessian-vector products showed no negative curvature")


def test_without_products_for_it_a_saddle_is_a_small_gradient():
    for method, options in (("lbfgs", {}), ("newton-cg", {"saddle_products": 0})):
        w = np.array([1.0, 0.0])
        result = rv.minimize(bench.saddle, w, method, options=options)
        assert w == pytest.approx([0.0, 0.0], abs=1e-6)
        assert result.message == "the gradient is small: no element above 1e-05"


def test_newton_follows_negative_curvature_downhill():
    """From y = 0.1 beside the saddle, where the curvature is −0.97, Newton's own step would climb back to it."""
    w = np.array([0.0, 0.1])
    result = rv.minimize(bench.saddle, w, "newton-cg", options={"saddle_products": 0})
    assert w[1] == pytest.approx(1.0, abs=1e-5)
    assert result.fun == pytest.approx(-0.25)


def test_negative_curvature_is_followed_as_far_as_positive_would_allow():
    """In y alone, 0.1 from the saddle: g = y³ − y and h = 3y² − 1 < 0, so that p = −g/|h|."""
    objective = Objective(bench.saddle, np.array([0.0, 0.1]))
    products = []

    def product(x, v):
        products.append(v)
        return v * [1, 3 * x[1] ** 2 - 1]

    model = NewtonCG(
        objective,
        product,
        error=1e-16,
        max_products=9,
        saddle_products=0,
        seed=0,
    )
    place = Place(objective.point(), *objective.evaluate(objective.point()))
    assert model.direction(place) == pytest.approx([0, 0.099 / 0.97])
    assert len(products) == 1


def test_products_that_are_not_finite_end_the_conjugate_gradients():
    """At 1e-7 the differences reach below 0, where the logarithm is NaN."""
    w = np.array([1e-7, 2.0, 3.0, 4.0])
    result = rv.minimize(bench.logarithm, w, "newton-cg", max_iterations=1)
    assert result.nhev == 1
    assert result.history["loss"].values[1] < result.history["loss"].values[0]


def test_curvature_that_does_not_lead_down_is_no_saddle():
    w = np.zeros(2)
    result = rv.minimize(lambda w: (1 + half_square(w)[0], w.copy()), w, "newton-cg", hvp=lambda p, v: -v)
    assert result.message.endswith("there is negative curvature, but no lower loss was found along it")
    assert result.nfev <= 15
    assert w.tolist() == [0.0, 0.0]


def test_a_saddle_is_not_left_beyond_the_last_iteration():
    w = np.zeros(2)
    result = rv.minimize(bench.saddle, w, "newton-cg", max_iterations=0)
    assert (result.nit, result.nfev, w.tolist()) == (0, 1, [0.0, 0.0])


# Hessian-vector products


def test_the_users_products_replace_differences():
    seen = []

    def hvp(params, v):
        seen.append((params["w"].tolist(), v["w"].dtype))
        return {"w": scipy.optimize.rosen_hess_prod(params["w"], v["w"])}

    def rosenbrock(p):
        loss, gradient = bench.rosenbrock(p["w"])
        return loss, {"w": gradient}

    start = np.tile([-1.2, 1.0], 5)
    given_products = rv.minimize(rosenbrock, {"w": start.copy()}, "newton-cg", hvp=hvp)
    differences = rv.minimize(rosenbrock, {"w": start.copy()}, "newton-cg")
    assert given_products.success
    assert given_products.nhev == len(seen) > 0
    assert seen[0] == (start.tolist(), np.float64)
    assert given_products.fun == pytest.approx(0, abs=1e-10)
    assert differences.nfev - 2 * differences.nhev == pytest.approx(given_products.nfev, rel=0.2)


# Any rule


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("spelling", [str.lower, str.upper])
def test_every_rule_minimises(name, spelling):
    w = np.array([1.0, -2.0])
    result = rv.minimize(half_square, w, spelling(name), options=RULES[name], gradient_tolerance=1e-2)
    assert result.success, result.message
    assert abs(w).max() <= 1e-2
    assert result.nfev == result.nit + 1 == len(result.history)


def test_the_names_are_those_of_the_classes():
    assert {getattr(rv, n).__name__.lower() for n in rv.optimizers.__all__ if n not in ("Optimizer", "Options")} == {
        *RULES
    }
    with pytest.raises(ValueError, match=r"'lbfgs', 'newton-cg', 'adabelief', .*, 'sgd', 'signsgd', 'signum', 'yogi'"):
        rv.minimize(half_square, np.ones(2), "adamm")


def test_a_rule_makes_the_steps_of_its_optimizer():
    w, alone = np.array([1.0, -2.0]), np.array([1.0, -2.0])
    rv.minimize(half_square, w, rv.Adam, max_iterations=7, options={"lr": 0.1})
    opt = rv.Adam(alone, lr=0.1)
    for _ in range(7):
        opt.step(half_square(alone)[1])
    assert w.tobytes() == alone.tobytes()
    again = np.array([1.0, -2.0])
    rv.minimize(half_square, again, lambda params: rv.Adam(params, lr=0.1), max_iterations=7)
    assert again.tobytes() == alone.tobytes()


def test_a_rule_leaves_the_lowest_iterate_and_says_which():
    """w ← (1 − 0.9)w falls; then a rate of 3 makes w ← −2w grow: the iterate before is the best."""
    w = np.array([1.0, -2.0])
    lr = rv.schedules.piecewise([5], [0.9, 3.0])
    result = rv.minimize(half_square, w, "sgd", options={"lr": lr}, max_iterations=20, gradient_tolerance=0)
    assert result.message == "max_iterations: 20 steps were made; x is of iteration 5, whose loss was the lowest"
    assert w == pytest.approx([1e-5, -2e-5])
    assert half_square(w)[0] == result.fun == result.history["loss"].values.min()
    assert result.jac.tolist() == w.tolist()


def test_a_rule_that_diverges_stops_where_the_loss_is_not_finite():
    w = np.array([2.0])

    def quartic(w):
        with np.errstate(over="ignore", invalid="ignore"):
            return (w**4).sum(), 4 * w**3

    result = rv.minimize(quartic, w, "sgd", options={"lr": 1.0})
    assert not result.success
    assert result.status == 7
    assert result.message.startswith("the next step leads to where loss or gradient is not finite; x is of iteration 0")
    assert w.tolist() == [2.0]
    assert np.isfinite(result.history["loss"].values).all()


# Reasons to stop


@pytest.mark.parametrize("method", [*METHODS, "sgd"])
@pytest.mark.parametrize("limit", [1, 2, 7, 20])
def test_no_more_calls_than_allowed_and_all_are_counted(method, limit):
    calls = []

    def counted(w):
        calls.append(None)
        return bench.rosenbrock(w)

    w = np.array([-1.2, 1.0])
    options = {"lr": 1e-3} if method == "sgd" else {}
    result = rv.minimize(counted, w, method, max_evaluations=limit, options=options)
    assert result.nfev == result.njev == len(calls) == limit
    assert result.status == 4
    assert not result.success
    assert result.nhev <= limit / 2
    assert bench.rosenbrock(w)[0] == result.fun == result.history["loss"].values.min()


@pytest.mark.parametrize("method", [*METHODS, "sgd"])
def test_iterations_are_limited(method):
    options = {"lr": 1e-3} if method == "sgd" else {}
    result = rv.minimize(bench.rosenbrock, np.array([-1.2, 1.0]), method, max_iterations=3, options=options)
    assert (result.nit, result.status, result.success) == (3, 3, False)
    assert result.history["loss"].steps.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("method", [*METHODS, "adam"])
def test_a_small_change_of_the_loss_stops(method):
    result = rv.minimize(
        lambda w: (9 + (w**4).sum(), 4 * w**3), np.array([1.0, 2.0]), method, loss_tolerance=1e-3, gradient_tolerance=0
    )
    assert result.status == 1
    assert result.success
    losses = result.history["loss"].values
    assert len(losses) > 3
    assert [abs(a - b) <= 1e-3 * b for a, b in pairwise(losses)] == [False] * (len(losses) - 2) + [True]


@pytest.mark.parametrize("method", [*METHODS, "sgd"])
def test_the_callback_sees_each_iterate_and_stops(method):
    seen, w = [], {"w": np.array([-1.2, 1.0])}

    def function(p):
        loss, gradient = bench.rosenbrock(p["w"])
        return loss, {"w": gradient}

    def callback(intermediate_result):
        r = intermediate_result
        assert r.x["w"].tolist() == w["w"].tolist()
        assert bench.rosenbrock(w["w"])[0] == r.fun
        assert bench.rosenbrock(w["w"])[1].tolist() == r.jac["w"].tolist()
        assert r.gradient_norm == abs(r.jac["w"]).max()
        seen.append(r.nit)
        if r.nit == 4:
            raise StopIteration

    options = {"lr": 1e-4} if method == "sgd" else {}
    result = rv.minimize(function, w, method, callback=callback, options=options)
    assert seen == [1, 2, 3, 4]
    assert (result.status, result.nit, result.success) == (5, 4, False)
    assert result.message == "the callback raised StopIteration"
    assert isinstance(result, scipy.optimize.OptimizeResult)
    assert result.x is w


def float32_least_squares():
    rng = np.random.default_rng(5)
    A, b = rng.standard_normal((40, 8)).astype(np.float32), rng.standard_normal(40).astype(np.float32)

    def loss(w):
        r = A @ w - b
        return (r * r).sum() / 2, A.T @ r

    solution = np.linalg.lstsq(A.astype(float), b.astype(float))[0]
    return loss, solution, 0.5 * ((A.astype(float) @ solution - b) ** 2).sum()


@pytest.mark.parametrize("method", METHODS)
def test_float32_ends_at_its_precision_and_says_so(method):
    loss, solution, lowest = float32_least_squares()
    w = np.zeros(8, np.float32)
    result = rv.minimize(loss, w, method, gradient_tolerance=0)
    assert result.message == "no further decrease within the parameters' precision"
    assert result.success
    assert result.fun <= lowest * (1 + 1e-6)
    assert np.allclose(w, solution, atol=1e-3)
    assert w.dtype == np.float32
    assert result.nit < 50


@pytest.mark.parametrize("method", METHODS)
def test_float64_ends_at_its_precision_and_says_so(method):
    """The loss 1 + ½w² cannot show |w| below 1e-8."""
    result = rv.minimize(
        lambda w: (1 + 0.5 * (w[0] ** 2 + 3 * w[1] ** 2), np.array([w[0], 3 * w[1]]) + 1e-12),
        np.array([1.0, 2.0]),
        method,
        gradient_tolerance=1e-13,
    )
    assert result.status in (0, 2)
    assert result.success
    assert abs(result.x).max() < 1e-7


def kink(w):
    return abs(w).sum(), np.where(w > 0, 1.0, -1.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "function",
    [
        lambda w: (half_square(w)[0], -w),
        lambda w: (half_square(w)[0], 0 * w + [1.0, -3.0]),
        lambda w: (1.0, 0 * w + 1),
        lambda w: kink(w - 2),
    ],
    ids=["sign", "constant", "of a constant loss", "kink"],
)
def test_a_gradient_that_is_not_the_losss_is_no_success(function, method):
    w = np.array([2.0, 2.0])
    result = rv.minimize(function, w, method)
    assert result.status == 6, result.message
    assert not result.success
    assert "rv.check_gradient" in result.message


# Every scale, and no success without a reason


def quiet(function):
    def loss(w):
        with np.errstate(all="ignore"):
            return function(w)

    return loss


def scaled_square(c, weights=1.0):
    return quiet(lambda w: (c * (weights * (w - 3) ** 2).sum(), 2 * c * weights * (w - 3)))


@pytest.mark.parametrize(
    "c", [1e-300, 1e-200, 1e-155, 1e-100, 1e-20, 1e-5, 1.0, 1e20, 1e100, 1e155, 1e200, 1e300, 1e304]
)
@pytest.mark.parametrize("weights", [1.0, np.array([1.0, 10.0, 100.0])], ids=["round", "long"])
@pytest.mark.parametrize("method", METHODS)
def test_a_loss_of_any_scale_is_minimised(c, weights, method):
    w = np.zeros(3)
    result = rv.minimize(scaled_square(c, weights), w, method, gradient_tolerance=0)
    assert result.success, result.message
    assert w == pytest.approx([3, 3, 3], abs=1e-6)


@pytest.mark.parametrize("start", [3.0, 20.0, 26.0])
@pytest.mark.parametrize("method", METHODS)
def test_the_minimum_is_found_through_hundreds_of_orders_of_magnitude(start, method):
    """exp(w²) is 1e173 at 20, and its gradient's square is beyond float64."""
    w = np.array([start])
    result = rv.minimize(quiet(lambda w: (float(np.exp(w[0] ** 2)), 2 * w * np.exp(w**2))), w, method)
    assert result.success
    assert result.nit > 0
    assert w[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("size", [1e-10, 1e-5, 1e5, 1e10])
def test_parameters_of_any_scale_are_found(size):
    w = np.zeros(2)
    result = rv.minimize(lambda w: (((w / size - 1) ** 2).sum(), 2 * (w / size - 1) / size), w, gradient_tolerance=0)
    assert result.success
    assert w == pytest.approx([size, size], rel=1e-6)


def test_a_gradient_that_the_loss_cannot_show_nearby_is_followed_farther():
    """At the first step of length 1 this loss changes by less than its rounding."""
    w = np.zeros(1)
    result = rv.minimize(lambda w: (1e-20 * ((w - 1e15) ** 2).sum(), 2e-20 * (w - 1e15)), w, gradient_tolerance=0)
    assert result.nit > 0
    assert w[0] == pytest.approx(1e15)


UNBOUNDED = {
    "-exp(w)": lambda w: (-float(np.exp(w).sum()), -np.exp(w)),
    "-w": lambda w: (-float(w.sum()), -np.ones_like(w)),
    "-w²": lambda w: (-float((w * w).sum()), -2 * w),
    "-w³": lambda w: (-float((w**3).sum()), -3 * w**2),
    "-1e200 w": lambda w: (-1e200 * float(w.sum()), np.full_like(w, -1e200)),
    "-1e-200 w²": lambda w: (-1e-200 * float((w * w).sum()), -2e-200 * w),
    "-log(1 + w²)": lambda w: (-float(np.log1p(w * w).sum()), -2 * w / (1 + w * w)),
    "-inf beyond 2": lambda w: (-math.inf if w[0] > 2 else -float(w[0]), -np.ones_like(w)),
}


@pytest.mark.parametrize("name", UNBOUNDED)
@pytest.mark.parametrize("method", METHODS)
def test_an_unbounded_loss_is_no_success(name, method):
    w = np.ones(1)
    result = rv.minimize(quiet(UNBOUNDED[name]), w, method, gradient_tolerance=0)
    assert not result.success
    assert result.status == 8, result.message
    assert result.message.startswith("the loss is unbounded below")
    assert np.isfinite(w).all()
    assert math.isfinite(result.fun)
    assert result.fun < quiet(UNBOUNDED[name])(np.ones(1))[0]


def test_a_rule_whose_loss_falls_to_minus_infinity_says_so():
    w = np.array([2.0])
    result = rv.minimize(quiet(UNBOUNDED["-w³"]), w, "sgd", options={"lr": 1.0})
    assert (result.status, result.success) == (8, False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad, status", [(math.nan, 7), (math.inf, 9), (-math.inf, 8)])
def test_what_lies_around_the_start_is_the_reason(bad, status, method):
    result = rv.minimize(lambda w: (0.0 if w[0] == 3 else bad, np.ones(1)), np.array([3.0]), method)
    assert (result.status, result.success, result.nit) == (status, False, 0)
    assert {7: "not finite", 8: "unbounded", 9: "overflow"}[status] in result.message


@pytest.mark.parametrize(
    "function, start",
    [
        (lambda w: (1.0, 0 * w), 2.0),
        (lambda w: (0.0, 0 * w), 2.0),
        (lambda w: (1 - math.exp(-float(w @ w)), 2 * w * np.exp(-w @ w)), 100.0),
    ],
    ids=["constant", "zero", "plateau"],
)
@pytest.mark.parametrize("method", [*METHODS, "sgd"])
def test_a_flat_start_is_no_success(function, start, method):
    w = np.array([start])
    result = rv.minimize(function, w, method, options={"lr": 0.1} if method == "sgd" else {})
    assert (result.status, result.success, result.nit, w[0]) == (10, False, 0, start)
    assert result.message.startswith("the gradient is exactly 0 at the start")


def test_newton_tells_a_minimum_and_a_maximum_from_a_plateau():
    at_minimum = rv.minimize(half_square, np.zeros(2), "newton-cg")
    assert (at_minimum.status, at_minimum.success) == (0, True)
    w = np.zeros(2)
    at_maximum = rv.minimize(quiet(lambda w: (float(np.cos(w).sum()), -np.sin(w))), w, "newton-cg")
    assert at_maximum.fun == pytest.approx(-2)


# Losses and gradients that are coarser than the parameters


class Float32:
    """What a library without float64 gives: read-only, converted by NumPy alone."""

    def __init__(self, x):
        self.array = np.array(x, np.float32)
        self.array.flags.writeable = False
        self.dtype, self.shape = self.array.dtype, self.array.shape

    def __array__(self, dtype=None, copy=None):
        return self.array.astype(dtype) if dtype is not None else self.array

    def __float__(self):
        return float(self.array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrap", [np.float32, Float32], ids=["numpy", "foreign"])
def test_float32_losses_of_float64_parameters_end_at_float32s_precision(seed, method, wrap):
    rng = np.random.default_rng(seed)
    A, b = rng.standard_normal((40, 8)).astype(np.float32), rng.standard_normal(40).astype(np.float32)

    def loss(w):
        r = A @ w.astype(np.float32) - b
        return wrap((r * r).sum() / 2), wrap(A.T @ r)

    w = np.zeros(8)
    result = rv.minimize(loss, w, method, gradient_tolerance=0)
    assert result.success, result.message
    assert w == pytest.approx(np.linalg.lstsq(A.astype(float), b.astype(float))[0], abs=1e-3)
    if result.status == 2:
        assert result.message.startswith("no further decrease within precision")
        assert "float32" in result.message


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", [*METHODS, "sgd"])
@pytest.mark.parametrize("make", [float, np.float64, np.asarray, lambda x: np.float32(x)])
def test_losses_are_numbers_of_any_kind(make, method):
    options = {"lr": 0.5} if method == "sgd" else {}
    result = rv.minimize(lambda w: (make(0.5 * (w * w).sum()), w.copy()), np.ones(2), method, options=options)
    assert result.success


@pytest.mark.parametrize(
    "given, words",
    [
        (lambda w: np.array([1.0, 2.0]), r"loss_and_grad: expected \(loss, gradients\), got ndarray alone"),
        (lambda w: 1.0, r"loss_and_grad: expected \(loss, gradients\), got float alone"),
        (lambda w: (1.0, w, w), r"loss_and_grad: expected \(loss, gradients\), got 3 items"),
        (lambda w: (w, w), r"loss_and_grad: expected one number as loss, got shape \(2,\)"),
        (lambda w: (1j, w), "loss_and_grad: expected a real number as loss"),
        (lambda w: (None, w), "loss_and_grad: expected a number as loss, got NoneType"),
    ],
)
@pytest.mark.parametrize("method", [*METHODS, "sgd"])
def test_what_is_no_loss_with_gradients_is_named(given, words, method):
    w = np.ones(2)
    with pytest.raises(TypeError, match=words):
        rv.minimize(given, w, method, options={"lr": 0.1} if method == "sgd" else {})
    assert w.tolist() == [1, 1]


# Bounds


BOUNDED = {name: rest for name, *rest in bench.bounded_problems()}


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_minima_are_scipys(name):
    function, start, low, high = BOUNDED[name]
    w, seen = start.copy(), []

    def watched(w):
        seen.append(bool((low <= w).all() and (w <= high).all()))
        return function(w)

    result = rv.minimize(watched, w, bounds=(low, high), gradient_tolerance=1e-5)
    assert result.success, result.message
    assert all(seen)
    its = scipy.optimize.minimize(
        function, start, jac=True, method="L-BFGS-B", bounds=scipy.optimize.Bounds(low, high), options={"ftol": 0}
    )
    assert result.fun <= its.fun + 1e-6 * max(1.0, abs(its.fun))
    assert result.history["gradient_norm"].values[-1] == bench.largest(w, result.jac, (low, high))


def test_as_few_calls_under_bounds_as_scipy_takes():
    ours, scipys = bench.calls(list(bench.bounded_rows()))
    assert ours <= scipys


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_bounds_nest_as_parameters_do_on_both_backends(dtype, gpu):
    """Minima of shifted are 1 to 6, and 7: clipped where they lie outside, as no element depends on another."""
    low = np.array([[1.5, 0.0], [0.0, 4.25], [0.0, 0.0]])
    bounds = {"w": (low, 5.0), "rest": [(None, 6.1), None]}
    for xp in (np, gpu):
        params = nested(xp, dtype)
        result = rv.minimize(shifted, params, "L-BFGS-B", bounds=bounds, gradient_tolerance=0.02)
        assert result.success, result.message
        found = rv.to_host(params)
        assert found["w"].astype(float) == pytest.approx(np.array([[1.5, 2], [3, 4.25], [5, 5]]), abs=0.02)
        assert (found["w"] >= low).all()
        assert (found["w"] <= 5).all()
        assert 6.1 - 0.01 <= float(found["rest"][0]) <= 6.1


@pytest.mark.parametrize(
    "bounds",
    [
        (0, 2),
        (None, 2.0),
        [(0, 2)] * 2,
        np.array([[0, 2.0]] * 2),
        scipy.optimize.Bounds(0, 2),
        scipy.optimize.Bounds([0, 0], [2, 2]),
        (np.zeros(2), np.array(2)),
        [(None, 2), (0, None)],
    ],
)
def test_bounds_are_a_pair_for_all_or_scipys(bounds):
    w = np.zeros(2)
    result = rv.minimize(lambda w: (0.5 * ((w - [3, 1]) ** 2).sum(), w - [3, 1]), w, bounds=bounds)
    assert w == pytest.approx([2, 1])
    assert result.success


def test_a_start_outside_the_bounds_is_moved_to_them_as_scipy_does():
    w = np.array([-5.0, 9.0])
    seen = []
    rv.minimize(lambda w: (seen.append(w.copy()), half_square(w))[1], w, bounds=(1.0, 2.0))
    assert seen[0].tolist() == [1, 2]
    assert w.tolist() == [1, 1]


@pytest.mark.parametrize(
    "bounds, words",
    [
        ((2, 1), "bounds: params.*: expected low <= high, got low 2.0 and high 1.0"),
        ((math.nan, 1), "bounds: params.*: expected low <= high, got low nan"),
        ([(0, 1), (3, 2)], r"bounds: params\[1\]: expected low <= high"),
        ([(0, 1)] * 3, "bounds: params: expected .low, high."),
        ((np.zeros(3), 1), r"bounds: params: expected numbers of shape \(2,\)"),
        ({"w": (0, 1)}, "bounds: params: expected .low, high."),
        ((math.inf, None), "bounds: params: expected a float64 between low and high"),
    ],
)
def test_wrong_bounds_are_named(bounds, words):
    w = np.array([5.0, 6.0])
    with pytest.raises(ValueError, match=words):
        rv.minimize(half_square, w, bounds=bounds)
    assert w.tolist() == [5, 6]


def test_bounds_belong_to_lbfgs():
    with pytest.raises(ValueError, match="bounds: only method='lbfgs' keeps them, got method='adam'"):
        rv.minimize(half_square, np.ones(2), "adam", bounds=(0, 1))


@pytest.mark.parametrize("c", [1e-300, 1e-20, 1e155, 1e300])
def test_bounds_hold_at_any_scale_of_the_loss(c):
    w = np.zeros(3)
    result = rv.minimize(scaled_square(c), w, bounds=(0, np.array([1.0, 5, 2])), gradient_tolerance=0)
    assert result.success
    assert w == pytest.approx([1, 3, 2])


# Going on


RESUMED = {"lbfgs": {}, "newton-cg": {}, "adam": {"lr": 0.1}, "sgd": {"lr": 1e-4, "momentum": 0.9}}


def plain(tree):
    """Whether a tree is dicts of arrays, numbers and strings, through what a file does to it."""
    if isinstance(tree, dict):
        return {key: plain(item) for key, item in tree.items() if not (isinstance(item, dict) and not item)}
    assert isinstance(tree, np.ndarray | int | float | str), type(tree)
    return tree.copy() if isinstance(tree, np.ndarray) else tree


@pytest.mark.parametrize("method", RESUMED)
@pytest.mark.parametrize(
    "problem", ["Rosenbrock, n = 10", "Himmelblau", "Σ(w − log w), n = 10", "saddle, from x = 1, y = 0"]
)
@pytest.mark.parametrize(
    "limit", [{"max_iterations": 0}, {"max_iterations": 7}, {"max_evaluations": 1}, {"max_evaluations": 13}]
)
def test_a_run_goes_on_as_if_it_had_not_stopped(limit, problem, method):
    function, start, _ = PROBLEMS[problem]
    options = {"options": RESUMED[method], "gradient_tolerance": 1e-9}
    once, twice = start.copy(), np.full_like(start, 99.0)
    whole = rv.minimize(function, once, method, max_iterations=40, **options)
    first = rv.minimize(function, start.copy(), method, **limit, **options)
    second = rv.minimize(function, twice, method, max_iterations=40, state=plain(first.state), **options)
    assert once.tobytes() == twice.tobytes()
    for name in ("fun", "nit", "nfev", "nhev", "status", "message"):
        assert whole[name] == second[name], name
    for name in ("loss", "gradient_norm"):
        assert whole.history[name].values.tolist() == second.history[name].values.tolist()
        assert whole.history[name].steps.tolist() == second.history[name].steps.tolist()


def test_a_bounded_run_of_nested_float32_goes_on_bit_for_bit_on_both_backends(gpu):
    ends = []
    for xp in (np, gpu):
        whole, first, second = (nested(xp, np.float32) for _ in range(3))
        options = {"bounds": (None, 4.5), "gradient_tolerance": 1e-3}
        rv.minimize(shifted, whole, **options)
        state = rv.minimize(shifted, first, max_iterations=2, **options).state
        rv.minimize(shifted, second, state=plain(state), **options)
        hosts = [rv.trees.leaves(rv.to_host(params)) for params in (whole, second)]
        ends += [[array.tobytes() for array in leaves.values()] for leaves in hosts]
    assert all(end == ends[0] for end in ends)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"method": "newton-cg"}, "state: expected one of method 'newton-cg', got one of 'lbfgs'"),
        ({"params": np.ones(3)}, r"state: expected parameters \{'params': \(3,\)\}, got one of \{'params': \(2,\)\}"),
        ({"state": {"a": 1}}, r"state: expected the state of an earlier result, .* got \['a'\]"),
        ({"state": 3}, "state: expected the state of an earlier result, .* got int"),
        ({"loss_and_grad": lambda w: (7.0, w)}, "state: expected the loss that it is of"),
    ],
)
def test_a_state_of_something_else_is_named(change, words):
    state = rv.minimize(bench.rosenbrock, np.array([-1.2, 1.0]), max_iterations=3).state
    w = change.get("params", np.array([5.0, 6.0]))
    before = w.tolist()
    with pytest.raises(ValueError, match=words):
        rv.minimize(**{"loss_and_grad": bench.rosenbrock, "params": w, "state": state, **change})
    assert w.tolist() == before


# scipy's spellings


@pytest.mark.parametrize(
    "method", ["lbfgs", "L-BFGS", "L-BFGS-B", "l_bfgs", "LBFGS", "Newton-CG", "NEWTON-CG", "newtoncg"]
)
def test_methods_are_known_in_any_spelling(method):
    assert rv.minimize(half_square, np.ones(2), method).success


def test_adafactor_and_muon_are_names_too():
    for name in ("adafactor", "Adafactor", "muon"):
        w = np.ones((3, 4))
        result = rv.minimize(half_square, w, name, options={"lr": 0.05}, max_iterations=20)
        assert result.fun < 6


@pytest.mark.parametrize(
    "method, near",
    [("lbfg", "'lbfgs'"), ("adamm", "'adam'"), ("bfgs", "'lbfgs'"), ("newton", "'newton-cg'"), ("SGDM", "'sgd'")],
)
def test_near_misses_of_a_method_are_named(method, near):
    with pytest.raises(ValueError, match=f"got '{method}'; did you mean .*{near}"):
        rv.minimize(half_square, np.ones(2), method)


def test_scipys_names_of_the_limits_are_taken():
    result = rv.minimize(bench.rosenbrock, np.array([-1.2, 1.0]), maxiter=3)
    assert (result.nit, result.status) == (3, 3)
    loose = rv.minimize(bench.rosenbrock, np.array([-1.2, 1.0]), tol=1e-1)
    assert 1e-5 < abs(loose.jac).max() <= 1e-1
    with pytest.raises(ValueError, match="maxiter: expected an integer >= 0, got -1"):
        rv.minimize(half_square, np.ones(2), maxiter=-1)
    with pytest.raises(ValueError, match="tol: expected a finite number >= 0, got -1"):
        rv.minimize(half_square, np.ones(2), tol=-1)
    with pytest.raises(TypeError, match="maxiter: another name of max_iterations, which is given too"):
        rv.minimize(half_square, np.ones(2), maxiter=3, max_iterations=4)


# What the callback gets


@pytest.mark.parametrize("method", [*METHODS, "sgd"])
def test_what_the_callback_keeps_or_changes_is_its_own(method):
    options = {"options": {"lr": 1e-4}} if method == "sgd" else {}
    w, untouched, kept = np.array([-1.2, 1.0]), np.array([-1.2, 1.0]), []

    def careless(at):
        kept.append((at.x, at.x.copy(), at.jac, at.jac.copy()))
        w[:] = 77.0

    rv.minimize(bench.rosenbrock, w, method, max_iterations=6, callback=careless, **options)
    rv.minimize(bench.rosenbrock, untouched, method, max_iterations=6, **options)
    assert w.tobytes() == untouched.tobytes()
    assert len({x.tobytes() for x, *_ in kept}) == 6
    assert all(x.tolist() == x0.tolist() and g.tolist() == g0.tolist() for x, x0, g, g0 in kept)
    for x, _, g, _ in kept:
        x[:] = g[:] = 0  # writable, and nobody else's


# Parameters of any kind


def nested(xp, dtype):
    wide = xp.zeros((3, 4), dtype)
    return {"w": wide[:, ::2], "rest": [xp.asarray(2.0, dtype), (xp.zeros((0,), dtype),)]}


def shifted(p):
    """½Σ i(wᵢ − i)² over all elements, minimum 0 at wᵢ = i."""
    w, b, none = p["w"], p["rest"][0], p["rest"][1][0]
    xp = rv.backends.array_module(w)
    i = xp.arange(1, 7).reshape(3, 2).astype(w.dtype)
    loss = 0.5 * float((i * (w - i) ** 2).astype(np.float64).sum()) + 3.5 * float((b - 7) ** 2)
    return loss, {"w": i * (w - i), "rest": [7 * (b - 7), (none.copy(),)]}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("method", [*METHODS, "sgd"])
def test_nested_strided_parameters_of_any_dtype_on_both_backends(dtype, method, gpu):
    results = []
    for xp in (np, gpu):
        params = nested(xp, dtype)
        result = rv.minimize(
            shifted,
            params,
            method,
            gradient_tolerance=0.02,
            options={"lr": 0.1} if method == "sgd" else {},
        )
        assert result.success, result.message
        assert result.x is params
        assert isinstance(params["w"], xp.ndarray)
        assert params["w"].dtype == dtype
        assert params["w"].tolist() == [pytest.approx([2 * i + 1, 2 * i + 2], abs=0.02) for i in range(3)]
        assert float(params["rest"][0]) == pytest.approx(7, abs=0.02)
        assert isinstance(result.jac["w"], xp.ndarray)
        assert result.jac["w"].dtype == np.float64
        assert result.jac["rest"][1][0].shape == (0,)
        results.append((result.nit, result.nfev, result.fun, rv.to_host(params)["w"].tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("method", METHODS)
def test_steps_beyond_float16_are_too_far(method):
    """Doubled steps pass 65504, the largest number, which is the minimum that can be reached."""
    w = np.array([65000.0], np.float16)
    rv.minimize(lambda w: (-float(w[0]), np.array([-1e4], np.float16)), w, method)
    assert w.tolist() == [65504.0]


def test_an_error_restores_the_parameters_bit_for_bit():
    start = np.array([0.1, -0.0, 5e-324, 3.0])
    for method in [*METHODS, "adam"]:
        w, calls = start.copy(), []

        def function(w, calls=calls):
            calls.append(None)
            if len(calls) == 4:
                raise ZeroDivisionError
            return bench.rosenbrock(w)

        with pytest.raises(ZeroDivisionError):
            rv.minimize(function, w, method)
        assert len(calls) == 4
        assert w.tobytes() == start.tobytes()


def test_at_a_minimum_nothing_changes():
    w = np.array([0.0, -0.0])
    before = w.tobytes()
    result = rv.minimize(half_square, w)
    assert w.tobytes() == before
    assert (result.nit, result.nfev, result.fun) == (0, 1, 0.0)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"method": "bfgs"}, ValueError, "method: expected one of .*'lbfgs', 'newton-cg'.* got 'bfgs'"),
        ({"max_iterations": -1}, ValueError, "max_iterations: expected an integer >= 0, got -1"),
        ({"max_iterations": 1.5}, TypeError, "integer"),
        ({"max_evaluations": 0}, ValueError, "max_evaluations: expected an integer >= 1, got 0"),
        ({"gradient_tolerance": -1.0}, ValueError, "gradient_tolerance: expected a finite number >= 0"),
        ({"loss_tolerance": math.nan}, ValueError, "loss_tolerance: expected a finite number >= 0, got nan"),
        ({"options": {"lr": 0.1}}, TypeError, r"options: unknown \['lr'\]; this method takes \['memory'\]"),
        ({"options": {"memory": 0}}, ValueError, r"options\['memory'\]: expected an integer >= 1, got 0"),
        ({"hvp": lambda p, v: v}, ValueError, "hvp: only method='newton-cg' .* got method='lbfgs'"),
        ({"method": "adam", "options": {"beta": 1}}, TypeError, "Adam: unknown option 'beta'; did you mean 'betas'"),
        ({"loss_and_grad": lambda w: (math.nan, w)}, ValueError, "finite loss, got nan at the start"),
        ({"loss_and_grad": lambda w: (1.0, w[:1])}, ValueError, r"expected shape \(2,\), got \(1,\)"),
        ({"params": np.ones(2, int)}, TypeError, "params: expected an array of float64, float32 or float16, got int64"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_changes(arguments, error, words):
    w = np.ones(2)
    with pytest.raises(error, match=words):
        rv.minimize(**{"loss_and_grad": half_square, "params": w, **arguments})
    assert w.tolist() == [1.0, 1.0]


def test_products_of_another_nesting_are_named():
    with pytest.raises(ValueError, match=r"hvp: products unlike params: params: expected shape \(2,\), got \(3,\)"):
        rv.minimize(half_square, np.ones(2), "newton-cg", hvp=lambda p, v: np.ones(3))


def test_without_scipy_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ravine\[diagnose\]'"):
        rv.minimize(half_square, np.ones(2))
