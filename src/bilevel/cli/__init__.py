"""The command line: `bilevel weigh` and the commands beside it.

The modules `_x` hold the options of the commands and import nothing heavy; what a command does is in
`_x_work`, which is imported when it runs.
"""

from ._app import RunFolderError, app
from ._commands import audit, report, score, suggest
from ._consensus import consensus
from ._demo import bench, demo
from ._weigh import weigh

__all__ = [
    "RunFolderError",
    "app",
    "audit",
    "bench",
    "consensus",
    "demo",
    "main",
    "report",
    "score",
    "suggest",
    "weigh",
]

for command in (weigh, demo, audit, consensus, score, suggest, report, bench):
    app.command()(command)


def main() -> None:
    """The entry point of the `bilevel` command."""
    app()
