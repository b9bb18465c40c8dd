"""Retrainings by workers of joblib's backends: the same bytes as one process, whoever is lost."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import pytest

from curvfluence.cli.words import engine_of
from curvfluence.errors import InputError
from curvfluence.study import StudySpec, load, run_study
from curvfluence.study import make_bank as making
from curvfluence.study.cells import run_cells
from curvfluence.study.engines import Engine
from curvfluence.study.make_bank import make_bank
from curvfluence.study.study import read_study

SPEC = StudySpec("wine", 60, models=2, orders=2)
TASKS = 1 + 2 * 2 * 2  # the influence models, and two blocks of subsets of each start and order
pytestmark = pytest.mark.xdist_group("engines")


def numbers(bank: Path) -> dict[str, str]:
    """Every array of a bank, by name."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((bank / "entries").glob("*.npy"))
    }


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("plain") / "bank"
    make_bank([SPEC], place, threads=1)
    return numbers(place)


@pytest.mark.parametrize("name", ["loky", "dask", "ray"])
def test_the_same_bytes(name: str, wanted: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip({"dask": "distributed", "ray": "ray"}.get(name, "joblib"))
    told: list[int] = []

    @contextmanager
    def watch(stage: str, total: int) -> Generator[Any]:
        if stage.startswith("train by"):
            assert (stage, total) == (f"train by {name}", 2 + 240)
            yield told.append
        else:
            yield lambda _: None  # pyright: ignore[reportUnknownLambdaType]

    make_bank([SPEC], tmp_path / "bank", engine=Engine(name, 2), watch=watch)
    assert numbers(tmp_path / "bank") == wanted
    assert told == sorted(told)
    assert name == "ray" or told[-1] == 242


def test_what_is_there_is_not_made_again(
    wanted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bank([SPEC], tmp_path / "bank", threads=1)

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(making, "_round", never)
    make_bank([SPEC], tmp_path / "bank", engine=Engine("loky", 2))
    assert numbers(tmp_path / "bank") == wanted


@contextmanager
def killing(times: int, seed: int, pattern: str) -> Generator[list[int]]:
    """Kill one of the worker processes of this one at random moments, so many times."""
    psutil = pytest.importorskip("psutil")
    generator, killed, over = random.Random(seed), list[int](), threading.Event()

    def run() -> None:
        while len(killed) < times and not over.wait(generator.uniform(0.2, 0.8)):
            own = psutil.Process().children(recursive=True)
            workers = [p.pid for p in own if re.search(pattern, " ".join(p.cmdline()))]
            if workers:
                victim = generator.choice(workers)
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("name", "pattern"), [("dask", "spawn_main|dask worker"), ("loky", "loky")]
)
def test_killed_workers(name: str, pattern: str, wanted: dict[str, str], tmp_path: Path) -> None:
    """Each kill is of a worker at whatever it does: nothing is lost and no bit changes."""
    if name == "dask":
        pytest.importorskip("distributed")
    slower = StudySpec("wine", 60, models=2, orders=2)
    with killing(2, 3, pattern) as killed:
        make_bank([slower], tmp_path / "bank", engine=Engine(name, 2))
    assert numbers(tmp_path / "bank") == wanted
    assert killed


def test_a_round_that_ends_early_goes_on(
    wanted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine's own error after a few tasks, time after time."""
    real, rounds = making._round, list[int]()  # pyright: ignore[reportPrivateUsage]

    def short(left: list[Any], engine: Engine, told: Any) -> Exception:
        rounds.append(len(left))
        assert real(left[:3], engine, told) is None
        return RuntimeError("a worker was lost")

    monkeypatch.setattr(making, "_round", short)
    make_bank([SPEC], tmp_path / "bank", engine=Engine("loky", 1))
    assert numbers(tmp_path / "bank") == wanted
    assert rounds == [TASKS, TASKS - 3, TASKS - 6]  # what was made and not told of is not asked for


POISONED = """
import multiprocessing
import os
WORKER = multiprocessing.parent_process() is not None
"""


@pytest.mark.parametrize("name", ["loky", pytest.param("dask", marks=pytest.mark.slow)])
def test_workers_that_always_die(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that ends whatever process trains it but this one: an end, and why."""
    if name == "dask":
        pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    text = FILE.replace("RATE", "0.1").replace(
        "def build():\n", "def build():\n    if WORKER:\n        os._exit(1)\n"
    )
    (tmp_path / "mine.py").write_text(POISONED + text)
    spec = StudySpec("mine.py", 20, models=1, orders=1)
    said = {"loky": "lost its workers 3 times", "dask": "20 workers were lost at one task"}
    with pytest.raises(InputError, match=said[name]):
        make_bank([spec], Path("b"), problem=load("mine.py"), engine=Engine(name, 2))


def test_the_process_is_as_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Loggers, hooks and the environment: nothing on the standard error, of an error too, and
    nothing left set."""
    pytest.importorskip("distributed")
    names = ("distributed", "tornado", "asyncio")
    before = [logging.getLogger(one).level for one in names], sys.unraisablehook
    environment = dict(os.environ)
    with pytest.raises(KeyError, match="own"), Engine("dask", 1).running():
        raise KeyError("own")
    gc.collect()
    assert capfd.readouterr().err == ""
    assert ([logging.getLogger(one).level for one in names], sys.unraisablehook) == before
    assert dict(os.environ) == environment


def test_two_clusters_at_once(recwarn: pytest.WarningsRecorder) -> None:
    """Dask serves HTTP at one port for all, and warns where another has it."""
    pytest.importorskip("distributed")
    with Engine("dask", 1).running(), Engine("dask", 1).running():
        pass
    assert [str(one.message) for one in recwarn] == []


def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """Workers of Dask import it and would start workers themselves: all of them say what to do."""
    pytest.importorskip("distributed")
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from curvfluence.study import StudySpec\n"
        "from curvfluence.study.engines import Engine\n"
        "from curvfluence.study import engines\n"
        "from curvfluence.study.make_bank import make_bank\n"
        "engines.STARTS = 1\n"
        "spec, bank = StudySpec('wine', 50, models=1), Path(str(os.getpid()))\n"
        "make_bank([spec], bank, engine=Engine('dask', 1))\n"
    )
    options: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True}
    ran = subprocess.run([sys.executable, script.name], timeout=300, **options)
    assert ran.returncode
    assert "InputError: a worker imports the script that started it" in ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert "a worker of Dask was lost as it started" in last
    assert 'starts them under `if __name__ == "__main__":`' in last


def test_workers_of_dask_keep_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask has workers give it back at once, which costs a training a quarter of its time."""
    pytest.importorskip("distributed")
    name = "MALLOC_TRIM_THRESHOLD_"
    monkeypatch.delenv(name, raising=False)
    with Engine("dask", 2).running():
        found: Any = joblib.Parallel()(joblib.delayed(_variable)(name) for _ in range(2))
    assert [value for _, value in found] == [None, None]
    assert os.getpid() not in [process for process, _ in found]


def test_workers_of_dask_are_not_profiled() -> None:
    """Which stops every thread of theirs a hundred times a second, for pages that nobody sees."""
    pytest.importorskip("distributed")
    with Engine("dask", 2).running():
        found: Any = joblib.Parallel()(joblib.delayed(_profiled)() for _ in range(2))
    assert [on for _, on in found] == [False, False]
    assert os.getpid() not in [process for process, _ in found]
    assert _profiled()[1]


def _profiled() -> tuple[int, bool]:
    import dask.config

    return os.getpid(), dask.config.get("distributed.worker.profile.enabled")


def _variable(name: str) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get(name)


def test_nothing_is_ever_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RuntimeError("a worker was lost")
    calls: list[int] = []

    def never(left: list[Any], *_: object) -> Exception:
        calls.append(len(left))
        return lost

    monkeypatch.setattr(making, "_round", never)
    with pytest.raises(InputError, match=f"lost its workers {making.ROUNDS} times") as caught:
        make_bank([SPEC], tmp_path / "bank", engine=Engine("loky", 1))
    assert caught.value.__cause__ is lost
    assert calls == [TASKS] * making.ROUNDS


class TestStarts:
    """Of Dask's cluster, which does not come to be where a worker is killed as it starts: for
    retrainings and for studies alike."""

    def test_ten_are_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        distributed = pytest.importorskip("distributed")
        real, lost = distributed.LocalCluster, list[int]()

        def killed(**options: Any) -> Any:
            if len(lost) == 10:
                return real(**options)
            lost.append(options["n_workers"])
            raise RuntimeError("Nanny failed to start.")

        monkeypatch.setattr(distributed, "LocalCluster", killed)
        with Engine("dask", 2).running() as count:
            assert count == 2
        assert lost == [2] * 10

    def test_all_are_lost(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A study says it as a bank does, and not in Dask's words."""
        distributed = pytest.importorskip("distributed")
        lost = RuntimeError("Nanny failed to start.")

        def killed(**_: Any) -> Any:
            raise lost

        monkeypatch.setattr(distributed, "LocalCluster", killed)
        words = r"lost as it started, 12 times in a row \(Nanny failed to start\.\)"
        with pytest.raises(InputError, match=words) as caught:
            run_cells([SPEC], [tmp_path / "study"], engine=Engine("dask", 2))
        assert caught.value.__cause__ is lost
        with pytest.raises(InputError, match=words):
            make_bank([SPEC], tmp_path / "bank", engine=Engine("dask", 2))


FILE = """
import torch
from torch import nn
import curvfluence as cf
from curvfluence.truth import Recipe, sgd

torch.manual_seed(0)
x, y = torch.randn(60, 4), torch.randint(3, (60,))


def build():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


recipe = Recipe(build, cf.CrossEntropy(), sgd(RATE), batch_size=20, epochs=3)
trained = cf.truth.train(recipe, cf.Examples(x[:50], y[:50]), [cf.truth.Run(0, 0)])
problem = cf.Problem(
    build(), cf.CrossEntropy(), (x[:50], y[:50]), (x[50:], y[50:]), weights=trained.weights(0)
)
"""


def test_a_problem_file_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE.replace("RATE", "0.1"))
    spec = StudySpec("mine.py", 20, models=1, orders=1)
    make_bank([spec], Path("plain"), threads=1)
    make_bank([spec], Path("bank"), engine=Engine("loky", 2))
    assert numbers(Path("bank")) == numbers(Path("plain"))


def test_what_a_task_runs_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that its workers cannot load: their own error, not a lost worker."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE.replace("RATE", "0.1"))
    loaded = load("mine.py")
    (tmp_path / "mine.py").write_text("raise ValueError('not here')")
    spec = StudySpec("mine.py", 20, models=1)
    with pytest.raises(InputError, match="not here"):
        make_bank([spec], Path("b"), problem=loaded, engine=Engine("loky", 1))


def test_a_study(tmp_path: Path) -> None:
    """With an engine, and again with one: the same arrays."""
    spec = StudySpec("wine", 20, models=1, rungs=("KFAC",), bregman=False)
    plain = run_study(spec, tmp_path / "a", threads=1)
    by_engine = run_study(spec, tmp_path / "b", threads=1, engine=Engine("loky", 2))
    again = run_study(spec, tmp_path / "b", threads=1, engine=Engine("loky", 2), rerun=True)
    for made in (by_engine, again):
        assert plain.manifest is not None
        assert made.manifest is not None
        for name, array in plain.manifest.arrays.items():
            assert made.manifest.arrays[name].sha256 == array.sha256, name
    assert read_study(tmp_path / "b").results.digest == again.results.digest


@pytest.mark.parametrize("name", ["loky", "dask", "ray"])
def test_a_sweep(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip({"dask": "distributed", "ray": "ray"}.get(name, "joblib"))
    from curvfluence.study.sweep import run_sweep

    base = StudySpec("wine", 8, models=1, rungs=("KFAC",), bregman=False)
    found = [
        run_sweep(base, {"seed": [0, 1]}, tmp_path / place, jobs=2, engine=engine)
        for place, engine in (("a", None), ("b", Engine(name, 2)))
    ]
    lds = [[one.results.rungs[0].lds for one in sweep.studies] for sweep in found]
    assert lds[0] == lds[1]
    assert not list(tmp_path.rglob(".attempts-*"))


class TestRefused:
    def test_settings(self) -> None:
        for options, said in (
            ({"name": "slurm"}, "an engine is loky, dask, ray"),
            ({"name": "loky", "address": "tcp://a:1"}, "loky has no scheduler"),
            ({"name": "dask", "workers": 0}, "workers"),
            ({"name": "dask", "workers": 2, "address": "tcp://a:1"}, "has its own workers"),
            ({"name": "dask", "address": "a:1"}, "is like tcp://host:8786; seen 'a:1'"),
            ({"name": "dask", "address": "ucx://a:1"}, "is like tcp://host:8786"),
            ({"name": "ray", "address": "somewhere"}, "is like auto or ray://host:10001"),
        ):
            given: dict[str, Any] = options
            with pytest.raises(InputError, match=said):
                Engine(**given)
        assert engine_of(None, None, None) is None
        assert engine_of("dask", None, "tcp://a:1") == Engine("dask", None, "tcp://a:1")
        assert engine_of("dask", 2, None) == Engine("dask", 2)
        with pytest.raises(InputError, match="are of an engine"):
            engine_of(None, 2, None)

    @pytest.mark.parametrize(("name", "module"), [("dask", "distributed"), ("ray", "ray")])
    def test_not_installed(self, name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with (
            pytest.raises(InputError, match=f"pip install 'curvfluence.{name}.'"),
            Engine(name).running(),
        ):
            pass

    def test_nobody_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("distributed")
        monkeypatch.setattr("curvfluence.study.engines.REACHED", 1)
        start = time.monotonic()
        with (
            pytest.raises(InputError, match="no Dask scheduler answers"),
            Engine("dask", address="tcp://127.0.0.1:1").running(),
        ):
            pass
        assert time.monotonic() - start < 20

    @pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
    def test_no_ray_answers(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Told by a connection of ours, before Ray asks for minutes."""
        for name in ("ray", "ray.util", "ray.util.joblib"):
            module: Any = ModuleType(name)
            module.register_ray = None
            monkeypatch.setitem(sys.modules, name, module)
        start = time.monotonic()
        with (
            pytest.raises(InputError, match="no Ray cluster answers at "),
            Engine("ray", address=address).running(),
        ):
            pass
        assert time.monotonic() - start < 20

    def test_a_cluster_that_runs_already(self, wanted: dict[str, str], tmp_path: Path) -> None:
        distributed = pytest.importorskip("distributed")
        options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
        with distributed.LocalCluster(n_workers=0, **options) as cluster:
            engine = Engine("dask", address=cluster.scheduler_address)
            with pytest.raises(InputError, match="has no workers"), engine.running():
                pass
            cluster.scale(1)
            cluster.wait_for_workers(1)
            make_bank([SPEC], tmp_path / "bank", engine=engine)
            assert cluster.scheduler.workers  # it is still there
        assert numbers(tmp_path / "bank") == wanted

    def test_a_slice_of_an_engine(self, tmp_path: Path) -> None:
        from typer.testing import CliRunner

        from curvfluence.cli import app

        words = ["bank", "make", "wine", str(tmp_path / "b"), "--slice", "1/2", "--engine", "loky"]
        found = CliRunner().invoke(app, words)
        assert isinstance(found.exception, InputError)
        assert "a slice or an engine" in str(found.exception)
