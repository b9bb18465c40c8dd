"""Influence of every position of a small language model: seconds over those of a plain epoch.

    python benchmarks/tokens.py [--length 64] [--queries 10] [--threads 1] [--rounds 3]

A transformer of two layers, width 128, 64 words, 64 sequences, random weights; K-FAC with a drawn
label is fitted before. An epoch is forward and backward in one batch. Both ways that the library
chooses between, and what its forecast says of each.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.forecast.rates import timed
from curvfluence.score import tokens

WORDS, WIDTH, SEQUENCES = 64, 128, 64


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        return self.head(hidden)


seconds = partial(timed, torch.device("cpu"), runs=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = LanguageModel()
    x = torch.randint(WORDS, (SEQUENCES + given.queries, given.length))
    train, queries = x[:SEQUENCES], x[SEQUENCES:]
    problem = cf.Problem(model, cf.CausalLM(), (train, train), (queries, queries))
    rung = cf.KFAC(cf.MonteCarlo(1))
    curvature = cf.fit(problem, rung)

    def epoch() -> None:
        outputs = model(train)[:, :-1].flatten(0, 1)
        nn.functional.cross_entropy(outputs, train[:, 1:].flatten()).backward()
        model.zero_grad()

    epoch()
    print("| way | epochs (median of the rounds) | each round | forecast, epochs |")
    print("| --- | --- | --- | --- |")
    for name, pace in (("along queries", 0.0), ("by positions", torch.inf)):
        tokens.DIRECTIONS = pace
        rounds: list[float] = []
        for _ in range(given.rounds):
            plain = seconds(epoch)
            scores = seconds(
                lambda: cf.token_influence(problem, curvature, damping=cf.Absolute(1e-2))
            )
            rounds.append(scores / plain)
        stages = cf.plan(problem, rung, tokens=True).stages
        after = sum(s.seconds for s in stages if "quer" in s.name or "position" in s.name)
        each = ", ".join(f"{value:.1f}" for value in rounds)
        forecast = after / seconds(epoch)
        print(f"| {name} | {median(rounds):.1f} | {each} | {forecast:.1f} |", flush=True)


if __name__ == "__main__":
    main()
