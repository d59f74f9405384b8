"""`TransformedGeometry`: outer updates that pass through an optax transformation."""

import jax
import optax

from .._geometry import AbstractGeometry, Simplex


class TransformedGeometry(AbstractGeometry):
    """A geometry whose updates first pass through an optax transformation.

        retract(u, delta) = inside.retract(u, tx(delta, u))

    The single-loop methods have step sizes in place of an optax transformation. This wrapper brings
    a transformation into them: `TransformedGeometry(optax.clip(0.1))` bounds how far one step moves
    the log-weight of a row. In `DoubleLoop`, chain the transformation behind `outer_tx` instead.

    Args:
        tx: a transformation *without state*: `limit_log_step`, `kl_pull`, `optax.clip`, ...
        inside: the geometry that makes the step.

    Raises:
        ValueError: `tx` has a state.

    Source: ours.
    """

    tx: optax.GradientTransformation
    inside: AbstractGeometry = Simplex()

    def retract(self, u, delta):
        """A step of `inside` with the transformed update."""
        state = self.tx.init(u)
        if jax.tree.leaves(state):
            raise ValueError(
                "`TransformedGeometry` needs an optax transformation without state, since a geometry "
                "remembers nothing from one step to the next; got one with state "
                f"{jax.tree.structure(state)}. Use it as the `outer_tx` of `DoubleLoop`."
            )
        return self.inside.retract(u, self.tx.update(delta, state, u)[0])

    def project(self, u):
        """As `inside`."""
        return self.inside.project(u)

    def magnitude(self, u, grad):
        """As `inside`."""
        return self.inside.magnitude(u, grad)
