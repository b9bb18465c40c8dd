"""A graph convolutional net written by hand, on Zachary's karate club.

    python examples/graph_net.py

The club split in two; the net says which half a member joined. An example is a labelled member
together with everything its output depends on: the members within two steps, padded to one number,
and the links between them. Leaving an example out leaves out its label; the member stays in the
others' neighbourhoods. Prints, for members that the net did not train on, the members whose labels
helped most and hurt most, each with its half and its distance in the graph.
"""

from __future__ import annotations

from time import perf_counter

import networkx
import torch
from torch import Tensor, nn

import curvfluence as cf

start = perf_counter()
club = networkx.karate_club_graph()
half = torch.tensor([int(club.nodes[n]["club"] == "Officer") for n in club])
links = torch.tensor(networkx.to_numpy_array(club, weight=None)).float() + torch.eye(len(club))
scaled = links / (links.sum(0)[:, None] * links.sum(1)).sqrt()  # D^-½ (A + I) D^-½
distance = dict(networkx.all_pairs_shortest_path_length(club))
near = [sorted(distance[n], key=lambda m: (distance[n][m], m)) for n in club]
near = [[m for m in list_ if distance[n][m] <= 2] for n, list_ in enumerate(near)]
longest = max(map(len, near))


def neighbourhoods(members: list[int]) -> tuple[dict[str, Tensor], Tensor]:
    """Each member's two-step neighbourhood, itself first; 0 where there is nobody."""
    features = torch.zeros(len(members), longest, len(club))
    adjacency = torch.zeros(len(members), longest, longest)
    for row, n in enumerate(members):
        ids, count = torch.tensor(near[n]), len(near[n])
        features[row, torch.arange(count), ids] = 1.0  # who it is
        adjacency[row, :count, :count] = scaled[ids][:, ids]
    return {"features": features, "adjacency": adjacency}, half[members]


class GCN(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(len(club), width, bias=False)
        self.second = nn.Linear(width, 2, bias=False)

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        hidden = torch.tanh(adjacency @ self.first(features))
        return (adjacency @ self.second(hidden))[:, 0]  # the member itself stands first


torch.manual_seed(0)
shuffled = torch.randperm(len(club)).tolist()
asked, known = sorted(shuffled[:8]), sorted(shuffled[8:])
train, queries = neighbourhoods(known), neighbourhoods(asked)
model = GCN()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=5e-3)
for _ in range(400):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(**train[0]), train[1]).backward()
    optimizer.step()

problem = cf.Problem(model, cf.CrossEntropy(), train, queries, weight_decay=5e-3)
scores = cf.influence(problem, cf.GGN(), damping=cf.Absolute(1e-3))
names = ["Mr. Hi", "Officer"]
print("member  half     P(half)  helped most by                    hurt most by")
sure = model(**queries[0]).softmax(1)[range(len(asked)), queries[1]]
for q, n in enumerate(asked):
    sides = []
    for ranked in (scores.top(2), scores.bottom(2)):
        others = [known[k] for k in ranked.indices[q].tolist()]
        sides.append(", ".join(f"{m} ({names[half[m]]}, {distance[n][m]})" for m in others))
    print(f"{n:6d}  {names[half[n]]:7s}  {sure[q]:7.2f}  {sides[0]:32s}  {sides[1]}")
print(f"seconds: {perf_counter() - start:.1f}")
