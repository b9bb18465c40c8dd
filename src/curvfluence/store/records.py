"""Records on disk: one schema to write and to read by, and one error for what does not fit it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import msgspec

from curvfluence._version import __version__
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.store.files import replace_bytes, require_no_link

DEEPEST = 24  # levels of nesting; a record has 7, and a recipe describes itself in a few more
LARGEST = 2**28  # bytes of a file
LONGEST = 2**20  # letters of a text; the longest is a model's own description
SEAL = "sha256"  # the first key of every file: of all the rest


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Typed fields under the keys that JSON holds them by.

    `version_at` leads to the version of curvfluence that made the file, where it names one;
    `remedy` is what a reader of a file that does not fit can do.
    """

    version_at: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str] = "make it anew"


T = TypeVar("T", bound=Record)
_HALF = re.compile("[\ud800-\udfff]")  # JSON writes it down, and no file or terminal takes it


def write(path: Path, record: Record) -> str:
    """Replace `path` atomically, with a seal over all that it holds, which is returned. NaN is
    refused, by its name: a missing number is null; and so is what `read` would refuse."""
    value = as_json(record)
    unfit = _fault(value)
    if unfit is not None:
        raise NonFiniteError(f"{path.name} would hold {unfit}, which is nothing to keep")
    sealed = seal(value)
    text = json.dumps({SEAL: sealed, **value}, indent=2, allow_nan=False) + "\n"
    replace_bytes(path, text.encode())
    return sealed


def seal_of(record: Record) -> str:
    """The seal that `write` gives a record: the SHA-256 of its JSON."""
    return seal(as_json(record))


def seal(value: Mapping[str, Any]) -> str:
    """The SHA-256 of JSON, as `write` gives it: of keys and values, not of their layout."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(record: Record) -> dict[str, Any]:
    """The keys and values that JSON has of a record."""
    return msgspec.to_builtins(record, enc_hook=_built_in)


def read(path: Path, kind: type[T]) -> T | None:
    """The record in `path`, or None where there is no such file.

    Errors: `InputError` names the file, the place in it and what was seen, for a link, for text
    that is no JSON, for what another version made, for everything that the schema does not allow,
    and for a file that is not what was written, whatever still fits in it.
    """
    require_no_link(path)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} has more than {LARGEST:,} bytes: {kind.remedy}")
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): {kind.remedy}") from None
    try:
        value = json.loads(text, object_pairs_hook=_object)
        unfit = _fault(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}): {kind.remedy}") from None
    if unfit is not None:
        raise InputError(f"{path} does not fit: it holds {unfit}; {kind.remedy}")
    sealed = cast("dict[str, Any]", value).pop(SEAL, None) if isinstance(value, dict) else None
    _require_version(path, kind, value)
    try:
        found = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said = _placed(str(error), value)
        raise InputError(f"{path} does not fit: {said}; {kind.remedy}") from None
    if sealed is None:
        raise InputError(
            f"{path} has no {SEAL} of its content: an older version or somebody else made it; "
            f"{kind.remedy}"
        )
    if sealed != seal(value):
        raise InputError(
            f"{path} is not what was written: its {SEAL} is of other content; {kind.remedy}"
        )
    return found


def _built_in(value: object) -> object:
    """A number or text of a type of somebody's own, such as NumPy's floats, as Python's."""
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{value!r} of {type(value).__name__} has no place in JSON")


class _Repeated:
    """In place of an object that has a key twice: one of the two values would be lost."""

    def __init__(self, key: str) -> None:
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    return _Repeated(next(key for key in keys if keys.count(key) > 1))


def _fault(value: Any, at: str = "", depth: int = 0) -> str | None:
    """What JSON takes and a record does not: the first NaN or infinity, key that stands twice, text
    too long or of no letters, or level too deep, with its place."""
    if isinstance(value, str):
        return _unfit_text(value, at)
    if isinstance(value, float):
        return None if isfinite(value) else f"{at} = {value}"
    if isinstance(value, int):  # no float holds it, which older releases of msgspec stumble over
        return f"a number out of range at {at}" if abs(value) >= 2**1023 else None
    if isinstance(value, _Repeated):
        return f"{_short(value.key)} twice at {at or 'its top'}"
    if isinstance(value, Mapping):
        unfit = next((found for k in value if (found := _unfit_text(str(k), at))), None)
        if unfit is not None:
            return unfit
        named = ((f"{at}.{k}" if at else str(k), v) for k, v in cast(Any, value).items())
    elif isinstance(value, list | tuple):
        named = ((f"{at}[{k}]", v) for k, v in enumerate(cast(Any, value)))
    else:
        return None
    if depth == DEEPEST:
        return f"more than {DEEPEST} levels at {_short(at)}"
    return next((found for k, v in named if (found := _fault(v, k, depth + 1))), None)


def _unfit_text(text: str, at: str) -> str | None:
    if len(text) > LONGEST:
        return f"a text of {len(text):,} letters at {_short(at)}"
    return f"half of a letter at {_short(at)}" if _HALF.search(text) else None


def _require_version(path: Path, kind: type[Record], value: Any) -> None:
    if not kind.version_at:
        return
    for key in kind.version_at:
        value = cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else None
    if value != __version__:
        raise InputError(
            f"{path} was made by curvfluence {_short(value or 'of an unknown version')} and this "
            f"is {__version__}: {kind.remedy}, or use the version that made it"
        )


def _placed(error: str, value: Any) -> str:
    """msgspec's message with the place first and the value that stands there."""
    what, _, at = error.partition(" - at `$")
    at = at.rstrip("`")
    for key, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", at):
        try:
            value = value[key] if key else value[int(index)]
        except (KeyError, IndexError, TypeError):
            break
    seen = "" if isinstance(value, dict | list) else f", seen {_short(json.dumps(value))}"
    return f"at {at.lstrip('.') or 'its top'}: {what[0].lower()}{what[1:]}{seen}"


def _short(text: object) -> str:
    shown = str(text)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
