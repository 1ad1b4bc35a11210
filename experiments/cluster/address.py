"""Addresses of Ray clusters, looked at before Ray is."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlparse

from vmae.core.errors import InputError, VmaeError


def parse_address(address: str) -> tuple[str, int] | None:
    """Host and port of `host:port` or `ray://host:port`; None for `auto`.

    Raises InputError for anything else.
    """
    if address == "auto":
        return None
    rest = address.removeprefix("ray://")
    host, _, port = rest.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in rest:
        raise InputError(f"--address: expected auto, HOST:PORT or ray://HOST:PORT, got '{address}'")
    return host.strip("[]"), int(port)


def probe_address(address: str, timeout_s: float = 5.0) -> None:
    """Raise VmaeError where nothing listens: Ray itself would try for minutes."""
    target = parse_address(address)
    if target is None:
        return
    try:
        with socket.create_connection(target, timeout=timeout_s):
            pass
    except OSError as e:
        raise VmaeError(
            f"--address: expected a Ray cluster at {address}, got: {e.strerror or e}; start one with "
            "`ray start --head --port 6379 --block` and see docs/clusters.md"
        ) from e


def wait_for_port(address: str, wait_s: float) -> None:
    """Return when something listens at `address`; after `wait_s` raises what `probe_address` raises."""
    end = time.monotonic() + wait_s
    while True:
        try:
            probe_address(address)
            return
        except InputError:
            raise
        except VmaeError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.5)


def is_uri(place: str) -> bool:
    """Whether a place is a URI (`s3://bucket/x`) and not a path."""
    return len(urlparse(place).scheme) > 1
