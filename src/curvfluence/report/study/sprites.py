"""Images of examples, many in one file."""

from __future__ import annotations

from io import BytesIO
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curvfluence.study.study import Study

_PIXELS = 48  # longest side of an image that is shown


def image_shape(study: Study) -> dict[str, int] | None:
    """Width and height of an image as shown."""
    images = _images(study, "train")
    if images is None:
        return None
    height, width = _thumbnail(images[0]).shape[:2]
    return {"width": width, "height": height}


def _images(study: Study, which: str) -> NDArray[np.uint8] | None:
    display = study.results.display
    if display is None or display.kind != "image":
        return None
    images = study.array(f"display.{which}")
    return None if images is None else images.astype(np.uint8)


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image, made smaller where its longest side has more than 48 pixels."""
    longest = max(image.shape[:2])
    if longest <= _PIXELS:
        return image
    height, width = (max(1, round(side * _PIXELS / longest)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def draw_sprites(
    study: Study, train: NDArray[Any], queries: NDArray[Any]
) -> tuple[bytes | None, bytes | None]:
    """One PNG of the training examples and one of the queries; None where they are no images."""
    made: list[bytes | None] = []
    for which, rows in (("train", train), ("queries", queries)):
        images = _images(study, which)
        made.append(None if images is None else _sprite(images[rows]))
    return made[0], made[1]


def _sprite(images: NDArray[np.uint8]) -> bytes:
    """All images in one PNG, in rows of ⌈√count⌉, as the page's script expects."""
    tiles = np.stack([_thumbnail(image) for image in images])
    across = isqrt(len(tiles) - 1) + 1
    height, width = tiles.shape[1:3]
    sheet = np.zeros(
        (-(-len(tiles) // across) * height, across * width, *tiles.shape[3:]), np.uint8
    )
    for k, tile in enumerate(tiles):
        top, left = k // across * height, k % across * width
        sheet[top : top + height, left : left + width] = tile
    out = BytesIO()
    Image.fromarray(sheet).save(out, format="PNG")
    return out.getvalue()
