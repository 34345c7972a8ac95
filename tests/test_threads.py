"""Threads: any number of them, in any order, gives the same bits, and nothing waits for ever."""

import hashlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

import ravine as rv

pytestmark = pytest.mark.timeout(60)

#: Elements: below the parallel threshold and above it, in whole chunks and not.
SIZES = [1000, 50_000, 3 * 8192, 131_073]

MAKERS = {
    "sgd": partial(rv.SGD, lr=0.1, clip_norm=1.0),
    "momentum": partial(rv.SGD, lr=0.1, momentum=0.9, l2=0.1),
    "adamw": partial(rv.AdamW, lr=0.1, clip_norm=1.0, nonfinite="skip"),
    "lion": partial(rv.Lion, lr=0.1, weight_decay=0.1),
}


@pytest.fixture(autouse=True)
def threads():
    before = rv.num_threads()
    yield
    rv.set_num_threads(before)


def tree(n, seed=0):
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal(n, np.float32), "b": [rng.standard_normal(n // 3), rng.standard_normal(7)]}


def run(make, n, between=lambda step: None):
    """The bits after some steps."""
    params, grads = tree(n), tree(n, seed=1)
    opt = make(params)
    digest = hashlib.sha256()
    for step in range(5):
        between(step)
        info = opt.step(grads)
        digest.update(repr(info).encode())
    for array in [*rv.trees.leaves(params).values(), *itertools.chain(*opt._engine.states)]:
        digest.update(array.tobytes())
    return digest.hexdigest()


def expected():
    rv.set_num_threads(1)
    return {(name, n): run(make, n) for name, make in MAKERS.items() for n in SIZES}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 64])
def test_any_number_of_threads_gives_the_same_bits(n):
    right = expected()
    rv.set_num_threads(n)
    assert {(name, size): run(make, size) for name, make in MAKERS.items() for size in SIZES} == right


def test_many_threads_with_an_optimizer_each_get_the_same_bits():
    right = expected()
    rv.set_num_threads(4)
    jobs = list(right) * 6
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: run(MAKERS[job[0]], job[1]), jobs))
    assert results == [right[job] for job in jobs]


def test_a_thread_that_is_not_the_main_one_can_be_the_first_and_the_only_one_to_step():
    right = expected()
    rv.set_num_threads(2)
    results = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: results.append({job: run(MAKERS[job[0]], job[1]) for job in right}))
        thread.start()
        thread.join()
    assert results == [right] * 3


def test_the_number_may_change_between_steps():
    right = expected()
    for counts in ([1, 2, 3, 4, 5], [8, 1, 8, 1, 8], [2, 64, 2, 3, 1]):
        for (name, n), bits in right.items():
            assert run(MAKERS[name], n, between=lambda step: rv.set_num_threads(counts[step])) == bits  # noqa: B023


def test_the_number_may_change_while_others_step():
    right = expected()
    done = threading.Event()

    def change():
        for n in itertools.cycle([1, 2, 7, 3, 64]):
            rv.set_num_threads(n)
            time.sleep(0.0003)
            if done.is_set():
                return

    changer = threading.Thread(target=change)
    changer.start()
    try:
        jobs = list(right) * 2
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(lambda job: run(MAKERS[job[0]], job[1]), jobs))
    finally:
        done.set()
        changer.join()
    assert results == [right[job] for job in jobs]


def test_sleeping_workers_wake_up():
    rv.set_num_threads(4)
    w, g = np.zeros(100_000), np.ones(100_000)
    opt = rv.SGD(w, lr=1.0)
    for pause in [0.0, 0.00002, 0.0001, 0.002] * 25:
        opt.step(g)
        time.sleep(pause)
    assert w.min() == w.max() == -100


def test_one_gradient_can_be_read_by_many_optimizers_at_once():
    g = np.ones(200_000)
    weights = [np.zeros(200_000) for _ in range(8)]
    opts = [rv.SGD(w, lr=1.0) for w in weights]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            list(pool.map(lambda opt: opt.step(g), opts))
    assert all(w.min() == w.max() == -3 for w in weights)


def test_other_threads_run_during_a_large_step():
    # The interpreter's lock is free while a step works: this thread counts on.
    rv.set_num_threads(1)
    w, g = np.zeros(4_000_000, np.float32), np.ones(4_000_000, np.float32)
    opt = rv.Adam(w)
    opt.step(g)
    stepper = threading.Thread(target=lambda: [opt.step(g) for _ in range(10)])
    counted = 0
    stepper.start()
    while stepper.is_alive():
        counted += 1
        time.sleep(0)
    assert counted > 10
    assert opt.steps == 11


def test_the_counters_can_be_read_while_another_thread_steps():
    # A progress bar does.
    w, g = np.zeros(4_000_000, np.float32), np.ones(4_000_000, np.float32)
    opt = rv.Adam(w)
    stepper = threading.Thread(target=lambda: [opt.step(g) for _ in range(10)])
    stepper.start()
    seen = []
    while stepper.is_alive():
        seen.append((opt.steps, opt.lr))
    assert seen == sorted(seen)


def test_functions_run_in_many_threads():
    def job(seed):
        p, g, m, v = (np.random.default_rng(seed).random(70_000) for _ in range(4))
        for step in range(1, 4):
            rv.functional.adamw_(p, g, m, v, step=step)
        return hashlib.sha256(p.tobytes()).hexdigest()

    rv.set_num_threads(1)
    right = [job(seed) for seed in range(16)]
    rv.set_num_threads(4)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(job, range(16))) == right


def test_optimizers_are_dropped_while_others_step():
    rv.set_num_threads(3)

    def job(seed):
        for _ in range(20):
            opt = rv.Adam(tree(40_000))
            opt.step(tree(40_000, seed))
        return opt.steps

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(job, range(4))) == [1] * 4
