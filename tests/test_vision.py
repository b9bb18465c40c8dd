"""Image models of torchvision and timm as they are, and compiled ones: every parameter covered, and
the gradients those of autograd.

`make test-vision` installs the packages and runs these; without them they are skipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf

pytestmark = pytest.mark.xdist_group("vision")

N, Q, C = 10, 4, 3


def package(name: str) -> Any:
    """The package, or a skipped test: one of another build than torch raises RuntimeError."""
    try:
        return import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name}: {error}")


def torchvision(name: str, **options: Any) -> nn.Module:
    return getattr(package("torchvision.models"), name)(num_classes=C, **options)


def timm(name: str, **options: Any) -> nn.Module:
    return package("timm").create_model(name, num_classes=C, **options)


VIT = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": [4, 4]}
CASES: dict[str, Callable[[], nn.Module]] = {
    "ShuffleNet": lambda: torchvision("shufflenet_v2_x0_5"),  # grouped and strided convolutions
    "MobileNet": lambda: torchvision("mobilenet_v3_small"),  # squeeze and excitation
    "ViT": lambda: torchvision("VisionTransformer", image_size=32, **VIT),  # nn.MultiheadAttention
    "Swin": lambda: torchvision("SwinTransformer", patch_size=[4, 4], **SWIN),
    "timm ViT": lambda: timm("test_vit", img_size=32),
    "timm ResNet": lambda: timm("test_resnet"),
    "timm ConvNeXt": lambda: timm("test_convnext"),
    "timm EfficientNet": lambda: timm("test_efficientnet"),
    "timm Swin": lambda: timm("swin_tiny_patch4_window7_224", img_size=32, **SWIN),
    "compiled ResNet": lambda: torch.compile(timm("test_resnet"), backend="eager"),  # type: ignore[return-value]
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def built(name: str) -> nn.Module:
    """The model, with norms that differ by channel as after training."""
    torch.manual_seed(0)
    model = CASES[name]().double().eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:
                value.add_(0.1 * torch.randn_like(value))
    return model


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N + Q, 3, 32, 32, generator=generator).double()
    return x, torch.randint(0, C, (N + Q,), generator=generator)


def by_autograd(model: nn.Module, x_n: Tensor, y_n: Tensor) -> Tensor:
    """Each example's gradient [N, P], one backward pass at a time."""
    parameters = list(model.parameters())
    rows: list[Tensor] = []
    for x, y in zip(x_n, y_n, strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        found = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([one.reshape(-1) for one in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", CASES)
def test_as_it_is(name: str) -> None:
    model = built(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x, y = images()
    problem = cf.Problem(model, cf.CrossEntropy(), (x[:N], y[:N]), (x[N:], y[N:]))
    found = cf.influence(problem, cf.Identity()).values
    g_np = by_autograd(model, x, y)
    wanted = g_np[N:] @ g_np[:N].T / N
    assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-10 * float(wanted.abs().max()))

    curvature = cf.fit(problem, cf.EKFAC(cf.MonteCarlo(1)))
    names = {name for line in curvature.coverage for name in line.parameters}  # one line a group
    assert names == {name.replace("_orig_mod.", "") for name, _ in model.named_parameters()}
    assert sum(line.count for line in curvature.coverage) == g_np.shape[1]
    scores = cf.influence(problem, curvature, damping=cf.Absolute(0.1)).values
    solved = curvature.solve(g_np[:N], cf.Absolute(0.1))  # of gradients that autograd made
    wanted = g_np[N:] @ solved.T / N
    assert torch.allclose(scores, wanted, rtol=1e-6, atol=1e-8 * float(wanted.abs().max()))
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", ["timm ResNet", "timm ViT", "ShuffleNet"])
def test_ggn_by_dense_algebra(name: str) -> None:
    """GGN in the space of the samples, against Jacobians by autograd."""
    model = built(name)
    x, y = images()
    problem = cf.Problem(model, cf.CrossEntropy(), (x[:N], y[:N]), (x[N:], y[N:]))
    found = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.1)).values
    parameters = list(model.parameters())
    rows: list[Tensor] = []
    for one in x[:N]:
        output = model(one[None])[0]
        jacobian = torch.stack(
            [
                torch.cat(
                    [
                        g.reshape(-1)
                        for g in torch.autograd.grad(output[c], parameters, retain_graph=True)
                    ]
                )
                for c in range(C)
            ]
        )
        p = output.detach().softmax(0)
        half = torch.diag(p.sqrt()) - p.sqrt()[:, None] * p  # Hᵀ/² of the cross-entropy
        rows.append(half @ jacobian)
    b_mp = torch.cat(rows) / N**0.5  # the GGN is BᵀB
    g_np = by_autograd(model, x, y)
    inner = torch.linalg.solve(0.1 * torch.eye(len(b_mp)).double() + b_mp @ b_mp.T, b_mp @ g_np.T)
    solved_pn = (g_np.T - b_mp.T @ inner) / 0.1
    wanted = (g_np[N:] @ solved_pn[:, :N]) / N
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-8 * float(wanted.abs().max()))
