"""Whether a port can be listened on, before a server is started that would say it less clearly."""

from __future__ import annotations

import socket

from vmae.core.errors import InputError


def check_port(host: str, port: int) -> None:
    """Raise InputError when nothing can listen on `host:port`."""
    if not 0 < port < 65536:
        raise InputError(f"--port: expected a port from 1 to 65535, got {port}")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as e:
            raise InputError(
                f"expected to listen on {host}:{port}, got: {e.strerror or e}; choose another with --port"
            ) from e
