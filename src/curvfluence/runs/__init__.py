"""Folders of results: what is there, whether it is whole, what is left over."""

from curvfluence.runs.clean import clean, leftovers
from curvfluence.runs.find import RunFolder, find, kind_of
from curvfluence.runs.forget import forget
from curvfluence.runs.verify import Checked, verify

__all__ = ["Checked", "RunFolder", "clean", "find", "forget", "kind_of", "leftovers", "verify"]
