"""The report's JavaScript libraries as one script: made when bilevel is built, not for each report.

`hatch_build.py` runs this file by its path, so it imports nothing of bilevel. In a checkout that was
never built the script is made when a report needs it, which takes a second or two.
"""

import functools
from pathlib import Path

BUILT = Path(__file__).with_name("vega.js")


def make_bundle() -> str:
    """Vega, Vega-Lite and vega-embed, as one script that ends no HTML element early."""
    import vl_convert

    code = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return code.replace("</script", r"<\/script").replace("<!--", r"<\!--")


@functools.cache
def read_bundle() -> str:
    """As it was built, or made now."""
    return BUILT.read_text(encoding="utf-8") if BUILT.is_file() else make_bundle()
