"""`compare`: its rows are those of `solve`, its seeds share batches, its figure shows its
numbers."""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import bilevel
from bilevel import BilevelProblem, WithReplacement, compare, draw_comparison
from helpers import CASES, REPLACED, assert_same, load_script, soba
from methods import LAWS
from test_namespace import python

CASE = CASES["logistic"]
START = (CASE.problem, CASE.u, CASE.w0)
SEEDS = [3, 0, 7]
NOISY, AMIGO = soba(0.3, 0.3, 0.1, **REPLACED), bilevel.AmIGO(0.3, 0.3, 0.1, 2, 2)
TWO: dict[str, Any] = {"SOBA": NOISY, "AmIGO": AMIGO}
THREE: dict[str, Any] = {name: LAWS[name].algorithm for name in ("BSA", "SABA auto")} | {
    "SOBA": NOISY
}
CALLS = ["outer_grads", "inner_grads", "hvps", "mixed"]
COLUMNS = [
    *("algorithm", "seed", "step", "outer_value"),
    *("outer_residual", "inner_residual", "linear_residual", "step_ratio"),
]
EXAMPLE = Path(__file__).parents[2] / "examples" / "new_method.py"


def two(**options: Any) -> Any:
    options = {"num_steps": 7, "seeds": SEEDS, "trace_every": 3} | options
    return compare(TWO, *START, **options)


def small(**options: Any) -> Any:
    """A problem without data, which compiles faster."""
    case, options = CASES["scalar"], {"num_steps": 7, "seeds": 2, "trace_every": 3} | options
    methods = {"SOBA": soba(0.3, 0.3, 0.01), "AmIGO": bilevel.AmIGO(0.3, 0.3, 0.01, 2, 2)}
    return compare(methods, case.problem, case.u, case.w0, **options)


@functools.cache
def three(vmap: bool) -> Any:
    return compare(THREE, *START, num_steps=7, seeds=SEEDS, trace_every=3, vmap=vmap)


def rows_of(frame: Any, algorithm: str, seed: int) -> Any:
    return frame[(frame.algorithm == algorithm) & (frame.seed == seed)]


@pytest.mark.parametrize("vmap", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_every_run_is_that_of_solve(vmap):
    """The seed is the key. 7 is not a multiple of 3, so the last row is one step after the
    third."""
    frame = three(vmap)
    assert list(frame.columns[:8]) == COLUMNS
    assert list(frame.algorithm.unique()) == list(THREE)
    assert len(frame) == len(THREE) * len(SEEDS) * 4
    for name, method in THREE.items():
        for seed in SEEDS:
            rows = rows_of(frame, name, seed)
            alone = bilevel.solve(
                CASE.problem,
                method,
                CASE.u,
                CASE.w0,
                num_steps=7,
                key=jax.random.key(seed),
                trace_every=3,
            )
            assert rows.step.tolist() == [0, 3, 6, 7]
            assert set(rows.result) == {"successful"}
            for column in COLUMNS[3:]:
                np.testing.assert_allclose(
                    rows[column].iloc[1:], alone.trace[column], rtol=1e-12, atol=1e-14
                )
            for column in CALLS:
                assert rows[column].iloc[1:].tolist() == alone.trace[column].tolist()
            np.testing.assert_allclose(
                rows.objective.iloc[-1],
                float(CASE.problem.outer(alone.u, alone.w, CASE.problem.outer_data)),
                rtol=1e-12,
            )
    assert frame.groupby("seed").objective.last().nunique() == len(SEEDS)


def poisoned() -> BilevelProblem:
    """`w*(u) = u`, but f and its derivatives are NaN on one row of ten."""
    data = jnp.ones(10).at[4].set(jnp.nan)
    return BilevelProblem(
        outer=lambda u, w, batch: 0.5 * jnp.mean((w - 1.0) ** 2 * jnp.ones_like(batch)),
        inner=lambda u, w, batch: 0.5 * jnp.mean(batch * (w - u) ** 2),
        outer_data=jnp.ones(3),
        inner_data=data,
    )


@pytest.mark.parametrize("vmap", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_seed_that_fails_keeps_its_rows_and_the_others_go_on(vmap):
    problem, zero = poisoned(), jnp.zeros(())
    method = soba(0.3, 0.3, 0.1, inner_sampler=WithReplacement(1))
    methods = {"SOBA": method}
    frame: Any = compare(methods, problem, zero, zero, num_steps=8, trace_every=3, vmap=vmap)
    failed = []
    for seed in range(10):
        rows = rows_of(frame, "SOBA", seed)
        alone = bilevel.solve(
            problem,
            method,
            zero,
            zero,
            num_steps=8,
            key=jax.random.key(seed),
            trace_every=3,
            throw=False,
        )
        assert rows.step.tolist() == [0, *alone.trace["step"].tolist()]
        value = float(problem.outer(alone.u, alone.w, problem.outer_data))
        np.testing.assert_allclose(rows.objective.iloc[-1], value, rtol=1e-12)
        if not bool(alone.result == bilevel.RESULTS.successful):
            failed.append(seed)
        assert rows.result.iloc[-1] == ("nonfinite" if seed in failed else "successful")
        assert set(rows.result.iloc[:-1]) == {"successful"}
        assert rows.inner_residual.iloc[1:-1].notna().all()
    assert 2 <= len(failed) <= 8
    label = draw_comparison(frame).legends[0].get_texts()[0].get_text()
    assert label == f"SOBA ({len(failed)} of 10 seeds failed)"


def test_every_seed_may_fail():
    problem, zero = poisoned(), jnp.zeros(())
    frame = compare({"SOBA": soba(0.3, 0.3, 0.1)}, problem, zero, zero, num_steps=8, seeds=2)
    assert frame.step.tolist() == [0, 1, 0, 1]
    assert frame.result.tolist() == ["successful", "nonfinite"] * 2
    lines = draw_comparison(frame).axes[0].lines
    assert [line.get_xydata().tolist() for line in lines] == [[[0.0, 0.5]]]
    with pytest.raises(ValueError, match="the column 'outer_value' has no finite value"):
        draw_comparison(frame, y="outer_value")


@pytest.mark.parametrize("vmap", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_metrics_are_of_the_point_after_the_step(vmap):
    given: dict[str, Any] = {
        "first": lambda u, w: u[0],
        "size": lambda u, w: jnp.sum(w**2),
        "positive": lambda u, w: jnp.sum(w > 0),
        "constant": lambda u, w: 4.0,
    }
    frame = two(metrics=given, vmap=vmap)
    assert frame.attrs["metrics"] == list(given)
    for name, method in TWO.items():
        for step in (3, 6, 7):
            end = bilevel.solve(
                CASE.problem, method, CASE.u, CASE.w0, num_steps=step, key=jax.random.key(SEEDS[0])
            )
            row = rows_of(frame, name, SEEDS[0]).set_index("step").loc[step]
            for column, metric in given.items():
                np.testing.assert_allclose(row[column], metric(end.u, end.w), rtol=1e-12)
    assert frame.positive.dtype.kind == "i"


def test_a_metric_may_replace_the_objective():
    frame = small(metrics={"objective": lambda u, w: 2.0 + 0.0 * u}, num_steps=2)
    assert set(frame.objective) == {2.0}
    assert draw_comparison(frame).axes[0].get_ylabel() == "objective"


@pytest.mark.slow
def test_steps_by_name():
    frame = small(num_steps={"AmIGO": 4, "SOBA": 120}, trace_every=None)
    steps = {name: rows.step.unique().tolist() for name, rows in frame.groupby("algorithm")}
    assert steps == {"AmIGO": [0, 1, 2, 3, 4], "SOBA": list(range(0, 121, 3))}
    assert frame.attrs["num_steps"] == {"SOBA": 120, "AmIGO": 4}
    assert small(trace_every=100).step.unique().tolist() == [0, 7]


@pytest.mark.slow
def test_seeds_may_be_a_number():
    assert small(seeds=3).seed.unique().tolist() == [0, 1, 2]
    assert small(seeds=range(4, 6)).seed.unique().tolist() == [4, 5]


@pytest.mark.slow
def test_each_algorithm_compiles_once(compilations):
    small(seeds=2, vmap=False)
    compilations.clear()
    small(seeds=4, vmap=False, num_steps=20)
    assert compilations.count("jit(chunk)") == compilations.count("jit(init)") == 2


def test_the_caller_keeps_what_it_passed():
    case = CASES["scalar"]
    before = jax.tree.map(lambda x: np.array(x), (case.u, case.w0))
    small()
    assert_same((case.u, case.w0), before)


@pytest.mark.slow
def test_the_figure_shows_the_medians(tmp_path):
    frame = two(num_steps={"SOBA": 80, "AmIGO": 8}, seeds=5, path=tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes()[:4] == b"\x89PNG"
    figure = draw_comparison(frame)
    assert figure.axes[0].get_ylabel() == "F(u, w) on all outer data"
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "oracle calls",
        "CPU seconds per seed, all seeds at once",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SOBA", "AmIGO"]
    total = frame[CALLS].sum(axis=1)
    for axes, x in zip(figure.axes, (total, frame.cpu_seconds), strict=True):
        assert len(axes.lines) == 2
        for name, line, band in zip(["SOBA", "AmIGO"], axes.lines, axes.collections, strict=True):
            mine: Any = frame[frame.algorithm == name]
            value = mine.pivot(index="step", columns="seed", values="objective").to_numpy()
            along = mine.assign(x=x).pivot(index="step", columns="seed", values="x").to_numpy()
            np.testing.assert_allclose(line.get_xdata(), np.median(along, axis=1), rtol=1e-14)
            np.testing.assert_allclose(line.get_ydata(), np.median(value, axis=1), rtol=1e-14)
            corners = band.get_paths()[0].vertices[:, 1]
            np.testing.assert_allclose(corners.min(), np.quantile(value, 0.25, axis=1).min())
            np.testing.assert_allclose(corners.max(), np.quantile(value, 0.75, axis=1).max())


def test_axes():
    frame = small(num_steps={"SOBA": 80, "AmIGO": 4})
    calls = frame[CALLS].sum(axis=1).groupby(frame.algorithm).max()
    assert calls.to_dict() == {"SOBA": 320, "AmIGO": 32}
    figure = draw_comparison(frame, x=["calls", "step"])
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "log"]
    assert draw_comparison(frame[frame.step > 0], y="outer_residual").axes[0].get_ylabel()
    moved = frame.assign(objective=10.0**-frame.step)
    assert draw_comparison(moved, x="step").axes[0].get_yscale() == "log"
    assert (
        draw_comparison(moved.assign(objective=-moved.objective)).axes[0].get_yscale() == "linear"
    )
    frame.attrs["vmap"] = False
    assert draw_comparison(frame, x="cpu_seconds").axes[0].get_xlabel() == "CPU seconds per seed"
    with pytest.raises(ValueError, match="no numeric column 'loss'; it has"):
        draw_comparison(frame, y="loss")
    with pytest.raises(ValueError, match="no numeric column 'result'"):
        draw_comparison(frame, x=["step", "result"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be at least 1, got 0"),
        ({"num_steps": {"SOBA": 3, "AmIGO": 0}}, "`num_steps` must be at least 1, got 0"),
        ({"trace_every": 0}, "`trace_every` must be at least 1, got 0"),
        (
            {"num_steps": {"SOBA": 3, "SABA": 4}},
            r"names of `algorithms`, \['SOBA', 'AmIGO'\], got \['SOBA', 'SABA'\]",
        ),
        ({"num_steps": {"SOBA": 3}}, r"got \['SOBA'\]"),
        ({"seeds": 0}, "`seeds` must be at least one seed"),
        ({"seeds": [1, 2, 1]}, r"must differ from each other, got \[1, 2, 1\]"),
        ({"metrics": {"u": lambda u, w: u}}, r"the metric 'u' must return a scalar, got \(12,\)"),
        ({"metrics": {"u": lambda u, w: (u[0],)}}, "'u' must return a scalar, got tuple"),
        ({"metrics": {"hvps": lambda u, w: u[0]}}, "'hvps', which is a column of its own"),
    ],
)
def test_wrong_calls(options, message):
    with pytest.raises(ValueError, match=message):
        two(**options)


def test_no_algorithm():
    with pytest.raises(ValueError, match="`algorithms` is empty"):
        compare({}, *START, num_steps=3)


def test_a_start_outside_of_the_set():
    with pytest.raises(ValueError, match="`u0` is not in the set of `Simplex`"):
        compare({"SOBA": soba(0.1, 0.1, 0.1)}, CASE.problem, 2 * CASE.u, CASE.w0, num_steps=3)


@pytest.mark.slow
def test_a_class_in_place_of_an_algorithm_is_refused():
    code = (
        "import bilevel\n"
        "try: bilevel.compare({'mine': bilevel.SOBA}, None, 0.0, 0.0, num_steps=3)\n"
        "except TypeError as error: print(error)"
    )
    assert python(code).startswith(
        "`algorithms['mine']` must be an algorithm such as `bilevel.SOBA()`"
    )


@pytest.mark.slow
def test_what_an_algorithm_refuses_is_raised_with_its_name():
    problem = bilevel.FixedPointProblem(
        outer=lambda u, w, _: 0.5 * (w - 1.0) ** 2, map=lambda u, w, _: 0.5 * (w + u)
    )
    zero = jnp.zeros(())
    methods: dict[str, Any] = {
        "fixed point": bilevel.DoubleLoop(
            bilevel.GradientInner(optax.sgd(1.0), 5), bilevel.AID(lx.GMRES(1e-8, 1e-8))
        ),
        "mine": bilevel.AmIGO(0.1, 0.1, 0.1),
    }
    with pytest.raises(TypeError, match="`AmIGO` needs an inner objective") as caught:
        compare(methods, problem, zero, zero, num_steps=3)
    assert caught.value.__notes__[-1] == "This was 'mine' among the algorithms of `compare`."
    vector = BilevelProblem(lambda u, w, _: w * jnp.ones(3), lambda u, w, _: 0.5 * (w - u) ** 2)
    with pytest.raises((ValueError, TypeError), match="scalar") as caught:
        compare({"mine": soba(0.1, 0.1, 0.1)}, vector, zero, zero, num_steps=3)


def test_without_matplotlib(monkeypatch, tmp_path):
    frame = small(num_steps=2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'bilevel\[viz\]'"):
        draw_comparison(frame)
    with pytest.raises(ImportError, match=r"pip install 'bilevel\[viz\]'"):
        small(path=tmp_path / "a.png")


@pytest.mark.slow
def test_the_example_is_a_method_in_under_60_lines(tmp_path, capsys):
    assert len(EXAMPLE.read_text().splitlines()) < 60
    example: Any = load_script(EXAMPLE)
    frame = example.main(out=str(tmp_path), num_steps=20, seeds=2)
    assert (tmp_path / "new_method.png").stat().st_size > 10_000
    assert "objective" in capsys.readouterr().out
    last = frame[frame.seed == 1].groupby("algorithm").last()
    assert last.step.to_dict() == {"AmIGO": 4, "SOBA": 20, "heavy ball": 20}
    assert last.loc["heavy ball", CALLS].tolist() == [20] * 4

    # Without momentum it is SOBA; with it, u moves by the sum of the past directions.
    def run(method, num_steps):
        return bilevel.solve(
            CASES["coupled"].problem,
            method,
            CASES["coupled"].u,
            CASES["coupled"].w0,
            num_steps=num_steps,
        )

    plain, reference = run(example.HeavyBall(0.3, 0.3, 0.05, 0.0), 7), run(soba(0.3, 0.3, 0.05), 7)
    np.testing.assert_allclose(np.asarray(plain.u), np.asarray(reference.u), rtol=1e-14)
    heavy = example.HeavyBall(0.3, 0.3, 0.05, 0.9)
    u = [np.asarray(CASES["coupled"].u), *(np.asarray(run(heavy, n).u) for n in (1, 2))]
    m = run(heavy, 1).state.aux[1]
    np.testing.assert_allclose(u[1], u[0] - 0.05 * np.asarray(m), rtol=1e-14)
    m = run(heavy, 2).state.aux[1]
    np.testing.assert_allclose(u[2], u[1] - 0.05 * np.asarray(m), rtol=1e-14)


def test_parts_are_what_the_methods_use():
    from bilevel import _settings
    from bilevel._algorithm import auto_steps, base, directions, loops, turn

    homes = (base, directions, loops, turn, auto_steps, _settings)
    for name in bilevel.parts.__all__:
        assert any(vars(home).get(name) is getattr(bilevel.parts, name) for home in homes)
        assert name in (bilevel.parts.__doc__ or "") or name[0].isupper()


def test_old_names_of_parts_warn_or_say_what_took_their_place():
    with pytest.warns(DeprecationWarning, match="is called `step_size_at` now"):
        assert bilevel.parts.at is bilevel.parts.step_size_at
    with pytest.raises(AttributeError, match="begins with `init_state`"):
        _ = bilevel.parts.begin
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bilevel.parts.nothing
    case, key = CASES["coupled"], jax.random.key(0)
    calls = bilevel.SOBA().init(case.problem, case.u, case.w0, key).calls
    with pytest.warns(DeprecationWarning, match="is called `Calls.mixed` now"):
        assert int(calls.cross) == int(calls.mixed) == 2
