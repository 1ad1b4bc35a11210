"""The pages on a run directory that older code left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from vmae.dashboard.settings import VARIABLE
from vmae.dashboard.sources import probe_score


def test_a_run_is_ranked_by_what_its_evaluation_logged() -> None:
    assert probe_score({"test/top1": 0.7}) == 0.7
    assert probe_score({"finetune/val_top1": 0.9, "test/top1": 0.7}) == 0.7


@pytest.mark.parametrize("name", ["sweeps", "runs", "reconstruct", "data"])
def test_a_page_shows_an_old_run_directory(
    name: str, old_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"runs_dir": str(old_runs), "checkpoints": [], "data": []}
    monkeypatch.setenv(VARIABLE, json.dumps(settings))
    script = (
        "from vmae.dashboard.frame import guarded\n"
        f"from vmae.dashboard.views.{name} import page\n"
        "guarded(page)()\n"
    )
    app: Any = AppTest.from_string(script, default_timeout=120).run()
    assert not app.exception, [e.message for e in app.exception]
    assert not app.error, [e.value for e in app.error]
    if name == "sweeps":
        shown = app.dataframe[0].value
        assert dict(zip(shown["mask ratio"], shown["accuracy"], strict=True))["0.5"] == 0.25
    if name == "runs":
        shown = app.dataframe[0].value
        scores = dict(zip(shown["name"], shown["accuracy"], strict=True))
        assert set(scores) > {"interrupted", "ratio0.5_s0"}
        assert scores["tuned"] == 0.5
