"""L3: one outer step of hyper-cleaning with ResNet-18 and 100 unrolled inner steps, in little memory.

Li, Gu and Huang (2020), "Improved bilevel model: fast and optimal algorithm with theoretical
guarantee", appendix C.1: the model of Table 1 is ResNet-18, with 100 inner steps at each outer step.
Training it to the end wants an accelerator (see `cleaning.py`, which has smaller models), but one
outer step at a reduced batch shows that the published step is what the library computes, and that it
fits in memory: 100 BiG-SAM steps with t = s = 0.001 and alpha_k = k^-0.25 on the summed losses, as
printed, and the hypergradient in the weights of the rows by checkpointed reverse mode.

Unrolled without checkpoints the steps keep 100 copies of the parameters; with checkpoints every tenth
step, some twenty. The claim compares the memory of the compiled program with the former. Rows:
scikit-learn's digits, half of the labels wrong.

Quick: a net of the same depth with an eighth of the filters, four training and four validation rows
of 8 x 8 pixels. Full: ResNet-18, 11172810 parameters, two rows each; and, compiled only, the memory of
the same step with images of 32 x 32 pixels, which would take an hour on one core.
"""

import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import bilevel
from bilevel import tasks

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
from _frame import Claim, panels
from _resnet import resnet

INNER_STEPS, STEP = 100, 0.001
SIZES = {False: (8, 4), True: (64, 2)}  # filters, rows
LARGER = 4  # times each pixel in both directions, where the step is only compiled


def problem_of(model: tasks.models.Model, times: int, rows: int) -> bilevel.BilevelProblem:
    """Training and validation rows of digits; the first half of the training labels is wrong."""
    x, y = load_digits(return_X_y=True)
    images = np.kron(x[: 2 * rows].reshape(-1, 8, 8) / 16, np.ones((times, times)))
    x, y = jnp.asarray(images.reshape(2 * rows, -1), jnp.float32), np.array(y[: 2 * rows])
    y[: rows // 2] = (y[: rows // 2] + 1) % 10
    labels = jnp.asarray(y, jnp.int32)
    parts = x[:rows], labels[:rows], x[rows:], labels[rows:]
    return tasks.hyper_cleaning(*parts, model.predict, l2=0.0)


def compiled_step(width: int, times: int, rows: int) -> tuple[Any, tuple[Any, Any]]:
    """The hypergradient of one outer step, compiled, and what it is called with."""
    model = resnet(1, 8 * times, 10, key=jax.random.key(0), width=width)
    problem = problem_of(model, times, rows)
    # The steps of the paper are on sums of the losses, which are the means of the task times the rows.
    step = STEP * rows
    inner = bilevel.BiGSAM(step, step, INNER_STEPS, bilevel.printed_weighting())
    estimator, u = bilevel.ITD("checkpointed"), jnp.zeros(rows)
    streams = bilevel.Streams(
        *(
            bilevel.Stream(bilevel.FullBatch(), data, ())
            for data in (problem.outer_data, problem.inner_data)
        )
    )

    def hypergradient(u: Any, w: Any) -> Any:
        state = estimator.init(problem, inner, u, w)
        return estimator.estimate(problem, inner, u, w, state, streams)[0].grad

    return jax.jit(hypergradient).lower(u, model.w0).compile(), (u, model.w0)


def temporary_megabytes(compiled: Any) -> float:
    """What a compiled function needs beyond its arguments and results."""
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 1e6


def measure(full: bool) -> dict[str, Any]:
    """One hypergradient, its memory and that of the parameters; in full, memory with larger images."""
    width, rows = SIZES[full]
    larger = {}
    if full:
        compiled, _ = compiled_step(width, LARGER, rows)
        larger = {"pixels": (8 * LARGER) ** 2, "megabytes": temporary_megabytes(compiled)}
        del compiled
    compiled, args = compiled_step(width, 1, rows)
    start = time.perf_counter()
    found = np.asarray(compiled(*args))
    seconds = time.perf_counter() - start
    parameters = sum(leaf.size for leaf in jax.tree.leaves(args[1]))
    return {
        "settings": {
            "rows": [rows, rows],
            "pixels": 64,
            "width": width,
            "inner_steps": INNER_STEPS,
            "step": STEP,
        },
        "seeds": [0],
        "seconds": seconds,
        "parameters": parameters,
        "temporary_megabytes": temporary_megabytes(compiled),
        "larger images": larger,
        "parameter_megabytes": 4 * parameters / 1e6,
        "process_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "hypergradient": found,
    }


def draw(measured: dict[str, Any]) -> Figure:
    """Memory: what all steps would keep, and what the program takes."""
    figure, axis = panels(1, 1, (6, 3.4))
    vector = measured["parameter_megabytes"]
    bars = {
        "parameters": vector,
        "checkpointed\nprogram": measured["temporary_megabytes"],
        f"{INNER_STEPS} copies of\nthe parameters": INNER_STEPS * vector,
    }
    axis.bar(list(bars), list(bars.values()), color=["0.7", "C0", "C1"], width=0.6)
    axis.set(ylabel="memory, MB", title=f"one outer step, {measured['parameters']} parameters")
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """It is computed, and it fits."""
    grad, settings = np.array(measured["hypergradient"]), measured["settings"]
    rows, larger = settings["rows"][0], measured["larger images"]
    used, vector = measured["temporary_megabytes"], measured["parameter_megabytes"]
    return [
        Claim(
            "L3",
            f"One outer step of an 18-layer residual net with {INNER_STEPS} unrolled, checkpointed "
            "inner steps fits in memory: less than half of what the iterates of all steps would take.",
            f"ResNet-18, {INNER_STEPS} inner steps (memory is not reported)",
            f"{used:.0f} MB for {measured['parameters']} parameters ({used / vector:.0f} copies of "
            f"them; {INNER_STEPS} would take {INNER_STEPS * vector:.0f} MB)",
            bool(np.isfinite(grad).all() and np.abs(grad).max() > 0 and used < 50 * vector),
            f"Batches of {rows} rows of {settings['pixels']} pixels; the step took "
            f"{measured['seconds']:.0f} s, without compiling. "
            + (
                f"With {larger['pixels']} pixels (compiled, not run) it needs "
                f"{larger['megabytes']:.0f} MB. "
                if larger
                else ""
            )
            + "The process took "
            f"{measured['process_megabytes']:.0f} MB at most. The derivatives in the weights of the "
            f"rows, of which the first {rows // 2} have wrong labels, are "
            f"{', '.join(f'{x:.1e}' for x in grad)}.",
        )
    ]


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
