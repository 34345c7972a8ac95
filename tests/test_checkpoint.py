"""Checkpoints: resumed bit for bit on any backend; whole or not at all; damage always found, and nothing loaded then.

The numbers in the tests' names are the lines of the project's table of faults. RAVINE_SLOW=1 runs the long ones, too.
"""

import dis
import json
import multiprocessing
import os
import pickle
import resource
import stat
import subprocess
import sys
import tempfile
import textwrap
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import ravine as rv
from ravine.backends import cpu
from tests.test_state import OPTIMIZERS

F32 = np.float32
ROOT = Path(__file__).parent.parent
SLOW = bool(os.environ.get("RAVINE_SLOW"))
slow = pytest.mark.skipif(not SLOW, reason="takes minutes: RAVINE_SLOW=1, or make test-slow")


def snapshot(opt):
    """Everything that a load may change."""
    arrays = [*opt._engine.parameters, *(state for states in opt._engine.states for state in states)]
    host = [rv.to_host(array) for array in arrays]
    numbers = [[opt._engine.hyper(g, name) for name in opt._flat_values(g)] for g in range(len(opt._values))]
    return [a.tobytes() for a in host], opt.steps, list(opt._engine.updates), numbers, repr(opt), pickle.dumps(opt.lr)


def tree(seed=0, xp=np):
    """Parameters, or gradients: mixed dtypes, nested, 0-d, empty, strided."""
    rng = np.random.default_rng(seed)

    def of(dtype, *shape):
        return xp.asarray(rng.standard_normal(shape).astype(dtype))

    return {
        "a": of(np.float64, 3, 4),
        "b": [of(F32, 5), of(np.float16, 2, 3), of(ml_dtypes.bfloat16, 7)],
        "c": {"transposed": of(F32, 4, 3).T, "every second": of(np.float64, 10)[::2]},
        "é/ü": of(F32),
        "none": of(F32, 0, 3),
    }


SCHEDULE = rv.schedules.warmup(4) * rv.schedules.cosine(0.1, 30)
OPTIONS = {
    "groups": [("b.*", {"lr": rv.schedules.exponential(0.05, 0.9)}), ("c.*", {"weight_decay": 0.25, "lr": 0.02})],
    "clip_norm": 2.0,
    "clip_value": 1.5,
    "nonfinite": "skip",
    "l2": 0.01,
}


def make(name, params=None, **options):
    keywords = {**OPTIMIZERS[name].keywords, "lr": SCHEDULE, **OPTIONS, **options}
    return OPTIMIZERS[name].func(tree() if params is None else params, **keywords)


def run(opt, first, last, xp=np):
    for t in range(first, last):
        grads = tree(t, xp)
        if t % 3 == 2:
            grads["a"] = None  # so that the counters differ
        opt.step(grads)
    return opt


def python(code, *arguments, timeout=120, **env):
    """Run code in a fresh interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    return done.stdout.strip()


linux = pytest.mark.skipif(sys.platform != "linux", reason="preloads a library, or limits memory, in Linux's way")
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:  # thousands of files: a disk would take a minute
        yield Path(folder) / "run.safetensors"


def refused(opt, path, *words, error=ValueError, **options):
    """Loading raises, with all the words, and nothing has changed."""
    before = snapshot(opt)
    with pytest.raises(error) as caught:
        opt.load(path, **options)
    message = str(caught.value)
    assert snapshot(opt) == before, message
    assert [word for word in words if word not in message] == [], message
    return message


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule_goes_on_bit_for_bit(path, name):
    whole = run(make(name), 1, 16)
    half = run(make(name), 1, 6)
    half.save(path)
    resumed = make(name, rv.trees.map(np.zeros_like, tree()))
    done = resumed.load(path)
    assert (done.step, done.restored, done.left_out, done.kept) == (5, (), (), ())
    assert snapshot(resumed)[:3] == snapshot(half)[:3]
    assert snapshot(run(resumed, 6, 16)) == snapshot(whole)


def test_a_fresh_process_goes_on_bit_for_bit(tmp_path):
    for name in OPTIMIZERS:
        run(make(name), 1, 6).save(tmp_path / f"{name}.half")
    python(
        """
        import sys, pathlib, numpy as np, ravine as rv
        from tests import test_checkpoint as t
        rv.set_num_threads(1)
        for name in t.OPTIMIZERS:
            opt = t.make(name, rv.trees.map(np.zeros_like, t.tree()))
            opt.load(pathlib.Path(sys.argv[1], f"{name}.half"))
            t.run(opt, 6, 16).save(pathlib.Path(sys.argv[1], f"{name}.resumed"))
        """,
        tmp_path,
    )
    for name in OPTIMIZERS:
        run(make(name), 1, 16).save(tmp_path / f"{name}.whole")
        assert (tmp_path / f"{name}.resumed").read_bytes() == (tmp_path / f"{name}.whole").read_bytes(), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numpy_and_cupy_write_the_same_file_and_read_each_others(gpu, path, name):
    device, host = make(name, tree(xp=gpu)), make(name)
    rng = np.random.default_rng(7)
    for opt in (device, host):  # no step: kernels take seconds to build, and have their own tests
        opt._engine.set_counters(3, list(range(len(opt._engine.names))))
    for there, here in zip(device._engine.states, host._engine.states, strict=True):
        for a, b in zip(there, here, strict=True):
            b[...] = rng.standard_normal(b.shape)
            a[...] = gpu.asarray(b)
    host.save(path)
    device.save(path.with_suffix(".device"))
    written = path.read_bytes()
    assert path.with_suffix(".device").read_bytes() == written
    for other in (
        make(name, rv.trees.map(gpu.zeros_like, tree(xp=gpu))),
        make(name, rv.trees.map(np.zeros_like, tree())),
    ):
        other.load(path)
        other.save(path.with_suffix(".again"))
        assert path.with_suffix(".again").read_bytes() == written


def test_a_run_moves_between_numpy_and_cupy_and_goes_on_bit_for_bit(gpu, path):
    def simple(xp, seed=0):
        return {"w": tree(seed, xp)["a"], "b": tree(seed, xp)["b"][0]}

    def on(xp, opt, first, last):
        for t in range(first, last):
            opt.step(simple(xp, t))
        return opt

    options = {"lr": SCHEDULE, "clip_norm": 1.0}
    whole = on(np, rv.AdamW(simple(np), **options), 1, 16)
    opt = rv.AdamW(simple(np), **options)
    for first, xp in ((1, np), (4, gpu), (7, np), (10, gpu)):
        moved = rv.AdamW(rv.trees.map(xp.zeros_like, simple(xp)), **options)
        opt.save(path)
        moved.load(path)
        opt = on(xp, moved, first, first + 3 if first < 10 else 16)
    assert snapshot(opt)[:4] == snapshot(whole)[:4]


def test_no_thread_count_changes_the_file(path):
    written = set()
    for threads in (1, 2, 4):
        rv.set_num_threads(threads)
        w = np.linspace(0.1, 1.0, 300_000, dtype=F32)
        opt = rv.Adam(w)
        opt.step(w.copy())
        opt.save(path)
        written.add(path.read_bytes())
    assert len(written) == 1


def test_saving_twice_writes_the_same_bytes_and_changes_nothing(path):
    opt = run(make("adam"), 1, 5)
    before = snapshot(opt)
    opt.save(path)
    written = path.read_bytes()
    opt.save(path)
    assert path.read_bytes() == written
    assert snapshot(opt) == before


def test_parameters_are_written_in_place_and_gaps_keep_their_values(path):
    wide = np.arange(12.0).reshape(3, 4)
    opt = rv.SGD(wide[:, ::2], lr=0.1)
    opt.save(path)
    wide[...] = 7
    opt.load(path)
    np.testing.assert_array_equal(wide, [[0, 7, 2, 7], [4, 7, 6, 7], [8, 7, 10, 7]])


def test_names_decide_not_order(path):
    one = rv.Adam({"a": np.zeros(2), "b": [np.ones(2)]})
    one.step({"a": np.full(2, 1.0), "b": [np.full(2, 2.0)]})
    one.save(path)
    two = rv.Adam({"b": [np.zeros(2)], "a": np.zeros(2)})
    two.load(path)
    np.testing.assert_equal(two.state_dict(), one.state_dict())
    assert two._engine.parameters[0].tobytes() == one._engine.parameters[1].tobytes()


def test_memory_of_other_libraries_is_saved_and_loaded(path):
    weights = memoryview(bytearray(12)).cast("f")
    opt = rv.SGD({"w": weights}, lr=0.5)
    opt.step({"w": np.ones(3, F32)})
    opt.save(path)
    opt.step({"w": np.ones(3, F32)})
    opt.load(path)
    assert weights.tolist() == [-0.5] * 3


def test_an_optimizer_without_parameters_or_of_empty_ones(path):
    for params in ({}, {"w": np.zeros((0, 2))}):
        opt = rv.Adam(params)
        opt.step(params)
        opt.save(path)
        other = rv.Adam(rv.trees.map(np.copy, params))
        assert other.load(path).step == 1


@pytest.mark.parametrize("count", [0, 1, 2**24 + 1, 2**53 + 1, 2**63 - 1])
def test_counts_are_64_bits_wide(path, count):
    opt = rv.Adam(np.ones(1))
    opt._engine.set_counters(count, [count])
    opt.save(path)
    other = rv.Adam(np.ones(1))
    other.load(path)
    assert (other.steps, other._engine.updates) == (count, [count])


# Hyperparameters


def test_numbers_set_at_run_time_are_restored(path):
    def fresh():
        return rv.AdamW({"w": np.ones(2), "b": np.ones(2)}, lr=0.1, groups=[("b", {"weight_decay": 0.0})])

    opt = fresh()
    opt.step({"w": np.ones(2), "b": np.ones(2)})
    opt.lr = 0.003
    opt.save(path)
    other = fresh()
    done = other.load(path)
    assert done.restored == ("lr of 'w': 0.003, was 0.1", "lr of 'b': 0.003, was 0.1")
    assert "goes on after step 1" in done.message
    assert "restored lr" in done.message
    assert other.lr == 0.003
    assert "lr=0.003" in repr(other)
    for o in (opt, other):
        o.step({"w": np.ones(2), "b": np.ones(2)})
    assert snapshot(other) == snapshot(opt)


@pytest.mark.parametrize(
    ("saved", "own", "restored"),
    [
        (
            lambda w: rv.Adam(w, betas=(0.8, 0.99)),
            lambda w: rv.Adam(w),
            ("beta1: 0.8, was 0.9", "beta2: 0.99, was 0.999"),
        ),
        (
            lambda w: rv.SGD(w, lr=1.0, momentum=0.5),
            lambda w: rv.SGD(w, lr=1.0, momentum=0.9),
            ("momentum: 0.5, was 0.9",),
        ),
        (
            lambda w: rv.RMSprop(w, momentum_before=0.5),
            lambda w: rv.RMSprop(w, momentum_before=0.9),
            ("momentum: 0.5, was 0.9",),
        ),
        (
            lambda w: rv.Lion(w, weight_decay=0.1),
            lambda w: rv.Lion(w, l2=0.1),
            ("l2: 0.0, was 0.1", "weight_decay: 0.1, was 0.0"),
        ),
    ],
    ids=["betas", "momentum", "momentum_before", "decays"],
)
def test_every_number_is_restored_and_shown_by_repr(path, saved, own, restored):
    opt = saved(np.ones(2))
    opt.step(np.ones(2))
    opt.save(path)
    other = own(np.ones(2))
    assert other.load(path).restored == restored
    assert repr(other) == repr(opt)
    opt.step(np.ones(2))
    other.step(np.ones(2))
    assert snapshot(other) == snapshot(opt)


def test_hyper_false_keeps_the_optimizers_own(path):
    opt = rv.SGD(np.ones(2), lr=0.5, momentum=0.5, clip_norm=1.0)
    opt.step(np.ones(2))
    opt.save(path)
    other = rv.SGD(np.ones(2), lr=rv.schedules.constant(0.25), momentum=0.25, nonfinite="raise")
    assert other.load(path, hyper=False).restored == ()
    assert (other.lr, other._values[0]["momentum"], other.steps) == (0.25, 0.25, 1)


def test_a_schedule_goes_on_where_the_run_was(path):
    opt = rv.SGD(np.zeros(1), lr=lambda t: 0.5 / (t + 1))
    for _ in range(3):
        opt.step(np.ones(1))
    opt.save(path)
    other = rv.SGD(np.zeros(1), lr=lambda t: 0.5 / (t + 1))
    other.load(path)
    assert other.lr == 0.5 / 4
    assert other.step(np.ones(1)).lr == 0.5 / 4


UNLIKE = {
    "schedule": ({"lr": rv.schedules.cosine(0.1, 99)}, ["lr of 'w'", "cosine(0.1, 99)", "cosine(0.1, 100)"]),
    "number": ({"lr": 0.1}, ["lr of 'w': expected 0.1", "the schedule cosine(0.1, 100)"]),
    "function": ({"lr": lambda t: 0.1}, ["lr of 'w': expected the function", "the schedule cosine"]),
    "clip_norm": ({"clip_norm": 2.0}, ["clip_norm: expected 2.0, got 1.0"]),
    "clip_value": ({"clip_value": 2.0}, ["clip_value: expected 2.0, got None"]),
    "nonfinite": ({"nonfinite": "skip"}, ["nonfinite: expected 'skip', got 'propagate'"]),
    "eps_inside": ({"eps_inside": True}, ["eps_inside of 'w': expected 1.0, got 0.0"]),
    "bias_correction": ({"bias_correction": False}, ["bias_correction of 'w'"]),
    "maximize": ({"maximize": True}, ["maximize of 'w'"]),
    "groups": ({"groups": []}, ["weight_decay of 'b': expected 0.0 as in the rest of its group, got 0.5"]),
    "all": (
        {"lr": 0.1, "clip_norm": None, "eps_hat": True},
        ["lr of 'w'", "clip_norm: expected None, got 1.0", "eps_hat of 'w'"],
    ),
}


@pytest.mark.parametrize(("change", "words"), UNLIKE.values(), ids=UNLIKE)
def test_what_cannot_be_restored_is_refused(path, change, words):
    options = {"lr": rv.schedules.cosine(0.1, 100), "clip_norm": 1.0, "groups": [("b", {"weight_decay": 0.5})]}
    rv.Adam({"w": np.ones(1), "b": np.ones(1)}, **options).save(path)
    other = rv.Adam({"w": np.zeros(1), "b": np.zeros(1)}, **(options | change))
    refused(other, path, *words, "hyper=False", "Nothing was loaded")
    other.load(path, hyper=False)


def test_a_schedule_that_goes_wrong_at_the_saved_step_is_refused(path):
    def lr(t):
        return 0.1 if t != 3 else float("nan")

    opt = rv.SGD(np.ones(1), lr=lr)
    opt.step(np.ones(1))
    opt._engine.set_counters(3, [3])
    opt.save(path)
    refused(rv.SGD(np.zeros(1), lr=lr), path, "lr", "got NaN", "at step 3")


# Parameters or not


def test_without_parameters(path):
    opt = rv.Adam({"w": np.ones(2)})
    opt.step({"w": np.ones(2)})
    opt.save(path, params=False)
    assert set(safetensors.numpy.load_file(path)) == {"adam/m/w", "adam/v/w"}
    w = np.full(2, 7.0)
    other = rv.Adam({"w": w})
    refused(other, path, "parameters: none in the file", "params=False")
    other.load(path, params=False)
    assert w.tolist() == [7, 7]
    np.testing.assert_equal(other.state_dict(), opt.state_dict())


def test_parameters_can_be_left_out_of_loading_and_then_their_dtype_is_free(path):
    opt = rv.Adam({"w": np.ones(2, np.float16)})
    opt.step({"w": np.ones(2, np.float16)})
    opt.save(path)
    w = np.full(2, 7, F32)
    other = rv.Adam({"w": w})
    refused(other, path, "params/w: expected (2,) float32, got (2,) float16")
    other.load(path, params=False)
    assert w.tolist() == [7, 7]
    np.testing.assert_equal(other.state_dict(), opt.state_dict())


def test_arrays_that_the_container_no_longer_holds_are_refused(path, gpu):
    for xp in (np, gpu):
        params = {"w": xp.ones(2), "b": xp.ones(1)}
        opt = rv.Adam(params)
        opt.save(path)
        written = path.read_bytes()
        params["w"] = params["w"] - 0.5
        with pytest.raises(ValueError, match=r"params\['w'\] is another array .*assign into"):
            opt.save(path)
        refused(opt, path, "params['w'] is another array")
        del params["w"]
        with pytest.raises(ValueError, match="or gone"):
            opt.save(path)
        assert path.read_bytes() == written
    groups = [{"params": {"w": np.ones(2)}, "lr": 0.1}]
    opt = rv.SGD(groups, lr=0.2)
    opt.save(path)
    groups[0]["params"] = {"w": np.ones(2)}
    with pytest.raises(ValueError, match="was replaced"):
        opt.save(path)


# ---------------------------------------------------------------------------------------------------------------------
# The file


def test_other_programs_can_read_it(path):
    opt = run(make("adam_amsgrad"), 1, 4)
    opt.save(path)
    arrays = safetensors.numpy.load_file(path)
    expected = {
        f"adam_amsgrad/{kind}/{name}": state
        for name, states in opt.state_dict()["states"].items()
        for kind, state in states.items()
    } | {f"params/{name}": array for name, array in rv.trees.leaves(opt._params).items()}
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape), name
        assert arrays[name].tobytes() == array.tobytes(), name
    data = path.read_bytes()
    offset = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:offset]).items():
        if name != "__metadata__":
            assert (offset + entry["data_offsets"][0]) % expected[name].dtype.itemsize == 0, "readers may map the file"
    with safetensors.safe_open(path, "numpy") as file:
        meta = json.loads(file.metadata()["ravine"])
    assert meta["rule"] == "adam_amsgrad"
    assert (meta["format"], meta["version"], meta["step"]) == (1, rv.__version__, 3)
    assert meta["updates"] == opt.state_dict()["updates"]
    options = {"clip_value": 1.5, "clip_norm": 2.0, "nonfinite": "skip", "clip_eps": 0.0}
    assert meta["options"]["values"] == options
    groups = {name: group["values"] for group in meta["groups"] for name in group["names"]}
    assert groups["a"]["lr"] == {"schedule": "warmup(4) * cosine(0.1, 30)"}
    assert groups["b.0"]["lr"] == {"schedule": "exponential(0.05, 0.9)"}
    assert (groups["c.transposed"]["lr"], groups["c.transposed"]["weight_decay"]) == (0.02, 0.25)
    assert (groups["a"]["beta1"], groups["a"]["l2"]) == (0.9, 0.01)
    for name, array in expected.items():
        assert meta["checksums"][name] == f"{zlib.crc32(array.tobytes()):08x}"


def test_names_of_any_kind(path):
    names = ["a/b", "", 'quo"te', "back\\slash", "new\nline", "\x1f", "__metadata__", "ravine", "𝒘", "a" * 3000]
    names.append('"ravine":"{\\"checksum\\":\\"00000000')
    names.append('ravine":"{"checksum":"00000000')
    params = {name: np.full(2, float(i)) for i, name in enumerate(names)}
    opt = rv.Adam(params)
    opt.step(rv.trees.map(np.copy, params))
    opt.save(path)
    other = rv.Adam({name: np.zeros(2) for name in reversed(names)})
    other.load(path)
    np.testing.assert_equal(other.state_dict(), opt.state_dict())


def test_more_names_than_a_header_holds_are_refused(path, monkeypatch):
    opt = rv.Adam({"w": np.ones(2)})
    opt.save(path)
    written = path.read_bytes()
    monkeypatch.setattr(rv.checkpoint.layout, "_LONGEST_HEADER", 100)
    with pytest.raises(ValueError, match=r"the names and checksums take \d+ bytes, the format allows 100"):
        opt.save(path)
    assert path.read_bytes() == written


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_permissions_are_those_of_any_new_file(path, mask):
    before = os.umask(mask)
    try:
        rv.SGD(np.ones(1), lr=0.1).save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_permissions_of_a_file_that_is_replaced_stay(path):
    opt = rv.SGD(np.ones(1), lr=0.1)
    opt.save(path)
    path.chmod(0o640)
    opt.save(path, keep=2)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, Path(f"{path}.1"))] == [0o640, 0o640]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    real = tmp_path / "disk" / "real.safetensors"
    real.parent.mkdir()
    link = tmp_path / "run.safetensors"
    link.symlink_to(real)
    opt = rv.SGD(np.ones(1), lr=0.1)
    opt.save(link)  # it leads to nothing yet
    opt.step(np.ones(1))
    opt.save(link, keep=2)
    assert link.is_symlink()
    assert {file.name for file in real.parent.iterdir()} == {"real.safetensors", "real.safetensors.1"}
    assert {file.name for file in tmp_path.iterdir()} == {"disk", "run.safetensors"}
    assert opt.load(link).step == 1
    assert opt.load(f"{real}.1").step == 0


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opt = rv.SGD(np.ones(1), lr=0.1)
    opt.save("here.safetensors")
    opt.save(Path("né.safetensors"))
    assert opt.load("./né.safetensors").path == str(tmp_path / "né.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'; make it with os.makedirs"):
        opt.save("nowhere/run.safetensors")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    for wrong, error in (("folder", IsADirectoryError), ("pipe", OSError), ("/dev/null", OSError)):
        for call in (opt.save, opt.load):
            with pytest.raises(error, match="path: expected a file"):
                call(wrong)
    with pytest.raises(TypeError):
        opt.save(None)
    assert {file.name for file in tmp_path.iterdir()} == {"here.safetensors", "né.safetensors", "folder", "pipe"}


# keep


def test_keep_keeps_that_many(path):
    opt = rv.SGD(np.ones(1), lr=0.1)
    for _ in range(5):
        opt.save(path, keep=3)
        opt.step(np.ones(1))
    names = [path, f"{path}.1", f"{path}.2"]
    assert [opt.load(name).step for name in names] == [4, 3, 2]
    assert {str(file) for file in path.parent.iterdir()} == {str(name) for name in names}
    opt.save(path, keep=2)
    assert [opt.load(name).step for name in names] == [2, 4, 2]
    opt.save(path)
    assert [opt.load(name).step for name in names] == [2, 4, 2], "keep=1 leaves the older ones alone"


def test_keep_keeps_many(path):
    opt = rv.SGD(np.ones(1), lr=0.1)
    for _ in range(7):
        opt.save(path, keep=5)
        opt.step(np.ones(1))
    assert [opt.load(name).step for name in (path, *(f"{path}.{i}" for i in range(1, 5)))] == [6, 5, 4, 3, 2]


@pytest.mark.parametrize("keep", [0, -1, 1.5, "3", None])
def test_keep_is_a_count(path, keep):
    with pytest.raises((TypeError, ValueError), match=r"keep: expected|integer"):
        rv.SGD(np.ones(1), lr=0.1).save(path, keep=keep)
    assert not path.exists()


def test_keep_works_where_there_are_no_hard_links(path, monkeypatch):
    def none(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    opt = rv.SGD(np.ones(1), lr=0.1)
    for _ in range(4):
        opt.save(path, keep=3)
        opt.step(np.ones(1))
    assert [opt.load(name).step for name in (path, f"{path}.1", f"{path}.2")] == [3, 2, 1]


def test_where_a_file_is_missing_or_damaged_the_error_names_the_older_one_and_does_not_load_it(path):
    opt = rv.SGD(np.ones(1), lr=0.1)
    refused(opt, path, "no such checkpoint", str(path), error=FileNotFoundError)
    for _ in range(3):
        opt.step(np.ones(1))
        opt.save(path, keep=3)
    path.write_bytes(path.read_bytes()[:-1])
    refused(opt, path, "damaged", f"the one saved before it is '{path}.1'")
    path.unlink()
    message = refused(opt, path, "no such checkpoint", f"'{path}.1'", error=FileNotFoundError)
    assert f"{path}.2" not in message
    Path(f"{path}.1").unlink()
    refused(opt, path, f"'{path}.2'", error=FileNotFoundError)


# Without, and beside others


def test_without_safetensors_the_error_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    opt = rv.SGD(np.ones(1), lr=0.1)
    for call in (opt.save, opt.load):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'ravine\[io\]'"):
            call(path)
    assert list(path.parent.iterdir()) == []


def hold(temporary, locked, done):
    import fcntl

    with open(temporary, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        locked.set()
        done.wait(60)


def test_of_two_who_save_to_one_path_at_once_the_second_raises(path):
    context = multiprocessing.get_context("spawn")
    locked, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(path.with_name(f".{path.name}.saving"), locked, done))
    other.start()
    try:
        assert locked.wait(60)
        with pytest.raises(RuntimeError, match="someone else is saving"):
            rv.SGD(np.ones(1), lr=0.1).save(path)
        assert not path.exists()
    finally:
        done.set()
        other.join()
    rv.SGD(np.ones(1), lr=0.1).save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def meanwhile(monkeypatch, action):
    """Have something happen right before the first write of a save."""
    write, done = os.write, []

    def writing(*args):
        if not done:
            done.append(action())
        return write(*args)

    monkeypatch.setattr(os, "write", writing)


def test_a_step_while_it_is_saved_is_noticed(path, monkeypatch):
    opt = rv.Adam(np.ones(3))
    opt.save(path)
    written = path.read_bytes()
    meanwhile(monkeypatch, lambda: opt.step(np.ones(3)))
    with pytest.raises(RuntimeError, match="another thread stepped meanwhile"):
        opt.save(path)
    assert path.read_bytes() == written
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_parameter_written_while_it_is_saved_makes_no_file_that_cannot_be_loaded(path, monkeypatch):
    w = np.ones(500_000)
    opt = rv.SGD(w, lr=0.1)
    meanwhile(monkeypatch, lambda: w.fill(2.0))
    opt.save(path)
    opt.load(path)
    assert set(w) == {1.0, 2.0}


def test_ctrl_c_while_the_arrays_are_written_to_lets_the_load_finish(path, monkeypatch):
    opt = run(make("adam"), 1, 5)
    opt.save(path)
    other = make("adam", rv.trees.map(np.zeros_like, tree()))
    assign, calls = cpu.assign, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        assign(*args)

    monkeypatch.setattr(cpu, "assign", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.load(path)
    assert snapshot(other)[:3] == snapshot(opt)[:3]


@linux
def test_saving_needs_next_to_no_memory_and_loading_the_files_size(tmp_path):
    python(
        r"""
        import sys, resource, numpy as np, ravine as rv
        import pathlib, re, safetensors

        def limit(more):
            held = re.search(r"VmData:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
            resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(held[1]) + more, -1))

        opt = rv.SGD({str(i): np.ones(1_000_000) for i in range(25)}, lr=0.1)
        limit(20_000_000)
        opt.save(sys.argv[1])
        try:
            opt.load(sys.argv[1])
        except MemoryError:
            pass
        else:
            raise AssertionError("what was this test about?")
        limit(210_000_000)
        opt.load(sys.argv[1])
        """,
        tmp_path / "run.safetensors",
    )


# ---------------------------------------------------------------------------------------------------------------------
# 9 and 14: what training leaves behind


def test_fault_09_a_skipped_step_leaves_the_checkpoint_as_it_was(path):
    opt = run(make("adam"), 1, 4)
    opt.save(path)
    written = path.read_bytes()
    grads = tree(4)
    grads["b"][0][2] = np.nan
    assert opt.step(grads).skipped
    opt.save(path)
    assert path.read_bytes() == written


def test_fault_09_nan_and_infinity_that_were_propagated_come_back_bit_for_bit(path):
    w = np.array([1.0, 2.0, 3.0], F32)
    opt = rv.Adam(w)
    opt.step(np.array([np.nan, np.inf, 1.0], F32))
    w.view(np.uint32)[0] = 0x7FA00001  # a signalling NaN with a payload
    opt.save(path)
    before = snapshot(opt)
    other = rv.Adam(np.zeros(3, F32))
    other.load(path)
    assert snapshot(other) == before


def test_fault_14_subnormal_numbers_come_back_bit_for_bit_also_under_flush_to_zero(path):
    for dtype in (np.float64, F32, np.float16, ml_dtypes.bfloat16):
        tiny = np.full(64, ml_dtypes.finfo(dtype).smallest_subnormal, dtype)
        tiny[::2] *= 3
        opt = rv.Adam(tiny)
        for state in opt._engine.states[0]:
            state[...] = np.finfo(state.dtype).smallest_subnormal * np.arange(64)
        before = snapshot(opt)
        rv._core.disturb_environment(True)
        opt.save(path)
        other = rv.Adam(np.zeros(64, dtype))
        other.load(path)
        rv._core.disturb_environment(False)
        assert snapshot(other) == before, dtype


# ---------------------------------------------------------------------------------------------------------------------
# 22: damage


def small(path):
    """A small checkpoint's bytes, and an optimizer of another state that could load it."""
    opt = rv.Adam({"w": np.linspace(-1, 1, 6).reshape(2, 3), "b": np.ones(3, F32)}, lr=0.1)
    for _ in range(3):
        opt.step({"w": np.ones((2, 3)), "b": np.ones(3, F32)})
    opt.save(path)
    other = rv.Adam({"w": np.zeros((2, 3)), "b": np.zeros(3, F32)}, lr=0.2)
    return path.read_bytes(), other


def large(path):
    w = np.random.default_rng(0).standard_normal(20_000).astype(F32)
    opt = rv.Adam({f"layer{i}": part for i, part in enumerate(np.split(w, 20))})
    opt.step({f"layer{i}": part.copy() for i, part in enumerate(np.split(w, 20))})
    opt.save(path)
    return path.read_bytes(), rv.Adam({f"layer{i}": np.zeros(1000, F32) for i in range(20)})


class Victim:
    """A path that is given damaged bytes, and an optimizer that must refuse them, unchanged."""

    def __init__(self, path, opt):
        self.path, self.opt, self.before = path, opt, snapshot(opt)

    def refuses(self, data, what=""):
        self.path.write_bytes(data)
        with pytest.raises(ValueError) as caught:
            pytest.fail(f"{what}: loaded {self.opt.load(self.path)}")
        assert str(caught.value).startswith(f"{self.path}: "), what
        assert "Nothing was loaded" in str(caught.value), what
        assert snapshot(self.opt) == self.before, what


def flipped(data, bits):
    damaged = bytearray(data)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_fault_22_truncated_at_every_byte(path):
    data, opt = small(path)
    victim = Victim(path, opt)
    for length in range(len(data)):
        victim.refuses(data[:length], length)


def test_fault_22_truncated_at_every_kilobyte(path):
    data, opt = large(path)
    victim = Victim(path, opt)
    for length in range(0, len(data), 1024):
        victim.refuses(data[:length], length)
        victim.refuses(data[:length] + bytes(len(data) - length), f"zeros from {length} on")


def test_fault_22_a_longer_file(path):
    data, opt = small(path)
    victim = Victim(path, opt)
    for more in (b"\0", b" ", data[-8:], data):
        victim.refuses(data + more)


def test_fault_22_random_bit_flips(path):
    rng = np.random.default_rng(22)
    for of in (small, large):
        data, opt = of(path)
        victim = Victim(path, opt)
        for _ in range(5000 if SLOW else 250):
            bits = rng.choice(8 * len(data), rng.integers(1, 4), replace=False)
            victim.refuses(flipped(data, bits), bits)


@slow
def test_fault_22_every_bit_of_a_small_file(path):
    data, opt = small(path)
    victim = Victim(path, opt)
    for bit in range(8 * len(data)):
        victim.refuses(flipped(data, [bit]), bit)


def test_fault_22_every_bit_where_the_checksum_of_the_header_stands(path):
    data, opt = small(path)
    victim = Victim(path, opt)
    begin = data.index(b"checksum") - 30
    for bit in range(8 * begin, 8 * (begin + 60)):
        victim.refuses(flipped(data, [bit]), bit)


def test_fault_22_blocks_of_another_file_of_zeros_or_exchanged(path):
    data, opt = large(path)
    victim = Victim(path, opt)
    other = bytes(np.random.default_rng(1).integers(0, 256, len(data), np.uint8))
    for begin in range(0, len(data) - 4096, 4096 * 5):
        end = begin + 4096
        victim.refuses(data[:begin] + bytes(4096) + data[end:])
        victim.refuses(data[:begin] + other[begin:end] + data[end:])
        victim.refuses(data[:begin] + data[end : end + 4096] + data[begin:end] + data[end + 4096 :])


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_fault_22_any_bytes(data):
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        Victim(Path(folder, "run.safetensors"), rv.SGD(np.ones(1), lr=0.1)).refuses(data)


def forged(data, change, change_text=lambda text: text):
    """The file with its header changed, and all checksums right: made by another program, or on purpose."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    meta = json.loads(header["__metadata__"]["ravine"])
    body = change(header, meta, data[8 + length :])
    body = data[8 + length :] if body is None else body
    header["__metadata__"]["ravine"] = json.dumps(
        {"checksum": "0" * 8} | meta | {"checksum": "0" * 8}, separators=(",", ":")
    )
    text = change_text(json.dumps(header, separators=(",", ":"))).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    place = head.index(b"00000000", head.index(b"checksum"))
    return head[:place] + f"{zlib.crc32(head):08x}".encode() + head[place + 8 :] + body


def put(where, *keys, value):
    for key in keys[:-1]:
        where = where[key]
    where[keys[-1]] = value


FORGED = {
    "an array twice": (
        None,
        lambda t: t.replace('"adam/m/b"', '"params/b":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"adam/m/b"', 1),
    ),
    "the metadata twice": (None, lambda t: t.replace('{"__metadata__"', '{"__metadata__":{},"__metadata__"', 1)),
    "step twice": (None, lambda t: t.replace('\\"step\\"', '\\"step\\":9,\\"step\\"', 1)),
    "overlapping arrays": lambda h, m, b: put(h, "adam/m/b", "data_offsets", value=h["adam/v/b"]["data_offsets"]),
    "a hole": lambda h, m, b: hole(h, b),
    "offsets beyond the end": lambda h, m, b: put(h, "params/b", "data_offsets", value=[len(b), len(b) + 12]),
    "negative offsets": lambda h, m, b: put(h, "params/b", "data_offsets", value=[-12, 0]),
    "offsets that are no numbers": lambda h, m, b: put(h, "params/b", "data_offsets", value=["a", None]),
    "a huge shape": lambda h, m, b: put(h, "params/b", "shape", value=[2**62, 2**62]),
    "a shape of other bytes": lambda h, m, b: put(h, "params/b", "shape", value=[4]),
    "a negative shape": lambda h, m, b: put(h, "params/b", "shape", value=[-3]),
    "an unknown dtype": lambda h, m, b: put(h, "params/b", "dtype", value="F31"),
    "a header that is a list": (None, lambda t: "[" + t + "]"),
    "nothing but a checksum": lambda h, m, b: m.clear(),
    "a negative step": lambda h, m, b: put(m, "step", value=-1),
    "a step of text": lambda h, m, b: put(m, "step", value="3"),
    "a fractional step": lambda h, m, b: put(m, "step", value=1.5),
    "a step beyond 64 bits": lambda h, m, b: put(m, "step", value=2**63),
    "a negative count": lambda h, m, b: put(m, "updates", "w", value=-1),
    "no count": lambda h, m, b: put(m, "updates", value={}),
    "no groups": lambda h, m, b: put(m, "groups", value=[]),
    "groups of another kind": lambda h, m, b: put(m, "groups", value=3),
    "values of another kind": lambda h, m, b: put(m, "groups", 0, "values", value=[1]),
    "no checksums": lambda h, m, b: put(m, "checksums", value={}),
    "a wrong checksum": lambda h, m, b: put(m, "checksums", "params/w", value="00000000"),
    "a checksum of another kind": lambda h, m, b: put(m, "checksums", "params/w", value=None),
    "a number out of range": lambda h, m, b: put(m, "groups", 0, "exact", "beta1", value="0x1.8p0"),
    "a number that is none": lambda h, m, b: put(m, "groups", 0, "exact", "lr", value="nan"),
    "a number without its exact form": lambda h, m, b: put(m, "groups", 0, "exact", value={}),
    "a number of text": lambda h, m, b: put(m, "groups", 0, "values", "lr", value="0.1"),
    "an unknown number": lambda h, m, b: put(m, "groups", 0, "values", "speed", value=1.0),
    "an unknown option": lambda h, m, b: put(m, "options", "values", "speed", value="high"),
    "options of another kind": lambda h, m, b: put(m, "options", value=7),
    "deep nesting": (None, lambda t: t.replace('\\"step\\":3', '\\"step\\":' + "[" * 100_000 + "]" * 100_000)),
    "a long number": (None, lambda t: t.replace('\\"step\\":3', '\\"step\\":' + "9" * 10_000)),
}


def hole(header, body):
    header["params/b"]["data_offsets"] = [n + 8 for n in header["params/b"]["data_offsets"]]
    begin = header["params/b"]["data_offsets"][0]
    last = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    return body[: begin - 8] + bytes(8) + body[begin - 8 :] if last == begin + 12 else body + bytes(8)


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_fault_22_what_no_save_writes_is_refused_even_with_the_right_checksums(path, change):
    data, opt = small(path)
    change, text = change if isinstance(change, tuple) else (change, lambda text: text)
    Victim(path, opt).refuses(forged(data, change or (lambda h, m, b: None), text))


def test_fault_22_the_forgery_itself_is_no_damage(path):
    data, opt = small(path)
    path.write_bytes(forged(data, lambda h, m, b: None))
    assert opt.load(path).step == 3


@pytest.mark.parametrize("length", [100_000_001, 2**40, 2**63, 2**64 - 1])
def test_fault_22_a_huge_header_takes_no_memory(path, length):
    data, opt = small(path)
    Victim(path, opt).refuses(length.to_bytes(8, "little") + data[8:])


def test_fault_22_files_of_other_programs(path):
    opt = rv.SGD({"w": np.ones(2)}, lr=0.1)
    safetensors.numpy.save_file({"params/w": np.ones(2)}, path)
    refused(opt, path, "no header of ravine's", "safetensors.numpy.load_file")
    np.save(path.with_suffix(".npy"), np.ones(2))
    refused(opt, path.with_suffix(".npy"), "damaged")
    path.write_bytes(pickle.dumps(opt.state_dict()))
    refused(opt, path, "damaged")


# ---------------------------------------------------------------------------------------------------------------------
# 23: another run's


def saved(path):
    params = {"a": np.ones(2), "b": np.ones((2, 2)), "c": np.ones(3, F32)}
    opt = rv.Adam(params)
    opt.step(rv.trees.map(np.copy, params))
    opt.save(path)
    return opt


def test_fault_23_another_rule(path):
    saved(path)
    like = {"a": np.ones(2), "b": np.ones((2, 2)), "c": np.ones(3, F32)}
    refused(rv.Lion(like), path, "rule: expected 'lion', got 'adam'")
    refused(rv.Adam(like, amsgrad=True), path, "rule: expected 'adam_amsgrad', got 'adam'")
    refused(rv.Lion(like), path, "rule", strict=False)
    refused(rv.Lion({"a": np.ones(2), "z": np.ones(1)}), path, "rule", "missing ['z']", "unknown ['b', 'c']")


def test_fault_23_other_names_shapes_and_dtypes_are_all_listed(path):
    saved(path)
    opt = rv.Adam({"a": np.ones(3), "c": np.ones(3), "d": np.ones(1), "e": np.ones(1)})
    refused(
        opt,
        path,
        "parameters: missing ['d', 'e']",
        "parameters: unknown ['b']",
        "adam/m/a: expected (3,) float64, got (2,) float64",
        "adam/v/a",
        "params/a",
        "adam/m/c: expected (3,) float64, got (3,) float32",
        "params/c",
        "strict=False",
    )


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 2), (4,), ()])
def test_fault_23_no_shape_is_broadcast_or_reshaped(path, shape):
    saved(path)
    others = {"b": np.ones((2, 2)), "c": np.ones(3, F32)}
    refused(rv.Adam({"a": np.ones(shape)} | others), path, f"params/a: expected {shape} float64, got (2,) float64")


@pytest.mark.parametrize("own", [np.float64, F32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("other", [np.float64, F32, np.float16, ml_dtypes.bfloat16])
def test_fault_23_dtypes_must_be_the_same(path, own, other):
    rv.Adam(np.ones(2, other)).save(path)
    opt = rv.Adam(np.zeros(2, own))
    if own is other:
        opt.load(path)
    else:
        refused(opt, path, f"params/params: expected (2,) {np.dtype(own)}, got (2,) {np.dtype(other)}")


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_fault_23_another_version_of_the_format(path, number):
    data, opt = small(path)
    path.write_bytes(forged(data, lambda h, m, b: m.update(format=number, version="9.9")))
    refused(opt, path, *(("format: expected 1", f"got {number!r}", "ravine 9.9") if number is not None else ()))


def test_fault_23_strict_false_loads_what_fits_and_says_what_not(path):
    old = saved(path)
    w, z, b, c = np.zeros(2), np.full(1, 7.0), np.full((2, 3), 7.0), np.full(3, 7.0)
    opt = rv.Adam({"z": z, "c": c, "a": w, "b": b}, lr=0.25)
    opt._engine.set_counters(0, [0, 9, 9, 8])
    done = opt.load(path, strict=False)
    assert (done.step, done.left_out, done.kept) == (1, ("b", "c"), ("z", "c", "b"))
    assert "left out b, c; kept z, c, b as they were" in done.message
    assert opt._engine.updates == [0, 9, 1, 8]
    np.testing.assert_equal(opt.state_dict()["states"]["a"], old.state_dict()["states"]["a"])
    assert (z == 7).all()
    assert (b == 7).all()
    assert (c == 7).all()
    assert w.tobytes() == old._engine.parameters[0].tobytes()
    refused(rv.Adam({"y": np.ones(1)}), path, "nothing fits", "unknown ['a', 'b', 'c']", strict=False)


# ---------------------------------------------------------------------------------------------------------------------
# 24: interrupted saves


@pytest.fixture(scope="session")
def faulty_files(tmp_path_factory):
    library = tmp_path_factory.mktemp("faulty") / "faulty_files.so"
    source = ROOT / "tests/faulty_files.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


def killed_saves(library, folder, events, *sizes):
    code = f"""
    import sys
    from tests import killed_saves
    killed_saves.main(list(killed_saves.EVENTS)[:{events}], {list(sizes)})
    """
    return python(code, timeout=1500, LD_PRELOAD=str(library), TMPDIR=str(folder)).splitlines()


@linux
def test_fault_24_killed_or_refused_at_every_system_call_of_a_save(faulty_files, tmp_path):
    *calls, cases = killed_saves(faulty_files, MEMORY or tmp_path, 5, 5)
    assert int(cases) == 5 * sum(len(line.partition(": ")[2].split()) for line in calls) > 300


@linux
@slow
def test_fault_24_also_with_many_writes_and_on_a_disk(faulty_files, tmp_path):
    *_, cases = killed_saves(faulty_files, tmp_path, 10, 0, 1, 150_000)
    assert int(cases) > 1600


@linux
def test_fault_24_the_bytes_reach_the_disk_before_the_name_and_the_name_before_save_returns(faulty_files, tmp_path):
    *lines, _ = killed_saves(faulty_files, tmp_path, 0, 5)
    assert len(lines) == 6
    for line in lines:
        calls = line.partition(": ")[2].split()
        last_write = max(i for i, call in enumerate(calls) if "write" in call or "truncate" in call)
        last_rename = max(i for i, call in enumerate(calls) if call == "rename")
        first_name = min(i for i, call in enumerate(calls) if call in ("rename", "link", "unlink"))
        assert last_write < calls.index("fsync") < first_name <= last_rename < calls.index("folder:fsync"), line


def test_fault_24_a_file_size_limit_is_a_full_disk(path):
    """The kernel itself writes less than it was asked to, then refuses."""
    opt = rv.Adam(np.ones(10_000))
    opt.save(path)
    written, before = path.read_bytes(), snapshot(opt)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"save: File too large; 24\d{4} bytes were to be written; what was saved before"
        ):
            opt.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(opt) == before
    assert path.read_bytes() == written
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_fault_24_a_save_stopped_by_ctrl_c_leaves_nothing_behind(path, monkeypatch):
    opt = rv.Adam(np.ones(3))
    opt.save(path)
    written = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.save(path)
    assert path.read_bytes() == written
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    monkeypatch.undo()
    opt.save(path)


def test_fault_24_a_read_that_fails_loads_nothing(path, monkeypatch):
    _, opt = small(path)

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(rv.checkpoint.snapshot, "_read", broken)
    refused(opt, path, "Input/output error", error=OSError)


# ---------------------------------------------------------------------------------------------------------------------
# 32: Ctrl-C at any moment

#: After these, Python looks whether a signal has come.
LOOKS = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD") if name in dis.opmap}


def interrupted_at(n, call):
    """Raise KeyboardInterrupt where Python would handle the n-th signal; say whether there was an n-th place."""
    left, last = [n], {}

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.endswith(("durable.py", "snapshot.py", "contextlib.py")):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            code = frame.f_code.co_code
            if last.get(id(frame)) in LOOKS:
                left[0] -= 1
                if left[0] == -1:
                    raise KeyboardInterrupt
            last[id(frame)] = code[frame.f_lasti]
        elif event == "call":
            last.pop(id(frame), None)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left[0] < 0


@linux
@pytest.mark.parametrize("keep", [1, 3])
def test_fault_32_ctrl_c_at_any_moment_of_a_save_locks_nothing_and_leaks_no_descriptor(path, keep):
    opt = rv.SGD(np.ones(3), lr=0.1)
    opt.save(path, keep=keep)
    before, files, n = snapshot(opt), os.listdir("/proc/self/fd"), 0
    while interrupted_at(n, lambda: opt.save(path, keep=keep)):
        assert len(os.listdir("/proc/self/fd")) == len(files), n
        opt.load(path)  # whole, whichever it is
        opt.save(path, keep=keep)
        n += 1
    assert n > 100
    assert snapshot(opt) == before
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.1", f"{path.name}.2"} - (
        {f"{path.name}.1", f"{path.name}.2"} if keep == 1 else set()
    )


@linux
def test_fault_32_ctrl_c_at_any_moment_of_a_load_loads_all_or_nothing(path):
    opt = rv.Adam({"w": np.ones(3), "v": np.ones(2)}, lr=0.1)
    opt.step({"w": np.ones(3), "v": np.ones(2)})
    extra = {"array": np.ones(3), "rng": np.random.default_rng(1)}
    opt.save(path, extra=extra)
    loaded, files, n, found = snapshot(opt)[:3], len(os.listdir("/proc/self/fd")), 0, set()
    while True:
        other = rv.Adam({"w": np.zeros(3), "v": np.zeros(2)}, lr=0.1)
        into = {"array": np.zeros(3), "rng": np.random.default_rng(2)}
        before = snapshot(other)[:3]
        if not interrupted_at(n, lambda other=other, into=into: other.load(path, extra=into)):
            break
        assert len(os.listdir("/proc/self/fd")) == files, n
        whole = snapshot(other)[:3] == loaded
        assert whole or snapshot(other)[:3] == before, n
        assert into["array"].tolist() == [whole] * 3, n
        assert (into["rng"].bit_generator.state == extra["rng"].bit_generator.state) == whole, n
        found.add(whole)
        n += 1 if SLOW else 3
    assert found == {True, False}


# ---------------------------------------------------------------------------------------------------------------------
# What an error advises works.


def test_an_adamw_file_into_sgd_says_what_can_be_done_and_it_can(path):
    w = np.linspace(1, 2, 3)
    opt = rv.AdamW({"w": w}, lr=0.1, clip_norm=1.0)
    opt.step({"w": w.copy()})
    opt.save(path)
    other = np.zeros(3)
    for options in ({}, {"strict": False}, {"hyper": False}, {"strict": False, "hyper": False}):
        message = refused(rv.SGD({"w": other}, lr=0.1), path, "rule: expected 'sgd', got 'adam'", **options)
        assert message.endswith(
            "load it into the optimizer that it is of, AdamW; its parameters alone are in "
            "safetensors.numpy.load_file(path), as 'params/<name>'. Nothing was loaded"
        )
        assert "hyper" not in message
        assert "strict" not in message
    assert safetensors.numpy.load_file(path)["params/w"].tobytes() == w.tobytes()
    rv.AdamW({"w": other}, lr=0.1, clip_norm=1.0).load(path)
    assert other.tobytes() == w.tobytes()


ADVICE = {
    "another clip_norm": ({"clip_norm": 2.0}, {"w": (2,)}, {"hyper": False}),
    "another name": ({}, {"w": (2,), "v": (1,)}, {"strict": False}),
    "an average": ({"average": rv.EMA(0.9)}, {"w": (2,)}, None),
    "both": ({"clip_norm": 2.0}, {"w": (2,), "v": (1,)}, {"strict": False, "hyper": False}),
    "nothing fits": ({}, {"w": (3,)}, None),
}


@pytest.mark.parametrize(("options", "shapes", "cure"), ADVICE.values(), ids=ADVICE)
def test_an_error_advises_what_works_and_nothing_else(path, options, shapes, cure):
    rv.Adam({"w": np.ones(2)}, clip_norm=1.0).save(path)
    params = {name: np.ones(shape) for name, shape in shapes.items()}

    def other():
        return rv.Adam(params, **{"clip_norm": 1.0} | options)

    message = refused(other(), path)
    advised = {"strict": False} if "strict=False loads" in message else {}
    advised |= {"hyper": False} if "hyper=False" in message else {}
    assert (advised or None) == cure, message
    if cure:
        other().load(path, **cure)
    else:
        for way in ({"strict": False}, {"hyper": False}, {"strict": False, "hyper": False}):
            refused(other(), path, **way)
