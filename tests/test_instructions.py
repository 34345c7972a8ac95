"""What the compiler made of the kernels: packed instructions of the full width, and as few as last time.

Autovectorisation can stop without a word, and no result tells. So the built C library is disassembled, and what each
kernel computes is held against its formula; and its instructions are counted, by callgrind, against the counts in
benches/record/instructions.md.
"""

import collections
import datetime
import functools
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from tests.conftest import RULES, hyper_sets
from tests.test_capi import HEADER, ROOT, SHARED, STATIC, STRICT, linked, run

RECORD = ROOT / "benches" / "record" / "instructions.md"
BLESS = "RAVINE_BLESS=1 python -m pytest tests/test_instructions.py"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="the instructions are those of x86-64, by their names",
)


@pytest.fixture(scope="session", autouse=True)
def _library():
    """The library of these very sources; at no cost if it is there."""
    run("make", "--silent", "c-library", cwd=ROOT)


# Packed


#: The registers of an instruction set, their bytes, and the loop of a rule. The lowest is compiled into the caller.
WIDTHS = {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}
BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}
LOOPS = {
    "baseline": "ravine::step::sweep::<ravine::rules::{}>",
    "avx2": "ravine::simd::with_avx2::<ravine::step::Loop<ravine::rules::{}>>",
    "avx512": "ravine::simd::with_avx512::<ravine::step::Loop<ravine::rules::{}>>",
}
ARITHMETIC = re.compile(r"v?(add|sub|mul|div|sqrt)([ps])[sd]$")

#: What is done to an element besides the rule: unscaled, scaled, + l2·w, and the three forms of decay.
STAGES = {"add, mul": 11, "div": 1, "sqrt": 0}


class Code(NamedTuple):
    """What a function computes by, how wide, without VEX, and what it calls."""

    arithmetic: collections.Counter
    registers: collections.Counter
    legacy: collections.Counter
    calls: set


@functools.cache
def functions():
    """All functions of the library, by their names; of one name together."""
    text = run("objdump", "--disassemble", "--demangle", "--no-show-raw-insn", SHARED)
    found = collections.defaultdict(
        lambda: Code(collections.Counter(), collections.Counter(), collections.Counter(), set())
    )
    for name, body in re.findall(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)*)", text, re.MULTILINE):
        code = found[name]
        for mnemonic, operands in re.findall(r"^ +[0-9a-f]+:\t(?:\{.*?\} )?(\S+) *(.*)", body, re.MULTILINE):
            width = next((width for width in ("zmm", "ymm", "xmm") if f"%{width}" in operands), None)
            code.registers[width] += 1
            if matched := ARITHMETIC.match(mnemonic):
                operation, packed = matched.groups()
                # 2·x may be x + x.
                kind = operation if operation in ("div", "sqrt") else "add, mul"
                code.arithmetic[kind, width if packed == "p" else "scalar"] += 1
                code.legacy[packed] += not mnemonic.startswith("v")
            elif mnemonic in ("call", "jmp") and "<" in operands:
                code.calls.add(re.sub(r"\+0x[0-9a-f]+$", "", operands[operands.index("<") + 1 : -1]))
    return dict(found)


@functools.cache
def operations():
    """How many operations of each kind an element takes, by the CUDA text of its rule, which is the same formula."""
    text = (ROOT / "tests" / "golden" / "rules.cu").read_text(encoding="utf-8")
    counts = {}
    for rule, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.MULTILINE | re.DOTALL):
        (update,) = re.findall(r" A update\(.*?\{\n(.*?)^    \}", body, re.MULTILINE | re.DOTALL)
        counts[rule] = {
            "add, mul": 1 + len(re.findall(r" = \S+ [-+*] \S+;", update)),  # the step is subtracted
            "div": len(re.findall(r" = \S+ / \S+;", update)),
            "sqrt": update.count("= sqrt("),
        }
    return counts


@functools.cache
def types():
    """The type of each rule, and how many states it has."""
    text = (ROOT / "rust" / "rules" / "mod.rs").read_text(encoding="utf-8")
    (body,) = re.findall(r"^registry! \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r"^ +(\S+): (\d)", body, re.MULTILINE)
    return dict(zip(RULES, named, strict=True))


@functools.cache
def few():
    """The elements of a smaller group, which `Formula::apply` takes where no whole one is left."""
    (few,) = re.findall(
        r"^const FEW: usize = (\d+);", (ROOT / "rust" / "step.rs").read_text(encoding="utf-8"), re.MULTILINE
    )
    return int(few)


@pytest.mark.parametrize("level", WIDTHS)
@pytest.mark.parametrize(("dtype", "size"), [("f32", 4), ("f64", 8)])
def test_every_rule_computes_with_whole_registers(dtype, size, level):
    """Each operation of the formula is there packed, not only in smaller groups; and scalar once."""
    # A smaller group takes so many registers; and one, since the compiler packs what is left, too, short as it is.
    faults, without = [], few() * size // BYTES[level] + 1
    for rule, (kind, states) in types().items():
        name = LOOPS[level].format(f"{kind}, {dtype}, {states}")
        if name not in functions():
            faults.append(f"{rule}: no {name}; objdump must be of binutils 2.36 or newer, which know Rust's names")
            continue
        arithmetic = functions()[name].arithmetic
        for operation, n in operations()[rule].items():
            packed, scalar = arithmetic[operation, WIDTHS[level]], arithmetic[operation, "scalar"]
            stages = STAGES[operation]
            # Not twice, with some room for what the compiler did to the stages.
            # A loop that the compiler did not unroll holds each operation once, in each of the four places for groups.
            least, most = min(without * (n + stages) + 1, 4 * (n + stages)), 1.5 * n + 4 / 3 * stages
            if n and not (packed >= least and scalar <= most):
                faults.append(
                    f"{rule}: {n} {operation} an element, and {stages} of the stages; {packed} with {WIDTHS[level]}, "
                    f"expected at least {least}, and {scalar} scalar, expected at most {most}"
                )
    assert not faults, "\n".join(faults)


def kernels(level):
    """All code compiled for a higher instruction set."""
    return {name: code for name, code in functions().items() if name.startswith(f"ravine::simd::with_{level}::<")}


#: These work on a few numbers of each channel, once.
SMALL = ("ravine::norm::batch::Each<", "ravine::norm::sums::FoldRows<")
#: Backward with relu and fixed statistics: for AVX2 the compiler loads what relu leaves of dy one by one.
LOADED_SINGLY = ("ravine::norm::batch::ApplyInside<f32, ravine::norm::ScaleRectified<",)
#: For AVX2 it adds float32 numbers to float64 sums by halves; whole registers that it spilt had made up for it here.
BY_HALVES = ("ravine::step::layerwise::OneBlock<ravine::rules::lamb::Lamb, f32,",)


@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_every_other_kernel_computes_with_whole_registers(level):
    found = kernels(level)
    assert len(found) > len(RULES), "kernels of norms, sums and conversions, too"
    faults = []
    for name, code in found.items():
        scalar = sum(n for (_, width), n in code.arithmetic.items() if width == "scalar")
        whole, least = code.registers[WIDTHS[level]], code.registers["xmm"]
        # float32 that becomes float64 takes half a register first.
        fine = whole >= 8 and whole >= 3 * scalar and whole >= least / 1.5
        if not fine and not name.partition("::<")[2].startswith(
            (*SMALL, *LOADED_SINGLY, *BY_HALVES, "ravine::step::Loop<")
        ):
            faults.append(
                f"{name}: {whole} instructions with {WIDTHS[level]}, {least} with xmm; {scalar} scalar operations"
            )
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_no_kernel_leaves_its_loop_to_the_lowest_instruction_set(level):
    """A closure that is not inlined is a function of its own, and knows nothing of its caller's instructions."""
    faults = []
    for name, code in kernels(level).items():
        for called in code.calls & functions().keys():
            dispatches = any(other.startswith("ravine::simd::with_") for other in functions()[called].calls)
            if functions()[called].legacy["p"] >= 8 and not dispatches:
                faults.append(f"{name} calls {called}")
    assert not faults, "\n".join(faults)


# Counted


LEVELS = ("baseline", "avx2")  # valgrind has no AVX-512
ADAMW = "adam lr 0.001 beta1 0.9 beta2 0.999 eps 1e-8 bias_correction 1 eps_inside 0 eps_hat 0 weight_decay 0.01"
LISTS = {"1 x 10": "1 10", "10 x 100": "10 100", "1 x 10000": "1 10000"}


def counted_calls():
    """Label and what tests/capi/counted.c reads, of every call that is counted."""
    calls = {}
    for name, of in LISTS.items():
        calls[f"step adamw float32 {name}"] = f"step 4 {of} {ADAMW}"
        calls[f"step adamw float32 {name}, clip_norm"] = f"step 4 {of} {ADAMW} clip_norm 1.0 nonfinite 1"
        calls[f"step sgd float32 {name}"] = f"step 4 {of} sgd lr 0.1"
    for rule, size in itertools.product(RULES, (4, 8)):
        hyper = {"weight_decay": 0.1} | next(hyper_sets(rule))
        numbers = " ".join(f"{name} {value}" for name, value in hyper.items())
        calls[f"step {rule} float{8 * size} 1 x 8192"] = f"step {size} 1 8192 {rule} {numbers}"
    for size in (2, 4, 8):
        calls[f"step sgd float{8 * size} 1 x 8192, clip_value, l2"] = (
            f"step {size} 1 8192 sgd lr 0.1 clip_value 0.5 l2 0.1"
        )
        for name in ("global_norm", "count_nonfinite", "scale"):
            calls[f"{name} float{8 * size} 8192"] = f"{name} {size} 1 8192"
    calls["float32 to float16 8192"], calls["float16 to float32 8192"] = "to_half 4 1 8192", "from_half 4 1 8192"
    for size, way in itertools.product((4, 8), ("", "_backward")):
        for shape in ("4,8,256", "1024,8"):
            calls[f"batch_norm{way} float{8 * size} {shape}"] = f"batch_norm{way} {size} 2 {shape}"
        calls[f"layer_norm{way} float{8 * size} 64,512"] = f"layer_norm{way} {size} 2 64,512"
    return calls


def compiler():
    """The compiler that made the library."""
    (version,) = re.findall(r"rustc version (.*)", run("readelf", "--string-dump=.comment", SHARED))
    return version


def callgrind(folder, *command, options, level, **environment):
    """The number of instructions of each part of a run."""
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    log = folder / f"{level}.callgrind"
    # One thread: how long others wait for work is chance. Hashes decide what dictionaries look like.
    settings = {"RAVINE_SIMD": level, "RAVINE_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    tool = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={log}", "--combine-dumps=yes", *options]
    said = run(*tool, *command, env=os.environ | settings, **environment)
    totals = re.findall(r"^totals: (\d+)", log.read_text(encoding="utf-8"), re.MULTILINE)
    return said, [int(total) for total in totals[:-1]]  # the last part is what comes after all that is counted


def of_c(folder, level):
    program = folder / "counted"
    source = ROOT / "tests" / "capi" / "counted.c"
    run("cc", "-std=c11", *STRICT, f"-I{HEADER.parent}", source, "-o", program, *linked(STATIC), "-lm")
    options = ["--toggle-collect=counted", "--dump-after=counted"]
    calls = counted_calls()
    said, counts = callgrind(folder, program, options=options, level=level, input="\n".join(calls.values()))
    if said.split() != [level]:
        pytest.skip(f"this processor has no {level}")
    return dict(zip(calls, counts, strict=True))


#: What Python adds is most of a step of 10 elements.
IN_PYTHON = """
import ctypes, gc, sys
import numpy as np
import ravine as rv
callgrind = ctypes.CDLL(sys.argv[1])
params, grads = {"w": np.ones(10, np.float32)}, {"w": np.ones(10, np.float32)}
opt = rv.AdamW(params, lr=1e-3)
gc.disable()
def steps(n):
    for _ in range(n):
        opt.step(grads)
for _ in range(2):      # the first time, the interpreter still learns
    steps(100)
    callgrind.start()
    steps(100)
    callgrind.stop()
"""
REQUESTS = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void stop(void) { CALLGRIND_DUMP_STATS; CALLGRIND_STOP_INSTRUMENTATION; }
"""


def of_python(folder):
    (folder / "requests.c").write_text(REQUESTS, encoding="utf-8")
    command = ["cc", "-shared", "-fPIC", "-O1", folder / "requests.c", "-o", folder / "requests.so"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("valgrind's header is not installed: valgrind/callgrind.h")
    command = [sys.executable, "-c", IN_PYTHON, folder / "requests.so"]
    _, (_, count) = callgrind(folder, *command, options=["--instr-atstart=no"], level="avx2")
    return {"step adamw float32 1 x 10 in Python": count // 100}


def which_python():
    """What its bytecode and its NumPy calls depend on."""
    return f"{platform.python_implementation()} {platform.python_version()}, NumPy {np.__version__}"


def table(counts, python):
    """The record."""
    lines = [
        "# Instructions of a call",
        "",
        f"* Date: {datetime.date.today()}; {platform.machine()}",
        f"* rustc {compiler()}",
        f"* {which_python()}",
        f"* Command: `{BLESS}`",
        "* Instructions of one call on one thread, counted by callgrind, which has no AVX-512; a test of ±5 % wherever",
        "  the library was made by that compiler, and of the step in Python with that interpreter",
        "",
        f"| call | {' | '.join(LEVELS)} |",
        f"|---|{'--:|' * len(LEVELS)}",
    ]
    lines += [f"| {name} | {' | '.join(str(counts[level][name]) for level in LEVELS)} |" for name in counted_calls()]
    lines += [f"| {name} | | {count} |" for name, count in python.items()]
    return "\n".join(lines) + "\n"


def stored():
    """What the record says of the compiler and the interpreter; and of the calls, by level."""
    text = RECORD.read_text(encoding="utf-8") if RECORD.exists() else ""
    made_by = re.findall(r"^\* (rustc|CPython) (.*)$", text, re.MULTILINE)
    rows = re.findall(r"^\| (\w.*?) \| (\d*) ?\| (\d+) \|$", text, re.MULTILINE)
    return {"rustc": "unknown", "CPython": "unknown", **dict(made_by)}, {
        level: {row[0]: int(row[1 + i] or 0) for row in rows} for i, level in enumerate(LEVELS)
    }


def test_the_record_has_all_calls(tmp_path):
    if os.environ.get("RAVINE_BLESS"):
        counts = {level: of_c(tmp_path, level) for level in LEVELS}
        RECORD.write_text(table(counts, of_python(tmp_path)), encoding="utf-8")
    calls = [name for name in stored()[1]["avx2"] if not name.endswith(" in Python")]
    assert calls == list(counted_calls()), BLESS


def require_same(counted_with, this):
    if counted_with != this:
        pytest.skip(f"the stored counts are those of {counted_with}; this is {this}")


def assert_as_stored(counts, level):
    stored_counts = stored()[1][level]
    faults = [
        f"{name}: {count}, stored {stored_counts[name]} ({count / stored_counts[name] - 1:+.1%})"
        for name, count in counts.items()
        if name in stored_counts and not 0.95 <= count / stored_counts[name] <= 1.05
    ]
    assert not faults, "\n".join([*faults, f"if the release profile is as it was, and that is wanted: {BLESS}"])


@pytest.mark.parametrize("level", LEVELS)
def test_calls_take_as_many_instructions_as_stored(level, tmp_path):
    require_same(f"rustc {stored()[0]['rustc']}", f"rustc {compiler()}")
    assert_as_stored(of_c(tmp_path, level), level)


def test_a_step_of_ten_elements_in_python_takes_as_many_instructions_as_stored(tmp_path):
    require_same(f"rustc {stored()[0]['rustc']}", f"rustc {compiler()}")
    require_same(f"CPython {stored()[0]['CPython']}", which_python())
    assert_as_stored(of_python(tmp_path), "avx2")
