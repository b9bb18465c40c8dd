"""Made-up finished studies for the tests of the report: plausible shapes, numbers of no meaning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from curvfluence import __version__
from curvfluence.fidelity import Calibration, Interval
from curvfluence.store import records
from curvfluence.store.folder import RESULTS, SPEC, Header, MadeBy
from curvfluence.store.manifest import ARRAYS, write_manifest
from curvfluence.study.results import (
    BlockSpectrum,
    ByQuestion,
    ClaimRow,
    CoveredBlock,
    Decomposition,
    DecompositionStep,
    DisplaySummary,
    EffectiveDimension,
    Environment,
    NegativePart,
    Operations,
    OverlapPair,
    OverlapSummary,
    ResponseSummary,
    Results,
    RungDifference,
    RungResult,
    SpectrumSummary,
    StageSeconds,
    Step,
    SweepPoint,
    TruthSummary,
)
from curvfluence.study.results.rung import Errors, InverseErrorResult, InverseErrorsOver
from curvfluence.study.results.step import InverseVectors
from curvfluence.study.spec import GRID, StudySpec

LDS = {
    "Hessian": 0.641,
    "GGN": 0.643,
    "BlockGGN": 0.569,
    "EKFAC": 0.453,
    "KFAC": 0.462,
    "Diagonal": 0.356,
    "Identity": 0.323,
}
SECONDS = dict(zip(LDS, (0.2, 0.087, 0.064, 0.034, 0.026, 0.024, 0.015), strict=True))
HYBRIDS = {"eigenvalues of BlockGGN on KFAC": 0.51, "KFAC with the trace of BlockGGN": 0.463}
MADE_BY = MadeBy(code="0123456789abcdef", torch="2.13.0")
SUBSETS, MODELS, ORDERS, CLASSES = 30, 2, 2, 10


@dataclass(frozen=True)
class Size:
    """How many examples a made-up study has."""

    train: int
    queries: int


def make_study(
    folder: Path,
    *,
    full: bool = True,
    kind: str = "image",
    train: int = 150,
    queries: int = 20,
    side: int = 8,
    seed: int = 0,
) -> Results:
    """Write a finished study; `full` adds everything that a study may leave out."""
    rng = np.random.default_rng(seed)
    results = make_results(full=full, kind=kind, train=train, queries=queries, seed=seed)
    (folder / ARRAYS).mkdir(parents=True)
    names = [rung.name for rung in results.every_rung]
    arrays = _arrays(rng, names, Size(train, queries))
    if full:
        arrays |= _shown(rng, Size(train, queries), kind, side)
    for name, array in arrays.items():
        np.save(folder / ARRAYS / f"{name}.npy", array)
    return write(folder, results)


def write(folder: Path, results: Results) -> Results:
    """The JSON files of a study, with a manifest of the arrays that are there."""
    header = Header(key="k", spec=msgspec.to_builtins(results.spec), made_by=results.made_by)
    records.write(folder / SPEC, header)
    arrays = {file.stem: np.load(file) for file in sorted((folder / ARRAYS).glob("*.npy"))}
    results = replace(results, manifest=write_manifest(folder, header, {}, arrays))
    records.write(folder / RESULTS, results)
    return results


def restock(folder: Path) -> None:
    """List the arrays that are there now, as if the study had written them."""
    found = records.read(folder / RESULTS, Results)
    assert found is not None
    write(folder, found)


def resealed(file: Path, old: str, new: str) -> None:
    """Change a record's text and seal it again, as if this code had written it so."""
    value = json.loads(file.read_text().replace(old, new, 1))
    reseal(file, value)


def reseal(file: Path, value: Any) -> None:
    """Write a record's value with a seal that fits, whatever it is."""
    if isinstance(value, dict):
        value.pop(records.SEAL, None)
        value = {records.SEAL: records.seal(value), **value}
    file.write_text(json.dumps(value))


def with_rung(results: Results, name: str, **changes: Any) -> Results:
    """The results with one rung of the ladder changed."""
    rungs = (replace(r, **changes) if r.name == name else r for r in results.rungs)
    return replace(results, rungs=tuple(rungs))


def around(value: float, low: float = 0.012, high: float | None = None) -> Interval:
    """From `low` below the value to `high` above it."""
    return Interval(value - low, value + (low if high is None else high))


def _arrays(rng: np.random.Generator, names: list[str], size: Size) -> dict[str, Any]:
    """The arrays that every study keeps: scores agree with the truth, the first rungs the most."""
    kept = np.zeros((SUBSETS, size.train), np.float32)
    for row in kept:
        row[rng.permutation(size.train)[: size.train // 2]] = 1
    base = rng.standard_normal((MODELS, size.queries, size.train)) * 1e-3
    truth = 1.0 + np.einsum("jqn,mn->jmq", base, 1 - kept)[:, None]
    noise = rng.standard_normal((MODELS, ORDERS, SUBSETS, size.queries)) * 4e-3
    arrays: dict[str, Any] = {
        "subsets": kept,
        "truth": np.repeat(truth, ORDERS, 1) + noise,
        "query_halves": rng.permutation(size.queries) < size.queries // 2,
    }
    for k, name in enumerate(names):
        noise = rng.standard_normal(base.shape) * 1e-3 * (0.3 + 0.2 * k)
        arrays[f"scores.{name}"] = ((base + noise) / 2).astype(np.float32)
    return arrays


def _shown(rng: np.random.Generator, size: Size, kind: str, side: int) -> dict[str, Any]:
    """The arrays that a person looks at: examples, labels and outputs."""
    asked = rng.integers(0, CLASSES, size.queries)
    outputs = rng.standard_normal((MODELS, size.queries, CLASSES))
    outputs[:, np.arange(size.queries), asked] += 3
    arrays: dict[str, Any] = {
        "base": np.ones((MODELS, size.queries)),
        "targets.train": rng.integers(0, CLASSES, size.train),
        "targets.queries": asked,
        "outputs": outputs,
    }
    for which, count in (("train", size.train), ("queries", size.queries)):
        arrays[f"display.{which}"] = (
            rng.integers(0, 256, (count, side, side), dtype=np.uint8)
            if kind == "image"
            else rng.standard_normal((count, 13)) * 10
        )
    return arrays


def make_results(
    *,
    full: bool = True,
    kind: str = "image",
    train: int = 150,
    queries: int = 20,
    seed: int = 0,
) -> Results:
    """The results alone, as `make_study` writes them."""
    rng = np.random.default_rng(seed)
    rungs = tuple(_rung(name, lds) for name, lds in LDS.items())
    hybrids = tuple(_rung(name, lds) for name, lds in HYBRIDS.items()) if full else ()
    every = (*rungs, *hybrids)
    least = Results(
        problem="made-up",
        protocol="clean",
        spec=StudySpec("made-up", SUBSETS, seed=seed, models=MODELS, bregman=full).settings,
        recipe={
            "architecture": "Sequential(\n  (0): Linear(in_features=64, out_features=10)\n)",
            "loss": {"kind": "CrossEntropy", "label_smoothing": 0.0, "weight": None},
            "optimizer": {"kind": "torch.optim.sgd.SGD", "lr": 0.03, "momentum": 0.9},
            "batch_size": 32,
            "epochs": 30,
        },
        environment=ENVIRONMENT,
        truth=_truth(Size(train, queries)),
        rungs=rungs,
        hybrids=hybrids,
        steps=tuple(
            Step(a.name, b.name, a.lds - b.lds, around(a.lds - b.lds)) for a, b in pairwise(rungs)
        ),
        differences=tuple(
            RungDifference(a.name, b.name, a.lds - b.lds, around(a.lds - b.lds))
            for a, b in combinations(every, 2)
        ),
        bregman_missing=None if full else "the study left it out",
        seconds=StageSeconds(models=0.4, climb=2.0, truth=9.4, compare=3.0, bregman=0.0),
        study_seconds=15.2,
        made_by=MADE_BY,
    )
    return _full(least, rng, kind) if full else least


ENVIRONMENT = Environment(
    curvfluence=__version__,
    python="3.11.7",
    torch="2.13.0",
    numpy="2.3.0",
    scipy="1.16.0",
    scikit_learn="1.7.0",
    system="Linux",
    cpus=2,
    threads=1,
    hashes={"data": "cd701d92feef0d51", "recipe": "47bebee5f09808f2"},
    command="curvfluence study made-up",
)


def _truth(size: Size) -> TruthSummary:
    return TruthSummary(
        subsets=SUBSETS,
        alpha=0.5,
        kept=size.train // 2,
        train=size.train,
        queries=size.queries,
        models=MODELS,
        orders=ORDERS,
        retrainings=MODELS * ORDERS * SUBSETS,
        measurement="loss",
        unit="nats",
        lower_is_better=True,
        path="batched",
        influence_model_loss=(0.11, 0.12),
        retrained_loss=0.1,
        seconds=9.4,
        noise_ceiling=ByQuestion(matched=0.952, independent=0.764),
        best_lds=ByQuestion(matched=0.976, independent=0.874),
        notes=(),
    )


def _rung(name: str, lds: float) -> RungResult:
    hybrid, plain = name in HYBRIDS, name == "Identity"
    grid: tuple[float | None, ...] = (None,) if plain else GRID
    return RungResult(
        name=name,
        full_name="Hessian(abs)" if name == "Hessian" else name,
        fisher="type2",
        lds=lds,
        interval=around(lds, 0.03, 0.025),
        interval_subsets=around(lds, 0.02),
        interval_queries=around(lds, 0.02),
        lds_independent=lds * 0.93,
        lds_ensemble=lds * 1.13,
        dampings=(None, None) if plain else (1e-3, 3.16228e-3),
        damping_on_edge=name == "KFAC",
        sweep=tuple(
            SweepPoint(at, lds if at is None else lds - 0.01 * abs(float(np.log10(at)) + 2.75))
            for at in grid
        ),
        fit_seconds=None if hybrid else SECONDS[name] * 0.6,
        score_seconds=None if hybrid else SECONDS[name] * 0.4,
        peak_bytes=None if hybrid else 18_000_000,
        coverage=(CoveredBlock("0", ("0.weight",), 650, "exact", fallback=False),),
    )


def _full(results: Results, rng: np.random.Generator, kind: str) -> Results:
    """With all that a study may leave out."""
    names = [rung.name for rung in results.every_rung]
    rungs = tuple(_extended(rung, names.index(rung.name)) for rung in results.rungs)
    hybrids = tuple(_extended(rung, names.index(rung.name)) for rung in results.hybrids)
    features = None if kind == "image" else tuple(f"measure {k + 1}" for k in range(13))
    flipped = tuple(range(0, results.truth.train, 15))
    decomposition = _decomposition(rng)
    return replace(
        results,
        rungs=rungs,
        hybrids=hybrids,
        display=DisplaySummary("image" if kind == "image" else "features", features, None, ""),
        flipped=flipped,
        flipped_from=tuple((n + 1) % CLASSES for n in flipped),
        decomposition=decomposition,
        decompositions=(decomposition,),
        overlap=_overlap(),
        inverse=InverseVectors(1e-4, 500, 180, 3),
        bregman=ResponseSummary(
            damping=1e-3, epsilon=0.1, alpha=0.9, models=2, groups=SUBSETS, groups_dropped=0,
            converged=True, mean_evaluations=40.0, seconds=3.0,
        ),
        claims=CLAIMS,
    )  # fmt: skip


def _extended(rung: RungResult, k: int) -> RungResult:
    """The k-th rung with spectrum, calibration, operations and the Bregman response."""
    hybrid, response = rung.name in HYBRIDS, min(0.95, rung.lds * 1.3)
    return replace(
        rung,
        spectrum=None if rung.name == "Identity" else _spectrum(rung.name, k),
        calibration=Calibration(slope=2.1 + 0.3 * k, intercept=0.002, r=0.71 - 0.04 * k, n=2400),
        flops=None if hybrid else Operations(int(10.0 ** (11 - k)), int(10.0 ** (9 - 0.3 * k))),
        lds_bregman=response,
        interval_bregman=around(response, 0.02),
        surprising_labels=None if rung.name in ("Hessian", "Identity") else 12.5,
        inverse=None if hybrid else _inverse(rung.name, k),
    )


def _inverse(name: str, k: int) -> InverseErrorResult:
    """Errors at two models; K-FAC has no inverse at the second at the lowest λ."""
    size = 0.002 if name == "Hessian" else 20.0 + 5 * k

    def at(value: float, second: float | None = 1.0) -> Errors:
        other = None if second is None else value * 1.1
        return Errors((value, other), (value / 2, None if other is None else other / 2))

    damped = tuple(
        at(size / (1 + j), None if (name, j) == ("KFAC", 0) else 1.0) for j in range(len(GRID))
    )
    over = InverseErrorsOver(at(size), at(size), damped, damped)
    return InverseErrorResult(over, over)


def _spectrum(name: str, k: int) -> SpectrumSummary:
    ranks = tuple(sorted({round(float(v)) for v in np.geomspace(1, 1482, 60)}))
    values = [(4.0 - 0.4 * k) * rank**-1.3 for rank in ranks]
    if name == "Hessian":
        values[-6:] = [-1e-4 * (j + 1) for j in range(6)]
    return SpectrumSummary(
        ranks=ranks,
        eigenvalues=tuple(values),
        effective_dimension=tuple(
            EffectiveDimension(at, float(sum(v / (v + at) for v in values if v > 0))) for at in GRID
        ),
        condition=1e5 if k else None,
        condition_damping=0.01,
        negative=NegativePart(0, 0.0, 0.0) if k else NegativePart(210, -6e-4, 0.02),
        blocks=tuple(BlockSpectrum(ranks, tuple(values), str(b)) for b in (0, 2, 4)),
    )


def _decomposition(rng: np.random.Generator) -> Decomposition:
    def errors(size: float) -> tuple[float, ...]:
        return tuple(size * float(rng.uniform(0.8, 1.2)) / (1 + at / 1e-2) for at in GRID)

    return Decomposition(
        "type2",
        GRID,
        tuple(
            DecompositionStep(
                a, b, lost, around(lost, 0.01),
                distance_squared=distance, share=share, norm_share=norm,
                inverse_error=errors(0.6), score_error=errors(0.4),
                lds_share=part, lds_share_interval=None if part is None else around(part, 0.08),
            )
            for a, b, distance, share, norm, lost, part in (
                ("Hessian", "GGN", 3.1, None, None, -0.002, None),
                ("GGN", "BlockGGN", 12.0, 0.62, 0.45, 0.074, 0.41),
                ("BlockGGN", "EKFAC", 5.0, 0.26, 0.3, 0.116, 0.64),
                ("EKFAC", "KFAC", 2.3, 0.12, 0.25, -0.009, -0.05),
            )
        ),
    )  # fmt: skip


def _overlap() -> OverlapSummary:
    ladder = ("Hessian", "GGN", "BlockGGN", "EKFAC", "KFAC")
    return OverlapSummary(
        (1, 2, 5, 10, 20, 50, 100),
        tuple(
            OverlapPair(a, b, tuple(0.99 - 0.07 * k - 0.01 * i for i in range(7)))
            for k, (a, b) in enumerate(pairwise(ladder))
        ),
    )


CLAIMS = (
    ClaimRow(
        claim="Better Hessians consistently give better scores",
        protocol="clean",
        measured=0.18,
        interval=(0.15, 0.21),
        verdict="holds",
        detail="LDS of GGN less that of K-FAC, over all models and subsets",
    ),
    ClaimRow(
        claim="The eigenvalue mismatch accounts for most of the error",
        protocol="paper",
        measured=0.3,
        interval=(-0.02, 0.61),
        verdict="not resolved",
        detail="",
    ),
)
