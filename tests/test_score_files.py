"""Scores that travel: tables, files without pickle, names of the user's own, a notebook's view."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import curvfluence as cf
from curvfluence.errors import InputError
from curvfluence.score import load
from curvfluence.score.scores import Scores
from tests.problems import chain_problem

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def scores() -> Scores:
    return cf.influence(chain_problem(), cf.EKFAC(), damping=cf.Absolute(0.1), by_block=True)


def named(scores: Scores) -> Scores:
    q, n = scores.values.shape
    return scores.with_ids([f"img-{k}.png" for k in range(n)], [f"query {k}" for k in range(q)])


class TestFrame:
    def test_every_row(self, scores: Scores) -> None:
        q, n = scores.values.shape
        frame = scores.to_frame()
        assert list(frame.columns) == ["query", "train", "influence", "rank", "help"]
        assert len(frame) == q * n
        for row in frame.itertuples():
            assert row.influence == float(scores.values[row.query, row.train])
            assert row.help == float(scores.help[row.query, row.train])
        for _, part in frame.groupby("query"):
            assert list(part["rank"]) == list(range(1, n + 1))
            assert (np.diff(part["help"]) <= 0).all()

    def test_the_most_helpful_with_columns(self, scores: Scores) -> None:
        q, n = scores.values.shape
        frame = named(scores).to_frame(
            3, train={"label": np.arange(n) % 3}, queries={"text": [f"t{k}" for k in range(q)]}
        )
        top = scores.top(3)
        assert len(frame) == 3 * q
        assert list(frame["train"][:3]) == [f"img-{k}.png" for k in top.indices[0].tolist()]
        assert list(frame["train_label"][:3]) == [k % 3 for k in top.indices[0].tolist()]
        assert list(frame["query_text"]) == [f"t{k}" for k in range(q) for _ in range(3)]
        assert list(frame["query"][:4]) == ["query 0"] * 3 + ["query 1"]

    def test_higher_is_better(self) -> None:
        problem = chain_problem()
        margin = cf.Problem(
            problem.model, problem.loss, problem.train, problem.queries, measurement=cf.Margin()
        )
        made = cf.influence(margin, cf.KFAC(), damping=cf.Absolute(0.1))
        frame = made.to_frame(2)
        assert (frame["help"] == -frame["influence"]).all()
        assert frame["help"][0] == float(made.help[0].max())

    def test_files(self, scores: Scores, tmp_path: Path) -> None:
        scores.to_csv(tmp_path / "x.csv", 4)
        assert np.allclose(pd.read_csv(tmp_path / "x.csv"), scores.to_frame(4))
        pytest.importorskip("pyarrow")
        scores.to_parquet(tmp_path / "x.parquet")
        assert pd.read_parquet(tmp_path / "x.parquet").equals(scores.to_frame())
        schema = pytest.importorskip("pyarrow.parquet").read_schema(tmp_path / "x.parquet")
        assert schema.names == list(scores.to_frame().columns)  # without pandas' index
        with pytest.raises(InputError, match=r"x\.csv exists"):
            scores.to_csv(tmp_path / "x.csv")

    def test_files_with_columns(self, scores: Scores, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        q, n = scores.values.shape
        about = {"train": {"label": np.arange(n) % 3}, "queries": {"size": np.arange(q) / 2}}
        scores.to_csv(tmp_path / "x.csv", 4, **about)
        scores.to_parquet(tmp_path / "x.parquet", 4, **about)
        wanted = scores.to_frame(4, **about)
        assert list(wanted.columns[-2:]) == ["train_label", "query_size"]
        assert pd.read_parquet(tmp_path / "x.parquet").equals(wanted)
        read = pd.read_csv(tmp_path / "x.csv")
        assert list(read.columns) == list(wanted.columns)
        assert np.allclose(read, wanted)

    def test_refused(self, scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InputError, match="the column 'label' about train has 2 values for"):
            scores.to_frame(2, train={"label": [0, 1]})
        monkeypatch.setattr("curvfluence.score.table.ROWS", 10)
        with pytest.raises(InputError, match="rows, more than 10: ask for the k most helpful"):
            scores.to_frame()
        monkeypatch.setattr("curvfluence.score.table.ROWS", 3 * len(scores.values))
        assert len(scores.to_frame(3)) == 3 * len(scores.values)


class TestIds:
    def test_names_stay_what_they_are(self, scores: Scores) -> None:
        """A number among texts stays a number in a table."""
        q, n = scores.values.shape
        names = [k if k % 2 else f"img {k}" for k in range(n)]
        frame = scores.with_ids(names, list(range(q))).to_frame()
        assert set(frame["train"]) == set(names)

    def test_a_query_by_name(self, scores: Scores) -> None:
        made = named(scores)
        for key in ("query 1", 1, -len(scores.values) + 1):
            one = made[key]
            assert torch.equal(one.values, scores.values[1:2])
            assert one.query_ids == ("query 1",)
        assert one.blocks is not None
        assert scores.blocks is not None
        for name, share in one.blocks.items():
            assert torch.equal(share, scores.blocks[name][1:2])
        assert torch.equal(made[1:].values, scores.values[1:])
        assert torch.equal(made[[2, 0]].values, scores.values[[2, 0]])

    def test_the_most_helpful_by_name(self, scores: Scores) -> None:
        made = named(scores)
        assert made.train_ids is not None
        found = made.top(2).named(made.train_ids)
        assert found == [[f"img-{k}.png" for k in row] for row in scores.top(2).indices.tolist()]

    def test_refused(self, scores: Scores) -> None:
        n = scores.values.shape[1]
        with pytest.raises(InputError, match=f"2 names for {n} training examples"):
            scores.with_ids(["a", "b"])
        with pytest.raises(InputError, match="names of training examples must differ"):
            scores.with_ids(["a"] * n)
        with pytest.raises(InputError, match="no query is called 'q'; with_ids"):
            scores["q"]
        with pytest.raises(InputError, match=r"there are \d+ queries, 0 to"):
            scores[99]
        with pytest.raises(InputError, match="of some queries alone"):
            scores[0].certificate()


class TestFiles:
    def test_saved_and_read_back(self, scores: Scores, tmp_path: Path) -> None:
        made = named(scores)
        made.save(tmp_path / "s.npy")
        found = cf.load_scores(tmp_path / "s.npy")
        assert torch.equal(found.values, made.values)
        for name in (
            "rung", "lambdas", "fisher", "measurement", "unit", "lower_is_better", "leverage",
            "coverage", "cost", "notes", "residuals", "train_ids", "query_ids",
        ):  # fmt: skip
            assert getattr(found, name) == getattr(made, name), name
        assert str(found) == str(made)
        assert found.blocks is not None
        assert made.blocks is not None
        assert list(found.blocks) == list(made.blocks)
        for name, share in made.blocks.items():
            assert torch.equal(found.blocks[name], share)
        assert torch.equal(found.top(3).indices, made.top(3).indices)
        with pytest.raises(InputError, match="were read back"):
            found.certificate()

    def test_into_a_new_folder(self, scores: Scores, tmp_path: Path) -> None:
        path = tmp_path / "new" / "newer" / "s.npy"
        scores.save(path)
        assert torch.equal(cf.load_scores(path).values, scores.values)

    def test_without_shares_of_blocks(self, scores: Scores, tmp_path: Path) -> None:
        replace(scores, blocks=None).save(tmp_path / "s.npy")
        found = cf.load_scores(tmp_path / "s.npy")
        assert found.blocks is None
        assert torch.equal(found.values, scores.values)

    @pytest.mark.parametrize("file", ["s.npy", "s.blocks.npz"])
    def test_other_numbers_in_a_whole_file(self, scores: Scores, file: str, tmp_path: Path) -> None:
        """Of the same shapes: what tells is the hash alone, and without it nothing does."""
        scores.save(tmp_path / "s.npy")
        replace(
            scores,
            values=scores.values + 1,
            blocks={name: share + 1 for name, share in (scores.blocks or {}).items()},
        ).save(tmp_path / "other.npy")
        (tmp_path / file).write_bytes((tmp_path / file.replace("s.", "other.", 1)).read_bytes())
        with pytest.raises(InputError, match=f"{file} is not what was written"):
            cf.load_scores(tmp_path / "s.npy")
        found = cf.load_scores(tmp_path / "s.npy", verify=False)
        values = found.values if file == "s.npy" else next(iter((found.blocks or {}).values()))
        wanted = scores.values if file == "s.npy" else next(iter((scores.blocks or {}).values()))
        assert torch.equal(values, wanted + 1)
        (tmp_path / file).unlink()
        with pytest.raises(InputError, match=f"{file} is not there"):
            cf.load_scores(tmp_path / "s.npy")

    def test_numbers_are_read_as_they_are_asked_for(self, scores: Scores, tmp_path: Path) -> None:
        scores.save(tmp_path / "s.npy")
        before = (tmp_path / "s.npy").read_bytes()
        mapped = load._array(tmp_path / "s.npy")
        assert isinstance(mapped, np.memmap)
        mapped[0, 0] += 1  # in memory alone
        mapped.flush()
        assert (tmp_path / "s.npy").read_bytes() == before

    def test_anybody_can_read_them(self, scores: Scores, tmp_path: Path) -> None:
        scores.save(tmp_path / "s.npy")
        values = np.load(tmp_path / "s.npy", allow_pickle=False)
        said = json.loads((tmp_path / "s.json").read_text())
        assert np.array_equal(values, scores.values.numpy())
        assert (said["queries"], said["train"]) == values.shape
        assert said["lower_is_better"] is True

    def test_of_scores_that_were_written_as_they_were_made(self, tmp_path: Path) -> None:
        problem = chain_problem()
        out = tmp_path / "s.npy"
        made = cf.influence(problem, cf.EKFAC(), damping=cf.Relative(0.1), out=out)
        found = cf.load_scores(out)
        assert torch.equal(found.values, made.values)
        assert str(found) == str(made)

    def test_refused(self, scores: Scores, tmp_path: Path) -> None:
        scores.save(tmp_path / "s.npy")
        with pytest.raises(InputError, match=r"s\.npy exists"):
            scores.save(tmp_path / "s.npy")
        with pytest.raises(InputError, match=r"ends in \.npy; seen"):
            scores.save(tmp_path / "s.pt")
        with pytest.raises(InputError, match=r"t\.npy is not there"):
            cf.load_scores(tmp_path / "t.npy")
        np.save(tmp_path / "t.npy", np.zeros((2, 2)))
        with pytest.raises(InputError, match=r"t\.json, which says what .* is of, is not there"):
            cf.load_scores(tmp_path / "t.npy")
        flipped = bytearray((tmp_path / "s.npy").read_bytes())
        flipped[-1] ^= 1
        (tmp_path / "s.npy").write_bytes(flipped)
        with pytest.raises(InputError, match=r"s\.npy is not what was written"):
            cf.load_scores(tmp_path / "s.npy")
        assert cf.load_scores(tmp_path / "s.npy", verify=False).values.shape == scores.values.shape
        np.save(tmp_path / "s.npy", np.zeros((2, 2)))
        with pytest.raises(InputError, match=r"an array of shape \(2, 2\), and its JSON is of"):
            cf.load_scores(tmp_path / "s.npy", verify=False)
        (tmp_path / "s.npy").write_bytes(b"x")
        with pytest.raises(InputError, match="is no array of numbers"):
            cf.load_scores(tmp_path / "s.npy", verify=False)
        (tmp_path / "s.npy").unlink()
        with pytest.raises(InputError, match="is not there"):
            cf.load_scores(tmp_path / "s.npy")
        (tmp_path / "s.json").write_text("{}")
        with pytest.raises(InputError, match=r"s\.json"):
            cf.load_scores(tmp_path / "s.npy")


def test_in_a_notebook(scores: Scores) -> None:
    hostile = scores.with_ids(
        ["<script>alert(1)</script>", *(f"n{k}" for k in range(scores.values.shape[1] - 1))]
    )
    text = hostile._repr_html_()
    assert "<script>" not in text
    best = int(scores.top(1).indices[0])
    assert (hostile.train_ids or ())[best].replace("<", "&lt;").replace(">", "&gt;") in text
    assert "EKFAC" in text
