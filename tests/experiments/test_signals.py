"""What asks a process to end interrupts it, also where a library took the signal behind Python's back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import ctypes, signal, time
from vmae.experiments.signals import ignored, interrupts
{before}
interrupts()
ctypes.CDLL(None).signal({taken}, 0)  # what a library in C does: the system's own answer again
interrupts()
try:
    print("ready", flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    with ignored():
        print("cleaning", flush=True)
        time.sleep(0.5)
    print("interrupted", flush=True)
"""


def running(before: str = "", taken: int = 0) -> subprocess.Popen[str]:
    program = PROGRAM.format(before=before, taken=taken or int(signal.SIGUSR2))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_they_interrupt_and_do_not_disturb_the_cleaning(number: signal.Signals) -> None:
    process = running(taken=int(number))
    process.send_signal(number)
    assert process.stdout is not None and process.stdout.readline() == "cleaning\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "interrupted\n" and process.returncode == 0


def test_who_ignores_them_goes_on_ignoring_them() -> None:
    process = running("signal.signal(signal.SIGHUP, signal.SIG_IGN)")  # as under nohup
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "cleaning\ninterrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_mlflows_server_ends_with_its_command(number: signal.Signals, tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "vmae", "ui", "--runs-dir", str(tmp_path / "runs"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 240
        while time.monotonic() < end:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.kill(process.pid, number)
        process.wait(60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
