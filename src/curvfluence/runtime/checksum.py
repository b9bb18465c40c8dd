"""A cheap number for what tensors hold now."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

WIDTH = 512  # 64-bit words that are added up with a factor each
FACTORS = torch.randint(2**62, (WIDTH,), generator=torch.Generator().manual_seed(0)) | 1


def checksum(*tensors: Tensor | None) -> int:
    """One that differs where any value in any of the tensors does: also one written through
    `.data` or a NumPy view, which torch does not count.

    Every 64-bit word times an odd factor of its place, summed modulo 2⁶⁴ in pieces of 4 kB, then
    CRC-32 of the sums: a changed word always shows in its piece, and a missed change has a chance
    of 2⁻³². Cost: about twice the time of reading the tensors once, on their device.
    """
    found = 0
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type == "cpu" and tensor.nbytes < 8 * WIDTH and not tensor.is_conj():
            found = zlib.crc32(tensor.detach().numpy().tobytes(), found)  # as they lie, in order
            continue
        with torch.no_grad():
            flat = tensor.detach().contiguous().reshape(-1)
            held = flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)
            whole = len(held) // (8 * WIDTH) * 8 * WIDTH
            words = held[:whole].view(torch.int64).view(-1, WIDTH) if whole else None
            if words is not None:
                found = zlib.crc32(_summed(words), found)
            found = zlib.crc32(held[whole:].cpu().numpy().tobytes(), found)
    return found


def row_checksums(rows: Tensor) -> Tensor:
    """One 64-bit number for each row of a tensor, [N]: different ones have the same by chance only,
    about 2⁻⁶² a pair."""
    with torch.no_grad():
        flat = rows.detach().reshape(len(rows), -1).contiguous()
        if not flat.numel():
            return torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        held = flat.view(torch.uint8)
        held = torch.nn.functional.pad(held, (0, -held.shape[1] % 8))
        words = held.view(torch.int64)
        places = torch.arange(words.shape[1])
        factors = FACTORS[places % WIDTH] * (2 * (places // WIDTH) + 1)
        if words.device.type == "cpu":
            return torch.from_numpy(words.numpy() @ factors.numpy())
        return (words * factors.to(words.device)).sum(1)


def _summed(words: Tensor) -> bytes:
    if words.device.type == "cpu":
        return (words.numpy() @ FACTORS.numpy()).tobytes()
    return (words * FACTORS.to(words.device)).sum(1).cpu().numpy().tobytes()
