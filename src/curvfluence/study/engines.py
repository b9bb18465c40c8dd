"""Where retrainings run: the backends of joblib."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.store.files import append_line

ENGINES = ("loky", "dask", "ray")
REACHED = 20  # seconds in which a scheduler must answer
LOST = 10_000  # workers that Dask lets a task lose, since `attempt` counts them
ATTEMPTS = 20  # at one task, each of which its worker did not survive
STARTS = 12  # of a cluster, each of which loses a worker
GUARD = '`if __name__ == "__main__":`'
POLL, GONE = 1.0, 8.0  # seconds between two looks at workers, and for which there are none
ADDRESSES = {"dask": r"(tcp|tls)://.+:\d+", "ray": r"auto|(ray://)?.+:\d+"}
QUIET = ("distributed", "tornado", "asyncio", "bokeh")  # who tells of lost workers at length
ANY_PORT = "127.0.0.1:0"  # of the HTTP that Dask serves in any case, by default at one port for all
# What Dask sets for its workers, in this process's own environment. By the first they would give
# freed memory back at once, and a training takes as much again in its next step.
TRIM, SET = "MALLOC_TRIM_THRESHOLD_", "distributed.nanny.pre-spawn-environ"
PROFILE = "distributed.worker.profile.enabled"  # stops every thread a hundred times a second
VARIABLES = ("PYTHONHASHSEED", "__DASK_PARENT_PID")  # that it sets beside them


@dataclass(frozen=True)
class Engine:
    """`loky` (processes of this machine), `dask` or `ray`: so many `workers` of one thread each, by
    default as many as cores; or a cluster that runs already at `address` (`tcp://host:8786` of
    Dask's scheduler; `auto` or `ray://host:10001` of Ray). Workers on other machines must see the
    same folders under the same paths."""

    name: str = "loky"
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if kinds.text(self.name, "engine") not in ENGINES:
            raise InputError(f"an engine is {', '.join(ENGINES)}; seen {self.name!r}")
        if self.workers is not None:
            kinds.count(self.workers, "workers")
        if self.address is None:
            return
        if self.name == "loky":
            raise InputError("loky has no scheduler: give --engine dask or ray, or no address")
        if not re.fullmatch(ADDRESSES[self.name], kinds.text(self.address, "address")):
            like = "tcp://host:8786" if self.name == "dask" else "auto or ray://host:10001"
            raise InputError(f"an address of {self.name} is like {like}; seen {self.address!r}")
        if self.workers is not None:
            raise InputError(
                f"the cluster at {self.address} has its own workers: leave --workers out"
            )

    @contextmanager
    def running(self) -> Generator[int]:
        """joblib works by this engine within; how many workers there are. What was started for it
        is ended. Errors: `InputError` where it is not installed or cannot be reached."""
        with ExitStack() as stack:
            if self.name == "dask":
                count = stack.enter_context(_dask(self))
            elif self.name == "ray":
                count = stack.enter_context(_ray(self))
            else:
                count = self.workers or os.cpu_count() or 1
            stack.enter_context(joblib.parallel_config(backend=self.name, n_jobs=count))
            yield count


@contextmanager
def attempts(place: Path) -> Generator[Path]:
    """A folder in `place`, which all workers see, where `attempt` counts while work is done."""
    options: dict[str, Any] = {"dir": place, "prefix": ".attempts-", "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**options) as name:
        yield Path(name).resolve()


def attempt(counted: Path, work: str) -> None:
    """In a worker, before a task: joblib does not hear of one that Dask gives up, so tasks are
    never given up there, and know themselves how often they were begun.

    Errors: `InputError` where as many workers as are allowed did not survive it.
    """
    file = counted / work
    append_line(file, "begun")
    if len(file.read_text().split()) > ATTEMPTS:
        raise InputError(
            f"{ATTEMPTS} workers were lost at one task, one after the other: what is finished is "
            "kept, and the same command goes on; fewer workers take less memory"
        )


@contextmanager
def _dask(engine: Engine) -> Generator[int]:
    with _quiet(), ExitStack() as stack:
        stack.enter_context(_environment(*VARIABLES))
        try:
            import dask.config as settings
            from distributed import Client, LocalCluster
        except ImportError:
            raise InputError("dask is not installed: pip install 'curvfluence[dask]'") from None
        options = {
            "distributed.scheduler.allowed-failures": LOST,
            f"{SET}.{TRIM}": None,
            PROFILE: False,
        }
        stack.enter_context(settings.set(options))
        stack.enter_context(_environment(*settings.get(SET)))
        cluster: Any = engine.address
        if cluster is None:
            workers = engine.workers or os.cpu_count() or 1
            started: dict[str, Any] = {
                "n_workers": workers,
                "threads_per_worker": 1,
                "dashboard_address": None,
                "scheduler_kwargs": {"dashboard_address": ANY_PORT},
                "silence_logs": logging.CRITICAL,
            }
            _require_a_main_guard()
            with _interrupts_held():
                cluster = stack.enter_context(_started(lambda: LocalCluster(**started)))
                stack.enter_context(_manned(cluster, workers))
        try:
            if engine.address is not None:
                _require_answer(engine.address)
            client = stack.enter_context(Client(cluster, timeout=REACHED))
            found: Any = client.scheduler_info()
        except (OSError, OverflowError, ValueError, TypeError) as error:
            raise _unanswered(engine.address, error) from None
        count = sum(one["nthreads"] for one in found["workers"].values())
        if not count:
            raise InputError(f"the Dask scheduler at {engine.address} has no workers: start some")
        yield count


def _started(cluster: Callable[[], Any]) -> Any:
    """A cluster, which does not come to be where one of its workers dies as it starts."""
    lost: RuntimeError | None = None
    for _ in range(STARTS):
        try:
            return cluster()
        except RuntimeError as error:
            lost = error
    raise InputError(
        f"a worker of Dask was lost as it started, {STARTS} times in a row ({lost}): fewer workers "
        f"take less memory, and a script starts them under {GUARD}"
    ) from lost


def _require_a_main_guard() -> None:
    """A worker imports the script that starts it, which must not start workers as it is imported:
    `multiprocessing` says so at length, and who started it hears only that a worker is gone."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError(
            "a worker imports the script that started it and would start workers itself: put what "
            f"starts them under {GUARD}"
        )


@contextmanager
def _manned(cluster: Any, count: int) -> Generator[None]:
    """Workers are started again once all of them are gone: whoever watches one gives up where it
    dies as it starts, and tasks would wait for ever."""
    over = threading.Event()

    def watch() -> None:
        gone = 0
        while not over.wait(POLL):
            gone = 0 if cluster.scheduler.workers else gone + 1
            if gone * POLL >= GONE:
                cluster.scale(0)
                cluster.scale(count)
                gone = 0

    thread = threading.Thread(target=watch, name="curvfluence: workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _require_answer(address: str) -> None:
    """Before a client is made: Dask's tells of what it cannot reach when it is gone, and Ray's
    asks for minutes, each of which it says so. Errors: `OSError`, `OverflowError` for a port."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()


def _unanswered(address: str | None, error: Exception) -> InputError:
    return InputError(
        f"no Dask scheduler answers at {address} ({error}): start one with `dask scheduler` and "
        "workers with `dask worker`, or leave the address out"
    )


@contextmanager
def _quiet() -> Generator[None]:
    """Without what an engine's own threads say of workers that are gone; everything as it was
    afterwards."""
    held = {name: logging.getLogger(name).level for name in QUIET}
    told, clients = sys.unraisablehook, "Client.__del__"

    def without(found: Any) -> None:
        if clients not in str(getattr(found.object, "__qualname__", found.object)):
            told(found)

    sys.unraisablehook = without
    try:
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        yield
    finally:
        gc.collect()  # clients that an error held
        sys.unraisablehook = told
        for name, level in held.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _environment(*names: str) -> Generator[None]:
    """These variables as they were afterwards."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_held() -> Generator[None]:
    """Ctrl-C is this process's to hear: what is started within, and what its threads start, does
    not; here it is heard afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _ray(engine: Engine) -> Generator[int]:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError("ray is not installed: pip install 'curvfluence[ray]'") from None
    given: Any = ray
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if engine.address is None:
        options |= {"num_cpus": engine.workers, "include_dashboard": False}
    else:
        options |= {"address": engine.address}
    try:
        if engine.address is not None and ":" in engine.address:  # auto: Ray knows at once
            _require_answer(engine.address)
        given.init(**options)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise InputError(f"no Ray cluster answers at {engine.address} ({error})") from None
    try:
        register_ray()
        yield max(1, int(given.cluster_resources().get("CPU", 1)))
    finally:
        given.shutdown()
