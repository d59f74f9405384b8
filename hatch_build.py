"""Makes the report's JavaScript once, when a wheel or an editable installation is built."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import (  # pyright: ignore[reportMissingImports]
    BuildHookInterface,
)

FOLDER = "src/bilevel/reweighting/_report"


class BundleHook(BuildHookInterface):
    """Writes `vega.js` beside the report's template; git does not know that file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the script, and take it into the wheel."""
        bundle = runpy.run_path(str(Path(self.root, FOLDER, "bundle.py")))
        bundle["BUILT"].write_text(bundle["make_bundle"](), encoding="utf-8")
        build_data["artifacts"].append(f"/{FOLDER}/{bundle['BUILT'].name}")
