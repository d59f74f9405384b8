"""`bilevel weigh` with free weights, from files to the run folder, in process."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from bilevel.cli import _weigh_work
from bilevel.cli._activity import Activity
from bilevel.reweighting._report.thumbnails import thumbnails
from digits import (
    TRAIN,
    TRUSTED,
    digits,
    learned,
    mixed_table,
    plain_table,
    write_table,
    write_tables,
)
from runs import Run, interrupt_at, record, weigh

FREE = ["--method", "near-exact", "--no-report"]
FILES = ["config.toml", "model.skops", "summary.json", "weights.parquet", "worst.csv"]


def invoke(arguments: list[str], out: Path) -> Run:
    return weigh([*arguments, *FREE], out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("plain")
    return invoke([*write_tables(folder), "--id", "row", "--json"], folder / "run")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("mixed")
    return invoke([*write_tables(folder, mixed_table), "--id", "row"], folder / "run")


def test_the_folder_holds_five_files_and_nothing_else(plain):
    assert plain.code == 0
    assert plain.files == FILES
    assert not plain.out.with_name("run.partial").exists()


def test_weights_are_those_of_learn_weights(plain):
    result = learned("near-exact")
    np.testing.assert_array_equal(plain.weights["weight"], result.weights)
    assert plain.summary["trusted_weight"] == result.trusted_weight


def test_summary(plain):
    summary = plain.summary
    weights = plain.weights
    assert summary["task"] == "classification"
    assert summary["score"] == "accuracy"
    assert (summary["train_rows"], summary["trusted_rows"], summary["seed"]) == (TRAIN, TRUSTED, 0)
    assert summary["trusted_weight"] == pytest.approx(weights["weight"].max(), rel=1e-12)
    assert summary["keep"] == weights["keep"].sum()
    ess = weights["weight"].sum() ** 2 / (weights["weight"] ** 2).sum()
    assert summary["effective_sample_size"] == pytest.approx(ess, rel=1e-9)
    assert list(summary["baselines"]) == [
        "uniform",
        "all rows + trusted",
        "trusted only",
        "filter",
        "reweighted",
    ]
    assert list(summary["weighting_model"]) == ["uniform", "warm", "retrained", "capped"]
    assert summary["history"]["step"] == list(range(1, 21))
    assert summary["believable"] == all(check["passed"] for check in summary["checks"])
    # The score in the table is that of the model in the folder.
    table = plain_table(*digits().holdout)
    right = plain.model().predict(table.drop(columns=["row", "digit"])) == table["digit"]
    assert summary["baselines"]["reweighted"]["score"] == pytest.approx(right.mean(), abs=0.005)


def test_the_model_holds_nothing_of_ours_to_trust(plain, mixed):
    """skops trusts no numpy.dtype of its own accord; SimpleImputer holds two."""
    for run in (plain, mixed):
        assert skops.io.get_untrusted_types(file=run.out / "model.skops") == ["numpy.dtype"]


def test_the_model_opens_without_trust_and_predicts_what_the_table_says(plain):
    model, weights, data = plain.model(), plain.weights, digits()
    table = plain_table(data.X, data.y).drop(columns=["row", "digit"])
    np.testing.assert_array_equal(model.predict(table), weights["predicted_label"])
    # It was fitted with the weights, on the training and the trusted rows.
    x = (np.r_[data.X, data.X_trusted],)
    both = plain_table(x[0], np.r_[data.y, data.y_trusted]).drop(columns=["row", "digit"])
    w = np.r_[weights["weight"], np.full(TRUSTED, plain.summary["trusted_weight"])]
    features = model[:-1].transform(both)
    scaled = MinMaxScaler().fit_transform(features)
    centred = StandardScaler(with_std=False).fit_transform(scaled, sample_weight=w)
    by_hand = LogisticRegression(max_iter=1000).fit(
        centred, np.r_[data.y, data.y_trusted], sample_weight=w
    )
    np.testing.assert_allclose(model[-1][-1].coef_, by_hand.coef_, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_pictures_of_the_training_rows_are_in_the_report(tmp_path):
    pictures = digits().X.reshape(-1, 8, 8)
    np.save(tmp_path / "p.npy", pictures)
    command = [*write_tables(tmp_path), "--id", "row", "--images", str(tmp_path / "p.npy")]
    run = weigh([*command, "--method", "near-exact", "--num-steps", "2"], tmp_path / "run")
    assert run.config["images"] == str(tmp_path / "p.npy")
    assert run.config["sha256"].keys() == {"train", "trusted", "holdout", "images"}
    worst = json.loads((run.out / "report.json").read_text())["worst"]["rows"]
    rows = [list(run.weights["id"]).index(row["id"]) for row in worst]
    assert [row["thumbnail"] for row in worst] == thumbnails(pictures[rows])
    assert worst[0]["thumbnail"] in (run.out / "report.html").read_text()


def test_config_mirrors_the_flags(tmp_path, plain):
    assert plain.config["seed"] == 0
    assert plain.config["method"] == "near-exact"
    assert "num_steps" not in plain.config
    flags = ["--seed", "7", "--num-steps", "2", "--l2", "0.01"]
    flags += ["--drop", "s", "--drop", "t", "--id", "row", "--task", "classification"]

    def make(*part, **ids):
        return plain_table(*part, **ids).assign(s="x", t=1)

    run = invoke([*write_tables(tmp_path, make), *flags], tmp_path / "run")
    config = run.config
    digests = config.pop("sha256")
    assert config == {
        "train": str(tmp_path / "train.csv"),
        "label": "digit",
        "trusted": str(tmp_path / "trusted.csv"),
        "holdout": str(tmp_path / "holdout.csv"),
        "out": str(tmp_path / "run"),
        "id": "row",
        "drop": ["s", "t"],
        "task": "classification",
        "method": "near-exact",
        "model": "linear",
        "num_steps": 2,
        "l2": 0.01,
        "memory": "4GB",
        "report": False,
        "show": [],
        "private": False,
        "control": False,
        "seed": 7,
    }
    assert digests.keys() == {"train", "trusted", "holdout"}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values())
    assert run.summary["seed"] == 7
    assert len(run.summary["history"]["step"]) == 2
    assert run.model().feature_names_in_.tolist() == [f"p{i}" for i in range(64)]
    # The file repeats the run.
    again = weigh(["weigh", "--config", str(run.out / "config.toml")], tmp_path / "again")
    pd.testing.assert_frame_equal(again.weights, run.weights, check_exact=True)
    assert again.config == run.config | {"out": str(tmp_path / "again")}


def test_json_is_all_of_stdout_and_progress_goes_to_stderr(plain):
    printed = json.loads(plain.stdout)
    assert printed.pop("folder") == str(plain.out)
    assert printed == plain.summary
    assert "fitting the final model" in plain.stderr


def test_the_activity_says_what_is_done_and_how_far_it_is(capsys):
    def chunk(step: int, *values: float) -> SimpleNamespace:
        return SimpleNamespace(step=step, num_steps=20, rows={"outer_value": np.array(values)})

    with Activity("learning weights") as activity:
        activity(chunk(3, 0.9, 0.51234))
    assert "learning weights: step 3 of 20, outer value 0.5123" in capsys.readouterr().err
    with Activity("learning weights") as activity:
        activity(chunk(20, 0.5))
        activity.close()
        activity(chunk(4))
    assert "learning weights: run 2, step 4 of 20\n" in capsys.readouterr().err
    with Activity("learning weights") as activity:
        activity(chunk(20, 0.5))
        activity.say("fitting the final model")
    captured = capsys.readouterr()
    assert captured.err.endswith("fitting the final model\n")
    assert captured.out == ""
    with Activity("learning weights", visible=False) as activity:
        activity(chunk(20, 0.5))
        activity.say("fitting the final model")
    assert capsys.readouterr() == ("", "")


def test_without_json_stdout_has_the_table_and_the_checks(mixed):
    assert mixed.code == 0
    assert "400 rows weighed: " in mixed.stdout
    assert "Score on the hold-out (accuracy) " in mixed.stdout
    for name in ("uniform", "all rows + trusted", "trusted only", "filter", "reweighted"):
        assert name in mixed.stdout
    text = " ".join(mixed.stdout.split())
    assert "the trusted loss fell: " in text
    assert "weighting pays on the hold-out: weighting " in text
    assert "fitting the final model" not in mixed.stdout
    assert "fitting the final model" in mixed.stderr


def test_mixed_columns_missing_values_and_text_labels(mixed):
    data, weights = digits(), mixed.weights
    assert weights["given_label"].tolist() == [f"class {k}" for k in data.y]
    assert set(weights["predicted_label"]) <= set(weights["given_label"])
    assert weights["weight"].mean() == pytest.approx(1.0, rel=1e-12)
    assert roc_auc_score(~data.wrong, weights["weight"]) >= 0.9
    assert mixed.summary["baselines"]["reweighted"]["score"] >= 0.85
    features = mixed.model()[:-1].get_feature_names_out()
    assert len(features) == 64
    assert {"numbers__bright", "numbers__missingindicator_p10"} <= set(features)
    assert {"categories__side_a", "categories__side_b", "categories__side_nan"} <= set(features)


def test_the_model_reads_the_raw_table(mixed):
    """A user has the file, not our tidied copy: booleans, gaps and integers as pandas reads them."""
    table = pd.read_csv(mixed.out.parent / "train.csv").drop(columns=["row", "digit"])
    np.testing.assert_array_equal(mixed.model().predict(table), mixed.weights["predicted_label"])


def test_row_numbers_are_the_ids_without_an_id_column(tmp_path, plain):
    command = [*write_tables(tmp_path), "--drop", "row", "--num-steps", "1"]
    run = invoke(command, tmp_path / "deep" / "run")
    assert run.weights["id"].tolist() == list(range(TRAIN))
    np.testing.assert_array_equal(run.weights["given_label"], plain.weights["given_label"])


def test_without_holdout_the_question_is_left_open(tmp_path):
    command = [*write_tables(tmp_path)[:-2], "--id", "row", "--num-steps", "2"]
    run = invoke(command, tmp_path / "run")
    assert run.summary["baselines"] is None
    text = " ".join(run.stdout.split())
    assert "whether weighting paid is not known: give rows to judge it on (--holdout)" in text


def test_ctrl_c_then_resume_gives_bitwise_the_unbroken_run(tmp_path, plain, monkeypatch):
    command = [*write_tables(tmp_path), "--id", "row"]
    out, partial = tmp_path / "run", tmp_path / "run.partial"
    with monkeypatch.context() as patch:
        patch.setattr(_weigh_work, "Activity", interrupt_at(6))
        run = invoke(command, out)
    assert run.code == 130
    assert "interrupted; the same command with --resume goes on" in " ".join(run.stderr.split())
    assert run.stdout == ""
    assert not out.exists()
    names = sorted(path.name for path in partial.iterdir())
    assert names == ["checkpoint.eqx", "config.toml", "history.jsonl"]

    refused = invoke(command, out)
    assert refused.code == 2
    assert f"aninterruptedrunisin{partial}:continueitwith--resume" in refused.squeezed
    assert partial.exists()

    changed = invoke([*command, "--resume", "--l2", "0.5", "--seed", "3"], out)
    assert changed.code == 2
    text = changed.squeezed
    assert "differsfromthiscallin'l2','seed':{'l2':0.01,'seed':0}then,{'l2':0.5,'seed':3}" in text
    assert (partial / "checkpoint.eqx").exists()

    seen = []
    monkeypatch.setattr(_weigh_work, "Activity", record(seen))
    resumed = invoke([*command, "--resume"], out)
    assert resumed.code == 0
    assert seen == list(range(6, 21))  # it went on and did not start anew
    assert not partial.exists()
    assert resumed.files == FILES
    assert (out / "weights.parquet").read_bytes() == (plain.out / "weights.parquet").read_bytes()
    before, after = (run.summary | {"files": {}} for run in (plain, resumed))
    assert after == before


def test_a_changed_input_file_is_noticed_on_resume(tmp_path, monkeypatch):
    command = [*write_tables(tmp_path), "--id", "row"]
    with monkeypatch.context() as patch:
        patch.setattr(_weigh_work, "Activity", interrupt_at(2))
        assert invoke(command, tmp_path / "run").code == 130
    path = tmp_path / "train.csv"
    write_table(pd.read_csv(path).iloc[::-1], path)
    run = invoke([*command, "--resume"], tmp_path / "run")
    assert run.code == 2
    assert "differsfromthiscallin'sha256'" in run.squeezed
