"""Commands that are killed at a random moment and given again: the same results, nobody left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from curvfluence.runs import kind_of, verify
from curvfluence.study.study import read_study
from tests.test_supervise import OWN, busy, ended, start

COMMANDS: dict[str, list[str]] = {
    "study": [
        "study", "wine", "--models", "2", "--subsets", "30", "--threads", "1", "--no-progress",
        "--out", "r",
    ],
    "sweep": [
        "sweep", "wine", "--epochs", "20,40", "--seed", "0,1", "--subsets", "8", "--models", "2",
        "--jobs", "2", "--no-progress", "--out", "r",
    ],
    "claims": [
        "claims", "wine", "--protocol", "table1", "--quick", "--depth", "1", "--width", "16",
        "--epochs", "10", "--jobs", "2", "--no-progress", "--out", "r",
    ],
    "attribute": ["attribute", "own.py", "--threads", "1", "--out", "r.html"],
    "audit": [
        "audit", "own.py", "--neighbours", "3", "--threads", "1", "--no-progress",
        "--out", "r.html", "--json", "r.json",
    ],
    "index": ["index", "own.py", "--threads", "1", "--no-progress", "--index", "r"],
    "judge": [
        "judge", "s.npy", "--problem", "wine", "--positive", "helps", "--subsets", "30",
        "--models", "2", "--against", "KFAC", "--threads", "1", "--no-progress",
        "--bank", "r", "--out", "r.json",
    ],
}  # fmt: skip


LONG = {
    "attribute": [
        "attribute", "large.py", "--beside", "KFAC", "--threads", "1", "--no-progress",
        "--out", "r.html",
    ],
}  # fmt: skip
LARGE = """
import torch
from torch import nn
import curvfluence as cf

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(784, 800), nn.Tanh(), nn.Linear(800, 400), nn.Tanh(),
                      nn.Linear(400, 10))
x, y = torch.randn(3100, 784), torch.randint(10, (3100,))
train, queries = (x[:3000], y[:3000]), (x[3000:], y[3000:])
problem = cf.Problem(model, cf.CrossEntropy(), train, queries, weight_decay=1e-3)
"""


def long(count: int, seed: int) -> dict[str, Any]:
    """Commands that take a minute or more, of which works are kept on the way."""
    return {f"long_{name}": value for name, value in run(count, seed, LONG).items()}


def run(count: int, seed: int, commands: dict[str, list[str]] = COMMANDS) -> dict[str, Any]:
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "own.py").write_text(OWN)
        (root / "large.py").write_text(LARGE)
        np.save(root / "s.npy", np.random.default_rng(0).normal(size=(36, 142)))
        wanted = {one: _reference(one, commands[one], root) for one in commands}
        same = orphans = 0
        repeated = 0.0
        for k in range(count):
            one = tuple(commands)[k % len(commands)]
            _empty(root)
            result, seconds = wanted[one]
            at, left = _killed(commands[one], root, generator, seconds)
            orphans += left
            _require_nothing_wrong(root)
            begun = time.monotonic()
            code, _, err = ended(start(commands[one], root), 600)
            took = time.monotonic() - begun
            repeated = max(repeated, at + took - seconds)
            good = code == 0 and _result(one, root) == result
            same += good
            if not good:
                print(f"kill {k} of {one} at {at:.2f} s: exit {code}: {err[-300:]}", flush=True)
    return {
        "kills": count,
        "kills_identical": same,
        "seconds_repeated_max": round(repeated, 1),
        "orphans": orphans,
    }


def _reference(one: str, words: list[str], root: Path) -> tuple[Any, float]:
    _empty(root)  # of another command
    begun = time.monotonic()
    code, _, err = ended(start(words, root), 600)
    assert code == 0, err
    return _result(one, root), time.monotonic() - begun


def _empty(root: Path) -> None:
    """Remove all that a command has written: r, r.html, r.json, r-steps."""
    for path in (*root.glob("r"), *root.glob("r[.-]*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _killed(
    words: list[str], root: Path, generator: random.Random, seconds: float
) -> tuple[float, int]:
    """Kill one of the command's processes by SIGKILL, SIGTERM or SIGINT after some time; when that
    was, and how many of its processes were there two seconds later."""
    process = start(words, root)
    after = generator.uniform(0, seconds)
    time.sleep(after)
    number = generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    victims = [process.pid]
    if number == signal.SIGKILL:  # of itself, of the child, of a worker
        victims = busy(root) or victims
    with contextlib.suppress(ProcessLookupError):
        os.kill(generator.choice(victims), number)
    if number == signal.SIGKILL and process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):  # without a worker it ends by itself
            process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.communicate()
    until = time.monotonic() + 4
    while busy(root) and time.monotonic() < until:
        time.sleep(0.05)
    left = busy(root)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return after, len(left)


def _require_nothing_wrong(root: Path) -> None:
    """What `verify` calls whole after a kill is read; what is not finished is said to be that."""
    if kind_of(root / "r") is None:
        return
    for one in verify(root / "r"):
        if one.fault is not None and "unfinished" not in one.fault:
            raise AssertionError(f"{one.path}: {one.fault}")


def _result(one: str, root: Path) -> Any:
    """The numbers of a finished command, to the last bit."""
    if one == "attribute":
        text = (root / "r.html").read_text()
        data = text.partition('id="answers-data">')[2].partition("</script>")[0]
        return unmeasured(json.loads(data))
    if one in ("audit", "judge"):
        found = json.loads((root / "r.json").read_text())
        # of the seal, and of how much the bank had already
        return unmeasured({k: v for k, v in found.items() if k not in ("sha256", "trained")})
    if one == "index":
        arrays = sorted((root / "r").rglob("*.npy"))
        return {str(file.relative_to(root)): file.read_bytes() for file in arrays}
    folders = [root / "r"] if one == "study" else sorted((root / "r/cells").iterdir())
    studies: dict[str, Any] = {}
    for folder in folders:
        study = read_study(folder)
        arrays = {name: a.sha256 for name, a in study.manifest.arrays.items()}
        studies[folder.name] = (study.results.digest, arrays)
    return studies


def unmeasured(value: Any) -> Any:
    """JSON without the seconds that something took."""
    if isinstance(value, dict):
        return {k: unmeasured(v) for k, v in value.items() if "seconds" not in k}
    if isinstance(value, list):
        return [unmeasured(v) for v in value]
    return re.sub(r"[0-9.]+ (ms|s)\b", "", value) if isinstance(value, str) else value
