"""Ahead-of-time compilation without a GPU: what every shipped kernel needs of the chip, and a gate on it.

`python -m vmae.kernels.aot` compiles every kernel in every shipped configuration to machine code for every
family (`dispatch.FAMILIES`), prints registers, spills, stack, shared memory and the matrix instructions
found, and fails where a kernel spills or passes a limit. `--write` stores the table in `results/aot.json`;
`--check` compares with it. Needs Triton and a process without TRITON_INTERPRET; no GPU.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmae.kernels.descriptor import Case
from vmae.kernels.dispatch import FAMILIES
from vmae.kernels.registry import compile_cases

TABLE_FILE = Path(__file__).parent / "results" / "aot.json"
# Bytes of shared memory that one program may use; compilation succeeds above it, the launch does not.
SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
# Registers may drift by this much between compiler releases before the check calls it a change.
REGISTER_DRIFT = 24


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the machine code says. Bytes per thread for spills and stack, per program for shared memory.

    spill_bytes: what its stores to and loads from local memory move, each counted once. matrix_unit: the
    matrix instructions in the machine code, HGMMA being Hopper's own. load_bits, store_bits: the width that
    most bytes are read from and written to global memory with; 128 is the widest.
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


def compile_case(case: Case) -> Resources:
    """Compile one case to machine code, as a launch would, and read that."""
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
        else:
            signature[name] = case.types.get(name, "i32")
            if signature[name].startswith("*") or name in case.aligned:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    triton.knobs.compilation.disable_line_info = True  # half of the time
    options = {"num_warps": 4} | case.options
    compiled = triton.compile(source, target=GPUTarget("cuda", case.family, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run(tools / "cuobjdump", "-res-usage", str(cubin))
        sass = _run(tools / "cuobjdump", "-sass", str(cubin))
    return Resources(
        registers=max(int(x) for x in re.findall(r"REG:(\d+)", usage)),
        spill_bytes=sum(_bits(suffix) // 8 for suffix in re.findall(r"\b(?:STL|LDL)(\S*)", sass)),
        stack_bytes=sum(int(x) for x in re.findall(r"STACK:(\d+)", usage)),
        shared_bytes=int(compiled.metadata.shared),
        num_warps=options["num_warps"],
        matrix_unit="+".join(sorted(set(re.findall(r"\b[A-Z]+MMA\b", sass)))),
        load_bits=_usual_width(re.findall(r"\bLDG(?:STS)?\.(\S+)", sass)),
        store_bits=_usual_width(re.findall(r"\bSTG\.(\S+)", sass)),
    )


def _usual_width(instructions: list[str]) -> int:
    """Bits per thread that most bytes move with, from the suffixes of loads or stores (`E.128.CONSTANT`)."""
    moved: dict[int, int] = {}
    for bits in map(_bits, instructions):
        moved[bits] = moved.get(bits, 0) + bits
    return max(moved, key=lambda bits: moved[bits], default=0)


def _bits(suffix: str) -> int:
    """What a load or store moves per thread."""
    match = re.search(r"(?:^|\.)[US]?(8|16|64|128)(?:\.|$)", suffix)
    return int(match[1]) if match else 32


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
    parser.add_argument(
        "--check", action="store_true", help="compare with the checked-in table, where it is of this triton"
    )
    parser.add_argument("--write", action="store_true", help="replace the checked-in table")
    args = parser.parse_args(argv)
    import triton

    table = load_table() if TABLE_FILE.is_file() else {"rows": {}}
    rows: dict[str, Any] = dict(table["rows"]) if args.only or args.family else {}
    failed = 0
    other = table.get("triton", triton.__version__) != triton.__version__
    if args.check and other:
        print(f"the table is of triton {table['triton']}, this is {triton.__version__}: not compared")
    for case in compile_cases(tuple(args.family) if args.family else FAMILIES):
        if not re.search(args.only, case.key):
            continue
        resources = compile_case(case)
        rows[case.key] = asdict(resources)
        print(format_row(case.key, resources), flush=True)
        if args.check and not (other and case.key in table["rows"]):
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
