"""Truths kept for good: made again by one command, verified by another."""

from pathlib import Path

from curvfluence.banks.verify import Verified, verify_bank
from curvfluence.study.make_bank import make_bank

SHIPPED = Path(__file__).parent / "shipped"  # banks of built-in problems, by name

__all__ = ["SHIPPED", "Verified", "make_bank", "verify_bank"]
