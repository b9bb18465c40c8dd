"""The first stage of a query, by one product and by faiss, where that is installed.

    python benchmarks/flat_search.py [--examples 1000000] [--dimension 64 128 256] [--threads 1]

Both ends of one query's products with made rows in memory, the 200 largest and the 200 smallest:
by torch's product and `topk`, by faiss's exact index (`IndexFlatIP`), and by its inverted lists
(`IndexIVFFlat` of 1,024) with so many of them looked at, which find some of the 200. The rows are
normal, so no list is nearer than another by much: of gradients lists find more. The least of nine
wall-clock times, since all of it is reading memory.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

ENDS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(given.threads)
    print("| d | way | ms | of the 200 largest |")
    print("| --- | --- | --- | --- |")
    for d in given.dimension:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(given.examples, d, generator=generator)
        query = torch.randn(1, d, generator=generator)

        def product(rows: Tensor = rows, query: Tensor = query) -> set[int]:
            scores = rows @ query[0]
            scores.topk(ENDS, largest=False)
            return set(scores.topk(ENDS).indices.tolist())

        def searched(index: Any, query: Tensor = query) -> set[int]:
            index.search(-query.numpy(), ENDS)
            return set(index.search(query.numpy(), ENDS)[1][0].tolist())

        wanted = product()
        said(d, "a product", product, wanted)
        flat = faiss.IndexFlatIP(d)
        flat.add(rows.numpy())
        said(d, "faiss, exact", partial(searched, flat), wanted)
        lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, 1024, faiss.METRIC_INNER_PRODUCT)
        start = time.perf_counter()
        lists.train(rows[: given.examples // 10].numpy())
        lists.add(rows.numpy())
        built = time.perf_counter() - start
        for looked_at in (32, 256):
            lists.nprobe = looked_at
            name = f"faiss, {looked_at} of 1,024 lists (built in {built:.1f} s)"
            said(d, name, partial(searched, lists), wanted)


def said(d: int, way: str, search: Callable[[], set[int]], wanted: set[int]) -> None:
    found, times = search(), list[float]()
    for _ in range(9):
        start = time.perf_counter()
        search()
        times.append(time.perf_counter() - start)
    share = len(found & wanted) / ENDS
    print(f"| {d} | {way} | {1e3 * min(times):.1f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
