"""Memory and time of scores whose training examples are read from a file, as N grows.

    python benchmarks/streaming.py            # 10^4, 10^5 and 10^6 examples of 3 kB
    python benchmarks/streaming.py --most 1e5

Each size runs in a process of its own: EK-FAC of a small convolutional net with one-sample factors,
20 queries, scores for all examples. Images of 3 × 32 × 32 bytes lie in a file (made once, in
`--folder`), which is given as a memory map. `above` is the peak of the resident memory over what
the process held with the model and the labels made, mapped pages of the file counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SHAPE = (3, 32, 32)  # 3,072 bytes


def made(folder: Path, n: int) -> Path:
    """A file of n random images."""
    path = folder / f"images-{n}.bin"
    if not path.exists():
        generator = np.random.default_rng(0)
        with path.open("wb") as file:
            for start in range(0, n, 10_000):
                count = min(10_000, n - start)
                file.write(generator.integers(0, 256, (count, *SHAPE), dtype=np.uint8).tobytes())
    return path


def peak() -> int:
    """The highest resident memory so far, in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


def run(path: Path, n: int) -> None:
    import torch
    from torch import nn

    import curvfluence as cf

    images = np.memmap(path, np.uint8, "r", shape=(n, *SHAPE))
    labels = torch.arange(n) % 10
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 10)
    )
    before = peak()
    start = time.perf_counter()
    problem = cf.Problem(
        model,
        cf.CrossEntropy(),
        (images[: n - 20], labels[: n - 20]),
        (images[n - 20 :], labels[n - 20 :]),
        forward=lambda model, bytes: model(bytes.float() / 255),
        remember=2**26,
    )
    read = time.perf_counter()
    scores = cf.influence(problem, cf.EKFAC(cf.MonteCarlo(1)))
    done = time.perf_counter()
    above = (peak() - before) / 2**20
    print(
        f"{n:>10,} {read - start:>10.1f} {done - read:>10.1f} {above:>12.0f} "
        f"{scores.values.numel() * 4 / 2**20:>12.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--most", type=float, default=1e6)
    parser.add_argument("--folder", type=Path, default=Path("build/streaming"))
    parser.add_argument("--one", type=int, help="this size alone, in this process")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.one is not None:
        run(made(options.folder, options.one), options.one)
        return
    print(
        f"{'examples':>10} {'read, s':>10} {'scores, s':>10} {'above, MiB':>12} {'scores, MiB':>10}"
    )
    for n in (10_000, 100_000, 1_000_000):
        if n <= options.most:
            made(options.folder, n)
            command = [sys.executable, __file__, "--one", str(n), "--folder", str(options.folder)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
