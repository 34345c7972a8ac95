"""A storm of signals over whatever changes something; test_interrupts.py runs it.

    python -m tests.storms SECONDS [CASE ...]

Every 0.3 to 1.3 ms, while a call of ravine's runs, a handler raises KeyboardInterrupt. After each attempt the case
looks whether what was running has happened as a whole or not begun, byte for byte beside a twin whom nobody interrupts;
in the end, in the calm, all goes on. Prints the number of attempts and of interrupts of each case.
"""

import itertools
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from functools import cache
from pathlib import Path

import numpy as np

import ravine as rv

PACKAGE = os.path.dirname(rv.__file__)
F32 = np.float32


class Storm:
    """Signals at random intervals, which raise only inside of ``attempt``, and only below a frame of ravine's."""

    def __init__(self, seed):
        self.random, self.open, self.came = random.Random(seed), False, 0
        #: How long an attempt takes, so that the storm may begin anywhere in it.
        self.usual, self.begin = 0.0, 0.0
        signal.signal(signal.SIGINT, self.handle)
        signal.signal(signal.SIGALRM, lambda *_: self.blow())
        self.blow()

    def blow(self):
        signal.setitimer(signal.ITIMER_REAL, self.random.uniform(0.0003, 0.0013))
        if self.open and time.monotonic() >= self.begin:
            signal.raise_signal(signal.SIGINT)

    def handle(self, _, frame):
        while frame is not None and self.open:
            if frame.f_code.co_filename.startswith(PACKAGE):
                self.came += 1
                raise KeyboardInterrupt
            frame = frame.f_back

    def attempt(self, action):
        """Return what the action gives, or None if it was interrupted."""
        try:
            start = time.monotonic()
            self.begin = start + self.random.random() * 1.1 * self.usual
            self.open = True
            result = action()
            self.open = False
            self.usual = 0.5 * (self.usual + time.monotonic() - start)
            return (result,)
        except KeyboardInterrupt:
            return None
        finally:
            self.open = False

    def stop(self):
        signal.setitimer(signal.ITIMER_REAL, 0)


def bytes_of(tree):
    """All arrays of a nesting as bytes, the rest as it is."""
    if isinstance(tree, dict):
        return {key: bytes_of(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [bytes_of(item) for item in tree]
    return tree.tobytes() if hasattr(tree, "tobytes") else tree


def state_of(opt):
    """All that a step may change."""
    engine = opt._engine
    sums = [None if x is None else x.tobytes() for x in engine.sums] if hasattr(engine, "sums") else None
    return bytes_of([opt._state(), list(engine.parameters), sums, engine.accumulated])


class Steps:
    """Steps, each beside a twin's."""

    def __init__(self, make, gradient, scale=None):
        self.make, self.gradient = make, gradient
        (self.opt, self.twin), self.i = (make(), make()), 0
        self.scales = (scale(), scale()) if callable(scale) else (scale, scale)

    def act(self, opt, scale, i):
        opt.step(self.gradient(i), grad_scale=scale)

    def seen(self, opt, scale):
        return state_of(opt), scale.state_dict() if isinstance(scale, rv.DynamicLossScale) else scale

    def attempt(self, storm):
        (scale, twins), done = self.scales, 0

        def some():
            nonlocal done
            for _ in range(50):
                self.act(self.opt, scale, self.i + done)
                done += 1

        whole = storm.attempt(some)
        for i in range(self.i, self.i + done):
            self.act(self.twin, twins, i)
        self.i += done
        if whole is None and self.seen(self.opt, scale) != self.seen(self.twin, twins):
            self.act(self.twin, twins, self.i)  # the step was made, and interrupted on its way back
        self.i += whole is None
        assert self.seen(self.opt, scale) == self.seen(self.twin, twins), "a step was torn"

    def finish(self):
        before = self.opt.steps
        for i in range(self.i, self.i + 6):
            for opt, scale in zip((self.opt, self.twin), self.scales, strict=True):
                self.act(opt, scale, i)
        assert self.opt.steps >= before + 2, "steps no longer go through"
        assert self.seen(self.opt, self.scales[0]) == self.seen(self.twin, self.scales[1])


class Micro(Steps):
    """Accumulating, and stepping every third time."""

    def act(self, opt, scale, i):
        if i % 3 == 2 and opt._engine.accumulated is not None:
            opt.step(grad_scale=scale)
        else:
            opt.accumulate(self.gradient(i), weight=1.0 + i % 2)


class States(Steps):
    """Loading one of two states, and evaluating with averages; nothing but loading changes anything."""

    def __init__(self, make, gradient):
        super().__init__(make, gradient)
        self.kept = []
        for _ in range(2):
            for _ in range(3):
                super().act(self.opt, None, self.i)
                self.i += 1
            self.kept.append(self.opt.state_dict())
        self.twin.load_state_dict(self.kept[0])
        self.opt.load_state_dict(self.kept[0])
        for mine, theirs in zip(self.opt._engine.parameters, self.twin._engine.parameters, strict=True):
            theirs[...] = mine

    def act(self, opt, _, i):
        if i % 2:
            opt.load_state_dict(self.kept[i // 2 % 2])
        else:
            with opt.averaged_parameters():
                pass

    def finish(self):
        for opt in (self.opt, self.twin):
            for k in range(5):
                opt.step(self.gradient(k))
        assert self.seen(self.opt, None) == self.seen(self.twin, None)


@cache
def gradients(i, *, bad_every=0):
    rng = np.random.default_rng(i)
    found = {"a": rng.standard_normal((6, 5)).astype(F32), "b": {"c": rng.standard_normal(7).astype(F32)}}
    if bad_every and i % bad_every == bad_every - 1:
        found["a"][0, 0] = np.inf
    return found


@cache
def rows(i):
    found = dict(gradients(i))
    rng = np.random.default_rng(i)
    found["a"] = rv.RowSparse(rng.integers(0, 6, 4), rng.standard_normal((4, 5)).astype(F32))
    return found


def params():
    return {"a": np.linspace(-1, 1, 30, dtype=F32).reshape(6, 5), "b": {"c": np.ones(7, F32)}}


def rate(step):
    return 0.01 / (1 + 0.001 * step)


def full_run(lr=rate, seed=0):
    """An optimizer and all that its file holds."""
    opt = rv.AdamW(params(), lr=lr, average=rv.EMA(0.9), clip_norm=1.0, nonfinite="skip")
    net = rv.nn.Sequential(rv.nn.Linear(5, 4, 0), rv.BatchNorm(4))
    x = np.arange(24.0)
    extra = {
        "net": net,
        "rng": np.random.default_rng(seed),
        "scale": rv.DynamicLossScale(2.0**10),
        "history": rv.History(),
        "batches": rv.data.minibatches(x, batch_size=5, rng=3),
        "array": np.zeros(9),
    }
    return opt, extra


def advance(opt, extra, n):
    for i in range(n):
        info = opt.step(gradients(i), grad_scale=extra["scale"])
        extra["history"].record(info, loss=float(i))
        extra["net"].forward(extra["rng"].standard_normal((6, 5)).astype(F32))
        next(extra["batches"], None)
        extra["array"] += 1


def run_state(opt, extra):
    net, batches, rng = extra["net"], extra["batches"].state_dict(), extra["rng"].bit_generator.state
    plain = [extra["scale"].state_dict(), extra["history"].state_dict(), batches, rng]
    return state_of(opt), bytes_of([net.state_dict(), extra["array"]]), plain


def descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the list itself
            continue
    return found


class Saving:
    """Saves: the file is whole, of this save or of the one before."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "run.safetensors")
        self.opt, self.extra = full_run()
        advance(self.opt, self.extra, 2)
        self.opt.save(self.path, extra=self.extra)
        self.saved = run_state(self.opt, self.extra)
        self.before = descriptors()

    def read(self):
        opt, extra = full_run(seed=1)
        opt.load(self.path, extra=extra)
        return run_state(opt, extra)

    def attempt(self, storm):
        advance(self.opt, self.extra, 1)
        now = run_state(self.opt, self.extra)
        done = storm.attempt(lambda: self.opt.save(self.path, extra=self.extra, keep=2))
        assert run_state(self.opt, self.extra) == now, "saving changed what it saves"
        assert descriptors() == self.before, "a descriptor leaks"
        there = self.read()
        assert there in ([now] if done else [now, self.saved]), "the file is neither this save's nor the last one's"
        self.saved = there
        known = {self.path.name, self.path.name + ".1", f".{self.path.name}.saving"}
        assert set(os.listdir(self.folder.name)) <= known

    def finish(self):
        self.opt.save(self.path, extra=self.extra, keep=2)
        assert self.read() == run_state(self.opt, self.extra)
        assert sorted(os.listdir(self.folder.name)) == [self.path.name, self.path.name + ".1"], "something is left"
        self.folder.cleanup()


class Loading:
    """Loads of two files in turn, all of one or all of the other."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.paths = [Path(self.folder.name, name) for name in ("one", "two")]
        self.states, self.i = [], 0
        self.opt, self.extra = full_run()
        for path in self.paths:
            advance(self.opt, self.extra, 3)
            self.opt.save(path, extra=self.extra)
            self.states.append(run_state(self.opt, self.extra))
        self.before = descriptors()

    def attempt(self, storm):
        self.i = 1 - self.i
        done = storm.attempt(lambda: self.opt.load(self.paths[self.i], extra=self.extra))
        found = run_state(self.opt, self.extra)
        assert found in self.states, "loaded in part"
        assert not done or found == self.states[self.i]
        assert descriptors() == self.before, "a descriptor leaks"
        self.i = self.states.index(found)

    def finish(self):
        self.opt.load(self.paths[0], extra=self.extra)
        twin, extra = full_run(seed=2)
        twin.load(self.paths[0], extra=extra)
        advance(self.opt, self.extra, 3)
        advance(twin, extra, 3)
        assert run_state(self.opt, self.extra) == run_state(twin, extra)
        self.folder.cleanup()


class Descending:
    """minimize, and what else moves parameters about: they are at the start, or where it ends."""

    def __init__(self, call, end=True):
        self.call, self.moves = call, end
        w = self.start()
        self.call(self.loss, w)
        self.end = bytes_of(w)

    @staticmethod
    def start():
        return {"a": np.full(3, 2.0), "b": np.full(3, 2.0), "c": np.full((2, 2), -1.0)}

    @staticmethod
    def loss(w):
        parts = {name: (x - 1) ** 3 + (x - 1) for name, x in w.items()}
        return sum(float((0.25 * (x - 1) ** 4 + 0.5 * (x - 1) ** 2).sum()) for x in w.values()), parts

    def attempt(self, storm):
        w = self.start()
        done = storm.attempt(lambda: self.call(self.loss, w))
        found = bytes_of(w)
        assert found in ([self.end] if done else [self.end, bytes_of(self.start())]), "parameters were left on the way"

    def finish(self):
        w = self.start()
        self.call(self.loss, w)
        assert bytes_of(w) == self.end


class Trial(Descending):
    """lr_range_test leaves no trace."""

    def __init__(self):
        self.w = self.start()
        self.opt = rv.Adam(self.w, lr=rv.schedules.cosine(0.1, 9))
        self.opt.step({name: np.ones_like(x) for name, x in self.w.items()})
        self.before = state_of(self.opt), self.opt.lr

    def attempt(self, storm):
        storm.attempt(lambda: rv.lr_range_test(self.loss, self.w, self.opt, steps=5))
        assert (state_of(self.opt), self.opt.lr) == self.before, "a trial left its trace"

    def finish(self):
        self.opt.step({name: np.ones_like(x) for name, x in self.w.items()})


class Batches:
    """Each epoch has each sample once, in the twin's order."""

    def __init__(self):
        self.x = np.arange(23)
        self.mine, self.twin = (rv.data.minibatches(self.x, batch_size=2, rng=np.random.default_rng(5)) for _ in "ab")
        self.given = []

    def attempt(self, storm):
        got = storm.attempt(lambda: next(self.mine, None))
        if got is None:
            return  # not given: the next has it
        if got[0] is not None:
            self.given += got[0][0].tolist()
            return
        right = [i for (batch,) in self.twin for i in batch.tolist()]
        assert self.given == right, "a batch was lost or came twice"
        self.given = []
        while storm.attempt(lambda: iter(self.mine)) is None:
            pass

    def finish(self):
        if not self.given:
            return
        while (batch := next(self.mine, None)) is not None:  # not by a loop, which would be the next epoch
            self.given += batch[0].tolist()
        assert self.given == [i for (batch,) in self.twin for i in batch.tolist()]


class Records:
    """Records of a history are there or not, and may be gone on from."""

    def __init__(self):
        self.opt = rv.SGD(params(), lr=0.1)
        self.history, self.i = rv.History(), 0

    def attempt(self, storm):
        history, before, steps = self.history, len(self.history), self.opt.steps
        self.i += 1
        if self.i % 4 == 0:
            storm.attempt(lambda: history.step(self.opt, gradients(self.i), loss=1.0))
            assert self.opt.steps - steps == len(history) - before, "a step without its record"
        else:
            storm.attempt(lambda: history.record(step=self.i, loss=1.0, other=2.0))
        if len(history) > before:
            history.record(validation=1.0)  # of the same step, once
            try:
                history.record(loss=1.0)
            except ValueError:
                pass
            else:
                raise AssertionError("recorded twice at one step")
        if len(history) > 300:
            storm.attempt(history.as_arrays)
            twin = rv.History()
            twin.load_state_dict(history.state_dict())
            assert twin.state_dict() == history.state_dict()
            self.history = rv.History()

    def finish(self):
        self.history.record(step=10**6, loss=1.0)


class Pictures:
    """learning_curves: afterwards the same picture as ever."""

    def __init__(self):
        import matplotlib as mpl

        mpl.use("agg")
        self.right = self.draw()

    @staticmethod
    def draw():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure((3, 2))
        canvas, ax = FigureCanvasAgg(figure), figure.add_subplot()
        rv.plot.learning_curves({"a": [3.0, 2.0, 1.0], "b": [2.0, math.nan, 0.5]}, ax=ax, smoothing=0.5, log=True)
        canvas.draw()
        return bytes(canvas.buffer_rgba())

    def attempt(self, storm):
        storm.attempt(self.draw)

    def finish(self):
        import matplotlib.pyplot as plt

        assert self.draw() == self.right
        assert not plt.get_fignums()


def adam(**options):
    return lambda: rv.Adam(params(), **{"lr": 0.01, **options})


CASES = {
    "step": lambda: Steps(adam(), gradients),
    "schedule": lambda: Steps(adam(lr=rate, betas=(rate, 0.99)), gradients),
    "grad_scale": lambda: Steps(adam(clip_norm=1.0), gradients, 8.0),
    "loss scale": lambda: Steps(
        adam(lr=rate), lambda i: gradients(i, bad_every=7), lambda: rv.DynamicLossScale(2.0**10, growth_interval=3)
    ),
    "accumulate": lambda: Micro(adam(lr=rate), gradients),
    "rows": lambda: Steps(adam(lr=rate), rows),
    "rows, loss scale": lambda: Steps(adam(), rows, lambda: rv.DynamicLossScale(2.0**10, growth_interval=3)),
    "adafactor": lambda: Steps(lambda: rv.Adafactor(params(), lr=rate), gradients),
    "adafactor, loss scale": lambda: Steps(
        lambda: rv.Adafactor(params(), lr=0.01),
        lambda i: gradients(i, bad_every=7),
        lambda: rv.DynamicLossScale(2.0**10, growth_interval=3),
    ),
    "muon": lambda: Steps(
        lambda: rv.Muon({"a": params()["a"]}, lr=rate, momentum=0.9), lambda i: {"a": gradients(i)["a"]}
    ),
    "states": lambda: States(adam(lr=rate, average=rv.EMA(0.9), lookahead=rv.Lookahead(2)), gradients),
    "save": Saving,
    "load": Loading,
    "minimize": lambda: Descending(lambda loss, w: rv.minimize(loss, w, max_iterations=6)),
    "newton": lambda: Descending(lambda loss, w: rv.minimize(loss, w, method="newton-cg", max_iterations=3)),
    "adam by minimize": lambda: Descending(lambda loss, w: rv.minimize(loss, w, method="adam", max_iterations=5)),
    "check_gradient": lambda: Descending(lambda loss, w: rv.check_gradient(loss, w)),
    "lr_range_test": Trial,
    "minibatches": Batches,
    "history": Records,
    "plot": Pictures,
}


def run(name, seconds, seed):
    case, storm = CASES[name](), Storm(seed)
    attempts, end = 0, time.monotonic() + seconds
    try:
        # On a busy machine few signals meet a call.
        while time.monotonic() < end or (storm.came < 5 and time.monotonic() < end + 30):
            case.attempt(storm)
            attempts += 1
    finally:
        storm.stop()
    case.finish()
    return attempts, storm.came


def main(seconds, *names):
    failed = False
    for name in names or CASES:
        try:
            attempts, came = run(name, float(seconds), seed=next(SEEDS))
            print(f"{name}: {attempts} attempts, {came} interrupts", flush=True)
            assert came >= 5, name
        except Exception:
            failed = True
            print(f"{name}: FAILED", flush=True)
            traceback.print_exc(limit=8)
    sys.exit(failed)


SEEDS = itertools.count(int(os.environ.get("RAVINE_SEED", "0")))

if __name__ == "__main__":
    main(*sys.argv[1:])
