"""Folders that go away or cannot be written to, memory that is short: a sentence, nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from curvfluence.cli import process
from curvfluence.errors import InputError, NotKeptError
from curvfluence.runtime.memory import is_out_of_memory
from curvfluence.study import StudySpec, run_study

SPEC = StudySpec("wine", subsets=6, models=2, orders=1, replicates=200, rungs=("EKFAC", "KFAC"))
STAGES = ("train influence models", "climb the ladder", "retrain on subsets", "compare")


def at(stage: str, happens: Callable[[], object]) -> Callable[..., object]:
    """A watcher, at one of whose stages something happens."""

    @contextmanager
    def watch(name: str, total: int) -> Generator[Callable[[int], None]]:
        if name == stage:
            happens()
        yield lambda done: None

    return watch


class TestRemovedMeanwhile:
    @pytest.mark.parametrize("stage", STAGES)
    def test_is_said_and_not_made_again(self, stage: str, tmp_path: Path) -> None:
        out = tmp_path / "x"
        watch = at(stage, lambda: shutil.rmtree(out))
        with pytest.raises(InputError, match="was removed while this command worked") as error:
            run_study(SPEC, out, watch=watch)  # pyright: ignore[reportArgumentType]
        assert not out.exists(), "half a study would stand in the way of the next"
        if stage == "compare":  # all is there to be shown
            assert isinstance(error.value, NotKeptError)
            assert error.value.results.rungs[0].name == "EKFAC"
        assert run_study(SPEC, out).results.rungs[0].name == "EKFAC"


class TestReadOnly:
    def test_from_the_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on a file system that is mounted so: the superuser is refused there as well."""

        def refused(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(Path, "mkdir", refused)
        with pytest.raises(InputError, match=r"cannot write to .*Read-only file system"):
            run_study(SPEC, tmp_path / "x")

    @pytest.mark.parametrize("stage", STAGES)
    def test_from_a_stage_on(
        self, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system")

        def turn() -> None:
            for name in ("store.records.replace_bytes", "store.arrays.replace_file"):
                monkeypatch.setattr(f"curvfluence.{name}", refused)
            monkeypatch.setattr("curvfluence.truth.bank.replace_file", refused)

        with pytest.raises(InputError, match=r"cannot write to .*Read-only file system"):
            run_study(SPEC, tmp_path, watch=at(stage, turn))  # pyright: ignore[reportArgumentType]
        monkeypatch.undo()
        assert not run_study(SPEC, tmp_path).reused


class TestMemory:
    def test_errors_that_say_so(self) -> None:
        with pytest.raises(RuntimeError) as error:
            torch.empty(2**60, dtype=torch.uint8)
        assert is_out_of_memory(error.value)
        assert is_out_of_memory(MemoryError())
        assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        assert not is_out_of_memory(ValueError("can't allocate memory"))

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (MemoryError(), "memory is short. Take"),
            (
                RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
                ),
                "memory is short: 8 bytes could not be had. Take",
            ),
        ],
    )
    def test_the_command_says_what_to_do(
        self,
        error: Exception,
        said: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def failed(**_: object) -> None:
            raise error

        monkeypatch.setattr(process, "app", failed)
        with pytest.raises(SystemExit) as exit:
            process.main()
        assert exit.value.code == 2
        assert said in capsys.readouterr().err

    def test_other_errors_are_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def failed(**_: object) -> None:
            raise RuntimeError("a fault")

        monkeypatch.setattr(process, "app", failed)
        with pytest.raises(RuntimeError, match="a fault"):
            process.main()

    @pytest.mark.skipif(sys.platform != "linux", reason="a limit that Linux keeps")
    def test_under_a_limit(self, tmp_path: Path) -> None:
        """An address space too small for the factors: a sentence, no traceback."""
        (tmp_path / "wide.py").write_text(WIDE)
        loaded = subprocess.run(
            [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
        )
        limit = int(loaded.stdout) + 2**28
        done = subprocess.run(
            [sys.executable, "-m", "curvfluence", "attribute", "wide.py", "--no-progress"],
            cwd=tmp_path,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert done.returncode == 2, done.stderr
        assert "memory is short" in done.stderr
        assert "Traceback" not in done.stderr


# What a process takes that has loaded everything: in kB after the name.
LOADED = """
import torch, curvfluence.cli, curvfluence.explore, curvfluence.report.explorer
torch.randn(50, 50, requires_grad=True).sum().backward()
print(1024 * next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmPeak")))
"""
WIDE = """
import torch, curvfluence as cf
from torch import nn
model = nn.Sequential(nn.Linear(3000, 3000), nn.Tanh(), nn.Linear(3000, 3000), nn.Linear(3000, 10))
x, y = torch.randn(100, 3000), torch.randint(0, 10, (100,))
problem = cf.Problem(model, cf.CrossEntropy(), (x, y), (x[:5] + .1, y[:5]))
"""
