"""Truths kept for good: made again by one command, verified by another."""

from pathlib import Path

from curvfluence.banks.verify import Verified, verify_bank
from curvfluence.study.make_bank import make_bank, make_slice
from curvfluence.study.retrain import Slice

SHIPPED = Path(__file__).parent / "shipped"  # banks of built-in problems, by name

__all__ = ["SHIPPED", "Slice", "Verified", "make_bank", "make_slice", "verify_bank"]
