"""`influence(memory=)`: blocks one group after another, and their shares added."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.cli import app
from curvfluence.curvature.operators import low_rank_search
from curvfluence.curvature.rung import Rung
from curvfluence.errors import CoverageError, InputError
from curvfluence.jacobian.cache import CachedRows
from curvfluence.score import within_memory
from tests.zoo import CASES, zoo_problem

MANY = 2**40
RUNGS = {
    "EKFAC": cf.EKFAC(),
    "KFAC of two draws": cf.KFAC(cf.MonteCarlo(2)),
    "EKFAC, bias apart": cf.EKFAC(joint_bias=False),
    "BlockGGN": cf.BlockGGN(),
    "Diagonal": cf.Diagonal(),
}


def least(problem: cf.Problem, rung: Rung) -> int:
    """What the largest block takes by itself: below it nothing can be had."""
    units = within_memory._units(rung.coverage(problem))  # pyright: ignore[reportPrivateUsage]
    alone = [problem.restricted(sorted(unit.parameters)) for unit in units]
    return max(within_memory._needed(each, rung) for each in alone)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.filterwarnings("ignore::curvfluence.errors.CurvfluenceWarning")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rung", RUNGS)
def test_the_sum_of_shares_is_the_whole(name: str, rung: str) -> None:
    """Of every kind of layer, in as many groups as there can be: the same scores, dampings and
    coverage, in the order of blocks."""
    problem, of = zoo_problem(name), RUNGS[rung]
    if of == RUNGS["BlockGGN"] and problem.parameters.count > 400:
        of = cf.EKFAC(cf.Empirical())
    for damping in (cf.Absolute(1e-2), cf.Relative(0.1)):
        wanted = cf.influence(problem, of, damping=damping)
        found = cf.influence(problem, of, damping=damping, memory=least(problem, of))
        scale = float(wanted.values.abs().max())
        assert torch.allclose(found.values, wanted.values, rtol=0, atol=1e-9 * scale)
        assert sorted(line.block for line in found.coverage) == sorted(
            line.block for line in wanted.coverage
        )
        near = {name: pytest.approx(value, rel=1e-9) for name, value in wanted.lambdas}
        assert dict(found.lambdas) == near
        assert (found.fisher, found.rung, found.unit) == (wanted.fisher, wanted.rung, wanted.unit)


def net() -> cf.Problem:
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(24, 24), nn.Tanh())))
    x, y = torch.randn(40, 24), torch.randint(24, (40,))
    return cf.Problem(model, cf.CrossEntropy(), (x, y), (x[:5], y[:5]), remember=MANY)


def test_no_more_is_held_than_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices and queries by the count of what a group holds, and gradients in what is left."""
    problem, granted = net(), list[int]()
    made = CachedRows.__init__

    def seen(self: CachedRows, room: int, *rest: object, **more: object) -> None:
        granted.append(room)
        made(self, room, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(CachedRows, "__init__", seen)
    whole = cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(1e-2))
    room = 2 * least(problem, cf.EKFAC()) + 1000
    granted.clear()
    scores = cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(1e-2), memory=room)
    assert max(granted) <= room
    assert any("in 2 groups of blocks" in note for note in scores.notes), scores.notes
    assert 0 < scores.cost.nbytes <= 0.6 * whole.cost.nbytes
    assert torch.allclose(scores.values, whole.values, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="were made within a memory"):
        scores.certificate()


SORTED = cf.hybrids.Sorted(cf.KFAC(), cf.EKFAC())
OVER_ALL = (
    cf.hybrids.Sorted(cf.GGN(), cf.KFAC()),
    cf.hybrids.Sorted(cf.KFAC(joint_bias=False), cf.Diagonal()),
    cf.hybrids.TraceMatched(cf.KFAC(), cf.GGN()),
)


@pytest.mark.parametrize("rung", [SORTED, cf.hybrids.Project(cf.GGN(), cf.KFAC())], ids=str)
def test_hybrids_of_the_same_blocks(rung: Rung) -> None:
    problem, at = net().to(torch.float64), cf.Absolute(1e-2)
    wanted = cf.influence(problem, rung, damping=at)
    found = cf.influence(problem, rung, damping=at, memory=least(problem, rung))
    assert "groups of blocks" in found.notes[-1]
    torch.testing.assert_close(found.values, wanted.values)


@pytest.mark.parametrize("rung", OVER_ALL, ids=str)
def test_hybrids_whose_blocks_hang_together_are_refused(rung: Rung) -> None:
    """One spectrum, or one trace, over all parameters: no part of it is that of a part."""
    with pytest.raises(InputError, match="of which no part can be taken alone"):
        cf.influence(net(), rung, damping=cf.Absolute(1e-2), memory="1GiB")


def test_products_are_in_full_in_several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share's error is of the share's size, and shares may cancel: here to a thousandth."""
    monkeypatch.setattr(low_rank_search, "LEAST", 1)
    torch.manual_seed(0)
    x = torch.randn(300, 40, dtype=torch.float64)

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Linear(40, 30, bias=False).double() for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x[:, 0]) + self.b(x[:, 1])

    model = Sum()
    train = torch.stack([x, x], 1)
    queries = torch.stack([x[:60], -x[:60] + 1e-3 * x[1:61]], 1)
    y = torch.randint(30, (300,))
    problem = cf.Problem(model, cf.CrossEntropy(), (train, y), (queries, y[:60]))
    rung, at = cf.KFAC(cf.Empirical()), cf.Absolute(1e-2)
    wanted = cf.influence(problem, rung, damping=at).values
    room = least(problem, rung)
    found = cf.influence(problem, rung, damping=at, inverse_error=1e-2, memory=room)
    assert found.inverse_error is None
    torch.testing.assert_close(found.values, wanted, rtol=1e-9, atol=1e-12)


def test_in_one_group_it_is_the_same_to_the_bit() -> None:
    """And still has its curvature, for a certificate."""
    wanted = cf.influence(net(), cf.EKFAC(), damping=cf.Absolute(1e-2))
    found = cf.influence(net(), cf.EKFAC(), damping=cf.Absolute(1e-2), memory="1TiB")
    assert torch.equal(found.values, wanted.values)
    assert found.certificate().worst == pytest.approx(wanted.certificate().worst)


def test_predictions_that_are_too_large_are_noted_of_the_sum_alone() -> None:
    problem, tiny = net().to(torch.float64), cf.Absolute(1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = cf.influence(problem, cf.EKFAC(), damping=tiny)
        found = cf.influence(problem, cf.EKFAC(), damping=tiny, memory=least(problem, cf.EKFAC()))
    (said,) = (note for note in wanted.notes if "predictions are larger" in note)
    (again,) = (note for note in found.notes if "predictions are larger" in note)
    assert said.split(" predictions")[0] == again.split(" predictions")[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8GiB", 8 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("300 MiB", 300 * 2**20),
        ("2kB", 2000),
        ("17", 17),
        ("17 B", 17),
        (" 1TiB ", 2**40),
    ],
)
def test_a_memory_as_text(text: str, value: int) -> None:
    assert cf.kinds.memory(text, "memory") == value


@pytest.mark.parametrize("given", ["8 apples", "-1GiB", "", "GiB", "1e9", "0", 0, -5, 1.5, True])
def test_a_memory_that_is_none(given: object) -> None:
    with pytest.raises(InputError, match="memory"):
        cf.influence(net(), cf.EKFAC(), memory=given)  # type: ignore[arg-type]


def test_bad_input(tmp_path: Path) -> None:
    """Before any work."""
    problem, at = net(), cf.Absolute(1e-2)
    assert cf.kinds.memory("9" * 400, "memory") > 2**60  # as much as there is
    for rung in ("EKFAC", None, cf.EKFAC):
        with pytest.raises(InputError, match="a rung is an object such as"):
            cf.influence(problem, rung, damping=at, memory="1GiB")  # type: ignore[arg-type]
    for memory in (None, "1GiB"):
        with pytest.raises(InputError, match="problem"):
            cf.influence("p", cf.EKFAC(), memory=memory)  # type: ignore[arg-type]
    norm = zoo_problem("layer norm")
    room = least(norm, cf.EKFAC())
    with pytest.raises(CoverageError, match=r"has no rule for 15\.7%"):
        cf.influence(norm, cf.EKFAC(), damping=at, memory=room, strict=True)
    with pytest.raises(InputError, match=r"block 0 takes about .* by itself, and memory is"):
        cf.influence(problem, cf.EKFAC(), damping=at, memory=1000)
    for rung in (cf.GGN(), cf.Hessian()):
        with pytest.raises(InputError, match="is one block"):
            cf.influence(problem, rung, damping=at, memory="1GiB")
    with pytest.raises(InputError, match="is fitted: give its rung"):
        cf.influence(problem, cf.fit(problem, cf.KFAC()), damping=at, memory="1GiB")
    for more in ({"leverage": True}, {"by_block": True}, {"out": tmp_path / "s.npy"}):
        with pytest.raises(InputError, match="plain scores"):
            cf.influence(problem, cf.EKFAC(), damping=at, memory="1GiB", **more)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_columns_by_layer_need_the_last_layer() -> None:
    """70 classes over a last layer of 8 inputs: exact by 8 columns, which the first layer alone
    has not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 70))
    x, y = torch.randn(20, 6), torch.randint(70, (20,))
    problem = cf.Problem(model, cf.CrossEntropy(), (x, y), (x[:2], y[:2]))
    room = least(problem, cf.EKFAC(cf.MonteCarlo(2)))
    with pytest.raises(InputError, match="goes by the last layer"):
        cf.influence(problem, cf.EKFAC(), memory=room)
    sampled = cf.EKFAC(cf.MonteCarlo(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cf.influence(problem, sampled, memory=room)
        wanted = cf.influence(problem, sampled)
    assert torch.allclose(found.values, wanted.values, rtol=1e-3, atol=1e-5)


def test_the_command(tmp_path: Path) -> None:
    """The same lists as without, in several groups, and no second rung but one that is named."""
    made, page = tmp_path / "p.py", tmp_path / "page.html"
    made.write_text(
        "import torch\nimport curvfluence as cf\ntorch.manual_seed(0)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(9, 20), torch.nn.Tanh(), "
        "torch.nn.Linear(20, 3))\n"
        "x, y = torch.randn(30, 9), torch.randint(3, (30,))\n"
        "problem = cf.Problem(model, cf.CrossEntropy(), (x, y), (x[:2], y[:2]))\n"
    )
    tables = []
    for more in ([], ["--memory", "14kB"]):
        table = tmp_path / f"{len(more)}.csv"
        words = ["attribute", str(made), "--top", "3", "--beside", "none", "--table", str(table)]
        done = CliRunner().invoke(app, [*words, "--out", str(page), "--no-progress", *more])
        assert done.exit_code == 0, done.output
        tables.append([row.split(",")[:3] for row in table.read_text().splitlines()])
    one, other = ([row[:2] for row in rows] for rows in tables)
    assert one == other
    values = ([float(row[2]) for row in rows[1:]] for rows in tables)
    assert next(values) == pytest.approx(next(values), rel=1e-4)
    assert "2 groups of blocks" in page.read_text()
    words = ["attribute", str(made), "--out", str(page), "--no-progress", "--memory"]
    done = CliRunner().invoke(app, [*words, "14kB"])
    assert "a second rung is one that is named" in done.output
    for last, why in ((["1kB"], "by itself, and memory is"), (["14kB", "--bounds"], "the whole")):
        done = CliRunner().invoke(app, [*words, *last])
        assert isinstance(done.exception, InputError)
        assert why in str(done.exception)
