"""Ray: here or on a cluster, checked before the work and used by it."""

from vmae.experiments.cluster.address import is_uri, parse_address, probe_address, wait_for_port
from vmae.experiments.cluster.check import (
    CHECKS,
    ClusterUnfit,
    NodeReport,
    check_cluster,
    files_to_see,
    require_fit,
)
from vmae.experiments.cluster.session import Ahead, connected, shipped_code, wait_for_nodes

__all__ = [
    "CHECKS",
    "Ahead",
    "ClusterUnfit",
    "NodeReport",
    "check_cluster",
    "connected",
    "files_to_see",
    "is_uri",
    "parse_address",
    "probe_address",
    "require_fit",
    "shipped_code",
    "wait_for_nodes",
    "wait_for_port",
]
