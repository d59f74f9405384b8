"""A new method against known ones: SOBA with heavy-ball momentum on u. Only the class is new."""

import equinox as eqx
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
    momentum: float = 0.9
    inner_sampler: bilevel.AbstractSampler = bilevel.FullBatch()
    outer_sampler: bilevel.AbstractSampler = bilevel.FullBatch()

    def init(self, problem, u0, w0, key):
        begun = parts.begin(self, problem, u0, w0, key)
        return parts.start(begun, (*optax.tree.zeros_like((w0, u0)), begun.samplers))

    def step(self, problem, state):
        u, w, (v, m, samplers) = state.u, state.w, state.aux
        streams = parts.streams_of(self, problem, samplers)
        state = parts.follow(problem, state, streams.inner)
        steps = (self.inner_step, self.linear_step)
        rho, tau = (parts.at(step, state.step, state.control) for step in steps)
        (outer_batch, outer), (inner_batch, inner) = streams.outer.draw(), streams.inner.draw()
        at_outer = parts.outer_terms(problem, u, w, outer_batch)
        d = parts.joint_directions(at_outer, parts.inner_terms(problem, u, w, v, inner_batch))
        m = optax.tree.add(optax.tree.scale(self.momentum, m), d.u)
        move = parts.move_outer(self.outer_step, problem, state, m)
        info = parts.make_info(at_outer, d, parts.count(1, 1, 1, 1), move.step / rho)
        v, w = parts.descend(v, tau, d.v), parts.descend(w, rho, d.w)
        aux = (v, m, parts.close_streams(bilevel.Streams(outer, inner)))
        return parts.advance(state, move, w, aux, info.calls), info


def main(out: str = "out", num_steps: int = 2000, seeds: int = 10):
    X, y = load_breast_cancer(return_X_y=True)
    X, y = (X - X.mean(axis=0)) / X.std(axis=0), 2 * y - 1
    X, X_val, y, y_val = map(jnp.asarray, train_test_split(X, y, random_state=0, test_size=0.5))
    problem = bilevel.tasks.logistic(X, y, X_val, y_val)  # one penalty a feature
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
