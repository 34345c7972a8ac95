"""Make the extension module of a wheel the C library, too: its undefined Python symbols become weak.

A program without Python can then load it, and finds those symbols to be null; the module itself finds them in Python as
before. ``make wheel`` calls this: ``python rust/python/weaken.py dist/ravine-0.1.0-….whl``
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_ST_INFO_BIND


def weaken(library: Path) -> int:
    """Mark a library's undefined symbols of Python as weak, in place; return how many there are."""
    with library.open("r+b") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        places = [
            table["sh_offset"] + i * table["sh_entsize"]
            for i, symbol in enumerate(table.iter_symbols())
            if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name.startswith(("Py", "_Py"))
        ]
        for place in places:
            file.seek(place + 4)  # past st_name: the kind, and above it the binding
            kind = file.read(1)[0] & 0xF
            file.seek(place + 4)
            file.write(bytes([ENUM_ST_INFO_BIND["STB_WEAK"] << 4 | kind]))
    return len(places)


def main(wheel: Path) -> None:
    """Weaken the library of a wheel, and close the wheel again with the sums that belong to it."""

    def run(*words: str | Path) -> None:
        subprocess.run([sys.executable, "-m", "wheel", *words], check=True, stdout=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory() as folder:
        run("unpack", wheel, "--dest", folder)
        (library,) = Path(folder).glob("*/ravine/_core.abi3.so")
        print(f"{wheel.name}: {weaken(library)} symbols of Python are weak")
        run("pack", library.parent.parent, "--dest-dir", wheel.parent)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
