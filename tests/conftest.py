"""Strictness for every test: float64, no implicit promotion, checked annotations, fixed seeds."""

import ast
import atexit
import ctypes
import gc
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Before anything loads OpenMP. xdist's workers and the commands that tests start inherit it. On small
# tables a second thread is only waited for, and where another process has the core, in a busy loop:
# trees took three times the CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import jaxtyping._import_hook
import jaxtyping._typeguard
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Before anything imports bilevel: every annotation in the package is checked at run time, except
# in the scikit-learn estimators, whose `-> Self` beartype only knows on classes it decorates whole,
# and whose settings scikit-learn wants checked by `fit`.
# Not used as a context manager: bilevel imports its modules lazily, long after this line.
SPEC = find_spec("bilevel")
assert SPEC is not None
assert SPEC.origin is not None
PACKAGE = Path(SPEC.origin).parent
UNCHECKED = ("bilevel.reweighting._estimator", "bilevel.penalties.")
# JAX calls a function once per compilation, so checks of the library cost little. The product's
# functions are called again and again, and checks take a quarter of the time of its tests: `make slow`
# makes them.
if "BILEVEL_TESTS_CHECK_ALL" not in os.environ:
    UNCHECKED += ("bilevel.reweighting.", "bilevel._text")
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__" and path.parent.name != "cli"
}


def check_leaf(function):
    """What jaxtyping asks of each leaf of a `PyTree[Array]`.

    Its own way builds a checker from the signature for each leaf of each argument of each call, in
    twenty times the time: 5 % of that of the tests of the library.
    """
    kind = function.__annotations__["x"]
    if kind is not jax.Array:
        return any_leaf(function)

    def check(leaf):
        if not isinstance(leaf, jax.Array):
            raise TypeError

    return check


def visit_annotated(transformer, node):
    """Give a check to functions that have annotations: without any, there is nothing to check.

    The transformations of JAX are made of small functions that are defined anew at each trace.
    """
    arguments = (a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg))
    if node.returns or any(arguments):
        return visit_any(transformer, node)
    return transformer.generic_visit(node)


hook: Any = jaxtyping._import_hook.JaxtypingTransformer
visit_any = hook.visit_FunctionDef
hook.visit_FunctionDef = visit_annotated
any_leaf = jaxtyping._typeguard.typechecked
jaxtyping._typeguard.typechecked = check_leaf
install_import_hook(sorted(m for m in MODULES if not m.startswith(UNCHECKED)), "beartype.beartype")

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Thousands of small functions are compiled once and run once: most of the time is the compiler's.
# These flags, which JAX reads at its first computation, bring it to a quarter. A flag that XLA does
# not know ends the process; the second one exists in JAX 0.8 to 0.10.
QUICK = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
jax.config.update("jax_disable_most_optimizations", True)

# Traces make many objects, which live as long as the compiled function: looking for garbage among them
# at each 700 new ones took 4 % of the time.
gc.set_threshold(20_000, 20, 50)

# What XLA has compiled is kept in a folder for the length of the session, which xdist's workers share.
# Commands that tests start in a process of their own compile for themselves, as a user's do.
CACHE = "BILEVEL_TESTS_COMPILED"
if CACHE not in os.environ:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="bilevel-compiled-")
    atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

settings.register_profile(
    "tests",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


def pytest_configure(config):
    """A file that the other worker is still writing cannot be read, and is compiled anew."""
    message = "ignore:Error (reading|writing) persistent compilation cache:UserWarning"
    config.addinivalue_line("filterwarnings", message)


def pytest_sessionfinish():
    """Look for garbage once: pytest and Python would, several times, for seconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def small_forests(request):
    """Tests of the product ask what is done with label models, not how many trees they have.

    With a quarter of the trees, and of the draws of intervals that a test does not look at,
    `learn_weights` takes half of the time on a small table; so does `audit`.
    """
    if request.path.parent.name not in {"reweighting", "cli"}:
        yield
        return
    from bilevel.reweighting._audit import wrong_labels
    from bilevel.reweighting._weights import calibration, flexible_models, noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flexible_models, "TREES", flexible_models.TREES // 4)
        if request.path.stem != "test_wrong_labels":
            patch.setattr(wrong_labels, "TREES", wrong_labels.TREES // 4)
        if request.path.stem not in {"test_flexible_models", "test_new_rows"}:
            patch.setattr(flexible_models, "ROUNDS", flexible_models.ROUNDS // 4)
        if request.path.stem != "test_wrong_labels":
            patch.setattr(wrong_labels, "TREES", wrong_labels.TREES // 4)
        if request.path.stem != "test_noise":
            fewer = calibration.DRAWS // 4
            patch.setattr(calibration, "DRAWS", fewer)
            patch.setattr(noise, "DRAWS", fewer)
        yield


MEGABYTE = 2**20
ROOM = 1700 * MEGABYTE  # with what one test takes, a worker stays below 2 GB
limit = ROOM


@pytest.fixture(autouse=True)
def room_for_compiled_functions():
    """What JAX has compiled is kept until it takes too much memory, then forgotten between two tests.

    This also bounds the number of memory maps, of which a process may have 65530.
    """
    global limit
    yield
    if memory() < limit:
        return
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # back to the system
    limit = max(ROOM, memory() + 400 * MEGABYTE)


def memory() -> int:
    """The bytes that this process has in memory, where Linux says so."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


@pytest.fixture
def compilations():
    """The names of the functions that XLA compiles while the test runs, in order."""
    from jax._src import monitoring

    names: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs
        if event.endswith("backend_compile_duration"):
            names.append(str(kwargs.get("fun_name")))

    monitoring.register_event_duration_secs_listener(listen)
    yield names
    functions = vars(monitoring)  # the first name is that of JAX 0.6
    before = functions.get("_unregister_event_duration_listener_by_callback")
    (before or monitoring.unregister_event_duration_listener)(listen)
