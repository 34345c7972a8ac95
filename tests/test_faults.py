"""What users do wrong, and what each gets: right results, or an error that names the cure before anything changes.

The numbers in the tests' names are the lines of the project's table of faults.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from functools import partial

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from tests.conftest import assert_same_bits

NAN, INF = float("nan"), float("inf")
F32 = np.float32

SGDS = {
    "sgd": partial(rv.SGD, lr=0.1),
    "momentum": partial(rv.SGD, lr=0.1, momentum=0.9, dampening=0.5),
    "nesterov": partial(rv.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "average": partial(rv.SGD, lr=0.1, momentum=0.9, form="average"),
    "velocity": partial(rv.SGD, lr=0.1, momentum=0.9, form="velocity"),
    "velocity_nesterov": partial(rv.SGD, lr=0.1, momentum=0.9, form="velocity", nesterov=True),
    "heavy_ball": partial(rv.SGD, lr=0.1, momentum=0.9, form="heavy_ball"),
    "lion": partial(rv.Lion, lr=0.1),
    "sign_sgd": partial(rv.SignSGD, lr=0.1),
    "signum": partial(rv.Signum, lr=0.1),
    "adamax": partial(rv.Adamax, lr=0.1),
    "rprop": partial(rv.Rprop, lr=0.1),
    "asgd": partial(rv.ASGD, lr=0.1),
    "schedule_free_sgd": partial(rv.ScheduleFreeSGD, lr=0.1),
}
ADAPTIVE = {
    "adagrad": partial(rv.Adagrad, lr=0.1),
    "adagrad_mean": partial(rv.Adagrad, lr=0.1, accumulate="mean"),
    "rmsprop": partial(rv.RMSprop, lr=0.1),
    "rmsprop_first": partial(rv.RMSprop, lr=0.1, first="square"),
    "rmsprop_inside": partial(rv.RMSprop, lr=0.1, eps_inside=True),
    "rmsprop_centered": partial(rv.RMSprop, lr=0.1, centered=True),
    "rmsprop_momentum": partial(rv.RMSprop, lr=0.1, momentum=0.9),
    "rmsprop_centered_momentum": partial(rv.RMSprop, lr=0.1, centered=True, momentum=0.9),
    "rmsprop_momentum_before": partial(rv.RMSprop, lr=0.1, momentum_before=0.9),
    "adam": partial(rv.Adam, lr=0.1),
    "adam_inside": partial(rv.Adam, lr=0.1, eps_inside=True),
    "adam_hat": partial(rv.Adam, lr=0.1, eps_hat=True),
    "adam_uncorrected": partial(rv.Adam, lr=0.1, bias_correction=False),
    "adam_amsgrad": partial(rv.Adam, lr=0.1, amsgrad=True),
    "adamw": partial(rv.AdamW, lr=0.1),
    "adadelta": partial(rv.Adadelta, lr=0.1),
    "nadam": partial(rv.NAdam, lr=0.1),
    "adabelief": partial(rv.AdaBelief, lr=0.1),
    "yogi": partial(rv.Yogi, lr=0.1),
    "ademamix": partial(rv.AdEMAMix, lr=0.1),
    "adopt": partial(rv.ADOPT, lr=0.1),
    "adan": partial(rv.Adan, lr=0.1),
}
#: Adaptive, but not in every update, or not in all that they add to the parameter.
PARTLY = {
    "radam": partial(rv.RAdam, lr=0.1),
    "schedule_free_adamw": partial(rv.ScheduleFreeAdamW, lr=0.1),
    "madgrad": partial(rv.MADGRAD, lr=0.1),
}
ALL = SGDS | ADAPTIVE | PARTLY

every_optimizer = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
every_adaptive = pytest.mark.parametrize("make", ADAPTIVE.values(), ids=ADAPTIVE)


def arrays_of(tree):
    return [leaf for leaf in rv.trees.leaves(tree).values() if leaf is not None]


def snapshot(opt, *trees):
    states = [state.tobytes() for states in opt._engine.states for state in states]
    return [a.tobytes() for tree in trees for a in arrays_of(tree)], states, (opt.steps, opt._engine.updates)


@contextlib.contextmanager
def refused(error, *words, opt=None, keep=()):
    """The block raises, the message has all the words, and neither the trees in ``keep`` nor the optimizer changed."""
    look = (lambda: snapshot(opt, *keep)) if opt else (lambda: [a.tobytes() for tree in keep for a in arrays_of(tree)])
    before = look()
    with pytest.raises(error) as caught:
        yield
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert look() == before


def values(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def python(code, timeout=60, **env):
    """Run code in a fresh interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    return done.stdout.strip()


# 1: memory layouts


def in_gaps(a, *steps):
    """The values of ``a`` as a strided view into a larger array of sevens."""
    base = np.full([n * step for n, step in zip(a.shape, steps, strict=True)], 7, a.dtype)
    view = base[tuple(slice(None, None, step) for step in steps)]
    view[...] = a
    return view


def flipped(a):
    return np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1]


LAYOUTS = {
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "fortran": np.asfortranarray,
    "strided": lambda a: in_gaps(a, 2, 3),
    "one_column_in_two": lambda a: in_gaps(a, 1, 2),
    "negative_strides": flipped,
    "one_negative_stride": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "columns_of_a_wider_matrix": lambda a: np.concatenate([a, a], axis=1)[:, : a.shape[1]],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@every_optimizer
def test_fault_01_not_contiguous_gives_the_bits_of_contiguous(make, layout):
    for dtype in (np.float64, F32, np.float16):
        w, g = values((37, 53), dtype), values((37, 53), dtype, seed=1)
        plain, strided = w.copy(), layout(w)
        assert not strided.flags.c_contiguous
        options = {"l2": 0.1, "clip_norm": 3.0, "weight_decay": 0.1, "nonfinite": "skip"}
        a, b = make(plain, **options), make(strided, **options)
        for gradient in (layout(g), g):
            info_a, info_b = a.step(g), b.step(gradient)
            assert info_a.grad_norm == info_b.grad_norm
        assert strided.tobytes() == plain.tobytes()
        np.testing.assert_equal(b.state_dict(), a.state_dict())


def test_fault_01_large_arrays_in_many_chunks_too():
    w, g = values((300, 700), F32), values((300, 700), F32, seed=1)
    plain = w.copy()
    opt = rv.AdamW(plain, clip_norm=1.0)
    opt.step(g)
    for layout in LAYOUTS.values():
        strided = layout(w)
        rv.AdamW(strided, clip_norm=1.0).step(layout(g))
        assert strided.tobytes() == plain.tobytes()


def test_fault_01_the_gaps_of_a_strided_parameter_keep_their_values():
    w = in_gaps(np.ones((5, 6)), 2, 3)
    base, gap = w.base, np.ones(w.base.shape, bool)
    gap[::2, ::3] = False
    rv.Adam(w, lr=0.5).step(np.ones((5, 6)))
    assert (base[gap] == 7).all()
    assert (w != 1).all()


def test_fault_01_a_broadcast_gradient_is_only_read_and_works():
    a, b = np.zeros((3, 4)), np.zeros((3, 4))
    row = np.arange(4.0)
    rv.SGD(a, lr=1.0).step(np.broadcast_to(row, (3, 4)))
    rv.SGD(b, lr=1.0).step(np.tile(row, (3, 1)))
    np.testing.assert_array_equal(a, b)


# 2: memory that cannot be a parameter


def broadcast(writeable=True):
    return np.lib.stride_tricks.as_strided(np.ones(3), (4, 3), (0, 8), writeable=writeable)


def read_only():
    w = np.ones(3)
    w.flags.writeable = False
    return w


UNWRITABLE = {
    "broadcast": (broadcast, "share memory", "x.copy()"),
    "broadcast_to": (lambda: np.broadcast_to(np.ones(3), (4, 3)), "read-only", "x.copy()"),
    "sliding_window": (
        lambda: np.lib.stride_tricks.sliding_window_view(np.ones(9), 3, writeable=True),
        "share memory",
        "x.copy()",
    ),
    "read_only": (read_only, "read-only", "x.copy()", "writeable = True"),
    "read_only_buffer": (lambda: np.frombuffer(bytes(24)), "read-only", "x.copy()"),
}


@pytest.mark.parametrize("make, words", [(m, w) for m, *w in UNWRITABLE.values()], ids=UNWRITABLE)
def test_fault_02_memory_that_cannot_be_written_apart_is_refused(make, words):
    params = {"fine": np.ones(2), "layer": [make()]}
    with refused(ValueError, "params['layer.0']", *words, keep=[params]):
        rv.Adam(params)


BASE = np.zeros(12)
SHARED = {
    "the_same_array_twice": {"a": BASE, "b": [BASE]},
    "two_views_of_all": {"a": BASE[:], "b": [BASE.reshape(3, 4)]},
    "overlapping_views": {"a": BASE[:7], "b": [BASE[6:]]},
    "overlapping_strided_views": {"a": BASE[::2], "b": [BASE[::3]]},
    "a_view_in_a_view": {"a": BASE, "b": [BASE[5:6]]},
    "another_dtype": {"a": BASE, "b": [BASE.view(F32)]},
}


@pytest.mark.parametrize("params", SHARED.values(), ids=SHARED)
def test_fault_02_parameters_that_share_memory_are_refused(params):
    with refused(ValueError, "params['a']", "params['b.0']", "share memory", "pass it once", keep=[params]):
        rv.SGD(params, lr=0.1)


def test_fault_02_duplicates_across_groups_are_refused():
    w = np.ones(3)
    with refused(ValueError, "params['0']", "params['1.w']", "share memory", keep=[w]):
        rv.SGD([{"params": w}, {"params": {"w": w}, "lr": 0.5}], lr=0.1)


def test_fault_02_columns_of_one_matrix_are_two_parameters():
    matrix = np.zeros((3, 5))
    opt = rv.SGD({"a": matrix[:, :2], "b": matrix[:, 2:]}, lr=1.0)
    opt.step({"a": np.full((3, 2), 1.0), "b": np.full((3, 3), 2.0)})
    np.testing.assert_array_equal(matrix, np.tile([-1.0, -1, -2, -2, -2], (3, 1)))


def test_fault_02_interleaved_views_are_two_parameters():
    both = np.zeros(10)
    rv.SGD([both[::2], both[1::2]], lr=1.0).step([np.full(5, 1.0), np.full(5, 2.0)])
    np.testing.assert_array_equal(both, np.tile([-1.0, -2.0], 5))


# 3: a gradient that the step would overwrite


def sharing_gradients():
    w, other = np.ones(8), np.ones(20)
    params = {"w": w, "layer": {"v": other}}
    opt = rv.Adam(params)
    m, v = opt._engine.states[0]
    far = opt._engine.states[1][1]
    return (
        params,
        opt,
        {
            "its_parameter": w,
            "its_parameter_reversed": w[::-1],
            "a_part_of_another_parameter": other[5:13],
            "every_other_element": other[::2][:8],
            "its_first_moment": m,
            "its_second_moment": v,
            "a_state_of_another_parameter": far[12:],
        },
    )


@pytest.mark.parametrize("case", sharing_gradients()[2])
def test_fault_03_a_gradient_in_memory_that_the_step_writes_is_refused(case):
    params, opt, gradients = sharing_gradients()
    owner = "layer.v" if "another" in case or case == "every_other_element" else "w"
    with refused(ValueError, "grads['w']", "shares memory", f"'{owner}'", "pass a copy", opt=opt, keep=[params]):
        opt.step({"w": gradients[case], "layer": {"v": np.ones(20)}})


def test_fault_03_two_parameters_may_have_one_gradient():
    params, g = {"a": np.zeros(3), "b": np.zeros(3)}, np.ones(3)
    rv.SGD(params, lr=1.0).step({"a": g, "b": g})
    np.testing.assert_array_equal([params["a"], params["b"]], -np.ones((2, 3)))


def test_fault_03_a_gradient_between_the_elements_of_its_parameter_is_not_overwritten():
    both = np.arange(10.0)
    rv.SGD([both[::2]], lr=1.0).step([both[1::2]])
    np.testing.assert_array_equal(both, [-1, 1, -1, 3, -1, 5, -1, 7, -1, 9])


def same_start_but_wider():
    memory = np.zeros(6 * 64, np.uint8)
    parameter = memory[2 * 64 :].view(F32)
    return parameter, memory[: 2 * 64].view(np.float16), memory[: 4 * 64].view(F32)


def same_start_but_dense():
    memory = np.zeros(128)
    return memory[1::2], memory[::2], memory[:64]


def same_start_but_not_repeated():
    memory = np.zeros(65)
    return memory[1:], np.broadcast_to(memory[:1], 64), memory[:64]


@pytest.mark.parametrize("case", [same_start_but_wider, same_start_but_dense, same_start_but_not_repeated])
def test_fault_03_also_one_that_starts_where_an_innocent_one_started_before(case):
    parameter, innocent, guilty = case()
    opt = rv.SGD({"w": parameter}, lr=0.1)
    opt.step({"w": innocent})
    with refused(ValueError, "grads['w']", "shares memory", opt=opt, keep=[parameter]):
        opt.step({"w": guilty})


def test_fault_03_gradients_dropped_by_another_thread_stay_alive_during_the_step():
    # Of three tries one is enough; the arrays are so large that their memory goes back to the system at once.
    python("""
        import threading, time
        import numpy as np, ravine as rv
        n = 20_000_000
        params = {"w": np.zeros(n, np.float32)}
        opt = rv.Adam(params, lr=1.0, eps=0.0)
        opt.step({"w": np.ones(n, np.float32)})
        for _ in range(3):
            grads = {"w": np.ones(n, np.float32)}
            thread = threading.Thread(target=lambda: opt.step(grads))
            thread.start()
            time.sleep(0.005)
            grads.clear()
            thread.join()
        assert opt.steps == 4 and np.allclose(params["w"], -4)
    """)


# 4: sizes


@every_optimizer
def test_fault_04_empty_0d_and_one_element_arrays_work(make):
    def tree(seed):
        return {
            "first": np.zeros(0),
            "scalar": values((), seed=seed)[...],
            "middle": np.zeros((3, 0, 2)),
            "one": values(1, seed=seed),
            "matrix": values((2, 3), seed=seed),
            "last": [np.zeros((0, 4))],
        }

    params, alone = tree(0), tree(0)
    opt = make(params, clip_norm=1e9, nonfinite="raise")
    single = {name: make(w, clip_norm=1e9) for name, w in alone.items() if isinstance(w, np.ndarray) and w.size}
    for seed in (1, 2):
        grads = tree(seed)
        info = opt.step(grads)
        for name, one in single.items():
            one.step(grads[name])
    assert info.step == 2
    np.testing.assert_equal(params, alone)
    assert params["scalar"].shape == ()


@every_optimizer
def test_fault_04_nothing_but_empty_arrays_is_a_step(make):
    for params in (np.zeros(0), [], {}, {"a": [np.zeros((0, 3))], "b": ()}):
        info = make(params, clip_norm=1.0, nonfinite="skip").step(params)
        assert (info.step, info.grad_norm, info.nonfinite) == (1, 0.0, {})


# 5: dtypes and alignment


def unaligned():
    return np.frombuffer(bytearray(33), np.uint8)[1:].view(np.float64)


WRONG_TYPES = {
    "unaligned": (unaligned, ValueError, "not aligned", "x.copy()"),
    "big_endian": (lambda: np.ones(4, ">f8"), TypeError, "byte order", ">f8", "newbyteorder"),
    "int": (lambda: np.ones(4, np.int64), TypeError, "float32", "int64", "astype"),
    "bool": (lambda: np.ones(4, bool), TypeError, "float32", "bool", "astype"),
    "object": (lambda: np.array([1.0] * 4, object), TypeError, "float32", "object", "astype"),
    "long complex": (lambda: np.ones(4, np.clongdouble), TypeError, "expected complex64", "astype(np.complex128)"),
    "big_endian complex": (lambda: np.ones(4, ">c8"), TypeError, "byte order", ">c8", "newbyteorder"),
    "longdouble": (lambda: np.ones(4, np.longdouble), TypeError, "float32", "longdouble", "astype"),
    "list": (lambda: 1.0, TypeError, "NumPy array", "float", "np.asarray"),
    "numpy_scalar": (lambda: np.float64(1), TypeError, "NumPy array", "float64", "np.asarray"),
}
wrong_types = pytest.mark.parametrize(
    "make, error, words", [(m, e, w) for m, e, *w in WRONG_TYPES.values()], ids=WRONG_TYPES
)


@wrong_types
def test_fault_05_a_parameter_of_the_wrong_type_is_refused(make, error, words):
    if "longdouble" in words:
        words = [np.dtype(np.longdouble).name if word == "longdouble" else word for word in words]
    fine = np.ones(4)
    with refused(error, "params['layer.w']", *words, keep=[fine]):
        rv.Adam({"fine": fine, "layer": {"w": make()}})


@pytest.mark.parametrize(
    "make, error, words",
    [(m, e, w) for name, (m, e, *w) in WRONG_TYPES.items() if name != "numpy_scalar"],
    ids=[name for name in WRONG_TYPES if name != "numpy_scalar"],
)
def test_fault_05_and_so_is_a_gradient(make, error, words):
    if "longdouble" in words:
        words = [np.dtype(np.longdouble).name if word == "longdouble" else word for word in words]
    params = {"fine": np.ones(4), "layer": {"w": np.ones(4)}}
    opt = rv.Adam(params)
    with refused(error, "grads['layer.w']", *words, opt=opt, keep=[params]):
        opt.step({"fine": np.ones(4), "layer": {"w": make()}})


# 36: what NumPy makes of a result without axes

BF16 = np.dtype(ml_dtypes.bfloat16)
SCALARS = [np.float64, np.float32, np.float16, BF16.type]
every_scalar = pytest.mark.parametrize("kind", SCALARS, ids=lambda kind: kind.__name__)


def with_a_scalar(kind):
    """Parameters, one of them without axes, with gradients: as arrays, and as NumPy's results are."""
    params = {"w": values((3, 2), np.dtype(kind)), "b": np.array(0.75, kind)}
    arrays = {"w": values((3, 2), np.dtype(kind), seed=1), "b": np.array(-0.625, kind)}
    return params, arrays, {**arrays, "b": kind(-0.625)}


def twice(make, first, second, run):
    """Results of two runs, byte for byte."""
    results = []
    for grads in (first, second):
        params, _, _ = make()
        opt = run(params, grads)
        results.append([w.tobytes() for w in params.values()] + [opt.steps])
    return results


RUNS = {
    "step": lambda opt, grads: opt.step(grads),
    "step, scaled": lambda opt, grads: opt.step(grads, grad_scale=2.0),
    "accumulate": lambda opt, grads: (opt.accumulate(grads, weight=2), opt.accumulate(grads), opt.step()),
    "history": lambda opt, grads: rv.History().step(opt, grads),
}


#: Adafactor takes one gradient a step.
MADE_AND_RUN = [
    pytest.param(make, run, id=f"{make.__name__}, {name}")
    for make in (rv.SGD, rv.AdamW, rv.LAMB, rv.Adafactor)
    for name, run in RUNS.items()
    if (make, name) != (rv.Adafactor, "accumulate")
]


@every_scalar
@pytest.mark.parametrize("make, run", MADE_AND_RUN)
def test_fault_36_a_scalar_of_numpy_is_the_gradient_of_a_parameter_without_axes(make, run, kind):
    def stepped(params, grads):
        opt = make(params, lr=0.1, clip_norm=0.5)
        for _ in range(2):
            run(opt, grads)
        return opt

    _, arrays, scalars = with_a_scalar(kind)
    assert type(scalars["b"]) is kind
    numbers = {**arrays, "b": -0.625}
    for given in (scalars, numbers):
        one, other = twice(lambda: with_a_scalar(kind), arrays, given, stepped)
        assert one == other


def test_fault_36_a_whole_number_and_the_only_parameter():
    w = np.array(2.0, np.float32)
    opt = rv.SGD(w, lr=0.5)
    opt.step(1)
    opt.step(np.float32(1))
    opt.step(0.5)
    assert w == 0.75


def test_fault_36_narrow_scalars_of_wide_parameters_are_widened():
    w = np.array(2.0, np.float32)
    opt = rv.SGD(w, lr=1.0)
    opt.step(np.float16(0.5))
    opt.step(BF16.type(0.5))
    assert w == 1.0


def test_fault_36_and_beside_rows():
    params = {"table": np.ones((4, 2)), "b": np.array(1.0)}
    opt = rv.SGD(params, lr=0.5)
    for number in (np.float64(1), 1.0):
        opt.step({"table": rv.RowSparse([1], np.ones((1, 2))), "b": number})
    assert params["b"] == 0.0
    assert params["table"][1].tolist() == [0.0, 0.0]


def test_fault_36_and_of_functions():
    p = np.array(1.0)
    rv.functional.sgd_(p, np.float64(2), lr=0.25)
    rv.functional.sgd_(p, 1.0, lr=0.25)
    assert p == 0.25
    tree = {"w": np.array([3.0]), "b": np.float64(4)}
    assert rv.global_norm(tree) == 5.0
    assert rv.tensor_norms(tree) == {"w": 3.0, "b": 4.0}
    array = np.array(4.0)
    assert rv.clip_by_global_norm_({"w": np.array([3.0]), "b": array}, 2.5) == 5.0
    assert array == 2.0
    for clip in (lambda: rv.clip_by_global_norm_(tree, 1.0), lambda: rv.adaptive_clip_(tree, tree)):
        with pytest.raises(TypeError, match=r"b.*: expected a NumPy array, got float64; pass np\.asarray"):
            clip()
    assert tree["w"] == 3.0


@pytest.mark.parametrize(
    "dtype, got, words",
    [
        (np.float32, np.float64(1), ["expected float32 like its parameter, got float64", "astype"]),
        (np.float64, np.float32(1), ["expected float64 like its parameter, got float32"]),
        (np.float32, np.int64(1), ["expected float64, float32, float16 or bfloat16, got int64"]),
        (np.float32, np.bool_(True), ["got bool"]),
        (np.float32, np.complex128(1), ["got complex128"]),
        (np.float32, True, ["expected a NumPy array, got bool"]),
        (np.float32, "1", ["expected a NumPy array, got str"]),
        (np.float32, np.str_("1"), ["expected a NumPy array, got str"]),
    ],
)
def test_fault_36_a_scalar_of_another_dtype_is_refused_as_an_array_is(dtype, got, words):
    params = {"b": np.array(1, dtype)}
    opt = rv.SGD(params, lr=0.5)
    for run in (opt.step, opt.accumulate, opt._engine.check):
        with refused(TypeError, "grads['b']", *words, opt=opt, keep=[params]):
            run({"b": got})


@pytest.mark.parametrize("got", [np.float64(1), 1.0], ids=["numpy", "python"])
def test_fault_36_a_scalar_here_is_no_gradient_of_a_parameter_on_a_device(gpu, got):
    params = {"b": gpu.asarray(np.array(1.0))}
    opt = rv.SGD(params, lr=0.5)
    with pytest.raises(TypeError, match=r"grads\['b'\]: expected a CuPy array, got .*; pass cupy\.asarray"):
        opt.step({"b": got})
    opt.step({"b": gpu.asarray(np.array(1.0))})
    assert params["b"].get() == 0.5


def test_fault_36_a_scalar_is_not_broadcast():
    params = {"w": np.ones(3)}
    opt = rv.SGD(params, lr=0.5)
    with refused(ValueError, "grads['w']", "expected shape (3,)", "got ()", opt=opt, keep=[params]):
        opt.step({"w": np.float64(1)})


# 6: gradients that do not fit


def test_fault_06_a_column_is_not_broadcast_to_a_vector():
    w = {"w": np.ones(3)}
    opt = rv.SGD(w, lr=0.1)
    with refused(ValueError, "grads['w']", "expected shape (3,)", "got (3, 1)", "reshape", opt=opt, keep=[w]):
        opt.step({"w": np.ones((3, 1))})


@pytest.mark.parametrize("shape", [(1,), (), (4,), (1, 3), (0,)])
def test_fault_06_no_shape_is_broadcast(shape):
    w = np.ones(3)
    opt = rv.SGD(w, lr=0.1)
    with refused(ValueError, "grads", "(3,)", str(shape), opt=opt, keep=[w]):
        opt.step(np.ones(shape))


def test_fault_06_gradient_of_another_shape_lists_all_differences():
    params = {"w": np.ones((2, 3)), "layer": [np.ones(4), np.ones(5)]}
    opt = rv.Adam(params)
    words = ["grads['w']", "(2, 3)", "(3, 2)", "transpose", "grads['layer.1']", "(5,)", "(4,)"]
    with refused(ValueError, *words, opt=opt, keep=[params]):
        opt.step({"w": np.ones((3, 2)), "layer": [np.ones(4), np.ones(4)]})


NESTINGS = {
    "missing": ({"w": 2, "layer": {"a": 3}}, ["missing", "'layer.b'"]),
    "extra": ({"w": 2, "layer": {"a": 3, "b": 4, "c": 5}}, ["'layer.c'"]),
    "renamed": ({"w": 2, "layer": {"a": 3, "B": 4}}, ["missing 'layer.b'", "'layer.B'"]),
    "flat": ({"w": 2, "layer.a": 3, "layer.b": 4}, ["another nesting"]),
    "deeper": ({"w": {"w": 2}, "layer": {"a": 3, "b": 4}}, ["missing 'w'", "'w.w'"]),
    "list": ([2, [3, 4]], ["missing 'w', 'layer.a', 'layer.b'", "'0', '1.0', '1.1'"]),
    "one_array": (2, ["missing 'w', 'layer.a', 'layer.b'"]),
}


@pytest.mark.parametrize("sizes, words", NESTINGS.values(), ids=NESTINGS)
def test_fault_06_other_names_or_another_nesting_lists_all_differences(sizes, words):
    params = {"w": np.ones(2), "layer": {"a": np.ones(3), "b": np.ones(4)}}
    opt = rv.Adam(params)
    with refused(ValueError, "grads", *words, opt=opt, keep=[params]):
        opt.step(rv.trees.map(np.ones, sizes))


def test_fault_06_names_and_shapes_are_listed_together():
    params = {"w": np.ones(2), "b": np.ones(3), "c": np.ones(4)}
    opt = rv.Adam(params)
    words = ["missing 'c'", "'d'", "grads['w']", "(2,)", "(7,)"]
    with refused(ValueError, *words, opt=opt, keep=[params]):
        opt.step({"w": np.ones(7), "b": np.ones(3), "d": np.ones(4)})


def test_fault_06_an_error_of_one_gradient_leaves_the_next_step_right():
    a, b = ({"w": np.ones(3), "b": np.ones(2)} for _ in range(2))
    disturbed, opt = rv.Adam(a), rv.Adam(b)
    with pytest.raises(ValueError, match="shape"):
        disturbed.step({"w": np.full(3, 9.0), "b": np.ones(3)})
    for o in (disturbed, opt):
        o.step({"w": np.full(3, 2.0), "b": None})
    np.testing.assert_equal(a, b)


# 7: gradient dtypes

HALVES = [np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("half", HALVES)
@every_optimizer
def test_fault_07_half_precision_gradients_of_float32_parameters_are_widened(make, half):
    g = values(300).astype(half)
    a, b = np.ones(300, F32), np.ones(300, F32)
    one, two = make({"w": a}, clip_norm=5.0), make({"w": b}, clip_norm=5.0)
    for _ in range(2):
        assert one.step({"w": g}).grad_norm == two.step({"w": g.astype(F32)}).grad_norm
    assert a.tobytes() == b.tobytes()


FLOATS = [np.float64, F32, *HALVES]
MIXED = [(w, g) for w in FLOATS for g in FLOATS if w != g and not (w == F32 and g in HALVES)]


@pytest.mark.parametrize("w, g", MIXED, ids=[f"{np.dtype(g)}-to-{np.dtype(w)}" for w, g in MIXED])
def test_fault_07_every_other_mixture_is_refused(w, g):
    params = {"layer": {"w": np.ones(3, w)}}
    opt = rv.Adam(params)
    words = ["grads['layer.w']", f"expected {np.dtype(w)}", f"got {np.dtype(g)}", "astype"]
    with refused(TypeError, *words, opt=opt, keep=[params]):
        opt.step({"layer": {"w": np.ones(3, g)}})


# 8: no gradient


@every_optimizer
def test_fault_08_a_parameter_without_a_gradient_is_left_as_it_is(make):
    params = {"a": values(5), "b": values(5)}
    opt = make(params, weight_decay=0.5, l2=0.5)
    opt.step({"a": np.ones(5), "b": np.ones(5)})
    kept = params["b"].tobytes(), [state.tobytes() for state in opt._engine.states[1]]
    moved = params["a"].copy()
    assert opt.step({"a": np.ones(5), "b": None}).step == 2
    assert (params["b"].tobytes(), [state.tobytes() for state in opt._engine.states[1]]) == kept
    assert opt.state_dict()["updates"] == {"a": 2, "b": 1}
    assert (params["a"] != moved).all()


# 10: hyperparameters out of range

OUT_OF_RANGE = [
    *((rv.SGD, {"lr": bad}, "lr", bad) for bad in (NAN, INF, -INF, -0.1)),
    *((rv.SGD, {"lr": 0.1, "momentum": bad}, "momentum", bad) for bad in (NAN, 1.0, -0.1, INF)),
    *((rv.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": bad}, "dampening", bad) for bad in (NAN, -0.1, INF)),
    *((rv.Adam, {"betas": (bad, 0.9)}, "beta1", bad) for bad in (NAN, 1.0, -0.1)),
    *((rv.Adam, {"betas": (0.9, bad)}, "beta2", bad) for bad in (NAN, 1.0, -0.1)),
    *((rv.Lion, {"betas": (bad, 0.9)}, "beta1", bad) for bad in (NAN, 1.0, 1.5)),
    *((rv.AdEMAMix, {"betas": (0.9, 0.9, bad)}, "beta3", bad) for bad in (NAN, 1.0)),
    *((rv.Rprop, {"etas": (0.5, bad)}, "eta_plus", bad) for bad in (NAN, 0.9, INF)),
    *((rv.Rprop, {"step_sizes": (bad, 1.0)}, "step_min", bad) for bad in (NAN, -0.1, INF)),
    *((rv.ScheduleFreeSGD, {"warmup_steps": bad}, "warmup_steps", bad) for bad in (NAN, -1.0, 0.5, INF)),
    *((rv.AdamW, {"weight_decay": bad}, "weight_decay", bad) for bad in (NAN, -0.1, INF)),
    *((rv.Adam, {"l2": bad}, "l2", bad) for bad in (NAN, -0.1, INF)),
    *((c, {"eps": bad}, "eps", bad) for c in (rv.Adam, rv.RMSprop, rv.Adagrad) for bad in (NAN, -0.5, INF)),
    *((rv.RMSprop, {"decay": bad}, "decay", bad) for bad in (NAN, 1.0, -0.1)),
    *((rv.Adam, {"clip_norm": bad}, "clip_norm", bad) for bad in (NAN, 0.0, -1.0)),
    *((rv.Adam, {"clip_value": bad}, "clip_value", bad) for bad in (NAN, 0.0, -1.0, INF)),
]


@pytest.mark.parametrize("make, options, name, got", OUT_OF_RANGE, ids=[f"{n}={g}" for *_, n, g in OUT_OF_RANGE])
def test_fault_10_a_number_out_of_range_is_refused_at_construction(make, options, name, got):
    w = np.ones(3)
    number = "NaN" if np.isnan(got) else f"{got:g}"
    with refused(ValueError, f"{name}: expected", f"got {number}", keep=[w]):
        make(w, **options)


def test_fault_10_a_group_out_of_range_is_refused_too():
    params = {"a": np.ones(2), "b": np.ones(2)}
    with refused(ValueError, "lr: expected", "got -1", keep=[params]):
        rv.Adam(params, groups=[("b", {"lr": -1.0})])


@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.9, 0.9), None])
def test_fault_10_betas_are_two_numbers(betas):
    with refused((TypeError, ValueError), "bet", repr(betas)[:3]):
        rv.Adam(np.ones(2), betas=betas)


@pytest.mark.parametrize("lr", [None, "fast", "0.1", [0.1], {}])
def test_fault_10_what_is_no_number_is_refused(lr):
    with refused(TypeError, "lr: expected a number or a schedule", repr(lr)):
        rv.SGD(np.ones(2), lr=lr)


def test_fault_10_zero_is_a_learning_rate():
    w = np.ones(3)
    rv.Adam(w, lr=0.0, eps=0.0, betas=(0.0, 0.0)).step(np.ones(3))
    np.testing.assert_array_equal(w, 1)


SCHEDULED = {
    "lr": lambda s: rv.SGD(np.ones(3), lr=s),
    "momentum": lambda s: rv.SGD(np.ones(3), lr=0.1, momentum=s),
    "beta2": lambda s: rv.Adam(np.ones(3), betas=(0.9, s)),
    "weight_decay": lambda s: rv.AdamW(np.ones(3), weight_decay=s),
}


@pytest.mark.parametrize("bad", [NAN, -0.1, INF])
@pytest.mark.parametrize("name", SCHEDULED)
def test_fault_10_a_schedule_that_goes_wrong_at_step_700_raises_before_the_step(name, bad):
    opt = SCHEDULED[name](lambda step: 0.5 if step < 700 else bad)
    (w,) = opt._engine.parameters
    for _ in range(700):
        opt.step(np.zeros(3))
    with refused(ValueError, f"{name}: expected", "schedule", "step 700", opt=opt, keep=[w]):
        opt.step(np.ones(3))


def test_fault_10_a_schedule_that_goes_wrong_changes_no_other_number():
    opt = rv.SGD(np.ones(2), lr=lambda step: 0.25 * (step + 1), momentum=lambda step: 0.5 if step < 1 else NAN)
    opt.step(np.ones(2))
    with pytest.raises(ValueError, match="momentum"):
        opt.step(np.ones(2))
    assert opt.lr == 0.25, "the learning rate of the last step that happened"


# 11: denominators of 0


@every_adaptive
@pytest.mark.parametrize(
    "dtype, tiny, eps",
    [(F32, 0.0, 0.0), (F32, 1e-24, 0.0), (F32, 1e-24, 1e-60), (np.float64, 1e-200, 0.0), (np.float16, 0.0, 0.0)],
)
def test_fault_11_a_denominator_of_0_gives_no_update_but_the_decay(make, dtype, tiny, eps):
    w = np.array([1.0, -3.0, 0.7], dtype)
    compute = np.float64 if dtype == np.float64 else F32
    expected = w.copy()
    opt = make(w, eps=eps, weight_decay=0.5)
    for _ in range(3):
        opt.step(np.full(3, tiny, dtype))
        exact = expected.astype(compute)
        expected = (exact - compute(0.1 * 0.5) * exact).astype(dtype)
    np.testing.assert_array_equal(w, expected)
    for states in opt.state_dict()["states"].values():
        assert all(np.isfinite(state).all() for state in states.values())


def test_fault_11_whatever_m_is():
    w = np.array([1.0], F32)
    opt = rv.Adam(w, lr=0.1, betas=(0.9, 0.0), eps=0.0)
    opt.step(np.ones(1, F32))
    before = w.copy()
    opt.step(np.full(1, 1e-24, F32))
    assert opt.state_dict()["states"]["params"]["m"][0] > 0.08
    assert opt.state_dict()["states"]["params"]["v"][0] == 0
    np.testing.assert_array_equal(w, before)


# 12: float16


@every_adaptive
@pytest.mark.parametrize("scale", [0.0, 1e-7, 1e-4, 1.0, 6e4])
def test_fault_12_float16_is_computed_in_float32(make, scale):
    # In float16 itself ε = 1e-8 would be 0, and g² would be 0 or inf.
    w = values(100, np.float16)
    g = (values(100, seed=1).clip(-1, 1) * scale).astype(np.float16)
    wide = w.astype(F32)
    make(w, eps=1e-8).step(g)
    make(wide, eps=1e-8).step(g.astype(F32))
    np.testing.assert_array_equal(w, wide.astype(np.float16))
    assert np.isfinite(w).all()


# 13: gradients whose square is infinite

TOO_LARGE = [(F32, 1e20), (F32, 3e38), (np.float64, 1e155), (np.float64, 1e308)]


@every_adaptive
@pytest.mark.parametrize("dtype, large", TOO_LARGE)
def test_fault_13_a_square_beyond_the_largest_number_is_skipped_or_raised(make, dtype, large):
    params = {"w": np.ones(5, dtype), "b": np.ones(2, dtype)}
    grads = {"w": np.array([1, 1, -large, 1, large], dtype), "b": np.ones(2, dtype)}
    opt = make(params, nonfinite="skip")
    before = snapshot(opt, params)
    info = opt.step(grads)
    assert (info.skipped, info.step, info.nonfinite) == (True, 0, {"w": (2, 2)})
    assert snapshot(opt, params) == before
    opt = make(params, nonfinite="raise")
    with refused(FloatingPointError, "grads", "'w': (2, 2)", "nothing was changed", opt=opt, keep=[params]):
        opt.step(grads)


@every_adaptive
def test_fault_13_the_largest_square_that_fits_is_no_fault(make):
    limit = np.sqrt(np.finfo(F32).max.astype(np.float64))
    edge = F32(limit) if F32(limit) <= limit else np.nextafter(F32(limit), F32(0))
    w = np.ones(2, F32)
    opt = make(w, nonfinite="raise")
    opt.step(np.array([edge, -edge]))
    assert all(np.isfinite(state).all() for state in opt._engine.states[0])
    with pytest.raises(FloatingPointError):
        opt.step(np.full(2, np.nextafter(edge, F32(INF))))


@pytest.mark.parametrize("make", SGDS.values(), ids=SGDS)
def test_fault_13_rules_that_do_not_square_take_large_gradients(make):
    w = np.zeros(2, F32)
    info = make(w, nonfinite="raise").step(np.full(2, 1e30, F32))
    assert not info.skipped
    assert np.isfinite(w).all()


@every_adaptive
@pytest.mark.parametrize("dtype, large", TOO_LARGE)
def test_fault_13_propagated_its_square_is_finite_and_no_other_element_sees_it(make, dtype, large):
    w, calm = np.ones(3, dtype), np.ones(3, dtype)
    opt, other = (make(x, nonfinite="propagate", weight_decay=0.0) for x in (w, calm))
    opt.step(np.array([1, large, 1], dtype))
    other.step(np.ones(3, dtype))
    for _ in range(3):
        opt.step(np.ones(3, dtype))
        other.step(np.ones(3, dtype))
    assert np.isfinite(w).all()
    assert all(np.isfinite(state).all() for state in opt.state_dict()["states"]["params"].values())
    np.testing.assert_array_equal(w[[0, 2]], calm[[0, 2]])


# 15: the floating-point environment


class Disturbed:
    """Flush-to-zero and rounding towards zero, as another library may have set them."""

    def __enter__(self):
        rv._core.disturb_environment(True)

    def __exit__(self, *exception):
        rv._core.disturb_environment(False)


def test_fault_15_the_disturbance_disturbs():
    numbers, smallest = values(100), np.full(2, 5e-324)
    plain = numbers * 3.3
    with Disturbed():
        flushed, rounded = smallest + smallest, numbers * 3.3
    assert flushed[0] == 0
    assert (rounded != plain).any()


def steps_in(environment, make, n, dtype):
    w, g = values(n, dtype), values(n, dtype, seed=1)
    with np.errstate(under="ignore"):
        for array in (w[::3], g[::5]):
            array *= np.finfo(dtype).smallest_normal
    norms = []
    with environment:
        opt = make(w, weight_decay=0.3, l2=0.3, clip_norm=0.7)
    for _ in range(3):
        with environment:
            info = opt.step(g)
        norms.append(info.grad_norm)
    return norms, snapshot(opt, w)


@pytest.mark.parametrize("dtype", [np.float64, F32, np.float16])
@pytest.mark.parametrize("device", [False, True])
def test_fault_14_moments_below_a_threshold_are_flushed_alike_on_every_backend(dtype, device, gpu):
    xp = gpu if device else np
    opt = rv.AdEMAMix({"a": xp.zeros((2, 3), dtype), "b": [xp.zeros(2, dtype)]}, lr=0.1)
    wide = np.float64 if dtype == np.float64 else F32
    tiny = np.finfo(wide).tiny
    values = np.array([tiny / 4, -tiny / 4, 0.9e-20, -1.1e-20, 0.0, np.nan, np.inf, 1.0], wide)
    for states in opt._engine.states:
        for state in states:
            state[...] = xp.asarray(np.resize(values, state.shape))
    opt.flush_moments(1e-20)
    kept = np.where(abs(values) < 1e-20, 0, values).astype(wide)
    for name, states in opt.state_dict()["states"].items():
        for kind, state in states.items():
            here = np.asarray(state.get() if hasattr(state, "get") else state)
            assert_same_bits(here, np.resize(kept, here.shape), f"{name} {kind}")


def test_fault_14_a_threshold_that_is_subnormal_itself_is_refused():
    w = np.ones(3, F32)
    opt = rv.Adam(w)
    opt.step(w.copy())
    before = pickle.dumps(opt.state_dict())
    for below in (1e-39, 0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"below: expected a finite number >= 1.17.*e-38, the smallest normal one"):
            opt.flush_moments(below)
    assert pickle.dumps(opt.state_dict()) == before
    rv.Adam(np.ones(3)).flush_moments(1e-300)
    heavy = rv.SGD(np.full(2, 1e-33), lr=0.1, momentum=0.5, form="heavy_ball")
    heavy.step(np.zeros(2))
    heavy.flush_moments(1e-30)
    assert heavy.state_dict()["states"]["params"]["previous"][0] == 1e-33, "a copy of the parameter"


@pytest.mark.parametrize("dtype", [np.float64, F32, np.float16])
@every_optimizer
def test_fault_15_flush_to_zero_and_another_rounding_mode_change_no_bits(make, dtype):
    for n in (1000, 100_000):
        assert steps_in(Disturbed(), make, n, dtype) == steps_in(contextlib.nullcontext(), make, n, dtype)


def test_fault_15_clipping_by_hand_too():
    def run(environment):
        g = values(1000)
        g[::3] *= 1e-310
        with environment:
            norm = rv.clip_by_global_norm_(g, 0.7)
        return norm, g.tobytes()

    assert run(Disturbed()) == run(contextlib.nullcontext())


def test_fault_15_the_step_leaves_the_environment_as_it_found_it():
    smallest = np.full(2, 5e-324)
    with Disturbed():
        rv.Adam(np.ones(100_000)).step(np.ones(100_000))
        flushed = smallest + smallest
    assert flushed[0] == 0


# 16: parameters that are no longer what they were


def trees():
    return {"w": np.ones(4), "layer": [np.ones((2, 3)), {"b": np.ones(2)}]}


def replaced(params):
    params["w"] = params["w"] - 0.1


def replaced_deep(params):
    params["layer"][1]["b"] = np.ones(2)


def added(params):
    params["new"] = np.ones(2)


def removed(params):
    del params["w"]


def exchanged(params):
    params["v"] = params.pop("w")


def grown(params):
    params["layer"].append(np.ones(2))


def emptied(params):
    params["layer"][1].clear()


def resized(params):
    params["w"].resize(1000, refcheck=False)


def cut(params):
    params["w"].resize(3, refcheck=False)


def frozen(params):
    params["w"].flags.writeable = False


def unfrozen_base(params):
    params["layer"][0].flags.writeable = False


CHANGES = {
    replaced: ["params['w']", "another array", "w[...] = new", "new optimizer"],
    replaced_deep: ["params['layer.1.b']", "another array"],
    added: ["params", "added or removed", "new optimizer"],
    removed: ["params", "added or removed", "new optimizer"],
    exchanged: ["params", "added or removed"],
    grown: ["params", "added or removed"],
    emptied: ["params", "added or removed"],
    resized: ["params['w']", "resized", "new optimizer"],
    cut: ["params['w']", "resized", "new optimizer"],
    frozen: ["params['w']", "read-only", "new optimizer"],
    unfrozen_base: ["params['layer.0']", "read-only"],
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_fault_16_parameters_changed_behind_the_optimizer_are_detected(change):
    params = trees()
    opt = rv.Adam(params)
    opt.step(trees())
    change(params)
    grads = rv.trees.map(np.ones_like, params)
    for g in (trees(), grads):
        with refused(ValueError, *CHANGES[change], opt=opt, keep=[params]):
            opt.step(g)


def test_fault_16_numpy_does_not_resize_a_bound_array():
    params = [np.ones(4)]
    rv.Adam(params)
    opt = rv.Adam(params)
    with refused(ValueError, "cannot resize", opt=opt, keep=[params]):
        params[0].resize(1000)


@pytest.mark.parametrize("whole", [False, True])
def test_fault_16_an_array_replaced_in_a_torch_group_is_detected(whole):
    groups = [{"params": {"w": np.ones(3)}, "lr": 0.5}]
    opt = rv.SGD(groups, lr=0.1)
    if whole:
        groups[0]["params"] = {"w": np.ones(3)}
    else:
        groups[0]["params"]["w"] = np.ones(3)
    with refused(ValueError, "params", opt=opt, keep=[groups[0]["params"]]):
        opt.step([{"w": np.ones(3)}])


def test_fault_16_assigning_into_an_array_is_fine():
    params = trees()
    opt = rv.SGD(params, lr=1.0)
    params["w"][...] = 5
    params["w"] -= 1
    opt.step(rv.trees.map(np.ones_like, params))
    np.testing.assert_array_equal(params["w"], 3)


# 17: two threads, Ctrl-C


@pytest.mark.parametrize("lr", [1.0, lambda step: 1.0], ids=["constant", "scheduled"])
def test_fault_17_of_two_threads_in_one_optimizer_the_second_raises(lr):
    n = 4_000_000
    params = {"w": np.zeros(n, F32)}
    grads = {"w": np.ones(n, F32)}
    opt = rv.Adam(params, lr=lr, eps=0.0)
    opt.step(grads)
    errors = []

    def work(barrier):
        barrier.wait()
        try:
            opt.step(grads)
        except RuntimeError as error:
            errors.append(str(error))

    tries = 0
    while not errors and tries < 50:
        tries += 1
        barrier = threading.Barrier(2)
        threads = [threading.Thread(target=work, args=(barrier,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(errors) == 1
    assert opt.steps == 2 * tries  # the first step, two a try, and one less in the last
    assert params["w"].min() == params["w"].max()
    np.testing.assert_allclose(params["w"][0], -opt.steps, rtol=1e-5)
    assert "another thread" in errors[0]
    opt.step(grads)


def test_fault_17_a_step_begins_before_its_schedules_are_asked():
    entered, go_on = threading.Event(), threading.Event()

    def lr(step):
        if threading.current_thread() is thread:
            entered.set()
            go_on.wait(10)
        return 0.5

    thread = threading.Thread(target=lambda: opt.step(np.ones(3)))
    opt = rv.SGD(np.ones(3), lr=lr)
    thread.start()
    entered.wait(10)
    try:
        with refused(RuntimeError, "another thread"):
            opt.step(np.ones(3))
    finally:
        go_on.set()
        thread.join()


@pytest.mark.parametrize("delay", [0.0005, 0.002, 0.005])
def test_fault_17_ctrl_c_lets_the_step_finish(delay):
    w, g = np.zeros(3_000_000, F32), np.ones(3_000_000, F32)
    opt = rv.SGD(w, lr=1.0)
    opt.step(g)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 (the signal may come anywhere in the loop)
            signal.setitimer(signal.ITIMER_REAL, delay)
            while True:
                opt.step(g)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert w.min() == w.max() == -opt.steps
    opt.step(g)
    assert w[0] == -opt.steps


# 18: fork

FORKED = """
    import hashlib, os, warnings
    import numpy as np, ravine as rv
    warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about any fork of a process with threads
    rv.set_num_threads(2)
    w, g = np.zeros(300_000, np.float32), np.linspace(-1, 1, 300_000, dtype=np.float32)
    opt = rv.AdamW({"w": w}, clip_norm=1.0)

    def steps():
        for _ in range(5):
            opt.step({"w": g})
        return hashlib.sha256(w.tobytes()).hexdigest()

    steps()
"""


def test_fault_18_child_and_parent_go_on_after_a_fork():
    printed = python(
        FORKED
        + """
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, steps().encode())
        os._exit(len(os.listdir("/proc/self/task")) - 2 if os.path.exists("/proc/self/task") else 0)
    mine = steps()
    theirs = os.read(read, 100).decode()
    assert os.wait()[1] == 0, "the child did not work with two threads"
    assert mine == theirs, "other bits in the child"
    print(mine == steps())
    """
    )
    assert printed == "False"


def test_fault_18_multiprocessing_by_fork_works():
    printed = python(
        FORKED
        + """
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(3) as pool:
        theirs = [pool.apply_async(steps) for _ in range(1)]
        mine = steps()
        print({mine, *(result.get(timeout=50) for result in theirs)} == {mine})
    """
    )
    assert printed == "True"


# 19: memory


def test_fault_19_no_memory_for_the_states_is_a_memory_error():
    resource = pytest.importorskip("resource", reason="no resource limits on this system")
    del resource
    printed = python("""
        import resource
        import numpy as np, ravine as rv
        params = {"small": np.ones(10, np.float32), "large": np.ones(50_000_000, np.float32)}
        rv.SGD({"small": params["small"]}, lr=0.5).step({"small": np.ones(10, np.float32)})
        in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 300_000_000, resource.RLIM_INFINITY))
        try:
            rv.AdamW(params)
        except MemoryError:
            print((params["small"] == 0.5).all(), (params["large"] == 1).all())
        rv.SGD(params, lr=0.5).step({"small": params["small"] * 0, "large": None})
    """)
    assert printed == "True True"


def test_fault_19_and_nothing_is_bound(monkeypatch):
    # As above, but in the second array, and with this process's own memory.
    made = []

    def zeros(shape, dtype):
        made.append(shape)
        if len(made) == 4:
            raise MemoryError("no room")
        return np.zeros(shape, dtype)

    params = [np.ones(300_000), np.ones(400_000)]  # too large to share memory with others
    with monkeypatch.context() as patch:
        patch.setattr("ravine.backends.cpu.zeros", zeros)
        with refused(MemoryError, "no room", keep=[params]):
            rv.Adam(params)
    rv.Adam(params).step([np.ones(300_000), np.ones(400_000)])


# 20: large numbers


def test_fault_20_offsets_beyond_2_to_the_32_bytes():
    # Few elements far apart; untouched pages of zeros take no memory.
    stride = 1 << 29
    base = np.zeros(9 * stride + 1, np.float16)
    w, g = base[::stride], np.arange(10.0, dtype=np.float16)
    assert (w.size - 1) * w.strides[0] > 2**33
    rv.SGD({"w": w}, lr=1.0, clip_norm=1e9).step({"w": g})
    np.testing.assert_array_equal(w, -g)
    np.testing.assert_array_equal(base[1 : 9 * stride : stride], 0)


def test_fault_20_indices_beyond_2_to_the_31():
    # Reading untouched pages takes no memory either, and a skipped step writes nothing.
    n = 2**31 + 7
    w, g = np.zeros(n, np.float16), np.zeros(n, np.float16)
    g[-2] = NAN
    info = rv.SGD({"w": w}, lr=1.0, nonfinite="skip").step({"w": g})
    assert info.nonfinite == {"w": (1, n - 2)}
    assert info.skipped


@pytest.mark.skipif(os.environ.get("RAVINE_SLOW") != "1", reason="writes 4.3 GB: make test-slow")
def test_fault_20_a_step_over_more_than_2_to_the_31_elements():
    n = 2**31 + 7
    w, g = np.zeros(n, np.float16), np.zeros(n, np.float16)
    places = [0, 1, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, n - 1]
    g[places] = np.arange(1, 8)
    info = rv.SGD({"w": w}, lr=1.0, clip_norm=1e9).step({"w": g})
    assert info.grad_norm == np.sqrt(140)
    np.testing.assert_array_equal(w[places], -np.arange(1.0, 8))
    assert np.count_nonzero(w) == len(places)


@pytest.mark.parametrize("t", [2**24 + 1, 2**31, 2**40 + 1, 2**53 + 1])
def test_fault_20_step_counts_beyond_2_to_the_24(t):
    seen = []

    def lr(step):
        seen.append(step)
        return 0.5

    w, beta2 = np.zeros(1), 1 - 2.0**-26
    opt = rv.Adam({"w": w}, lr=lr, betas=(0.0, beta2), eps=0.0)
    state = opt.state_dict()
    opt.load_state_dict({**state, "step": t, "updates": {"w": t}})
    info = opt.step({"w": np.ones(1)})
    assert (seen[-1], info.step, opt.steps) == (t, t + 1, t + 1)
    assert opt.state_dict()["updates"] == {"w": t + 1}
    # w = −γ·g·√(1 − β₂ᵗ)/√v with v = 1 − β₂, by logarithms instead of powers.
    expected = -0.5 * np.sqrt(-np.expm1((t + 1) * np.log1p(-(2.0**-26)))) / np.sqrt(2.0**-26)
    np.testing.assert_allclose(w[0], expected, rtol=1e-7)


# 25: options

UNKNOWN = [
    (rv.SGD, {"lr": 0.1, "weight_deacy": 0.1}, ["'weight_deacy'", "did you mean 'weight_decay'"]),
    (rv.SGD, {"lr": 0.1, "momentun": 0.9}, ["'momentun'", "did you mean 'momentum'"]),
    (rv.Adam, {"clipnorm": 1.0}, ["'clipnorm'", "did you mean 'clip_norm'"]),
    (rv.Adam, {"beta": (0.9, 0.9)}, ["'beta'", "did you mean", "'betas'"]),
    (rv.Adam, {"epsilon": 1e-8}, ["'epsilon'", "'eps'"]),
    (rv.AdamW, {"amsgard": True}, ["'amsgard'", "did you mean 'amsgrad'"]),
    (rv.AdamW, {"non_finite": "skip"}, ["'non_finite'", "did you mean 'nonfinite'"]),
    (rv.RMSprop, {"centred": True}, ["'centred'", "did you mean 'centered'"]),
    # known to others
    (rv.Adam, {"momentum": 0.9}, ["'momentum'", "did you mean", "'betas'"]),
    (rv.Lion, {"eps": 1e-8}, ["'eps'"]),
    (rv.Adagrad, {"nesterov": True}, ["'nesterov'"]),
    (rv.SGD, {"lr": 0.1, "betas": (0.9, 0.9)}, ["'betas'"]),
    (rv.RMSprop, {"form": "velocity"}, ["'form'"]),
]


@pytest.mark.parametrize("make, options, words", UNKNOWN, ids=[f"{m.__name__}-{[*o][-1]}" for m, o, _ in UNKNOWN])
def test_fault_25_an_unknown_option_is_refused_with_its_near_misses(make, options, words):
    w = np.ones(3)
    with refused(TypeError, make.__name__, "unknown option", *words, keep=[w]):
        make(w, **options)


@pytest.mark.parametrize("name, words", [("momentm", ["did you mean 'momentum'"]), ("betas", []), ("clip_norm", [])])
def test_fault_25_so_is_one_in_a_group(name, words):
    params = {"w": np.ones(3)}
    with refused(TypeError, "SGD", "group 'w'", f"'{name}'", *words, keep=[params]):
        rv.SGD(params, lr=0.1, momentum=0.9, groups=[("w", {name: 0.5})])


@pytest.mark.parametrize(
    "make, override",
    [
        (rv.Adam, {"amsgrad": True}),
        (rv.RMSprop, {"first": "square"}),
        (rv.RMSprop, {"centered": True}),
        (partial(rv.SGD, lr=0.1, momentum=0.9), {"nesterov": True}),
        (partial(rv.SGD, lr=0.1, momentum=0.9), {"form": "velocity"}),
    ],
)
def test_fault_25_what_a_group_cannot_have_is_not_suggested_for_it(make, override):
    (name,) = override
    with pytest.raises(TypeError) as caught:
        make({"w": np.ones(3)}, groups=[("w", override)])
    assert f"did you mean {name!r}" not in str(caught.value)


WRONG_CHOICES = [
    (rv.SGD, {"lr": 0.1, "form": "heavyball"}, ["form", "'heavyball'", "'heavy_ball'"]),
    (rv.SGD, {"lr": 0.1, "nesterov": True}, ["nesterov", "momentum"]),
    (rv.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "dampening": 0.1}, ["nesterov", "dampening"]),
    (rv.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "form": "average"}, ["nesterov", "'average'"]),
    (rv.SGD, {"lr": 0.1, "dampening": 0.1}, ["dampening", "momentum"]),
    (rv.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "form": "velocity"}, ["dampening", "'velocity'"]),
    (rv.RMSprop, {"first": "squared"}, ["first", "'squared'", "'square'"]),
    (rv.RMSprop, {"momentum_before": 0.9, "momentum": 0.9}, ["momentum_before"]),
    (rv.RMSprop, {"momentum_before": 0.9, "centered": True}, ["momentum_before", "centered"]),
    (rv.Adagrad, {"accumulate": "avg"}, ["accumulate", "'avg'", "'mean'"]),
    (rv.Adam, {"eps_inside": True, "eps_hat": True}, ["eps_hat", "eps_inside"]),
    (rv.Adam, {"nonfinite": "skp"}, ["nonfinite", "skp", "'skip'"]),
]


@pytest.mark.parametrize("make, options, words", WRONG_CHOICES)
def test_fault_25_a_choice_that_has_no_formula_is_refused(make, options, words):
    with refused(ValueError, *words):
        make({"w": np.ones(3)}, **options)


def test_fault_25_nor_by_way_of_a_group():
    with refused(TypeError, "eps_hat", "same for all parameters"):
        rv.Adam({"w": np.ones(3)}, eps_inside=True, groups=[("w", {"eps_hat": True})])


def test_fault_25_functions_refuse_unknown_options_too():
    w = np.ones(3)
    with refused(TypeError, "sgd_", "'momentum'", "'weight_decay'", keep=[w]):
        rv.functional.sgd_(w, np.ones(3), lr=0.1, momentum=0.9)


# The same checks of one array, in functions

BAD_CALLS = {
    "g": (ValueError, {"g": np.ones(4)}, ["(3,)", "(4,)"]),
    "g_dtype": (TypeError, {"g": np.ones(3, F32)}, ["g", "float64", "float32"]),
    "m": (ValueError, {"m": np.zeros(4)}, ["m", "(3,)", "(4,)"]),
    "v_dtype": (ValueError, {"v": np.zeros(3, F32)}, ["v", "float64", "float32"]),
    "p_read_only": (ValueError, {"p": read_only()}, ["p", "read-only"]),
    "p_int": (TypeError, {"p": np.ones(3, int)}, ["p", "int64"]),
    "step": (ValueError, {"step": 0}, ["step", "0"]),
    "lr": (ValueError, {"lr": NAN}, ["lr", "NaN"]),
    "betas": (ValueError, {"betas": (0.9, 1.0)}, ["beta2", "1"]),
}


@pytest.mark.parametrize("error, change, words", BAD_CALLS.values(), ids=BAD_CALLS)
def test_functions_check_what_optimizers_check(error, change, words):
    given = {"p": np.ones(3), "g": np.ones(3), "m": np.zeros(3), "v": np.zeros(3), "step": 1} | change
    with refused(error, *words, keep=[{k: v for k, v in given.items() if isinstance(v, np.ndarray)}]):
        rv.functional.adam_(**given)


@pytest.mark.parametrize("pair", ["pg", "pm", "gm", "mv", "gv"])
def test_functions_refuse_arrays_that_share_memory(pair):
    given = {name: np.ones(3) for name in "pgmv"}
    given[pair[0]] = given[pair[1]]
    with refused(ValueError, "share", "memory", "copy", keep=[given]):
        rv.functional.adam_(**given, step=1)


@pytest.mark.parametrize("name, change", [("g", {"g": np.ones(4)}), ("p", {"g": None, "p": np.ones(3, ">f8")})])
def test_functions_name_their_own_arguments(name, change):
    given = {"p": np.ones(3), "g": np.ones(3)} | change
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
        rv.functional.sgd_(**given, lr=0.1)
