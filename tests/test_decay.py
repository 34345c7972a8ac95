"""Decoupled decay far below the last bit of a parameter: right on average, for every rule and storage."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from tests.conftest import LAYERWISE, RULES, engine, hyper_sets

#: γ and λ: γλ from 5e-9 to 1e-5, where float32's last bit is 6e-8 to 1.2e-7 of a number.
PAIRS = [
    (1e-6, 0.005),
    (1e-6, 0.01),
    (2e-6, 0.01),
    (3e-6, 0.01),
    (1e-5, 0.01),
    (3e-5, 0.1),
    (1e-4, 0.01),
    (1e-3, 0.001),
    (1e-3, 0.01),
]
STEPS, N = 300, 20_000
#: Steps of one size for all elements: in float32 the sum with γλ·w rounds alike each time, so no mean is right.
ONE_SIZE = {"lion", "sign_sgd", "signum", "rprop"}


@pytest.fixture(scope="module")
def gradients():
    return np.random.default_rng(0).standard_normal((STEPS, N)).astype(np.float32)


@pytest.fixture(scope="module")
def start():
    rng = np.random.default_rng(1)
    return rng.uniform(1, 2, N) * rng.choice([-1, 1], N)


def hyperparameters(rule, lr):
    hyper = {**next(hyper_sets(rule)), "lr": lr}
    # Ratios of norms that leave a step as long as the rate times the parameter, which is above its last bit.
    return hyper | ({"trust_coefficient": 1.0} if rule == "lars" else {})


def trained(rule, lr, w, gradients, weight_decay):
    made = engine(rule, w, hyperparameters(rule, lr), weight_decay=weight_decay)
    before = w
    for g in gradients:
        before = w.copy()
        made.step(g.astype(w.dtype))
    return w, np.sqrt(np.mean((w - before) ** 2))


def decay(undecayed, w, w0):
    return float(np.mean((undecayed - w.astype(np.float64)) / w0)) / STEPS


@pytest.mark.parametrize("lr, weight_decay", PAIRS)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ONE_SIZE])
def test_the_mean_decay_in_float32_is_that_in_float64(rule, lr, weight_decay, gradients, start):
    _, step = trained(rule, lr, start.copy(), gradients[:20], 0.0)
    if rule not in LAYERWISE - {"novograd"}:  # their steps are in proportion to w
        # Parameters so small that a step is some 8 of their last bits: below one nothing in float32 can be right.
        start = start * 2.0 ** min(0, np.floor(np.log2(step / 1e-6)))
    start = start.astype(np.float32)
    undecayed, _ = trained(rule, lr, start.astype(np.float64), gradients, 0.0)
    exact, _ = trained(rule, lr, start.astype(np.float64), gradients, weight_decay)
    w, _ = trained(rule, lr, start.copy(), gradients, weight_decay)
    assert decay(undecayed, w, start) == pytest.approx(decay(undecayed, exact, start), rel=0.02)


@pytest.mark.parametrize("lr, weight_decay", PAIRS)
@pytest.mark.parametrize("rule", sorted(ONE_SIZE))
def test_rules_with_steps_of_one_size_decay_rightly_in_float64(rule, lr, weight_decay, gradients, start):
    undecayed, _ = trained(rule, lr, start.copy(), gradients, 0.0)
    w, _ = trained(rule, lr, start.copy(), gradients, weight_decay)
    # The parameter has decayed by half of it on average over the run, at most; Rprop's first steps hang on w's sign.
    assert decay(undecayed, w, start) == pytest.approx(lr * weight_decay, rel=0.02)


#: How a step can keep or round its parameter: what it binds, the options.
KEPT = {
    "float32": (np.float32, {}),
    "float64": (np.float64, {}),
    "float16-master": (np.float16, {"master": "float32"}),
    "bfloat16-master": (ml_dtypes.bfloat16, {"master": "float32"}),
    "bfloat16-split": (ml_dtypes.bfloat16, {"master": "split"}),
    "bfloat16-stochastic": (ml_dtypes.bfloat16, {"rounding": "stochastic"}),
    "float32-8bit": (np.float32, {"states": "8bit"}),
    "float32-bfloat16-states": (np.float32, {"states": "bfloat16"}),
}


def exactly(opt, w):
    """Give a parameter's exact copy, whichever way it is kept."""
    kept = opt.state_dict()["states"]["params"]
    if "remainder" in kept:
        upper = (w.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.int32)
        return (upper + kept["remainder"].astype(np.int32)).view(np.float32).astype(np.float64)
    return kept.get("master", w).astype(np.float64)


@pytest.mark.parametrize(
    "form", [{}, {"decay_after": True}, {"decay_implicit": True}, {"decay_unscaled": True}], ids=str
)
@pytest.mark.parametrize("kept", KEPT)
def test_the_mean_decay_is_right_however_the_parameter_is_kept(kept, form, gradients, start):
    dtype, options = KEPT[kept]
    lr, part = 3e-6, 3e-8
    weight_decay = part if "decay_unscaled" in form else part / lr
    rule = rv.Adam if "states" in options else rv.SGD
    # Rounded at random to 8 bits, a parameter errs by up to 2⁻⁸ of it in each step: more of them for the same mean.
    w = np.tile(start, 40 if "rounding" in options else 1).astype(dtype)
    twin, first = w.copy(), w.astype(np.float64)
    decaying = rule(w, lr=lr, weight_decay=weight_decay, **options, **form)
    plain = rule(twin, lr=lr, **options)
    for g in gradients:
        g = np.tile(g, len(w) // N).astype(w.dtype)
        decaying.step(g)
        plain.step(g)
    # The same random numbers round both, so that their difference errs less than either.
    mean = np.mean((exactly(plain, twin) - exactly(decaying, w)) / first) / STEPS
    assert mean == pytest.approx(part, rel=0.02 if "rounding" not in options else 0.1)


def test_a_decay_of_a_rate_of_0_is_none():
    w = np.array([np.inf, 1.0], np.float32)
    rv.SGD(w, lr=0.0, weight_decay=0.1).step(np.ones(2, np.float32))
    assert w.tolist() == [np.inf, 1.0]


def test_the_formula_says_that_decay_is_a_part_of_the_step():
    assert rv.SGD(np.ones(1), lr=0.1, weight_decay=0.5).formula().splitlines()[0] == "w ← w − (γ·λ·w + γ·g)"
    unscaled = rv.SGD(np.ones(1), lr=0.1, weight_decay=0.5, decay_unscaled=True)
    assert unscaled.formula().splitlines()[0] == "w ← w − (λ·w + γ·g)"
    muon = rv.Muon(np.ones((1, 1))).formula().splitlines()
    assert muon[-2] == "w ← w − (γ·λ·w + γ·√max(1, rows/columns)·X)"
    assert rv.Adafactor(np.ones(1), weight_decay=0.5).formula().splitlines()[-2].startswith("w ← w − (γ·λ·w + γ·")


def test_the_page_has_the_table_of_the_record():
    root = Path(__file__).parent.parent
    record = (root / "benches/record/decay.md").read_text(encoding="utf-8")
    table = record[record.index("| γ") :].strip()
    assert table in (root / "docs/conventions.md").read_text(encoding="utf-8")
