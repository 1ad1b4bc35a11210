"""What the bench of keep rates says of the smallest case: fewer tokens, less time."""

from __future__ import annotations

from dataclasses import replace

from vmae.experiments import recipes
from vmae.experiments.bench.keep_rates import step_seconds


def test_fewer_tokens_cost_less() -> None:
    config = recipes.get("demo_end_to_end")
    config = replace(config, train=replace(config.train, batch_size=4))
    found = step_seconds(config, (1.0, 0.5), rounds=3)
    assert found[0.5] < found[1.0]
