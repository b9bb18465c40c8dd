"""Where a command writes to: results, progress, errors and warnings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.text import Text

from curvfluence.errors import CurvfluenceError, CurvfluenceWarning, NotKeptError

if TYPE_CHECKING:
    from curvfluence.study.progress import Watcher


# What moves the cursor, changes colours or the order of letters, as a sign that does nothing; half
# of a pair, which no terminal takes, as the sign for what cannot be shown.
_SIGNS = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"},
    **dict.fromkeys(range(0x7F, 0xA0), 0x2421),
    **dict.fromkeys((0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}


@dataclass(frozen=True)
class _Harmless:
    inner: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self.inner, options):
            yield Segment(text if control else text.translate(_SIGNS), style, control)


class _HarmlessTexts(RenderHook):
    """Whatever is printed comes from folders and files that anybody made: none of it reaches the
    terminal as a command."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Harmless(one) for one in renderables]


def console(**options: Any) -> Console:
    """One that takes no text for markup and sends none as a command to the terminal."""
    made = Console(markup=False, emoji=False, **options)
    made.push_render_hook(_HarmlessTexts())
    return made


def plain(*, quiet: bool = False) -> Console:
    """Of results: as wide as the terminal, of one width in a file."""
    from curvfluence.report.terminal import WIDTH

    return console(width=None if sys.stdout.isatty() else WIDTH, quiet=quiet)


@contextmanager
def watching(no_progress: bool) -> Generator[Watcher]:
    """Progress bars on the terminal, or none."""
    from curvfluence.study.progress import bars, logged, silent

    if no_progress:
        yield logged(silent)
    else:
        with bars(console(stderr=True)) as watch:
            yield logged(watch)


@contextmanager
def shown_unkept(show: Callable[[Any], None], kind: type = object) -> Generator[None]:
    """Show results of that kind that could not be written where they were to be kept."""
    try:
        yield
    except NotKeptError as error:
        if isinstance(error.results, kind):
            show(error.results)
        raise


@contextmanager
def shown_after(show: Callable[[], None]) -> Generator[None]:
    """Show what was found once what is inside has written it, and as well where it could not."""
    try:
        yield
    except (CurvfluenceError, OSError):
        show()
        raise
    show()


def refuse(kind: str, text: str) -> NoReturn:
    said = Text.assemble((f"{kind}:", "bold red"), " ", text)
    console(stderr=True, soft_wrap=True).print(said)
    sys.exit(2)


def show_warning(otherwise: Callable[..., None], message: Warning | str, *about: Any) -> None:
    """A warning of ours as a sentence, without the place in the source that it comes from."""
    if isinstance(message, CurvfluenceWarning):
        console(stderr=True).print(Text(f"warning: {message}", style="yellow"))
    else:
        otherwise(message, *about)
