"""Batches from the host: the same run as from data in memory, whatever the window; clear refusals."""

import dataclasses
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import RESULTS, BilevelError, Blocks, Checkpoint, FromLoader, Loaders, Tolerances
from bilevel._chunk import RunOptions, Status
from helpers import CASES, assert_same, soba
from methods import LAWS

CASE = CASES["logistic"]
BATCH = 4


def drawn(sampler: Any, data: Any, key: Any, count: int) -> list[Any]:
    """The first batches of a sampler, as numpy arrays."""

    def step(state: Any, _: None) -> tuple[Any, Any]:
        batch, state = sampler.draw(data, state)
        return state, batch.data

    _, batches = jax.lax.scan(step, sampler.init(data, key), length=count)
    return [jax.tree.map(lambda x, k=k: np.asarray(x[k]), batches) for k in range(count)]


def loaded(method: Any, count: int, key: int = 3) -> tuple[list[Any], list[Any]]:
    """The outer and the inner batches that a method in memory draws, in their order."""
    outer, inner = jax.random.split(jax.random.key(key))
    a, problem = method.algorithm, method.problem
    return (
        drawn(a.outer_sampler, problem.outer_data, outer, count),
        drawn(a.inner_sampler, problem.inner_data, inner, count),
    )


def from_lists(method: Any, outer: Any, inner: Any, window: int = 8) -> tuple[Any, Any]:
    """The problem without data, and the method with loaders."""
    problem = dataclasses.replace(method.problem, outer_data=None, inner_data=None)
    algorithm = dataclasses.replace(
        method.algorithm,
        outer_sampler=FromLoader(outer, window),
        inner_sampler=FromLoader(inner, window),
    )
    return problem, algorithm


def solve(problem: Any, algorithm: Any, num_steps: int = 21, **options: Any) -> Any:
    options = {"key": jax.random.key(3), "chunk_size": 4} | options
    return bilevel.solve(problem, algorithm, CASE.u, CASE.w0, num_steps=num_steps, **options)


METHOD = LAWS["SOBA shuffled"]
BLOCKWISE = soba(0.1, 0.1, 0.03, inner_sampler=Blocks(BATCH), outer_sampler=Blocks(BATCH))


@dataclasses.dataclass
class InMemory:
    algorithm: Any
    problem: Any = CASE.problem


IN_MEMORY = InMemory(BLOCKWISE)


def everything(solution: Any) -> Any:
    """What has to be equal, without the samplers' states."""
    rest = {name: x for name, x in vars(solution.state).items() if name != "samplers"}
    return solution.u, solution.w, rest, solution.trace


@pytest.fixture
def as_for_users():
    """Compiled with all optimisations; the window of 5 is of this test alone."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
def test_a_loader_of_blocks_is_the_sampler_of_blocks_bitwise(as_for_users):
    expected = solve(IN_MEMORY.problem, BLOCKWISE, chunk_size=5)
    found = solve(*from_lists(IN_MEMORY, *loaded(IN_MEMORY, 21), 5))
    assert_same(everything(found), everything(expected))


def test_a_loader_of_blocks_is_the_sampler_of_blocks():
    """The same batches, through windows that end within chunks and between them.

    As the tests are compiled, XLA rounds a sum of `Blocks` otherwise; `..._bitwise` is exact.
    """
    expected = solve(IN_MEMORY.problem, BLOCKWISE)
    outer, inner = loaded(IN_MEMORY, 21)
    found = solve(*from_lists(IN_MEMORY, outer, inner, 3))
    for x, y in zip((found.u, found.w), (expected.u, expected.w), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-13)
    assert int(found.state.samplers.inner.drawn) == 21
    assert int(found.state.samplers.inner.left) == 0


def once(batches: list[Any]) -> Any:
    yield from batches


def kinds(outer: list[Any], inner: list[Any]) -> dict[str, Any]:
    """The same batches as an iterable that begins again, as an iterator, and as a function."""
    return {
        "list": (outer, inner),
        "iterator": (once(outer), once(inner)),
        "function": (lambda k: iter(outer[k:]), lambda k: iter(inner[k:])),
    }


@pytest.mark.parametrize("kind", ["list", "iterator", "function"])
@pytest.mark.parametrize("at", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_unbroken_one(kind, at, tmp_path):
    """From a checkpoint, in windows that end elsewhere, with loaders made anew."""
    outer, inner = loaded(IN_MEMORY, 21)
    unbroken = solve(*from_lists(IN_MEMORY, outer, inner))
    problem, algorithm = from_lists(IN_MEMORY, *kinds(outer, inner)[kind], window=3)
    solve(problem, algorithm, at, callbacks=[Checkpoint(tmp_path / "run.eqx")])
    problem, algorithm = from_lists(IN_MEMORY, *kinds(outer, inner)[kind], window=3)
    with Loaders(algorithm) as loaders:
        like = loaders.algorithm.init(problem, CASE.u, CASE.w0, jax.random.key(9))
    problem, algorithm = from_lists(IN_MEMORY, *kinds(outer, inner)[kind], window=3)
    state = Checkpoint(tmp_path / "run.eqx").load(like, problem, algorithm)
    resumed = solve(problem, algorithm, state=state)
    assert_same(resumed.state, unbroken.state)
    assert resumed.stats == unbroken.stats


@pytest.mark.slow
def test_chunks_by_hand():
    """A loop around `run_chunk`, whose chunks end where the batches on the device do."""
    outer, inner = loaded(IN_MEMORY, 21)
    problem, algorithm = from_lists(IN_MEMORY, outer, inner, window=3)
    expected = solve(problem, algorithm).state
    never: Any = jnp.array(-1.0)
    options = RunOptions(jnp.array(21), jnp.array(1), Tolerances(never, never, never))
    run = eqx.filter_jit(bilevel.run_chunk)
    steps = []
    with Loaders(algorithm) as loaders:
        state = loaders.algorithm.init(problem, CASE.u, CASE.w0, jax.random.key(3))
        status = Status(jnp.array(False), RESULTS.outer_max_steps_reached)
        while not status.over:
            state, status, _ = run(
                problem, loaders.algorithm, options, state, status, chunk_size=21
            )
            steps.append(int(state.step))
            loaders.advance(state)
    assert_same((state.u, state.w), (expected.u, expected.w))
    assert steps[-1] == 21
    assert len(steps) > 2, steps


def test_an_iterable_begins_again():
    """Ten batches for 21 steps."""
    outer, inner = loaded(IN_MEMORY, 10)
    ten = solve(*from_lists(IN_MEMORY, outer, inner))
    outer, inner = (itertools.islice(itertools.cycle(x), 21) for x in (outer, inner))
    assert_same(everything(ten), everything(solve(*from_lists(IN_MEMORY, outer, inner))))


def drawing(name: str) -> Any:
    """A method that draws several batches per step, or another number at each."""
    steps = {"inner_step": 0.1, "outer_step": 0.03, "num_inner": 3}
    return {
        "AmIGO": bilevel.AmIGO(linear_step=0.1, num_linear=2, **steps),
        "BSA": bilevel.BSA(linear_step=0.1, num_terms=4, **steps),
        "SUSTAIN": bilevel.SUSTAIN(0.1, 0.1, 0.03),
        "F2SA": bilevel.F2SA(0.1, 0.03, num_inner=3),
        "DoubleLoop": LAWS["SID"].algorithm,
        "auto": bilevel.SOBA(),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "BSA",
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("DoubleLoop", "AmIGO", "auto", "F2SA", "SUSTAIN")
        ),
    ],
)
def test_the_window_changes_nothing(name):
    """Also of methods that draw many batches per step, or a random number of them."""
    outer, inner = loaded(IN_MEMORY, 40)
    method = InMemory(drawing(name))
    small = solve(*from_lists(method, outer, inner, 10))
    large = solve(*from_lists(method, outer, inner, 300), chunk_size=21)
    assert_same((small.state, small.trace), (large.state, large.trace))
    assert int(large.state.samplers.inner.drawn) > 21 * (name != "auto")


def test_a_loader_that_ends_leaves_a_partial_solution():
    outer, inner = loaded(IN_MEMORY, 10)
    problem, algorithm = from_lists(IN_MEMORY, outer, once(inner), window=4)
    with pytest.raises(
        BilevelError, match=r"ended at step 10 of 21: A `FromLoader` had no bat"
    ) as e:
        solve(problem, algorithm)
    ten = solve(*from_lists(IN_MEMORY, outer, once(inner)), num_steps=10)
    assert_same(e.value.solution.state, ten.state)
    assert "loader_exhausted" in str(e.value.solution) or "no batches left" in str(e.value.solution)
    further = from_lists(IN_MEMORY, outer, [*inner, *inner])[1]
    assert int(solve(problem, further, 21, state=ten.state).state.step) == 21


class Broken:
    """An iterable whose third batch cannot be read."""

    def __iter__(self):
        yield from [np.ones(3)] * 2
        raise OSError("disk is gone")


X, Y = np.ones((BATCH, 3)), np.ones(BATCH)


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([], ValueError, r"`FromLoader` of `inner_sampler` has no batch\."),
        (
            [(X, Y), (X[:2], Y[:2])],
            ValueError,
            r"batch 1 of `inner_sampler` is unlike the first.*drop_last",
        ),
        (
            [(X, Y), (X.astype(np.float32), Y)],
            ValueError,
            r"it has \['float32\[4, 3\]', 'float64\[4\]'\]",
        ),
        ([(X, Y), [X, Y]], ValueError, "unlike the first one"),
        (
            [{"text": np.array(["a"])}],
            TypeError,
            r"the leaf batch\['text'\] must be a numeric array, got <U1",
        ),
        ([()], ValueError, r"batch 0 of `inner_sampler` has no array: \(\)"),
        (Broken(), OSError, "disk is gone"),
    ],
)
def test_bad_batches(batches, error, words):
    algorithm = dataclasses.replace(BLOCKWISE, inner_sampler=FromLoader(batches, 4))
    problem = dataclasses.replace(CASE.problem, inner_data=None)
    with pytest.raises(error, match=words) as e:
        solve(problem, algorithm)
    if error is OSError:
        assert e.value.__notes__ == ["(while batch 2 of `inner_sampler` was read)"]


def test_refusals():
    outer, inner = loaded(IN_MEMORY, 4)
    problem, algorithm = from_lists(IN_MEMORY, outer, inner)
    with pytest.raises(ValueError, match="needs window >= 1, got 0"):
        FromLoader(inner, 0)
    with pytest.raises(TypeError, match=r"needs an iterable of batches, or a function .* got int"):
        FromLoader(3)
    with pytest.raises(TypeError, match="got one array"):
        FromLoader(X)
    with pytest.raises(ValueError, match="so the problem's `inner_data` must be None"):
        solve(dataclasses.replace(problem, inner_data=CASE.problem.inner_data), algorithm)
    with pytest.raises(TypeError, match="hands out batches in `solve` only"):
        algorithm.init(problem, CASE.u, CASE.w0, jax.random.key(0))
    twice = from_lists(IN_MEMORY, *[once(inner)] * 2)
    with pytest.raises(ValueError, match=r"the iterator of `\w+_sampler` has been read from alre"):
        solve(*twice)
    with pytest.raises(
        ValueError, match=r'"auto" step sizes look at 20 batches.*window=10 or more'
    ):
        solve(*from_lists(InMemory(bilevel.SOBA()), outer, inner, window=4))
    many = bilevel.AmIGO(0.1, 0.1, 0.1, num_inner=20)
    with pytest.raises(ValueError, match="one step draws more batches than a `FromLoader` has"):
        solve(*from_lists(InMemory(many), outer, inner, window=4))
    with pytest.raises(
        ValueError, match="its `inner_sampler` is a `FromLoader`, and the state was"
    ):
        solve(problem, algorithm, state=solve(IN_MEMORY.problem, BLOCKWISE, 1).state)


@pytest.mark.parametrize("name", ["VRBO", "SRBA"])
def test_methods_that_look_at_all_data_refuse(name):
    outer, inner = loaded(IN_MEMORY, 4)
    method = getattr(bilevel, name)(0.1, 0.1, 0.1)
    with pytest.raises(ValueError, match=f"`{name}` looks at all data from time to time"):
        solve(*from_lists(InMemory(method), outer, inner))


@pytest.mark.parametrize("kind", ["map", "iterable", "function", "loader"])
def test_a_loader_of_grain_goes_on_bitwise(kind):
    grain = pytest.importorskip("grain", reason="grain is no dependency of ours")
    rows = np.random.default_rng(0).normal(1.0, 0.3, 100)
    shuffled = grain.MapDataset.source(rows).shuffle(seed=3).repeat().batch(8, drop_remainder=True)

    def of_python() -> Any:
        order = grain.samplers.IndexSampler(
            100, shard_options=grain.sharding.NoSharding(), shuffle=True, seed=3
        )
        batch = grain.transforms.Batch(8, drop_remainder=True)
        return grain.DataLoader(data_source=rows, sampler=order, operations=[batch])

    batches = {
        "map": lambda: shuffled,
        "iterable": shuffled.to_iter_dataset,
        "function": lambda: lambda k: iter(shuffled[k:]),
        "loader": of_python,
    }[kind]
    problem = bilevel.BilevelProblem(
        lambda u, w, _: w**2, lambda u, w, x: jnp.mean((w - u - x) ** 2)
    )

    def solve(num_steps: int, **options: Any) -> Any:
        method = bilevel.SOBA(0.3, 0.3, 0.05, inner_sampler=FromLoader(batches(), 4))
        zero = jnp.zeros(())
        return bilevel.solve(
            problem, method, zero, zero, num_steps=num_steps, chunk_size=7, **options
        )

    unbroken, part = solve(60), solve(23)
    assert abs(unbroken.u + rows.mean()) < 0.05
    assert_same(solve(60, state=part.state).state, unbroken.state)
