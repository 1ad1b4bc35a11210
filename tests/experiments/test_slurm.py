"""docs/clusters.md on several hosts: the Slurm script with a real Slurm, and bare machines.

A host is a set of Linux namespaces: it has its own address, name, processes, /tmp and /dev/shm, and like
Debian's machines it takes its own name for 127.0.1.1. Killing it is a power cut: no connection is closed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
NODES = ["n1", "n2"]
SLURM_CONF = """
ClusterName=test
SlurmctldHost=login({login})
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/slurmctld
SlurmdSpoolDir={folder}/slurmd-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdTimeout=10
KillWait=5
NodeName=n[1-2] CPUs=1 Boards=1 SocketsPerBoard=1 CoresPerSocket=1 ThreadsPerCore=1 RealMemory=2000
PartitionName=main Nodes=ALL Default=YES State=UP
"""


class Hosts:
    """`login` and the NODES on a network of their own; `folder` is what they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.addresses = {name: f"10.77.0.{10 + i}" for i, name in enumerate(["login", *NODES])}
        self.inits: dict[str, int] = {}
        self.processes: list[subprocess.Popen[str]] = []
        for name in self.addresses:
            self._boot(name)

    def _boot(self, name: str) -> None:
        known = "".join(f"{a} {n}\n" for n, a in self.addresses.items() if n != name)
        hosts = self.folder / f"hosts-{name}"
        hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{known}")
        # bash as the host's first process: it takes over orphans.
        boot = f"""set -e
        mount --make-rprivate / && hostname {name} && mount -t tmpfs none /tmp && mount -t tmpfs none /dev/shm
        mount --bind {hosts} /etc/hosts && ip link set lo up && echo up
        set +e; sleep infinity & while :; do wait; done"""
        command = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        process = self.start("", *command, "--mount-proc", "bash", "-c", boot, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.readline() != "up\n":
            raise PermissionError("namespaces cannot be made here")
        (child,) = psutil.Process(process.pid).children()
        self.inits[name] = child.pid
        if name == "login":
            self.run(name, "ip", "link", "add", "bridge", "type", "bridge")
            port = "bridge"
        else:
            login = ["nsenter", "-t", str(self.inits["login"]), "--net", "ip", "link"]
            ends = [f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(child.pid)]
            subprocess.run([*login, "add", *ends], check=True)
            subprocess.run([*login, "set", f"to-{name}", "master", "bridge", "up"], check=True)
            port = "eth0"
        self.run(name, "ip", "address", "add", f"{self.addresses[name]}/24", "dev", port)
        self.run(name, "ip", "link", "set", port, "up")

    def _on(self, name: str, command: tuple[str, ...]) -> list[str]:
        inside = ["nsenter", "-t", str(self.inits[name]), "--all", f"--wd={self.folder}"] if name else []
        return [*inside, *command]

    def run(self, name: str, *command: str, **options: Any) -> str:
        done = subprocess.run(
            self._on(name, command), capture_output=True, text=True, check=False, timeout=400, **options
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, name: str, *command: str, **options: Any) -> subprocess.Popen[str]:
        """On a host, or with an empty name on none; ended with the hosts."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
        # Where the test's own process is killed, nothing stays.
        whole = ["setpriv", "--pdeathsig", "KILL", *self._on(name, command)]
        process = subprocess.Popen(whole, text=True, **{**quiet, **options})
        self.processes.append(process)
        return process

    def cut_power(self, name: str) -> None:
        os.kill(self.inits.pop(name), signal.SIGKILL)

    def end(self) -> None:
        for name in list(self.inits):
            self.cut_power(name)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def wait(condition: Callable[[], object], what: str, limit_s: float = 240) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.2)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    missing = [tool for tool in ("unshare", "nsenter", "setpriv", "ip") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"hosts need root and {', '.join(missing) or 'nothing else'}")
    # Not in /tmp: there every host has its own.
    folder = Path(tempfile.mkdtemp(prefix="vmae-hosts-", dir="/var/tmp"))
    try:
        made = Hosts(folder)
    except (PermissionError, AssertionError, subprocess.SubprocessError) as e:
        shutil.rmtree(folder)
        pytest.skip(f"no hosts here: {e}")
    yield made
    made.end()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment(hosts: Hosts, sweeps: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a user on any host: an installation, the data and a tracking server in what the hosts share."""
    programs = hosts.folder / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"export PATH={programs}:{Path(sys.executable).parent}:$PATH\n")
    (programs / "vmae").write_text(f'#!/bin/sh\nexec {sys.executable} -m vmae "$@"\n')
    (programs / "vmae").chmod(0o755)
    shutil.copytree(sweeps.data, hosts.folder / "data")
    monkeypatch.setattr(sweeps, "data", hosts.folder / "data")
    uri = "http://login:5000"
    environment = sweeps.environment(RAY_raylet_start_wait_time_s="180", RAY_USAGE_STATS_ENABLED="0")
    server = [sys.executable, "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
    server += ["--workers", "1", "--allowed-hosts", "login:5000"]
    server += ["--backend-store-uri", f"sqlite:///{hosts.folder}/server.db"]
    server += ["--artifacts-destination", f"{hosts.folder}/artifacts"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    hosts.start("login", *server, env={**environment, **quiet})
    answers = f"import urllib.request as r, sys; sys.exit(r.urlopen('{uri}/health', timeout=2).status != 200)"
    asked = hosts._on("n1", (sys.executable, "-c", answers))
    wait(
        lambda: subprocess.run(asked, capture_output=True, check=False).returncode == 0, "the tracking server"
    )
    return {**environment, "MLFLOW_TRACKING_URI": uri}


@pytest.fixture
def slurm(hosts: Hosts, environment: dict[str, str]) -> dict[str, str]:
    """A Slurm over the nodes; what its commands need in the environment."""
    tools = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"no Slurm here: {', '.join(missing)} (Debian: slurm-wlm, munge)")
    folder = hosts.folder
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    for name in ("slurmctld", *(f"slurmd-{n}" for n in NODES)):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, login=hosts.addresses["login"]))
    own = [
        f"--{x}={folder}/munge.{y}"
        for x, y in (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"))
    ]
    own += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    hosts.start("", "munged", "--foreground", "--force", *own)
    wait((folder / "munge.socket").exists, "munged", 30)
    settings = {**environment, "SLURM_CONF": str(folder / "slurm.conf")}
    hosts.start("login", "slurmctld", "-D", env=settings)
    for node in NODES:
        hosts.start(node, "slurmd", "-D", "-N", node, env=settings)
    wait(
        lambda: hosts.run("login", "sinfo", "-h", "-o", "%D %T", env=settings).split() == ["2", "idle"],
        "two idle nodes",
        60,
    )
    return settings


def script(hosts: Hosts, sweeps: Any) -> Path:
    """The published file with only those lines changed that it says to change."""
    line = sweeps.command(
        hosts.folder / "runs", "--val", str(hosts.folder / "data" / "val.csv"), "--cpus", "1"
    )
    work = " ".join(w for w in line[3:] if w not in ("--runs-dir", str(hosts.folder / "runs")))
    text = (ROOT / "docs" / "clusters" / "slurm_sweep.sh").read_text()
    for old, new in {
        r"^#SBATCH --nodes=.*": "#SBATCH --nodes=2",
        r"^#SBATCH --gpus-per-node=.*\n": "",
        r"^#SBATCH --cpus-per-task=.*": "#SBATCH --cpus-per-task=1",
        r"^#SBATCH --time=.*": "#SBATCH --time=20:00",
        r"^VENV=.*": f"VENV={hosts.folder}/venv",
        r"^RUNS=.*": f"RUNS={hosts.folder}/runs",
        r"^NAME=.*": "NAME=tested",
        r"^export MLFLOW_TRACKING_URI=.*": "export MLFLOW_TRACKING_URI=http://login:5000",
        r"^WORK=.*": f"WORK=({work})",
    }.items():
        text, count = re.subn(old, new, text, flags=re.MULTILINE)
        assert count == 1, old
    path = hosts.folder / "sweep.sh"
    path.write_text(text)
    return path


def test_the_slurm_script_is_interrupted_resumed_and_loses_a_node(
    hosts: Hosts, slurm: dict[str, str], sweeps: Any, undisturbed_numbers: dict[str, Any]
) -> None:
    """Two jobs of the same file end with the table of an undisturbed run, each trial being one run."""
    runs, path = hosts.folder / "runs", script(hosts, sweeps)

    def submit() -> str:
        return hosts.run("login", "sbatch", "--parsable", "--output=out-%j", str(path), env=slurm).strip()

    def said(job: str) -> str:
        logs = [hosts.folder / f"out-{job}", *runs.glob(f"ray-{job}-*.log")]
        return "\n".join(p.read_text()[-2000:] for p in logs if p.exists())

    def state(job: str) -> str:
        text = hosts.run("login", "scontrol", "show", "job", job, env=slurm)
        return " ".join(re.findall(r"(?:JobState|ExitCode)=(\S+)", text))

    def working(job: str, attempt: int) -> bool:
        assert state(job).split()[0] in ("PENDING", "CONFIGURING", "RUNNING"), said(job)
        return sum(p["attempts"] == attempt for p in sweeps.running(runs)) == 2

    first = submit()
    wait(lambda: working(first, 1), "two trials with checkpoints, one on each node")
    hosts.run("login", "scancel", "--batch", "--signal=INT", first, env=slurm)
    wait(lambda: state(first).split()[0] == "FAILED", "the interrupted job to end")
    assert state(first) == "FAILED 130:0"
    assert "Go on with: vmae sweep --resume tested" in said(first)
    assert "all 2 nodes are fit" in said(first)

    second = submit()
    wait(lambda: working(second, 2), "both trials to go on, one on each node")
    hosts.cut_power("n2")
    wait(lambda: state(second).split()[0] not in ("PENDING", "RUNNING", "COMPLETING"), "the sweep to end")
    assert state(second) == "COMPLETED 0:0", said(second)
    assert sweeps.numbers(runs) == undisturbed_numbers
    with sqlite3.connect(hosts.folder / "server.db") as db:
        (count,) = db.execute("select count(*) from runs").fetchone()
    assert count == 1 + len(undisturbed_numbers)


def test_bare_machines_with_a_token_share_each_batch(
    hosts: Hosts, environment: dict[str, str], sweeps: Any
) -> None:
    """One CPU a host and two workers a trial: gloo has to find its way between the hosts."""
    runs, address = hosts.folder / "runs", f"{hosts.addresses['n1']}:6379"
    own = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus", "1"]
    ray += ["--object-store-memory", str(100 * 2**20)]
    head = ["--head", "--port", "6379", "--node-ip-address", hosts.addresses["n1"]]
    hosts.start("n1", *ray, *head, "--include-dashboard", "false", env=own)
    vmae = [sys.executable, "-m", "vmae"]
    check = [*vmae, "cluster", "check", "--address", address, "--storage", str(runs), "--wait", "120"]
    hosts.run("n1", *check, env=own)
    hosts.start("n2", *ray, "--address", address, env=own)
    assert "all 2 nodes are fit" in hosts.run("n1", *check, "--nodes", "2", env=own)
    command = sweeps.command(runs, "--address", address, "--workers-per-trial", "2", epochs=2)
    command[command.index("--values") + 1] = "0.75"
    hosts.run("n1", *command, env=own)
    assert set(sweeps.numbers(runs)) == {"random-weights_s0", "ratio0.75_s0"}
