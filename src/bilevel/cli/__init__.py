"""The command line: `bilevel weigh` and its friends. Nothing heavy is imported until one runs."""

from ._app import app
from ._demo import bench, demo
from ._run import report, score, suggest
from ._tables import audit
from ._weigh import weigh

__all__ = ["app", "audit", "bench", "demo", "main", "report", "score", "suggest", "weigh"]

for command in (weigh, demo, audit, score, suggest, report, bench):
    app.command()(command)


def main() -> None:
    """The entry point of the `bilevel` command."""
    app()
