"""φ of all examples in files, read as memory maps and searched by products."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.indexing.extremes import Extremes
from curvfluence.indexing.records import REMEDY, IndexRecord, Shard
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

    @staticmethod
    def opened(folder: Path, record: IndexRecord, *, verify: bool) -> Shards:
        """Errors: `InputError` naming a file that is missing, of another shape or dtype than its
        index has or, with `verify` (which reads all of them), is not what was written."""

        def maps(what: str, dtype: str, *more: int) -> tuple[Tensor, ...]:
            found: list[Tensor] = []
            for k, shard in enumerate(record.shards):
                path, said = inside(folder, f"shards/{k:05d}.{what}.npy"), getattr(shard, what)
                if (said.shape, said.dtype) != ((shard.examples, *more), dtype):
                    raise InputError(
                        f"{path} is an array of {said.dtype} of shape {said.shape}, and its shard "
                        f"of {shard.examples} examples has {dtype}: {REMEDY}"
                    )
                found.append(_mapped(path, said, verify))
            return tuple(found)

        return Shards(maps("phi", record.dtype, record.dimension), maps("ids", "int64"))

    def search(self, phi_qd: Tensor, k: int) -> Extremes:
        """The `k` highest and lowest φ(g_q)·φ(g_n) of each query, up to a factor of its own, which
        float32 holds whatever the size of gradients. Cost: 2 Q N d operations, and all of φ is
        read."""
        found, start = Extremes(k), 0
        largest = phi_qd.abs().amax(1, keepdim=True)
        phi_dq = torch.where(largest > 0, phi_qd / largest, 0).float().T.contiguous()
        for shard in self.phi:
            for part in shard.split(SEARCHED):
                found.add(start, (part.float() @ phi_dq).T)
                start += len(part)
        return found


def read_ends(folder: Path, number: int, shard: Shard) -> tuple[Tensor, Tensor]:
    """(values, indices) of the exact scores that were kept with a shard, [2, S, k]."""
    if shard.ends is None or (shard.ends.dtype, len(shard.ends.shape)) != ("float64", 4):
        raise InputError(f"shard {number} of {folder} has no exact scores: {REMEDY}")
    path = inside(folder, f"shards/{number:05d}.ends.npy")
    values, indices = _mapped(path, shard.ends, verify=True)
    return values, indices.long()


def _mapped(path: Path, said: StoredArray, verify: bool) -> Tensor:
    return torch.from_numpy(map_stored(path, said, verify=verify, remedy=REMEDY))
