"""What a study keeps, as whoever reads its files sees it, and its LDS again by obvious loops."""

from __future__ import annotations

import json

import numpy as np
from scipy.stats import rankdata

from curvfluence.study import Study, read_study


def written(study: Study) -> dict:
    """What is in the file, by its keys; what the study returned is what was written."""
    assert read_study(study.path).results == study.results
    return json.loads((study.path / "results.json").read_text())


def spearman_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlations of the rows of two [Q, m] arrays, one by one: Pearson's, of the ranks."""
    ranks = zip(rankdata(a, axis=1), rankdata(b, axis=1), strict=True)
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in ranks])


def cross_fitted(predicted: np.ndarray, truth: np.ndarray, halves: np.ndarray) -> float:
    """LDS of predictions [D, J, m, Q] on truth [J, m, Q], each half at the other's best damping."""
    table = np.array(
        [
            [spearman_rows(p.T, t.T) for p, t in zip(row, truth, strict=True)]
            for row in predicted.transpose(0, 1, 2, 3)
        ]
    )  # [D, J, Q]
    means = {True: table[:, :, ~halves].mean((1, 2)), False: table[:, :, halves].mean((1, 2))}
    # of tied dampings the smallest: few subsets tie often
    best = {half: (mean >= mean.max() - 1e-12).argmax() for half, mean in means.items()}
    chosen = np.where(halves, table[best[True]], table[best[False]])
    return float(chosen.mean())
