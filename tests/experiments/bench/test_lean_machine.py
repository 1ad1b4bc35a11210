"""The GPU suite must run on a machine that has torch, triton and numpy, and none of the workbench's rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

# A fresh process in which the absent packages cannot be imported: the suite's whole code path, then the
# modules that read its result.
LEAN = """
import sys
ABSENT = {"ray", "mlflow", "decord", "streamlit", "av", "click", "pandas", "cv2", "skimage", "PIL", "yaml",
          "rich", "psutil", "safetensors", "huggingface_hub", "einops", "pyarrow", "matplotlib"}
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in ABSENT else find(name, *rest)
from vmae.experiments.bench import gpu_suite, gpu_work, report, step
row = step.run_case(step.TINY[0], "cpu", dry_run=True, every_variant=False, skip={
    "transformers sdpa": "absent", "transformers sdpa + compile": "absent"})[0]
assert row["ms"] > 0, row
assert step.profile_step("cpu", dry_run=True)["kernels"]
items = list(gpu_work.work_items("cpu", "abcd", dry_run=True))
assert {"ceilings", "tiles", "calibration", "ops", "steps", "profile"} == {item.key for item in items}
assert report.load_results() is not None
assert not ABSENT & {name.partition(".")[0] for name in sys.modules}
"""


def test_the_suite_needs_torch_and_triton_only() -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LEAN], capture_output=True, text=True, env=env, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
