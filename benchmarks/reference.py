"""Float64 reference scores, from the definitions and plain autograd; no library's code.

For a Linear or Conv2d layer with inputs a_t (1 appended for the bias) at positions t and
s_tc = (∂f/∂z_t)ᵀ column_c, an example's gradient is Σ_t g_t a_tᵀ, and

    A = (1/N) Σ_n Σ_t a aᵀ        B = (1/(N T)) Σ_n Σ_t Σ_c s sᵀ
    K-FAC:  C = B ⊗ A
    EK-FAC: C = U diag(Λ) Uᵀ, U = U_B ⊗ U_A, Λ = (1/N) Σ_n Σ_c ((U_Bᵀ (Σ_t s aᵀ) U_A)_ij)²

Scores are (1/N) g_qᵀ (C + λI)⁻¹ g_n over the layers' parameters. Everything is streamed over
examples: nothing of size N × P is held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from question import Question
from torch import Tensor, nn
from workloads import BUILD, LAYERS, Trained, example_losses

Columns = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> [C, *outputs.shape]


@dataclass(frozen=True)
class Rows:
    """One layer on a chunk: inputs a [B, T, i] and output gradients s [C, B, T, o]."""

    inputs: Tensor
    gradients: Tensor

    def per_example(self) -> Tensor:
        """Σ_t s aᵀ, [C, B, o, i]."""
        return torch.einsum("cbto,bti->cboi", self.gradients, self.inputs)


def type2(output: Tensor, target: Tensor) -> Tensor:
    """Columns of diag(√p) − p √pᵀ, one a class."""
    p = output.detach().softmax(-1)
    columns = torch.diag_embed(p.sqrt()) - p[..., :, None] * p.sqrt()[..., None, :]
    return columns.movedim(-1, 0)


def empirical(output: Tensor, target: Tensor) -> Tensor:
    """p − e_y, the gradient of the loss with the training label."""
    return (output.detach().softmax(-1) - F.one_hot(target, output.shape[-1]))[None]


def root(output: Tensor, target: Tensor) -> Tensor:
    """Σ_c √p_c (e_c − p): one column that stands for all classes at once, as pyDVL takes it.

    Its outer product has the cross terms of every two classes, so it is no estimate of the GGN.
    """
    p = output.detach().softmax(-1)
    return (p.sqrt() - p * p.sqrt().sum(-1, keepdim=True))[None]


COLUMNS: dict[str, Columns] = {"type2": type2, "empirical": empirical, "root": root}


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}


def rows(model: nn.Module, inputs: Tensor, targets: Tensor, columns: Columns) -> dict[str, Rows]:
    """Every layer's rows on one chunk."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (_patches(module, args[0].detach()), output)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in layers(model).items()]
    output = model(inputs)
    for handle in handles:
        handle.remove()
    sent = columns(output, targets)
    outputs = [z for _, z in seen.values()]
    per_column = [torch.autograd.grad(output, outputs, v, retain_graph=True) for v in sent]
    found: dict[str, Rows] = {}
    for k, (name, (a_bti, z)) in enumerate(seen.items()):
        s = torch.stack([grads[k] for grads in per_column])
        s = (
            s.flatten(3).transpose(2, 3)
            if z.ndim == 4
            else s.reshape(*s.shape[:2], -1, s.shape[-1])
        )
        found[name] = Rows(a_bti, s)
    return found


def scores(question: Question, columns: Columns, *, chunk: int = 64) -> Tensor:
    """(1/N) g_qᵀ (C + λI)⁻¹ g_n, [Q, N], in float64."""
    task, n = question.task, len(question.inputs)
    model = question.model.double()
    model.requires_grad_(True)

    def stream(inputs: Tensor, targets: Tensor, columns: Columns) -> Iterator[dict[str, Rows]]:
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True):
            yield rows(model, x, y, columns)

    def training(columns: Columns) -> Iterator[dict[str, Rows]]:
        return stream(question.inputs, question.targets, columns)

    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for part in training(columns):
        for name, row in part.items():
            a, s = row.inputs.flatten(0, 1), row.gradients.flatten(0, 2)
            positions = row.inputs.shape[1]
            new = (a.T @ a / n, s.T @ s / (n * positions))
            old = factors.get(name, (0.0, 0.0))
            factors[name] = (old[0] + new[0], old[1] + new[1])
    solved = {name: _Solved.of(a, b) for name, (a, b) in factors.items()}
    if task.rung == "EKFAC":
        for solve in solved.values():
            solve.values.zero_()
        for part in training(columns):
            for name, row in part.items():
                solved[name].correct(row, n)
    asked: dict[str, list[Tensor]] = {name: [] for name in solved}
    for part in stream(question.query_inputs, question.query_targets, empirical):
        for name, row in part.items():
            asked[name].append(solved[name].solve(row.per_example()[0], task.damping))
    queries = {name: torch.cat(parts).flatten(1) for name, parts in asked.items()}
    result: list[Tensor] = []
    for part in training(empirical):
        inner = [queries[name] @ row.per_example()[0].flatten(1).T for name, row in part.items()]
        result.append(torch.stack(inner).sum(0) / n)
    return torch.cat(result, dim=1)


@dataclass(frozen=True)
class _Solved:
    """A layer's eigenbasis, with its eigenvalues [o, i]."""

    out_basis: Tensor
    in_basis: Tensor
    values: Tensor

    @staticmethod
    def of(a: Tensor, b: Tensor) -> _Solved:
        a_values, a_basis = torch.linalg.eigh(a)
        b_values, b_basis = torch.linalg.eigh(b)
        return _Solved(b_basis, a_basis, torch.outer(b_values, a_values))

    def correct(self, row: Rows, n: int) -> None:
        a, s = row.inputs @ self.in_basis, row.gradients @ self.out_basis
        if a.shape[1] == 1:
            self.values.add_(s[:, :, 0].square().sum(0).T @ a[:, 0].square() / n)
        else:
            for column in s:
                self.values.add_(torch.einsum("bto,bti->boi", column, a).square().sum(0) / n)

    def solve(self, g_qoi: Tensor, damping: float) -> Tensor:
        rotated = self.out_basis.T @ g_qoi @ self.in_basis
        return self.out_basis @ (rotated / (self.values + damping)) @ self.in_basis.T


def cached(question: Question, trained: Trained, fisher: str) -> Tensor | None:
    """The reference of a task under `fisher`, kept by task and weights; None where it is random,
    has a column for each class at each of many positions, or is of no factors."""
    if question.task.rung not in ("EKFAC", "KFAC"):
        return None
    if fisher not in COLUMNS or (question.positions > 1 and fisher != "empirical"):
        return None
    key = f"{question.task}{fisher}{trained.fingerprint()}"
    path = BUILD / "reference" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.pt"
    if not path.exists():
        if (off := check_gradients(question)) > 1e-9:
            raise ArithmeticError(f"the reference's gradients are {off:.1e} from autograd's")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(scores(question, COLUMNS[fisher]), path)
    return torch.load(path, weights_only=True)


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    """The layer's inputs as [B, T, i], with 1 appended where it has a bias."""
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or isinstance(module.padding, str):
            raise ValueError(f"no reference for {module}")
        x = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)  # pyright: ignore[reportArgumentType]
        x = x.transpose(1, 2)
    else:
        x = x.reshape(len(x), -1, x.shape[-1])
    if getattr(module, "bias", None) is None:
        return x
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)


def check_gradients(question: Question, *, count: int = 3) -> float:
    """Largest relative error of the layers' Σ_t s aᵀ against autograd's own weight gradients."""
    model = question.model.double()
    model.requires_grad_(True)
    worst = 0.0
    weights = dict(model.named_parameters())
    for k in range(count):
        x, y = question.inputs[k : k + 1], question.targets[k : k + 1]
        x = x.double() if x.is_floating_point() else x
        for name, row in rows(model, x, y, empirical).items():
            weight = weights[f"{name}.weight"]
            (wanted,) = torch.autograd.grad(example_losses(model(x), y).sum(), [weight])
            found = row.per_example()[0, 0][:, : wanted[0].numel()].reshape(wanted.shape)
            worst = max(worst, float((found - wanted).norm() / wanted.norm()))
    return worst
