"""An embedding whose weight is an output layer's too: its rule against the dense GGN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import curvfluence as cf
from curvfluence.curvature.operators.block import Block
from curvfluence.curvature.operators.kronecker import KroneckerEigen
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import training_gradients
from curvfluence.jacobian.layers import Layer
from curvfluence.jacobian.terms import TiedOuter, joined
from tests import oracles
from tests.oracles import kronecker_basis

V, D, T, N = 7, 4, 5, 6


class Tied(nn.Module):
    """A language model of a width; how it uses its embedding beside is `kind`'s."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Embedding(V, D, padding_idx=0 if kind == "padding" else None)
        self.mix = nn.Linear(D, D)
        self.bias = nn.Parameter(torch.zeros(V)) if kind == "head bias" else None

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        if self.kind == "twice":
            x = x + self.embed(ids.flip(1))
        if self.kind == "scaled":
            x = x * D**0.5
        h = torch.tanh(self.mix(x.cumsum(1) / T))
        if self.kind == "one position":
            return F.linear(h.mean(1), self.embed.weight)
        if self.kind == "sequence first":
            return F.linear(h.transpose(0, 1), self.embed.weight).transpose(0, 1)
        if self.kind == "matmul":
            return h @ self.embed.weight.T
        if self.kind == "two heads":
            return F.linear(h, self.embed.weight) + F.linear(h.square(), self.embed.weight)
        return F.linear(h, self.embed.weight, self.bias)


KINDS = [
    "plain",
    "twice",
    "scaled",
    "padding",
    "head bias",
    "one position",
    "sequence first",
    "matmul",
    "two heads",
]


def tied(kind: str, weights: Tensor | None = None) -> cf.Problem:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(V, (N + 2, T), generator=generator)
    labels = torch.randint(V, (N + 2, T), generator=generator)
    torch.manual_seed(2)
    model = Tied(kind).double()
    one = kind == "one position"
    targets = labels[:, 0] if one else labels
    loss = cf.CrossEntropy() if one else cf.Positions(cf.CrossEntropy())
    train, queries = (ids[:N], targets[:N]), (ids[N:], targets[N:])
    return cf.Problem(model, loss, train, queries, weight_decay=0.02, sample_weight=weights)


def layer_of(problem: cf.Problem) -> Layer:
    return next(x for x in discover(problem).layers if x.weight == "embed.weight")


def block_of(fitted: cf.Curvature) -> Block:
    return next(b for b in fitted.blocks if b.parameters == ("embed.weight",))


def part_of(dense: Tensor, block: Block) -> Tensor:
    return dense[block.index[:, None], block.index]


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
class TestRule:
    def test_it_has_one(self, kind: str) -> None:
        problem = tied(kind)
        layer = layer_of(problem)
        assert layer.lookup
        assert layer.head is not None
        assert "embed.weight" not in discover(problem).others
        times = {"twice": 2}.get(kind, 1)
        assert layer.positions == T * times
        assert layer.head.positions == {"one position": 1, "two heads": 2 * T}.get(kind, T)
        fallen = [line for line in cf.fit(problem, cf.EKFAC()).coverage if line.fallback]
        assert [line.parameters for line in fallen] == ([("bias",)] if kind == "head bias" else [])

    def test_the_hessian_is_not_refused(self, kind: str) -> None:
        problem = tied(kind)
        close(cf.fit(problem, cf.Hessian()).to_dense(), oracles.dense_hessian(problem))

    def test_its_block_is_the_ggns(self, kind: str) -> None:
        problem = tied(kind)
        block = block_of(cf.fit(problem, cf.BlockGGN()))
        close(block.operator.to_dense(), part_of(oracles.dense_ggn(problem), block))
        diagonal = block_of(cf.fit(problem, cf.Diagonal()))
        wanted = part_of(oracles.dense_ggn(problem), diagonal).diagonal()
        close(diagonal.operator.eigenvalues(), wanted)

    @pytest.mark.parametrize(
        "rung", [cf.EKFAC(), cf.EKFAC(cf.Empirical()), cf.EShampoo()], ids=repr
    )
    def test_corrected_eigenvalues_are_its_diagonal(self, kind: str, rung: cf.Rung) -> None:
        problem = tied(kind)
        block = block_of(cf.fit(problem, rung))
        assert isinstance(block.operator, KroneckerEigen)
        empirical = getattr(rung, "fisher", None) == cf.Empirical()
        dense = (oracles.dense_empirical if empirical else oracles.dense_ggn)(problem)
        basis = kronecker_basis(block.operator)
        wanted = (basis * (part_of(dense, block) @ basis)).sum(0)
        close(block.operator.values.flatten(), wanted)

    def test_shampoos_factors_are_partial_traces(self, kind: str) -> None:
        problem = tied(kind)
        block = block_of(cf.fit(problem, cf.TKFAC()))
        ggn = part_of(oracles.dense_ggn(problem), block).view(D, V, D, V)
        left = torch.einsum("avbv->ab", ggn)
        right = torch.einsum("avaw->vw", ggn).diagonal()
        wanted = torch.kron(left, right.diag()) / left.trace()
        close(block.operator.to_dense(), wanted)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_k_fac_is_of_both_uses(self, kind: str, weighted: bool) -> None:
        """From the derivatives of what the embedding gave and of what the head gave."""
        v = torch.tensor([1.0, 2, 0, 1, 3, 1]).double() if weighted else None
        problem = tied(kind, v)
        block = block_of(cf.fit(problem, cf.KFAC()))
        pairs = factors(problem, torch.ones(N).double() if v is None else v)
        roots = [(a.sum() * b.trace()).sqrt() for a, b in pairs]
        a = sum(a * (b.trace() / a.sum()).sqrt() for a, b in pairs)
        b = sum(b * (a.sum() / b.trace()).sqrt() for a, b in pairs)
        scale = sum(root**2 for root in roots) / sum(roots) ** 2
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        close(block.operator.to_dense(), torch.kron(b, a.diag()) * scale)
        total = sum(float(a.sum() * b.trace()) for a, b in pairs)
        assert float(block.operator.to_dense().trace()) == pytest.approx(total)

    @pytest.mark.parametrize("rung", [cf.KFAC(), cf.EKFAC(), cf.BlockGGN(), cf.GGN()], ids=repr)
    def test_scores(self, kind: str, rung: cf.Rung) -> None:
        problem = tied(kind)
        fitted = cf.fit(problem, rung)
        found = cf.influence(problem, fitted, damping=cf.Absolute(0.01)).values
        dense = fitted.to_dense()
        damped = dense + torch.diag(problem.decay + 0.01)
        g_n, g_q = oracles.example_gradients(problem), oracles.query_gradients(problem)
        close(found, g_q @ torch.linalg.solve(damped, g_n.T) / N, 1e-8)
        own = cf.self_influence(problem, fitted, damping=cf.Absolute(0.01))
        wanted = (g_n * torch.linalg.solve(damped, g_n.T).T).sum(1) / N
        close(own, wanted, 1e-8)


def factors(problem: cf.Problem, v: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(V numbers, D × D) of the embedding and of the head, by autograd on copies of the weight."""
    model = problem.model
    assert isinstance(model, Tied)
    loss, c = problem.loss, problem.loss.columns(problem.n_outputs)
    seen: dict[str, list[Tensor]] = {"in": [], "at": [], "out": []}
    looked_up, multiplied = F.embedding, F.linear

    def embedding(ids: Tensor, *args: object, **kwargs: object) -> Tensor:
        out = looked_up(ids, *args, **kwargs)  # type: ignore[arg-type]
        seen["in"].append(out)
        seen.setdefault("ids", []).append(ids)
        return out

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = multiplied(x, weight, bias)
        if len(weight) == V:
            first = model.kind == "sequence first"
            seen["at"].append(x.transpose(0, 1) if first else x)
            seen["out"].append(out)
        return out

    F.embedding, F.linear = embedding, linear
    try:
        x, y = problem.train.inputs, problem.train.targets
        if model.kind == "matmul":
            h = torch.tanh(model.mix(model.embed(x).cumsum(1) / T))
            output = F.linear(h, model.embed.weight)
        else:
            output = model(x)
    finally:
        F.embedding, F.linear = looked_up, multiplied
    rows = loss.rows(output, N)
    s = loss.factor(rows.detach(), y) * v.sqrt()[:, None, None]
    counts, wide = torch.zeros(V).double(), torch.zeros(D, D).double()
    squares, inputs = torch.zeros(V).double(), torch.zeros(D, D).double()
    padding = model.embed.padding_idx
    for ids in seen["ids"]:
        each = v[:, None].expand_as(ids)
        if padding is not None:
            each = each * (ids != padding)
        counts.index_add_(0, ids.flatten(), each.flatten())
    for at in seen["at"]:
        at = at.detach().reshape(N, -1, D)
        inputs += torch.einsum("n,nti,ntj->ij", v, at, at)
    for k in range(c):
        grads = torch.autograd.grad(
            (rows * s[:, :, k]).sum(), [*seen["in"], *seen["out"]], retain_graph=True
        )
        for ids, g in zip(seen["ids"], grads, strict=False):
            keep = torch.ones_like(ids) if padding is None else (ids != padding)
            g = g * keep[..., None]
            wide += torch.einsum("nti,ntj->ij", g, g)
        for g in grads[len(seen["in"]) :]:
            squares += g.reshape(-1, V).square().sum(0)
    total = v.sum()
    in_positions = counts.sum()
    out_positions = v.sum() * sum(at.reshape(N, -1, D).shape[1] for at in seen["at"])
    mean = N / total
    return [
        (counts / total, wide / (in_positions * mean)),
        (squares / (out_positions * mean), inputs / total),
    ]


class TestTerm:
    """Every sum of the rows against the rows themselves."""

    def term(self, kind: str) -> TiedOuter:
        problem = tied(kind)
        rows = training_gradients(problem, discover(problem))
        k = next(k for k, x in enumerate(rows.layers) if x.head is not None)
        term = rows.terms[k]
        assert isinstance(term, TiedOuter)
        return term

    @pytest.mark.parametrize("kind", ["plain", "one position", "two heads"])
    def test_sums(self, kind: str) -> None:
        term = self.term(kind)
        dense = term.dense()
        assert dense.shape == (N, 1, D, V)
        basis = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
        turned = torch.einsum("ab,ncav->ncbv", basis, dense)
        close(term.rotated(basis, None).dense(), turned)
        close(term.squares(basis, None), turned.square().sum((0, 1)))
        close(term.squares(None, None), dense.square().sum((0, 1)))
        close(term.left_gram(), torch.einsum("ncav,ncbv->ab", dense, dense))
        close(term.right_gram(), dense.square().sum((0, 1, 2)))
        close(term.squared_norms(), dense.square().sum((2, 3)))
        x = torch.randn(3, D, V, dtype=torch.float64)
        close(term.inner(x), torch.einsum("qav,ncav->qnc", x, dense))
        y = torch.randn(3, N, 1, dtype=torch.float64)
        close(term.adjoint(y), torch.einsum("qnc,ncav->qav", y, dense))
        w = torch.rand(D, V, dtype=torch.float64)
        close(term.weighted_squares(w), (dense[:, 0].square() * w).sum((1, 2)))
        assert bool((term.norms() >= dense[:, 0].flatten(1).norm(dim=1) - 1e-12).all())
        close(joined([term[:2], term[2:]]).dense(), dense)
        close(term.to(torch.float32).dense().double(), dense, 1e-5)

    def test_what_it_has_not(self) -> None:
        term = self.term("plain")
        for asked in (term.summed, term.input_gram, term.output_gram):
            with pytest.raises(NotImplementedError, match="tied weight"):
                asked()
        assert term.reduced() is term


def test_other_uses_have_no_such_rule() -> None:
    """A part of the weight, or a use that is no product, falls back and is named."""

    class Part(Tied):
        def forward(self, ids: Tensor) -> Tensor:
            h = torch.tanh(self.mix(self.embed(ids)))
            return F.linear(h, self.embed.weight[:4])

    class Scale(Tied):
        def forward(self, ids: Tensor) -> Tensor:
            h = torch.tanh(self.mix(self.embed(ids)))
            return F.linear(h, self.embed.weight) * self.embed.weight.square().sum()

    ids = torch.randint(V, (N, T), generator=torch.Generator().manual_seed(0))
    for kind in (Part, Scale):
        problem = cf.Problem(
            kind("plain").double(),
            cf.Positions(cf.CrossEntropy()),
            (ids, ids % 4),
            (ids[:1], ids[:1] % 4),
        )
        assert "embed.weight" in discover(problem).others
        block = next(
            b for b in cf.fit(problem, cf.EKFAC()).blocks if "embed.weight" in b.parameters
        )
        assert block.fallback
        close(block.operator.to_dense(), part_of(oracles.dense_ggn(problem), block))


def test_a_large_vocabulary_costs_no_square_of_it() -> None:
    """No V × V matrix, and rows of d × V only while squares are summed."""
    words = 3000
    model = nn.Sequential(nn.Embedding(words, 8), nn.Linear(8, 8), nn.Tanh())
    head = nn.Linear(8, words, bias=False)
    head.weight = model[0].weight
    net = nn.Sequential(*model, head)
    ids = torch.randint(words, (4, 3), generator=torch.Generator().manual_seed(0))
    loss = cf.Positions(cf.CrossEntropy())
    following = (ids + 1) % words
    problem = cf.Problem(net, loss, (ids, following), (ids[:1], following[:1]))
    with Largest() as made:
        fitted = cf.fit(problem, cf.EKFAC(cf.Empirical()))
        cf.influence(problem, fitted)
    assert made.numbers >= 8 * words  # it watches
    assert made.numbers < words**2 / 4
    assert fitted.fallback_share == 0


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return made
