"""What the documentation names exists: attributes of the package, files, tests and make targets."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
import torch

import curvfluence as cf
from curvfluence.report.again import text_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
WITH_CODE = [page for page in PAGES if page.parent != ROOT and "\n```python\n" in page.read_text()]


def run_blocks(page: Path, fence: str = "python") -> None:
    """All blocks of a page, in their order, as a reader would type them into one session."""
    blocks = re.findall(rf"^```{fence}\n(.*?)^```", page.read_text(), re.M | re.S)
    assert blocks
    names: dict[str, object] = {"__name__": "page"}
    with torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
class TestPages:
    def test_names_of_the_package(self, page: Path) -> None:
        for name in set(re.findall(r"\bcf\.((?:\w+\.)*\w+)", page.read_text())):
            assert reduce(getattr, name.split("."), cf) is not None

    def test_links_to_files(self, page: Path) -> None:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), target

    def test_make_targets(self, page: Path) -> None:
        known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        for target in re.findall(r"^\s*make ([\w-]+)|`make ([\w-]+)", page.read_text(), re.M):
            assert set(target) - {""} <= known


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


def test_every_block_is_run() -> None:
    """No other fence of Python than those that are run here or, as they say, in test_models.py."""
    for page in PAGES:
        fences = set(re.findall(r"^ *```(py.*)$", page.read_text(), re.M))
        assert fences <= {"python", 'python title="with transformers"'}, page


def test_every_page_is_in_the_site() -> None:
    listed = re.findall(r"^ +- ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert len(listed) == len(set(listed))
    own = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}
    assert set(listed) == own | {"CONTRIBUTING.md", "CHANGELOG.md"}


def test_every_name_is_in_the_reference() -> None:
    text = (ROOT / "docs/api.md").read_text()
    for name in set(cf.__all__) - {"__version__"}:
        assert f"::: curvfluence.{name}\n" in text or f"## cf.{name}\n" in text, name


def test_the_page_of_commands_is_what_they_say() -> None:
    """Written by `python -m typer` and these words, with `--output docs/commands.md`."""
    asked = ("curvfluence.cli", "utils", "docs", "--name", "curvfluence", "--title", "Commands")
    made = subprocess.run(
        [sys.executable, "-m", "typer", *asked], capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs/commands.md").read_text().strip() == made.stdout.strip()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/structure.md"])
def test_files_that_they_name(page: str) -> None:
    """As a path from the root, or from the package."""
    named = re.findall(r"`((?:\w+/)+\w+\.(?:py|json|md))`", (ROOT / page).read_text())
    assert named
    for path in named:
        if "NAME" not in path:
            bases = (ROOT, ROOT / "src/curvfluence")
            assert any((base / path).is_file() for base in bases), path


def test_every_folder_has_its_line_in_the_structure() -> None:
    text = (ROOT / "docs/structure.md").read_text()
    for folder in (ROOT / "src/curvfluence").iterdir():
        if folder.is_dir() and (folder / "__init__.py").is_file():
            assert f"  {folder.name}/" in text


def test_the_papers_cells_are_what_their_tables_hold() -> None:
    """Every word and number of the page comes from `docs/table1/*.json`."""
    parts = sorted((ROOT / "docs" / "table1").glob("*.json"))
    made = text_of(parts).markdown("table1")
    assert (ROOT / "docs" / "table1.md").read_text(encoding="utf-8") == made


def test_claims_are_what_their_tables_hold() -> None:
    """Every word and number: the paper's own setting first, then the problems of this project."""
    parts = sorted((ROOT / "docs" / "table1").glob("*.json"))
    made = text_of([*parts, ROOT / "docs" / "claims" / "claims.json"]).markdown("claims")
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8") == made
