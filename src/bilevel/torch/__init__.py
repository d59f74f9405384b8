"""Implicit gradients, layers and row weights for PyTorch."""

from ._implicit import (
    CG,
    AbstractLinearSolver,
    Hypergradient,
    Neumann,
    Nystrom,
    Objectives,
    Richardson,
    fixed_point_layer,
    from_jax,
    implicit_gradient,
    implicit_layer,
    reweighting_objectives,
    to_jax,
)

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
