"""A problem as a study asks about it: trained as its protocol says, changed as its variant does."""

from __future__ import annotations

from dataclasses import replace

import torch

from curvfluence.study.problems import StudyProblem
from curvfluence.study.protocols import Protocol
from curvfluence.study.spec import DTYPES, StudySpec


def asked(spec: StudySpec, problem: StudyProblem) -> StudyProblem:
    """`problem` in the dtype, training, variant and queries of `spec`.

    Errors: `InputError` for a protocol or a variant that it cannot take.
    """
    ready = prepared(problem, spec.plan, DTYPES[spec.dtype])
    return spec.variant.apply(ready).with_queries(spec.queries)


def prepared(problem: StudyProblem, protocol: Protocol, dtype: torch.dtype) -> StudyProblem:
    """The problem in a dtype, trained as the protocol says."""
    device = problem.train.device
    recipe = protocol.recipe(problem.recipe)
    return replace(
        problem,
        train=problem.train.to(device, dtype),
        queries=problem.queries.to(device, dtype),
        recipe=recipe,
        # The weights of a problem of one's own are those of its own recipe only.
        run=problem.run if recipe == problem.recipe else None,
    )
