"""Every budget of memory: how many numbers (or bytes) a temporary may hold, and why so many.

They are read where they are used, as `budget.NAME`, so that a test may set one for all of the code.
"""

from __future__ import annotations

from typing import Final

# Passes over examples ---------------------------------------------------------------------------
PASS = 3 * 2**21  # numbers in a pass's layer inputs and output gradients: not far from the caches
DEVICE_PASS = 2**27  # the same on a CUDA device: enough to fill it
FEWEST = 16  # examples a pass takes where they fit four times its numbers: fewer are slow
EXAMPLES = 4096  # that a pass takes at most
UNPROVED = 512  # examples in a sum of rows that is compared: one that is wrong shows above rounding
PROBED = 2**25  # numbers in gradients and in layer inputs of examples that rules are tried on
DENSE_ROWS = 2**27  # numbers in a pass's rows without a rule
VMAPPED = 2**24  # numbers in rows made by one vmap: near 64 MiB
REMEMBERED: Final = 16  # the share of the memory that rows are remembered in, by default: one in 16
BATCH = 2**25  # bytes of rows in files that scores take at a time
CACHED = 2**24  # bytes of such rows that stay in memory; more of them lie in files without a name

# Data -------------------------------------------------------------------------------------------
HELD: Final = 2**27  # bytes of a data set that are held; more is read anew by every pass

# Rows -------------------------------------------------------------------------------------------
FORMED = 2**22  # numbers of per-example matrices at a time: malloc keeps the memory of such a one
INNER = 2**22  # numbers in a temporary of products with some queries: it stays in cache
OPERAND = 2**20  # numbers of solved queries that such a product takes at a time
MERGED = 2**20  # numbers of products of rows with queries that ranks are merged into, or of pairs
KEPT_MERGED = 2**25  # numbers of all merged queries that are kept from rows to rows
CHECKED = 2**25  # numbers held of the queries that low ranks are checked on at a time
LOW_RANK = 2**24  # numbers in products of rows with every low-rank query
PAIRS = 2**25  # numbers of products of two layers' inputs that are made at a time
GRAM = 2**26  # numbers of dense rows whose Gram matrix is added up at a time

# Solving ----------------------------------------------------------------------------------------
RIGHT_HAND_SIDES = 2**25  # numbers of float64 vectors solved or multiplied at a time
EXACT_ROWS = 2**26  # numbers of rows taken to float64 at a time
KERNEL = 2**25  # numbers in a strip of a sample-space kernel
DIRECTIONS = 2**28  # numbers of directions that block conjugate gradients keep, to stay conjugate
QUERIES = (
    2**26
)  # numbers of queries that a form of inversion solves at a time, of which copies are held

# Scores -----------------------------------------------------------------------------------------
SOLVED = 2**28  # numbers of solved queries that are held at a time
TIMED_QUERIES = 2**23  # the same in scores that a forecast times
LEVERAGE = 2**26  # numbers of the factor's rows that are solved for at a time
RANKED = 2**24  # scores that are sorted at a time

# Truth and fidelity -----------------------------------------------------------------------------
RESPONSES = 2**25  # numbers that a chunk of groups may take for its search, about 30 P a group
MODEL_INPUTS = 2**21  # numbers that enter all models of a proximal objective at once
REPLICATES = 2**18  # correlations of a bootstrap held at once: 2 MB in float64, in cache
PAGED = 2**26  # bytes above which an array is worth a file
