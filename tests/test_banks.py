"""Retrainings that are kept: taken up again, shared, refused where they are not as written."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

import curvfluence as cf
from curvfluence.banks import SHIPPED, Slice, make_bank, make_slice, verify_bank
from curvfluence.errors import InputError
from curvfluence.store.folder import Folder, Header, MadeBy
from curvfluence.store.lock import HOLDER
from curvfluence.study import StudySpec, load, retrain, run_study
from curvfluence.study.asked import asked
from curvfluence.study.progress import silent
from curvfluence.study.retrain import Truth, make_truth, source_of, train_models
from curvfluence.study.study import read_study
from curvfluence.study.variant import Variant
from curvfluence.truth import bank as bank_module
from curvfluence.truth.bank import BANK, ENTRIES, LISTED, TRAINER, Bank, Batch, packed, unpacked
from tests.studies import resealed
from tests.test_report import run
from tests.test_supervise import ended, start

pytestmark = pytest.mark.xdist_group("banks")
SPEC = StudySpec("wine", 6, models=2, orders=1, variant=Variant(epochs=2), bregman=False)


def truth_of(spec: StudySpec, path: Path) -> Truth:
    problem = asked(spec, load(spec.problem))
    bank = Bank(path, source_of(problem, spec))
    bank.claim()
    return make_truth(spec, problem, train_models(spec, problem, bank, silent), bank, silent)


class Trained:
    """How many models are trained, where they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, train = 0, retrain.train

        def counted(recipe, examples, runs, *args, **settings):
            self.count += len(runs)
            return train(recipe, examples, runs, *args, **settings)

        monkeypatch.setattr(retrain, "train", counted)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    return Trained(monkeypatch)


@pytest.fixture
def blocks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain, "BLOCK", 2)


def retrained(path: Path) -> list[Path]:
    """The records of batches of retrainings."""
    return [
        path / ENTRIES / f"{entry.key}.json"
        for entry in Bank.read(path).entries()
        if entry.batch.kind == "retrained"
    ]


@pytest.mark.usefixtures("blocks_of_two")
class TestTakenUp:
    def test_what_is_missing_is_trained_to_the_same_bits(
        self, tmp_path: Path, trained: Trained
    ) -> None:
        whole = truth_of(SPEC, tmp_path)
        assert trained.count == 2 + 12
        assert len(retrained(tmp_path)) == 6
        again = truth_of(SPEC, tmp_path)
        assert trained.count == 14
        for gone in retrained(tmp_path)[1:4:2]:
            gone.unlink()
        torn = truth_of(SPEC, tmp_path)
        assert trained.count == 14 + 4
        for one in (again, torn):
            assert torch.equal(one.values, whole.values)
            assert torch.equal(one.final_loss, whole.final_loss)
            assert torch.equal(one.models.base, whole.models.base)
            assert one.path == whole.path
            for name, value in whole.models.trained.theta.items():
                assert torch.equal(one.models.trained.theta[name], value)

    def test_it_is_what_a_bank_of_its_own_gives(self, tmp_path: Path) -> None:
        small = truth_of(SPEC, tmp_path / "grown")
        grown = truth_of(replace(SPEC, subsets=10), tmp_path / "grown")
        alone = truth_of(replace(SPEC, subsets=10), tmp_path / "alone")
        assert torch.equal(grown.values, alone.values)
        assert torch.equal(grown.values[:, :, :6], small.values)

    def test_more_subsets_and_another_alpha_are_added(
        self, tmp_path: Path, trained: Trained
    ) -> None:
        truth_of(SPEC, tmp_path)
        before = trained.count
        truth_of(replace(SPEC, subsets=8), tmp_path)
        assert trained.count == before + 2 * 2
        truth_of(replace(SPEC, alpha=0.9), tmp_path)
        assert trained.count == before + 4 + 12

    def test_anew(self, tmp_path: Path, trained: Trained) -> None:
        truth_of(SPEC, tmp_path)
        problem = asked(SPEC, load("wine"))
        bank = Bank(tmp_path, source_of(problem, SPEC), anew=True)
        make_truth(SPEC, problem, train_models(SPEC, problem, bank, silent), bank, silent)
        assert trained.count == 28

    def test_a_study_goes_on(
        self, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Interrupted while it retrains, then finished: the digest of an uninterrupted one."""
        spec = replace(SPEC, rungs=("KFAC", "Identity"), costs=False)
        measure, seen = retrain.measure, iter(range(100))

        def interrupted(*args, **settings):
            if next(seen) == 2:
                raise KeyboardInterrupt
            return measure(*args, **settings)

        monkeypatch.setattr(retrain, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_study(spec, tmp_path / "a", threads=1)
        before = trained.count
        found = run_study(spec, tmp_path / "a", threads=1)
        assert trained.count == before + 12 - 2
        whole = run_study(spec, tmp_path / "b", threads=1)
        assert found.results.digest == whole.results.digest
        count = trained.count
        run_study(spec, tmp_path / "a", threads=1, rerun=True)
        assert trained.count == count + 14

    @pytest.mark.parametrize(
        "change",
        [
            {"kind": "models"},
            {"dtype": "float64"},
            {"init_seeds": (2,)},
            {"order_seeds": (2,)},
            {"subsets": "b"},
            {"alpha": 0.7},
        ],
    )
    def test_a_batch_goes_by_all_that_it_depends_on(
        self, tmp_path: Path, change: dict[str, object]
    ) -> None:
        bank = Bank(tmp_path, source_of(asked(SPEC, load("wine")), SPEC))
        settings = {"init_seeds": (1,), "order_seeds": (1,), "subsets": "a", "alpha": 0.5}
        at = {"kind": "retrained", "dtype": "float32", **settings}
        assert bank.key(Batch(**at)) != bank.key(Batch(**{**at, **change}))  # type: ignore[arg-type]


@pytest.mark.usefixtures("blocks_of_two")
class TestSlices:
    def test_all_of_them_are_the_bank(self, tmp_path: Path, trained: Trained) -> None:
        found = [make_slice([SPEC], tmp_path, Slice(k, 4)) for k in (3, 1, 4, 2)]
        assert trained.count == 2 + 12
        assert sorted(found) == [(2, 0), (2, 0), (4, 0), (4, 0)]
        whole, alone = truth_of(SPEC, tmp_path), None
        assert trained.count == 14, "nothing is left to train"
        alone = truth_of(SPEC, tmp_path.with_name("alone"))
        assert torch.equal(whole.values, alone.values)

    def test_a_slice_again_trains_what_was_lost(self, tmp_path: Path, trained: Trained) -> None:
        assert make_slice([SPEC], tmp_path, Slice(2, 3)) == (4, 0)
        assert make_slice([SPEC], tmp_path, Slice(2, 3)) == (0, 4)
        retrained(tmp_path)[0].unlink()
        assert make_slice([SPEC], tmp_path, Slice(2, 3)) == (2, 2)
        assert trained.count == 6

    def test_more_slices_than_batches(self, tmp_path: Path) -> None:
        assert make_slice([SPEC], tmp_path, Slice(9, 9)) == (0, 0)

    @pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/4", "1/", "-1/4", "1/0", "½/4"])
    def test_what_is_no_slice(self, text: str) -> None:
        with pytest.raises(InputError, match="slice"):
            Slice.of(text)

    def test_another_bank_is_refused(self, tmp_path: Path) -> None:
        make_slice([SPEC], tmp_path, Slice(1, 2))
        with pytest.raises(InputError, match="another problem or recipe"):
            make_slice([replace(SPEC, variant=Variant(epochs=3))], tmp_path, Slice(2, 2))


def test_slices_at_the_same_time(tmp_path: Path) -> None:
    """Three commands in one folder, of which one is killed and given again."""
    words = ["bank", "make", "wine", "bank", "--subsets", "120", "--models", "2", "--orders", "1",
             "--epochs", "20", "--threads", "1", "--no-progress"]  # fmt: skip
    running = [start([*words, "--slice", f"{k}/3"], tmp_path) for k in (1, 2, 3)]
    time.sleep(4)
    running[1].kill()
    codes = [ended(process, 120)[0] for process in running]
    assert (codes[0], codes[2]) == (0, 0)
    assert ended(start([*words, "--slice", "2/3"], tmp_path), 120)[0] == 0
    code, out, err = ended(start(words, tmp_path), 120)
    assert code == 0, err
    assert "bank holds 240 retrainings" in out
    assert verify_bank(tmp_path / "bank", again=3).equal == 3


class TestTwoAtOnce:
    """Commands that fill one bank at one time neither damage nor lose what is in it."""

    BATCH = Batch("retrained", "float32", (1,), (2,), "a", 0.5)

    def bank(self, path: Path) -> Bank:
        return Bank(path, source_of(load("wine"), SPEC))

    def test_the_same_batch_with_other_bits(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As by another number of threads: what is kept is of one of them, whole."""
        bank, within, goes_on = self.bank(tmp_path), Event(), Event()
        bank.claim()
        own = bank_module._save

        def save(path: Path, array: np.ndarray) -> None:
            own(path, array)
            if float(array[0]) == 1:
                within.set()
                goes_on.wait(1)

        monkeypatch.setattr(bank_module, "_save", save)
        first = Thread(target=bank.keep, args=(self.BATCH, {"values": torch.ones(3)}, 1.0))
        second = Thread(target=bank.keep, args=(self.BATCH, {"values": torch.zeros(3)}, 1.0))
        first.start()
        within.wait()
        second.start()
        first.join()
        second.join()
        found = bank.find(self.BATCH)
        assert found is not None
        assert torch.equal(found[1]["values"], torch.ones(3))
        assert verify_bank(tmp_path).batches == 1

    def test_one_that_is_added_while_others_are_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bank = self.bank(tmp_path)
        bank.claim()
        bank.keep(self.BATCH, {"values": torch.ones(3)}, 1.0)
        own = Bank._listed

        def listed(self: Bank) -> set[str]:
            self.keep(
                structs.replace(TestTwoAtOnce.BATCH, alpha=0.9), {"values": torch.ones(3)}, 1.0
            )
            return own(self)

        monkeypatch.setattr(Bank, "_listed", listed)
        assert len(list(bank.entries())) == 2

    def test_the_same_new_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each looks at it while the other writes who holds it, or claims it."""
        bank = self.bank(tmp_path / "b")
        (tmp_path / "b" / ENTRIES).mkdir(parents=True)
        (tmp_path / "b" / ENTRIES / f".{HOLDER}.77.tmp").write_text("{")
        own = bank_module.only_begun

        def begun(*given: Any) -> bool:
            found = own(*given)
            with monkeypatch.context() as patch:
                patch.setattr(bank_module, "only_begun", own)
                bank.claim()
            return found

        monkeypatch.setattr(bank_module, "only_begun", begun)
        bank.require_free()
        assert Bank.read(tmp_path / "b").source == bank.source

    def test_anew_leaves_the_states_of_a_training_that_goes_on(self, tmp_path: Path) -> None:
        bank = self.bank(tmp_path)
        bank.claim()
        with bank.steps([self.BATCH]) as steps:
            assert steps is not None
            steps.keep({"a": 1}, 2)
            with replace(bank, anew=True).steps([self.BATCH]) as none:
                assert none is None
            assert steps.find({"a": 1}, int) == 2

    def test_anew_forgets_those_of_one_that_was_killed(self, tmp_path: Path) -> None:
        bank = self.bank(tmp_path)
        bank.claim()

        def killed(bank: Bank) -> int | None:
            found: int | None = None
            with suppress(KeyboardInterrupt), bank.steps([self.BATCH]) as steps:
                assert steps is not None
                found = steps.find({"a": 1}, int)
                steps.keep({"a": 1}, 2)
                raise KeyboardInterrupt
            return found

        assert [killed(one) for one in (bank, bank, replace(bank, anew=True))] == [None, 2, None]

    def test_studies(self, tmp_path: Path) -> None:
        """Two that have most of their retrainings in common."""
        words = ["study", "wine", "--models", "1", "--rungs", "KFAC", "--epochs", "5", "--threads",
                 "1", "--no-progress", "--bank", "bank", "--subsets"]  # fmt: skip
        running = [start([*words, m, "--out", m], tmp_path) for m in ("60", "90")]
        for process in running:
            code, _, err = ended(process, 120)
            assert code == 0, err
        verify_bank(tmp_path / "bank")
        spec = StudySpec("wine", 60, models=1, rungs=("KFAC",), variant=Variant(epochs=5))
        alone = run_study(spec, tmp_path / "alone", threads=1)
        shared = read_study(tmp_path / "60")
        for name, array in alone.manifest.arrays.items():
            assert shared.manifest.arrays[name].sha256 == array.sha256


def test_no_file_that_trains_is_forgotten() -> None:
    """Every file of `truth` counts for what a batch goes by, or trains nothing."""
    root = Path(cf.__file__).parent
    idle = {"__init__", "bank", "bregman", "minimise", "proximal", "questions", "threads"}
    files = {
        f"truth/{file.name}" for file in (root / "truth").glob("*.py") if file.stem not in idle
    }
    assert files == {name for name in TRAINER if name.startswith("truth/")}
    assert all((root / name).exists() for name in TRAINER)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 142])
def test_subsets_are_kept_as_bits(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    masks = torch.rand(5, n, generator=generator) < 0.5
    assert packed(masks).shape == (5, -(-n // 8))
    assert torch.equal(unpacked(packed(masks), n), masks)
    weights = torch.rand(5, n, generator=generator)
    assert torch.equal(unpacked(packed(weights), n), weights)


class TestRefused:
    @pytest.fixture
    def bank(self, tmp_path: Path) -> Path:
        make_bank([SPEC], tmp_path)
        return tmp_path

    def array(self, bank: Path) -> Path:
        key = retrained(bank)[0].stem
        return bank / ENTRIES / f"{key}.values.npy"

    def test_a_changed_number(self, bank: Path) -> None:
        file = self.array(bank)
        values = np.load(file)
        values[0, 0] = np.nextafter(values[0, 0], 1e9)
        np.save(file, values)
        with pytest.raises(InputError, match=rf"{file.name} is not what was written: remove that"):
            verify_bank(bank)
        with pytest.raises(InputError, match="is not what was written"):
            truth_of(SPEC, bank)

    def test_a_file_that_is_gone_or_cut(self, bank: Path) -> None:
        file = self.array(bank)
        whole = file.read_bytes()
        file.write_bytes(whole[:-8])
        with pytest.raises(InputError, match=rf"{file.name} is no readable array"):
            verify_bank(bank)
        file.unlink()
        with pytest.raises(InputError, match=rf"{file.name} is missing"):
            verify_bank(bank)

    def test_a_renamed_entry(self, bank: Path) -> None:
        record = retrained(bank)[0]
        other = record.with_name("0123456789abcdef.json")
        record.rename(other)
        with pytest.raises(InputError, match=f"{record.name} is missing: the command that made"):
            verify_bank(bank)
        (bank / LISTED).unlink()
        with pytest.raises(InputError, match="speaks of another batch than its name"):
            verify_bank(bank)

    def test_another_recipe_or_data(self, bank: Path) -> None:
        other = replace(SPEC, variant=Variant(epochs=3))
        for spec in (other, replace(SPEC, problem="breast_cancer", variant=Variant(epochs=2))):
            with pytest.raises(InputError, match="retrainings of another problem or recipe"):
                make_bank([spec], bank)
        with pytest.raises(InputError, match="one recipe on one data set"):
            make_bank([SPEC, other], bank)
        assert len(retrained(bank)) == 2

    @pytest.mark.parametrize("kind", ["bank", "study"])
    @pytest.mark.parametrize("before", ["the record", "its name"])
    def test_a_claim_that_was_killed_while_it_was_made(
        self, kind: str, before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same command makes it again; anything else in the folder still is in its way."""
        place = tmp_path / "r"

        def claim() -> None:
            if kind == "bank":
                Bank(place, source_of(load("wine"), SPEC)).claim()
            else:
                Folder(place, Header("a" * 64, {}, MadeBy("c", "t"))).claim()

        def killed(path: Path, *_: object) -> None:
            if before == "its name":
                path.with_name(f".{path.name}.123.tmp").write_text("{")
            raise KeyboardInterrupt

        module = "curvfluence.truth.bank" if kind == "bank" else "curvfluence.store.folder"
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.write", killed)
            with pytest.raises(KeyboardInterrupt):
                claim()
        assert any(place.iterdir())
        (place / "mine.txt").write_text("mine")
        with pytest.raises(InputError, match="holds files that are no"):
            claim()
        (place / "mine.txt").unlink()
        claim()
        claim()

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="holds files that are no bank"):
            make_bank([SPEC], tmp_path)
        with pytest.raises(InputError, match="is a file: name a folder"):
            make_bank([SPEC], tmp_path / "notes.txt")
        with pytest.raises(InputError, match="holds no bank"):
            verify_bank(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]

    def test_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="needs the spec of a study"):
            make_bank([], tmp_path)
        assert not any(tmp_path.iterdir())


class TestVerify:
    def test_trained_again(self, tmp_path: Path) -> None:
        make_bank([SPEC, replace(SPEC, alpha=0.7)], tmp_path)
        found = verify_bank(tmp_path, again=3)
        assert (found.batches, found.retrainings) == (5, 24)
        assert (found.again, found.equal, found.largest) == (3, 3, 0.0)

    def test_numbers_that_training_does_not_give(self, tmp_path: Path) -> None:
        """Whole in themselves, and off by a known part of the spread over subsets."""
        bank = make_bank([SPEC], tmp_path)
        entry = next(e for e in bank.entries() if e.batch.kind == "retrained")
        arrays = bank.arrays(entry)
        spread = arrays["values"].std(0)
        arrays["values"][0] += 0.25 * spread
        moved = arrays["values"].std(0)
        replace(bank, anew=True).keep(entry.batch, arrays, 1.0)
        found = verify_bank(tmp_path, again=2)
        assert (found.again, found.equal) == (2, 1)
        assert found.largest == pytest.approx(float((0.25 * spread / moved).max()), rel=1e-9)

    def test_of_another_version_of_the_problem(self, tmp_path: Path) -> None:
        make_bank([SPEC], tmp_path)
        resealed(tmp_path / BANK, '"batch_size": 32', '"batch_size": 16')
        with pytest.raises(InputError, match="wine with another recipe, data or measurement"):
            verify_bank(tmp_path, again=1)

    @pytest.mark.parametrize("name", ["wine", "diabetes"])
    def test_those_that_ship(self, name: str) -> None:
        """Whole, and what training gives: to the bit with the torch that made them, and elsewhere
        within what rounding comes to over 100 epochs."""
        found = verify_bank(SHIPPED / name, again=2)
        assert (found.batches, found.retrainings, found.again) == (17, 480, 2)
        assert found.largest <= 0.01

    def test_commands(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["bank", "make", "wine", str(tmp_path), "--subsets", "4", "--models", "1"]
        words += ["--epochs", "2", "--orders", "1", "--alpha", "0.5,0.8", "--no-progress"]
        code, out, _ = run(words, monkeypatch, capsys)
        assert (code, out.split(" holds ")[1]) == (0, "8 retrainings in 3 batches\n")
        code, out, _ = run(["bank", "verify", str(tmp_path), "--again", "1"], monkeypatch, capsys)
        said = "are as they were written; 1 of 1 trained once more are equal to the bit"
        assert (code, out) == (0, f"8 retrainings in 3 batches {said}\n")
        self_array = next((tmp_path / ENTRIES).glob("*.values.npy"))
        self_array.write_bytes(b"")
        code, _, err = run(["bank", "verify", str(tmp_path)], monkeypatch, capsys)
        assert code == 2
        assert err.startswith(f"error: {self_array}")
