"""One site's candidates against each other: right first, then fastest, and torch's where it is not clear.

A candidate must compile without spilling, write every element, be no further from float64 than twice torch's
own error (and 1e-3), and give the same bits twice where its kernel promises that. Those left take turns on
the clock; one of them is chosen where it is at least 5% faster than torch beyond the spread of both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vmae.kernels.descriptor import Inputs, Trial
from vmae.kernels.device import Device, Refused, poisoned
from vmae.kernels.dispatch import forced
from vmae.kernels.registry import op_named
from vmae.kernels.sites import Site
from vmae.kernels.table import Row
from vmae.kernels.timing import checked_clips, relative_error

ROUNDS, ROUND_MS = 9, 3.0
GAIN = 1.05
"""A kernel has to be so much faster than torch."""
NOISE = 0.15
"""A spread (of the middle half, over the median) above it says that somebody else is on the device."""
ALLOWED = 1e-3
"""An error, beyond twice torch's own."""

Announce = Callable[[str, bool], None]
"""Told a candidate and whether it is compiled now, before anything of it runs."""


def measure_site(
    site: Site,
    device: Device,
    *,
    refused: Mapping[str, str],
    announce: Announce = lambda choice, compiles: None,
    first: str = "",
    until: float = float("inf"),
) -> Row:
    """Return what to choose at this site; an empty `choice` where nothing can be said (noise, torch fails).

    refused: candidates that are not touched. first: a candidate that is likely to win, measured before the
    others. From `until` on (time.monotonic) no further candidate is begun.
    """
    op = op_named(site.op)
    announce("inputs", False)
    trial = op.trial(site, device.device)
    inputs = trial.make(0)
    row = Row(refused=dict(refused))
    runs: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    limits: list[float] = []
    left = 0
    ways = op.choices(site, device.family())
    ways = ["torch", *sorted(ways[1:], key=lambda way: way != first)]
    for choice in ways:
        if choice in refused:
            continue
        if runs and time.monotonic() > until:
            left += 1
            continue
        # Torch's own way at a compiled site is inductor's, which compiles before it says so.
        announce(choice, site.compiled and choice == "torch")
        run = runner(trial, site, choice, inputs)
        try:
            device.compile(run, site, choice, lambda on, choice=choice: announce(choice, on))  # type: ignore[misc]
            announce(choice, False)
            errors = _checked(device, site, choice, run, trial, inputs, limits)
            if choice == "torch":
                limits = [2 * e + ALLOWED for e in errors]
            runs[choice] = run
        except Exception as e:
            row.refused[choice] = _reason(e)
            device.synchronise()  # raises where the device is lost: the process ends, this is to blame
        if choice == "torch" and "torch" not in runs:
            row.why = f"torch's own way fails: {row.refused.pop('torch')}"
            return row
    samples = _timed(device, site, runs, announce)
    row.ms = {choice: quartiles(values) for choice, values in samples.items()}
    row.choice, row.why = decide(row.ms)
    if left:
        row.why += f"; {left} candidates not tried, out of time"
    return row


def runner(trial: Trial, site: Site, choice: str, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """A call of the site's op by this choice: its output, then its gradients where the site has them."""
    call = trial.call
    if site.compiled and choice == "torch":
        torch.compiler.reset()
        call = torch.compile(call, dynamic=False)

    def run() -> tuple[Tensor, ...]:
        with forced(choice), torch.set_grad_enabled(site.grad):
            out = call(inputs)
            if not site.grad:
                return (out,)
            grads = torch.autograd.grad(out, [inputs[name] for name in trial.leaves], inputs.get("dout"))
        return (out.detach(), *grads)

    return run


def _checked(
    device: Device,
    site: Site,
    choice: str,
    run: Callable[[], tuple[Tensor, ...]],
    trial: Trial,
    inputs: Inputs,
    limits: list[float],
) -> list[float]:
    """Run, compare, run again; the errors of the outputs and gradients against float64.

    limits: what they may be; empty for torch's own way.
    """
    with poisoned():
        first = device.launch(run, site, choice)
    errors = []
    for out, ref in zip(first, trial.exact(inputs), strict=True):
        part = out if out.shape == ref.shape else checked_clips(out)
        errors.append(relative_error(part, ref))
    for error, limit in zip(errors, limits, strict=False):
        if not error <= limit:
            raise Refused(f"wrong: error {error:.1e} against float64, {limit:.1e} is allowed")
    if choice.startswith("triton") and trial.deterministic:
        second = device.launch(run, site, choice)
        for a, b in zip(first, second, strict=True):
            if not torch.equal(a, b):
                raise Refused("two runs on the same input differ")
    return errors


def _timed(
    device: Device,
    site: Site,
    runs: Mapping[str, Callable[[], tuple[Tensor, ...]]],
    announce: Announce,
) -> dict[str, list[float]]:
    clocks = {}
    for choice, run in runs.items():
        announce(choice, False)
        clocks[choice] = device.clock(run, site, choice)
        clocks[choice](0.0)
    samples: dict[str, list[float]] = {choice: [] for choice in runs}
    for _ in range(ROUNDS):
        for choice, clock in clocks.items():
            announce(choice, False)
            samples[choice].append(clock(ROUND_MS))
    return samples


def quartiles(values: list[float]) -> list[float]:
    """The three of them."""
    return [float(q) for q in statistics.quantiles(values, n=4, method="inclusive")]


def decide(ms: Mapping[str, list[float]]) -> tuple[str, str]:
    """(choice, why) from the quartiles of each candidate; ("", why) where the device was too noisy."""
    return decide_by(ms, plain="torch")


def decide_by(ms: Mapping[str, list[float]], *, plain: str) -> tuple[str, str]:
    """The same with another name for what wins in doubt."""
    plain_low, plain_ms, plain_high = ms[plain]
    others = {choice: q for choice, q in ms.items() if choice != plain}
    if (plain_high - plain_low) > NOISE * plain_ms:
        return "", f"too noisy to say: {plain} took {plain_low:.4g} to {plain_high:.4g} ms"
    if not others:
        return plain, f"no other candidate is fit ({plain_ms:.4g} ms)"
    best = min(others, key=lambda choice: others[choice][1])
    low, middle, high = others[best]
    if (high - low) > NOISE * middle:
        return "", f"too noisy to say: {best} took {low:.4g} to {high:.4g} ms"
    facts = f"{plain_ms / middle:.2f} times as fast ({middle:.4g} ms, {plain} {plain_ms:.4g} ms)"
    if high * GAIN <= plain_low:
        return best, facts
    return plain, f"the next best, {best}, is {facts}"


def _reason(e: Exception) -> str:
    text = (str(e).splitlines() or [""])[0][:200]
    return text if isinstance(e, Refused) else f"{type(e).__name__}: {text}"
