"""docs/config.md is what the code says."""

from __future__ import annotations

from pathlib import Path

from vmae.core.config import flatten
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.config_page import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "config.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "python -m vmae.experiments.config_page > docs/config.md"


def test_every_key_is_there_and_means_something() -> None:
    rows = {}
    for line in page().splitlines():
        if line.startswith("| `"):
            key, choices, default, meaning = (part.strip() for part in line.strip("|").split(" | "))
            rows[key.strip("`| ")] = (choices, default, meaning.rstrip("|").strip())
    assert set(flatten(ExperimentConfig())) <= set(rows)
    assert not [key for key, (_, _, meaning) in rows.items() if not meaning]
    assert rows["data.bad_eval"][0] == "`error`, `count`" and rows["data.flip"][1] == "`false`"
    assert rows["train.epochs"][0] == "a whole number"
