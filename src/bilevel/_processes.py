"""Processes that were forked after JAX was used would wait for ever, and children outlive a parent."""

import os
import signal
import sys

_DIE_WITH_PARENT = 1  # of prctl
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


def end_with(parent: int) -> None:
    """On Linux: this process ends when its parent does, however that ends.

    Elsewhere nothing happens.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _look() -> None:
    global _hangs
    bridge = sys.modules.get("jax._src.xla_bridge")
    _hangs = _hangs or (bridge is not None and bool(vars(bridge).get("_backends")))


if os.name == "posix":
    os.register_at_fork(after_in_child=_look)
