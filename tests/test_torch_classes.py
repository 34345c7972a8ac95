"""ravine.torch's classes beside torch's own: numbers, states, checkpoints, complex, empty and sparse tensors."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-adapters")

import ravine.torch  # noqa: E402
from tests.test_torch import assert_near, give_gradients, pair, parameters, through_a_file  # noqa: E402

#: torch keeps NAdam's product of momenta in float32: so far its own numbers are right.
FLOAT32 = 2.0**-23
#: Class, options, and how near torch's numbers are in float64.
CASES = {
    "ASGD": ("ASGD", {"lr": 0.1}, 1e-13),
    "ASGD, every number": (
        "ASGD",
        {"lr": 0.1, "lambd": 0.03, "alpha": 0.6, "t0": 4, "weight_decay": 0.2, "maximize": True},
        1e-13,
    ),
    "ASGD, averaging from the start": ("ASGD", {"lr": 0.1, "t0": -3}, 1e-13),
    "Adadelta": ("Adadelta", {}, 1e-13),
    "Adadelta, every number": (
        "Adadelta",
        {"lr": 0.7, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.2, "maximize": True},
        1e-13,
    ),
    "Adadelta, nothing new": ("Adadelta", {"rho": 1.0, "eps": 0.1}, 1e-13),
    "Adamax": ("Adamax", {"lr": 0.1}, 1e-13),
    "Adamax, every number": (
        "Adamax",
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.2, "maximize": True},
        1e-13,
    ),
    "NAdam": ("NAdam", {"lr": 0.1}, 4 * FLOAT32),
    "NAdam, every number": (
        "NAdam",
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2, "momentum_decay": 0.1, "maximize": True},
        4 * FLOAT32,
    ),
    "NAdam, decoupled": ("NAdam", {"lr": 0.1, "weight_decay": 0.2, "decoupled_weight_decay": True}, 4 * FLOAT32),
    "RAdam": ("RAdam", {"lr": 0.1}, 1e-11),
    "RAdam, every number": (
        "RAdam",
        {"lr": 0.1, "betas": (0.8, 0.6), "eps": 1e-3, "weight_decay": 0.2, "maximize": True},
        1e-11,
    ),
    "RAdam, decoupled": ("RAdam", {"lr": 0.1, "weight_decay": 0.2, "decoupled_weight_decay": True}, 1e-11),
    "Rprop": ("Rprop", {}, 0),
    "Rprop, every number": (
        "Rprop",
        {"lr": 0.1, "etas": (0.3, 1.7), "step_sizes": (0.05, 0.2), "maximize": True},
        1e-15,
    ),
    "SGD, momentum of 1": ("SGD", {"lr": 0.01, "momentum": 1.0}, 1e-13),
    "SGD, momentum above 1": ("SGD", {"lr": 0.01, "momentum": 1.1, "dampening": -0.5}, 1e-12),
    "SGD, nesterov above 1": ("SGD", {"lr": 0.01, "momentum": 1.1, "nesterov": True}, 1e-12),
    "RMSprop, momentum above 1": ("RMSprop", {"lr": 0.01, "momentum": 1.1, "centered": True}, 1e-12),
    "RMSprop, alpha of 1": ("RMSprop", {"lr": 0.01, "alpha": 1.0, "eps": 0.1}, 1e-13),
    "Adafactor": ("Adafactor", {}, 1e-13),
    "Adafactor, every number": (
        "Adafactor",
        {"lr": 0.3, "beta2_decay": -0.6, "eps": (1e-2, 0.4), "d": 1.5, "weight_decay": 0.2, "maximize": True},
        1e-13,
    ),
    "Adafactor, small gradients": ("Adafactor", {"lr": 0.3, "eps": (3.0, 1e-3)}, 1e-13),
}
every_case = pytest.mark.parametrize(("kind", "options", "near"), CASES.values(), ids=CASES)


def assert_within(got, expected, near):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=near, atol=near)


def steps(optimizers, lists, count, first=0):
    for step in range(first, first + count):
        give_gradients(step, *lists)
        for optimizer in optimizers:
            optimizer.step()


@every_case
def test_twenty_steps_equal_torchs(kind, options, near):
    ours, theirs = parameters(), parameters()
    steps(pair(kind, options, ours, theirs), (ours, theirs), 20)
    assert_within(ours, theirs, near)


@every_case
def test_float32_is_as_near_as_its_rounding(kind, options, near):
    ours, theirs = (parameters(dtype=torch.float32) for _ in range(2))
    steps(pair(kind, options, ours, theirs), (ours, theirs), 5)
    assert_within(ours, theirs, 1e-4 if "Adafactor" in kind else 3e-5)


@every_case
def test_states_have_torchs_names_shapes_dtypes_and_numbers(kind, options, near):
    ours, theirs = parameters(), parameters()
    optimizers = pair(kind, options, ours, theirs)
    steps(optimizers, (ours, theirs), 3)
    first, second = (optimizer.state_dict() for optimizer in optimizers)
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()
    for i, states in second["state"].items():
        assert first["state"][i].keys() == states.keys()
        for name, theirs_ in states.items():
            ours_ = first["state"][i][name]
            torch.testing.assert_close(ours_, theirs_, rtol=max(near, FLOAT32), atol=max(near, FLOAT32), msg=name)


@every_case
@pytest.mark.parametrize("from_torch", [True, False], ids=["torch's", "ours"])
def test_a_checkpoint_goes_on_in_the_other_library(kind, options, near, from_torch):
    whole, handed_over = parameters(), parameters()
    libraries = (torch.optim, ravine.torch) if from_torch else (ravine.torch, torch.optim)
    first = getattr(libraries[0], kind)(whole, **options)
    steps([first], [whole], 7)
    with torch.no_grad():
        for a, b in zip(handed_over, whole, strict=True):
            a.copy_(b)
    second = getattr(libraries[1], kind)(handed_over)
    second.load_state_dict(through_a_file(first.state_dict()))
    steps([first, second], [whole, handed_over], 7, first=7)
    assert_within(handed_over, whole, max(near, 1e-13))


@every_case
def test_a_run_resumes_bit_for_bit(kind, options, near):
    whole, parts = parameters(), parameters()
    one, two = (getattr(ravine.torch, kind)(w, **options) for w in (whole, parts))
    steps([one, two], [whole, parts], 5)
    state = through_a_file(two.state_dict())
    two = getattr(ravine.torch, kind)(parts)
    two.load_state_dict(state)
    steps([one, two], [whole, parts], 5, first=5)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@every_case
def test_rates_that_change_and_parameters_that_wait(kind, options, near):
    ours, theirs = parameters(), parameters()
    optimizers = pair(kind, options, ours, theirs)
    for step in range(9):
        give_gradients(step, ours, theirs)
        for tensors, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            if step % 3 == 1:
                tensors[1].grad = None
            if step < 2:
                tensors[2].grad = None
            optimizer.step()
    assert_within(ours, theirs, max(near, 1e-13))


@every_case
def test_transposed_and_strided_parameters_equal_contiguous_ones(kind, options, near):
    (theirs,) = parameters(shapes=[(4, 5)])
    for layout in (lambda w: w.T.contiguous().T, lambda w: torch.zeros(8, 10, dtype=w.dtype)[::2, ::2].copy_(w)):
        (theirs,) = parameters(shapes=[(4, 5)])
        ours = layout(theirs.detach().clone()).requires_grad_()
        steps(pair(kind, options, [ours], [theirs]), ([ours], [theirs]), 6)
        assert_within([ours], [theirs], max(near, 1e-13))


@every_case
def test_deep_copies_go_on_alike_and_share_nothing(kind, options, near):
    ours = parameters()
    optimizer = getattr(ravine.torch, kind)(ours, **options)
    steps([optimizer], [ours], 3)
    twin = copy.deepcopy(optimizer)
    copies = twin.param_groups[0]["params"]
    steps([optimizer, twin], [ours, copies], 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(ours, copies, strict=True))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(ours, copies, strict=True))


@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw", "spectral_unclamped"])
@pytest.mark.parametrize("options", [{}, {"nesterov": False, "momentum": 0.8, "ns_steps": 4, "eps": 0.1}])
@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
def test_muon_is_torchs_but_for_its_bfloat16_products(shape, adjust, options):
    ours, theirs = parameters(shapes=[shape]), parameters(shapes=[shape])
    options = {"lr": 0.01, "weight_decay": 0.3, "adjust_lr_fn": adjust, **options}
    optimizers = pair("Muon", options, ours, theirs)
    steps(optimizers, (ours, theirs), 20)
    # bfloat16 has 8 bits; a coefficient of 5 in each of five products.
    assert (ours[0] - theirs[0]).abs().max() < 20 * 0.01 * 2**-8 * 8
    (first,), (second,) = (optimizer.state_dict()["state"].values() for optimizer in optimizers)
    assert_within([first["momentum_buffer"]], [second["momentum_buffer"]], 1e-14)
    optimizers[0].load_state_dict(through_a_file(optimizers[1].state_dict()))
    optimizers[1].load_state_dict(through_a_file(optimizers[0].state_dict()))
    steps(optimizers, (ours, theirs), 1, first=20)


def test_groups_of_matrices_have_numbers_of_their_own_and_change():
    ours, theirs = (parameters(shapes=[(4, 5), (5, 4), (3, 3)]) for _ in range(2))

    def make(library, tensors):
        groups = [{"params": tensors[:2], "lr": 0.3, "weight_decay": 0.5}, {"params": tensors[2:], "maximize": True}]
        return library.Adafactor(groups, lr=0.1)

    optimizers = make(ravine.torch, ours), make(torch.optim, theirs)
    for step in range(8):
        give_gradients(step, ours, theirs)
        for optimizer in optimizers:
            optimizer.param_groups[1]["d"] = 1.0 + step
            optimizer.step()
    assert_within(ours, theirs, 1e-13)


# Counts


def test_counts_are_float32_tensors_and_go_on_where_float32_cannot():
    """torch's own stop at 2²⁴, and its bias corrections with them; they are 1 by then."""
    (w,) = parameters(shapes=[(3,)])
    optimizer = ravine.torch.Adagrad([w], lr_decay=2.0**-24, lr=1.0)
    give_gradients(0, [w])
    optimizer.step()
    assert optimizer.state[w]["step"].dtype == torch.float32
    assert optimizer.state[w]["step"].shape == ()
    optimizer.state[w]["step"].fill_(2.0**24)
    with torch.no_grad():
        optimizer.state[w]["sum"].zero_()
        w.zero_()
    for _ in range(2):
        w.grad = torch.ones(3, dtype=torch.float64)
        optimizer.step()
    # The rates at t = 2²⁴ + 1 and 2²⁴ + 2, over roots of 1 and 2.
    expected = -1 / (1 + 2.0**24 * 2.0**-24) - 1 / (1 + (2.0**24 + 1) * 2.0**-24) / 2**0.5
    np.testing.assert_allclose(w.detach().numpy(), np.full(3, expected), rtol=1e-9)
    assert float(optimizer.state[w]["step"]) == 2.0**24 + 2


def test_counts_follow_torchs_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        (w,), (v,) = parameters(shapes=[(3,)]), parameters(shapes=[(3,)])
        optimizers = pair("NAdam", {}, [w], [v])
        steps(optimizers, ([w], [v]), 20)
        for name in ("step", "mu_product"):
            assert optimizers[0].state[w][name].dtype == optimizers[1].state[v][name].dtype == torch.float64
        assert_near([w], [v])
    finally:
        torch.set_default_dtype(torch.float32)


def test_counts_set_by_hand_and_plain_numbers_in_a_state_dict_count():
    ours, theirs = parameters(), parameters()
    optimizers = pair("Adamax", {"lr": 0.1}, ours, theirs)
    steps(optimizers, (ours, theirs), 2)
    for optimizer in optimizers:
        saved = optimizer.state_dict()
        for state in saved["state"].values():
            state["step"] = float(state["step"]) + 5
        optimizer.load_state_dict(saved)
    steps(optimizers, (ours, theirs), 2, first=2)
    for tensors, optimizer in zip((ours, theirs), optimizers, strict=True):
        optimizer.state[tensors[0]]["step"].fill_(3)
    steps(optimizers, (ours, theirs), 2, first=4)
    assert_near(ours, theirs)
    assert [float(optimizers[0].state[w]["step"]) for w in ours] == [5, 11, 11, 11]


# Complex parameters

COMPLEX = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "Adam": {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"lr": 0.1, "maximize": True},
    "RMSprop": {"lr": 0.1, "centered": True, "momentum": 0.9},
    "Adagrad": {"lr": 0.1, "initial_accumulator_value": 0.5, "lr_decay": 0.1},
    "Adadelta": {"weight_decay": 0.1},
    "Adamax": {"lr": 0.1, "weight_decay": 0.1},
    "NAdam": {"lr": 0.1, "weight_decay": 0.1},
    "RAdam": {"lr": 0.1, "weight_decay": 0.1},
    "Rprop": {"lr": 0.1},
    "ASGD": {"lr": 0.1, "t0": 2},
    "Lion": {"lr": 0.1},
}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("kind", COMPLEX)
def test_complex_parameters_are_pairs_of_reals(kind, dtype):
    """As torch's, and bit for bit the parameter's real view; strided ones, conjugate gradients and loading included."""
    shapes = [(4, 5), (), (3,), (0,)]
    ours, theirs = parameters(dtype=dtype, shapes=shapes), parameters(dtype=dtype, shapes=shapes)
    pairs = [torch.view_as_real(p.detach()).clone().requires_grad_() for p in ours]
    ours[0] = ours[0].detach().T.contiguous().T.requires_grad_()
    make = getattr(ravine.torch, kind)
    optimizer, real = make(ours, **COMPLEX[kind]), make(pairs, **COMPLEX[kind])
    reference = getattr(torch.optim, kind)(theirs, **COMPLEX[kind]) if kind != "Lion" else None
    for step in range(9):
        give_gradients(step, ours, theirs)
        for a, b in zip(pairs, ours, strict=True):
            a.grad = torch.view_as_real(b.grad).clone()
        if step % 2:
            ours[2].grad = ours[2].grad.conj().resolve_conj().conj()
            assert ours[2].grad.is_conj()
        for each in (optimizer, real, reference):
            if each is not None:
                each.step()
        if step == 4:
            optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert all(torch.equal(torch.view_as_real(a.detach()), b) for a, b in zip(ours, pairs, strict=True))
    state = optimizer.state[ours[0]]
    assert all(s.dtype == dtype for s in state.values() if s.ndim)
    if reference is not None:
        assert_within(ours, theirs, 3e-5 if dtype == torch.complex64 else 4 * FLOAT32 if kind == "NAdam" else 1e-11)
        optimizer.load_state_dict(reference.state_dict())
        optimizer.step()


@pytest.mark.parametrize("kind", ["Adafactor", "Muon", "SparseAdam"])
def test_complex_parameters_are_refused_where_torch_refuses_them(kind):
    with pytest.raises((TypeError, ValueError), match=r"params\['0.0'\]: expected real numbers, got torch.complex64"):
        getattr(ravine.torch, kind)([torch.zeros(3, 3, dtype=torch.complex64)])


def test_a_conjugate_of_a_parameter_is_refused_by_name():
    w = torch.ones(3, dtype=torch.complex64).conj()
    with pytest.raises(TypeError, match=r"params\['0.0'\]: .*pass"):
        ravine.torch.SGD([w], lr=0.1)


# Empty tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(set(ravine.torch.__all__) - {"SparseAdam"}))
def test_empty_tensors_are_stepped_and_saved(kind, dtype):
    if dtype == torch.complex64 and kind in ("Adafactor", "Muon"):
        pytest.skip("refused, see above")
    if dtype == torch.bfloat16:
        pytest.importorskip("ml_dtypes")
    shapes = [(0, 3), (3, 2), (2, 0), (0, 0)] if kind == "Muon" else [(0, 3), (3,), (0,), (2, 0, 1)]
    ours = [torch.ones(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    for params in (ours, ours[:1], ours[2:]):
        # Adadelta begins with steps of √ε, below half a unit of bfloat16.
        optimizer = getattr(ravine.torch, kind)(params, lr=100.0 if kind == "Adadelta" else 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
            optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        assert all(not name.numel() or bool((name != 1).any()) for name in params)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"average": ravine.EMA(0.9)}])
@pytest.mark.parametrize("kind", ["SGD", "AdamW", "LAMB", "Adafactor"])
@pytest.mark.parametrize("shapes", [[(0,)], [(0, 3), (2,)], [(2, 0), (0,), (3,)]])
def test_empty_tensors_are_stepped_by_ravines_own_classes(kind, options, shapes):
    params = {str(i): torch.ones(shape) for i, shape in enumerate(shapes)}
    optimizer = getattr(ravine, kind)(params, lr=0.1, **options)
    for _ in range(2):
        optimizer.step({name: torch.ones_like(p) for name, p in params.items()})
    assert all(bool((p != 1).all()) for p in params.values())
    # One that is no longer empty is still found.
    params["0"].data = torch.ones(4)
    with pytest.raises(ValueError, match=r"params\['0'\]: the array was resized"):
        optimizer.step({name: torch.ones_like(p) for name, p in params.items()})


# Sparse gradients


def sparse_gradients(shape, sparse_dim, seed, count=6, dtype=torch.float64):
    """A gradient of some places, each of which may come more than once."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randint(n, (count,), generator=generator) for n in shape[:sparse_dim]])
    values = torch.randn((count, *shape[sparse_dim:]), generator=generator, dtype=dtype)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)


SPARSE = {
    "SparseAdam": {"lr": 0.1, "betas": (0.8, 0.97), "eps": 1e-3},
    "SparseAdam, maximize": {"lr": 0.1, "maximize": True},
    "SGD": {"lr": 0.1, "maximize": True},
    "SGD, momentum": {"lr": 0.1, "momentum": 0.9},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-3},
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("sparse_dim", [1, 2])
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_gradients_do_what_they_do_in_torch(name, sparse_dim):
    kind, shape = name.partition(",")[0], (7, 3)
    ours, theirs = parameters(shapes=[shape, shape]), parameters(shapes=[shape, shape])
    ours[0] = ours[0].detach().T.contiguous().T.requires_grad_()
    optimizers = pair(kind, SPARSE[name], ours, theirs)
    for step in range(9):
        dense = name in ("SGD", "Adagrad") and step % 2
        for i in range(2):
            g = sparse_gradients(shape, sparse_dim, 10 * step + i, count=0 if step == 3 else 6)
            for tensors in (ours, theirs):
                tensors[i].grad = None if step == 4 and i else g.to_dense() if dense and i else g.clone()
        for optimizer in optimizers:
            optimizer.step()
        if step == 5:
            saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
            optimizers[0].load_state_dict(saved[1])
            if "momentum" not in name:  # torch's buffer is sparse, ours is not
                optimizers[1].load_state_dict(saved[0])
    assert_within(ours, theirs, 1e-13)
    for a, b in zip(ours, theirs, strict=True):
        first, second = optimizers[0].state[a], optimizers[1].state[b]
        assert first.get("step") == second.get("step")
        assert type(first.get("step")) is type(second.get("step"))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_have_the_bits_of_row_sparse_ones():
    (w,) = parameters(dtype=torch.float32, shapes=[(11, 3)])
    table = w.detach().clone().numpy()
    optimizer, rows = ravine.torch.SparseAdam([w], lr=0.1), ravine.Adam(table, lr=0.1, eps_hat=True)
    for step in range(5):
        g = sparse_gradients((11, 3), 1, step, dtype=torch.float32)
        w.grad = g
        optimizer.step()
        rows.step(ravine.RowSparse(g._indices()[0], g._values()))
    assert np.array_equal(w.detach().numpy(), table)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_gradients_that_cannot_be_taken_raise_by_name_and_change_nothing():
    g = sparse_gradients((7, 3), 1, 0)
    cases = [
        ("SGD", {"lr": 0.1, "weight_decay": 0.1}, g, r"grads\['0.0'\]: sparse, but weight_decay = 0.1"),
        ("Adam", {}, g, r"grads\['0.0'\]: .*to_dense"),
        ("SparseAdam", {}, torch.ones(7, 3, dtype=torch.float64), r"grads\['0.0'\]: expected a sparse gradient"),
    ]
    for kind, options, gradient, message in cases:
        ours = parameters(shapes=[(7, 3), (2,)])
        before = [w.detach().clone() for w in ours]
        optimizer = getattr(ravine.torch, kind)(ours, **options)
        ours[0].grad, ours[1].grad = gradient, None if kind == "SparseAdam" else torch.ones(2, dtype=torch.float64)
        with pytest.raises((TypeError, ValueError), match=message):
            optimizer.step()
        assert all(torch.equal(a, b.detach()) for a, b in zip(before, ours, strict=True))


# Refusals


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("SGD", {"momentum": float("inf")}, "momentum: expected a finite number >= 0, got inf"),
        ("RMSprop", {"momentum": -0.1}, "momentum: expected a finite number >= 0, got -0.1"),
        ("RMSprop", {"alpha": 1.1}, r"alpha: expected a number in \[0, 1\], got 1.1"),
        ("Adadelta", {"rho": 1.1}, r"rho: expected a number in \[0, 1\], got 1.1"),
        ("ASGD", {"lr": -1}, "lr: expected a finite number >= 0, got -1"),
        ("ASGD", {"alpha": -0.5}, "alpha: expected a finite number >= 0, got -0.5"),
        ("ASGD", {"lambd": -0.5}, "lambd: expected"),
        ("ASGD", {"t0": float("nan")}, "t0: expected a finite number, got nan"),
        ("Adamax", {"betas": (0.9, 1.0)}, "beta2: expected"),
        ("NAdam", {"momentum_decay": -1}, "momentum_decay: expected"),
        ("RAdam", {"weight_decay": -1}, "l2: expected"),
        ("Rprop", {"etas": (1.0, 0.5)}, r"etas: expected 0 < etas\[0\] < 1 < etas\[1\], got \(1.0, 0.5\)"),
        ("SparseAdam", {"lr": 0.0}, "lr: expected a number > 0, got 0.0"),
        ("SparseAdam", {"eps": 0.0}, "eps: expected a number > 0, got 0.0"),
        ("Adafactor", {"d": 0.5}, "d: expected a finite number >= 1, got 0.5"),
        ("Adafactor", {"beta2_decay": 0.8}, "beta2_decay: expected"),
        ("Adafactor", {"eps": (-1.0, 1e-3)}, "eps1: expected"),
        ("Muon", {"adjust_lr_fn": "arbitrary"}, "adjust_lr_fn: expected one of"),
        ("Muon", {"ns_steps": 100}, "ns_steps: expected a whole number below 100, got 100"),
        ("Muon", {"momentum": -0.1}, "momentum: expected"),
    ],
)
def test_values_out_of_range_raise_at_construction(kind, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(ravine.torch, kind)(parameters(shapes=[(3, 3)]), **options)


@pytest.mark.parametrize("kind", ravine.torch.__all__)
def test_a_rate_of_several_elements_is_refused_and_of_one_is_taken(kind):
    with pytest.raises(ValueError, match=r"lr: expected a number or a tensor of one element, got shape \(2,\)"):
        getattr(ravine.torch, kind)(parameters(shapes=[(3, 3)]), lr=torch.tensor([0.1, 0.2]))
    for rate in (torch.tensor(0.1), torch.tensor([0.1])):
        getattr(ravine.torch, kind)(parameters(shapes=[(3, 3)]), lr=rate)


@pytest.mark.parametrize("kind", sorted(set(ravine.torch.__all__) - {"Muon", "SparseAdam"}))
@pytest.mark.parametrize("option", ["foreach", "capturable", "differentiable"])
def test_ways_to_run_a_step_may_be_said_if_they_are_off(kind, option):
    make = getattr(ravine.torch, kind)
    if kind == "Adafactor" and option != "foreach":
        pytest.skip("torch's has none either")
    if kind in ("SGD", "Adagrad") and option == "capturable":
        pytest.skip("torch's has none either")
    for value in (False, None):
        make(parameters(shapes=[(3, 3)]), **{option: value})
    with pytest.raises(ValueError, match=f"{option}: expected it left out, got True; "):
        make(parameters(shapes=[(3, 3)]), **{option: True})


def test_lbfgs_says_where_it_is():
    with pytest.raises(AttributeError, match=r"rv\.minimize"):
        ravine.torch.LBFGS  # noqa: B018
    with pytest.raises(AttributeError, match="Adam3"):
        ravine.torch.Adam3  # noqa: B018


def test_the_signatures_are_torchs():
    import inspect

    for kind in ravine.torch.__all__:
        theirs = getattr(torch.optim, kind, None)
        if theirs is None:
            assert kind == "Lion"
            continue
        first, second = (inspect.signature(c.__init__).parameters for c in (getattr(ravine.torch, kind), theirs))
        assert list(first) == list(second), kind
        for name, parameter in first.items():
            assert parameter.kind == second[name].kind, (kind, name)
            assert parameter.default == second[name].default, (kind, name)
