"""Processes that were forked after JAX was used: what computes there would wait for ever."""

import os
import sys

_hangs = False


def refuse_forked() -> None:
    """Say what is wrong in such a process, instead of hanging.

    Raises:
        RuntimeError: it was forked after JAX was used.
    """
    if _hangs:
        raise RuntimeError(
            "this process was forked from one that had used JAX, whose threads a fork does not copy: "
            "it would wait for them for ever. Start processes by 'spawn' or 'forkserver' "
            "(`multiprocessing.get_context('spawn')`; joblib's default, loky, does so), or fork "
            "before anything is computed."
        )


def _look() -> None:
    global _hangs
    bridge = sys.modules.get("jax._src.xla_bridge")
    _hangs = _hangs or (bridge is not None and bool(vars(bridge).get("_backends")))


if os.name == "posix":
    os.register_at_fork(after_in_child=_look)
