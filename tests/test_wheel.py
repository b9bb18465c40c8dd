"""The package as it is built: installed away from the sources, it finds what it ships."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]
SHOWS = """
import sys
from pathlib import Path
import numpy as np
import curvfluence as cf
from curvfluence.banks import SHIPPED, verify_bank
place = Path(cf.__file__).parent
assert place.is_relative_to(sys.argv[1]), place
for bank in sorted(SHIPPED.iterdir()):
    print(bank.name, verify_bank(bank).retrainings)
n, q = 142, 36
found = cf.judge(np.ones((q, n)).cumsum(1), "wine", positive="helps",
                 beside=cf.judging.Beside(("Identity",), baselines=False))
print("trained", found.trained)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds, and nothing of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
        assert not [name for name in archive.namelist() if name.endswith(".pyc")]
    return folder / "site"


def ran(site: Path, cwd: Path, *words: str) -> str:
    """With the wheel's modules before all others."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_banks_are_found_and_judged_on(site: Path, tmp_path: Path) -> None:
    shown = ran(site, tmp_path, "-c", SHOWS, str(site))
    assert shown.split() == ["diabetes", "480", "wine", "480", "trained", "0"]
    assert not (tmp_path / "runs").exists()


def test_templates_and_pages(site: Path, tmp_path: Path) -> None:
    """A study with its report, an answer with its page, the template of a problem of one's own."""
    small = ["--subsets", "4", "--models", "1", "--rungs", "KFAC,EKFAC", "--no-progress"]
    ran(site, tmp_path, "-m", "curvfluence", "study", "wine", *small, "--out", "s")
    assert "<!doctype html>" in (tmp_path / "s/report.html").read_text()[:200].lower()
    ran(site, tmp_path, "-m", "curvfluence", "attribute", "wine", "--no-progress")
    assert (tmp_path / "explorer.html").stat().st_size > 10_000
    ran(site, tmp_path, "-m", "curvfluence", "init", "mine.py")
    assert "recipe" in (tmp_path / "mine.py").read_text()


def test_it_says_that_it_is_typed(site: Path) -> None:
    assert (site / "curvfluence/py.typed").is_file()
