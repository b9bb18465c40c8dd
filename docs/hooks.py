"""Links to files of the repository beside docs/ work in the site as they do in the repository.

A few of those files are added to the site, and links are followed as paths of the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*.py"))
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)")  # not an address, not a place on the page itself


def on_files(files: Any, config: Any) -> Any:
    for name in PAGES + SCRIPTS:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = page.file.src_uri
    source = here if here in PAGES else join("docs", here)

    def in_site(link: re.Match[str]) -> str:
        target = normpath(join(dirname(source), link[1])).removeprefix("docs/")
        return relpath(target, dirname(here) or ".")

    return LINK.sub(in_site, markdown)
