"""The `bilevel` command as a process: what it imports, exit codes, a real Ctrl-C."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from digits import arguments, digits, plain_table, write_table, write_tables

PYTHON = [sys.executable, "-c"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from bilevel.cli import app\n"
        "try:\n    app(['--help'])\n"
        "except SystemExit as e:\n    code = e.code\n"
        "heavy = {'jax', 'pandas', 'sklearn', 'equinox', 'skops', 'numpy', 'scipy'}\n"
        "print(code, sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([*PYTHON, code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    for command in (
        "weigh",
        "demo",
        "audit",
        "consensus",
        "multilabel",
        "score",
        "suggest",
        "report",
        "bench",
    ):
        assert f" {command} " in done.stdout


def test_weigh_imports_only_what_it_uses(tmp_path):
    """Neither JAX, which free weights need, nor what reads dates and text, nor what draws pictures."""
    data = digits()
    parts = {"train": data.learnable[:2], "trusted": data.learnable[2:], "holdout": data.holdout}
    for k, (name, (X, y)) in enumerate(parts.items()):
        few = y < 2  # two classes: what is imported does not depend on how many there are
        write_table(plain_table(X[few], y[few], first_id=10_000 * k), tmp_path / f"{name}.csv")
    command = [*arguments(tmp_path), "--id", "row", "--out", str(tmp_path / "run")]
    code = (
        "import sys\n"
        "from bilevel.cli import app\n"
        f"try:\n    app({command!r})\n"
        "except SystemExit as e:\n    code = e.code\n"
        "unused = {'jax', 'jaxlib', 'equinox', 'optax', 'optimistix', 'lineax', 'diffrax', 'skrub',\n"
        "          'matplotlib', 'torch', 'polars', 'datasets', 'PIL', 'pyarrow.dataset'}\n"
        "print(code, sorted(unused & set(sys.modules)))\n"
    )
    done = subprocess.run([*PYTHON, code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert (tmp_path / "run" / "report.html").stat().st_size > 500_000


def test_exit_codes_of_the_real_command(tmp_path):
    command = [str(Path(sys.executable).with_name("bilevel"))]
    usage = subprocess.run([*command, "weigh"], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    assert "Missing argument" in usage.stderr
    train = write_table(plain_table(*digits().learnable[:2]), tmp_path / "train.csv")
    arguments = [str(train), "--label", "digit", "--trusted", str(tmp_path / "none.csv")]
    out = ["--id", "row", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "weigh", *arguments, *out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert "none.csv does not exist; check the path." in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.csv"]


@pytest.mark.slow
def test_sigint_then_resume_gives_the_unbroken_run(tmp_path):
    command = [str(Path(sys.executable).with_name("bilevel")), *write_tables(tmp_path)]
    command += ["--id", "row", "--method", "soba", "--num-steps", "8000", "--no-report"]
    out, partial = tmp_path / "run", tmp_path / "run.partial"
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not (partial / "checkpoint.eqx").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert not out.exists()
    assert (partial / "checkpoint.eqx").exists()
    subprocess.run([*command, "--out", str(out), "--resume"], check=True, capture_output=True)
    unbroken = tmp_path / "unbroken"
    subprocess.run([*command, "--out", str(unbroken)], check=True, capture_output=True)
    resumed, expected = (pd.read_parquet(path / "weights.parquet") for path in (out, unbroken))
    pd.testing.assert_frame_equal(resumed, expected, check_exact=True)
    assert not partial.exists()
