"""What a study rests on is changed where its text is not: nothing that was made before is used."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

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
            self.last.bias.copy_(torch.load(HERE / "start.pt"))

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
                "environment": 1.0, "factor": 1.0, "data": 0, "start": 0.0, "code": "", "torch": "",
            }  # fmt: skip
            assert _study(root, state) == "made"
            changed = CHANGES[k % len(CHANGES)](dict(state), generator)
            found = _study(root, changed)
            if found == "refused":  # its folder is another's, and so is the bank
                found = _study(root, changed, out="again")
            caught += found != "used"
            if found == "used":
                print(f"{changed} is taken for {state}", flush=True)
    return {"stale": count, "stale_detected": caught}


def _study(root: Path, state: dict[str, Any], out: str = "out") -> str:
    """`used` where a folder or a bank was used again: neither is that of this state; `refused`
    where they were said to be another's, and `made` where the study was made anew."""
    keys = ("activation", "scale", "lr", "decay", "order")
    (root / "own.py").write_text(FILE)
    (root / "config.json").write_text(json.dumps({key: state[key] for key in keys}))
    (root / "helper.py").write_text(HELPER.format(factor=state["factor"]))
    generator = torch.Generator().manual_seed(state["data"])
    x = torch.randn(40, 3, generator=generator)
    torch.save({"x": x, "y": (x[:, 0] > 0).long()}, root / "data.pt")
    torch.save(torch.full((2,), state["start"]), root / "start.pt")
    os.environ["STALE"] = str(state["environment"])
    sys.modules.pop("helper", None)
    spec = StudySpec(
        str(root / "own.py"), 4, models=1, orders=1, rungs=("KFAC",), bregman=False, costs=False
    )
    try:
        problem = load_file(root / "own.py")
        bank = root / "bank"
        before = len(list(bank.glob("entries/*.json")))
        with _other_makers(state):
            study = run_study(spec, root / out, problem=problem, bank=bank)
    except InputError as error:
        if "name another folder" not in str(error):
            raise
        return "refused"
    finally:
        os.environ.pop("STALE")
    used = study.reused or len(list(bank.glob("entries/*.json"))) == before
    return "used" if used else "made"


@contextmanager
def _other_makers(state: dict[str, Any]) -> Generator[None]:
    """As if this package's code, or torch, were another."""
    with ExitStack() as stack:
        if state["code"]:
            for name in ("study.run.hash_code", "truth.bank._trainer"):
                other = mock.patch(f"curvfluence.{name}", return_value=state["code"])
                stack.enter_context(other)
        if state["torch"]:
            stack.enter_context(mock.patch.object(torch, "__version__", state["torch"]))
        yield


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
    _other("start", lambda g: g.uniform(0.01, 0.5)),
    _other("code", lambda g: f"{g.randrange(2**64):016x}"),
    _other("torch", lambda g: f"2.{g.randrange(99)}.0"),
]
