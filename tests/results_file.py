"""`results.json` of a study, as whoever reads the file sees it."""

from __future__ import annotations

import json

from curvfluence.study import Study, read_study


def written(study: Study) -> dict:
    """What is in the file, by its keys; what the study returned is what was written."""
    assert read_study(study.path).results == study.results
    return json.loads((study.path / "results.json").read_text())
