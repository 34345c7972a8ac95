"""ravine.thinc: thinc's optimizers by ravine's kernels, in thinc's models and spaCy's."""

import inspect

import numpy as np
import pytest

import ravine as rv
from ravine.thinc import SGD, Adam, Lion, Optimizer
from tests.conftest import assert_same_bits

F32 = np.float32
KEY = (7, "W")


@pytest.fixture
def thinc():
    pytest.importorskip("thinc", reason="thinc is not installed: make test-adapters")
    return pytest.importorskip("thinc.api")


def random(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def train(optimizer, w, steps=20, scale=1.0):
    """Give the weights after so many calls with the same gradients for everyone."""
    w = w.copy()
    for step in range(steps):
        g = random(w.shape, 100 + step) * F32(scale)
        w, g = optimizer(KEY, w, g)  # thinc may return views of them
        assert not g.any()
        optimizer.step_schedules()
    return w


# thinc's numbers

CASES = {
    "Adam": (Adam, "Adam", {"learn_rate": 0.01}),
    "Adam, every number": (
        Adam,
        "Adam",
        {"learn_rate": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-4, "grad_clip": 0.1},
    ),
    "Adam, coupled decay": (Adam, "Adam", {"learn_rate": 0.01, "L2": 0.1, "L2_is_weight_decay": False}),
    "Adam, list": (Adam, "Adam", {"learn_rate": [0.1, 0.05, 0.01]}),
    "SGD": (SGD, "SGD", {"learn_rate": 0.1}),
    "SGD, coupled decay, no clipping": (
        SGD,
        "SGD",
        {"learn_rate": 0.1, "L2": 0.1, "L2_is_weight_decay": False, "grad_clip": 0.0},
    ),
}


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("scale", [0.01, 10.0], ids=["below the norm", "clipped"])
def test_twenty_calls_equal_thincs(thinc, ours, theirs, options, scale):
    w = random((5, 3), 0)
    options = {**options, "use_averages": False}
    learn_rate = options.pop("learn_rate")
    expected = train(getattr(thinc, theirs)(learn_rate, **options), w, scale=scale)
    np.testing.assert_allclose(train(ours(learn_rate, **options), w, scale=scale), expected, rtol=2e-5, atol=1e-6)


def test_decoupled_decay_equals_thincs_to_first_order(thinc):
    w, options = random((5, 3), 0), {"L2": 0.1, "use_averages": False}
    expected = train(thinc.Adam(1e-3, **options), w)
    got = train(Adam(1e-3, **options), w)
    assert 0 < np.abs(got - expected).max() < 20 * 1e-3 * 0.1 * 1e-3 * 3


@pytest.mark.parametrize(("ours", "theirs"), [(Adam, "Adam"), (SGD, "SGD")])
def test_the_arguments_are_thincs(thinc, ours, theirs):
    own, other = (inspect.signature(f).parameters for f in (ours, getattr(thinc, theirs)))
    assert list(own)[: len(other)] == list(other) or own.keys() >= other.keys()
    assert {n: own[n].default for n in other if n != "learn_rate"} == {
        n: p.default for n, p in other.items() if n != "learn_rate"
    }


def test_the_bits_are_those_of_the_optimizers():
    w = random((5, 3), 0)
    arrays = {"Lion": w.copy(), "momentum": w.copy()}
    lion, momentum = rv.Lion(arrays["Lion"], lr=0.1), rv.SGD(arrays["momentum"], lr=0.1, momentum=0.9)
    for step in range(20):
        lion.step(random(w.shape, 100 + step))
        momentum.step(random(w.shape, 100 + step))
    assert_same_bits(train(Lion(0.1), w), arrays["Lion"])
    assert_same_bits(train(SGD(0.1, momentum=0.9, grad_clip=0), w), arrays["momentum"])


def test_cupy_arrays_give_the_bits_of_numpy(gpu):
    for make in (Adam, lambda lr: Adam(lr, grad_clip=0), Lion, lambda lr: SGD(lr, momentum=0.9)):
        on_host, on_device = make(0.1), make(0.1)
        w = random((5, 3), 0)
        there = gpu.asarray(w)
        for step in range(3):
            g = random(w.shape, step)
            device_g = gpu.asarray(g)
            on_host(KEY, w, g)
            on_device(KEY, there, device_g)
            assert not device_g.get().any()
        assert_same_bits(there.get(), w)


# Schedules


def a_generator():
    yield from (0.4, 0.2, 0.1)


@pytest.mark.parametrize(
    "learn_rate",
    [
        [0.4, 0.2, 0.1],
        a_generator(),
        lambda step: (0.4, 0.2, 0.1)[min(step, 2)],
        rv.schedules.piecewise([1, 2], [0.4, 0.2, 0.1]),
    ],
    ids=["list", "generator", "function", "schedule"],
)
def test_learning_rates_may_be_lists_generators_and_schedules(learn_rate):
    optimizer = SGD(learn_rate, grad_clip=0)
    seen = []
    for _ in range(4):
        w = np.ones(1, F32)
        optimizer(KEY, w, np.ones(1, F32))
        seen.append(round(1 - float(w[0]), 6))
        assert optimizer.learn_rate == pytest.approx(seen[-1])
        optimizer.step_schedules()
    assert seen == [0.4, 0.2, 0.1, 0.1]


def test_thincs_schedules_are_told_key_and_score():
    told = []

    def schedule(step, **context):
        told.append((step, context["key"], context["last_score"]))
        return 0.5

    optimizer = SGD(schedule, grad_clip=0)
    optimizer.step_schedules()
    optimizer.last_score = 0.9
    assert optimizer.last_score == (1, 0.9)
    optimizer(KEY, np.ones(1, F32), np.ones(1, F32))
    assert told == [(1, KEY, (1, 0.9))]


def test_thincs_own_schedules(thinc):
    schedule = thinc.warmup_linear(0.1, 2, 10)
    w = train(Adam(thinc.warmup_linear(0.1, 2, 10), use_averages=False), random((5, 3), 0))
    expected = train(thinc.Adam(schedule, use_averages=False), random((5, 3), 0))
    np.testing.assert_allclose(w, expected, rtol=2e-5, atol=1e-6)


def test_lr_scale_multiplies():
    w = np.ones(1, F32)
    SGD(0.5, grad_clip=0)(KEY, w, np.ones(1, F32), lr_scale=0.5)
    assert w[0] == 0.75


# Averages, keys, refusals


def test_averages_are_thincs_from_the_first_weights_on():
    optimizer, w, expected = SGD(0.1, grad_clip=0), np.ones(3, F32), None
    for t in range(1, 6):
        optimizer(KEY, w, np.ones(3, F32))
        kept = (1 + t) / (10 + t)
        expected = w.copy() if expected is None else kept * expected + (1 - kept) * w
    np.testing.assert_allclose(optimizer.averages[KEY], expected, rtol=1e-6)
    optimizer._updates[KEY] = 10**7
    before = optimizer.averages[KEY].copy()
    optimizer(KEY, w, np.ones(3, F32))
    np.testing.assert_allclose(optimizer.averages[KEY], 0.9999 * before + 0.0001 * w, rtol=1e-6)
    assert SGD(0.1, use_averages=False).averages is None


def test_each_key_has_its_own_states():
    optimizer = Adam(0.1, use_averages=False)
    first, second, alone = np.ones(3, F32), np.ones(4, F32), np.ones(4, F32)
    optimizer((1, "W"), first, np.ones(3, F32))
    optimizer((1, "b"), second, np.ones(4, F32))
    Adam(0.1, use_averages=False)((1, "b"), alone, np.ones(4, F32))
    assert_same_bits(second, alone)


def test_an_empty_gradient_changes_nothing():
    w, g = np.zeros((0, 3), F32), np.zeros((0, 3), F32)
    assert Adam()(KEY, w, g) == (w, g)


def test_a_nan_does_not_stay_in_the_gradient():
    g = np.array([np.nan, 1.0], F32)
    SGD(0.1, grad_clip=0)(KEY, np.ones(2, F32), g)
    assert g.tolist() == [0, 0]


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="rule: expected one of"):
        Optimizer("adma", 0.1)
    with pytest.raises(TypeError, match=r"lion: unknown \['eps'\]"):
        Optimizer("lion", 0.1, eps=1.0)
    with pytest.raises(TypeError, match=r"lr: expected a number, a list, a generator or a schedule, got '0.1'"):
        SGD("0.1")
    with pytest.raises(ValueError, match=r"\(7, 'W'\): .*lr"):
        SGD(-1.0)(KEY, np.ones(2, F32), np.ones(2, F32))
    with pytest.raises(ValueError, match=r"\(7, 'W'\): g.* expected shape \(2,\) like its parameter, got \(3,\)"):
        SGD(0.1, grad_clip=0)(KEY, np.ones(2, F32), np.ones(3, F32))


# Models


def test_a_thinc_model_learns(thinc):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (256, 2)).astype(F32)
    y = x[:, :1] * x[:, 1:]
    thinc.fix_random_seed(0)
    model = thinc.chain(thinc.Relu(32), thinc.Linear(1)).initialize(x, y)
    optimizer = Adam(0.02)
    losses = []
    for _ in range(300):
        guess, backprop = model(x, is_train=True)
        backprop((guess - y) / len(x))
        model.finish_update(optimizer)
        optimizer.step_schedules()
        losses.append(float(((guess - y) ** 2).mean()))
    assert losses[-1] < losses[0] / 20
    with model.use_params(optimizer.averages):
        assert float(((model.predict(x) - y) ** 2).mean()) < losses[0] / 20


CONFIG = """
[training]

[training.optimizer]
@optimizers = "ravine.Adam.v1"
learn_rate = 0.01
grad_clip = 1.0
L2 = 0.01
use_averages = true
"""


def test_thincs_configuration_finds_them_by_name(thinc):
    config = thinc.Config().from_str(CONFIG)
    optimizer = thinc.registry.resolve(config)["training"]["optimizer"]
    assert isinstance(optimizer, Optimizer)
    assert optimizer.learn_rate == 0.01
    assert thinc.registry.get("optimizers", "ravine.Lion.v1") is Lion


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_spacy_model_trains():
    spacy = pytest.importorskip("spacy", reason="spacy is not installed: make test-adapters")
    from spacy.training import Example

    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    classifier = nlp.add_pipe("textcat")
    for label in ("GOOD", "BAD"):
        classifier.add_label(label)
    texts = {"a lovely day": "GOOD", "what a joy": "GOOD", "a terrible mess": "BAD", "so sad and bad": "BAD"}
    examples = [
        Example.from_dict(nlp.make_doc(text), {"cats": {name: float(name == label) for name in ("GOOD", "BAD")}})
        for text, label in texts.items()
    ]
    nlp.initialize(lambda: examples)
    optimizer, losses = Adam(0.01), []
    for _ in range(30):
        loss = {}
        nlp.update(examples, sgd=optimizer, losses=loss)
        optimizer.step_schedules()
        losses.append(loss["textcat"])
    assert losses[-1] < losses[0] / 10
    with nlp.use_params(optimizer.averages):
        assert all(max(nlp(text).cats, key=nlp(text).cats.get) == label for text, label in texts.items())


# Rates, and what is given for one


MAKERS = {
    "Adam": Adam,
    "SGD": SGD,
    "Lion": Lion,
    "SGD's momentum": lambda x: SGD(0.1, momentum=x),
    "Adam's L2": lambda x: Adam(0.1, L2=x),
    "Lion's beta1": lambda x: Lion(0.1, beta1=x),
    "Adam's grad_clip": lambda x: Adam(0.1, grad_clip=x),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every_maker
@pytest.mark.parametrize("empty", [[], (), np.zeros(0)], ids=["list", "tuple", "array"])
def test_a_list_of_no_numbers_raises(make, empty):
    with pytest.raises(ValueError, match=r"\w+: expected at least one number, got "):
        make(empty)


@every_maker
def test_a_generator_of_no_numbers_raises_at_the_first_call_and_changes_nothing(make):
    optimizer = make(x for x in ())
    w, g = random((3,), 0), random((3,), 1)
    before = w.copy(), g.copy()
    with pytest.raises(ValueError, match=r"\w+: expected at least one number, got a generator of none"):
        optimizer(KEY, w, g)
    assert_same_bits(w, before[0])
    assert_same_bits(g, before[1])


@pytest.mark.parametrize("values", [[0.5, 0.25], (0.5, 0.25), np.array([0.5, 0.25]), iter([0.5, 0.25])])
def test_the_last_number_of_a_list_or_a_generator_stays(values):
    optimizer = SGD(values, grad_clip=0.0, use_averages=False)
    rates = []
    for _ in range(4):
        w = np.zeros(1, F32)
        optimizer(KEY, w, np.ones(1, F32))
        rates.append(-float(w[0]))
        optimizer.step_schedules()
    assert rates == [0.5, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("rate", [np.float32(0.25), np.float64(0.25), np.array(0.25), 1 / 4])
def test_a_number_may_be_numpys(rate):
    w = np.zeros(1, F32)
    SGD(rate, grad_clip=0.0)(KEY, w, np.ones(1, F32))
    assert w == -0.25


@every_maker
@pytest.mark.parametrize("wrong", ["0.1", b"01", {"a": 0.1}, {0.1}, None, [0.1, None], ["a"]])
def test_what_is_no_number_raises_by_name(make, wrong):
    with pytest.raises(TypeError, match=r"\w+: expected a number"):
        make(wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(lambda step: None), r"lr: expected a number from the schedule at step 0, got None"),
        (lambda: SGD(iter([None])), r"lr: expected a number at place 0, got None"),
        (lambda: SGD([float("nan")]), r"\(7, 'W'\): lr: expected a finite number >= 0, got NaN"),
        (lambda: SGD([-0.1]), r"\(7, 'W'\): lr: expected a finite number >= 0"),
        (lambda: SGD(0.1, L2=-1.0), r"\(7, 'W'\): weight_decay: expected a finite number >= 0"),
        (lambda: SGD(0.1, L2=float("nan"), L2_is_weight_decay=False), r"\(7, 'W'\): l2: expected a finite number >= 0"),
        (lambda: Adam(0.1, grad_clip=-1.0), r"\(7, 'W'\): grad_clip: expected a finite number >= 0, got -1.0"),
        (lambda: Adam(0.1, beta1=lambda step: 1.0), r"\(7, 'W'\): beta1: expected a number in \[0, 1\)"),
    ],
)
def test_numbers_out_of_range_raise_before_anything_is_clipped_or_stepped(make, message):
    w, g = random((3,), 0), 100 * random((3,), 1)
    before = w.copy(), g.copy()
    with pytest.raises((TypeError, ValueError), match=message):
        make()(KEY, w, g)
    assert_same_bits(w, before[0])
    assert_same_bits(g, before[1])


def test_a_schedule_may_be_any_callable():
    for rate in (np.float64, rv.schedules.constant(0.0), lambda step: 0.0):
        w = np.ones(1, F32)
        SGD(rate, grad_clip=0.0)(KEY, w, np.ones(1, F32))
        assert w == 1
