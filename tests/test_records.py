"""Records on disk: a round trip is equal; what does not fit gives one error with its place."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import curvfluence as cf
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.report.study.verdict import verdict
from curvfluence.store.folder import Header, MadeBy
from curvfluence.store.hashes import hash_tensors
from curvfluence.store.records import LARGEST, SEAL, Record, as_json, read, write
from curvfluence.study.claims import Settings, read_claims
from curvfluence.study.claims.table import TABLE, ClaimedStudy, ClaimsTable, ProblemClaims
from curvfluence.study.results import BlockSpectrum, Results, RungResult
from curvfluence.study.spec import LADDER, StudySpec
from curvfluence.study.study import read_study
from curvfluence.study.sweep.index import IndexedCell, SweepIndex
from curvfluence.study.variant import Variant
from curvfluence.study.words import short
from tests.studies import CLAIMS, ENVIRONMENT, make_results, make_study, reseal

Place = tuple[str | int, ...]


class Pair(Record, frozen=True):
    a: tuple[float, ...]
    b: dict[str, Any]


def table() -> ClaimsTable:
    studies = (ClaimedStudy("clean", "digits-clean", 60, {"width": 8}),)
    return ClaimsTable(ENVIRONMENT, Settings(), {"digits": ProblemClaims(CLAIMS, studies)})


def index() -> SweepIndex:
    axes = {"depth": (1, 2), "weight_decay": (0.0, 3e-3)}
    cells = tuple(
        IndexedCell({"depth": d, "weight_decay": w}, f"cells/{d}-{w}", "")
        for d in axes["depth"]
        for w in axes["weight_decay"]
    )
    return SweepIndex(cf.__version__, axes, cells)


def slim(results: Results) -> Results:
    """With all kinds of entries, and few of each."""

    def rung(one: RungResult) -> RungResult:
        found = one.spectrum
        if found is not None:
            found = replace(
                found,
                ranks=found.ranks[:2],
                eigenvalues=found.eigenvalues[:2],
                effective_dimension=found.effective_dimension[:2],
                blocks=tuple(BlockSpectrum((1, 2), (2.0, 1.0), name) for name in "ab"),
            )
        return replace(one, sweep=one.sweep[:2], spectrum=found)

    assert results.decomposition is not None
    steps = results.decomposition.steps[1:3]
    short = replace(
        results.decomposition,
        dampings=(0.1,),
        steps=tuple(replace(s, inverse_error=(0.5,), score_error=(0.4,)) for s in steps),
    )
    return replace(
        results,
        rungs=tuple(map(rung, results.rungs[:3])),
        hybrids=tuple(map(rung, results.hybrids[:1])),
        steps=results.steps[:2],
        differences=results.differences[:2],
        decomposition=short,
        decompositions=(short,),
        flipped=(1, 2),
        flipped_from=(2, 1),
    )


MADE: dict[str, Record] = {
    "results": slim(make_results(train=20, queries=6)),
    "claims": table(),
    "sweep": index(),
    "header": Header("k", {"problem": "x", "rungs": ["a"]}, MadeBy("c", "t")),
    "settings": StudySpec("wine", 5, variant=Variant(depth=2), fishers=("mc(1)",)).settings,
}


def others(value: Any) -> tuple[Any, ...]:
    """Values of the same type."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int | float):
        return (value + 1, value - 1)
    return ("other", "another") if isinstance(value, str) else ()


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every place inside nested values, the top first."""
    yield at
    items: Any = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield from places(inner, (*at, key))


def alike(value: Any) -> list[list[Place]]:
    """The places, those together that differ in their indices alone."""
    found: dict[Place, list[Place]] = {}
    for at in places(value):
        kind = tuple("[]" if isinstance(key, int) else key for key in at)
        found.setdefault(kind, []).append(at)
    return [group for kind, group in found.items() if kind]


def changed(value: Any, at: Place, new: Any) -> Any:
    """A copy with another value at a place; `KeyError` as the new value takes it out."""
    if not at:
        return new
    out = copy.copy(value)
    if len(at) == 1 and new is KeyError:
        del out[at[0]]
    else:
        out[at[0]] = changed(value[at[0]], at[1:], new)
    return out


HOSTILE: tuple[Any, ...] = (
    KeyError, None, True, -1, 0, 1.5, 10**400, -1e308, "", "\0", "../x", "0.6", [], {}, [[]],
    {"x": 1}, [None], [1, 2, 3],
)  # fmt: skip


class TestRoundTrips:
    @pytest.mark.parametrize("name", MADE)
    def test_of_every_record(self, name: str, tmp_path: Path) -> None:
        write(tmp_path / "x.json", MADE[name])
        assert read(tmp_path / "x.json", type(MADE[name])) == MADE[name]
        assert [path.name for path in tmp_path.iterdir()] == ["x.json"]

    def test_keys_are_those_that_others_read(self) -> None:
        results = MADE["results"]
        assert isinstance(results, Results)
        kept = json.loads(json.dumps(as_json(results)))
        assert set(kept["steps"][0]) == {"from", "to", "lds_lost", "interval"}
        assert kept["environment"]["scikit-learn"] == ENVIRONMENT.scikit_learn
        assert kept["rungs"][1]["interval"] == list(results.rungs[1].interval)
        assert set(kept["truth"]["noise_ceiling"]) == {"matched", "independent"}
        assert kept["decomposition"] == kept["decompositions"][0]
        assert kept["spec"]["rungs"] == list(LADDER)

    def test_what_may_be_left_out_has_a_default(self, tmp_path: Path) -> None:
        results = make_results(full=False)
        required = {field.name for field in msgspec.structs.fields(Results) if field.required}
        least = {key: value for key, value in as_json(results).items() if key in required}
        reseal(tmp_path / "x.json", least)
        found = read(tmp_path / "x.json", Results)
        assert found is not None
        assert (found.claims, found.decompositions, found.hybrids) == ((), (), ())
        assert found.rungs == results.rungs

    @given(
        st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4),
        st.dictionaries(
            st.text(max_size=4), st.none() | st.booleans() | st.integers() | st.text(), max_size=4
        ),
    )
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    def test_of_any_values(self, tmp_path: Path, a: list[float], b: dict[str, Any]) -> None:
        record = Pair(tuple(a), b)
        write(tmp_path / "x.json", record)
        assert read(tmp_path / "x.json", Pair) == record

    def test_types_of_somebody_elses(self, tmp_path: Path) -> None:
        mine = Pair((np.float64(0.25),), {"torch": torch.__version__, "n": np.float64(2)})
        write(tmp_path / "x.json", mine)
        found = read(tmp_path / "x.json", Pair)
        assert found == Pair((0.25,), {"torch": str(torch.__version__), "n": 2.0})
        with pytest.raises(TypeError, match="has no place in JSON"):
            write(tmp_path / "x.json", Pair((), {"x": object()}))

    def test_a_number_that_is_none_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(NonFiniteError, match=r"x.json would hold b.x\[1\].y = nan"):
            write(tmp_path / "x.json", Pair((1.0,), {"x": [1.0, {"y": float("nan")}]}))
        assert not list(tmp_path.iterdir())


class TestHostileFiles:
    """Each gives `InputError`, which names the file; none gives anything else."""

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (b"", "not readable as JSON"),
            (b'{"a": [1', "not readable as JSON"),
            (b"\xff\xfe{}", "cannot be read"),
            (b'{"a": [], "b": {}} x', "not readable as JSON"),
            (b"[" * 100_000, "not readable as JSON"),
            (b'{"a": [], "b": ' + b'{"x":' * 60 + b"1" + b"}" * 61, "more than 24 levels"),
            (b'{"a": [NaN], "b": {}}', r"a\[0\] = nan"),
            (b'{"a": [1e999], "b": {}}', r"a\[0\] = inf"),
            (b'{"a": [' + b"9" * 5000 + b'], "b": {}}', "not readable as JSON"),
            (b'{"a": [' + b"9" * 400 + b'], "b": {}}', r"a number out of range at a\[0\]"),
            (b'{"a": [1], "a": [2], "b": {}}', "a twice at its top"),
            (b'{"a": [], "b": {"x": {"y": 1, "y": 2}}}', "y twice at b.x"),
            (b'["a", "b"]', "expected `object`, got `array`"),
            (b'"text"', "expected `object`, got `str`"),
            (b"null", "expected `object`, got `null`"),
            (b'{"a": []}', "at its top: object missing required field `b`"),
            (b'{"a": [], "b": {}, "c": 1}', "unknown field `c`"),
            (b'{"a": [1, "2"], "b": {}}', r'at a\[1\]: expected `float`, got `str`, seen "2"'),
            (b'{"a": [true], "b": {}}', r"at a\[0\]: expected `float`, got `bool`, seen true"),
        ],
    )
    def test_texts(self, text: bytes, said: str, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_bytes(text)
        with pytest.raises(InputError, match=said) as caught:
            read(tmp_path / "x.json", Pair)
        assert str(tmp_path / "x.json") in str(caught.value)

    def test_no_file_and_no_text_file(self, tmp_path: Path) -> None:
        assert read(tmp_path / "x.json", Pair) is None
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path, Pair)

    @pytest.mark.parametrize(
        ("name", "every"),
        [
            pytest.param("results", 1, marks=pytest.mark.slow),
            ("results", 5),
            *((name, 1) for name in MADE if name != "results"),
        ],
    )
    def test_every_place_with_every_hostile_value(
        self, name: str, every: int, tmp_path: Path
    ) -> None:
        """At the first of alike places, and with some at the last: taken out, or of another type,
        size or sign. Of results, which have 333 places, at every fifth where tests must be quick.

        What still reads is written and read back as it is, and a study's verdict is made of it.
        """
        record, path = MADE[name], tmp_path / "x.json"
        kept = json.loads(json.dumps(as_json(record)))
        refused = fitted = 0
        for found in list(alike(kept))[::every]:
            ends = ((found[0], HOSTILE), (found[-1], HOSTILE[:3] if len(found) > 1 else ()))
            for at, value in ((at, value) for at, values in ends for value in values):
                reseal(path, changed(kept, at, value))
                again = self.read_or_named(path, type(record))
                if again is None:
                    refused += 1
                    continue
                fitted += 1
                write(tmp_path / "y.json", again)
                assert read(tmp_path / "y.json", type(record)) == again
                if isinstance(again, Results):
                    assert verdict(again).headline
        assert refused > fitted > 0

    def read_or_named(self, path: Path, kind: type[Record]) -> Record | None:
        """The record, or None where it was refused by an error that names the file."""
        try:
            return read(path, kind)
        except InputError as error:
            if str(path) not in str(error):
                raise
            return None

    def test_every_truncation(self, tmp_path: Path) -> None:
        text = json.dumps(as_json(MADE["results"])).encode()
        cuts = {*range(40), *random.Random(0).sample(range(len(text)), 150), len(text) - 1}
        for cut in cuts:
            (tmp_path / "x.json").write_bytes(text[:cut])
            with pytest.raises(InputError, match="not readable as JSON"):
                read(tmp_path / "x.json", Results)

    @given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3))
    @settings(
        max_examples=150,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    def test_bytes_turned_over(self, tmp_path: Path, flips: list[tuple[float, int]]) -> None:
        write(tmp_path / "x.json", MADE["results"])
        text = bytearray((tmp_path / "x.json").read_bytes())
        for where, byte in flips:
            text[int(where * (len(text) - 1))] = byte
        (tmp_path / "x.json").write_bytes(text)
        found = self.read_or_named(tmp_path / "x.json", Results)
        assert found is None or found == MADE["results"]  # a blank for another, say

    @pytest.mark.parametrize("name", MADE)
    def test_an_edit_that_fits_is_refused(self, name: str, tmp_path: Path) -> None:
        """Whatever number, word or flag is changed, its seal is of other content."""
        path = tmp_path / "x.json"
        write(path, MADE[name])
        whole = json.loads(path.read_text())
        kept = {key: value for key, value in whole.items() if key != SEAL}
        tried = 0
        for at in [place for found in alike(kept) for place in found[:1]]:
            value = kept
            for key in at:
                value = value[key]
            other = next((v for v in others(value) if v != value), None)
            if other is None:
                continue
            path.write_text(json.dumps({SEAL: whole[SEAL], **changed(kept, at, other)}))
            with pytest.raises(InputError, match=r"x\.json"):
                read(path, type(MADE[name]))
            tried += 1
        assert tried > 0

    def test_without_a_seal(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        path.write_text(json.dumps(as_json(MADE["header"])))
        with pytest.raises(InputError, match="has no sha256 of its content: an older version or"):
            read(path, Header)

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        write(tmp_path / "there.json", MADE["header"])
        (tmp_path / "x.json").symlink_to(tmp_path / "there.json")
        with pytest.raises(InputError, match="is a link"):
            read(tmp_path / "x.json", Header)
        write(tmp_path / "x.json", MADE["settings"])  # replaces the link, not what it leads to
        assert read(tmp_path / "there.json", Header) == MADE["header"]
        assert not (tmp_path / "x.json").is_symlink()

    def test_a_file_that_is_too_large(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        with path.open("wb") as file:
            file.truncate(LARGEST + 1)
        with pytest.raises(InputError, match="has more than"):
            read(path, Header)


class TestWholeStudies:
    """What is well typed and still no study."""

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("", "no rung can be named ''"),
            ("../../../etc/passwd", "no rung can be named"),
            ("KFAC", "the rung 'KFAC' stands 2 times"),
            ("x" * 5000, "no readable array|is missing"),
        ],
    )
    def test_names_of_rungs_are_names_of_files(self, name: str, said: str, tmp_path: Path) -> None:
        make_study(tmp_path / "x", full=False, train=20, queries=6)
        path = tmp_path / "x" / "results.json"
        kept = json.loads(path.read_text())
        kept["rungs"][1]["name"] = name
        reseal(path, kept)
        with pytest.raises(InputError, match=said):
            read_study(tmp_path / "x")

    @pytest.mark.parametrize("folder", ["/tmp/x", "../x", "cells/../../x", "a\0b"])
    def test_a_sweep_names_no_study_outside(self, folder: str, tmp_path: Path) -> None:
        kept = json.loads(json.dumps(as_json(index())))
        kept["cells"][1]["folder"] = folder
        reseal(tmp_path / "sweep.json", kept)
        with pytest.raises(InputError, match="a folder outside of its own"):
            read(tmp_path / "sweep.json", SweepIndex)

    @pytest.mark.parametrize("place", ["problem", "folder"])
    @pytest.mark.parametrize("name", ["/tmp/x", "../x", "a/../../x", "a\0b", "n" * 400, ""])
    def test_claims_name_no_study_outside(self, name: str, place: str, tmp_path: Path) -> None:
        kept = json.loads(json.dumps(as_json(table())))
        if place == "problem":
            kept["problems"][name] = kept["problems"].pop("digits")
        else:
            kept["problems"]["digits"]["studies"][0]["folder"] = name
        reseal(tmp_path / TABLE, kept)
        with pytest.raises(InputError, match="it names a folder"):
            read_claims(tmp_path)

    def test_claims_of_no_damping(self, tmp_path: Path) -> None:
        write(tmp_path / TABLE, table())
        kept = json.loads((tmp_path / TABLE).read_text())
        kept["settings"]["dampings"] = []
        reseal(tmp_path / TABLE, kept)
        with pytest.raises(InputError, match="no dampings"):
            read_claims(tmp_path)

    def test_another_version_is_named_before_anything_else(self, tmp_path: Path) -> None:
        other = replace(table(), environment=replace(ENVIRONMENT, curvfluence="9.9"))
        write(tmp_path / TABLE, other)
        with pytest.raises(InputError, match=f"by curvfluence 9.9 and this is {cf.__version__}"):
            read_claims(tmp_path)
        (tmp_path / TABLE).write_text('{"environment": 3, "other": "format"}')
        with pytest.raises(InputError, match="of an unknown version"):
            read_claims(tmp_path)

    def test_settings_tell_how_fine_the_numbers_are(self) -> None:
        for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
            spec = StudySpec("wine", 5, dtype=name)
            assert spec.settings.rounding == torch.finfo(dtype).eps

    def test_all_rungs_named_is_none_named(self) -> None:
        """They have one key, so they must be one study."""
        base = StudySpec("wine", 5, protocol="paper")
        assert StudySpec("wine", 5, protocol="paper", rungs=base.ladder) == base
        assert base.settings.rungs == base.ladder


def test_a_hash_is_of_the_numbers_with_their_shapes() -> None:
    a, b = torch.arange(6.0), torch.arange(3)
    assert hash_tensors(a, b) == hash_tensors(a.clone(), b)
    others = (a.reshape(2, 3), a.double(), a + 1)
    assert len({hash_tensors(a, b), hash_tensors(b, a), *(hash_tensors(x, b) for x in others)}) == 5


def broken(path: Path, how: str) -> None:
    """Make an array file into something else."""
    array = np.load(path)
    if how == "an archive":
        with path.open("wb") as file:
            np.savez(file, a=array)
    elif how == "a huge header":
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**6)}
            )
    elif how == "shorter":
        path.write_bytes(path.read_bytes()[:-8])
    elif how == "NaN":
        np.save(path, np.full_like(array, np.nan, dtype=float))
    elif how == "another shape":
        np.save(path, array[..., :-1])
    else:
        np.save(path, array.astype({"strings": str, "dates": "M8[s]", "complex": complex}[how]))


class TestHostileArrays:
    """Arrays are read by what the file really is: numbers, as many as it says, none missing."""

    @pytest.mark.parametrize("name", ["truth", "subsets", "scores.EKFAC", "base", "display.train"])
    @pytest.mark.parametrize(
        "how",
        ["an archive", "a huge header", "shorter", "NaN", "strings", "dates", "complex",
         "another shape"],
    )  # fmt: skip
    def test_one_error(self, name: str, how: str, tmp_path: Path) -> None:
        make_study(tmp_path / "x", train=20, queries=6)
        path = tmp_path / "x" / "arrays" / f"{name}.npy"
        if how == "another shape" and name == "display.train":
            np.save(path, np.load(path)[:-1])
        else:
            broken(path, how)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            read_study(tmp_path / "x")


@pytest.mark.parametrize(
    ("value", "said"),
    [(5e-324, "4.94·10⁻³²⁴"), (1.7e308, "1.7·10³⁰⁸"), (-2e-5, "−2·10⁻⁵"), (1e-5, "10⁻⁵"),
     (0.00316, "0.00316"), (12345.0, "12345"), (9.9999e-6, "10⁻⁵")],
)  # fmt: skip
def test_short_numbers(value: float, said: str) -> None:
    assert short(value) == said
