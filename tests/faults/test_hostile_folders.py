"""Run folders that were damaged or forged: one clear error that names the file, and nothing is run."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from cases import write_small_tables
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from bilevel._storage import write_text
from bilevel.cli import _annotate_work, _commands_work, _fix_work, _weigh_work
from bilevel.cli._annotation_formats import from_label_studio
from bilevel.cli._estimators import SAVED_TYPES
from bilevel.cli._gate import read_baseline
from bilevel.cli._run_files import read_config
from bilevel.reweighting import InputError, load_model
from bilevel.reweighting._inputs import archives
from runs import Run, Said, bilevel, seal, weigh

READERS = {
    "config.toml": "suggest",
    "model.skops": "score",
    "scorer.npz": "score",
    "weights.parquet": "suggest",
    "summary.json": "score",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("made")
    run = weigh([str(x) for x in write_small_tables(folder)], folder / "run")
    assert run.code == 0
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made.out, tmp_path / "run"))


def read(made: Run, run: Path, name: str) -> Said:
    table = [made.out.parent / "train.csv"] if READERS[name] == "score" else []
    return bilevel(READERS[name], run, *table)


def refused(said: Said, *words: str) -> None:
    assert said.code == 3, said
    assert said.stdout == ""
    for word in words:
        assert "".join(word.split()) in said.squeezed


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_refused_by_its_name(made, run, name):
    path = run / name
    content = path.read_bytes()
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    changes: list[bytes] = [b"", content[:half], b"\xff" * 9]
    changes += [flipped] if name != "summary.json" else []  # which has the sums of the others
    for change in changes:
        path.write_bytes(change)
        refused(read(made, run, name), name)
    path.unlink()
    refused(read(made, run, name), name)
    path.mkdir()
    refused(read(made, run, name), name)
    path.rmdir()
    os.mkfifo(path)  # which would be waited for
    refused(read(made, run, name), name)
    path.unlink()
    path.write_bytes(content)
    assert read(made, run, name).code == 0


def forged(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def forge(path: Path) -> None:
        with np.load(path) as saved:
            arrays: dict[str, Any] = {name: saved[name] for name in saved.files}
        change(arrays)
        np.savez(path, **arrays)

    return forge


def huge(path: Path) -> None:
    """An array that says it has 8 TB, in a file of a few bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("numbers.npy", header.getvalue() + bytes(16))


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("numbers.npy", bytes(10**8))


WEIGHT = "member 0 weight"
SCORERS = {
    "no array": (forged(lambda a: a.pop("pool noise")), "KeyError"),
    "another shape": (forged(lambda a: a.update({WEIGHT: a[WEIGHT][:, :, :1]})), "finite numbers"),
    "another number of classes": (forged(lambda a: a.update(classes=a["classes"][:1])), "shape (1"),
    "text": (forged(lambda a: a.update({WEIGHT: a[WEIGHT].astype(str)})), "finite numbers"),
    "not finite": (forged(lambda a: a.update({WEIGHT: np.nan * a[WEIGHT]})), "finite numbers"),
    "objects": (forged(lambda a: a.update(classes=np.array(["a", None]))), "holds objects"),
    "8 TB": (huge, "is not of the size of its content"),
    "a bomb": (bomb, "it unpacks to 100000000 bytes, more than"),
}


@pytest.mark.parametrize("name", SCORERS)
def test_a_forged_scorer_is_refused(made, run, name):
    forge, word = SCORERS[name]
    forge(run / "scorer.npz")
    seal(run)
    refused(read(made, run, "scorer.npz"), word)


@pytest.mark.parametrize("content", [[1, 2], {"members": {"0": 1}}])
def test_forged_models_of_a_scorer_are_refused(made, run, content):
    skops.io.dump(content, run / "scorer.skops")
    forged(lambda a: a.pop(WEIGHT))(run / "scorer.npz")
    seal(run)
    refused(read(made, run, "scorer.npz"), "scorer.npz cannot be read")


def schema(text: str) -> Callable[[Path], None]:
    def forge(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("schema.json", text)

    return forge


MODELS = {
    "deep": (schema('{"a":' * 100_000), "RecursionError"),
    "no description": (schema("[]"), "damaged"),
    "empty": (schema("{}"), "Error"),
    "a bomb": (bomb, "it unpacks to"),
    "8 TB": (huge, "is not of the size"),
    "a vast description": (schema(" " * 5000), "its description has 5000 bytes"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_forged_model_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(archives, "LARGEST_SCHEMA", 4096 if "vast" in name else 1 << 26)
    forge, word = MODELS[name]
    path = tmp_path / "model.skops"
    forge(path)
    with pytest.raises(
        InputError, match=r"model\.skops is not a skops file, or is damaged"
    ) as caught:
        load_model(path)
    assert word in str(caught.value)


@pytest.mark.parametrize("kind", ["filename", "file"])
def test_a_model_that_reads_the_files_that_rows_name_is_refused(tmp_path, kind):
    path = tmp_path / "model.skops"
    skops.io.dump(make_pipeline(CountVectorizer(input=kind), MinMaxScaler()), path)
    with pytest.raises(
        InputError, match="holds a CountVectorizer that reads the files that rows name"
    ):
        load_model(path)
    skops.io.dump(make_pipeline(CountVectorizer()), path)
    load_model(path)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('label = "y"', "label = 3", "'label'"),
        ("drop = []", "drop = [1]", "'drop'"),
        ("drop = []", 'drop = "a"', "'drop'"),
        ("[sha256]", "[sha256]\n[other]", "'sha256'"),  # found by `mutations.py`
        ("[sha256]", "sha256 = 1\n[other]", "'sha256'"),
    ],
)
def test_a_forged_config_is_refused(made, run, old, new, named):
    path = run / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    seal(run)
    for reader in ("config.toml", "scorer.npz"):
        refused(read(made, run, reader), f"config.toml cannot be used: {named}")


def test_settings_of_another_kind_are_refused_by_their_names(made, run):
    """Tracebacks, each of them once: a seed below zero, a task of another name, a path with a NUL."""
    path = run / "config.toml"
    settings, _, sums = path.read_text().partition("[sha256]")
    for setting in (
        *("seed = -1", 'seed = "x"', "seed = 1.5", "seed = true", 'task = "foo"', "holdout = 5"),
        *('entity = ["a"]', "given_label = 5", 'train = "a\\u0000b"', "metric = [1]", "l2 = inf"),
    ):
        name = setting.partition(" ")[0]
        kept = [line for line in settings.split("\n") if not line.startswith(f"{name} =")]
        path.write_text("\n".join([setting, *kept, "[sha256]"]) + sums)
        with pytest.raises(InputError, match=f"config.toml cannot be used: '{name}' is not"):
            read_config(run)
    path.write_text(f"{settings}[sha256]{sums}")
    assert read_config(run)["seed"] == 0


@pytest.mark.parametrize(
    ("value", "named"),
    [("[" * 9999 + "]" * 9999, "nested too deeply"), ("9" * 5000, "5000 digits")],
)
def test_settings_that_no_parser_takes_are_refused(made, run, value, named):
    """Once tracebacks: `tomllib` lets other errors through than its own."""
    (run / "config.toml").write_text(f"seed = {value}\n")
    seal(run)
    refused(bilevel("suggest", run), "config.toml cannot be read", named)
    table = made.out.parent / "train.csv"
    said = bilevel("audit", table, "--trusted", table, "--config", run / "config.toml")
    assert said.code == 2
    assert "".join(named.split()) in said.squeezed


def test_forged_weights_are_refused(made, run):
    """Found by `mutations.py`: tracebacks, and exit codes without the name of the file."""
    path = run / "weights.parquet"
    table, content = pd.read_parquet(path), path.read_bytes()
    forgeries = [
        content[:-200] + content[-180:],
        b"PAR1" + bytes(200) + b"PAR1",
        table.drop(columns="label_quality").to_parquet(),
        table.head(7).to_parquet(),
        table.assign(label_quality="high").to_parquet(),
        table.assign(label_quality=np.nan).to_parquet(),
    ]
    for forgery in forgeries:
        path.write_bytes(forgery)
        seal(run)
        refused(bilevel("suggest", run), "weights.parquet cannot be read", "it is damaged, or")


def test_weights_that_do_not_fit_the_rows_are_not_exported(made, run, tmp_path):
    """Tracebacks, each of them once: more rows than the table has, columns that are missing, lists."""
    path, target = run / "weights.parquet", tmp_path / "rows.json"
    table = pd.read_parquet(path)
    for forgery in (
        pd.concat([table, table]),
        *(table.drop(columns=name) for name in ("id", "keep", "label_quality", "predicted_label")),
        table.assign(given_label=[None] + [[1]] * (len(table) - 1)),
    ):
        forgery.to_parquet(path)
        seal(run)
        refused(bilevel("export", run, "--out", target), "weights.parquet cannot be read")
    table.to_parquet(path)
    for noise in (5, [], {"verify": 5}, {"verify": {"rows": 5}}):
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"noise": noise}))
        seal(run)
        said = bilevel("export", run, "--out", target, "--verify-next")
        refused(said, "this run names no rows to verify next")


@pytest.mark.parametrize(
    "change",
    [{"num_ids": "3"}, {"num_ids": None}, {"ids": 5}, {"ids": {}}, {"severity": [1]}],
    ids=str,
)
def test_a_forged_baseline_is_refused(tmp_path, change):
    """Some were once tracebacks, where the audit found something of the same kind."""
    finding = {
        "check": "leak/rows",
        "table": "train",
        "severity": "problem",
        "num_ids": 1,
        "ids": [],
    }
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"format": "bilevel audit 1", "findings": [finding]}))
    assert read_baseline(path) == [finding]
    path.write_text(json.dumps({"format": "bilevel audit 1", "findings": [finding | change]}))
    with pytest.raises(InputError, match="is no audit of this version"):
        read_baseline(path)


@pytest.mark.parametrize("choices", [5, {"a": 1}, "1", None])
def test_choices_that_are_no_list_are_no_decision(choices):
    """Some were once tracebacks, and a text was taken for the list of its letters."""
    part = {"type": "choices", "from_name": "label", "value": {"choices": choices}}
    tasks = [{"data": {"row_id": "1"}, "annotations": [{"result": [part]}]}]
    with pytest.raises(InputError, match="this is no export of Label Studio"):
        from_label_studio(tasks)
    part["value"] = {"choices": ["1"]}
    assert from_label_studio(tasks).decided == {"1": "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs pipes and devices")
def test_no_file_takes_the_place_of_a_device_or_a_pipe(made, tmp_path):
    """`bilevel audit ... --out /dev/null`, run by root, once made a file of the device."""
    table = made.out.parent / "train.csv"
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "link.csv").symlink_to("pipe.csv")
    (tmp_path / "null.csv").symlink_to("/dev/null")
    for name in ("pipe.csv", "link.csv", "null.csv"):
        path = tmp_path / name
        before = path.lstat()
        for command in (
            ["audit", table, "--label", "y"],
            ["score", made.out, table],
            ["suggest", made.out],
        ):
            said = bilevel(*command, "--out", path)
            assert said.code == 2
            assert "isadevice,apipeorasocket" in said.squeezed
        with pytest.raises(OSError, match="is a device, a pipe or a socket"):
            write_text(path, "x")
        assert os.path.samestat(before, path.lstat())


def test_a_table_without_an_end_is_not_read(made, run):
    config = (run / "config.toml").read_text()
    train = made.out.parent / "train.csv"
    assert f'train = "{train}"' in config
    (run / "config.toml").write_text(config.replace(f'"{train}"', '"/dev/zero"'))
    seal(run)
    refused(bilevel("suggest", run), "the train file /dev/zero that this run was made from")


def test_no_command_writes_over_what_it_reads(made, run, tmp_path):
    """`bilevel score RUN train.csv --out train.csv` once put the scores in the place of the rows."""
    train, link = made.out.parent / "train.csv", tmp_path / "link.csv"
    link.symlink_to(train)
    before = {path: path.read_bytes() for path in (train, *run.iterdir())}
    for command in (
        ["score", run, train, "--out", train],
        ["score", run, train, "--out", link],
        ["score", run, train, "--out", run / "weights.parquet"],
        ["suggest", run, "--out", train],
        ["suggest", run, "--out", run / "worst.csv"],
        ["export", run, "--out", run / "summary.json"],
        ["report", run, "--out", run / "summary.json"],
        ["audit", train, "--trusted", train, "--label", "y", "--out", train],
    ):
        said = bilevel(*command)
        assert said.code == 2, command
        assert "nothingisoverwritten" in said.squeezed
    assert {path: path.read_bytes() for path in before} == before


ROWS = ["--trusted", "TRUSTED", "--label", "y", "--id", "id"]


@pytest.mark.parametrize(
    ("module", "reads", "command"),
    [
        (_weigh_work, "check_tables", ["weigh", "TRAIN", *ROWS]),
        (_fix_work, "read_tables", ["fix", "TRAIN", *ROWS]),
        (_commands_work, "read_tables", ["suggest", "RUN"]),
        (_annotate_work, "read_tables", ["export", "RUN"]),
    ],
    ids=["weigh", "fix", "suggest", "export"],
)
def test_a_table_that_changes_while_it_is_read_is_refused(
    made, tmp_path, monkeypatch, module, reads, command
):
    """`weigh` noted the sum of the new file beside weights of the old one, and `fix` mixed them."""
    train, trusted = (made.out.parent / f"{name}.csv" for name in ("train", "trusted"))
    content, read = train.read_bytes(), getattr(module, reads)

    def read_and_change(*arguments, **options):
        found = read(*arguments, **options)
        train.write_bytes(content + b"later,0,0,1\n")
        return found

    monkeypatch.setattr(module, reads, read_and_change)
    names = {"TRAIN": train, "TRUSTED": trusted, "RUN": made.out}
    said = bilevel(*(names.get(x, x) for x in command), "--out", tmp_path / "new.json")
    train.write_bytes(content)
    refused(said, f"the train file {train} was changed while it was read")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_left_alone_by_resume(made, tmp_path):
    """Also when a file in it has changed, which is named."""
    folder = tmp_path / "again"
    folder.mkdir()
    command = [str(x) for x in write_small_tables(folder)]
    shutil.copytree(made.out, folder / "run")
    config = (folder / "run" / "config.toml").read_text()
    config = config.replace(str(made.out.parent), str(folder))
    (folder / "run" / "config.toml").write_text(config)
    seal(folder / "run")
    said = weigh([*command, "--resume", "--json"], folder / "run")
    assert said.code == 0
    assert "is complete: there is nothing to do" in " ".join(said.stderr.split())
    assert json.loads(said.stdout)["folder"] == str(folder / "run")
    said = weigh([*command, "--resume", "--seed", "3"], folder / "run")
    assert said.code == 2
    assert "differsfromthiscallin'seed'" in said.squeezed
    (folder / "run" / "weights.parquet").write_bytes(b"PAR1")
    refused(weigh([*command, "--resume"], folder / "run"), "weights.parquet has changed since")


def with_nodes(name: str, value: int) -> Callable[[Any], None]:
    """Every node that has children says this."""

    def forge(model: Any) -> None:
        for predictor in (p for trees in model._predictors for p in trees):
            nodes = predictor.nodes.copy()
            nodes[name][nodes["is_leaf"] == 0] = value
            predictor.nodes = nodes

    return forge


TREES = {
    "a child that there is not": (with_nodes("left", 2**31), "nodes that lead nowhere"),
    "a circle": (with_nodes("right", 0), "nodes that lead nowhere"),
    "a column that there is not": (
        with_nodes("feature_idx", 2**30),
        "columns that it does not have",
    ),
    "no categories": (with_nodes("is_categorical", 1), "categories that it does not have"),
}


@pytest.mark.parametrize("name", TREES)
def test_trees_that_would_end_the_process_are_refused(tmp_path, name):
    """Found by forging them: SIGSEGV, or no end, where the compiled code follows the nodes."""
    forge, word = TREES[name]
    X = np.random.default_rng(0).normal(size=(60, 2))
    model = HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=5).fit(X, X[:, 0] > 0)
    path = tmp_path / "model.skops"
    skops.io.dump(make_pipeline(MinMaxScaler(), model), path)
    load_model(path, SAVED_TYPES)
    forge(model)
    skops.io.dump(make_pipeline(MinMaxScaler(), model), path)
    with pytest.raises(InputError, match=word):
        load_model(path, SAVED_TYPES)


@pytest.mark.parametrize("kind", [RandomForestClassifier, GradientBoostingClassifier])
def test_forests_of_other_columns_are_refused(tmp_path, kind):
    X = np.random.default_rng(0).normal(size=(60, 2))
    model = kind(n_estimators=2).fit(X, X[:, 0] > 0)
    path = tmp_path / "model.skops"
    skops.io.dump(make_pipeline(model), path)
    load_model(path, SAVED_TYPES)
    model.n_features_in_ = 1
    skops.io.dump(make_pipeline(model), path)
    with pytest.raises(InputError, match="trees of other columns"):
        load_model(path, SAVED_TYPES)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_command_whose_process_is_ended_says_so(tmp_path):
    """As by a library that reads what was made to do harm."""
    code = """
import os, signal, sys
from bilevel import cli
cli.app = lambda: os.kill(os.getpid(), signal.SIGSEGV)
sys.argv = ["bilevel", "score", sys.argv[1], "t.csv"]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    said = " ".join(done.stderr.split())
    assert f"the process that read {tmp_path} was ended by SIGSEGV" in said
    assert "model.skops" in said
    code = code.replace("os.kill(os.getpid(), signal.SIGSEGV)", "sys.exit(4)")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert done.returncode == 4
