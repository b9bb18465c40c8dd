"""One look for every figure: a colour and a marker for each rung, the same everywhere.

Colours are those of Okabe and Ito (2008), and Paul Tol's muted scheme for hybrids; both are told
apart under the common kinds of colour blindness, and the markers without any colour.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INK, MUTED, PALE, RULE = "#1b1f24", "#5b6471", "#8c96a1", "#d5dae0"
# What the page calls each colour, so that figures follow its light and dark schemes.
VARIABLES = {INK: "--ink", MUTED: "--muted", PALE: "--pale", RULE: "--rule"}


@dataclass(frozen=True)
class Look:
    """How a rung is drawn. `dark` stands for `colour` on a dark page."""

    colour: str
    marker: str
    dark: str


_LOOKS = {
    "Hessian": Look("#cc79a7", "D", "#cc79a7"),
    "GGN": Look("#0072b2", "o", "#3d9bd9"),
    "BlockGGN": Look("#56b4e9", "s", "#8fd0f5"),
    "EKFAC": Look("#009e73", "^", "#1fbf92"),
    "KFAC": Look("#e69f00", "v", "#e69f00"),
    "Diagonal": Look("#d55e00", "P", "#e87a2a"),
    "Identity": Look("#6e6e6e", "X", "#b4b4b4"),
}
_SPARE = (
    Look("#999933", "<", "#c4c45a"),
    Look("#882255", ">", "#cc6a97"),
    Look("#44aa99", "p", "#5cc7b5"),
    Look("#332288", "h", "#8f80e0"),
    Look("#aa4499", "*", "#d276c3"),
    Look("#117733", "H", "#4fb06f"),
)
_SERIES = tuple(_SPARE[k] for k in (2, 3, 0, 1, 5, 4))


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each name: its own for a rung of the ladder, a spare one for any other."""
    others = [name for name in names if name not in _LOOKS]
    spare = {name: _SPARE[k % len(_SPARE)] for k, name in enumerate(others)}
    return {name: _LOOKS.get(name) or spare[name] for name in names}


def series(count: int) -> list[Look]:
    """Looks for things that are no rungs, such as studies."""
    return [_SERIES[k % len(_SERIES)] for k in range(count)]


def slug(name: str) -> str:
    """A name that CSS, HTML ids and file names take."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def css_variables() -> tuple[str, str]:
    """Declarations of every figure colour, for a light and for a dark page."""
    every = {look.colour: look.dark for look in (*_LOOKS.values(), *_SPARE)}
    light = "".join(f"{variable(colour)}:{colour};" for colour in every)
    dark = "".join(f"{variable(colour)}:{shade};" for colour, shade in every.items())
    return light, dark


def variable(colour: str) -> str:
    return VARIABLES.get(colour) or f"--c{colour[1:]}"


# One column of a paper: 3.5 inches. Text stays text in SVG, and is embedded as TrueType in PDF.
WIDTH = 3.5
SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "curvfluence",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "axes.unicode_minus": True,
}
