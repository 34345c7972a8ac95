"""ravine.torch is torch.optim: the same numbers, groups, schedulers and checkpoints; and right where that is not."""

import contextlib
import copy
import io
import os
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-adapters")

import ravine.torch  # noqa: E402
from ravine.backends import foreign  # noqa: E402
from tests.cuda_on_cpu import cupy_like  # noqa: E402

REAL_GPU = bool(os.environ.get("RAVINE_GPU"))

#: Class and options; the same in torch, but for Lion.
CASES = {
    "AdamW": ("AdamW", {"lr": 0.1}),
    "AdamW, every number": ("AdamW", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
    "AdamW, amsgrad, maximize": ("AdamW", {"lr": 0.1, "amsgrad": True, "maximize": True}),
    "Adam": ("Adam", {"lr": 0.1}),
    "Adam, coupled decay, amsgrad": ("Adam", {"lr": 0.1, "weight_decay": 0.2, "amsgrad": True}),
    "Adam, coupled decay, maximize": ("Adam", {"lr": 0.1, "weight_decay": 0.2, "maximize": True}),
    "Adam, decoupled decay": ("Adam", {"lr": 0.1, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    "SGD": ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    "SGD, momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "maximize": True}),
    "SGD, dampening": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    "SGD, nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "RMSprop": ("RMSprop", {"lr": 0.1, "alpha": 0.9, "weight_decay": 0.1}),
    "RMSprop, centered": ("RMSprop", {"lr": 0.1, "centered": True, "eps": 1e-3}),
    "RMSprop, momentum": ("RMSprop", {"lr": 0.1, "momentum": 0.9, "maximize": True}),
    "RMSprop, both": ("RMSprop", {"lr": 0.1, "momentum": 0.9, "centered": True}),
    "Adagrad": ("Adagrad", {"lr": 0.1, "weight_decay": 0.1}),
    "Adagrad, every number": (
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3, "maximize": True},
    ),
}
every_case = pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
SHAPES = [(4, 5), (3,), (), (2, 3, 4)]


def parameters(seed=0, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def give_gradients(step, *lists):
    """Give all lists the same new gradients."""
    generator = torch.Generator().manual_seed(100 + step)
    for tensors in zip(*lists, strict=True):
        g = torch.randn(tensors[0].shape, generator=generator, dtype=tensors[0].dtype)
        for tensor in tensors:
            tensor.grad = g.clone()


def assert_near(got, expected, ulps=64):
    """A few units in the last place: of Adam's 1 − 0.999ᵗ, one unit of 0.999ᵗ is a thousand at t = 1."""
    for a, b in zip(got, expected, strict=True):
        tolerance = ulps * torch.finfo(b.dtype).eps
        torch.testing.assert_close(a.detach(), b.detach(), rtol=tolerance, atol=tolerance)


def pair(kind, options, ours, theirs):
    return getattr(ravine.torch, kind)(ours, **options), getattr(torch.optim, kind)(theirs, **options)


# The same numbers


@every_case
def test_twenty_steps_equal_torchs(kind, options):
    ours, theirs = parameters(), parameters()
    optimizers = pair(kind, options, ours, theirs)
    for step in range(20):
        give_gradients(step, ours, theirs)
        for optimizer in optimizers:
            optimizer.step()
    assert_near(ours, theirs)


def test_lion_equals_its_paper():
    (w,) = parameters(shapes=[(4, 5)])
    optimizer = ravine.torch.Lion([w], lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)
    expected, m = w.detach().numpy().copy(), np.zeros((4, 5))
    for step in range(20):
        give_gradients(step, [w])
        optimizer.step()
        g = w.grad.numpy()
        expected = (1 - 0.01 * 0.1) * expected - 0.01 * np.sign(0.8 * m + (1 - 0.8) * g)
        m = 0.9 * m + (1 - 0.9) * g
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-13)
    np.testing.assert_allclose(optimizer.state[w]["exp_avg"].numpy(), m, rtol=1e-13)


@every_case
def test_the_bits_are_those_of_the_arrays(kind, options):
    """The class of the same name in ravine, on NumPy arrays, gives the very bits."""
    options = dict(options)
    if options.pop("decoupled_weight_decay", False):
        kind = "AdamW"
    if options.pop("lr_decay", 0) or options.pop("initial_accumulator_value", 0):
        pytest.skip("only torch's Adagrad has lr_decay and a start")
    ours = parameters(dtype=torch.float32)
    arrays = [p.detach().clone().numpy() for p in ours]
    first = getattr(ravine.torch, kind)(ours, **options)
    names = {"alpha": "decay"} | ({} if kind == "AdamW" else {"weight_decay": "l2"})
    second = getattr(ravine, kind)(arrays, **{names.get(name, name): value for name, value in options.items()})
    for step in range(5):
        give_gradients(step, ours)
        first.step()
        second.step([p.grad.numpy() for p in ours])
    assert all(np.array_equal(p.detach().numpy(), array) for p, array in zip(ours, arrays, strict=True))


# Right where torch's fused step is not

LAYOUTS = {
    "transposed": lambda w: w.clone().T.contiguous().T,
    "strided": lambda w: torch.zeros(8, 10, dtype=w.dtype)[::2, ::2].copy_(w),
    "a column": lambda w: torch.zeros(4, 5, 3, dtype=w.dtype)[..., 1].copy_(w),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@every_case
def test_parameters_that_are_not_contiguous_equal_contiguous_ones(kind, options, layout):
    (theirs,) = parameters(shapes=[(4, 5)])
    ours = LAYOUTS[layout](theirs.detach()).requires_grad_()
    assert not ours.is_contiguous()
    optimizers = pair(kind, options, [ours], [theirs])
    for step in range(20):
        give_gradients(step, [ours], [theirs])
        for optimizer in optimizers:
            optimizer.step()
    assert_near([ours], [theirs])


def test_memory_between_the_elements_of_a_strided_parameter_stays():
    whole = torch.zeros(8, 10)
    w = whole[::2, ::2].requires_grad_()
    w.grad = torch.ones(4, 5)
    ravine.torch.AdamW([w], lr=0.1).step()
    assert (whole[::2, ::2] != 0).all()
    assert whole[1::2].eq(0).all()
    assert whole[:, 1::2].eq(0).all()


def test_gradients_may_have_any_layout():
    ours, theirs = parameters(shapes=[(4, 5)]), parameters(shapes=[(4, 5)])
    optimizers = pair("AdamW", {}, ours, theirs)
    give_gradients(0, ours, theirs)
    ours[0].grad = ours[0].grad.T.contiguous().T
    for optimizer in optimizers:
        optimizer.step()
    assert_near(ours, theirs)


def test_channels_last_models_train_alike():
    def model(memory_format):
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3))
        return layers.double().to(memory_format=memory_format)

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = model(torch.channels_last), model(torch.contiguous_format)
    optimizers = pair("AdamW", {"lr": 0.01}, ours.parameters(), theirs.parameters())
    for _ in range(5):
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    assert_near(ours.parameters(), theirs.parameters())


# Groups, schedulers, closures, scalers


def test_groups_have_values_of_their_own_and_may_be_added():
    ours, theirs = parameters(), parameters()

    def make(kind, tensors):
        groups = [{"params": tensors[0], "lr": 0.3}, {"params": tensors[1:3], "weight_decay": 0.5, "maximize": True}]
        return kind(groups, lr=0.1)

    optimizers = make(ravine.torch.AdamW, ours), make(torch.optim.AdamW, theirs)
    for step in range(10):
        if step == 5:
            for optimizer, tensors in zip(optimizers, (ours, theirs), strict=True):
                optimizer.add_param_group({"params": tensors[3:], "betas": (0.5, 0.9), "amsgrad": True})
        give_gradients(step, ours, theirs)
        for optimizer in optimizers:
            optimizer.step()
    assert_near(ours, theirs)


def test_all_groups_of_one_rule_are_one_step_of_one_engine():
    ours = parameters()
    optimizer = ravine.torch.AdamW([{"params": [p], "lr": 0.1 * i} for i, p in enumerate(ours)])
    give_gradients(0, ours)
    optimizer.step()
    bound = optimizer._bindings
    assert [len(binding.slots) for binding in bound] == [len(ours)]
    for step in range(3):
        optimizer.zero_grad()
        give_gradients(step, ours)
        optimizer.step()
    assert optimizer._bindings is bound


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 12),  # changes betas and momentum, too
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    ],
    ids=["StepLR", "CosineAnnealingLR", "OneCycleLR", "LambdaLR"],
)
@pytest.mark.parametrize(("kind", "options"), [("AdamW", {}), ("SGD", {"momentum": 0.9}), ("Adagrad", {})])
def test_schedulers_take_effect(kind, options, scheduler, request):
    if kind == "Adagrad" and "OneCycleLR" in request.node.name:
        pytest.skip("it has no momentum to cycle")
    ours, theirs = parameters(), parameters()
    optimizers = pair(kind, {"lr": 0.1, **options}, ours, theirs)
    schedulers = [scheduler(optimizer) for optimizer in optimizers]
    for step in range(10):
        give_gradients(step, ours, theirs)
        for each in (*optimizers, *schedulers):
            each.step()
    assert_near(ours, theirs)


def test_values_changed_by_hand_take_effect():
    ours, theirs = parameters(), parameters()
    optimizers = pair("SGD", {"lr": torch.tensor(0.1)}, ours, theirs)
    for step in range(12):
        give_gradients(step, ours, theirs)
        for optimizer in optimizers:
            group = optimizer.param_groups[0]
            if step == 3:
                group["lr"] = 0.01
            if step == 5:
                group["momentum"] = 0.9  # another rule
            if step == 7:
                group["nesterov"] = True
            if step == 9:
                group["weight_decay"] = 0.5
            optimizer.step()
    assert_near(ours, theirs)


def test_a_closure_is_run_with_gradients_and_its_loss_returned():
    (w,) = parameters(shapes=[(3,)])
    optimizer = ravine.torch.SGD([w], lr=0.25)
    before = w.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == float(before.square().sum())
    assert torch.equal(w.detach(), before / 2)


def test_parameters_without_gradient_are_left_and_their_updates_not_counted():
    ours, theirs = parameters(), parameters()
    optimizers = pair("Adagrad", {"lr": 0.1, "lr_decay": 0.5}, ours, theirs)
    for step in range(8):
        give_gradients(step, ours, theirs)
        for tensors, optimizer in zip((ours, theirs), optimizers, strict=True):
            if step % 2:
                tensors[1].grad = None
            if step < 3:
                tensors[2].grad = None  # joins later
            optimizer.step()
    assert_near(ours, theirs)
    assert [float(optimizers[0].state[p]["step"]) for p in ours] == [8, 4, 5, 8]


def test_frozen_parameters_get_no_states():
    a, b = parameters(shapes=[(3,), (3,)])
    a.grad = torch.ones(3, dtype=torch.float64)
    optimizer = ravine.torch.AdamW([a, b])
    optimizer.step()
    assert list(optimizer.state) == [a]


@pytest.mark.parametrize("unscale_by_hand", [False, True])
def test_grad_scaler(unscale_by_hand):
    runs = []
    for kind in (ravine.torch.AdamW, torch.optim.AdamW):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        optimizer = kind(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        scales = []
        for step in range(8):
            optimizer.zero_grad()
            x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
            scaler.scale(model(x).square().mean()).backward()
            if step == 4:
                model.weight.grad[0, 0] = torch.inf
            if unscale_by_hand:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            before = model.weight.detach().clone()
            scaler.step(optimizer)
            assert torch.equal(before, model.weight) == (step == 4)
            scaler.update()
            scales.append(scaler.get_scale())
        runs.append((list(model.parameters()), scales, float(optimizer.state[model.weight]["step"])))
    (ours, *rest), (theirs, *expected) = runs
    assert_near(ours, theirs)
    assert rest == expected
    assert rest[1] == 7


def test_hooks_run():
    (w,) = parameters(shapes=[(3,)])
    optimizer, said = ravine.torch.SGD([w], lr=0.1), []
    optimizer.register_step_pre_hook(lambda *_: said.append("before"))
    optimizer.register_step_post_hook(lambda *_: said.append("after"))
    w.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    assert said == ["before", "after"]


def test_autograd_sees_that_parameters_changed():
    w = torch.ones(3, requires_grad=True)
    w.grad = torch.ones(3)
    loss = w.square().sum()
    ravine.torch.SGD([w], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_small_model_learns():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = ravine.torch.AdamW(model.named_parameters(), lr=0.02)
    x = torch.rand(256, 2) * 2 - 1
    y = x[:, :1] * x[:, 1:]
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 50


# Checkpoints


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_case
@pytest.mark.parametrize("from_torch", [True, False], ids=["torch's", "ours"])
def test_a_checkpoint_goes_on_in_the_other_library(kind, options, from_torch):
    whole, handed_over = parameters(), parameters()
    libraries = (torch.optim, ravine.torch) if from_torch else (ravine.torch, torch.optim)
    first = getattr(libraries[0], kind)(whole, **options)
    for step in range(7):
        give_gradients(step, whole)
        first.step()
    with torch.no_grad():
        for a, b in zip(handed_over, whole, strict=True):
            a.copy_(b)
    second = getattr(libraries[1], kind)(handed_over, **options)
    second.load_state_dict(through_a_file(first.state_dict()))
    for step in range(7, 14):
        give_gradients(step, whole, handed_over)
        first.step()
        second.step()
    assert_near(handed_over, whole)


@every_case
def test_the_state_dict_has_torchs_names_and_shapes(kind, options):
    ours, theirs = parameters(), parameters()
    optimizers = pair(kind, options, ours, theirs)
    give_gradients(0, ours, theirs)
    for optimizer in optimizers:
        optimizer.step()
    first, second = (optimizer.state_dict() for optimizer in optimizers)
    assert first["param_groups"] == second["param_groups"]
    described = [
        {i: {k: tuple(v.shape) for k, v in s.items() if v is not None} for i, s in d["state"].items()}
        for d in (first, second)
    ]
    assert described[0] == {i: s for i, s in described[1].items() if s}
    for i, states in first["state"].items():
        assert_near(list(states.values()), [second["state"][i][name] for name in states])


@every_case
def test_a_run_resumes_bit_for_bit(kind, options):
    whole, parts = parameters(), parameters()
    one, two = getattr(ravine.torch, kind)(whole, **options), getattr(ravine.torch, kind)(parts, **options)
    for step in range(10):
        if step == 5:
            saved = through_a_file(two.state_dict())
            two = getattr(ravine.torch, kind)(parts, **options)
            two.load_state_dict(saved)
        give_gradients(step, whole, parts)
        one.step()
        two.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_checkpoints_of_transposed_parameters_go_on():
    (theirs,) = parameters(shapes=[(4, 5)])
    theirs = LAYOUTS["transposed"](theirs.detach()).requires_grad_()
    first = torch.optim.AdamW([theirs], foreach=True)
    give_gradients(0, [theirs])
    first.step()
    assert not first.state[theirs]["exp_avg"].is_contiguous()
    ours = LAYOUTS["transposed"](theirs.detach()).requires_grad_()
    second = ravine.torch.AdamW([ours])
    second.load_state_dict(through_a_file(first.state_dict()))
    assert second.param_groups[0]["foreach"] is None  # how torch ran is not gone on with
    give_gradients(1, [ours], [theirs])
    first.step()
    second.step()
    assert_near([ours], [theirs])


def test_checkpoints_from_before_an_option_was_there_go_on():
    ours, theirs = parameters(), parameters()
    first, second = ravine.torch.AdamW(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    give_gradients(0, ours, theirs)
    second.step()
    saved = through_a_file(second.state_dict())
    for option in ("decoupled_weight_decay", "maximize", "foreach", "fused"):
        del saved["param_groups"][0][option]
    first.load_state_dict(saved)
    assert first.param_groups[0]["decoupled_weight_decay"] is True
    assert first.param_groups[0]["maximize"] is False
    # An Adam's, too: AdamW's decay is decoupled, whatever the checkpoint says.
    first.load_state_dict(torch.optim.Adam(theirs).state_dict())
    assert first.param_groups[0]["decoupled_weight_decay"] is True


def test_a_buffer_that_is_none_is_none():
    ours, theirs = parameters(), parameters()
    optimizers = pair("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, ours, theirs)
    for optimizer in optimizers:
        saved = optimizer.state_dict()
        saved["state"] = {i: {"momentum_buffer": None} for i in range(len(ours))}
        optimizer.load_state_dict(saved)
    for step in range(3):
        give_gradients(step, ours, theirs)
        for optimizer in optimizers:
            optimizer.step()
    assert_near(ours, theirs)


def test_a_checkpoint_of_other_shapes_is_refused_by_name():
    ours, others = parameters(shapes=[(3,)]), parameters(shapes=[(4,)])
    first, second = ravine.torch.AdamW(ours), ravine.torch.AdamW([("bias", others[0])])
    give_gradients(0, ours)
    first.step()
    second.load_state_dict(first.state_dict())
    give_gradients(0, others)
    with pytest.raises(ValueError, match=r"state\['bias'\]\['exp_avg'\]: expected shape \(4,\), got \(3,\)"):
        second.step()


def test_loading_copies_so_that_two_optimizers_share_nothing():
    ours, others = parameters(), parameters()
    first, second = ravine.torch.AdamW(ours), ravine.torch.AdamW(others)
    give_gradients(0, ours, others)
    first.step()
    second.load_state_dict(first.state_dict())
    second.step()
    assert [float(first.state[p]["step"]) for p in ours] == [1] * 4
    assert [float(second.state[p]["step"]) for p in others] == [2] * 4
    assert not np.shares_memory(first.state[ours[0]]["exp_avg"].numpy(), second.state[others[0]]["exp_avg"].numpy())


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_optimizers_are_pickled_and_copied_as_torchs_are(way):
    ours = parameters()
    optimizer = ravine.torch.AdamW(ours, lr=0.1)
    give_gradients(0, ours)
    optimizer.step()
    twin = pickle.loads(pickle.dumps(optimizer)) if way == "pickle" else copy.deepcopy(optimizer)
    copies = twin.param_groups[0]["params"]
    give_gradients(1, ours, copies)
    optimizer.step()
    twin.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, copies, strict=True))


def test_states_put_in_by_hand_count():
    ours, theirs = parameters(), parameters()
    optimizers = pair("AdamW", {}, ours, theirs)
    for step in range(9):
        give_gradients(step, ours, theirs)
        for tensors, optimizer in zip((ours, theirs), optimizers, strict=True):
            if step == 3:
                optimizer.state[tensors[0]]["exp_avg"] = torch.ones(4, 5, dtype=torch.float64)
            if step == 5:
                optimizer.state[tensors[1]]["step"].fill_(100)
            if step == 7:
                optimizer.state.clear()
            optimizer.step()
    assert_near(ours, theirs)


def test_parameters_that_were_moved_are_found():
    ours, theirs = parameters(), parameters()
    optimizers = pair("AdamW", {}, ours, theirs)
    for step in range(6):
        give_gradients(step, ours, theirs)
        for tensors, optimizer in zip((ours, theirs), optimizers, strict=True):
            if step == 3:
                tensors[0].data = torch.ones(4, 5, dtype=torch.float64)
            if step == 4:
                tensors[3].data = tensors[3].data.permute(2, 1, 0).contiguous().permute(2, 1, 0)
            optimizer.step()
    assert_near(ours, theirs)


def test_a_parameter_that_was_transposed_where_it_lies_is_found():
    ours, theirs = parameters(shapes=[(4, 4)]), parameters(shapes=[(4, 4)])
    optimizers = pair("AdamW", {}, ours, theirs)
    for step in range(4):
        give_gradients(step, ours, theirs)
        for (w,), optimizer in zip((ours, theirs), optimizers, strict=True):
            if step == 2:
                w.data = w.data.T
            optimizer.step()
    assert_near(ours, theirs)


def test_a_gradient_whose_data_was_replaced_is_found():
    (w,) = parameters(shapes=[(3,)])
    optimizer = ravine.torch.SGD([w], lr=1.0)
    with torch.no_grad():
        w.zero_()
    w.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    w.grad.data = torch.full((3,), 2.0, dtype=torch.float64)
    optimizer.step()
    assert w.tolist() == [-3] * 3


def test_a_parameter_that_left_its_group_is_left():
    ours = parameters()
    optimizer = ravine.torch.SGD(ours, lr=0.1)
    give_gradients(0, ours)
    optimizer.step()
    left = optimizer.param_groups[0]["params"].pop()
    before = left.detach().clone()
    give_gradients(1, ours)
    optimizer.step()
    assert torch.equal(left.detach(), before)


def test_inference_tensors_are_stepped():
    with torch.inference_mode():
        w, before = torch.ones(3), torch.ones(3)
        w.grad = torch.ones(3)
    ravine.torch.SGD([w], lr=0.25).step()
    assert w.tolist() == (before - 0.25).tolist()


# Half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_float32_states_and_rounds_once(dtype):
    pytest.importorskip("ml_dtypes")
    (w,) = parameters(dtype=torch.float32, shapes=[(50,)])
    half = w.detach().to(dtype).requires_grad_()
    with torch.no_grad():
        w.copy_(half)
    optimizer, wide = ravine.torch.AdamW([half], lr=0.01), ravine.torch.AdamW([w], lr=0.01)
    half.grad = torch.linspace(-1, 1, 50).to(dtype)
    w.grad = half.grad.float()
    optimizer.step()
    wide.step()
    assert optimizer.state[half]["exp_avg"].dtype == torch.float32
    assert torch.equal(half.detach(), w.detach().to(dtype))
    assert torch.equal(optimizer.state[half]["exp_avg_sq"], wide.state[w]["exp_avg_sq"])
    # A checkpoint keeps them as they are, where torch's own loading would round them.
    again = ravine.torch.AdamW([half], lr=0.01)
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    assert torch.equal(again.state[half]["exp_avg"], optimizer.state[half]["exp_avg"])


# On a GPU, as far as that can be tried without one


@pytest.mark.parametrize("name", ["AdamW", "Adam, coupled decay, amsgrad", "SGD, dampening", "Adagrad, every number"])
def test_tensors_on_a_gpu_go_to_its_kernels(gpu, monkeypatch, name):
    """The CPU's tensors, handed to ravine as those of GPU 0, whose kernels run on this machine's processor."""
    if REAL_GPU:
        pytest.skip("the tensors are the CPU's")
    kind, options = CASES[name]
    plain, there = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    first, of_torch = getattr(ravine.torch, kind)(plain, **options), foreign._of_torch
    for step in range(6):
        give_gradients(step, plain)
        if step % 2:
            plain[1].grad = None
        first.step()
    monkeypatch.setattr(foreign, "gpu_of", lambda x: 0)
    monkeypatch.setattr(foreign, "_of_torch", lambda torch, x: cupy_like._wrap(of_torch(torch, x)))
    monkeypatch.setattr(ravine.torch.binding.Binding, "stream", lambda self: contextlib.nullcontext())
    second = getattr(ravine.torch, kind)(there, **options)
    for step in range(6):
        give_gradients(step, there)
        if step % 2:
            there[1].grad = None
        second.step()
        if step == 2:
            second.load_state_dict(through_a_file(second.state_dict()))
    assert type(second._bindings[0].engine).__module__ == "ravine.cuda.step"
    assert all(torch.equal(a, b) for a, b in zip(plain, there, strict=True))
    for a, b in zip(plain, there, strict=True):
        assert first.state[a].keys() == second.state[b].keys()
        assert all(torch.equal(first.state[a][key], second.state[b][key]) for key in first.state[a])


# Refusals


@pytest.mark.parametrize("option", ["foreach", "capturable", "differentiable"])
@pytest.mark.parametrize("kind", ["AdamW", "RMSprop"])
def test_options_that_cannot_be_honoured_raise(kind, option):
    with pytest.raises(ValueError, match=rf"{option}: expected it left out, got True"):
        getattr(ravine.torch, kind)(parameters(), **{option: True})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("AdamW", {"lr": -1.0}, "lr: expected"),
        ("AdamW", {"lr": float("nan")}, "lr: expected"),
        ("AdamW", {"betas": (0.9, 1.0)}, "beta2: expected"),
        ("Adam", {"eps": -1.0}, "eps: expected"),
        ("Adam", {"weight_decay": -1.0}, "l2: expected"),
        ("SGD", {"momentum": -0.5}, "momentum: expected a finite number >= 0"),
        ("SGD", {"nesterov": True}, "nesterov: expected momentum > 0"),
        ("RMSprop", {"alpha": -0.1}, "alpha: expected"),
        ("Adagrad", {"lr_decay": -1}, "lr_decay: expected"),
        ("Adagrad", {"initial_accumulator_value": -1}, "initial_accumulator_value: expected"),
        ("Lion", {"betas": (1.0, 0.9)}, "beta1: expected"),
    ],
)
def test_values_out_of_range_raise_at_construction(kind, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(ravine.torch, kind)(parameters(), **options)


def test_a_value_that_becomes_wrong_raises_and_changes_nothing():
    (w,) = parameters(shapes=[(3,)])
    optimizer = ravine.torch.SGD([w], lr=0.1)
    before = w.detach().clone()
    give_gradients(0, [w])
    optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="lr: expected"):
        optimizer.step()
    assert torch.equal(before, w.detach())
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert torch.equal(before - 0.1 * w.grad, w.detach())


def test_a_value_that_stays_wrong_is_refused_again():
    ours = parameters()
    optimizer = ravine.torch.SGD(ours, lr=0.1)
    give_gradients(0, ours)
    optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = -1.0
    for _ in range(2):
        with pytest.raises(ValueError, match="l2: expected"):
            optimizer.step()


def test_names_that_two_groups_share_are_told_apart():
    a, b = parameters(shapes=[(3,), (3,)])
    optimizer = ravine.torch.SGD([{"params": [("bias", a)]}, {"params": [("bias", b)]}], lr=0.1)
    give_gradients(0, [a, b])
    optimizer.step()
    b.grad = b.detach()
    with pytest.raises(ValueError, match=r"grads\['1.0'\]: shares memory with parameter '1.0'"):
        optimizer.step()


def test_parameters_that_cannot_be_right_raise_at_construction():
    w = torch.zeros(4, 4)
    broken = {
        "elements share memory": [torch.zeros(3).expand(4, 3)],
        r"params\['0.0'\] and params\['0.1'\] share memory": [w[:3], w[2:]],
        r"params\['0.0'\]: expected float64, float32": [torch.zeros(3, dtype=torch.int64)],
        r"params\['0.0'\]: cannot share the memory of a torch.Tensor: it is on device meta": [
            torch.zeros(3, device="meta")
        ],
    }
    for message, params in broken.items():
        with pytest.raises((TypeError, ValueError), match=message):
            ravine.torch.SGD(params, lr=0.1)


def test_a_group_that_is_refused_is_not_added():
    a, b = parameters(shapes=[(3,), (3,)])
    optimizer = ravine.torch.AdamW([a])
    with pytest.raises(ValueError, match="lr: expected"):
        optimizer.add_param_group({"params": [b], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_gradients_that_cannot_be_taken_raise_by_name_and_change_nothing():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    other = torch.ones(3, requires_grad=True)
    optimizer = ravine.torch.AdamW([("table", embedding.weight), ("other", other)], lr=0.1)
    embedding(torch.tensor([1, 2])).sum().backward()
    other.grad = torch.ones(3)
    with pytest.raises(TypeError, match=r"grads\['table'\]: .* expected a dense real tensor.*to_dense"):
        optimizer.step()
    embedding.weight.grad = None
    other.grad = other.detach()
    with pytest.raises(ValueError, match=r"grads\['other'\]: shares memory with parameter 'other'"):
        optimizer.step()
    assert torch.equal(other.detach(), torch.ones(3))


# Rules of ravine's own facade that torch has, too


def beside(optimizer, mine, gradients, shape):
    """Step both from the same numbers; return the largest difference."""
    w = np.random.default_rng(1).standard_normal(shape)
    p = torch.nn.Parameter(torch.tensor(w.copy()))
    theirs, own = optimizer([p]), mine(w)
    for of_torch, of_ravine in gradients:
        p.grad = of_torch
        theirs.step()
        own.step(of_ravine)
    return np.abs(p.detach().numpy() - w).max()


def rows_of_both(n=20):
    rng = np.random.default_rng(2)
    for _ in range(n):
        indices, values = rng.integers(0, 11, 6), rng.standard_normal((6, 3))
        sparse = torch.sparse_coo_tensor(
            torch.tensor(indices)[None], torch.tensor(values), (11, 3), check_invariants=True
        )
        yield sparse, ravine.RowSparse(torch.tensor(indices), torch.tensor(values))


@pytest.mark.parametrize(
    "theirs, mine",
    [
        (
            lambda p: torch.optim.SparseAdam(p, lr=0.1, betas=(0.8, 0.97), eps=1e-3),
            lambda w: ravine.Adam(w, lr=0.1, betas=(0.8, 0.97), eps=1e-3, eps_hat=True),
        ),
        (lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3), lambda w: ravine.Adagrad(w, lr=0.1, eps=1e-3)),
        (lambda p: torch.optim.SGD(p, lr=0.1), lambda w: ravine.SGD(w, lr=0.1)),
    ],
    ids=["SparseAdam", "Adagrad", "SGD"],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own tensors
def test_gradients_of_rows_do_what_torchs_sparse_gradients_do(theirs, mine):
    assert beside(theirs, mine, rows_of_both(), (11, 3)) < 1e-14


def dense_of_both(shape, n=20):
    rng = np.random.default_rng(2)
    for _ in range(n):
        g = rng.standard_normal(shape)
        yield torch.tensor(g), g


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (2, 5, 4), (9,)])
def test_adafactor_is_torchs_while_its_rate_is_below_the_relative_step(shape):
    """Without ε₁, whose place differs: for 20 steps, min(γ, 1/√t) is γ."""
    difference = beside(
        lambda p: torch.optim.Adafactor(p, lr=0.05, d=1.2, weight_decay=0.1),
        lambda w: ravine.Adafactor(w, lr=0.05, d=1.2, weight_decay=0.1, eps=(0.0, 1e-3)),
        dense_of_both(shape),
        shape,
    )
    assert difference < 1e-14


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
def test_muon_is_torchs_but_for_its_bfloat16_products(shape, adjust):
    difference = beside(
        lambda p: torch.optim.Muon(p, lr=0.01, adjust_lr_fn=adjust),
        lambda w: ravine.Muon(w, lr=0.01, adjust_lr_fn=adjust),
        dense_of_both(shape),
        shape,
    )
    assert 1e-6 < difference < 20 * 0.01 * 2**-8 * 8
