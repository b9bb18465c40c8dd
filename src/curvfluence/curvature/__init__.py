"""The ladder, one rung a file, on small operators."""

from curvfluence.curvature.block_ggn import BlockGGN
from curvfluence.curvature.curvature import Block, Cost, CoverageLine, Curvature, Operator
from curvfluence.curvature.diagonal import Diagonal
from curvfluence.curvature.ekfac import EKFAC
from curvfluence.curvature.estimate.sharing import Expand, Reduce, Sharing
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.hessian import Hessian
from curvfluence.curvature.hybrids import Project, Sorted, TraceMatched
from curvfluence.curvature.identity import Identity
from curvfluence.curvature.inversion import ConjugateGradients, Form, Matrix, SampleSpace
from curvfluence.curvature.kfac import KFAC
from curvfluence.curvature.operators.symmetric import Abs, Clip, Plain, Treatment, Truncate
from curvfluence.curvature.rung import FisherRung, Rung, fit

__all__ = [
    "Abs",
    "Block",
    "BlockGGN",
    "Clip",
    "ConjugateGradients",
    "Cost",
    "CoverageLine",
    "Curvature",
    "Diagonal",
    "EKFAC",
    "Expand",
    "FisherRung",
    "Form",
    "GGN",
    "Hessian",
    "Identity",
    "KFAC",
    "Matrix",
    "Operator",
    "Plain",
    "Project",
    "Reduce",
    "Rung",
    "SampleSpace",
    "Sharing",
    "Sorted",
    "TraceMatched",
    "Treatment",
    "Truncate",
    "fit",
]
