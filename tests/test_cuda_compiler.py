"""CUDA text becomes code that keeps the bits: the cache, the errors, and every kernel that there is, for every GPU."""

import concurrent.futures
import datetime
import errno
import functools
import itertools
import os
import platform
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import ravine as rv
from ravine.cuda import compiler
from ravine.cuda.device import alone, kernel_names, source
from ravine.cuda.onebit import onebit_source
from ravine.cuda.rows import rows_source
from ravine.cuda.step import measure_source, step_source, units_source
from tests.conftest import LAYERWISE

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="NVIDIA has no wheel of NVRTC that the test group could name",
)

ARCHITECTURES = (75, 80, 90, 100, 120)  # Turing, Ampere, Hopper, Blackwell, and Blackwell for desktops
RECORD = Path(__file__).parents[1] / "benches/record/cuda-registers.md"
SOURCE = """
struct Args { const float *x; float *y; };
extern "C" __global__ void axpy(const Args a) {
    const unsigned i = threadIdx.x;
    a.y[i] = FACTOR * a.x[i] + a.y[i];
}
""".replace("FACTOR", "2.5f")


class Calls:
    """NVRTC, with its calls counted."""

    def __init__(self):
        self.nvrtc, self.programs = compiler._nvrtc(), 0

    def compile(self, *arguments):
        self.programs += 1
        return self.nvrtc.compile(*arguments)

    def __getattr__(self, name):
        return getattr(self.nvrtc, name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RAVINE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch):
    made = Calls()
    monkeypatch.setattr(compiler, "_nvrtc", lambda: made)
    return made


def only(folder):
    (path,) = folder.iterdir()
    return path


# The cache.


def test_a_text_is_compiled_once(folder, calls):
    first = compiler.cubin(SOURCE, 90)
    assert first.startswith(b"\x7fELF")
    assert compiler.cubin(SOURCE, 90) == first
    assert calls.programs == 1
    assert len(list(folder.iterdir())) == 1


def test_each_text_architecture_option_and_version_has_its_own_file(folder, calls, monkeypatch):
    compiler.cubin(SOURCE, 90)
    compiler.cubin(SOURCE, 80)
    compiler.cubin(SOURCE.replace("2.5f", "3.5f"), 90)
    monkeypatch.setattr(compiler, "OPTIONS", (*compiler.OPTIONS, "--ftz=true"))
    compiler.cubin(SOURCE, 90)
    calls.version = "99.0"
    compiler.cubin(SOURCE, 90)
    assert calls.programs == len(list(folder.iterdir())) == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:40],
        lambda data: data[:32],
        lambda data: b"",
        lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data + b"\0",
    ],
    ids=["half", "nearly the head", "the head", "empty", "a bit", "a bit of the head", "longer"],
)
def test_a_damaged_file_is_made_again(folder, calls, damage):
    expected = compiler.cubin(SOURCE, 90)
    path = only(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert compiler.cubin(SOURCE, 90) == expected
    assert calls.programs == 2
    assert only(folder).read_bytes() == whole


def test_a_file_under_another_name_is_not_taken(folder, calls):
    compiler.cubin(SOURCE.replace("2.5f", "3.5f"), 90)
    other = only(folder)
    expected = compiler.cubin(SOURCE, 90)
    (path,) = set(folder.iterdir()) - {other}
    path.write_bytes(other.read_bytes())
    assert compiler.cubin(SOURCE, 90) == expected
    assert calls.programs == 3


def no_folder(folder, monkeypatch):
    folder.write_text("a file, where the folder would be")


def no_home(folder, monkeypatch):
    monkeypatch.setattr(compiler, "cache_folder", lambda: None)


def full_disk(folder, monkeypatch):
    def replace(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compiler.os, "replace", replace)


def not_ours(folder, monkeypatch):
    def mkstemp(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(compiler.tempfile, "mkstemp", mkstemp)


@pytest.mark.parametrize("trouble", [no_folder, no_home, full_disk, not_ours])
def test_without_a_place_for_the_cache_it_compiles_each_time(folder, calls, monkeypatch, trouble):
    trouble(folder, monkeypatch)
    first = compiler.cubin(SOURCE, 90)
    assert compiler.cubin(SOURCE, 90) == first
    assert calls.programs == 2
    assert not folder.is_dir() or not list(folder.iterdir())


def test_processes_at_once_share_one_file(folder):
    code = "import sys; from ravine.cuda import compiler; sys.stdout.buffer.write(compiler.cubin(sys.argv[1], 90))"
    command = [sys.executable, "-W", "error", "-c", code, SOURCE]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    results = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert results == {compiler.cubin(SOURCE, 90)}
    only(folder)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_the_cache_is_private(folder):
    compiler.cubin(SOURCE, 90)
    assert (folder.stat().st_mode & 0o777, only(folder).stat().st_mode & 0o777) == (0o700, 0o600)


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    for name in ("RAVINE_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert compiler.cache_folder() == Path("/home/ada/.cache/ravine")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert compiler.cache_folder() == Path("/home/ada/.cache/ravine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/ada")
    assert compiler.cache_folder() == Path("/var/ada/ravine")
    monkeypatch.setenv("RAVINE_CACHE_DIR", "/scratch/kernels")
    assert compiler.cache_folder() == Path("/scratch/kernels")


# Errors.


@pytest.mark.parametrize("compile", [compiler.cubin, compiler.ptx, compiler.report])
def test_a_wrong_text_is_shown_with_its_lines(folder, compile):
    wrong = SOURCE.replace("threadIdx.x", "thread.x")
    with pytest.raises(RuntimeError) as caught:
        compile(wrong, 90)
    message = str(caught.value)
    assert re.search(r"NVRTC \d+\.\d+ with -arch=(sm|compute)_90 .*--fmad=false", message)
    assert 'ravine.cu(4): error: identifier "thread" is undefined' in message
    assert "\n    4 >     const unsigned i = thread.x;\n    5 |     a.y[i]" in message
    assert not folder.exists()


@pytest.fixture
def not_loaded():
    compiler._nvrtc.cache_clear()
    yield
    compiler._nvrtc.cache_clear()


@pytest.mark.usefixtures("not_loaded")
def test_without_cupy_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(ImportError, match=r"CuPy.* is missing: pip install 'ravine\[cuda\]'"):
        compiler.cubin(SOURCE, 90)


@pytest.mark.usefixtures("not_loaded")
def test_without_nvrtc_the_cure_is_named(monkeypatch):
    def load(name):
        raise RuntimeError(f"lib{name}.so.12:\n no such file")

    monkeypatch.setitem(sys.modules, "cuda.pathfinder", types.SimpleNamespace(load_nvidia_dynamic_lib=load))
    expected = r"NVRTC.*pip install 'ravine\[cuda\]'.*cupy-cuda13x\[ctk\].*\(libnvrtc.so.12: no such file\)"
    with pytest.raises(ImportError, match=expected):
        compiler.cubin(SOURCE, 90)


def test_a_gpu_newer_than_nvrtc_gets_ptx_and_one_too_old_an_error(folder, calls):
    calls.architectures = [75, 80, 90]
    assert compiler.architectures() == [75, 80, 90]
    for arch, target in ((120, 90), (89, 80)):
        text = compiler.cubin(SOURCE, arch)
        assert text == compiler.cubin(SOURCE, arch)
        assert f".target sm_{target}".encode() in text
    assert calls.programs == 2
    with pytest.raises(RuntimeError, match=r"capability 7\.5 and newer, and this GPU has 7\.0"):
        compiler.cubin(SOURCE, 70)


def test_compiling_imports_no_cupy_and_warns_of_nothing(folder):
    code = (
        "import sys; from ravine.cuda import compiler; compiler.ptx(sys.argv[1], 90); sys.exit('cupy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, SOURCE], check=True, timeout=120)


# The lint: which instructions keep the bits.

#: One rounding an operation, to nearest, is what CPUs do. `.rn` has to be there: PTX without it may be contracted.
#: Division and square root are one PTX instruction each. What they become later has fma in it, and is correct; so it is
#: PTX that is read, not machine code. Integers may be `mad`, and no atomic may add floats: their order is not defined.
FLOAT = r"\.(?:\w+\.)*(?:f16|f16x2|bf16|bf16x2|f32|f32x2|f64)$"
FORBIDDEN = {
    "contracted": rf"^fma\.|^mad{FLOAT}",
    "subnormals flushed": r"\.ftz\b",
    "approximate": r"\.approx\b|^div\.full\b|^(sin|cos|ex2|lg2|tanh|rsqrt)\.",
    "in no order": rf"^(atom|red)\..*add{FLOAT}",
    "saturated": rf"^\w+\..*sat{FLOAT}",
    "not rounded to nearest": rf"^(add|sub|mul|div|sqrt|rcp)(?!\.rn\.){FLOAT}|^cvt\.r[zmp]\.(f|bf)",
}


def assert_ieee(ptx):
    """Each operation on floats is IEEE's, rounded once, to nearest."""
    for number, line in enumerate(ptx.splitlines(), 1):
        instruction = re.sub(r"^\s*\{?\s*(@!?%\w+\s+)?|\s.*", "", line.partition("//")[0].strip() + " ")
        for what, pattern in FORBIDDEN.items():
            assert not re.search(pattern, instruction), f"{what}: line {number}: {line.strip()}"


ARITHMETIC = """
struct Args { REAL *x; unsigned *n; };
extern "C" __global__ void arithmetic(const Args a) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    REAL *const x = a.x + i * 7;
    x[0] = x[1] * x[2] + x[3];
    x[1] = x[1] / x[4] - sqrt(x[5]) * x[6];
    x[2] = REAL(1) / x[6];
    a.n[i] = a.n[i] * 7u + unsigned(x[0]);
    atomicAdd(a.n, 1u);
    EXTRA;
}
"""


def arithmetic(real, extra=""):
    return f"#define REAL {real}\n#define EXTRA {extra}\n{ARITHMETIC}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("real", ["float", "double"])
def test_the_lint_accepts_ieee_arithmetic(real, arch):
    text = compiler.ptx(arithmetic(real), arch)
    assert_ieee(text)
    # What could have been contracted or approximated is there, and integers are still multiplied and added at once.
    for instruction in ("add.rn.", "sub.rn.", "mul.rn.", "div.rn.", "sqrt.rn.", "rcp.rn.", "mad.lo.s32"):
        assert instruction in text


@pytest.mark.parametrize(
    "option, what",
    [
        ("--fmad=true", "contracted"),
        ("--ftz=true", "subnormals flushed"),
        ("--prec-div=false", "approximate"),
        ("--prec-sqrt=false", "approximate"),
        ("--use_fast_math", "contracted|subnormals flushed|approximate"),
    ],
)
def test_the_lint_rejects_wrong_options(monkeypatch, option, what):
    # Fast math is what each of the others would undo.
    flag = option.partition("=")[0] if "=" in option else "--"
    monkeypatch.setattr(compiler, "OPTIONS", (*(o for o in compiler.OPTIONS if not o.startswith(flag)), option))
    with pytest.raises(AssertionError, match=what):
        assert_ieee(compiler.ptx(arithmetic("float"), 90))


@pytest.mark.parametrize(
    "real, extra, what",
    [
        ("float", "x[0] = __fdividef(x[1], x[2])", "approximate"),
        ("float", "x[0] = rsqrtf(x[1])", "approximate"),
        ("float", "x[0] = __expf(x[1])", "approximate"),
        ("float", "x[0] = fmaf(x[1], x[2], x[3])", "contracted"),
        ("double", "x[0] = fma(x[1], x[2], x[3])", "contracted"),
        ("double", "x[0] = exp(x[1])", "contracted"),
        ("float", "x[0] = __fadd_rz(x[1], x[2])", "not rounded to nearest"),
        ("double", "x[0] = __dmul_ru(x[1], x[2])", "not rounded to nearest"),
        ("float", "x[0] = __double2float_rz(1.0 / x[1])", "not rounded to nearest"),
        ("float", "x[0] = __saturatef(x[1])", "saturated"),
        ("float", "atomicAdd(x, 1.0f)", "in no order"),
        ("double", "atomicAdd(x, x[1])", "in no order"),
    ],
)
def test_the_lint_rejects_wrong_operations(real, extra, what):
    with pytest.raises(AssertionError, match=f"^{what}: line"):
        assert_ieee(compiler.ptx(arithmetic(real, extra), 90))


@pytest.mark.parametrize("line", ["mul.f32 %f1, %f2, %f3;", "add.f64 %d1, %d2, %d3;", "mad.rn.f32 %f1, %f2, %f3, %f4;"])
def test_the_lint_rejects_what_may_be_contracted_later(line):
    with pytest.raises(AssertionError):
        assert_ieee(line)


# All kernels.


KINDS = {
    "float32": (1, 1),
    "float64": (0, 0),
    "float32-float16": (1, 2),
    "float32-bfloat16": (1, 3),
    "float16": (2, 2),
    "bfloat16": (3, 3),
}


#: In float64, but for Adam: one that has few units for it, and one that has as many as of float32. More would take
#: minutes to see the same operations once more; in float32 every rule is compiled for all.
WIDE = (75, 90)


#: Of the pass before the step, the architectures by the storages that it is compiled for.
GAUGED = {"float32": (75, 120), "float64": (75,), "bfloat16": (90,)}


def architectures_of(rule, kind):
    """Choose; half precision mostly for one."""
    if kind == "float32" or rule == "adam":
        return ARCHITECTURES
    return WIDE if kind == "float64" else (90,)


#: What follows the rule does not know it: no states, two, and the most.
FOLLOWED = ("sgd", "adam", "adan")


#: States in fewer bytes: the rule of most, one that measures, and the most states with the most that follows.
COMPACT = [
    ("adam", "8bit", "float32", ()),
    ("adam", "bfloat16", "float32", ()),
    ("lamb", "8bit", "bfloat16", ()),
    ("adan", "8bit", "bfloat16", ("MASTER", "AVERAGE", "LOOKAHEAD")),
]


#: Parameters with remainders, which take the place of exact copies.
SPLIT = [
    ("adam", None, ("REMAINDER",)),
    ("lamb", None, ("REMAINDER",)),
    ("adan", "8bit", ("AVERAGE", "LOOKAHEAD", "REMAINDER")),
]


#: Parameters that are rounded at random.
AT_RANDOM = [("adam", None, ()), ("adan", "8bit", ("AVERAGE", "LOOKAHEAD"))]


def sources():
    """Give all texts as they are compiled for a user, a kernel each, with the architectures to compile them for."""
    for rule, (kind, storages) in itertools.product(rv._core.rules(), KINDS.items()):
        text = step_source(rule, frozenset([storages]))
        yield f"{rule} {kind}", alone(text, "step"), architectures_of(rule, kind)
        # What comes before the step does its operations again, and stores no halves.
        if rule in LAYERWISE and kind in GAUGED:
            yield f"{rule} {kind} gauge", alone(text, "gauge"), GAUGED[kind]
        if rule in LAYERWISE and kind == "float32":
            yield f"{rule} settle", alone(text, "settle"), (90,)
    # What a half-precision parameter gets from accumulated gradients.
    for dtype, storages in {"float16": (2, 1), "bfloat16": (3, 1)}.items():
        yield f"adam {dtype}-float32", step_source("adam", frozenset([storages])), (90,)
    for rule, kind in itertools.product(FOLLOWED, ("float64", "bfloat16")):
        after = ("MASTER", "AVERAGE", "LOOKAHEAD")[kind == "float64" :]
        text = step_source(rule, frozenset([KINDS[kind]]), after)
        yield f"{rule} {kind} {' '.join(after).lower()}", text, ARCHITECTURES if rule == "adam" else (90,)
    for rule, states, after in SPLIT + AT_RANDOM:
        way, storage = ("split", 7) if "REMAINDER" in after else ("rounded at random", 8)
        text = step_source(rule, frozenset([(storage, 3)]), after, states)
        name = " ".join([rule, way, *after]).lower() + (f" with states in {states}" if states else "")
        yield name, alone(text, "step"), (75, 120) if rule == "adam" else (90,)
        if rule in LAYERWISE:
            yield f"{name} gauge", alone(text, "gauge"), (90,)
    for rule, states, kind, after in COMPACT:
        text = step_source(rule, frozenset([KINDS[kind]]), after, states)
        name = " ".join([rule, kind, *after]).lower() + f" with states in {states}"
        yield name, alone(text, "step"), ARCHITECTURES if rule == "adam" else (90,)
        if rule in LAYERWISE:
            yield f"{name} gauge", alone(text, "gauge"), (90,)
    for number, dtype in enumerate(("float64", "float32", "float16", "bfloat16")):
        text = measure_source(frozenset([number]))
        yield from ((f"{name} {dtype}", alone(text, name), ARCHITECTURES) for name in kernel_names(text))
        yield f"clip_units {dtype}", units_source(frozenset([number])), (75, 120) if dtype == "float32" else (90,)
    for real in ("float", "double"):
        text, chosen = source("tree", "norm", REAL=real), ARCHITECTURES if real == "float" else WIDE
        yield from ((f"{name} {real}", alone(text, name), chosen) for name in kernel_names(text))
    for number, dtype in enumerate(("float64", "float32", "float16", "bfloat16")):
        text, chosen = onebit_source(number), ARCHITECTURES if dtype == "float32" else (90,)
        yield from ((f"{name} {dtype}", alone(text, name), chosen) for name in kernel_names(text))
    for kind, (sums, values) in KINDS.items():
        yield f"sum_rows {kind}", rows_source(values, sums), ARCHITECTURES if kind == "float32" else (90,)
    yield "poke", source("poke"), ARCHITECTURES


SOURCES = {name: (text, architectures) for name, text, architectures in sources()}
CASES = [pytest.param(name, arch, id=f"{name}-{arch}") for name, (_, archs) in SOURCES.items() for arch in archs]
LARGEST = 255  # registers of a thread


@functools.cache
def compiled(name):
    """Compile a source for all architectures, on all processors; returns results that may be errors."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        text, architectures = SOURCES[name]
        return {arch: pool.submit(compiler.ptx_and_report, text, arch) for arch in architectures}


@pytest.mark.parametrize(("name", "arch"), CASES)
def test_a_kernel_keeps_the_bits(name, arch):
    assert_ieee(compiled(name)[arch].result()[0])


@pytest.mark.parametrize(("name", "arch"), CASES)
def test_a_kernel_fits_into_registers(name, arch):
    _, kernels = compiled(name)[arch].result()
    assert len(kernels) == 1
    for kernel, usage in kernels.items():
        assert 0 < usage.registers <= LARGEST, kernel
        assert usage.spilled == 0, f"{kernel} keeps {usage.spilled} bytes out of its {usage.registers} registers"


def table():
    """Write the record: what each kernel takes on each architecture."""
    lines = [
        "# Registers of the CUDA kernels",
        "",
        f"* Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}; NVRTC {compiler._nvrtc().version}, no GPU needed",
        "* Command: `RAVINE_BLESS=1 python -m pytest tests/test_cuda_compiler.py`",
        "* Registers of a thread by compute capability; shared memory of a block, and stack of a thread, in bytes: the "
        "largest. Nothing is spilled, which is a test",
        "",
        f"| kernel | {' | '.join(f'{arch / 10}' for arch in ARCHITECTURES)} | shared | stack |",
        f"|---|{'--:|' * (len(ARCHITECTURES) + 2)}",
    ]
    for name in SOURCES:
        reports = {arch: both.result()[1] for arch, both in compiled(name).items()}
        usages = {arch: usage for arch, report in reports.items() for usage in report.values()}
        numbers = [str(usages[arch].registers) if arch in usages else "" for arch in ARCHITECTURES]
        numbers += [str(max(getattr(usage, what) for usage in usages.values())) for what in ("shared", "stack")]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def kernels_of(record):
    return [row.split(" | ")[0] for row in record.splitlines() if row.startswith("| ")]


def test_the_record_has_all_kernels():
    text = table()
    if os.environ.get("RAVINE_BLESS"):
        RECORD.write_text(text, encoding="utf-8")
    stored = RECORD.read_text(encoding="utf-8") if RECORD.exists() else ""
    assert kernels_of(stored) == kernels_of(text), "RAVINE_BLESS=1 python -m pytest tests/test_cuda_compiler.py"
