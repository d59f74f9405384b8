"""What the benchmarks share: ratios of CPU times in one process, and the report as JSON.

Times are medians of CPU times, taken alternately in one process: ratios hold on a busy machine too.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "papers"))
import _frame  # pyright: ignore[reportMissingImports]

panels, save = _frame.panels, _frame.save
RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "img"


def cpu_seconds(*functions: Callable[[], object], repeats: int = 15) -> list[float]:
    """The median CPU seconds of each function, called in turn `repeats` times after a warm-up."""
    return np.median(_rounds(functions, repeats), axis=0).tolist()


def cpu_ratio(one: Callable[[], object], floor: Callable[[], object], repeats: int) -> list[float]:
    """The quartiles of time of `one` over that of the two `floor`s before and after it."""
    times = _rounds((floor, one, floor), repeats)
    return np.percentile(2 * times[:, 1] / (times[:, 0] + times[:, 2]), [25, 50, 75]).tolist()


# Not `ru_maxrss`, which begins with the memory of the process that started this one.
_USED = """
import sys
from pathlib import Path
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
print(1024 * peak, file=sys.stderr)
"""
_COMMAND = """
from bilevel.cli import app
try:
    app({arguments})
except SystemExit as stop:
    assert not stop.code
"""


class Used(NamedTuple):
    """What a process took; and what it printed.

    Attributes:
        cpu_seconds: with those of the processes that it started, such as the one that reads files.
        peak_bytes: of memory, of the process itself.
        said: on stdout.
    """

    cpu_seconds: float
    peak_bytes: float
    said: str


def in_a_process(code: str) -> Used:
    """A fresh process that runs the code, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code + _USED]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Used(seconds, int(done.stderr.splitlines()[-1]), done.stdout)


def command_in_a_process(arguments: Sequence[str]) -> Used:
    """A command of `bilevel` in a fresh process."""
    return in_a_process(_COMMAND.format(arguments=list(arguments)))


def write(script: str, measured: dict[str, Any], *, full: bool = True) -> Path:
    """Write `results/<script>.json`: `measured`, the size of the run, versions and the machine.

    `measured` holds `"settings"` and, where something is random, `"seeds"`. The report has the form of
    those of `papers/` without claims; the pages of the documentation take their numbers from it.
    """
    written = _frame.report(script, measured, [], full=full, cpu_seconds=time.process_time())
    del written["claims"], written["paper"]
    device = jax.devices()[0]
    written["machine"] = {
        "cores": os.cpu_count(),
        "processor": processor(),
        "device": f"{jax.device_count()} x {device.platform} ({device.device_kind})",
    }
    print(f"device: {written['machine']['device']}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{written['script']}.json"
    path.write_text(json.dumps(written, indent=1) + "\n")
    print(f"written: {path}")
    return path


def processor() -> str:
    """The name of the processor, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _rounds(functions: Sequence[Callable[[], object]], repeats: int) -> np.ndarray:
    for function in functions:
        jax.block_until_ready(function())
    times = np.empty((repeats, len(functions)))
    for i in range(repeats):
        for j, function in enumerate(functions):
            start = time.process_time()
            jax.block_until_ready(function())
            times[i, j] = time.process_time() - start
    return times
