"""Install a wheel or a source distribution where nothing else is, and run the tests from there: ``make test-wheel``.

python tests/check_distribution.py dist/ravine-0.1.0-….whl [pytest's arguments]
"""

import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LARGEST = 3_000_000

ALONE = """
import sys, numpy as np, ravine as rv
w = np.ones(1000, np.float32)
assert rv.AdamW({"w": w}, lr=0.5, weight_decay=0.0).step({"w": w.copy()}).step == 1
assert np.allclose(w, 0.5), w
assert not {"scipy", "cupy", "torch", "sklearn", "matplotlib"} & set(sys.modules)
print("ravine", rv.__version__, "from", rv.__file__)
"""


C_LIBRARY = """
import ctypes, pathlib, ravine as rv
library = ctypes.CDLL(rv.get_library())
library.rv_version.restype = ctypes.c_char_p
assert library.rv_version().decode() == rv.__version__
assert "rv_optimizer_step" in pathlib.Path(rv.get_include(), "ravine.h").read_text(encoding="utf-8")
"""


def check_wheel(path):
    """What people need besides the code is in it, and it is small."""
    names = zipfile.ZipFile(path).namelist()
    for wanted in ("ravine/py.typed", "ravine/_core.pyi", "ravine/cuda/step.cu", "licenses/LICENSE"):
        assert any(name.endswith(wanted) for name in names), f"{path.name} lacks {wanted}"
    assert path.stat().st_size <= LARGEST, f"{path.name} has {path.stat().st_size} bytes"


def build_and_run_c(folder, python):
    """Let a C program use the wheel's library, without Python in its process."""

    def ask(what):
        found = subprocess.run(
            [python, "-c", f"import ravine; print({what})"], check=True, capture_output=True, text=True
        )
        return found.stdout.strip()

    program = Path(folder, "train")
    source = ROOT / "examples" / "c" / "train.c"
    flags = ["-I", ask("ravine.get_include()"), ask("ravine.get_library()"), "-lm"]
    subprocess.run(["cc", "-std=c11", "-Wl,-z,defs", source, *flags, "-o", program], check=True)
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert "15.0429 - 0.2322 t" in said, said
    print("a C program without Python:", said.splitlines()[-1])


def main(distribution, *arguments):
    """Check one distribution."""
    path = Path(distribution).resolve()
    if path.suffix == ".whl":
        check_wheel(path)
    manifest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")

        def run(*words):
            subprocess.run([python, *words], check=True, cwd=ROOT)

        run("-m", "pip", "install", "--quiet", path)
        listed = subprocess.run(
            [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
        )
        installed = {line.partition("==")[0] for line in listed.stdout.splitlines()}
        assert installed - {"pip", "setuptools", "wheel"} == {"numpy", "ravine"}, installed
        run("-c", ALONE)
        if path.suffix == ".whl":
            run("-c", C_LIBRARY)
            build_and_run_c(folder, python)
        run("-m", "pip", "install", "--quiet", *manifest["dependency-groups"]["test"])
        run("-m", "pytest", "-p", "no:cacheprovider", *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
