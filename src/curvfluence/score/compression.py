"""What a result says of solved queries that are held at low rank."""

from __future__ import annotations

COMPRESSED = "queries of shared layers at low rank"
UNCOMPRESSED = "compress changed nothing: no solved query is smaller at low rank"


def said_of_compression(error: float) -> str:
    """With the largest relative error; 0 where nothing was compressed."""
    return f"{COMPRESSED}: relative error up to {error:.2g}" if error else UNCOMPRESSED
