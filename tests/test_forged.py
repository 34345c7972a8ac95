"""Fault 22 again: headers that no save writes, with all checksums right, are refused or load just what they say."""

import json
import math
import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ravine as rv
from tests.test_checkpoint import MEMORY, SLOW, forged, put, refused, snapshot
from tests.test_checkpoint import path as path
from tests.test_extras import Buffers

F32 = np.float32
#: Enough to list what differs, whatever the file holds.
LONGEST = 25_000


def run():
    """An optimizer with much in its header, and extras of every kind."""
    options = {
        "lr": rv.schedules.cosine(0.1, 30),
        "groups": [("b.*", {"lr": 0.25, "weight_decay": 0.5})],
        "average": rv.EMA(0.9),
        "lookahead": rv.Lookahead(2),
        "clip_norm": 1.0,
    }
    opt = rv.AdamW({"w": np.arange(6.0).reshape(2, 3), "b": {"c": np.ones(3, F32)}}, **options)
    return opt, {
        "net": Buffers(mean=np.zeros(3), var=np.ones(2, F32)),
        "rng": np.random.default_rng(0),
        "array": np.zeros(4),
        "values": None,
        "columns": None,
    }


def saved(path):
    """Write a file; return its bytes, and what loading it gives."""
    data, right = _saved()
    path.write_bytes(data)
    return data, right


@cache
def _saved():
    opt, extra = run()
    for _ in range(3):
        opt.step({"w": np.ones((2, 3)), "b": {"c": np.ones(3, F32)}})
    extra["rng"].random(3)
    extra["net"].arrays["mean"][:] = 2
    extra["array"][:] = 5
    values = {"a": [1, 2.5, "x", None, True], "b": (2**70, 1j, b"x", F32(1)), 3: np.ones(2, "F")}
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder, "run.safetensors")
        opt.save(path, extra=extra | {"values": values, "columns": [0.5] * 20})
        return path.read_bytes(), snapshot(opt)


def state_of(extra):
    net, rng = extra["net"], extra["rng"]
    return [a.tobytes() for a in (*net.arrays.values(), extra["array"])], net.loads, rng.bit_generator.state


def paths(tree, before=()):
    """All places in a nesting."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in pairs:
        yield (*before, key)
        yield from paths(item, (*before, key))


def attempt(path, data):
    """Load forged bytes: whole, or not at all with an error that says so."""
    path.write_bytes(data)
    opt, extra = run()
    before, extras_before = snapshot(opt), state_of(extra)
    try:
        done = opt.load(path, extra=extra)
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert "Nothing was loaded" in message
        assert len(message) < LONGEST, message[:500]
        assert not re.search(r"expected (\S+), got \1[;.]", message), message
        assert snapshot(opt) == before
        assert state_of(extra) == extras_before
        return None
    return opt, extra, done


#: What stands where something else is wanted.
DEEP = json.loads("[" * 300 + "]" * 300)
REPLACEMENTS = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**300, 0.0, 1.5, -0.5, 1e308),
    *(
        "",
        "x",
        "nan",
        "inf",
        "-inf",
        "0x1p+3",
        "0x1p+9999",
        "NaN",
        "F32",
        "F64",
        "9" * 10_000,
        "é" * 50_000,
        "00000000",
    ),
    *([], {}, [1], [None], [[]], {"a": 1}, {"schedule": "cosine(0.1, 30)"}, {"function": 3}, {"float": "nan"}, DEEP),
    *(
        {"dict": {}},
        {"dict": []},
        {"items": [[[], 1]]},
        {"items": 3},
        {"tuple": {}},
        {"int": "z"},
        {"int": 3},
        {"float": 1},
    ),
    *({"complex": ["1"]}, {"bytes": "0"}, {"number": ["float32", "00"]}, {"number": ["V3", "00"]}, {"array": 3}),
    *({"array": "params/w"}, {"array": "nowhere"}, {"state": None}, {"random": ["PCG64", {"dict": {}}]}, {"random": 1}),
    *({"random": ["Generator(PCG64)", None]}, {"numbers": "extra/array"}, {"a": 1, "b": 2}, ["x"] * 10_000),
]


def as_json(value):
    return value if not isinstance(value, float) or math.isfinite(value) else {"float": value.hex()}


@settings(max_examples=3000 if SLOW else 300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_of_the_header_replaced_by_any_kind(data):
    original, right = _saved()

    def change(header, meta, body):
        tree = {"meta": meta, "header": {name: entry for name, entry in header.items() if name != "__metadata__"}}
        where = data.draw(st.sampled_from([place for place in paths(tree) if len(place) > 1]))
        kinds = ["replace", "delete", "exchange", "rename"]
        kind = data.draw(st.sampled_from(kinds))
        holder = tree
        for key in where[:-1]:
            holder = holder[key]
        if kind == "delete":
            del holder[where[-1]]
        elif kind == "rename" and isinstance(holder, dict):
            holder[data.draw(st.sampled_from(["", "x", "y" * 9_000, "a.b", "params/w"]))] = holder.pop(where[-1])
        elif kind == "exchange":
            other = data.draw(st.sampled_from([place for place in paths(tree) if len(place) > 1]))
            value = tree
            for key in other:
                value = value[key]
            holder[where[-1]] = json.loads(json.dumps(value))
        else:
            holder[where[-1]] = data.draw(st.sampled_from(REPLACEMENTS))
        for name in header.keys() - tree["header"].keys() - {"__metadata__"}:
            del header[name]
        header.update(tree["header"])

    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        loaded = attempt(Path(folder, "run.safetensors"), forged(original, change))
    if loaded is not None:
        opt, extra, done = loaded
        assert snapshot(opt)[0] == right[0]
        assert extra["net"].loads in (0, 1)
        assert isinstance(done.extra, dict)


@pytest.mark.parametrize("place", ["options", "groups"])
@pytest.mark.parametrize(
    "value", [{"a": 1}, [1], True, {"a": {"b": 1}}, {}, {"schedule": 3}, {"schedule": "x", "y": "z"}]
)
@pytest.mark.parametrize("name", ["master", "states", "clip_norm", "lr", "beta1"])
def test_an_option_of_no_kind_is_damage(path, place, value, name):
    data, _ = saved(path)

    def change(header, meta, body):
        (meta["options"] if place == "options" else meta["groups"][0])["values"][name] = value

    path.write_bytes(forged(data, change))
    opt, extra = run()
    refused(opt, path, "damaged", extra=extra)


@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "NaN", "0x1p+99999"])
def test_a_number_that_is_none_is_damage(path, text):
    data, _ = saved(path)
    opt, extra = run()
    for place in (("options", "exact", "clip_norm"), ("groups", 0, "exact", "beta1"), ("groups", 1, "exact", "lr")):
        path.write_bytes(forged(data, lambda h, m, b, place=place: put(m, *place, value=text)))
        refused(opt, path, "damaged", extra=extra)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("key", ["step", "beta1", "clip_norm", "w"])
def test_javascripts_words_for_no_numbers_are_damage(path, word, key):
    data, _ = saved(path)
    opt, extra = run()
    text = rf'(\\"{key}\\":)[0-9.e-]+'
    path.write_bytes(forged(data, lambda h, m, b: None, lambda t: re.sub(text, rf"\g<1>{word}", t, count=1)))
    refused(opt, path, "damaged", extra=extra)


LONG = "n" * 200_000
LONG_TEXTS = {
    "rule": lambda h, m, b: put(m, "rule", value=LONG),
    "optimizer": lambda h, m, b: m.update(rule="sgd", optimizer=LONG),
    "version": lambda h, m, b: m.update(format=2, version=LONG),
    "format": lambda h, m, b: m.update(format=LONG),
    "format as a list": lambda h, m, b: m.update(format=[LONG]),
    "option": lambda h, m, b: put(m, "options", "values", "nonfinite", value=LONG),
    "option's name": lambda h, m, b: put(m, "options", "values", LONG, value="x"),
    "schedule": lambda h, m, b: put(m, "groups", 0, "values", "lr", value={"schedule": LONG}),
    "kind of schedule": lambda h, m, b: put(m, "groups", 0, "values", "lr", value={LONG: "x"}),
    "number's name": lambda h, m, b: m["groups"][0].update(values={LONG: 1.0}, exact={LONG: "0x1p0"}),
    "dtype": lambda h, m, b: put(h, "params/w", "dtype", value=LONG),
    "checksum": lambda h, m, b: put(m, "checksums", "params/w", value=LONG),
    "count": lambda h, m, b: put(m, "updates", "w", value=LONG),
    "updates' name": lambda h, m, b: put(m, "updates", LONG, value=1),
    "shape": lambda h, m, b: put(h, "params/w", "shape", value=[1] * 10_000 + [2, 3]),
    "extra": lambda h, m, b: put(m, "extra", LONG, value={"x": LONG}),
    "extra's value": lambda h, m, b: put(m, "extra", "net", value=LONG),
    "extra's kind": lambda h, m, b: put(m, "extra", "rng", "random", 0, value=LONG),
    "extra's key": lambda h, m, b: put(m, "extra", "net", "state", "dict", LONG, value=None),
}


@pytest.mark.parametrize("change", LONG_TEXTS.values(), ids=LONG_TEXTS)
def test_a_message_is_of_limited_length_whatever_the_file_says(path, change):
    data, _ = saved(path)
    assert attempt(path, forged(data, change)) is None


def test_a_message_is_of_limited_length_however_many_names_there_are(path):
    names = {f"layer{i}.weight": np.ones(1) for i in range(3000)}
    rv.Adam(names).save(path)
    message = refused(rv.Adam({"w": np.ones(1)}), path, "parameters: missing ['w']", "layer1000.weight")
    assert len(message) < 2000
    wider = {name: np.ones(2) for name in names}
    assert len(refused(rv.Adam(wider), path, "adam/m/layer0.weight", "more")) < LONGEST
    with pytest.raises(ValueError, match="missing parameters") as caught:
        rv.Adam({"w": np.ones(1)}).load_state_dict(rv.Adam(names).state_dict())
    assert len(str(caught.value)) < LONGEST


@pytest.mark.parametrize("depth", [200, 1000, 5000, 100_000])
@pytest.mark.parametrize("place", ["step", "epoch"])
def test_deep_nesting_is_damage_and_no_recursion_error(path, depth, place):
    opt = rv.Adam(np.ones(2))
    opt.save(path, extra={"epoch": 77})
    data = path.read_bytes()
    text = '\\"step\\":0' if place == "step" else '\\"epoch\\":77'
    deep = text.rpartition(":")[0] + ":" + "[" * depth + "]" * depth
    path.write_bytes(forged(data, lambda h, m, b: None, lambda t: t.replace(text, deep)))
    if place == "step" or depth > 300:
        message = refused(opt, path, "damaged")
        assert len(message) < LONGEST
    else:
        assert len(repr(opt.load(path).extra["epoch"])) == 2 * depth


@pytest.mark.parametrize("key", ["mean", "net", "w", "lr", "names", "format", "dtype", "extra", "dict"])
def test_a_key_twice_is_damage(path, key):
    data, _ = saved(path)
    opt, extra = run()

    def twice(text):
        pattern = rf'(\\?"){key}\1:'
        assert re.search(pattern, text)
        return re.sub(pattern, r"\g<0>1,\g<0>", text, count=1)

    path.write_bytes(forged(data, lambda h, m, b: None, twice))
    refused(opt, path, "damaged", extra=extra)


def test_an_infinite_limit_comes_back(path):
    """What measures and never clips."""
    head = rv.checkpoint.layout.exact({"clip_norm": math.inf, "lr": 0.1, "none": None})
    assert head["values"] == {"clip_norm": "inf", "lr": 0.1, "none": None}
    assert head["exact"] == {"clip_norm": "inf", "lr": (0.1).hex()}
    json.dumps(head, allow_nan=False)
