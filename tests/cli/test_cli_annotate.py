"""`bilevel export` and `collect`: rows to annotation tools, decisions back as trusted rows."""

import json
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bilevel.cli._annotation_formats import (
    RowToCheck,
    from_argilla,
    from_label_studio,
    label_studio_config,
    to_argilla,
    to_label_studio,
)
from bilevel.cli._run_files import write_summary
from bilevel.cli._weigh_config import WeighConfig
from bilevel.reweighting import InputError
from bilevel.reweighting._inputs.files import digest
from runs import Run, bilevel, full_run

ROWS = [
    RowToCheck("r1", {"size": 2.5, "note": "a\x1b\n<b>"}, "cat", "dog", 0.9),
    RowToCheck("r2", {"size": None, "note": "x"}, "dog", "dog & cat", None),
]
CLASSES = ["cat", "dog", "dog & cat"]


def answered_in_label_studio(tasks: list[dict[str, Any]], choices: list[str | None]) -> list[Any]:
    """What Label Studio exports as JSON once people have chosen; None is a skipped task."""
    exported = []
    for k, (task, choice) in enumerate(zip(tasks, choices, strict=True)):
        result = [
            {
                "id": f"x{k}",
                "from_name": "label",
                "to_name": "row",
                "type": "choices",
                "origin": "manual",
                "value": {"choices": [choice]},
            }
        ]
        annotation = {
            "id": k,
            "completed_by": 1,
            "was_cancelled": choice is None,
            "ground_truth": False,
            "result": [] if choice is None else result,
            "lead_time": 2.5,
        }
        exported.append(task | {"id": k + 1, "annotations": [annotation], "project": 1})
    return exported


def answered_in_argilla(records: list[dict[str, Any]], choices: list[str | None]) -> list[Any]:
    return [
        record
        | {
            "status": "completed",
            "responses": {}
            if choice is None
            else {"label": [{"value": choice, "user_id": "5a3f1c1e-0000-4000-8000-000000000000"}]},
        }
        for record, choice in zip(records, choices, strict=True)
    ]


def test_tasks_of_label_studio_and_what_comes_back():
    tasks = to_label_studio(ROWS)
    assert tasks[0] == {
        "data": {"row_id": "r1", "given_label": "cat", "text": "size: 2.5\nnote: a␛\n<b>"},
        "predictions": [
            {
                "model_version": "bilevel",
                "result": [
                    {
                        "from_name": "label",
                        "to_name": "row",
                        "type": "choices",
                        "value": {"choices": ["dog"]},
                    }
                ],
                "score": 0.9,
            }
        ],
    }
    assert "score" not in tasks[1]["predictions"][0]
    view = ET.fromstring(label_studio_config(CLASSES))
    assert [choice.get("value") for choice in view.iter("Choice")] == CLASSES
    assert view.find("Choices").get("toName") == view.find("Text").get("name")  # pyright: ignore
    answers = from_label_studio(answered_in_label_studio(tasks, ["cat", None]))
    assert answers == ({"r1": "cat"}, (), ("r2",))
    with pytest.raises(InputError, match=r"no export of Label Studio.*'row_id'"):
        from_label_studio([{"data": {}}])
    with pytest.raises(InputError, match="is a list, got dict"):
        from_label_studio({})


def test_records_of_argilla_and_what_comes_back():
    records = to_argilla(ROWS)
    assert records[0]["suggestions"] == {
        "label": {"value": "dog", "agent": "bilevel", "score": 0.9}
    }
    answers = from_argilla(answered_in_argilla(records, [None, "dog & cat"]))
    assert answers == ({"r2": "dog & cat"}, (), ("r1",))
    with pytest.raises(InputError, match="no export of Argilla"):
        from_argilla([{"responses": {"label": [3]}}])


def said(choices: Any, person: Any = 1, **more: Any) -> dict[str, Any]:
    part = {
        "from_name": "label",
        "to_name": "row",
        "type": "choices",
        "value": {"choices": choices},
    }
    return {"completed_by": person, "result": [part] if choices else [], **more}


@pytest.mark.parametrize(
    ("annotations", "outcome"),
    [
        ([said(["cat"]), said(["dog"], 2)], "disputed"),
        ([said(["cat"]), said(["cat"], 2)], "cat"),
        ([said(["cat"]), said(["dog"])], "dog"),  # one person thought again
        ([said(["cat"], updated_at="2026-02"), said(["dog"], updated_at="2026-01")], "cat"),
        ([said(["cat"], ground_truth=True), said(["dog"], 2)], "cat"),
        (
            [said(["cat"], {"id": 1, "email": "a"}), said(["dog"], {"id": 2, "email": "b"})],
            "disputed",
        ),
        ([said(["cat"]), said([])], "open"),  # and took the answer back
        ([said(["cat"]), said([], 2)], "cat"),
        ([said(["cat"]), said(["dog"], 2, was_cancelled=True)], "cat"),
        ([said(["cat", "dog"])], "open"),
        (None, "open"),
    ],
)
def test_what_several_people_say_of_a_row_in_label_studio(annotations, outcome):
    """A trusted label is one that nobody who answered contradicts."""
    task = {"data": {"row_id": "r1"}, "annotations": annotations}
    found = from_label_studio([task])
    assert found.decided == ({} if outcome in ("disputed", "open") else {"r1": outcome})
    assert found.disputed == (("r1",) if outcome == "disputed" else ())
    assert found.open == (("r1",) if outcome == "open" else ())
    tasks = [task | {"annotations": [a]} for a in annotations or []]  # the row, imported twice
    assert not tasks or from_label_studio(tasks) == found


def test_choices_of_another_interface_are_named():
    task = {"data": {"row_id": "r1"}, "annotations": [said(["cat"])]}
    task["annotations"][0]["result"][0]["from_name"] = "sentiment"
    with pytest.raises(InputError, match=r"called 'sentiment', and 'label' in the interface"):
        from_label_studio([task])


def test_drafts_and_contradictions_in_argilla_decide_nothing():
    """A pending record has drafts and discarded answers only, which the export does not tell apart."""
    record = answered_in_argilla(to_argilla(ROWS[:1]), ["cat"])[0]
    assert from_argilla([record | {"status": "pending"}]) == ({}, (), ("r1",))
    other = {"value": "dog", "user_id": "5a3f1c1e-0000-4000-8000-000000000001"}
    record["responses"]["label"].append(other)
    assert from_argilla([record]) == ({}, ("r1",), ())


def test_label_studio_s_own_sdk_takes_the_tasks():
    sdk = pytest.importorskip("label_studio_sdk.label_interface")
    interface = sdk.LabelInterface(label_studio_config(CLASSES))
    interface.validate()
    for task in to_label_studio(ROWS):
        assert interface.validate_prediction(task["predictions"][0])
    for task in answered_in_label_studio(to_label_studio(ROWS), ["cat", "dog"]):
        assert interface.validate_annotation(task["annotations"][0])


def test_argilla_s_own_records_take_ours_and_give_them_back():
    argilla = pytest.importorskip("argilla")
    records = answered_in_argilla(to_argilla(ROWS), ["cat", "dog"])
    read = [argilla.Record.from_dict(record) for record in records]
    again = json.loads(json.dumps([record.to_dict() for record in read], default=str))
    again = [record | {"status": "completed"} for record in again]  # which a server says
    assert from_argilla(again).decided == {"r1": "cat", "r2": "dog"}
    assert [r["suggestions"] for r in again] == [r["suggestions"] for r in records]


# -- a run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Run:
    return full_run(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("tool", ["label-studio", pytest.param("argilla", marks=pytest.mark.slow)])
def test_rows_go_out_and_come_back_as_trusted_rows(full, tmp_path, tool):
    out = tmp_path / "tasks.json"
    said = bilevel("export", full.out, "--out", out, "--rows", "12", "--format", tool)
    assert said.code == 0, said.stderr
    tasks = json.loads(out.read_text())
    weights = full.weights.astype({"id": str})
    flagged = weights[~weights["keep"]].sort_values("label_quality", kind="stable")
    ids = [task["id"] if tool == "argilla" else task["data"]["row_id"] for task in tasks]
    assert ids == flagged["id"].tolist()[:12]
    assert (tmp_path / "tasks.xml").exists() == (tool == "label-studio")
    choices = [*flagged["predicted_label"].astype(str).tolist()[:10], None, None]
    answered = answered_in_argilla if tool == "argilla" else answered_in_label_studio
    (tmp_path / "done.json").write_text(json.dumps(answered(tasks, choices)))
    said = bilevel(
        "collect", full.out, tmp_path / "done.json", "--format", tool, "--out", tmp_path / "next"
    )
    assert said.code == 0, said.stderr
    trusted = pd.read_parquet(tmp_path / "next" / "trusted.parquet")
    train = pd.read_parquet(tmp_path / "next" / "train.parquet")
    label, key = full.config["label"], full.config["id"]
    assert len(train) == len(weights) - 10
    assert not set(train[key].astype(str)) & set(ids[:10])
    new = trusted.tail(10)
    assert new[key].astype(str).tolist() == ids[:10]
    assert new[label].astype(str).tolist() == choices[:10]
    given = flagged["given_label"].astype(str).tolist()[:10]
    assert new["given_label"].astype(str).tolist() == given
    assert int(np.sum(np.asarray(trusted["given_label"].isna()))) == len(trusted) - 10
    command = shlex.split(said.stdout.split("weigh again:")[1])
    assert command[:3] == ["bilevel", "weigh", str(tmp_path / "next" / "train.parquet")]
    assert command[command.index("--given-label") + 1] == "given_label"
    assert bilevel(*command[1:-1], tmp_path / "again", "--dry-run").code == 0
    assert bilevel("collect", full.out, out, "--format", tool, "--out", tmp_path / "x").code == 3


def test_decisions_that_do_not_fit_are_refused(full, tmp_path):
    rows = [RowToCheck("nobody", {}, "1", "2", None)]
    for row, choice, message in [
        (rows[0], "1", "decides rows that the training rows lack: 'nobody'"),
        (rows[0]._replace(id=str(full.weights["id"][0])), "many", "has classes that no table has"),
    ]:
        done = answered_in_label_studio(to_label_studio([row]), [choice])
        (tmp_path / "done.json").write_text(json.dumps(done))
        said = bilevel("collect", full.out, tmp_path / "done.json", "--out", tmp_path / "next")
        assert said.code == 3
        assert "".join(message.split()) in said.squeezed
        assert not (tmp_path / "next").exists()


def begun_run(folder: Path, tables: dict[str, pd.DataFrame], **options: Any) -> Path:
    """A run folder with its settings alone, of these tables."""
    run, paths = folder / "run", {name: folder / f"{name}.parquet" for name in tables}
    run.mkdir()
    for name, table in tables.items():
        table.to_parquet(paths[name])
    settings: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    settings = {"id": "id"} | settings | options
    config = WeighConfig(**settings, label="y", out=str(run))
    sums = {name: digest(path) for name, path in paths.items()}
    (run / "config.toml").write_text(config.to_toml(sums))
    write_summary({}, run)
    return run


@pytest.mark.parametrize(("index", "name"), [([5, 0, 2], "0"), ([0, 0, 1], "1"), (None, "1")])
def test_rows_without_ids_are_called_as_in_the_weights(tmp_path, index, name):
    """By the index that a data frame was saved with, where it names each row."""
    table = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": ["a", "b", "b"]}, index=index)
    run = begun_run(tmp_path, {"train": table, "trusted": table}, id=None)
    task = {"data": {"row_id": name}, "annotations": [said(["a"])]}
    (tmp_path / "done.json").write_text(json.dumps([task]))
    found = bilevel("collect", run, tmp_path / "done.json", "--out", tmp_path / "next")
    assert found.code == 0, found.stderr
    both = pd.read_parquet(tmp_path / "next" / "trusted.parquet")
    assert both[["x", "y", "given_label"]].iloc[-1].tolist() == [2.0, "a", "b"]
    rest = pd.read_parquet(tmp_path / "next" / "train.parquet")
    assert rest.index.tolist() == table.index[[0, 2]].tolist()
    assert rest["x"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ([False, True, True], "False"),
        (pd.array([False, True, True], "boolean"), "False"),
        (pd.to_datetime(["2025-01-01", "2026-01-01", "2026-01-01"]), "2025-01-01 00:00:00"),
        (pd.Categorical(["0", "1", "1"]), "0"),
        ([0.0, 1.0, 1.0], "0"),
    ],
)
def test_decisions_are_labels_of_the_type_that_the_tables_have(tmp_path, labels, word):
    table = pd.DataFrame({"id": ["007", "7", "8"], "x": [1.0, 2.0, 3.0], "y": labels})
    table.index = pd.Index([0, 0, 1])  # which names no row
    trusted = table.assign(id=["a", "b", "c"])
    run = begun_run(tmp_path, {"train": table, "trusted": trusted})
    task = {"data": {"row_id": "7"}, "annotations": [said([word])]}
    (tmp_path / "done.json").write_text(json.dumps([task]))
    found = bilevel("collect", run, tmp_path / "done.json", "--out", tmp_path / "next")
    assert found.code == 0, found.stderr
    train, both = (
        pd.read_parquet(tmp_path / "next" / f"{n}.parquet") for n in ("train", "trusted")
    )
    assert train["id"].tolist() == ["007", "8"]
    assert both["id"].tolist() == ["a", "b", "c", "7"]
    assert both["y"].tolist() == [*table["y"], table["y"].iloc[0]]
    assert both["given_label"].iloc[-1] == table["y"].iloc[1]


def test_the_next_round_has_the_settings_of_this_one(tmp_path):
    """Else a column that was dropped, or that holds the truth, is a feature of the next run."""
    table = pd.DataFrame({"id": ["a", "b", "c"], "x": 1.0, "given_label": 2.0, "y": [0, 1, 1]})
    train = table.assign(junk=3, truth=[0, 0, 1], source="s", w=[1.0, 2.0, 3.0])
    trusted = table.assign(id=["d", "e", "f"], junk=4)
    options: Any = {"drop": ("junk",), "truth": "truth", "groups": "source", "sample_weight": "w"}
    options |= {"images": "pictures.npy", "pred_probs": "p, q", "report": False, "seed": 3}
    run = begun_run(tmp_path, {"train": train, "trusted": trusted}, **options)
    tasks = [
        {"data": {"row_id": "b"}, "annotations": [said(["0"])]},
        {"data": {"row_id": "a"}, "annotations": [said(["0"]), said(["1"], 2)]},
        {"data": {"row_id": "c"}, "annotations": [said([])]},
    ]
    (tmp_path / "done.json").write_text(json.dumps(tasks))
    found = bilevel("collect", run, tmp_path / "done.json", "--out", tmp_path / "next")
    assert found.code == 0, found.stderr
    words = " ".join(found.stdout.split())
    assert "people differ about 1 rows, which stay among the training rows: 'a'" in words
    assert "1 rows have no answer" in words
    assert "to be made anew: --images pictures.npy" in words
    command = shlex.split(words.split("weigh again:")[1])
    given = ["--groups", "source", "--drop", "junk", "--pred-probs", "p, q", "--sample-weight", "w"]
    given += ["--no-report", "--truth", "truth", "--seed", "3"]
    start = command.index("--groups")
    assert command[start:-2] == given
    assert command[command.index("--given-label") + 1] == "given_label_2"
    both = pd.read_parquet(tmp_path / "next" / "trusted.parquet")
    assert set(both) == {*trusted, "given_label_2", "w"}
    assert both["w"].tolist() == [1, 1, 1, 2]
    assert both["given_label"].tolist() == [2.0] * 4


@pytest.mark.slow
def test_three_rounds_find_more_wrong_labels_each_time(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 5))
    truth = np.where(X[:, 0] + X[:, 1] > 0, "a", "b")
    given = np.where(rng.random(900) < 0.2, np.where(truth == "a", "b", "a"), truth)
    table = pd.DataFrame(X, columns=[f"x{j}" for j in range(5)]).round(4)
    table.insert(0, "row", [f"r{i}" for i in range(900)])
    right = dict(zip(table["row"], truth, strict=True))
    table[:700].assign(y=given[:700]).to_csv(tmp_path / "train.csv", index=False)
    table[700:740].assign(y=truth[700:740]).to_csv(tmp_path / "trusted.csv", index=False)
    command = ["weigh", str(tmp_path / "train.csv"), "--label", "y", "--id", "row"]
    command += ["--trusted", str(tmp_path / "trusted.csv"), "--no-report"]
    corrected = []
    for k in range(3):
        run = tmp_path / f"run{k}"
        assert bilevel(*command, "--out", run).code == 0
        out = tmp_path / f"tasks{k}.json"
        assert bilevel("export", run, "--out", out, "--rows", "20").code == 0
        tasks = json.loads(out.read_text())
        done = answered_in_label_studio(tasks, [right[t["data"]["row_id"]] for t in tasks])
        (tmp_path / f"done{k}.json").write_text(json.dumps(done))
        folder = tmp_path / f"round{k}"
        said = bilevel("collect", run, tmp_path / f"done{k}.json", "--out", folder)
        assert said.code == 0, said.stderr
        corrected.append(sum(right[t["data"]["row_id"]] != t["data"]["given_label"] for t in tasks))
        command = [*shlex.split(said.stdout.split("weigh again:")[1])[1:-2], "--no-report"]
    assert min(corrected) >= 15  # of 20 checked in each round; 4 at random
    trusted = pd.read_parquet(tmp_path / "round2" / "trusted.parquet")
    assert len(trusted) == 40 + 60
    assert all(right[i] == y for i, y in zip(trusted["row"], trusted["y"], strict=True))


def test_private_runs_and_regressions_export_nothing(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("private = true\n")
    said = bilevel("export", folder, "--out", tmp_path / "t.json")
    assert said.code == 3
    assert not Path(tmp_path / "t.json").exists()
