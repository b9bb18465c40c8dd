"""Truths kept for good: made again by one command, verified by another."""

from curvfluence.banks.verify import Verified, verify_bank
from curvfluence.study.make_bank import make_bank

__all__ = ["Verified", "make_bank", "verify_bank"]
