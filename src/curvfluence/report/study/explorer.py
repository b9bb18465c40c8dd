"""The explorer's data: for each query, its most helpful and most harmful examples by each rung."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curvfluence.report.parts.style import looks, slug, variable
from curvfluence.report.parts.units import behind, scaled
from curvfluence.report.study.sprites import draw_sprites, image_shape
from curvfluence.study.results import RungResult
from curvfluence.study.study import Study

SHOWN = 6  # examples at either end
_IMAGE_BYTES = 2_300_000  # of both sprites, before base64: the page stays below 5 MB
_QUERIES, _FEATURES = 500, 60
Ends = tuple[NDArray[Any], NDArray[Any]]  # indices and values, [Q, 2, SHOWN]


@dataclass(frozen=True, eq=False)
class Explorer:
    """What the page embeds: `data` as JSON, images as one PNG for each set, as data URIs."""

    data: dict[str, Any]
    train_sprite: str | None
    query_sprite: str | None
    note: str


def explore(study: Study, first: str) -> Explorer | None:
    """Scores of the first influence model, for as many queries as the page has room for.

    `first` is the rung that is shown first. None where no rung scores_jqn its scores.
    """
    scores = {
        rung.name: scores_jqn[0].astype(float)
        for rung in study.results.every_rung
        if (scores_jqn := study.scores(rung.name)) is not None
    }
    if not scores:
        return None
    total = study.results.truth.queries
    every = {name: _ends(study, value) for name, value in scores.items()}
    count = min(total, _QUERIES)
    while True:
        queries = np.unique(np.linspace(0, total - 1, count).round().astype(int))
        ends = {name: (index[queries], value[queries]) for name, (index, value) in every.items()}
        train = np.unique(np.concatenate([index.ravel() for index, _ in ends.values()]))
        sprites = draw_sprites(study, train, queries)
        size = sum(len(sprite) for sprite in sprites if sprite is not None)
        if size <= _IMAGE_BYTES or count <= 8:
            break
        count = max(8, int(count * min(0.9, _IMAGE_BYTES / size)))
    shown = f"{len(queries)} of the {total} queries, evenly spaced, so that this page stays small."
    data = _data(study, scores, ends, train, queries)
    data["first"] = [first, _second(first, list(scores))]
    note = "" if len(queries) == total else shown
    return Explorer(data, _uri(sprites[0]), _uri(sprites[1]), note)


def _uri(sprite: bytes | None) -> str | None:
    return None if sprite is None else f"data:image/png;base64,{b64encode(sprite).decode()}"


def _second(first: str, names: list[str]) -> str:
    """The rung that is shown beside the first: K-FAC, or the lowest that is another one."""
    others = [name for name in names if name != first]
    return "KFAC" if "KFAC" in others else others[-1] if others else first


def _ends(study: Study, scores: NDArray[Any]) -> Ends:
    """The most helpful and the most harmful examples of each query."""
    help_qn = scores if study.results.truth.lower_is_better else -scores
    order = np.argsort(-help_qn, axis=1, kind="stable")
    shown = min(SHOWN, order.shape[1])
    index = np.stack([order[:, :shown], order[:, ::-1][:, :shown]], axis=1)
    return index, np.take_along_axis(scores[:, None, :], index, axis=2)


def _data(
    study: Study,
    scores: dict[str, NDArray[Any]],
    ends: dict[str, Ends],
    train: NDArray[Any],
    queries: NDArray[Any],
) -> dict[str, Any]:
    results = study.results
    display = results.display
    look = looks([rung.name for rung in results.every_rung])
    rungs = [rung for rung in results.every_rung if rung.name in scores]
    return {
        "unit": behind(results.truth.unit).removeprefix(", in "),
        "scaledUnit": scaled(results.truth.unit),
        "classes": None if display is None else display.classes,
        "targetUnit": "" if display is None else display.unit,
        "rungs": [
            _rung(
                rung,
                look[rung.name].colour,
                _query_lds(study, scores[rung.name])[queries],
                ends[rung.name],
            )
            for rung in rungs
        ],
        "agreement": _agreement({name: value[queries] for name, value in scores.items()}),
        "queries": queries.tolist(),
        "targets": _targets(study.array("targets.queries"), queries),
        "outputs": _outputs(study, queries),
        "train": train.tolist(),
        "trainTargets": _targets(study.array("targets.train"), train),
        "wrong": _wrong(study, train),
        "image": image_shape(study),
        "features": _features(study, train, queries),
    }


def _rung(rung: RungResult, colour: str, lds: NDArray[Any], ends: Ends) -> dict[str, Any]:
    return {
        "name": rung.name,
        "label": rung.full_name,
        "id": slug(rung.name),
        "colour": variable(colour),
        "units": rung.has_units,
        "lds": _rounded(lds),
        "examples": ends[0].tolist(),
        "values": [_short(values) for values in ends[1]],
    }


def _wrong(study: Study, train: NDArray[Any]) -> dict[int, int | None]:
    """Which of these examples have a changed label, and their true ones where those are known."""
    flipped, true = study.results.flipped or (), study.results.flipped_from or ()
    was = dict(zip(flipped, true or [None] * len(flipped), strict=True))
    return {int(n): was[int(n)] for n in train if int(n) in was}


def _query_lds(study: Study, scores: NDArray[Any]) -> NDArray[Any]:
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
    chosen = values[rows]
    if np.issubdtype(chosen.dtype, np.integer) or chosen.dtype == bool:
        return chosen.astype(int).tolist()
    return [[float(f"{v:.4g}") for v in np.atleast_1d(row)] for row in chosen]


def _outputs(study: Study, queries: NDArray[Any]) -> dict[str, Any] | None:
    """The first model's outputs: as probabilities where the loss says that they are logits."""
    outputs = study.array("outputs")
    if outputs is None:
        return None
    f = outputs[0][queries].astype(float)
    loss = study.results.loss
    kind = "output"
    if loss == "CrossEntropy":
        f = np.exp(f - f.max(1, keepdims=True))
        f, kind = f / f.sum(1, keepdims=True), "probability"
    elif loss == "BinaryCrossEntropy":
        f, kind = 1 / (1 + np.exp(-f)), "probability"
    return {"kind": kind, "values": _short(f)}


def _features(study: Study, train: NDArray[Any], queries: NDArray[Any]) -> dict[str, Any] | None:
    """Feature rows as numbers, with the mean and the standard deviation that colours them."""
    display = study.results.display
    every, asked = study.array("display.train"), study.array("display.queries")
    if display is None or display.kind != "features" or every is None or asked is None:
        return None
    count = min(every.shape[1], _FEATURES)
    names = display.names or [f"feature {k + 1}" for k in range(every.shape[1])]
    return {
        "names": list(names)[:count],
        "left": every.shape[1] - count,
        "mean": _short(every.mean(0, keepdims=True)[:, :count])[0],
        "std": _short(every.std(0, keepdims=True)[:, :count])[0],
        "train": _short(every[train, :count]),
        "queries": _short(asked[queries, :count]),
    }


def _short(rows: NDArray[Any]) -> list[list[float]]:
    return [[float(f"{v:.3g}") for v in row] for row in rows]
