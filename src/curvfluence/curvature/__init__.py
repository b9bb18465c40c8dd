"""The ladder, one rung a file, on small operators."""

from curvfluence.curvature.base import Block, Cost, Covered, Curvature, Operator
from curvfluence.curvature.block_ggn import BlockGGN
from curvfluence.curvature.diagonal import Diagonal
from curvfluence.curvature.ekfac import EKFAC
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.hessian import Hessian
from curvfluence.curvature.hybrids import Project, Sorted, TraceMatched
from curvfluence.curvature.identity import Identity
from curvfluence.curvature.kfac import KFAC
from curvfluence.curvature.rung import FisherRung, Rung, fit
from curvfluence.curvature.symmetric import Abs, Clip, Plain, Treatment, Truncate

__all__ = [
    "Abs",
    "Block",
    "BlockGGN",
    "Clip",
    "Cost",
    "Covered",
    "Curvature",
    "Diagonal",
    "EKFAC",
    "FisherRung",
    "GGN",
    "Hessian",
    "Identity",
    "KFAC",
    "Operator",
    "Plain",
    "Project",
    "Rung",
    "Sorted",
    "TraceMatched",
    "Treatment",
    "Truncate",
    "fit",
]
