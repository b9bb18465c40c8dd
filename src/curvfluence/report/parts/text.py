"""A page as Markdown, and the pictures that it shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curvfluence.report.parts.figure import Figure, render
from curvfluence.report.parts.table import Table
from curvfluence.store.files import inside, replace_bytes, require_no_link
from curvfluence.store.folder import writing


@dataclass(frozen=True, eq=False)
class Text:
    """Paragraphs, tables under their captions, and figures, in order."""

    parts: tuple[str | Table | Figure, ...]

    def __add__(self, other: Text) -> Text:
        return Text((*self.parts, *other.parts))

    def markdown(self, pictures: str) -> str:
        """The text, with its figures as `<name>.svg` in the folder `pictures` beside it."""
        return "\n".join(_told(part, pictures) for part in self.parts)

    def write(self, path: Path, pictures: str) -> None:
        """Write the text to `path`, and its figures into the folder of that name beside it. Errors:
        `InputError` for a link at either, and where they cannot be written."""
        require_no_link(path)
        folder = inside(path.parent, pictures)
        with writing(path):
            for figure in self.parts:
                if isinstance(figure, Figure):
                    folder.mkdir(exist_ok=True)
                    render(figure).save_svg(folder)
            replace_bytes(path, self.markdown(pictures).encode())


def _told(part: str | Table | Figure, pictures: str) -> str:
    if isinstance(part, str):
        return f"{part}\n"
    if isinstance(part, Figure):
        marks = f" {part.marks[0].upper()}{part.marks[1:]}." if part.marks else ""
        return f"![{part.title}]({pictures}/{part.name}.svg)\n\n{part.reading}{marks}\n"
    return f"## {part.caption}\n\n{part.markdown}\n"
