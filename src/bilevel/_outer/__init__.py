"""Updates and wrappers for weights: trust region, clipping, pull, importance sampling, averaging."""
