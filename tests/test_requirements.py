"""What has no wheel on a machine is not required there."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("Linux", "x86_64", {"decord", "triton"}),
        ("Linux", "aarch64", {"triton"}),
        ("Darwin", "arm64", set()),
        ("Windows", "AMD64", {"decord"}),
    ],
)
def test_decord_and_triton_where_they_have_wheels(system: str, machine: str, expected: set[str]) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    here = {"platform_system": system, "platform_machine": machine}
    required = {r.name for r in map(Requirement, listed) if r.marker is None or r.marker.evaluate(here)}
    assert required & {"decord", "triton"} == expected
    assert {"torch", "av", "ray"} <= required
