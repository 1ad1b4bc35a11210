"""Everything that needs a GPU, in one command: correctness, ops, whole steps, a profile. At most 8 minutes.

    python -m vmae.experiments.bench.gpu_suite --out DIR

(a) the kernel tests compiled for this GPU, and compute-sanitizer over small launches where it runs;
(b) every op against eager torch, torch.compile and SDPA's backends, with bytes and FLOPs beside this GPU's
    own measured ceilings; (c) whole pre-training steps of ViT-S/B/L/H, ours and transformers'; (d) a profile
of the step by kernel. Needs torch, triton, numpy and (for a) pytest; transformers for its rows in (c).
Writes one JSON, `gpu_<name>.json`, into DIR; checked in under `kernels/results/` it feeds `vmae bench report`
and, through `python -m vmae.kernels.evidence`, dispatch. `--dry-run` walks the same code on the CPU with tiny
shapes and marks its JSON as such.

Everything on the GPU happens in watched processes (`supervise.py`): a kernel that hangs or crashes is named
in the JSON and left out, the rest is measured, and the JSON is written after every result. While the tests
run, other processes compile what will be timed, into the compilers' caches; nothing is timed before they end.
Order: tests; ceilings; tiles; the ops and the step with a bar; the profile; all others until the time is up.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vmae import kernels
from vmae.experiments.bench import kernels as bench
from vmae.experiments.bench import tiles as sweep
from vmae.kernels import dispatch, evidence, reference
from vmae.kernels.attention.configs import CANDIDATES, default_plan, with_tiles
from vmae.kernels.attention.library import launch_bwd, launch_fwd
from vmae.kernels.supervise import Journal, kill_group, supervise

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[2]
PARTS = "abcd"
BARRED_OPS = 8  # the first of `bench.op_benches`: those with a bar, timed before any step
WARMERS = 3
# Silence that means a hang: the first inductor compilation of an op, of a whole model.
OP_LIMIT_S, STEP_LIMIT_S = 90.0, 240.0


def machine() -> dict[str, Any]:
    """What ran: the GPU as it reports itself, and the versions that matter."""
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
    }
    for name in ("triton", "transformers", "numpy"):
        spec = importlib.util.find_spec(name)
        if spec is not None:
            from importlib.metadata import PackageNotFoundError, version

            try:
                facts[name] = version(name)
            except PackageNotFoundError:
                facts[name] = "unknown"
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_gib": round(p.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def small_launches(device: str) -> float:
    """Launch every kernel once on small, awkward shapes; return the largest relative error (float32).

    Short enough for compute-sanitizer, which slows a program down a hundredfold.
    """
    gen = torch.Generator().manual_seed(3)
    worst = 0.0

    def compare(out: torch.Tensor, ref: torch.Tensor) -> None:
        nonlocal worst
        worst = max(worst, bench.relative_error(out.detach().cpu(), ref.detach().cpu()))

    with kernels.use_kernels("triton"):
        for n, first in ((17, 0), (160, 0), (261, 0), (261, 100)):
            qkv = torch.randn(1, n, 3, 2, 64, generator=gen).to(device, torch.bfloat16).requires_grad_()
            exact = qkv.detach().double().requires_grad_()
            kernels.fused_attention(qkv, first_query=first).float().square().sum().backward()
            reference.fused_attention(exact)[:, first:].square().sum().backward()
            assert qkv.grad is not None
            assert exact.grad is not None
            compare(qkv.grad, exact.grad)
        if device == "cuda":
            for tile in CANDIDATES.get(dispatch.family(), {}).get("short_bwd", []):
                qkv = torch.randn(1, 160, 3, 2, 64, generator=gen).to(device, torch.bfloat16)
                plan = with_tiles(default_plan(160, 64, qkv.dtype, dispatch.family()), {"short_bwd": tile})
                out, lse = launch_fwd(qkv, 0.125, None, plan)
                exact = qkv.double().requires_grad_()
                (dref,) = torch.autograd.grad(reference.fused_attention(exact).sum(), exact)
                compare(launch_bwd(torch.ones_like(out), qkv, out, lse, 0.125, None, plan=plan), dref)
        video = torch.randint(0, 256, (2, 4, 12, 18, 3), generator=gen, dtype=torch.uint8).to(device)
        indices = torch.stack([torch.randperm(12, generator=gen)[:5] for _ in range(2)]).to(device)
        grid: dict[str, Any] = {"patch_size": 6, "tubelet_size": 2, "layout": "BTHWC"}
        exact_patches = reference.gather_patches(video, indices, **grid)
        compare(kernels.gather_patches(video, indices, **grid), exact_patches)
        pred = torch.randn(2, 5, 216, generator=gen).to(device).requires_grad_()
        leaf = pred.detach().double().requires_grad_()
        kernels.masked_patch_loss(pred, video, indices, **grid).backward()
        reference.masked_patch_loss(leaf, video, indices, **grid).backward()
        assert pred.grad is not None
        assert leaf.grad is not None
        compare(pred.grad, leaf.grad)
        visible = torch.randn(2, 5, 40, generator=gen).to(device).requires_grad_()
        token, pos = torch.randn(40, generator=gen).to(device), torch.randn(12, 40, generator=gen).to(device)
        rest = torch.randint(0, 12, (2, 7), generator=gen).to(device)
        out = kernels.assemble_decoder_tokens(visible, token, pos, indices, rest)
        compare(out, reference.assemble_decoder_tokens(visible, token, pos, indices, rest))
        out.sum().backward()
    return worst


def _environment() -> dict[str, str]:
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    if torch.cuda.is_available():
        env["TRITON_INTERPRET"] = "0"
    return env


@dataclass(kw_only=True)
class Background:
    """A process whose output goes to a file, so that one that is cut off leaves what it had said."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, command: list[str], log: Path, **env: str) -> Background:
        with log.open("wb") as f:
            process = subprocess.Popen(
                command, stdout=f, stderr=f, cwd=ROOT, env=_environment() | env, start_new_session=True
            )
        return cls(process=process, log=log)

    def result(self, until: float) -> dict[str, Any]:
        """Wait until `until` (time.monotonic) at most: exit code (None: cut off) and the last lines."""
        try:
            code: int | None = self.process.wait(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            kill_group(self.process)
            code = None
        tail = self.log.read_text(errors="replace").strip().splitlines()[-12:]
        return {"exit_code": code, "tail": tail} | ({} if code is not None else {"cut_off": True})


def start_tests(device: str, folder: Path) -> dict[str, Background | dict[str, Any]]:
    """(a) Start the kernel tests, small launches of every kernel, and compute-sanitizer over those."""
    me = [sys.executable, "-m", "vmae.experiments.bench.gpu_suite", "--small-launches"]
    started: dict[str, Background | dict[str, Any]] = {}
    tests = ROOT / "tests" / "kernels" / "test_triton.py"
    if not tests.is_file():
        started["pytest"] = {"skipped": "the tests are not part of this installation"}
    elif importlib.util.find_spec("pytest") is None:
        started["pytest"] = {"skipped": "pytest is not installed"}
    else:
        command = [sys.executable, "-m", "pytest", str(tests), "-q", "-W", "ignore", "-p", "no:cacheprovider"]
        if device == "cpu":
            command += ["-k", "decoder_tokens and dtype0"]
        elif importlib.util.find_spec("xdist") is not None:
            command += ["-n", "10", "--dist", "worksteal"]  # compiling is most of the time
        started["pytest"] = Background.start(command, folder / "pytest.log")
    if device == "cpu":
        me.append("--dry-run")
    started["small_launches"] = Background.start(me, folder / "small.log")
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if device != "cuda" or not Path(sanitizer).exists():
        started["sanitizer"] = {"skipped": "no compute-sanitizer here"}
    else:
        command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9", *me]
        started["sanitizer"] = Background.start(command, folder / "sanitizer.log")
    return started


# --- the worker -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to measure. run(announce, skip) returns (key of the JSON, value); `by`: share of the time."""

    name: str
    key: str
    by: float
    run: Callable[[Callable[[str], None], dict[str, str]], Any]
    limit_s: float = OP_LIMIT_S


def work_items(device: str, parts: str, *, dry_run: bool, step_module: str) -> Iterator[Item]:
    """Everything to measure, most telling first."""
    on_gpu = device == "cuda"
    ops = bench.op_benches(device, tiny=dry_run, compiled=not dry_run)
    sets, rounds, min_ms = (1, 1, 0.1) if dry_run else (3, 7, 60.0)

    def op(build: Callable[[], bench.OpBench]) -> Callable[..., Any]:
        def run(announce: Callable[[str], None], skip: dict[str, str]) -> Any:
            timing: dict[str, Any] = {"sets": sets, "rounds": rounds, "min_ms": min_ms}
            done = bench.run_bench(build(), device, skip=skip, announce=announce, **timing)
            return done.to_dict()

        return run

    def ceilings(announce: Callable[[str], None], skip: dict[str, str]) -> Any:
        return bench.measure_ceilings(device, scale=256 if dry_run else 1)

    yield Item(name="ceilings", key="ceilings", by=1.0, run=ceilings)
    if "b" in parts:
        for name, measure in sweep.sweeps(device, tiny=dry_run):
            yield Item(name=f"tiles {name}", key="tiles", by=0.5, run=measure)
        for i, build in enumerate(ops[:BARRED_OPS]):
            yield Item(name=f"op {i}", key="ops", by=0.6, run=op(build))
    if {"c", "d"} & set(parts):
        steps = importlib.import_module(step_module)
        cases = steps.cases(dry_run=dry_run)

        def case(i: int) -> Item:
            def run(announce: Callable[[str], None], skip: dict[str, str]) -> Any:
                return steps.run_case(
                    cases[i], device, dry_run=dry_run, every_variant=i == 0, skip=skip, announce=announce
                )

            return Item(name=f"step {cases[i].label}", key="steps", by=1.0, run=run, limit_s=STEP_LIMIT_S)

        if "c" in parts:
            yield case(0)
        if "d" in parts:

            def profile(announce: Callable[[str], None], skip: dict[str, str]) -> Any:
                return steps.profile_step(device, dry_run=dry_run)

            yield Item(name="profile", key="profile", by=1.0, run=profile)
        if "c" in parts:
            for i in range(1, min(3, len(cases))):
                yield case(i)
    if "b" in parts:
        for i, build in enumerate(ops[BARRED_OPS:], BARRED_OPS):
            yield Item(name=f"op {i}", key="ops", by=0.85 if on_gpu else 1.0, run=op(build))
    if "c" in parts:
        for i in range(3, len(cases)):
            yield case(i)


def work(
    journal: Journal,
    device: str,
    parts: str,
    *,
    dry_run: bool,
    step_module: str,
    begin: float,
    budget_s: float,
    known: dict[str, Any] | None = None,
) -> None:
    """Measure item after item, say so in the journal; go on behind what it says is done.

    known: a former result of this machine, whose tiles and ops serve the parts that are measured now.
    """
    known = known or {}
    for row in known.get("tiles", []):
        sweep.use(row)
    finished = journal.finished()
    took = {"steps": 0.0, "ops": 0.0}
    for event in journal.read():
        if "done" in event:
            if event["key"] == "tiles":
                sweep.use(event["value"])
            took[event["key"]] = max(took.get(event["key"], 0.0), event["took_s"])
    for item in work_items(device, parts, dry_run=dry_run, step_module=step_module):
        if item.name in finished:
            continue
        # The next of a kind takes about as long as the slowest so far: compilation dominates.
        if time.monotonic() + 0.7 * took.get(item.key, 0.0) > begin + item.by * budget_s:
            journal.write(left_out=item.name)
            continue
        started = time.monotonic()
        if item.key == "steps" and not dry_run:
            _use_measured(journal, known.get("ops", []))
        journal.start(item.name, limit_s=item.limit_s)

        def announce(part: str, item: Item = item) -> None:
            journal.start(item.name, part, limit_s=item.limit_s)

        value = item.run(announce, journal.to_blame(item.name))
        if item.key == "tiles":
            sweep.use(value)
        seconds = time.monotonic() - started
        took[item.key] = max(took.get(item.key, 0.0), seconds)
        journal.done(item.name, item.key, value, took_s=seconds)
        if device == "cuda":
            torch.cuda.empty_cache()


def _use_measured(journal: Journal, before: list[dict[str, Any]]) -> None:
    """Let mode auto choose by what has been measured so far, as it will once that is checked in."""
    ops = [e["value"] for e in journal.read() if e.get("key") == "ops"] or before
    measured: dict[str, Any] = {"machine": machine(), "ops": ops}
    if ops:
        dispatch.load_evidence()[evidence.family_of(measured)] = evidence.rows_of(measured, "this run")


def warm(share: int, device: str, *, step_module: str) -> None:
    """Compile what will be timed, in one of WARMERS processes; results go nowhere.

    What inductor chooses by timing is not kept: other processes are on the GPU meanwhile.
    """
    import torch._inductor.config as inductor

    inductor.autotune_local_cache = False
    kinds: list[Callable[[], Any]] = []
    if share == 0:
        for _, measure in sweep.sweeps(device, tiny=False, rounds=0):
            kinds.append(lambda measure=measure: measure(lambda part: None, {}))  # type: ignore[misc]
        for build in bench.op_benches(device, tiny=False, compiled=True):
            kinds.append(
                lambda build=build: bench.run_bench(build(), device, sets=1, rounds=0)  # type: ignore[misc]
            )
    else:
        steps = importlib.import_module(step_module)
        for case in steps.cases(dry_run=False)[share - 1 :: WARMERS - 1]:
            kinds.append(lambda case=case: steps.warm_case(case, device))  # type: ignore[misc]
    for run in kinds:
        with contextlib.suppress(Exception):  # what fails, fails again where it is written down
            run()
        torch.cuda.empty_cache()


def run_ops(
    device: str, *, deadline: float, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """(b) in this very process, for `vmae bench kernels`: the rows and the ops left out at `deadline`."""
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for item in work_items(device, "b", dry_run=device == "cpu", step_module=""):
        if item.key != "ops":
            continue
        if time.monotonic() > deadline:
            left_out.append(item.name)
            continue
        rows.append(item.run(lambda part: None, {}))
        for line in describe_op(rows[-1]):
            say(line)
    return rows, left_out


def describe_op(row: dict[str, Any]) -> list[str]:
    """Lines that say what an op's variants took."""
    lines = [f"op: {row['op']} {row['what']} {row['shape']}"]
    for t in row["timings"]:
        took = f"{t['ms']:.4f} ms" if t["ms"] is not None else "-"
        lines.append(f"    {t['name']:34s} {took:>12s}  {t['refused'] or ''}")
    return lines


def describe_step(row: dict[str, Any]) -> str:
    speed = f"{row['clips_per_s']:.1f} clips/s" if "clips_per_s" in row else row["refused"]
    graph = " (graph)" if row["graph"] else ""
    return f"    {row['size']} {row['ratio']} {row['variant']}{graph}: {speed}"


def main(argv: list[str] | None = None) -> int:
    """Run the parts asked for, write the JSON after each result; return 1 where a kernel test failed."""
    parser = argparse.ArgumentParser(prog="python -m vmae.experiments.bench.gpu_suite", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="folder for the JSON")
    parser.add_argument("--parts", default=PARTS, help="which of a, b, c, d (default: all)")
    parser.add_argument(
        "--budget-s", type=float, help="seconds for everything (default: 470; a dry run takes what it needs)"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, to test the suite")
    parser.add_argument(
        "--step-module", default="vmae.experiments.bench.step", help="module with the whole steps"
    )
    parser.add_argument("--small-launches", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--known", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--begin", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--warm", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() and not args.dry_run else "cpu"
    if args.budget_s is None:
        args.budget_s = 3600.0 if args.dry_run else 470.0
    if args.small_launches:
        error = small_launches(device)
        print(f"largest relative error {error:.2e}")
        return 0 if error < bench.TOLERANCE else 1
    if not set(args.parts) <= set(PARTS):
        parser.error(f"expected --parts among {PARTS}; got {args.parts!r}")
    if device == "cpu" and not args.dry_run:
        parser.error("no CUDA GPU here; --dry-run walks the suite on the CPU without measuring anything")
    if args.warm is not None:
        warm(args.warm, device, step_module=args.step_module)
        return 0
    how: dict[str, Any] = {"dry_run": args.dry_run, "step_module": args.step_module}
    if args.worker is not None:
        how["known"] = json.loads(args.known.read_text()) if args.known else None
        work(Journal(path=args.worker), device, args.parts, begin=args.begin, budget_s=args.budget_s, **how)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return _run_suite(args, device, Path(folder))


def _run_suite(args: argparse.Namespace, device: str, folder: Path) -> int:
    begin = time.monotonic()
    name = (
        re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower()) if device == "cuda" else "dry_run"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu_{name}.json"
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "dry_run": args.dry_run,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "left_out": [],
    }
    if set(args.parts) != set(PARTS) and path.is_file():
        # Some parts again: the others stay, if they are of the same GPU and versions.
        before = json.loads(path.read_text())
        if before.get("machine") == result["machine"] and before.get("dry_run") == args.dry_run:
            again = {"b": ("ops", "tiles"), "c": ("steps",), "d": ("profile",)}
            renewed = {k for part in args.parts for k in again.get(part, ())}
            kept = {k: v for k, v in before.items() if k not in renewed}
            result = kept | {k: result[k] for k in ("schema", "started", "left_out")}

    def say(line: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {line}", flush=True)

    def save() -> None:
        result["took_s"] = round(time.monotonic() - begin, 1)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(path)

    me = [sys.executable, "-m", "vmae.experiments.bench.gpu_suite", "--step-module", args.step_module]
    warmers = []
    if device == "cuda" and {"b", "c"} & set(args.parts):
        for i in range(WARMERS):
            log = folder / f"warm{i}.log"
            warmers.append(Background.start([*me, "--warm", str(i)], log, TORCHINDUCTOR_COMPILE_THREADS="4"))
    say(f"{result['machine'].get('gpu', 'CPU')}, torch {torch.__version__}")
    failed = False
    until = begin + 0.22 * args.budget_s + 20
    if "a" in args.parts:
        say("tests, small launches, sanitizer; compiling meanwhile")
        tests = start_tests(device, folder)
        result["tests"] = {k: v if isinstance(v, dict) else v.result(until) for k, v in tests.items()}
        for what, report in result["tests"].items():
            failed = failed or (what != "sanitizer" and report.get("exit_code", 0) != 0)
            say(f"{what}: exit code {report.get('exit_code')}: " + " / ".join(report.get("tail", [])[-2:]))
        save()
    for i, warmer in enumerate(warmers):
        report = warmer.result(until)
        last = report["tail"][-1:] if report["exit_code"] else []
        say(f"compiled ahead {i}: exit code {report['exit_code']} {' '.join(last)}")

    def on_event(event: dict[str, Any]) -> None:
        if "say" in event:
            say(event["say"])
        elif "blame" in event:
            what = event["blame"] + (f", {event['part']}" if event["part"] else "")
            say(f"{what}: {event['why']}")
            result["left_out"].append(f"{what}: {event['why']}")
        elif "left_out" in event:
            result["left_out"].append(f"{event['left_out']}: out of time")
        elif "done" in event:
            key, value = event["key"], event["value"]
            say(f"{event['done']}: {event['took_s']} s")
            if key in ("ceilings", "profile"):
                result[key] = value
            else:
                result.setdefault(key, []).extend(value if isinstance(value, list) else [value])
            lines = describe_op(value) if key == "ops" else []
            lines += [describe_step(row) for row in value] if key == "steps" else []
            lines += [sweep.describe(value)] if key == "tiles" else []
            for line in lines:
                say(line)
            save()

    journal = Journal(path=folder / "journal.jsonl")
    worker = [*me, "--worker", str(journal.path), "--parts", args.parts, "--budget-s", str(args.budget_s)]
    worker += ["--begin", str(begin)] + (["--dry-run"] if args.dry_run else [])
    if result.get("tiles") or result.get("ops"):
        known = folder / "known.json"
        known.write_text(json.dumps({k: result.get(k, []) for k in ("tiles", "ops")}))
        worker += ["--known", str(known)]
    deadline = begin + args.budget_s + 8
    if args.in_process:
        how = {"dry_run": args.dry_run, "step_module": args.step_module, "begin": begin}
        work(journal, device, args.parts, budget_s=args.budget_s, **how)
        for event in journal.read():
            on_event(event)
    else:
        supervise(worker, journal, deadline=deadline, on_event=on_event, env=_environment())
    wanted = {
        i.name for i in work_items(device, args.parts, dry_run=args.dry_run, step_module=args.step_module)
    }
    cut = sorted(wanted - journal.finished())
    result["left_out"] += [f"{name}: cut off" for name in cut]
    save()
    say(f"wrote {path}" + (f"; left out: {'; '.join(result['left_out'])}" if result["left_out"] else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
