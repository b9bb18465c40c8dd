"""The house: imports go one way, no wing knows a higher one, and the front door is short."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import curvfluence as cf

SOURCE = Path(cf.__file__).parent
# From the ground up: each may know those before it.
WINGS = (
    "errors", "_version", "kinds", "store", "runtime", "problem", "jacobian", "curvature", "score",
    "indexing", "forecast", "truth", "fidelity", "study", "banks", "runs", "explore", "auditing",
    "advising", "judging", "report", "cli", "supervise",
)  # fmt: skip


def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that one names, wherever in it."""
    own = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    return named(path.read_text(), own, known)


def named(text: str, own: str, known: dict[str, Path]) -> set[str]:
    """The known modules that a module called `own` imports: by name, by dots, or as text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name in known}
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            whole = ".".join([*own.split(".")[: -node.level], *base] if node.level else base)
            for name in node.names:
                inner = f"{whole}.{name.name}"
                found |= {inner if inner in known else whole} & set(known)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            found |= {str(text) for text in texts} & set(known)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import curvfluence.report.parts.style",
        "import curvfluence.report.parts.style as style",
        "from curvfluence.report.parts import style",
        "from curvfluence.report.parts.style import PALETTE",
        "from ..report.parts import style",
        "from ..report.parts.style import PALETTE",
        "import_module('curvfluence.report.parts.style')",
        "__import__('curvfluence.report.parts.style')",
    ],
)
def test_every_way_to_import_is_seen(line: str) -> None:
    seen = named(line, "curvfluence.curvature.kfac", KNOWN)
    assert seen == {"curvfluence.report.parts.style"}


KNOWN = modules()
GRAPH = {name: imports(path, KNOWN) - {name} for name, path in KNOWN.items()}


def wing(module: str) -> str:
    return module.split(".")[1]


def test_every_module_is_in_a_wing() -> None:
    assert {wing(name) for name in KNOWN if "." in name} <= {*WINGS, "__main__"}


def test_no_circle() -> None:
    assert len(list(TopologicalSorter(GRAPH).static_order())) >= len(KNOWN)


def test_no_wing_knows_a_higher_one() -> None:
    up = [
        f"{name} -> {other}"
        for name, others in GRAPH.items()
        for other in others
        if "." in name and "." in other and wing(name) in WINGS
        if WINGS.index(wing(other)) > WINGS.index(wing(name))
    ]
    assert not up


def test_the_front_door() -> None:
    """Every name is there, has an import for a type checker, and there are no more than 52."""
    assert len(cf.__all__) <= 52
    for name in cf.__all__:
        assert getattr(cf, name) is not None
    assert set(cf.__all__) <= set(dir(cf))
    typed = next(n for n in ast.parse((SOURCE / "__init__.py").read_text()).body
                 if isinstance(n, ast.If))  # fmt: skip
    seen = {
        a.asname or a.name for n in typed.body if isinstance(n, ast.ImportFrom) for a in n.names
    }
    assert seen | {"__version__"} == set(cf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Curvatures'"):
        _ = cf.Curvatures  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "name", ["truth", "fidelity", "errors", "curvature.hessian", "curvature.hybrids",
             "curvature.inversion"],
)  # fmt: skip
def test_the_namespaces(name: str) -> None:
    space = import_module(f"curvfluence.{name}")
    assert space.__all__
    for each in space.__all__:
        assert getattr(space, each) is not None


def loaded(code: str, *names: str) -> list[str]:
    """Those of `names` that a fresh interpreter has imported after `code`."""
    ask = f"{code}\nimport sys\nprint(*(n for n in {names!r} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.splitlines()[-1].split() if done.stdout.strip() else []


class TestColdStart:
    def test_the_face_loads_nothing(self) -> None:
        assert loaded("import curvfluence", "torch", "scipy", "msgspec") == []

    def test_help_loads_no_torch(self) -> None:
        code = (
            "import sys\nfrom curvfluence.cli import main\nsys.argv = ['curvfluence', '--help']\n"
        )
        code += "try: main()\nexcept SystemExit: pass"
        assert loaded(code, "torch", "scipy.stats") == []

    def test_a_first_score_loads_neither_sympy_nor_the_statistics(self) -> None:
        code = """
import torch, curvfluence as cf
x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
problem = cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:2], y[:2]), weight_decay=0.01)
for rung in (cf.EKFAC(), cf.GGN()): cf.influence(problem, rung)"""
        assert loaded(code, "sympy", "scipy.stats", "pandas", "plotly") == []
