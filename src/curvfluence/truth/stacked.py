"""M multilayer perceptrons side by side, forward and backward written out on stacked tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from curvfluence.problem.losses import Loss
from curvfluence.problem.tree import Batched, each, tensor_of
from curvfluence.truth.stack import Stack

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class LinearLayer:
    """z = h W + b, with W stored (in, out): the faster orientation of the stacked product."""

    weight: str
    bias: str | None
    width: int


@dataclass(frozen=True)
class Elementwise:
    """h = φ(z). `backward(g, z, h)` turns ∂/∂h into ∂/∂z in place, by torch's own kernel."""

    forward: Callable[[Tensor, Tensor], Any]
    backward: Callable[[Tensor, Tensor, Tensor], Any]


Layer: TypeAlias = "LinearLayer | Elementwise"


def layers_of(model: nn.Module) -> tuple[Layer, ...] | str:
    """The chain of layers that `model` is, or the reason why it is none that we can stack."""
    if type(model) is not nn.Sequential:
        return f"the model is a {type(model).__name__}, no nn.Sequential"
    layers: list[Layer] = []
    for name, module in model.named_modules(remove_duplicate=False):
        label = f"module {name or 'itself'} ({type(module).__name__})"
        if _has_hooks(module):
            return f"{label} has hooks"
        if type(module) in (nn.Sequential, nn.Identity):
            continue
        if type(module) is nn.Flatten:
            if layers or (module.start_dim, module.end_dim) != (1, -1):
                return f"{label} is not a plain leading Flatten"
        elif type(module) is nn.Linear:
            bias = None if module.bias is None else f"{name}.bias"  # pyright: ignore[reportUnnecessaryComparison]
            layers.append(LinearLayer(f"{name}.weight", bias, module.out_features))
        elif type(module) in _ELEMENTWISE:
            layers.append(_ELEMENTWISE[type(module)](module))
        else:
            return f"{label} is no Linear or known elementwise activation"
    linear = [layer for layer in layers if isinstance(layer, LinearLayer)]
    stacked = [name for layer in linear for name in (layer.weight, layer.bias)]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    if {name for name in stacked if name is not None} != trainable:
        return "some parameters are shared between layers, or frozen"
    return tuple(layers) if linear else "the model has no Linear layer"


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)


@dataclass(frozen=True, eq=False)
class StackedChain:
    """M chains of layers evaluated by batched matrix products; gradients without autograd.

    The gradient function writes ∂/∂θ Σ_b scale_mb ℓ(f_mb, y_mb) into `stack.grad`. A model's
    numbers do not depend on the others, bitwise, where M is even, B a multiple of 16 and torch
    runs one thread: then every elementwise kernel runs over whole vectors, see `Stack`.

    Cost: the flops of M forward and backward passes; memory M·B times twice the sum of widths,
    reused between steps.
    """

    layers: tuple[Layer, ...]
    stack: Stack
    loss: Loss

    @staticmethod
    def arrange(layers: tuple[Layer, ...], theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights (out, in) <-> (in, out); its own inverse."""
        turned = {layer.weight for layer in layers if isinstance(layer, LinearLayer)}
        return {
            name: value.transpose(1, 2).contiguous() if name in turned else value
            for name, value in theta.items()
        }

    def _values(self, x_mbd: Tensor, buffers: list[Tensor]) -> list[Tensor]:
        """The input and the output of each layer, [M, B, width]."""
        theta, values = self.stack.theta, [x_mbd]
        for layer, out in zip(self.layers, buffers, strict=True):
            if isinstance(layer, LinearLayer):
                # bmm and add_, not baddbmm: its broadcast bias costs an extra pass.
                torch.bmm(values[-1], theta[layer.weight], out=out)
                if layer.bias is not None:
                    out.add_(theta[layer.bias][:, None, :])
            else:
                layer.forward(values[-1], out)
            values.append(out)
        return values

    def workspace(self, rows: int, inputs: int) -> list[Tensor]:
        """One buffer for each layer's output."""
        any_theta = next(iter(self.stack.theta.values()))
        buffers: list[Tensor] = []
        width = inputs
        for layer in self.layers:
            width = layer.width if isinstance(layer, LinearLayer) else width
            buffers.append(any_theta.new_empty(len(any_theta), rows, width))
        return buffers

    def outputs(self, x: Batched) -> Tensor:
        """Outputs [M, B, K] of shared inputs [B, ...]."""
        m = len(next(iter(self.stack.theta.values())))
        x_mbd = tensor_of(x, "inputs").flatten(1).expand(m, -1, -1)
        return self._values(x_mbd, self.workspace(*x_mbd.shape[1:]))[-1]

    def gradient_function(self) -> Callable[[Batched, Batched, Tensor], None]:
        """`gradient(x [M, B, ...], target [M, B, ...], scale [M, B])`, with buffers for one B."""
        space: list[list[Tensor]] = []

        def gradient(x: Batched, target: Batched, scale_mb: Tensor) -> None:
            x_mbd = tensor_of(x, "inputs").flatten(2)
            if not space:
                space.extend(self.workspace(*x_mbd.shape[1:]) for _ in range(2))
            values = self._values(x_mbd, space[0])
            f_mbk = values[-1]
            g_rk = self.loss.gradient(
                f_mbk.flatten(0, 1), each(target, lambda leaf: leaf.flatten(0, 1))
            )
            g_mbk = g_rk.view_as(f_mbk) * scale_mb[:, :, None]
            self._backward(g_mbk, values, space[1])

        return gradient

    def _backward(self, g: Tensor, values: list[Tensor], buffers: list[Tensor]) -> None:
        theta, grad = self.stack.theta, self.stack.grad
        first = next(i for i, layer in enumerate(self.layers) if isinstance(layer, LinearLayer))
        for i in reversed(range(first, len(self.layers))):
            layer, before, after = self.layers[i], values[i], values[i + 1]
            if isinstance(layer, LinearLayer):
                torch.bmm(before.transpose(1, 2), g, out=grad[layer.weight])
                if layer.bias is not None:
                    torch.sum(g, 1, out=grad[layer.bias])
                if i > first:
                    g = torch.bmm(g, theta[layer.weight].transpose(1, 2), out=buffers[i - 1])
            else:
                layer.backward(g, before, after)


# The forward calls write into their last argument; the backward calls overwrite g.


def _relu(_: nn.Module) -> Elementwise:
    return Elementwise(
        lambda z, h: torch.clamp_min(z, 0, out=h),
        lambda g, z, h: aten.threshold_backward.grad_input(g, z, 0, grad_input=g),
    )


def _gelu(module: nn.GELU) -> Elementwise:
    form = module.approximate
    return Elementwise(
        lambda z, h: aten.gelu.out(z, approximate=form, out=h),
        lambda g, z, h: aten.gelu_backward.grad_input(g, z, approximate=form, grad_input=g),
    )


def _tanh(_: nn.Module) -> Elementwise:
    return Elementwise(
        lambda z, h: torch.tanh(z, out=h),
        lambda g, z, h: aten.tanh_backward.grad_input(g, h, grad_input=g),
    )


def _sigmoid(_: nn.Module) -> Elementwise:
    return Elementwise(
        lambda z, h: torch.sigmoid(z, out=h),
        lambda g, z, h: aten.sigmoid_backward.grad_input(g, h, grad_input=g),
    )


def _silu(_: nn.Module) -> Elementwise:
    return Elementwise(
        lambda z, h: aten.silu.out(z, out=h),
        lambda g, z, h: aten.silu_backward.grad_input(g, z, grad_input=g),
    )


def _elu(module: nn.ELU) -> Elementwise:
    a = module.alpha
    return Elementwise(
        lambda z, h: aten.elu.out(z, a, out=h),
        lambda g, z, h: aten.elu_backward.grad_input(g, a, 1, 1, False, z, grad_input=g),
    )


def _leaky_relu(module: nn.LeakyReLU) -> Elementwise:
    slope = module.negative_slope
    return Elementwise(
        lambda z, h: aten.leaky_relu.out(z, slope, out=h),
        lambda g, z, h: aten.leaky_relu_backward.grad_input(g, z, slope, False, grad_input=g),
    )


def _softplus(module: nn.Softplus) -> Elementwise:
    beta, limit = module.beta, module.threshold
    return Elementwise(
        lambda z, h: aten.softplus.out(z, beta, limit, out=h),
        lambda g, z, h: aten.softplus_backward.grad_input(g, z, beta, limit, grad_input=g),
    )


def _hardtanh(module: nn.Hardtanh) -> Elementwise:
    low, high = module.min_val, module.max_val
    return Elementwise(
        lambda z, h: aten.hardtanh.out(z, low, high, out=h),
        lambda g, z, h: aten.hardtanh_backward.grad_input(g, z, low, high, grad_input=g),
    )


_ELEMENTWISE: dict[type[nn.Module], Callable[[Any], Elementwise]] = {
    nn.ReLU: _relu,
    nn.GELU: _gelu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    nn.ELU: _elu,
    nn.LeakyReLU: _leaky_relu,
    nn.Softplus: _softplus,
    nn.Hardtanh: _hardtanh,
    nn.ReLU6: _hardtanh,
}
