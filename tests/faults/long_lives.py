"""A process that fits a thousand times: how much its memory grows."""

import subprocess
import sys

from cases import Part

MOST = 0.05  # the share by which memory may grow after the 50th fit
FITS = """
import gc, sys
import numpy as np
from bilevel import learn_weights
method, fits, sizes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
options = {} if method == "auto" else {"method": method, "num_steps": 16}
for k in range(fits):
    X, X_trusted = rng.normal(size=(60 + k % sizes, 3)), rng.normal(size=(24, 3))
    learn_weights(X, X[:, 0] > 0, X_trusted, X_trusted[:, 0] > 0, seed=k, **options)
    if k + 1 in (50, fits):
        gc.collect()
        print(int(open("/proc/self/statm").read().split()[1]), flush=True)
"""


def growth(method: str, fits: int) -> float:
    """The share by which memory grows from the 50th fit to the last."""
    command = [sys.executable, "-W", "ignore", "-c", FITS, method, str(fits), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    early, last = (int(x) for x in done.stdout.split())
    return last / early - 1


class LongLives(Part):
    """So many fits of each method, each in one process."""

    def __init__(self, fits: int):
        self.fits, self.goals = fits, {"auto": 1, "soba": 1, "near-exact": 1}

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """All of them."""
        grown = growth(name, self.fits)
        told = f"{self.fits} fits, {100 * grown:+.1f} % of memory"
        return told, [] if grown < MOST else ["grew"]
