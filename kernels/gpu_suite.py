"""Everything that needs a GPU, in one command: correctness, ops, whole steps, a profile. At most 8 minutes.

    python -m vmae.kernels.gpu_suite --out DIR

(a) the kernel tests compiled for this GPU, and compute-sanitizer over small launches where it runs;
(b) every op against eager torch, torch.compile and SDPA's backends, with bytes and FLOPs beside this GPU's
    own measured ceilings; (c) whole pre-training steps of ViT-S/B/L/H, ours and transformers'; (d) a profile
of the step by kernel. Needs torch, triton, numpy and (for a) pytest; transformers for its rows in (c).
Writes one JSON, `gpu_<name>.json`, into DIR; checked in under `kernels/results/` it feeds `vmae bench report`
and, through `python -m vmae.kernels.evidence`, dispatch. `--dry-run` walks the same code on the CPU with tiny
shapes and marks its JSON as such.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vmae import kernels
from vmae.kernels import bench, reference

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
PARTS = "abcd"


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
        for n, dtype in ((17, torch.bfloat16), (160, torch.bfloat16), (261, torch.bfloat16)):
            qkv = torch.randn(1, n, 3, 2, 64, generator=gen).to(device, dtype).requires_grad_()
            exact = qkv.detach().double().requires_grad_()
            for x, op in ((qkv, kernels.fused_attention), (exact, reference.fused_attention)):
                op(x).float().square().sum().backward()
            assert qkv.grad is not None
            assert exact.grad is not None
            compare(qkv.grad, exact.grad)
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


def run_tests(device: str, limit_s: float) -> dict[str, Any]:
    """(a) The kernel tests in a process of their own, and compute-sanitizer over `small_launches`."""
    report: dict[str, Any] = {}
    folder = ROOT / "tests" / "kernels"
    if not folder.is_dir():
        report["pytest"] = {"skipped": "the tests are not part of this installation"}
    elif importlib.util.find_spec("pytest") is None:
        report["pytest"] = {"skipped": "pytest is not installed"}
    else:
        chosen = ["-k", "decoder_tokens and dtype0"] if device == "cpu" else []
        command = [sys.executable, "-m", "pytest", str(folder / "test_triton.py"), "-q", "-W", "ignore"]
        if device == "cuda" and importlib.util.find_spec("xdist") is not None:
            command += ["-n", "8"]  # compiling is most of the time
        report["pytest"] = _run([*command, "-p", "no:cacheprovider", *chosen], limit_s)
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if device != "cuda" or not Path(sanitizer).exists():
        report["sanitizer"] = {"skipped": "no compute-sanitizer here"}
    else:
        probe = [sys.executable, "-m", "vmae.kernels.gpu_suite", "--small-launches"]
        report["sanitizer"] = _run([sanitizer, "--tool", "memcheck", "--error-exitcode", "9", *probe], 60)
    return report


def _run(command: list[str], limit_s: float) -> dict[str, Any]:
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    if torch.cuda.is_available():
        env["TRITON_INTERPRET"] = "0"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, cwd=ROOT, env=env, check=False
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"not finished after {limit_s:.0f} s"}
    tail = (done.stdout + done.stderr).strip().splitlines()[-12:]
    return {"exit_code": done.returncode, "tail": tail}


def run_ops(
    device: str, *, dry_run: bool, deadline: float, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """(b) Time the op benches in order until `deadline`; return their rows and the ones left out."""
    rows, left_out = [], []
    for build in bench.op_benches(device, tiny=dry_run, compiled=not dry_run):
        item = build()
        label = f"{item.op} {item.what} {item.shape}"
        if time.monotonic() > deadline:
            left_out.append(label)
            continue
        say(f"op: {label}")
        sets, rounds, min_ms = (1, 1, 0.1) if dry_run else (3, 7, 60.0)
        timed = bench.run_bench(item, device, sets=sets, rounds=rounds, min_ms=min_ms)
        rows.append(timed.to_dict())
        for t in rows[-1]["timings"]:
            took = f"{t['ms']:.4f} ms" if t["ms"] is not None else "-"
            say(f"    {t['name']:34s} {took:>12s}  {t['refused'] or ''}")
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows, left_out


def main(argv: list[str] | None = None) -> int:
    """Run the parts asked for, write the JSON after each; return 1 where a kernel test failed."""
    parser = argparse.ArgumentParser(prog="python -m vmae.kernels.gpu_suite", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="folder for the JSON")
    parser.add_argument("--parts", default=PARTS, help="which of a, b, c, d (default: all)")
    parser.add_argument("--budget-s", type=float, default=470.0, help="seconds for everything")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, to test the suite")
    parser.add_argument("--step-module", default="vmae.core.step_suite", help="module with run_steps")
    parser.add_argument("--small-launches", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() and not args.dry_run else "cpu"
    if args.small_launches:
        error = small_launches(device)
        print(f"largest relative error {error:.2e}")
        return 0 if error < bench.TOLERANCE else 1
    if not set(args.parts) <= set(PARTS):
        parser.error(f"expected --parts among {PARTS}; got {args.parts!r}")
    if device == "cpu" and not args.dry_run:
        parser.error("no CUDA GPU here; --dry-run walks the suite on the CPU without measuring anything")

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
            result = before | {k: result[k] for k in ("schema", "started", "left_out")}

    def say(line: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {line}", flush=True)

    def save() -> None:
        result["took_s"] = round(time.monotonic() - begin, 1)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(path)

    def by(share: float) -> float:
        return begin + share * args.budget_s

    say(f"{result['machine'].get('gpu', 'CPU')}, torch {torch.__version__}")
    failed = False
    result["ceilings"] = bench.measure_ceilings(device, scale=256 if args.dry_run else 1)
    save()
    if "a" in args.parts:
        say("tests")
        try:
            result["small_launches_error"] = small_launches(device)
        except Exception as e:  # said in the result; the other parts still run
            result["small_launches_error"] = f"{type(e).__name__}: {e}"
            failed = True
        result["tests"] = run_tests(device, limit_s=0.15 * args.budget_s + 20)
        failed = failed or result["tests"]["pytest"].get("exit_code", 0) != 0
        say("\n".join(result["tests"]["pytest"].get("tail", ["skipped"])[-3:]))
        save()
    if "b" in args.parts:
        result["ops"], left = run_ops(device, dry_run=args.dry_run, deadline=by(0.5), say=say)
        result["left_out"] += left
        save()
    steps = importlib.import_module(args.step_module) if {"c", "d"} & set(args.parts) else None
    if "d" in args.parts and steps is not None:
        say("profile")
        try:
            result["profile"] = steps.profile_step(device, dry_run=args.dry_run)
        except Exception as e:
            result["left_out"].append(f"profile: {type(e).__name__}: {e}")
        save()
    if "c" in args.parts and steps is not None:
        result["steps"], left = steps.run_steps(device, dry_run=args.dry_run, deadline=by(1.0), say=say)
        result["left_out"] += left
        for row in result["steps"]:
            speed = f"{row['clips_per_s']:.1f} clips/s" if "clips_per_s" in row else row["refused"]
            graph = " (graph)" if row["graph"] else ""
            say(f"    {row['size']} {row['ratio']} {row['variant']}{graph}: {speed}")
    save()
    say(
        f"wrote {path}"
        + (f"; out of time for: {'; '.join(result['left_out'])}" if result["left_out"] else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
