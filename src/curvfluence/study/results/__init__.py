"""What a study found, as typed records: `results.json` and nothing else."""

# ruff: noqa: I001 - a line for each file
from curvfluence.study.results.claim import ClaimRow
from curvfluence.study.results.results import Results
from curvfluence.study.results.rung import (
    BlockSpectrum, CoveredBlock, EffectiveDimension, NegativePart, Operations, ProvenError,
    RungResult, SpectrumSummary, SweepPoint,
)  # fmt: skip
from curvfluence.study.results.settings import DisplaySummary, Environment, StudySettings
from curvfluence.study.results.step import (
    BlockOverlap, Decomposition, DecompositionStep, OverlapPair, OverlapSummary, RungDifference,
    Step,
)  # fmt: skip
from curvfluence.study.results.truth import (
    ByQuestion, ResponseSummary, StageSeconds, TruthSummary,
)  # fmt: skip

__all__ = [
    "BlockOverlap", "BlockSpectrum", "ByQuestion", "ClaimRow", "CoveredBlock", "Decomposition",
    "DecompositionStep", "DisplaySummary", "EffectiveDimension", "Environment", "NegativePart",
    "Operations", "OverlapPair", "OverlapSummary", "ProvenError", "ResponseSummary", "Results",
    "RungDifference", "RungResult", "SpectrumSummary", "StageSeconds", "Step", "StudySettings",
    "SweepPoint", "TruthSummary",
]  # fmt: skip
