"""The child process of `calibrate`: `python -m vmae.kernels.calibrate_worker PLAN JOURNAL`."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmae.kernels.device import device_named
from vmae.kernels.sites import Site
from vmae.kernels.supervise import Journal
from vmae.kernels.table import Row, prior
from vmae.kernels.trial import measure_site


def work(plan: Mapping[str, Any], journal: Journal) -> None:
    """Measure site after site, say so in the journal; go on behind what it says is done."""
    device = device_named(plan["layer"])
    deadline, (limit_s, compile_limit_s) = float(plan["deadline"]), plan["limits"]
    finished, likely = journal.finished(), prior(str(device.facts().get("gpu")))
    for i, key in enumerate(plan["sites"]):
        if key in finished:
            continue
        now = time.monotonic()
        if now > deadline:
            journal.write(left_out=key)
            continue
        site = Site.parse(key)
        bad = {**plan["refused"].get(key, {}), **journal.to_blame(key)}
        if "torch" in bad:
            continue

        def announce(choice: str, compiles: bool, key: str = key) -> None:
            limit = compile_limit_s if compiles else limit_s
            journal.start(key, choice, limit_s=limit, compiles=compiles)

        # The sites that are left share the time that is left; the first have most to save and get most.
        share = now + max(2.0, (deadline - now) / math.sqrt(len(plan["sites"]) - i))
        first = likely.get(key, Row()).choice
        until = min(share, deadline)
        row = measure_site(site, device, refused=bad, announce=announce, first=first, until=until)
        journal.done(key, "site", asdict(row), took_s=time.monotonic() - now)


if __name__ == "__main__":
    work(json.loads(Path(sys.argv[1]).read_text()), Journal(path=Path(sys.argv[2])))
