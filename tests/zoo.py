"""Small nets, one for each kind of layer and ways of using it, that every rung must be right on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.problem.losses import Loss
from tests.problems import seeded


class Run(nn.Module):
    """Modules and raw parameters by name, with a forward of its own."""

    def __init__(self, forward: Callable[[Run, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class HuggingFaceConv1D(nn.Module):
    """As transformers' Conv1D: a Linear that stores its weight (i, o) and calls addmm."""

    def __init__(self, o: int, i: int) -> None:
        super().__init__()
        self.nf = o
        self.weight = nn.Parameter(torch.randn(i, o) * 0.4)
        self.bias = nn.Parameter(torch.randn(o) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return out.view(*x.size()[:-1], self.nf)


class Lora(nn.Module):
    """A frozen Linear plus a low-rank update, as PEFT has it."""

    def __init__(self, i: int, o: int, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(i, o).requires_grad_(False)
        self.lora_A = nn.Linear(i, rank, bias=False)
        self.lora_B = nn.Linear(rank, o, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.lora_B(self.lora_A(x))


class Block(nn.Module):
    """A pre-norm transformer block with separate projections and SDPA."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, d + 1), nn.Linear(d + 1, d)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        b, t, d = h.shape
        q, k, v = (
            f(h).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Two blocks, learned positions; with `tied` the head is the embedding's weight."""

    def __init__(self, vocabulary: int = 5, d: int = 4, t: int = 4, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, d)
        self.position = nn.Embedding(t, d)
        self.blocks = nn.Sequential(Block(d, 2), Block(d, 2))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        h = self.embed(ids) + self.position(places)
        return self.head(self.norm(self.blocks(h)))


def attend(m: Run, x: Tensor) -> Tensor:
    h = m.embed(x[:, :, None])
    return m.head(m.attention(h, h, h)[0].mean(1))


def attend_second(m: Run, x: Tensor) -> Tensor:
    h = m.embed(x[:, :, None]).transpose(0, 1)  # [T, B, d], as nn.MultiheadAttention's default
    return m.head(m.attention(h, h, h, need_weights=False)[0].mean(0))


def attend_apart(m: Run, x: Tensor) -> Tensor:
    h = m.embed(x[:, :, None])
    return m.head(m.attention(h, h[:, :3, :3], h[:, :3, :2])[0].mean(1))


def in_place(m: Run, x: Tensor) -> Tensor:
    return m.b(F.relu(m.a(x).add_(0.3), inplace=True))


def raw(m: Run, x: Tensor) -> Tensor:
    return torch.tanh(x @ m.w1) @ m.w2.T * m.scale


def raw_parts() -> nn.Module:
    m = Run(raw)
    m.w1 = nn.Parameter(torch.randn(6, 4))
    m.w2 = nn.Parameter(torch.randn(3, 4))
    m.scale = nn.Parameter(torch.randn(3))
    return m


def twice(m: Run, x: Tensor) -> Tensor:
    return m.head(torch.tanh(m.a(torch.tanh(m.a(x)))))


def tied_linears() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    net[2].weight = net[0].weight
    return net


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    net[0].weight.requires_grad_(False)
    return net


def weighted_bag(m: Run, x: Tensor) -> Tensor:
    return m.head(
        torch.tanh(
            m.bag(
                x, per_sample_weights=torch.linspace(0.5, 1.5, 4).to(m.bag.weight).expand(x.shape)
            )
        )
    )


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 1.5)
    nn.init.uniform_(norm.weight)
    return nn.Sequential(nn.Linear(6, 4), norm, nn.Tanh(), nn.Linear(4, 3)).eval()


def images(*shape: int) -> nn.Module:
    return nn.Unflatten(1, shape)


F6 = "six features"  # inputs [B, 6]
IDS = "ids"  # four numbers below 5
TOKENS = "tokens"  # the same, with a label a position


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    inputs: str = F6
    fallbacks: bool = False  # whether some parameters have no K-FAC rule


def head(size: int) -> tuple[nn.Module, ...]:
    return nn.Tanh(), nn.Flatten(), nn.Linear(size, 3)


CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(6, 3)),
    "linear without bias": Case(lambda: nn.Linear(6, 3, bias=False)),
    "mlp": Case(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))),
    "linear over positions": Case(lambda: nn.Sequential(images(3, 2), nn.Linear(2, 3), *head(9))),
    "linear over two axes": Case(lambda: nn.Sequential(images(1, 3, 2), nn.Linear(2, 2), *head(6))),
    "conv1d": Case(lambda: nn.Sequential(images(1, 6), nn.Conv1d(1, 2, 3), *head(8))),
    "conv1d strided dilated": Case(
        lambda: nn.Sequential(
            images(2, 3), nn.Conv1d(2, 3, 2, stride=2, padding=2, dilation=2), *head(9)
        )
    ),
    "conv1d same": Case(
        lambda: nn.Sequential(images(2, 3), nn.Conv1d(2, 2, 2, padding="same"), *head(6))
    ),
    "conv1d circular": Case(
        lambda: nn.Sequential(
            images(2, 3), nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), *head(6)
        )
    ),
    "conv2d": Case(lambda: nn.Sequential(images(1, 2, 3), nn.Conv2d(1, 3, 2), *head(6))),
    "conv2d alone": Case(
        lambda: nn.Sequential(images(1, 2, 3), nn.Conv2d(1, 3, (2, 3)), nn.Flatten())
    ),
    "cnn with groups": Case(
        lambda: nn.Sequential(
            images(2, 1, 3),
            nn.Conv2d(2, 4, (1, 2), padding=(1, 0), groups=2),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False),
            *head(8),
        )
    ),
    "conv3d": Case(
        lambda: nn.Sequential(
            images(1, 1, 2, 3), nn.Conv3d(1, 2, (1, 2, 2), padding=(0, 1, 0)), *head(12)
        )
    ),
    "transposed conv1d": Case(
        lambda: nn.Sequential(
            images(2, 3),
            nn.ConvTranspose1d(2, 2, 3, stride=2, padding=1, output_padding=1),
            *head(12),
        ),
        fallbacks=True,
    ),
    "transposed conv2d groups": Case(
        lambda: nn.Sequential(
            images(2, 1, 3),
            nn.ConvTranspose2d(2, 4, 2, dilation=(1, 2), groups=2, bias=False),
            *head(40),
        )
    ),
    "transposed conv3d": Case(
        lambda: nn.Sequential(
            images(1, 1, 2, 3), nn.ConvTranspose3d(1, 1, 2, padding=(0, 0, 1)), *head(12)
        ),
        fallbacks=True,
    ),
    "embedding": Case(
        lambda: nn.Sequential(
            nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)
        ),
        IDS,
    ),
    "embedding bag mean": Case(
        lambda: nn.Sequential(
            nn.EmbeddingBag(5, 3, mode="mean", padding_idx=1), nn.Tanh(), nn.Linear(3, 3)
        ),
        IDS,
    ),
    "embedding bag weighted": Case(
        lambda: Run(weighted_bag, bag=nn.EmbeddingBag(5, 3, mode="sum"), head=nn.Linear(3, 3)),
        IDS,
    ),
    "layer norm": Case(
        lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)),
        fallbacks=True,
    ),
    "rms norm": Case(
        lambda: nn.Sequential(images(3, 2), nn.Linear(2, 4), nn.RMSNorm(4), *head(12)),
        fallbacks=True,
    ),
    "group norm": Case(
        lambda: nn.Sequential(images(1, 6), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), *head(16)),
        fallbacks=True,
    ),
    "batch norm": Case(batch_norm, fallbacks=True),
    "multi-head attention": Case(
        lambda: Run(
            attend,
            embed=nn.Linear(1, 4),
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
            head=nn.Linear(4, 3),
        )
    ),
    "attention, batch second": Case(
        lambda: Run(
            attend_second,
            embed=nn.Linear(1, 4),
            attention=nn.MultiheadAttention(4, 2, bias=False),
            head=nn.Linear(4, 3),
        )
    ),
    "attention, own key sizes": Case(
        lambda: Run(
            attend_apart,
            embed=nn.Linear(1, 4),
            attention=nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True),
            head=nn.Linear(4, 3),
        ),
        fallbacks=True,
    ),
    "encoder layer": Case(
        lambda: nn.Sequential(
            images(3, 2),
            nn.Linear(2, 4),
            nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True).eval(),
            *head(12),
        ),
        fallbacks=True,
    ),
    "Hugging Face Conv1D": Case(
        lambda: nn.Sequential(images(3, 2), HuggingFaceConv1D(4, 2), *head(12))
    ),
    "LoRA": Case(lambda: nn.Sequential(Lora(6, 4), nn.Tanh(), nn.Linear(4, 3))),
    "raw parameters": Case(raw_parts, fallbacks=True),
    "in-place activation": Case(lambda: Run(in_place, a=nn.Linear(6, 4), b=nn.Linear(4, 3))),
    "one module twice": Case(lambda: Run(twice, a=nn.Linear(6, 6), head=nn.Linear(6, 3))),
    "tied weights": Case(tied_linears, fallbacks=True),
    "frozen weight": Case(frozen, fallbacks=True),
    "tied transformer": Case(Transformer, TOKENS, fallbacks=True),
    "untied transformer": Case(lambda: Transformer(tied=False), TOKENS, fallbacks=True),
}


def zoo_problem(name: str, *, n: int = 7, q: int = 2, weight_decay: float = 0.01) -> cf.Problem:
    """A problem in float64 on the net of that name."""
    seeded()
    case = CASES[name]
    model = case.build().double()
    if case.inputs == F6:
        x, y = torch.randn(n, 6, dtype=torch.float64), torch.randint(0, 3, (n,))
    else:
        x, y = torch.randint(0, 5, (n, 4)), torch.randint(0, 3, (n,))
    loss: Loss = cf.CrossEntropy()
    if case.inputs == TOKENS:
        y = torch.randint(0, 5, (n, 4))
        y[0, :2] = -100  # ignored positions
        y[3, 3] = -100
        loss = cf.Positions(cf.CrossEntropy())
    return cf.Problem(model, loss, (x, y), (x[:q], y[:q]), weight_decay=weight_decay)
