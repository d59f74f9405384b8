"""Two runs compared: settings, rows that changed sides, the paired difference of the scores."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.pipeline import Pipeline

from bilevel.cli import _compare_work
from bilevel.cli._compare_work import _named_by_content, _per_row, _scores, _share_ids
from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._inputs.columns import vectorise
from bilevel.reweighting._inputs.files import digest
from bilevel.reweighting._report.compared import Scores, compare_runs
from bilevel.reweighting._weights.metric import Metric


def weights(order: np.ndarray, flagged: list[int]) -> pd.DataFrame:
    n = len(order)
    return pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(n)],
            "weight": np.ones(n),
            "label_quality": order / n,
            "keep": ~np.isin(np.arange(n), flagged),
        }
    )


CONFIG = {
    "seed": 0,
    "label": "y",
    "train": "a.csv",
    "out": "one",
    "sha256": {"train": "1", "holdout": "2"},
}


def test_rows_settings_and_scores():
    first = weights(np.arange(400), [0, 1, 2, 3])
    swapped = np.arange(400)
    swapped[[0, 300]] = swapped[[300, 0]]
    second = weights(swapped, [1, 2, 3, 300]).iloc[::-1]  # the order of the file says nothing
    other = CONFIG | {"seed": 3, "out": "two", "sha256": {"train": "1", "holdout": "2"}}
    right = np.array([1, 1, 0, 1, 0, 1, 1, 0.0]), np.array([1, 1, 1, 1, 0, 1, 0, 1.0])
    found = compare_runs((CONFIG, other), (first, second), Scores("accuracy", 8, *right))
    assert found.settings == {"seed": (0, 3)}
    assert found.files == []
    assert found.rows == 400
    assert found.agreement["50"] == 49 / 50
    assert found.agreement["rank correlation"] == pytest.approx(
        1 - 6 * 2 * 300**2 / (400 * (400**2 - 1))  # Spearman's formula
    )
    assert found.changed[["id", "first", "second"]].to_numpy().tolist() == [
        ["r0", "flag", "keep"],
        ["r300", "keep", "flag"],
    ]
    assert found.scores is not None
    difference = right[1] - right[0]
    assert found.scores["difference"] == pytest.approx(0.125)
    assert found.scores["standard_error"] == pytest.approx(difference.std(ddof=1) / np.sqrt(8))
    text = str(found)
    assert "accuracy on 8 hold-out rows: 0.6250 and 0.7500" in text
    assert "seed: 0 in the first run, 3 in the second" in text
    assert "flagged: 4 and 4; 2 rows changed sides" in text
    assert "r0: flag, then keep" in text


def test_other_files_and_rows_that_only_one_run_has():
    second = CONFIG | {"train": "b.csv", "sha256": {"train": "9", "holdout": "2"}}
    found = compare_runs(
        (CONFIG, second),
        (weights(np.arange(100), [1]), weights(np.arange(80), [1])),
        "for a reason",
    )
    assert (found.files, found.rows, found.scores) == (["train"], 80, None)
    assert found.settings == {"train": ("a.csv", "b.csv")}
    assert "scores are not compared: for a reason\n" in f"{found}\n"
    assert (found.to_dict()["scores"], found.to_dict()["unscored"]) == (None, "for a reason")
    renamed = CONFIG | {"train": "renamed.csv"}  # the same file under another name
    nine = weights(np.arange(9), [])
    same = compare_runs((CONFIG, renamed), (nine, nine), "")
    assert same.settings == {}
    assert "both runs were asked the same of the same files" in str(same)


def test_ids_that_repeat_are_compared_in_their_order():
    table = weights(np.arange(6), [1]).assign(id=["a", "a", "a", "b", "c", "c"])
    found = compare_runs((CONFIG, CONFIG), (table, table), "")
    assert (found.rows, len(found.changed)) == (6, 0)
    one = table.assign(keep=True)
    assert str(compare_runs((CONFIG, CONFIG), (table, one), "")).count("1 row changed sides") == 1


def test_row_numbers_of_different_files_name_no_rows(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=30), "b": list("uvw") * 10, "y": list("no") * 15})
    table.loc[29, ["a", "b"]] = table.loc[2, ["a", "b"]]  # equal rows are told apart by their order
    order = rng.permutation(30)[:25]
    other = table.iloc[order].assign(y="o").reset_index(drop=True)[["b", "y", "a"]]
    other.loc[[3, 7], "a"] = 9.0
    paths = [tmp_path / "one.csv", tmp_path / "two.parquet"]
    table.to_csv(paths[0], index=False)
    other.to_parquet(paths[1])
    runs = [
        (tmp_path, {"train": str(p), "label": "y", "sha256": {"train": digest(p)}}) for p in paths
    ]
    folders, configs = (list(x) for x in zip(*runs, strict=True))
    tables = [pd.DataFrame({"id": np.arange(n), "keep": True}) for n in (30, 25)]
    monkeypatch.setattr(_compare_work, "read_summary", lambda run: {})
    assert not _share_ids(configs, tables)
    assert _share_ids([configs[0], configs[0]], [tables[0], tables[0]])
    assert _share_ids([c | {"id": "key"} for c in configs], tables)
    assert not _share_ids([configs[0], configs[0] | {"id": "key"}], [tables[0], tables[0]])
    first, second = _named_by_content((folders[0], folders[1]), configs, tables)
    twins = np.flatnonzero(np.isin(order, [2, 29]))  # the first of them is the first
    expected = order.astype(str).astype(object)
    expected[twins] = ["2", "29"][: len(twins)]
    expected[[3, 7]] = ["3 of the second run", "7 of the second run"]
    assert first["id"].tolist() == [str(k) for k in range(30)]
    assert second["id"].tolist() == expected.tolist()
    with pytest.raises(InputError, match=r"no longer in .*Weigh both with the same --id"):
        _named_by_content(
            (folders[0], folders[1]),
            [configs[0], configs[1] | configs[0] | {"sha256": {"train": "x"}}],
            tables,
        )


def test_both_models_are_judged_on_the_hold_out_whose_sum_is_checked(tmp_path, monkeypatch):
    """The second run may have read it elsewhere, where something else is now."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=60), "y": rng.choice(["yes", "no"], 60)})
    names = ("train", "holdout", "other")
    paths = {name: str(tmp_path / f"{name}.parquet") for name in names}
    for path in paths.values():
        table.to_parquet(path)
    encoder, _, matrices = vectorise({"train": pd.DataFrame(table[["a"]])})
    model = Pipeline(
        [*encoder.steps, ("model", LogisticRegression().fit(matrices["train"], table["y"]))]
    )
    sums = {name: digest(Path(paths["train"])) for name in ("train", "holdout")}
    one = {"train": paths["train"], "label": "y", "sha256": sums, "holdout": paths["holdout"]}
    table.iloc[::-1].to_parquet(paths["other"])
    monkeypatch.setattr(_compare_work, "check_unchanged", lambda *_: None)
    monkeypatch.setattr(_compare_work, "load_model", lambda *_: model)
    found = _scores((tmp_path, tmp_path), [one, one | {"holdout": paths["other"]}])
    assert isinstance(found, Scores)
    np.testing.assert_array_equal(found.first, found.second)


def test_models_are_compared_by_the_metric_of_both_runs():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(120, 2)), columns=["a", "b"])
    y = pd.Series(np.where(X["a"] + rng.normal(size=120) > 0, "yes", "no"))
    model = LogisticRegression().fit(X, y)
    part = _per_row(model, X, y, False, Metric.of("roc_auc"))
    assert part is not None
    assert part.mean() == pytest.approx(roc_auc_score(y, model.predict_proba(X)[:, 1]))
    assert len(part) == 20
    right = _per_row(model, X, y, False, None)
    assert right is not None
    assert right.mean() == model.score(X, y)
    assert _per_row(model, X, y.replace("no", "never"), False, Metric.of("roc_auc")) is None
    line = LinearRegression().fit(X, X["a"] * 2 + X["b"] ** 2)
    for metric in (None, Metric.of("r2")):
        part = _per_row(line, X, pd.Series(X["a"]), True, metric)
        assert part is not None
        assert part.mean() == pytest.approx(r2_score(X["a"], line.predict(X)))
