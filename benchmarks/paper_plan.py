"""What EK-FAC, its scores and an index cost at sizes that do not run here, by formula.

    python benchmarks/paper_plan.py [--tokens 512] [--check]

Linear layers alone (attention's own products, embeddings and the head are left out), in the shapes
of an MLP of a million parameters, GPT-2 (124M), Qwen2.5 1.5B and Llama 3 8B. With --check the same
formulas beside what torch counts on nets that run here, and beside the bytes that are held.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import curvfluence as cf
from curvfluence.indexing.inner_products import grouped

EIGEN = 9.0  # n³ operations of a symmetric eigendecomposition with vectors, about


@dataclass(frozen=True)
class Weight:
    """An o × i matrix, used once a token; layers on the inputs of the one before share its A."""

    i: int
    o: int
    shares: bool = False

    @property
    def size(self) -> int:
        return self.i * self.o


@dataclass(frozen=True)
class Net:
    name: str
    weights: tuple[Weight, ...]
    blocks: int
    tokens: int
    recomputed: bool = True  # whether the second pass of a fit makes the first one's a and s anew

    def total(self, of) -> float:
        return self.blocks * sum(of(w) for w in self.weights)

    @property
    def parameters(self) -> float:
        return self.total(lambda w: w.size)

    @property
    def factors(self) -> float:
        """Numbers in all A and B; bases are as many."""
        return self.total(lambda w: w.o**2 + (0 if w.shares else w.i**2))

    def pass_(self, n: float) -> float:
        """Forward, and back to the outputs of every layer: no gradient of weights, and none of
        the inputs of an MLP."""
        spared = self.weights[0].size if self.tokens == 1 else 0
        return n * self.tokens * (4 * self.parameters - 2 * spared)

    def formed(self, n: float) -> float:
        """Σ_t s aᵀ of each example; nothing where there is one position."""
        return 2 * n * self.tokens * self.parameters if self.tokens > 1 else 0.0

    def sides(self, n: float) -> float:
        """Products of all a with i × i and of all s with o × o."""
        return 2 * n * self.tokens * self.factors

    def fit(self, n: float) -> float:
        """EK-FAC with the training labels: a pass and two Grams a layer; a pass, rotation, rows
        and their squares (a product of two tables of squares where there is one position)."""
        squares = 2 * n * self.parameters if self.tokens == 1 else n * self.parameters
        passes = 2 if self.recomputed else 1
        return passes * self.pass_(n) + 2 * self.sides(n) + self.formed(n) + squares

    def groups(self, vectors: int, room: int) -> int:
        """How many groups of blocks so many solutions are held for, one after another."""
        blocks = [
            (f"{block}.{k}", w.size)
            for block in range(self.blocks)
            for k, w in enumerate(self.weights)
        ]
        return len(grouped(blocks, vectors, 4, room))

    @property
    def decomposed(self) -> float:
        return EIGEN * self.total(lambda w: w.o**3 + (0 if w.shares else w.i**3))

    def solved(self, q: float) -> float:
        """There and back in the eigenbasis; where there is one position, as a and s alone."""
        if self.tokens == 1:
            return self.sides(q)
        return 4 * q * self.total(lambda w: w.size * (w.i + w.o))

    def scored(self, n: float, q: float) -> float:
        rows = self.sides(n) if self.tokens == 1 else self.formed(n)
        return self.pass_(n) + rows + 2 * n * q * self.parameters


def transformer(
    name: str, d: int, ff: int, kv: int, blocks: int, tokens: int, *, gated: bool
) -> Net:
    attention = (Weight(d, d), Weight(d, kv, True), Weight(d, kv, True), Weight(d, d))
    up = (Weight(d, ff), Weight(d, ff, True)) if gated else (Weight(d, ff),)
    return Net(name, (*attention, *up, Weight(ff, d)), blocks, tokens)


def nets(tokens: int) -> list[Net]:
    mlp = Net("MLP 784–800–400–10", (Weight(785, 800), Weight(801, 400), Weight(401, 10)), 1, 1)
    return [
        mlp,
        transformer("GPT-2", 768, 3072, 768, 12, tokens, gated=False),
        transformer("Qwen2.5 1.5B", 1536, 8960, 256, 28, tokens, gated=True),
        transformer("Llama 3 8B", 4096, 14336, 1024, 32, tokens, gated=True),
    ]


def table(tokens: int) -> None:
    print(f"T = {tokens} (1 for the MLP); float32; K ranks; P of the linear layers")
    print(
        "| net | P | factors | bases | eigenvalues | eigendecompositions | fit, N = 10⁴ | 10⁶ | "
        "10⁹ | 10² × 10⁴ scores | 10² queries solved | messages of a fit, K ranks |"
    )
    print("| --- " * 12 + "|")
    for net in nets(tokens):
        print(
            f"| {net.name} | {net.parameters:.3g} | {4 * net.factors / 1e9:.3g} GB | "
            f"{4 * net.factors / 1e9:.3g} GB | {4 * net.parameters / 1e9:.3g} GB | "
            f"{net.decomposed:.1e} | {net.fit(1e4):.1e} | {net.fit(1e6):.1e} | "
            f"{net.fit(1e9):.1e} | {net.scored(1e4, 100):.1e} | "
            f"{net.solved(100):.1e} | "
            f"{4 * net.factors / 1e9:.3g} (K + 1) + {4 * net.parameters / 1e9:.3g} K GB |"
        )
    print()
    print("An index of d = 256: made, on disk, and a query's search")
    print("| net | N | a scoring pass of one query | index made | φ, float16 | search |")
    print("| --- " * 6 + "|")
    for net in nets(tokens):
        for n in (1e4, 1e6, 1e9):
            print(
                f"| {net.name} | 10{'⁴' if n == 1e4 else '⁶' if n == 1e6 else '⁹'} | "
                f"{net.scored(n, 1):.1e} | {net.scored(n, 272):.1e} | {2 * 256 * n / 1e9:.3g} GB | "
                f"{2 * 256 * n:.1e} |"
            )

    print()
    print("An index of d = 256, 272 solved landmarks and queries, groups of blocks at a time")
    print("| net | all of them | the widest block's | groups within 80 GiB | 256 GiB |")
    print("| --- " * 5 + "|")
    for net in nets(tokens):
        widest = max(weight.size for weight in net.weights)
        within = [net.groups(272, room * 2**30) for room in (80, 256)]
        print(
            f"| {net.name} | {4 * 272 * net.parameters / 1e9:.3g} GB | "
            f"{4 * 272 * widest / 1e9:.3g} GB | {within[0]} | {within[1]} |"
        )


class Blocks(nn.Module):
    """Residual blocks of three linear layers over positions, and a head on the mean."""

    def __init__(self, d: int, ff: int, blocks: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(d, ff, bias=False) for _ in range(blocks))
        self.gate = nn.ModuleList(nn.Linear(d, ff, bias=False) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(ff, d, bias=False) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for up, gate, down in zip(self.up, self.gate, self.down, strict=True):
            x = x + down(torch.sigmoid(gate(x)) * up(x))
        return x.mean(1)[:, :10]


def check() -> None:
    """Counted by torch where products are torch's: two threads, so that none goes to NumPy."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    n, q = 1024, 32
    shallow = nn.Sequential(
        nn.Linear(256, 512, bias=False), nn.Tanh(), nn.Linear(512, 10, bias=False)
    )
    deep = Blocks(96, 256, 3)
    cases = [
        (Net("MLP 256–512–10", (Weight(256, 512), Weight(512, 10)), 1, 1), shallow, (256,)),
        (
            Net("3 gated blocks 96, 256, T = 64",
                (Weight(96, 256), Weight(96, 256, True), Weight(256, 96)), 3, 64),
            deep, (64, 96),
        ),
    ]  # fmt: skip
    print("| net | of what | by formula | counted or held | ratio |")
    print("| --- " * 5 + "|")
    for net, model, shape in cases:
        x, y = torch.randn(n + q, *shape), torch.randint(10, (n + q,))
        train, queries = (x[:n], y[:n]), (x[n:], y[n:])
        problem = cf.Problem(model, cf.CrossEntropy(), train, queries, remember=0)
        rung = cf.EKFAC(cf.Empirical())
        cf.fit(problem, rung)  # what a first call finds out is not counted
        with FlopCounterMode(display=False) as counter:
            curvature = cf.fit(problem, rung)
        fitted = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            cf.influence(problem, curvature, damping=cf.Relative(1.0), inverse_error=0.0)
        scored = counter.get_total_flops()
        held = 4 * (net.factors + net.parameters)
        with tempfile.TemporaryDirectory() as name:
            out, damping = Path(name) / "index", cf.Relative(1.0)
            index = cf.index(problem, curvature, out=out, damping=damping, dimension=32)
            with FlopCounterMode(display=False) as counter:
                index.append(train)  # as many again: what an index takes for each example
        appended, d = counter.get_total_flops(), index.record.dimension
        rows = (
            ("index, operations", net.scored(n, d) + net.solved(d), appended),
            ("fit, operations", net.fit(n), fitted),
            ("scores, operations", net.scored(n, q) + net.solved(q) + net.pass_(q), scored),
            ("curvature, bytes", held, curvature.cost.nbytes),
        )
        for what, formula, counted in rows:
            print(
                f"| {net.name} | {what} | {formula:.3g} | {counted:.3g} | {counted / formula:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    if asked.check:
        check()
    else:
        table(asked.tokens)


if __name__ == "__main__":
    main()
