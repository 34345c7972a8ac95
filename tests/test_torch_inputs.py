"""What torch tries its own optimizers with: ravine.torch does with each what torch.optim does, or says why not.

torch ships its list, and the kinds of checks are those that its own suite makes; the checks are written here.
"""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-adapters")
database = pytest.importorskip(
    "torch.testing._internal.common_optimizers", reason="torch's list of inputs needs expecttest: make test-adapters"
)

from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import ravine.torch  # noqa: E402
from tests.test_torch import through_a_file  # noqa: E402

INFOS = {info.name: info for info in database.optim_db}
#: What torch has and ravine.torch has not.
MISSING = {"LBFGS": "rv.minimize has it: a step that evaluates the loss several times is no step of this package"}
#: How a step is to be run, said as True: refused, and why.
REFUSED_WAYS = {
    "foreach": "every step here is one pass over all parameters",
    "capturable": "the steps are counted on the host",
    "differentiable": "autograd cannot see into a step",
}
#: What torch refuses or warns of in other cases, and what happens here.
OTHERWISE = {
    "betas must be either both floats or both Tensors": "taken: each may be either",
}
#: How near float64 comes to torch, where that is not the rounding of float64.
NEAR = {
    "NAdam": 2.0**-20,  # torch's product of momenta is float32
    "RAdam": 1e-11,  # ρ is a difference of large numbers
    "Muon": 8 * 2.0**-8,  # torch multiplies bfloat16; times the rate and the number of steps, see below
}

EVERY = {
    f"{name}, {given.desc}": (name, given.kwargs)
    for name, info in INFOS.items()
    if name not in MISSING
    for given in info.optim_inputs_func(device="cpu")
}
every_input = pytest.mark.parametrize(("kind", "options"), EVERY.values(), ids=EVERY)


def model_for(kind, seed=0, dtype=torch.float64):
    """Make parameters that the class can step, and a loss of them whose gradients are of the kind that it takes."""
    torch.manual_seed(seed)
    if kind == "SparseAdam":
        table = torch.nn.Embedding(7, 3, sparse=True, dtype=dtype)
        targets = torch.randn(3, dtype=dtype)
        return [table.weight], lambda: (table(torch.tensor([1, 4, 1])) - targets).square().sum()
    layers = torch.nn.Linear(5, 4, dtype=dtype), torch.nn.Linear(4, 2, bias=kind != "Muon", dtype=dtype)
    x, y = torch.randn(6, 5, dtype=dtype), torch.randn(6, 2, dtype=dtype)
    params = [p for layer in layers for p in layer.parameters() if kind != "Muon" or p.ndim == 2]
    return params, lambda: (layers[1](torch.tanh(layers[0](x))) - y).square().sum()


def made(library, kind, params, options):
    options = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    return getattr(library, kind)(params, **options)


def step(optimizer, loss, count=1):
    for _ in range(count):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    return float(value.detach())


def assert_same(ours, theirs, near=0.0):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=near, atol=near)


def rate_of(optimizer):
    return max(float(group["lr"]) for group in optimizer.param_groups)


def nearness(kind, options, optimizer, count):
    if kind == "Muon":
        return NEAR[kind] * rate_of(optimizer) * count
    # torch multiplies a rate that is a float32 tensor in float32.
    return max(NEAR.get(kind, 1e-11), 1e-7 if isinstance(options.get("lr"), torch.Tensor) else 0.0)


def test_the_list_has_every_class_of_ours_and_we_have_every_class_of_it():
    assert {*INFOS} - {*MISSING} == {*ravine.torch.__all__} - {"Lion"}
    assert all(not hasattr(ravine.torch, name) for name in MISSING)


# Numbers


@every_input
def test_numbers(kind, options):
    (ours, loss), (theirs, their_loss) = model_for(kind), model_for(kind)
    optimizer, reference = made(ravine.torch, kind, ours, options), made(torch.optim, kind, theirs, options)
    for _ in range(6):
        step(optimizer, loss)
        step(reference, their_loss)
    assert_same(ours, theirs, nearness(kind, options, reference, 6))


@every_input
@pytest.mark.parametrize("scheduler", ["StepLR", "ExponentialLR", "OneCycleLR", "ReduceLROnPlateau"])
def test_numbers_under_a_scheduler(kind, options, scheduler):
    if scheduler == "OneCycleLR" and kind in ("NAdam", "RAdam", "Adamax", "Adam", "AdamW", "SparseAdam"):
        options = {**options, "betas": (0.9, 0.99)}
    (ours, loss), (theirs, their_loss) = model_for(kind), model_for(kind)
    optimizers = made(ravine.torch, kind, ours, options), made(torch.optim, kind, theirs, options)
    make = {
        "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.7),
        # Without what turns momenta: test_torch.py has it for those whose corrections do not multiply them.
        "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, 10, cycle_momentum=False),
        "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
    }[scheduler]
    schedulers = [make(optimizer) for optimizer in optimizers]
    for _ in range(6):
        for optimizer, each, of_one in zip(optimizers, schedulers, (loss, their_loss), strict=True):
            value = step(optimizer, of_one)
            each.step(*([value] if scheduler == "ReduceLROnPlateau" else []))
    assert [g["lr"] for g in optimizers[0].param_groups] == [g["lr"] for g in optimizers[1].param_groups]
    near = NEAR["Muon"] * 0.05 * 6 if kind == "Muon" else nearness(kind, options, optimizers[0], 6)
    assert_same(ours, theirs, near)


@every_input
def test_groups_with_numbers_of_their_own(kind, options):
    (ours, loss), (theirs, their_loss) = model_for(kind), model_for(kind)

    def grouped(library, params):
        first = {"params": params[:1], "lr": 0.02, **({} if "weight_decay" not in options else {"weight_decay": 0.0})}
        optimizer = made(library, kind, [first], options)
        for p in params[1:]:
            optimizer.add_param_group({"params": [p]})
        return optimizer

    optimizer, reference = grouped(ravine.torch, ours), grouped(torch.optim, theirs)
    step(optimizer, loss, 5)
    step(reference, their_loss, 5)
    assert_same(ours, theirs, nearness(kind, options, reference, 5))


@every_input
def test_rates_that_are_tensors(kind, options):
    for rate in (torch.tensor(0.01), torch.tensor([0.01])):
        (ours, loss), (theirs, their_loss) = model_for(kind), model_for(kind)
        optimizer = made(ravine.torch, kind, ours, {**options, "lr": rate})
        reference = made(torch.optim, kind, theirs, {**options, "lr": float(rate)})
        step(optimizer, loss, 3)
        step(reference, their_loss, 3)
        optimizer.param_groups[0]["lr"].mul_(0.5)
        reference.param_groups[0]["lr"] *= 0.5
        step(optimizer, loss, 3)
        step(reference, their_loss, 3)
        assert_same(ours, theirs, nearness(kind, options, reference, 12))


@every_input
def test_a_loss_becomes_less_or_with_maximize_more(kind, options):
    params, loss = model_for(kind)
    optimizer = made(ravine.torch, kind, params, options)
    before = float(loss().detach())
    after = step(optimizer, loss, 30)
    assert after > before if options.get("maximize") else after < before


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@every_input
def test_complex_parameters(kind, options, dtype):
    if not INFOS[kind].supports_complex:
        params = [torch.ones(3, 3, dtype=dtype)]
        with pytest.raises((TypeError, ValueError), match="expected real numbers"):
            made(ravine.torch, kind, params, options)
        return
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, dtype=dtype, generator=generator) for shape in [(3,), (2, 3), ()]]
    ours, theirs = ([w.clone().requires_grad_() for w in start] for _ in range(2))
    optimizers = made(ravine.torch, kind, ours, options), made(torch.optim, kind, theirs, options)
    for _ in range(5):
        for w, v in zip(ours, theirs, strict=True):
            w.grad = torch.randn(w.shape, dtype=dtype, generator=generator)
            v.grad = w.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert_same(ours, theirs, 1e-5 if dtype == torch.complex64 else NEAR.get(kind, 1e-11))


# Steps that do nothing


@every_input
def test_without_gradients_nothing_happens(kind, options):
    params, _ = model_for(kind)
    before = [p.detach().clone() for p in params]
    optimizer = made(ravine.torch, kind, params, options)
    for _ in range(2):
        assert optimizer.step(lambda: 5) == 5
        optimizer.zero_grad()
    assert_same(params, before)
    assert not optimizer.state


@every_input
def test_gradients_of_zero_do_what_they_do_in_torch(kind, options):
    (ours, _), (theirs, _) = model_for(kind), model_for(kind)
    optimizers = made(ravine.torch, kind, ours, options), made(torch.optim, kind, theirs, options)
    for params, optimizer in zip((ours, theirs), optimizers, strict=True):
        for p in params:
            p.grad = torch.zeros_like(p).to_sparse(1) if kind == "SparseAdam" else torch.zeros_like(p)
        optimizer.step()
    assert_same(ours, theirs, nearness(kind, options, optimizers[0], 1))


# States


@every_input
@pytest.mark.parametrize("named", [(False, False), (True, True), (True, False), (False, True)])
def test_a_state_dict_is_gone_on_with(kind, options, named):
    (ours, loss), (twins, twin_loss) = model_for(kind), model_for(kind)
    first, second = (
        made(ravine.torch, kind, [(f"p{i}", p) for i, p in enumerate(params)] if with_names else params, options)
        for params, with_names in zip((ours, twins), named, strict=True)
    )
    step(first, loss, 3)
    with torch.no_grad():
        for a, b in zip(twins, ours, strict=True):
            a.copy_(b)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(3):
        step(first, loss)
        step(second, twin_loss)
    assert_same(ours, twins)
    states = [optimizer.state_dict()["state"] for optimizer in (first, second)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@every_input
def test_a_file_of_weights_only_holds_the_state_dict(kind, options):
    params, loss = model_for(kind)
    optimizer = made(ravine.torch, kind, params, options)
    step(optimizer, loss, 2)
    state = optimizer.state_dict()
    again = through_a_file(state)
    assert again["param_groups"] == state["param_groups"]
    torch.testing.assert_close(again["state"], state["state"], rtol=0, atol=0)


@every_input
def test_state_dicts_of_older_versions_load(kind, options):
    (ours, loss), (twins, twin_loss) = model_for(kind), model_for(kind)
    first, second = (made(ravine.torch, kind, params, options) for params in (ours, twins))
    step(first, loss, 2)
    step(second, twin_loss, 2)
    saved = copy.deepcopy(first.state_dict())
    for group in saved["param_groups"]:
        for flag in INFOS[kind].not_og_supported_flags:
            group.pop(flag, None)
    second.load_state_dict(saved)
    for group in second.param_groups:
        assert group.keys() == first.param_groups[0].keys()
        if "maximize" in options:
            group["maximize"] = options["maximize"]
    step(first, loss)
    step(second, twin_loss)
    assert_same(ours, twins)


@every_input
def test_counts_that_are_plain_numbers_load(kind, options):
    (ours, loss), (twins, twin_loss) = model_for(kind), model_for(kind)
    first, second = (made(ravine.torch, kind, params, options) for params in (ours, twins))
    step(first, loss, 2)
    step(second, twin_loss, 2)
    saved = copy.deepcopy(first.state_dict())
    for state in saved["state"].values():
        state.update({k: float(v) for k, v in state.items() if k in ("step", "eta", "mu", "mu_product")})
    second.load_state_dict(saved)
    step(first, loss)
    step(second, twin_loss)
    assert_same(ours, twins)


@every_input
def test_either_library_goes_on_where_the_other_stands(kind, options):
    for libraries in ((torch.optim, ravine.torch), (ravine.torch, torch.optim)):
        (whole, loss), (handed_over, other_loss) = model_for(kind), model_for(kind)
        first, second = (made(x, kind, p, options) for x, p in zip(libraries, (whole, handed_over), strict=True))
        step(first, loss, 3)
        with torch.no_grad():
            for a, b in zip(handed_over, whole, strict=True):
                a.copy_(b)
        second.load_state_dict(through_a_file(first.state_dict()))
        step(first, loss, 3)
        step(second, other_loss, 3)
        assert_same(handed_over, whole, nearness(kind, options, first, 3))


@every_input
def test_a_step_leaves_states_unless_there_are_none_in_torch(kind, options):
    (ours, loss), (theirs, their_loss) = model_for(kind), model_for(kind)
    optimizer, reference = made(ravine.torch, kind, ours, options), made(torch.optim, kind, theirs, options)
    step(optimizer, loss)
    step(reference, their_loss)
    of_ours = [{k for k, v in state.items() if v is not None} for state in optimizer.state_dict()["state"].values()]
    of_theirs = [{k for k, v in state.items() if v is not None} for state in reference.state_dict()["state"].values()]
    assert [names for names in of_ours if names] == [names for names in of_theirs if names]


@every_input
def test_deep_copies_have_all_public_attributes(kind, options):
    params, loss = model_for(kind)
    optimizer = made(ravine.torch, kind, params, options)
    step(optimizer, loss)
    twin = copy.deepcopy(optimizer)

    def names(of):
        return {name for name in vars(of) if not name.startswith("_")}

    assert names(twin) == names(optimizer)
    assert [g.keys() for g in twin.param_groups] == [g.keys() for g in optimizer.param_groups]


# Hooks, and what is shown


@every_input
def test_hooks(kind, options):
    params, loss = model_for(kind)
    optimizer, said = made(ravine.torch, kind, params, options), []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: said.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: said.append("global post")),
        optimizer.register_step_pre_hook(lambda *_: said.append("pre")),
        optimizer.register_step_post_hook(lambda *_: said.append("post")),
    ]
    step(optimizer, loss)
    for handle in handles:
        handle.remove()
    step(optimizer, loss)
    assert said == ["global pre", "pre", "post", "global post"]


@every_input
def test_hooks_of_state_dicts(kind, options):
    params, loss = model_for(kind)
    optimizer, said = made(ravine.torch, kind, params, options), []
    step(optimizer, loss)
    optimizer.register_state_dict_pre_hook(lambda *_: said.append("pre"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": said.append("post") or "kept"})
    saved = optimizer.state_dict()
    assert saved.pop("note") == "kept"

    def halve(_, state):
        groups = [{**group, "lr": float(group["lr"]) / 2} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_pre_hook(lambda *_: said.append("load pre"), prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda *_: said.append("load post"))
    rate = rate_of(optimizer)
    optimizer.load_state_dict(saved)
    assert said == ["pre", "post", "load pre", "load post"]
    assert rate_of(optimizer) == rate / 2
    step(optimizer, loss)


@every_input
def test_it_can_be_printed(kind, options):
    params, _ = model_for(kind)
    shown = repr(made(ravine.torch, kind, params, options))
    assert shown.startswith(f"{kind} (")
    assert all(name in shown for name in options)


# Sparse gradients

SPARSE = [name for name, info in INFOS.items() if info.supports_sparse or info.only_supports_sparse_grads]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("kind", SPARSE)
def test_rosenbrocks_function_with_one_coordinate_of_the_gradient_at_a_time(kind):
    options, schedulers = INFOS[kind].metadata_for_sparse
    for maximize, scheduler in [(False, None), (True, None), *((False, each) for each in schedulers)]:
        ours, theirs = (torch.tensor([1.5, 1.5], dtype=torch.float64, requires_grad=True) for _ in range(2))
        given = {**options, "maximize": maximize}
        optimizers = made(ravine.torch, kind, [ours], given), made(torch.optim, kind, [theirs], given)
        made_schedulers = [scheduler(optimizer) for optimizer in optimizers] if scheduler else []
        for count in range(200):
            for w, optimizer in zip((ours, theirs), optimizers, strict=True):
                x, y = w.detach()
                gradient = torch.stack([-400 * x * (y - x * x) - 2 * (1 - x), 200 * (y - x * x)])
                place = torch.tensor([[count % 2]])
                value = (-1 if maximize else 1) * gradient[place[0]]
                w.grad = torch.sparse_coo_tensor(place, value, (2,), check_invariants=True)
                optimizer.step()
            for each in made_schedulers:
                each.step(*([0.0] if isinstance(each, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        assert_same([ours], [theirs], 1e-9)


# Refusals

ERRORS = {
    f"{name}, {error.optimizer_error_input.desc}": (name, error)
    for name, info in INFOS.items()
    if name not in MISSING
    for error in info.optim_error_inputs_func("cpu", torch.float32)
}


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.filterwarnings("ignore:optimizer parameters need to be organized:FutureWarning")
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("kind", "error"), ERRORS.values(), ids=ERRORS)
def test_what_torch_refuses_is_refused(kind, error):
    given = error.optimizer_error_input
    params = given.params if given.params is not None else [torch.randn(3, 3, requires_grad=True)]
    if any(said in error.error_regex for said in OTHERWISE):
        made(ravine.torch, kind, params, given.kwargs)
        return
    with pytest.raises(Exception) as raised:  # noqa: PT012
        optimizer = made(ravine.torch, kind, params, given.kwargs)
        if error.error_type is FutureWarning:  # a set of parameters, whose order nobody knows
            raise FutureWarning(str(optimizer))
    assert isinstance(raised.value, TypeError | ValueError | FutureWarning)


@pytest.mark.parametrize("way", REFUSED_WAYS)
@every_input
def test_ways_to_run_a_step_are_refused_with_the_reason(kind, options, way):
    if way not in made(torch.optim, kind, model_for(kind)[0], options).defaults:
        with pytest.raises(TypeError, match=way):
            made(ravine.torch, kind, model_for(kind)[0], {**options, way: True})
        return
    with pytest.raises(ValueError, match=f"{way}: expected it left out, got True; {REFUSED_WAYS[way]}"):
        made(ravine.torch, kind, model_for(kind)[0], {**options, way: True})
    made(ravine.torch, kind, model_for(kind)[0], {**options, way: False})


@every_input
def test_fused_may_be_said(kind, options):
    if "fused" not in INFOS[kind].supported_impls:
        return
    (ours, loss), (theirs, their_loss) = model_for(kind), model_for(kind)
    step(made(ravine.torch, kind, ours, {**options, "fused": True}), loss, 3)
    step(made(ravine.torch, kind, theirs, options), their_loss, 3)
    assert_same(ours, theirs)
