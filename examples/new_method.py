"""A new method against known ones: SOBA with heavy-ball momentum on u. Only the class is new."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import bilevel
from bilevel import parts


class HeavyBall(bilevel.AbstractAlgorithm):
    inner_step: parts.StepSize = eqx.field(default="auto", converter=parts.as_setting)
    linear_step: parts.StepSize = eqx.field(default="auto", converter=parts.as_setting)
    outer_step: parts.StepSize = eqx.field(default="auto", converter=parts.as_setting)
    momentum: parts.StepSize = eqx.field(default=0.9, converter=parts.as_schedule)
    inner_sampler: bilevel.AbstractSampler = bilevel.FullBatch()
    outer_sampler: bilevel.AbstractSampler = bilevel.FullBatch()

    def init(self, problem, u0, w0, key):
        aux = optax.tree.zeros_like((w0, u0))  # v and m
        return parts.init_state(self, problem, u0, w0, key, aux)

    def step(self, problem, state):
        turn = parts.open_turn(self, problem, state)
        u, w, (v, m) = state.u, state.w, state.aux
        d = parts.joint_directions(turn.outer(u, w), turn.inner(u, w, v))
        momentum = jnp.asarray(turn.now(self.momentum))
        m = jax.tree.map(lambda m, d: momentum.astype(m.dtype) * m + d, m, d.u)
        v, w = parts.descend(v, turn.linear_step, d.v), parts.descend(w, turn.inner_step, d.w)
        calls = parts.count(1, 1, 1, 1)
        return turn.close(d, w=w, aux=(v, m), calls=calls, move=turn.move(m))


def main(out: str = "out", num_steps: int = 2000, seeds: int = 10):
    X, y = load_breast_cancer(return_X_y=True)
    X, y = (X - X.mean(axis=0)) / X.std(axis=0), 2 * y - 1
    X, X_val, y, y_val = map(jnp.asarray, train_test_split(X, y, random_state=0, test_size=0.5))
    problem = bilevel.tasks.logistic(X, y, X_val, y_val)  # one penalty per feature
    u0, w0 = jnp.full(30, -3.0), jnp.zeros(30)
    common = dict.fromkeys(["inner_sampler", "outer_sampler"], bilevel.WithReplacement(32))
    kinds = {"SOBA": bilevel.SOBA, "AmIGO": bilevel.AmIGO, "heavy ball": HeavyBall}
    methods = {name: kind(0.05, 0.05, 0.3, **common) for name, kind in kinds.items()}
    steps = {name: num_steps // (5 if name == "AmIGO" else 1) for name in kinds}  # it calls more
    path = f"{out}/new_method.png"
    frame = bilevel.compare(methods, problem, u0, w0, num_steps=steps, seeds=seeds, path=path)
    print(frame.groupby(["algorithm", "seed"]).last().groupby(level=0).median(numeric_only=True).T)
    return frame


if __name__ == "__main__":
    main()
