"""Several processes of torch.distributed: the same bits, whatever their number; what is refused."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import curvfluence as cf
from curvfluence.cli import consoles, process
from curvfluence.errors import CurvfluenceWarning, InputError, ProcessEndedError
from curvfluence.indexing import encode
from curvfluence.runtime import ranks
from curvfluence.runtime.ranks import GROUPS, Ranks, Tree, bounds
from curvfluence.runtime.unfinished import LONG
from curvfluence.store.lock import held
from curvfluence.store.steps import Steps
from tests import ranked
from tests.test_supervise import OWN
from tests.torture.kills import unmeasured

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    pytest.mark.xdist_group("ranks"),
]

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun says so where there are several


def run(count: int, what: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*command, "--standalone", "-m", "tests.ranked", what, str(out)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=ONE_THREAD,
    )


def told(count: int, what: str, folder: Path) -> Any:
    out = folder / f"{what}-{count}.pt"
    done = run(count, what, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=False)


@pytest.fixture(scope="module")
def by_count(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return {count: told(count, "everything", folder) for count in (1, 2, 5)}


def test_any_number_of_processes_gives_the_same_bits(by_count: dict[int, dict[str, Any]]) -> None:
    one = by_count[1]
    for count, found in by_count.items():
        assert found.pop("alike") is True
        assert found.keys() == one.keys()
        for name, value in one.items():
            if isinstance(value, Tensor):
                assert torch.equal(found[name], value), f"{name} of {count} ranks"
            elif isinstance(value, dict):
                assert all(torch.equal(found[name][k], value[k]) for k in value), name
            else:
                assert found[name] == value, name


def test_it_is_what_one_process_without_ranks_gives(by_count: dict[int, dict[str, Any]]) -> None:
    """But for rounding, and for labels, which are drawn by range."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvfluenceWarning)
        alone = ranked.everything()
    for name, value in alone.items():
        if " mc" in name or name.endswith("notes"):
            continue
        values = value if isinstance(value, dict) else {"": value}
        for key, wanted in values.items():
            found = by_count[2][name] if not key else by_count[2][name][key]
            scale = float(wanted.abs().max())
            rounding = 1e-4 if wanted.dtype == torch.float32 else 1e-6
            assert float((found - wanted).abs().max()) <= rounding * scale, name


@pytest.mark.filterwarnings("ignore::curvfluence.errors.CurvfluenceWarning")
def test_groups_of_blocks_are_each_done_by_one_process(by_count: dict[int, dict[str, Any]]) -> None:
    """So that each holds what the memory has room for, and the bits are those of one process
    without ranks: nothing is added up between them but whole scores."""
    for name in ("mlp", "shared"):
        wanted = ranked.within_a_memory(ranked.problems()[name])
        (note,) = (note for note in wanted.notes if note.startswith("within"))
        assert "groups of blocks" in note
        for found in by_count.values():
            assert torch.equal(found[f"{name}, within a memory"], wanted.values)
            said = wanted.notes, wanted.coverage, wanted.lambdas
            assert found[f"{name}, within a memory, notes"] == said


def test_each_process_does_some_of_the_groups(tmp_path: Path) -> None:
    """And no other's; what they hand on are scores, once each, and what is said of them."""
    found = told(2, "memory", tmp_path)
    assert found["groups"] == [2, 1]
    assert found["objects"] < 20_000


def test_scores_in_a_file(tmp_path: Path) -> None:
    for name in "13":
        (tmp_path / name).mkdir()
    first, second = (told(count, "file", tmp_path / str(count)) for count in (1, 3))
    assert torch.equal(first, second)
    assert sorted(p.name for p in (tmp_path / "3").iterdir()) == [
        "file-3.json", "file-3.npy", "file-3.pt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "count", "words"),
    [
        ("not finite", 2, "30"),
        ("loss", 2, "nothing"),
        ("examples", 6, "6 ranks are more than the 5 training examples"),
    ],
)
def test_what_does_not_fit_is_said(what: str, count: int, words: str, tmp_path: Path) -> None:
    assert words in told(count, what, tmp_path)


def test_processes_that_disagree_are_told_in_what(tmp_path: Path) -> None:
    """That and nothing that follows from it, in the same words at both."""
    told_in = told(2, "disagreements", tmp_path)
    wanted = {
        "nothing": None,
        "weights": "the weights",
        "weight decay": "the weight decay",
        "loss": "the loss",
        "code of the loss": "what the loss computes",
        "order of the data": "the training data",
        "weights of examples": "the training data",
        "order of queries": "the queries",
        "one of many queries": "the queries",
        "measurement": "the measurement",
        "class of the measurement": "the measurement",
        "code of the measurement": "what the measurement computes",
        "names of layers": "the model",
        "widths": "the model and the weights",
        "code of the model": "what the model computes",
        "dtype": "the dtype of the weights",
        "autocast": "autocast",
        "rung": "the rung",
        "damping": "the damping",
        "several": "the weights, the loss, the queries and the damping",
    }
    assert told_in.keys() == wanted.keys()
    for what, names in wanted.items():
        first, second = told_in[what]
        assert first == second, what
        if names is None:
            assert first == "nothing"
        else:
            assert f"rank 1 differs from rank 0 in {names}. Give every rank the same" in first, what


def test_a_killed_process_ends_the_run(tmp_path: Path) -> None:
    start = time.monotonic()
    done = run(2, "killed", tmp_path / "nothing.pt")
    assert done.returncode != 0
    assert time.monotonic() - start < 60
    assert "ProcessEndedError: another of the processes that work together ended" in done.stderr
    assert not (tmp_path / "nothing.pt").exists()


@pytest.mark.parametrize("survivor", ["pass", "time.sleep(50)"])
def test_a_killed_process_ends_the_command(survivor: str, tmp_path: Path) -> None:
    """Within a minute, with a sentence in the place of a traceback: gloo's error, or that torchrun
    ended it, whichever comes first of one that waits for the other."""
    own = f"""{OWN}
import os, signal, time
if os.environ["RANK"] == "1":
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)
{survivor}
"""
    start = time.monotonic()
    done = commanded(2, tmp_path, "attribute", "own.py", "--threads", "1", own=own)
    assert done.returncode != 0
    assert time.monotonic() - start < 60
    words = " ".join(done.stderr.split())
    by_torchrun = "stopped by torchrun, as all processes of a run are once another one has ended: "
    by_gloo = "error: another of the processes that work together ended, or can no longer be"
    assert by_torchrun in words or (survivor == "pass" and by_gloo in words)
    assert "; the same command goes on from there" in words
    assert "RuntimeError" not in words
    assert not (tmp_path / "explorer.html").exists()


def test_the_command_says_that_another_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where torchrun's signal comes before it has spoken."""

    def app(**_: object) -> None:
        raise ProcessEndedError("another ended")

    def refuse(kind: str, text: str) -> None:
        signal.raise_signal(signal.SIGTERM)
        consoles.refuse(kind, text)

    monkeypatch.setattr(process, "app", app)
    monkeypatch.setattr(process, "refuse", refuse)
    monkeypatch.setattr(sys, "argv", ["curvfluence", "attribute", "own.py"])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        process.main()
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"error: another ended; {LONG}"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError(
                "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection "
                "closed by peer [127.0.0.1]:22713. This is typically caused by a remote worker "
                "crashing."
            ),
            "(Connection closed by peer [127.0.0.1]:22713)",
        ),
        (
            RuntimeError(
                "[..\\gloo\\transport\\uv\\unbound_buffer.cc:67] Timed out waiting 1800000ms for "
                "recv operation to complete"
            ),
            "(Timed out waiting 1800000ms for recv operation to complete)",
        ),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "(failed to recv, got 0 bytes)"),
        (
            dist.DistBackendError("NCCL error: remote process exited or there was a network error"),
            "(NCCL error: remote process exited or there was a network error)",
        ),
        (RuntimeError("ProcessGroupGloo::broadcast: invalid tensor type"), None),
        (dist.DistBackendError("NCCL error: invalid usage"), None),
        (RuntimeError("the model's own"), None),
    ],
)
def test_which_errors_tell_that_another_process_ended(error: Exception, told: str | None) -> None:
    with (
        pytest.raises(RuntimeError if told is None else ProcessEndedError) as raised,
        ranks.ends_told(),
    ):
        raise error
    if told is None:
        assert raised.value is error
    else:
        assert told in str(raised.value)
        assert raised.value.__cause__ is error


def test_killed_processes_go_on(tmp_path: Path) -> None:
    """From what each of them kept by itself: the same bits as without a kill, the drawn labels and
    what is said of them among these; nothing is left behind."""

    def going_on(folder: str, after: int, count: int = 2) -> dict[str, Any] | None:
        out = tmp_path / folder / f"out-{after}"
        out.parent.mkdir(exist_ok=True)
        done = run(count, "going on", out)
        assert (done.returncode == 0) == out.exists(), done.stderr[-2000:]
        return torch.load(out, weights_only=False) if out.exists() else None

    wanted = going_on("whole", 0)
    assert wanted is not None
    assert wanted.pop("found") == [0, 0]
    for after in (3, 19):
        assert going_on("killed", after) is None
    assert list((tmp_path / "killed").iterdir()) == [tmp_path / "killed/page.html.steps"]
    found = going_on("killed", 0)
    assert found is not None
    assert min(found.pop("found")) >= 2
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        same = (
            torch.equal(value, found[name]) if isinstance(value, Tensor) else value == found[name]
        )
        assert same, name
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["out-0"]
    # another number of processes begins anew, and leaves nothing of the others either
    assert going_on("killed", 3) is None
    (tmp_path / "killed/out-0").unlink()
    found = going_on("killed", 0, count=1)
    assert found is not None
    assert found.pop("found") == [0]
    assert torch.equal(found["ekfac mc"], wanted["ekfac mc"])
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["out-0"]


def test_nobody_else_is_on_the_way_to_a_page(tmp_path: Path) -> None:
    """One process keeps those out that work together, by the same lock."""
    with Steps(tmp_path / "page.html.steps", {}).ours():
        done = run(2, "going on", tmp_path / "out-0")
    assert done.returncode != 0
    assert "another command is on the way to" in done.stderr
    assert not (tmp_path / "out-0").exists()


def commanded(
    count: int, folder: Path, *words: str, own: str = OWN
) -> subprocess.CompletedProcess[str]:
    """By torchrun, or of no processes without it."""
    (folder / "own.py").write_text(own)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [sys.executable, *(launch if count else []), "-m", "curvfluence", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=ONE_THREAD,
    )


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    pages: list[Any] = []
    for count in (1, 2):
        out = f"{count}.html"
        words = ("attribute", "own.py", "--threads", "1", "--beside", "KFAC", "--out", out)
        done = commanded(count, tmp_path, *words)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("Page") == 1, "one of them speaks"
        text = (tmp_path / out).read_text()
        data = text.partition('id="answers-data">')[2].partition("</script>")[0]
        pages.append(unmeasured(json.loads(data)))
    assert pages[0] == pages[1]
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".html") == ["1.html", "2.html"]


def test_commands_that_are_not_shared_are_refused(tmp_path: Path) -> None:
    done = commanded(2, tmp_path, "study", "wine")
    assert done.returncode != 0
    assert "2 processes were started for `curvfluence study`" in " ".join(done.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_bytes_that_are_sent_are_those_of_the_formula(tmp_path: Path) -> None:
    """A K-FAC of 5 by 7 by 4 in float64, its sums along the tree and back, its bases once, and the
    scores [3, 37]."""
    sums = (36 + 49 + 1 + 64 + 16 + 1) * 8  # A, B and the count of positions of both layers
    bases = (36 + 6 + 49 + 7 + 64 + 8 + 16 + 4) * 8
    scores = 3 * 37 * 8
    for count in (2, 4):
        assert told(count, "bytes", tmp_path) == count * sums + bases + scores


@pytest.fixture(scope="module")
def indices(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    counts = {count: tmp_path_factory.mktemp(f"index{count}") for count in (1, 2, 3)}
    return {count: told(count, "index", folder) for count, folder in counts.items()}


class TestIndex:
    """Made by several processes: ten shards, of which each makes its own."""

    def test_any_number_of_processes_gives_the_same_bytes(
        self, indices: dict[int, dict[str, Any]]
    ) -> None:
        one = indices[1]
        assert [examples for examples, *_ in one["shards"]] == [4] * 9 + [1]
        for count, found in indices.items():
            wrote = found.pop("wrote", None)
            assert wrote == [list(range(rank, 10, count)) for rank in range(count)]
            for name, value in one.items():
                same = (
                    torch.equal(value, found[name])
                    if isinstance(value, Tensor)
                    else value == found[name]
                )
                assert same, f"{name} by {count}"

    def test_it_is_what_one_process_without_ranks_makes(
        self, indices: dict[int, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encode, "SHARD", 4)
        problem = ranked.problems()["mlp"]
        at = cf.Absolute(0.1)
        alone = cf.index(problem, cf.EKFAC(), out=tmp_path / "i", damping=at, dimension=12)
        found = alone.query(k=3, candidates=20)
        assert torch.equal(found.top.indices, indices[2]["numbers"])
        torch.testing.assert_close(found.top.values, indices[2]["top"], rtol=1e-6, atol=1e-12)
        assert alone.record.recall is not None
        wanted = indices[2]["recall"]
        assert (alone.record.recall.helpful, alone.record.recall.harmful) == (
            wanted.helpful,
            wanted.harmful,
        )

    def test_an_error_in_one_of_them_loses_nothing(
        self, indices: dict[int, dict[str, Any]], tmp_path: Path
    ) -> None:
        """It is raised in all, and another number of processes goes on where these were."""
        assert told(2, "index stopped", tmp_path) == ["enough", "enough"]
        found = told(3, "index", tmp_path)
        assert found.pop("wrote") == [[4, 7], [5, 8], [6, 9]]
        for name in ("files", "recall", "shards"):
            assert found[name] == indices[1][name], name
        assert torch.equal(found["top"], indices[1]["top"])

    def test_another_order_of_sums_is_another_index(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of what ranks began, one process without them makes nothing: it would have other bits."""
        told(2, "index stopped", tmp_path)
        monkeypatch.setattr(encode, "SHARD", 4)
        given = {"damping": cf.Absolute(0.1), "dimension": 12}
        with pytest.raises(
            InputError, match=r"of another (threads, )?order of sums: go on with it as it was begun"
        ):
            cf.index(ranked.problems()["mlp"], cf.EKFAC(), out=tmp_path / "index", **given)

    @pytest.mark.parametrize(
        ("what", "words"),
        [
            ("folder", "rank 1 differs from rank 0 in the folder. Give"),
            ("dimension", "rank 1 differs from rank 0 in the dimension. Give"),
            ("seed", "rank 1 differs from rank 0 in the seed. Give"),
            ("dtype", "rank 1 differs from rank 0 in the dtype. Give"),
            ("damping", "rank 1 differs from rank 0 in the damping. Give"),
            ("appended", "the same command without torchrun, or outside of together()"),
            ("appended by one", "rank 1 differs from rank 0 in the number of appended sources."),
            ("append", "call append() outside of together()"),
            ("write", "o space left"),
            ("reading", "o space left"),
        ],
    )
    def test_what_does_not_go_together(self, what: str, words: str, tmp_path: Path) -> None:
        """The same error in both, whichever of them met it."""
        found = told(2, f"index {what}", tmp_path)
        assert len(found) == 2
        assert all(words in said for said in found), found

    def test_a_folder_that_another_command_holds(self, tmp_path: Path) -> None:
        with held(tmp_path / "index"):
            done = run(2, "index", tmp_path / "index-2.pt")
        assert done.returncode != 0
        assert "being written by process" in done.stderr
        assert not (tmp_path / "index/index.json").exists()

    def test_the_command(self, tmp_path: Path) -> None:
        words = ("index", "own.py", "--threads", "1", "--index", "i", "--dimension", "8")
        for _ in range(2):  # made, and then read
            done = commanded(2, tmp_path, *words)
            assert done.returncode == 0, done.stderr[-2000:]
            assert done.stdout.count("Recall") == 1, "one of them speaks"
        own = f"{OWN}\nappended = [(problem.train.inputs[:2], problem.train.targets[:2])]\n"
        refused = commanded(2, tmp_path, *words, own=own)
        assert refused.returncode != 0
        assert "the same command without torchrun" in " ".join(refused.stderr.split())
        for count in (0, 2):  # put there by one process, and read by two
            done = commanded(count, tmp_path, *words, own=own)
            assert done.returncode == 0, done.stderr[-2000:]


class TestSelfInfluence:
    def test_each_process_looks_at_its_own(self, tmp_path: Path) -> None:
        looked = told(2, "self shared", tmp_path)
        assert sum(looked) == 37
        assert min(looked) > 0

    @pytest.mark.parametrize("what", ["damping", "its damping", "curvature"])
    def test_what_does_not_go_together(self, what: str, tmp_path: Path) -> None:
        name = "rung" if what == "curvature" else "damping"
        for said in told(2, f"self {what}", tmp_path):
            assert f"rank 1 differs from rank 0 in the {name}. Give" in said


class TestSharing:
    @pytest.mark.parametrize("count", [1, 2, 3, 5, 8, GROUPS])
    def test_every_range_has_one_owner(self, count: int) -> None:
        owned = [group for rank in range(count) for group in Ranks(rank, count).own]
        assert owned == list(range(GROUPS))
        for group in owned:
            assert group in Ranks(Ranks(0, count).owner(group), count).own

    @pytest.mark.parametrize("n", [1, 5, 37, 1000])
    def test_every_example_is_in_one_range(self, n: int) -> None:
        ends = [bounds(n, group) for group in range(GROUPS)]
        assert ends[0][0] == 0
        assert ends[-1][1] == n
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ends))
        assert [Ranks(0, 3).examples(n, r)[0] for r in (1, 2)] == [
            Ranks(0, 3).examples(n, r)[1] for r in (0, 1)
        ]

    def test_few_sums_are_held(self) -> None:
        tree, most = Tree(Ranks(0, 1)), 0
        for group in range(GROUPS):
            tree.add(group, {"x": torch.tensor(float(group))})
            most = max(most, len(tree.nodes))
        assert most <= ranks.LEVELS
        assert float(tree.total()["x"]) == sum(range(GROUPS))

    def test_a_sum_that_others_hold_stays_as_it_is(self) -> None:
        held = torch.ones(2)
        tree = Tree(Ranks(0, 1))
        for group in range(GROUPS):
            tree.add(group, {"x": held} if group != 3 else {"y": held})
        total = tree.total()
        assert torch.equal(held, torch.ones(2))
        assert total["x"].tolist() == [GROUPS - 1.0] * 2
        assert total["y"].tolist() == [1.0] * 2

    def test_together_needs_processes(self) -> None:
        with pytest.raises(InputError, match="no processes work together here"), cf.together():
            pass

    def test_outside_of_together_nothing_is_shared(self) -> None:
        assert ranks.here() is None
        assert ranks.leads()


def test_a_model_that_is_held_in_parts(tmp_path: Path) -> None:
    """FSDP2's `fully_shard`: the scores of the whole model to the bit, by plain modules without its
    hooks, and the model left as it was."""
    found = told(2, "sharded", tmp_path)
    assert len(found) >= 2
    for name, value in found.items():
        assert value["same"] is True, name
        assert value["left as found"] is True, name
        assert value["modules"] == value["plain"], name
        assert value["hooks"] == 0, name
    low = "FSDP's parameters in bfloat16 (give autocast for that)"
    assert found["mlp"]["unmodelled"] == (low,)
    assert [v["unmodelled"] for k, v in found.items() if k != "mlp"] == [()] * (len(found) - 1)
