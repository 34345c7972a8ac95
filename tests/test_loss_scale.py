"""Scaled gradients are divided before anything else; a dynamic scale finds its size; micro-batches give their mean."""

import json
import math
from fractions import Fraction
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ravine as rv
from tests import specification
from tests.conftest import RULES, assert_same_bits, engine, instruction_sets
from tests.test_bits import HYPER
from tests.test_cuda_step import device_engine, gentle, strided
from tests.test_rules import PIPELINES

NAN, INF = math.nan, math.inf
F16, F32, BF16 = np.float16, np.float32, ml_dtypes.bfloat16
DTYPES = [np.float64, F32, F16, BF16]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)


def normal(shape, dtype, seed=0):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def scaled(g, scale):
    """The gradients as a scaled loss gives them; exact here."""
    return (g.astype(np.float64) * scale).astype(g.dtype)


def state_of(made):
    return [*made.parameters, *(state for states in made.states for state in states)]


def assert_same_state(made, own, what=""):
    for a, b in zip(state_of(made), state_of(own), strict=True):
        assert_same_bits(rv.to_host(a), b, what)
    assert made.updates == own.updates


# ---------------------------------------------------------------------------------------------------------------------
# grad_scale


@pytest.mark.parametrize("pipeline", PIPELINES)
@every_dtype
@pytest.mark.parametrize("rule", RULES)
def test_a_power_of_two_changes_nothing_for_any_rule(rule, dtype, pipeline):
    w = [normal(203, dtype), normal((5, 7), dtype, 1)]
    a = engine(rule, [x.copy() for x in w], HYPER[rule], **PIPELINES[pipeline])
    b = engine(rule, [x.copy() for x in w], HYPER[rule], **PIPELINES[pipeline])
    for seed, scale in enumerate((2.0**9, 0.125, 1.0)):
        g = [normal(x.shape, dtype, 10 * seed + i) for i, x in enumerate(w)]
        with_scale, without = a.step([scaled(x, scale) for x in g], grad_scale=scale), b.step(g)
        assert repr(with_scale) == repr(without)
        assert_same_state(a, b, rule)


@every_dtype
@pytest.mark.parametrize("rule", ["sgd", "adam", "lion", "heavy_ball"])
@pytest.mark.parametrize("n", [1, 31, 33, 4095, 4097, 8200])
def test_any_scale_is_one_product_with_its_rounded_inverse(rule, dtype, n):
    w, g = normal(n, dtype), normal(n, dtype, 1)
    made = engine(rule, w.copy(), HYPER[rule], **PIPELINES["all"])
    states = [np.zeros(n, specification.compute_dtype(dtype)) for _ in RULES[rule]["states"]]
    for t, scale in enumerate((3.0, 0.7, 1e-30, 1e30), 1):
        options = {name: value for name, value in PIPELINES["all"].items() if name != "clip_norm"}
        with np.errstate(over="ignore"):
            true = specification.unscaled(g, scale)
        norm = specification.global_norm([true], options["clip_value"])
        clip = specification.norm_scale(norm, PIPELINES["all"]["clip_norm"])
        w, states = specification.step(
            rule, w, g, states, t=t, hyper=HYPER[rule], scale=clip, grad_scale=scale, **options
        )
        info = made.step(g, grad_scale=scale)
        assert_same_bits(info.grad_norm, norm)
        assert_same_bits(made.parameters[0], w)
        for got, expected in zip(made.states[0], states, strict=True):
            assert_same_bits(got, expected)


def test_the_same_bits_for_any_threads_instruction_set_and_strides():
    w, g = normal((301, 222), F32), normal((301, 222), F16, 1)
    expected = None
    for level in instruction_sets():
        rv._core.set_simd(level)
        for threads in (1, 3):
            rv.set_num_threads(threads)
            for layout in (lambda x: x, np.asfortranarray, lambda x: np.repeat(x, 2, -1)[:, ::2]):
                at = layout(w.copy())
                opt = rv.Adam(at, lr=0.1, clip_norm=0.5)
                opt.accumulate(layout(g), weight=0.3)
                opt.accumulate(layout(g), weight=5)
                opt.step(grad_scale=3.0)
                expected = at.copy() if expected is None else expected
                assert_same_bits(at.copy(order="C"), expected.copy(order="C"))


def test_clipping_and_norms_see_true_gradients():
    w = np.zeros(3)
    opt = rv.SGD(w, lr=1.0, clip_value=4.0, clip_norm=2.5)
    info = opt.step(np.array([3.0, -90.0, 0.0]) * 1000, grad_scale=1000)
    assert info.grad_norm == 5.0
    np.testing.assert_array_equal(w, [-1.5, 2.0, 0.0])


def test_decay_is_not_scaled():
    a, b = np.ones(2), np.ones(2)
    rv.SGD(a, lr=0.5, l2=0.25, weight_decay=0.5).step(np.zeros(2), grad_scale=2.0**20)
    rv.SGD(b, lr=0.5, l2=0.25, weight_decay=0.5).step(np.zeros(2))
    assert_same_bits(a, b)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_the_check_judges_true_gradients_by_name_count_and_first_index(gpu, nonfinite):
    for xp in (np, gpu):
        w = {"a": xp.zeros((3, 4), F32), "b": xp.zeros(2, F16), "c": xp.zeros(2, F32)}
        opt = rv.Adam(w, lr=0.1, nonfinite=nonfinite)
        fine = np.full((3, 4), 1e19, F32)  # its square is finite
        large = fine.copy()
        large[1, 2:] = 1e20  # its square is not
        # Divided by 2⁻⁴, the large ones are beyond the limit; by 2⁴ they are not.
        g = {"a": xp.asarray(large), "b": xp.asarray(np.ones(2, F16)), "c": xp.asarray(np.array([1, -2e37], F32))}
        bad = {"a": (12, 0), "c": (1, 1)}
        if nonfinite == "skip":
            info = opt.step(g, grad_scale=2.0**-4)
            assert (info.skipped, info.nonfinite) == (True, bad)
        else:
            with pytest.raises(FloatingPointError, match=r"'a': \(12, 0\), 'c': \(1, 1\)"):
                opt.step(g, grad_scale=2.0**-4)
        assert (opt.steps, opt._engine.updates) == (0, [0, 0, 0])
        g["c"] = xp.asarray(np.array([1, -2e19], F32))
        info = opt.step(g, grad_scale=2.0**4)
        assert (info.skipped, info.nonfinite, opt.steps) == (False, {}, 1)
        g["b"] = xp.asarray(np.array([1, INF], F16))  # what float16 makes of more than 65504
        with pytest.raises(FloatingPointError) if nonfinite == "raise" else pytest.MonkeyPatch.context():
            assert opt.step(g, grad_scale=2.0**4).nonfinite == {"b": (1, 1)}
        assert opt.steps == 1


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, INF, -INF, 2.0**127, 1e-38, "2", [2.0], np.ones(2)], ids=repr)
def test_what_is_no_scale_is_refused_and_nothing_changes(gpu, bad):
    for xp in (np, gpu):
        w = xp.ones(3)
        opt = rv.Adam(w, lr=rv.schedules.linear(0.5, 0.1, 9))
        with pytest.raises((ValueError, TypeError), match="grad_scale: expected a number"):
            opt.step(xp.ones(3), grad_scale=bad)
        assert (opt.steps, opt.lr, w.tolist()) == (0, 0.5, [1, 1, 1])
    largest = 2.0**126
    rv.SGD(w := np.ones(1, F32), lr=1.0).step(np.full(1, largest, F32), grad_scale=largest)
    assert w[0] == 0


@pytest.mark.parametrize("kind", [(F32, F32), (F32, F16), (F16, F16), (np.float64, np.float64)], ids=repr)
def test_on_a_device_scaled_steps_have_the_same_bits(gpu_device, kind):
    xp = gpu_device.xp
    w = [normal(n, kind[0], n) for n in (5, 4100, 77)]
    for pipeline, nonfinite in (("alone", "propagate"), ("all", "propagate"), ("all", "skip")):
        here, there = [x.copy() for x in w], [xp.asarray(x) for x in w]
        options = {**PIPELINES[pipeline], "nonfinite": nonfinite}
        own, made = engine("adam", here, HYPER["adam"], **options), None
        made = device_engine(gpu_device, "adam", there, HYPER["adam"], **options)
        for seed, scale in enumerate((2.0**7, 3.0, None, 0.3)):
            g = [normal(x.shape, kind[1], 10 * seed + i) for i, x in enumerate(w)]
            if seed == 1:
                g[1][4097] = INF
            g[2] = None if seed == 2 else g[2]
            expected = own.step(g, grad_scale=scale)
            got = made.step([None if x is None else xp.asarray(x) for x in g], grad_scale=scale)
            assert repr(got) == repr(expected)
            assert_same_state(made, own, (pipeline, scale))


# ---------------------------------------------------------------------------------------------------------------------
# DynamicLossScale


def test_it_backs_off_at_once_and_grows_after_an_interval():
    w, scale = np.zeros(2), rv.DynamicLossScale(64, growth_factor=4, backoff_factor=0.5, growth_interval=3)
    opt, seen = rv.SGD(w, lr=1.0), []
    for bad in (0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0):
        info = opt.step(np.array([NAN if bad else 1.0, 0.0]) * scale.value, grad_scale=scale)
        assert info.skipped == bool(bad)
        assert info.nonfinite == ({"params": (1, 0)} if bad else {})
        seen.append(scale.value)
    assert seen == [64, 64, 32, 32, 32, 128, 64, 32, 32, 32, 128, 128]
    assert scale.good_steps == 1
    assert opt.steps == 9
    assert w.tolist() == [-9.0, 0.0]


def test_the_defaults_are_those_of_the_field():
    scale = rv.DynamicLossScale()
    assert (scale.value, scale._growth, scale._backoff, scale._interval) == (65536.0, 2.0, 0.5, 2000)


@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
def test_a_skipped_step_did_not_happen_whatever_the_policy(gpu, nonfinite):
    for xp in (np, gpu):
        w = {"w": xp.asarray(normal(40, F32)), "b": xp.asarray(normal(3, F16, 1))}
        opt = rv.AdamW(w, lr=rv.schedules.linear(0.5, 0.1, 9), weight_decay=0.1, nonfinite=nonfinite)
        scale = rv.DynamicLossScale(256)
        good = {"w": xp.asarray(normal(40, F32, 2)), "b": xp.asarray(normal(3, F16, 3))}
        opt.step(good, grad_scale=scale)
        before = [rv.to_host(x).tobytes() for x in state_of(opt._engine)], opt.steps, opt._engine.updates
        info = opt.step({**good, "w": xp.asarray(np.full(40, INF, F32))}, grad_scale=scale)
        assert (info.skipped, info.step, info.nonfinite) == (True, 1, {"w": (40, 0)})
        assert ([rv.to_host(x).tobytes() for x in state_of(opt._engine)], opt.steps, opt._engine.updates) == before
        assert float(scale.value) == 128
        opt.step(good, grad_scale=scale)
        assert opt.steps == 2


def test_limits_hold(gpu):
    for xp in (np, gpu):
        opt, scale = rv.SGD(xp.zeros(1), lr=0.1), rv.DynamicLossScale(4, min_scale=2, max_scale=8, growth_interval=1)
        for bad, value in ((1, 2), (1, 2), (0, 4), (0, 8), (0, 8)):
            opt.step(xp.full(1, INF if bad else 0.0), grad_scale=scale)
            assert float(scale.value) == value


def test_float16_learns_below_its_smallest_number():
    """The paper's reason: gradients of 2⁻²⁶ are 0 in float16, and not if the loss is scaled."""
    for scale, expected in ((None, 1.0), (rv.DynamicLossScale(2**10), 1.0 - 2.0**-7)):
        w = np.ones(1, F32)
        opt = rv.SGD(w, lr=2.0**19)
        g = np.float32(2.0**-26) * (scale.value if scale else 1)
        opt.step(np.array([g], F16), grad_scale=scale)
        assert w[0] == expected


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=30),
    st.integers(0, 6),
    st.sampled_from([2.0, 4.0]),
    st.sampled_from([0.5, 0.125]),
    st.integers(1, 4),
)
def test_the_value_follows_its_definition(bads, start, growth, backoff, interval):
    scale = rv.DynamicLossScale(
        2.0**start,
        growth_factor=growth,
        backoff_factor=backoff,
        growth_interval=interval,
        max_scale=2**8,
    )
    opt, value, good = rv.SGD(np.zeros(1), lr=0.1), Fraction(2) ** start, 0
    for bad in bads:
        opt.step(np.full(1, NAN if bad else 1.0), grad_scale=scale)
        if bad:
            value, good = max(value * Fraction(backoff), Fraction(1)), 0
        elif good + 1 == interval:
            value, good = min(value * Fraction(growth), Fraction(256)), 0
        else:
            good += 1
        assert (Fraction(scale.value), scale.good_steps) == (value, good)


def pattern(t):
    """A run with gradients that overflow now and then."""
    g = normal(50, F32, t) * F32(8)
    if t in (3, 4, 9, 15):
        g[t] = INF if t % 2 else NAN
    return g


def test_on_a_device_nothing_waits_and_all_is_the_same(gpu_device, monkeypatch):
    xp, run = gpu_device.xp, range(1, 20)
    kwargs = {"growth_interval": 4, "max_scale": 2.0**17}
    here, there = normal(50, F32), xp.asarray(normal(50, F32))
    a, b = rv.Adam(here, lr=0.1, clip_norm=1.0), rv.Adam(there, lr=0.1, clip_norm=1.0)
    one, other = rv.DynamicLossScale(**kwargs), rv.DynamicLossScale(**kwargs)
    expected = [(a.step(pattern(t) * F32(one.value), grad_scale=one), one.value) for t in run]
    waited = []
    get = xp.ndarray.get
    if xp.__version__ == "0.0.0":  # CuPy's own class cannot be changed
        monkeypatch.setattr(xp.ndarray, "get", lambda x: waited.append(x) or get(x))
    values, infos = [], []
    for t in run:
        infos.append(b.step(xp.asarray(pattern(t)) * other.value, grad_scale=other))
        infos[-1].keep()
        values.append(other.value.copy())
    assert waited == []
    assert [(repr(info), float(value)) for info, value in zip(infos, values, strict=True)] == [
        (repr(info), value) for info, value in expected
    ]
    assert other.state_dict() == one.state_dict()
    assert repr(other) == repr(one)
    assert_same_state(b._engine, a._engine)
    assert a.steps == b.steps == len(run) - 4


def test_on_a_device_the_value_is_one_array_that_steps_change(gpu):
    scale = rv.DynamicLossScale(16, growth_interval=1)
    opt = rv.SGD(gpu.zeros(2, F32), lr=0.1)
    assert scale.value == 16.0
    opt.step(gpu.ones(2, F32), grad_scale=scale)
    kept = scale.value
    assert (kept.shape, kept.dtype, float(kept)) == ((), np.float32, 32.0)
    opt.step(gpu.ones(2, F32), grad_scale=scale)
    assert float(kept) == 64.0
    assert scale.value is kept
    scale.load_state_dict({"format": 1, "value": 2.0, "good_steps": 0})
    assert float(kept) == 2.0
    assert scale.state_dict() == {"format": 1, "value": 2.0, "good_steps": 0}


def test_a_scaled_step_is_three_launches_and_a_captured_one_goes_on_scaling(gpu_device):
    if not hasattr(gpu_device, "launches"):
        pytest.skip("a GPU does not count launches")
    xp = gpu_device.xp
    w, g = xp.zeros(3, F32), xp.ones(3, F32)
    opt, scale = rv.SGD(w, lr=1.0), rv.DynamicLossScale(4, growth_interval=2)
    opt.step(g * scale.value, grad_scale=scale)
    at = g * scale.value
    opt.step(at, grad_scale=scale)
    gpu_device.launches.clear()
    recorded, launch = [], gpu_device.launch
    gpu_device.is_capturing = True
    gpu_device.launch = lambda kernel, blocks, threads, args: recorded.append((kernel, blocks, threads, args.copy()))
    opt.step(at, grad_scale=scale)
    gpu_device.is_capturing, gpu_device.launch = False, launch
    assert [kernel.name for kernel, *_ in recorded] == ["measure", "judge", "step"]
    for _ in range(4):
        at[...] = g * scale.value
        for arguments in recorded:
            launch(*arguments)
    assert w.get().tolist() == [-6.0] * 3
    assert (opt.steps, float(scale.value)) == (6, 32.0)


def test_steps_without_a_scale_may_come_between(gpu):
    """Only the device knows how many steps were done, once one may have been left out."""
    for xp in (np, gpu):
        opt, scale = rv.SGD(xp.zeros(2), lr=0.1), rv.DynamicLossScale(8)
        infos = [opt.step(xp.ones(2))]
        infos.append(opt.step(xp.full(2, NAN), grad_scale=scale))
        infos.append(opt.step(xp.ones(2)))
        infos.append(opt.step(xp.ones(2), grad_scale=2.0))
        infos.append(opt.step(xp.ones(2), grad_scale=scale))
        assert [info.step for info in infos] == [1, 1, 2, 3, 4]
        assert [info.skipped for info in infos] == [False, True, False, False, False]
        assert [info.nonfinite for info in infos] == [None, {"params": (2, 0)}, None, None, {}]
        assert float(scale.value) == 4


def test_a_scale_belongs_to_one_optimizer():
    scale, first, second = rv.DynamicLossScale(8), rv.SGD(np.zeros(1), lr=0.1), rv.SGD(np.zeros(1), lr=0.1)
    with pytest.raises(ValueError, match="shape"):
        second.step(np.ones(2), grad_scale=scale)  # no step: not yet its own
    first.step(np.ones(1), grad_scale=scale)
    with pytest.raises(ValueError, match="grad_scale: this DynamicLossScale belongs to another optimizer"):
        second.step(np.full(1, NAN), grad_scale=scale)
    assert (scale.value, scale.good_steps, second.steps) == (8.0, 1, 0)
    del first
    assert second.step(np.ones(1), grad_scale=scale).step == 1


def test_a_refused_step_leaves_the_scale_as_it_was(gpu):
    for xp in (np, gpu):
        scale, opt = rv.DynamicLossScale(8), rv.SGD(xp.zeros(2), lr=0.1)
        opt.step(xp.full(2, INF), grad_scale=scale)
        with pytest.raises(ValueError, match="shape"):
            opt.step(xp.full(3, INF), grad_scale=scale)
        assert scale.state_dict() == {"format": 1, "value": 4.0, "good_steps": 0}


def test_a_run_goes_on_from_its_state_on_any_backend(gpu):
    def run(opt, scale, xp, first, last):
        for t in range(first, last):
            opt.step(xp.asarray(pattern(t)) * F32(float(scale.value)), grad_scale=scale)

    make = partial(rv.DynamicLossScale, 2**10, growth_interval=3)
    whole, scale = rv.Adam(normal(50, F32), lr=0.1), make()
    run(whole, scale, np, 1, 19)
    at, half, before = normal(50, F32), None, make()
    half = rv.Adam(at, lr=0.1)
    run(half, before, np, 1, 8)
    resumed, again = rv.Adam(gpu.asarray(at), lr=0.1), make()
    resumed.load_state_dict(half.state_dict())
    again.load_state_dict(json.loads(json.dumps(before.state_dict())))
    run(resumed, again, gpu, 8, 19)
    assert again.state_dict() == scale.state_dict()
    assert_same_state(resumed._engine, whole._engine)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"init_scale": 3}, "init_scale: expected a power of two"),
        ({"init_scale": 0}, "init_scale"),
        ({"init_scale": NAN}, "init_scale"),
        ({"init_scale": "8"}, "init_scale"),
        ({"init_scale": 2.0**101}, "init_scale"),
        ({"init_scale": 2**25}, "init_scale: expected a number from min_scale=1.0 to max_scale=16777216.0"),
        ({"growth_factor": 1.5}, "growth_factor"),
        ({"growth_factor": 1}, "growth_factor: expected a power of two >= 2"),
        ({"backoff_factor": 1}, "backoff_factor: expected a power of two <= 0.5"),
        ({"growth_interval": 0}, "growth_interval"),
        ({"growth_interval": 2.0}, "integer"),
        ({"min_scale": 10}, "min_scale"),
        ({"min_scale": 2.0**17}, "init_scale"),
    ],
)
def test_numbers_that_would_round_or_never_end_are_refused(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        rv.DynamicLossScale(**arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2"),
        ({"value": ...}, r"missing \['value'\]"),
        ({"value": 3.0}, "power of two"),
        ({"value": 2.0**30}, "max_scale"),
        ({"good_steps": -1}, "good_steps"),
        ({"good_steps": 2000}, "good_steps.*below 2000"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_loaded(change, words):
    scale = rv.DynamicLossScale(64)
    state = {**scale.state_dict(), "value": 8.0, "good_steps": 5} | change
    with pytest.raises(ValueError, match=words):
        scale.load_state_dict({key: value for key, value in state.items() if value is not ...})
    assert scale.state_dict() == {"format": 1, "value": 64.0, "good_steps": 0}


# ---------------------------------------------------------------------------------------------------------------------
# Micro-batches


def summed(gradients, weights, dtype):
    """The definition: in the compute dtype, in order, a product and a sum rounded once each."""
    compute = specification.compute_dtype(dtype).type
    total = None
    for g, weight in zip(gradients, weights, strict=True):
        term = g.astype(compute) if weight == 1 else g.astype(compute) * compute(weight)
        total = term if total is None else total + term
    return total


@every_dtype
@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1), (3, 1, 0.7), (1,), (0.1,)], ids=str)
@pytest.mark.parametrize("grad_scale", [None, 3.0])
def test_the_step_takes_the_mean_in_the_order_of_the_calls(dtype, weights, grad_scale):
    n = 4099
    gradients = [normal(n, dtype, 1 + i) for i in range(len(weights))]
    w = normal(n, dtype)
    opt = rv.AdamW(w, lr=0.1, l2=0.3, clip_norm=7.0)
    expected = w.copy()
    for g, weight in zip(gradients, weights, strict=True):
        opt.accumulate(g, weight=weight)
    info = opt.step(grad_scale=grad_scale)
    total = sum(weights, 0.0)
    scale = total if grad_scale is None else grad_scale * total
    mean = specification.unscaled(summed(gradients, weights, dtype), scale)
    norm = specification.global_norm([mean])
    hyper = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "bias_correction": 1.0}
    hyper = {name: hyper.get(name, 0.0) for name in RULES["adam"]["hyperparameters"]}
    states = [np.zeros(n, specification.compute_dtype(dtype)) for _ in range(2)]
    clip = specification.norm_scale(norm, 7.0)
    new, _ = specification.step("adam", expected, mean, states, t=1, hyper=hyper, l2=0.3, weight_decay=0.01, scale=clip)
    assert_same_bits(info.grad_norm, norm)
    assert_same_bits(w, new)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=9), st.integers(0, 3))
def test_the_mean_is_that_of_the_numbers(values, power):
    values = (values * 8)[: 2**power] if len(values) >= 2**power else [values[0]] * 2**power
    w = np.zeros(1)
    opt = rv.SGD(w, lr=1.0)
    for value in values:
        opt.accumulate(np.array([float(value)]))
    opt.step()
    assert Fraction(-w[0]) == Fraction(sum(values), len(values))


def test_float16_gradients_are_added_in_float32():
    for dtype in (F16, F32):
        w = np.zeros(1, dtype)
        opt = rv.SGD(w, lr=1.0)
        for g in (2048, 1, 1, 1, 65504, 65504, 1, 1):  # 2048 + 1 is 2048 in float16, and 131008 is infinite
            opt.accumulate(np.array([g], F16))
        opt.step()
        assert w[0] == dtype(-(131008 + 2048 + 5) / 8)


def test_none_adds_nothing_and_its_weight_counts(gpu):
    for xp in (np, gpu):
        w = {"a": xp.zeros(2), "b": xp.zeros(5000), "c": xp.ones(1, F32)}
        opt = rv.SGD(w, lr=1.0, momentum=0.5)
        opt.accumulate({"a": xp.full(2, 4.0), "b": None, "c": None})
        opt.accumulate({"a": None, "b": xp.full(5000, 8.0), "c": None})
        opt.step()
        assert w["a"].tolist() == [-2.0, -2.0]
        assert set(w["b"].tolist()) == {-4.0}
        assert opt.state_dict()["updates"] == {"a": 1, "b": 1, "c": 0}
        opt.accumulate({"a": None, "b": None, "c": xp.ones(1, F32)})
        opt.step()
        assert opt.state_dict()["updates"] == {"a": 1, "b": 1, "c": 1}
        assert w["c"].tolist() == [0.0]


def test_gradients_may_be_overwritten_after_the_call_and_are_only_read():
    w, g = np.zeros(3), np.array([2.0, 4.0, -0.0])
    opt = rv.SGD(w, lr=1.0)
    opt.accumulate(g)
    g[:] = [4.0, 0.0, -0.0]
    g.flags.writeable = False
    opt.accumulate(g)
    opt.step()
    assert_same_bits(w, np.array([-3.0, -2.0, 0.0]))


def test_sums_are_made_once_and_forgotten_after_each_step(monkeypatch):
    made, zeros = [], rv.backends.cpu.zeros
    w = np.zeros(4)
    opt = rv.SGD(w, lr=1.0)
    monkeypatch.setattr(rv.backends.cpu, "zeros", lambda *args: made.append(args) or zeros(*args))
    for _ in range(3):
        opt.accumulate(np.full(4, 1.0))
        opt.accumulate(np.full(4, 3.0))
        opt.step()
    assert made == [((4,), "float64")]
    assert w.tolist() == [-6.0] * 4


@pytest.mark.parametrize("how", ["skip", "raise", "dynamic", "discard", "load"])
def test_whatever_ends_a_step_forgets_the_sums(gpu, how):
    for xp in (np, gpu):
        w = xp.zeros(2)
        opt = rv.SGD(w, lr=1.0, nonfinite=how if how in ("skip", "raise") else "propagate")
        state = opt.state_dict()
        opt.accumulate(xp.full(2, NAN))
        opt.accumulate(xp.ones(2))
        match how:
            case "skip":
                assert opt.step().skipped
            case "raise":
                with pytest.raises(FloatingPointError, match="not finite"):
                    opt.step()
            case "dynamic":
                assert opt.step(grad_scale=rv.DynamicLossScale()).skipped
            case "discard":
                opt.discard_accumulated()
            case "load":
                opt.load_state_dict(state)
        with pytest.raises(ValueError, match=r"step: expected gradients, or opt\.accumulate\(grads\) before"):
            opt.step()
        opt.accumulate(xp.ones(2))
        opt.step()
        assert w.tolist() == [-1.0, -1.0]


def test_both_and_neither_are_refused(gpu):
    for xp in (np, gpu):
        w = xp.zeros(2)
        opt = rv.SGD(w, lr=1.0)
        with pytest.raises(ValueError, match="none were accumulated since the last step"):
            opt.step()
        opt.accumulate(xp.ones(2))
        with pytest.raises(ValueError, match="accumulated gradients are waiting"):
            opt.step(xp.ones(2))
        opt.step()
        assert w.tolist() == [-1.0, -1.0]


def test_a_checkpoint_of_half_a_step_is_refused(tmp_path):
    w = np.zeros(2)
    opt = rv.SGD(w, lr=1.0)
    opt.save(tmp_path / "run")
    opt.accumulate(np.ones(2))
    for call in (lambda: opt.save(tmp_path / "other"), opt.state_dict):
        with pytest.raises(RuntimeError, match=r"gradients are accumulated.*opt\.discard_accumulated\(\)"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    opt.load(tmp_path / "run")
    with pytest.raises(ValueError, match="none were accumulated"):
        opt.step()


@pytest.mark.parametrize("bad", [-1, NAN, INF, 2.0**127, 2.0**-127, 5e-324, "1", None])
def test_a_weight_that_is_none_is_refused_and_nothing_is_added(gpu, bad):
    for xp in (np, gpu):
        w = xp.zeros(2)
        opt = rv.SGD(w, lr=1.0)
        opt.accumulate(xp.ones(2))
        with pytest.raises((ValueError, TypeError), match=r"weight: expected (0, or )?a number"):
            opt.accumulate(xp.ones(2), weight=bad)
        opt.step()
        assert w.tolist() == [-1.0, -1.0]


ZERO_WEIGHT_RULES = [rv.SGD, rv.AdamW, rv.LAMB, rv.Lion]
every_kind_of_rule = pytest.mark.parametrize("make", ZERO_WEIGHT_RULES, ids=lambda make: make.__name__)


def half_masked(xp, dtype):
    """Parameters, gradients, and gradients that would poison whatever reads them."""
    shapes = {"a": (5000,), "b": (3, 4), "c": ()}
    w = {name: xp.asarray(normal(shape, dtype, i)) for i, (name, shape) in enumerate(shapes.items())}
    g = {name: xp.asarray(normal(shape, dtype, 9 + i)) for i, (name, shape) in enumerate(shapes.items())}
    return w, g, {name: xp.full(shape, NAN, dtype) for name, shape in shapes.items()}


@every_kind_of_rule
@every_dtype
@pytest.mark.parametrize("where", ["first", "between", "last"])
def test_a_micro_batch_of_weight_0_is_as_if_it_had_not_come(make, dtype, where):
    runs = []
    for weights in ([2.0, 3.0], {"first": [0.0, 2.0, 3.0], "between": [2.0, -0.0, 3.0], "last": [2.0, 3.0, 0]}[where]):
        w, g, poison = half_masked(np, dtype)
        opt = make(w, lr=0.1, clip_norm=0.5, nonfinite="raise")
        for _ in range(2):
            for weight in weights:
                opt.accumulate(poison if weight == 0 else {**g, "b": None} if weight == 3 else g, weight=weight)
            info = opt.step()
        runs.append([repr(info), opt.steps, [x.tobytes() for x in state_of(opt._engine)]])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
def test_a_step_whose_micro_batches_all_weigh_0_is_left_out(gpu, policy, clip_norm):
    for xp in (np, gpu):
        w, g, poison = half_masked(xp, F32)
        options = {"nonfinite": policy, "clip_norm": clip_norm, "average": rv.SWA()}
        opt = rv.AdamW(w, lr=rv.schedules.linear(0.1, 0.3, 3), **options)
        opt.step(g)
        before, updates = opt.state_dict(), opt._engine.updates
        at = rv.trees.map(lambda x: x.copy(), w)
        for count in (1, 3):
            for _ in range(count):
                opt.accumulate(poison, weight=0)
            with pytest.raises(ValueError, match="accumulated gradients are waiting"):
                opt.step(g)
            with pytest.raises(RuntimeError, match="state_dict: gradients are accumulated"):
                opt.state_dict()
            info = opt.step()
            assert (info.skipped, info.step, info.grad_norm) == (True, 1, None)
            assert info.nonfinite == (None if policy == "propagate" else {})
            assert (opt.steps, opt._engine.updates) == (1, updates)
            for name, arrays in opt.state_dict()["states"].items():
                assert_same_bits(rv.to_host(w[name]), rv.to_host(at[name]), name)
                for kind, array in arrays.items():
                    assert_same_bits(rv.to_host(array), rv.to_host(before["states"][name][kind]), kind)
            with pytest.raises(ValueError, match="none were accumulated since the last step"):
                opt.step()
        assert opt.step(g).step == 2


def test_a_parameter_whose_gradients_all_weigh_0_has_none(gpu):
    for xp in (np, gpu):
        w = {"a": xp.zeros(2), "b": xp.ones(2)}
        opt = rv.SGD(w, lr=1.0, momentum=0.5, weight_decay=0.5)
        opt.accumulate({"a": xp.ones(2), "b": xp.full(2, NAN)}, weight=0)
        opt.accumulate({"a": xp.ones(2), "b": None}, weight=2)
        opt.step()
        assert (w["a"].tolist(), w["b"].tolist()) == ([-1.0, -1.0], [1.0, 1.0])
        assert opt.state_dict()["updates"] == {"a": 1, "b": 0}


def test_a_micro_batch_of_weight_0_is_checked_all_the_same(gpu):
    for xp in (np, gpu):
        opt = rv.SGD({"w": xp.zeros(2)}, lr=1.0)
        for grads, error, text in [
            ({"w": xp.zeros(3)}, ValueError, "expected shape"),
            ({"v": xp.zeros(2)}, ValueError, "missing 'w'"),
            ({"w": xp.zeros(2, F32)}, TypeError, "expected float64"),
        ]:
            with pytest.raises(error, match=text):
                opt.accumulate(grads, weight=0)
        with pytest.raises(ValueError, match="none were accumulated"):
            opt.step()


def test_a_loss_scale_stays_where_nothing_was_weighed(gpu):
    for xp in (np, gpu):
        w, scale = xp.zeros(2, F32), rv.DynamicLossScale(2**8, growth_interval=2)
        opt = rv.SGD(w, lr=1.0)
        opt.accumulate(xp.full(2, 2.0**8, F16), weight=3)
        opt.step(grad_scale=scale)
        for _ in range(3):
            opt.accumulate(xp.full(2, INF, F16), weight=0)
            assert opt.step(grad_scale=scale).skipped
        assert float(scale.value) == 2.0**8
        opt.accumulate(xp.full(2, 2.0**8, F16))
        opt.step(grad_scale=scale)
        assert (w.tolist(), float(scale.value)) == ([-2.0, -2.0], 2.0**9)


def test_history_records_a_step_that_was_left_out(gpu):
    for xp in (np, gpu):
        w, history = {"w": xp.ones(2)}, rv.History()
        opt = rv.SGD(w, lr=1.0)
        opt.accumulate({"w": xp.full(2, NAN)}, weight=0)
        assert history.step(opt).skipped
        assert history["skipped"].values.tolist() == [1.0]
        assert history["update_norm/w"].values.tolist() == [0.0]


def test_gradients_that_do_not_fit_are_refused_and_nothing_is_added():
    w = {"a": np.zeros(2), "b": np.zeros(3, F32)}
    opt = rv.SGD(w, lr=1.0)
    good = {"a": np.ones(2), "b": np.ones(3, F32)}
    opt.accumulate(good)
    wrong = [
        ({"a": np.ones(2)}, ValueError, "missing 'b'"),
        ({**good, "b": np.ones(4, F32)}, ValueError, "expected shape"),
        ({**good, "b": np.ones(3)}, TypeError, "expected float32"),
        ({**good, "a": w["a"]}, ValueError, "shares memory with parameter 'a'"),
        ({**good, "a": opt._engine.sums[0]}, ValueError, "shares memory with parameter 'a'"),
    ]
    for grads, error, words in wrong:
        with pytest.raises(error, match=words):
            opt.accumulate(grads)
    opt.step()
    assert (w["a"].tolist(), w["b"].tolist()) == ([-1.0] * 2, [-1.0] * 3)


def test_a_parameter_that_was_replaced_is_noticed_before_the_step():
    params = {"w": np.zeros(2)}
    opt = rv.SGD(params, lr=1.0)
    opt.accumulate({"w": np.ones(2)})
    kept, params["w"] = params["w"], np.zeros(2)
    with pytest.raises(ValueError, match="is another array than the one given"):
        opt.step()
    params["w"] = kept
    opt.step()
    assert kept.tolist() == [-1.0, -1.0]


def test_no_memory_for_the_sums_changes_nothing(monkeypatch):
    w = np.zeros(2)
    opt = rv.SGD({"w": w, "v": np.zeros(2)}, lr=1.0)

    def none(shape, dtype, made=[]):  # noqa: B006
        made.append(shape)
        if len(made) % 2 == 0:
            raise MemoryError("no room")
        return np.zeros(shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(rv.backends.cpu, "zeros", none)
        with pytest.raises(MemoryError, match="no room"):
            opt.accumulate({"w": np.ones(2), "v": np.ones(2)})
    with pytest.raises(ValueError, match="none were accumulated"):
        opt.step()
    opt.accumulate({"w": np.ones(2), "v": np.ones(2)})
    opt.step()
    assert w.tolist() == [-1.0, -1.0]


def test_all_micro_batches_of_a_dynamic_scale_share_it():
    w, scale = np.zeros(1, F32), rv.DynamicLossScale(2**4, growth_interval=1)
    opt = rv.SGD(w, lr=1.0)
    for step in range(1, 4):
        for g in (1.0, 3.0):
            opt.accumulate(np.array([g * scale.value], F16))
        opt.step(grad_scale=scale)
        assert w[0] == -2.0 * step
        assert scale.value == 2.0 ** (4 + step)


@pytest.mark.parametrize("kind", [(F32, F32), (F32, F16), (F16, F16), (np.float64, np.float64)], ids=repr)
@pytest.mark.parametrize("layout", ["plain", "transposed"])
def test_on_a_device_sums_have_the_same_bits(gpu_device, kind, layout):
    xp = gpu_device.xp
    shapes = [(33, 130), (7, 3), (0, 2)] if layout == "plain" else [(33, 130), (7, 3)]
    w = [normal(shape, kind[0], i) for i, shape in enumerate(shapes)]
    here, there = [x.copy() for x in w], [strided(xp, x, layout) for x in w]
    scales = [None, 3.0, rv.DynamicLossScale(2, growth_interval=1), 2.0]
    twins = [rv.DynamicLossScale(2, growth_interval=1) if isinstance(s, rv.DynamicLossScale) else s for s in scales]
    a, b = rv.Adam(here, lr=0.1, clip_norm=1.0), rv.Adam(there, lr=0.1, clip_norm=1.0)
    for seed, (one, other) in enumerate(zip(scales, twins, strict=True)):
        for k, weight in enumerate((1.0, 0.3, 1.0)):
            g = [gentle(x.shape, kind[1], 30 * seed + 3 * k + i) for i, x in enumerate(w)]
            if (k + seed) % 2 == 0:
                g[1] = None
            a.accumulate(g, weight=weight)
            b.accumulate([None if x is None else strided(xp, x, layout) for x in g], weight=weight)
        assert repr(b.step(grad_scale=other)) == repr(a.step(grad_scale=one))
        assert_same_state(b._engine, a._engine, seed)


def test_on_a_device_a_micro_batch_is_one_launch(gpu_device):
    if not hasattr(gpu_device, "launches"):
        pytest.skip("a GPU does not count launches")
    xp = gpu_device.xp
    w = [xp.asarray(normal(50, F32, i)) for i in range(5)]
    g = [xp.asarray(normal(50, F32, 5 + i)) for i in range(5)]
    opt = rv.AdamW(w, lr=0.1)
    for _ in range(2):
        gpu_device.launches.clear()
        opt.accumulate(g)
        opt.accumulate(g, weight=2.0)
        opt.step()
    assert gpu_device.launches == ["accumulate", "accumulate", "step"]


def test_a_second_thread_is_refused(gpu):
    opt = rv.SGD(gpu.zeros(2), lr=1.0)
    with pytest.raises(RuntimeError, match="another thread is inside a step"):
        opt._engine._lock.hold(lambda: opt.accumulate(gpu.ones(2)))
    with pytest.raises(RuntimeError, match="another thread is inside a step"):
        opt._lock.hold(lambda: opt.step(gpu.ones(2), grad_scale=2.0))
    with pytest.raises(ValueError, match="none were accumulated"):
        opt.step()
