"""A loss of nested parameters as a function of one vector."""

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from ravine.objective import Objective, rounding_unit
from tests.conftest import JaxLike, WithArray
from tests.test_foreign import Dlpack, Interface


def half_square(params):
    return 0.5 * sum(float((p.astype(np.float64) ** 2).sum()) for p in params["a"]), {
        "a": [p.copy() for p in params["a"]]
    }


def params_of(xp, dtype=np.float32):
    return {"a": [xp.asarray([[1.0, 2.0], [3.0, 4.0]], dtype).T, xp.asarray(0.5, dtype), xp.zeros((0, 2), dtype)]}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vector_and_nesting_agree(dtype, gpu):
    for xp in (np, gpu):
        objective = Objective(half_square, params_of(xp, dtype))
        x = objective.point()
        assert x.dtype == np.float64
        assert objective.size == x.size == 5
        assert x.tolist() == [1, 3, 2, 4, 0.5]
        assert objective.vector(objective.tree(x)).tolist() == x.tolist()
        loss, gradient = objective.evaluate(2 * x)
        assert loss == 4 * 15.125
        assert gradient.tolist() == (2 * x).tolist()
        assert objective.point().tolist() == gradient.tolist()
        assert objective.evaluations == 1


def test_parameters_are_restored_bit_for_bit_after_an_error():
    params = params_of(np)
    params["a"][1][...] = np.float32(np.nan)
    before = [p.tobytes() for p in params["a"]]
    with pytest.raises(ValueError, match="finite loss"), Objective(half_square, params) as objective:
        objective.finite(np.array([1, 2, 3, 4, np.inf]), "here")
    assert [p.tobytes() for p in params["a"]] == before


def test_loss_and_gradients_that_are_not_finite_are_named():
    objective = Objective(half_square, params_of(np))
    with pytest.raises(ValueError, match="expected a finite loss, got inf at x"):
        objective.finite(np.array([1, 2, 3, 4, np.inf]), "at x")
    objective.function = lambda params: (1.0, {"a": [p * np.float32(np.inf) for p in params["a"]]})
    with pytest.raises(ValueError, match=r"got others in a\.0 at x"):
        objective.finite(np.ones(5), "at x")


def test_gradients_of_another_nesting_shape_or_library_are_named(gpu):
    params = params_of(np)
    objective = Objective(half_square, params)
    with pytest.raises(ValueError, match=r"missing a\.2; unknown b"):
        objective.vector({"a": params["a"][:2], "b": params["a"][2]})
    with pytest.raises(ValueError, match=r"a\.1: expected shape \(\), got \(1,\)"):
        objective.vector({"a": [params["a"][0], np.ones(1), params["a"][2]]})
    with pytest.raises(TypeError, match=r"a\.0: expected an array of numpy like its parameter, got one of cupy"):
        objective.vector({"a": [gpu.ones((2, 2)), *params["a"][1:]]})


def test_parameters_on_two_devices_are_refused(gpu):
    with pytest.raises(TypeError, match=r"1: expected an array on one device"):
        Objective(half_square, [np.ones(2), gpu.ones(2)])


def test_directions_are_the_same_for_numpy_and_cupy(gpu):
    on_cpu, on_gpu = (
        Objective(half_square, params_of(xp)).random(np.random.default_rng(5)).tolist() for xp in (np, gpu)
    )
    assert on_cpu == on_gpu


@pytest.mark.parametrize("kind", [memoryview, Interface, Dlpack, "torch"])
def test_parameters_of_other_libraries_move_in_their_own_memory(kind):
    if kind == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed: make test-adapters")
        kind = lambda a: torch.from_numpy(a).requires_grad_()  # noqa: E731 (what the others are, too)
    w = np.array([1.0, 2.0, 3.0])
    params, seen = {"w": kind(w)}, []

    def loss(p):
        seen.append(p is params)
        return 0.5 * w @ w, {"w": kind(w.copy())}

    with Objective(loss, params) as objective:
        value, gradient = objective.evaluate(np.array([2.0, 0.0, 0.0]))
        assert (value, gradient.tolist()) == (2.0, [2, 0, 0])
        assert w.tolist() == [2, 0, 0]
        assert objective.tree(gradient)["w"].tolist() == [2, 0, 0]
    assert w.tolist() == [1, 2, 3]
    assert seen == [True]
    assert rv.check_gradient(loss, params)
    product = rv.hessian.hvp(loss, params, {"w": kind(np.array([1.0, 0, 0]))})
    assert product["w"] == pytest.approx([1, 0, 0])


@pytest.mark.filterwarnings("error")
def test_losses_and_gradients_of_other_libraries_are_taken_without_a_warning():
    w = np.ones(3, np.float32)
    for kind in (JaxLike, WithArray, np.asarray):
        objective = Objective(lambda p, kind=kind: (kind(np.float32(0.5)), kind(np.float32([1, 2, 3]))), w)
        value, gradient = objective.evaluate(np.ones(3))
        assert (value, gradient.dtype, gradient.tolist()) == (0.5, np.float64, [1, 2, 3])
        assert objective.loss(np.ones(3)) == 0.5
        assert objective.vector(kind(np.ones(3, np.float32)), "v").tolist() == [1, 1, 1]


def test_numbers_are_gradients_of_parameters_without_axes():
    objective = Objective(lambda p: (1, {"a": 2.0, "b": np.float32(3)}), {"a": np.array(1.0), "b": np.array(1.0)})
    assert objective.evaluate(np.ones(2))[1].tolist() == [2, 3]
    assert objective.roundoff == 2.0**-24


def test_the_coarsest_of_what_was_seen_is_said():
    w = np.ones(3)
    objective = Objective(lambda p: (np.float32(1), p.astype(np.float16)), w)
    assert (objective.roundoff, objective.precision.message) == (2.0**-53, "")
    objective.evaluate(np.ones(3))
    assert objective.roundoff == 2.0**-11
    assert "(loss in float32, gradients in float16)" in objective.precision.message
    fine = Objective(lambda p: (1.0, p.astype(np.float64)), w.astype(np.float32))
    fine.evaluate(np.ones(3))
    assert (fine.roundoff, fine.precision.message) == (2.0**-24, "")


class Foreign:
    """Another library's array, as far as its dtype tells: torch's are no dtypes of NumPy."""

    def __init__(self, dtype):
        self.dtype = dtype


@pytest.mark.parametrize(
    "nestings, unit",
    [
        ((np.ones(2), 1.0), 2**-53),
        ((), 2**-53),
        ((np.ones(2), np.float32(1.0)), 2**-24),
        ((np.ones(2, ">f4"), 1.0), 2**-24),
        (({"a": [np.ones(2), (np.ones(2, np.float16),)]}, np.ones(2, np.float32)), 2**-11),
        ((np.ones(2), np.ones(2, ml_dtypes.bfloat16)), 2**-8),
        ((np.ones(2), np.ones(2, np.complex64)), 2**-24),
        ((np.ones(2, np.float32), Foreign("torch.float16")), 2**-11),
        ((np.ones(2), Foreign("torch.bfloat16")), 2**-8),
        ((np.ones(2), np.arange(2), None, np.longdouble(1)), 2**-53),
    ],
)
def test_the_rounding_unit_is_that_of_the_coarsest_dtype(nestings, unit):
    assert rounding_unit(*nestings) == unit
