"""`--processes`: what processes of this machine share."""

import contextlib
import os
import pickle
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

from joblib.externals.loky.process_executor import TerminatedWorkerError

from ..reweighting._inputs.checks import InputError
from ..reweighting._weights.fits import shared_among
from ._app import LostProcessError

_SAFE = "PYTHONSAFEPATH"  # children take no modules from the folder that the command was started in


@contextlib.contextmanager
def shared(processes: int) -> Iterator[None]:
    """`shared_among`, which says in words why processes cannot share.

    Raises:
        LostProcessError: one of them was killed.
        InputError: what they are to do cannot be sent to them.
    """
    before = os.environ.get(_SAFE, "")
    os.environ[_SAFE] = "1"
    try:
        with shared_among(processes):
            yield
    except TerminatedWorkerError as error:
        raise LostProcessError(
            "one of the processes that share the work was killed, perhaps because memory ran out: "
            "give fewer --processes then."
        ) from error
    except (BrokenProcessPool, pickle.PicklingError) as error:
        raise InputError(
            "the work cannot be shared, because what it needs cannot be sent to another process "
            f"({str(error).splitlines()[0]}). It is --estimator, if that is one of your own: make it "
            "such that it can be pickled, or leave out --processes."
        ) from error
    finally:
        os.environ[_SAFE] = before
