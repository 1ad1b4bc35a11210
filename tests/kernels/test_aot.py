"""The ahead-of-time gate: kernels compile for every family, without spills, as the checked-in table says.

A few kernels are compiled afresh in the plain test run, all of them under `slow`. Compilation happens in a
process of its own, because this one interprets kernels.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmae.kernels import aot
from vmae.kernels.dispatch import FAMILIES
from vmae.kernels.registry import compile_cases

ROOT = Path(__file__).resolve().parents[2]


def recompile(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "vmae.kernels.aot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)


def test_the_table_lists_every_shipped_case_and_no_fault() -> None:
    rows = aot.load_table()["rows"]
    cases = {case.key: case for case in compile_cases()}
    assert set(rows) == set(cases), "run `python -m vmae.kernels.aot --write`"
    faults = {k: f for k, row in rows.items() if (f := aot.Resources(**row).faults(cases[k].family))}
    assert not faults


def test_hopper_attention_uses_its_own_matrix_instructions() -> None:
    for key, row in aot.load_table()["rows"].items():
        if key.startswith("attention/") and "fp32" not in key and key.endswith("sm_90"):
            assert "HGMMA" in row["matrix_unit"], key


def test_memory_is_moved_in_the_widest_accesses() -> None:
    """16 bytes per thread: attention at the published head dims, gather and loss of channels-last clips."""
    rows = aot.load_table()["rows"]
    attention = [k for k in rows if k.startswith("attention/") and re.search(r"D=(64|80) bf16", k)]
    patches = [k for k in rows if re.match(r"(gather/fwd|loss/loss\+grad) P=1536 channels last", k)]
    assert len(attention) > 50
    assert len(patches) > 10
    for key in attention + patches:
        assert rows[key]["load_bits"] == 128, key
        assert rows[key]["store_bits"] == 128, key


def test_the_gate_sees_a_spill_a_limit_and_a_change() -> None:
    good = aot.Resources(
        registers=128, spill_bytes=0, stack_bytes=0, shared_bytes=1024, num_warps=8, matrix_unit="",
        load_bits=128, store_bits=128,
    )  # fmt: skip
    assert good.faults(90) == []
    assert "spills 8" in replace(good, spill_bytes=8).faults(90)[0]
    assert "limit 166912" in replace(good, shared_bytes=200_000).faults(80)[0]
    for family in (86, 89, 120):
        assert "limit 101376" in replace(good, shared_bytes=118_784).faults(family)[0]
    assert replace(good, shared_bytes=200_000).faults(90) == []
    assert "register file" in replace(good, registers=255, num_warps=16).faults(90)[0]
    table = {"x": vars(good)}
    assert aot.compare("x", good, 90, table) == []
    assert "1024" in aot.compare("x", replace(good, shared_bytes=2048), 90, table)[0]
    assert aot.compare("y", good, 90, table) == ["not in the table: run with --write"]


def test_key_kernels_recompile_as_the_table_says(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    wanted = r"short_fwd N=160 D=64 bf16 \||loss/loss\+grad P=1536 channels last mse normalised \|"
    done = recompile(tmp_path, "--check", "--family", "90", "--only", wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| sm_90") == 2
    assert "HGMMA" in done.stdout


def test_registers_of_another_triton_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    triton = pytest.importorskip("triton")
    case = next(aot.compile_cases((90,)))
    found = aot.Resources(
        registers=200, spill_bytes=0, stack_bytes=0, shared_bytes=1024, num_warps=8, matrix_unit="",
        load_bits=128, store_bits=128,
    )  # fmt: skip
    monkeypatch.setattr(aot, "compile_case", lambda case: found)
    monkeypatch.setattr(aot, "compile_cases", lambda families: [case])
    rows = {case.key: vars(replace(found, registers=100))}
    for version, wanted in ((triton.__version__, 1), ("3.6.9", 0)):
        monkeypatch.setattr(aot, "load_table", lambda version=version: {"triton": version, "rows": rows})
        assert aot.main(["--check"]) == wanted
        assert ("not compared" in capsys.readouterr().out) == (wanted == 0)


def test_the_gate_reads_the_code_that_is_launched(tmp_path: Path) -> None:
    """A peeled tile spills on Ada and is reported; what is shipped there is not peeled."""
    triton = pytest.importorskip("triton")
    code = (
        "from dataclasses import replace\n"
        "from vmae.kernels import aot\n"
        "from vmae.kernels.registry import compile_cases\n"
        "name = 'attention/long_dkdv N=1568 D=64 bf16 | sm_89'\n"
        "case = next(c for c in compile_cases((89,)) if c.key == name)\n"
        "for peeled in (False, True):\n"
        "    made = replace(case, constants=case.constants | {'PEELED': peeled})\n"
        "    print(aot.compile_case(made).faults(89))\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    shipped, peeled = done.stdout.splitlines()
    assert shipped == "[]"
    same = triton.__version__ == aot.load_table()["triton"]
    assert ("spills 40 bytes" if same else "spills ") in peeled  # 3.6.0: 16


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_recompiles_as_the_table_says(family: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = recompile(tmp_path, "--check", "--family", str(family))
    assert done.returncode == 0, done.stdout + done.stderr
