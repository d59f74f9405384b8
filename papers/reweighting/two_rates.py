"""R3, R12: what each of the two rates does, on the toy mixture and on MNIST.

Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization", section 2.4 on
the sparsity of Algorithm 2: "this effect is worsened when taking a higher learning rate eta for the
update of w, and is mitigated by taking small learning rates rho that lead to slow convergence to
better solutions". The paper has no numbers for it. We take one rate at a time:

- on the mixture of section 2.4, mirror descent with the exact linear solve, all pairs of three eta and
  four rho;
- on MNIST with 90 % wrong labels, SOBA with inner batches drawn by weight, a map over (eta, rho) with
  the effective sample size, the accuracy on validation rows as left and on test rows retrained, and
  the iterations until the run is within 0.05 of the perfect weights.

By Theorems 1 and 2 of the paper what counts is the ratio eta / rho: so a smaller rho at a fixed eta
should make the weights *sparser*.

The map on MNIST needs BILEVEL_DATA.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import reparametrised
from hyper_cleaning import RATE, N, baselines, cleaning
from matplotlib.figure import Figure
from soba_steps import by_weight, drop_empty_pixels, judge_all, run_grid

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
from _frame import Claim, panels

ETAS, RHOS = (1e-3, 1e-2, 1e-1), (5e-2, 2e-2, 1e-3, 1e-4)
MNIST_ETAS, MNIST_RHOS = np.array([1e-4, 1e-3, 1e-2]), np.array([1e-2, 1e-3, 1e-4])
MARKS = np.unique(np.geomspace(10, 12_000, 31).astype(int))
REACHED = 0.05  # below the accuracy of the perfect weights


def toy(seeds: int, steps: int) -> dict[str, Any]:
    """Final effective sample size and errors, `(rho, seed, eta)`."""
    _, found = reparametrised.run_grid(seeds, steps, ETAS, RHOS, ("mirror",))
    runs = [found["mirror", rho] for rho in RHOS]
    return {
        name: np.stack([getattr(run, name)[:, :, -1] for run in runs])
        for name in ("ess", "current", "retrained")
    }


def mnist(seed: int) -> dict[str, Any]:
    """The map over (eta, rho), one entry per pair."""
    data = drop_empty_pixels(cleaning(seed))
    eta, rho = (x.ravel() for x in np.meshgrid(MNIST_ETAS, MNIST_RHOS, indexing="ij"))
    runs = run_grid(data, by_weight, eta, rho, MARKS, jax.random.key(seed))
    judged = judge_all(data, runs)
    perfect = baselines(data)["perfect"]
    good = runs.curves["validation"] >= perfect["validation"] - REACHED
    return {
        "perfect": perfect,
        "eta": eta,
        "rho": rho,
        "ess": [run["ess"] for run in judged],
        "validation as left": [run["as_left"]["validation"] for run in judged],
        "test retrained": [run["retrained"]["test"] for run in judged],
        "iterations": [int(MARKS[g.argmax()]) if g.any() else None for g in good.T],
    }


def measure(full: bool) -> dict[str, Any]:
    """Toy: 20 seeds and 100000 steps in full. MNIST: three seeds in full, one in quick."""
    seeds, steps = (20, 100_000) if full else (5, 20_000)
    with jax.enable_x64(True):
        found = toy(seeds, steps)
    with jax.enable_x64(False):
        maps = [mnist(seed) for seed in range(3 if full else 1)]
    settings = {"toy": {"eta": ETAS, "rho": RHOS, "steps": steps}, "mnist": {"n": N, "rate": RATE}}
    return {"settings": settings, "seeds": seeds, "toy": found, "mnist": maps}


def draw(measured: dict[str, Any]) -> Figure:
    """The effective sample size of the toy, and the three numbers of the map."""
    figure, axes = panels(1, 4, (16, 4))
    for k, eta in enumerate(ETAS):
        ess = measured["toy"]["ess"][:, :, k]
        axes[0].loglog(RHOS, np.median(ess, axis=1), "o-", label=f"$\\eta$ = {eta:g}")
        axes[0].fill_between(RHOS, ess.min(axis=1), ess.max(axis=1), alpha=0.2)
    axes[0].set(xlabel="inner step $\\rho$", ylabel="effective sample size", title="toy mixture")
    axes[0].legend()
    found, shape = measured["mnist"][0], (len(MNIST_ETAS), len(MNIST_RHOS))
    names = ("ess", "validation as left", "test retrained")
    for axis, name in zip(axes[1:], names, strict=True):
        values = np.reshape(found[name], shape)
        shown = np.log10(values) if name == "ess" else values
        image = axis.imshow(shown, cmap="viridis", aspect="auto")
        style = ".0f" if name == "ess" else ".3f"
        for i, j in np.ndindex(*shape):
            colour = "k" if image.norm(shown[i, j]) > 0.6 else "w"
            text = format(values[i, j], style)
            axis.text(j, i, text, ha="center", va="center", color=colour)
        title = {"ess": "effective sample size"}.get(name, f"accuracy, {name}")
        axis.set(title=f"MNIST: {title}", xlabel="$\\rho$", ylabel="$\\eta$")
        axis.set_xticks(range(shape[1]), [f"{x:g}" for x in MNIST_RHOS])
        axis.set_yticks(range(shape[0]), [f"{x:g}" for x in MNIST_ETAS])
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """The two halves of the sentence, on both problems."""
    ess = np.median(measured["toy"]["ess"], axis=1)  # (rho, eta)
    errors = np.median(measured["toy"]["retrained"], axis=1)
    shape = (len(MNIST_ETAS), len(MNIST_RHOS))
    sizes = np.mean([np.reshape(x["ess"], shape) for x in measured["mnist"]], axis=0)  # (eta, rho)
    again, left = (
        np.mean([np.reshape(x[key], shape) for x in measured["mnist"]], axis=0)
        for key in ("test retrained", "validation as left")
    )
    times = [["-" if t is None else t for t in x["iterations"]] for x in measured["mnist"]]

    def table(values: np.ndarray, digits: int = 1) -> str:
        return "; ".join(str([round(float(x), digits) for x in row]) for row in values)

    return [
        Claim(
            "R3",
            "Toy: a higher rate of the weights makes them sparser, at every rate of the model.",
            "worsened when taking a higher learning rate eta",
            f"median effective sample size for eta = {list(ETAS)}: {table(ess)} (rho = {list(RHOS)})",
            bool((np.diff(ess, axis=1) < 0).all()),
        ),
        Claim(
            "R3",
            "Toy: a smaller rate of the model, at a fixed rate of the weights, makes them less "
            "sparse.",
            "mitigated by taking small learning rates rho",
            f"median effective sample size for rho = {list(RHOS)}: {table(ess.T)} (eta = "
            f"{list(ETAS)})",
            bool((np.diff(ess, axis=0) > 0).all()),
            "It is the other way round: a slow model is the case of Theorem 2. The errors of a "
            f"retrained model are {table(errors.T, 3)}.",
        ),
        Claim(
            "R12",
            "MNIST: at a fixed rate of the model, a higher rate of the weights makes them sparser.",
            "worsened when taking a higher learning rate eta",
            f"effective sample size for eta = {MNIST_ETAS.tolist()}: {table(sizes.T)} (rho = "
            f"{MNIST_RHOS.tolist()})",
            bool((np.diff(sizes, axis=0) < 0).all()),
        ),
        Claim(
            "R12",
            "MNIST: at a fixed rate of the weights, a smaller rate of the model makes them less "
            "sparse.",
            "mitigated by taking small learning rates rho",
            f"effective sample size for rho = {MNIST_RHOS.tolist()}: {table(sizes)} (eta = "
            f"{MNIST_ETAS.tolist()})",
            bool((np.diff(sizes, axis=1) > 0).all()),
            f"Accuracies on validation rows as left: {table(left, 3)}; test accuracies of a "
            f"retrained model: {table(again, 3)}; iterations until within "
            f"{REACHED} of the perfect weights: {times}, in the order of eta, then rho.",
        ),
    ]


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
