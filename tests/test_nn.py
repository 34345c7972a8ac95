"""Layers and losses: forward passes against naive loops, backward passes against the loss itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ravine as rv
from ravine import nn


def rng():
    return np.random.default_rng(3)


LAYERS = {
    "Linear": lambda: nn.Linear(5, 3, rng(), dtype=np.float64),
    "WeightNormLinear": lambda: nn.WeightNormLinear(5, 3, rng(), dtype=np.float64),
    "TwoTap": lambda: nn.TwoTap(rng(), dtype=np.float64),
    "ReLU": nn.ReLU,
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
    "Sequential": lambda: nn.Sequential(
        nn.WeightNormLinear(5, 4, rng(), dtype=np.float64),
        nn.Sequential(nn.Tanh(), nn.TwoTap(rng(), dtype=np.float64)),
        nn.Linear(2, 2, rng(), dtype=np.float64),
        nn.Sigmoid(),
    ),
}


def leave_zero(tree):
    """Biases start at zero, where a product with them would hide a mistake."""
    for part in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(part, np.ndarray):
            part += rng().standard_normal(part.shape) / 3
        else:
            leave_zero(part)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5), (5,), (1, 5)])
@pytest.mark.parametrize("method", ["central", "one_sided"])
@pytest.mark.parametrize("name", LAYERS)
def test_backward_is_the_derivative_for_parameters_and_input(name, method, shape):
    layer = LAYERS[name]()
    leave_zero(layer.params)
    x = rng().standard_normal(shape)
    target = rng().standard_normal(layer(x).shape)

    def loss_and_grad(tree):
        loss, dy = nn.squared_error(layer(tree["x"]), target)
        dx = layer.backward(dy)
        return loss, {"x": dx, "layer": layer.grads}

    # ReLU has kinks at |x| of these inputs; none is within these lengths.
    epsilons = [1e-2, 3e-3, 1e-3, 3e-4, 1e-4]
    result = rv.check_gradient(loss_and_grad, {"x": x, "layer": layer.params}, method=method, epsilons=epsilons)
    assert result, result


@pytest.mark.parametrize("name", ["Linear", "WeightNormLinear", "TwoTap", "Tanh", "Sigmoid"])
def test_a_broken_backward_is_found(name):
    """The check above has teeth: one gradient, off by 1 %, fails it."""
    layer = LAYERS[name]()
    leave_zero(layer.params)
    x = rng().standard_normal((4, 5))

    def loss_and_grad(tree):
        loss, dy = nn.squared_error(layer(tree["x"]), np.zeros(layer(x).shape))
        return loss, {"x": 1.01 * layer.backward(dy), "layer": layer.grads}

    result = rv.check_gradient(loss_and_grad, {"x": x, "layer": layer.params})
    assert not result
    assert result.message.endswith("wrong in x")


def test_linear_is_the_sum_over_inputs():
    layer = LAYERS["Linear"]()
    leave_zero(layer.params)
    weight, bias, x = layer.params["weight"], layer.params["bias"], rng().standard_normal((2, 4, 5))
    y = layer(x)
    assert y.shape == (2, 4, 3)
    for i, j, k in np.ndindex(y.shape):
        assert y[i, j, k] == pytest.approx(sum(x[i, j, n] * weight[n, k] for n in range(5)) + bias[k])


def test_weight_norm_is_the_distance_to_the_plane():
    layer = LAYERS["WeightNormLinear"]()
    leave_zero(layer.params)
    weight, bias, x = layer.params["weight"], layer.params["bias"], rng().standard_normal((4, 5))
    y = layer(x)
    for i, k in np.ndindex(y.shape):
        w = weight[:, k]
        foot = x[i] - y[i, k] * w / math.sqrt(w @ w)
        assert w @ foot + bias[k] == pytest.approx(0, abs=1e-14)


@given(factor=st.floats(1e-3, 1e3))
def test_weight_norm_does_not_see_the_length_of_weight_and_bias(factor):
    one, other = LAYERS["WeightNormLinear"](), LAYERS["WeightNormLinear"]()
    leave_zero(one.params)
    for name in one.params:
        other.params[name][...] = factor * one.params[name]
    x, dy = rng().standard_normal((4, 5)), rng().standard_normal((4, 3))
    assert np.allclose(other(x), one(x), rtol=1e-12)
    assert np.allclose(other.backward(dy), one.backward(dy), rtol=1e-11)
    # so the gradient is orthogonal to (w, b), and shrinks as 1/factor
    grads = one.grads
    along = (grads["weight"] * one.params["weight"]).sum(axis=0) + grads["bias"] * one.params["bias"]
    assert np.allclose(along, 0, atol=1e-13)
    assert np.allclose(other.grads["weight"] * factor, grads["weight"], rtol=1e-10, atol=1e-14)


def test_weight_norm_of_tiny_float32_weights():
    layer = nn.WeightNormLinear(2, 1, rng())
    layer.params["weight"][:, 0] = 3e-30, 4e-30
    assert layer(np.array([[1.0, 2.0]], np.float32)).item() == pytest.approx(11 / 5)


def test_weight_norm_refuses_a_zero_unit():
    layer = LAYERS["WeightNormLinear"]()
    layer.params["weight"][:, 1] = 0
    with pytest.raises(ValueError, match=r"weight\[:, 1\]: expected a norm > 0"):
        layer(np.ones((1, 5)))


@given(n=st.integers(3, 9))
def test_two_tap_by_the_cases_of_the_text(n):
    """dL/dx_j = a·g_j for j ≤ 2, a·(g_j + g_{j−2}) for 3 ≤ j ≤ N−2, a·g_{j−2} for j > N−2, as indicators for all N."""
    layer = LAYERS["TwoTap"]()
    layer.params["a"][:], layer.params["b"][:] = 2.0, 0.5
    x, g = rng().standard_normal(n), rng().standard_normal(n - 2)
    y = layer(x)
    assert y.tolist() == [2.0 * (x[i] + x[i + 2]) + 0.5 for i in range(n - 2)]
    dx = layer.backward(g)
    for j in range(1, n + 1):
        expected = (g[j - 1] if j <= n - 2 else 0) + (g[j - 3] if j >= 3 else 0)
        assert dx[j - 1] == pytest.approx(2.0 * expected)
    assert layer.grads["a"].shape == layer.grads["b"].shape == (1,)
    assert layer.grads["a"][0] == pytest.approx(sum(g[i] * (x[i] + x[i + 2]) for i in range(n - 2)))
    assert layer.grads["b"][0] == pytest.approx(sum(g))


def test_relu_has_derivative_zero_at_zero_and_keeps_nan():
    layer = nn.ReLU()
    y = layer(np.array([-1.0, -0.0, 0.0, 2.0, math.nan, math.inf]))
    assert np.array_equal(y, [0, 0, 0, 2, math.nan, math.inf], equal_nan=True)
    assert layer.backward(np.array([math.inf, 3, 3, 3, 3, 3])).tolist() == [0, 0, 0, 3, 0, 3]


def test_sigmoid_is_symmetric_and_exact_at_the_tails():
    layer = nn.Sigmoid()
    x = np.array([-800.0, -40.0, -1.0, 0.0, 1.0, 40.0, 800.0])
    y = layer(x)
    assert np.allclose(y + layer(-x), 1, rtol=0, atol=1e-16)
    assert y[1] == pytest.approx(math.exp(-40), rel=1e-14)
    assert y[4] == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-15)
    layer(x)
    slope = layer.backward(np.ones(7))
    assert slope.tolist() == slope[::-1].tolist()
    assert slope[3] == 0.25
    assert slope[5] == pytest.approx(math.exp(-40), rel=1e-14)  # y(1 − y) would be 0 here


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept(dtype):
    net = nn.Sequential(
        nn.Linear(5, 4, rng(), dtype=dtype),
        nn.ReLU(),
        nn.TwoTap(rng(), dtype=dtype),
        nn.Sigmoid(),
        nn.WeightNormLinear(2, 3, rng(), dtype=dtype),
        nn.Tanh(),
    )
    x = rng().standard_normal((4, 5)).astype(dtype)
    y = net(x)
    for loss, dy in (
        nn.softmax_cross_entropy(y, np.array([0, 1, 2, 0])),
        nn.mean_squared_error(y, np.zeros((4, 3))),
        nn.squared_error(y, np.zeros((4, 3), int)),
    ):
        assert type(loss) is float
        assert dy.dtype == y.dtype == net.backward(dy).dtype == dtype
    assert all(g.dtype == dtype for grads in net.grads for g in grads.values())


def test_gradient_arrays_are_made_once_and_overwritten():
    net = nn.Sequential(*(LAYERS[name]() for name in ("Linear",)), nn.TwoTap(rng(), dtype=np.float64))
    before = [g for grads in net.grads for g in grads.values()]
    x, dy = rng().standard_normal((4, 5)), rng().standard_normal((4, 1))
    net(x)
    net.backward(dy)
    first = [g.copy() for g in before]
    net.backward(dy)
    after = [g for grads in net.grads for g in grads.values()]
    assert all(a is b for a, b in zip(after, before, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(after, first, strict=True))  # filled anew, not added to


def test_parameters_changed_in_place_are_used():
    layer = LAYERS["Linear"]()
    layer.params["weight"][...] = 0
    layer.params["bias"][...] = 7
    assert (layer(np.ones((2, 5))) == 7).all()


class Recorder:
    """A layer that is no ``nn.Layer``: what the normalisations look like from here."""

    def __init__(self):
        self.params, self.grads, self.training = {"scale": np.ones(1)}, {"scale": np.zeros(1)}, None

    def forward(self, x, training=True):
        self.training = training
        return x

    def backward(self, dy):
        self.grads = {"scale": np.full(1, 5.0)}  # a new dict must be seen too
        return 2 * dy


def test_sequential_takes_any_layer_and_passes_training_on():
    inner = Recorder()
    net = nn.Sequential(nn.ReLU(), nn.Sequential(inner))
    net(np.ones(2))
    assert inner.training is True
    net.forward(np.ones(2), training=False)
    assert inner.training is False
    assert net.backward(np.ones(2)).tolist() == [2, 2]
    assert net.params == [{}, [inner.params]]
    assert net.grads[1][0]["scale"] == 5


@pytest.mark.parametrize("wrong", [nn.ReLU, np.tanh, 3])
def test_sequential_names_what_is_no_layer(wrong):
    with pytest.raises(TypeError, match=r"layers\[1\]: expected a layer with forward, backward"):
        nn.Sequential(nn.ReLU(), wrong)


def naive_cross_entropy(z, labels):
    loss, gradient = 0.0, np.zeros(z.shape)
    for n, label in enumerate(labels):
        p = [math.exp(v) / sum(math.exp(u) for u in z[n]) for v in z[n]]
        loss -= math.log(p[label]) / len(z)
        gradient[n] = [(p[k] - (k == label)) / len(z) for k in range(z.shape[1])]
    return loss, gradient


@given(seed=st.integers(0, 1000), n=st.integers(1, 5), classes=st.integers(1, 6))
def test_cross_entropy_against_naive_loops(seed, n, classes):
    draw = np.random.default_rng(seed)
    z, labels = 3 * draw.standard_normal((n, classes)), draw.integers(0, classes, n)
    loss, gradient = nn.softmax_cross_entropy(z, labels)
    expected, slopes = naive_cross_entropy(z, labels)
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-14)
    assert np.allclose(gradient, slopes, atol=1e-14)


@given(shift=st.floats(-1e4, 1e4))
def test_cross_entropy_does_not_see_a_common_shift(shift):
    z, labels = rng().standard_normal((3, 4)), np.array([0, 3, 1], np.uint8)
    loss, gradient = nn.softmax_cross_entropy(z, labels)
    moved, same = nn.softmax_cross_entropy(z + shift, labels)
    assert moved == pytest.approx(loss, rel=1e-9)
    assert np.allclose(same, gradient, atol=1e-10)
    assert np.allclose(gradient.sum(axis=1), 0, atol=1e-16)


def test_cross_entropy_of_extreme_logits():
    loss, gradient = nn.softmax_cross_entropy(np.array([[1e4, 0.0], [-math.inf, 1.0]]), np.array([1, 1]))
    assert loss == 5000
    assert gradient.tolist() == [[0.5, -0.5], [0, 0]]


@pytest.mark.parametrize("method", ["central", "one_sided"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda y: nn.softmax_cross_entropy(y, np.array([2, 0, 1, 1])),
        lambda y: nn.mean_squared_error(y, np.ones((4, 3))),
        lambda y: nn.squared_error(y, np.ones((4, 3))),
    ],
)
def test_loss_gradients_are_derivatives(loss, method):
    result = rv.check_gradient(loss, rng().standard_normal((4, 3)), method=method)
    assert result, result


def test_squared_errors_by_hand():
    y, t = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 3.0]])
    loss, dy = nn.squared_error(y, t)
    assert loss == (0 + 4 + 9 + 1) / 2
    assert dy.tolist() == [[0, 2], [3, 1]]
    loss, dy = nn.mean_squared_error(y, t)
    assert loss == (0 + 4 + 9 + 1) / 4
    assert dy.tolist() == [[0, 1], [1.5, 0.5]]


Z = np.zeros((2, 3))


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: nn.softmax_cross_entropy(Z, np.array([0, 3])), ValueError, r"integers in \[0, 3\), got 3"),
        (lambda: nn.softmax_cross_entropy(Z, np.array([-1, 0])), ValueError, r"integers in \[0, 3\), got -1"),
        (lambda: nn.softmax_cross_entropy(Z, np.array([0.0, 1.0])), TypeError, "expected integers, got float64"),
        (lambda: nn.softmax_cross_entropy(Z, np.eye(3, dtype=int)[:2]), ValueError, r"expected \(N,\) .*got \(2, 3\)"),
        (lambda: nn.softmax_cross_entropy(Z, np.array([0])), ValueError, r"got \(1,\) for \(2, 3\)"),
        (lambda: nn.softmax_cross_entropy(Z[0], np.array(0)), ValueError, r"got \(\) for \(3,\)"),
        (lambda: nn.softmax_cross_entropy(Z[:0], np.zeros(0, int)), ValueError, r"got \(0,\) for \(0, 3\)"),
        (lambda: nn.mean_squared_error(Z, Z[:, :1]), ValueError, r"t: expected shape \(2, 3\) like y, got \(2, 1\)"),
        (lambda: nn.squared_error(Z, Z[0]), ValueError, r"t: expected shape \(2, 3\) like y, got \(3,\)"),
        (lambda: nn.mean_squared_error(Z[:0], Z[:0]), ValueError, "at least one element"),
        (lambda: nn.squared_error(Z.astype(int), Z), TypeError, "y: expected a floating dtype, got int64"),
        (
            lambda: LAYERS["Linear"]()(np.ones((2, 4))),
            ValueError,
            r"Linear: x: expected .*, 5\), got \(2, 4\)",
        ),
        (lambda: LAYERS["Linear"]()(np.ones((2, 5), np.float32)), TypeError, "expected float64 .*, got float32"),
        (lambda: nn.TwoTap(rng())(np.ones(2, np.float32)), ValueError, r"at least 3 places .* got shape \(2,\)"),
    ],
)
def test_wrong_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("name", LAYERS)
def test_backward_needs_a_forward_and_its_shape(name):
    layer = LAYERS[name]()
    with pytest.raises(RuntimeError, match="call forward first"):
        layer.backward(np.ones((4, 3)))
    layer(np.ones((4, 5)))
    with pytest.raises(ValueError, match=r"dy: expected shape \(4, \d\) like the output, got \(4, 1\)"):
        layer.backward(np.ones((4, 1)))
