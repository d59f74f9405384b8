"""Hypergradient estimators: how the gradient of `Phi(u) = F(u, w*(u))` is computed."""
