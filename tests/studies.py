"""Made-up finished studies for the tests of the report: plausible shapes, numbers of no meaning."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from curvfluence import __version__
from curvfluence.study.spec import GRID

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
MADE_BY = {"code": "0123456789abcdef", "torch": "2.13.0"}


def make_study(
    folder: Path,
    *,
    full: bool = True,
    kind: str = "image",
    train: int = 150,
    queries: int = 20,
    side: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Write a finished study; `full` adds everything that a study may leave out."""
    rng = np.random.default_rng(seed)
    models, orders, subsets, classes = 2, 2, 30, 10
    kept = np.zeros((subsets, train), np.float32)
    for row in kept:
        row[rng.permutation(train)[: train // 2]] = 1
    base = rng.standard_normal((models, queries, train)) * 1e-3
    truth = 1.0 + np.einsum("jqn,mn->jmq", base, 1 - kept)[:, None]
    truth = (
        np.repeat(truth, orders, 1) + rng.standard_normal((models, orders, subsets, queries)) * 4e-3
    )
    arrays: dict[str, Any] = {
        "subsets": kept,
        "truth": truth,
        "query_halves": rng.permutation(queries) < queries // 2,
    }
    names = {**LDS, **(HYBRIDS if full else {})}
    for k, name in enumerate(names):
        noise = rng.standard_normal(base.shape) * 1e-3 * (0.3 + 0.2 * k)
        arrays[f"scores.{name}"] = ((base + noise) / 2).astype(np.float32)
    results = _results(list(names), train, queries, models, orders, subsets, seed)
    if full:
        _extend(results, rng)
        arrays["base"] = np.ones((models, queries))
        arrays["targets.train"] = rng.integers(0, classes, train)
        arrays["targets.queries"] = rng.integers(0, classes, queries)
        logits = rng.standard_normal((models, queries, classes))
        logits[:, np.arange(queries), arrays["targets.queries"]] += 3
        arrays["outputs"] = logits
        for which, count in (("train", train), ("queries", queries)):
            if kind == "image":
                shown: Any = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
            else:
                shown = rng.standard_normal((count, 13)) * 10
            arrays[f"display.{which}"] = shown
        names_of = None if kind == "image" else [f"measure {k + 1}" for k in range(13)]
        results["display"] = {"kind": kind, "names": names_of, "classes": None, "unit": ""}
        results["flipped"] = list(range(0, train, 15))
        results["flipped_from"] = [(n + 1) % classes for n in results["flipped"]]
    (folder / "arrays").mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / "arrays" / f"{name}.npy", array)
    write(folder, results)
    return results


def write(folder: Path, results: dict[str, Any]) -> None:
    """Both JSON files of a study."""
    settings = {"key": "k", "spec": results["spec"], "made_by": MADE_BY}
    (folder / "study.json").write_text(json.dumps(settings))
    (folder / "results.json").write_text(json.dumps(results))


def _results(
    names: list[str], train: int, queries: int, models: int, orders: int, subsets: int, seed: int
) -> dict[str, Any]:
    rungs = [_rung(name, {**LDS, **HYBRIDS}[name]) for name in names]
    ladder = rungs[: len(LDS)]
    lost = [
        {"from": a["name"], "to": b["name"], "lds_lost": a["lds"] - b["lds"]}
        for a, b in pairwise(ladder)
    ]
    return {
        "problem": "made-up",
        "protocol": "clean",
        "spec": {
            "problem": "made-up",
            "subsets": subsets,
            "seed": seed,
            "models": models,
            "orders": orders,
            "alpha": 0.5,
            "rungs": list(LDS),
            "dampings": list(GRID),
        },
        "recipe": {
            "architecture": "Sequential(\n  (0): Linear(in_features=64, out_features=10)\n)",
            "loss": {"kind": "CrossEntropy", "label_smoothing": 0.0, "weight": None},
            "optimizer": {"kind": "torch.optim.sgd.SGD", "lr": 0.03, "momentum": 0.9},
            "batch_size": 32,
            "epochs": 30,
        },
        "environment": {
            "curvfluence": __version__,
            "python": "3.11.7",
            "torch": "2.13.0",
            "cpus": 2,
            "hashes": {"data": "cd701d92feef0d51", "recipe": "47bebee5f09808f2"},
            "command": "curvfluence study made-up",
        },
        "truth": {
            "subsets": subsets,
            "alpha": 0.5,
            "train": train,
            "queries": queries,
            "models": models,
            "orders": orders,
            "retrainings": models * orders * subsets,
            "measurement": "loss",
            "unit": "nats",
            "noise_ceiling": {"matched": 0.952, "independent": 0.764},
            "best_lds": {"matched": 0.976, "independent": 0.874},
            "notes": [],
        },
        "rungs": ladder,
        "hybrids": rungs[len(ladder) :],
        "steps": [{**s, "interval": [s["lds_lost"] - 0.012, s["lds_lost"] + 0.012]} for s in lost],
        "differences": [
            {
                "a": a["name"],
                "b": b["name"],
                "difference": a["lds"] - b["lds"],
                "interval": [a["lds"] - b["lds"] - 0.012, a["lds"] - b["lds"] + 0.012],
            }
            for i, a in enumerate(rungs)
            for b in rungs[i + 1 :]
        ],
        "seconds": {"truth": 9.4, "climb": 2.0, "compare": 3.0},
        "study_seconds": 15.2,
        "report_seconds": None,
        "made_by": MADE_BY,
    }


def _rung(name: str, lds: float) -> dict[str, Any]:
    hybrid, plain = name in HYBRIDS, name == "Identity"
    grid: tuple[float | None, ...] = (None,) if plain else GRID
    return {
        "name": name,
        "full_name": "Hessian(abs)" if name == "Hessian" else name,
        "fisher": "type2",
        "lds": lds,
        "interval": [lds - 0.03, lds + 0.025],
        "interval_subsets": [lds - 0.02, lds + 0.02],
        "interval_queries": [lds - 0.02, lds + 0.02],
        "lds_independent": lds * 0.93,
        "lds_ensemble": lds * 1.13,
        "dampings": [None, None] if plain else [1e-3, 3.16228e-3],
        "damping_on_edge": name == "KFAC",
        "undefined": 0,
        "sweep": [
            {"damping": at, "lds": lds - 0 if at is None else lds - 0.01 * abs(np.log10(at) + 2.75)}
            for at in grid
        ],
        "fit_seconds": None if hybrid else SECONDS[name] * 0.6,
        "score_seconds": None if hybrid else SECONDS[name] * 0.4,
        "peak_bytes": None if hybrid else 18_000_000,
        "coverage": [
            {
                "block": "0",
                "parameters": ["0.weight"],
                "count": 650,
                "rule": "exact",
                "fallback": False,
            }
        ],
        "notes": [],
    }


def _extend(results: dict[str, Any], rng: np.random.Generator) -> None:
    ranks = sorted({round(float(v)) for v in np.geomspace(1, 1482, 60)})
    for k, rung in enumerate([*results["rungs"], *results["hybrids"]]):
        scale = 4.0 - 0.4 * k
        values = [scale * rank**-1.3 for rank in ranks]
        if rung["name"] == "Hessian":
            values[-6:] = [-1e-4 * (j + 1) for j in range(6)]
        if rung["name"] != "Identity":
            rung["spectrum"] = {
                "ranks": ranks,
                "eigenvalues": values,
                "effective_dimension": [
                    {"damping": at, "value": float(sum(v / (v + at) for v in values if v > 0))}
                    for at in GRID
                ],
                "condition": 1e5 if k else None,
                "condition_damping": 0.01,
                "negative": {
                    "count": 0 if k else 210,
                    "lowest": 0.0 if k else -6e-4,
                    "share": 0 if k else 0.02,
                },
                "blocks": [
                    {"name": str(b), "ranks": ranks, "eigenvalues": values} for b in (0, 2, 4)
                ],
            }
        rung["calibration"] = {
            "slope": 2.1 + 0.3 * k,
            "intercept": 0.002,
            "r": 0.71 - 0.04 * k,
            "n": 2400,
        }
        hybrid = rung["name"] in HYBRIDS
        rung["flops"] = (
            None if hybrid else {"fit": 10.0 ** (11 - k), "score": 10.0 ** (9 - 0.3 * k)}
        )
        rung["lds_bregman"] = min(0.95, rung["lds"] * 1.3)
        rung["interval_bregman"] = [rung["lds_bregman"] - 0.02, rung["lds_bregman"] + 0.02]
        rung["surprising_labels"] = None if rung["name"] in ("Hessian", "Identity") else 12.5
    results["decomposition"] = {
        "dampings": list(GRID),
        "steps": [
            {
                "from": a,
                "to": b,
                "distance_squared": d,
                "share": share,
                "norm_share": norm,
                "inverse_error": [0.6 * rng.uniform(0.8, 1.2) / (1 + at / 1e-2) for at in GRID],
                "score_error": [0.4 * rng.uniform(0.8, 1.2) / (1 + at / 1e-2) for at in GRID],
                "lds_lost": lost,
                "interval": [lost - 0.01, lost + 0.01],
                "lds_share": lds_share,
                "lds_share_interval": lds_share and [lds_share - 0.08, lds_share + 0.08],
            }
            for a, b, d, share, norm, lost, lds_share in (
                ("Hessian", "GGN", 3.1, None, None, -0.002, None),
                ("GGN", "BlockGGN", 12.0, 0.62, 0.45, 0.074, 0.41),
                ("BlockGGN", "EKFAC", 5.0, 0.26, 0.3, 0.116, 0.64),
                ("EKFAC", "KFAC", 2.3, 0.12, 0.25, -0.009, -0.05),
            )
        ],
    }
    pairs = (("Hessian", "GGN"), ("GGN", "BlockGGN"), ("BlockGGN", "EKFAC"), ("EKFAC", "KFAC"))
    results["overlap"] = {
        "ranks": [1, 2, 5, 10, 20, 50, 100],
        "pairs": [
            {"a": a, "b": b, "overlap": [0.99 - 0.07 * k - 0.01 * i for i in range(7)]}
            for k, (a, b) in enumerate(pairs)
        ],
    }
    results["bregman"] = {
        "alpha": 0.9, "epsilon": 0.1, "damping": 1e-3, "converged": True, "groups": 40,
    }  # fmt: skip
    results["claims"] = [
        {
            "claim": "Better Hessians consistently give better scores",
            "protocol": "clean",
            "measured": 0.18,
            "interval": [0.15, 0.21],
            "verdict": "holds",
            "detail": "LDS of GGN less that of K-FAC, over all models and subsets",
        },
        {
            "claim": "The eigenvalue mismatch accounts for most of the error",
            "protocol": "paper",
            "measured": 0.3,
            "interval": [-0.02, 0.61],
            "verdict": "not resolved",
            "detail": "",
        },
    ]
