"""An index's folder: gone on with, held to what was written, refused; and its commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from torch import nn

import curvfluence as cf
from curvfluence.cli import app
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.indexing import encode, landmarks, make, shards
from curvfluence.indexing.records import INDEX, IndexRecord
from curvfluence.runs.find import find
from curvfluence.runs.verify import verify
from curvfluence.store.arrays import write_array
from curvfluence.store.records import as_json, read, seal, write
from tests.indexed import DAMPING, coordinates, held, more
from tests.problems import chain_problem, mixed_problem


@pytest.fixture
def problem() -> cf.Problem:
    return chain_problem()


def _whole(problem: cf.Problem, *_: object) -> int:
    return len(problem.train)


class TestFolder:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encode, "SHARD", 5)
        monkeypatch.setattr("curvfluence.runtime.budget.EXAMPLES", 5)

    def test_goes_on(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stopped after every write, each time at the next: the same bytes in the end."""

        class Stop(Exception):
            pass

        whole = cf.index(problem, cf.EKFAC(), out=tmp_path / "a", damping=DAMPING)
        assert len(whole.record.shards) > 2
        written = make.write
        stops = 0
        while True:
            allowed = 1

            def once(path: Path, record: IndexRecord) -> str:
                nonlocal allowed
                if allowed == 0:
                    raise Stop
                allowed -= path.name == INDEX  # what is begun is begun again
                return written(path, record)

            monkeypatch.setattr(make, "write", once)
            try:
                index = cf.index(problem, cf.EKFAC(), out=tmp_path / "b", damping=DAMPING)
                break
            except Stop:
                stops += 1
                with pytest.raises(InputError, match=r"is not finished|holds no index"):
                    cf.load_index(tmp_path / "b", problem)
        assert stops == len(whole.record.shards) + 2
        assert torch.equal(coordinates(index), coordinates(whole))
        assert index.record.recall == whole.record.recall
        again = cf.index(problem, cf.EKFAC(), out=tmp_path / "b", damping=DAMPING)
        assert again.record == index.record

    def test_progress(self, problem: cf.Problem, tmp_path: Path) -> None:
        told: list[int] = []
        cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, progress=told.append)
        assert told[-1] == len(problem.train)
        assert len(told) > 2
        assert told == sorted(told)

    def test_ids(self, problem: cf.Problem, tmp_path: Path) -> None:
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        assert torch.equal(index.ids, problem.train.contents)

    @pytest.mark.parametrize("what", ["phi", "ids", "landmarks", "factor", "curvature"])
    def test_damage(self, what: str, problem: cf.Problem, tmp_path: Path) -> None:
        folder = tmp_path / "i"
        cf.index(problem, cf.EKFAC(), out=folder, damping=DAMPING)
        name = {"phi": "shards/00001.phi.npy", "ids": "shards/00000.ids.npy"}.get(
            what, "curvature/0000.npy" if what == "curvature" else f"{what}.npy"
        )
        file = folder / name
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(bytes(data))
        with pytest.raises(InputError, match="is not what was written"):
            cf.load_index(folder, problem)
        file.unlink()
        with pytest.raises(InputError, match="is missing"):
            cf.load_index(folder, problem)

    def test_an_edited_record(self, problem: cf.Problem, tmp_path: Path) -> None:
        cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        file = tmp_path / "i" / INDEX
        value = json.loads(file.read_text())
        value["recall"]["helpful"] = 0.5
        file.write_text(json.dumps(value))
        with pytest.raises(InputError, match="is not what was written"):
            cf.load_index(tmp_path / "i", problem)

    def test_another(self, problem: cf.Problem, tmp_path: Path) -> None:
        folder = tmp_path / "i"
        index = cf.index(problem, cf.EKFAC(), out=folder, damping=DAMPING)
        changes: list[dict[str, Any]] = [
            {"rung": cf.KFAC()},
            {"damping": cf.Absolute(0.06)},
            {"dimension": 3},
            {"seed": 1},
            {"dtype": torch.float16},
        ]
        for changed in changes:
            options: dict[str, Any] = {"rung": cf.EKFAC(), "damping": DAMPING, **changed}
            rung = options.pop("rung")
            with pytest.raises(InputError, match=f"of another {next(iter(changed))}"):
                cf.index(problem, rung, out=folder, **options)
        with torch.no_grad():
            moved = {k: v + 0.01 for k, v in problem.model.state_dict().items()}
        with pytest.raises(InputError, match="another problem, which differs in the weights: give"):
            cf.load_index(folder, problem.at(moved))
        held(problem.train).tensors[0][0] += 1
        with pytest.raises(InputError, match="data were changed since the index was made"):
            index.query()
        other = tmp_path / "o"
        other.mkdir()
        (other / "mine.txt").write_text("keep")
        with pytest.raises(InputError, match="holds files that are no index"):
            cf.index(problem, cf.EKFAC(), out=other, damping=DAMPING)
        with pytest.raises(InputError, match="holds no index"):
            cf.load_index(other, problem)

    def test_nothing_of_the_users_is_removed(self, problem: cf.Problem, tmp_path: Path) -> None:
        """A folder that holds a curvature of somebody's own is refused, as it is."""
        own = tmp_path / "i" / "curvature"
        cf.fit(problem, cf.KFAC()).save(own)
        (own / "my_notes.txt").write_text("mine")
        before = {file: file.read_bytes() for file in own.iterdir()}
        for rung in (cf.KFAC(), cf.EKFAC()):
            with pytest.raises(InputError, match="holds files that are no index"):
                cf.index(problem, rung, out=tmp_path / "i", damping=DAMPING)
        assert before == {file: file.read_bytes() for file in own.iterdir()}

    def test_killed_while_the_curvature_is_written(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, calls = cf.Curvature.save, list[int]()

        def half(self: cf.Curvature, path: Path) -> None:
            real(self, path)
            calls.append(1)
            if len(calls) == 1:
                (Path(path) / "curvature.json").unlink()
                raise KeyboardInterrupt

        monkeypatch.setattr(cf.Curvature, "save", half)
        with pytest.raises(KeyboardInterrupt):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        with pytest.raises(InputError, match="holds files that are no index"):
            cf.index(problem, cf.KFAC(), out=tmp_path / "i", damping=DAMPING)
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        assert index.record.recall is not None

    def test_damage_is_not_gone_on_with(self, problem: cf.Problem, tmp_path: Path) -> None:
        """Neither the call that made it nor one that goes on believes a file that was changed."""
        cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        file = tmp_path / "i/shards/00001.phi.npy"
        data = bytearray(file.read_bytes())
        data[-5] ^= 255
        file.write_bytes(bytes(data))
        with pytest.raises(InputError, match="is not what was written"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)

    def test_who_made_a_finished_one_does_not_matter(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        half = structs.replace(whole.record, recall=None)
        monkeypatch.setitem(make.MAKERS, "threads", lambda: "99")
        again = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        assert again.record == whole.record
        write(tmp_path / "i" / INDEX, half)
        with pytest.raises(InputError, match="an index of another threads"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)

    def test_runs_know_it(self, problem: cf.Problem, tmp_path: Path) -> None:
        """`curvfluence runs` tells an index, finished or not, and what is wrong with it."""
        folder = tmp_path / "i"
        record = cf.index(problem, cf.EKFAC(), out=folder, damping=DAMPING).record
        (found,) = find(tmp_path)
        assert (found.kind, found.state) == ("index", "finished")
        assert [(one.kind, one.fault) for one in verify(folder)] == [("index", None)]
        write(folder / INDEX, structs.replace(record, recall=None))
        assert find(tmp_path)[0].state == "unfinished"
        (one,) = verify(folder)
        assert one.fault is not None
        assert "unfinished" in one.fault
        write(folder / INDEX, record)
        for name in ("curvature/0000.npy", "factor.npy", "shards/00000.ids.npy"):
            held_before = (folder / name).read_bytes()
            (folder / name).write_bytes(held_before[:-1] + bytes([held_before[-1] ^ 1]))
            (one,) = verify(folder)
            assert one.fault is not None
            assert "not what was written" in one.fault
            (folder / name).write_bytes(held_before)

    def test_hostile_records(self, problem: cf.Problem, tmp_path: Path) -> None:
        """Sealed anew by whoever changed them: an error of the package's own, whatever is wrong."""
        folder = tmp_path / "i"
        record = cf.index(problem, cf.EKFAC(), out=folder, damping=DAMPING).record
        assert record.recall is not None
        assert record.landmarks is not None
        assert record.factor is not None
        first, recall = record.shards[0], record.recall
        changes: list[dict[str, Any]] = [
            {"examples": record.examples + 1},
            {"examples": 10**15},
            {"shards": ()},
            {"shards": record.shards[:-1]},
            {"shards": (structs.replace(first, examples=3), *record.shards[1:])},
            {"shards": (structs.replace(first, phi=first.ids), *record.shards[1:])},
            {"shards": (structs.replace(first, ids=first.phi), *record.shards[1:])},
            {"landmarks": None},
            {"factor": None},
            {"landmarks": record.factor},
            {"factor": record.landmarks},
            {"dtype": "object"},
            {"dtype": "float16"},
            {"recall": structs.replace(recall, errors=())},
            {"recall": None},
            {"fitted_on": "0" * 16},
        ]
        for changed in changes:
            write(folder / INDEX, structs.replace(record, **changed))
            with pytest.raises(InputError):
                cf.load_index(folder, problem)
        for text in (
            {"scale": 0.0}, {"scale": -1.0}, {"recall": {"helpful": 7.0}}, {"examples": -1}
        ):  # fmt: skip
            value = as_json(record)
            for key, new in text.items():
                value[key] = {**value[key], **new} if isinstance(new, dict) else new
            sealed = {"sha256": seal(value), **value}
            (folder / INDEX).write_text(json.dumps(sealed))
            with pytest.raises(InputError):
                cf.load_index(folder, problem)
        write(folder / INDEX, record)
        cf.load_index(folder, problem)

    def test_hostile_arrays(self, problem: cf.Problem, tmp_path: Path) -> None:
        folder = tmp_path / "i"
        index = cf.index(problem, cf.EKFAC(), out=folder, damping=DAMPING)
        record = index.record
        numbers, factor = index.landmarks.numbers.numpy(), index.landmarks.factor.numpy()
        phi, ids = (one[0].clone().numpy() for one in (index.shards.phi, index.shards.ids))
        first = record.shards[0]

        def put(where: str, array: Any) -> IndexRecord:
            name = f"{where}.npy" if where in ("landmarks", "factor") else (
                f"shards/00000.{where}.npy"
            )  # fmt: skip
            said = write_array(folder / name, array, record.key)
            if where in ("landmarks", "factor"):
                return structs.replace(record, **{where: said})
            shard = structs.replace(first, **{where: said})
            return structs.replace(record, shards=(shard, *record.shards[1:]))

        nan, inf = phi.copy(), phi.copy()
        nan[2, 1], inf[0, 0] = np.nan, np.inf
        hostile: list[tuple[str, Any]] = [
            ("landmarks", numbers + 1000),
            ("landmarks", -numbers - 1),
            ("landmarks", np.zeros_like(numbers)),
            ("landmarks", numbers.astype(np.float64)),
            ("landmarks", numbers.astype(np.uint64)),
            ("landmarks", numbers[:-1]),
            ("factor", np.zeros_like(factor)),
            ("factor", -factor),
            ("factor", factor.T.copy()),
            ("factor", factor[:3, :3]),
            ("factor", factor[0]),
            ("factor", factor.astype(np.float32)),
            ("factor", factor.astype(">f8")),
            ("phi", nan),
            ("phi", inf),
            ("phi", phi[:, :-1]),
            ("phi", phi[:-1]),
            ("phi", phi[0]),
            ("phi", phi.astype(np.longdouble)),
            ("phi", phi.astype(">f4")),
            ("phi", phi.astype(complex)),
            ("phi", phi.astype(str)),
            ("ids", ids + 1),
            ("ids", ids.astype(np.float64)),
            ("ids", ids[:-1]),
        ]
        for where, array in hostile:
            write(folder / INDEX, put(where, array))
            with pytest.raises(InputError):
                cf.load_index(folder, problem)
            put(where, {"landmarks": numbers, "factor": factor, "phi": phi, "ids": ids}[where])
        write(folder / INDEX, record)
        cf.load_index(folder, problem)

    def test_a_fitted_curvature(self, problem: cf.Problem, tmp_path: Path) -> None:
        curvature = cf.fit(problem, cf.EKFAC())
        a = cf.index(problem, curvature, out=tmp_path / "a", damping=DAMPING)
        b = cf.index(problem, cf.EKFAC(), out=tmp_path / "b", damping=DAMPING)
        assert torch.equal(torch.cat(a.shards.phi), torch.cat(b.shards.phi))
        cf.index(problem, curvature, out=tmp_path / "a", damping=DAMPING)
        with pytest.raises(InputError, match="holds an index of another"):
            cf.index(problem, cf.fit(problem, cf.KFAC()), out=tmp_path / "a", damping=DAMPING)

    def test_paths_and_functions(self, problem: cf.Problem, tmp_path: Path) -> None:
        for out in ("a\0b", None, 3):
            with pytest.raises(InputError, match="out must be"):
                cf.index(problem, cf.EKFAC(), out=out, damping=DAMPING)  # pyright: ignore[reportArgumentType]
        progress: Any = 3
        with pytest.raises(InputError, match="progress"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, progress=progress)
        assert not (tmp_path / "i").exists()
        index = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING)
        shutil.rmtree(tmp_path / "i")
        with pytest.raises(InputError, match="there is no index"):
            index.append(more(2))
        assert not (tmp_path / "i").exists()

    def test_refused(self, problem: cf.Problem, tmp_path: Path) -> None:
        out = tmp_path / "i"
        truth = object()
        cases: list[tuple[cf.Rung, dict[str, Any], str]] = [
            (cf.Hessian(), {}, "may have negative eigenvalues"),
            (cf.GGN(form=cf.inversion.SampleSpace()), {}, "is inverted by products with the data"),
            (cf.EKFAC(), {"dimension": 0}, "dimension"),
            (cf.EKFAC(), {"error": 1.5}, "error must lie"),
            (cf.EKFAC(), {"dtype": torch.float64}, "torch.float32 or torch.float16"),
            (cf.EKFAC(), {"damping": 0.1}, "one damping"),
            (cf.EKFAC(), {"damping": truth}, "one damping"),
        ]
        for rung, options, said in cases:
            given: dict[str, Any] = {"damping": DAMPING, **options}
            with pytest.raises(InputError, match=said):
                cf.index(problem, rung, out=out, **given)
        index = cf.index(problem, cf.EKFAC(), out=out, damping=DAMPING)
        asked: list[tuple[dict[str, Any], str]] = [
            ({"k": 0}, "k"),
            ({"k": 300}, "k must be at most candidates"),
            ({"queries": [99999]}, "there are"),
            ({"queries": []}, "a query or more"),
            ({"by": cf.fit(mixed_problem(), cf.KFAC())}, "fitted"),
        ]
        for options, said in asked:
            with pytest.raises(InputError, match=said):
                index.query(**options)

    def test_without_gradients(self, tmp_path: Path) -> None:
        layer = nn.Linear(2, 1)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        model = nn.Sequential(layer)
        x, y = torch.randn(6, 2), torch.zeros(6, 1)
        problem = cf.Problem(model, cf.MSE(), (x, y), (x, y))
        with pytest.raises(InputError, match="are all 0"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=cf.Absolute(1.0))

    def test_beyond_float16(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = make._with_landmarks  # pyright: ignore[reportPrivateUsage]

        def tiny(*given: Any) -> IndexRecord:
            return structs.replace(real(*given), scale=1e-9)

        monkeypatch.setattr(make, "_with_landmarks", tiny)
        with pytest.raises(NonFiniteError, match=r"are beyond torch\.float16"):
            cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=DAMPING, dtype=torch.float16)

    def test_several_at_a_time(
        self, problem: cf.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Landmarks solved in parts, queries in parts, a search in parts: the same."""
        one = cf.index(problem, cf.EKFAC(), out=tmp_path / "a", damping=DAMPING)
        monkeypatch.setattr("curvfluence.runtime.budget.SOLVED", 2 * problem.parameters.count)
        monkeypatch.setattr(landmarks, "sample_size", _whole)
        monkeypatch.setattr(shards, "SEARCHED", 3)
        two = cf.index(problem, cf.EKFAC(), out=tmp_path / "b", damping=DAMPING)
        torch.testing.assert_close(torch.cat(one.shards.phi), torch.cat(two.shards.phi))
        n = len(problem.train)
        a, b = one.query(k=3, candidates=n), two.query(k=3, candidates=n)
        torch.testing.assert_close(a.top.values, b.top.values)


MINE = """
import torch
from torch import nn
import curvfluence as cf

torch.manual_seed(0)
x, y = torch.randn(60, 4), torch.randint(3, (60,))
model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
problem = cf.Problem(model, cf.CrossEntropy(), (x[:40], y[:40]), (x[40:44], y[40:44]))
"""


class TestCommands:
    def run(self, *words: str) -> str:
        from typer.testing import CliRunner

        found = CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    def test_index_and_query(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.py").write_text(MINE)
        said = self.run("index", "mine.py", "--dimension", "20", "--half", "--no-progress")
        assert "40 examples by 20 coordinates" in " ".join(said.split())
        said = self.run("query", "mine.py", "--query", "2", "--top", "3", "--certificate")
        assert "mine, query 2" in said
        assert "Certificate" in said
        record = read(tmp_path / "index" / INDEX, IndexRecord)
        assert record is not None
        assert record.dtype == "float16"
        more = f"{MINE}\nappended = [(x[44:], y[44:])]\n"
        (tmp_path / "mine.py").write_text(more)
        with pytest.raises(InputError, match="are not in the index"):
            self.run("query", "mine.py")
        said = self.run("index", "mine.py", "--dimension", "20", "--half", "--no-progress")
        assert "56 examples" in said
        said = self.run("query", "mine.py", "--by", "GGN", "--top", "30", "--query", "0")
        assert "appended" in said
        (tmp_path / "mine.py").write_text(f"{MINE}\nappended = 3\n")
        with pytest.raises(InputError, match="`appended` must be a list"):
            self.run("query", "mine.py")
