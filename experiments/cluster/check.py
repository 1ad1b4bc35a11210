"""Is every node of a cluster fit for the work? Asked before the work begins."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmae.core.errors import InputError, VmaeError
from vmae.experiments.cluster.session import alive_nodes
from vmae.experiments.storage import file_system

if TYPE_CHECKING:
    from vmae.core.video.config import DataConfig

_CHECK_TIMEOUT_S = 90.0
CHECKS = ("python", "torch", "ray", "vmae", "GPUs", "data", "storage")


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What one node said. `found` has a word for each of CHECKS; `problems` says what is wrong of them."""

    node: str
    host: str
    found: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


class ClusterUnfit(VmaeError):
    """Some node cannot do the work; `reports` says which and why."""

    def __init__(self, reports: Sequence[NodeReport]) -> None:
        self.reports = list(reports)
        bad = [r for r in self.reports if r.problems]
        first = f"{bad[0].node} ({bad[0].host}): {'; '.join(f'{k}: {v}' for k, v in bad[0].problems.items())}"
        super().__init__(f"expected every node to be fit, got {len(bad)} of {len(self.reports)}: {first}")


def node_facts(paths: Sequence[str], storage: str, mark: str) -> dict[str, Any]:
    """Runs on a node: its versions; whether it reads `paths` and `storage`'s mark, and writes beside it."""
    import sys
    from importlib.metadata import version

    from vmae import __version__

    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "ray": version("ray"),
        "vmae": __version__,
    }
    try:
        import torch

        facts["torch"] = torch.__version__
        facts["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception as e:
        facts["torch"], facts["gpus"] = f"cannot be imported: {e}", 0
    unreadable = []
    for path in paths:
        try:
            with open(path, "rb") as f:
                f.read(1)
        except OSError as e:
            unreadable.append(f"{path} ({e.strerror})")
    facts["unreadable"] = unreadable
    facts["storage"] = _try_storage(storage, mark)
    return facts


def _try_storage(storage: str, mark: str) -> str:
    """Read the driver's mark and leave one: an empty string, or what went wrong."""
    from pyarrow.fs import FileType

    try:
        fs, root = file_system(storage)
        if fs.get_file_info(f"{root}/.check-{mark}").type == FileType.NotFound:
            return "is another place than the driver's"
        with fs.open_output_stream(f"{root}/.check-{mark}-{uuid.uuid4().hex}") as f:
            f.write(b"ok")
    except Exception as e:
        return str(e).splitlines()[0] if str(e) else type(e).__name__
    return ""


def check_cluster(
    *,
    paths: Sequence[str] = (),
    storage: str = "",
    gpus_wanted: float = 0.0,
    timeout_s: float = _CHECK_TIMEOUT_S,
) -> list[NodeReport]:
    """Ask every node of the connected cluster what it is and what it sees; inside `connected`.

    Args:
        paths: files that every node must read (lists, a first video of each).
        storage: folder or URI (`s3://...`) that every node must read and write: the driver's own.
        gpus_wanted: GPUs that some job asks of one node. A node that offers Ray none is a problem only where
            no node offers enough: heads and CPU nodes may stand beside those with GPUs.

    Nodes that leave meanwhile are left out.
    """
    import ray
    from pyarrow.fs import FileSelector
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with tempfile.TemporaryDirectory() as nowhere:
        place = storage or nowhere
        mark = uuid.uuid4().hex[:12]
        try:
            own_fs, own_root = file_system(place)
            own_fs.create_dir(own_root, recursive=True)
            with own_fs.open_output_stream(f"{own_root}/.check-{mark}") as f:
                f.write(b"driver")
        except Exception as e:
            raise InputError(f"expected storage that the driver can write, got {place}: {e}") from e
        own = node_facts(paths, place, mark)
        asked: list[tuple[dict[str, Any], Any]] = []
        for node in alive_nodes():
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0)(node_facts).options(scheduling_strategy=strategy)
            asked.append((node, task.remote(list(paths), place, mark)))
        answers: list[tuple[dict[str, Any], dict[str, Any] | str]] = []
        for node, promise in asked:
            try:
                answers.append((node, ray.get(promise, timeout=timeout_s)))
            except Exception as e:
                text = str(e).strip().splitlines()[-1][:160] if str(e).strip() else type(e).__name__
                if isinstance(e, TimeoutError):
                    text = f"no answer in {timeout_s:g} s (a firewall? docs/clusters.md names the ports)"
                answers.append((node, text))
        # Ray finds out some fifteen seconds later that a node is gone: one that left is no node to be fit.
        there = {n["NodeID"] for n in alive_nodes()}
        answers = [(n, a) for n, a in answers if isinstance(a, dict) or n["NodeID"] in there]
        enough = any(_offered(node) >= gpus_wanted for node, _ in answers)
        reports = []
        for node, answer in answers:
            name = node["NodeID"][:8]
            if isinstance(answer, str):
                host = str(node["NodeManagerHostname"])
                reports.append(NodeReport(node=name, host=host, problems={"python": answer}))
                continue
            wanted = 0.0 if enough and not _offered(node) else gpus_wanted
            reports.append(_judge(name, answer, own, paths, bool(storage), wanted))
        with contextlib.suppress(Exception):
            for left in own_fs.get_file_info(FileSelector(own_root)):
                if left.base_name.startswith(f".check-{mark}"):
                    own_fs.delete_file(left.path)
    return reports


def require_fit(
    *, paths: Sequence[str] = (), storage: str = "", gpus_wanted: float = 0.0
) -> list[NodeReport]:
    """`check_cluster`; raises ClusterUnfit where a node cannot do the work."""
    reports = check_cluster(paths=paths, storage=storage, gpus_wanted=gpus_wanted)
    if any(r.problems for r in reports):
        raise ClusterUnfit(reports)
    return reports


def _offered(node: dict[str, Any]) -> float:
    return float(node["Resources"].get("GPU", 0.0))


def _judge(
    node: str,
    facts: dict[str, Any],
    own: dict[str, Any],
    paths: Sequence[str],
    stored: bool,
    gpus_wanted: float,
) -> NodeReport:
    found, problems = {}, {}
    for name in ("python", "torch", "ray", "vmae"):
        found[name] = facts[name]
        here, there = own[name], facts[name]
        if name == "torch":
            # A GPU build and a CPU build of one version differ after the plus sign, and may.
            here, there = here.partition("+")[0], there.partition("+")[0]
        if here != there:
            problems[name] = f"expected {own[name]} as here, got {facts[name]}"
    found["GPUs"] = str(facts["gpus"])
    if gpus_wanted > facts["gpus"]:
        problems["GPUs"] = f"expected {gpus_wanted:g} per job, got {facts['gpus']}"
    found["data"] = f"{len(paths) - len(facts['unreadable'])}/{len(paths)}" if paths else "-"
    if facts["unreadable"]:
        problems["data"] = f"cannot read {'; '.join(facts['unreadable'][:3])}"
    found["storage"] = "-" if not stored else ("fails" if facts["storage"] else "ok")
    if stored and facts["storage"]:
        problems["storage"] = facts["storage"]
    return NodeReport(node=node, host=facts["host"], found=found, problems=problems)


def files_to_see(data: DataConfig, *lists: str) -> list[str]:
    """Lists of a data section and the first video of each: what every node must be able to read.

    Empty names are passed over. Raises InputError as `read_annotations`.
    """
    from vmae.core.video.annotations import read_annotations
    from vmae.core.video.config import weighted

    files = []
    for csv in (weighted(listed)[0] for listed in lists if listed):
        samples = read_annotations(csv, data.data_root or None, format=data.annotation_format)
        files += [str(Path(csv).absolute()), str(Path(samples[0].path).absolute())]
    return files
