"""`bilevel demo` and `bilevel bench`: the job on data that ship with scikit-learn."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .._storage import write_text
from .._text import to_json
from ._app import err, out


def demo(
    seed: Annotated[
        int, typer.Option(min=0, max=2**28, help="Random seed of the splits and the noise.")
    ] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="A file to write the numbers to.")
    ] = None,
) -> None:
    """Run the job on real digits that ship with scikit-learn, with labels corrupted on purpose."""
    from rich.progress import track

    from ._demo_work import DEMO_TEXT, NUM_SPLITS, run_demo

    out.print(DEMO_TEXT)
    bar = iter(track(range(NUM_SPLITS), description="splits", console=err))
    next(bar)
    outcome = run_demo(seed, on_split=lambda done: next(bar, None))
    if json_path is not None:
        numbers = {
            "splits": NUM_SPLITS,
            "seed": seed,
            "table": [
                {"fitted on": name} | row.dropna().to_dict()
                for name, row in outcome.table.iterrows()
            ],
            "found": outcome.found,
            "flagged": outcome.flagged,
            "wrong": outcome.wrong,
            "verdict": outcome.verdict(),
        }
        write_text(json_path, to_json(numbers) + "\n")
    table = Table(title="Accuracy on the hold-out, mean over the splits", title_justify="left")
    table.add_column("fitted on")
    for column in ("accuracy", "reweighted is better by", "better in"):
        table.add_column(column, justify="right")
    for name, row in outcome.table.iterrows():
        if name == "reweighted":
            table.add_row("reweighted", f"{row['score']:.4f}", "", "", style="bold")
        else:
            table.add_row(
                str(name),
                f"{row['score']:.4f}",
                f"{row['gain']:+.4f} ± {row['standard_error']:.4f}",
                f"{row['wins']:.0f} of {NUM_SPLITS}",
            )
    out.print(table)
    out.print(outcome.verdict(), highlight=False)
    out.print(
        f"The weights say to look at {outcome.flagged / NUM_SPLITS:.0f} rows per split; "
        f"{outcome.found / outcome.wrong:.0%} of the corrupted rows are among them, and "
        f"{outcome.found / outcome.flagged:.0%} of them are corrupted.",
        highlight=False,
    )


def bench(
    seeds: Annotated[int, typer.Option(min=1, help="Splits per line.")] = 3,
) -> None:
    """Where does weighting pay? The default on digits and breast cancer data, over the noise."""
    from rich.progress import track

    from ._demo_work import BENCH, bench_cell

    lines = [(*line, seed) for line in BENCH for seed in range(seeds)]
    gains: dict[tuple, list[tuple[float, float]]] = {}
    for data, rows, trusted, noise, seed in track(lines, description="splits", console=err):
        cell = bench_cell(data, rows, trusted, noise, seed)
        gains.setdefault((data, rows, trusted, noise), []).append(cell)
    table = Table(
        title="Accuracy over the best baseline in hindsight, and room: of clean rows only",
        title_justify="left",
    )
    for column in ("data", "rows", "trusted", "wrong labels", "gain", "room"):
        table.add_column(column, justify="right")
    for (data, rows, trusted, noise), cells in gains.items():
        gain, room = (sum(values) / seeds for values in zip(*cells, strict=True))
        table.add_row(data, str(rows), str(trusted), f"{noise:.0%}", f"{gain:+.4f}", f"{room:+.4f}")
    out.print(table)
