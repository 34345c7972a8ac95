"""History: what was recorded comes back, exactly, and recording does not wait for a GPU."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ravine as rv
from ravine import history as module


def lists(curve):
    assert (curve.steps.dtype, curve.values.dtype) == (np.int64, np.float64)
    return curve.steps.tolist(), curve.values.tolist()


def test_steps_and_values_by_name_at_different_times():
    w, history = np.array([1.0, 2.0]), rv.History()
    opt = rv.SGD(w, lr=rv.schedules.linear(0.5, 0.1, 4))
    for epoch in range(2):
        for batch in range(2):
            history.record(opt.step(np.zeros(2)), loss=10 * epoch + batch)
        history.record(validation_loss=np.float32(epoch + 0.5), accuracy=np.array([0.25]))
    assert lists(history["loss"]) == ([1, 2, 3, 4], [0, 1, 10, 11])
    assert lists(history["validation_loss"]) == ([2, 4], [0.5, 1.5])
    assert lists(history["accuracy"]) == ([2, 4], [0.25, 0.25])
    assert lists(history["lr"]) == ([1, 2, 3, 4], [0.5, 0.4, 0.3, 0.2])
    assert history.names == ["lr", "loss", "validation_loss", "accuracy"]
    assert list(history.as_arrays()) == history.names
    assert lists(history.as_arrays()["loss"]) == lists(history["loss"])
    assert len(history) == 6
    assert "loss" in history
    assert "grad_norm" not in history
    assert repr(history) == "History(6 records, steps 1 to 4: lr, loss, validation_loss, accuracy)"


def test_what_the_step_measured_and_checked_is_recorded():
    history = rv.History()
    opt = rv.SGD(np.zeros(3), lr=0.1, clip_norm=1.0, nonfinite="skip")
    for g in ([3.0, 4.0, 0.0], [math.nan, math.inf, 0.0], [0.0, 0.0, 2.0]):
        history.record(opt.step(np.array(g)))
    assert lists(history["skipped"]) == ([1, 1, 2], [0, 1, 0])
    assert lists(history["nonfinite"]) == ([1, 1, 2], [0, 2, 0])
    norms = history["grad_norm"].values
    assert norms[[0, 2]].tolist() == [5, 2]
    assert math.isnan(norms[1])


class Watched:
    """Counts what is fetched from the device."""

    def __init__(self, monkeypatch, gpu):
        self.count, get, convert = 0, gpu.ndarray.get, gpu.ndarray.__float__

        def counted(array, *args, **kwargs):
            self.count += 1
            return get(array, *args, **kwargs)

        def converted(array):
            self.count += 1
            return convert(array)

        monkeypatch.setattr(gpu.ndarray, "get", counted)
        monkeypatch.setattr(gpu.ndarray, "__float__", converted)


@pytest.fixture
def on_gpu(gpu):
    """An optimizer that clips and checks, its parameter, and the norms that its 40 steps measure."""
    w = gpu.zeros(3, np.float32)
    opt = rv.SGD(w, lr=0.1, clip_norm=1.0, nonfinite="skip")
    gradients = [np.array([0, 3 * k, 4 * k], np.float32) for k in range(40)]
    gradients[7][0] = np.nan
    return opt, gradients


def test_recording_never_waits_for_the_gpu_and_nothing_is_lost(gpu, on_gpu, monkeypatch):
    if gpu.__version__ != "0.0.0":
        pytest.skip("fetches are counted on the stand-in: CuPy's own class cannot be changed")
    opt, gradients = on_gpu
    history, loss, watched = rv.History(), gpu.zeros(()), Watched(monkeypatch, gpu)
    for k, g in enumerate(gradients):
        loss += k  # in place: what was recorded must not change
        history.record(opt.step(gpu.asarray(g)), loss=loss)
    assert watched.count == 0
    norms = history["grad_norm"]
    assert watched.count > 0
    assert norms.steps.tolist() == [*range(1, 8), 7, *range(8, 40)]
    assert norms.values[[0, 1, 39]].tolist() == [0, 5, 5 * 39]
    assert np.flatnonzero(history["skipped"].values).tolist() == [7]
    assert np.flatnonzero(history["nonfinite"].values).tolist() == [7]
    assert history["loss"].values.tolist() == [k * (k + 1) / 2 for k in range(40)]
    assert history["loss"].steps.tolist() == norms.steps.tolist()


def test_a_long_history_is_fetched_in_between(gpu, on_gpu, monkeypatch):
    monkeypatch.setattr(module, "_HELD", 10)
    opt, gradients = on_gpu
    history = rv.History()
    for g in gradients[:25]:
        history.record(opt.step(gpu.asarray(g)), loss=gpu.ones(()))
    assert [row.info is None for row in history._rows] == [True] * 20 + [False] * 5
    assert history["grad_norm"].values[[1, 24]].tolist() == [5, 120]


def test_a_kept_info_is_remembered_and_others_are_not(gpu, on_gpu):
    opt, gradients = on_gpu
    infos = [opt.step(gpu.asarray(gradients[k])) for k in range(1, 3)]
    infos[0].keep()
    infos[0].keep()
    for g in gradients[10:30]:
        opt.step(gpu.asarray(g))
    assert (infos[0].step, infos[0].grad_norm, infos[0].skipped, infos[0].nonfinite) == (1, 5.0, False, {})
    with pytest.raises(RuntimeError, match="only the last 16 steps are remembered"):
        _ = infos[1].grad_norm
    with pytest.raises(RuntimeError, match="only the last 16 steps are remembered"):
        infos[1].keep()


def test_what_a_graph_replays_is_not_copied_into_it(gpu_device, monkeypatch):
    xp = gpu_device.xp
    opt = rv.SGD(xp.zeros(3), lr=0.1, clip_norm=1.0)
    opt.step(xp.ones(3))
    monkeypatch.setattr(gpu_device, "capturing", lambda: True)
    info = opt.step(xp.ones(3))
    info.keep()
    assert info._kept == {}


NUMBERS = st.dictionaries(
    st.text(min_size=1).filter(lambda s: s not in ("step", "info", "self") and s.isprintable()),
    st.floats(allow_nan=False),
    max_size=4,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), NUMBERS)))
def test_a_csv_file_gives_the_same_bits_back(tmp_path_factory, rows):
    history = rv.History()
    for step, numbers in rows:
        history.record(step=step, **numbers)
    path = tmp_path_factory.mktemp("history") / "run.csv"
    history.to_csv(path)
    again = rv.History.from_csv(path)
    assert len(again) == len(history)
    assert again.names == history.names
    for name in history.names:
        assert again[name].steps.tobytes() == history[name].steps.tobytes()
        assert again[name].values.tobytes() == history[name].values.tobytes()


def test_the_csv_file_is_plain(tmp_path):
    history = rv.History()
    history.record(step=1, loss=0.1, lr=1)
    history.record(step=2, loss=math.nan)
    history.record(accuracy=1 / 3)
    history.to_csv(tmp_path / "run.csv")
    text = (tmp_path / "run.csv").read_bytes().decode()
    assert text == "step,loss,lr,accuracy\r\n1,0.1,1.0,\r\n2,nan,,\r\n2,,,0.3333333333333333\r\n"
    again = rv.History.from_csv(tmp_path / "run.csv")
    assert math.isnan(again["loss"].values[1])
    again.record(loss_at_the_end=1)
    assert lists(again["loss_at_the_end"]) == ([2], [1])
    with pytest.raises(ValueError, match="accuracy would come again at the same step"):
        rv.History.from_csv(tmp_path / "run.csv").record(accuracy=1)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", r"expected a header of step and different names, got \[\]"),
        ("loss,step\n1,2\n", "expected a header of step"),
        ("step,a,a\n", "different names"),
        ("step,loss\n1,2\n2,x\n", "line 3, column loss: expected a number, got 'x'"),
        ("step,loss\n1.5,2\n", "line 2, column step: expected a number, got '1.5'"),
        ("step,loss\n1\n", "line 2: expected 2 cells, got 1"),
    ],
)
def test_files_of_others_are_refused_with_the_place(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        rv.History.from_csv(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"loss": np.ones(3)}, r"loss: expected a number, got an array of shape \(3,\)"),
        ({"loss": "0.5"}, "loss: expected a number, got '0.5'"),
        ({"loss": 1j}, "loss: expected a number, got 1j"),
        ({"ok": 1, "loss": None}, "loss: expected a number, got None"),
        ({"step": 1.5, "loss": 1}, "integer"),
    ],
)
def test_what_is_no_number_is_named_and_nothing_is_recorded(values, words):
    history = rv.History()
    with pytest.raises(TypeError, match=words):
        history.record(**{"step": 1, **values})
    assert len(history) == 0


def test_arrays_on_the_gpu_that_are_no_numbers_are_named(gpu):
    for array in (gpu.ones(3), gpu.ones((), complex)):
        with pytest.raises(TypeError, match=r"loss: expected a .*number, got an array of"):
            rv.History().record(step=1, loss=array)


def test_numbers_without_a_step_to_belong_to_are_refused():
    history = rv.History()
    with pytest.raises(ValueError, match="expected info or step, since loss would come first"):
        history.record(loss=1)
    history.record(step=3, loss=1)
    with pytest.raises(ValueError, match="since loss would come again at the same step"):
        history.record(loss=1)
    with pytest.raises(TypeError, match=r"info: expected what opt\.step returned, got float; give numbers by name"):
        history.record(0.5)
    assert len(history) == 1


def test_a_name_that_was_not_recorded_is_named():
    history = rv.History()
    assert repr(history) == "History(no records)"
    assert history.as_arrays() == {}
    history.record(step=1, loss=1)
    with pytest.raises(KeyError, match=r"'los' was not recorded; there are \['loss'\]"):
        history["los"]


# Norms of gradients, parameters and updates.


def two_layers(xp=np, seed=0, dtypes=(np.float32, np.float16)):
    rng = np.random.default_rng(seed)
    return {f"w{i}": xp.asarray(rng.standard_normal((30, 7)).astype(dtype)) for i, dtype in enumerate(dtypes)}


def last(history, prefix):
    return {name: history[name].values[-1] for name in history.names if name.startswith(prefix)}


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_norms_by_name_are_those_of_gradient_parameter_and_update(gpu, where):
    xp = np if where == "cpu" else gpu
    w, history = two_layers(xp), rv.History()
    opt = rv.AdamW(w, lr=0.1, clip_norm=0.5, groups=[("w1", {"lr": 0.3})])
    for seed in range(1, 4):
        before, g = rv.to_host(rv.trees.map(lambda x: x.copy(), w)), two_layers(np, seed)
        info = history.step(opt, rv.trees.map(xp.asarray, g), loss=seed)
        after = rv.to_host(w)
        assert info.step == seed
        for name, x in g.items():
            moved = after[name].astype(np.float64) - before[name].astype(np.float64)
            for kind, exact in (("grad_norm", x), ("param_norm", after[name]), ("update_norm", moved)):
                got, expected = history[f"{kind}/{name}"].values[-1], np.linalg.norm(exact.astype(np.float64))
                assert got == pytest.approx(expected, rel=2**-22 if kind == "update_norm" else 1e-14)
            assert history[f"grad_norm/{name}"].values[-1] == rv.global_norm(x)
        assert history["grad_norm"].values[-1] == rv.global_norm(g)
    assert history["loss"].values.tolist() == [1, 2, 3]
    assert history["update_norm/w1"].steps.tolist() == [1, 2, 3]
    history.record(validation_loss=5)
    assert history["validation_loss"].steps.tolist() == [3]


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_norms_are_those_of_the_step_that_is_taken(gpu, where):
    """Scaled, accumulated, left out, or without a gradient."""
    xp = np if where == "cpu" else gpu
    w, history = {"a": xp.zeros(2), "b": xp.zeros(1)}, rv.History()
    opt, scale = rv.SGD(w, lr=1.0), rv.DynamicLossScale(4)
    g = {"a": xp.asarray(np.array([3.0, 4.0])), "b": None}
    history.step(opt, {"a": g["a"] * 4, "b": None}, grad_scale=4)
    assert last(history, "grad_norm/") == {"grad_norm/a": 5}
    assert last(history, "update_norm/") == {"update_norm/a": 5, "update_norm/b": 0}
    assert "grad_norm/b" not in history
    opt.accumulate({"a": 3 * g["a"] * scale.value, "b": None}, weight=1)
    opt.accumulate({"a": g["a"] * scale.value, "b": None}, weight=3)
    history.step(opt, grad_scale=scale)
    assert last(history, "grad_norm/") == {"grad_norm/a": 7.5}
    assert last(history, "param_norm/") == {"param_norm/a": 12.5, "param_norm/b": 0}
    assert history.step(opt, {"a": g["a"] * np.inf, "b": None}, grad_scale=scale).skipped
    assert last(history, "grad_norm/") == {"grad_norm/a": math.inf}
    assert last(history, "update_norm/") == {"update_norm/a": 0, "update_norm/b": 0}
    assert (history["skipped"].values.tolist(), float(scale.value)) == ([0, 1], 2)


def test_recording_norms_never_waits_for_the_gpu(gpu, monkeypatch):
    if gpu.__version__ != "0.0.0":
        pytest.skip("fetches are counted on the stand-in: CuPy's own class cannot be changed")
    w, history, scale = two_layers(gpu), rv.History(), rv.DynamicLossScale(2**10, growth_interval=1)
    opt, watched = rv.Adam(w), None
    history.step(opt, two_layers(gpu, 1), grad_scale=scale)
    watched = Watched(monkeypatch, gpu)
    for seed in range(2, 5):
        history.step(opt, two_layers(gpu, seed), grad_scale=scale)
    assert watched.count == 0
    exact = [rv.global_norm(two_layers(np, seed)["w0"]) / 2 ** (9 + seed) for seed in range(1, 5)]
    assert history["grad_norm/w0"].values.tolist() == exact


def test_a_step_that_raises_or_a_value_that_is_none_records_nothing():
    w, history = {"a": np.zeros(2)}, rv.History()
    opt = rv.SGD(w, lr=1.0)
    with pytest.raises(ValueError, match="expected shape"):
        history.step(opt, {"a": np.ones(3)}, loss=1)
    with pytest.raises(TypeError, match="loss: expected a number"):
        history.step(opt, {"a": np.ones(2)}, loss="1")
    assert (len(history), opt.steps, w["a"].tolist()) == (0, 0, [0.0, 0.0])


def test_norms_go_through_csv(tmp_path):
    history = rv.History()
    history.step(rv.SGD(np.zeros(2), lr=0.5), np.array([3.0, 4.0]))
    history.to_csv(tmp_path / "run.csv")
    assert rv.History.from_csv(tmp_path / "run.csv").names == [
        "lr",
        "grad_norm/params",
        "param_norm/params",
        "update_norm/params",
    ]
