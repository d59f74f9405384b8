"""Implicit gradients for PyTorch: the equations of the rest of the library, on tensors.

    grad Phi(u) = grad_u F(u, w) - (d2_uw f(u, w))^T v,   d2_ww f(u, w) v = grad_w F(u, w)

A variable is a tensor, or a dictionary, list or tuple of variables. Products with second derivatives
are taken by reverse differentiation of the gradient: F and f need a double backward pass.
"""

import abc
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ._solution import HypergradientWarning

if TYPE_CHECKING:  # PyTorch is an extra, which a type checker need not have
    torch: Any
    Tensor = Any
else:
    try:
        import torch
    except ImportError as error:
        raise ImportError("`bilevel.torch` needs PyTorch: `pip install torch`.") from error
    Tensor = torch.Tensor
Tree = Any  # a tensor, or a dictionary, list or tuple of trees
Product = Callable[[Tensor], Tensor]  # of a matrix with a vector


__all__ = [
    "CG",
    "AbstractLinearSolver",
    "Hypergradient",
    "Neumann",
    "Nystrom",
    "Objectives",
    "Richardson",
    "fixed_point_layer",
    "from_jax",
    "implicit_gradient",
    "implicit_layer",
    "reweighting_objectives",
    "to_jax",
]


class AbstractLinearSolver(abc.ABC):
    """What solves `A x = b`, with A given by its products with vectors."""

    @abc.abstractmethod
    def solve(self, product: Product, b: Tensor) -> tuple[Tensor, bool]:
        """(x, False if the tolerance was not reached, curvature was negative, or terms grew)."""


@dataclass(frozen=True)
class CG(AbstractLinearSolver):
    """Conjugate gradients, for a symmetric positive definite A, to `||b - A x|| <= atol + rtol ||b||`.

    One product per step; four vectors. Negative curvature ends the iteration with `converged=False`.
    """

    rtol: float = 1e-6
    atol: float = 0.0
    max_steps: int = 1000

    def solve(self, product: Product, b: Tensor) -> tuple[Tensor, bool]:
        """From zero."""
        x, r = torch.zeros_like(b), b.clone()
        p, rr = r.clone(), torch.dot(r, r)
        target, steps = self.atol + self.rtol * float(rr.sqrt()), 0
        while float(rr.sqrt()) > target and steps < self.max_steps:
            ap, steps = product(p), steps + 1
            curvature = torch.dot(p, ap)
            if not float(curvature) > 0:
                return x, False
            step = rr / curvature
            x, r = x + step * p, r - step * ap
            before, rr = rr, torch.dot(r, r)
            p = r + (rr / before) * p
        return x, float(rr.sqrt()) <= target


@dataclass(frozen=True)
class Neumann(AbstractLinearSolver):
    """K terms of the Neumann series: `x = a sum_{j<K} (I - a A)^j b`.

    Converges for `a < 2 / L`, L the largest eigenvalue of A, with the error `(1 - a mu)^K ||x||`. K
    terms are the derivative of K gradient steps of size a from the solution; one term is T1-T2.
    """

    step_size: float
    num_terms: int = 10

    def solve(self, product: Product, b: Tensor) -> tuple[Tensor, bool]:
        """The partial sum."""
        total, term = b.clone(), b
        for _ in range(self.num_terms - 1):
            term = term - self.step_size * product(term)
            total = total + term
        return self.step_size * total, _norm(term) <= 1.01 * _norm(b)


@dataclass(frozen=True)
class Richardson(AbstractLinearSolver):
    """`x_{k+1} = x_k + a (b - A x_k)` to a tolerance; with `a = 1` and `A = I - J^T`, AID-FP.

    Stops at `||b - A x|| <= atol + rtol ||b||`, or when the residual has grown a thousandfold.
    """

    step_size: float
    rtol: float = 1e-6
    atol: float = 0.0
    max_steps: int = 1000

    def solve(self, product: Product, b: Tensor) -> tuple[Tensor, bool]:
        """From zero."""
        x, r, first = torch.zeros_like(b), b.clone(), _norm(b)
        target, steps = self.atol + self.rtol * first, 0
        while target < _norm(r) < 1e3 * first and steps < self.max_steps:
            x, steps = x + self.step_size * r, steps + 1
            r = b - product(x)
        return x, _norm(r) <= target


@dataclass(frozen=True)
class Nystrom(AbstractLinearSolver):
    """A low-rank approximation of a symmetric positive semi-definite A, from `rank` of its columns.

        C = A[:, S],  W = A[S, S],  A_S = C W^+ C^T,   x = (A_S + damping I)^{-1} b

    Takes `rank` products. If the columns S, drawn by `seed`, span the range of A, the damping is the
    only error. Source: Hataya and Yamada (2023), "Nyström method for accurate and scalable implicit
    differentiation" [hataya2023][].
    """

    rank: int
    damping: float = 1e-2
    seed: int = 0

    def solve(self, product: Product, b: Tensor) -> tuple[Tensor, bool]:
        """By the eigenvalues of A_S."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(b), generator=generator)[: self.rank].to(b.device)
        units = torch.nn.functional.one_hot(chosen, len(b)).to(b.dtype)
        c = torch.stack([product(unit) for unit in units], dim=1)
        values, vectors = torch.linalg.eigh((c[chosen] + c[chosen].T) / 2)
        kept = values > values.abs().max() * len(b) * torch.finfo(b.dtype).eps
        root = c @ (vectors[:, kept] / values[kept].sqrt())
        basis, singular, _ = torch.linalg.svd(root, full_matrices=False)
        inside, outside = basis.T @ b, b - basis @ (basis.T @ b)
        outside = outside - basis @ (basis.T @ outside)  # what rounding leaves
        return basis @ (inside / (singular**2 + self.damping)) + outside / self.damping, True


class Hypergradient(NamedTuple):
    """An estimate of `grad Phi(u)`, with its residuals.

    Attributes:
        value: `F(u, w)`.
        grad, v: the estimate, like u, and the solution of the linear system, like w.
        inner_residual: `||grad_w f(u, w)||`; over mu it bounds `||w - w*(u)||`.
        linear_residual: `||H v - grad_w F||`; `converged`: what the linear solver says.
    """

    value: float
    grad: Tree
    v: Tree
    inner_residual: float
    linear_residual: float
    converged: bool


def implicit_gradient(
    outer: Callable[[Tree, Tree], Tensor],
    inner: Callable[[Tree, Tree], Tensor],
    u: Tree,
    w: Tree,
    linear_solver: AbstractLinearSolver | None = None,
    *,
    damping: float = 0.0,
) -> Hypergradient:
    """The hypergradient by the implicit function theorem, at a given inner point.

    Args:
        outer, inner: F and f, functions of (u, w) that return a scalar.
        u, w: the outer variable, and an inner point, ideally `w*(u)`; not changed. The parameters of
            a module are `dict(module.named_parameters())`, with
            `torch.func.functional_call(module, w, x)` in the objectives.
        linear_solver: `CG()` by default.
        damping: solve with `H + damping I` in place of H.

    Set `u.grad` to its `grad` to step with any optimiser of `torch.optim`. Cost: an outer and an inner
    gradient, the solver's products (each about two inner gradients) and a mixed product. The error is
    `O(||w - w*(u)|| + ||v - H^-1 grad_w F||)`.

    Warns:
        HypergradientWarning: the linear solver did not converge.

    Raises:
        ValueError: f does not depend on u, or not on u and w together.

    Source: Pedregosa (2016), "Hyperparameter optimization with approximate gradient"
    [pedregosa2016][].
    """
    of_u, of_w = _Leaves.of(u), _Leaves.of(w)
    with torch.enable_grad():
        value = outer(of_u.tree, of_w.tree)
        first = torch.autograd.grad(value, of_u.all + of_w.all, allow_unused=True)
        direct, b = of_u.vector(first[: len(of_u.all)]), of_w.vector(first[len(of_u.all) :])
        residual = of_w.gradient(inner(of_u.tree, of_w.tree))
    system = _System(residual, of_u, of_w, damping)
    v, linear_residual, converged = system.solve(linear_solver or CG(), b)
    found = of_u.like(direct - system.mixed(v)), of_w.like(v), _norm(residual), linear_residual
    return Hypergradient(float(value.detach()), *found, converged)


def implicit_layer(
    inner: Callable[[Tree, Tree], Tensor],
    u: Tree,
    w: Tree,
    linear_solver: AbstractLinearSolver | None = None,
) -> Tree:
    """`w`, with the derivative that the implicit function theorem gives `w*(u) = argmin_w f(u, w)`.

    The value is the given `w`, however it was found. The backward pass solves `H v = g` by the linear
    solver (`CG()` by default) and gives `-(d2_uw f)^T v` to u; there are no second derivatives.
    """
    solver = linear_solver or CG()
    return _layer(lambda of_u, of_w: of_w.gradient(inner(of_u.tree, of_w.tree)), u, w, solver)


def fixed_point_layer(
    function: Callable[[Tree, Tree], Tree],
    u: Tree,
    z: Tree,
    linear_solver: AbstractLinearSolver | None = None,
) -> Tree:
    """`z`, with the derivative of the fixed point `z = function(u, z)`: an equilibrium model.

    The backward pass solves `(I - d_z function)^T v = g` (by `Richardson(1.0)`, which converges where
    the function is a contraction; `CG` needs a symmetric system) and gives `(d_u function)^T v` to u.

    Raises:
        ValueError: in the backward pass, the function does not return a tree like z.
    """

    def residual(of_u: "_Leaves", of_z: "_Leaves") -> Tensor:
        image = function(of_u.tree, of_z.tree)
        got, expected = (jax.tree.map(lambda x: tuple(x.shape), t) for t in (image, of_z.tree))
        if got != expected:
            raise ValueError(f"`function` must return a tree like z, of {expected}, got {got}.")
        return _flat(of_z.all) - _flat(jax.tree.leaves(image))

    return _layer(residual, u, z, linear_solver or Richardson(1.0))


def _layer(residual: Callable[..., Tensor], u: Tree, w: Tree, solver: AbstractLinearSolver) -> Tree:
    w = jax.tree.map(lambda x: x.detach().clone(), w)  # as it is now

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
            ctx.save_for_backward(*tensors)
            return tuple(x.clone() for x in jax.tree.leaves(w))

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, ...]:
            of_u, of_w = _Leaves.of(_rebuild(u, ctx.saved_tensors)), _Leaves.of(w)
            with torch.enable_grad():
                system = _System(residual(of_u, of_w), of_u, of_w, 0.0)
            v, *_ = system.solve(solver, of_w.vector(slopes))
            return tuple(jax.tree.leaves(of_u.like(-system.mixed(v))))

    return _rebuild(w, Layer.apply(*jax.tree.leaves(u)))


class _System(NamedTuple):
    """The derivatives of the residual r at a point, transposed."""

    residual: Tensor
    of_u: "_Leaves"
    of_w: "_Leaves"
    damping: float

    def solve(self, solver: AbstractLinearSolver, b: Tensor) -> tuple[Tensor, float, bool]:
        """(v, norm of the residual without damping, whether the solver converged), with a warning."""
        v, converged = solver.solve(self.product, b)
        residual = _norm(self.product(v) - self.damping * v - b)
        converged = converged and math.isfinite(residual)
        if not converged:
            told = f"the linear solver did not converge: the residual is {residual:.3g}."
            warnings.warn(told, HypergradientWarning, stacklevel=3)
        return v, residual, converged

    def product(self, v: Tensor) -> Tensor:
        """`(d_w r)^T v + damping v`."""
        return self.of_w.vector(self._transposed(self.of_w.all, v)) + self.damping * v

    def mixed(self, v: Tensor) -> Tensor:
        """`(d_u r)^T v`."""
        found = self._transposed(self.of_u.all, v)
        if all(x is None for x in found):
            raise ValueError("the inner objective does not depend on its argument `u`.")
        return self.of_u.vector(found)

    def _transposed(self, by: list[Tensor], v: Tensor) -> Any:
        return torch.autograd.grad(self.residual, by, v, retain_graph=True, allow_unused=True)


class Objectives(NamedTuple):
    """A bilevel problem with its start: `implicit_gradient(*objectives[:2], u, w)`."""

    outer: Callable[[Tree, Tree], Tensor]
    inner: Callable[[Tree, Tree], Tensor]
    u0: Tensor
    w0: dict[str, Tensor]


def reweighting_objectives(
    module: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    train: tuple[Tensor, Tensor],
    trusted: tuple[Tensor, Tensor],
    *,
    l2: float = 1e-2,
) -> Objectives:
    """Weights of training rows, judged by the loss on trusted rows.

        f(u, w) = sum_i softmax(u)_i loss_i(w) + l2 / 2 ||w||^2,   F(w) = mean trusted loss

    Args:
        module: a `torch.nn.Module`; it is not changed. Parameters that require no gradient stay what
            they are, and so do its buffers.
        loss: of predictions and labels, one number per row (`reduction="none"`).
        train, trusted: rows and labels.
        l2: of all parameters in w; it makes f strongly convex where the loss is convex.

    Raises:
        ValueError: a layer changes its running statistics in training, as batch normalisation does, or
            draws numbers, as dropout does: F and f would be other functions at every call.
    """
    training = [(name, part) for name, part in module.named_modules() if part.training]
    changing = [name for name, part in training if getattr(part, "track_running_stats", False)]
    if changing:
        raise ValueError(f"call `module.eval()`: {', '.join(changing)} change running statistics.")
    dropout = torch.nn.modules.dropout._DropoutNd
    random = [name for name, part in training if isinstance(part, dropout) and part.p > 0]
    if random:
        raise ValueError(f"call `module.eval()`: {', '.join(random)} draw numbers in training.")

    def losses(w: dict[str, Tensor], rows: tuple[Tensor, Tensor]) -> Tensor:
        return loss(torch.func.functional_call(module, w, (rows[0],)), rows[1])

    def inner(u: Tensor, w: dict[str, Tensor]) -> Tensor:
        penalty = sum((x**2).sum() for x in w.values())
        return torch.dot(torch.softmax(u, 0), losses(w, train)) + 0.5 * l2 * penalty

    moved = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not moved:
        raise ValueError("no parameter of the module requires a gradient, so there is no w.")
    w0 = {name: p.detach().clone() for name, p in moved}
    u0 = next(iter(w0.values())).new_zeros(len(train[0]))
    return Objectives(lambda u, w: losses(w, trusted).mean(), inner, u0, w0)


def to_jax(tree: Tree) -> Tree:
    """Tensors as JAX arrays, by DLPack: without a copy where the devices allow it.

    They then share memory, so clone a tensor that will be changed in place, as optimisers do. Without
    `jax_enable_x64`, JAX has no numbers of 64 bits: such tensors become arrays of 32.
    """
    return jax.tree.map(lambda x: jnp.from_dlpack(x.detach().resolve_neg().contiguous()), tree)


def from_jax(tree: Tree) -> Tree:
    """JAX arrays as tensors, by DLPack. They share memory: clone what you change."""
    return jax.tree.map(torch.from_dlpack, tree)


class _Leaves(NamedTuple):
    """The tensors of a variable as leaves of a graph of their own."""

    all: list[Tensor]
    tree: Tree

    @classmethod
    def of(cls, tree: Tree) -> "_Leaves":
        for x in jax.tree.leaves(tree):
            if not (torch.is_tensor(x) and x.is_floating_point()):
                got = f"a tensor of {x.dtype}" if torch.is_tensor(x) else type(x).__name__
                raise TypeError(
                    "u and w must be tensors of real floating-point numbers, or dictionaries, lists "
                    f"or tuples of them; got {got}."
                )
        tree = jax.tree.map(lambda x: x.detach().clone().requires_grad_(), tree)
        return cls(jax.tree.leaves(tree), tree)

    def vector(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Derivatives by the leaves as one vector; None is zero."""
        pairs = zip(self.all, parts, strict=True)
        return _flat([torch.zeros_like(x) if part is None else part for x, part in pairs])

    def gradient(self, value: Tensor) -> Tensor:
        """Of a scalar by the leaves, as one vector that can be differentiated again."""
        options = {"create_graph": True, "allow_unused": True}
        return self.vector(torch.autograd.grad(value, self.all, **options))

    def like(self, vector: Tensor) -> Tree:
        """A vector in the structure of the variable."""
        pairs = zip(torch.split(vector, [x.numel() for x in self.all]), self.all, strict=True)
        return _rebuild(self.tree, [p.reshape(x.shape).to(x.dtype) for p, x in pairs])


def _rebuild(tree: Tree, leaves: Sequence[Any]) -> Tree:
    """The structure of the tree with other leaves; dictionaries are in the order of their keys."""
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in parts])


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.detach()))
