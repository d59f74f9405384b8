"""`scripts/docs_data`: what stands between the markers of a page."""

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "docs_data"


@pytest.fixture
def docs_data(tmp_path, monkeypatch):
    """The script as a module; its root is an empty folder with `docs/guide/`."""
    loader = SourceFileLoader("docs_data", str(SCRIPT))
    spec = importlib.util.spec_from_loader("docs_data", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    (tmp_path / "docs" / "guide").mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def page(tmp_path, text):
    path = tmp_path / "docs" / "guide" / "page.md"
    path.write_text(text)
    return path


def test_blocks_and_sentences_are_replaced_and_stay_so(docs_data, tmp_path):
    known = {"shout": lambda word, mark="!": f"{word}{mark} {{root}}/x.png"}
    path = page(
        tmp_path,
        "Say <!-- data: shout 'two words' ? -->old<!-- /data -->.\n\n"
        "<!-- data: shout hey -->\nold\nlines\n<!-- /data -->\nEnd.\n",
    )
    expected = (
        "Say <!-- data: shout 'two words' ? -->two words? ../../x.png<!-- /data -->.\n\n"
        "<!-- data: shout hey -->\n\nhey! ../../x.png\n\n<!-- /data -->\nEnd.\n"
    )
    assert docs_data.written(path, known) == expected
    path.write_text(expected)
    assert docs_data.written(path, known) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- data: nobody --><!-- /data -->", "no function nobody"),
        ("<!-- data: read gone.json --><!-- /data -->", "gone.json, which is missing"),
        ("<!-- data: read --><!-- /data -->", "TypeError"),
        ("<!-- data: read gone.json -->", "needs one <!-- /data -->"),
    ],
)
def test_errors_name_the_page_and_the_cause(docs_data, tmp_path, text, message):
    known = {"read": lambda name: (tmp_path / name).read_text()}
    with pytest.raises(SystemExit, match=message) as raised:
        docs_data.written(page(tmp_path, text), known)
    assert str(raised.value).startswith("docs/guide/page.md: ")


def test_values_come_from_reports(docs_data, monkeypatch):
    monkeypatch.setattr(docs_data, "ROOT", SCRIPT.parents[1])
    value = docs_data.writers()["value"]
    assert value("papers/toy_mixture", ".0f", "settings", "n") == "500"
    assert value("papers/toy_mixture", ".0f", "runs", "*", "uniform", "ess") == "500"
    assert value("papers/toy_mixture", ".1f", "settings", "theta", "*", "1") == "1.0 to 2.0"
