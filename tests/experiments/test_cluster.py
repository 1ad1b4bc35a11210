"""Ray clusters: addresses, checks of every node, a sweep that loses a node; three nodes on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from vmae.core.errors import InputError, VmaeError
from vmae.core.video.config import DataConfig
from vmae.experiments.cluster import (
    NodeReport,
    files_to_see,
    is_uri,
    parse_address,
    probe_address,
    shipped_code,
)

ROOT = Path(__file__).resolve().parents[2]
AUTH = {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "180"}
_HOST = """
import sys
import tempfile
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "remove":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("removed", flush=True)
"""


class Cluster:
    """Three simulated nodes of one core each, in a process of their own."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOST],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert ":" in self.address, "the simulated cluster did not start"

    def remove_node(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("remove\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "removed"

    def end(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        # The host first: it would start its children again.
        for member in (psutil.Process(self.process.pid), *family):
            if member.is_running():
                member.kill()
        self.process.communicate()


@pytest.fixture
def cluster(sweeps: Any, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(sweeps.environment(**AUTH), tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize("address", ["", "host", "host:", ":6379", "http://host:1", "host:99999", "a/b:1"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InputError, match="expected auto, HOST:PORT or ray://HOST:PORT"):
        parse_address(address)


def test_addresses_are_read() -> None:
    assert parse_address("auto") is None
    assert parse_address("ray://head:10001") == ("head", 10001)
    assert parse_address("[::1]:6379") == ("::1", 6379)
    assert is_uri("s3://bucket/x")
    assert not is_uri("/some/folder")


def test_a_dead_address_is_told_at_once() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(VmaeError, match=f"expected a Ray cluster at 127.0.0.1:{port}"):
        probe_address(f"127.0.0.1:{port}")
    assert time.monotonic() - start < 5


def test_the_preflight_reads_lists_as_the_data_section_says(tmp_path: Path) -> None:
    """`frame_dir total label` cannot be guessed: it could be a start and a total."""
    listed = tmp_path / "train.csv"
    listed.write_text(f"{tmp_path}/jump 12 1\n{tmp_path}/run 30 0\n")
    data = DataConfig(annotation_format="total_label")
    assert files_to_see(data, str(listed), "") == [str(listed), f"{tmp_path}/jump"]
    with pytest.raises(InputError, match="expected the format to be named"):
        files_to_see(DataConfig(), str(listed))


def test_the_table_says_what_fails_where() -> None:
    from vmae.cli.cluster import nodes_table

    good = NodeReport(node="aaaa", host="one", found={"python": "3.11.2", "data": "2/2"})
    bad = NodeReport(
        node="bbbb",
        host="two",
        found={"python": "3.11.2", "data": "1/2"},
        problems={"data": "cannot read x.csv"},
    )
    text = nodes_table([good, bad])
    assert "! 1/2" in text
    assert "bbbb (two): data: cannot read x.csv" in text
    assert "all 1 nodes are fit" in nodes_table([good])


def test_workers_record_the_drivers_command_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shipped code has no git beside it, and a worker's command line is Ray's."""
    from vmae.experiments.tracking import origin

    monkeypatch.setenv("VMAE_COMMAND", "vmae sweep x")
    monkeypatch.setenv("VMAE_COMMIT", "c0ffee")
    origin.own_commit.cache_clear()
    handed = shipped_code()["env_vars"]
    tags = origin.environment_tags()
    origin.own_commit.cache_clear()
    assert handed == {"VMAE_COMMAND": "vmae sweep x", "VMAE_COMMIT": "c0ffee"}
    assert (tags["vmae.command"], tags["mlflow.source.git.commit"]) == ("vmae sweep x", "c0ffee")


def test_without_git_a_run_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vmae.experiments.tracking import origin

    monkeypatch.delenv("VMAE_COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    origin.own_commit.cache_clear()
    assert origin.own_commit() is None
    origin.own_commit.cache_clear()


@pytest.mark.parametrize(
    ("offered", "seen", "bad"),
    [([0, 2], [0, 2], []), ([0, 2], [0, 0], [1]), ([0, 0], [0, 0], [0, 1]), ([2, 2], [2, 1], [1])],
)
def test_nodes_without_gpus_may_stand_beside_those_with_them(
    offered: list[int], seen: list[int], bad: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray is told and what torch sees; a job asks for two."""
    import ray

    from vmae.experiments.cluster import check as work

    own = {"host": "h", "python": "3", "torch": "2", "ray": "2", "vmae": "0", "unreadable": [], "storage": ""}
    nodes = [
        {"NodeID": f"{i + 1}" * 56, "NodeManagerHostname": "h", "Resources": {"CPU": 1.0, "GPU": float(n)}}
        for i, n in enumerate(offered)
    ]

    class Task:
        def options(self, scheduling_strategy: Any) -> Task:
            return self

        def remote(self, *_: object) -> int:
            return next(turns)

    turns = iter(range(len(nodes)))
    monkeypatch.setattr(work, "alive_nodes", lambda: nodes)
    monkeypatch.setattr(work, "node_facts", lambda *_: {**own, "gpus": 0})
    monkeypatch.setattr(ray, "remote", lambda **_: lambda f: Task())
    monkeypatch.setattr(ray, "get", lambda i, timeout: {**own, "gpus": seen[i]})
    reports = work.check_cluster(gpus_wanted=2)
    assert [i for i, r in enumerate(reports) if r.problems] == bad


@pytest.mark.slow
def test_ray_starts_where_its_folders_are_long_or_not_to_be_written(tmp_path: Path) -> None:
    """TMPDIR as batch systems set it, a home that cannot be written; RAY_TMPDIR is said to be too long."""
    code = (
        "from vmae.core.errors import VmaeError\n"
        "from vmae.experiments.cluster import connected\n"
        "try:\n"
        "    with connected(): print('up')\n"
        "except VmaeError as e: print(e)\n"
    )
    folder = tmp_path / ("x" * 60)
    folder.mkdir()

    def said(**variables: str) -> str:
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env | variables, capture_output=True, text=True, check=False
        )
        return done.stdout

    assert said(TMPDIR=str(folder), HOME="/proc") == "up\n"
    assert said(RAY_TMPDIR=str(folder)).startswith("RAY_TMPDIR: expected a folder of at most ")


@pytest.mark.slow
def test_every_node_is_checked(cluster: Cluster, sweeps: Any, tmp_path: Path) -> None:
    def check(*extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vmae", "cluster", "check", "--address", cluster.address]
        return subprocess.run(
            [*command, "--data", str(sweeps.data / "train.csv"), *extra],
            env=sweeps.environment(**AUTH),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    done = check("--storage", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 3 nodes are fit" in done.stdout
    assert not list((tmp_path / "runs").glob(".check-*"))
    done = check("--nodes", "4", "--wait", "1")
    assert done.returncode == 1
    assert "expected 4 nodes, got 3" in done.stderr
    done = check("--gpus", "64")
    assert done.returncode == 1
    assert done.stdout.count("GPUs: expected 64 per job") == 3
    # Ray lists a lost node for a while yet: it is left out, not unfit.
    cluster.remove_node()
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 2 nodes are fit" in done.stdout


@pytest.mark.slow
def test_a_removed_node(
    cluster: Cluster, sweeps: Any, undisturbed_numbers: dict[str, Any], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    process = sweeps.start(sweeps.command(runs, "--address", cluster.address), tmp_path, **AUTH)
    # All three nodes have a core: with two or more trials under way, one is on a node that is not the head.
    sweeps.wait(lambda: len(sweeps.running(runs)) >= 2, process, "two trials with checkpoints")
    cluster.remove_node()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert sweeps.numbers(runs) == undisturbed_numbers


@pytest.mark.slow
def test_data_check_on_a_cluster_that_loses_a_node(cluster: Cluster, sweeps: Any, tmp_path: Path) -> None:
    """The same report as on one machine, with a bad file in the list."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    lines = []
    for name in ("train", "val"):
        for line in (sweeps.data / f"{name}.csv").read_text().splitlines():
            path, label = line.rsplit(" ", 1)
            lines.append(f"{sweeps.data / path} {label}")
    (tmp_path / "list.csv").write_text("\n".join([*lines, f"{broken} 0"]) + "\n")

    def check(report: str, *extra: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vmae", "data", "check", "list.csv", "--report", report, *extra]
        process: subprocess.Popen[str] = sweeps.start(command, tmp_path, **AUTH)
        return process

    process = check("cluster.csv", "--address", cluster.address)
    sweeps.wait(lambda: _lines(tmp_path / "cluster.csv.journal"), process, "a checked file")
    cluster.remove_node()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "broken.mp4" in output
    process = check("alone.csv", "--workers", "1")
    process.communicate(timeout=300)

    def rows(name: str) -> list[str]:
        return [line.rsplit(",", 1)[0] for line in (tmp_path / name).read_text().splitlines()]

    assert rows("cluster.csv") == rows("alone.csv")
    assert len(rows("alone.csv")) == 62


@pytest.mark.slow
def test_data_optimize_on_a_cluster_that_loses_a_node(cluster: Cluster, sweeps: Any, tmp_path: Path) -> None:
    """The files of one machine, the bad one named in both; nothing half-written stays."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    listed = (sweeps.data / "train.csv").read_text().splitlines()
    lines = [f"{sweeps.data / line}" for line in listed]
    (tmp_path / "list.csv").write_text("\n".join([*lines[:20], f"{broken} 0", *lines[20:]]) + "\n")

    def optimize(out: str, *extra: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vmae", "data", "optimize", "list.csv", out, *extra]
        process: subprocess.Popen[str] = sweeps.start(command, tmp_path, **AUTH)
        return process

    process = optimize("there", "--address", cluster.address)
    sweeps.wait(lambda: _lines(tmp_path / "there" / "optimize.jsonl"), process, "an encoded file")
    cluster.remove_node()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert f"failed: {broken}" in output
    process = optimize("here", "--workers", "1")
    process.communicate(timeout=300)

    def frames(out: str) -> dict[str, int]:
        done = map(json.loads, (tmp_path / out / "optimize.jsonl").read_text().splitlines())
        return {
            str(Path(d["result"]["target"]).relative_to(tmp_path / out)): d["result"]["frames"] for d in done
        }

    assert frames("there") == frames("here")
    assert len(frames("there")) == len(lines)
    assert {str(p.relative_to(tmp_path / "there")) for p in (tmp_path / "there").rglob("*.mp4")} == set(
        frames("there")
    )
    one, two = ((tmp_path / out / "list.csv").read_text() for out in ("there", "here"))
    assert one.replace("there", "here") == two


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


_MAP = """
import sys, time
from vmae.experiments.cluster import connected
from vmae.experiments.cluster.ray_map import ray_map
with connected(sys.argv[1]):
    for o in ray_map(time.sleep, [0.4] * 30 + ["no number"], workers=0, limit_s=60):
        print(o.index, o.failure or "ok", flush=True)
"""


@pytest.mark.slow
def test_no_item_is_lost_with_a_node(cluster: Cluster, sweeps: Any, tmp_path: Path) -> None:
    process = sweeps.start([sys.executable, "-c", _MAP, cluster.address], tmp_path, **AUTH)
    first = [process.stdout.readline() for _ in range(3)]
    cluster.remove_node()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    # Ray's own notice of the lost node may stand between the lines.
    lines = [
        m for line in [*first, *output.splitlines()] if (m := re.fullmatch(r"(\d+) (\w+)", line.strip()))
    ]
    ended = {m[1]: m[2] for m in lines}
    assert len(lines) == len(ended), "an item was reported twice"
    assert sorted(map(int, ended)) == list(range(31))
    assert {k for k, v in ended.items() if v != "ok"} == {"30"}
    assert ended["30"] == "error"


@pytest.mark.slow
def test_evaluate_and_features_on_a_cluster_that_loses_a_node(
    cluster: Cluster, sweeps: Any, tmp_path: Path
) -> None:
    """The predictions and features of one machine, a bad file named in both; a node leaves meanwhile."""
    import numpy as np

    runs = tmp_path / "runs"

    def vmae(*argv: object, code: int = 0) -> str:
        process = sweeps.start([sys.executable, "-m", "vmae", *map(str, argv)], tmp_path, **AUTH)
        return finish(process, code)

    def finish(process: subprocess.Popen[str], code: int) -> str:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == code, output
        return output

    shape = [f"--set={k}={v}" for k, v in sweeps.shape.items() if not k.startswith("probe")]
    data = ["--data", sweeps.data / "train.csv", "--runs-dir", runs, "--epochs", 1]
    vmae("pretrain", *data, "--run-name", "pt", *shape)
    vmae("finetune", "--init", "pt", "--runs-dir", runs, "--epochs", 1, "--run-name", "ft",
         "--set", "train.batch_size=8")  # fmt: skip
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    lines = []
    for line in (sweeps.data / "train.csv").read_text().splitlines():
        path, label = line.rsplit(" ", 1)
        lines.append(f"{sweeps.data / path} {label}")
    (tmp_path / "list.csv").write_text("\n".join([*lines[:5], f"{broken} 0", *lines[5:]] * 4) + "\n")
    common = ["--runs-dir", runs, "--set", "data.bad_eval=count"]
    evaluate = ["evaluate", "--checkpoint", "ft", "--data", tmp_path / "list.csv", "--json", *common]
    features = ["features", tmp_path / "list.csv", "OUT", "--checkpoint", "pt", *common]

    def start(*argv: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vmae", *map(str, argv), "--address", cluster.address]
        process: subprocess.Popen[str] = sweeps.start(command, tmp_path, **AUTH)
        return process

    process = start(*evaluate)
    sweeps.wait(lambda: list(runs.glob("cache/parts/*/*.npz")), process, "a finished part")
    cluster.remove_node()
    there = json.loads([x for x in finish(process, 0).splitlines() if x.startswith("{")][-1])
    here = json.loads([x for x in vmae(*evaluate).splitlines() if x.startswith("{")][-1])

    def rows(found: dict[str, Any]) -> list[list[str]]:
        text = (Path(found["folder"]) / "predictions.csv").read_text().splitlines()
        return [row.split(",")[:6] for row in text]

    assert there["videos"] == here["videos"] == 4 * (len(lines) + 1)
    assert there["unreadable"] == here["unreadable"] == 4
    assert there["loss"] == pytest.approx(here["loss"], abs=1e-5)
    assert rows(there) == rows(here)

    features[2] = tmp_path / "there.npz"
    output = finish(start(*features), 1)
    assert output.count("broken.mp4: unreadable") == 4, output
    features[2] = tmp_path / "here.npz"
    vmae(*features, code=1)
    one, two = np.load(tmp_path / "there.npz"), np.load(tmp_path / "here.npz")
    assert (one["index"] == two["index"]).all() and (one["paths"] == two["paths"]).all()
    assert np.allclose(one["x"], two["x"], atol=1e-5)


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """A real `ray start --head` with a client server on loopback: its addresses and environment."""
    # Short, because sockets live in it; and so `auto` finds this head and no other of the machine.
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        port, client = a.getsockname()[1], b.getsockname()[1]
    environment = {**AUTH, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [
        "--node-ip-address",
        "127.0.0.1",
        "--port",
        str(port),
        "--ray-client-server-port",
        str(client),
    ]
    command += ["--num-cpus", "2", "--object-store-memory", str(100 * 2**20), "--include-dashboard", "false"]
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for wanted in (port, client):
            end = time.monotonic() + 120
            while True:
                try:
                    socket.create_connection(("127.0.0.1", wanted), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < end, "the head did not start"
                    time.sleep(0.2)
        yield {"auto": "auto", "port": f"127.0.0.1:{port}", "ray": f"ray://127.0.0.1:{client}", **environment}
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        for member in (psutil.Process(process.pid), *family):
            if member.is_running():
                member.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "port", "ray"])
def test_a_sweep_on_a_real_head(
    head: dict[str, str], sweeps: Any, undisturbed_numbers: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    environment = {k: v for k, v in head.items() if k.startswith("RAY_")}
    command = sweeps.command(tmp_path / "runs", "--address", head[kind])
    process = sweeps.start(command, tmp_path, **environment)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert sweeps.numbers(tmp_path / "runs") == undisturbed_numbers
