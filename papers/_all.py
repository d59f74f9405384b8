"""All scripts of `papers/` in their quick size, two at a time and the longest first: `make papers`.

    python papers/_all.py --out DIR           # with --jobs N for another number at a time
    python papers/_all.py --record            # also writes what each took into papers/costs.json

Each script runs in a process of its own, with one thread, because two run beside each other. It is a
fork of this one, in which the packages are imported already. XLA compiles with few optimisations,
except where times are measured: most functions here are compiled once and run for a second.
"""

import argparse
import gc
import importlib
import json
import os
import pkgutil
import runpy
import sys
import time
import traceback
import warnings
from pathlib import Path

# Before NumPy reads them.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
import jax

import bilevel

# A flag that XLA does not know ends the process; the last one exists in JAX 0.8 to 0.10.
FLAGS = "--xla_cpu_multi_thread_eigen=false --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
# With level 1 of the optimisations compiling takes half of the time, and loops are as fast as with
# all of them; with none they take more than twice as long.
QUICKLY = "--xla_backend_optimization_level=1"
PAPERS = Path(__file__).resolve().parent
COSTS = PAPERS / "costs.json"
PACKAGES = [
    "diffrax",
    "equinox",
    "jax.numpy",
    "lineax",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "optax",
    "optimistix",
    "PIL.PngImagePlugin",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.metrics",
]
# The product, which no script needs whole, and parts that need packages of their own.
APART = (
    "bilevel.cli",
    "bilevel.reweighting",
    "bilevel.torch",
    "bilevel.estimators",
    "bilevel.penalties",
)
# Scripts that measure times.
TIMED = {"equilibrium", "hyperparameters", "lasso", "products"}


def prepare() -> None:
    """Import what scripts import. Nothing is computed, so that JAX starts no thread before a fork."""
    for name in PACKAGES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(bilevel.__path__, "bilevel."):
        if not module.name.startswith(APART):
            importlib.import_module(module.name)
    gc.set_threshold(20_000, 20, 50)
    gc.freeze()


def start(script: Path, out: Path) -> int:
    """Run a script in a fork, its words in a file; the process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # JAX warns of any fork
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        with (out / f"{script.stem}.log").open("w", buffering=1) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.argv = [str(script), "--quick", "--out", str(out)]
        sys.path.insert(0, str(script.parent))
        flags = [FLAGS, "" if script.stem in TIMED else QUICKLY, os.environ.get("XLA_FLAGS", "")]
        os.environ["XLA_FLAGS"] = " ".join(flags)
        runpy.run_path(str(script), run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> int:
    """Run them, print what each claims and took, and return how many failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/papers"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write papers/costs.json")
    parser.add_argument("scripts", nargs="*", help="names of scripts; all if there are none")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    costs = json.loads(COSTS.read_text())
    known = costs["quick"]["seconds"]
    # A new script first: nobody knows yet how long it takes.
    waiting = sorted(
        (
            path
            for path in PAPERS.glob("*/[a-z]*.py")
            if not options.scripts or path.stem in options.scripts
        ),
        key=lambda path: known.get(path.stem, float("inf")),
    )
    prepare()
    started, running, seconds, failed = time.monotonic(), {}, {}, []
    while waiting or running:
        while waiting and len(running) < options.jobs:
            script = waiting.pop()
            running[start(script, options.out)] = script.stem
        child, status, usage = os.wait4(-1, 0)
        name = running.pop(child)
        seconds[name] = round(usage.ru_utime + usage.ru_stime, 1)
        failed += [name] * (status != 0)
        print(f"== {name}: {seconds[name]:.0f} CPU seconds", flush=True)
        print((options.out / f"{name}.log").read_text(), flush=True)
    wall = time.monotonic() - started
    print(
        f"{len(seconds)} scripts, {options.jobs} at a time: {wall / 60:.1f} minutes, "
        f"{sum(seconds.values()):.0f} CPU seconds. Failed: {', '.join(failed) or 'none'}."
    )
    if options.record and not failed:
        # Of some scripts alone, or of another number at a time, the minutes say nothing.
        whole = not options.scripts and options.jobs == 2
        costs["quick"] = {
            "minutes": round(wall / 60, 1) if whole else None,
            "seconds": dict(sorted({**(known if options.scripts else {}), **seconds}.items())),
        }
        COSTS.write_text(json.dumps(costs, indent=1) + "\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
