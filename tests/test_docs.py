"""What the documentation names exists: attributes of the package, files, tests and make targets."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path

import pytest

import curvfluence as cf

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])


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


@pytest.mark.parametrize("page", ["docs/data.md"])
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page, in their order, as a reader would type them into one session."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert blocks
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


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
