"""Finished folders that are damaged in every way: refused, or the same content still."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curvfluence.banks import make_bank
from curvfluence.errors import InputError
from curvfluence.report import compare_studies
from curvfluence.report.again import write_again
from curvfluence.runs import kind_of
from curvfluence.runs.verify import READERS
from curvfluence.study import StudySpec, run_study
from curvfluence.study.run import run_together
from curvfluence.study.study import Study
from curvfluence.study.sweep import run_sweep
from curvfluence.truth.bank import Bank

SPEC = StudySpec("wine", 4, models=1, orders=1, bregman=False, rungs=("GGN", "KFAC"))
SHELL = 25  # one in so many is held before the command itself
Damage = Callable[[Path, random.Random], None]


def run(count: int, seed: int) -> dict[str, Any]:
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folders = _made(root)
        caught = 0
        for k in range(count):
            folder = folders[k % len(folders)]
            files = sorted(p for p in folder.rglob("*") if p.is_file() and _counts(p))
            file = generator.choice(files)
            damage = generator.choice(DAMAGES)
            damaged = root / "damaged"
            shutil.copytree(folder, damaged)
            damage(damaged / file.relative_to(folder), generator)
            said = _believed(damaged, folder, root, shell=k % SHELL == 0)
            caught += not said
            if said:
                place = file.relative_to(root)
                print(f"{damage.__name__} of {place} is believed by {', '.join(said)}", flush=True)
            shutil.rmtree(damaged)
    return {"corruptions": count, "corruptions_detected": caught}


def _counts(file: Path) -> bool:
    return file.suffix in (".json", ".npy") and not file.name.startswith(".")


def _made(root: Path) -> list[Path]:
    run_study(SPEC, root / "study", bank=root / "elsewhere")
    run_study(StudySpec("wine", 4, models=1, orders=1, seed=1), root / "other")
    base = StudySpec("wine", 4, models=1, orders=1, rungs=("KFAC",), bregman=False)
    run_sweep(base, {"epochs": [1, 2]}, root / "sweep", jobs=1)
    shutil.rmtree(root / "sweep/banks")  # which a sweep is not read from
    make_bank([base], root / "bank")
    return [root / "study", root / "sweep", root / "bank"]


def _believed(damaged: Path, folder: Path, root: Path, *, shell: bool) -> list[str]:
    """The commands that take a damaged folder for whole, of all that read one of its kind, each
    with a copy of its own; with `shell` one of them as a person gives it. Content that is equal is
    no corruption."""
    if not _differs(damaged, folder):
        return []
    kind, copy = kind_of(folder), root / "copy"
    assert kind is not None
    commands: dict[str, Callable[[], object]] = {"runs verify": lambda: READERS[kind](copy)}
    if kind in ("study", "sweep"):
        commands["report"] = lambda: write_again(copy)
    if kind == "study":
        elsewhere = root / "elsewhere"
        commands["compare"] = lambda: compare_studies([copy, root / "other"])
        commands["study"] = lambda: _require_read(run_study(SPEC, copy, bank=elsewhere))
        commands["sweep, claims"] = lambda: _require_read(
            *run_together([SPEC], [copy], bank=elsewhere)
        )
    if shell:
        words = ["runs", "verify"] if kind == "bank" else ["report"]
        commands["the shell"] = lambda: _shell([*words, str(copy)])
    return [name for name, read in commands.items() if not _refused(read, damaged, copy)]


def _refused(read: Callable[[], object], damaged: Path, copy: Path) -> bool:
    shutil.copytree(damaged, copy, symlinks=True)
    try:
        read()
    except InputError:
        return True
    finally:
        shutil.rmtree(copy)
    return False


def _require_read(study: Study) -> None:
    """A study that is made again was not taken for whole. Errors: `InputError`."""
    if not study.reused:
        raise InputError("it was made again")


def _shell(words: list[str]) -> None:
    """Errors: `InputError` where a command refuses, in a sentence."""
    done = subprocess.run(
        [sys.executable, "-m", "curvfluence", *words], capture_output=True, text=True
    )
    if done.returncode in (1, 2) and "Traceback" not in done.stderr:
        raise InputError(done.stdout + done.stderr)


def _differs(copy: Path, folder: Path) -> bool:
    try:
        return _content(copy) != _content(folder)
    except (InputError, ValueError, RecursionError, OSError):
        return True


def _content(folder: Path) -> Any:
    found: dict[str, Any] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and _counts(p)):
        place = str(file.relative_to(folder))
        found[place] = json.loads(file.read_text()) if file.suffix == ".json" else file.read_bytes()
    if (folder / "bank.json").is_file():
        Bank.read(folder)
    return found


def truncate(file: Path, generator: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: generator.randrange(len(data))])


def flip(file: Path, generator: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    file.write_bytes(data)


def blank(file: Path, generator: random.Random) -> None:
    data = bytearray(file.read_bytes())
    start = generator.randrange(len(data))
    stop = min(len(data), start + generator.randrange(1, 512))
    data[start:stop] = bytes(stop - start)
    file.write_bytes(data)


def append(file: Path, generator: random.Random) -> None:
    file.write_bytes(file.read_bytes() + generator.randbytes(generator.randrange(1, 40)))


def delete(file: Path, _: random.Random) -> None:
    file.unlink()


def swap(file: Path, generator: random.Random) -> None:
    """With another file of its kind beside it."""
    beside = sorted(p for p in file.parent.glob(f"*{file.suffix}") if p != file)
    if not beside:
        return truncate(file, generator)
    other = generator.choice(beside)
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)
    return None


def edit(file: Path, generator: random.Random) -> None:
    """A number of JSON, or of an array, becomes another; checksums stay as they were."""
    if file.suffix == ".npy":
        data = bytearray(file.read_bytes())
        data[-1 - generator.randrange(min(64, len(data) // 2))] ^= 1
        file.write_bytes(data)
        return
    value = json.loads(file.read_text())
    places = [at for at in _numbers(value) if at]
    if not places:
        return truncate(file, generator)
    *way, last = generator.choice(places)
    inner = value
    for key in way:
        inner = inner[key]
    inner[last] = inner[last] + 1 if inner[last] < 1 else 0.999
    file.write_text(json.dumps(value, indent=2))
    return None


def _numbers(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return []
    if isinstance(value, int | float):
        return [at]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [place for key, inner in items for place in _numbers(inner, (*at, key))]


def header(file: Path, generator: random.Random) -> None:
    """A header that promises what is not there, or nesting without end."""
    if file.suffix == ".npy":
        data = file.read_bytes()
        promise = generator.choice([b"(999999999, ", b"(-1, ", b"('a', ", b"((1,), "])
        file.write_bytes(data.replace(b"(", promise, 1))
        return
    hostile = ["[" * 100_000, '{"a":' * 50_000, "null", "[]", '"text"', "1e999", "NaN", ""]
    file.write_text(generator.choice(hostile))


def link(file: Path, _: random.Random) -> None:
    """A link to the very same content: not followed."""
    there = file.with_name(f"there{file.suffix}.kept")
    file.rename(there)
    file.symlink_to(there)


DAMAGES: tuple[Damage, ...] = (
    truncate, flip, blank, append, delete, swap, edit, edit, header, link,
)  # fmt: skip
