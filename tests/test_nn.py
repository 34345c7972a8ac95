"""Layers and losses: forward passes against naive loops, backward passes against the loss itself."""

import copy
import math
import pickle

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
    held = net.grads
    x, dy = rng().standard_normal((4, 5)), rng().standard_normal((4, 1))
    net(x)
    net.backward(dy)
    before = [g for grads in held for g in grads.values()]
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


# Layers of a user's own, as the protocol lets them be


class Scale:
    """No ``nn.Layer``: what it keeps is an attribute, its gradients are new each time."""

    def __init__(self, value=1.5):
        self.params, self.grads = {"scale": np.array([value])}, {}

    def forward(self, x, training=True):
        self.x = x
        return self.params["scale"] * x

    def backward(self, dy):
        self.grads = {"scale": np.array([(dy * self.x).sum()])}
        return self.params["scale"] * dy


class InPlace(Scale):
    """Keeps its input in memory of its own, and fills its gradients in place."""

    def __init__(self):
        super().__init__()
        self.grads = {"scale": np.zeros(1)}

    def forward(self, x, training=True):
        if not hasattr(self, "x") or self.x.shape != x.shape:
            self.x = np.empty_like(x)
        self.x[...] = x
        return self.params["scale"] * x

    def backward(self, dy):
        self.grads["scale"][...] = (dy * self.x).sum()
        return self.params["scale"] * dy


class Passing(Scale):
    """Its gradient is the very array that came in."""

    def __init__(self):
        self.params, self.grads = {"shift": np.zeros((4, 5))}, {}

    def forward(self, x, training=True):
        return x + self.params["shift"]

    def backward(self, dy):
        self.grads = {"shift": dy}
        return dy


class Cube(nn.Layer):
    def _forward(self, x):
        return x**3, x

    def _backward(self, dy, x):
        return 3 * x**2 * dy


class Weighted(nn.Linear):
    """An ``nn.Layer`` that keeps something beside: a mask of what it let through."""

    def forward(self, x, training=True):
        self.mask = np.cos(3 * x)
        return super().forward(x * self.mask.round(1), training)

    def backward(self, dy):
        return super().backward(dy) * self.mask.round(1)


class Residual:
    """A container that is no ``Sequential``."""

    def __init__(self, *inner):
        self.inner = list(inner)

    params = property(lambda self: [layer.params for layer in self.inner])
    grads = property(lambda self: [layer.grads for layer in self.inner])

    def forward(self, x, training=True):
        y = x
        for layer in self.inner:
            y = layer.forward(y, training=training)
        return x + y

    def backward(self, dy):
        g = dy
        for layer in reversed(self.inner):
            g = layer.backward(g)
        return dy + g


class Skip(nn.Sequential):
    def forward(self, x, training=True):
        return x + super().forward(x, training)

    def backward(self, dy):
        return dy + super().backward(dy)


def linear():
    return nn.Linear(5, 5, rng(), dtype=np.float64)


REUSED = {
    "ReLU": nn.ReLU,
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
    "Linear": linear,
    "WeightNormLinear": lambda: nn.WeightNormLinear(5, 5, rng(), dtype=np.float64),
    "BatchNorm": lambda: rv.BatchNorm(5, dtype=np.float64),
    "BatchNorm with relu": lambda: rv.BatchNorm(5, relu=True, dtype=np.float64),
    "LayerNorm": lambda: rv.LayerNorm(5, dtype=np.float64),
    "Scale": Scale,
    "InPlace": InPlace,
    "Passing": Passing,
    "Cube": Cube,
    "Weighted": lambda: Weighted(5, 5, rng(), dtype=np.float64),
    "Residual": lambda: Residual(linear(), nn.Tanh(), Scale()),
    "Skip": lambda: Skip(linear(), nn.Tanh()),
    "Sequential": lambda: nn.Sequential(linear(), nn.Sequential(nn.Tanh(), InPlace())),
}


def two_linears():
    return nn.Linear(5, 5, 1, dtype=np.float64), nn.Linear(5, 5, 2, dtype=np.float64)


def twice(one):
    a, b = two_linears()
    return nn.Sequential(a, one, b, one)


def in_a_row(one):
    return nn.Sequential(two_linears()[0], one, one, one)


def across_nests(one):
    a, b = two_linears()
    return nn.Sequential(nn.Sequential(a, one), b, nn.Sequential(nn.Sequential(one)), one)


def nest_twice(one):
    a, b = two_linears()
    inner = nn.Sequential(a, one)
    return nn.Sequential(inner, b, inner)


reused = pytest.mark.parametrize("name", REUSED)
placed = pytest.mark.parametrize("place", [twice, in_a_row, across_nests, nest_twice])


@reused
@placed
def test_a_layer_in_several_places_has_the_sum_of_its_gradients(name, place):
    net = place(REUSED[name]())
    leave_zero(net.params)
    x, target = rng().standard_normal((4, 5)), rng().standard_normal((4, 5))

    def loss_and_grad(tree):
        loss, dy = nn.squared_error(net(tree["x"]), target)
        dx = net.backward(dy)
        return loss, {"x": dx, "net": net.grads}

    result = rv.check_gradient(loss_and_grad, {"x": x, "net": net.params})
    assert result, result
    before = loss_and_grad({"x": x})[1]["x"].copy()
    for _ in range(2):  # filled anew each time, not added to the last time's
        loss_and_grad({"x": x})
    assert np.array_equal(net.backward(nn.squared_error(net(x), target)[1]), before)


def test_a_layer_in_several_places_is_listed_at_the_first():
    shared, act = linear(), nn.ReLU()
    net = nn.Sequential(shared, act, nn.Sequential(shared, act), shared)
    net(np.ones((2, 5)))
    net.backward(np.ones((2, 5)))
    assert [p is shared.params for p in (net.params[0], net.params[2][0], net.params[3])] == [True, False, False]
    assert [net.params[2], net.params[3], net.grads[2], net.grads[3]] == [[{}, {}], {}, [{}, {}], {}]
    assert net.grads[0] is shared.grads
    assert list(net.state_dict()) == ["0.weight", "0.bias"]
    opt = rv.SGD(net.params, lr=0.1)  # without "shares memory"
    assert opt.step(net.grads).step == 1


def test_running_statistics_of_a_layer_in_two_places_have_seen_both():
    norm, reference = (rv.BatchNorm(5, dtype=np.float64) for _ in range(2))
    net, x = nn.Sequential(norm, nn.Tanh(), norm), rng().standard_normal((6, 5))
    net(x)
    reference(np.tanh(reference(x)))
    assert all(np.array_equal(norm.buffers[name], reference.buffers[name]) for name in norm.buffers)


@reused
def test_a_layer_in_two_nets_goes_back_through_each(name):
    one = REUSED[name]()
    leave_zero(one.params)
    a, b = two_linears()
    nets = nn.Sequential(a, one), nn.Sequential(b, one)
    xs, dy = [rng().standard_normal((4, 5)) * k for k in (1, 2)], rng().standard_normal((4, 5))
    expected = []
    for net, x in zip(nets, xs, strict=True):
        net(x)
        expected.append(net.backward(dy).copy())
    for net, x in zip(nets, xs, strict=True):
        net(x)
    assert [net.backward(dy).tolist() for net in nets] == [dx.tolist() for dx in expected]


def test_a_layer_without_attributes_cannot_be_used_twice():
    class Slots:
        __slots__ = ("grads", "params", "x")

        def forward(self, x, training=True):
            self.x = x
            return x

        def backward(self, dy):
            return dy * self.x

    one = Slots()
    one.params = one.grads = {}
    assert nn.Sequential(one)(np.ones(2)).tolist() == [1, 1]
    with pytest.raises(TypeError, match=r"layers\[0\]: Slots stands in several places, and has no attributes"):
        nn.Sequential(one, one)(np.ones(2))


# Evaluation between forward and backward, and results that are kept


@reused
@pytest.mark.parametrize("nested", [False, True])
def test_an_evaluation_before_backward_changes_no_gradient(name, nested):
    def make():
        one = REUSED[name]()
        leave_zero(one.params)
        if name.startswith("BatchNorm"):
            one(3 * rng().standard_normal((8, 5)) + 1)
        return nest_twice(one) if nested else nn.Sequential(two_linears()[0], one, two_linears()[1])

    x, other, dy = (rng().standard_normal((4, 5)) * k for k in (1, 2, 3))
    plain, evaluated = make(), make()
    plain(x)
    evaluated(x)
    for batch in (other, other) if name == "Passing" else (other, other[:2], other):  # its shift has 4 rows
        evaluated.forward(batch, training=False)
    assert np.array_equal(evaluated.backward(dy), plain.backward(dy))
    ours, theirs = (rv.trees.leaves(net.grads) for net in (evaluated, plain))
    assert all(np.array_equal(ours[n], theirs[n]) for n in theirs)
    # With nothing waiting, the gradient is that of the evaluation.
    evaluated.forward(other, training=False)
    plain.forward(other, training=False)
    assert np.array_equal(evaluated.backward(dy), plain.backward(dy))


@pytest.mark.parametrize("name", [*LAYERS, "BatchNorm", "LayerNorm"])
def test_an_evaluation_of_a_single_layer_leaves_its_backward_alone(name):
    make = {**LAYERS, **REUSED}[name]
    one, two = make(), make()
    x, other = rng().standard_normal((4, 5)), 7 * rng().standard_normal((4, 5))
    y = one(x)
    two(x)
    one.forward(other, training=False)
    assert np.array_equal(one.backward(y), two.backward(y))


def test_a_net_evaluated_while_one_of_its_parts_waits():
    encoder, decoder = nn.Sequential(linear(), rv.BatchNorm(5, dtype=np.float64)), nn.Sequential(linear(), nn.Tanh())
    both, x, dy = nn.Sequential(encoder, decoder), rng().standard_normal((4, 5)), np.ones((4, 5))
    encoder(x)
    expected = encoder.backward(dy).copy()
    encoder(x)
    both.forward(2 * x, training=False)
    through_both = both.backward(dy)
    assert np.array_equal(encoder.backward(dy), expected)
    both.forward(2 * x, training=False)
    assert np.array_equal(both.backward(dy), through_both)


def test_a_forward_by_hand_through_every_layer_is_the_last_forward():
    net, x, dy = nn.Sequential(linear(), nn.Tanh()), rng().standard_normal((4, 5)), np.ones((4, 5))
    net(3 * x)
    expected = net.backward(dy)
    net(x)
    y = 3 * x
    for layer in net.layers:
        y = layer(y)
    assert np.array_equal(net.backward(dy), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*REUSED, "norm in a net"])
def test_results_that_are_kept_are_never_overwritten(name, training):
    if name == "norm in a net":
        layer = nn.Sequential(linear(), rv.LayerNorm(5, dtype=np.float64), rv.BatchNorm(5, dtype=np.float64))
    else:
        layer = REUSED[name]()
    batches = [k * rng().standard_normal((4, 5)) for k in range(1, 6)]
    results, slices, copies = [], [], []
    for x in batches:
        y = layer.forward(x, training=training)
        dx = layer.backward(np.cos(y))
        results += [y, dx]
        copies += [y.copy(), dx.copy()]
        del y, dx
        part = layer.forward(x, training=training)[1:3].T  # only a view is kept
        slices.append(part)
        copies.append(part.copy())
        results.append(part)
    assert all(np.array_equal(a, b) for a, b in zip(results, copies, strict=True))
    assert len({a.ctypes.data for a in results[::3]}) == len(batches)


# Half precision, and numbers at the ends of a dtype's range


def test_cross_entropy_of_many_rows_in_half_precision():
    loss, gradient = nn.softmax_cross_entropy(np.zeros((65_536, 4), np.float16), np.zeros(65_536, int))
    assert loss == pytest.approx(math.log(4), rel=1e-6)
    assert gradient.dtype == np.float16
    # (1/4 − 1)/65536 and (1/4)/65536, rounded to float16's last place there, 2⁻²⁴
    assert gradient[7].astype(float) == pytest.approx([-1.1444e-5, 3.8147e-6, 3.8147e-6, 3.8147e-6], abs=2.0**-25)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_cross_entropy_of_many_classes(dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    loss, gradient = nn.softmax_cross_entropy(np.zeros((1, 70_000), dtype), [3])
    assert loss == pytest.approx(math.log(70_000), rel=1e-6)  # 11.156
    assert float(gradient[0, 3]) == pytest.approx(1 / 70_000 - 1, rel=1e-2)
    assert float(gradient[0, 0]) == pytest.approx(1 / 70_000, rel=1e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_losses_of_half_precision_are_those_of_the_same_numbers_in_float32(dtype):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    y, t = (1e4 * rng().standard_normal((2, 70_000, 2))).astype(dtype)
    labels = rng().integers(0, 2, 70_000)
    for loss in (
        lambda y: nn.mean_squared_error(y, t.astype(y.dtype)),
        lambda y: nn.squared_error(y, t.astype(y.dtype)),
        lambda y: nn.softmax_cross_entropy(y, labels),
    ):
        (value, gradient), (expected, wide) = loss(y), loss(y.astype(np.float32))
        assert value == expected
        assert gradient.dtype == dtype
        assert gradient.tobytes() == wide.astype(dtype).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", [nn.Linear, nn.WeightNormLinear])
def test_gradients_of_many_rows_in_half_precision(make, dtype):
    """Sums over 5000 rows of one stay at 2048 in float16, at 256 in bfloat16, if they are taken there."""
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    layer = make(2, 1, 0, dtype=dtype)
    layer.params["weight"][...] = np.array([[0.75], [1.0]])
    x, dy = np.ones((5000, 2), dtype), np.ones((5000, 1), dtype)
    norm = 1.25 if make is nn.WeightNormLinear else 1.0
    assert float(layer(x)[0, 0]) == pytest.approx(1.75 / norm, rel=4e-3)
    dx = layer.backward(dy)
    assert dx.dtype == dtype
    assert dx[0].astype(float) == pytest.approx([0.75 / norm, 1 / norm], rel=4e-3)
    assert float(layer.grads["bias"][0]) == pytest.approx(5000 / norm, rel=4e-3)
    along = [0.75, 1.0] if norm != 1 else [0, 0]
    expected = [5000 / norm * (1 - 1.4 * w / norm) if norm != 1 else 5000 for w in along]
    assert layer.grads["weight"][:, 0].astype(float) == pytest.approx(expected, rel=4e-3)


def test_two_taps_in_half_precision_stay_in_range():
    layer = nn.TwoTap(0, dtype=np.float16)
    layer.params["a"][:] = 2.0**-4
    x = np.full((3000, 3), 60_000, np.float16)
    assert (layer(x) == 7500).all()  # 2·60000 is beyond float16
    layer.backward(np.full((3000, 1), 2.0**-13, np.float16))
    assert layer.grads["a"][0] == pytest.approx(3000 * 2.0**-13 * 120_000, rel=1e-3)
    layer(x / 60_000)
    layer.backward(np.ones((3000, 1), np.float16))
    assert (layer.grads["a"][0], layer.grads["b"][0]) == (6000, 3000)


def test_weight_norm_gradient_of_tiny_float32_weights():
    layer = nn.WeightNormLinear(2, 1, 0)
    layer.params["weight"][:, 0], layer.params["bias"][:] = (1e-22, 2e-22), 0
    x = np.array([[1.0, 3.0]], np.float32)
    assert layer(x).item() == pytest.approx(7 / math.sqrt(5), rel=1e-6)
    assert layer.backward(np.ones((1, 1), np.float32)) == pytest.approx(np.array([[1, 2]]) / math.sqrt(5), rel=1e-6)
    # (x − y·w/‖w‖)/‖w‖ = ([1, 3] − 7/5·[1, 2])/(1e-22·√5)
    expected = np.array([-0.4, 0.2]) / (1e-22 * math.sqrt(5))
    assert layer.grads["weight"][:, 0] == pytest.approx(expected, rel=1e-5)
    assert layer.grads["bias"][0] == pytest.approx(1 / (1e-22 * math.sqrt(5)), rel=1e-6)


@pytest.mark.parametrize(
    "dtype, power",
    [(np.float32, p) for p in (-140, -100, -45, 45, 100, 124)] + [(np.float64, p) for p in (-1000, -600, 600, 1015)],
)
def test_weight_norm_does_not_see_a_power_of_two_at_the_ends_of_the_range(dtype, power):
    one, other = (nn.WeightNormLinear(3, 2, 0, dtype=dtype) for _ in range(2))
    for name in one.params:
        one.params[name][...] = rng().integers(1, 8, one.params[name].shape)  # few bits: exact as subnormals, too
        other.params[name][...] = np.ldexp(one.params[name], power)
    x, dy = rng().integers(-4, 5, (2, 4, 3)).astype(dtype)
    assert np.array_equal(other(x), one(x))
    with np.errstate(over="ignore", under="ignore"):
        assert np.array_equal(other.backward(dy[:, :2]), one.backward(dy[:, :2]))
        for name in one.grads:
            assert np.array_equal(other.grads[name], np.ldexp(one.grads[name], -power))


# What goes into losses and layers


def test_losses_take_lists():
    z = [[0.0, 1.0], [2.0, 0.5]]
    loss, gradient = nn.softmax_cross_entropy(z, [0, 1])
    expected, same = nn.softmax_cross_entropy(np.array(z), np.array([0, 1]))
    assert (loss, gradient.tolist()) == (expected, same.tolist())
    assert nn.softmax_cross_entropy(np.array(z), (0, 1))[0] == expected
    for function in (nn.mean_squared_error, nn.squared_error):
        loss, gradient = function(z, [[0, 0], [1, 1]])
        expected, same = function(np.array(z), np.array([[0, 0], [1, 1]]))
        assert (loss, gradient.tolist()) == (expected, same.tolist())


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: nn.softmax_cross_entropy(Z, [[0], [1, 2]]), ValueError, "labels: expected an array or a list of numb"),
        (lambda: nn.softmax_cross_entropy(Z, ["a", "b"]), TypeError, "labels: expected an array or a list of numbers"),
        (lambda: nn.softmax_cross_entropy([[1, 2]], [0]), TypeError, "logits: expected a floating dtype, got int64"),
        (lambda: nn.squared_error(None, Z), TypeError, "y: expected an array or a list of numbers, got NoneType"),
        (lambda: nn.squared_error([1, 2], [1, 2]), TypeError, "y: expected a floating dtype, got int64"),
        (lambda: nn.ReLU()([1.0]), TypeError, "ReLU: x: expected an array, got list"),
        (lambda: nn.Tanh()([1.0]), TypeError, "Tanh: x: expected an array, got list"),
        (lambda: nn.Sigmoid()([1.0]), TypeError, "Sigmoid: x: expected an array, got list"),
        (lambda: LAYERS["Linear"]()([[1.0]]), TypeError, r"x: expected an array, got list; np.asarray\(x, np.float64"),
        (lambda: nn.Linear(2, 3, "a"), TypeError, "rng: expected a Generator .* or a seed"),
        (lambda: nn.Linear(2.5, 3, 0), TypeError, r"shape: expected an integer or a tuple of integers, got \(2.5, 3\)"),
    ],
)
def test_wrong_kinds_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("make", [lambda r: nn.Linear(5, 3, r), lambda r: nn.WeightNormLinear(5, 3, r), nn.TwoTap])
def test_a_seed_stands_for_its_generator(make):
    one, other = make(5), make(np.random.default_rng(5))
    assert all(np.array_equal(one.params[name], other.params[name]) for name in one.params)


# State, copies and pickles


def whole_net():
    shared = rv.nn.Linear(8, 8, 3)
    return nn.Sequential(
        nn.Linear(5, 8, 1),
        rv.BatchNorm(8),
        nn.ReLU(),
        nn.Sequential(shared, rv.LayerNorm(8), nn.Tanh(), shared),
        rv.BatchNorm(8, affine=False),
        nn.WeightNormLinear(8, 4, 2),
        nn.Sigmoid(),
    )


NAMES = [
    *("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"),
    *("3.0.weight", "3.0.bias", "3.1.weight", "3.1.bias"),
    *("4.running_mean", "4.running_var", "5.weight", "5.bias"),
]


def train(net, opt, seeds):
    """Give the losses' bits of some steps, and those of an evaluation."""
    seen = []
    for seed in seeds:
        draw = np.random.default_rng(seed)
        x, t = draw.standard_normal((16, 5), np.float32), draw.random((16, 4), np.float32)
        loss, dy = nn.mean_squared_error(net(x), t)
        net.backward(dy)
        opt.step(net.grads)
        seen.append(loss)
    return [*seen, net.forward(x, training=False).tobytes()]


def test_a_net_goes_on_from_its_state_bit_for_bit_buffers_included():
    one = whole_net()
    opt = rv.AdamW(one.params, lr=0.01)
    train(one, opt, range(5))
    state, of_opt = one.state_dict(), opt.state_dict()
    assert list(state) == NAMES
    assert [name for name in NAMES if "running" not in name] == list(rv.trees.leaves(one.params))
    expected = train(one, opt, range(5, 9))
    other = whole_net()
    for p in rv.trees.leaves(other.params).values():
        p[...] = 7
    again = rv.AdamW(other.params, lr=0.01)
    other.load_state_dict(state)
    again.load_state_dict(of_opt)
    assert train(other, again, range(5, 9)) == expected


@pytest.mark.parametrize(
    "layer, names",
    [
        (nn.Linear(3, 2, 0), ["weight", "bias"]),
        (nn.WeightNormLinear(3, 2, 0), ["weight", "bias"]),
        (nn.TwoTap(0), ["a", "b"]),
        (nn.ReLU(), []),
        (nn.Tanh(), []),
        (nn.Sigmoid(), []),
        (rv.BatchNorm(3), ["weight", "bias", "running_mean", "running_var"]),
        (rv.BatchNorm(3, affine=False), ["running_mean", "running_var"]),
        (rv.LayerNorm(3, scalar=True), ["weight", "bias"]),
        (rv.LayerNorm(3, affine=False), []),
        (nn.Sequential(), []),
    ],
)
def test_every_layer_has_a_state_of_its_own_arrays(layer, names):
    state = layer.state_dict()
    assert list(state) == names
    for array in state.values():
        array += 1
    assert all(not np.array_equal(layer.state_dict()[name], state[name]) for name in names)
    layer.load_state_dict(state)
    assert all(np.array_equal(layer.state_dict()[name], state[name]) for name in names)
    for array in state.values():
        array += 1
    assert all(not np.array_equal(layer.state_dict()[name], state[name]) for name in names)


def test_all_that_differs_is_listed_and_nothing_is_loaded():
    net = whole_net()
    before = net.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    del state["1.running_mean"], state["5.bias"]
    state |= {"7.weight": np.ones(2), "0.bias": np.zeros(7), "3.0.weight": np.zeros((8, 8)), "3.1.bias": 0.0}
    state["5.weight"] = state["5.weight"].tolist()
    with pytest.raises(ValueError) as error:
        net.load_state_dict(state)
    for words in (
        "missing 1.running_mean",
        "missing 5.bias",
        "unknown 7.weight",
        "0.bias: expected float32 of shape (8,), got float64 of shape (7,)",
        "3.0.weight: expected float32 of shape (8, 8), got float64 of shape (8, 8)",
        "3.1.bias: expected an array, got float",
        "5.weight: expected an array, got list",
        "Nothing was loaded.",
    ):
        assert words in str(error.value)
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())


class Counting(Scale):
    """A layer with a state that is not only arrays."""

    def __init__(self, fails=False):
        super().__init__()
        self.count, self.fails = 0, fails

    def forward(self, x, training=True):
        self.count += training
        return super().forward(x, training)

    def state_dict(self):
        return {"scale": self.params["scale"].copy(), "count": self.count}

    def load_state_dict(self, state):
        if self.fails and state["count"] == 5:
            raise ValueError("count: got 5")
        self.params["scale"][...], self.count = state["scale"], state["count"]


def test_layers_of_your_own_save_and_load_themselves_or_their_params():
    def make():
        return nn.Sequential(Scale(2.0), Counting(), nn.Sequential(Counting(fails=True)), linear())

    one, other = make(), make()
    one(np.ones((2, 5)))
    state = one.state_dict()
    assert list(state) == ["0.scale", "1.scale", "1.count", "2.0.scale", "2.0.count", "3.weight", "3.bias"]
    other.load_state_dict(state)
    assert (other.layers[1].count, other.layers[0].params["scale"][0]) == (1, 2.0)
    changed = {name: value + 4 for name, value in state.items()}
    with pytest.raises(ValueError, match="count: got 5"):
        other.load_state_dict(changed)
    np.testing.assert_equal(other.state_dict(), state)


COPIES = {
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_twin_goes_on_bit_for_bit_and_is_independent(way):
    net = whole_net()
    train(net, rv.SGD(net.params, lr=0.1), range(3))
    twin = COPIES[way](net)
    assert twin.layers[3].layers[0] is twin.layers[3].layers[3], "shared as in the original"
    mine, theirs = net.state_dict(), twin.state_dict()
    expected = train(net, rv.SGD(net.params, lr=0.1), range(3, 6))
    assert all(np.array_equal(twin.state_dict()[name], theirs[name]) for name in NAMES)
    assert all(np.array_equal(mine[name], theirs[name]) for name in NAMES)
    assert train(twin, rv.SGD(twin.params, lr=0.1), range(3, 6)) == expected


@pytest.mark.parametrize("name", [*LAYERS, "BatchNorm", "LayerNorm", "Cube", "Weighted"])
@pytest.mark.parametrize("way", [*COPIES, "copy"])
def test_a_copied_layer_is_a_twin(name, way):
    layer = {**LAYERS, **REUSED}[name]()
    x = rng().standard_normal((4, 5))
    dx = layer.backward(layer(x)).copy()
    twin = {**COPIES, "copy": copy.copy}[way](layer)
    assert type(twin) is type(layer)
    if name != "Weighted":  # what it keeps beside is its own
        with pytest.raises(RuntimeError, match="call forward first"):
            twin.backward(dx)
    for grads, others in zip(*(rv.trees.leaves(one.grads).items() for one in (layer, twin)), strict=True):
        assert grads[0] == others[0]
        assert np.array_equal(grads[1], others[1])
    mine, theirs = (
        [one.forward(x).tolist(), one.backward(x @ np.ones((5, 1)) + one.forward(x))] for one in (layer, twin)
    )
    assert mine[0] == theirs[0]
    assert np.array_equal(mine[1], theirs[1])
    for p in rv.trees.leaves(twin.params).values():
        p += 1
    assert layer.forward(x, training=False).tolist() == layer.forward(x, training=False).tolist()
    assert not any(
        np.shares_memory(a, b)
        for a in (*rv.trees.leaves(layer.params).values(), *rv.trees.leaves(layer.grads).values())
        for b in (*rv.trees.leaves(twin.params).values(), *rv.trees.leaves(twin.grads).values())
    )


@pytest.mark.parametrize(
    "make", [*LAYERS.values(), *(REUSED[n] for n in ("BatchNorm", "LayerNorm", "Cube")), whole_net]
)
def test_a_pickle_is_without_the_last_batch(make):
    small, large = make(), make()
    dtype = np.float32 if make is whole_net else np.float64
    for layer, n in ((small, 2), (large, 5000)):
        y = layer(rng().standard_normal((n, 5)).astype(dtype))
        layer.backward(y)
        layer(rng().standard_normal((n, 5)).astype(dtype))
    sizes = [len(pickle.dumps(layer)) for layer in (small, large)]
    assert sizes[0] == sizes[1]
    assert sizes[1] < 20_000


# Gradients: none before a backward, and none twice


OPTIMIZERS = {
    "SGD": lambda params, **options: rv.SGD(params, lr=0.1, **options),
    "Adam, clipped": lambda params, **options: rv.Adam(params, clip_norm=1.0, **options),
    "LAMB": rv.LAMB,
    "with a schedule": lambda params, **options: rv.SGD(params, lr=rv.schedules.constant(0.1), **options),
    "Adafactor": rv.Adafactor,
    "Muon": lambda params, **options: rv.Muon(params, **options),
}
every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def matrices():
    """A net that Muon takes, too."""
    net = nn.Sequential(Product(4, 5), nn.Tanh(), Product(5, 3))
    return net, rng().standard_normal((6, 4)).astype(np.float32)


class Product(nn.Layer):
    def __init__(self, n_in, n_out):
        super().__init__(weight=rv.init.xavier_normal((n_in, n_out), 0))

    def _forward(self, x):
        return x @ self.params["weight"], x

    def _backward(self, dy, x):
        self.grads["weight"][...] = x.T @ dy
        return dy @ self.params["weight"].T


def unchanged(net, opt):
    return [p.tobytes() for p in rv.trees.leaves(net.params).values()], opt.steps


@every_optimizer
def test_a_step_before_any_backward_raises(kind):
    net, x = matrices()
    opt = OPTIMIZERS[kind](net.params)
    assert rv.trees.leaves(net.grads) == {"0.weight": None, "2.weight": None}
    before = unchanged(net, opt)
    for forward in (False, True):
        if forward:
            net(x)
        with pytest.raises(ValueError, match=r"grads: expected at least one gradient, got None .*; run backward first"):
            opt.step(net.grads)
    assert unchanged(net, opt) == before
    net.backward(net(x))
    assert opt.step(net.grads).step == 1


@every_optimizer
def test_gradients_that_were_used_are_not_used_again(kind):
    net, x = matrices()
    opt, other = OPTIMIZERS[kind](net.params), rv.SGD(net.params, lr=0.1)
    for step in (1, 2):
        net.backward(net(x))
        assert opt.step(net.grads).step == step
        before = unchanged(net, opt)
        with pytest.raises(
            ValueError, match=r"grads\['0.weight'\], grads\['2.weight'\]: used by a step .* run backward"
        ):
            opt.step(net.grads)
        assert unchanged(net, opt) == before
        assert other.step(net.grads).step == step  # which has not used them
    assert opt.step([dict(grads) for grads in net.grads]).step == 3
    assert opt.step([{**grads} for grads in net.grads]).step == 4
    with pytest.raises(ValueError, match="used by a step"):
        opt.step(net.grads)


def test_stale_gradients_of_one_layer_are_named():
    a, b = nn.Linear(3, 3, 0), nn.Linear(3, 3, 1)
    x = np.ones((2, 3), np.float32)
    opt = rv.SGD({"a": a.params, "b": b.params}, lr=0.1)
    for layer in (a, b):
        layer.backward(layer(x))
    opt.step({"a": a.grads, "b": b.grads})
    a.backward(a(x))
    with pytest.raises(ValueError, match=r"^grads\['b.weight'\]: used by a step"):
        opt.step({"a": a.grads, "b": b.grads})
    assert opt.step({"a": a.grads, "b": dict.fromkeys(b.grads)}).step == 2


def test_a_layer_without_a_backward_is_left_out():
    a, b = nn.Linear(3, 3, 0), nn.Linear(3, 3, 1)
    opt = rv.SGD({"a": a.params, "b": b.params}, lr=0.1)
    for step in (1, 2):
        a.backward(a(np.ones((2, 3), np.float32)))
        assert opt.step({"a": a.grads, "b": b.grads}).step == step
    assert opt.state_dict()["updates"] == {"a.weight": 2, "a.bias": 2, "b.weight": 0, "b.bias": 0}


def test_accumulating_counts_as_using():
    net, x = matrices()
    opt = rv.SGD(net.params, lr=0.1)
    opt.accumulate(net.grads)  # a micro-batch may have no gradient
    with pytest.raises(ValueError, match="expected at least one gradient"):
        opt.step()
    opt.discard_accumulated()
    for _ in range(2):
        net.backward(net(x))
        opt.accumulate(net.grads)
        with pytest.raises(ValueError, match="used by a step"):
            opt.accumulate(net.grads)
    assert opt.step().step == 1
    with pytest.raises(ValueError, match="used by a step"):
        opt.step(net.grads)


def test_skipped_and_raising_steps():
    net, x = matrices()
    skipping, raising = (rv.SGD(net.params, lr=0.1, nonfinite=policy) for policy in ("skip", "raise"))
    scaled = rv.SGD(net.params, lr=0.1)
    net.backward(net(x))
    kept = net.grads[0]["weight"].copy()
    net.grads[0]["weight"][0, 0] = np.inf
    assert skipping.step(net.grads).skipped
    assert scaled.step(net.grads, grad_scale=rv.DynamicLossScale(8)).skipped
    for opt in (skipping, scaled):
        with pytest.raises(ValueError, match="used by a step"):
            opt.step(net.grads)
    for _ in range(2):
        with pytest.raises(FloatingPointError):
            raising.step(net.grads)
    net.grads[0]["weight"][...] = kept  # nothing was changed: mended, they may be used
    assert raising.step(net.grads).step == 1


def test_gradients_with_rows_are_counted_too():
    class Embedding(nn.Layer):
        def __init__(self):
            super().__init__(table=np.ones((4, 2)))

        def _forward(self, rows):
            return self.params["table"][rows], rows

        def _backward(self, dy, rows):
            self.grads["table"] = rv.RowSparse(rows, dy)
            return dy

    layer = Embedding()
    opt = rv.SGD(layer.params, lr=0.5)
    for step in (1, 2):
        layer.backward(layer(np.array([1, 3])))
        assert opt.step(layer.grads).step == step
        with pytest.raises(ValueError, match=r"grads\['table'\]: used by a step"):
            opt.step(layer.grads)
    assert layer.params["table"].tolist() == [[1, 1], [0.25, 0.25], [1, 1], [0.25, 0.25]]


def test_whatever_calls_backward_often_is_not_disturbed():
    net = nn.Sequential(nn.Linear(4, 3, 0, dtype=np.float64), nn.Tanh(), nn.Linear(3, 1, 1, dtype=np.float64))
    x, t = rng().standard_normal((8, 4)), np.ones((8, 1))

    def loss_and_grad(params):
        loss, dy = nn.mean_squared_error(net(x), t)
        net.backward(dy)
        return loss, net.grads

    assert rv.check_gradient(loss_and_grad, net.params)
    assert rv.minimize(loss_and_grad, net.params, lambda p: rv.SGD(p, lr=0.1), max_iterations=5).message
    assert np.isfinite(rv.hessian.trace(loss_and_grad, net.params, probes=2).value)
    twin = copy.deepcopy(net)
    assert rv.Adam(twin.params, lr=0.01).step(twin.grads).step == 1


def test_a_failing_first_backward_leaves_no_gradients():
    class Failing(nn.Layer):
        def __init__(self):
            super().__init__(w=np.ones(2))

        def _forward(self, x):
            return x, x

        def _backward(self, dy, x):
            raise FloatingPointError

    layer = Failing()
    layer(np.ones(2))
    with pytest.raises(FloatingPointError):
        layer.backward(np.ones(2))
    assert layer.grads == {"w": None}
    with pytest.raises(ValueError, match="run backward first"):
        rv.SGD(layer.params, lr=0.1).step(layer.grads)


@pytest.mark.parametrize("name", ["Weighted", "Skip"])
def test_calling_a_layer_is_its_own_forward(name):
    layer, x = REUSED[name](), rng().standard_normal((4, 5))
    assert np.array_equal(layer(x), layer.forward(x))
