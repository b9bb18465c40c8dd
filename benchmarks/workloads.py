"""The four trained models that every library is asked about, W1 to W4.

Each is plain PyTorch, trained once by SGD with the gradient norm clipped at 1, from the initial
weights that seed 0 gives. Data, weights and their hash are kept in a build folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from data import Data
from torch import Tensor, nn

BUILD = Path(__file__).resolve().parent.parent / "build" / "bench"
LAYERS = (nn.Linear, nn.Conv2d)  # what K-FAC's Kronecker structure is defined for


@dataclass(frozen=True)
class Workload:
    """A model, its data and its training. `damping` is λ of every question about it."""

    name: str
    title: str
    build: Callable[[], nn.Module]
    load: Callable[[], Data]
    epochs: int
    rate: float
    momentum: float
    batch: int
    damping: float


@dataclass(frozen=True)
class Trained:
    """A workload with its data and its weights."""

    workload: Workload
    data: Data
    weights: dict[str, Tensor]
    loss: float  # mean training loss of an example

    def model(self) -> nn.Module:
        """A new module at the trained weights, in evaluation mode."""
        model = self.workload.build()
        model.load_state_dict(self.weights)
        return model.eval()

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for tensor in (self.data.inputs, self.data.query_inputs, *self.weights.values()):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def example_losses(output: Tensor, target: Tensor) -> Tensor:
    """ℓ_n, [B]: the cross-entropy summed over an example's positions (one, without a T axis)."""
    flat = F.cross_entropy(output.flatten(0, -2), target.flatten(), reduction="none")
    return flat.view(len(target), -1).sum(1)


class ClassesFirst(nn.Module):
    """The same model with outputs [B, K, T], as torch's own cross-entropy takes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).movedim(-1, 1)


def mlp(*widths: int, activation: Callable[[], nn.Module]) -> nn.Module:
    modules: list[nn.Module] = []
    for i, o in pairwise(widths):
        modules += [nn.Linear(i, o), activation()]
    return nn.Sequential(*modules[:-1])


def cnn() -> nn.Module:
    modules: list[nn.Module] = []
    for i, o in ((1, 16), (16, 32), (32, 32)):
        modules += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(512, 10))


class Attention(nn.Module):
    """Causal attention with separate projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_btd: Tensor) -> Tensor:
        q, k, v = (
            layer(x_btd).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm: x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = mlp(width, 4 * width, width, activation=nn.GELU)

    def forward(self, x_btd: Tensor) -> Tensor:
        x_btd = x_btd + self.attention(self.norm1(x_btd))
        return x_btd + self.mlp(self.norm2(x_btd))


class ByteModel(nn.Module):
    """Logits [B, T, 256] of the next byte, from bytes [B, T]."""

    def __init__(self, length: int = 128, width: int = 128, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, tokens_bt: Tensor) -> Tensor:
        at = torch.arange(tokens_bt.shape[1], device=tokens_bt.device)
        return self.head(self.norm(self.blocks(self.bytes(tokens_bt) + self.positions(at))))


def _from(name: str, **settings: int) -> Callable[[], Data]:
    """The data of `sources.name`, imported late: a peer's environment has no data packages."""

    def load() -> Data:
        import sources

        return getattr(sources, name)(**settings)

    return load


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "W1",
            "Digits, Linear 64–64–32–10, GELU",
            lambda: mlp(64, 64, 32, 10, activation=nn.GELU),
            _from("digits"),
            epochs=100,
            rate=0.03,
            momentum=0.0,
            batch=32,
            damping=1e-3,
        ),
        Workload(
            "W2",
            "MNIST-5000, Linear 784–1024–1024–10, ReLU",
            lambda: mlp(784, 1024, 1024, 10, activation=nn.ReLU),
            _from("mnist", flat=True),
            epochs=8,
            rate=0.05,
            momentum=0.9,
            batch=32,
            damping=1e-3,
        ),
        Workload(
            "W3",
            "MNIST-5000, Conv 1→16→32→32, Linear 512→10, ReLU",
            cnn,
            _from("mnist", flat=False),
            epochs=8,
            rate=0.05,
            momentum=0.9,
            batch=32,
            damping=1e-3,
        ),
        Workload(
            "W4",
            "licence texts by bytes, two-block transformer, T = 128",
            ByteModel,
            _from("licences", length=128, train=512, queries=32),
            epochs=12,
            rate=0.1,
            momentum=0.9,
            batch=8,
            damping=1e-1,
        ),
    )
}


def train(workload: Workload, data: Data) -> Trained:
    """Minibatch SGD on the mean over a batch of ℓ_n / T, as a token-level mean loss trains."""
    torch.manual_seed(0)
    model = workload.build()
    order = torch.Generator().manual_seed(0)
    positions = data.targets[0].numel()
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.rate, momentum=workload.momentum)
    for _ in range(workload.epochs):
        for index in torch.randperm(len(data.inputs), generator=order).split(workload.batch):
            losses = example_losses(model(data.inputs[index]), data.targets[index])
            optimizer.zero_grad()
            (losses.mean() / positions).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    with torch.no_grad():
        parts = zip(data.inputs.split(256), data.targets.split(256), strict=True)
        loss = torch.cat([example_losses(model(x), y) for x, y in parts]).mean()
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return Trained(workload, data, weights, float(loss))


def load(name: str) -> Trained:
    """The trained workload, from the build folder, or made and kept there."""
    workload = WORKLOADS[name]
    path = BUILD / f"{name}.pt"
    if not path.exists():
        made = train(workload, workload.load())
        BUILD.mkdir(parents=True, exist_ok=True)
        kept = {"data": asdict(made.data), "weights": made.weights, "loss": made.loss}
        torch.save(kept, path)
    kept = torch.load(path, weights_only=True)
    return Trained(workload, Data(**kept["data"]), kept["weights"], kept["loss"])
