"""What every script of `papers/` shares: its options, and the JSON with the claims."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, its published number and ours."""

    row: str
    claim: str
    published: Any
    measured: Any
    holds: bool
    note: str = ""


def run_script(
    script: str, main: Callable[[bool, Path], tuple[dict[str, Any], list[Claim]]]
) -> None:
    """Parse `--quick`, `--full` and `--out`, run `main(full, out)` and write its JSON.

    `main` returns its settings and numbers, and the claims; it writes `<script>.png` itself.
    """
    name = Path(script).stem
    parser = argparse.ArgumentParser(prog=name)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about a minute on 2 cores (default)")
    size.add_argument("--full", action="store_true", help="as published")
    parser.add_argument("--out", type=Path, default=Path("out/papers"), help="folder to write to")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    numbers, claims = main(options.full, options.out)
    report = {
        "script": name,
        "size": "full" if options.full else "quick",
        **numbers,
        "claims": [claim.__dict__ for claim in claims],
    }
    path = options.out / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    for claim in claims:
        mark = "holds" if claim.holds else "DOES NOT HOLD"
        print(
            f"{claim.row}: {claim.claim}\n    published {claim.published}, measured "
            f"{claim.measured}: {mark}{'. ' + claim.note if claim.note else ''}"
        )
    print(f"written: {path}, {options.out / (name + '.png')}")
