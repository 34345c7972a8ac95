"""A whole run in one file: what `opt.save(extra=)` holds comes back with the same bits, or nothing is changed."""

import math
import random
import signal
import subprocess
import sys
import tempfile
import types

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import ravine as rv
from tests.test_checkpoint import MEMORY, ROOT, python, refused, snapshot
from tests.test_checkpoint import path as path

F32 = np.float32


def make():
    return rv.Adam({"w": np.ones(2), "b": np.zeros(1, F32)}, lr=0.5)


class Buffers:
    """A net's stand-in: arrays by name, copied out and written in place."""

    def __init__(self, **arrays):
        self.arrays, self.loads = arrays, 0

    def state_dict(self):
        return {name: array.copy() for name, array in self.arrays.items()}

    def load_state_dict(self, state):
        self.loads += 1
        for name, array in self.arrays.items():
            array[...] = state[name]


class Live(Buffers):
    """One whose state_dict gives its own arrays, and which keeps what it is given."""

    def state_dict(self):
        return self.arrays

    def load_state_dict(self, state):
        self.arrays = state


class Failing(Buffers):
    """One that gives up half way, when it is told to."""

    fails = None

    def load_state_dict(self, state):
        fails, self.fails = self.fails, None
        for i, (name, array) in enumerate(self.arrays.items()):
            if fails is not None and i == 1:
                raise fails
            array[...] = state[name]


VALUES = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 2**63 - 1, -(2**63), 2**63, -(2**200), 10**5000],
    "floats": [0.97, -0.0, 0.1 + 0.2, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan],
    "many floats": [0.1 * i for i in range(100)] + [math.nan, -0.0, math.inf],
    "many ints": list(range(-50, 50)),
    "mixed": [1, 2.0] * 20,
    "complex": [1 + 2j, complex(math.inf, -0.0)],
    "texts": ["", 'é\n"\\', "𝒘" * 1000, '"ravine":"{\\"checksum\\":\\"00000000'],
    "bytes": b"\0\xff",
    "nested": {"a": {"b": [{"c": (1, (2.5, "x"))}, [], {}, ()]}, "": 1, "a/b": 2},
    "other keys": {1: "a", (1, 2): "b", 2.5: "c", None: "d"},
    "scalars": [F32(0.1), np.float64(0.1), np.float16(0.1), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True)],
    "complex scalars": [np.complex64(1 + 2j), ml_dtypes.bfloat16(0.1)],
    "arrays": {
        str(dtype): np.arange(6).reshape(2, 3).astype(dtype)
        for dtype in (
            "?",
            "i1",
            "i2",
            "i4",
            "i8",
            "u1",
            "u2",
            "u4",
            "u8",
            "f2",
            "f4",
            "f8",
            ml_dtypes.bfloat16,
            "F",
            "D",
        )
    },
    "shapes": [np.ones(()), np.ones((0, 3)), np.arange(12.0).reshape(3, 4).T, np.arange(10)[::2], np.ones(3, ">f8")],
    "complex shapes": [np.array(1 + 2j), np.zeros((0, 2), "F"), (np.arange(6.0) + 1j).reshape(2, 3).T],
}


def same(a, b):
    """The same value, type, dtype and bits; any NaN is any NaN."""
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.dtype.name == b.dtype.name
            and a.shape == b.shape
            and (a.astype(a.dtype.newbyteorder("=")).tobytes() == b.tobytes())
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return a.hex() == b.hex()
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    return a == b


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_they_were(path, name):
    make().save(path, extra={name: VALUES[name], "epoch": 3})
    in_place = name in ("arrays", "shapes", "complex shapes")
    for extra in (None, {name: None, "epoch": 0}, {} if in_place else {name: VALUES[name]}):
        done = make().load(path, extra=extra)
        assert done.extra["epoch"] == 3
        assert same(VALUES[name], done.extra[name]), done.extra[name]
        assert done.extra.keys() == {name, "epoch"}
    assert done.message.endswith("goes on after step 0")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.dictionaries(st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=30,
)


@settings(max_examples=100, deadline=None)
@given(value=plain)
def test_any_nesting_of_values_comes_back(value):
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        make().save(f"{folder}/run", extra={"value": value})
        assert same(value, make().load(f"{folder}/run").extra["value"])


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
@pytest.mark.parametrize("outer", ["Generator", "BitGenerator", "RandomState"])
def test_random_generators_go_on_where_they_were(path, kind, outer):
    def fresh(seed):
        bits = getattr(np.random, kind)(seed)
        return bits if outer == "BitGenerator" else getattr(np.random, outer)(bits)

    def draw(rng):
        if outer == "BitGenerator":
            return rng.random_raw(7).tolist()
        return [rng.standard_normal(3).tolist(), rng.bytes(3), rng.permutation(9).tolist()]

    rng = fresh(1)
    for _ in range(3):
        draw(rng)
    if outer == "RandomState":
        rng.standard_normal()  # leaves half of a pair behind
    elif outer == "Generator":
        rng.integers(0, 9, dtype=np.int32)  # leaves half of a word behind
    make().save(path, extra={"rng": rng, "two": [fresh(2)]})
    expected = [draw(rng) for _ in range(3)]
    other, two = fresh(9), fresh(9)
    make().load(path, extra={"rng": other, "two": [two]})
    assert [draw(other) for _ in range(3)] == expected
    assert draw(two) == draw(fresh(2))
    made = make().load(path, extra={"rng": None}).extra["rng"]
    assert type(made) is type(rng)
    assert [draw(made) for _ in range(3)] == expected


@pytest.mark.parametrize(
    "wrong", [np.random.Generator(np.random.MT19937(0)), np.random.RandomState(0), np.random.PCG64(0)]
)
def test_another_kind_of_generator_is_refused(path, wrong):
    make().save(path, extra={"rng": np.random.default_rng(0)})
    refused(make(), path, "extra['rng']: expected", "got 'Generator(PCG64)'", extra={"rng": wrong})


def test_arrays_are_loaded_in_place(path, gpu):
    make().save(path, extra={"a": np.arange(3.0), "deep": {"b": [np.arange(4, dtype=np.int64)]}, "c": gpu.arange(2.0)})
    a, b, c = np.zeros(6)[::2], gpu.zeros(4, np.int64), np.zeros(2)
    done = make().load(path, extra={"a": a, "deep": {"b": [b]}, "c": c})
    assert (a.tolist(), b.get().tolist(), c.tolist()) == ([0, 1, 2], [0, 1, 2, 3], [0, 1])
    assert done.extra == {}
    read_only = np.zeros(3)
    read_only.flags.writeable = False
    for wrong in (np.zeros(2), np.zeros(3, F32), np.zeros((3, 1)), read_only):
        refused(make(), path, "extra['a']: expected", extra={"a": wrong})
        assert not wrong.any()


def test_values_beside_what_is_loaded_in_place(path):
    net = Buffers(mean=np.arange(2.0))
    make().save(path, extra={"run": {"net": net, "epoch": 4, "names": ["a"]}})
    other = Buffers(mean=np.zeros(2))
    done = make().load(path, extra={"run": {"net": other, "epoch": 0, "names": None}})
    assert done.extra["run"]["epoch"] == 4
    assert done.extra["run"]["names"] == ["a"]
    assert other.arrays["mean"].tolist() == [0, 1]


@pytest.mark.parametrize("kind", [Buffers, Live])
def test_objects_are_loaded_in_place_on_any_backend(path, gpu, kind):
    for xp, other in ((np, gpu), (gpu, np), (gpu, gpu)):
        make().save(path, extra={"net": kind(mean=xp.arange(3.0), var=xp.ones((2, 1), F32))})
        net = kind(mean=other.zeros(3), var=other.zeros((2, 1), F32))
        done = make().load(path, extra={"net": net})
        assert isinstance(net.arrays["mean"], other.ndarray)
        assert rv.to_host(net.arrays["mean"]).tolist() == [0, 1, 2]
        assert (done.extra, done.unasked) == ({}, ())


def test_an_objects_state_of_other_names_shapes_dtypes_and_kinds_is_listed_and_nothing_changes(path):
    rng, epoch = np.random.default_rng(0), 3
    net = Buffers(mean=np.ones(3), var=np.ones(2, F32), gone=np.ones(1))
    make().save(path, extra={"net": net, "rng": rng, "epoch": epoch, "text": "x", "list": [np.ones(2)]})
    other = Buffers(mean=np.zeros(4), var=np.zeros(2), new=np.zeros(1))
    twin = np.random.default_rng(7)
    before = twin.bit_generator.state
    refused(
        make(),
        path,
        "extra['net']: missing [\"'new'\"]",
        "extra['net']: unknown [\"'gone'\"]",
        "extra['net']['mean']: expected (4,) float64, got (3,) float64",
        "extra['net']['var']: expected (2,) float64, got (2,) float32",
        "extra['epoch']: expected 'three', got 3",
        "extra['text']: expected 7, got 'x'",
        "extra['list']",
        "extra['history']: nothing in the file, which has ['epoch', 'list', 'net', 'rng', 'text']",
        extra={
            "net": other,
            "rng": twin,
            "epoch": "three",
            "text": 7,
            "list": [np.ones(2), np.ones(2)],
            "history": None,
        },
    )
    assert (other.loads, twin.bit_generator.state) == (0, before)
    assert not other.arrays["mean"].any()
    refused(make(), path, "extra['net']: expected 3, got the state of an object", extra={"net": 3})
    refused(make(), path, "extra['epoch']: expected the state of a Buffers, got 3", extra={"epoch": other})


def test_strict_false_leaves_what_does_not_fit_and_says_so(path):
    make().save(path, extra={"net": Buffers(mean=np.ones(3)), "loss": Buffers(a=np.ones(1)), "epoch": 3})
    net, loss = Buffers(mean=np.zeros(4)), Buffers(a=np.zeros(1))
    done = make().load(path, strict=False, extra={"net": net, "loss": loss, "more": 1})
    assert (done.left_out, set(done.kept)) == (("extra['net']",), {"extra['net']", "extra['more']"})
    assert not net.arrays["mean"].any()
    assert loss.arrays["a"].tolist() == [1]
    assert done.extra == {"epoch": 3}
    assert "left out extra['net']" in done.message


def test_what_the_file_has_and_nobody_asked_for_is_said(path):
    make().save(path, extra={"net": Buffers(mean=np.ones(3)), "rng": np.random.default_rng(0), "epoch": 3})
    done = make().load(path)
    assert done.unasked == ("extra['net']", "extra['rng']")
    assert done.message.endswith("not asked for extra['net'], extra['rng']; pass them in extra=")
    assert done.extra == {"epoch": 3}


def test_a_file_without_extras_is_what_it_was_before_there_were_any(path):
    opt = make()
    opt.save(path)
    written = path.read_bytes()
    opt.save(path, extra={})
    assert path.read_bytes() == written
    assert not [name for name in safetensors.numpy.load_file(path) if name.startswith("extra")]
    refused(make(), path, "extra['epoch']: nothing in the file, which has []", extra={"epoch": 0})
    assert make().load(path).extra == {}


def test_an_object_that_fails_half_way_puts_everything_back(path):
    def objects(value):
        made = {name: Buffers(a=np.full(2, value), b=np.full(1, value)) for name in ("first", "net", "last")}
        return made | {"net": Failing(a=np.full(2, value), b=np.full(1, value))}

    opt = make()
    opt.step({"w": np.ones(2), "b": np.ones(1, F32)})
    rng, array = np.random.default_rng(3), np.ones(4)
    opt.save(path, extra={**objects(5.0), "rng": rng, "array": array})
    for error in (RuntimeError("no room"), KeyError("b"), MemoryError("full")):
        other, twin, mine = objects(1.0), np.random.default_rng(4), np.zeros(4)
        other["net"].fails, before = error, twin.bit_generator.state
        words = ("extra['net']: load_state_dict raised", type(error).__name__, "Nothing was loaded")
        refused(make(), path, *words, extra={**other, "rng": twin, "array": mine})
        for x in other.values():
            assert x.arrays["a"].tolist() == [1, 1]
            assert x.arrays["b"].tolist() == [1]
        assert twin.bit_generator.state == before
        assert not mine.any()
        make().load(path, extra={**other, "rng": twin, "array": mine})
        assert other["net"].arrays["b"].tolist() == [5]


class Interrupted(Buffers):
    """One that Ctrl-C comes upon, the first time."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        if self.loads == 1:
            raise KeyboardInterrupt


def test_ctrl_c_while_objects_are_loaded_lets_the_load_finish(path):
    opt = make()
    opt.step({"w": np.ones(2), "b": np.ones(1, F32)})
    opt.save(path, extra={"a": Buffers(x=np.ones(1)), "b": Buffers(x=np.ones(1)), "c": np.ones(3)})
    a, b, c, other = Interrupted(x=np.zeros(1)), Buffers(x=np.zeros(1)), np.zeros(3), make()
    with pytest.raises(KeyboardInterrupt):
        other.load(path, extra={"a": a, "b": b, "c": c})
    assert snapshot(other) == snapshot(opt)
    assert (a.arrays["x"][0], b.arrays["x"][0], c.tolist()) == (1, 1, [1, 1, 1])


class Curve:
    """A state that grows: lists, and what is None at first."""

    def __init__(self, *values):
        self.state = {"values": list(values), "names": [str(v) for v in values], "best": None, "by_name": {}}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@pytest.mark.parametrize("n", [0, 3, 100])
def test_lists_of_numbers_may_grow_and_what_was_not_set_be_set(path, n):
    curve = Curve(*map(float, range(n)))
    curve.state |= {"best": 0.5, "by_name": {"a": [1]}}
    make().save(path, extra={"curve": curve})
    for other in (Curve(), Curve(1.0), Curve(*map(float, range(200)))):
        make().load(path, extra={"curve": other})
        assert other.state == curve.state


@pytest.mark.parametrize(
    "value",
    [
        random.Random(0),
        object(),
        {1, 2},
        types.SimpleNamespace(),
        [1, {"a": [object()]}],
        np.array([object()]),
        np.array(["a"]),
        np.array(0, "M8[s]"),
        np.ones(2, np.longdouble),
        np.ma.masked_array([1.0, 2.0], [0, 1]),
        Buffers,
        lambda: 0,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_file_holds_is_refused_by_its_path(path, value):
    opt = make()
    opt.save(path)
    written = path.read_bytes()
    with pytest.raises(TypeError, match=r"^extra\['x'\]"):
        opt.save(path, extra={"y": 1, "x": value})
    assert path.read_bytes() == written


def test_what_is_no_dict_of_names_or_within_itself_is_refused(path):
    for wrong in (3, [("a", 1)], {1: 2}, "net"):
        with pytest.raises(TypeError, match="extra: expected a dict like"):
            make().save(path, extra=wrong)
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="within itself"):
        make().save(path, extra={"x": endless})
    assert not path.exists()
    make().save(path)
    with pytest.raises(TypeError, match="extra: expected a dict like"):
        make().load(path, extra=3)


def test_a_net_with_buffers_that_is_in_no_file_is_said(path):
    net = rv.nn.Sequential(rv.nn.Linear(2, 3, np.random.default_rng(0)), rv.BatchNorm(3), rv.BatchNorm(3, affine=False))
    opt = rv.SGD(net.params, lr=0.1)
    for extra, said in (
        (None, True),
        ({"epoch": 3, "scale": rv.DynamicLossScale()}, True),
        ({"net": Buffers(a=np.ones(1))}, False),
    ):
        opt.save(path, extra=extra)
        done = opt.load(path, extra=extra)
        assert done.without_buffers == (("1",) if said else ())
        assert ("not in the file: the buffers, such as running statistics, of the layers of 1" in done.message) is said
    plain = rv.nn.Sequential(rv.nn.Linear(2, 3, np.random.default_rng(0)))
    opt = rv.SGD(plain.params, lr=0.1)
    opt.save(path)
    assert opt.load(path).message.endswith("goes on after step 0")


def test_a_loss_scale_goes_on(path):
    opt, scale = rv.SGD(np.ones(2, np.float16), lr=0.5), rv.DynamicLossScale(2**10, growth_interval=3)
    for _ in range(4):
        opt.step(np.ones(2, np.float16), grad_scale=scale)
    opt.step(np.full(2, np.inf, np.float16), grad_scale=scale)
    opt.step(np.ones(2, np.float16), grad_scale=scale)
    opt.save(path, extra={"scale": scale})
    other, twin = rv.SGD(np.ones(2, np.float16), lr=0.5), rv.DynamicLossScale(growth_interval=3)
    other.load(path, extra={"scale": twin})
    assert twin.state_dict() == scale.state_dict() == {"format": 1, "value": 1024.0, "good_steps": 1}


def test_another_optimizer_may_be_an_extra(path):
    first, second, w = make(), rv.Lion({"v": np.ones(3)}), {"v": np.ones(3)}
    second.step(w)
    first.save(path, extra={"second": second, "v": second.params["v"]})
    twin = rv.Lion({"v": np.zeros(3)})
    make().load(path, extra={"second": twin, "v": twin.params["v"]})
    for opt in (second, twin):
        opt.step(w)
    assert snapshot(twin)[:3] == snapshot(second)[:3]


def test_the_same_bytes_on_numpy_and_cupy_and_twice(path, gpu):
    def extra(xp):
        return {
            "net": Buffers(mean=xp.arange(3.0)),
            "a": xp.ones((2, 2), F32),
            "rng": np.random.default_rng(0),
            "x": 0.1,
        }

    written = set()
    for xp in (np, gpu, np):
        make().save(path, extra=extra(xp))
        written.add(path.read_bytes())
    assert len(written) == 1


def test_other_programs_find_the_arrays(path):
    opt = make()
    opt.save(
        path,
        extra={
            "net": Buffers(mean=np.arange(3.0)),
            "c": np.array([1 + 2j]),
            "a/b": np.ones(1),
            "a": {"b": np.zeros(1)},
        },
    )
    arrays = safetensors.numpy.load_file(path)
    assert arrays["extra/net/mean"].tolist() == [0, 1, 2]
    assert arrays["extra/c"].tolist() == [[1, 2]]
    assert (arrays["extra/a/b"].tolist(), arrays["extra/a/b~"].tolist()) == ([1], [0])


def test_damage_in_an_extra_is_found(path):
    opt, net = make(), Buffers(mean=np.arange(64.0))
    opt.save(path, extra={"net": net, "epoch": 3})
    data = bytearray(path.read_bytes())
    place = data.index(np.arange(1.0, 9.0).tobytes())
    data[place + 3] ^= 1
    path.write_bytes(data)
    other = Buffers(mean=np.zeros(64))
    refused(make(), path, "damaged", "extra/net/mean", extra={"net": other})
    refused(make(), path, "damaged", "extra/net/mean")
    assert other.loads == 0


def test_a_fresh_process_goes_on(path):
    rng, net = np.random.default_rng(5), Buffers(mean=np.arange(3.0))
    rng.random(5)
    make().save(path, extra={"rng": rng, "net": net, "epoch": 3, "best": 0.1})
    printed = python(
        """
        import sys, numpy as np
        from tests.test_extras import make, Buffers
        rng, net = np.random.default_rng(), Buffers(mean=np.zeros(3))
        done = make().load(sys.argv[1], extra={"rng": rng, "net": net, "epoch": 0, "best": 0.0})
        print(rng.random().hex(), net.arrays["mean"].tolist(), done.extra["epoch"], done.extra["best"].hex())
        """,
        path,
    )
    assert printed == f"{rng.random().hex()} [0.0, 1.0, 2.0] 3 {(0.1).hex()}"


def test_fault_34_a_killed_run_goes_on_bit_for_bit_evaluation_included(tmp_path):
    """With batch norm, noise, an average, a loss scale and a history, from within an epoch, in fresh processes."""

    def process(name, *kill_after):
        command = [sys.executable, ROOT / "examples/resume.py", tmp_path / name, *map(str, kill_after)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == (-signal.SIGKILL if kill_after else 0), done.stderr
        return done.stdout, done.stderr

    whole, _ = process("whole.safetensors")
    for kill_after in (2, 5, 16, 17, 39):
        _, message = process("killed.safetensors", kill_after)
    assert "goes on after step 17" in message
    resumed, message = process("killed.safetensors")
    assert "goes on after step 38" in message
    assert resumed == whole
    assert whole.startswith("40 steps, best loss 0.")
