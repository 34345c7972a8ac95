"""``like=``: what the systems themselves compute, from golden vectors; its defaults; and what is refused."""

import inspect
import re

import numpy as np
import pytest

import ravine as rv
from ravine import conventions
from ravine.__main__ import main
from tests.conftest import assert_same_bits
from tests.reference.make_golden_conventions import CASES, DTYPES, FILE, HALF, KEPT, halved, keys

SYSTEMS = list(conventions.TABLE)
KEYS = list(keys())
NAMED = list(zip(KEYS, CASES, strict=True))
with np.load(FILE) as file:
    GOLDEN = {key: file[key] for key in file.files}
GRADIENTS = list(GOLDEN["gradients"])

#: Classes and systems of the table, and what must be given there.
LINES = [(system, name) for system, names in conventions.TABLE.items() for name in names]

# Agreement.


def made(w, case, **more):
    """Make the optimizer of a case, its rate halved midway where the system's was."""
    system, there, given, name, here = case
    later, _ = halved(there, given)
    if later is not None:
        here = here | {"lr": lambda step: later if step >= HALF else 2 * later}
    return getattr(rv, name)(w, **{"like": system, **here, **more})


def bound(key, case, dtype):
    """Say how many units of the last place of the largest |w| so far 20 steps may be off.

    Each rounds a few times; w − γ(u + λw) rounds otherwise than (1 − γλ)w − γu.
    """
    _, _, _, name, here = case
    takes_betas = "betas" in inspect.signature(getattr(rv, name)).parameters
    if key.startswith("mlx.Adam.1") and dtype == "float64":
        return 2.5e9  # MLX counts in float32, so 1 − βᵗ is that also beside float64
    if takes_betas and "betas" not in here and name != "Lion":
        # 1 − 0.999ᵗ keeps 13 of 16 digits, whichever way the power was rounded; Keras's, in float32, 4 of 7.
        return 80 if dtype == "float32" and key.startswith("keras") else 60
    return 12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key, case", NAMED, ids=KEYS)
def test_20_steps_are_those_of_the_system_itself_to_a_few_ulps(key, case, dtype, record_property):
    w = GOLDEN["w"].astype(dtype)
    opt, path, top = made(w, case), [], [np.abs(w)]
    for g in GRADIENTS:
        opt.step(g.astype(dtype))
        path.append(w.copy())
        top.append(np.maximum(top[-1], np.abs(w)))
    errors = [np.abs(path[t - 1] - x) / np.spacing(top[t]) for t, x in zip(KEPT, GOLDEN[f"{key}/{dtype}"], strict=True)]
    record_property("ulps", float(np.max(errors)))
    assert np.max(errors) <= bound(key, case, dtype)


@pytest.mark.parametrize("key, case", NAMED, ids=KEYS)
def test_the_golden_vectors_tell_the_formulas_apart(key, case):
    """Without ``like`` the path is another, unless the formula is the same to its last number."""
    own, other = GOLDEN["w"].copy(), GOLDEN["w"].copy()
    like = made(own, case)
    more = {} if "lr" in case[4] else {"lr": like.lr}
    if key == "chainer.NesterovAG.1":
        with pytest.raises(ValueError, match="expected momentum > 0"):
            made(other, case, like=None, **more)
        return
    without = made(other, case, like=None, **more)
    for g in GRADIENTS:
        like.step(g.astype(np.float64))
        without.step(g.astype(np.float64))
    far = np.abs(own - other).max() > 1e-12

    def formula(opt):
        return re.sub(r"γ = <function .* at 0x[0-9a-f]+>", "", opt.formula())

    assert far == (formula(like) != formula(without))


def test_every_line_has_golden_vectors_but_the_papers():
    assert {(system, name) for system, _, _, name, _ in CASES} == {
        (system, name) for system, name in LINES if system != "paper"
    }


# What `like` takes, and what it refuses.

#: What the systems have no default for, and what chooses among several there.
NEEDED = {"lr": 0.1, "weight_decay": 0.1}


def default(system, name, **more):
    """Make an optimizer with as little as the system wants to be told."""
    line = conventions.convention(getattr(rv, name), system)
    return getattr(rv, name)(np.zeros(3), like=system, **{**{need: NEEDED[need] for need in line.needs}, **more})


@pytest.mark.parametrize("system, name", LINES)
def test_every_line_makes_an_optimizer_that_steps(system, name):
    default(system, name).step(np.ones(3))


@pytest.mark.parametrize("system, name", LINES)
def test_what_a_line_names_are_arguments_of_the_class(system, name):
    line = conventions.convention(getattr(rv, name), system)
    known = {*inspect.signature(getattr(rv, name)).parameters, *rv.optimizers.Options.__annotations__}
    known |= set(rv.optimizers.OptionsButDecay.__annotations__)
    assert {*line.defaults, *line.fixed, *line.needs, *line.refused, *line.meaning} <= known
    assert not line.defaults.keys() & {*line.fixed, *line.needs}


@pytest.mark.parametrize("system, name", LINES)
def test_what_is_given_overrides_a_default(system, name):
    line = conventions.convention(getattr(rv, name), system)
    numbers = {k: v for k, v in line.defaults.items() if type(v) is float and k not in ("momentum", "initial")}
    opt = default(system, name, **{k: v / 2 + 0.01 for k, v in numbers.items()})
    for argument, value in numbers.items():
        assert opt._values[0][argument] == value / 2 + 0.01


OTHERWISE = {
    False: True,
    True: False,
    "sum": "mean",
    "zero": "square",
    "velocity": "average",
    "accumulate": "heavy_ball",
}


@pytest.mark.parametrize("system, name", LINES)
def test_what_contradicts_the_formula_raises_and_what_agrees_does_not(system, name):
    line = conventions.convention(getattr(rv, name), system)
    for argument, value in line.fixed.items():
        other = OTHERWISE[value] if value in OTHERWISE and type(value) in (bool, str) else value + 1
        with pytest.raises(ValueError, match=rf"{argument}: {system!r} \(.*\) has {value!r}, got {other!r}"):
            default(system, name, **{argument: other})
        if argument != "lr_inside":
            default(system, name, **{argument: value})
    for argument, (allowed, why) in line.refused.items():
        with pytest.raises(
            ValueError, match=rf"{argument}: in {system!r} \(.*\) {re.escape(why)}; got 'chainer'|got 0.5"
        ):
            default(system, name, **{argument: "chainer" if argument == "nesterov" else 0.5})
        if argument != "momentum_before" and (argument, allowed) != ("nesterov", (False, True)):
            default(system, name, **{argument: allowed[0]})


@pytest.mark.parametrize(
    "like, hint", [("kears", "'keras'"), ("Torch", "'torch'"), ("pytorch", "'torch'"), ("numpy", None)]
)
def test_fault_25_a_misspelt_like_raises_with_the_near_misses(like, hint):
    with pytest.raises(ValueError, match=rf"like: expected one of \['torch', .*\], got {like!r}") as raised:
        rv.Adam(np.zeros(1), like=like)
    assert ("did you mean" in str(raised.value)) == (hint is not None)
    assert hint is None or hint in str(raised.value)


@pytest.mark.parametrize(
    "system, cls",
    [(s, c) for s in SYSTEMS for c in (rv.Rprop, rv.ASGD, rv.Lion, rv.Yogi) if c.__name__ not in conventions.TABLE[s]],
)
def test_a_system_without_the_rule_raises_and_says_which_have_it(system, cls):
    have = ", ".join(map(repr, conventions.systems(cls)))
    with pytest.raises(ValueError, match=rf"like: {system!r} has no {cls.__name__} .*; those that have it: {have}\."):
        cls(np.zeros(1), like=system)


def test_what_a_system_has_no_default_for_must_be_given():
    with pytest.raises(TypeError, match=r"lr: 'optax' \(adam\) has no default for it; give one"):
        rv.Adam(np.zeros(1), like="optax")
    with pytest.raises(TypeError, match=r"weight_decay: 'paper' \(Loshchilov .*\) has no default"):
        rv.AdamW(np.zeros(1), like="paper")


def test_groups_cannot_contradict_the_formula_either():
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    for groups, argument in (
        ([("b", {"weight_decay": 0.1})], "weight_decay"),
        ([("b", {"bias_correction": False})], "bias_correction"),
        ([("b", {"decay_after": True})], "decay_after"),
    ):
        with pytest.raises(ValueError, match=rf"{argument}: .*'torch' \(Adam\)"):
            rv.Adam(params, like="torch", groups=groups)
    with pytest.raises(ValueError, match=r"weight_decay: in 'torch' \(Adam\)"):
        rv.Adam([{"params": [np.zeros(1)], "weight_decay": 0.1}], like="torch")
    opt = rv.AdamW(params, like="keras", groups=[("b", {"weight_decay": 0.5})])
    assert [values["weight_decay"] for values in opt._values] == [0.004, 0.5]


def test_like_none_is_the_class_as_it_is():
    for cls in {getattr(rv, name) for _, name in LINES}:
        assert cls(np.zeros(1), lr=0.1, like=None).formula() == cls(np.zeros(1), lr=0.1).formula()


def test_arguments_by_position_count_too():
    assert rv.Adam(np.zeros(1), 0.25, like="keras").lr == 0.25
    assert rv.Adam(params=np.zeros(1), lr=0.25, like="keras").lr == 0.25
    with pytest.raises(TypeError, match="too many positional arguments"):
        rv.Adam(np.zeros(1), 0.25, (0.9, 0.999), like="keras")
    with pytest.raises(TypeError, match="unknown option 'epsilon'; did you mean"):
        rv.Adam(np.zeros(1), epsilon=1.0, like="keras")


def test_a_subclass_of_the_users_takes_like_of_the_class_that_it_extends():
    class Mine(rv.Adam):
        def __init__(self, params, **options):
            super().__init__(params, **options)

    class Own(rv.Optimizer):
        def __init__(self, params, **options):
            super().__init__(params, "sgd", {"lr": 0.1}, options)

    assert Mine(np.zeros(1), like="keras").formula() == rv.Adam(np.zeros(1), like="keras").formula()
    with pytest.raises(ValueError, match="like: Own has no conventions"):
        Own(np.zeros(1), like="keras")


def test_like_is_no_part_of_a_run_and_its_checkpoint(tmp_path):
    _, g = np.zeros(4), np.array([0.1, -2.0, 0.0, 1e-5])
    one, other = np.ones(4), np.ones(4)
    a = rv.AdamW(one, like="keras", weight_decay=0.3, amsgrad=True)
    b = rv.AdamW(other, eps=1e-7, eps_hat=True, weight_decay=0.3, amsgrad=True)
    for _ in range(3):
        a.step(g)
        b.step(g)
    assert_same_bits(one, other)
    a.save(tmp_path / "run")
    assert b.load(tmp_path / "run").restored == ()


@pytest.mark.parametrize("system, name", LINES)
def test_the_command_line_prints_every_formula(system, name, capsys):
    main(["formula", name.lower(), "--like", system])
    printed = capsys.readouterr().out
    line = conventions.convention(getattr(rv, name), system)
    assert printed.strip() == default(system, name, **dict.fromkeys(line.needs, 0.01)).formula()


def test_the_command_line_takes_settings_beside_like(capsys):
    main(["formula", "adamw", "--like", "keras", "weight_decay=0.5"])
    assert "λ = 0.5" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["formula", "adamw", "--like", "kears"])
    assert "'kears'" in capsys.readouterr().err


# Textbook by textbook.


def textbook_formulas():
    """Give the formulas of docs/conventions.md as the texts write them, and the calls beside them."""
    lr, mu, lam, beta, eps = 0.125, 0.75, 0.25, 0.9, 1e-3

    def sgd(w, g, s):
        return w - lr * g

    def accumulate(w, g, s):
        s["p"] = mu * s.get("p", 0) + g
        return w - lr * s["p"]

    def heavy_ball(w, g, s):
        new = w - lr * g + mu * (w - s.get("w", w))
        s["w"] = w
        return new

    def velocity(w, g, s):
        s["p"] = mu * s.get("p", 0) - lr * g
        return w + s["p"]

    def average(w, g, s):
        s["p"] = mu * s.get("p", 0) + (1 - mu) * g
        return w - lr * s["p"]

    def decoupled(w, g, s):
        s["v"] = mu * s.get("v", 0) + g
        return w - lr * (s["v"] + lam * w)

    def coupled(w, g, s):
        s["v"] = mu * s.get("v", 0) + g + lam * w
        return w - lr * s["v"]

    def rms_outside(w, g, s):
        s["v"] = beta * s.get("v", 0) + (1 - beta) * g**2
        return w - lr * g / (np.sqrt(s["v"]) + eps)

    def rms_inside(w, g, s):
        kappa = 1 - beta
        s["s"] = (1 - kappa) * s.get("s", 0) + kappa * g**2
        return w - lr * g / np.sqrt(s["s"] + eps)

    def sigma(g, s):
        s["σ"] = np.sqrt(beta * s["σ"] ** 2 + (1 - beta) * g**2) if "σ" in s else np.abs(g)
        return s["σ"]

    def rms_as_is(w, g, s):
        return w - lr * g / sigma(g, s)

    def all_gradients(w, g, s):
        s["g"] = [*s.get("g", []), g]
        return w - lr * g / np.sqrt(np.mean(np.square(s["g"]), axis=0))

    def its_adam(w, g, s):
        s["m"] = mu * s.get("m", 0) + g
        return w - lr * s["m"] / sigma(g, s)

    def adam(w, g, s, corrected=False):
        s["t"] = s.get("t", 0) + 1
        s["m"], s["v"] = 0.8 * s.get("m", 0) + 0.2 * g, beta * s.get("v", 0) + (1 - beta) * g**2
        if not corrected:
            return w - lr * s["m"] / (np.sqrt(s["v"]) + eps)
        return w - lr * s["m"] / (1 - 0.8 ** s["t"]) / np.sqrt(s["v"] / (1 - beta ** s["t"]) + eps)

    def corrected_adam(w, g, s):
        return adam(w, g, s, corrected=True)

    as_is = {"decay": beta, "eps": 0.0, "first": "square"}
    return [
        (sgd, rv.SGD, {}),
        (accumulate, rv.SGD, {"momentum": mu}),
        (heavy_ball, rv.SGD, {"momentum": mu, "form": "heavy_ball"}),
        (velocity, rv.SGD, {"momentum": mu, "form": "velocity"}),
        (average, rv.SGD, {"momentum": mu, "form": "average"}),
        (decoupled, rv.SGD, {"momentum": mu, "weight_decay": lam}),
        (coupled, rv.SGD, {"momentum": mu, "l2": lam}),
        (rms_outside, rv.RMSprop, {"decay": beta, "eps": eps}),
        (rms_inside, rv.RMSprop, {"decay": beta, "eps": eps, "eps_inside": True}),
        (rms_as_is, rv.RMSprop, as_is),
        (all_gradients, rv.Adagrad, {"accumulate": "mean", "eps": 0.0}),
        (its_adam, rv.RMSprop, as_is | {"momentum_before": mu}),
        (adam, rv.Adam, {"betas": (0.8, beta), "eps": eps, "bias_correction": False}),
        (corrected_adam, rv.Adam, {"betas": (0.8, beta), "eps": eps, "eps_inside": True}),
    ]


@pytest.mark.parametrize("row", textbook_formulas(), ids=lambda row: row[0].__name__)
def test_the_textbooks_formulas_are_what_the_table_says(row):
    formula, cls, arguments = row
    w = GOLDEN["w"].copy()
    text, states = w.copy(), {}
    opt = cls(w, lr=0.125, **arguments)
    for g in GRADIENTS[1:]:  # in the first, one is 0
        g = np.where(g == 0, 1.0, g.astype(np.float64))
        opt.step(g)
        text = formula(text, g, states)
        np.testing.assert_allclose(w, text, rtol=1e-12, atol=1e-13)
