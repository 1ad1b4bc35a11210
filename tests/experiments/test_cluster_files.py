"""The files to copy under docs/clusters: whole, of the tested versions, with options that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from vmae.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "clusters"
TEXTS = [ROOT / "docs" / "clusters.md", FOLDER / "slurm_sweep.sh", FOLDER / "rayjob.yaml"]


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "rayjob.yaml").read_text())["spec"])


def test_the_slurm_script_is_bash() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    subprocess.run([bash, "-n", str(FOLDER / "slurm_sweep.sh")], check=True)


def test_the_rayjob_is_of_the_tested_ray_and_one_image(job: dict[str, Any]) -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    cluster = job["rayClusterSpec"]
    assert cluster["rayVersion"] == pins["ray"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [c for g in groups for c in g["template"]["spec"]["containers"]]
    assert len({c["image"] for c in containers}) == 1
    # The driver on the head and the trials on the workers find the data and the runs under one path.
    assert len({m["mountPath"] for c in containers for m in c["volumeMounts"]}) == 1
    assert "MLFLOW_TRACKING_URI" in yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]


def test_the_rayjobs_entrypoint_goes_on_with_the_sweep_that_it_started(job: dict[str, Any]) -> None:
    (plan,) = re.findall(r"-e (\S+)/plan\.json", job["entrypoint"])
    runs, name = plan.split("/sweeps/")
    assert f"--resume {name} --runs-dir {runs} --address auto" in job["entrypoint"]
    assert f"--run-name {name} " in job["entrypoint"]
    assert job["entrypoint"].count(f"--runs-dir {runs} --address auto") == 2


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_every_vmae_command_has_options_that_exist(path: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", path.read_text()).replace('"${ARGS[@]}"', "sweep")
    if path.suffix == ".yaml":
        text = yaml.safe_load(text)["spec"]["entrypoint"].replace(";", "\n").replace("else ", "\n")
    lines = re.findall(r"^[\s`|]*(?:then )?vmae ([^#`\n]+)|WORK=\((.*)\)", text, flags=re.MULTILINE)
    assert lines
    for line in ("".join(found) for found in lines):
        command: click.Command = main
        context = click.Context(main)
        for word in line.split():
            if not isinstance(command, click.Group):
                break
            found = command.get_command(context, word)
            assert found is not None, f"vmae {line}: no command {word}"
            command, context = found, click.Context(found, parent=context)
        known = {name for p in command.params for name in [*p.opts, *p.secondary_opts]}
        asked = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", line))
        assert asked <= known, f"vmae {line}"
