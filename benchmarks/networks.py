"""What a step of each method costs on a network, beside a plain training step of the same network.

    python benchmarks/networks.py [--quick]

The network is a byte-level transformer (`papers/_transformer.py`) with one weight per source of four
(`tasks.mixture`), on bytes that are drawn here: their values do not change the cost. A plain training
step is the gradient of f on the inner batch and an update by Adam. All methods see one inner and one
outer batch of the same size per step, so a method with one inner gradient and one outer gradient costs
twice a training step before anything of second order. Two kinds of memory are those of the compiled
step: `temporary` is what it needs besides its arguments and results (activations, most of all), and
`all` counts these too (weights, states, batches). "by layer" means that `jax.checkpoint` is around
each layer, which keeps its input only.

Times are medians of CPU times, taken in turn in one process. `resident` is the peak of the resident
memory of a process that does nothing else, while it takes three steps: the interpreter, JAX and the
compiled code are in it, what the compilation needed is not. It is read from Linux.
"""

import argparse
import ctypes
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import IMAGES, cpu_seconds, in_a_process, panels, save, write

import bilevel
from bilevel import tasks

sys.path.insert(0, str(Path(__file__).parents[1] / "papers"))
import _transformer  # pyright: ignore[reportMissingImports]
from _transformer import Size  # pyright: ignore[reportMissingImports]

SOURCES, PER_SOURCE = 4, 2
FULL, QUICK = Size(128, 5, 4, 128), Size(32, 2, 2, 32)


def methods() -> dict[str, Any]:
    """One inner step per outer step where a method has a choice."""
    adam = bilevel.GradientInner(optax.adam(1e-3), 1)

    def loop(hypergradient: Any) -> Any:
        return bilevel.DoubleLoop(adam, hypergradient, optax.sgd(0.1), warm_start=True)

    return {
        "ITD, one step of Adam": loop(bilevel.ITD()),
        "AID, one term": loop(bilevel.AID(bilevel.Neumann(0.1, 1))),
        "AID, five terms": loop(bilevel.AID(bilevel.Neumann(0.1, 5))),
        "SOBA": bilevel.SOBA(0.1, 0.1, 0.1),
        "AmIGO": bilevel.AmIGO(0.1, 0.1, 0.1, num_inner=1, num_linear=1),
        "StocBiO": bilevel.StocBiO(0.1, 0.1, 0.1, num_inner=1, num_terms=2),
        "F2SA": bilevel.F2SA(0.1, 0.1, num_inner=1),
        "BOME": bilevel.BOME(0.1, 0.1, num_inner=1),
        "ValueFunctionPenalty": bilevel.ValueFunctionPenalty(0.1, 0.1, num_inner=1),
    }


def build(size: Size, remat: bool) -> tuple[Any, Any, Any, Any]:
    """The problem, u, w and the loss per row."""
    rng = np.random.default_rng(0)
    shape = (SOURCES, PER_SOURCE, size.context + 1)
    inner = jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8))
    outer = jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8)).reshape((-1, shape[-1]))
    loss = partial(_transformer.losses, heads=size.heads, remat=remat)
    problem = tasks.mixture(loss, trusted=outer, sources=inner)
    return problem, tasks.uniform_weights(SOURCES), _transformer.init(size, jax.random.key(0)), loss


def training(problem: Any, u: Any, w: Any) -> tuple[Any, tuple[Any, ...]]:
    """A plain step, compiled, and its arguments."""
    tx = optax.adam(1e-3)

    def step(u: Any, w: Any, tx_state: Any, batch: Any) -> Any:
        gradient = jax.grad(problem.inner, argnums=1)(u, w, batch)
        updates, tx_state = tx.update(gradient, tx_state, w)
        return optax.apply_updates(w, updates), tx_state

    arguments = u, w, tx.init(w), problem.inner_data
    return jax.jit(step).lower(*arguments).compile(), arguments


def outer_step(method: Any, problem: Any, u: Any, w: Any) -> tuple[Any, tuple[Any, ...]]:
    """A step of a method, compiled, and its arguments. The data are arguments, not constants."""
    init = jax.jit(lambda u, w: method.init(problem, u, w, jax.random.key(0)))

    def step(state: Any, outer: Any, inner: Any) -> Any:
        given = bilevel.BilevelProblem(problem.outer, problem.inner, outer, inner, problem.geometry)
        return method.step(given, state)

    arguments = init(u, w), problem.outer_data, problem.inner_data
    return jax.jit(step).lower(*arguments).compile(), arguments


def memory(compiled: Any) -> dict[str, int]:
    """Bytes of a compiled step."""
    found = compiled.memory_analysis()
    temporary = found.temp_size_in_bytes
    return {
        "temporary": temporary,
        "all": temporary + found.argument_size_in_bytes + found.output_size_in_bytes,
    }


def resident(name: str, size: Size, remat: bool) -> float:
    """Bytes at the peak of a process that takes steps, from its end of compiling on."""
    here = str(Path(__file__).parent)
    call = f"take_steps({name!r}, networks.Size(*{tuple(size)}), {remat})"
    code = f"import sys\nsys.path.insert(0, {here!r})\nimport networks\nnetworks.{call}"
    return in_a_process(code).peak_bytes


def take_steps(name: str, size: Size, remat: bool) -> None:
    """Three steps of a method, or of plain training; the peak of memory counts from the first."""
    compiled, given = steps_of([name], size, remat)[name]
    jax.clear_caches()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    for _ in range(3):
        jax.block_until_ready(compiled(*given))


def steps_of(names: list[str], size: Size, remat: bool) -> dict[str, tuple[Any, Any]]:
    """The compiled steps with their arguments; "training" is a plain one."""
    problem, u, w, _ = build(size, remat)
    found, known = {}, methods()
    for name in names:
        if name == "training":
            found[name] = training(problem, u, w)
        else:
            found[name] = outer_step(known[name], problem, u, w)
    return found


def measure(
    size: Size, repeats: int, names: list[str] | None = None, *, processes: bool = False
) -> dict[str, Any]:
    """Time and memory of each method over those of a training step without checkpoints.

    `repeats` is that of the times; 0 means none. With `processes`, the peak of each is measured.
    """
    found: dict[str, Any] = {}
    plain, arguments = steps_of(["training"], size, False)["training"]
    floor, floor_memory = partial(plain, *arguments), memory(plain)
    names = list(methods()) if names is None else names
    for remat in (False, True):
        for name, (compiled, given) in steps_of(["training"] * remat + names, size, remat).items():
            used = memory(compiled)
            row = {key: used[key] / floor_memory[key] for key in used}
            if repeats:
                one, other = cpu_seconds(partial(compiled, *given), floor, repeats=repeats)
                row["time"] = one / other
            if processes:
                row["resident"] = resident(name, size, remat)
            found[name + ", by layer" * remat] = row
            print(name, remat, row, flush=True)
    times = {"seconds": cpu_seconds(floor, repeats=repeats)[0]} if repeats else {}
    peak = {"resident": resident("training", size, False)} if processes else {}
    parameters = _transformer.count(_transformer.init(size, jax.random.key(0)))
    return {
        "settings": size._asdict()
        | {"parameters": parameters, "sources": SOURCES, "rows_per_source": PER_SOURCE},
        "training_step": floor_memory | times | peak,
        "methods": found,
    }


def draw(measured: dict[str, Any]) -> None:
    """Times and memories of the steps, without and with `jax.checkpoint` around each layer."""
    found, floor = measured["methods"], measured["training_step"]
    figure, axes = panels(1, 3, (15, 4.2), sharey=True)
    names = [name for name in found if not name.endswith(", by layer")]
    place = np.arange(len(names) + 1)
    for axis, (key, unit, title) in zip(
        axes,
        (
            ("time", 1, "CPU time of a step / a plain training step"),
            ("temporary", 1, "temporary memory of a step / a plain training step"),
            ("resident", 1e6, "peak of the process (MB)"),
        ),
        strict=True,
    ):
        plain = [floor[key] / unit if key == "resident" else 1.0]
        plain += [found[name][key] / unit for name in names]
        layered = [found[f"{name}, by layer"][key] / unit for name in ("training", *names)]
        axis.barh(place - 0.2, plain, 0.4, label="plain")
        axis.barh(place + 0.2, layered, 0.4, label="`jax.checkpoint` around each layer")
        axis.axvline(plain[0], color="k", lw=1)
        axis.set(xlabel=title)
    axes[0].set_yticks(place, ["training", *names])
    axes[0].invert_yaxis()
    axes[1].axvline(4, color="k", ls=":", lw=1)
    axes[0].legend(frameon=False, loc="lower right")
    save(figure, IMAGES / "networks.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    measured = measure(QUICK if quick else FULL, 3, processes=sys.platform == "linux")
    write(__file__, measured, full=not quick)
    if not quick:
        draw(measured)
