"""Remedies that keep weights from becoming sparse. They wrap a geometry, an algorithm or a problem.

When the weights move faster than the model, data reweighting collapses onto a few rows: Ivanova and
Ablin (2023), "A challenge in reweighting data with bilevel optimization", section 3
[ivanova2023][]. Each of these is one remedy in a few lines, and they can be combined:

    limit_log_step, kl_pull, optax.clip   transform an outer update; `TransformedGeometry` brings
                                          them into methods that have step sizes in place of optax
    log_trust_region                      bounded steps on the simplex without a step size
    ImportanceSampling, IterateAveraging  wrap an algorithm
    penalised                             wraps a problem: entropy or l2 on the outer objective

Near-exact outer steps (`near_exact`) and weight functions with few parameters (`weight_function`)
change the method and the problem themselves. `docs/reweighting.md` compares them all.
"""
