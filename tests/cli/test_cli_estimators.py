"""`bilevel weigh --estimator`, `--pred-probs` and `--given-label`: from files to scored new rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from bilevel.cli import _estimators
from bilevel.cli._estimators import make_estimator, with_columns
from bilevel.datasets import flip_to_different
from bilevel.reweighting import InputError
from bilevel.reweighting._inputs.compact import compact_pipeline
from bilevel.reweighting._inputs.saved import load_model
from runs import Run, bilevel, weigh

KINDS = np.array(["car", "cat", "dog"])
N, M = 240, 60


def tables(rows: int = N + M + 60, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Numbers with gaps, a category that decides much, and labels as text."""
    rng = np.random.default_rng(seed)
    x, colour = rng.normal(size=(rows, 2)), rng.choice(["red", "green", "blue", "grey"], rows)
    score = x[:, 0] + np.select([colour == "red", colour == "blue"], [2.0, -2.0], 0.0)
    y = KINDS[np.digitize(score, [-1, 1])]
    x[rng.random(rows) < 0.1, 1] = np.nan
    names = [f"r{i}" for i in range(rows)]
    return pd.DataFrame({"id": names, "a": x[:, 0], "b": x[:, 1], "colour": colour}), y


def write(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """(arguments, tables): the training labels are wrong in a fifth of the rows."""
    X, y = tables()
    noisy, wrong = flip_to_different(y[:N], 0.2, seed=0)
    train = X.iloc[:N].assign(y=noisy)
    trusted = X.iloc[N : N + M].assign(y=y[N : N + M])
    rest = X.iloc[N + M :].assign(y=y[N + M :])
    found = {"train": train, "trusted": trusted, "new": rest}
    for name, table in found.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    command = ["weigh", str(folder / "train.csv"), "--label", "y", "--id", "id", "--no-report"]
    return [*command, "--trusted", str(folder / "trusted.csv")], found | {"wrong": wrong}


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> tuple[Run, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trees")
    command, found = write(folder)
    return weigh([*command, "--estimator", "trees"], folder / "run"), folder, found


@pytest.mark.slow
def test_trees_get_the_table_and_judge_the_labels(trees):
    run, _, found = trees
    assert run.code == 0, run.stderr
    assert (run.config["estimator"], run.summary["estimator"]) == ("trees", "trees")
    assert roc_auc_score(~found["wrong"], run.weights["label_quality"]) > 0.9
    model: Any = load_model(run.out / "model.skops", _estimators.SAVED_TYPES)
    assert type(model[-1]).__name__ == "HistGradientBoostingClassifier"
    # Two numbers with their gaps, and one column of codes, of which the trees know what it is.
    inside = model[:-1].transform(found["train"][["a", "b", "colour"]])
    assert inside.shape == (N, 3)
    np.testing.assert_array_equal(inside[:, :2], found["train"][["a", "b"]])
    assert np.isnan(inside[:, 1]).any()
    assert model[-1].is_categorical_.tolist() == [False, False, True]


@pytest.mark.slow
def test_the_saved_trees_say_of_new_rows_what_they_said_in_the_run(trees):
    run, folder, found = trees
    new = found["new"]
    flipped = new.assign(y=np.roll(KINDS, 1)[np.searchsorted(KINDS, new["y"])])
    flipped.to_csv(folder / "flipped.csv", index=False)
    areas = []
    for name in ("new", "flipped"):
        out = folder / f"{name}_scores.csv"
        said = bilevel("score", str(run.out), str(folder / f"{name}.csv"), "--out", str(out))
        assert said.code == 0, said.stderr
        areas.append(pd.read_csv(out)["keep"].mean())
    assert areas[0] > areas[1] + 0.5
    said = bilevel("suggest", str(run.out), "--budget", "5", "--json")
    assert said.code == 0, said.stderr


def test_unknown_estimators_and_code_are_refused_before_any_work(tmp_path):
    command, _ = write(tmp_path)
    for name, message in [
        ("tree", "isnotoneof'logistic','ridge','trees'"),
        ("os:system", "--allow-code"),
    ]:
        run = weigh([*command, "--estimator", name], tmp_path / "run")
        assert run.code == 3
        assert message in run.squeezed
        assert not (tmp_path / "run.partial").exists()


def test_code_of_the_users_runs_only_if_it_is_allowed(tmp_path, monkeypatch):
    (tmp_path / "my_models_here.py").write_text(
        "from sklearn.naive_bayes import GaussianNB\n"
        "made = GaussianNB(var_smoothing=0.1)\n"
        "def make():\n    return made\n"
        "broken = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert make_estimator("my_models_here:make", False, 0, allow_code=True).var_smoothing == 0.1
    command, _ = write(tmp_path)
    own = [*command, "--estimator", "my_models_here:made"]
    assert weigh(own, tmp_path / "run").code == 3
    run = weigh([*own, "--allow-code"], tmp_path / "run")
    assert run.code == 0, run.stderr
    assert run.config["estimator"] == "my_models_here:made"
    assert "allow_code" not in run.config  # it is said each time
    again = bilevel("weigh", "--config", run.out / "config.toml", "--out", tmp_path / "again")
    assert again.code == 3
    assert "--allow-code" in again.squeezed
    said = bilevel("score", str(run.out), str(tmp_path / "new.csv"))
    assert said.code == 0, said.stderr
    for name in ("my_models_here:broken", "my_models_here:none", "no_such_module_here:x"):
        with pytest.raises(InputError, match="cannot be loaded"):
            make_estimator(name, False, 0, allow_code=True)


@pytest.mark.parametrize(
    ("made", "columns"),
    [
        ("make_pipeline(make_column_transformer((S(), ['size', 'age'])), L())", "'size', 'age'"),
        ("make_pipeline(make_column_transformer((S(), slice('a', 'b'))), L())", "'a', 'b'"),
        ("C(make_pipeline(make_column_transformer((S(), selector())), L()))", "make_column_sel"),
        ("VotingClassifier([('a', T(categorical_features=['town']))])", "'town'"),
        ("make_pipeline(make_column_transformer((S(), [0, 1])), L())", None),
        ("T(categorical_features=['town'])", None),
        ("VotingClassifier([('a', T())])", None),
    ],
)
def test_own_estimators_that_pick_columns_by_name_are_refused_at_once(
    tmp_path, monkeypatch, made, columns
):
    """They get numbers without names; they ended in scikit-learn's own words after the search."""
    module = f"by_name_{abs(hash(made))}"
    (tmp_path / f"{module}.py").write_text(
        "from sklearn.calibration import CalibratedClassifierCV as C\n"
        "from sklearn.compose import make_column_selector as selector, make_column_transformer\n"
        "from sklearn.ensemble import HistGradientBoostingClassifier as T, VotingClassifier\n"
        "from sklearn.linear_model import LogisticRegression as L\n"
        "from sklearn.pipeline import make_pipeline\n"
        "from sklearn.preprocessing import StandardScaler as S\n"
        f"made = {made}\n"
    )
    monkeypatch.chdir(tmp_path)
    if columns is None:
        assert make_estimator(f"{module}:made", False, 0, allow_code=True) is not None
        return
    with pytest.raises(InputError, match=f"picks columns by name \\(.*{columns}.*in Python"):
        make_estimator(f"{module}:made", False, 0, allow_code=True)


def test_a_category_by_name_that_holds_numbers_is_no_setting_to_ignore():
    """`categorical_features` is set to the columns of texts; `zip` would have become a number."""
    table = pd.DataFrame({"zip": [1.0, 2.0] * 4, "town": ["a", "b"] * 4})
    compact = compact_pipeline(table).fit(table)
    kind: Any = HistGradientBoostingClassifier  # its stubs know "from_dtype" only
    fitted: Any = with_columns(compact, kind(categorical_features=["town"]))[-1]
    names = list(np.asarray(compact.get_feature_names_out()))
    assert fitted.categorical_features == [names.index("categories__town")]
    one = kind(categorical_features=["zip"])
    with pytest.raises(InputError, match=r"takes 'zip' for categories .* those are 'town'"):
        with_columns(compact, one)


def test_the_task_decides_between_classifier_and_regressor():
    for name in ("trees", "random-forest"):
        kinds = [type(make_estimator(name, r, 3)).__name__ for r in (False, True)]
        assert kinds[0].removesuffix("Classifier") == kinds[1].removesuffix("Regressor")
        assert make_estimator(name, True, 3).random_state == 3
    with pytest.raises(InputError, match="ridge is for regression, and this task is a classif"):
        make_estimator("ridge", False, 0)
    with pytest.raises(InputError, match="logistic is for classification"):
        make_estimator("logistic", True, 0)


def test_a_package_that_is_missing_is_named(monkeypatch):
    missing = _estimators.SHORT["xgboost"]._replace(module="no_such_boosting_package")
    monkeypatch.setitem(_estimators.SHORT, "xgboost", missing)
    with pytest.raises(InputError, match="pip install xgboost"):
        make_estimator("xgboost", False, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "catboost", "random-forest"])
def test_other_trees_are_saved_and_read(tmp_path, name):
    if _estimators.SHORT[name].install is not None:
        pytest.importorskip(name)
    command, found = write(tmp_path)
    run = weigh([*command, "--estimator", name], tmp_path / "run")
    assert run.code == 0, run.stderr
    assert roc_auc_score(~found["wrong"], run.weights["label_quality"]) > 0.9
    said = bilevel("score", str(run.out), str(tmp_path / "new.csv"), "--json")
    assert said.code == 0, said.stderr


# -- probabilities of the user's own model ------------------------------------------------------------


def good_model(found: dict[str, Any]) -> pd.DataFrame:
    """Probabilities of every row by a model of the true labels: columns `p_dog`, `p_car`, `p_cat`."""
    X, y = tables()
    x = pd.get_dummies(X.drop(columns="id").fillna(0.0)).astype(float)
    fitted = LogisticRegression(max_iter=1000).fit(x, y)
    p = pd.DataFrame(fitted.predict_proba(x), columns=[f"p_{k}" for k in KINDS])
    return p[["p_dog", "p_car", "p_cat"]].assign(id=X["id"])


@pytest.mark.slow
def test_columns_and_files_of_probabilities_give_the_same(tmp_path):
    command, found = write(tmp_path)
    p = good_model(found)
    names = ["p_dog", "p_car", "p_cat"]
    runs = []
    # As columns of the tables.
    for name in ("train", "trusted", "new"):
        found[name].merge(p, on="id").to_csv(tmp_path / f"{name}.csv", index=False)
    columns = ["--pred-probs", ",".join(names)]
    runs.append(weigh([*command, *columns], tmp_path / "columns"))
    said = bilevel("score", str(runs[0].out), str(tmp_path / "new.csv"))
    assert said.code == 0, said.stderr
    # As tables of other rows too, in another order, matched by id; and as arrays.
    write(tmp_path)
    p.sample(frac=1, random_state=0).to_parquet(tmp_path / "p.parquet", index=False)
    np.save(tmp_path / "p.npy", p[["p_car", "p_cat", "p_dog"]].to_numpy()[:N])
    for file in ("p.parquet", "p.npy"):
        both = ["--pred-probs", str(tmp_path / file)]
        both += ["--pred-probs-trusted", str(tmp_path / "p.parquet")]
        runs.append(weigh([*command, *both], tmp_path / f"run {file}"))
        assert "pred_probs" in runs[-1].config["sha256"]
    assert [run.code for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    quality = [run.weights["label_quality"] for run in runs]
    np.testing.assert_allclose(quality[1], quality[0], rtol=1e-6)
    np.testing.assert_allclose(quality[2], quality[0], rtol=1e-6)
    said = bilevel("score", str(runs[1].out), str(tmp_path / "new.csv"))
    assert said.code == 3
    assert "givethoseofthenewrowstoo" in said.squeezed


def without_a_row(folder: Path, p: pd.DataFrame) -> list[str]:
    p[p["id"] != "r7"].to_parquet(folder / "p.parquet")
    file = str(folder / "p.parquet")
    return ["--pred-probs", file, "--pred-probs-trusted", file]


def too_short(folder: Path, p: pd.DataFrame) -> list[str]:
    np.save(folder / "p.npy", np.ones((3, 3)))
    return ["--pred-probs", str(folder / "p.npy"), "--pred-probs-trusted", str(folder / "p.npy")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (without_a_row, "hasnolinefor1of240rows,thosewiththeids'r7'"),
        (too_short, "has3lines,anditstable240rows"),
        (lambda *_: ["--pred-probs", "p.npy"], "thetrustedrowsneedonetoo"),
        (lambda *_: ["--pred-probs", "p_car,p_cat"], "hasnocolumn'p_car'(--pred-probs)"),
        (lambda *_: ["--pred-probs-trusted", "p.npy"], "needs--pred-probs"),
        (lambda *_: ["--given-label", "before"], "hasnocolumn'before'(--given-label)"),
    ],
)
def test_probabilities_that_do_not_fit_are_named(tmp_path, options, message):
    command, found = write(tmp_path)
    run = weigh([*command, *options(tmp_path, good_model(found))], tmp_path / "run")
    assert run.code == 3
    assert message in run.squeezed
    assert not (tmp_path / "run.partial").exists()


def test_the_label_before_verification_is_no_feature_and_says_how_labels_go_wrong(tmp_path):
    """Every `dog` was given as `car` before: the noise matrix learns it from the pairs."""
    command, found = write(tmp_path)
    trusted = found["trusted"].assign(before=found["trusted"]["y"].replace("dog", "car"))
    trusted.to_csv(tmp_path / "trusted.csv", index=False)
    run = weigh([*command, "--given-label", "before"], tmp_path / "run")
    assert run.code == 0, run.stderr
    assert run.config["given_label"] == "before"
    with np.load(run.out / "scorer.npz") as saved:
        noise = saved["pool noise"]
    plain = weigh(command, tmp_path / "fails")
    assert plain.code == 3  # the column has no counterpart in the training table
    assert "before" in plain.squeezed
    dogs = int((trusted["y"] == "dog").sum())
    pairs = dogs / (dogs + (found["train"]["y"] == "dog").sum() + 2)
    assert noise[2, 0] > 0.5 * pairs
