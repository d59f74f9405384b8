"""What a person sees of a run: a few lines of text, and in a notebook a small picture of the trace."""

import html
from collections.abc import Callable
from typing import Any

import numpy as np

from ._text import visible

RESIDUALS = {
    "outer": "outer_residual",
    "inner": "inner_residual",
    "linear": "linear_residual",
}
CALLS = {
    "outer_grad": "outer gradients",
    "inner_grad": "inner gradients",
    "hvp": "Hessian-vector products",
    "mixed": "mixed products",
}
_ADVICE = {
    "successful": "",
    "outer_max_steps_reached": (
        "go on with solve(..., state=solution.state, num_steps=more), or loosen tol"
    ),
    "outer_divergence": "start anew with smaller steps, or with 'auto' step sizes",
    "inner_divergence": (
        "give the inner solver a smaller step, or use GradientInner('auto', num_steps)"
    ),
    "inner_max_steps_reached": "give the inner solver more steps, or a looser tolerance",
    "nonfinite": (
        "take smaller steps, or look where the objectives are undefined; u, w and state are the last "
        "finite ones"
    ),
    "linear_divergence": (
        "damp the linear system, or choose another linear solver or a smaller step on v"
    ),
    "lower_level_not_minimal": "start anew from the w that `check_lower_level` returns",
    "negative_curvature": "solve the inner problem further, or damp",
    "not_contracting": "use step_size='auto' in the linear solver, or damp",
    "loader_exhausted": "go on with solve(..., state=solution.state) and a loader with more batches",
}


class Run:
    """What `solve` knows of a run and a `Solution` shows, but that is no result.

    Attributes:
        algorithm: the name of its class.
        num_steps: the number of steps that was asked for.
        tolerances: for the three residuals, or `None`.
        stopped: whether a callback ended the run.
        seconds: of wall-clock time, compilation included.
        grown: what grew, in words, if the run blew up; or the lower inner minimum that was found.
        values: computes `(F, f)` at the solution on all data; f is `None` for a fixed-point problem.
    """

    def __init__(
        self,
        algorithm: str,
        num_steps: int,
        tolerances: tuple[float, float, float] | None,
        stopped: bool,
        seconds: float,
        grown: str,
        values: Callable[[Any, Any], tuple[Any, Any]],
    ):
        self.algorithm, self.num_steps, self.tolerances = algorithm, num_steps, tolerances
        self.stopped, self.seconds, self.grown, self.values = stopped, seconds, grown, values

    def __reduce__(self) -> tuple[Any, ...]:
        # Objectives are often lambdas, which do not pickle; the values are then not known.
        kept = (self.algorithm, self.num_steps, self.tolerances, self.stopped, self.seconds)
        return Run, (*kept, self.grown, unknown)


def unknown(u: Any, w: Any) -> tuple[None, None]:
    """The values of a run that was read from a file."""
    del u, w
    return None, None


def preformatted(text: str) -> str:
    """Text for a notebook, line by line."""
    shown = html.escape(visible(text, keep="\n"))
    return f"<pre>{shown}</pre>"


def as_text(solution: Any, name: str, message: str) -> str:
    """Why the run ended, the residuals, the values, the cost, the variables, what to do next."""
    return "\n".join(
        f"{label:<10} {text}".rstrip() for label, text in _lines(solution, name, message)
    )


def as_html(solution: Any, name: str, message: str) -> str:
    """The same as a table, with the trace drawn below it."""
    rows = "".join(
        f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(label)}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for label, text in _lines(solution, name, message)
    )
    return f"<table>{rows}</table>{_picture(solution.trace)}"


def _lines(solution: Any, name: str, message: str) -> list[tuple[str, str]]:
    run: Run | None = solution.run
    done = solution.stats.get("num_steps", 0)
    title = "Solution" if run is None else f"{run.algorithm}: {_ending(run, solution, name)}"
    lines = [("Solution", title if run is not None else f"{name} after {done} steps")]
    if name != "successful":
        lines.append(("reason", message))
    if run is not None and run.grown:
        lines.append(("", run.grown))
    trace = solution.trace
    if trace and len(trace["step"]):
        tolerances = run.tolerances if run is not None else None
        for i, (label, column) in enumerate(RESIDUALS.items()):
            text = f"{label} {trace[column][-1]:.2e}"
            if tolerances is not None:
                met = trace[column][-1] <= tolerances[i]
                text += f" ({'meets' if met else 'above'} its tolerance {tolerances[i]:.0e})"
            lines.append(("residuals" if i == 0 else "", text))
    lines.append(("values", _values(solution)))
    calls = solution.stats.get("calls")
    if calls is not None:
        cost = ", ".join(f"{calls[k]} {words}" for k, words in CALLS.items() if calls[k])
        lines.append(("cost", cost + ("" if run is None else f"; {run.seconds:.2f} seconds")))
    lines += [("u", _shapes(solution.u)), ("w", _shapes(solution.w))]
    if advice := _ADVICE.get(name, ""):
        lines.append(("next", advice))
    return lines


def _ending(run: Run, solution: Any, name: str) -> str:
    done, asked = solution.stats.get("num_steps", 0), run.num_steps
    if solution.stats.get("converged"):
        return f"converged at step {done} of {asked}: every residual met its tolerance"
    if name != "successful":
        return f"{name} at step {done} of {asked}"
    if run.stopped:
        return f"stopped by a callback at step {done} of {asked}"
    if not len(solution.trace["step"]):
        return f"made no step: {done} were made before, and {asked} were asked for in all"
    return f"made all {asked} steps; no tolerance was set, so the residuals say how far it came"


def _values(solution: Any) -> str:
    outer, inner = (
        (None, None) if solution.run is None else solution.run.values(solution.u, solution.w)
    )
    if outer is None:
        trace = solution.trace
        known = trace and len(trace["step"])
        return f"F = {trace['outer_value'][-1]:.6g} (last step)" if known else "not known"
    text = f"F(u, w) = {float(outer):.6g}"
    return text if inner is None else f"{text}, f(u, w) = {float(inner):.6g}"


def _shapes(tree: Any) -> str:
    import jax  # here, because the summaries of reweighting need only `preformatted`

    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "shape") and hasattr(x, "dtype")]
    sizes = sum(int(np.prod(x.shape)) for x in leaves)
    shown = ", ".join(f"{x.dtype}{list(x.shape)}" for x in leaves[:4])
    if len(leaves) == 1:
        return shown
    return f"{len(leaves)} arrays of {sizes} numbers: {shown}{', ...' if len(leaves) > 4 else ''}"


_COLOURS = {"outer_residual": "#1f77b4", "inner_residual": "#ff7f0e", "linear_residual": "#2ca02c"}
_WIDTH, _HEIGHT = 360, 120


def _picture(trace: dict[str, np.ndarray]) -> str:
    """The three residuals over the steps, on a logarithmic scale, as SVG."""
    if not trace or len(trace["step"]) < 2:
        return ""
    picked = np.unique(np.linspace(0, len(trace["step"]) - 1, 200).astype(int))
    steps = np.asarray(trace["step"], float)[picked]
    curves = {}
    for name in _COLOURS:
        values = np.asarray(trace[name], float)[picked]
        good = np.isfinite(values) & (values > 0)
        if good.sum() > 1:
            curves[name] = steps[good], np.log10(values[good])
    if not curves:
        return ""
    low = min(y.min() for _, y in curves.values())
    high = max(max(y.max() for _, y in curves.values()), low + 1e-9)
    left, right = steps[0], max(steps[-1], steps[0] + 1)
    lines, labels = [], []
    for i, (name, (x, y)) in enumerate(curves.items()):
        xs = 50 + (x - left) / (right - left) * (_WIDTH - 60)
        ys = 10 + (high - y) / (high - low) * (_HEIGHT - 40)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))
        lines.append(f"<polyline fill='none' stroke='{_COLOURS[name]}' points='{points}'/>")
        labels.append(
            f"<text x='{50 + 90 * i}' y='{_HEIGHT - 4}' fill='{_COLOURS[name]}'>"
            f"{name.replace('_', ' ')}</text>"
        )
    axis = (
        f"<text x='0' y='16'>1e{high:.1f}</text><text x='0' y='{_HEIGHT - 28}'>1e{low:.1f}</text>"
        f"<text x='{_WIDTH - 70}' y='{_HEIGHT - 18}'>step {steps[-1]:.0f}</text>"
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{_HEIGHT}' "
        f"font-family='sans-serif' font-size='10' role='img' aria-label='residuals over the steps'>"
        f"{axis}{''.join(lines)}{''.join(labels)}</svg>"
    )
