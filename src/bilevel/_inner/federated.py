"""An inner solver for data that are spread over clients: local steps between averages."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from .._problem import num_rows
from .._sampler import Stream
from .._settings import as_data, known
from .base import AbstractInnerSolver, InnerStats, ended


class FederatedInner(AbstractInnerSolver):
    """Rounds of local gradient steps and averages over clients.

    The entries along axis 0 of the inner data are the clients, `f = mean_i f_i`. A round is

        g_i = grad_w f_i(u, w),   q = mean_i g_i                          (an average over clients)
        w_i <- w_i - step_size (grad_w f_i(u, w_i) - g_i + q)             (local_steps times, from w)
        w <- mean_i w_i                                                   (an average over clients)

    The correction `q - g_i`, as in SVRG, makes the local steps begin in the direction of the
    average gradient. With all clients in each round, `w*` is therefore a fixed point for any number
    of local steps. Without the correction (`corrected=False`, which is FedAvg) the clients drift to
    their own minima, and the limit is biased unless the clients have the same minimum. With one
    local step, both are gradient descent.

    Args:
        step_size: of the local steps. With all clients in each round, rounds on quadratics converge
            for `step_size <= 1 / (local_steps L)`, L the largest eigenvalue of the clients'
            Hessians. A larger step, up to `1 / L`, makes a round worth up to `local_steps` gradient
            steps where the clients' Hessians are alike; where they are not, rounds may not
            converge.
        local_steps: gradient steps per client and round, >= 1; with 1 the method is gradient
            descent.
        num_rounds: rounds per solve, >= 1. Each round draws its clients from the stream: all
            clients with `FullBatch`, and some of them with another sampler, which is partial
            participation.
        corrected: whether the local steps are corrected.

    Use this solver in `DoubleLoop` with `AID`, whose Hessian-vector products are then averages over
    clients (one average per product), or with `ITD`. `tasks.federated` makes problems of this form.

    Cost per round: `local_steps` local gradients of each client, in parallel, and two averages of
    vectors of the size of w; one average without the correction or with one local step. This is a
    simulation: one machine computes and counts what the clients would compute.

    Raises:
        ValueError: a count is below 1, `step_size` is not positive, or the problem has no inner
            data.

    Source: Tarzanagh, Li, Thrampoulidis and Oymak (2022), "FedNest: Federated bilevel, minimax, and
    compositional optimization", Algorithm 2 (FedInn) [tarzanagh2022][], here with all rows of a
    client in each step.

    >>> import jax.numpy as jnp
    >>> from bilevel import BilevelProblem, FullBatch, Stream
    >>> centers, curvatures = jnp.array([0.0, 3.0]), jnp.array([1.0, 0.25])
    >>> problem = BilevelProblem(
    ...     outer=lambda u, w, _: w**2,
    ...     inner=lambda u, w, data: jnp.mean(data[1] * (w - u - data[0]) ** 2) / 2,
    ...     inner_data=(centers, curvatures),
    ... )
    >>> stream = Stream(FullBatch(), problem.inner_data, ())
    >>> def limit(corrected):
    ...     solver = FederatedInner(0.5, 4, 100, corrected=corrected)
    ...     return solver.solve(problem, jnp.array(0.0), jnp.array(0.0), (), stream)[0]
    >>> round(float(limit(True)), 3), round(float(limit(False)), 3)  # w* = 0.75 / 1.25
    (0.6, 0.919)
    """

    step_size: Float[np.ndarray | Array, "*batch"] = eqx.field(converter=as_data)
    local_steps: int
    num_rounds: int
    corrected: bool = True
    unrollable: ClassVar[bool] = True

    def __check_init__(self):
        for name in ("local_steps", "num_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`FederatedInner` needs {name} >= 1, got {getattr(self, name)}.")
        step_size = known(self.step_size)
        if step_size is not None and not np.all(step_size > 0):
            raise ValueError(f"`FederatedInner` needs step_size > 0, got {self.step_size}.")

    def init(self, problem, u, w):
        """No state."""
        if not num_rows(problem.inner_data):
            raise ValueError(
                "`FederatedInner` takes the entries along axis 0 of the problem's `inner_data` for "
                "clients, and there are no data; `tasks.federated` makes such a problem."
            )
        return ()

    def solve(self, problem, u, w, state, stream):
        """`num_rounds` rounds."""

        def step(w: PyTree, direction: PyTree) -> PyTree:
            return jax.tree.map(lambda x, d: x - self.step_size.astype(x.dtype) * d, w, direction)

        def one_round(carry: tuple[PyTree, Any], _: None) -> tuple[tuple[PyTree, Any], Array]:
            w, draws = carry
            clients, following = eqx.tree_at(lambda s: s.state, stream, draws).draw()

            def gradient(w: PyTree, client: PyTree) -> PyTree:
                return problem.residual(u, w, jax.tree.map(lambda x: x[None], client))

            at_start = jax.vmap(gradient, (None, 0))(w, clients)
            average = _mean(at_start)

            def shift(client: PyTree, g: PyTree) -> PyTree:
                """The displacement of one client from w by its local steps."""
                correction = optax.tree.sub(average, g)

                def local(w_i: PyTree, _: None) -> tuple[PyTree, None]:
                    d = gradient(w_i, client)
                    return step(w_i, optax.tree.add(d, correction) if self.corrected else d), None

                first = step(w, average if self.corrected else g)
                last, _ = jax.lax.scan(local, first, length=self.local_steps - 1)
                return optax.tree.sub(last, w)

            w = optax.tree.add(w, _mean(jax.vmap(shift)(clients, at_start)))
            return (w, following.state), jnp.asarray(optax.tree.norm(average))

        # When unrolled, a round keeps w, and the steps of the clients are computed again.
        one_round = jax.checkpoint(one_round, prevent_cse=False)
        start = w
        (w, draws), sizes = jax.lax.scan(one_round, (w, stream.state), length=self.num_rounds)
        calls = jnp.full((), self.num_rounds * self.local_steps, jnp.int32)
        stats = InnerStats(calls, ended(sizes[0], sizes[-1], start, w, stream))
        return w, state, Stream(stream.sampler, stream.data, draws), stats


def _mean(stacked: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)
