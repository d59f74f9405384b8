"""`bilevel fix`: a plan first, safe changes alone, new files, and nothing in place."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from runs import Said, bilevel
from schema import faults

HEADER = "row,no,size,kind,note,y\n"


def lines(n: int, first: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        f"r{first + i},{first + i},{rng.normal():.4f},{rng.choice(list('uvw'))},"
        f"{'plain' if rng.random() < 0.5 else 'other'},{rng.choice(['yes', 'no'])}\n"
        for i in range(n)
    ]


@pytest.fixture
def tables(tmp_path) -> Path:
    """Copies of the hold-out, labels in three spellings, an unseen character, a column of numbers."""
    train, trusted, holdout = lines(80, 0, 0), lines(40, 100, 1), lines(40, 200, 2)
    parts = holdout[4].split(",")
    train[7] = ",".join(["r7", "7", *parts[2:]])
    train[9] = "r9,9,0.25,u,pl\u200bain,YES\n"
    train[10] = 'r10,10,"0.5",v,"a, quoted\nnote", yes\n'
    train[11] = "r11,11,0.75,v,plain,no\r\n"
    for name, rows in (("train", train), ("trusted", trusted), ("holdout", holdout)):
        (tmp_path / f"{name}.csv").write_bytes((HEADER + "".join(rows)).encode())
    return tmp_path


def fix(folder: Path, *options: str | Path, end: str = "csv") -> Said:
    paths = [folder / f"{name}.{end}" for name in ("train", "trusted", "holdout")]
    return bilevel(
        "fix", paths[0], "--label", "y", "--trusted", paths[1], "--holdout", paths[2],
        "--id", "row", "--out", folder / "fixed", *options,
    )  # fmt: skip


def test_the_plan_and_the_files_made_by_it(tables):
    before = {path.name: path.read_bytes() for path in tables.iterdir()}
    said = fix(tables, "--skip", "drop-column")
    assert said.code == 0, said.stderr
    assert {name: (tables / name).read_bytes() for name in before} == before
    plan = json.loads((tables / "fixed" / "plan.json").read_text())
    assert plan["format"] == "bilevel plan 1"
    assert faults(plan) == []
    assert [
        (c["kind"], c["table"], c["rows"], c.get("before"), c.get("after")) for c in plan["changes"]
    ] == [
        ("strip-unseen", "train", [9], None, None),
        ("respell-label", "train", [9], "YES", "yes"),
        ("respell-label", "train", [10], " yes", "yes"),
    ]
    old = before["train.csv"].decode().split("\n")
    new = (tables / "fixed" / "train.csv").read_bytes().decode().split("\n")
    changed = {k: line for k, (line, was) in enumerate(zip(new, old, strict=True)) if line != was}
    assert changed == {
        10: "r9,9,0.25,u,plain,yes",
        11: 'r10,10,0.5,v,"a, quoted',
        12: 'note",yes',
    }
    assert new[13].endswith("no\r")  # a line that nothing changes
    for name in ("trusted.csv", "holdout.csv"):
        assert (tables / "fixed" / name).read_bytes() == before[name]
    assert "written to" in said.stdout
    assert fix(tables).code == 2  # what is there is not overwritten


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_what_is_fixed_needs_no_second_fix(tables, end):
    """A row that is a copy of a hold-out row but for its number, or for what cannot be seen."""
    if end == "parquet":
        for path in tables.glob("*.csv"):
            pd.read_csv(path).to_parquet(path.with_suffix(".parquet"))
    train = (tables / f"train.{end}").read_bytes()
    said = fix(tables, "--json", end=end)
    changes = json.loads(said.stdout)["changes"]
    kinds = [change["kind"] for change in changes]
    assert kinds.count("drop-column") == 3
    assert kinds[0] == "drop-row"
    assert changes[0]["rows"] == [7]
    (tables / "fixed").rename(tables / "again")
    assert fix(tables / "again", end=end).code == 0
    plan = json.loads((tables / "again" / "fixed" / "plan.json").read_text())
    assert plan["changes"] == []
    assert (tables / f"train.{end}").read_bytes() == train


def test_row_numbers_leave_all_tables_and_then_a_copy_is_seen(tables):
    said = fix(tables, "--skip", "respell-label", "--skip", "strip-unseen", "--json")
    assert [(c["kind"], c["table"]) for c in json.loads(said.stdout)["changes"]] == [
        ("drop-row", "train"),
        *(("drop-column", name) for name in ("train", "trusted", "holdout")),
    ]
    heads = [
        (tables / "fixed" / f"{name}.csv").read_text().split("\n")[0]
        for name in ("train", "trusted", "holdout")
    ]
    assert heads == ["row,size,kind,note,y"] * 3
    assert "r7," not in (tables / "fixed" / "train.csv").read_text()


def test_a_dry_run_writes_nothing(tables):
    said = fix(tables, "--dry-run")
    assert said.code == 0
    assert "train: respell-label 'y' 'YES' to 'yes', 1 rows" in said.stdout
    assert not (tables / "fixed").exists()


def test_labels_change_where_a_person_decided(tables):
    table = pd.read_csv(tables / "train.csv", dtype=str, keep_default_na=False)
    wanted = {i: "yes" if table.loc[i, "y"] == "no" else "no" for i in (3, 5)}
    accepted = tables / "accepted.csv"
    written = {i: y.upper() if y == "yes" else y for i, y in wanted.items()}  # as row 9 spells it
    accepted.write_text("id,label\n" + "".join(f"r{i},{y}\n" for i, y in written.items()))
    assert fix(tables, "--apply-labels", accepted).code == 0
    fixed = pd.read_csv(tables / "fixed" / "train.csv", dtype=str, keep_default_na=False)
    fixed = fixed.set_index("row")["y"]
    assert {i: fixed[f"r{i}"] for i in wanted} == wanted
    untouched = [i for i in fixed.index if i not in ("r3", "r5", "r9", "r10")]
    assert fixed[untouched].tolist() == table.set_index("row")["y"][untouched].tolist()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,label\nr500,yes\n", "name rows that the training rows do not have: 'r500'"),
        ("id,label\nr5,maybe\n", "have classes that no table has: 'maybe'"),
        ("id,label\nr5,yes\nr5,no\n", "repeat the ids 'r5'"),
        ("id,answer\nr5,yes\n", "need the columns 'id' and 'label'"),
        ("id,given_label,label\nr5,maybe,yes\n", "decided of another table"),
    ],
)
def test_decisions_that_do_not_fit_are_refused(tables, content, said):
    (tables / "accepted.csv").write_text(content)
    found = fix(tables, "--apply-labels", tables / "accepted.csv")
    assert found.code == 3
    assert "".join(said.split()) in found.squeezed
    assert not (tables / "fixed").exists()


def test_decisions_name_the_rows_of_the_table_that_they_were_made_of(tmp_path):
    """Row numbers are others once rows have left; what is said of the label tells that."""
    labels = ["-1", "+1", "+1", "-1"] * 5
    table = pd.DataFrame({"x": np.arange(20) ** 1.5, "y": labels})
    trusted = tmp_path / "trusted.parquet"
    table.assign(x=np.arange(20) ** 1.4).to_parquet(trusted)
    decided = "id,given_label,label\n0,'-1,+1\n1,+1,'-1\n3,,'+1\n"  # as in a spreadsheet
    (tmp_path / "accepted.csv").write_text(decided)

    def decide(rows: pd.DataFrame, out: str) -> Said:
        rows.to_parquet(tmp_path / "train.parquet")
        command = ["fix", tmp_path / "train.parquet", "--label", "y", "--trusted", trusted]
        return bilevel(
            *command, "--apply-labels", tmp_path / "accepted.csv", "--out", tmp_path / out
        )

    assert decide(table, "one").code == 0
    fixed = pd.read_parquet(tmp_path / "one" / "train.parquet")
    assert fixed["y"].tolist() == ["+1", "-1", "+1", "+1", *labels[4:]]
    said = decide(table.iloc[1:].reset_index(drop=True), "two")
    assert said.code == 3
    assert "decidedofanothertable" in said.squeezed
    said = decide(pd.concat([table, table]), "three")
    assert said.code == 3
    assert "severaltrainingrows" in said.squeezed


def test_parquet_and_zipped_files_keep_their_kind(tables):
    zipped = tables / "zipped"
    zipped.mkdir()
    for name in ("train", "trusted", "holdout"):
        (zipped / f"{name}.csv.gz").write_bytes(
            gzip.compress((tables / f"{name}.csv").read_bytes())
        )
        frame = pd.read_csv(tables / f"{name}.csv").assign(y=lambda t: t["y"].str.strip())
        frame.astype({"kind": "category"}).to_parquet(tables / f"{name}.parquet")
    assert fix(zipped, end="csv.gz").code == 0
    text = gzip.decompress((zipped / "fixed" / "train.csv.gz").read_bytes()).decode()
    assert "\nr9,0.25,u,plain,yes\n" in text
    assert fix(tables, end="parquet").code == 0
    fixed = pd.read_parquet(tables / "fixed" / "train.parquet")
    assert list(fixed.columns) == ["row", "size", "kind", "note", "y"]
    assert fixed["kind"].dtype == "category"
    assert fixed.loc[9, ["note", "y"]].tolist() == ["plain", "yes"]


def test_categories_that_are_mended_are_no_gaps(tables):
    """Texts that a Parquet file stores as categories: what they become may be none of these."""
    for name in ("train", "trusted", "holdout"):
        frame = pd.read_csv(tables / f"{name}.csv")
        kinds = pd.CategoricalDtype(["w", "v", "u"], ordered=True)
        frame = frame.astype({"note": "category", "y": "category", "kind": kinds})
        frame.to_parquet(tables / f"{name}.parquet")
    mended = {}
    for end in ("csv", "parquet"):
        assert fix(tables, "--skip", "drop-column", end=end).code == 0
        (tables / "fixed").rename(tables / end)
        read = pd.read_csv if end == "csv" else pd.read_parquet
        mended[end] = read(tables / end / f"train.{end}")
    fixed = mended["parquet"]
    assert fixed.astype(object).equals(mended["csv"].astype(object))
    assert set(fixed["note"].cat.categories) == {"a, quoted\nnote", "other", "plain"}
    assert list(fixed["y"].cat.categories) == ["yes", "no"]
    assert fixed["kind"].dtype == kinds


def test_rows_that_contradict_each_other_are_only_proposed(tables):
    text = (
        (tables / "train.csv").read_text().replace("r11,11,0.75,v,plain,no", "r11,11,0.75,v,p,no")
    )
    copy = "r12,12,0.75,v,p,yes\n"
    rows = [line for line in text.splitlines(keepends=True) if not line.startswith("r12,")]
    (tables / "train.csv").write_text("".join([*rows, copy]))
    for name in ("train", "trusted", "holdout"):
        table = (tables / f"{name}.csv").read_text().replace("row,no,", "row,other,")
        (tables / f"{name}.csv").write_text(table.replace(",12,0.75", ",11,0.75"))
    assert fix(tables, "--skip", "drop-column").code == 0
    check = pd.read_csv(tables / "fixed" / "to_check.csv")
    assert check[["id", "given_label"]].to_numpy().tolist() == [["r11", "no"], ["r12", "yes"]]
    fixed = pd.read_csv(tables / "fixed" / "train.csv").set_index("row")["y"]
    assert fixed[["r11", "r12"]].tolist() == ["no", "yes"]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ('"a\nb";w;y;id\n', "{i};{text};{y};r{i}\n"),
        ("a,w,y,id\n", "{i}{more},{text},{y},r{i}\n"),
        ("a,,y,id\n", "{i},{text},{y},r{i}\n"),
    ],
    ids=["a header of two lines", "a long cell", "a column without a name"],
)
def test_csv_files_that_are_odd_and_legal_are_mended(tmp_path, header, line):
    """Each was once a traceback, where there was something to mend."""
    names, lines = ["train", "trusted", "holdout"], {}
    for k, name in enumerate(names):
        rows = range(100 * k, 100 * k + 12)
        lines[name] = [
            line.format(
                i=i,
                text="b\u200bc" if i == 3 else f"d{i}",
                y="yn"[i % 2],
                more="0" * 140_000 if i == 5 else "",
            )
            for i in rows
        ]
        (tmp_path / f"{name}.csv").write_text(header + "".join(lines[name]), encoding="utf-8")
    paths = [tmp_path / f"{name}.csv" for name in names]
    said = bilevel(
        *("fix", paths[0], "--trusted", paths[1], "--holdout", paths[2]),
        *("--label", "y", "--id", "id", "--out", tmp_path / "fixed"),
    )
    assert said.code == 0, said.stderr
    for name in names:
        mended = (header + "".join(lines[name])).replace("b\u200bc", "bc")
        assert (tmp_path / "fixed" / f"{name}.csv").read_text(encoding="utf-8") == mended


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_decisions_about_truth_values(tmp_path, end):
    """A text that is not empty is true for numpy, also the text "False"."""
    table = pd.DataFrame({"row": [f"r{i}" for i in range(30)], "x": np.arange(30) ** 1.5})
    table["y"] = np.arange(30) % 3 == 0
    other = table.assign(row=[f"t{i}" for i in range(30)], x=np.arange(30) ** 1.4)
    for name, rows in (("train", table), ("trusted", other)):
        path = tmp_path / f"{name}.{end}"
        rows.to_parquet(path) if end == "parquet" else rows.to_csv(path, index=False)
    (tmp_path / "accepted.csv").write_text("id,label\nr0,False\nr1,True\nr2,False\n")
    command = ["fix", tmp_path / f"train.{end}", "--label", "y", "--trusted"]
    command += [tmp_path / f"trusted.{end}", "--id", "row", "--apply-labels"]
    command += [tmp_path / "accepted.csv", "--out"]
    said = bilevel(*command, tmp_path / "fixed")
    assert said.code == 0, said.stderr
    path = tmp_path / "fixed" / f"train.{end}"
    fixed = pd.read_parquet(path) if end == "parquet" else pd.read_csv(path)
    assert fixed["y"].dtype == bool
    assert fixed["y"].tolist() == [False, True, *table["y"][2:]]
    for line, message in (
        ("r3,maybe", "none of the truth values"),
        ("r3,", "no label for the ids 'r3'"),
    ):
        (tmp_path / "accepted.csv").write_text(f"id,label\n{line}\nr4,True\n")
        said = bilevel(*command, tmp_path / "again")
        assert said.code == 3
        assert "".join(message.split()) in said.squeezed
