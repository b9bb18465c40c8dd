"""The trained models that every library is asked about, W1 to W7.

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


class Residual(nn.Module):
    """ResNet's basic block: x + two 3 × 3 convolutions, each with a norm."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
        self.short: nn.Module = nn.Identity()
        if stride > 1:
            self.short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.short(x))


def resnet18() -> nn.Module:
    """He et al. 2016, table 1, for ten classes: 11.2 million parameters."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    modules: list[nn.Module] = [*stem, nn.MaxPool2d(3, 2, 1)]
    for i, o, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        modules += [Residual(i, o, stride), Residual(o, o, 1)]
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Attention(nn.Module):
    """Attention with separate projections."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_btd: Tensor) -> Tensor:
        q, k, v = (
            layer(x_btd).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
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


class EncoderBlock(nn.Module):
    """Post-norm, as BERT has it: norm(x + attention x), then norm(x + mlp x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=False)
        self.mlp = mlp(width, 4 * width, width, activation=nn.GELU)

    def forward(self, x_btd: Tensor) -> Tensor:
        x_btd = self.norm1(x_btd + self.attention(x_btd))
        return self.norm2(x_btd + self.mlp(x_btd))


class Encoder(nn.Module):
    """all-MiniLM-L6's shape, 22.6 million parameters: the mean of its tokens, and a linear head."""

    def __init__(self, length: int = 64, classes: int = 8) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(30_522, 384), nn.Embedding(512, 384)
        self.norm = nn.LayerNorm(384)
        self.blocks = nn.Sequential(*(EncoderBlock(384, 12) for _ in range(6)))
        self.head = nn.Linear(384, classes)

    def forward(self, tokens_bt: Tensor) -> Tensor:
        at = torch.arange(tokens_bt.shape[1], device=tokens_bt.device)
        hidden = self.norm(self.words(tokens_bt) + self.positions(at))
        return self.head(self.blocks(hidden).mean(1))


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
        Workload(
            "W5",
            "MNIST at 3 × 64 × 64, ResNet-18",
            resnet18,
            _from("pictures", size=64, train=512, queries=16),
            epochs=2,
            rate=0.02,
            momentum=0.9,
            batch=32,
            damping=1e-1,
        ),
        Workload(
            "W6",
            "licence texts by bytes, four-block transformer of width 512, T = 128",
            lambda: ByteModel(width=512, heads=8, depth=4),
            _from("licences", length=128, train=256, queries=16),
            epochs=1,
            rate=0.02,
            momentum=0.9,
            batch=8,
            damping=1.0,
        ),
        Workload(
            "W7",
            "licence texts by words, encoder of six blocks and width 384, T = 64",
            Encoder,
            _from("words", length=64, train=256, queries=16),
            epochs=2,
            rate=0.01,
            momentum=0.9,
            batch=16,
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
    model.eval()
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
