"""The commands beside `weigh`, its configuration files, and its dry run."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from bilevel import datasets
from bilevel.cli import _demo_work, _weigh_cost, _weigh_work, app
from bilevel.cli._app import PLACES
from bilevel.cli._together import Team
from bilevel.cli._weigh_cost import Estimate
from digits import TRAIN, TRUSTED, digits, plain_table, write_table, write_tables
from runs import Run, Said, bilevel, formula_ids, full_run, seal, weigh, write_sources
from schema import faults


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Run:
    return full_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def copied(full, tmp_path) -> Path:
    return Path(shutil.copytree(full.out, tmp_path / "copy"))


def refused(code: int, *messages: str, said: Said) -> None:
    assert said.code == code
    assert said.stdout == ""
    for message in messages:
        assert "".join(message.split()) in said.squeezed.replace("│", "")


# -- score ------------------------------------------------------------------------------------------


def new_rows(rows: int = 300) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows that the run has not seen, and which of their labels are made wrong: a fifth."""
    X, y = digits().holdout
    noisy, wrong = datasets.flip_to_different(y[:rows], 0.2, seed=1)
    return plain_table(X[:rows], noisy, first_id=50_000), wrong


def score(run: Path, table: pd.DataFrame, folder: Path, *options: str | Path) -> Said:
    return bilevel("score", run, write_table(table, folder / "new.csv"), *options)


def test_score_finds_wrong_labels_of_new_rows(full, tmp_path):
    table, wrong = new_rows()
    said = score(full.out, table, tmp_path, "--json")
    assert said.code == 0
    scores = pd.DataFrame(json.loads(said.stdout))
    assert list(scores.columns) == [
        *("id", "label_quality", "keep", "wrong", "given_label", "predicted_label")
    ]
    assert scores["label_quality"].is_monotonic_increasing
    scores = scores.set_index("id").loc[table["row"]]
    np.testing.assert_array_equal(scores["given_label"], table["digit"])
    assert roc_auc_score(~wrong, scores["label_quality"]) >= 0.98  # 0.996
    assert np.mean(~scores["keep"][wrong]) >= 0.88  # 0.92
    assert np.mean(scores["keep"][~wrong]) >= 0.95
    assert scores["wrong"].mean() == pytest.approx(wrong.mean(), abs=0.05)
    assert scores["keep"][scores["given_label"] == scores["predicted_label"]].all()


def test_score_says_what_the_model_predicts(full, tmp_path):
    """Its models are not the final one, but agree with it nearly everywhere."""
    table, _ = new_rows()
    said = score(full.out, table, tmp_path, "--json")
    scores = pd.DataFrame(json.loads(said.stdout)).set_index("id").loc[table["row"]]
    predicted = full.model().predict(table.drop(columns=["row", "digit"]))
    assert np.mean(scores["predicted_label"] == predicted) >= 0.93  # 0.957


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_score_writes_all_rows_and_shows_some(full, tmp_path, name):
    table, _ = new_rows()
    said = score(full.out, table, tmp_path, "--out", tmp_path / name)
    assert said.code == 0
    written = getattr(pd, "read_" + name[2:])(tmp_path / name)
    assert len(written) == 300
    printed = json.loads(score(full.out, table, tmp_path, "--json").stdout)
    assert written["id"].tolist() == [row["id"] for row in printed]
    np.testing.assert_allclose(
        written["label_quality"], [row["label_quality"] for row in printed], atol=1e-9
    )
    disputed = int((~written["keep"]).sum())
    assert f"{disputed} of 300 rows are flagged" in said.stdout
    assert str(tmp_path / name) in said.stdout
    assert [row["id"] in said.stdout for row in printed[:21]] == [True] * 20 + [False]


def test_score_reads_columns_by_name_and_other_ids(full, tmp_path):
    table, _ = new_rows(40)
    ours = json.loads(score(full.out, table, tmp_path, "--json").stdout)
    shuffled = table.rename(columns={"row": "key"}).iloc[:, ::-1].assign(source="a")
    said = score(full.out, shuffled, tmp_path, "--json", "--id", "key")
    assert json.loads(said.stdout) == ours
    said = score(full.out, table.drop(columns="row"), tmp_path, "--json")
    assert [f"r{50_000 + row['id']}" for row in json.loads(said.stdout)] == [r["id"] for r in ours]
    said = score(
        full.out, table.rename(columns={"digit": "given"}), tmp_path, "--json", "--label", "given"
    )
    assert json.loads(said.stdout) == ours


def test_score_reads_labels_as_the_training_rows_had_them(full, tmp_path):
    """One word in the column makes pandas read the numbers as text."""
    table, _ = new_rows(40)
    spoilt = table.astype({"digit": object})
    spoilt.loc[3, "digit"] = "seven"
    said = score(full.out, spoilt, tmp_path)
    refused(
        3, "`digit` has labels that are not numbers, as those of", "rows are: 'seven'.", said=said
    )
    as_text = write_table(table.astype({"digit": str}), tmp_path / "new.parquet")
    said = bilevel("score", full.out, as_text, "--json")
    assert json.loads(said.stdout) == json.loads(score(full.out, table, tmp_path, "--json").stdout)


def test_score_reads_numbers_as_the_training_rows_had_them(full, tmp_path):
    """A per cent sign, a unit or a comma would else be taken off, whatever the numbers were before."""
    table, _ = new_rows(40)
    first = table.columns.drop(["row", "digit"])[20]
    for mark in ("%", " cm"):
        spoilt = table.assign(**{first: table[first].astype(str) + mark})
        said = score(full.out, spoilt, tmp_path)
        refused(3, f"{first!r} holds numbers in the training rows, and something", said=said)


def test_score_tells_what_no_training_row_has(full, tmp_path):
    table, _ = new_rows(40)
    assert "lie outside" not in score(full.out, table, tmp_path, "--json").stderr
    first = table.columns.drop(["row", "digit"])[20]
    said = score(full.out, table.assign(**{first: table[first] + 1000}), tmp_path, "--json")
    assert said.code == 0
    assert f"40 of 40 values of {first!r}, such as" in said.stderr
    assert len(json.loads(said.stdout)) == 40


def test_score_refuses_rows_it_cannot_judge(full, tmp_path):
    table, _ = new_rows(40)

    def refuse(spoilt: pd.DataFrame, *messages: str, options: tuple[str, ...] = ()) -> None:
        refused(3, *messages, said=score(full.out, spoilt, tmp_path, *options))

    refuse(
        table.assign(digit=11),
        "`digit` has labels that the training rows lack: 11, in 40 of 40 rows. No model",
    )
    refuse(
        table.assign(digit=table["digit"].mask(table.index == 3)),
        "`digit` has 1 missing labels, in the rows with ids 'r50003'.",
    )
    refuse(
        table.drop(columns=["p7", "p9"]),
        "the rows lack columns that the model was fitted on: 'p7', 'p9'; their columns are 'p0'",
    )
    refuse(table.drop(columns="digit"), "the new file has no column 'digit' (--label);")
    refuse(
        table.rename(columns={"row": "key"}),
        "the new file has no column 'kez' (--id); did you mean 'key'?",
        options=("--id", "kez"),
    )
    refuse(table.assign(row="r1"), "the new file's ids in 'row' repeat: 'r1'.")
    refuse(
        table.assign(p3=table["p3"].astype(object).mask(table.index == 2, "dark")),
        "the column 'p3' holds numbers in the training rows, and something else in the rows with "
        "ids 'r50002': 'dark'.",
    )
    refuse(
        table.assign(p3=table["p3"].astype(float).mask(table.index == 2, np.inf)),
        "the new rows have infinite values in the columns 'p3', rows with ids 'r50002'.",
    )


def test_score_refuses_files_it_cannot_read_or_write(full, copied, tmp_path):
    table, _ = new_rows(40)
    said = bilevel("score", full.out, tmp_path / "none.csv")
    refused(3, "none.csv does not exist; check the path.", said=said)
    for ending in ("txt", "CSVX"):
        said = score(full.out, table, tmp_path, "--out", tmp_path / f"x.{ending}")
        refused(3, f"x.{ending} must end in .csv or .parquet.", said=said)
        assert not (tmp_path / f"x.{ending}").exists()
    refused(1, "none", said=score(full.out, table, tmp_path, "--out", tmp_path / "none" / "x.csv"))
    refused(3, "is not a run folder of `bilevel weigh`", said=score(tmp_path, table, tmp_path))
    (copied / "scorer.npz").write_bytes(b"PK\x03\x04 no arrays")
    refused(3, "scorer.npz has changed since the run", said=score(copied, table, tmp_path))
    seal(copied)
    refused(3, "scorer.npz cannot be read", said=score(copied, table, tmp_path))
    (copied / "scorer.npz").unlink()
    refused(3, "scorer.npz is missing", said=score(copied, table, tmp_path))
    seal(copied)
    message = "holds no scorer.npz", "Free weights cannot judge new rows."
    refused(3, *message, said=score(copied, table, tmp_path))


# -- suggest ----------------------------------------------------------------------------------------


def test_suggest_names_rows_to_verify_within_the_budget(full):
    said = bilevel("suggest", full.out, "--budget", "30", "--json")
    assert said.code == 0
    rows = pd.DataFrame(json.loads(said.stdout))
    assert list(rows.columns) == ["id", "score", "reason", "given_label", "suggested_label"]
    assert len(rows) == 30
    assert rows["id"].is_unique
    assert rows["score"].between(0, 1).all()
    assert rows["score"].tolist()[0] == 1.0
    train = pd.Series(np.arange(TRAIN), index=formula_ids())
    place = train.loc[rows["id"]].to_numpy()
    np.testing.assert_array_equal(rows["given_label"], digits().y[place])
    assert digits().wrong[place].mean() >= 0.75  # 0.93; of all rows 0.4
    order = np.random.default_rng(0).permutation(1797)[:TRAIN]
    truth = load_digits(return_X_y=True)[1][order][place]
    assert np.mean(rows["suggested_label"] == truth) >= 0.65  # 0.80
    assert np.mean(rows["given_label"] == truth) <= 0.25  # 0.07


def test_suggestions_start_alike_for_any_budget(full, tmp_path):
    said = bilevel("suggest", full.out, "--budget", "3", "--out", tmp_path / "few.parquet")
    assert "the 3 rows to verify next" in said.stdout
    bilevel("suggest", full.out, "--budget", "30", "--out", tmp_path / "many.csv")
    few, many = pd.read_parquet(tmp_path / "few.parquet"), pd.read_csv(tmp_path / "many.csv")
    assert len(many) == 30
    pd.testing.assert_frame_equal(few, many.head(3), check_dtype=False)


def test_suggest_refuses_tables_that_have_changed(full, copied, tmp_path):
    refused(2, "'--budget'", said=bilevel("suggest", full.out, "--budget", "0"))
    refused(3, "is not a run folder of `bilevel weigh`", said=bilevel("suggest", tmp_path))
    config = (copied / "config.toml").read_text()
    train = full.out.parent / "train.csv"
    (copied / "config.toml").write_text(config.replace(str(train), str(tmp_path / "train.csv")))
    refused(3, "config.toml has changed since the run", said=bilevel("suggest", copied))
    seal(copied)
    refused(3, "that this run was made from is not there.", said=bilevel("suggest", copied))
    write_table(pd.read_csv(train).iloc[::-1], tmp_path / "train.csv")
    refused(3, "train.csv has changed since this run", said=bilevel("suggest", copied))
    shutil.copy(train, tmp_path / "train.csv")
    assert bilevel("suggest", copied).code == 0
    (copied / "config.toml").write_text('name = "another tool"\n')
    refused(3, "its config.toml has no 'label', 'seed'", said=bilevel("suggest", copied))
    (copied / "config.toml").write_text("no TOML")
    refused(3, "config.toml cannot be read:", said=bilevel("suggest", copied))


# -- two runs ---------------------------------------------------------------------------------------


def test_two_runs_are_compared(full, copied, tmp_path):
    table = pd.read_parquet(copied / "weights.parquet")
    kept = int(np.flatnonzero(table["keep"])[0])
    table.loc[kept, "keep"] = False
    table.to_parquet(copied / "weights.parquet", index=False)
    config = (copied / "config.toml").read_text().replace("seed = 0", "seed = 5")
    (copied / "config.toml").write_text(config)
    seal(copied)
    said = bilevel("report", full.out, copied, "--out", tmp_path / "c.json")
    assert said.code == 0, said.stderr
    assert "seed: 0 in the first run, 5 in the second" in said.stdout
    assert "1 row changed sides" in said.stdout
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["format"] == "bilevel comparison 2"
    assert faults(found) == []
    assert [row["id"] for row in found["changed_rows"]] == [str(table.loc[kept, "id"])]
    assert found["agreement"]["rank correlation"] == pytest.approx(1)
    assert found["scores"]["difference"] == 0
    by_hand = full.summary["baselines"]["reweighted"]["score"]
    assert found["scores"]["first"] == pytest.approx(by_hand)
    said = bilevel("report", full.out, copied, "--out", "c.html")
    refused(3, "a comparison is saved as .json", said=said)
    moved = (copied / "config.toml").read_text().replace("holdout.", "not-there.")
    (copied / "config.toml").write_text(moved)
    seal(copied)
    said = bilevel("report", copied, full.out)
    assert said.code == 0, said.stderr
    assert "scores are not compared: the hold-out file is no longer in" in said.stdout


# -- audit ------------------------------------------------------------------------------------------


def audit(command: list[str], *options: str) -> Said:
    return bilevel("audit", *command[1:], "--id", "row", *options)


def test_audit_finds_nothing_wrong_with_clean_tables(tmp_path):
    command = write_tables(tmp_path)
    said = audit(command, "--strict")
    assert said.code == 0
    assert "NO" not in said.stdout.split()
    text = " ".join(said.stdout.split())
    assert "training rows among the hold-out rows: none (near: at a distance below" in text


def test_audit_finds_a_row_of_the_training_rows_in_the_holdout(tmp_path):
    command = write_tables(tmp_path)
    train, holdout = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("train", "holdout"))
    pixels = [f"p{i}" for i in range(64)]
    holdout.loc[3, pixels] = train.loc[7, pixels]
    write_table(holdout, tmp_path / "holdout.csv")
    said = audit(command, "--json")
    assert said.code == 0
    found = json.loads(said.stdout)
    assert found["passed"] is False
    (problem,) = [f for f in found["findings"] if f["severity"] == "problem"]
    assert problem["title"] == "training rows among the hold-out rows"
    assert (problem["ids"], problem["num_ids"]) == (["r7"], 1)
    assert f"(there: '{holdout.loc[3, 'row']}')" in problem["detail"]
    strict = audit(command, "--strict")
    assert strict.code == 4
    text = " ".join(strict.stdout.split())
    assert "NO training rows among the hold-out rows: 1 training row equal to a" in text
    assert strict.stdout.count("NO") == 1


def test_audit_refuses_what_is_not_there(tmp_path):
    command = write_tables(tmp_path)
    refused(
        3, "the train file has no column 'p64' to --drop.", said=audit(command, "--drop", "p64")
    )
    refused(3, "has no column 'digits' (--label)", said=audit(command, "--label", "digits"))
    refused(2, "--label", said=bilevel("audit", command[1]))
    (tmp_path / "trusted.csv").unlink()
    refused(3, "trusted.csv does not exist; check the path.", said=audit(command))


# -- report -----------------------------------------------------------------------------------------


def test_report_writes_the_page_again(full, copied):
    page = (copied / "report.html").read_bytes()
    (copied / "report.html").unlink()
    said = bilevel("report", copied)
    assert said.code == 0
    assert said.stdout == f"written to {copied / 'report.html'}\n"
    assert (copied / "report.html").read_bytes() == page
    assert sorted(path.name for path in copied.iterdir()) == full.files


def test_report_needs_a_run_with_one(copied, tmp_path):
    refused(3, "is not a run folder of `bilevel weigh`", said=bilevel("report", tmp_path))
    said = bilevel("report", copied, "--out", tmp_path / "x.pdf")
    refused(3, "a report is saved as .html or .json, got 'x.pdf'.", said=said)
    (copied / "report.json").write_text('{"format": "another"}')
    refused(3, "report.json has changed since the run", said=bilevel("report", copied))
    seal(copied)
    refused(3, "report.json is not a report saved as JSON", said=bilevel("report", copied))
    (copied / "report.json").unlink()
    refused(3, "no report.json: it was weighed with --no-report.", said=bilevel("report", copied))


# -- configuration files ----------------------------------------------------------------------------


EVERYTHING: dict[str, Any] = {
    "train": "a.csv",
    "label": "y",
    "trusted": "b.csv",
    "out": "run",
    "holdout": "c.csv",
    "id": "key",
    "groups": "source",
    "drop": ["p", "q"],
    "images": "p.npy",
    "pred_probs": "q.npy",
    "pred_probs_trusted": "r.npy",
    "given_label": "before",
    "estimator": "trees",
    "task": "regression",
    "method": "auto",
    "model": "linear",
    "l2": 0.5,
    "sample_weight": "w",
    "entity": "person",
    "time": "day",
    "metric": "r2",
    "precision": 0.9,
    "memory": "3GB",
    "seed": 7,
    "report": False,
    "control": True,
    "show": ["text", "size"],
    "truth": "right",
    "minutes_per_check": 1.5,
    "private": False,
}
ONLY_AUTO = (
    *("groups", "pred_probs", "given_label", "precision"),
    *("sample_weight", "entity", "time"),
)


def write_config(folder: Path, values: dict[str, Any], extra: str = "") -> Path:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "settings.toml"
    path.write_text("\n".join([*lines, extra]), encoding="utf-8")
    return path


def config(**changes: Any) -> _weigh_work.WeighConfig:
    values: dict[str, Any] = {**EVERYTHING, "drop": ("p", "q"), "show": ("text", "size"), **changes}
    return _weigh_work.WeighConfig(**values)


@pytest.fixture
def asked(monkeypatch) -> list[tuple[_weigh_work.WeighConfig, bool]]:
    """What `weigh` was called with: it makes no run, whose result would not be believable."""
    calls = []

    def make_no_run(config: _weigh_work.WeighConfig, resume: bool, team: Team) -> Any:
        assert team.count == 1
        calls.append((config, resume))
        result = SimpleNamespace(believable=False)
        return SimpleNamespace(result=result, folder=Path(config.out), summary={"rows": 3})

    monkeypatch.setattr(_weigh_work, "weigh", make_no_run)
    return calls


def test_every_option_of_weigh_can_be_set_in_a_file(tmp_path, asked):
    """Also in a run's `config.toml`, which has the names of the options."""
    more = {"num_steps": 5, "json": True, "resume": True, "strict": True, "dry_run": False}
    more |= {"processes": 1, "overlap": "keep"}  # which has no effect any more
    command: Any = typer.main.get_command(app)
    names = {p.name.rstrip("_") for p in command.commands["weigh"].params} - {
        "config",
        "allow_code",
        *PLACES,
    }
    assert names == EVERYTHING.keys() | more.keys()
    values = EVERYTHING | more | {"method": "near-exact"}
    for key in ONLY_AUTO:  # and that takes no num_steps
        del values[key]
    said = bilevel("weigh", "-c", write_config(tmp_path, values))
    assert said.code == 4
    assert json.loads(said.stdout) == {"rows": 3, "folder": "run"}
    said = bilevel("weigh", "--json", "-c", write_config(tmp_path, EVERYTHING))
    assert said.code == 0
    (free, resume), (learned, anew) = asked
    assert (resume, anew) == (True, False)
    assert learned == config()
    assert free == config(**dict.fromkeys(ONLY_AUTO), method="near-exact", num_steps=5)


@pytest.mark.parametrize("dashed", [False, True])
def test_names_have_dashes_or_underscores(tmp_path, asked, monkeypatch, dashed):
    values = EVERYTHING | {"num_steps": 5, "method": "soba", "dry_run": True}
    for key in ONLY_AUTO:
        del values[key]
    names = {key: key.replace("_", "-") if dashed else key for key in values}
    estimated = []

    def estimate(config: _weigh_work.WeighConfig) -> Estimate:
        estimated.append(config)
        return Estimate(1, 2, 3, 4, 50.0, 6e9)

    monkeypatch.setattr(_weigh_cost, "estimate", estimate)
    path = write_config(tmp_path, {names[key]: value for key, value in values.items()})
    said = bilevel("weigh", "-c", path)
    assert said.code == 0
    assert "about 50 seconds and 6.0 GB of memory" in said.stdout
    assert [config.num_steps for config in estimated] == [5]
    assert asked == []


def test_the_command_line_wins(tmp_path, asked):
    path = write_config(tmp_path, EVERYTHING)
    options = ["--seed", "8", "--out", "other", "--drop", "r", "--report", "--no-control"]
    assert bilevel("weigh", "d.csv", "-c", path, *options, "--task", "auto", "--json").code == 0
    assert bilevel("weigh", *options, "--json", "--config", path).code == 0
    won: dict[str, Any] = {"seed": 8, "out": "other", "drop": ("r",), "report": True}
    (first, _), (second, _) = asked
    assert first == config(**won, control=False, train="d.csv", task="auto")
    assert second == config(**won, control=False)


@pytest.mark.parametrize(
    ("extra", "messages"),
    [
        (
            "lern-rate = 3",
            ["settings.toml sets lern-rate, which `weigh` does not have; it has control,"],
        ),
        ("allow-code = true", ["sets allow_code, which no file can", "say --allow-code on the"]),
        ("[weigh]\nl1 = 3", ["settings.toml sets weigh, which `weigh` does not have"]),
        (
            "id2 =\n",
            [
                f"settings.toml is not TOML: Invalid value (at line {len(EVERYTHING) + 1}, column 6)."
            ],
        ),
        ("seed = 8", ["settings.toml is not TOML: Cannot overwrite a value"]),
        ('coordinator = "elsewhere:1"', ["coordinator"]),  # which is said to each process
    ],
)
def test_a_file_that_cannot_be_followed_is_refused(tmp_path, asked, extra, messages):
    said = bilevel("weigh", "-c", write_config(tmp_path, EVERYTHING, extra))
    refused(2, *messages, said=said)
    assert asked == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", "seven", "Invalid value for '--seed'"),
        ("seed", 1.5, "Invalid value for '--seed'"),
        ("l2", -1, "Invalid value for '--l2'"),
        ("task", "ranking", "'ranking' is not one of 'auto', 'classification', 'regression'"),
        ("drop", 3, "Invalid value for '--drop'"),
        ("num_steps", 5, "--method auto chooses where to stop"),
        ("method", "soba", "--groups: needs --method auto and --model linear"),
        ("model", "mlp", "--groups: needs --method auto and --model linear"),
    ],
)
def test_values_that_an_option_does_not_take_are_refused(tmp_path, asked, name, value, message):
    said = bilevel("weigh", "-c", write_config(tmp_path, EVERYTHING | {name: value}))
    refused(2, message, said=said)
    assert asked == []


@pytest.mark.parametrize(
    "option",
    ["groups", "given-label", "pred-probs", "precision", "sample-weight", "entity", "time"],
)
def test_free_weights_refuse_what_they_do_not_have_before_a_table_is_read(tmp_path, option):
    said = bilevel(
        *("weigh", tmp_path / "none.csv", "--label", "y", "--trusted", tmp_path / "none.csv"),
        *("--out", tmp_path / "run", "--method", "soba", f"--{option}", "0.5"),
    )
    refused(2, f"--{option}: needs --method auto and --model linear.", said=said)


@pytest.mark.parametrize("option", ["l2", "minutes-per-check"])
def test_infinite_numbers_are_refused(tmp_path, option):
    paths = tmp_path / "none.csv", "--label", "y", "--trusted", tmp_path / "none.csv"
    said = bilevel("weigh", *paths, "--out", tmp_path / "run", f"--{option}", "inf")
    refused(2, f"--{option}: must be a finite number.", said=said)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    said = bilevel("weigh", "-c", tmp_path / "none.toml")
    refused(2, "none.toml cannot be read: No such file or directory.", said=said)
    path = write_config(tmp_path, {"label": "x"})
    refused(2, "Missing argument 'TRAIN'", said=bilevel("weigh", "-c", path))
    path.write_bytes('label = "\xe9"'.encode("latin-1"))
    refused(2, "settings.toml is not TOML: 'utf-8' codec", said=bilevel("weigh", "-c", path))


def test_other_commands_read_such_files_too(full, tmp_path):
    values = {"run": str(full.out), "budget": 4, "json": True, "out": str(tmp_path / "x.csv")}
    said = bilevel("suggest", "-c", write_config(tmp_path, values))
    assert said.code == 0
    assert len(json.loads(said.stdout)) == len(pd.read_csv(tmp_path / "x.csv")) == 4
    said = bilevel("suggest", "-c", write_config(tmp_path, values), "--budget", "2")
    assert len(json.loads(said.stdout)) == 2
    said = bilevel("score", "-c", write_config(tmp_path, values))
    refused(
        2,
        "sets budget, which `score` does not have; it has id, json, label, out, pred_probs,",
        said=said,
    )


# -- the dry run ------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_run_would_cost_and_writes_nothing(tmp_path):
    command = [*write_tables(tmp_path), "--id", "row", "--out", str(tmp_path / "new" / "run")]
    before = sorted(tmp_path.rglob("*"))
    said = bilevel(*command, "--dry-run", "--json")
    assert said.code == 0
    cost = json.loads(said.stdout)
    sizes = {"train_rows": TRAIN, "trusted_rows": TRUSTED, "columns": 64, "outputs": 10}
    assert {name: cost[name] for name in sizes} == sizes
    assert set(cost) == {*sizes, "seconds", "bytes", "notes"}
    assert cost["seconds"] >= 10  # what it takes to start
    assert 1e8 < cost["bytes"] < 2e9
    said = bilevel(*command, "--dry-run")
    assert said.code == 0
    assert "400 training and 150 trusted rows, 64 numeric columns, 10 outputs: " in said.stdout
    assert said.stdout.endswith("Nothing was written.\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_finds_what_a_run_would_refuse(tmp_path):
    command = [*write_tables(tmp_path), "--id", "row", "--out", str(tmp_path / "run"), "--dry-run"]
    trusted = pd.read_csv(tmp_path / "trusted.csv")

    def refuse(code: int, message: str, *options: str, spoilt: pd.DataFrame = trusted) -> None:
        write_table(spoilt, tmp_path / "trusted.csv")
        refused(code, message, said=bilevel(*command, *options))

    train = pd.read_csv(tmp_path / "train.csv")
    refuse(
        3,
        "the trusted rows have labels that the training rows lack: 10",
        spoilt=trusted.assign(digit=trusted["digit"] + 1),
    )
    refuse(2, "takes one label column, got 2", "--label", "digits")
    command[command.index("--label") + 1] = "digits"
    refuse(3, "no column 'digits' (--label); did you mean 'digit'?")
    command[command.index("--label") + 1] = "digit"
    refuse(3, "must have the same columns", spoilt=trusted.drop(columns="p3"))
    refuse(3, "has no column 'nowhere' (--groups)", "--groups", "nowhere")
    write_table(train.assign(source="only"), tmp_path / "train.csv")
    refuse(3, "`groups` has 1 distinct values", "--groups", "source")
    refuse(3, "must have the same columns")
    assert bilevel(*command, "--drop", "source").code == 0  # which only the training table has
    holdout = pd.read_csv(tmp_path / "holdout.csv")
    for name, table in (("train", train), ("holdout", holdout)):
        write_table(table.query("digit < 2"), tmp_path / f"{name}.csv")
    few = trusted.query("digit < 2").groupby("digit").head(2)
    refuse(3, "got 4 trusted rows, at least 6 are needed", spoilt=few)
    (tmp_path / "run").mkdir()
    refuse(2, "exists, and is no run folder; it is not touched")


# -- bench ------------------------------------------------------------------------------------------


def test_bench_helps():
    said = bilevel("bench", "--help")
    assert said.code == 0
    assert "--seeds" in said.stdout
    assert "Where does weighting pay?" in said.stdout


def test_bench_shows_means_over_the_seeds(monkeypatch):
    calls = []

    def cell(data: str, rows: int, trusted: int, noise: float, seed: int) -> tuple[float, float]:
        calls.append((data, rows, trusted, noise, seed))
        return 0.01 * (seed + 1), trusted / 1000

    monkeypatch.setattr(_demo_work, "bench_cell", cell)
    said = bilevel("bench", "--seeds", "3")
    assert said.code == 0
    assert calls == [(*line, seed) for line in _demo_work.BENCH for seed in range(3)]
    lines = [line.split("│") for line in said.stdout.splitlines() if "%" in line]
    assert len(lines) == len(_demo_work.BENCH) == 18
    for line, (data, rows, trusted, noise) in zip(lines, _demo_work.BENCH, strict=True):
        assert [cell.strip() for cell in line[1:-1]] == [
            *(data, str(rows), str(trusted), f"{noise:.0%}", "+0.0200", f"{trusted / 1000:+.4f}")
        ]


# -- full runs beyond those above -------------------------------------------------------------------


@pytest.mark.slow
def test_groups_may_be_dates_and_the_control_is_in_the_report(tmp_path):
    command = write_sources(tmp_path)
    table: Any = pd.read_csv(tmp_path / "train.csv")
    days = dict(zip(["a", "b", "guesses"], pd.date_range("2026-01-01", periods=3), strict=True))
    write_table(table.assign(source=table["source"].map(days)), tmp_path / "train.parquet")
    command[1] = str(tmp_path / "train.parquet")
    run = weigh([*command, "--control"], tmp_path / "run")
    assert run.code == 0
    weights = list(run.summary["group_weights"].values())
    assert weights[2] < 0.3 * min(weights[:2])
    evidence = json.loads((run.out / "report.json").read_text(encoding="utf-8"))
    assert evidence["overfitting"]["control"]["winner"] in {*run.summary["candidates"]}
    assert "shuffled trusted labels" in evidence["overfitting"]["sentence"]
