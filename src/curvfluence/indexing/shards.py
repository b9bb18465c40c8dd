"""φ of all examples in files, read as memory maps and searched by products."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from curvfluence.indexing.extremes import Extremes
from curvfluence.indexing.records import REMEDY, Shard
from curvfluence.store.arrays import StoredArray, map_stored, write_array
from curvfluence.store.files import inside

SHARD = 2**16  # examples of a shard, at least; its last chunk goes in whole
SEARCHED = 2**14  # examples that a product of the search takes at a time


@dataclass(frozen=True, eq=False)
class Made:
    """A shard in memory."""

    phi: Tensor
    ids: Tensor
    ends: Extremes | None
    seconds: float


def write_shard(folder: Path, number: int, made: Made, key: str) -> Shard:
    """The files of a shard, and what they hold."""
    place = inside(folder, "shards")
    place.mkdir(exist_ok=True)

    def kept(what: str, tensor: Tensor) -> StoredArray:
        return write_array(place / f"{number:05d}.{what}.npy", tensor.numpy(), key)

    ends = None
    if made.ends is not None:
        both = torch.stack([made.ends.values.double(), made.ends.indices.double()])
        ends = kept("ends", both)
    phi, ids = kept("phi", made.phi), kept("ids", made.ids)
    return Shard(len(made.phi), phi, ids, ends, made.seconds)


@dataclass(frozen=True, eq=False)
class Shards:
    """The files of an index in order, as memory maps: φ [n, d] each, and ids."""

    phi: tuple[Tensor, ...]
    ids: tuple[Tensor, ...]
    scale: float

    @staticmethod
    def opened(folder: Path, shards: tuple[Shard, ...], scale: float, *, verify: bool) -> Shards:
        """Errors: `InputError` naming a file that is missing or, with `verify` (which reads all of
        them), is not what was written."""

        def maps(what: str) -> tuple[Tensor, ...]:
            return tuple(
                _mapped(inside(folder, f"shards/{k:05d}.{what}.npy"), getattr(one, what), verify)
                for k, one in enumerate(shards)
            )

        return Shards(maps("phi"), maps("ids"), scale)

    def search(self, phi_qd: Tensor, k: int) -> Extremes:
        """The `k` highest and lowest φ(g_q)·φ(g_n) of each query. Cost: 2 Q N d operations, and all
        of φ is read."""
        found, start = Extremes(k), 0
        phi_dq = (phi_qd * self.scale).float().T.contiguous()
        for shard in self.phi:
            for part in shard.split(SEARCHED):
                found.add(start, (part.float() @ phi_dq).T)
                start += len(part)
        return found


def read_ends(folder: Path, number: int, shard: Shard) -> tuple[Tensor, Tensor]:
    """(values, indices) of the exact scores that were kept with a shard, [2, S, k]."""
    assert shard.ends is not None
    path = inside(folder, f"shards/{number:05d}.ends.npy")
    values, indices = _mapped(path, shard.ends, verify=True)
    return values, indices.long()


def _mapped(path: Path, said: StoredArray, verify: bool) -> Tensor:
    return torch.from_numpy(map_stored(path, said, verify=verify, remedy=REMEDY))
