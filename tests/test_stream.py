"""Examples that are read as they are asked for: the scores of those in memory, a reading a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import curvfluence as cf
from curvfluence.problem.source import data_of
from curvfluence.problem.stream import Stream
from curvfluence.problem.tree import leaves
from curvfluence.runtime import ranks
from tests.problems import mlp, seeded

N, Q = 50, 6
GENERATOR = torch.Generator().manual_seed(2)
X = torch.randn(N + Q, 5, generator=GENERATOR)
Y = torch.randint(0, 3, (N + Q,), generator=GENERATOR)
QUERIES = (X[N:], Y[N:])
RUNGS = (
    cf.Identity(), cf.Diagonal(), cf.KFAC(), cf.EKFAC(), cf.EKFAC(cf.MonteCarlo(2)),
    cf.KFAC(cf.Empirical()), cf.Shampoo(), cf.BlockGGN(), cf.GGN(),
    cf.GGN(cf.inversion.SampleSpace()), cf.GGN(cf.inversion.ConjugateGradients(tolerance=1e-9)),
    cf.GGN(cf.inversion.SelectedRows(30, tolerance=1e-9)),
    cf.Hessian(),
)  # fmt: skip


class Counted(Dataset[Any]):
    """Counts how often an item was read, and may change one."""

    def __init__(self, count: int = N) -> None:
        self.count, self.read = count, 0
        self.changed: int | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read += 1
        return X[index] + (index == self.changed), Y[index]


def model() -> nn.Module:
    seeded()
    return mlp(5, 4, 3).double()


def problem(train: Any, queries: Any = QUERIES, **options: Any) -> cf.Problem:
    return cf.Problem(model(), cf.CrossEntropy(), train, queries, remember=0, **options)


def scores(made: cf.Problem, rung: cf.Rung) -> Tensor:
    damping = cf.Absolute(1.0 if isinstance(rung, cf.Identity) else 0.01)
    return cf.influence(made, rung, damping=damping).values


def memory_maps(folder: Path) -> tuple[Any, Any]:
    made: list[Any] = []
    for name, rows in (("x", X[:N].numpy()), ("y", Y[:N].numpy())):
        held = np.memmap(folder / name, rows.dtype, "w+", shape=rows.shape)
        held[:] = rows
        held.flush()
        made.append(np.memmap(folder / name, rows.dtype, "r", shape=rows.shape))
    return made[0], made[1]


SOURCES: dict[str, Callable[[Path], Any]] = {
    "dataset": lambda _: Counted(),
    "loader": lambda _: DataLoader(Counted(), batch_size=7),
    "unbatched": lambda _: DataLoader(Counted(), batch_size=None),
    "workers": lambda _: DataLoader(Counted(), batch_size=16, num_workers=1),
    "collate": lambda _: DataLoader(
        Counted(),
        batch_size=9,
        collate_fn=lambda rows: {"input": torch.stack([x for x, _ in rows]),
                                 "labels": torch.stack([y for _, y in rows])},
    ),
    "memory map": memory_maps,
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
class TestSources:
    def test_every_rung(self, source: str, tmp_path: Path) -> None:
        """Bit for bit where chunks are the same, else to rounding."""
        queries: Any = QUERIES
        if source == "collate":
            queries = ({"input": QUERIES[0]}, QUERIES[1])
        made = problem(SOURCES[source](tmp_path), queries)
        assert isinstance(made.train, Stream)
        wanted = problem((X[:N], Y[:N]))
        rungs = RUNGS if source in ("dataset", "memory map") else RUNGS[3:5]
        for rung in rungs:
            found = scores(made, rung)
            assert torch.allclose(found, scores(wanted, rung), rtol=1e-9, atol=1e-12), rung

    def test_held_where_it_is_small(self, source: str, tmp_path: Path) -> None:
        data = data_of(SOURCES[source](tmp_path), "train")
        assert isinstance(data, cf.Examples)
        (x,), (y,) = leaves(data.inputs), leaves(data.targets)
        assert torch.equal(x, X[:N])
        assert torch.equal(y, Y[:N])


class TestStream:
    def streamed(self, **options: Any) -> tuple[cf.Problem, Counted]:
        data = Counted()
        return problem(data, **options), data

    def test_everything_else_that_is_asked_of_it(self) -> None:
        made, _ = self.streamed()
        wanted = problem((X[:N], Y[:N]))
        for ask in (
            lambda at: cf.self_influence(at, cf.EKFAC()),
            lambda at: cf.group_influence(at, cf.EKFAC(), torch.eye(N)[:3]),
            lambda at: cf.influence(at, cf.GGN(), leverage=True).values,
            lambda at: cf.influence(at, cf.EKFAC(cf.Empirical())).certificate().residuals,
            lambda at: cf.influence(at, cf.EKFAC(), damping=cf.Relative(0.1)).values,
        ):
            found, expected = ask(made), ask(wanted)
            assert torch.allclose(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-8)
        assert made.train.distinct == wanted.train.distinct == N
        assert cf.plan(made, cf.EKFAC()).bytes == cf.plan(wanted, cf.EKFAC()).bytes
        assert (made.dtype, made.to(torch.float32).train.dtype) == (torch.float64, torch.float32)

    def test_weights(self) -> None:
        v = torch.rand(N, generator=GENERATOR) + 0.1
        made, _ = self.streamed(sample_weight=v)
        wanted = problem((X[:N], Y[:N]), sample_weight=v)
        assert torch.allclose(scores(made, cf.KFAC()), scores(wanted, cf.KFAC()), rtol=1e-9)

    def test_queries_too(self) -> None:
        wanted = problem((X[:N], Y[:N]))
        made = problem((X[:N], Y[:N]), DataLoader(Shifted(), batch_size=2))
        assert isinstance(made.queries, Stream)
        assert torch.allclose(scores(made, cf.GGN()), scores(wanted, cf.GGN()), rtol=1e-9)

    def test_a_pass_is_one_reading(self) -> None:
        """A fit that needs one pass reads every item once, and scores read each once more."""
        made, data = self.streamed()
        cf.fit(made, cf.Diagonal())  # with the probe
        data.read = 0
        curvature = cf.fit(made, cf.Diagonal())
        assert data.read == N
        data.read = 0
        cf.influence(made, curvature, damping=cf.Absolute(0.1))
        assert N <= data.read <= N + 16  # and a few that notes are found by

    def test_what_is_remembered_is_not_read_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Gradients that a fit with the labels leaves are what scores read."""
        monkeypatch.setattr("curvfluence.runtime.budget.HELD", 0)
        data = Counted()
        made = cf.Problem(model(), cf.CrossEntropy(), data, QUERIES, remember=2**20)
        assert isinstance(made.train, Stream)
        curvature = cf.fit(made, cf.KFAC(cf.Empirical()))
        cf.influence(made, curvature)  # with what notes are found by
        data.read = 0
        cf.influence(made, curvature)
        assert data.read == 0

    def test_processes_do_not_share_it_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Refused before work: each would read all of it, a range at a time."""
        made, _ = self.streamed()
        monkeypatch.setattr(ranks, "here", lambda: ranks.Ranks(0, 2))
        monkeypatch.setattr(ranks.Ranks, "alike", lambda _: nullcontext())  # nobody else is there
        with pytest.raises(cf.errors.InputError, match="not shared out yet: give the processes"):
            cf.fit(made, cf.KFAC())

    def test_data_that_change_are_found(self) -> None:
        made, data = self.streamed()
        data.changed = 31
        said = "example 31 is another when it is read again"
        with pytest.raises(cf.errors.InputError, match=said):
            scores(made, cf.KFAC())

    def test_data_that_grow_are_found(self) -> None:
        made, data = self.streamed()
        data.count += 3
        with pytest.raises(cf.errors.InputError, match=r"example 50 is another|had 50 examples"):
            scores(made, cf.KFAC())

    def test_a_view_reads_what_follows(self) -> None:
        data = data_of(Counted(), "train", hold=0)
        assert isinstance(data, Stream)
        tail = data[13:]
        assert isinstance(tail, Stream)
        assert len(tail) == N - 13
        found = list(tail.chunks(10))
        assert [start for start, _ in found] == [0, 10, 20, 30]
        assert torch.equal(torch.cat([part.inputs for _, part in found]), X[13:N])  # type: ignore[misc]
        middle = data[3:8]
        assert isinstance(middle, cf.Examples)
        assert torch.equal(middle.inputs, X[3:8])  # type: ignore[arg-type]
        picked = tail.take(torch.tensor([0, 2]))
        assert torch.equal(picked.inputs, X[[13, 15]])  # type: ignore[arg-type]

    def test_the_random_state_is_left_as_found(self) -> None:
        """Between chunks too, and by a pass that is given up and forgotten later."""
        made, _ = self.streamed()
        before = torch.get_rng_state()
        passing = made.train.chunks(8)
        next(passing)
        assert torch.equal(before, torch.get_rng_state())
        drawn = torch.rand(3)
        next(passing)
        del passing
        after = torch.rand(3)
        torch.set_rng_state(before)
        assert torch.equal(torch.rand(6), torch.cat([drawn, after]))

    def test_a_map_that_is_copied_on_write_keeps_what_was_written(self, tmp_path: Path) -> None:
        inputs, targets = memory_maps(tmp_path)
        held = np.memmap(tmp_path / "x", inputs.dtype, "c", shape=inputs.shape)
        held[3] = 7.0
        data = data_of((held, targets), "train", hold=0)
        assert isinstance(data, Stream)
        for start, part in data.chunks(N):
            assert start == 0
            assert (leaves(part.inputs)[0][3] == 7).all()
        assert (held[3] == 7).all()
        assert np.array_equal(inputs, X[:N].numpy())

    def test_workers_start_as_the_loader_says(self) -> None:
        loader = DataLoader(
            Started(), batch_size=10, num_workers=1, worker_init_fn=lambda _: Started.start()
        )
        data = data_of(loader, "train", hold=10**6)
        assert isinstance(data, cf.Examples)
        assert bool((leaves(data.targets)[0] == 1).all())

    def test_a_fingerprint_tells_data_apart(self) -> None:
        one, _ = self.streamed()
        other = Counted()
        other.changed = 2
        assert problem(other).fingerprint != one.fingerprint
        assert problem(Counted()).fingerprint == one.fingerprint


class Started(Dataset[Any]):
    """Gives 1 where a worker was started as asked; read in this process too, for a few."""

    begun = False

    @classmethod
    def start(cls) -> None:
        cls.begun = True

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        at_home = torch.utils.data.get_worker_info() is None
        return X[index], int(self.begun or at_home)


class Doubling(DataLoader[Any]):
    def __iter__(self) -> Any:
        return ((2 * x, y) for x, y in super().__iter__())


class Shifted(Dataset[Any]):
    def __len__(self) -> int:
        return Q

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[N + index], Y[N + index]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield X[0], Y[0]


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a stream without end": (
        lambda: DataLoader(Endless(), batch_size=64),
        r"a stream \(IterableDataset\) has no examples to come back to, and after 64 .* map-style",
    ),
    "batches of more examples": (
        lambda: DataLoader(
            Counted(),
            batch_size=5,
            collate_fn=lambda rows: (X[: 2 * len(rows)], Y[: 2 * len(rows)]),
        ),
        "has 50 items, and its batches hold 100 examples",
    ),
    "batches that the loader changes": (
        lambda: Doubling(Counted(), batch_size=5),
        "Doubling makes other batches than its collate function does of its items",
    ),
    "complex targets": (
        lambda: [(x, y * 1j) for x, y in zip(X[:N], Y[:N], strict=True)],
        "targets must be real",
    ),
    "not finite": (
        lambda: [(x / (k != 17), y) for k, (x, y) in enumerate(zip(X[:N], Y[:N], strict=True))],
        "input of example 17 is NaN or infinite",
    ),
    "a label": (
        lambda: [(x, y + 3 * (k == 23)) for k, (x, y) in enumerate(zip(X[:N], Y[:N], strict=True))],
        r"label \d of example 23 is outside 0\.\.2",
    ),
}


class Listed(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_example_far_on_is_named_by_its_number(streamed: bool) -> None:
    """Whichever chunk it is in, and for a loss over positions by its example too."""
    n, at = 9000, 8123
    x, y = torch.zeros(n, 5), torch.zeros(n, dtype=torch.long)
    y[at] = 9
    remember = 0 if streamed else None
    source = TensorDataset(x, y) if streamed else (x, y)
    with pytest.raises(cf.errors.InputError, match=f"train: label 9 of example {at} is outside"):
        cf.Problem(mlp(5, 4, 3), cf.CrossEntropy(), source, QUERIES, remember=remember)
    ids, labels = torch.zeros(n, 4, dtype=torch.long), torch.zeros(n, 4, dtype=torch.long)
    labels[:, 1] = -100
    labels[at, 2] = 9
    source = TensorDataset(ids, labels) if streamed else (ids, labels)
    seeded()
    net = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3))
    with pytest.raises(cf.errors.InputError, match=f"train: label 9 of example {at} is outside"):
        cf.Problem(
            net, cf.Positions(cf.CrossEntropy()), source, (ids[:2], labels[:2]), remember=remember
        )


@pytest.mark.parametrize("case", BAD)
def test_bad_sources(case: str) -> None:
    make, said = BAD[case]
    source = make()
    with pytest.raises(cf.errors.InputError, match=f"train: .*{said}"):
        problem(Listed(source) if isinstance(source, list) else source)


# Sequences that are padded batch by batch ---------------------------------------------------------

T, V = 9, 7
LENGTHS = torch.randint(3, T + 1, (N + Q,), generator=GENERATOR)
IDS = [torch.randint(1, V, (int(n),), generator=GENERATOR) for n in LENGTHS]


class Sequences(Dataset[Any]):
    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = IDS[self.first + index]
        return {"input_ids": ids, "labels": ids}


def padded(rows: list[dict[str, Tensor]], length: int | None = None) -> dict[str, Tensor]:
    longest = length or max(len(row["labels"]) for row in rows)

    def fill(x: Tensor, value: int) -> Tensor:
        return nn.functional.pad(x, (0, longest - len(x)), value=value)

    return {
        "input_ids": torch.stack([fill(row["input_ids"], 0) for row in rows]),
        "labels": torch.stack([fill(row["labels"], -100) for row in rows]),
    }


class Language(nn.Module):
    """A position sees the mean of what is up to it; padding comes last, so nothing sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.norm = nn.Embedding(V, 4), nn.Linear(4, 5), nn.LayerNorm(5)
        self.head = nn.Linear(5, V)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return {"logits": self.head(self.norm(torch.tanh(self.mix(x.cumsum(1) / count))))}


def language(first: int, count: int, batch: int | None) -> Any:
    data = Sequences(first, count)
    if batch is None:
        return padded([data[k] for k in range(count)], T)
    return DataLoader(data, batch_size=batch, collate_fn=padded)


def language_problem(train: int | None, queries: int | None) -> cf.Problem:
    seeded()
    made = Language().double()
    parts = language(0, N, train), language(N, Q, queries)
    return cf.Problem(made, cf.CausalLM(), *parts)


@pytest.mark.parametrize(
    "rung",
    [
        cf.Diagonal(), cf.KFAC(), cf.EKFAC(), cf.KFAC(cf.Empirical(), sharing=cf.Reduce()),
        cf.EKFAC(cf.Empirical()), cf.BlockGGN(), cf.GGN(), cf.Hessian(),
        cf.GGN(cf.inversion.ConjugateGradients(tolerance=1e-13)),
        cf.GGN(cf.inversion.SelectedRows(30, tolerance=1e-13)),
    ],
    ids=str,
)  # fmt: skip
def test_lengths_of_their_own(rung: cf.Rung) -> None:
    """Padded batch by batch, as collators do: the same as padded to one length."""
    made = language_problem(7, 4)
    assert isinstance(made.train, Stream)
    assert made.varied
    found = scores(made, rung)
    assert torch.allclose(found, scores(language_problem(None, None), rung), rtol=1e-8, atol=1e-12)


def test_tokens_of_their_own() -> None:
    found = cf.token_influence(language_problem(7, 4), cf.EKFAC())
    wanted = cf.token_influence(language_problem(None, None), cf.EKFAC())
    assert torch.allclose(found, wanted[:, :, : found.shape[2]], rtol=1e-8, atol=1e-13)
    assert not wanted[:, :, found.shape[2] :].any()


def test_queries_of_another_length() -> None:
    """Prompts are shorter than what was trained on."""
    short = language_problem(None, 1)
    assert short.varied
    wanted = scores(language_problem(None, None), cf.EKFAC())
    assert torch.allclose(scores(short, cf.EKFAC()), wanted, rtol=1e-8, atol=1e-12)


def test_sample_space_takes_one_length() -> None:
    with pytest.raises(cf.errors.InputError, match="several lengths have no one number of rows"):
        scores(language_problem(7, 4), cf.GGN(cf.inversion.SampleSpace()))


def test_a_model_of_one_width() -> None:
    """What is said of examples that it cannot take names their shape."""

    def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = (torch.stack(part) for part in zip(*items, strict=True))
        return x.repeat(1, 1 + len(items) % 2), y

    loader = DataLoader(Counted(), batch_size=4, collate_fn=collate)
    with pytest.raises(
        cf.errors.InputError, match=r"the model cannot be run on one example of shape \(10,\)"
    ):
        scores(problem(loader), cf.KFAC())


class Flips(Dataset[Any]):
    """Turns some of its items over, at random."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = X[index]
        return (x.flip(0) if torch.rand(()) < self.share else x), Y[index]


@pytest.mark.parametrize("remember", [None, 0])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_random_data_are_noticed(share: float, remember: int | None) -> None:
    """Held ones when the problem is made, others at the first pass: each draws other numbers."""
    for seed in range(8):
        torch.manual_seed(seed)
        with pytest.raises(cf.errors.InputError, match="when it is read again"):
            scored(Flips(share), remember)


def scored(data: Dataset[Any], remember: int | None) -> Tensor:
    made = cf.Problem(mlp(5, 3).float(), cf.CrossEntropy(), data, QUERIES, remember=remember)
    return cf.influence(made, cf.KFAC()).values
