"""What the report says of suspect rows, on rows whose kinds, neighbours and places are known."""

import types
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pytest
from beartype import beartype
from beartype.door import is_bearable
from jaxtyping import jaxtyped
from sklearn.linear_model import LogisticRegression

from bilevel.reweighting._report import suspects as suspects_module
from bilevel.reweighting._report.clusters import find_clusters
from bilevel.reweighting._report.confusions import confusions, of_first_pairs
from bilevel.reweighting._report.excerpts import excerpts
from bilevel.reweighting._report.first_rows import first_rows
from bilevel.reweighting._report.refits import Rows
from bilevel.reweighting._report.suspects import judge_suspects
from bilevel.reweighting._report.verdict import give_advice
from bilevel.reweighting._report.worst import worst_rows
from bilevel.reweighting._weights.noise import Estimate
from bilevel.reweighting._weights.opinions import Opinions
from reports import made_result


def three_blobs() -> tuple[Rows, dict[str, np.ndarray]]:
    """Classes at three corners; rows with a wrong label, rows between two classes, and far ones."""
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0, 0, 0], [6, 0, 0, 0], [0, 6, 0, 0]], float)
    labels = np.arange(240) % 3
    X = centres[labels] + rng.normal(size=(240, 4))
    y = np.array(["a", "b", "c"])[labels]
    which = {
        "wrong label": np.arange(10),
        "ambiguous": np.arange(10, 20),
        "odd row": np.arange(20, 30),
    }
    y[:10] = np.roll(["a", "b", "c"], 1)[labels[:10]]
    X[10:20] = [3, 0, 0, 0] + 0.1 * rng.normal(size=(10, 4))
    y[10:20] = np.array(["a", "b"] * 5)
    X[20:30] = 40 * rng.normal(size=(10, 4))
    trusted = np.arange(150) % 3
    X_trusted = centres[trusted] + rng.normal(size=(150, 4))
    X_trusted[:24:2] = [3, 0, 0, 0] + 0.3 * rng.normal(size=(12, 4))
    y_trusted = np.array(["a", "b", "c"])[trusted]
    y_trusted[:24:2] = np.array(["a", "b"] * 6)
    weights = np.ones(240)
    weights[:30] = 0.1
    result = made_result(weights / weights.mean(), 150, keep=weights > 0.5)
    result.wrong = np.where(np.arange(240) < 10, 0.9, np.where(np.arange(240) < 20, 0.5, 0.01))
    model = LogisticRegression()
    return Rows(model, X, y, X_trusted, y_trusted, result), which


ROWS, WHICH = three_blobs()
RESULT: Any = ROWS.result  # nothing in it is None
FOUND = judge_suspects(ROWS, 0)


def test_what_is_made_here_keeps_to_the_annotations():
    """`make slow` checks those of the product: one that the lines above break ends its collection."""
    for name, kind in get_type_hints(Rows).items():
        assert is_bearable(getattr(ROWS, name), kind), name
    again = jaxtyped(typechecker=beartype)(judge_suspects)(ROWS, 0)
    np.testing.assert_array_equal(again.rows, FOUND.rows)


def test_the_kinds_are_those_that_the_rows_were_made_of():
    assert len(FOUND.rows) == 200
    assert FOUND.kind is not None
    kind = dict(zip(FOUND.rows.tolist(), FOUND.kind.tolist(), strict=True))
    for name, rows in WHICH.items():
        assert sum(kind[i] == name for i in rows.tolist()) >= 8, name
    fine = [kind[i] for i in FOUND.rows.tolist() if i >= 30]
    assert fine.count("label fits") > 0.9 * len(fine)
    assert kind.keys() >= set(range(30))
    free = Rows(
        ROWS.estimator,
        ROWS.X,
        ROWS.y,
        ROWS.X_trusted,
        ROWS.y_trusted,
        made_result(np.ones(240), 150),
    )
    assert judge_suspects(free, 0).kind is None


def test_wrong_rows_get_the_right_label_and_its_nearest_trusted_row():
    for k in np.flatnonzero(np.isin(FOUND.rows, WHICH["wrong label"])):
        i = FOUND.rows[k]
        assert FOUND.suggested[k] == np.array(["a", "b", "c"])[i % 3]
        given, suggested = FOUND.nearest[k]
        assert ROWS.y_trusted[given] == ROWS.y[i]
        assert ROWS.y_trusted[suggested] == FOUND.suggested[k]
        assert FOUND.distance[k, 1] < FOUND.distance[k, 0]


def test_a_typical_row_is_as_near_as_nine_tenths_of_the_trusted_rows_of_its_class():
    frames = np.asarray(ROWS.X), np.asarray(ROWS.X_trusted)
    scale = np.subtract(*np.percentile(np.vstack(frames), [75, 25], axis=0))
    middle = np.median(np.vstack(frames), axis=0)
    x, z = (np.arcsinh((f - middle) / scale) for f in frames)
    for side, labels in enumerate((ROWS.y[FOUND.rows], FOUND.suggested)):
        for k, label in enumerate(labels):
            like = z[ROWS.y_trusted == label]
            among = np.linalg.norm(like[:, None] - like[None], axis=2)
            among[np.diag_indices(len(like))] = np.inf
            bound = np.quantile(among.min(axis=1), 0.9)
            least = np.linalg.norm(like - x[FOUND.rows[k]], axis=1).min()
            assert FOUND.typical[k, side] == (least <= bound)
    wrong = np.isin(FOUND.rows, WHICH["wrong label"])
    assert FOUND.typical[wrong].mean(axis=0)[0] < 0.2 < 0.6 < FOUND.typical[wrong].mean(axis=0)[1]


def test_opinions_are_those_of_each_model_on_the_worst_rows():
    likely = np.log([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]])
    members: Any = [
        types.SimpleNamespace(name=name, train=[None, outputs])
        for name, outputs in {"one": likely, "two": likely[::-1]}.items()
    ]
    found = Opinions.of(
        members, np.array([0.5, 0.1, 0.9]), np.array([1, 0, 2]), lambda p: p.argmax(axis=1)
    )
    assert found.rows.tolist() == [1, 0, 2]
    assert found.said.tolist() == [[2, 2], [0, 1], [1, 0]]
    np.testing.assert_allclose(found.probability, [[0.6, 0.6], [0.7, 0.5], [0.5, 0.7]])
    np.testing.assert_allclose(found.given, [[0.1, 0.1], [0.2, 0.5], [0.3, 0.1]])
    numbers = Opinions.of(
        members, np.array([0.5, 0.1, 0.9]), np.zeros(3), lambda mu: 10 + 2 * mu[:, 0]
    )
    np.testing.assert_allclose(numbers.said[0], 10 + 2 * likely[1, 0])
    assert np.isnan(numbers.probability).all()


def test_distances_are_looked_at_for_as_many_rows_as_fit(monkeypatch):
    monkeypatch.setattr(suspects_module, "CELLS", 4 * (150 + 40))
    nearest, distance, odd, typical = suspects_module._likenesses(ROWS, FOUND.rows, FOUND.suggested)
    np.testing.assert_array_equal(nearest[40:], -1)
    assert np.isnan(distance[40:]).all()
    assert not odd[40:].any()
    assert not typical[40:].any()
    assert (nearest[:40] >= 0).all()
    monkeypatch.setattr(suspects_module, "CELLS", 100)
    assert (suspects_module._likenesses(ROWS, FOUND.rows, FOUND.suggested)[0] == -1).all()


def test_the_noise_matrix_counts_and_rates():
    found = confusions(ROWS, FOUND)
    assert found is not None
    flagged = ~ROWS.result.keep[FOUND.rows]
    differs = flagged & (ROWS.y[FOUND.rows] != FOUND.suggested)
    assert (found["flagged"], found["differ"]) == (30, differs.sum())
    counts = [pair["rows"] for pair in found["pairs"]]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == differs.sum()
    first = found["pairs"][0]
    inside = (
        differs & (ROWS.y[FOUND.rows] == first["given"]) & (FOUND.suggested == first["suggested"])
    )
    assert first["rate"] == pytest.approx(
        RESULT.wrong[FOUND.rows[inside]].sum() / np.sum(ROWS.y == first["given"])
    )


def test_the_picture_has_the_classes_of_the_most_frequent_pairs():
    pairs = [
        ("a", "b"),
        ("c", "d"),
        *((f"e{k}", f"f{k}") for k in range(4)),
        ("a", "c"),
        ("g", "a"),
    ]
    assert of_first_pairs(pairs) == {*"abcd", *(f"{x}{k}" for k in range(4) for x in "ef")}
    assert of_first_pairs([("g", "a"), *pairs]) == {"a", "b", "c", "d", "g"} | {
        f"{x}{k}" for k in range(3) for x in "ef"
    }


def test_chosen_columns_are_shown_with_long_texts_cut_and_pictures_small(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (900, 300), (200, 10, 10)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    n = len(ROWS.y)
    table = pd.DataFrame({"text": ["x" * 500] * n, "size": np.arange(n) / 2, "file": "none.png"})
    worst = FOUND.rows[:3]
    table.loc[worst[0], "file"] = str(tmp_path / "a.png")
    table.loc[worst[1], "file"] = str(tmp_path / "b.png")
    ids, trusted = [f"r{i}" for i in range(n)], [f"t{i}" for i in range(150)]
    columns = ["text", "size", "file"]
    lines = worst_rows(ROWS, FOUND, ids, trusted, None, None, table, columns, {})["rows"]
    shown = [line["shown"] for line in lines[:3]]
    assert shown[0]["text"] == "x" * 299 + "\u2026"
    assert [s["size"] for s in shown] == [i / 2 for i in worst]
    assert shown[0]["file"].startswith("data:image/png;base64,")
    assert len(shown[0]["file"]) < 20_000
    assert shown[1]["file"] == str(tmp_path / "b.png")
    assert shown[2]["file"] == "none.png"
    with pytest.raises(ValueError, match="needs a `table`"):
        worst_rows(ROWS, FOUND, ids, trusted, None, None, None, ["text"], {})


def test_of_a_long_text_the_part_that_tells_the_classes_apart_is_kept():
    labels = np.array(["cat", "dog"] * 20)
    sound = {"cat": "meow", "dog": "woof"}
    texts: list[object] = [
        "the " * 99 + f"animal says {sound[y]} and " + "then " * 99 for y in labels
    ]
    texts += ["short", None, "the " * 200]
    labels = np.append(labels, ["cat", "dog", "cat"])
    rows = np.array([0, 1, 40, 42])
    found = excerpts(texts, rows, labels, ["dog", "cat", "dog", "dog"])
    assert "says meow" in found[0]
    assert "says woof" in found[1]
    assert found[0].startswith("\u2026the the")
    assert found[0].endswith("\u2026")
    assert [len(text) for text in found] == [300, 300, 5, 300]
    assert found[2] == "short"
    assert found[3] == ("the " * 99)[:299] + "\u2026"  # no word tells: the beginning
    assert excerpts(texts, rows[:1], None, ["dog"]) == [str(texts[0])[:299] + "\u2026"]
    end = "plain " * 100 + "meow"
    assert excerpts([end, *texts[1:]], rows[:1], labels, ["dog"])[0].endswith("plain meow")


# -- where they are ---------------------------------------------------------------------------------


def sources(seed: int, *, planted: bool) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = 800
    table = pd.DataFrame(
        {
            "source": rng.choice(["vendor_a", "vendor_b", "vendor_c"], n),
            "made": pd.Timestamp("2024-01-05") + pd.to_timedelta(rng.integers(0, 180, n), "D"),
            "price": rng.normal(size=n),
            "note": ["x" * k for k in rng.integers(1, 200, n)],
        }
    )
    rate = np.full(n, 0.05)
    if planted:
        inside = (table["source"] == "vendor_b") & (table["made"].dt.month == 3)
        rate[np.asarray(inside)] = 0.8
    return table, rng.random(n) < rate


def test_a_bad_source_in_one_month_is_described_in_words():
    table, suspect = sources(0, planted=True)
    found = find_clusters(table, suspect, 0)
    assert found is not None
    best = found["clusters"][0]
    assert "source = vendor_b" in best["words"]
    assert "the month of made = 2024-03" in best["words"]
    inside = np.asarray((table["source"] == "vendor_b") & (table["made"].dt.month == 3))
    assert (best["rows"], best["suspects"]) == (inside.sum(), (inside & suspect).sum())
    assert best["lift"] == pytest.approx((suspect[inside].mean()) / suspect.mean())
    assert best["p"] == 1 / 40


def test_texts_as_dates_lengths_and_booleans_are_columns_too():
    rng = np.random.default_rng(1)
    n = 600
    long = rng.random(n) < 0.2
    table = pd.DataFrame(
        {
            "when": pd.date_range("2023-01-01", periods=n).astype(str),
            "text": [f"{i:05d}" * (30 if x else 3) for i, x in enumerate(long)],
            "flag": rng.random(n) < 0.5,
            "same": "one",
        }
    )
    found = find_clusters(table, long & (rng.random(n) < 0.9), 0)
    assert found is not None
    assert found["clusters"][0]["words"].startswith("the length of text from ")
    late = np.asarray(table["when"] >= "2024-06")
    found = find_clusters(table, late & (rng.random(n) < 0.9), 0)
    assert found is not None
    assert found["clusters"][0]["words"] == "the month of when from 2024-06"


@pytest.mark.slow
def test_suspects_at_random_are_rarely_described():
    """The p-value accounts for the search: at most about one draw in twenty finds something."""
    hits = 0
    for seed in range(12):
        table, suspect = sources(seed, planted=False)
        found = find_clusters(table, suspect, seed)
        assert found is not None
        hits += bool(found["clusters"])
    assert hits <= 3  # more has a probability of 0.02 at a rate of 0.05


def test_too_few_suspects_are_not_described():
    table, _ = sources(0, planted=False)
    assert find_clusters(table, np.arange(800) < 9, 0) is None


# -- the curve and the advice -----------------------------------------------------------------------


def with_noise(low: float, value: float, high: float, truth: Any = None) -> Any:
    RESULT.noise = types.SimpleNamespace(precision=Estimate(value, low, high))
    return first_rows(ROWS, truth)


def test_the_share_of_wrong_labels_in_the_first_rows_and_its_band():
    curve = with_noise(0.5, 0.63, 0.75)
    order = np.argsort(ROWS.quality, kind="stable")
    for point in curve:
        k = point["rows"]
        assert point["wrong"] == pytest.approx(RESULT.wrong[order[:k]].mean())
        assert 0 <= point["low"] <= point["wrong"] <= point["high"] <= 1
        assert point["observed"] is None
    assert curve[-1]["rows"] == 60
    truth = np.arange(240) < 10
    for point in with_noise(0.5, 0.63, 0.75, truth):
        assert point["observed"] == truth[order[: point["rows"]]].mean()
    wide = with_noise(0.2, 0.63, 0.95)
    assert all(
        b["high"] - b["low"] > a["high"] - a["low"] for a, b in zip(curve, wide, strict=True)
    )
    RESULT.noise = None
    assert first_rows(ROWS) is None


def noise(rate_high: float, **wide: Any) -> dict[str, Any]:
    part = {"name": "a", "rows": 80, "flagged": 9, "value": 0.1, "low": 0.05, "high": 0.2}
    return {
        "rate": {"value": rate_high / 2, "low": 0, "high": rate_high},
        "by_class": [part | wide],
        "verify": {"rows": ["r1", "r2"]},
    }


@pytest.mark.parametrize(
    ("verdict", "known", "holdout", "advice"),
    [
        ({"outcome": "paid", "low": 0.01, "high": 0.1}, noise(0.3), 100, "Use the weights."),
        ({"outcome": "paid", "low": 0.01, "high": 0.1}, noise(0.01), 100, "Use the weights."),
        (
            {"outcome": "may have paid", "against": "filter", "low": -0.01, "high": 0.02},
            noise(0.3),
            100,
            "Either the weights or the filter: the filter is simpler.",
        ),
        (
            {"outcome": "did not pay", "against": "trusted only", "low": -0.2, "high": -0.1},
            None,
            100,
            'Use "trusted only": it is better.',
        ),
        (
            {"outcome": "was not used", "low": -0.01, "high": 0.01},
            noise(0.01),
            100,
            "Your labels are fine: do nothing.",
        ),
        (
            {"outcome": "was not used", "low": -0.01, "high": 0.01},
            noise(0.3, low=0.1, high=0.6),
            None,
            "Use what was chosen: no weights did clearly better; collect 156 more trusted rows of "
            "class a, whose share of wrong labels is known only to lie between 10% and 60%.",
        ),
        (
            {"outcome": "paid", "low": 0.01, "high": 0.1},
            noise(0.3),
            None,
            "Use the weights; verify the 2 rows named below next.",
        ),
    ],
)
def test_the_advice(verdict, known, holdout, advice):
    assert give_advice(ROWS, verdict, known, holdout) == advice
