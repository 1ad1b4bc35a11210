"""Ray clusters: addresses, checks of every node, a sweep that loses a node; three nodes on this machine."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from vmae.core.errors import InputError, VmaeError
from vmae.experiments.cluster import NodeReport, is_uri, parse_address, probe_address

ROOT = Path(__file__).resolve().parents[2]
AUTH = {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "180"}
_HOST = """
import sys
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
    done = check("--gpus", "64")
    assert done.returncode == 1
    assert done.stdout.count("GPUs: expected 64 per job") == 3


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
    time.sleep(5)
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


_MAP = """
import sys, time
from vmae.experiments.cluster import connected
from vmae.experiments.ray_map import ray_map
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
