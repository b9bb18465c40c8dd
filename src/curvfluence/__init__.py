"""Influence functions under every curvature approximation, measured against retraining.

What a user types most stands here; the rest is reached through its namespace: `cf.hessian.Clip()`,
`cf.hybrids.Sorted(...)`, `cf.inversion.SampleSpace()`, `cf.truth.train(...)`,
`cf.fidelity.calibrate(...)`, `cf.errors.InputError`. A name is imported when it is first used
(PEP 562), so `import curvfluence` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from curvfluence._version import __version__

if TYPE_CHECKING:
    from curvfluence import errors, fidelity, truth
    from curvfluence.advising.advise import advise
    from curvfluence.auditing.audit import audit
    from curvfluence.curvature import hessian, hybrids, inversion
    from curvfluence.curvature.block_ggn import BlockGGN
    from curvfluence.curvature.curvature import Curvature
    from curvfluence.curvature.damping import Absolute, BestOf, Relative
    from curvfluence.curvature.diagonal import Diagonal
    from curvfluence.curvature.ekfac import EKFAC
    from curvfluence.curvature.eshampoo import EShampoo
    from curvfluence.curvature.estimate.factors import Expand, Reduce
    from curvfluence.curvature.ggn import GGN
    from curvfluence.curvature.hessian import Hessian
    from curvfluence.curvature.identity import Identity
    from curvfluence.curvature.kfac import KFAC
    from curvfluence.curvature.rung import Rung, fit
    from curvfluence.curvature.shampoo import Shampoo
    from curvfluence.curvature.tkfac import TKFAC
    from curvfluence.forecast.make import plan
    from curvfluence.indexing.load import load_index
    from curvfluence.indexing.make import index
    from curvfluence.jacobian.fisher import Empirical, MonteCarlo, Type2
    from curvfluence.judging.run import judge
    from curvfluence.problem.data import Examples
    from curvfluence.problem.losses import (
        MSE,
        BinaryCrossEntropy,
        CausalLM,
        CrossEntropy,
        CustomLoss,
        Positions,
    )
    from curvfluence.problem.measurement import CustomMeasurement, LogProbability, Margin
    from curvfluence.problem.problem import Problem
    from curvfluence.runtime.ranks import together
    from curvfluence.score.groups import group_influence
    from curvfluence.score.influence import influence
    from curvfluence.score.load import load_scores
    from curvfluence.score.scores import Scores
    from curvfluence.score.self_influence import self_influence
    from curvfluence.score.tokens import token_influence

# The module that holds each name; the names are in the reader's order.
_HOMES = {
    # what was trained, and what is asked
    "Problem": "problem.problem",
    "Examples": "problem.data",
    "CrossEntropy": "problem.losses",
    "MSE": "problem.losses",
    "BinaryCrossEntropy": "problem.losses",
    "CustomLoss": "problem.losses",
    "Positions": "problem.losses",
    "CausalLM": "problem.losses",
    "Margin": "problem.measurement",
    "LogProbability": "problem.measurement",
    "CustomMeasurement": "problem.measurement",
    # the ladder
    "Rung": "curvature.rung",
    "Identity": "curvature.identity",
    "Diagonal": "curvature.diagonal",
    "KFAC": "curvature.kfac",
    "EKFAC": "curvature.ekfac",
    "Shampoo": "curvature.shampoo",
    "TKFAC": "curvature.tkfac",
    "EShampoo": "curvature.eshampoo",
    "BlockGGN": "curvature.block_ggn",
    "GGN": "curvature.ggn",
    "Hessian": "curvature.hessian",
    "Type2": "jacobian.fisher",
    "MonteCarlo": "jacobian.fisher",
    "Empirical": "jacobian.fisher",
    "Expand": "curvature.estimate.factors",
    "Reduce": "curvature.estimate.factors",
    "fit": "curvature.rung",
    "Curvature": "curvature.curvature",
    "Absolute": "curvature.damping",
    "Relative": "curvature.damping",
    "BestOf": "curvature.damping",
    # the answer
    "influence": "score.influence",
    "self_influence": "score.self_influence",
    "group_influence": "score.groups",
    "token_influence": "score.tokens",
    "Scores": "score.scores",
    "load_scores": "score.load",
    "index": "indexing.make",
    "load_index": "indexing.load",
    "together": "runtime.ranks",
    "plan": "forecast.make",
    # what follows from it
    "audit": "auditing.audit",
    "advise": "advising.advise",
    "judge": "judging.run",
}
_NAMESPACES = {
    "hessian": "curvature.hessian",
    "hybrids": "curvature.hybrids",
    "inversion": "curvature.inversion",
    "truth": "truth",
    "fidelity": "fidelity",
    "errors": "errors",
}

__all__ = [
    "Problem",
    "Examples",
    "CrossEntropy",
    "MSE",
    "BinaryCrossEntropy",
    "CustomLoss",
    "Positions",
    "CausalLM",
    "Margin",
    "LogProbability",
    "CustomMeasurement",
    "Rung",
    "Identity",
    "Diagonal",
    "KFAC",
    "EKFAC",
    "Shampoo",
    "TKFAC",
    "EShampoo",
    "BlockGGN",
    "GGN",
    "Hessian",
    "Type2",
    "MonteCarlo",
    "Empirical",
    "Expand",
    "Reduce",
    "fit",
    "Curvature",
    "Absolute",
    "Relative",
    "BestOf",
    "influence",
    "self_influence",
    "group_influence",
    "token_influence",
    "Scores",
    "load_scores",
    "index",
    "load_index",
    "together",
    "plan",
    "audit",
    "advise",
    "judge",
    "hessian",
    "hybrids",
    "inversion",
    "truth",
    "fidelity",
    "errors",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        value: Any = import_module(f"curvfluence.{_NAMESPACES[name]}")
    elif name in _HOMES:
        value = getattr(import_module(f"curvfluence.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'curvfluence' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
