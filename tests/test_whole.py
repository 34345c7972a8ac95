"""Muon and Adafactor: the papers' formulas, what they share with all optimizers, and which bits are promised."""

import pickle
import threading

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from ravine import adafactor, muon, whole
from tests.conftest import assert_same_bits
from tests.reference.whole import adafactor as adafactor_reference
from tests.reference.whole import muon as muon_reference
from tests.reference.whole import orthogonalized, relative_step

F32, BFLOAT16 = np.float32, np.dtype(ml_dtypes.bfloat16)
MAKE = {
    "adafactor": lambda params, **options: rv.Adafactor(params, **{"lr": 0.03, **options}),
    "adafactor relative": lambda params, **options: rv.Adafactor(params, **options),
    "muon": lambda params, **options: rv.Muon(params, **{"lr": 0.03, **options}),
    "muon, converged": lambda params, **options: rv.Muon(
        params, **{"lr": 0.03, "nesterov": False, "ns_coefficients": muon.CONVERGENT, "ns_steps": 9, **options}
    ),
}
every_optimizer = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
adafactors = pytest.mark.parametrize("make", [MAKE["adafactor"], MAKE["adafactor relative"]])
SHAPES = [(5, 5), (3, 70), (70, 3), (1, 9), (9, 1), (1, 1)]


def tree(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {"a": rng.standard_normal((3, 4)).astype(dtype), "b": [rng.standard_normal((5, 2)).astype(F32)]}


def numbers(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(opt, first, last):
    for t in range(first, last):
        grads = tree(t)
        if t % 3 == 2:
            grads["a"] = None  # so that the counters differ
        opt.step(grads)
    return opt


def everything(opt):
    arrays = [*opt._engine.parameters, *(s for states in opt._engine.states for s in states)]
    return (
        pickle.dumps([np.asarray(a.get() if hasattr(a, "get") else a) for a in arrays]),
        opt.steps,
        opt._engine.updates,
    )


# Matrices of every size


@pytest.mark.parametrize("dtype", [np.float64, F32])
@pytest.mark.parametrize("power", [-1000, -600, 600, 1010])
def test_muon_s_step_does_not_depend_on_the_size_of_the_gradient(gpu, dtype, power):
    power = power if dtype == np.float64 else power // 10 + 15
    w, gradients = numbers((9, 5), dtype), [numbers((9, 5), dtype, k) for k in (1, 2)]

    def trained(put, power):
        p = put(w.copy())
        opt = rv.Muon(p, lr=0.1, eps=0.0, nonfinite="raise")
        for g in gradients:
            opt.step(put(np.ldexp(g, power)))
        return rv.to_host(p)

    for put in (np.array, gpu.asarray):
        np.testing.assert_allclose(trained(put, power), trained(put, 0), rtol=1e-12 if dtype == np.float64 else 1e-4)


def test_a_matrix_whose_norm_is_beyond_all_numbers_is_made_orthogonal():
    o = muon.orthogonalize(np.full((4, 4), 1.5e308), coefficients=muon.CONVERGENT, steps=12)
    np.testing.assert_allclose(o, np.full((4, 4), 0.25), rtol=1e-12)


@pytest.mark.parametrize("power", [-600, 600])
@pytest.mark.parametrize("shape", [(9,), (9, 5)])
def test_adafactor_s_step_is_relative_to_parameters_of_every_size(gpu, power, shape):
    w, g = numbers(shape), numbers(shape, seed=1)

    def trained(put, power):
        p = put(np.ldexp(w, power))
        opt = rv.Adafactor(p, lr=0.1, eps=(1e-30, 0.0))
        opt.step(put(g))
        return rv.to_host(p)

    for put in (np.array, gpu.asarray):
        assert_same_bits(trained(put, power), np.ldexp(trained(put, 0), power))


# Muon's orthogonal matrices


@pytest.mark.parametrize("shape", [*SHAPES, (130, 40)])
@pytest.mark.parametrize("coefficients", [muon.JORDAN, muon.CONVERGENT], ids=["jordan", "convergent"])
def test_the_iteration_does_to_a_matrix_what_the_polynomial_does_to_its_singular_values(shape, coefficients):
    x = np.random.default_rng(1).standard_normal(shape) * 3
    before = x.copy()
    for dtype, tolerance in ((np.float64, 1e-12), (F32, 2e-5)):
        got = muon.orthogonalize(x.astype(dtype), coefficients=coefficients, steps=5)
        assert (got.dtype, got.flags.c_contiguous) == (dtype, True)
        np.testing.assert_allclose(got, orthogonalized(x.astype(dtype), coefficients, 5), atol=tolerance)
    assert_same_bits(x, before)


def with_singular_values(sigma):
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal((len(sigma), len(sigma))))[0] for _ in range(2))
    return u @ np.diag(sigma) @ v, u @ v


def test_jordans_coefficients_bring_singular_values_near_1_and_no_nearer():
    sigma = np.geomspace(0.01, 0.3, 40)
    x, _ = with_singular_values(sigma * np.linalg.norm(sigma))
    for steps in (5, 6, 12):
        found = np.linalg.svd(muon.orthogonalize(x, steps=steps))[1]
        assert found.min() > 0.68
        assert found.max() < 1.135
        assert np.abs(found - 1).max() > 0.1


@pytest.mark.parametrize("least, steps", [(1e-2, 11), (1e-4, 18)])
def test_the_convergent_coefficients_lead_to_the_polar_factor(least, steps):
    sigma = np.geomspace(least, 0.4, 20)
    x, polar = with_singular_values(sigma * np.linalg.norm(sigma))  # of the norm 1, the least is `least`
    got = muon.orthogonalize(x, coefficients=muon.CONVERGENT, steps=steps)
    np.testing.assert_allclose(got, polar, atol=1e-6)


def test_zero_stays_zero_and_large_and_small_numbers_do_not_overflow():
    assert_same_bits(muon.orthogonalize(np.zeros((2, 3), F32)), np.zeros((2, 3), F32))
    assert_same_bits(muon.orthogonalize(np.zeros((2, 3), F32), eps=0.0), np.zeros((2, 3), F32))
    one = muon.orthogonalize(np.eye(2, dtype=F32))
    with pytest.raises(TypeError, match="expected a float32 or float64 array, got float16"):
        muon.orthogonalize(np.ones((2, 2), np.float16))
    with pytest.raises(ValueError, match=r"expected a matrix, got shape \(3,\)"):
        muon.orthogonalize(np.ones(3))
    for size in (3e38, 1e-30):
        np.testing.assert_allclose(muon.orthogonalize(np.eye(2, dtype=F32) * F32(size), eps=0.0), one, rtol=1e-6)
    assert np.isnan(muon.orthogonalize(np.array([[np.nan, 1.0], [0.0, 1.0]]))).any()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_float64_run_of_muon_agrees_with_the_papers(shape, adjust, nesterov):
    rng = np.random.default_rng(1)
    w = rng.standard_normal(shape)
    expected, buffer = w.copy(), np.zeros(shape)
    opt = rv.Muon(w, lr=0.1, momentum=0.7, nesterov=nesterov, adjust_lr_fn=adjust, weight_decay=0.3, ns_steps=4)
    for _ in range(5):
        g = rng.standard_normal(shape)
        opt.step(g)
        expected, buffer = muon_reference(
            expected,
            g,
            buffer,
            0.1,
            momentum=0.7,
            nesterov=nesterov,
            coefficients=muon.JORDAN,
            steps=4,
            match_rms=adjust == "match_rms_adamw",
            weight_decay=0.3,
        )
        np.testing.assert_allclose(w, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(opt.state_dict()["states"]["params"]["b"], buffer, rtol=1e-12)


def test_the_defaults_of_muon_are_those_of_the_docstring():
    w = np.random.default_rng(1).standard_normal((4, 3))
    expected, buffer = w.copy(), np.zeros((4, 3))
    opt = rv.Muon(w)
    for seed in range(3):
        g = np.random.default_rng(seed).standard_normal((4, 3))
        opt.step(g)
        numbers = {"momentum": 0.95, "nesterov": True, "coefficients": muon.JORDAN, "steps": 5}
        expected, buffer = muon_reference(expected, g, buffer, 1e-3, **numbers, match_rms=False, weight_decay=0.1)
    np.testing.assert_allclose(w, expected, rtol=1e-12)


@pytest.mark.parametrize("power", [-20, 20])
def test_scaling_gradients_by_a_power_of_two_changes_no_bit_of_muon(power):
    a, b = (np.ones((6, 4), F32) for _ in range(2))
    one, two = rv.Muon(a), rv.Muon(b)
    for seed in range(3):
        g = np.random.default_rng(seed).standard_normal((6, 4)).astype(F32)
        one.step(g)
        two.step(g * F32(2.0**power))
    assert_same_bits(a, b)


def test_muon_takes_matrices_only_and_says_what_to_do():
    for shape in ((), (3,), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"params\['x'\]: expected a matrix, got shape .*another optimizer"):
            rv.Muon({"w": np.ones((2, 2)), "x": np.ones(shape)})
    with pytest.raises(ValueError, match="adjust_lr_fn: expected 'original' or 'match_rms_adamw', got 'adam'"):
        rv.Muon(np.ones((2, 2)), adjust_lr_fn="adam")


# Adafactor


@pytest.mark.parametrize("shape", [*SHAPES, (), (7,), (2, 5, 4), (130, 40)])
@pytest.mark.parametrize("scale_parameter", [True, False])
def test_a_float64_run_of_adafactor_agrees_with_the_paper(shape, scale_parameter):
    rng = np.random.default_rng(1)
    w = np.asarray(rng.standard_normal(shape))
    expected, states = w.copy(), {}
    numbers = {"eps": (1e-3, 0.3), "d": 0.7, "scale_parameter": scale_parameter, "weight_decay": 0.3}
    opt = rv.Adafactor(w, lr=0.1, beta2_decay=-0.6, **numbers)
    for t in range(1, 6):
        g = np.asarray(rng.standard_normal(shape))
        opt.step(g)
        expected = adafactor_reference(expected, g, states, t, 0.1, decay=0.6, **numbers)
        np.testing.assert_allclose(w, expected, rtol=1e-13, atol=1e-13)
    saved = opt.state_dict()["states"]["params"]
    assert saved.keys() == states.keys()
    for name, state in states.items():
        np.testing.assert_allclose(saved[name], state, rtol=1e-13)


def test_the_defaults_of_adafactor_are_the_papers():
    w = np.random.default_rng(1).standard_normal((6, 4)) * 0.01
    expected, states = w.copy(), {}
    opt = rv.Adafactor(w)
    for t in range(1, 5):
        g = np.random.default_rng(t).standard_normal((6, 4))
        assert opt.step(g).lr == 0.01
        expected = adafactor_reference(expected, g, states, t, relative_step(t))
    np.testing.assert_allclose(w, expected, rtol=1e-13)


def test_the_relative_step_falls_from_the_ten_thousandth_on():
    for t in (1, 2, 9_999, 10_000, 10_001, 12_345, 10**6, 10**9):
        assert adafactor.RELATIVE_STEP(t - 1) == pytest.approx(relative_step(t), rel=1e-14)


def test_the_first_step_of_a_rank_one_square_is_the_sign_and_clipping_limits_later_ones():
    w = np.zeros((3, 2))
    g = np.outer([1.0, -2.0, 3.0], [0.5, 4.0])
    opt = rv.Adafactor(w, lr=1.0, eps=(0.0, 0.0), scale_parameter=False)
    opt.step(g)
    np.testing.assert_allclose(w, -np.sign(g), rtol=1e-15)
    before = w.copy()
    opt.step(g * 1000)  # U would be larger than 1
    assert np.sqrt(np.mean((w - before) ** 2)) == pytest.approx(1.0, rel=1e-14)


def test_where_the_second_moment_is_zero_the_update_is_zero():
    for shape in ((3, 2), (3,)):
        w, g = np.ones(shape), np.zeros(shape)
        opt = rv.Adafactor(w, lr=0.5, eps=(0.0, 0.0), weight_decay=0.5)
        opt.step(g)
        assert_same_bits(w, np.full(shape, 0.75))
        g[0] = 1.0
        opt.step(g)
        assert np.isfinite(w).all()
        assert_same_bits(w[1:], np.full(shape, 0.75 * 0.75)[1:])


def test_the_states_of_a_matrix_are_a_number_a_row_and_a_column_and_large_gradients_fit():
    w = np.zeros((3, 50, 70), F32)
    opt = rv.Adafactor(w, lr=0.5, scale_parameter=False)
    states = opt.state_dict()["states"]["params"]
    assert {name: (a.shape, a.dtype) for name, a in states.items()} == {
        "r": ((3, 50), np.float64),
        "c": ((3, 70), np.float64),
    }
    opt.step(np.full(w.shape, 3e38, F32))
    np.testing.assert_allclose(w, -0.5, rtol=1e-6)


def padded(xp, a):
    return xp.ascontiguousarray(xp.repeat(a, 2, 0))[::2] if a.ndim else a


LAYOUTS = {"contiguous": lambda xp, a: a, "fortran": lambda xp, a: xp.asfortranarray(a), "every other row": padded}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@adafactors
def test_adafactor_has_the_same_bits_on_strided_memory_and_for_any_thread_count(make, layout):
    a = np.random.default_rng(1).standard_normal((130, 300)).astype(F32)
    b = layout(np, a.copy())
    one, two = make(a), make(b)
    for seed in range(3):
        g = np.random.default_rng(seed).standard_normal(a.shape).astype(F32)
        rv.set_num_threads(1)
        one.step(g)
        rv.set_num_threads(3)
        two.step(layout(np, g))
    assert_same_bits(b, a)


@pytest.mark.parametrize("at_once", [1, 64, 700, 5000])
@pytest.mark.parametrize("shape", [(130, 30), (200, 9), (5, 70, 9), (4, 3, 3, 3), (64, 7), (65, 1), (300,), ()])
def test_the_bits_of_adafactor_do_not_depend_on_how_much_is_worked_on_at_once(shape, at_once, monkeypatch):
    a, b = (np.asarray(np.random.default_rng(1).standard_normal(shape), F32) for _ in range(2))
    one, two = rv.Adafactor(a), rv.Adafactor(b)
    for seed in range(3):
        g = np.asarray(np.random.default_rng(seed).standard_normal(shape), F32)
        one.step(g)
        with monkeypatch.context() as patched:
            patched.setattr(rv.backends.cpu, "AT_ONCE", at_once)
            two.step(g)
    assert everything(one) == everything(two)


CUPY = [(np.float64, "contiguous"), (F32, "fortran"), (np.float16, "every other row"), (BFLOAT16, "contiguous")]


@pytest.mark.parametrize("dtype, layout", CUPY, ids=str)
@pytest.mark.parametrize("make", [MAKE["adafactor"], MAKE["adafactor relative"], MAKE["muon"]])
def test_cupy_has_the_bits_of_numpy_but_for_what_matrix_products_differ(gpu, make, layout, dtype):
    layout = LAYOUTS[layout]
    rng = np.random.default_rng(1)
    host = {"w": rng.standard_normal((7, 30)).astype(dtype), "x": rng.standard_normal((65, 5)).astype(dtype)}
    device = {name: layout(gpu, gpu.asarray(w)) for name, w in host.items()}
    options = {"clip_value": 1.5, "clip_norm": 4.0, "maximize": True, "nonfinite": "skip", "weight_decay": 0.3}
    one, two = make(host, **options), make(device, **options)
    for t in range(5):
        grads = {name: rng.standard_normal(w.shape).astype(dtype) for name, w in host.items()}
        if t == 2:
            grads["x"] = None
        if t == 3:
            grads["w"][2, 3] = np.nan
        a, b = one.step(grads), two.step(rv.trees.map(lambda g: g if g is None else layout(gpu, gpu.asarray(g)), grads))
        assert repr(a) == repr(b)
        assert a.skipped == (t == 3)
    assert (two.steps, two._engine.updates) == (one.steps, one._engine.updates) == (4, [4, 3])
    for name in host:
        states, of_device = (opt.state_dict()["states"][name] for opt in (one, two))
        for kind, state in states.items():
            assert_same_bits(of_device[kind].get(), state)
        if "muon" in one._rule:
            np.testing.assert_allclose(device[name].get().astype(float), host[name].astype(float), atol=1e-2)
        else:
            assert_same_bits(device[name].get(), host[name])


# What they share with all optimizers


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
@every_optimizer
def test_half_precision_is_computed_in_float32_and_rounded_once(make, dtype):
    w = np.random.default_rng(1).standard_normal((9, 6)).astype(dtype)
    g = np.random.default_rng(2).standard_normal((9, 6)).astype(dtype)
    wide = w.astype(F32)
    make(w, weight_decay=0.3).step(g)
    make(wide, weight_decay=0.3).step(g.astype(F32))
    assert_same_bits(w, wide.astype(dtype))


@every_optimizer
def test_clipping_signs_and_decay_are_those_of_every_step(make):
    """The same step of gradients that were prepared by hand."""
    a, b = (np.random.default_rng(1).standard_normal((6, 4)) for _ in range(2))
    one = make(a, clip_value=0.9, clip_norm=2.5, maximize=True, weight_decay=0.0)
    two = make(b, weight_decay=0.0)
    for seed in range(3):
        g = np.random.default_rng(seed).standard_normal((6, 4))
        clipped = np.clip(-g, -0.9, 0.9)
        norm = rv.global_norm(clipped)
        assert one.step(g).grad_norm == norm
        two.step(clipped * min(1.0, 2.5 / norm))
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    c, d = np.full((6, 4), 2.0), np.full((6, 4), 2.0)
    kept = make(c, lr=0.5, weight_decay=0.5)
    kept.step(np.zeros((6, 4)))
    assert_same_bits(c, 0.75 * d)


@every_optimizer
def test_a_run_goes_on_bit_for_bit_from_its_state_and_from_a_file(make, tmp_path):
    whole = run(make(tree()), 1, 9)
    half = run(make(tree()), 1, 5)
    half.save(tmp_path / "run")
    loaded = make(tree(7))
    assert loaded.load(tmp_path / "run").step == 4
    params = rv.trees.map(np.copy, half._params)
    resumed = make(params)
    resumed.load_state_dict(half.state_dict())
    for opt in (loaded, resumed):
        assert everything(opt) == everything(half)
        assert everything(run(opt, 5, 9)) == everything(whole)


def test_states_and_files_of_another_rule_are_refused(tmp_path):
    sgd, opt = rv.SGD(np.ones((2, 2)), lr=0.1, momentum=0.9, nesterov=True), rv.Muon(np.ones((2, 2)))
    sgd.save(tmp_path / "run")
    for load in (lambda: opt.load(tmp_path / "run"), lambda: opt.load_state_dict(sgd.state_dict())):
        with pytest.raises(ValueError, match="rule: expected 'muon', got 'nesterov'"):
            load()
    state = rv.Adafactor(np.ones((2, 3))).state_dict()
    with pytest.raises(
        ValueError, match=r"\['r'\]: expected \(2,\) float64.*\['c'\]: expected \(4,\) float64, got \(3,\)"
    ):
        rv.Adafactor(np.ones((2, 4))).load_state_dict(
            state | {"states": {"params": state["states"]["params"] | {"r": 0}}}
        )


def test_numbers_of_a_file_are_restored_and_switches_must_agree(tmp_path):
    opt = rv.Muon(np.ones((2, 2)), lr=0.25, ns_steps=7, ns_coefficients=muon.CONVERGENT)
    opt.save(tmp_path / "run")
    other = rv.Muon(np.ones((2, 2)), lr=0.5)
    assert "ns_steps: 7.0, was 5.0" in other.load(tmp_path / "run").restored
    assert other.formula() == opt.formula()
    with pytest.raises(ValueError, match="nesterov"):
        rv.Muon(np.ones((2, 2)), nesterov=False).load(tmp_path / "run")


def test_groups_schedules_and_a_rate_set_by_hand_act():
    params = {"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}
    g = {name: np.eye(2) for name in params}
    opt = rv.Muon(
        params,
        lr=lambda t: 1.0 / (1 + t),
        weight_decay=0.0,
        ns_coefficients=muon.CONVERGENT,
        ns_steps=12,
        groups=[("b", {"lr": 4.0, "ns_steps": 0})],
    )
    assert opt.step(g).lr == 1.0
    np.testing.assert_allclose(params["a"], -np.eye(2), atol=1e-12)
    np.testing.assert_allclose(params["b"], -4 * np.eye(2) / np.sqrt(2), atol=1e-12)
    assert opt.step(g).lr == 0.5
    np.testing.assert_allclose(params["a"], -1.5 * np.eye(2), atol=1e-12)
    opt = rv.Adafactor({"w": np.ones((2, 2))}, lr=1.0)
    opt.lr = 0.25
    assert (opt.lr, opt.step({"w": np.ones((2, 2))}).lr) == (0.25, 0.25)


@pytest.mark.parametrize("policy", ["skip", "raise"])
@every_optimizer
def test_gradients_that_are_not_finite_leave_everything(make, policy):
    opt = run(make(tree(), nonfinite=policy), 1, 4)
    before, bad = everything(opt), tree(4)
    bad["b"][0][3, 1] = np.inf
    if policy == "raise":
        with pytest.raises(FloatingPointError, match=r"'b.0': \(1, 7\).*nothing was changed"):
            opt.step(bad)
    else:
        info = opt.step(bad)
        assert (info.step, info.skipped, info.nonfinite) == (3, True, {"b.0": (1, 7)})
    assert everything(opt) == before
    assert opt.step(tree(5)).step == 4


@every_optimizer
def test_what_does_not_fit_is_refused_and_nothing_is_changed(make):
    params = tree()
    opt = run(make(params), 1, 3)
    before, good = everything(opt), tree(1)
    state = next(iter(opt._states()["a"].values()))
    cases = [
        (good | {"a": np.ones((4, 3))}, ValueError, r"grads\['a'\]: expected shape \(3, 4\)"),
        (good | {"a": np.ones((3, 4), F32)}, TypeError, r"grads\['a'\]: expected float64"),
        ({"a": good["a"]}, ValueError, "missing 'b.0'"),
        (good | {"a": params["a"][::-1]}, ValueError, "shares memory with parameter 'a'"),
        (good | {"a": rv.RowSparse([0], np.ones((1, 4)))}, TypeError, "expected a dense gradient, got RowSparse"),
    ]
    cases += [(good | {"a": state}, ValueError, "shares memory")] if state.shape == (3, 4) else []
    for grads, error, match in cases:
        with pytest.raises(error, match=match):
            opt.step(grads)
        assert everything(opt) == before
    params["a"] = params["a"].copy()
    with pytest.raises(ValueError, match="another array than the one given"):
        opt.step(good)


@every_optimizer
def test_numbers_out_of_range_and_unknown_options_are_refused(make):
    w = np.ones((2, 2))
    for options, match in [
        ({"lr": -1.0}, "lr: expected a finite number >= 0, got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"l2": 0.1}, "l2: .* no coupled decay"),
        ({"l2": lambda t: 0.1}, "l2: .* no coupled decay"),
        ({"groups": [("*", {"l2": 0.1})]}, "l2"),
        ({"clip_norm": -1.0}, "clip_norm: expected a number > 0, infinity to measure only"),
        ({"nonfinite": "ignore"}, "nonfinite: expected"),
        ({"lr": lambda t: -1.0}, "lr: .*from the schedule"),
    ]:
        with pytest.raises(ValueError, match=match):
            make(w, **options)
    with pytest.raises(TypeError, match="unknown option 'beta'"):
        make(w, beta=1)
    with pytest.raises(TypeError, match="expected float64, float32"):
        make(np.ones((2, 2), int))


@pytest.mark.parametrize(
    "cls, numbers, match",
    [
        (rv.Adafactor, {"beta2_decay": 0.8}, "beta2_decay: expected a finite number <= 0"),
        (rv.Adafactor, {"d": 0.0}, "d: expected a finite number > 0"),
        (rv.Adafactor, {"eps": (1e-30, -1.0)}, "eps2: expected a finite number >= 0"),
        (rv.Adafactor, {"eps": 1e-8}, "eps: expected two numbers"),
        (rv.Muon, {"momentum": 1.0}, r"momentum: expected a number in \[0, 1\)"),
        (rv.Muon, {"ns_steps": 2.5}, "ns_steps: expected a whole number"),
        (rv.Muon, {"ns_coefficients": (1.0, float("inf"), 0.0)}, "ns_b: expected a finite number"),
        (rv.Muon, {"ns_coefficients": (1.0, 2.0)}, "ns_coefficients: expected three numbers"),
        (rv.Muon, {"groups": [("*", {"nesterov": False})]}, "'nesterov' is the same for all"),
    ],
    ids=str,
)
def test_numbers_of_their_own_have_ranges(cls, numbers, match):
    with pytest.raises((TypeError, ValueError), match=match):
        cls(np.ones((2, 2)), **numbers)


def test_the_driver_has_the_ranges_of_the_core():
    engine = rv._core.Engine("ademamix", {}, lambda _: [], lambda *_: [], None, None, "propagate")
    kinds = rv._core.rules()["ademamix"]["hyperparameters"]
    asked = {**kinds, "maximize": "switch", "l2": "not_negative"}
    for name, kind in asked.items():
        inside, expected = whole._RANGES[kind]
        for value in (-1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 1e300, np.inf, -np.inf, np.nan):
            if inside(value):
                engine.check_hyper(name, value)
            else:
                with pytest.raises(ValueError, match=f"{name}: expected .*"[: len(name) + 11]) as caught:
                    engine.check_hyper(name, value)
                assert f"expected {expected}, got" in str(caught.value)


@every_optimizer
def test_empty_matrices_and_steps_without_most_gradients(make):
    params = {"a": np.zeros((0, 3)), "b": np.zeros((3, 0)), "c": np.ones((2, 2))}
    opt = make(params)
    assert opt.step({name: np.zeros_like(w) for name, w in params.items()}).step == 1
    before = params["c"].copy()
    with pytest.raises(ValueError, match="grads: expected at least one gradient, got None for every parameter"):
        opt.step(dict.fromkeys(params))
    assert opt.step({**dict.fromkeys(params), "a": params["a"].copy()}).step == 2
    assert_same_bits(params["c"], before)
    assert opt._engine.updates == [2, 1, 1]


@pytest.mark.parametrize("where", ["before", "after", "update", "descent"])
@every_optimizer
def test_an_interrupted_step_is_whole_or_not_at_all(make, where, monkeypatch):
    opt, other = run(make(tree()), 1, 3), run(make(tree()), 1, 3)
    driver, interrupted = opt._engine, []

    def once(function, after=False):
        def call(*args):
            result = function(*args) if after and not interrupted else None
            if not interrupted:
                interrupted.append(True)
                raise KeyboardInterrupt
            return result if after and result is not None else function(*args)

        return call

    class Interrupted:
        def __init__(self, engine, after):
            self._engine, self.step = engine, once(engine.step, after)

        def __getattr__(self, name):
            return getattr(self._engine, name)

    if where in ("before", "after"):
        made = driver._preparing

        def preparing(given):
            prepared, engine = made(given)
            return prepared, Interrupted(engine, where == "after")

        driver._preparing = preparing
    elif where == "update":
        monkeypatch.setattr(opt, "_update", once(opt._update))
    else:
        driver._core = Interrupted(driver._core, True)
    with pytest.raises(KeyboardInterrupt):
        opt.step(tree(3))
    if where != "before":
        other.step(tree(3))
    assert everything(opt) == everything(other)


def test_a_second_thread_is_refused(monkeypatch):
    opt, entered, leave = rv.Adafactor(np.ones((2, 2)), lr=0.1), threading.Event(), threading.Event()
    update = opt._update

    def slow(*args):
        entered.set()
        assert leave.wait(60)
        return update(*args)

    monkeypatch.setattr(opt, "_update", slow)
    thread = threading.Thread(target=opt.step, args=(np.ones((2, 2)),))
    thread.start()
    assert entered.wait(60)
    with pytest.raises(RuntimeError, match="another thread"):
        opt.step(np.ones((2, 2)))
    leave.set()
    thread.join()
    assert opt.steps == 1


def test_a_captured_step_is_refused(gpu, monkeypatch):
    opt = rv.Muon(gpu.ones((3, 2), F32))
    monkeypatch.setattr(type(opt._backend.device), "capturing", lambda self: True)
    with pytest.raises(RuntimeError, match="Muon cannot be captured"):
        opt.step(gpu.ones((3, 2), F32))


def test_a_range_test_leaves_no_trace():
    w = np.array([[2.0, -1.0]])
    opt = rv.Muon(w)
    before = everything(opt)
    rv.lr_range_test(lambda w: (float((w**2).sum()), 2 * w), w, opt, lr_min=1e-3, lr_max=1.0, steps=20)
    assert everything(opt) == before


# It learns.

LEARNERS = {
    "adafactor": (
        rv.Adafactor,
        {"scale_parameter": False},
        (rv.schedules.linear(0.05, 0.0, 1000), rv.schedules.linear(0.02, 0.0, 6_000), 0.02),
    ),
    "adafactor, scaled": (
        rv.Adafactor,
        {},
        (rv.schedules.linear(0.1, 0.0, 1000), rv.schedules.linear(0.02, 0.0, 6_000), 0.1),
    ),
    "muon": (
        rv.Muon,
        {"weight_decay": 0.0},
        (rv.schedules.linear(0.05, 0.0, 1000), rv.schedules.linear(0.01, 0.0, 6_000), 0.02),
    ),
}
every_learner = pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)


@every_learner
def test_an_ill_conditioned_quadratic_is_minimised(learner):
    cls, arguments, (lr, _, _) = learner
    curvature = np.array([[1.0, 10.0, 200.0], [5.0, 50.0, 100.0]])
    w = np.ones((2, 3))
    opt = cls(w, lr=lr, **arguments)
    start = np.sum(curvature * w**2)
    for _ in range(1000):
        opt.step(curvature * w)
    assert np.sum(curvature * w**2) < 1e-3 * start


@every_learner
def test_the_valley_of_rosenbrock_is_followed_to_its_minimum(learner):
    cls, arguments, (_, lr, _) = learner
    w = np.array([[-0.5, 0.5]])
    opt = cls(w, lr=lr, **arguments)
    for _ in range(6_000):
        x, y = w[0]
        opt.step(np.array([[-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]]))
    assert np.abs(w - 1).max() < 0.1


@every_learner
def test_logistic_regression_learns_real_data(learner):
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x, y = ((x - x.mean(0)) / x.std(0)).astype(F32), y.astype(F32)[:, None]
    cls, arguments, (_, _, lr) = learner
    params = {"w": np.zeros((x.shape[1], 1), F32), "b": np.zeros((1, 1), F32)}
    opt = cls(params, lr=lr, **arguments)
    for _ in range(300):
        p = (1 + np.tanh((x @ params["w"] + params["b"]) / 2)) / 2
        opt.step({"w": x.T @ (p - y) / F32(len(y)), "b": np.mean(p - y, keepdims=True)})
    margin = (2 * y - 1) * (x @ params["w"] + params["b"])
    assert np.mean(np.logaddexp(0, -margin)) < 0.08
    assert np.mean(margin > 0) > 0.975


# Beside the options of a step


@every_optimizer
def test_a_scaled_gradient_is_unscaled_first(make):
    one, other = tree(), tree()
    scaled, plain = make(one, clip_norm=0.9), make(other, clip_norm=0.9)
    for t in range(1, 4):
        grads = tree(t)
        times = {"a": 8 * grads["a"], "b": [8 * grads["b"][0]]}
        assert scaled.step(times, grad_scale=8.0).grad_norm == plain.step(grads).grad_norm
    assert everything(scaled) == everything(plain)


@every_optimizer
def test_a_dynamic_scale_leaves_out_what_is_not_finite(make):
    opt, scale = make(tree()), rv.DynamicLossScale(init_scale=4.0)
    before, grads = everything(opt), tree(1)
    grads["a"][0, 0] = np.inf
    assert opt.step(grads, grad_scale=scale).skipped
    assert scale.value == 2.0
    assert everything(opt) == before
    assert not opt.step(tree(1), grad_scale=scale).skipped


@every_optimizer
def test_averages_and_lookahead_follow_and_are_resumed(make):
    options = {"average": rv.SWA(start=1), "lookahead": rv.Lookahead(2, 0.25)}
    plain, points, w = make(tree()), [], tree()
    opt = make(w, **options)
    slow = {"a": w["a"].copy()}
    for t in range(1, 5):
        grads = tree(t)
        before = w["a"].copy()
        # The same update from the same place, without what follows.
        for array, here in zip(plain._engine.parameters, opt._engine.parameters, strict=True):
            array[...] = here
        opt.step(grads)
        plain.step(grads)
        fast = plain._engine.parameters[0]
        slow["a"] = before if t % 2 == 1 else slow["a"]
        expected = slow["a"] + 0.25 * (fast - slow["a"]) if t % 2 == 0 else fast
        assert_same_bits(w["a"], expected, f"update {t}")
        points += [w["a"].copy()] if t > 1 else []
    np.testing.assert_allclose(opt.averages()["a"], np.mean(points, axis=0), rtol=1e-14)
    resumed = make(tree(9), **options)
    for array, here in zip(resumed._engine.parameters, opt._engine.parameters, strict=True):
        array[...] = here
    resumed.load_state_dict(opt.state_dict())
    for t in range(5, 9):
        opt.step(tree(t))
        resumed.step(tree(t))
    assert pickle.dumps(opt.state_dict()) == pickle.dumps(resumed.state_dict())
    assert everything(resumed) == everything(opt)


@pytest.mark.parametrize("make", [MAKE["muon"], MAKE["muon, converged"]])
def test_an_exact_copy_makes_a_half_precision_run_that_of_float32(make):
    half, single = tree(0, BFLOAT16)["a"], tree(0, BFLOAT16)["a"].astype(F32)
    with_copy, plain = make(half, master="float32", weight_decay=0.3), make(single, weight_decay=0.3)
    for t in range(1, 5):
        grads = tree(t, BFLOAT16)["a"]
        with_copy.step(grads)
        plain.step(grads.astype(F32))
    assert_same_bits(half, single.astype(BFLOAT16))
    assert_same_bits(with_copy.state_dict()["states"]["params"]["master"], single)


@every_optimizer
@pytest.mark.parametrize(
    "form, factor",
    [({"decay_after": True}, 1 - 0.03 * 0.5), ({"decay_implicit": True}, 1 / (1 + 0.03 * 0.5))],
    ids=["after", "implicit"],
)
def test_decay_of_the_new_parameter_comes_after_the_update(make, form, factor):
    one, other = tree(), tree()
    make(one, lr=0.03, weight_decay=0.5, **form).step(tree(1))
    make(other, lr=0.03, weight_decay=0.0).step(tree(1))
    # Each side rounds three times, by half of the last bit of numbers that are not above the old w.
    bound = 6 * 2.0**-53 * np.abs(tree()["a"]).max()
    np.testing.assert_allclose(one["a"], factor * other["a"], rtol=0, atol=bound)
    with pytest.raises(ValueError, match="weight_decay: expected a finite number >= 0, got -1"):
        make(tree(), weight_decay=-1.0)


@every_optimizer
def test_micro_batches_are_refused_with_the_cure(make):
    opt = make(tree())
    before = everything(opt)
    with pytest.raises(TypeError, match=r"accumulate: (Muon|Adafactor) takes one gradient a step; add them up"):
        opt.accumulate(tree(1))
    with pytest.raises(ValueError, match="step: expected grads"):
        opt.step()
    assert everything(opt) == before
