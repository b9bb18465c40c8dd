"""The command line as a person starts it: a process that is watched, stopped and never orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from curvfluence.cli import app
from curvfluence.errors import InputError
from curvfluence.runtime.child import CHILD
from curvfluence.runtime.unfinished import LONG, NOTHING, RETRAININGS, WHOLE, WORK, kept_by
from curvfluence.store.lock import HOLDER, LOCK, held, is_held
from curvfluence.study import StudySpec, run_study

pytestmark = [
    pytest.mark.xdist_group("supervise"),
    pytest.mark.skipif(os.name != "posix", reason="sessions are POSIX"),
]

OWN = """
import torch
from torch import nn
import curvfluence as cf

g = torch.Generator().manual_seed(0)
x = torch.randn(40, 3, generator=g)
y = (x[:, 0] > 0).long()
train, queries = cf.Examples(x[:30], y[:30]), cf.Examples(x[30:], y[30:])
recipe = cf.truth.Recipe(
    architecture=lambda: nn.Linear(3, 2), loss=cf.CrossEntropy(), optimizer=cf.truth.sgd(0.1),
    batch_size=10, epochs=2, weight_decay=1e-2,
)
run = cf.truth.Run(init_seed=0, order_seed=0)
trained = cf.truth.train(recipe, train, [run])
problem = cf.Problem(
    recipe.build(0), recipe.loss, train, queries, weights=trained.weights(0), weight_decay=1e-2
)
"""
STUDY = ["--subsets", "4", "--models", "1", "--rungs", "KFAC", "--no-progress", "--threads", "1"]


def start(words: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """`curvfluence WORDS` as the installed script starts it."""
    code = "import sys; from curvfluence.supervise import main; sys.exit(main())"
    own = {key: value for key, value in os.environ.items() if key != CHILD}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=cwd, text=True, env={**own, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], within: float = 60.0) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=within)
    finally:
        process.kill()
    return process.returncode, out, err


def busy(cwd: Path) -> list[int]:
    """Processes that work in a folder."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")) == cwd.resolve():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def until(condition: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


@pytest.mark.parametrize("words", [[], ["judge"]])
def test_usage_names_the_command_as_it_was_given(words: list[str], tmp_path: Path) -> None:
    code, out, _ = ended(start([*words, "--help"], tmp_path))
    assert code == 0
    assert f"Usage: {' '.join(['curvfluence', *words])} " in out


def test_every_command_that_runs_a_file_is_watched() -> None:
    """The others write a template, or read what a folder holds."""
    group: Any = typer.main.get_command(app)
    assert set(group.commands) - WORK == {"init", "runs"}


@pytest.mark.parametrize("command", ["index", "query"])
def test_a_file_that_ends_the_process_of_an_index(command: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import os; os._exit(0)\n")
    code, _, err = ended(start([command, "own.py"], tmp_path))
    assert code == 2
    assert "ended its process, with exit code 0" in err


class TestProblemFiles:
    """Whatever a file does to its process, the command ends with a sentence or its results."""

    @pytest.mark.parametrize(
        ("does", "code", "said"),
        [
            ("import os; os._exit(0)", 2, "ended its process, with exit code 0"),
            pytest.param(
                "import os; os.kill(os.getpid(), 9)",
                2,
                "ended by SIGKILL (not enough memory",
                marks=pytest.mark.slow,
            ),
            pytest.param(
                "import sys; sys.exit(0)",
                2,
                "the file ends the program (exit code 0)",
                marks=pytest.mark.slow,
            ),
            ("import os; os.fork()", 0, "the copy of the process that it forked ends here"),
            pytest.param(
                "import sys; sys.stdout.close(); sys.stderr.close()", 0, "", marks=pytest.mark.slow
            ),
            ("import os; os.close(1); os.close(2)", 0, ""),
            pytest.param(
                "import signal; signal.signal(signal.SIGALRM, signal.SIG_DFL); signal.alarm(1)",
                0,
                "",
                marks=pytest.mark.slow,
            ),
        ],
    )
    def test_what_it_does(self, does: str, code: int, said: str, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(OWN + does + "\n")
        got, out, err = ended(start(["study", "own.py", *STUDY], tmp_path))
        assert got == code, err
        assert said in err
        assert "Traceback" not in err
        assert ("KFAC" in out) == (code == 0)
        assert busy(tmp_path) == []

    def test_a_loop_that_nothing_ends(self, tmp_path: Path) -> None:
        loop = "while True:\n    try:\n        while True: pass\n    except BaseException: pass\n"
        (tmp_path / "own.py").write_text(loop)
        process = start(["study", "own.py", *STUDY], tmp_path, CURVFLUENCE_IMPORT="1")
        code, _, err = ended(process)
        assert code == 2
        assert "own.py has been running for 1 s and is ended" in err

    def test_the_limit_is_a_number(self, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(OWN)
        process = start(["study", "own.py", *STUDY], tmp_path, CURVFLUENCE_IMPORT="soon")
        code, _, err = ended(process)
        assert code == 2
        assert "CURVFLUENCE_IMPORT is the seconds that a problem file may take; seen 'soon'" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("study wine --retrain", WHOLE),
        ("--log-file x sweep wine", WHOLE),
        ("bank make wine b", WHOLE),
        ("bank verify b", NOTHING),
        ("advise wine", NOTHING),
        ("advise wine --retrain 8", RETRAININGS),
        ("advise wine --retrain=8", RETRAININGS),
        ("plan wine", NOTHING),
        ("report study", NOTHING),
        ("compare a b", NOTHING),
        ("query own.py", NOTHING),
        ("index own.py", WHOLE),
        ("attribute own.py", LONG),
        ("judge s.npy", LONG),
    ],
)
def test_what_is_said_of_a_command_that_did_not_finish(words: str, said: str) -> None:
    assert kept_by(words.split()) == said


class TestStopping:
    def test_a_command_that_keeps_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(
            "open('begun', 'w').close()\nimport time; time.sleep(99)\n"
        )
        process = start(["plan", "own.py"], tmp_path)
        until(lambda: (tmp_path / "begun").exists())
        process.send_signal(signal.SIGINT)
        code, _, err = ended(process)
        assert (code, NOTHING in err) == (130, True)

    @pytest.mark.parametrize(
        ("number", "code"),
        [
            (signal.SIGINT, 130),
            pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        ],
    )
    def test_within_two_seconds(self, number: signal.Signals, code: int, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(
            "import time, signal\n"
            "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            "open('begun', 'w').close()\n"
            "time.sleep(100)\n"
        )
        process = start(["study", "own.py", *STUDY], tmp_path)
        until(lambda: (tmp_path / "begun").exists())
        at = time.monotonic()
        process.send_signal(number)
        got, _, err = ended(process)
        assert got == code
        assert time.monotonic() - at < 2.5  # 2, and a busy machine
        assert "what is finished is kept, whole; the same command goes on from there" in err
        assert busy(tmp_path) == []

    @pytest.mark.parametrize("who", ["supervisor", pytest.param("child", marks=pytest.mark.slow)])
    def test_nobody_lives_on(self, who: str, tmp_path: Path) -> None:
        """A sweep in two processes, of which one that started others is killed."""
        words = ["sweep", "wine", "--epochs", "40,60,80,100", "--jobs", "2", "--no-progress"]
        process = start([*words, "--out", "s"], tmp_path)
        until(lambda: any(tmp_path.glob("s/cells/*/study.json")) or process.poll() is not None, 120)
        assert process.poll() is None, process.communicate()[1]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        child = next(
            int(c) for c in children if "-m" in Path(f"/proc/{c}/cmdline").read_text().split("\0")
        )
        os.kill(process.pid if who == "supervisor" else child, signal.SIGKILL)
        until(lambda: busy(tmp_path) == [], 5)
        code, _, err = ended(process)
        if who == "child":
            assert code == 2
            assert "it was ended by SIGKILL" in err


class TestLock:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        folder = tmp_path / "x"
        assert not is_held(folder)
        with held(folder):
            assert is_held(folder)
            said = rf"process {os.getpid()} on .* since 20.*--wait"
            with pytest.raises(InputError, match=said), held(folder):
                pass
        assert not is_held(folder)
        assert [p.name for p in folder.iterdir()] in ([LOCK], [])

    def test_the_second_command(self, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(OWN)
        with held(tmp_path / "runs/own"):
            refused = start(["study", "own.py", *STUDY], tmp_path)
            code, _, err = ended(refused)
            assert code == 2
            assert f"is being written by process {os.getpid()}" in err
            waiting = start(["study", "own.py", *STUDY, "--wait"], tmp_path)
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(4)
        code, out, err = ended(waiting)
        assert code == 0, err
        assert "KFAC" in out

    def test_it_dies_with_its_holder(self, tmp_path: Path) -> None:
        code = (
            "import sys, time; from pathlib import Path; from curvfluence.store.lock import held\n"
            "with held(Path('x')): open('begun', 'w').close(); time.sleep(100)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
        until(lambda: (tmp_path / "begun").exists())
        assert is_held(tmp_path / "x")
        process.kill()
        process.wait()
        (tmp_path / "x/.results.json.1.tmp").write_text("half")
        with held(tmp_path / "x"):
            assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [HOLDER, LOCK]

    def test_a_study_finished_meanwhile_is_read(self, tmp_path: Path) -> None:
        spec = StudySpec("wine", 4, models=1, orders=1, rungs=("KFAC",), bregman=False, costs=False)
        first = run_study(spec, tmp_path / "x")
        again = run_study(spec, tmp_path / "x", wait=True)
        assert again.reused
        assert again.results == first.results

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("a file")
        with pytest.raises(InputError, match="cannot write to"), held(tmp_path / "x"):
            pass
