"""Which bytes of which lines taught a language model to end a phrase as it does?

    python examples/byte_lm.py

A transformer of one block learns the lines of the Zen of Python, which ships with Python, byte by
byte. It is asked for the loss of an ending after a beginning that it has not seen. For each ending
the three most helpful lines are printed, and of the first the bytes that its influence comes from:
a byte's share is that of the model's loss at it, and the shares of a line add up to its influence.
"""

from __future__ import annotations

from codecs import decode
from contextlib import redirect_stdout
from io import StringIO
from time import perf_counter

import torch
from torch import Tensor, nn

import curvfluence as cf

with redirect_stdout(StringIO()):
    import this

start = perf_counter()
ASKED = [("Honest is better", " than "), ("If the plan is hard", " to explain, ")]
LINES = [line for line in decode(this.s, "rot13").splitlines()[2:] if line]
LENGTH = max(map(len, LINES)) + 1


def encoded(texts: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Bytes behind a 0; the label −100 where no loss is taken: beginnings, and after the end."""
    labels = torch.full((len(texts), LENGTH), -100)
    ids = torch.zeros_like(labels)
    for n, (given, ending) in enumerate(texts):
        first, last = 1 + len(given), 1 + len(given) + len(ending)
        ids[n, 1:last] = torch.tensor(list((given + ending).encode()))
        labels[n, first:last] = ids[n, first:last]
    return {"ids": ids, "labels": labels}


class Transformer(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(128, width), nn.Embedding(LENGTH, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 128)

    def forward(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        x = self.byte(ids) + self.place(torch.arange(t))
        return self.head(self.block(x, nn.Transformer.generate_square_subsequent_mask(t)))


torch.manual_seed(0)
model, train = Transformer(), encoded([("", line) for line in LINES])
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-3)
for _ in range(200):
    optimizer.zero_grad()
    outputs = model(train["ids"])[:, :-1].flatten(0, 1)
    nn.functional.cross_entropy(outputs, train["labels"][:, 1:].flatten()).backward()
    optimizer.step()

problem = cf.Problem(model, cf.CausalLM(), train, encoded(ASKED), weight_decay=1e-3)
curvature = cf.fit(problem, cf.EKFAC(cf.MonteCarlo(8)))
scores = cf.influence(problem, curvature, damping=cf.Relative(1.0))
shares = cf.token_influence(problem, curvature, damping=cf.Relative(1.0))  # [asked, lines, bytes]
top = scores.top(3)
for q, (given, ending) in enumerate(ASKED):
    print(f"{given}[{ending}] is helped by")
    for n, value in zip(top.indices[q].tolist(), top.values[q].tolist(), strict=True):
        print(f"  {value:+.4f}  {LINES[n]}")
    n = int(top.indices[q, 0])
    print("  in the first line, by its loss at")
    for t in shares[q, n].topk(5).indices.tolist():
        print(f"  {shares[q, n, t]:+.4f}  {LINES[n][:t]}[{LINES[n][t]}]")
print(f"seconds: {perf_counter() - start:.1f}")
