"""What a study rests on is changed where its text is not: nothing that was made before is used."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from curvfluence.errors import InputError
from curvfluence.study import StudySpec, run_study
from curvfluence.study.problems import load_file

FILE = """
import json, os
from pathlib import Path
import torch
from torch import nn
import curvfluence as cf
import helper

HERE = Path(__file__).parent
CONFIG = json.loads((HERE / "config.json").read_text())
ENVIRONMENT = float(os.environ.get("STALE", "1.0"))
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": nn.functional.gelu}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.last.weight.mul_(CONFIG["scale"])

    def forward(self, x):
        hidden = ACTIVATIONS[CONFIG["activation"]](self.first(x)) * ENVIRONMENT
        return self.last(hidden * helper.factor())


data = torch.load(HERE / "data.pt")
train = cf.Examples(data["x"][:30], data["y"][:30])
queries = cf.Examples(data["x"][30:], data["y"][30:])
recipe = cf.truth.Recipe(
    architecture=Net, loss=cf.CrossEntropy(), optimizer=cf.truth.sgd(CONFIG["lr"]), batch_size=10,
    epochs=2, weight_decay=CONFIG["decay"],
)
run = cf.truth.Run(init_seed=0, order_seed=CONFIG["order"])
trained = cf.truth.train(recipe, train, [run])
problem = cf.Problem(
    recipe.build(0), recipe.loss, train, queries, weights=trained.weights(0),
    weight_decay=CONFIG["decay"],
)
"""
HELPER = "def factor():\n    return {factor}\n"


def run(count: int, seed: int) -> dict[str, Any]:
    generator = random.Random(seed)
    caught = 0
    with tempfile.TemporaryDirectory() as name:
        for k in range(count):
            root = Path(name) / f"{k}"
            root.mkdir()
            state: dict[str, Any] = {
                "activation": "tanh", "scale": 1.0, "lr": 0.1, "decay": 0.01, "order": 0,
                "environment": 1.0, "factor": 1.0, "data": 0,
            }  # fmt: skip
            first = _study(root, state)
            assert not first
            changed = CHANGES[k % len(CHANGES)](dict(state), generator)
            used = _study(root, changed)
            caught += not used
            if used:
                print(f"{changed} is taken for {state}", flush=True)
            assert _study(root, changed, out="again") is False
    return {"stale": count, "stale_detected": caught}


def _study(root: Path, state: dict[str, Any], out: str = "out") -> bool:
    """Whether a folder or a bank was used again: neither is that of this state."""
    keys = ("activation", "scale", "lr", "decay", "order")
    (root / "own.py").write_text(FILE)
    (root / "config.json").write_text(json.dumps({key: state[key] for key in keys}))
    (root / "helper.py").write_text(HELPER.format(factor=state["factor"]))
    generator = torch.Generator().manual_seed(state["data"])
    x = torch.randn(40, 3, generator=generator)
    torch.save({"x": x, "y": (x[:, 0] > 0).long()}, root / "data.pt")
    os.environ["STALE"] = str(state["environment"])
    sys.modules.pop("helper", None)
    spec = StudySpec(
        str(root / "own.py"), 4, models=1, orders=1, rungs=("KFAC",), bregman=False, costs=False
    )
    try:
        problem = load_file(root / "own.py")
        bank = root / "bank"
        before = len(list(bank.glob("entries/*.json")))
        study = run_study(spec, root / out, problem=problem, bank=bank)
    except InputError as error:
        if "name another folder" not in str(error):
            raise
        return False
    finally:
        os.environ.pop("STALE")
    return study.reused or len(list(bank.glob("entries/*.json"))) == before


def _other(key: str, values: Any) -> Any:
    def change(state: dict[str, Any], generator: random.Random) -> dict[str, Any]:
        return {**state, key: values(generator)}

    return change


CHANGES = [
    _other("activation", lambda g: g.choice(["relu", "gelu"])),
    _other("scale", lambda g: g.uniform(0.5, 0.99)),
    _other("lr", lambda g: g.uniform(0.05, 0.09)),
    _other("decay", lambda g: g.uniform(0.02, 0.1)),
    _other("order", lambda g: g.randrange(1, 99)),
    _other("environment", lambda g: g.uniform(0.5, 0.99)),
    _other("factor", lambda g: g.uniform(0.5, 0.99)),
    _other("data", lambda g: g.randrange(1, 99)),
]
