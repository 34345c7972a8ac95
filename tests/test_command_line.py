"""``python -m ravine``: what it prints, and what it refuses."""

import subprocess
import sys
import types

import numpy as np
import pytest

import ravine as rv
from ravine import optimizers
from ravine.__main__ import OPTIMIZERS, main


def run(*words):
    return subprocess.run([sys.executable, "-m", "ravine", *words], capture_output=True, text=True, check=False)


def test_it_runs_as_a_module():
    done = run("formula", "adamw", "weight_decay=0.1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == rv.AdamW(np.zeros(1), weight_decay=0.1).formula() + "\n"


def test_every_optimizer_has_a_formula(capsys):
    assert set(OPTIMIZERS) == {name.lower() for name in [*optimizers.__all__, "Adafactor", "Muon"]} - {
        "optimizer",
        "options",
    }
    for name, make in OPTIMIZERS.items():
        main(["formula", name, "lr=0.25"])
        assert capsys.readouterr().out == make(np.zeros((1, 1)), lr=0.25).formula() + "\n"


@pytest.mark.parametrize("spelling", ["Adam", "ADAM", "adam", "Ad-am"])
def test_an_optimizer_is_known_in_any_spelling(spelling, capsys):
    main(["formula", spelling])
    assert capsys.readouterr().out == rv.Adam(np.zeros((1, 1))).formula() + "\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["formula", "adamv"], "invalid choice: 'adamv'"),
        (["formula", "Adamm"], "invalid choice: 'Adamm'; did you mean adam or "),
        (["formula", "adamw", "weight=1"], "did you mean 'weight_decay'?"),
        (["formula", "adamw", "lr=-1"], "lr: expected a finite number >= 0, got -1.0"),
        (["formula", "adamw", "lr"], "expected name=value, like momentum=0.9, got 'lr'"),
        (["formula", "adamw", "lr=exit()"], "expected name=value"),
        (["bench", "--cases", "7"], "--cases: expected some of 1, 10, "),
        (["bench", "--threads", "0"], "expected at least 1"),
        ([], "the following arguments are required: COMMAND"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_info_tells_what_runs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    main(["info"])
    said = capsys.readouterr().out
    for line in (f"ravine       {rv.__version__}", f"NumPy        {np.__version__}", "CuPy         not installed: pip"):
        assert line in said


def test_info_tells_why_there_is_no_gpu(capsys, monkeypatch):
    def fail():
        raise RuntimeError("no driver")

    runtime = types.SimpleNamespace(getDeviceCount=fail)
    cupy = types.SimpleNamespace(__version__="99", cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    main(["info"])
    assert "CuPy         99, no GPU: no driver" in capsys.readouterr().out


def test_bench_prints_a_table_and_writes_it(tmp_path):
    record = tmp_path / "made" / "record.md"
    done = run("bench", "--cases", "10,1e3", "--rounds", "1", "--threads", "1", "--output", str(record))
    assert done.returncode == 0, done.stderr
    assert record.read_text(encoding="utf-8").strip() in done.stdout.strip().replace("\n\n\n", "\n\n")
    assert "| ravine |" in done.stdout
    assert "| NumPy in place |" in done.stdout
