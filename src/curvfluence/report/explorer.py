"""The explorer's data: for each query, its most helpful and most harmful examples by each rung."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curvfluence.report.sprites import draw_sprites, image_shape
from curvfluence.report.style import looks, slug, variable
from curvfluence.study.finished import Finished

SHOWN = 6  # examples at either end
_IMAGE_BYTES = 2_300_000  # of both sprites, before base64: the page stays below 5 MB
_QUERIES, _FEATURES = 500, 60


@dataclass(frozen=True, eq=False)
class Explorer:
    """What the page embeds: `data` as JSON, images as one PNG for each set, as data URIs."""

    data: dict[str, Any]
    train_sprite: str | None
    query_sprite: str | None
    note: str


def explore(study: Finished, first: str) -> Explorer | None:
    """Scores of the first influence model, for as many queries as the page has room for.

    `first` is the rung that is shown first. None where no rung kept its scores.
    """
    scores = {
        rung["name"]: found[0].astype(float)
        for rung in study.rungs
        if (found := study.array(f"scores.{rung['name']}")) is not None
    }
    if not scores:
        return None
    total = study.results["truth"]["queries"]
    every = {name: _ends(study, value) for name, value in scores.items()}
    count = min(total, _QUERIES)
    while True:
        queries = np.unique(np.linspace(0, total - 1, count).round().astype(int))
        lists = {name: (index[queries], value[queries]) for name, (index, value) in every.items()}
        train = np.unique(np.concatenate([index.ravel() for index, _ in lists.values()]))
        sprites = draw_sprites(study, train, queries)
        size = sum(len(s) for s in sprites if s is not None)
        if size <= _IMAGE_BYTES or count <= 8:
            break
        count = max(8, int(count * min(0.9, _IMAGE_BYTES / size)))
    note = (
        ""
        if len(queries) == total
        else (
            f"{len(queries)} of the {total} queries, evenly spaced, so that this page stays small."
        )
    )
    data = {
        **_data(study, scores, lists, train, queries),
        "first": [first, _second(study, first, list(scores))],
    }
    uris = [
        None if s is None else f"data:image/png;base64,{b64encode(s).decode()}" for s in sprites
    ]
    return Explorer(data, uris[0], uris[1], note)


def _second(study: Finished, first: str, names: list[str]) -> str:
    """The rung that is shown beside the first: K-FAC, or the lowest that is another one."""
    others = [name for name in names if name != first]
    return "KFAC" if "KFAC" in others else others[-1] if others else first


def _ends(study: Finished, scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Indices [Q, 2, SHOWN] of the most helpful and the most harmful examples, and their values."""
    help_qn = scores if study.results["truth"].get("lower_is_better", True) else -scores
    order = np.argsort(-help_qn, axis=1, kind="stable")
    shown = min(SHOWN, order.shape[1])
    index = np.stack([order[:, :shown], order[:, ::-1][:, :shown]], axis=1)
    return index, np.take_along_axis(scores[:, None, :], index, axis=2)


def _data(
    study: Finished,
    scores: dict[str, NDArray[Any]],
    lists: dict[str, tuple[NDArray[Any], NDArray[Any]]],
    train: NDArray[Any],
    queries: NDArray[Any],
) -> dict[str, Any]:
    display: dict[str, Any] = study.results.get("display") or {}
    look = looks([rung["name"] for rung in study.rungs])
    lds = {name: _query_lds(study, value)[queries] for name, value in scores.items()}
    flipped: list[int] = study.results.get("flipped") or []
    was: dict[int, int | None] = dict.fromkeys(flipped)
    was.update(zip(flipped, study.results.get("flipped_from") or [], strict=False))
    return {
        "unit": study.results["truth"]["unit"],
        "classes": display.get("classes"),
        "targetUnit": display.get("unit", ""),
        "rungs": [
            {
                "name": rung["name"],
                "label": rung["full_name"],
                "id": slug(rung["name"]),
                "colour": variable(look[rung["name"]].colour),
                "units": rung["name"] != "Identity",
                "lds": _rounded(lds[rung["name"]]),
                "examples": lists[rung["name"]][0].tolist(),
                "values": [_short(ends) for ends in lists[rung["name"]][1]],
            }
            for rung in study.rungs
            if rung["name"] in scores
        ],
        "agreement": _agreement({name: value[queries] for name, value in scores.items()}),
        "queries": queries.tolist(),
        "targets": _targets(study.array("targets.queries"), queries),
        "outputs": _outputs(study, queries),
        "train": train.tolist(),
        "trainTargets": _targets(study.array("targets.train"), train),
        "wrong": {int(n): was[int(n)] for n in train if int(n) in was},
        "image": image_shape(study),
        "features": _features(study, train, queries),
    }


def _query_lds(study: Finished, scores: NDArray[Any]) -> NDArray[Any]:
    """Of the first model, for each query; NaN where predictions or truth are constant."""
    subsets, truth = study.array("subsets"), study.array("truth")
    assert subsets is not None
    assert truth is not None
    predicted = scores @ (1.0 - subsets).T
    return _spearman(_ranks(predicted), _ranks(truth[0].mean(0).T))


def _agreement(scores: dict[str, NDArray[Any]]) -> dict[str, list[float | None]]:
    """Rank correlation of two rungs over all training examples, for each query."""
    ranks = {name: _ranks(value) for name, value in scores.items()}
    return {f"{a}|{b}": _rounded(_spearman(ranks[a], ranks[b])) for a, b in combinations(ranks, 2)}


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    """Ranks along the last axis; ties, which hardly occur among scores, in order of appearance."""
    order = np.argsort(values, axis=-1, kind="stable")
    ranks = np.empty(values.shape, dtype=np.float32)
    np.put_along_axis(ranks, order, np.arange(values.shape[-1], dtype=np.float32), axis=-1)
    ranks[np.ptp(values, axis=-1) == 0] = 0.0
    return ranks


def _spearman(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    product = (a * b).sum(-1)
    return np.divide(product, size, out=np.full(product.shape, np.nan), where=size > 0)


def _rounded(values: NDArray[Any]) -> list[float | None]:
    return [round(float(v), 2) if np.isfinite(v) else None for v in values]


def _targets(values: NDArray[Any] | None, rows: NDArray[Any]) -> list[Any] | None:
    if values is None:
        return None
    kept = values[rows]
    if np.issubdtype(kept.dtype, np.integer) or kept.dtype == bool:
        return kept.astype(int).tolist()
    return [[float(f"{v:.4g}") for v in np.atleast_1d(row)] for row in kept]


def _outputs(study: Finished, queries: NDArray[Any]) -> dict[str, Any] | None:
    """The first model's outputs: as probabilities where the loss says that they are logits."""
    outputs = study.array("outputs")
    if outputs is None:
        return None
    f = outputs[0][queries].astype(float)
    loss = str((study.results["recipe"].get("loss") or {}).get("kind", ""))
    kind = "output"
    if loss == "CrossEntropy":
        f = np.exp(f - f.max(1, keepdims=True))
        f, kind = f / f.sum(1, keepdims=True), "probability"
    elif loss == "BinaryCrossEntropy":
        f, kind = 1 / (1 + np.exp(-f)), "probability"
    return {"kind": kind, "values": [[float(f"{v:.3g}") for v in row] for row in f]}


def _features(study: Finished, train: NDArray[Any], queries: NDArray[Any]) -> dict[str, Any] | None:
    """Feature rows as numbers, with the mean and the standard deviation that colours them."""
    display: dict[str, Any] = study.results.get("display") or {}
    every, asked = study.array("display.train"), study.array("display.queries")
    if display.get("kind") != "features" or every is None or asked is None:
        return None
    kept = min(every.shape[1], _FEATURES)
    names = display.get("names") or [f"feature {k + 1}" for k in range(every.shape[1])]
    return {
        "names": list(names)[:kept],
        "left": every.shape[1] - kept,
        "mean": _short(every.mean(0, keepdims=True)[:, :kept])[0],
        "std": _short(every.std(0, keepdims=True)[:, :kept])[0],
        "train": _short(every[train, :kept]),
        "queries": _short(asked[queries, :kept]),
    }


def _short(rows: NDArray[Any]) -> list[list[float]]:
    return [[float(f"{v:.3g}") for v in row] for row in rows]
