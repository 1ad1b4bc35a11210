"""How a step runs where the configuration leaves it open: eager, compiled or captured, by trying each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.files import read_json, write_json
from vmae.core.train.calibration import FILE, Prepared
from vmae.core.train.config import TrainConfig, check_capturable
from vmae.core.train.step import Gradients, Mode, mode_of
from vmae.core.train.task import Report
from vmae.kernels import table, trial

CALLS = 6
"""Steps that are timed of each way, after two that are not."""
CLOSE = 0.02
"""A loss may differ from the eager one's by this share: two orders of rounding in bfloat16."""


def open_modes(
    train: TrainConfig, device: torch.device, varies: str, *, draws: bool, processes: int
) -> list[Mode]:
    """The ways that a run leaves open, the plain one first; one where nothing is.

    On a CPU, and among processes (where a way that fails on one would leave the others waiting), `auto` is
    off. The arguments are those of `check_capturable`.
    """
    if device.type != "cuda" or processes > 1:
        return [mode_of(train)]
    compiles = [False, True] if train.compile == "auto" else [train.compile]
    graphs = [False, True] if train.cuda_graph == "auto" else [train.cuda_graph]
    if train.cuda_graph == "auto":
        try:
            check_capturable(train, device, varies=varies, draws=draws, processes=processes)
        except InputError:
            graphs = [False]
    names: dict[tuple[bool, bool], Mode] = {
        (False, False): "eager",
        (True, False): "compile",
        (False, True): "graph",
        (True, True): "compile+graph",
    }
    return [names[c, g] for g in graphs for c in compiles]


class Steps:
    """What a trial of the real step asks of it: one more pass, and the time."""

    def __init__(self, gradients: Gradients, model: nn.Module, device: torch.device) -> None:
        self._gradients, self._model, self._device = gradients, model, device

    def set_mode(self, mode: Mode) -> None:
        self._gradients.set_mode(mode)

    def run(self, inputs: Sequence[Tensor]) -> float:
        """Leave gradients in the model and return the loss; the weights are left alone."""
        self._gradients.clear()
        return float(self._gradients(*inputs))

    def norm(self) -> float:
        """Of the gradients that are there."""
        found = [p.grad.norm() for p in self._model.parameters() if p.grad is not None]
        return float(torch.stack([f.float() for f in found]).norm()) if found else 0.0

    def now(self) -> float:
        """Seconds, all that was launched being done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def try_modes(
    modes: Sequence[Mode],
    steps: Steps,
    inputs: Sequence[Tensor],
    *,
    again: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> table.Row:
    """Run the real step in each way on the same batch; return the fastest that computes the same.

    modes: the plain one first, which wins unless another is 5% faster beyond the spread. again: inside it
    every pass draws the same (drop path). The mode chosen is left set, no gradients are. A way that raises,
    or whose loss or gradient norm is not the plain one's, is refused; in noise the plain one is kept.
    """
    row = table.Row()
    seen: dict[str, tuple[float, float]] = {}
    times: dict[str, list[float]] = {}
    for mode in (*modes, modes[0]):  # the plain one twice: what drifts meanwhile widens its spread
        try:
            steps.set_mode(mode)
            for _ in range(2):
                with again():
                    loss = steps.run(inputs)
            seen[mode] = loss, steps.norm()
            _check_same(seen[mode], seen[modes[0]])
            for _ in range(CALLS):
                begin = steps.now()
                with again():
                    steps.run(inputs)
                times.setdefault(mode, []).append((steps.now() - begin) * 1e3)
        except Exception as e:
            if mode == modes[0]:
                raise
            times.pop(mode, None)
            row.refused[mode] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"
    row.ms = {mode: trial.quartiles(values) for mode, values in times.items()}
    row.choice, row.why = trial.decide_by(row.ms, plain=modes[0])
    steps.set_mode(next((m for m in modes if m == row.choice), modes[0]))
    return row


def _check_same(got: tuple[float, float], plain: tuple[float, float]) -> None:
    for what, value, expected in zip(("loss", "gradient norm"), got, plain, strict=True):
        if not abs(value - expected) <= CLOSE * abs(expected) + 1e-6:
            raise ValueError(f"expected the {what} of the plain step, {expected:.4g}; got {value:.4g}")


class ModeTrial:
    """The trial of a run: held at its first whole micro-batch, where anything is open and worth it.

    A run that is resumed goes on in the way it began; what was chosen is kept in its `kernels.json`.
    """

    def __init__(
        self,
        gradients: Gradients,
        model: nn.Module,
        run_dir: Path,
        prepared: Prepared,
        modes: list[Mode],
        report: Report,
    ) -> None:
        self._gradients, self._model, self._place, self._report = gradients, model, run_dir / FILE, report
        self._modes = modes
        before = (prepared.saved or {}).get("mode")
        known = [m for m in modes if m == before]
        self._open = len(modes) > 1 and prepared.worth and not known
        gradients.set_mode((known or modes)[0])

    def __call__(
        self,
        inputs: Sequence[Tensor],
        again: Callable[[], contextlib.AbstractContextManager[None]],
        device: torch.device,
    ) -> None:
        """Try the ways with these inputs unless that is done; weights and gradients are left as they were."""
        if not self._open or not self._gradients.is_whole(inputs):
            return
        self._open = False
        row = try_modes(self._modes, Steps(self._gradients, self._model, device), inputs, again=again)
        self._gradients.clear()
        mode = row.choice or self._modes[0]
        write_json(self._place, {**(read_json(self._place) or {}), "mode": mode, "mode_why": row.why})
        why = "; ".join([row.why, *(f"{m} refused: {w}" for m, w in row.refused.items())])
        self._report("mode", {"mode": mode, "why": why, "ms": row.ms})
