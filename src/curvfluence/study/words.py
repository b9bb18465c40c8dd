"""Numbers as a reader sees them, on the page and in its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

from curvfluence.errors import listed as listed

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NONE = "–"


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Fixed digits and a true minus sign; a dash where there is no number."""
    if value is None:
        return NONE
    if not round(value, digits):
        value = 0.0
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(pair: Sequence[float | None] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Both ends, of which None is one at infinity."""
    if pair is None:
        return NONE
    ends = zip(pair, ("−∞", "∞"), strict=True)
    return " to ".join(end if x is None else number(x, digits, signed=signed) for x, end in ends)


def short(value: float | None) -> str:
    """Three significant digits; powers of ten beyond a thousandth or ten thousand."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    exponent = floor(log10(abs(value)) + 1e-9)
    if -4 < exponent < 5:
        text = f"{value:.{max(0, 2 - exponent)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return text.replace("-", "−")
    digits, _, power_of = f"{value:.2e}".partition("e")  # 10.0**exponent may be 0
    mantissa = digits.rstrip("0").rstrip(".").replace("-", "−")
    power = f"10{raised(int(power_of))}"
    return power if mantissa == "1" else f"{mantissa}·{power}"


def raised(exponent: int) -> str:
    """A power, as in 10⁻³."""
    return str(exponent).translate(_RAISED)


def dampings(pair: Sequence[float | None] | None) -> str:
    """One value, or two where the halves of the queries chose differently."""
    if pair is None or pair[0] is None:
        return NONE
    return " / ".join(dict.fromkeys(short(value) for value in pair))


def seconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


_PREFIXES = ("", "k", "M", "G", "T", "P")


def prefix(value: float) -> tuple[float, str]:
    """The power of a thousand that a size is told in, and its prefix: 1e9 and G."""
    step = 0
    while value >= 999.5 * 1000.0**step and step < len(_PREFIXES) - 1:
        step += 1
    return 1000.0**step, _PREFIXES[step]


def _with_unit(value: float | None, unit: str) -> str:
    if value is None:
        return NONE
    power, name = prefix(value)
    return f"{value / power:.3g} {name}{unit}"


def flops(value: float | None) -> str:
    return _with_unit(value, "FLOP")


def size(value: float | None) -> str:
    return _with_unit(value, "B")


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}".replace("-", "−")


def times(ratio: float) -> str:
    """How many times as much: 2.3 times, 140 times."""
    return f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:.0f} times"


def counted(count: int, noun: str) -> str:
    """1 eigenvalue, 2 eigenvalues."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def clipped(text: str, length: int) -> str:
    """The start and the end of a long text, which is where names differ."""
    if len(text) <= length:
        return text
    end = length // 3
    return f"{text[: length - end - 1].rstrip()}…{text[-end:].lstrip()}"


def setting(value: float | str | None) -> str:
    """A value of an axis: a number in short, a name as it is."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return short(value)
    return plain(value)


def plain(value: object) -> str:
    """A setting as text: lists by comma, missing values as none."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        items: Sequence[object] = value
        return ", ".join(plain(item) for item in items) or "none"
    return str(value)
