"""Odd words for every command: a usage message, a sentence, or the work that they ask for."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import typer

from curvfluence.cli import app
from curvfluence.cli.process import main
from tests.studies import make_study
from tests.torture.inputs import Hang, within

LIMIT = 10  # seconds
# Where a command has been understood and begins to work: there it is stopped.
WORK = (
    "curvfluence.study.run._common",
    "curvfluence.study.sweep.run.run_cells",
    "curvfluence.study.claims.run.run_cells",
    "curvfluence.study.claims.table1_run._retrain",
    "curvfluence.study.questions.run.train_models",
    "curvfluence.study.make_bank.train_models",
    "curvfluence.judging.run.train_models",
    "curvfluence.study.problems.given.train",
    "curvfluence.curvature.rung.discover",
    "curvfluence.study.costs.forecasts",
    "curvfluence.truth.trainer.spread",
)
TEXTS = (
    "", " ", "-", "--", "0", "-1", "1", "2", "3", "1.5", "1e400", "nan", "inf", "-inf", "1e-300",
    "99999999999999999999", "0x10", "yes", "both", "wine", "wien", "digits", "Wine", "EKFAC",
    "EKFAC[mc(0)]", "EKFAC[mc(1)]", "KFAC,GGN", "KFAC,,GGN", "relative(nan)", "relative(0.1)",
    "relative(", "0.5,0.7", "0.5;0.7", "float16", "float64", "clean", "paper", "table1", "frontier",
    "5m", "-5m", "5 years", "query,train", "train,query", "helps", "[bold]x[/]", "\u202egnp.exe",
    "Ωμέγα", "名前", "a" * 5000, "a/b/../../..", "/", "/proc/self/mem", "/dev/null", ".", "..",
    "none", "study", "empty", "file.txt", "link", "broken", "scores.npy", "strings.npy", "x.html",
    "x.json", "own.py", "bad.py", "ünïcode ordner", "study/results.json", "no/such/place",
    "\ud800", "a\nb", "a\tb", "%s%n", "{0}", "$HOME", "~", "*", "?", "\\", "'", '"', "NaN,NaN",
)  # fmt: skip

FITTING = {
    "--models": "8", "--subsets": "5", "--alpha": "0.6", "--seed": "3", "--depth": "1",
    "--width": "8", "--epochs": "2", "--rungs": "EKFAC,KFAC", "--threads": "1", "--jobs": "1",
    "--dtype": "float64", "--protocol": "clean", "--bank": "empty", "--out": "new", "--top": "3",
    "--query": "1", "--rung": "KFAC", "--damping": "1e-2", "--beside": "none", "--budget": "5s",
    "--orders": "2", "--queries": "5", "--removed": "0.1", "--neighbours": "3", "--again": "1",
    "--problem": "wine", "--positive": "helps", "--order": "query,train", "--units": "none",
}  # fmt: skip


class Reached(BaseException):
    """The words were understood."""


def run(count: int, seed: int) -> dict[str, Any]:
    generator = random.Random(seed)
    clear = reached = 0
    with place(), stopped_at_work():
        for k in range(count):
            said, worked = tried(words(generator))
            clear, reached = clear + (said is None), reached + worked
            if said is not None:
                print(f"{k} {said}", flush=True)
    return {"commands": count, "commands_clear": clear, "commands_reached_work": reached}


def words(generator: random.Random) -> list[str]:
    """A command and what may stand behind it; most values of the wrong kind."""
    group: Any = typer.main.get_command(app)
    found: list[str] = []
    while hasattr(group, "commands"):
        name = generator.choice(sorted(group.commands))
        found.append(name)
        group = group.commands[name]
    for one in group.params:
        if one.param_type_name == "argument":
            if generator.random() < 0.95:
                most = 3 if one.nargs == -1 else 1
                found += [_text(generator) for _ in range(generator.randint(1, most))]
        elif generator.random() < 3 / max(3, len(group.params)):
            found.append(generator.choice(one.opts))
            if not one.is_flag:
                fits = FITTING.get(one.opts[0]) if generator.random() < 0.6 else None
                found.append(_text(generator) if fits is None else fits)
    return [*found, "--no-progress"] if _takes(group, "--no-progress") else found


def _takes(command: Any, option: str) -> bool:
    return any(option in one.opts for one in command.params)


def _text(generator: random.Random) -> str:
    if generator.random() < 0.35:
        return "wine"
    if generator.random() < 0.1:
        return "".join(chr(generator.choice([*range(1, 127), 233, 0x3A9])) for _ in range(9))
    return generator.choice(TEXTS)


def tried(given: list[str]) -> tuple[str | None, bool]:
    """(what is wrong with how a command ended, None where nothing is; whether it came to work)."""
    out, err = io.StringIO(), io.StringIO()
    before = os.environ.copy(), os.getcwd(), signal.getsignal(signal.SIGINT)
    code: Any = None
    worked = False
    try:
        with (
            within(LIMIT),
            mock.patch.object(sys, "argv", ["curvfluence", *given]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            main()
    except SystemExit as ended:
        code = ended.code
    except Reached:
        worked = True
    except Hang:
        return f"{given}: no answer within {LIMIT} s", False
    except BaseException as error:
        return f"{type(error).__name__}: {error} of {given}"[:400], False
    if code not in (None, 0, 1, 2):
        return f"{given}: exit code {code}", False
    if code == 2 and not err.getvalue().strip():
        return f"{given}: refused without a word", False
    if (os.environ, os.getcwd(), signal.getsignal(signal.SIGINT)) != before:
        return f"{given}: environment, folder or handlers are not as found", False
    return None, worked


@contextmanager
def stopped_at_work() -> Generator[None]:
    def reached(*_: object, **__: object) -> None:
        raise Reached

    with contextlib.ExitStack() as stack:
        for name in WORK:
            stack.enter_context(mock.patch(name, reached))
        yield


@contextmanager
def place() -> Generator[Path]:
    """A folder with something of everything, which commands run in."""
    before = Path.cwd()
    root = Path(tempfile.mkdtemp())
    make_study(root / "study", full=False, train=20, queries=6)
    for name in ("empty", "ünïcode ordner"):
        (root / name).mkdir()
    (root / "file.txt").write_text("mine")
    (root / "link").symlink_to(root / "study")
    (root / "broken").symlink_to(root / "nowhere")
    np.save(root / "scores.npy", np.zeros((36, 142)))
    np.save(root / "strings.npy", np.array(["a", "b"]))
    (root / "own.py").write_text("problem = 3\n")
    (root / "bad.py").write_text("import nowhere\n")
    os.chdir(root)
    try:
        yield root
    finally:
        os.chdir(before)
        shutil.rmtree(root, ignore_errors=True)
