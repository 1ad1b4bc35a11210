"""Everything that needs a GPU, in one command: correctness, ops, whole steps, a profile. At most 8 minutes.

    python -m vmae.experiments.bench.gpu_suite --out DIR

(a) the kernel tests compiled for this GPU, and compute-sanitizer over small launches where it runs;
(b) every op against eager torch, torch.compile and SDPA's backends, with bytes and FLOPs beside this GPU's
    own measured ceilings; (c) whole pre-training steps of ViT-S/B/L/H, ours and transformers'; (d) a profile
of the step by kernel. Needs torch, triton, numpy and (for a) pytest; transformers for its rows in (c).
Writes one JSON, `gpu_<name>.json`, into DIR; checked in under `kernels/results/` it feeds
`vmae bench report`. `--dry-run` walks the same code on the CPU with tiny shapes and marks its JSON as such.

Everything on the GPU happens in watched processes (`vmae.kernels.supervise`): a kernel that hangs or crashes
is named in the JSON and left out, the rest is measured, and the JSON is written after every result; what the
processes print stays beside it. While the tests run, other processes compile what will be timed, into the
compilers' caches; nothing is timed before they end. Order: tests; ceilings; tiles; what calibration chooses
for ViT-B (used from then on); the ops and the step with a bar; the profile; all others until the time is up.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vmae.core.files import write_json
from vmae.experiments.bench import tiles
from vmae.experiments.bench.gpu_tests import SANITIZERS, Background, environment, start_tests
from vmae.experiments.bench.gpu_work import (
    WARMERS,
    calibrated_line,
    describe_op,
    describe_step,
    warm,
    work,
    work_items,
)
from vmae.experiments.bench.machine import machine
from vmae.kernels.supervise import Journal, supervise

SCHEMA = 1
PARTS = "abcd"
ME = (sys.executable, "-m", "vmae.experiments.bench.gpu_suite")
# What a part measures: where some parts are measured again, the others stay.
RENEWED = {"b": ("ops", "tiles", "calibration"), "c": ("steps",), "d": ("profile",)}


@dataclass(kw_only=True)
class Suite:
    """One run: the JSON as far as it has come, written after every result."""

    path: Path
    result: dict[str, Any]
    begin: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, out: Path, device: str, parts: str, *, dry_run: bool) -> Suite:
        """Begin a result in `out`; the parts not asked for stay as a former result has them."""
        name = "dry_run"
        if device == "cuda":
            name = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower())
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"gpu_{name}.json"
        result: dict[str, Any] = {
            "schema": SCHEMA,
            "dry_run": dry_run,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(),
            "left_out": [],
        }
        if set(parts) != set(PARTS) and path.is_file():
            before = json.loads(path.read_text())
            if before.get("machine") == result["machine"] and before.get("dry_run") == dry_run:
                renewed = {k for part in parts for k in RENEWED.get(part, ())}
                kept = {k: v for k, v in before.items() if k not in renewed}
                result = kept | {k: result[k] for k in ("schema", "started", "left_out")}
        return cls(path=path, result=result)

    def say(self, line: str) -> None:
        print(f"[{time.monotonic() - self.begin:5.0f} s] {line}", flush=True)

    def save(self) -> None:
        self.result["took_s"] = round(time.monotonic() - self.begin, 1)
        write_json(self.path, self.result)

    def test(self, device: str, folder: Path, until: float) -> bool:
        """(a) Wait for the tests; return whether one failed: not one cut off, nor a sanitizer."""
        self.say("tests, small launches, sanitizer; compiling meanwhile")
        started = start_tests(device, folder)
        reports = {k: v if isinstance(v, dict) else v.result(until) for k, v in started.items()}
        self.result["tests"] = reports
        for what, report in reports.items():
            self.say(
                f"{what}: exit code {report.get('exit_code')}: " + " / ".join(report.get("tail", [])[-2:])
            )
        self.save()
        return any(
            what not in SANITIZERS and r.get("exit_code") not in (0, None) for what, r in reports.items()
        )

    def on_event(self, event: dict[str, Any]) -> None:
        """Take a line of the worker's journal into the JSON, and say it."""
        if "say" in event:
            self.say(event["say"])
        elif "blame" in event:
            what = event["blame"] + (f", {event['part']}" if event["part"] else "")
            self.say(f"{what}: {event['why']}")
            self.result["left_out"].append(f"{what}: {event['why']}")
        elif "left_out" in event:
            self.result["left_out"].append(f"{event['left_out']}: out of time")
        elif "done" in event:
            key, value = event["key"], event["value"]
            self.say(f"{event['done']}: {event['took_s']} s")
            if key in ("ceilings", "profile"):
                self.result[key] = value
            elif key == "calibration":
                self.result.setdefault(key, {}).update(value)
                self.say(calibrated_line(value))
            else:
                self.result.setdefault(key, []).extend(value if isinstance(value, list) else [value])
            lines = describe_op(value) if key == "ops" else []
            lines += [describe_step(row) for row in value] if key == "steps" else []
            lines += [tiles.describe(value)] if key == "tiles" else []
            for line in lines:
                self.say(line)
            self.save()


def main(argv: list[str] | None = None) -> int:
    """Run the parts asked for, write the JSON after each result; return 1 where a kernel test failed."""
    parser = argparse.ArgumentParser(prog="python -m vmae.experiments.bench.gpu_suite", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="folder for the JSON")
    parser.add_argument("--parts", default=PARTS, help="which of a, b, c, d (default: all)")
    parser.add_argument(
        "--budget-s", type=float, help="seconds for everything (default: 470; a dry run takes what it needs)"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, to test the suite")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--known", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--begin", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--warm", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() and not args.dry_run else "cpu"
    if args.budget_s is None:
        args.budget_s = 3600.0 if args.dry_run else 470.0
    if not set(args.parts) <= set(PARTS):
        parser.error(f"expected --parts among {PARTS}; got {args.parts!r}")
    if device == "cpu" and not args.dry_run:
        parser.error("no CUDA GPU here; --dry-run walks the suite on the CPU without measuring anything")
    if args.warm is not None:
        warm(args.warm, device)
        return 0
    how: dict[str, Any] = {"dry_run": args.dry_run, "budget_s": args.budget_s}
    if args.worker is not None:
        known = json.loads(args.known.read_text()) if args.known else None
        work(Journal(path=args.worker), device, args.parts, begin=args.begin, known=known, **how)
        return 0
    suite = Suite.start(args.out, device, args.parts, dry_run=args.dry_run)
    # What tests, sanitizers and workers print stays beside the JSON.
    logs = args.out.resolve() / f"{suite.path.stem}_logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    failed = _test_and_warm(suite, device, args.parts, logs, args.budget_s)
    journal = Journal(path=logs / "journal.jsonl")
    if args.in_process:
        work(journal, device, args.parts, begin=suite.begin, **how)
        for event in journal.read():
            suite.on_event(event)
    else:
        _watch(suite, journal, args.parts, **how)
    wanted = {item.name for item in work_items(device, args.parts, dry_run=args.dry_run)}
    left_out = suite.result["left_out"]
    left_out += [f"{name}: cut off" for name in sorted(wanted - journal.finished())]
    suite.save()
    suite.say(f"wrote {suite.path}" + (f"; left out: {'; '.join(left_out)}" if left_out else ""))
    return 1 if failed else 0


def _test_and_warm(suite: Suite, device: str, parts: str, folder: Path, budget_s: float) -> bool:
    """Run the tests while other processes compile what will be timed; return whether a test failed."""
    warmers = []
    if device == "cuda" and {"b", "c"} & set(parts):
        for i in range(WARMERS):
            log = folder / f"warm{i}.log"
            command = [*ME, "--warm", str(i)]
            warmers.append(Background.start(command, log, TORCHINDUCTOR_COMPILE_THREADS="4"))
    suite.say(f"{suite.result['machine'].get('gpu', 'CPU')}, torch {torch.__version__}")
    until = suite.begin + 0.22 * budget_s + 20
    failed = suite.test(device, folder, until) if "a" in parts else False
    for i, warmer in enumerate(warmers):
        report = warmer.result(until)
        last = report["tail"][-1:] if report["exit_code"] else []
        suite.say(f"compiled ahead {i}: exit code {report['exit_code']} {' '.join(last)}")
    return failed


def _watch(suite: Suite, journal: Journal, parts: str, *, dry_run: bool, budget_s: float) -> None:
    """Measure in a worker process."""
    command = [*ME, "--worker", str(journal.path), "--parts", parts, "--budget-s", str(budget_s)]
    command += ["--begin", str(suite.begin)] + (["--dry-run"] if dry_run else [])
    if suite.result.get("tiles") or suite.result.get("ops"):
        known = journal.path.with_name("known.json")
        known.write_text(
            json.dumps(
                {k: suite.result.get(k, []) for k in ("tiles", "ops")}
                | {"calibration": suite.result.get("calibration", {})}
            )
        )
        command += ["--known", str(known)]
    deadline = suite.begin + budget_s + 8
    supervise(command, journal, deadline=deadline, on_event=suite.on_event, env=environment())


if __name__ == "__main__":
    sys.exit(main())
