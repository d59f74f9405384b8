"""L3: one outer step of hyper-cleaning with ResNet-18 and 100 unrolled inner steps, in little memory.

Li, Gu and Huang (2020), "Improved bilevel model: fast and optimal algorithm with theoretical
guarantee", appendix C.1: the model of Table 1 is ResNet-18, with 100 inner steps at each outer step.
Training it to the end wants an accelerator (see `cleaning.py`, which has smaller models), but one
outer step at a reduced batch shows that the published step is what the library computes, and that it
fits in memory: 100 BiG-SAM steps with t = s = 0.001 and alpha_k = k^-0.25 on the summed losses, as
printed, and the hypergradient in the weights of the rows by checkpointed reverse mode.

Unrolled without checkpoints the steps keep 100 copies of the parameters; with checkpoints every tenth
step, some twenty. The claim compares the memory of the compiled program with the former. Rows:
scikit-learn's digits, 8 x 8 pixels, half of the labels wrong; a batch of four training and four
validation rows.

Quick: a net of the same depth with an eighth of the filters. Full: ResNet-18, 11172810 parameters.
"""

import resource
import sys
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

ROWS, INNER_STEPS, STEP = 4, 100, 0.001


def problem_of(model: tasks.models.Model) -> bilevel.BilevelProblem:
    """The paper's sums, which are the means of the task times the number of rows."""
    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x[: 2 * ROWS] / 16, jnp.float32), np.array(y[: 2 * ROWS])
    y[: ROWS // 2] = (y[: ROWS // 2] + 1) % 10
    labels = jnp.asarray(y, jnp.int32)
    parts = x[:ROWS], labels[:ROWS], x[ROWS:], labels[ROWS:]
    return tasks.hyper_cleaning(*parts, model.predict, l2=0.0)


def measure(full: bool) -> dict[str, Any]:
    """One hypergradient, its memory and that of the parameters."""
    width = 64 if full else 8
    model = resnet(1, 8, 10, key=jax.random.key(0), width=width)
    problem = problem_of(model)
    # The steps of the paper are on sums of the losses.
    step = STEP * ROWS
    inner = bilevel.BiGSAM(step, step, INNER_STEPS, bilevel.printed_weighting())
    estimator, u = bilevel.ITD("checkpointed"), jnp.zeros(ROWS)
    streams = bilevel.Streams(
        *(
            bilevel.Stream(bilevel.FullBatch(), data, ())
            for data in (problem.outer_data, problem.inner_data)
        )
    )

    def hypergradient(u: Any, w: Any) -> Any:
        state = estimator.init(problem, inner, u, w)
        return estimator.estimate(problem, inner, u, w, state, streams)[0].grad

    compiled = jax.jit(hypergradient).lower(u, model.w0).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    found = np.asarray(compiled(u, model.w0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.w0))
    return {
        "settings": {
            "rows": [ROWS, ROWS],
            "pixels": 64,
            "width": width,
            "inner_steps": INNER_STEPS,
            "step": STEP,
        },
        "seeds": [0],
        "parameters": parameters,
        "temporary_megabytes": analysis.temp_size_in_bytes / 1e6,
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
    grad = np.array(measured["hypergradient"])
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
            f"Batches of {ROWS} rows of 8 x 8 pixels. The process took "
            f"{measured['process_megabytes']:.0f} MB at most. The derivatives in the weights of the "
            "rows, of which the first two have wrong labels, are "
            f"{', '.join(f'{x:.1e}' for x in grad)}.",
        )
    ]


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
