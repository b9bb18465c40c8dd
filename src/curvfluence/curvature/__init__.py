"""The ladder, one rung a file, on small operators."""

from curvfluence.curvature.base import Block, Cost, Covered, Curvature, Operator
from curvfluence.curvature.block_ggn import BlockGGN
from curvfluence.curvature.diagonal import Diagonal
from curvfluence.curvature.ekfac import EKFAC
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.hessian import Abs, Clip, Hessian, Plain, Spectrum, Truncate
from curvfluence.curvature.hybrids import Project, Sorted, TraceMatched
from curvfluence.curvature.identity import Identity
from curvfluence.curvature.kfac import KFAC
from curvfluence.curvature.rung import FisherRung, Rung, fit

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
    "Spectrum",
    "TraceMatched",
    "Truncate",
    "fit",
]
