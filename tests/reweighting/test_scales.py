"""Tables that measure their columns in other units than the training rows."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from bilevel import ReweightedClassifier, learn_weights
from bilevel.reweighting._inputs.columns import table_pipeline, tidy
from bilevel.reweighting._inputs.prepare import Encoding, prepare
from bilevel.reweighting._inputs.scales import warn_of_other_scales
from bilevel.reweighting._inputs.strange import strange


def rows(number, seed):
    X = np.random.default_rng(seed).normal(1000, 100, size=(number, 3))
    return pd.DataFrame(X, columns=list("abc")), (X[:, 0] + X[:, 1] > 2000).astype(int)


def test_steps_before_the_estimator_that_leave_the_trusted_rows_alone_are_noticed():
    (X, y), (X_trusted, y_trusted) = rows(60, 0), rows(30, 1)
    known = {"X_trusted": X_trusted, "y_trusted": y_trusted}
    before = make_pipeline(StandardScaler(), ReweightedClassifier())
    said = r"`X_trusted` has other units .* in 3 of 3 columns .*transform `X` alone.*`is_trusted`"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match=said):
            before.fit(X, y, **{f"reweightedclassifier__{k}": v for k, v in known.items()})
        within = make_pipeline(StandardScaler(), LogisticRegression())
        advised = ReweightedClassifier(within).fit(X, y, **known)
    assert advised.score(X_trusted, y_trusted) > 0.8


def test_columns_of_a_hold_out_in_other_units_are_named():
    (X, y), (X_trusted, y_trusted), (other, y_other) = (rows(40, k) for k in range(3))
    other = other.assign(b=other.b / 100, c=other.c / 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match=r"`X_holdout` .* 2 of 3 columns \('b', 'c'\): half"):
            learn_weights(
                X, y, X_trusted, y_trusted, holdout=(other, y_other), task="classification"
            )


@pytest.mark.parametrize("change", ["none", "shifted a little", "one column of three", "constant"])
def test_what_differs_by_chance_or_on_purpose_is_not_noticed(change):
    X, other = (np.random.default_rng(k).normal(size=(n, 3)) for k, n in enumerate((5000, 30)))
    if change == "shifted a little":
        other += 0.7
    elif change == "one column of three":
        other[:, 0] = 1000 + 50 * other[:, 0]
    elif change == "constant":
        X[:, 1:], other[:, :2] = 0.0, 7.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_scales(X, other, "X_trusted", None)


def new_table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    heights = rng.uniform(150, 200, rows)
    town = np.array(["Rome", "Oslo"])[rng.integers(0, 2, rows)]
    return pd.DataFrame({"height": heights, "town": town, "age": rng.uniform(0, 90, rows)})


def test_new_rows_that_are_unlike_the_training_rows_are_told():
    train = tidy(new_table(200, 0).mask(np.arange(600).reshape(200, 3) % 7 == 0))
    pipeline = table_pipeline(train).fit(train)

    def told(**changes) -> list[str]:
        return strange(tidy(new_table(20, 1).assign(**changes), like=train), pipeline)

    new = new_table(20, 1)
    assert told() == []
    (said,) = told(height=new["height"] / 2.54)
    assert said.startswith("20 of 20 values of 'height', such as ")
    (said,) = told(town=np.where(np.arange(20) < 3, "Bern", new["town"]))
    assert said == "3 of 20 rows have a value of 'town' that no training row has: 'Bern'"
    (said,) = told(age=np.nan)
    assert said == "no row has a value of 'age', and training rows have"
    odd = np.where(np.arange(20) < 9, 1e6, new["age"])  # less than half
    assert told(age=odd) == []
    single = tidy(new[:1].assign(height=-1.0), like=train)
    assert strange(single, pipeline) == []  # one number of two
    assert len(strange(tidy(new[:1].assign(height=-1, age=-1), like=train), pipeline)) == 2
    encoding = Encoding(None, MinMaxScaler().fit(train[["height"]].to_numpy()), None)
    with pytest.warns(UserWarning, match="`X`: 20 of 20 values of 0, such as .* outside of those"):
        encoding.warn_of_strange(new[["height"]].to_numpy() / 2.54, "X")
    words = pd.DataFrame(train["town"])
    assert strange(words, table_pipeline(words).fit(words)) == []


def test_categories_of_another_spelling_are_told():
    """A model knows nothing of "red" where the training rows have "Red"."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"colour": rng.choice(["Red", "Blue"], 40), "x": rng.normal(size=40)})
    other = X.assign(colour=X["colour"].str.lower() + " ")
    y = np.arange(40) % 2

    def prepared(trusted: pd.DataFrame) -> None:
        prepare(X, y, trusted, y, task="auto", scaler=None, holdout=None, folds=3)

    with pytest.warns(UserWarning, match=r"`X_trusted`: 40 of 40 rows .* 'colour' .* 'Red'.*alike"):
        prepared(other)
    with pytest.warns(UserWarning, match=r"`X_trusted`: 1 of 40 rows .*: 'blue' .*'Blue'"):
        prepared(X.assign(colour=X["colour"].where(np.arange(40) > 0, "blue")))
    few = X.assign(colour=X["colour"].where(np.arange(40) % 2 == 0, "Green"))
    prepared(few)  # new categories in half of the rows are what they are
