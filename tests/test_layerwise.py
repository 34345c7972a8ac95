"""Rules with a norm of each tensor: LARS, LAMB and NovoGrad; and what holds for them alone."""

import copy
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ravine as rv
from tests.conftest import LAYERWISE, RULES, assert_same_bits, engine, hyper_sets
from tests.test_rules import specified

#: Every one with numbers at which each term counts.
OPTIMIZERS = {
    "lars": (rv.LARS, {"trust_coefficient": 0.3, "eps": 0.01, "momentum": 0.8}),
    "lamb": (rv.LAMB, {"betas": (0.8, 0.97), "eps": 1e-3}),
    "novograd": (rv.NovoGrad, {"betas": (0.8, 0.97), "eps": 1e-3}),
}
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]

every_optimizer = pytest.mark.parametrize(("cls", "arguments"), OPTIMIZERS.values(), ids=OPTIMIZERS)


def numbers(shape, dtype=np.float64, seed=0):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def norm(x):
    return np.linalg.norm(np.asarray(x, np.float64).reshape(-1))


def test_these_are_all_rules_with_norms():
    assert OPTIMIZERS.keys() == LAYERWISE


# What the papers say.


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_first_step_of_lars_is_a_fraction_of_the_tensor_whatever_the_gradient_is(dtype, scale):
    w, g = numbers((30, 40), dtype), numbers((30, 40), dtype, 1) * dtype(scale)
    before = w.copy()
    rv.LARS(w, lr=0.5, trust_coefficient=0.01).step(g)
    step = before.astype(np.float64) - w
    np.testing.assert_allclose(norm(step), 0.5 * 0.01 * norm(before), rtol=1e-4 if dtype == np.float32 else 1e-13)
    np.testing.assert_allclose(step / norm(step), g / norm(g), atol=1e-4 if dtype == np.float32 else 1e-12)


def test_the_decay_of_lars_counts_above_and_below_the_line():
    w, g = np.array([3.0, 4.0]), np.array([0.0, 2.0])  # norms 5 and 2
    rv.LARS(w, lr=0.5, trust_coefficient=0.7, weight_decay=0.1, eps=1.0).step(g)
    # 0.5·0.7·5/(2 + 0.1·5 + 1) = 0.5
    np.testing.assert_allclose(w, [3 - 0.5 * 0.3, 4 - 0.5 * 2.4], rtol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_every_step_of_lamb_is_a_fraction_of_the_tensor(decay):
    w = numbers(5000)
    opt = rv.LAMB(w, lr=0.03, weight_decay=decay)
    for seed in range(5):
        before = w.copy()
        opt.step(numbers(5000, seed=seed) * 10.0**seed)
        np.testing.assert_allclose(norm(w - before), 0.03 * norm(before), rtol=1e-12)


def test_novograd_divides_by_a_running_norm_that_starts_at_the_first():
    w = np.zeros(2)
    opt = rv.NovoGrad(w, lr=1.0, betas=(0.5, 0.75), eps=0.0, weight_decay=0.0)
    opt.step(np.array([3.0, -4.0]))
    np.testing.assert_allclose(w, [-0.6, 0.8], rtol=1e-15)
    opt.step(np.array([0.0, 11.0]))  # v = (3·25 + 121)/4 = 49
    m = 0.5 * np.array([0.6, -0.8]) + np.array([0.0, 11.0]) / 7
    np.testing.assert_allclose(w, [-0.6 - m[0], 0.8 - m[1]], rtol=1e-14)
    assert opt.state_dict()["states"]["params"]["v"] == pytest.approx(49.0, rel=1e-15)


def test_the_decay_of_novograd_lives_inside_its_momentum():
    w = np.array([2.0])
    opt = rv.NovoGrad(w, lr=0.5, betas=(0.5, 0.9), eps=0.0, weight_decay=0.25)
    opt.step(np.array([3.0]))  # m = 1 + 0.5
    assert w == 1.25
    opt.step(np.array([0.0]))  # m = 0.75 + 0.3125
    assert w == 1.25 - 0.5 * 1.0625


# Tensors of every size.

#: Powers of two of parameters and of gradients, whose squares leave float64's range.
FAR = [(a, b) for a in (-600, 0, 600) for b in (-600, 0, 600)]


def places(gpu):
    """Here, strided, and on a device."""
    return [np.array, lambda x: np.repeat(x, 2, -1)[..., ::2], gpu.asarray]


@pytest.mark.parametrize(("of_w", "of_g"), FAR)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lars_moves_a_fraction_of_tensors_of_every_size(gpu, of_w, of_g, decay):
    w, gradients = np.round(numbers((70, 90)) * 64), [np.round(numbers((70, 90), seed=k) * 64) for k in (1, 2)]

    def trained(put, of_w, of_g):
        p = put(np.ldexp(w, of_w))
        opt = rv.LARS(
            p, lr=0.5, trust_coefficient=0.7, momentum=0.5, eps=0.0, weight_decay=np.ldexp(decay, of_g - of_w)
        )
        for g in gradients:
            opt.step(put(np.ldexp(g, of_g)))
        return rv.to_host(p)

    if decay and abs(of_g - of_w) > 1000:
        decay = 0.0  # there is no such number
    ordinary = trained(np.array, 0, 0)
    for put in places(gpu):
        assert_same_bits(trained(put, of_w, of_g), np.ldexp(ordinary, of_w))


@pytest.mark.parametrize("of_w", [-600, 600])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_moves_a_fraction_of_tensors_of_every_size(gpu, of_w, decay):
    w, gradients = np.round(numbers((70, 90)) * 64), [numbers((70, 90), seed=k) for k in (1, 2)]

    def trained(put, power):
        p = put(np.ldexp(w, power))
        opt = rv.LAMB(p, lr=0.5, weight_decay=np.ldexp(decay, -power))
        for g in gradients:
            opt.step(put(g))
        return rv.to_host(p)

    ordinary = trained(np.array, 0)
    for put in places(gpu):
        assert_same_bits(trained(put, of_w), np.ldexp(ordinary, of_w))


def test_lars_steps_by_the_norms_of_huge_and_tiny_numbers(gpu):
    for put in places(gpu):
        for w, g in [([3.0, 4.0], [3e200, 4e200]), ([3e200, 4e200], [3.0, 4.0]), ([3e-200, 4e-200], [6.0, 8.0])]:
            p = put(np.array(w))
            rv.LARS(p, lr=0.5, trust_coefficient=0.1, eps=0.0, nonfinite="raise").step(put(np.array(g)))
            np.testing.assert_allclose(rv.to_host(p), 0.95 * np.array(w), rtol=1e-15)


# The ratio is 1 where there is none.


@pytest.mark.parametrize("nothing", ["w", "g", "both"])
def test_where_a_norm_is_0_the_ratio_is_1(nothing):
    w = np.zeros(3) if nothing != "g" else np.array([1.0, -2.0, 0.5])
    g = np.zeros(3) if nothing != "w" else np.array([1.0, -2.0, 0.5])
    p = w.copy()
    rv.LARS(p, lr=0.5, trust_coefficient=0.1, weight_decay=0.5).step(g)
    np.testing.assert_allclose(p, w - 0.5 * (g + 0.5 * w), rtol=1e-15)
    q = w.copy()
    rv.LAMB(q, lr=0.5, eps=0.0).step(g)
    np.testing.assert_allclose(q, w - 0.5 * np.sign(g), rtol=1e-15)
    r = w.copy()
    rv.NovoGrad(r, lr=0.5, eps=0.0).step(g)  # has no ratio: g counts as 0 where its norm is
    np.testing.assert_allclose(r, w - (0.5 * g / norm(g) if norm(g) else 0.0), rtol=1e-15)


def test_tensors_that_are_excluded_take_the_plain_step():
    _, gradients = None, [numbers(300, seed=seed) for seed in range(1, 20)]
    for one, other in [
        (lambda w: rv.LARS(w, lr=0.1, adapt=False), lambda w: rv.SGD(w, lr=0.1, momentum=0.9, form="velocity")),
        (
            lambda w: rv.LAMB(w, lr=0.1, adapt=False, weight_decay=0.2, eps=1e-8),
            lambda w: rv.AdamW(w, lr=0.1, weight_decay=0.2),
        ),
    ]:
        a, b = numbers(300), numbers(300)
        first, second = one(a), other(b)
        for g in gradients:
            first.step(g)
            second.step(g)
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_group_can_be_excluded(name):
    cls, arguments = OPTIMIZERS[name]
    params = {"w": numbers((20, 30)), "b": numbers(30, seed=1)}
    alone, grads = copy.deepcopy(params), {"w": numbers((20, 30), seed=2), "b": numbers(30, seed=3)}
    opt = cls(params, lr=0.1, weight_decay=0.1, groups=[("b", {"adapt": False, "weight_decay": 0.0})], **arguments)
    w = cls(alone["w"], lr=0.1, weight_decay=0.1, **arguments)
    b = cls(alone["b"], lr=0.1, adapt=False, **arguments)
    for _ in range(3):
        opt.step(grads)
        w.step(grads["w"])
        b.step(grads["b"])
    assert_same_bits(params["w"], alone["w"])
    assert_same_bits(params["b"], alone["b"])


def test_what_has_no_ratio_cannot_be_excluded_from_it():
    with pytest.raises(TypeError, match="'adapt'"):
        rv.NovoGrad(np.ones(2), adapt=False)


# Bits.


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("rule", sorted(LAYERWISE))
def test_large_tensors_equal_the_specification_for_any_threads_and_strides(rule, dtype):
    hyper, pipeline = next(hyper_sets(rule)), {"weight_decay": 0.13, "l2": 0.07, "clip_value": 0.9}
    shape = (91, 400)  # nine blocks of the tree and a part of one
    w, gradients = numbers(shape, dtype), [numbers(shape, dtype, seed) for seed in (1, 2)]
    expected, states = specified(rule, w, gradients, hyper=hyper, clip_norm=70.0, **pipeline)
    for threads, lay in [(1, np.ascontiguousarray), (2, np.ascontiguousarray), (3, np.asfortranarray)]:
        rv.set_num_threads(threads)
        p = lay(w.copy())
        made = engine(rule, p, hyper, clip_norm=70.0, **pipeline)
        for g in gradients:
            made.step(lay(g))
        assert_same_bits(p, expected, f"{threads} threads")
        for got, state in zip(made.states[0], states, strict=True):
            assert_same_bits(got, state)


@every_optimizer
def test_a_tensor_steps_among_others_as_it_does_alone(cls, arguments):
    shapes = [(3,), (4096,), (0, 2), (70, 130), (), (9000,)]
    params = [numbers(shape, DTYPES[i % 3], i) for i, shape in enumerate(shapes)]
    grads = [numbers(p.shape, p.dtype, 10 + i) for i, p in enumerate(params)]
    alone = [p.copy() for p in params]
    opt = cls(params, lr=0.1, weight_decay=0.1, **arguments)
    others = [cls(p, lr=0.1, weight_decay=0.1, **arguments) for p in alone]
    for _ in range(3):
        opt.step(grads)
        for other, g in zip(others, grads, strict=True):
            other.step(g)
    for p, q in zip(params, alone, strict=True):
        assert_same_bits(p, q)


@every_optimizer
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_cutting_a_tensor_changes_the_step_and_reshaping_does_not(cls, arguments, data):
    n = data.draw(st.integers(2, 40))
    cut = data.draw(st.integers(1, n - 1))
    w, g = numbers((2, n)), numbers((2, n), seed=1)
    shaped, flat, pieces = w.copy(), w.reshape(-1).copy(), [w[:, :cut].copy(), w[:, cut:].copy()]
    cls(shaped, lr=0.1, **arguments).step(g)
    cls(flat, lr=0.1, **arguments).step(g.reshape(-1))
    cls(pieces, lr=0.1, **arguments).step([g[:, :cut].copy(), g[:, cut:].copy()])
    assert_same_bits(shaped.reshape(-1), flat)
    assert not np.array_equal(np.concatenate(pieces, 1), shaped)


# State.


def test_the_number_that_novograd_keeps_is_float64_for_every_dtype():
    for dtype in DTYPES:
        w = np.ones(100, dtype)
        opt = rv.NovoGrad(w, lr=0.01)
        opt.step(np.full(100, 3.0, dtype))
        v = opt.state_dict()["states"]["params"]["v"]
        assert (v.dtype, v.shape) == (np.float64, ())
        assert v == pytest.approx(900.0, rel=1e-15)


def test_a_norm_beyond_float32_is_no_trouble():
    g = np.full(10_000, 3e38, np.float32)
    for cls, arguments in [OPTIMIZERS["lars"], OPTIMIZERS["novograd"]]:
        w = np.ones(10_000, np.float32)
        info = cls(w, lr=0.1, nonfinite="raise", **arguments).step(g)
        assert not info.skipped
        assert np.isfinite(w).all()


@every_optimizer
def test_a_missing_gradient_and_a_skipped_step_leave_everything(cls, arguments):
    params = {"a": numbers(50), "b": numbers((4, 5), np.float32, 1)}
    opt = cls(params, lr=0.1, nonfinite="skip", **arguments)
    opt.step({name: numbers(p.shape, p.dtype, 5) for name, p in params.items()})

    def everything(*names):
        state = opt.state_dict()
        kept = {name: [x.tobytes() for x in state["states"][name].values()] for name in names}
        return kept, {name: params[name].tobytes() for name in names}, {n: state["updates"][n] for n in names}

    before = everything("b")
    opt.step({"a": numbers(50, seed=6), "b": None})
    assert everything("b") == before
    before = everything("a", "b")
    assert opt.step({"a": np.full(50, np.nan), "b": params["b"].copy()}).skipped
    assert everything("a", "b") == before


@every_optimizer
def test_saved_to_a_file_a_run_goes_on_bit_for_bit(cls, arguments, tmp_path):
    def start():
        return {"a": numbers((40, 50)), "b": [numbers(5000, np.float16, 1), numbers((), np.float32, 2)]}

    def run(opt, first, last):
        for seed in range(first, last):
            opt.step(rv.trees.map(lambda w: numbers(w.shape, w.dtype, seed), start()))  # noqa: B023

    whole, half, other = start(), start(), rv.trees.map(np.zeros_like, start())
    run(cls(whole, lr=0.1, **arguments), 0, 6)
    opt = cls(half, lr=0.1, **arguments)
    run(opt, 0, 3)
    opt.save(tmp_path / "run.safetensors")
    resumed = cls(other, lr=0.1, **arguments)
    resumed.load(tmp_path / "run.safetensors")
    run(resumed, 3, 6)
    for x, y in zip(rv.trees.leaves(other).values(), rv.trees.leaves(whole).values(), strict=True):
        assert_same_bits(x, y)


def test_a_state_of_another_shape_is_refused():
    p, g = np.ones(3), np.ones(3)
    with pytest.raises(ValueError, match=r"v: expected float64 of shape \(\), got float64 of shape \(3,\)"):
        rv.functional.novograd_(p, g, np.zeros(3), np.zeros(3), step=1)
    with pytest.raises(ValueError, match=r"v: expected float64 of shape \(\), got float32 of shape \(\)"):
        rv.functional.novograd_(p, g, np.zeros(3), np.zeros((), np.float32), step=1)
    assert_same_bits(p, np.ones(3))
    assert RULES["novograd"]["states"] == {"m": "first", "v": "scalar"}


# On a device.

#: Of a parameter and its gradient.
KINDS = [(d, d) for d in DTYPES] + [(np.float32, np.float16), (np.float32, ml_dtypes.bfloat16)]
PIPELINES = [
    {},
    {"weight_decay": 0.1, "l2": 0.05, "maximize": True, "clip_value": 1.5, "clip_norm": 90.0, "nonfinite": "skip"},
]


def on_device(xp, tree, lay=lambda x: x):
    return rv.trees.map(lambda x: lay(xp.asarray(x)), tree)


def assert_same(opt, other, here, there):
    for (name, x), y in zip(rv.trees.leaves(there).items(), rv.trees.leaves(here).values(), strict=True):
        assert_same_bits(x.get(), y, name)
    assert opt._engine.updates == other._engine.updates
    for name, states in other.state_dict()["states"].items():
        for kind, state in states.items():
            assert_same_bits(opt.state_dict()["states"][name][kind].get(), state, f"{kind} of {name}")


@pytest.mark.parametrize("pipeline", PIPELINES, ids=["alone", "all"])
@every_optimizer
def test_a_device_gives_the_same_bits_for_all_dtypes_sizes_and_strides(gpu, cls, arguments, pipeline):
    sizes = [(3,), (0, 4), (4097,), (130, 70), (), (64,), (1000,)]
    params = {f"p{i}": numbers(size, KINDS[i % len(KINDS)][0], i) for i, size in enumerate(sizes)}
    grads = [
        {f"p{i}": numbers(size, KINDS[i % len(KINDS)][1], 10 * k + i) for i, size in enumerate(sizes)}
        for k in range(1, 4)
    ]
    grads[1]["p3"] = None  # from then on its t differs
    groups = [("p4", {"lr": 0.03}), ("p2", {"lr": 0.05})]
    transposed = [lambda x: x, lambda x: gpu.ascontiguousarray(x.T).T if x.ndim == 2 else x]
    for lay in transposed:
        here, there = copy.deepcopy(params), on_device(gpu, params, lay)
        a = cls(here, lr=0.1, groups=groups, **arguments, **pipeline)
        b = cls(there, lr=0.1, groups=groups, **arguments, **pipeline)
        for g in grads:
            expected = a.step(g)
            got = b.step({name: None if x is None else lay(gpu.asarray(x)) for name, x in g.items()})
            assert repr(got) == repr(expected)
            assert_same(b, a, here, there)
        assert all(np.isfinite(p.astype(np.float64)).all() for p in here.values())


@every_optimizer
def test_a_device_gives_the_same_bits_at_every_length_and_alignment(gpu, cls, arguments):
    around, gradient = numbers(9000, np.float32), numbers(9000, np.float32, 1)
    for n in [1, 2, 31, 63, 64, 65, 127, 129, 255, 257, 4095, 4096, 4097, 8200]:
        for at in (0, 1, 2):
            w, g = around[at : at + n].copy(), gradient[3 : n + 3]
            there = gpu.asarray(around)[at : at + n]
            a, b = cls(w, lr=0.1, weight_decay=0.1, **arguments), cls(there, lr=0.1, weight_decay=0.1, **arguments)
            for _ in range(2):
                a.step(g)
                b.step(gpu.asarray(gradient)[3 : n + 3])
            assert_same(b, a, w, there)


@every_optimizer
def test_a_device_gives_each_of_many_tensors_its_own_coefficients(gpu, cls, arguments):
    params = [numbers(n, seed=n) for n in range(1, 60)]  # more than there are blocks of threads
    grads = [numbers(n, seed=100 + n) for n in range(1, 60)]
    here, there = copy.deepcopy(params), [gpu.asarray(p) for p in params]
    a, b = cls(here, lr=0.1, **arguments), cls(there, lr=0.1, **arguments)
    for _ in range(2):
        a.step(grads)
        b.step([gpu.asarray(g) for g in grads])
    assert_same(b, a, here, there)


@every_optimizer
def test_a_device_leaves_everything_in_a_skipped_step(gpu, cls, arguments):
    w = numbers(500, np.float32)
    there = gpu.asarray(w)
    a, b = cls(w, lr=0.1, nonfinite="skip", **arguments), cls(there, lr=0.1, nonfinite="skip", **arguments)
    for seed, bad in enumerate((False, False, True, False)):
        g = numbers(500, np.float32, seed)
        g[77] = np.inf if bad else 1.0
        assert repr(b.step(gpu.asarray(g))) == repr(a.step(g))
        assert_same(b, a, w, there)


@every_optimizer
def test_a_captured_step_of_a_device_can_be_replayed(gpu_device, cls, arguments):
    if not hasattr(gpu_device, "is_capturing"):
        pytest.skip("on a GPU: test_cuda_graph.py")
    w, g = numbers(5000, np.float32), numbers(5000, np.float32, 1)
    there, gradient = gpu_device.xp.asarray(w), gpu_device.xp.asarray(g)
    a, b = cls(w, lr=0.1, **arguments), cls(there, lr=0.1, **arguments)
    b.step(gradient)
    recorded, launch = [], gpu_device.launch
    gpu_device.is_capturing = True
    gpu_device.launch = lambda kernel, blocks, threads, args: recorded.append((kernel, blocks, threads, args.copy()))
    b.step(gradient)
    gpu_device.is_capturing, gpu_device.launch = False, launch
    assert [kernel.name for kernel, *_ in recorded] == ["gauge", "settle", "step"]
    for _ in range(3):
        for call in recorded:
            launch(*call)
    for _ in range(4):
        a.step(g)
    assert_same(b, a, w, there)


@pytest.mark.parametrize("rule", sorted(LAYERWISE))
def test_functions_of_a_device_give_the_same_bits(gpu, rule):
    for hyper in hyper_sets(rule):
        p, g = numbers((70, 90), np.float32), numbers((70, 90), np.float32, 1)
        states = [np.abs(s) for s in (numbers(p.shape, np.float32, 2), numbers(p.shape, np.float32, 3))]
        kinds = RULES[rule]["states"]
        states = [np.array(70.0) if kind == "scalar" else s for s, kind in zip(states, kinds.values(), strict=False)]
        there = [gpu.asarray(x) for x in (p, g, *states)]
        values = [*hyper.items(), ("weight_decay", 0.2), ("l2", 0.1), ("maximize", 1.0)]
        for t in (1, 2, 1_000_003):
            rv._core.apply(rule, values, t, p, g, list(zip(kinds, states, strict=True)))
            named = list(zip(kinds, there[2:], strict=True))
            rv.backends.backend_of(there[0]).apply(rule, values, t, there[0], there[1], named)
            for got, expected in zip(there, (p, g, *states), strict=True):
                assert_same_bits(got.get(), expected, f"t = {t}")
        assert np.isfinite(p).all()


@pytest.mark.parametrize("make", [partial(rv.LARS, lr=0.3), partial(rv.LAMB, lr=0.05), partial(rv.NovoGrad, lr=0.05)])
@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_norms_are_of_the_exact_copy_on_every_backend(make, half, gpu):
    rng = np.random.default_rng(3)
    start, gradients = rng.standard_normal((70, 61)).astype(half), rng.standard_normal((4, 70, 61)).astype(half)
    single, here, there = start.astype(np.float32), start.copy(), gpu.asarray(start.copy())
    options = {"weight_decay": 0.1}
    exact = make(single, **options)
    with_copy = [make(w, master="float32", **options) for w in (here, there)]
    for g in gradients:
        exact.step(g.astype(np.float32))
        with_copy[0].step(g)
        with_copy[1].step(gpu.asarray(g))
    assert_same_bits(here, single.astype(half))
    assert_same_bits(there.get(), here)
    assert_same_bits(with_copy[1].state_dict()["states"]["params"]["master"].get(), single)
