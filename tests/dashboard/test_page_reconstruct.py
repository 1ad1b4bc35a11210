"""The Reconstruct page on a real miniature store, control by control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"


def start(query: dict[str, str] | None = None) -> Any:
    app = AppTest.from_file(str(APP), default_timeout=60)
    for name, value in (query or {}).items():
        app.query_params[name] = value
    return app.run()


def healthy(app: Any) -> Any:
    assert not app.exception, [e.message for e in app.exception]
    assert not app.error, [e.value for e in app.error]
    assert len(app.get("bidi_component")) == 1
    return app


def headline(app: Any) -> str:
    return str(app.markdown[0].value)


@pytest.fixture
def app(dashboard: Any) -> Any:
    return healthy(start())


def test_opens_on_the_best_checkpoint_at_its_own_ratio(app: Any) -> None:
    assert app.selectbox(key="view_checkpoint").options[0].startswith("mini ratio 0.75")
    assert "mini ratio 0.75" in headline(app)
    assert "clip **0 · left**" in headline(app)
    assert "16 of 64 tokens visible (75% masked)" in headline(app)


def test_the_ratio_slider_changes_what_is_visible_and_the_link(app: Any) -> None:
    healthy(app.slider(key="view_ratio").set_value(0.5).run())
    assert "32 of 64 tokens visible (50% masked)" in headline(app)
    assert app.query_params["ratio"] == ["0.5"] or app.query_params["ratio"] == "0.5"
