"""Bias corrections where a β changes: by the law of weighted means, whatever changed it, whatever came in between."""

import inspect
import json
import math
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ravine as rv
from ravine.conventions import systems
from tests.conftest import RULES, assert_same_bits
from tests.specification import Progress, step

BETAS = rv.schedules.linear(0.5, 0.99, 7), rv.schedules.linear(0.7, 0.999, 5)
THIRD = rv.schedules.linear(0.97, 0.6, 6)


def past(base, constant, rest):
    return {"base": base, "constant": constant, "rest": rest}


class Mean:
    """A running mean by changing weights, and how much they are together: the mean of ones."""

    def __init__(self):
        self.sum, self.weight = 0.0, 0.0

    def add(self, x, beta, constant=0.0):
        self.sum = beta * self.sum + (1 - beta) * x + constant
        self.weight = beta * self.weight + (1 - beta)
        return self.sum / self.weight


class Paper:
    """One of the rules, in float64, each by its paper; ``h`` has the numbers of this update."""

    def __init__(self, rule):
        self.rule, self.t, self.product = getattr(self, rule), 0, 1.0
        self.m, self.v, self.n = Mean(), Mean(), Mean()
        self.largest, self.slow, self.last, self.d = 0.0, 0.0, None, 0.0

    def __call__(self, w, g, h):
        self.t += 1
        return self.rule(w, g, h)

    def adam(self, w, g, h):
        m, v = self.m.add(g, h["beta1"]), self.v.add(g * g, h["beta2"])
        return w - h["lr"] * m / (np.sqrt(v) + h["eps"])

    def adam_amsgrad(self, w, g, h):
        m, v = self.m.add(g, h["beta1"]), self.v.add(g * g, h["beta2"])
        self.largest = np.maximum(self.largest, v if h["max_corrected"] else self.v.sum)
        v = self.largest if h["max_corrected"] else self.largest / self.v.weight
        return w - h["lr"] * m / (np.sqrt(v) + h["eps"])

    def adamax(self, w, g, h):
        m = self.m.add(g, h["beta1"])
        self.largest = np.maximum(h["beta2"] * self.largest, np.abs(g) + h["eps"])
        return w - h["lr"] * m / self.largest

    def nadam(self, w, g, h):
        def mu(t):
            warming = 1 - 0.5 * 0.96 ** (h["momentum_decay"] * t)
            return h["beta1"] * (1 if h["constant_momentum"] else warming)

        self.m.add(g, h["beta1"])
        v, now, after = self.v.add(g * g, h["beta2"]), mu(self.t), mu(self.t + 1)
        self.product *= now
        m = (1 - now) * g / (1 - self.product) + after * self.m.sum / (1 - self.product * after)
        return w - h["lr"] * m / (np.sqrt(v) + h["eps"])

    def radam(self, w, g, h):
        m, v = self.m.add(g, h["beta1"]), self.v.add(g * g, h["beta2"])
        limit = 2 / (1 - h["beta2"]) - 1
        rho = limit - 2 * self.t * (1 - self.v.weight) / self.v.weight
        if rho <= 5:
            return w - h["lr"] * m
        r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
        return w - h["lr"] * r * m / (np.sqrt(v) + h["eps"] / math.sqrt(self.v.weight))

    def adabelief(self, w, g, h):
        m = self.m.add(g, h["beta1"])
        s = self.v.add((g - self.m.sum) ** 2, h["beta2"], h["eps_root"])
        return w - h["lr"] * m / (np.sqrt(s) + h["eps"])

    def yogi(self, w, g, h):
        m, _ = self.m.add(g, h["beta1"]), self.v.add(0.0, h["beta2"])
        self.slow = self.slow - (1 - h["beta2"]) * np.sign(self.slow - g * g) * g * g
        return w - h["lr"] * m / (np.sqrt(self.slow / self.v.weight) + h["eps"])

    def ademamix(self, w, g, h):
        m, v = self.m.add(g, h["beta1"]), self.v.add(g * g, h["beta2"])
        self.slow = h["beta3"] * self.slow + (1 - h["beta3"]) * g
        return w - h["lr"] * (m + h["alpha"] * self.slow) / (np.sqrt(v) + h["eps"])

    def adan(self, w, g, h):
        d = 0.0 if self.last is None else g - self.last
        m, v = self.m.add(g, h["beta1"]), self.v.add(d, h["beta2"])
        n = self.n.add((g + h["beta2"] * d) ** 2, h["beta3"])
        self.last = g
        return w - h["lr"] * (m + h["beta2"] * v) / (np.sqrt(n) + h["eps"])

    def lamb(self, w, g, h):
        m, v = self.m.add(g, h["beta1"]), self.v.add(g * g, h["beta2"])
        u = m / (np.sqrt(v) + h["eps"])
        return w - h["lr"] * (np.linalg.norm(w) / np.linalg.norm(u) if h["adapt"] else 1.0) * u

    def schedule_free_adamw(self, w, g, h):
        v, beta = self.v.add(g * g, h["beta2"]), h["beta1"]
        e = self.d - h["lr"] * g / (np.sqrt(v) + h["eps"])
        self.d, step = (1 - 1 / self.t) * e, self.d - e
        return w - (1 - beta) * step + beta / self.t * e


#: Rule, class, arguments, and hyperparameters that do not follow from these by name.
CASES = {
    "adam": (rv.Adam, {}, {}),
    "adamw": (rv.AdamW, {"weight_decay": 0.0}, {}),
    "amsgrad": (rv.Adam, {"amsgrad": True}, {"max_corrected": 0}),
    "amsgrad, corrected": (rv.AdamW, {"amsgrad": True, "max_corrected": True, "weight_decay": 0.0}, {}),
    "adamax": (rv.Adamax, {}, {}),
    "nadam": (rv.NAdam, {"momentum_decay": 0.3}, {"constant_momentum": 0}),
    "nadam, constant": (rv.NAdam, {"constant_momentum": True}, {"momentum_decay": 0}),
    "radam": (rv.RAdam, {}, {}),
    "adabelief": (rv.AdaBelief, {"eps_root": 1e-3}, {}),
    "yogi": (rv.Yogi, {"bias_correction": True}, {}),
    "ademamix": (rv.AdEMAMix, {"alpha": 0.7}, {}),
    "adan": (rv.Adan, {}, {}),
    "lamb": (rv.LAMB, {}, {"adapt": 1}),
    "lamb, not adapted": (rv.LAMB, {"adapt": False}, {"adapt": 0}),
    "schedule_free_adamw": (rv.ScheduleFreeAdamW, {}, {}),
}
every_case = pytest.mark.parametrize("case", CASES)
dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def test_every_rule_that_corrects_is_here():
    rules = {maker(case, {"w": np.ones(1)}, 0.1)._rule for case in CASES}
    assert rules == {rule for rule, about in RULES.items() if about["products"]}


def has_three(cls):
    return cls in (rv.Adan, rv.AdEMAMix)


def maker(case, params, lr, **options):
    cls, given, _ = CASES[case]
    betas = (*BETAS, THIRD) if has_three(cls) else BETAS
    return cls(params, lr=lr, **{"betas": betas, "eps": 1e-3} | given | options)


def numbers(case, step):
    """Give the rule's numbers at a step, as the schedules have them."""
    given = {name: float(value) for name, value in CASES[case][1].items() if not callable(value)}
    betas = dict(zip(("beta1", "beta2", "beta3"), (*(b(step) for b in BETAS), THIRD(step)), strict=True))
    return betas | {"lr": 0.1, "eps": 1e-3} | given | CASES[case][2]


def gradients(count=14, seed=3):
    """Some with no gradient for a parameter, and two that are left out."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        g = {"a": rng.standard_normal((3, 5)), "b": rng.standard_normal(4), "c": rng.standard_normal(2)}
        absent = {2: "a", 3: "a", 6: "b", 9: "c", 0: "c"}.get(i)
        if i in (4, 8):
            g["b"][1] = np.nan
        yield {name: None if name == absent else x for name, x in g.items()}


def start():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape) + 3 for name, shape in (("a", (3, 5)), ("b", 4), ("c", 2))}


def by_paper(case):
    """Give the parameters after all steps."""
    rule = maker(case, start(), 0.1)._rule
    params, papers, done = start(), {name: Paper(rule) for name in "abc"}, 0
    for g in gradients():
        if any(x is not None and not np.isfinite(x).all() for x in g.values()):
            continue
        h = numbers(case, done)
        for name, x in g.items():
            if x is not None:
                params[name] = papers[name](params[name], x, h)
        done += 1
    return params


def run(case, dtype, xp=np, *, change="schedule", resume=None, path=None, **options):
    """Step as `by_paper` does, and give the optimizer with the parameters."""
    params = {name: xp.asarray(w.astype(dtype)) for name, w in start().items()}
    cls = CASES[case][0]

    def betas(step):
        return tuple(b(step) for b in (*BETAS, THIRD)[: 3 if has_three(cls) else 2])

    if change == "hand":
        options |= {"betas": betas(0)}
    make = partial(maker, case, lr=0.1, nonfinite="skip", **options)
    opt = make(params)
    for i, g in enumerate(gradients()):
        if change == "hand":
            opt.groups[0]["betas"] = betas(opt.steps)
        opt.step({name: None if x is None else xp.asarray(x.astype(dtype)) for name, x in g.items()})
        if resume == "dict" and i % 3 == 1:
            opt, old = make(params), opt
            opt.load_state_dict(old.state_dict())
        elif resume == "file" and i in (5, 10):
            opt.save(path)
            params = {name: xp.zeros_like(w) for name, w in params.items()}
            opt = make(params)
            opt.load(path)
    return params, opt


def on_host(params):
    return {name: rv.to_host(w) for name, w in params.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The right numbers


def test_the_report():
    w = np.zeros(1)
    opt = rv.Adam(w, lr=0.1, eps=0, betas=(0.9, rv.schedules.linear(0.9, 0.999, 5)))
    for _ in range(8):
        opt.step(np.ones(1))
    assert_allclose(w, -0.8, rtol=1e-13)


CONSTANT = {
    "adam": {},
    "adamw": {},
    "amsgrad": {},
    "amsgrad, corrected": {},
    "adamax": {},
    "ademamix": {"alpha": 0.0},
    "adan": {},
    "lamb, not adapted": {},
}


@dtypes
@pytest.mark.parametrize("case", CONSTANT)
@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_with_a_constant_gradient_every_step_is_the_rate(case, dtype, order, backend, request):
    xp = np if backend == "numpy" else request.getfixturevalue("gpu")
    ends = [(0.0, 0.99), (0.9, 0.9999), (0.8, 0.999)][: 3 if has_three(CASES[case][0]) else 2]
    betas = tuple(rv.schedules.linear(*(pair[::order]), 6) for pair in ends)
    w = xp.zeros(5, dtype)
    opt = maker(case, w, 0.125, eps=0.0, betas=betas, **CONSTANT[case])
    for _ in range(12):
        opt.step(xp.asarray(np.array([1, -2, 0.5, 3, -1e-3], dtype)))
    expected = -1.5 * np.sign([1, -2, 0.5, 3, -1e-3])
    assert_allclose(rv.to_host(w), expected, rtol=1e-12 if dtype == np.float64 else 2e-5)


@dtypes
@every_case
@pytest.mark.parametrize("change", ["schedule", "hand"])
def test_means_are_weighted_by_the_betas_that_were_used(case, dtype, change):
    params, _ = run(case, dtype, change=change)
    for name, expected in by_paper(case).items():
        assert_allclose(params[name], expected, rtol=1e-12 if dtype == np.float64 else 3e-5, err_msg=name)


@pytest.mark.parametrize("case", ["nadam", "nadam, constant"])
def test_a_momentum_decay_that_changes_counts_as_it_was(case):
    decay = rv.schedules.linear(0.1, 2.0, 9)
    w, paper = np.full(3, 3.0), Paper("nadam")
    opt, expected = maker(case, w, 0.1, momentum_decay=decay), w.copy()
    for i, g in enumerate(np.random.default_rng(0).standard_normal((12, 3))):
        opt.step(g)
        expected = paper(expected, g, numbers(case, i) | {"momentum_decay": decay(i)})
    assert_allclose(w, expected, rtol=1e-12)


@every_case
def test_constant_betas_give_the_bits_of_a_power(case):
    """However they are given: as numbers, or by a schedule that says the same each time."""
    cls = CASES[case][0]
    betas = (0.7, 0.96, 0.98)[: 3 if has_three(cls) else 2]
    plain, _ = run(case, np.float64, betas=betas)
    constant, opt = run(case, np.float64, betas=tuple(map(rv.schedules.constant, betas)))
    current, _ = run(case, np.float64, betas=betas, correction="current")
    for name in plain:
        assert_same_bits(constant[name], plain[name], name)
        assert_same_bits(current[name], plain[name], name)
    for name, products in opt.state_dict()["products"].items():
        t = opt.state_dict()["updates"][name]
        assert all((one["constant"], one["rest"]) == (t, 1.0) for one in products.values())


# ---------------------------------------------------------------------------------------------------------------------
# Every backend, kept and loaded


@dtypes
@every_case
@pytest.mark.parametrize("change", ["schedule", "hand"])
def test_a_device_gives_the_bits_of_the_host(gpu, case, dtype, change):
    here, own = run(case, dtype, change=change)
    there, opt = run(case, dtype, gpu, change=change)
    for name in here:
        assert_same_bits(there[name].get(), here[name], name)
    assert opt.state_dict()["products"] == own.state_dict()["products"]


@every_case
@pytest.mark.parametrize("resume", ["dict", "file"])
@pytest.mark.parametrize("change", ["schedule", "hand"])
@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_a_run_goes_on_bit_for_bit(case, resume, change, backend, request, tmp_path):
    xp = np if backend == "numpy" else request.getfixturevalue("gpu")
    expected, _ = run(case, np.float32, change=change)
    got, _ = run(case, np.float32, xp, change=change, resume=resume, path=tmp_path / "run.safetensors")
    for name in expected:
        assert_same_bits(rv.to_host(got[name]), expected[name], name)


@every_case
def test_steps_equal_the_specification(case):
    """Rounding by rounding, with a power of the constant β in front of the product."""
    cls = CASES[case][0]
    betas = (0.7, 0.96, 0.98)[: 3 if has_three(cls) else 2]
    params = {"w": np.full(9, 3.0, np.float32)}
    opt = maker(case, params, 0.1, betas=betas)
    kinds = [name for name, kind in RULES[opt._rule]["hyperparameters"].items()]
    progress, rng = Progress(0), np.random.default_rng(1)
    for i in range(9):
        if i in (4, 6, 7):
            opt.groups[0]["betas"] = betas = tuple(b - 0.03 * i for b in betas)
        hyper = {name: opt._engine.hyper(0, name) for name in kinds if name != "weight_decay"}
        progress = progress.next({name: hyper[name] for name in RULES[opt._rule]["products"]})
        g = rng.standard_normal(9).astype(np.float32)
        states = [s.copy() for s in opt.state_dict()["states"]["w"].values()]
        expected, _ = step(opt._rule, params["w"], g, states, t=progress, hyper=hyper)
        opt.step({"w": g})
        assert_same_bits(params["w"], expected, i)


def test_a_beta_that_is_set_and_set_back_has_never_changed():
    one, two = np.ones(3), np.ones(3)
    plain, opt = rv.Adam(one, lr=0.1), rv.Adam(two, lr=0.1)
    for i in range(4):
        opt.groups[0]["betas"] = (0.5, 0.6)
        opt.groups[0]["betas"] = (0.9, 0.999)
        plain.step(one * i)
        opt.step(two * i)
    assert_same_bits(one, two)
    assert opt.state_dict()["products"] == {"params": {"beta1": past(0.9, 4, 1.0), "beta2": past(0.999, 4, 1.0)}}


def test_a_run_that_goes_on_with_another_beta_corrects_by_both(tmp_path):
    """A dict, or a file whose numbers are not wanted: the first updates were by the betas of then."""
    path = tmp_path / "run.safetensors"
    w = np.zeros(1)
    opt = rv.Adam(w, lr=0.1, eps=0, betas=(0.5, 0.75))
    for _ in range(3):
        opt.step(np.ones(1))
    opt.save(path)
    state = opt.state_dict()
    for load in (lambda o: o.load_state_dict(state), lambda o: o.load(path, hyper=False)):
        w[:] = -0.3
        other = rv.Adam(w, lr=0.1, eps=0, betas=(0.9, 0.99))
        load(other)
        for _ in range(3):
            other.step(np.ones(1))
        assert_allclose(w, -0.6, rtol=1e-13)
        assert other.state_dict()["products"]["params"]["beta1"] == past(0.5, 3, 0.9 * 0.9 * 0.9)


def test_older_states_and_files_have_constant_betas(tmp_path):
    path = tmp_path / "run.safetensors"
    w = np.ones(3)
    opt = rv.AdamW(w, lr=0.1)
    for i in range(4):
        opt.step(np.cos(w + i))
    opt.save(path)
    state = opt.state_dict()
    # Constant betas take no place in a file: it is what it was before.
    head = path.read_bytes()
    assert b"products" not in head[: int.from_bytes(head[:8], "little")]
    del state["products"]
    at = w.copy()
    opt.step(np.cos(w))
    for load in (lambda o: o.load_state_dict(state), lambda o: o.load(path)):
        other = at.copy()
        again = rv.AdamW(other, lr=0.1)
        load(again)
        again.step(np.cos(at))
        assert_same_bits(other, w)


@pytest.mark.parametrize(
    ("products", "said"),
    [
        (3, "products: expected a dict"),
        ({"w": {}}, r"products\['w'\]"),
        ({"params": {"beta7": past(0.9, 2, 1.0)}}, "beta7"),
        ({"params": {"beta1": past(0.9, 3, 1.0)}}, "count up to 2"),
        ({"params": {"beta1": past(0.9, 1, 1.5)}}, r"product in \[0, 1\]"),
        ({"params": {"beta1": past(0.9, 2, 0.5)}}, "beta1"),
        ({"params": {"beta1": past(1.5, 1, 0.5)}}, r"a number in \[0, 1\)"),
        ({"params": {"beta1": past(math.nan, 1, 0.5)}}, "number >= 0"),
        ({"params": {"beta1": past(0.9, 1, math.nan)}}, "product"),
        ({"params": {"beta1": (0.9, 1, 0.5)}}, "product"),
        ({"params": {"beta1": {"base": 0.9}}}, "product"),
        ({"params": {"beta1": None}}, "None"),
        ({"params": {"beta1": past(0.9, math.inf, 1.0)}}, "inf"),
    ],
)
def test_a_wrong_product_in_a_state_is_named(products, said):
    opt = rv.Adam(np.ones(2))
    for _ in range(2):
        opt.step(np.ones(2))
    state, before = opt.state_dict(), opt.state_dict()
    with pytest.raises(ValueError, match=said):
        opt.load_state_dict(state | {"products": products})
    assert json.dumps(opt.state_dict(), default=str) == json.dumps(before, default=str)


# ---------------------------------------------------------------------------------------------------------------------
# The form of other systems


LIKES = [
    (cls, system)
    for cls in {cls for cls, *_ in CASES.values()}
    for system in systems(cls)
    if "correction" in inspect.signature(cls).parameters
]


@pytest.mark.parametrize(("cls", "system"), sorted(LIKES, key=str), ids=lambda x: getattr(x, "__name__", x))
def test_other_systems_correct_by_the_present_beta(cls, system):
    """The first of their steps with other betas is that of a run which has always had them, with these states."""
    needs = {"lr": 0.1} | ({"weight_decay": 0.0} if cls is rv.AdamW else {})
    betas = (0.9, 0.99, 0.95)[: 3 if has_three(cls) else 2]
    w = np.full(3, 2.0)
    opt = cls(w, like=system, betas=tuple(b - 0.2 for b in betas), **needs)
    for i in range(3):
        opt.step(np.cos(w + i))
    other = w.copy()
    always = cls(other, like=system, betas=betas, **needs)
    state = opt.state_dict()
    del state["products"]
    always.load_state_dict(state)
    opt.groups[0]["betas"] = betas
    opt.step(np.ones(3))
    always.step(np.ones(3))
    if cls is rv.NAdam and system in ("torch", "keras"):  # they keep the product of μ
        assert not np.array_equal(w, other)
    else:
        assert_same_bits(other, w)
    with pytest.raises(ValueError, match=r"correction: .*has 'current'"):
        cls(w, like=system, correction="product", **needs)


def test_the_form_of_a_correction_is_in_the_file(tmp_path):
    path = tmp_path / "run.safetensors"
    kwargs = {"lr": 0.1, "betas": BETAS}
    opt = rv.Adam(np.ones(2), correction="current", **kwargs)
    opt.step(np.ones(2))
    opt.save(path)
    rv.Adam(np.ones(2), **kwargs).load(path)  # no β has changed yet
    opt.step(np.ones(2))
    opt.save(path)
    with pytest.raises(ValueError, match="correction: expected None, got 'current'"):
        rv.Adam(np.ones(2), **kwargs).load(path)
    rv.Adam(np.ones(2), correction="current", **kwargs).load(path)
    opt = rv.Adam(np.ones(2), **kwargs)
    for _ in range(3):
        opt.step(np.ones(2))
    opt.save(path)
    with pytest.raises(ValueError, match="correction: expected 'current', got None"):
        rv.Adam(np.ones(2), correction="current", **kwargs).load(path)


def test_a_wrong_form_is_named():
    with pytest.raises(ValueError, match="correction: expected 'product' or 'current', got 'used'"):
        rv.Adam(np.ones(2), correction="used")
    with pytest.raises(TypeError, match="correction"):
        rv.SGD(np.ones(2), lr=0.1, correction="current")
    engine = rv.SGD(np.ones(2), lr=0.1)._engine
    with pytest.raises(ValueError, match="current_correction: expected 0: this rule corrects no bias"):
        engine.set_hyper(0, "current_correction", 1.0)


def test_the_formula_says_which():
    scheduled = rv.Adam(np.ones(1), betas=(0.9, rv.schedules.linear(0.9, 0.999, 5)))
    assert "√(1 − ∏β₂)/(1 − β₁ᵗ)" in scheduled.formula()
    assert "∏" not in rv.Adam(np.ones(1), betas=BETAS, correction="current").formula()
    by_hand = rv.Adam(np.ones(1))
    by_hand.step(np.ones(1))
    assert "∏" not in by_hand.formula()
    by_hand.groups[0]["betas"] = (0.5, 0.999)
    by_hand.step(np.ones(1))
    assert "√(1 − β₂ᵗ)/(1 − ∏β₁)" in by_hand.formula()


# ---------------------------------------------------------------------------------------------------------------------
# What else carries them along


@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_rows_of_a_table_take_the_products_of_their_parameter(backend, request):
    xp = np if backend == "numpy" else request.getfixturevalue("gpu")
    one, two = (xp.zeros((4, 2)) for _ in range(2))
    dense, rows = (rv.Adam(w, lr=0.1, eps=0, betas=BETAS) for w in (one, two))
    for i in range(6):
        dense.step(xp.ones((4, 2)))
        rows.step(rv.RowSparse([0, 1, 2, 3], xp.ones((4, 2))) if i % 2 else xp.ones((4, 2)))
    assert_same_bits(rv.to_host(two), rv.to_host(one))
    assert_allclose(rv.to_host(two), -0.6, rtol=1e-13)


def test_a_range_test_puts_them_back():
    w = np.ones(3)
    opt = rv.Adam(w, lr=0.1, betas=BETAS)
    for _ in range(3):
        opt.step(w.copy())
    before = opt.state_dict()["products"]
    rv.lr_range_test(lambda w: (float(w @ w), 2 * w), w, opt, steps=12)
    assert opt.state_dict()["products"] == before
