"""Second-order steps of a transformer whose parameters are split over eight virtual devices.

    python tests/fsdp.py [METHOD ...]

Run by `test_networks.py`. Every matrix of w is split over the axis "data" along its last axis, and so
are the adjoint variable and the rows of each batch, as in fully sharded data parallelism. The steps
agree with those on one device to 1e-9 in float64, and a device holds an eighth of the parameters.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

# Eight devices on few cores: a busy machine may keep one of them waiting for long.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bilevel
from bilevel import tasks

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_enable_async_dispatch", False)  # one program at a time
sys.path.insert(0, str(Path(__file__).parents[1] / "papers"))
import _transformer  # noqa: E402  # pyright: ignore[reportMissingImports]
from _transformer import Size  # noqa: E402  # pyright: ignore[reportMissingImports]

SIZE, SOURCES, ROWS, STEPS = Size(16, 2, 2, 8), 2, 8, 2
MESH = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
METHODS = {
    "SOBA": bilevel.SOBA(0.02, 0.02, 0.02),
    "AmIGO": bilevel.AmIGO(0.02, 0.02, 0.02, num_inner=1, num_linear=1),
    "F2SA": bilevel.F2SA(0.02, 0.02, num_inner=1),
    "ITD": bilevel.DoubleLoop(
        bilevel.GradientInner(optax.adam(1e-3), 2), bilevel.ITD(), optax.sgd(0.1), warm_start=True
    ),
    "AID": bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(0.02), 2),
        bilevel.AID(bilevel.Neumann(0.02, 3)),
        optax.sgd(0.1),
        warm_start=True,
    ),
}


def split(x: Any) -> Any:
    """Along the last axis; what eight does not divide is whole."""
    spec = P(*[None] * (x.ndim - 1), "data") if x.ndim and x.shape[-1] % 8 == 0 else P()
    return jax.device_put(x, NamedSharding(MESH, spec))


def main() -> None:
    rng = np.random.default_rng(0)
    inner = rng.integers(0, 256, (STEPS * 4, SOURCES, ROWS, SIZE.context + 1), dtype=np.uint8)
    outer = rng.integers(0, 256, (STEPS * 4, ROWS, SIZE.context + 1), dtype=np.uint8)
    problem = tasks.mixture(partial(_transformer.losses, heads=SIZE.heads, remat=True))
    w = jax.tree.map(lambda x: x.astype(float), _transformer.init(SIZE, jax.random.key(0)))
    u = tasks.uniform_weights(SOURCES)

    def run(method: Any, w: Any, by_source: Any, by_row: Any) -> Any:
        loaders = {
            "inner_sampler": bilevel.FromLoader(list(inner), 8, by_source),
            "outer_sampler": bilevel.FromLoader(list(outer), 8, by_row),
        }
        fields = {**vars(method), **loaders}
        given = type(method)(**fields)
        return bilevel.solve(problem, given, u, w, num_steps=STEPS, chunk_size=STEPS)

    for name in sys.argv[1:] or METHODS:
        method = METHODS[name]
        one = run(method, w, None, None)
        several = run(
            method,
            jax.tree.map(split, w),
            NamedSharding(MESH, P(None, "data")),
            NamedSharding(MESH, P("data")),
        )
        for x, y in zip(
            jax.tree.leaves((one.u, one.w)), jax.tree.leaves((several.u, several.w)), strict=True
        ):
            np.testing.assert_allclose(np.asarray(y), np.asarray(x), rtol=1e-9, atol=1e-12)
        kept = jax.tree.leaves(
            (several.state.w, several.state.aux if name in ("SOBA", "AmIGO") else ())
        )
        large = [x for x in kept if x.ndim > 1]
        here = sum(x.addressable_shards[0].data.size for x in large)
        share = here / sum(x.size for x in large)
        assert share == 1 / 8, (name, share)
        print(name, "moved by", float(np.abs(np.asarray(one.u) - 0.5).max()), flush=True)
    print("equal, and an eighth of the parameters per device")


if __name__ == "__main__":
    main()
