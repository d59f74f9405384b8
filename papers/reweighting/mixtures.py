"""R12: a language model, eleven sources of real text and code, a small target set of one style.

Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization", motivate their
problem by a language model that is trained on many sources of unequal quality and judged by few texts
of high quality. Their summary asks whether the sparsity of warm-started weights appears with networks
and minibatches. Here a byte-level transformer is trained on text that comes with Python, its packages
and the system (`papers/_texts.py`); one source is the bytes of all others in random order. The target
is what packages say of themselves (the long description in their metadata): few trusted packages, and
test packages that no method sees.

A mixture is learned on a small proxy model, by three methods; the report says how many gradients of
rows and CPU seconds each takes, and bilevel has the most:

- bilevel: Adam on the proxy, one step per outer step, and the derivative through that step (`ITD`),
  with `tasks.mixture` and batches from the host; the mixture is the mean of u over the second half;
- "DoReMi-style": excess losses over a reference model decide (Xie et al. 2023), without the target;
- "RegMix-style": short runs on random mixtures, and a ridge regression of their loss on the trusted
  text (Liu et al. 2024).

The large model is then trained from scratch on each mixture, on the uniform and the proportional one
and on the trusted text alone; for the uniform and the learned mixture also with the last 15 % of the
steps on the trusted text. All have the same number of steps. There is one seed.
"""

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.linear_model import RidgeCV

import bilevel
from bilevel import tasks

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
import _texts
import _transformer
from _frame import Claim, panels
from _transformer import Size, windows

FULL = {
    "large": Size(128, 5, 4, 128),
    "proxy": Size(48, 2, 4, 64),
    "bytes_per_source": 400_000,
    "trusted_bytes": 30_000,
    "test_rows": 256,
    "steps": 250,
    "outer_steps": 300,
    "runs": 24,
    "run_steps": 100,
}
QUICK = {
    "large": Size(32, 1, 2, 32),
    "proxy": Size(16, 1, 2, 32),
    "bytes_per_source": 40_000,
    "trusted_bytes": 8_000,
    "test_rows": 128,
    "steps": 200,
    "outer_steps": 200,
    "runs": 12,
    "run_steps": 60,
}
ROWS, ROWS_PER_SOURCE, TRUSTED_ROWS = 8, 2, 16
TUNED = 0.15  # the part of the steps that a fine-tuned model makes on the trusted text
OUTER_RATE, RATE, PROXY_RATE = 0.03, 1e-3, 2e-3


def measure(full: bool) -> dict[str, Any]:
    """The mixtures, what they cost, and the large models trained on them."""
    settings = FULL if full else QUICK
    texts = _texts.read(settings["bytes_per_source"])
    trusted, test = _texts.target(settings["trusted_bytes"])
    names = list(texts)
    learned = {
        "bilevel": by_bilevel(settings, texts, trusted),
        "DoReMi-style": by_excess_loss(settings, texts),
        "RegMix-style": by_regression(settings, texts, trusted),
    }
    uniform = np.full(len(names), 1 / len(names))
    sizes = np.array([_texts.size(name) for name in names], float)
    mixtures = {
        "uniform": uniform,
        "proportional": sizes / sizes.sum(),
        **{name: found["mixture"] for name, found in learned.items()},
    }
    data = [windows(text, settings["large"].context) for text in texts.values()]
    target = windows(trusted, settings["large"].context)
    rows = windows(test, settings["large"].context)
    rows = jnp.asarray(rows[:: max(1, len(rows) // settings["test_rows"])][: settings["test_rows"]])
    runs = {}
    for name, mixture in mixtures.items():
        tuned = target if name in ("uniform", "bilevel") else None
        for kind, found in train(settings, data, mixture, rows, tuned).items():
            runs[name + kind] = found
    runs["trusted only"] = train(settings, [target], np.ones(1), rows, None)[""]
    per_row = {name: run.pop("per_row") for name, run in runs.items()}
    best = "bilevel"
    return {
        "settings": {
            name: x._asdict() if isinstance(x, Size) else x for name, x in settings.items()
        }
        | {
            "parameters": _transformer.count(
                _transformer.init(settings["large"], jax.random.key(0))
            ),
            "parameters_of_proxy": _transformer.count(
                _transformer.init(settings["proxy"], jax.random.key(0))
            ),
            "rates": {"large": RATE, "proxy": PROXY_RATE, "outer": OUTER_RATE},
            "rows": ROWS,
            "rows_per_source": ROWS_PER_SOURCE,
            "trusted_rows": TRUSTED_ROWS,
        },
        "seeds": 1,
        "sources": names,
        "mixtures": mixtures,
        "searches": {
            name: {key: x for key, x in found.items() if key not in ("mixture", "path")}
            for name, found in learned.items()
        },
        "path": {
            "step": learned["bilevel"]["path"][0],
            "u": learned["bilevel"]["path"][1],
        },
        "effective_sources": 1 / np.sum(np.square(learned["bilevel"]["path"][1][-1])),
        "runs": runs,
        "gains": {
            name: [float(np.mean(x := per_row[name] - per_row[best])), float(_error(x))]
            for name in runs
            if name != best
        },
        "gain_when_tuned": [
            float(np.mean(x := per_row["uniform, tuned"] - per_row["bilevel, tuned"])),
            float(_error(x)),
        ],
    }


def _error(x: np.ndarray) -> float:
    return np.std(x, ddof=1) / len(x) ** 0.5


def by_bilevel(settings: dict[str, Any], texts: Any, trusted: np.ndarray) -> dict[str, Any]:
    """`bilevel.solve` on `tasks.mixture`, with batches from the host at both levels."""
    size: Size = settings["proxy"]
    sources = [windows(text, size.context) for text in texts.values()]
    target = [windows(trusted, size.context)]
    centred = optax.stateless(lambda g, _: jax.tree.map(lambda x: x - jnp.mean(x), g))
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(optax.adam(PROXY_RATE), 1),
        bilevel.ITD(),
        optax.chain(centred, optax.adam(OUTER_RATE, b2=0.99)),
        warm_start=True,
        inner_sampler=bilevel.FromLoader(tasks.draw_by_source(sources, ROWS_PER_SOURCE)),
        outer_sampler=bilevel.FromLoader(tasks.draw_mixture(target, [1.0], TRUSTED_ROWS, seed=1)),
    )
    problem = tasks.mixture(partial(_transformer.losses, heads=size.heads))
    start = _transformer.init(size, jax.random.key(0))
    path = _Path()
    began = time.process_time()
    solution = bilevel.solve(
        problem,
        method,
        tasks.uniform_weights(len(sources)),
        start,
        num_steps=settings["outer_steps"],
        chunk_size=10,
        callbacks=[path],
    )
    u = np.stack(path.u)
    return {
        "mixture": u[len(u) // 2 :].mean(0),
        "path": (path.step, u),
        "cpu_seconds": time.process_time() - began,
        "oracle_calls": solution.stats["calls"],
        # A gradient, a product and a mixed product on the same rows count one each.
        "gradients_of_rows": settings["outer_steps"]
        * (4 * ROWS_PER_SOURCE * len(sources) + TRUSTED_ROWS),
    }


class _Path(bilevel.AbstractCallback):
    """The weights at the end of each chunk."""

    def __init__(self) -> None:
        self.step: list[int] = []
        self.u: list[np.ndarray] = []

    def __call__(self, chunk: bilevel.Chunk) -> None:
        self.step.append(chunk.step)
        self.u.append(np.asarray(chunk.state.u))


def by_excess_loss(settings: dict[str, Any], texts: Any) -> dict[str, Any]:
    """Exponentiated steps on each source's excess loss over a reference; the mean over the steps.

    Xie et al. (2023), "DoReMi: Optimizing data mixtures speeds up language model pretraining",
    Algorithm 1 [xie2023][], with Adam, and batches with as many rows of each source.
    """
    size: Size = settings["proxy"]
    sources, began = [windows(text, size.context) for text in texts.values()], time.process_time()
    count, first = len(sources), settings["runs"] * settings["run_steps"] // 3
    batches = tasks.draw_mixture(sources, np.ones(count), ROWS, seed=2)(0)
    reference = _fit(size, PROXY_RATE, _transformer.init(size, jax.random.key(1)), batches, first)
    tx = optax.adam(PROXY_RATE)

    @jax.jit
    def step(w: Any, tx_state: Any, alpha: Any, batch: Any) -> Any:
        rows = batch.reshape((-1, batch.shape[-1]))

        def excess(w: Any) -> Any:
            each = _losses_per_byte(w, rows, size.heads)
            over = jnp.maximum(each - _losses_per_byte(reference, rows, size.heads), 0)
            return each.reshape((count, -1)).mean(1), over.reshape((count, -1)).mean(1)

        (_, over), pull = jax.vjp(excess, w)
        raised = alpha * jnp.exp(over)
        alpha = 0.999 * raised / raised.sum() + 0.001 / count
        updates, tx_state = tx.update(pull((alpha, jnp.zeros(count)))[0], tx_state, w)
        return optax.apply_updates(w, updates), tx_state, alpha

    w = _transformer.init(size, jax.random.key(0))
    tx_state, alpha, kept = tx.init(w), jnp.full(count, 1 / count), []
    by_source = tasks.draw_by_source(sources, ROWS_PER_SOURCE, seed=3)(0)
    # The gradients that are left; the reference's forward passes count a third.
    steps = int(2 * first * ROWS / (ROWS_PER_SOURCE * count * 4 / 3))
    for _ in range(steps):
        w, tx_state, alpha = step(w, tx_state, alpha, next(by_source))
        kept.append(alpha)
    return {
        "mixture": np.mean(np.asarray(kept), 0),
        "cpu_seconds": time.process_time() - began,
        "oracle_calls": {"inner_grad": first + steps, "forward passes": steps},
        "gradients_of_rows": first * ROWS + int(steps * ROWS_PER_SOURCE * count * 4 / 3),
    }


def by_regression(settings: dict[str, Any], texts: Any, trusted: np.ndarray) -> dict[str, Any]:
    """Short runs on random mixtures, and the mixtures that a regression predicts to be best.

    Liu et al. (2024), "RegMix: Data mixture as regression for language model pre-training"
    [liu2024][], with a ridge regression, and the mean of the best 100 of 10,000 random mixtures.
    """
    size: Size = settings["proxy"]
    sources, began = [windows(text, size.context) for text in texts.values()], time.process_time()
    rng, values = np.random.default_rng(0), []
    tried = rng.dirichlet(np.ones(len(sources)), settings["runs"])
    target = windows(trusted, size.context)
    judged = jnp.asarray(target[:: len(target) // 64][:64])
    for k, mixture in enumerate(tried):
        batches = tasks.draw_mixture(sources, mixture, ROWS, seed=10 + k)(0)
        start = _transformer.init(size, jax.random.key(0))
        w = _fit(size, PROXY_RATE, start, batches, settings["run_steps"])
        values.append(float(_mean_loss(w, judged, size.heads)))
    model = RidgeCV(np.geomspace(1e-4, 1e2, 13)).fit(tried, values)
    candidates = rng.dirichlet(np.ones(len(sources)), 10_000)
    best = candidates[np.argsort(model.predict(candidates))[:100]]
    gradients = settings["runs"] * (settings["run_steps"] * ROWS + 64 // 3)
    return {
        "mixture": best.mean(0),
        "cpu_seconds": time.process_time() - began,
        "oracle_calls": {"inner_grad": settings["runs"] * settings["run_steps"]},
        "gradients_of_rows": gradients,
    }


def _losses_per_byte(w: Any, rows: Any, heads: int) -> Any:
    rows = rows.astype(jnp.int32)
    scores = jax.nn.log_softmax(_transformer.logits(w, rows[:, :-1], heads))
    return -jnp.take_along_axis(scores, rows[:, 1:, None], -1)[..., 0]


@partial(jax.jit, static_argnums=2)
def _mean_loss(w: Any, rows: Any, heads: int) -> Any:
    return jnp.mean(_transformer.losses(w, rows, heads))


@partial(jax.jit, static_argnums=(3, 4), donate_argnums=(0, 1))
def _descend(w: Any, tx_state: Any, batches: Any, heads: int, rate: float, scale: Any) -> Any:
    tx = optax.scale_by_adam()

    def step(carry: Any, batch: Any) -> Any:
        w, tx_state = carry
        gradient = jax.grad(lambda w: jnp.mean(_transformer.losses(w, batch, heads)))(w)
        updates, tx_state = tx.update(gradient, tx_state)
        return (optax.apply_updates(w, optax.tree.scale(-rate * scale, updates)), tx_state), None

    return jax.lax.scan(step, (w, tx_state), batches)[0]


CHUNK = 10


def _fit(size: Size, rate: float, w: Any, batches: Iterator[Any], steps: int) -> Any:
    tx_state = optax.scale_by_adam().init(w)
    for _ in range(steps // CHUNK):
        block = np.stack([next(batches) for _ in range(CHUNK)])
        w, tx_state = _descend(w, tx_state, block, size.heads, rate, 1.0)
    return w


def train(
    settings: dict[str, Any], sources: Any, mixture: Any, test: Any, tuned: np.ndarray | None
) -> dict[str, Any]:
    """The large model from scratch; with `tuned`, also with its last steps on that text.

    The rate rises over the first 20 steps and falls to a tenth over the last 15 % of them.
    """
    size, steps = settings["large"], settings["steps"]
    turn = round((1 - TUNED) * steps / CHUNK) * CHUNK
    w = _transformer.init(size, jax.random.key(0))
    tx_state, curve = optax.scale_by_adam().init(w), []

    def go(w: Any, tx_state: Any, batches: Iterator[Any], at: int, until: int) -> Any:
        while at < until:
            block = np.stack([next(batches) for _ in range(CHUNK)])
            falls = 1 - 0.9 * max(0, at - turn) / (steps - turn)
            scale = min(1.0, (at + CHUNK / 2) / 20) * falls
            w, tx_state = _descend(w, tx_state, block, size.heads, RATE, scale)
            at += CHUNK
            if at % (5 * CHUNK) == 0 or at >= steps:
                curve.append([at, float(_mean_loss(w, test[::4], size.heads))])
        return w, tx_state

    batches = tasks.draw_mixture(sources, mixture, ROWS, seed=5)(0)
    w, tx_state = go(w, tx_state, batches, 0, turn)
    half, found = list(curve), {}
    ways = {"": batches}
    if tuned is not None:
        ways[", tuned"] = tasks.draw_mixture([tuned], [1.0], ROWS, seed=6)(0)
    copies = [jax.tree.map(jnp.array, (w, tx_state)) for _ in ways]
    for (name, rest), (w, tx_state) in zip(ways.items(), copies, strict=True):
        curve = list(half)
        w, tx_state = go(w, tx_state, rest, turn, steps)
        per_row = [
            np.asarray(_per_row(w, test[i : i + 64], size.heads)) for i in range(0, len(test), 64)
        ]
        each = np.concatenate(per_row)
        found[name] = {
            "test_loss": float(each.mean()),
            "error": float(_error(each)),
            "curve": curve,
            "per_row": each,
        }
    return found


_per_row = jax.jit(_transformer.losses, static_argnums=2)


def draw(measured: dict[str, Any]) -> Figure:
    """The loss on the target against steps, the learned mixtures, and the path of the weights."""
    figure, (left, middle, right) = panels(1, 3, (15.0, 4.6))
    for name, run in measured["runs"].items():
        steps, values = zip(*run["curve"], strict=True)
        style = "--" if name.endswith("tuned") else "-"
        left.plot(steps, values, style, label=f"{name}: {run['test_loss']:.3f}")
    left.set(xlabel="steps of the large model", ylabel="held-out loss on the target, nats per byte")
    left.legend(frameon=False, fontsize=8)
    names, mixtures = measured["sources"], measured["mixtures"]
    for k, (name, mixture) in enumerate(mixtures.items()):
        middle.barh(np.arange(len(names)) + 0.16 * (2 - k), mixture, 0.16, label=name)
    middle.set_yticks(np.arange(len(names)), names)
    middle.set_xlabel("share of the mixture")
    middle.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    for k, (name, path) in enumerate(zip(names, np.asarray(measured["path"]["u"]).T, strict=True)):
        style = "-" if k < 10 else "--"  # of which there are ten colours
        right.plot(measured["path"]["step"], path, style, label=name)
    right.set(xlabel="outer steps on the proxy", ylabel="weight of the source")
    right.legend(frameon=False, fontsize=7, ncols=2)
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """What bilevel does here, and against which baselines it loses."""
    runs, gains = measured["runs"], measured["gains"]
    place = measured["sources"].index(_texts.SHUFFLED)
    share, count = measured["mixtures"]["bilevel"][place], len(measured["sources"])
    judged = [
        Claim(
            "R12",
            "With a transformer, minibatches and one weight per source, the weight of a source of "
            "shuffled bytes falls below a quarter of the uniform weight.",
            "not published",
            f"{share:.4f} against {1 / count:.3f}",
            bool(share < 0.25 / count),
        ),
        Claim(
            "R12",
            "The warm-started weights of sources become sparse: fewer than two effective sources at "
            "the end.",
            "sparse for weights of rows",
            f"{measured['effective_sources']:.2f} effective sources of {count}",
            bool(measured["effective_sources"] < 2),
            "Our question; the paper shows the sparsity of weights of rows.",
        ),
    ]
    for name in ("uniform", "proportional", "DoReMi-style", "RegMix-style", "trusted only"):
        gain, error = gains[name]
        searches = measured["searches"]
        spent = (
            " Gradients of rows for the search: "
            f"{searches['bilevel']['gradients_of_rows']} for bilevel, "
            f"{searches[name]['gradients_of_rows']} for the other."
            if name in searches
            else ""
        )
        what = "A model trained from scratch on the learned mixture"
        judged.append(_better(what, name, gain, error, spent))
    gain, error = gains["uniform, tuned"]
    judged.append(
        _better(
            "A model trained from scratch on the learned mixture",
            "uniform, with the last steps on the trusted text",
            gain,
            error,
        )
    )
    gain, error = measured["gain_when_tuned"]
    judged.append(
        _better(
            "With the last steps on the trusted text, the learned mixture",
            "uniform, with the same last steps",
            gain,
            error,
        )
    )
    assert set(gains) <= set(runs)
    return judged


def _better(what: str, name: str, gain: float, error: float, spent: str = "") -> Claim:
    return Claim(
        "R12",
        f"{what} has a lower loss on the target than: {name}.",
        "not published",
        f"lower by {gain:.3f} (standard error {error:.3f}) nats per byte",
        bool(gain > 2 * error),
        f"Holds if the difference is above two standard errors over test rows; one seed.{spent}",
    )


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
