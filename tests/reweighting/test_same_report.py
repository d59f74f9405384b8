"""Python and the command line say the same of the same tables, and verdicts fit their numbers."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes, make_classification
from typer.testing import CliRunner

from bilevel import ReweightedClassifier, ReweightedRegressor
from bilevel.cli import app

OF_THE_PROCESS = {"peak_memory", "seconds"}


def make_tables(regression):
    """Training rows of which 30 % are wrong, 80 trusted rows, and a hold-out."""
    rng = np.random.default_rng(0)
    if regression:
        X, y = load_diabetes(return_X_y=True)
        wrong = rng.permutation(y)
    else:
        X, y = make_classification(480, 5, n_informative=4, n_redundant=0, random_state=0)
        wrong = 1 - np.asarray(y)
    given = np.where(rng.random(len(y)) < 0.3, wrong, y)
    cuts = {"train": slice(0, 200), "trusted": slice(200, 280), "holdout": slice(280, None)}
    tables = {}
    for name, rows in cuts.items():
        table = pd.DataFrame(X[rows]).rename(columns=lambda j: f"x{j}").round(6)
        table["y"] = (given if name == "train" else y)[rows]
        table.index = pd.Index([f"{name} {i}" for i in range(len(table))], name="id")
        tables[name] = table
    return tables


def differences(one, other, path=""):
    """The fields in which two pieces of evidence differ, but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other} - OF_THE_PROCESS):
            if key in one and key in other:
                yield from differences(one[key], other[key], f"{path}/{key}")
            else:
                yield f"{path}/{key}"
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{path}/{i}")
    elif isinstance(one, float) and isinstance(other, (float, int)):
        if not np.isclose(one, other, rtol=1e-4, atol=1e-6):
            yield path, one, other
    elif one != other:
        yield path, one, other


@pytest.fixture(scope="module", params=[False, True], ids=["classification", "regression"])
def tables(request):
    return request.param, make_tables(request.param)


@pytest.mark.parametrize(
    "with_holdout",
    [pytest.param(False, id="folds", marks=pytest.mark.slow), pytest.param(True, id="hold-out")],
)
def test_python_and_the_command_line_write_the_same_report(tmp_path, tables, with_holdout):
    regression, tables = tables
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    options = ["--label", "y", "--id", "id", "--out", tmp_path / "run"]
    for name in ("trusted", *["holdout"] * with_holdout):
        options += [f"--{name}", tmp_path / f"{name}.parquet"]
    command = ["weigh", tmp_path / "train.parquet", *options]
    assert CliRunner().invoke(app, [str(word) for word in command]).exit_code == 0
    by_command = json.loads((tmp_path / "run" / "report.json").read_text())

    pairs = {name: (table.drop(columns="y"), table["y"]) for name, table in tables.items()}
    kind = ReweightedRegressor if regression else ReweightedClassifier
    X_trusted, y_trusted = pairs["trusted"]
    model = kind().fit(*pairs["train"], X_trusted=X_trusted, y_trusted=y_trusted)
    report = model.report(*(pairs["holdout"] if with_holdout else ()))
    in_python = json.loads(json.dumps(report.evidence))

    assert list(differences(in_python, by_command)) == []
    assert in_python["holdout_rows"] == (len(tables["holdout"]) if with_holdout else None)
    assert (in_python["baselines"] is not None) == with_holdout
    agrees_with_its_numbers(in_python, with_holdout)


def agrees_with_its_numbers(evidence, with_holdout):
    """Every number of the verdict's sentence is a field's, and every claim follows from them."""
    verdict = evidence["verdict"]
    said = verdict["detail"]
    numbers = [float(x) for x in re.findall(r"(?<![\w.])[+-]?\d+\.\d+(?:e[+-]\d+)?", said)]
    ours, theirs = verdict["ours"], verdict["theirs"]
    assert numbers[:2] == pytest.approx([ours, theirs], abs=5e-4)
    # The difference that is said is ours minus theirs, within its interval.
    assert numbers[2] == pytest.approx(ours - theirs, abs=6e-4)
    assert numbers[3] <= numbers[2] <= numbers[4]
    higher_is_better = with_holdout
    better = ours > theirs if higher_is_better else ours < theirs
    assert better == (verdict["gain"] > 0) or ours == pytest.approx(theirs, abs=1e-9)
    assert ("keep a hold-out" in said) != with_holdout
    assert ("hold-out rows" in said) == with_holdout
    if "was not used" in verdict["headline"]:
        table = {line["name"]: line for line in evidence["candidates"]}
        least = min((n for n in table if n != "uniform"), key=lambda n: table[n]["loss"])
        clearly = "did clearly best" in said
        assert not clearly or least == evidence["winner"]
    else:
        pays = verdict["gain"] > 2 * verdict["standard_error"]
        assert not pays or verdict["headline"] == "Weighting paid"
        assert verdict["gain"] > 0 or verdict["headline"] == "Weighting did not pay"
