"""The paper's own cells: nets, protocol, errors of inverses in a study, claims and their page."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.errors import InputError
from curvfluence.report.table1 import text as text_of
from curvfluence.report.table1 import write_table1
from curvfluence.report.table1.page import MEASURED
from curvfluence.study import StudySpec, load, run_study
from curvfluence.study.asked import asked
from curvfluence.study.claims import table1, table1_run
from curvfluence.study.claims.table1 import BIASED, DENSE, NETS, Cell, Extent, Net, Part, cells
from curvfluence.study.claims.table1_claims import table1_claims
from curvfluence.study.claims.table1_run import Table1, Table1Run, joined, read_table1, run_table1
from curvfluence.study.climb import influence_problems
from curvfluence.study.problems import MLP
from curvfluence.study.protocols import PROTOCOLS
from curvfluence.study.results import Results
from curvfluence.study.study import Study
from curvfluence.study.variant import Variant
from curvfluence.truth import Cosine, Trained
from tests import oracles
from tests.test_report import run

pytestmark = pytest.mark.xdist_group("table1")


class TestNets:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("activation", ["gelu", "tanh", "relu"])
    def test_it_is_what_it_says(self, activation: str, bias: bool) -> None:
        net = MLP((5, 4, 3, 2), activation, bias)
        kinds = [type(module) for module in net()]
        between = {"gelu": nn.GELU, "tanh": nn.Tanh, "relu": nn.ReLU}[activation]
        assert kinds == [nn.Linear, between, nn.Linear, between, nn.Linear]
        assert net.parameters == sum(p.numel() for p in net().parameters())
        assert net.hidden == (4, 3)
        assert net.with_hidden(depth=1).sizes == (5, 4, 2)
        assert net.with_hidden(width=7).sizes == (5, 7, 7, 2)
        assert MLP((5, 2)).with_hidden(depth=2, width=3).sizes == (5, 3, 3, 2)

    def test_refused(self) -> None:
        with pytest.raises(InputError, match="activation must be one of gelu, tanh, relu; seen 'x"):
            MLP((2, 2), "x")
        with pytest.raises(InputError, match="no hidden layer: name its width too"):
            MLP((2, 2)).with_hidden(depth=2)
        with pytest.raises(InputError, match="bias must be True or False"):
            MLP((2, 2), bias=1)  # type: ignore[arg-type]

    def test_a_variant_changes_it(self) -> None:
        problem = load("digits")
        net = Variant(activation="tanh", bias=False, width=8).apply(problem).recipe.architecture
        assert net == MLP((64, 8, 8, 10), "tanh", False)
        assert Variant(decay_in_inverse=False).apply(problem).decay_in_inverse is False
        assert Variant(decay_in_inverse=False).apply(problem).recipe is problem.recipe
        with pytest.raises(InputError, match="activation must be one of"):
            Variant(activation="sine")
        with pytest.raises(InputError, match="bias must be True or False"):
            Variant(bias=0)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="width 200, bias no make a net of 14,800"):
            Variant(width=200, depth=1, bias=False).apply(problem)
        own = replace(
            problem, recipe=replace(problem.recipe, architecture=lambda: nn.Linear(64, 9))
        )
        with pytest.raises(InputError, match="activation and bias can be changed in the built-in"):
            Variant(activation="tanh", bias=False).apply(own)


class TestProtocol:
    def test_recipe(self) -> None:
        """The paper's: tanh, no biases, plain SGD .03, cosine to 0, batches of 32, no decay."""
        given = load("digits").recipe
        recipe = PROTOCOLS["table1"].recipe(given)
        assert recipe.architecture == MLP((64, 16, 10), "tanh", False)
        assert recipe.optimizer == cf.truth.sgd(0.03)
        assert (recipe.batch_size, recipe.epochs, recipe.steps) == (32, 100, None)
        assert recipe.schedule == Cosine()
        assert (recipe.weight_decay, recipe.clip_norm) == (0.0, None)
        assert recipe.loss == given.loss

    def test_a_problem_that_cannot_have_it(self, tmp_path: Path) -> None:
        given = load("digits")
        own = replace(given, recipe=replace(given.recipe, architecture=lambda: nn.Linear(64, 10)))
        with pytest.raises(InputError, match="has an architecture of its own"):
            run_study(StudySpec("digits", 4, protocol="table1"), tmp_path / "x", problem=own)
        assert not (tmp_path / "x").exists()

    def test_every_chain_is_of_its_rungs(self) -> None:
        made = PROTOCOLS["table1"]
        names = set(made.rungs(0))
        for chain in made.chains:
            assert set(chain.rungs) <= names
        assert {name for step in made.steps for name in step} <= names
        assert len({chain.name for chain in made.chains}) == len(made.chains)


class TestCells:
    def test_full(self) -> None:
        """6 nets and 2 with biases, by 4 fractions at 10 and 100 epochs and 2 at 1,000."""
        every = cells("digits")
        assert len(every) == 8 * (4 + 4 + 2)
        assert len({cell.folder for cell in every}) == len(every)
        assert len({cell.bank for cell in every}) == 8 * 3
        retrained = sum(c.spec.models * c.spec.subsets * c.spec.alpha * c.epochs for c in every)
        assert 2.5e6 < retrained * 6 / 8 < 3.5e6
        wide = [cell for cell in every if cell.exact is not None]
        assert {cell.net for cell in wide} == {Net(1, 128)}
        for cell in wide:
            assert "Hessian" not in cell.spec.ladder
            assert cell.exact is not None
            assert (cell.exact.models, cell.exact.ladder[0]) == (1, "Hessian")
            assert cell.exact.seeds("order", 1) == cell.spec.seeds("order", 8)[:1]

    def test_sizes_are_those_of_the_nets(self) -> None:
        for net in (*NETS, *BIASED):
            cell = next(c for c in cells("digits") if c.net == net)
            problem = asked(cell.spec, load("digits"))
            count = sum(p.numel() for p in problem.recipe.build(0).parameters())
            assert cell.parameters == count
            assert (count > DENSE) == (cell.exact is not None)

    def test_quick(self) -> None:
        every = cells("digits", quick=True)
        assert [(c.net, c.epochs) for c in every] == [(n, e) for e in (10, 100) for n in NETS]
        assert {c.spec.alpha for c in every} == {0.5}
        assert {c.spec.subsets for c in every} == {50}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One little cell with every rung."""
    spec = StudySpec(
        "wine", 8, models=2, orders=1, dampings=(1e-3, 1e-2, 1e-1), protocol="table1",
        variant=Variant(width=4, epochs=3), bregman=False, costs=False, scores=False,
        replicates=200,
    )  # fmt: skip
    return run_study(spec, tmp_path_factory.mktemp("small") / "x", threads=1)


def at_model(study: Study, j: int) -> cf.Problem:
    """The study's problem in float64 at one of its checkpoints, from what it keeps."""
    spec = study.results.spec
    problem = asked(
        StudySpec(
            spec.problem, spec.subsets, protocol=spec.protocol, variant=Variant(**spec.variant)
        ),
        load(spec.problem),
    )
    names = problem.recipe.initial(0)
    theta = {name: torch.from_numpy(study.array(f"weights.{name}")) for name in names}
    runs = tuple(cf.truth.Run(0, k) for k in range(spec.models))
    trained = Trained(runs, theta, {}, torch.zeros(spec.models), cf.truth.Path.STACKED, "", 0.0)
    return influence_problems(problem, trained, torch.float64)[j]


class TestStudy:
    def test_errors_of_inverses_by_dense_algebra(self, small: Study) -> None:
        """Mean and median of ‖H Ĥ⁺v − v‖²/‖v‖², at each model, from the weights that it keeps."""
        vectors = small.results.inverse
        assert vectors is not None
        assert (vectors.train, vectors.queries, vectors.threshold) == (142, 36, 1e-4)
        for j in range(2):
            at = at_model(small, j)
            h = oracles.dense_hessian(at)
            order = torch.randperm(142, generator=torch.Generator().manual_seed(0)).sort().values
            v_np = oracles.example_gradients(at)[order]
            for name, rung in PROTOCOLS["table1"].rungs(0).items():
                if "mc" in name:
                    continue
                found = small.results.rung(name)
                assert found is not None
                assert found.inverse is not None
                fitted = cf.fit(at, rung)
                identity = name == "Identity"
                m = torch.eye(len(h)).double() if identity else fitted.to_dense()
                over = found.inverse.train
                self.agree(over.cut, j, cut_errors(h, m, v_np, signed=False))
                self.agree(over.signed, j, cut_errors(h, m, v_np, signed=True))
                x_np = v_np if identity else fitted.solve(v_np, cf.Absolute(1e-2))
                mu, u = torch.linalg.eigh(h)
                size = (u * mu.abs()) @ u.T
                for seen, top in ((over.damped[1], size), (over.plain[1], h)):
                    self.agree(seen, j, relative(x_np @ top + 1e-2 * x_np, v_np))

    def agree(self, seen: object, j: int, errors_n: Tensor) -> None:
        mean, median = seen.mean[j], seen.median[j]  # type: ignore[attr-defined]
        assert mean == pytest.approx(float(errors_n.mean()), rel=1e-6, abs=1e-12)
        assert median == pytest.approx(float(errors_n.quantile(0.5)), rel=1e-6, abs=1e-12)

    def test_each_chain_adds_up(self, small: Study) -> None:
        found = {part.fisher: part for part in small.results.decompositions}
        wanted = {"type2", "type2, TKFAC", "type2, Shampoo", "mc(1)", "mc(5)", "empirical"}
        assert set(found) == wanted
        for name, part in found.items():
            shares = [step.share for step in part.chain]
            assert sum(s for s in shares if s is not None) == pytest.approx(1.0)
            ends = name.partition(", ")[2] or ("KFAC" if name == "type2" else f"KFAC[{name}]")
            assert part.chain[-1].below == ends
            lost = [step.lds_share for step in part.chain if step.lds_share is not None]
            assert not lost or sum(lost) == pytest.approx(1.0)

    def test_what_is_kept(self, small: Study) -> None:
        assert small.array("draws.KFAC[mc(1)]") is not None
        assert small.scores("KFAC") is None
        assert small.array("predicted.KFAC") is None

    def test_no_error_where_weight_decay_is_in_the_inverse(self, tmp_path: Path) -> None:
        spec = StudySpec(
            "wine", 4, models=1, orders=1, dampings=(1e-2,), protocol="table1",
            rungs=("Hessian", "KFAC"), bregman=False, costs=False,
            variant=Variant(width=4, epochs=1, weight_decay=0.1),
        )  # fmt: skip
        assert run_study(spec, tmp_path / "x").results.inverse is None
        left_out = replace(spec, variant=replace(spec.variant, decay_in_inverse=False))
        assert run_study(left_out, tmp_path / "y").results.inverse is not None


def relative(found_np: Tensor, v_np: Tensor) -> Tensor:
    return (found_np - v_np).square().sum(1) / v_np.square().sum(1)


def cut_errors(h: Tensor, m: Tensor, v_np: Tensor, *, signed: bool) -> Tensor:
    mu, u = torch.linalg.eigh(m)
    keep = (mu if signed else mu.abs()) > 1e-4
    return relative(v_np @ ((u * torch.where(keep, 1 / mu, 0.0)) @ u.T) @ h, v_np)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table1Run:
    """The whole command on cells of nothing: two nets, of which one counts as wide."""
    patch = pytest.MonkeyPatch()
    small_protocol(patch)
    made = run_table1("digits", tmp_path_factory.mktemp("table") / "t", jobs=1)
    patch.undo()
    return made


def small_protocol(patch: pytest.MonkeyPatch) -> None:
    extent = {1: Extent(2, 6, (0.5, 0.8)), 2: Extent(2, 6, (0.5,))}
    patch.setattr(table1, "FULL", extent)
    patch.setattr(table1, "NETS", (Net(1, 4), Net(2, 4)))
    patch.setattr(table1, "BIASED", ())
    patch.setattr(table1, "DENSE", 200)
    patch.setattr(table1, "DAMPINGS", (1e-2, 1e-1))


def part_of(table: Table1, depth: int) -> Table1:
    cells = tuple(cell for cell in table.cells if cell.depth == depth)
    return msgspec.structs.replace(table, cells=cells, parts=(table1_run.PartAsked(depth),))


class TestParts:
    """Cells run apart, in several sittings or on several machines, and put together."""

    def test_cells_of_a_part(self) -> None:
        every = cells("digits")
        assert cells("digits", part=Part(depth=8, epochs=10)) == tuple(
            c for c in every if c.net.depth == 8 and c.epochs == 10
        )
        parts = [cells("digits", part=Part(epochs=e)) for e in (10, 100, 1000)]
        assert tuple(c for part in parts for c in part) == every
        with pytest.raises(InputError, match="table1 has no cell of depth 4, width 32: its nets"):
            cells("digits", part=Part(depth=4, width=32))
        with pytest.raises(InputError, match="depth must be"):
            Part(depth=0)

    def test_a_run_of_a_part(
        self, table: Table1Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small_protocol(monkeypatch)
        made = run_table1("digits", tmp_path / "p", jobs=1, part=Part(depth=2, epochs=2))
        found = read_table1(made.path / "table1.json").table
        assert found == made.table
        assert (found.parts[0].depth, found.parts[0].width, found.parts[0].epochs) == (2, None, 2)
        whole = [cell for cell in table.table.cells if (cell.depth, cell.epochs) == (2, 2)]
        assert list(found.cells) == whole
        assert len(whole) == 1  # which has a page and a picture too
        write_table1(made)
        assert "depth 2, width 4, 2 epochs" in (made.path / "report.html").read_text()

    def test_joined_is_the_whole(self, table: Table1Run, monkeypatch: pytest.MonkeyPatch) -> None:
        small_protocol(monkeypatch)
        found = [part_of(table.table, depth) for depth in (2, 1)]
        assert "A part of the cells: " in text_of(found[0]).markdown("figures")
        assert "--protocol table1 --depth 2\n" in text_of(found[0]).markdown("figures")
        whole = joined(found)
        assert whole == msgspec.structs.replace(table.table, seconds=2 * table.table.seconds)
        assert joined([table.table]) == table.table
        assert [part.depth for part in joined(found[:1]).parts] == [2]

    def test_refused(self, table: Table1Run) -> None:
        with pytest.raises(InputError, match="two parts hold the same cell: depth 1, width 4, 1 "):
            joined([table.table, table.table])
        with pytest.raises(InputError, match="agree in seed; seen 0 and 1"):
            joined([table.table, msgspec.structs.replace(table.table, seed=1)])
        other = msgspec.structs.replace(table.table.environment, torch="1.0")
        with pytest.raises(InputError, match=r"made by the same code; seen .*'torch': '1.0'"):
            joined([table.table, msgspec.structs.replace(table.table, environment=other)])

    def test_command(
        self, table: Table1Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """A table that was copied out of its folder is as good for the documentation."""
        copy, docs = tmp_path / "part.json", tmp_path / "docs.md"
        copy.write_bytes((table.path / "table1.json").read_bytes())
        code, _, err = run(["report", str(copy), "--docs", str(docs)], monkeypatch, capsys)
        assert (code, err) == (0, "")
        assert docs.read_text() == text_of(table.table).markdown("docs")
        assert (tmp_path / "docs" / "lds.svg").is_file()  # the picture that the text shows
        code, _, err = run(["report", str(copy)], monkeypatch, capsys)
        assert code == 2
        assert "a table alone has no page" in err
        words = ["claims", "digits", "--protocol", "table1", "--depth", "3"]
        code, _, err = run(words, monkeypatch, capsys)
        assert code == 2
        assert "table1 has no cell of depth 3" in err
        code, _, err = run(["claims", "digits", "--epochs", "3"], monkeypatch, capsys)
        assert code == 2
        assert "seen --epochs alone" in err


class TestTable:
    def test_every_cell_with_every_claim(self, table: Table1Run) -> None:
        found = read_table1(table.path).table
        assert found == table.table
        assert len(found.cells) == 2 * 3
        for cell in found.cells:
            assert [row.claim for row in cell.claims] == [c.text for c in table1_claims()]
            assert cell.first_model is not None  # more than 200 parameters
            names = {rung.name: rung for rung in cell.rungs}
            assert (names["Hessian"].models, names["KFAC"].models) == (1, 2)
            assert names["KFAC"].error_models == 1
            assert names["KFAC"].error_mean is not None
            assert (table.path / cell.bank).is_dir()

    def test_a_claim_is_the_number_of_its_study(self, table: Table1Run) -> None:
        cell = table.table.cells[0]
        results = self.results(table.path / cell.folder)
        row = next(r for r in cell.claims if r.claim == "EK-FAC ≫ K-FAC")
        pair = results.difference("EKFAC", "KFAC")
        assert pair is not None
        assert row.measured == pytest.approx(pair.difference)
        assert row.interval == pytest.approx(tuple(pair.interval))
        first = self.results(table.path / str(cell.first_model))
        row = next(r for r in cell.claims if r.claim.endswith("(mean)") and "paper's" in r.claim)
        errors = [
            first.rung(name).inverse.train.cut.mean[0]  # type: ignore[union-attr]
            for name in ("GGN", "BlockGGN", "EKFAC", "KFAC")
        ]
        assert row.measured == pytest.approx(min(b - a for a, b in pairwise(errors)))  # type: ignore[operator]
        assert row.interval is None  # of one model
        assert row.verdict == "not resolved"

    def results(self, folder: Path) -> Results:
        from curvfluence.study import read_study

        return read_study(folder).results

    def test_first_models_share_the_bank(self, table: Table1Run) -> None:
        """One bank for each training: retrainings at two fractions, of two models."""
        from curvfluence.banks import verify_bank

        cell = next(c for c in table.table.cells if c.epochs == 1)
        assert verify_bank(table.path / cell.bank).retrainings == 2 * 2 * 6

    def test_every_measure_is_of_a_claim(self, table: Table1Run) -> None:
        """Or its line would count no cell."""
        named = {statement for _, measured in MEASURED for _, statement in measured}
        assert named <= set(table.table.statements)

    def test_page_and_text(self, table: Table1Run) -> None:
        done = write_table1(table)
        page, text = done.path.read_text(), text_of(table.table).markdown("figures")
        assert (table.path / "figures" / "lds.svg").is_file()
        for statement in table.table.statements:
            assert statement.replace(">", "&gt;").replace("'", "&#39;") in page
            assert statement in text
        assert "Provisional" not in text
        assert "Made by:\n\n```sh\ncurvfluence claims digits --protocol table1\n```" in text

    def test_command(
        self, table: Table1Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, out, _ = run(["report", str(table.path)], monkeypatch, capsys)
        assert code == 0
        assert "report.html" in out
        for words, said in (
            (["--quick"], "of clean and paper together, or of table1; seen --quick alone"),
            (["--protocol", "paper"], "seen --protocol paper"),
            (["--protocol", "table1", "--models", "9"], "it does not take --models"),
            (["wine", "--protocol", "table1"], "it does not take more than one problem"),
        ):
            code, _, err = run(["claims", "digits", *words], monkeypatch, capsys)
            assert code == 2
            assert said in err

    def test_nothing_is_done_for_a_problem_without_nets(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "mine.py"
        code, _, _ = run(["init", str(path)], monkeypatch, capsys)
        words = ["claims", str(path), "--protocol", "table1", "--out", str(tmp_path / "o")]
        code, _, err = run(words, monkeypatch, capsys)
        assert code == 2
        assert "has an architecture of its own" in err
        assert not (tmp_path / "o").exists()


def test_a_table_names_no_folder_outside_its_own(table: Table1Run) -> None:
    file = table.path / table1_run.TABLE1
    text = file.read_text()
    try:
        file.write_text(text.replace('"bank": "banks/', '"bank": "../banks/', 1))
        with pytest.raises(InputError, match="outside of its own"):
            read_table1(table.path)
    finally:
        file.write_text(text)


def test_cells_are_studies_that_make_sense() -> None:
    for cell in (*cells("digits"), *cells("digits", quick=True)):
        assert isinstance(cell, Cell)
        assert 0.01 in cell.spec.dampings
