"""The script that draws the charts is bundled by the first page and kept for the next ones, whole or not at all."""

import sys

import pytest
from proxycast.report.page import charts


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """What a new process puts on its page, and whether it bundled that itself."""
    monkeypatch.setattr(charts, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    made = []
    monkeypatch.setattr(
        charts.vl_convert, "javascript_bundle", lambda snippet: made.append(snippet) or f"// é {snippet}"
    )

    def asked() -> tuple[str, bool]:
        made.clear()
        return charts.vega_bundle.__wrapped__(), bool(made)

    return asked


def test_the_first_page_bundles_and_the_next_one_reads(bundle, monkeypatch):
    script = "// é window.vegaEmbed = vegaEmbed;"
    assert bundle() == (script, True)
    assert bundle() == bundle() == (script, False)
    monkeypatch.setattr(charts, "version", lambda name: "99.0")
    assert bundle() == (script, True) and bundle() == (script, False)


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace("window", "widow", 2), lambda _: "{}", lambda _: "[1]"]
)
def test_what_is_not_as_it_was_kept_is_bundled_anew(bundle, damage):
    script, _ = bundle()
    charts.KEPT.write_text(damage(charts.KEPT.read_text()))
    assert bundle() == (script, True) and bundle() == (script, False)


def test_nothing_is_kept_where_python_keeps_nothing(bundle, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert bundle()[1] and bundle()[1] and not charts.KEPT.exists()
