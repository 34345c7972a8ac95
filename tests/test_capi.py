"""The C library: its header and its symbols agree, and programs in C and C++ get the bits that Python gets.

tests/capi/program.h is the body of both programs. They are built against the shared and the static library, and run
plainly, under the address sanitizer and under valgrind, where each buffer ends where its array ends.
"""

import functools
import io
import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import ravine as rv
from ravine import _core
from tests.conftest import RULES, engine, hyper_sets, zero_states
from tests.test_precision import RULES_WITH

ROOT = Path(__file__).parent.parent
HEADER = ROOT / "rust" / "include" / "ravine.h"
BUILT = ROOT / "target" / "c" / "release"
SHARED, STATIC = BUILT / "libravine.so", BUILT / "libravine.a"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the Makefile knows Linux's linker")

#: What the compilers are to find nothing in.
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O1", "-g"]
LANGUAGES = {
    "c11": ("cc", ["-std=c11"], ROOT / "tests" / "capi" / "program.c"),
    "c++17": ("g++", ["-std=c++17"], ROOT / "tests" / "capi" / "program.cpp"),
}
PLAINLY = list(itertools.product(LANGUAGES, [SHARED, STATIC], ["plain"]))
#: The tools look at the library's code and the programs' memory: each language and each library once.
BY_TOOLS = [(*build, tool) for tool in ("addresses", "valgrind") for build in (("c11", SHARED), ("c++17", STATIC))]

every_build = pytest.mark.parametrize("library", [SHARED, STATIC], ids=lambda library: library.suffix[1:])
every_run = pytest.mark.parametrize(
    ("language", "library", "tool"),
    PLAINLY + BY_TOOLS,
    ids=lambda value: value.suffix[1:] if isinstance(value, Path) else value,
)


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session", autouse=True)
def _library():
    """The library of these very sources; at no cost if it is there."""
    run("make", "--silent", "c-library", cwd=ROOT)


def linked(library):
    if library == STATIC:
        return [library, *(BUILT / "native-static-libs").read_text(encoding="utf-8").split()]
    return [f"-L{BUILT}", "-lravine", f"-Wl,-rpath,{BUILT}"]


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """Build one of the programs, once."""
    folder = tmp_path_factory.mktemp("capi")

    @functools.cache
    def build(language, library, sanitized):
        compiler, standard, source = LANGUAGES[language]
        built = folder / f"{language}-{library.suffix[1:]}-{sanitized}"
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if sanitized else []
        run(
            compiler,
            *standard,
            *STRICT,
            *sanitizers,
            f"-I{HEADER.parent}",
            source,
            "-o",
            built,
            *linked(library),
            "-lm",
        )
        return built

    return build


def execute(program, language, library, tool, *arguments):
    """Run a program under a tool that finds nothing to say."""
    if tool == "valgrind" and not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    before = ["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite"]
    # It runs one thread at a time; without the last, one that spins may keep the one it waits for from running.
    before += ["--show-leak-kinds=definite", "--child-silent-after-fork=yes", "--fair-sched=yes"]
    # What is too large to be had is refused by malloc, too; and it is to be NULL there, not an abort.
    environment = {"ASAN_OPTIONS": "allocator_may_return_null=1", "RAVINE_NUM_THREADS": "2"}
    built = program(language, library, tool == "addresses")
    run(*(before if tool == "valgrind" else []), built, *arguments, env=os.environ | environment)


ENVIRONMENT = """
import ctypes, sys
c = ctypes.CDLL(sys.argv[1])
c.rv_last_error.restype, c.rv_instruction_set.restype = ctypes.c_char_p, ctypes.c_char_p
c.rv_rules.restype = ctypes.POINTER(ctypes.c_char_p)
norm, optimizer = ctypes.c_double(-7), ctypes.c_void_p()
for status in (c.rv_global_norm(None, ctypes.c_size_t(0), ctypes.byref(norm)),
               c.rv_optimizer_new(b"sgd", ctypes.c_size_t(1), ctypes.byref(optimizer))):
    print(status, c.rv_last_error().decode())
c.rv_optimizer_free(optimizer)
print(norm.value, bool(optimizer), c.rv_rules()[0] is not None, c.rv_num_threads() > 0, c.rv_instruction_set().decode())
"""


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("RAVINE_SIMD", "sse9", "one of baseline, avx2, avx512, in any case"),
        ("RAVINE_NUM_THREADS", "abc", "a whole number >= 1"),
    ],
)
def test_an_environment_variable_that_says_nothing_is_a_status_of_every_call(name, text, expected):
    refused = f'13 {name}: expected {expected}, got "{text}"'
    printed = run(sys.executable, "-c", ENVIRONMENT, SHARED, env=os.environ | {name: text}).splitlines()
    assert printed[:2] == [refused, refused]
    assert printed[2].startswith("-7.0 False True True ")
    fine = run(sys.executable, "-c", ENVIRONMENT, SHARED, env=os.environ | {"RAVINE_SIMD": "BaseLine"}).splitlines()
    assert fine == ["0 ", "0 ", "0.0 True True True baseline"]


# The calls, as tests/capi/program.h reads them, and what Python says they give


def buffer_of(array):
    """The bytes from an array's first to its last, and how far in its first element lies."""
    if array.flags.c_contiguous:
        return np.frombuffer(array.tobytes(), np.uint8), 0
    low, high = np.lib.array_utils.byte_bounds(array)
    whole = array
    while whole.base is not None:
        whole = whole.base
    start = np.lib.array_utils.byte_bounds(whole)[0]
    return np.frombuffer(whole.tobytes(), np.uint8)[low - start : high - start], array.__array_interface__["data"][
        0
    ] - low


CODES = {np.dtype(np.float64): 1, np.dtype(np.float32): 2, np.dtype(np.float16): 3, np.dtype(ml_dtypes.bfloat16): 4}
#: Those of states, of which NumPy has bfloat16 numbers as their bits.
CODES |= {np.dtype(np.uint16): 4, np.dtype(np.int8): 5, np.dtype(np.uint8): 6}


def written(array):
    """A tensor as the program reads it; None: a zeroed one."""
    if array is None:
        return struct.pack("5Q", 0, 0, 0, 0, 0)
    data, offset = buffer_of(array)
    strided = not array.flags.c_contiguous
    head = struct.pack("5Q", CODES[array.dtype], array.ndim, strided, offset, len(data))
    strides = struct.pack(f"{array.ndim}q", *array.strides) if strided else b""
    return head + struct.pack(f"{array.ndim}Q", *array.shape) + strides + data.tobytes()


class Calls:
    """What the program is to do; the results that are expected; and the arrays, as they are to be afterwards."""

    def __init__(self):
        self.count, self.script, self.expected, self.names = 0, bytearray(), [], []

    def add(self, name, texts, integers, numbers, arrays, call):
        """Write down a call with these arrays, then make it: `call` changes them and returns the numbers expected."""
        self.count += 1
        self.script += struct.pack("4Q", len(texts) + 1, len(integers), len(numbers), len(arrays))
        for text in [name, *texts]:
            self.script += struct.pack("Q", len(text)) + text.encode()
        self.script += struct.pack(f"{len(integers)}Q", *integers) + struct.pack(f"{len(numbers)}d", *numbers)
        self.script += b"".join(written(array) for array in arrays)
        results = b"".join(np.asarray(result).tobytes() for result in call())
        after = [(array.dtype, buffer_of(array)[0]) for array in arrays if array is not None]
        self.expected.append((f"{name} {texts} {integers} {numbers}", results, after))

    def check(self, output):
        """Compare the bits, and any NaN with any NaN."""
        stream = io.BytesIO(output)
        for what, results, after in self.expected:
            got = stream.read(len(results))
            assert same(np.float64, got, results), f"{what}: results {got.hex()}, expected {results.hex()}"
            for i, (dtype, data) in enumerate(after):
                assert same(dtype, stream.read(len(data)), data.tobytes()), f"{what}: array {i}"
        assert stream.read() == b""


def same(dtype, got, expected):
    if got == expected or len(got) != len(expected):
        return got == expected
    got, expected = np.frombuffer(got, dtype), np.frombuffer(expected, dtype)
    bits = f"u{got.dtype.itemsize}"
    return bool(((got.view(bits) == expected.view(bits)) | ((got != got) & (expected != expected))).all())


def arrays_like(rng, shapes, dtype, layout):
    for shape in shapes:
        made = rng.standard_normal(shape).astype(dtype)
        if layout == "strided" and made.ndim == 2:
            wide = np.zeros((made.shape[1] + 1, 2 * made.shape[0]), dtype)
            view = wide[1:, ::-2].T
            view[...] = made
            made = view
        yield made


def add_steps(calls, rule, dtype, hyper, options, layout, shapes, rng, *, kept=None, rounding="nearest"):
    params = list(arrays_like(rng, shapes, dtype, layout))
    compute = np.float64 if dtype == np.float64 else np.float32
    states = [state for p in params for state in zero_states(rule, p.shape, compute, states=kept)]
    common = {"l2": 0.01, "maximize": 1.0, "weight_decay": 0.1} if options else {}
    if options and "weight_decay" not in RULES[rule]["hyperparameters"]:
        common |= {"decay_after": 1.0, "decay_unscaled": 1.0}
    hyper = (
        {**hyper, **common}
        if "weight_decay" not in RULES[rule]["hyperparameters"]
        else {"weight_decay": 0.2} | hyper | common
    )
    kinds = [dtype, np.float16, ml_dtypes.bfloat16] if dtype == np.float32 else [dtype] * 3
    grads = [list(arrays_like(rng, shapes, kind, layout)) for kind in kinds]
    if options:
        grads[1][0] = None if len(params) > 1 else grads[1][0]  # a step without any raises
        grads[2][-1].reshape(-1)[-2:] = np.inf, np.nan
    limits = {"clip_value": 0.9, "clip_norm": 0.7, "clip_eps": 0.01, "nonfinite": 1.0} if options else {}
    scale = {"grad_scale": 1.7} if options else {}

    def call():
        policy = {"nonfinite": "skip"} if options else {}
        made = engine(rule, params, hyper, **limits | policy, states=kept, rounding=rounding)
        for step in grads:
            info = made.step(step, **scale)
            bad = info.nonfinite or {}
            norm = np.nan if info.grad_norm is None else info.grad_norm
            yield from (np.uint64(info.step), info.lr, norm, np.uint64(info.skipped), np.uint64(len(bad)))
            yield from (np.array(bad.get(str(i), (0, 0)), np.uint64) for i in range(len(params)))
            yield np.array(made.updates, np.uint64)
        for own, theirs in zip(states, [s for states in made.states for s in states], strict=True):
            own[...] = theirs

    storage = {"states": float(STATES.index(kept)), "rounding": float(rounding == "stochastic")}
    integers = [len(params), len(grads), len(hyper)]
    numbers = [*hyper.values(), *limits.values(), *scale.values(), *storage.values()]
    every = [*params, *states, *(g for step in grads for g in step)]
    calls.add("steps", [rule, *hyper, *limits, *scale, *storage], integers, numbers, every, call)


#: As C numbers them.
STATES = (None, "bfloat16", "8bit")


DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def step_calls(few):
    """All rules, dtypes and layouts, with the whole pipeline and without; and once enough for several threads."""
    calls, rng = Calls(), np.random.default_rng(1)
    for rule in RULES:
        for dtype in DTYPES:
            for i, hyper in enumerate(itertools.islice(hyper_sets(rule), 1 if few else None)):
                for options in (False, True):
                    layout = "strided" if i % 2 or (few and options) else "plain"
                    add_steps(calls, rule, dtype, hyper, options, layout, [(5, 7), (3,), (), (0, 2), (41,)], rng)
    hyper = next(hyper_sets("adam"))
    add_steps(calls, "adam", np.float32, hyper, True, "plain", [(40_000,), (3,), (200, 100)], rng)
    for rule, kept in itertools.product(["adam", "adan", "novograd"] if few else RULES_WITH, STATES[1:]):
        for dtype, rounding in ((np.float32, "nearest"), (ml_dtypes.bfloat16, "stochastic")):
            how = {"kept": kept, "rounding": rounding}
            shapes = [(5, 7), (3,), (), (0, 2), (17, 31)]
            add_steps(calls, rule, dtype, next(hyper_sets(rule)), True, "strided", shapes, rng, **how)
    add_steps(calls, "sgd", ml_dtypes.bfloat16, {"lr": 0.1}, True, "plain", [(300,)], rng, rounding="stochastic")
    return calls


def list_calls():
    """Norms and passes over lists of tensors."""
    calls, rng = Calls(), np.random.default_rng(2)
    shapes = [(5, 7), (), (0, 3), (70, 130)]
    for dtype in DTYPES:
        for layout in ("plain", "strided"):
            arrays = list(arrays_like(rng, shapes, dtype, layout))
            calls.add("norm", [], [], [], arrays, lambda a=arrays: [rv.global_norm(a)])
            calls.add("clip", [], [], [3.7], arrays, lambda a=arrays: [rv.clip_by_global_norm_(a, 3.7)])
            calls.add("clip", [], [], [1e9], arrays, lambda a=arrays: [rv.clip_by_global_norm_(a, 1e9)])

            def scale(arrays=arrays, dtype=dtype):
                compute = np.float64 if dtype == np.float64 else np.float32
                for a in arrays:
                    a[...] = (a.astype(compute) * compute(0.3)).astype(dtype)
                return []

            calls.add("scale", [], [], [0.3], arrays, scale)
            arrays[0][2, 3], arrays[3][69, 129], arrays[3][5, 5] = np.inf, np.nan, -np.inf
            calls.add("count", [], [], [], arrays, lambda: [np.uint64(3)])
    # A double is rounded to 16 bits once: ml_dtypes and NumPy do that for float16, and integers can for bfloat16.
    exact = np.array([[1 + 2.0**-11 + 2.0**-40, -1 - 2.0**-8 - 2.0**-45, 1e300], [np.nan, -np.inf, 3.0e-8]])
    for source in DTYPES:
        for target in DTYPES:
            with np.errstate(over="ignore"):
                given = exact.astype(source)
                expected = given.astype(target)
            if (source, target) == (np.float64, ml_dtypes.bfloat16):
                expected[0, 1] = -1 - 2.0**-7
            to = np.zeros(given.shape, target)

            def convert(to=to, expected=expected):
                to[...] = expected
                return []

            calls.add("convert", [], [], [], [given, to], convert)
    return calls


def norm_calls():
    """Batch and layer normalisation, forward and backward."""
    calls, rng = Calls(), np.random.default_rng(3)
    for dtype in (np.float32, np.float64):
        for shape, axis in [
            ((4, 3, 5, 5), 1),
            ((9, 6), 1),
            ((6, 9), 0),
            ((3, 4, 2), 2),
            ((80, 3, 20, 20), 1),
            ((0, 2), 1),
        ]:
            n = shape[axis]
            for affine in (False, True):
                x, dy, out, dx = (rng.standard_normal(shape).astype(dtype) for _ in range(4))
                weight, bias = (rng.standard_normal(n).astype(dtype) if affine else None for _ in range(2))
                mean, var = rng.standard_normal(n).astype(dtype), rng.random(n).astype(dtype)
                dw, db = np.zeros(n, dtype), np.zeros(n, dtype)
                for training, relu in itertools.product((True, False), repeat=2):
                    if training and x.size == 0:
                        continue
                    saved, name = [], "batch_norm_relu" if relu else "batch_norm"

                    def forward(of=(training, relu), arrays=(x, axis, weight, bias, mean, var), out=out, saved=saved):
                        saved[:] = _core.batch_norm(*arrays, of[0], 0.1, 1e-5, out, of[1])
                        return saved

                    arrays = [x, weight, bias, mean, var, out]
                    calls.add(name, [], [axis, training, n], [0.1, 1e-5], arrays, forward)

                    affine, outs = (weight, bias if relu else None), (dx, dw, db)

                    def backward(of=(training, relu), arrays=(dy, x, axis), affine=affine, outs=outs, saved=saved):
                        _core.batch_norm_backward(*arrays, affine[0], *saved, of[0], *outs, of[1], affine[1])
                        return []

                    arrays = [dy, x, weight, dx, dw, db, bias]
                    numbers = [*saved[0], *saved[1]]
                    calls.add(f"{name}_backward", [], [axis, training, n], numbers, arrays, backward)
        for shape, axes in [((4, 9), 1), ((3, 4, 5), 2), ((6,), 1), ((70, 600), 1), ((0, 2), 1)]:
            units, rows = shape[len(shape) - axes :], int(np.prod(shape[: len(shape) - axes]))
            for small in (units, (1,), None):
                x, dy, out, dx = (rng.standard_normal(shape).astype(dtype) for _ in range(4))
                weight, bias = (None if small is None else rng.standard_normal(small).astype(dtype) for _ in range(2))
                dw, db = (np.zeros(units if small is None else small, dtype) for _ in range(2))
                saved = []

                def forward(arrays=(x, axes, weight, bias), out=out, saved=saved):
                    saved[:] = _core.layer_norm(*arrays, 1e-5, out)
                    return saved

                calls.add("layer_norm", [], [axes, 0, rows], [0, 1e-5], [x, weight, bias, None, None, out], forward)

                def backward(arrays=(dy, x, axes, weight), outs=(dx, dw, db), saved=saved):
                    _core.layer_norm_backward(*arrays, *saved, *outs)
                    return []

                numbers = [*saved[0], *saved[1]]
                arrays = [dy, x, weight, dx, dw, db]
                calls.add("layer_norm_backward", [], [axes, 0, rows], numbers, arrays, backward)
    return calls


CALLS = {
    "steps": lambda: step_calls(few=False),
    "few steps": lambda: step_calls(few=True),
    "lists": list_calls,
    "norms": norm_calls,
}


@pytest.fixture(scope="session")
def calls(tmp_path_factory):
    """A list of calls and the file that says them, made once."""
    folder = tmp_path_factory.mktemp("calls")

    @functools.cache
    def make(name):
        made = CALLS[name]()
        path = folder / name
        path.write_bytes(struct.pack("Q", made.count) + made.script)
        return made, path

    return make


@every_run
def test_same_bits_as_python(language, library, tool, program, calls, tmp_path):
    for name in ("steps" if tool == "plain" else "few steps", "lists", "norms"):
        made, script = calls(name)
        execute(program, language, library, tool, "cases", script, tmp_path / "output")
        made.check((tmp_path / "output").read_bytes())


@every_run
def test_threads_and_forks(language, library, tool, program):
    execute(program, language, library, tool, "threads")


@every_run
def test_fault_26_everything_wrong_gives_its_status_and_modifies_nothing(language, library, tool, program):
    execute(program, language, library, tool, "faults")


# The header


def declared():
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    return set(re.findall(r"\b(rv_\w+)\(", text))


def exported(*command):
    return {line.split()[-1] for line in run("nm", "--defined-only", *command).splitlines() if " T " in line}


@every_build
def test_every_symbol_of_the_header_is_in_the_library_and_the_reverse(library):
    options = ["-D"] if library == SHARED else ["-g"]
    symbols = exported(*options, library)
    assert {name for name in symbols if name.startswith("rv_")} == declared()
    if library == SHARED:
        assert symbols == declared(), "exported, and not declared"


def test_the_extension_module_is_the_library_too():
    """Twice the same code would make the wheel too large."""
    assert exported("-D", _core.__file__) == declared() | {"PyInit__core"}


def test_the_library_needs_no_python():
    needed = run("readelf", "-d", SHARED)
    assert "libpython" not in needed
    first, second, _ = _core.__version__.split(".")
    assert f"libravine.so.{first}.{second}]" in needed or first != "0", (
        "its name has the part of the version that must not change"
    )
    assert not re.search(r" U _?Py", run("nm", "-D", SHARED))


def test_the_header_has_the_version_and_the_codes_of_the_sources():
    header, manifest = HEADER.read_text(encoding="utf-8"), (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    version = ".".join(re.findall(r"#define RV_VERSION_\w+ (\d+)", header))
    assert f'\nversion = "{version}"\n' in manifest
    numbers = re.findall(r"\b(RV_OK|RV_ERROR_\w+) = (\d+)", header)
    assert [int(number) for _, number in numbers] == list(range(14)), "fixed for ever"
    for name, limit in re.findall(r"#define (RV_MAX_\w+) (\d+)", header):
        assert f"const {name[3:]}: usize = {limit};" in (ROOT / "rust" / "capi.rs").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_example_in_the_header_compiles_and_runs(language, tmp_path):
    lines = HEADER.read_text(encoding="utf-8").splitlines()
    code = "\n".join(line.removeprefix(" *     ") for line in lines[2:11] if line.startswith(" *     "))
    compiler, standard, _ = LANGUAGES[language]
    source = tmp_path / f"example.{'c' if compiler == 'cc' else 'cpp'}"
    body = (
        '#include <ravine.h>\n#include <stdio.h>\nint main(void) {{\n{}\nprintf("%g %g %g\\n", w[0], w[1], w[2]);\n}}\n'
    )
    source.write_text(body.format(code), encoding="utf-8")
    run(compiler, *standard, "-Wall", "-Wextra", f"-I{HEADER.parent}", source, "-o", tmp_path / "a", *linked(STATIC))
    assert run(tmp_path / "a") == "0.9 1.9 2.9\n"


# Installed


@pytest.fixture(scope="session")
def prefix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    run("make", "--silent", "install-c", f"PREFIX={folder}", cwd=ROOT)
    return folder


@pytest.mark.parametrize("static", [False, True], ids=["shared", "static"])
def test_the_example_learns_with_the_installed_library(static, prefix, tmp_path):
    if not shutil.which("pkg-config"):
        pytest.skip("pkg-config is not installed")
    environment = os.environ | {
        "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig"),
        "LD_LIBRARY_PATH": str(prefix / "lib"),
    }
    flags = run("pkg-config", "--cflags", "--libs", *["--static"] * static, "ravine", env=environment).split()
    if static:
        flags = [str(prefix / "lib" / "libravine.a") if flag == "-lravine" else flag for flag in flags]
    source = ROOT / "examples" / "c" / "train.c"
    run("cc", "-std=c11", *STRICT, source, *flags, "-lm", "-o", tmp_path / "train")
    said = run(tmp_path / "train", env=environment)
    assert "15.0429 - 0.2322 t" in said, "the published fit"
    assert run("pkg-config", "--modversion", "ravine", env=environment).strip() == _core.__version__
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 66, "a page"


def test_the_example_in_python_reaches_its_goal(prefix):
    example = ROOT / "examples" / "c_from_python.py"
    assert run(sys.executable, example, prefix / "lib" / "libravine.so") == "[ 1.  -2.   0.5]\n"


def test_an_installation_without_the_library_says_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr("ravine.config.__file__", str(tmp_path / "config.py"))
    for ask in (rv.get_include, rv.get_library):
        with pytest.raises(FileNotFoundError, match="wheels for Linux have it; from its sources, make install-c"):
            ask()
    for name, ask in {"include/ravine.h": rv.get_include, "_core.abi3.so": rv.get_library}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert Path(ask()) in ((tmp_path / name), (tmp_path / name).parent)
