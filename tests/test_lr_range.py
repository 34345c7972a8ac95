"""lr_range_test: rates rise, losses are those of training, and afterwards nothing has happened."""

import math

import numpy as np
import pytest

import ravine as rv


def quadratic(curvature):
    return lambda w: (0.5 * curvature * float((w * w).sum()), curvature * w)


def bits(opt, *arrays):
    """Everything that a next step depends on."""
    state = opt.state_dict()
    parts = [state["step"], state["updates"], [opt._engine.hyper(g, "lr") for g in range(len(opt._values))]]
    parts += [{k: s.tobytes() for k, s in named.items()} for named in state["states"].values()]
    return [*parts, *(a.tobytes() for a in arrays)]


OPTIMIZERS = {
    "momentum": lambda p: rv.SGD(p, lr=0.01, momentum=0.9),
    "adam": lambda p: rv.Adam(p, lr=rv.schedules.cosine(0.01, 100)),
    "first": lambda p: rv.RMSprop(p, first="square"),
    "groups": lambda p: rv.AdamW(p, lr=0.01, groups=[("b", {"lr": 0.001})]),
    "schedules": lambda p: rv.Lion(
        p, lr=rv.schedules.warmup(9) * 0.1, betas=(rv.schedules.linear(0.5, 0.9, 9), 0.99), weight_decay=0.1
    ),
    "raises": lambda p: rv.Adam(p, nonfinite="raise", clip_norm=1.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_parameters_and_optimizer_are_restored_bit_for_bit(name, steps_before, dtype, gpu):
    for xp in (np, gpu):
        wide = xp.zeros((3, 4), dtype)
        params = {"w": wide[:, 1], "b": xp.asarray([0.1, -0.0], dtype)}
        twin = {"w": params["w"].copy(), "b": params["b"].copy()}
        opt, other = OPTIMIZERS[name](params), OPTIMIZERS[name](twin)

        def loss_and_grad(p):
            loss = sum(float(((a.astype(np.float64) - 1) ** 2).sum()) for a in p.values())
            return loss, {k: 2 * (a - 1) for k, a in p.items()}

        for _ in range(steps_before):
            opt.step(loss_and_grad(params)[1])
            other.step(loss_and_grad(twin)[1])
        found = rv.lr_range_test(loss_and_grad, params, opt, lr_min=1e-3, lr_max=10.0, steps=20)
        assert len(found.lrs) > 5
        assert bits(opt, *params.values()) == bits(other, *twin.values())
        assert repr(opt) == repr(other)
        for _ in range(3):
            opt.step(loss_and_grad(params)[1])
            other.step(loss_and_grad(twin)[1])
        assert bits(opt, *params.values()) == bits(other, *twin.values())
        assert not wide[:, 0].any()


def test_an_error_restores_too():
    w, calls = np.array([1.0, -0.0]), []
    opt = rv.Adam(w, lr=rv.schedules.cosine(0.01, 100))
    before = bits(opt, w)

    def loss_and_grad(w):
        calls.append(None)
        if len(calls) == 5:
            raise ZeroDivisionError
        return 1.0, np.ones(2)

    with pytest.raises(ZeroDivisionError):
        rv.lr_range_test(loss_and_grad, w, opt)
    assert bits(opt, w) == before
    assert opt.step(np.ones(2)).lr == 0.01


def test_rates_rise_geometrically_and_losses_are_those_of_training():
    """w ← (1 − γᵢ)w: the loss before step i is ½Π(1 − γⱼ)² over the earlier ones."""
    w = np.array([1.0])
    found = rv.lr_range_test(quadratic(1.0), w, rv.SGD(w, lr=5.0), lr_min=0.01, lr_max=0.81, steps=5)
    assert found.lrs == pytest.approx([0.01, 0.03, 0.09, 0.27, 0.81])
    shrunk = np.cumprod([1.0, *(1 - found.lrs[:-1])])
    assert found.losses == pytest.approx(0.5 * shrunk**2)
    assert found.smoothed.tolist() == found.losses.tolist()
    assert found.message.startswith("all rates up to 0.81 were tried and the loss did not explode")


def test_smoothing_is_the_running_average_corrected_for_its_start():
    losses = [4.0, 2.0, 3.0, 1.0]
    w = np.array([1.0])
    found = rv.lr_range_test(
        lambda w, loss: (loss, 0 * w), w, rv.SGD(w, lr=1.0), [(x,) for x in losses], steps=4, smoothing=0.5
    )
    weights = [[0.5 ** (i - j) for j in range(i + 1)] for i in range(4)]
    assert found.smoothed == pytest.approx(
        [sum(a * b for a, b in zip(v, losses, strict=False)) / sum(v) for v in weights]
    )


@pytest.mark.parametrize("curvature", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_suggestion_is_stable_and_the_explosion_is_where_theory_says(curvature, momentum):
    """Gradient descent grows where γ > 2(1 + μ)/λ, so no explosion comes before, and no suggestion after."""
    w = np.array([1.0])
    found = rv.lr_range_test(
        quadratic(curvature), w, rv.SGD(w, lr=1.0, momentum=momentum), lr_min=1e-5 / curvature, lr_max=1e3 / curvature
    )
    limit = 2 * (1 + momentum) / curvature
    assert "exploded" in found.message
    assert found.lrs[-1] > limit
    assert limit / 1000 < found.suggested < limit
    best = np.minimum.accumulate(found.losses)
    assert (found.losses > best + 3 * (found.losses[0] - best)).tolist() == [False] * (len(best) - 1) + [True]


@pytest.mark.parametrize("curvatures", [[0.01], [1.0], [100.0], [1.0, 100.0], [0.01, 1.0, 100.0]])
@pytest.mark.parametrize("steps", [5, 10, 30, 100])
@pytest.mark.parametrize("start", [1.0, 1e3])
def test_the_suggestion_trains_on_quadratics_however_few_rates_are_tried(curvatures, steps, start):
    """The loss that belongs to a rate is the one after its step: gradient descent grows above 2/λ."""
    c = np.array(curvatures)
    w = start / c
    found = rv.lr_range_test(lambda w: (0.5 * float(c @ (w * w)), c * w), w, rv.SGD(w, lr=0.1), steps=steps)
    assert found.suggested < 2 / c.max()


RULES = {
    "momentum": lambda w, lr: rv.SGD(w, lr=lr, momentum=0.9),
    "adam": lambda w, lr: rv.Adam(w, lr=lr),
    "rmsprop": lambda w, lr: rv.RMSprop(w, lr=lr),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [10, 100])
def test_other_rules_train_at_their_suggestion(rule, steps):
    c, w = np.array([1.0, 100.0]), np.array([1.0, 1.0])

    def loss_and_grad(w):
        return 0.5 * float(c @ (w * w)), c * w

    found = rv.lr_range_test(loss_and_grad, w, RULES[rule](w, 0.1), steps=steps)
    opt, before = RULES[rule](w, found.suggested), loss_and_grad(w)[0]
    for _ in range(200):
        opt.step(loss_and_grad(w)[1])
    assert loss_and_grad(w)[0] <= before


def test_a_rate_that_falls_at_first_and_then_explodes_is_not_suggested():
    """The steep direction, small at the start, has grown where the flat one falls fastest; 50 steps show it."""
    c, w = np.array([1.0, 100.0]), np.array([100.0, 0.01])
    found = rv.lr_range_test(lambda w: (0.5 * float(c @ (w * w)), c * w), w, rv.SGD(w, lr=0.1), steps=30)
    assert found.suggested < 0.02
    assert "where 50 steps raise it; at " in found.message
    assert w.tolist() == [100.0, 0.01]


def test_the_suggestion_is_where_the_loss_falls_fastest():
    w = np.array([1.0])
    losses = [10.0, 10.0, 9.0, 5.0, 1.0, 0.5, 0.4, 0.5, 30.0, 0.0]
    found = rv.lr_range_test(
        lambda w, loss: (loss, 0 * w), w, rv.SGD(w, lr=1.0), losses, lr_min=1.0, lr_max=512.0, steps=10, smoothing=0
    )
    assert found.suggested == pytest.approx(8.0)  # (1 − 9)/2 is the steepest of central differences, at the fourth
    assert len(found.losses) == 9
    assert found.message == "the loss exploded at the rate 2.6e+02; it falls fastest at 8"


def test_what_falls_after_the_lowest_loss_is_not_asked():
    w = np.array([1.0])
    losses = [10.0, 9.0, 4.0, 1.0, 2.0, 30.0, 1.5, 1.4]
    found = rv.lr_range_test(
        lambda w, loss: (loss, 0 * w), w, rv.SGD(w, lr=1.0), losses, lr_min=1, lr_max=128, steps=8, smoothing=0
    )
    assert len(found.losses) == 6
    again = rv.lr_range_test(
        lambda w, loss: (loss, 0 * w),
        w,
        rv.SGD(w, lr=1.0),
        losses,
        lr_min=1,
        lr_max=128,
        steps=8,
        smoothing=0,
        stop_factor=9.0,
    )
    assert len(again.losses) == 8
    assert found.suggested == again.suggested == pytest.approx(4.0)


def test_a_loss_below_zero_does_not_end_the_test_while_it_falls():
    w = np.array([1.0])
    losses = [-2.0, -1.5, -3.0, -5.0, -6.0, 11.9, 12.1, 0.0]
    found = rv.lr_range_test(lambda w, loss: (loss, 0 * w), w, rv.SGD(w, lr=1.0), losses, steps=8, smoothing=0)
    assert found.losses.tolist() == losses[:7]  # −6 + 3·|−6| = 12 is the limit


def test_a_loss_that_never_falls_gets_no_suggestion():
    w = np.array([1.0])
    found = rv.lr_range_test(lambda w: (float(w[0]), -np.ones(1)), w, rv.SGD(w, lr=1.0))
    assert found.suggested is None
    assert found.message.endswith("the loss does not fall at any of these rates")


def test_the_first_points_of_a_smoothed_loss_are_not_asked():
    """The fall from 10 to 5 is noise of the second batch; the one that counts comes at the 20th."""
    losses = [10.0, 5.0] + [7.0] * 17 + list(np.linspace(6, 1, 11))
    w = np.array([1.0])
    found = rv.lr_range_test(lambda w, loss: (loss, 0 * w), w, rv.SGD(w, lr=1.0), losses, steps=30, smoothing=0.9)
    assert found.suggested >= found.lrs[19]
    assert np.gradient(found.smoothed, np.log(found.lrs)).argmin() < 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_test(bad):
    w = np.array([1.0])
    found = rv.lr_range_test(
        lambda w, loss: (loss, 0 * w), w, rv.SGD(w, lr=1.0), [3.0, 2.0, 1.0, bad], lr_min=1, lr_max=1e4, steps=5
    )
    assert found.message.startswith("the loss is not finite from the rate 1e+03 on")
    assert found.losses.tolist() == [3.0, 2.0, 1.0]


def test_gradients_that_the_optimizer_refuses_end_the_test():
    w = np.array([1.0])
    opt = rv.SGD(w, lr=1.0, nonfinite="raise")
    found = rv.lr_range_test(
        lambda w, g: (1.0, np.array([g])), w, opt, [1.0, 1.0, math.nan], lr_min=1, lr_max=100, steps=3
    )
    assert found.message.startswith("the gradients are not finite from the rate 1e+02 on")
    assert w.tolist() == [1.0]


def test_batches_are_arguments_and_start_again_where_they_can():
    w, seen = np.array([1.0]), []

    def loss_and_grad(w, *batch):
        seen.append(batch)
        return 1.0, 0 * w

    opt = rv.SGD(w, lr=1.0)
    rv.lr_range_test(loss_and_grad, w, opt, [(1, 2), [3], 4], steps=5)
    assert seen == [(1, 2), (3,), (4,), (1, 2), (3,)]
    found = rv.lr_range_test(loss_and_grad, w, opt, iter([1, 2, 3]), steps=5, lr_min=1, lr_max=1e4)
    assert found.message.startswith("the batches ended after 3 steps, at the rate 1e+02")
    assert len(found.lrs) == len(found.losses) == len(found.smoothed) == 3


@pytest.mark.parametrize("scheduled", [False, True])
def test_groups_keep_the_ratios_of_their_rates(scheduled):
    params = {"a": np.array([0.0]), "b": np.array([0.0])}
    lr = rv.schedules.constant(0.5) if scheduled else 0.5
    opt, places = rv.SGD(params, lr=lr, groups=[("b", {"lr": 0.05})]), []

    def loss_and_grad(p):
        places.append((float(p["a"][0]), float(p["b"][0])))
        return 1.0, {"a": -np.ones(1), "b": -np.ones(1)}

    rv.lr_range_test(loss_and_grad, params, opt, lr_min=1.0, lr_max=100.0, steps=3)
    assert places == [(0, 0), (1, pytest.approx(0.1)), (11, pytest.approx(1.1))]
    assert opt.lr == 0.5


def test_a_warm_up_that_starts_at_zero_is_put_aside():
    w = np.array([1.0])
    opt = rv.SGD(w, lr=rv.schedules.linear(0.0, 0.1, 10))
    found = rv.lr_range_test(quadratic(1.0), w, opt, lr_min=0.5, lr_max=0.6, steps=3)
    assert found.losses[:2] == pytest.approx([0.5, 0.125])
    assert [opt.step(np.zeros(1)).lr for _ in range(2)] == pytest.approx([0.0, 0.01])


W = np.ones(2)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"lr_min": 0.0}, ValueError, "lr_min, lr_max: expected 0 < lr_min < lr_max, got 0.0"),
        ({"lr_min": 2.0, "lr_max": 1.0}, ValueError, "lr_min, lr_max"),
        ({"lr_max": math.nan}, ValueError, "lr_min, lr_max"),
        ({"steps": 2}, ValueError, "steps: expected an integer >= 3, got 2"),
        ({"smoothing": 1.0}, ValueError, r"smoothing: expected a number in \[0, 1\), got 1.0"),
        ({"stop_factor": 1.0}, ValueError, "stop_factor: expected a finite number > 1, got 1.0"),
        ({"params": np.ones(2)}, ValueError, "params: expected the arrays that the optimizer was made from"),
        ({"params": {"w": W, "b": np.ones(1)}}, ValueError, "params: expected the arrays"),
        ({"optimizer": "adam"}, TypeError, "optimizer: expected one of ravine's, got str"),
        ({"batches": []}, ValueError, "batches: expected at least one, got none"),
        ({"loss_and_grad": lambda w: (math.nan, w)}, ValueError, "expected a finite loss at the start, got nan"),
    ],
)
def test_wrong_arguments_are_named(options, error, words):
    given = {"loss_and_grad": lambda w: (1.0, w), "params": W, "optimizer": rv.SGD(W, lr=1.0)}
    with pytest.raises(error, match=words):
        rv.lr_range_test(**{**given, **options})
