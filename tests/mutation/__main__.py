"""`python -m tests.mutation [fidelity/lds …]`: mutants of a file and the tests that should kill
them.

mutmut changes one operator, number or argument at a time. A survivor is explained where it changes
the text of a message alone, or where `explained.txt` has its line with the reason.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import time
import tokenize
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPLAINED = Path(__file__).with_name("explained.txt")
OPERATORS = ("test_operators", "test_operators_rounding", "test_operators_solutions")
# A file of the package and the tests that are of it.
FILES: dict[str, tuple[str, ...]] = {
    "fidelity/lds": ("test_fidelity_lds",),
    "fidelity/bootstrap": ("test_fidelity_bootstrap",),
    "fidelity/ceiling": ("test_fidelity_ceiling",),
    "fidelity/calibration": ("test_fidelity_calibration",),
    "fidelity/decomposition": ("test_decomposition",),
    "fidelity/inverse_error": ("test_inverse_error",),
    "curvature/operators/operator": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
    ),
    "curvature/operators/solution": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
        "test_scores",
    ),
    "curvature/operators/kronecker": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
        "test_relative_damping",
    ),
    "curvature/operators/solve": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
        "test_forms",
    ),
    "curvature/operators/cholesky": ("test_curvature", "test_forms"),
    "curvature/operators/eigen": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
    ),
    "curvature/operators/dense": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
    ),
    "curvature/operators/diagonal": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
    ),
    "curvature/operators/symmetric": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
        "test_curvature",
    ),
    "curvature/operators/denominator": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
        "test_relative_damping",
    ),
    "curvature/operators/mean_eigenvalue": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
        "test_relative_damping",
    ),
    "curvature/operators/decomposed": ("test_eigen_solver", "test_thin_factors"),
    "curvature/operators/sample_space": (
        "test_sample_space",
        "test_operators_forms",
        "test_forms",
        "test_kernel_iteration",
    ),
    "curvature/operators/kernel_iteration": ("test_kernel",),
    "curvature/operators/iterative": (
        "test_operators_iterative",
        "test_operators_forms",
        "test_forms",
    ),
    "curvature/operators/selected_rows": ("test_operators_forms", "test_selected_rows"),
    "curvature/operators/selected_rows_hessian": ("test_selected_rows_hessian",),
    "curvature/operators/block_conjugate_gradients": ("test_conjugate_gradients",),
    "curvature/operators/minimal_residual": ("test_iterated_hessian",),
    "curvature/operators/negative_pairs": ("test_negative_pairs",),
    "curvature/operators/low_rank": (
        "test_operators",
        "test_operators_rounding",
        "test_operators_solutions",
        "test_scores",
    ),
    "curvature/operators/low_rank_inverse": (
        "test_low_rank_products",
        "test_operators_solutions",
        "test_low_rank_inverse",
    ),
    "curvature/operators/low_rank_search": (
        "test_least_rank",
        "test_operators_solutions",
        "test_low_rank_inverse",
    ),
    "curvature/low_rank_inverses": ("test_low_rank_inverse",),
    "curvature/estimate/leading_rows": ("test_selected_rows",),
    "indexing/inner_products": ("test_index_parts", "test_index"),
    "problem/losses/output_hessian": ("test_many_outputs",),
    "jacobian/layer_columns": ("test_many_outputs",),
    "runtime/paged": ("test_paged",),
    "curvature/damping": ("test_damping", "test_relative_damping", "test_curvature"),
    "score/influence": ("test_influence_run", "test_influence", "test_scores"),
    "score/within_memory": ("test_within_memory_groups",),
    "score/scores": ("test_score_set", "test_score_files", "test_scores", "test_influence"),
    "score/self_influence": ("test_influence", "test_scores"),
    "score/leverage": ("test_influence", "test_scores"),
    "score/certificate": ("test_certificate", "test_scores", "test_influence"),
    "score/bounds": ("test_error_bounds", "test_selected_rows"),
    "score/neighbours": ("test_neighbours", "test_audit"),
    "indexing/landmarks": ("test_index_landmarks",),
    "indexing/extremes": ("test_index_landmarks",),
    "indexing/encode": ("test_index_parts",),
    "indexing/found": ("test_index_parts",),
    "indexing/shards": ("test_index_parts",),
    "indexing/index": ("test_index_parts", "test_index", "test_index_folder"),
    "curvature/operators/truncated_kronecker": ("test_truncated_kronecker",),
    "score/agreement": ("test_attribute",),
    "score/best_damping": ("test_damping", "test_measurement", "test_influence"),
    "jacobian/drawn": ("test_drawn",),
    "score/fitted": ("test_fitted", "test_influence"),
    "score/group_gradients": ("test_scores", "test_influence"),
    "score/groups": ("test_scores", "test_weights", "test_stream"),
    "score/load": ("test_score_files", "test_untrusted"),
    "score/matrix": ("test_score_matrix", "test_influence_run"),
    "score/reach": ("test_reach",),
    "score/saved": ("test_score_files", "test_untrusted"),
    "score/table": ("test_score_files",),
    "score/tokens": ("test_scores", "test_weights", "test_stream", "test_causal", "test_attribute"),
    "score/within_bounds": ("test_within_bounds",),
    "fidelity/arrays": ("test_fidelity_arrays",),
    "fidelity/spectra": ("test_decomposition", "test_fidelity_spectra"),
    "fidelity/subset_truth": ("test_subset_truth",),
}


@dataclass(frozen=True)
class Survivor:
    """A mutant that no test noticed."""

    file: str
    before: str
    after: str

    @property
    def line(self) -> str:
        """As `explained.txt` has it, before the reason."""
        return f"{self.file}: {self.before} -> {self.after}"

    @property
    def of_text(self) -> bool:
        """Whether it changes what a message says, and nothing else."""
        return _without_texts(self.before) == _without_texts(self.after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=list(FILES), help="As in FILES; all of them.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    why = explained()
    left = 0
    for name in asked.files:
        start = time.monotonic()
        count, survivors = mutate(name, asked.jobs)
        texts = [one for one in survivors if one.of_text]
        known = [one for one in survivors if not one.of_text and one.line in why]
        open_ = [one for one in survivors if not one.of_text and one.line not in why]
        left += len(open_)
        print(
            f"{name}: {count} mutants, {count - len(survivors)} killed; of texts {len(texts)}, "
            f"explained {len(known)}, open {len(open_)} ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
        for one in open_:
            print(f"  {one.line}")
    return 1 if left else 0


def explained() -> dict[str, str]:
    """Lines of survivors, and why no test can tell them."""
    rows = (row.rpartition(" # ") for row in EXPLAINED.read_text().splitlines() if " # " in row)
    return {line: reason for line, _, reason in rows}


def mutate(name: str, jobs: int) -> tuple[int, list[Survivor]]:
    """(how many mutants of a file, those that survive its tests)."""
    place = ROOT / "build/mutation" / name.replace("/", "-")
    shutil.rmtree(place, ignore_errors=True)
    kept = shutil.ignore_patterns("__pycache__", ".*")
    for part in ("src", "tests"):
        shutil.copytree(ROOT / part, place / part, ignore=kept)
    for part in ("README.md", "LICENSE"):
        shutil.copy(ROOT / part, place)
    tests = [f"tests/{test}.py" for test in FILES[name]]
    (place / "pyproject.toml").write_text(
        (ROOT / "pyproject.toml").read_text() + f"\n[tool.mutmut]\n"
        f'source_paths = ["src/curvfluence/{name}.py"]\n'
        f"pytest_add_cli_args_test_selection = {tests}\n"
        'also_copy = ["tests", "src", "pyproject.toml"]\n'
    )
    _mutmut(place, "run", "--max-children", str(jobs))
    rows = [row.split(":") for row in _mutmut(place, "results", "--all", "true").splitlines()]
    found = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    if not found:
        raise SystemExit(f"{name}: no mutant was made, see {place / 'run.log'}")
    if "not checked" in found.values():  # as where the tests fail without a mutant
        raise SystemExit(f"{name}: not every mutant was run, see {place / 'run.log'}")
    alive = [key for key, state in found.items() if state in ("survived", "no tests")]
    return len(found), [_survivor(place, name, key) for key in alive]


def _mutmut(place: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *words],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    (place / f"{words[0]}.log").write_text(done.stdout + done.stderr)
    return done.stdout


def _survivor(place: Path, name: str, key: str) -> Survivor:
    rows = _mutmut(place, "show", key).splitlines()
    sides = {
        sign: " ".join(row[1:].strip() for row in rows if row[:1] == sign and row[:3] != sign * 3)
        for sign in "-+"
    }
    return Survivor(name, sides["-"], sides["+"])


def _without_texts(line: str) -> list[str]:
    """Its tokens, with one mark for every text, and for a None, which stands for one."""
    found: list[str] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(f"({line})").readline):
            kind = tokenize.tok_name[token.type]
            if "STRING" in kind or token.string == "None":
                if not found or found[-1] != "text":
                    found.append("text")
            elif token.string.strip():
                found.append(token.string)
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return [line]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
