"""Callbacks: the log, the checkpoint, the bar, and stopping."""

import json
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pandas as pd
import pytest

from bilevel import (
    AID,
    RESULTS,
    BilevelProblem,
    Checkpoint,
    DoubleLoop,
    GradientInner,
    Logger,
    ProgressBar,
    StopWhen,
    solve,
)
from helpers import assert_same, run
from methods import LAWS

METHOD = LAWS["SOBA"]


def state_of(name):
    method = LAWS[name]
    return method.algorithm.init(method.problem, method.case.u, method.case.w0, jax.random.key(1))


def test_logger_writes_the_trace(tmp_path):
    path = tmp_path / "log.jsonl"
    solution = run(METHOD, callbacks=[Logger(path)])
    table = pd.read_json(path, lines=True)
    assert table["step"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert set(table.columns) == set(solution.trace)
    for line, value in zip(
        path.read_text().splitlines(), solution.trace["outer_value"], strict=True
    ):
        assert json.loads(line)["outer_value"] == value  # to the last bit


def test_logger_appends_on_resume_and_drops_later_lines(tmp_path):
    """Interrupted at 7 with a checkpoint at 4, the lines 5 to 7 are written again, once each."""
    path, unbroken = tmp_path / "log.jsonl", tmp_path / "unbroken.jsonl"
    run(METHOD, 11, callbacks=[Logger(unbroken)])
    at_four = run(METHOD, 4, callbacks=[Logger(path)]).state
    run(METHOD, 7, state=at_four, callbacks=[Logger(path)])
    assert len(path.read_text().splitlines()) == 7
    run(METHOD, 11, state=at_four, callbacks=[Logger(path)])
    assert path.read_text() == unbroken.read_text()


def test_logger_survives_a_line_cut_short(tmp_path):
    path, unbroken = tmp_path / "log.jsonl", tmp_path / "unbroken.jsonl"
    run(METHOD, 7, callbacks=[Logger(unbroken)])
    at_four = run(METHOD, 4, callbacks=[Logger(path)]).state
    with path.open("a") as file:
        file.write('{"step": 5, "outer_v')
    run(METHOD, 7, state=at_four, callbacks=[Logger(path)])
    assert path.read_text() == unbroken.read_text()


def test_logger_waits_for_the_first_row(tmp_path):
    path = tmp_path / "log.jsonl"
    run(
        METHOD, 7, callbacks=[Logger(path)]
    )  # whose lines before step 6 stayed in the log of the next
    run(METHOD, 11, trace_every=6, callbacks=[Logger(path)])
    assert [json.loads(x)["step"] for x in path.read_text().splitlines()] == [6, 11]


def test_checkpoint_is_one_complete_file(tmp_path):
    path = tmp_path / "run.eqx"
    solution = run(METHOD, callbacks=[Checkpoint(path)])
    assert [x.name for x in tmp_path.iterdir()] == ["run.eqx"]
    assert_same(Checkpoint(path).load(state_of("SOBA")), solution.state)


def test_checkpoint_interrupted_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "run.eqx"
    solution = run(METHOD, 4, callbacks=[Checkpoint(path)])

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        run(METHOD, 7, callbacks=[Checkpoint(path)])
    assert [x.name for x in tmp_path.iterdir()] == ["run.eqx"]
    assert_same(Checkpoint(path).load(state_of("SOBA")), solution.state)


def test_checkpoint_after_every_chunk_and_the_last(tmp_path):
    path, steps = tmp_path / "run.eqx", []

    def look(_):
        saved = Checkpoint(path).load(state_of("SOBA")) if path.exists() else None
        steps.append(saved and int(saved.step))
        return False

    run(METHOD, 11, callbacks=[Checkpoint(path), StopWhen(look)])
    assert steps == [4, 8, 11]


def test_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.eqx"
    run(METHOD, callbacks=[Checkpoint(path)])
    for name in ("SOBA simplex", "SOBA shuffled", "AID cold", "AID warm"):
        with pytest.raises(ValueError, match="does not fit this run: it was saved by another"):
            Checkpoint(path).load(state_of(name))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.eqx"
    with pytest.raises(FileNotFoundError):
        Checkpoint(path).load(state_of("SOBA"))
    for content in (b"", b"not a checkpoint at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be used: .* no file of the kind"):
            Checkpoint(path).load(state_of("SOBA"))
    run(METHOD, callbacks=[Checkpoint(path)])
    whole = path.read_bytes()
    for content in (whole[:-20], whole + b"more"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cut short or has changed"):
            Checkpoint(path).load(state_of("SOBA"))


def test_stop_when_ends_the_run_after_its_chunk():
    seen = []
    stop = StopWhen(lambda chunk: chunk.step >= 5)
    later = StopWhen(lambda chunk: bool(seen.append(chunk.step)))
    solution = run(METHOD, 100, tol=1e-30, callbacks=[stop, later])
    assert solution.stats["num_steps"] == 8  # the first chunk end past 5
    assert seen == [4, 8]  # every callback saw every chunk
    assert bool(solution.result == RESULTS.successful)  # asked for, so no failure
    assert not solution.stats["converged"]


def test_progress_bar_writes_to_stderr_only(capsys):
    solution = run(METHOD, callbacks=[ProgressBar("my run")])
    out, err = capsys.readouterr()
    assert out == ""
    assert "my run" in err
    assert "7/7" in err
    assert f"F {solution.trace['outer_value'][-1]:.4g}" in err


def test_callbacks_are_closed_however_the_run_ends(tmp_path):
    class Failing(Logger):
        closed = False

        def close(self):
            super().close()
            self.closed = True

    log = Failing(tmp_path / "log.jsonl")

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(METHOD, callbacks=[log, StopWhen(interrupt)])
    assert log.closed
    steps = [json.loads(x)["step"] for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "run.eqx"
    run(METHOD, callbacks=[Checkpoint(path)])
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(whole), size=60).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"cannot be used: .*(checksum|no file of the kind)"):
            Checkpoint(path).load(state_of("SOBA"))


def small_problem(scale: float = 1.0) -> BilevelProblem:
    data = scale * jnp.arange(6.0).reshape(3, 2)
    return BilevelProblem(
        outer=lambda u, w, _: 0.5 * jnp.sum((w - 1.0) ** 2),
        inner=lambda u, w, batch: 0.5 * jnp.mean(jnp.sum(((w - u)[None] - batch) ** 2, axis=1)),
        inner_data=data,
    )


def small_method(inner_step: float = 0.5, outer_step: float = 0.1) -> DoubleLoop:
    inner = GradientInner(optax.sgd(inner_step), num_steps=2)
    return DoubleLoop(inner, AID(lx.CG(1e-6, 1e-6)), optax.sgd(outer_step))


def test_a_checkpoint_of_other_data_or_step_sizes_is_refused(tmp_path):
    path, u, w = tmp_path / "run.eqx", jnp.zeros(2), jnp.zeros(2)
    problem, method = small_problem(), small_method()
    saved = solve(problem, method, u, w, num_steps=3, callbacks=[Checkpoint(path)])
    key = jax.random.key(0)
    # Equal ones that were made anew are the same run; so they are in another process.
    again = small_problem(), small_method()
    assert_same(Checkpoint(path).load(again[1].init(*again[:1], u, w, key), *again), saved.state)
    others = [
        (small_problem(scale=2.0), method),
        (problem, small_method(inner_step=0.25)),
        (problem, small_method(outer_step=0.2)),
        (eqx.tree_at(lambda p: p.outer, problem, lambda u, w, _: jnp.sum((w - 2.0) ** 2)), method),
    ]
    for other, how in others:
        with pytest.raises(ValueError, match="on other data or with other settings"):
            Checkpoint(path).load(how.init(other, u, w, key), other, how)


def test_a_link_where_a_log_or_checkpoint_goes_is_replaced(tmp_path):
    precious, mine = tmp_path / "precious", '{"step": 99}\n'
    precious.write_text(mine)
    for make in (Logger, Checkpoint):
        path = tmp_path / make.__name__
        path.symlink_to(precious)
        run(METHOD, 4, callbacks=[make(path)])
        assert not path.is_symlink()
        assert precious.read_text() == mine
