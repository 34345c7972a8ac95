"""Give the targets of `targets.py` inputs at random, for a while.

    python -m tests.fuzz SECONDS [TARGET ...] [--record FILE]

An input is a string of bytes, of which a target draws whatever it needs. One that shows something new, an error or a
result that no other had, is kept and changed further; the shortest of these are in corpus/, a line each. A target runs
in a process of its own, which a bug may end. An input that finds one is printed, and tried again by
``python -m tests.fuzz 0 TARGET=HEX``. Ends with 1 if there was a finding; --record adds a line for each target to a
table.
"""

import argparse
import hashlib
import os
import platform
import random
import re
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from tests.fuzz.draw import Draw

CORPUS = Path(__file__).parent / "corpus"
#: Of a corpus in the repository: its lines, and the bytes of one.
MOST, LONGEST = 150, 400
LOST = 3


def shape_of(text):
    """What is the same in messages that differ by numbers and names only."""
    return re.sub(r"'[^']*'|[-+0-9.e]+|\([^)]*\)", "#", text)[:200]


def changed(rng, corpus):
    """A new input: one of the corpus, changed a little, or two of them, or none."""
    if not corpus or rng.random() < 0.1:
        return rng.randbytes(rng.choice([8, 40, 200]))
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(5)
        if kind == 0:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 8]))
        elif kind == 1:
            del data[at : at + rng.choice([1, 2, 8])]
        elif kind == 2:
            other = rng.choice(corpus)
            data[at:] = other[rng.randrange(len(other) + 1) :]
        elif data:
            at = min(at, len(data) - 1)
            data[at] = rng.randrange(256) if kind == 3 else rng.choice([0, 1, 2, 127, 128, 255])
    return bytes(data[:2000])


def child(name, seconds, last):
    """Run one target; print a line for each finding, and the number of executions."""
    from tests.fuzz import targets

    target, path = targets.TARGETS[name], CORPUS / f"{name}.txt"
    kept = [bytes.fromhex(line) for line in path.read_text().split()] if path.exists() else []
    corpus, seen, findings, executions = [], {}, set(), 0
    rng = random.Random(os.urandom(8))
    file = os.open(last, os.O_WRONLY | os.O_CREAT, 0o600)
    end = time.monotonic() + seconds
    queue = kept[::-1]
    while queue or time.monotonic() < end:
        data = queue.pop() if queue else changed(rng, corpus)
        os.ftruncate(file, os.pwrite(file, data, 0))
        executions += 1
        try:
            shown = shape_of(str(target(Draw(data))))
        except Exception as error:
            shown = f"{type(error).__name__}: {shape_of(str(error))}"
            if shown not in findings and len(findings) < 20:
                print("FINDING", name, data.hex(), shown, flush=True)
                traceback.print_exc(limit=-4)
            findings.add(shown)
        if len(data) < len(seen.get(shown, bytes(10**6))):
            if shown in seen:
                corpus.remove(seen[shown])
            seen[shown] = data
            corpus.append(data)
    short = sorted((data for data in corpus if len(data) <= LONGEST), key=lambda data: (len(data), data))[:MOST]
    path.write_text("".join(f"{data.hex()}\n" for data in short if data))
    print("EXECUTIONS", executions, flush=True)


def run(name, seconds, folder):
    """Run a target in a process of its own, again and again if it dies; return seconds, executions and findings."""
    start, executions, findings = time.monotonic(), 0, []
    while (left := seconds - (time.monotonic() - start)) > 0 and len(findings) < LOST:
        last = folder / f"{name}.last"
        command = [sys.executable, "-m", "tests.fuzz", "--child", name, str(left), str(last)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        findings += [line for line in done.stdout.splitlines() if line.startswith("FINDING")]
        counts = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("EXECUTIONS")]
        executions += sum(counts)
        if done.returncode or not counts:
            findings.append(f"FINDING {name} {last.read_bytes().hex()} ended with {done.returncode}")
    return time.monotonic() - start, executions, findings


def main():
    """Run what the command line says."""
    if sys.argv[1:2] == ["--child"]:
        name, seconds, last = sys.argv[2:]
        return child(name, float(seconds), last)
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=float)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    from tests.fuzz import targets

    folder = Path(os.environ.get("FUZZ_FOLDER", "target/fuzz"))
    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for word in asked.targets or targets.TARGETS:
        name, _, data = word.partition("=")
        if data:
            print(targets.TARGETS[name](Draw(bytes.fromhex(data))))
            continue
        seconds, executions, findings = run(name, asked.seconds, folder)
        print(f"{name}: {seconds:.0f} s, {executions} executions, {len(findings)} findings", flush=True)
        print(*findings, sep="\n", end="\n" * bool(findings))
        failed = failed or bool(findings)
        if asked.record:
            library = hashlib.sha256(Path(targets.CORE).read_bytes()).hexdigest()[:8]
            with asked.record.open("a") as file:
                day = datetime.now(UTC).strftime("%Y-%m-%d")
                cells = (
                    day,
                    name,
                    f"{seconds:.0f}",
                    executions,
                    len(findings),
                    f"{platform.machine()}, core {library}",
                )
                file.write(f"| {' | '.join(map(str, cells))} |\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
