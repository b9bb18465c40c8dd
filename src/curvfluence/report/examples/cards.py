"""Examples as the page's scripts take them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from curvfluence.problem.tree import Batched, Tree, named_leaves
from curvfluence.report.examples.seen import Features, Picture, Seen, Text, Words
from curvfluence.report.examples.shown import is_label, named_values, numbers_of
from curvfluence.study.problems.given import Given

PIXELS = 64  # longest side of a picture on a page
LONG = 600  # tokens of a text on a page
PARTS = 12  # numbers of a target up to which they are shown


def cards(seen: Sequence[Seen]) -> list[dict[str, Any]]:
    """What a script draws, for each example."""
    return [_card(one) for one in seen]


def _card(seen: Seen) -> dict[str, Any]:
    if isinstance(seen, Picture):
        height, width = seen.pixels.shape[:2]
        return {"image": uri(seen.pixels), "width": width, "height": height}
    if isinstance(seen, Words):
        more = len(seen.words) - LONG
        return {"words": list(seen.words[:LONG]), **({"more": more} if more > 0 else {})}
    if isinstance(seen, Text):
        return {"text": seen.text}
    return {"row": [[name, _short(value)] for name, value in seen.values]}


def scales(seen: Sequence[Seen]) -> dict[str, list[float]]:
    """Mean and standard deviation of each feature over those that are shown, by its name."""
    mean, std = numbers_of([one for one in seen if isinstance(one, Features)])
    return {name: [_rounded(mean[name]), _rounded(std[name])] for name in mean}


def true_labels(given: Given) -> dict[int, int | None]:
    """The examples whose labels are known to be wrong, and their true ones where those are."""
    wrong = given.flipped or ()
    return dict(zip(wrong, given.flipped_from or [None] * len(wrong), strict=True))


def uri(pixels: NDArray[np.uint8]) -> str:
    """A small PNG in a data URI."""
    image = Image.fromarray(pixels)
    longest = max(image.size)
    if longest > PIXELS:
        width, height = (max(1, round(side * PIXELS / longest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    out = BytesIO()
    image.save(out, format="PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(out.getvalue()).decode()}"


def label(target: Batched, unit: tuple[float, float] = (0.0, 1.0)) -> Any:
    """A class as its number; numbers as numbers, y in its own unit offset + scale · y; of a
    container each number behind its name; what has many parts as None."""
    if is_label(target):
        assert isinstance(target, Tensor)
        return int(target)
    parts = named_leaves(target)
    if not 0 < sum(leaf.numel() for _, leaf in parts) <= PARTS:
        return None
    if isinstance(target, Tree):
        return [
            f"{name} {_worded(value)}"
            for path, leaf in parts
            for name, value in named_values(path, leaf)
        ]
    if not target.is_floating_point():
        return None
    return [_rounded(unit[0] + unit[1] * value, 4) for value in target.flatten().tolist()]


def _worded(value: float | str) -> str:
    """Four digits and a true minus sign; whole numbers whole."""
    if not isinstance(value, float):
        return str(value).replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _short(value: float | str) -> float | str:
    if isinstance(value, str):
        return value if len(value) <= 80 else f"{value[:80]} …"
    if isinstance(value, int):
        return value
    return _rounded(value) if isfinite(value) else str(value)


def _rounded(value: float, digits: int = 3) -> float:
    """To that many digits, or to a whole number where that keeps more: a year stays a year."""
    if abs(value) >= 10.0 ** (digits - 1):
        return float(round(value)) if isfinite(value) else value
    return float(f"{value:.{digits}g}")
