"""Which way a step runs: tried on the real step's interface, by ways that take the time they are told."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vmae.core.train.config import TrainConfig
from vmae.core.train.modes import Steps, open_modes, try_modes
from vmae.core.train.step import Gradients

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ALL: Any = ("eager", "compile", "graph", "compile+graph")


class Told(Steps):
    """Steps that take the milliseconds they are told, by a clock that only they move."""

    def __init__(self, ms: dict[str, Any], losses: dict[str, float] | None = None) -> None:
        self.ms, self.losses, self.clock = ms, losses or {}, 0.0
        self.mode, self.runs = "", list[str]()

    def set_mode(self, mode: str) -> None:
        self.mode = mode

    def run(self, inputs: Sequence[Tensor]) -> float:
        self.runs.append(self.mode)
        took = self.ms[self.mode]
        if isinstance(took, Exception):
            raise took
        if isinstance(took, list):
            took = took[len(self.runs) % len(took)]
        self.clock += took / 1e3
        return self.losses.get(self.mode, 1.0)

    def norm(self) -> float:
        return 2.0

    def now(self) -> float:
        return self.clock


def test_the_fastest_is_taken_and_left_set() -> None:
    steps = Told({"eager": 10.0, "compile": 8.0, "graph": 7.0, "compile+graph": 6.0})
    row = try_modes(ALL, steps, ())
    assert row.choice == steps.mode == "compile+graph"
    assert set(row.ms) == set(ALL)
    assert "1.67 times" in row.why


@pytest.mark.parametrize(
    ("ms", "losses", "refused"),
    [
        ({"compile": RuntimeError("no compiler here\nlong text")}, {}, "RuntimeError: no compiler here"),
        ({"compile": 1.0}, {"compile": 1.05}, "expected the loss of the plain step, 1; got 1.05"),
        ({"compile": 1.0}, {"compile": float("nan")}, "got nan"),
        ({"compile": 9.8}, {}, None),
    ],
    ids=["raises", "another loss", "NaN", "hardly faster"],
)
def test_what_is_not_the_same_or_not_faster_is_not_taken(
    ms: dict[str, Any], losses: dict[str, float], refused: str | None
) -> None:
    steps = Told({"eager": 10.0, **ms}, losses)
    row = try_modes(("eager", "compile"), steps, ())
    assert row.choice == steps.mode == "eager"
    assert (refused is None and not row.refused) or refused in row.refused["compile"]


def test_noise_decides_nothing_and_keeps_the_plain_way() -> None:
    steps = Told({"eager": [10.0, 16.0, 10.0, 20.0], "compile": 1.0})
    row = try_modes(("eager", "compile"), steps, ())
    assert row.choice == ""
    assert steps.mode == "eager"


def test_ways_that_are_open() -> None:
    def of(device: torch.device, processes: int = 1, **how: Any) -> list[str]:
        varies, draws = how.pop("varies", ""), how.pop("draws", False)
        return list(open_modes(TrainConfig(**how), device, varies, draws=draws, processes=processes))

    assert of(CPU) == ["eager"]
    assert of(CPU, compile=True) == ["compile"]
    assert of(GPU) == list(ALL)
    assert of(GPU, compile=False) == ["eager", "graph"]
    assert of(GPU, compile=True, cuda_graph=False) == ["compile"]
    assert of(GPU, processes=2) == ["eager"]
    for cannot in ({"varies": "mixing changes a step"}, {"draws": True}, {"accumulate": 2}):
        assert of(GPU, **cannot) == ["eager", "compile"]


def test_a_trial_of_the_real_step_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ways of the real `Gradients`, with drop path: the same draws in every pass, nothing stepped."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = Gradients(
        lambda module, x: module(x).square().mean(),
        model,
        model,
        rows=3,
        share=1.0,
        precision="fp32",
        device=CPU,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        quiet=None,  # type: ignore[arg-type]
    )
    set_to: list[str] = []
    inner = gradients.set_mode
    monkeypatch.setattr(gradients, "set_mode", lambda mode: (set_to.append(mode), inner(mode)))

    @contextlib.contextmanager
    def again() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            yield

    modes: Any = ("eager", "graph")  # without a GPU a graph is the step itself
    row = try_modes(modes, Steps(gradients, model, CPU), (torch.randn(3, 4),), again=again)
    assert row.refused == {}
    assert set_to[:3] == ["eager", "graph", "eager"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
