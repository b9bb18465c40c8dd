"""The GGN through its rows: C = (1/N) Zᵀ Z with Z [R, P], solved in the space of R samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvfluence.curvature.dense_limit import require_dense
from curvfluence.curvature.estimate.products import gram_product
from curvfluence.curvature.operators.cholesky import Cholesky
from curvfluence.curvature.operators.eigen import Eigen
from curvfluence.curvature.operators.kernel_iteration import KernelIteration
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue, of_definite
from curvfluence.curvature.operators.operator import Against, Operator
from curvfluence.curvature.operators.solution import InParameters, Solution
from curvfluence.curvature.places import Places, Whole
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Outer, Term
from curvfluence.runtime import budget
from curvfluence.runtime.eigen_solver import eigvalsh

REFINEMENTS = 5
PROBED = 4  # vectors whose residual by products in float32 is looked at in float64
SINGLE = 1e-5  # the smallest relative residual that products in float32 are trusted with


@dataclass(frozen=True, eq=False)
class SampleSpaceOperator(Operator):
    """(C + D)⁻¹ v = D⁻¹ v − D⁻¹ Zᵀ (N I + Z D⁻¹ Zᵀ)⁻¹ Z D⁻¹ v with D = diag(w) + λ.

    The kernel Z D⁻¹ Zᵀ is a sum over layers; where no position is shared, of (a aᵀ) ∘ (s sᵀ), so P
    never enters its cost: R² Σ(i + o) operations and R³/3 for its factor, R² numbers in its own
    memory. What D⁻¹ v and the rest cancel in float32 is recovered by refinement against products
    in float64, until the residual is below `tolerance` or no longer falls. The factor of the last
    D is kept, R² numbers, for the next solve with it (a certificate's, say).

    With `iterate` the kernel is not factored: y of (N I + K) y = Z D⁻¹ v comes by iteration, about
    ten products of 2 R² operations a vector. With x = D⁻¹ (v − Zᵀ y) the residual is
    v − (C + D) x = Zᵀ (N y − Z x)/N: one product of the rows with x tells it, and with the kernel
    its norm. Where `tolerance` is above 1e-5 these products are in the rows' own dtype.
    """

    rows: Rows
    n: int  # N, all training examples
    dropped: int = 0
    dropped_trace: float = 0.0  # (1/N) Σ ‖row‖² of what was dropped: bounds ‖C − kept‖₂
    rank: int = field(kw_only=True)  # at most
    tolerance: float = 1e-6  # pyright: ignore[reportIncompatibleVariableOverride]
    iterate: bool = False
    _last: list[tuple[Tensor, Cholesky | KernelIteration]] = field(
        default_factory=list["tuple[Tensor, Cholesky | KernelIteration]"], init=False, repr=False
    )
    _products: list[int] = field(default_factory=list[int], init=False, repr=False)

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.rows.parameters.count

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    @property
    def count(self) -> int:
        """R."""
        return self.rows.dense.shape[0] * self.rows.dense.shape[1]

    def __matmul__(self, v: Tensor) -> Tensor:
        flat = v.reshape(-1, self.size)
        return self._product(flat).view_as(v)

    def _product(self, v_qp: Tensor) -> Tensor:
        """C v in the dtype of v, whatever that of the rows."""
        if not self.count:
            return torch.zeros_like(v_qp)
        parts = self.rows.slices(budget.EXACT_ROWS)
        return gram_product((part.to(v_qp.dtype) for part in parts), v_qp).div_(self.n)

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        shift = _positive(decay + damping)
        if not self.count:  # every row is 0: a model that fits beyond rounding
            return v / shift
        flat, batch = v.reshape(-1, self.size), self._batch
        if self.iterate:
            parts = flat.split(batch)
            b_qr = torch.cat([self.rows.inner(part / shift).flatten(1) for part in parts])
            x_qp, residuals = self._iterated(b_qr, lambda part: flat[part], shift)
            self.tell_short(torch.tensor(residuals))
            return x_qp.view_as(v)
        factor, out = self.factor(shift), torch.empty_like(flat)
        for to, part in zip(out.split(batch), flat.split(batch), strict=True):
            to.copy_(self._refined(part, shift, factor))
        return out.view_as(v)

    def within(self, tolerance: float) -> SampleSpaceOperator:
        other = replace(self, tolerance=tolerance)
        other._last.extend(self._last)  # the factor does not depend on it
        return other

    def solve_rows(
        self, places: Places, rows: Rows, decay: Tensor, damping: float, against: Against
    ) -> Solution:
        """With `iterate` Z D⁻¹ Gᵀ comes from the factors of the rows where no position is shared,
        and the solution knows its residuals."""
        shift = _positive(decay + damping)
        if not (self.iterate and self.count and isinstance(places, Whole)):
            return super().solve_rows(places, rows, decay, damping, against)
        b_qr = rows.scaled_products(self.rows, shift).flatten(1)
        x_qp, residuals = self._iterated(b_qr, lambda part: rows[part].to_dense()[:, 0], shift)
        return InParameters(places, x_qp, residuals)

    @property
    def _batch(self) -> int:
        """Vectors at a time."""
        return max(1, budget.RIGHT_HAND_SIDES // self.size)

    def factor(self, shift: Tensor) -> Cholesky:
        """Of the kernel N I + Z D⁻¹ Zᵀ."""
        last = self._of(shift)
        if isinstance(last, Cholesky):
            return last
        self._last.clear()  # before the next is made: both at once may not fit
        made = Cholesky.of(self.kernel(shift), "the kernel of the damped GGN")
        self._last.append((shift, made))
        return made

    def _iteration(self, shift: Tensor) -> KernelIteration:
        """On the kernel."""
        last = self._of(shift)
        if isinstance(last, KernelIteration):
            return last
        self._last.clear()
        made = KernelIteration.of(self.products(shift), self.n)
        self._last.append((shift, made))
        return made

    def _of(self, shift: Tensor) -> Cholesky | KernelIteration | None:
        """What is kept for this D."""
        same = self._last and torch.equal(self._last[0][0], shift)
        return self._last[0][1] if same else None

    def _iterated(
        self, b_qr: Tensor, vectors: Callable[[slice | Tensor], Tensor], shift: Tensor
    ) -> tuple[Tensor, tuple[float, ...]]:
        """(x [Q, P], ‖v − (C + D) x‖/‖v‖ of each) for b = Z D⁻¹ v; `vectors` gives some of v.

        In float32 x is corrected by D⁻¹ Zᵀ of every step of y and not formed anew: where λ is
        small, what Zᵀ y cancels would be rounded by more than the step mends. Products in float32
        are rounded too, with ‖x‖: what they say was reached is looked at in float64 where ‖x‖/‖v‖
        is largest, and where that says otherwise, or they say that nothing is gained, all are made
        in float64 from there on. Where that ends short too, x is formed anew in float64 after all,
        and of each vector the better one is returned.
        """
        count, kernel = len(b_qr), self._iteration(shift)
        corrected = self.tolerance >= SINGLE and b_qr.dtype != torch.float64
        parts = [slice(k, min(k + self._batch, count)) for k in range(0, count, self._batch)]
        size_q = torch.cat([_norms(vectors(part)) for part in parts])
        size_q = torch.where(size_q > 0, size_q, 1)
        x_qp = torch.cat([vectors(part) / shift for part in parts])
        y_qr, rho_qr = torch.zeros_like(b_qr, dtype=torch.float64), b_qr.double()

        def formed(some: slice | Tensor) -> Tensor:
            """D⁻¹ (v − Zᵀ y) of some, in float64."""
            return (vectors(some).double() - self._adjoint(y_qr[some])).div_(shift)

        def left(some: slice | Tensor, x: Tensor) -> Tensor:
            """ρ = Z x − N y of some."""
            return self._inner(x).double() - self.n * y_qr[some]

        def moved(step_qr: Tensor | None, dtype: torch.dtype) -> Tensor:
            """What is left of each, relatively, by products in that dtype after a step of y."""
            if step_qr is not None:
                y_qr.add_(step_qr)
            for part in parts:
                if not corrected:
                    x = formed(part)
                    x_qp[part] = x.to(x_qp.dtype)
                else:
                    if step_qr is not None:
                        x_qp[part] -= self._adjoint(step_qr[part].to(x_qp.dtype)).div_(shift)
                    x = x_qp[part].to(dtype)
                rho_qr[part] = left(part, x)
            return self._size(rho_qr, kernel, shift) / size_q

        def looked_at(some: Tensor, x: Tensor) -> Tensor:
            """What is left of some, relatively, for x in float64."""
            return self._size(left(some, x.double()), kernel, shift) / size_q[some]

        dtype = b_qr.dtype if corrected else torch.float64
        self._products.append(0)
        last, relative_q = torch.inf, torch.full_like(size_q, torch.inf)
        before: tuple[Tensor, Tensor] | None = None
        for _ in range(2 * REFINEMENTS if corrected else REFINEMENTS):
            step_qr = torch.zeros_like(y_qr)
            wanted = self.tolerance / 2
            self._products[-1] += kernel.improve(step_qr, rho_qr, size_q, wanted, shift)
            if corrected:
                step_qr = step_qr.to(b_qr.dtype).double()  # as x takes it
            relative_q = moved(step_qr, dtype)
            worst = float(relative_q.max())
            if dtype != torch.float64:
                if worst <= self.tolerance:
                    some = _largest(_norms(x_qp) / size_q, relative_q)
                    relative_q[some] = looked_at(some, x_qp[some])
                    if float(relative_q.max()) <= self.tolerance:
                        break
                elif worst < 0.5 * last:
                    last = worst
                    continue
                dtype = torch.float64
                relative_q = moved(None if worst <= last else -step_qr, dtype)
                worst, last = float(relative_q.max()), torch.inf
            if worst <= self.tolerance:
                break
            if not worst <= last:
                relative_q = moved(-step_qr, dtype)  # it led away
            if not worst < 0.5 * last:
                if not corrected:
                    break
                before, corrected = (x_qp.clone(), relative_q), False
                relative_q = moved(None, dtype)
                worst = float(relative_q.max())
            last = worst
        if not corrected and x_qp.dtype != dtype:
            relative_q = self._left(x_qp, y_qr, kernel, shift, parts) / size_q
        if before is not None:
            better = before[1] < relative_q
            x_qp[better], relative_q[better] = before[0][better], before[1][better]
        return x_qp, tuple(relative_q.tolist())

    def _left(
        self, x_qp: Tensor, y_qr: Tensor, kernel: KernelIteration, shift: Tensor, parts: list[slice]
    ) -> Tensor:
        """‖v − (C + D) x‖ of what is returned, which was rounded to the vectors' dtype, [Q]."""
        rounded = [self._inner(x_qp[part].double()) - self.n * y_qr[part] for part in parts]
        return self._size(torch.cat(rounded), kernel, shift)

    def _size(self, rho_qr: Tensor, kernel: KernelIteration, shift: Tensor) -> Tensor:
        """‖Zᵀ ρ‖/N of each, [Q]: by the kernel where D is a multiple of I."""
        if bool((shift == shift[0]).all()):
            return kernel.size(rho_qr, float(shift[0]))
        parts = rho_qr.to(self.rows.dense.dtype).split(self._batch)
        return torch.cat([_norms(self._adjoint(part)) for part in parts]) / self.n

    def _inner(self, x_qp: Tensor) -> Tensor:
        """Z x, [Q, R], in the dtype of x."""
        if x_qp.dtype == self.rows.dense.dtype:
            return self.rows.inner(x_qp).flatten(1)
        parts = self.rows.slices(budget.EXACT_ROWS)
        return torch.cat([part.to(x_qp.dtype).inner(x_qp).flatten(1) for part in parts], dim=1)

    def _adjoint(self, y_qr: Tensor) -> Tensor:
        """Zᵀ y, [Q, P], in the dtype of y."""
        n, c = self.rows.dense.shape[:2]
        y_qnc = y_qr.view(-1, n, c)
        if y_qr.dtype == self.rows.dense.dtype:
            return self.rows.adjoint(y_qnc)
        total, start = y_qr.new_zeros(len(y_qr), self.size), 0
        for part in self.rows.slices(budget.EXACT_ROWS):
            total += part.to(y_qr.dtype).adjoint(y_qnc[:, start : start + len(part)])
            start += len(part)
        return total

    def _refined(self, v_qp: Tensor, shift: Tensor, factor: Cholesky) -> Tensor:
        """x in float64."""
        exact = shift.double()
        size = v_qp.double().norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        x, last = self.direct(v_qp, shift, factor).double(), torch.inf
        for step in range(REFINEMENTS + 1):
            residual = self._product(x).addcmul_(exact, x).neg_().add_(v_qp)
            relative = residual.norm(dim=1, keepdim=True) / size
            worst = float(relative.max())
            if worst <= self.tolerance or worst > 0.5 * last or step == REFINEMENTS:
                self.tell_short(relative)
                break
            last = worst
            scaled = residual.div_(size).to(v_qp.dtype)
            x.addcmul_(self.direct(scaled, shift, factor).double(), size)
        return x

    def direct(self, v_qp: Tensor, shift: Tensor, factor: Cholesky) -> Tensor:
        """The inverse once, without refinement."""
        u_qp = v_qp / shift
        y_qr = factor.solve(self.rows.inner(u_qp).flatten(1))
        y_qnc = y_qr.view(len(v_qp), *self.rows.dense.shape[:2])
        return u_qp.sub_(self.rows.adjoint(y_qnc).div_(shift))

    def kernel(self, shift: Tensor) -> Tensor:
        """N I + Z D⁻¹ Zᵀ, [R, R]; only the lower triangle is filled, above it stands anything."""
        total = self.products(shift)
        total.diagonal().add_(self.n)
        return total

    def products(self, shift: Tensor) -> Tensor:
        """Z D⁻¹ Zᵀ, [R, R], likewise."""
        rows, (n, c) = self.rows, self.rows.dense.shape[:2]
        total = rows.dense.new_empty(n * c, n * c)
        step = max(1, budget.KERNEL // (c * c * n))
        empty = True  # memory is touched once where the first layer's products are written to it
        if not rows.terms or not isinstance(rows.terms[0], Outer):
            total.zero_()
            empty = False
        for layer, term in zip(rows.layers, rows.terms, strict=True):
            weight, bias = rows.shift_of(layer, shift)
            if isinstance(term, Outer):
                _add_outer(total, term, weight, bias, step, empty=empty)
                empty = False
            else:
                _add_dense(total, term, weight, bias)
        if rows.dense.shape[2]:
            places = torch.cat([shift[place] for place, _ in rows.rest_slices()])
            flat = rows.dense.flatten(0, 1)
            _add_gram(total, flat / places.sqrt())
        if not bool(total.diagonal().isfinite().all()):
            raise NonFiniteError(
                f"the kernel Z D⁻¹ Zᵀ overflows {total.dtype}, though every example's rows are "
                "finite: use a larger damping, scale the loss, or use problem.to(torch.float64)"
            )
        return total

    def to_dense(self) -> Tensor:
        require_dense("GGN", self.size, "the model")
        flat = self.rows.to_dense().flatten(0, 1)
        return flat.T @ flat / self.n

    def eigenvalues(self) -> Tensor:
        """Those of Z Zᵀ/N, and zeros. Cost: R³."""
        if not self.count:
            return self.rows.dense.new_zeros(self.size)
        kernel = self.kernel(self.rows.dense.new_ones(self.size))
        kernel.diagonal().sub_(self.n)
        values = eigvalsh(kernel.tril_()) / self.n  # by its lower triangle alone
        out = values.new_zeros(self.size)
        kept = values[-min(len(values), self.size) :]
        out[: len(kept)] = kept
        return out

    def eigenbasis(self) -> Eigen:
        return Eigen.of(self.to_dense())

    def mean_eigenvalue(self) -> MeanEigenvalue:
        return of_definite(self.rows.squares().div_(self.n), min(self.rank, self.count))

    def note(self, damping: float) -> str | None:
        said = [text for text in (self._of_dropped(damping), self._of_products) if text]
        return "; ".join(said) or None

    @property
    def _of_products(self) -> str | None:
        if not self._products:
            return None
        return f"{max(self._products)} products with the kernel of {self.count:,} rows"

    def _of_dropped(self, damping: float) -> str | None:
        if not self.dropped:
            return None
        bound = self.dropped_trace / damping if damping > 0 else torch.inf
        return (
            f"{self.dropped} of {self.n} examples were dropped from the GGN: together they hold "
            f"{self.dropped_trace:.3g} of its trace, which changes an inverse by at most "
            f"{bound:.2g} of itself"
        )


def _positive(shift: Tensor) -> Tensor:
    if not bool((shift > 0).all()):
        raise InputError(
            "in sample space every parameter needs w + λ > 0: the kernel divides by it. Use a "
            "damping > 0"
        )
    return shift


def _largest(*of_each: Tensor) -> Tensor:
    """The numbers of those that are among the few largest in something."""
    few = [one.topk(min(PROBED, len(one))).indices for one in of_each]
    return torch.cat(few).unique()


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def _add_outer(
    total: Tensor, term: Outer, weight: float, bias: float | None, step: int, *, empty: bool
) -> None:
    """Σ (a aᵀ / w + 1/b)_nm (s sᵀ)_{nc, md}, rows of the lower triangle at a time; in the place of
    what an `empty` total holds."""
    n, c, o = term.s.shape
    s_ro = term.s.reshape(n * c, o)
    for start in range(0, n, step):
        stop = min(n, start + step)
        inputs = term.a[start:stop] @ term.a[:stop].T / weight
        if bias is not None:
            inputs += 1 / bias
        place = total[start * c : stop * c, : stop * c]
        outputs = s_ro[start * c : stop * c], s_ro[: stop * c].T
        block = torch.mm(*outputs, out=place) if empty else torch.mm(*outputs)
        block.view(stop - start, c, stop, c).mul_(inputs[:, None, :, None])
        if not empty:
            place += block


def _add_dense(total: Tensor, term: Term, weight: float, bias: float | None) -> None:
    """The same from rows, where positions are shared; formed a slice at a time, twice."""
    c, width = term.c, term.shape[0] * term.shape[1]
    for start, part in term.numbered_slices(width):
        left = part.dense().reshape(-1, width)
        for other, right_part in term.numbered_slices(width):
            if other > start:
                break
            right = right_part.dense().reshape(-1, width)
            rows = slice(start * c, start * c + len(left))
            columns = slice(other * c, other * c + len(right))
            total[rows, columns] += left @ right.T / weight
    if bias is not None:
        _add_gram(total, term.summed().flatten(0, 1) / bias**0.5)


def _add_gram(total: Tensor, z_rk: Tensor, step: int = 2048) -> None:
    for start in range(0, len(z_rk), step):
        stop = min(len(z_rk), start + step)
        total[start:stop, :stop] += z_rk[start:stop] @ z_rk[:stop].T


def without_small(rows: Rows, n: int, drop: float) -> tuple[Rows, int, float]:
    """(rows, how many examples were left out, their (1/N) Σ ‖row‖²): the examples with the
    smallest rows go while what they hold together is at most `drop`."""
    norms_n = rows.squared_norms().double().sum(1) / n
    order = norms_n.argsort()
    gone = int((norms_n[order].cumsum(0) <= drop).sum())
    if not gone:
        return rows, 0, 0.0
    kept = order[gone:].sort().values
    return rows[kept], gone, float(norms_n[order[:gone]].sum())
