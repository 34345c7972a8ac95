"""Schedules: closed forms, end points, algebra, and what a wrong argument gets."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravine import schedules

NUMBERS = st.floats(-10, 10)
STEPS = st.integers(1, 50)
LEAVES = st.one_of(
    st.builds(schedules.constant, NUMBERS),
    st.builds(schedules.linear, NUMBERS, NUMBERS, STEPS),
    st.builds(schedules.cosine, NUMBERS, STEPS, NUMBERS),
    st.builds(schedules.polynomial, NUMBERS, STEPS, st.floats(0.5, 3), NUMBERS),
    st.builds(schedules.exponential, NUMBERS, st.floats(0.5, 1.5), STEPS),
    st.builds(schedules.step, NUMBERS, STEPS, st.floats(0.5, 1.5)),
    st.builds(schedules.inverse_time, NUMBERS, st.floats(0, 2), st.floats(0.5, 1)),
    st.builds(schedules.one_cycle, NUMBERS, STEPS, st.floats(0, 0.9)),
    st.builds(schedules.cosine_restarts, NUMBERS, STEPS, st.integers(1, 3), NUMBERS),
    st.builds(schedules.warmup, STEPS),
    st.just(schedules.piecewise([3, 7], [1.0, 0.5, 0.1])),
)
ANY = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(NUMBERS, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, NUMBERS).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner, STEPS).map(lambda three: three[0].then(three[1], after=three[2])),
    ),
    max_leaves=4,
)
TIMES = st.integers(0, 200)


@given(a=ANY, b=ANY, t=TIMES)
def test_product_and_sum_are_pointwise(a, b, t):
    assert (a * b)(t) == a(t) * b(t)
    assert (a + b)(t) == a(t) + b(t)


@given(a=ANY, number=NUMBERS, t=TIMES)
def test_numbers_combine_from_both_sides(a, number, t):
    assert (number * a)(t) == (a * number)(t) == a(t) * number
    assert (number + a)(t) == (a + number)(t) == a(t) + number


@given(a=ANY, b=ANY, after=st.integers(0, 100), t=TIMES)
def test_then_restarts_the_count_of_the_second(a, b, after, t):
    assert a.then(b, after=after)(t) == (a(t) if t < after else b(t - after))


@given(a=ANY, t=TIMES)
def test_repr_is_the_expression_that_makes_it_again(a, t):
    again = eval(repr(a), vars(schedules).copy())
    assert again == a
    assert again.length == a.length
    assert again(t) == a(t)


@given(a=ANY, t=TIMES)
def test_a_schedule_stays_after_its_length(a, t):
    if a.length is not None:
        assert a(a.length + t) == a(a.length)


@given(a=ANY, t=TIMES)
def test_pickle_and_copy_keep_the_schedule(a, t):
    for again in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a)):
        assert again == a
        assert hash(again) == hash(a)
        assert again(t) == a(t)


@given(a=ANY)
def test_values_are_the_calls(a):
    values = a.values(5)
    assert values.dtype == np.float64
    assert values.tolist() == [a(0), a(1), a(2), a(3), a(4)]
    assert a.values(0).shape == (0,)


@given(a=ANY, t=TIMES)
def test_calls_are_floats_and_take_numpy_integers(a, t):
    assert type(a(t)) is float
    assert a(np.int64(t)) == a(t)


def test_repr_reads_like_the_source():
    s = schedules
    assert repr(s.warmup(500) * s.cosine(3e-4, 10_000)) == "warmup(500) * cosine(0.0003, 10000)"
    assert repr(0.5 * s.cosine(1, 10, end=0.1)) == "0.5 * cosine(1.0, 10, end=0.1)"
    assert repr((s.warmup(5) + 1) * s.constant(2)) == "(warmup(5) + 1.0) * constant(2.0)"
    assert repr(s.linear(0, 1, 5).then(s.step(1, 3, 0.1))) == "linear(0.0, 1.0, 5).then(step(1.0, 3, 0.1))"
    assert repr((s.warmup(5) * 2).then(0.1, after=7)) == "(warmup(5) * 2.0).then(0.1, after=7)"


def test_numpy_scalars_multiply_from_the_left():
    for number in (np.float32(0.5), np.float64(0.5), np.int64(2)):
        product = number * schedules.warmup(4)
        assert isinstance(product, schedules.Schedule)
        assert product(0) == number / 4


def test_length_of_a_combination():
    s = schedules
    assert (s.warmup(5) * s.cosine(1, 20)).length == 20
    assert (s.warmup(5) * 0.1).length == 5
    assert (s.warmup(5) * s.exponential(1, 0.9)).length is None
    assert s.warmup(5).then(s.cosine(1, 20)).length == 25
    assert s.warmup(5).then(s.exponential(1, 0.9)).length is None
    assert s.linear(0, 1, 10).then(0.5).length == 10


def test_warmup_reaches_one_at_its_last_step_and_never_gives_zero():
    ramp = schedules.warmup(4)
    assert ramp.values(6).tolist() == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedules.warmup(1)(0) == 1.0


@given(start=NUMBERS, end=NUMBERS, steps=STEPS)
def test_decays_start_and_end_exactly_where_they_say(start, end, steps):
    for fall in (
        schedules.linear(start, end, steps),
        schedules.cosine(start, steps, end),
        schedules.polynomial(start, steps, 2.0, end),
    ):
        assert fall(0) == start
        assert fall(steps) == end


def test_linear_goes_through_its_points():
    line = schedules.linear(1.0, 3.0, 8)
    assert [line(t) for t in (0, 2, 4, 8, 1000)] == [1.0, 1.5, 2.0, 3.0, 3.0]


def test_cosine_at_the_known_angles():
    fall = schedules.cosine(3.0, 12, end=1.0)
    # cos 0, 60, 90, 120, 180 degrees
    expected = [3.0, 2.5, 2.0, 1.5, 1.0, 1.0]
    assert np.allclose([fall(t) for t in (0, 4, 6, 8, 12, 99)], expected, rtol=1e-15)
    assert fall(12) == 1.0


def test_polynomial_of_power_one_is_the_line_and_power_two_the_parabola():
    line, same = schedules.linear(2.0, 1.0, 7), schedules.polynomial(2.0, 7, end=1.0)
    assert np.allclose(line.values(10), same.values(10), rtol=1e-15)
    assert schedules.polynomial(1.0, 4, power=2.0).values(5).tolist() == [1.0, 9 / 16, 1 / 4, 1 / 16, 0.0]


def test_exponential_and_step_agree_on_the_whole_periods():
    smooth, stairs = schedules.exponential(3.0, 0.5, every=4), schedules.step(3.0, 4, 0.5)
    for k in range(5):
        assert smooth(4 * k) == stairs(4 * k) == stairs(4 * k + 3) == 3.0 * 0.5**k
    assert smooth(2) == pytest.approx(3 * math.sqrt(0.5))


def test_exponential_that_overflows_is_infinite():
    assert schedules.exponential(1.0, 10.0)(1000) == math.inf


def test_inverse_time_halves_when_rate_times_step_is_one():
    assert schedules.inverse_time(0.8, 0.01)(100) == pytest.approx(0.4)
    assert schedules.inverse_time(0.8, 0.01, power=0.5)(300) == pytest.approx(0.4)


def test_piecewise_changes_at_the_boundary_itself():
    levels = schedules.piecewise([2, 5], [1.0, 0.1, 0.01])
    assert levels.values(7).tolist() == [1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert schedules.piecewise([], [0.3])(9) == 0.3


def one_cycle_by_phases(t, peak, steps, pct_start, div_factor, final_div_factor):
    """torch's OneCycleLR, written as its documentation puts it: two phases, each from a value to a value."""
    initial = peak / div_factor
    minimum = initial / final_div_factor
    phases = [(float(pct_start * steps) - 1, initial, peak), (steps - 1, peak, minimum)]
    begin = 0.0
    for i, (end, low, high) in enumerate(phases):
        if t <= end or i == 1:
            part = (t - begin) / (end - begin)
            return high + (low - high) / 2.0 * (math.cos(math.pi * part) + 1)
        begin = end
    raise AssertionError


@pytest.mark.parametrize("steps, pct_start", [(10, 0.3), (100, 0.25), (37, 0.4), (3, 0.1), (20, 0.0)])
def test_one_cycle_is_torchs(steps, pct_start):
    cycle = schedules.one_cycle(0.4, steps, pct_start, 10.0, 100.0)
    expected = [one_cycle_by_phases(t, 0.4, steps, pct_start, 10.0, 100.0) for t in range(steps)]
    assert np.allclose(cycle.values(steps), expected, rtol=1e-12)


def test_one_cycle_points():
    cycle = schedules.one_cycle(1.0, 100, pct_start=0.3, div_factor=20.0, final_div_factor=50.0)
    assert cycle(0) == pytest.approx(0.05)
    assert cycle(29) == 1.0 == cycle.values(100).max()
    assert cycle(99) == cycle(500) == pytest.approx(0.001)
    assert schedules.one_cycle(1.0, 1)(0) == pytest.approx(4e-6)


def test_cosine_restarts_where_sgdr_says():
    waves = schedules.cosine_restarts(1.0, 10, factor=2)
    for start, length in [(0, 10), (10, 20), (30, 40), (70, 80)]:
        assert waves(start) == 1.0
        assert waves(start + length // 2) == pytest.approx(0.5)
        assert waves(start + length - 1) == pytest.approx(0.5 * (1 + math.cos(math.pi * (1 - 1 / length))))
    assert waves.length is None


def test_cosine_restarts_with_factor_one_is_periodic():
    waves = schedules.cosine_restarts(2.0, 8, end=0.5)
    first = waves.values(8)
    assert np.allclose(first, schedules.cosine(2.0, 8, end=0.5).values(8))
    assert waves.values(24).tolist() == [*first, *first, *first]
    assert waves(8 * 10**15 + 3) == waves(3)  # no loop over the periods


def test_no_memory_between_calls():
    lr = schedules.warmup(3) * schedules.cosine(1.0, 10)
    forward = [lr(t) for t in range(12)]
    assert [lr(t) for t in reversed(range(12))] == forward[::-1]


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda s: s.cosine(1.0, 0), ValueError, "cosine: steps: expected an integer >= 1, got 0"),
        (lambda s: s.cosine(1.0, 1e4), TypeError, "cosine: steps: expected an integer, got 10000.0"),
        (lambda s: s.cosine("1", 10), TypeError, "cosine: start: expected a number, got str"),
        (lambda s: s.cosine(math.nan, 10), ValueError, "cosine: start: expected a finite number, got nan"),
        (lambda s: s.linear(0, math.inf, 10), ValueError, "linear: end: expected a finite number, got inf"),
        (lambda s: s.polynomial(1, 10, power=0), ValueError, "polynomial: power: expected a number > 0, got 0.0"),
        (lambda s: s.exponential(1, -0.5), ValueError, "exponential: factor: expected a number > 0, got -0.5"),
        (lambda s: s.step(1, 0, 0.5), ValueError, "step: every: expected an integer >= 1, got 0"),
        (lambda s: s.inverse_time(1, -1), ValueError, "inverse_time: rate: expected a number >= 0, got -1.0"),
        (lambda s: s.piecewise([5, 5], [1, 2, 3]), ValueError, r"boundaries: expected rising .* got \[5, 5\]"),
        (lambda s: s.piecewise([5], [1]), ValueError, "values: expected 2, one more than boundaries, got 1"),
        (lambda s: s.one_cycle(1, 10, pct_start=1.0), ValueError, r"pct_start: expected a number in \[0, 1\), got 1.0"),
        (lambda s: s.cosine_restarts(1, 10, factor=1.5), TypeError, "factor: expected an integer, got 1.5"),
        (lambda s: s.warmup(-1), ValueError, "warmup: steps: expected an integer >= 1, got -1"),
        (lambda s: s.exponential(1, 0.9).then(0.1), ValueError, "then: .*no length of its own; pass after="),
        (lambda s: s.warmup(3).then(0.1, after=-1), ValueError, "then: after: expected an integer >= 0, got -1"),
        (lambda s: s.warmup(3) * math.nan, ValueError, "expected a finite number, got nan"),
        (lambda s: s.warmup(3) * "a", TypeError, "expected a number, got str"),
        (lambda s: s.warmup(3)(-1), ValueError, "step: expected .* >= 0, got -1"),
        (lambda s: s.warmup(3)(0.5), TypeError, "float"),
    ],
)
def test_wrong_arguments_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make(schedules)


CHAINS = {
    "product": lambda a, i: a * 0.999,
    "product of schedules": lambda a, i: a * schedules.warmup(i + 1),
    "number first": lambda a, i: 0.999 * a,
    "sum": lambda a, i: a + 0.001,
    "both": lambda a, i: a * 0.5 + 0.25,
    "to the right": lambda a, i: schedules.warmup(i + 1) * (a + 0.001),
    "then": lambda a, i: a.then(schedules.constant(float(i)), after=i),
    "then to the right": lambda a, i: schedules.constant(float(i)).then(a, after=1),
}


@pytest.mark.parametrize("link", CHAINS.values(), ids=CHAINS)
def test_chains_of_thousands_work(link):
    """No recursion: the interpreter's limit ended them at 500."""
    chain = schedules.cosine(0.5, 7)
    for i in range(3000):
        chain = link(chain, i)
    again = [pickle.loads(pickle.dumps(chain)), copy.deepcopy(chain), copy.copy(chain)]
    assert all(other == chain and hash(other) == hash(chain) for other in again)
    assert len(repr(chain)) > 3000
    assert {other(5) for other in (chain, *again)} == {chain(5)}


def test_chains_are_computed_from_left_to_right():
    chain, values = schedules.cosine(0.3, 7), 0.3
    for _ in range(3000):
        chain, values = chain * 0.999 + 0.1, values * 0.999 + 0.1
    assert chain(0) == values
    rest = schedules.constant(-1.0)
    for i in reversed(range(3000)):
        rest = schedules.constant(float(i)).then(rest, after=2)
    assert [rest(t) for t in (0, 1, 2, 5999, 6000)] == [0.0, 0.0, 1.0, 2999.0, -1.0]
