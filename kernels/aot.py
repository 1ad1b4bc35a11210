"""Ahead-of-time compilation without a GPU: what every shipped kernel needs of the chip, and a gate on it.

`python -m vmae.kernels.aot` compiles every kernel in every shipped configuration to machine code for sm_80,
sm_90 and sm_100, prints registers, spills, stack, shared memory and the matrix instructions found, and fails
where a kernel spills or passes a limit. `--write` stores the table in `results/aot.json`; `--check` compares
with it. Needs Triton and a process without TRITON_INTERPRET; no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vmae.kernels.add_norm.configs import PROGRAMS, norm_block
from vmae.kernels.attention.configs import (
    CANDIDATES,
    SWEEP_HEAD_DIM,
    AttentionPlan,
    Tile,
    default_plan,
    head_block,
    key_tiles,
)
from vmae.kernels.decoder_tokens.configs import ROWS, SPLITS, width_block
from vmae.kernels.dispatch import FAMILIES
from vmae.kernels.gelu_mlp.configs import mlp_tiles
from vmae.kernels.patch_gather.configs import WARPS, gather_block, loss_block

TABLE_FILE = Path(__file__).parent / "results" / "aot.json"
# Bytes of shared memory that one program may use; compilation succeeds above it, the launch does not.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
# Registers may drift by this much between compiler releases before the check calls it a change.
REGISTER_DRIFT = 24
_DTYPE = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel in one configuration for one family.

    types: pointer types by argument name (`*bf16`). constants: compile-time arguments and arguments equal to
    1, which the launcher bakes in. aligned: integer arguments that are multiples of 16 at the named shape.
    """

    name: str
    family: int
    module: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...] = ()
    options: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.name} | sm_{self.family}"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the compiler reports. Bytes per thread for spills and stack, per program for shared memory.

    matrix_unit: the matrix instructions in the machine code, HGMMA being Hopper's own. load_bits, store_bits:
    the width that most bytes are read from and written to global memory with; 128 is the widest.
    """

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    num_warps: int
    matrix_unit: str
    load_bits: int
    store_bits: int

    def faults(self, family: int) -> list[str]:
        """Return what makes this configuration unfit to ship."""
        found = []
        if self.spill_bytes or self.stack_bytes:
            found.append(f"spills {self.spill_bytes} bytes, stack {self.stack_bytes} bytes")
        if self.shared_bytes > SHARED_LIMIT[family]:
            found.append(f"{self.shared_bytes} bytes of shared memory, limit {SHARED_LIMIT[family]}")
        if self.registers * 32 * self.num_warps > 65_536:
            found.append(f"{self.registers} registers x {self.num_warps} warps pass the register file")
        return found


def _attention_cases(
    n: int, d: int, dtype: torch.dtype, family: int, lengths: bool = False
) -> Iterator[Case]:
    for kernel, tile in _kernels_of(default_plan(n, d, dtype, family)):
        yield _attention_case(kernel, tile, n, d, dtype, family, lengths)


def _candidate_tiles(family: int) -> Iterator[Case]:
    """What the GPU suite's sweep may choose; the first of a kernel is its default and listed already."""
    for kernel, tiles in CANDIDATES.get(family, {}).items():
        n = 160 if kernel.startswith("short") else 1568
        for tile in tiles[1:]:
            kernels = ("long_dq", "long_dkdv") if tile.form == "long" else (kernel,)
            for name in kernels:
                case = _attention_case(name, tile, n, SWEEP_HEAD_DIM, torch.bfloat16, family, False)
                yield replace(case, name=f"{case.name} as {tile}")


def _attention_case(
    kernel: str, tile: Tile, n: int, d: int, dtype: torch.dtype, family: int, lengths: bool
) -> Case:
    t = "*" + _DTYPE[dtype]
    types = dict.fromkeys(("qkv_ptr", "out_ptr", "dout_ptr", "dqkv_ptr"), t)
    types |= {"lse_ptr": "*fp32", "delta_ptr": "*fp32", "len_ptr": "*i64"}
    label = f"N={n} D={d} {_DTYPE[dtype]}" + (" lengths" if lengths else "")
    constants: dict[str, Any] = {"D": d, "BLOCK_D": head_block(d), "HAS_LENGTHS": lengths}
    constants["BLOCK_M"] = tile.block_m
    if kernel.startswith("short"):
        constants["N"] = n
    if kernel.startswith("short") and tile.form != "two_pass":
        constants["KEYS_A"], constants["KEYS_B"] = key_tiles(n, tile.form)
    else:
        constants["BLOCK_N"] = tile.block_n
    if kernel.startswith("long"):
        constants["PEELED"] = tile.peeled
    return Case(
        name=f"attention/{kernel} {label}",
        family=family,
        module="attention",
        kernel=f"_{kernel}_two_pass_kernel" if tile.form == "two_pass" else f"_{kernel}_kernel",
        types=types,
        constants=constants,
        aligned=("stride_b", "stride_n", "stride_part", "stride_h", "first")
        + (("N",) if n % 16 == 0 else ()),
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )


def _kernels_of(plan: AttentionPlan) -> Iterator[tuple[str, Tile]]:
    if plan.short_fwd is not None:
        yield "short_fwd", plan.short_fwd
    else:
        yield "long_fwd", plan.fwd
    if plan.short_bwd is not None:
        yield "short_bwd", plan.short_bwd
    else:
        yield "long_dq", plan.dq
        yield "long_dkdv", plan.dkdv


def _patch_constants(patch: int, tubelet: int, channels: int, runs: bool) -> dict[str, Any]:
    constants = {"P": tubelet * patch**2 * channels, "C": channels, "PATCH": patch, "TUBELET": tubelet}
    # The launcher bakes in arguments equal to 1: the channel's stride (channels last) or the column's.
    return constants | ({"stride_c": 1} if runs else {"stride_w": 1})


def _patch_cases(family: int) -> Iterator[Case]:
    for patch, tubelet, runs in ((16, 2, True), (16, 2, False), (14, 2, True), (8, 2, True)):
        constants = _patch_constants(patch, tubelet, 3, runs)
        p = constants["P"]
        label = f"P={p} {'channels last' if runs else 'channels first'}"
        aligned = ("stride_b", "stride_t", "stride_h", "K") + (() if runs else ("stride_c",))
        rows, run = constants["TUBELET"] * constants["PATCH"], constants["PATCH"] * constants["C"]
        block_r, block_w, warps = gather_block(rows, run)
        for out in ("bf16", "fp32"):
            yield Case(
                name=f"gather/fwd {label} uint8 to {out}",
                family=family,
                module="patch_gather",
                kernel="_gather_fwd_kernel",
                types={"video_ptr": "*u8", "index_ptr": "*i64", "table_ptr": "*fp32", "out_ptr": f"*{out}"},
                constants=constants | {"BLOCK_R": block_r, "BLOCK_W": block_w, "RUNS": runs},
                aligned=aligned,
                options={"num_warps": warps},
            )
        yield Case(
            name=f"gather/bwd {label} bf16",
            family=family,
            module="patch_gather",
            kernel="_gather_bwd_kernel",
            types={"dout_ptr": "*bf16", "index_ptr": "*i64", "table_ptr": "*fp32", "dvideo_ptr": "*fp32"},
            constants=constants | {"BLOCK_R": block_r, "BLOCK_W": block_w},
            aligned=aligned,
            options={"num_warps": warps},
        )
        block_r, block_w, warps = loss_block(rows, run)
        forms = [("mse", True, False)]
        if (patch, runs) == (16, True):
            forms += [
                ("mse", True, True),
                ("l1", True, False),
                ("smooth_l1", True, False),
                ("mse", False, False),
            ]
        for loss, normalised, weighted in forms:
            for write in (("loss", "grad"), ("loss",), ("grad",)):
                target = "normalised" if normalised else "raw"
                yield Case(
                    name=f"loss/{'+'.join(write)} {label} {loss} {target}" + (" weights" if weighted else ""),
                    family=family,
                    module="patch_loss",
                    kernel="_patch_loss_kernel",
                    types=dict.fromkeys(("pred_ptr", "dpred_ptr"), "*bf16")
                    | dict.fromkeys(("weight_ptr", "norm_ptr", "dloss_ptr", "part_ptr"), "*fp32")
                    | {"video_ptr": "*u8", "index_ptr": "*i64"},
                    constants=constants
                    | {
                        "BLOCK_R": block_r,
                        "BLOCK_W": block_w,
                        "RUNS": runs,
                        "LOSS": loss,
                        "NORMALISED": normalised,
                    }
                    | {"HAS_WEIGHTS": weighted, "HAS_DLOSS": write == ("grad",)}
                    | {"WRITE_LOSS": "loss" in write, "WRITE_GRAD": "grad" in write},
                    aligned=aligned,
                    options={"num_warps": warps},
                )
    yield Case(
        name="loss/scale_unless_one bf16",
        family=family,
        module="patch_loss",
        kernel="_scale_unless_one_kernel",
        types={"x_ptr": "*bf16", "factor_ptr": "*fp32"},
        constants={"BLOCK": 4096},
        aligned=("total",),
    )


def _candidate_warps(family: int, patches: list[Case]) -> Iterator[Case]:
    """The gather and the loss with the other warps that the GPU suite's sweep may choose."""
    if family not in CANDIDATES:
        return
    swept = re.compile(r"(gather/fwd .* to bf16|loss/.* mse normalised)$")
    for case in patches:
        if swept.match(case.name) and "P=1536 channels last" in case.name:
            for warps in WARPS[case.name.split("/")[0]][1:]:
                yield replace(case, name=f"{case.name} as {warps} warps", options={"num_warps": warps})


def _token_cases(family: int) -> Iterator[Case]:
    for d in (192, 384, 512, 640):
        block = width_block(d)
        constants = {"D": d, "BLOCK_R": ROWS, "BLOCK_D": block}
        for t in ("bf16", "fp32"):
            yield Case(
                name=f"tokens/fwd D={d} {t}",
                family=family,
                module="decoder_tokens",
                kernel="_assemble_fwd_kernel",
                types={"visible_ptr": f"*{t}", "token_ptr": "*fp32", "pos_ptr": "*fp32", "out_ptr": f"*{t}"}
                | {"visible_index_ptr": "*i64", "masked_index_ptr": "*i64"},
                constants=constants,
                aligned=("V", "M"),
                options={"num_warps": 4},
            )
            yield Case(
                name=f"tokens/bwd D={d} {t}",
                family=family,
                module="decoder_tokens",
                kernel="_assemble_bwd_kernel",
                types={"dout_ptr": f"*{t}", "dvisible_ptr": f"*{t}", "part_ptr": "*fp32"},
                constants=constants | {"SPLITS": SPLITS},
                aligned=("V", "M"),
                options={"num_warps": 4},
            )


def _candidate_cases(family: int) -> Iterator[Case]:
    """add_layer_norm and mlp: compiled and held to the gate, although the model does not call them yet."""
    for d in (384, 768, 1024):
        rows, block, warps = norm_block(d)
        constants: dict[str, Any] = {"D": d, "BLOCK_R": rows, "BLOCK_D": block}
        streams = {
            "residual_ptr": "*fp32",
            "total_ptr": "*fp32",
            "dtotal_ptr": "*fp32",
            "dresidual_ptr": "*fp32",
        }
        types = streams | {"weight_ptr": "*fp32", "bias_ptr": "*fp32", "part_ptr": "*fp32"}
        types |= {"x_ptr": "*bf16", "y_ptr": "*bf16", "dy_ptr": "*bf16", "dx_ptr": "*bf16"}
        for kernel, more in (("fwd", {}), ("bwd", {"PROGRAMS": PROGRAMS})):
            yield Case(
                name=f"add_norm/{kernel} D={d} bf16 on fp32",
                family=family,
                module="add_norm",
                kernel=f"_add_norm_{kernel}_kernel",
                types=types,
                constants=constants | more,
                aligned=("R",),
                options={"num_warps": warps},
            )
    for dtype in (torch.bfloat16, torch.float32):
        t = "*" + _DTYPE[dtype]
        tiles = dict(mlp_tiles(dtype, family))
        options = {k: int(str(tiles.pop(k))) for k in ("num_warps", "num_stages")}
        for kernel in ("linear_gelu", "linear_dgelu"):
            names = ("x_ptr", "w_ptr", "bias_ptr", "h_ptr", "a_ptr", "dy_ptr", "dh_ptr")
            yield Case(
                name=f"mlp/{kernel} {_DTYPE[dtype]}",
                family=family,
                module="gelu_mlp",
                kernel=f"_{kernel}_kernel",
                types=dict.fromkeys(names, t) | {"part_ptr": "*fp32"},
                constants=tiles,
                aligned=("M", "N", "K"),
                options=options,
            )


def cases(families: tuple[int, ...] = FAMILIES) -> Iterator[Case]:
    """Every shipped kernel and configuration, at the published shapes."""
    bf16 = torch.bfloat16
    for family in families:
        for n, d in ((80, 64), (160, 64), (196, 64), (160, 80)):  # encoders: tube 0.95, 0.9; L/H
            yield from _attention_cases(n, d, bf16, family)
        yield from _attention_cases(160, 64, bf16, family, lengths=True)
        for n, d in ((1568, 64), (1568, 80), (944, 64), (1568, 32)):
            yield from _attention_cases(n, d, bf16, family)
        yield from _attention_cases(1568, 64, bf16, family, lengths=True)
        yield from _attention_cases(1568, 64, torch.float16, family)
        yield from _attention_cases(1568, 64, torch.float32, family)
        # The other head dims, and the longest short sequences: every tile that `attention_plan` gives.
        for d in (16, 24, 96, 128):
            yield from _attention_cases(160, d, bf16, family)
            yield from _attention_cases(1568, d, bf16, family)
        for d in (32, 64):
            yield from _attention_cases(256, d, bf16, family)
        for d in (16, 32, 128):
            yield from _attention_cases(1568, d, torch.float32, family)
        yield from _candidate_tiles(family)
        patches = list(_patch_cases(family))
        yield from patches
        yield from _candidate_warps(family, patches)
        yield from _token_cases(family)
        yield from _candidate_cases(family)


_INTEGERS = ("H", "N", "first", "K", "nh", "nw", "V", "M", "R", "total")


def compile_case(case: Case) -> Resources:
    """Compile one case to machine code and read the compiler's report."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("ahead-of-time compilation needs a process without TRITON_INTERPRET=1")
    kernel = getattr(importlib.import_module(f"vmae.kernels.{case.module}.triton_kernels"), case.kernel)
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in case.constants:
            signature[name], constants[name] = "constexpr", case.constants[name]
        elif name in case.types:
            signature[name], attributes[(i,)] = case.types[name], [["tt.divisibility", 16]]
        elif name.startswith("stride_") or name in _INTEGERS:
            signature[name] = "i32"
            if name in case.aligned:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": 4} | case.options
    compiled = triton.compile(source, target=GPUTarget("cuda", case.family, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(compiled.asm["ptx"])
        cubin.write_bytes(compiled.asm["cubin"])
        assembler = "ptxas-blackwell" if case.family >= 100 else "ptxas"
        gpu = f"sm_{case.family}" + ("a" if case.family >= 90 else "")
        report = _run(tools / assembler, "-v", f"--gpu-name={gpu}", str(ptx), "-o", str(Path(folder, "out")))
        sass = _run(tools / "cuobjdump", "-sass", str(cubin))
    used = re.findall(r"Used (\d+) registers", report)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    return Resources(
        registers=max(int(x) for x in used),
        spill_bytes=sum(int(s) + int(load) for _, s, load in spills),
        stack_bytes=sum(int(s) for s, _, _ in spills),
        shared_bytes=int(compiled.metadata.shared),
        num_warps=options["num_warps"],
        matrix_unit="+".join(sorted(set(re.findall(r"\b[A-Z]+MMA\b", sass)))),
        load_bits=_usual_width(re.findall(r"\bLDG(?:STS)?\.(\S+)", sass)),
        store_bits=_usual_width(re.findall(r"\bSTG\.(\S+)", sass)),
    )


def _usual_width(instructions: list[str]) -> int:
    """Bits per thread that most bytes move with, from the suffixes of loads or stores (`E.128.CONSTANT`)."""
    moved: dict[int, int] = {}
    for suffix in instructions:
        match = re.search(r"(?:^|\.)[US]?(8|16|64|128)(?:\.|$)", suffix)
        bits = int(match[1]) if match else 32
        moved[bits] = moved.get(bits, 0) + bits
    return max(moved, key=lambda bits: moved[bits], default=0)


def _run(tool: Path, *arguments: str) -> str:
    done = subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def compare(key: str, new: Resources, family: int, table: dict[str, Any]) -> list[str]:
    """Return the faults of one row: unfit by itself, or changed against the checked-in table."""
    faults = new.faults(family)
    old = table.get(key)
    if old is None:
        return [*faults, "not in the table: run with --write"]
    if abs(old["registers"] - new.registers) > REGISTER_DRIFT:
        faults.append(f"{new.registers} registers, the table says {old['registers']}")
    for name in ("shared_bytes", "num_warps", "matrix_unit", "load_bits", "store_bits"):
        if old[name] != getattr(new, name):
            faults.append(f"{name} {getattr(new, name)!r}, the table says {old[name]!r}")
    return faults


def format_row(key: str, r: Resources) -> str:
    return (
        f"{key:74s} {r.registers:4d} regs {r.spill_bytes:5d} spill {r.stack_bytes:5d} stack "
        f"{r.shared_bytes / 1024:6.1f} KiB shared {r.num_warps:2d} warps "
        f"{r.load_bits:4d}/{r.store_bits} bit  {r.matrix_unit}"
    )


def load_table() -> dict[str, Any]:
    """Return the checked-in table: `{"triton": version, "rows": {key: resources}}`."""
    table: dict[str, Any] = json.loads(TABLE_FILE.read_text())
    return table


def main(argv: list[str] | None = None) -> int:
    """Compile, print, and compare or write; return 1 where a case is unfit or differs."""
    parser = argparse.ArgumentParser(prog="python -m vmae.kernels.aot", description=__doc__)
    parser.add_argument("--only", default="", help="a regular expression on the case's name")
    parser.add_argument("--family", type=int, action="append", choices=FAMILIES, help="default: all")
    parser.add_argument("--check", action="store_true", help="compare with the checked-in table")
    parser.add_argument("--write", action="store_true", help="replace the checked-in table")
    args = parser.parse_args(argv)
    import triton

    table = load_table() if TABLE_FILE.is_file() else {"rows": {}}
    rows: dict[str, Any] = dict(table["rows"]) if args.only or args.family else {}
    failed = 0
    for case in cases(tuple(args.family) if args.family else FAMILIES):
        if not re.search(args.only, case.key):
            continue
        resources = compile_case(case)
        rows[case.key] = asdict(resources)
        print(format_row(case.key, resources), flush=True)
        if args.check:
            faults = compare(case.key, resources, case.family, table["rows"])
        else:
            faults = resources.faults(case.family)
        for fault in faults:
            print(f"  FAULT: {fault}", flush=True)
        failed += bool(faults)
    if args.write:
        TABLE_FILE.parent.mkdir(exist_ok=True)
        TABLE_FILE.write_text(json.dumps({"triton": triton.__version__, "rows": rows}, indent=1) + "\n")
    print(f"{failed} of the compiled cases are unfit or changed" if failed else "no spill, no limit passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
