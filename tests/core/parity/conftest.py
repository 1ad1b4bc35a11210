"""The golden vectors of tests/data/golden, as tests read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vmae.core.model.encoder import IMAGENET_MEAN, IMAGENET_STD

DATA = Path(__file__).resolve().parents[2] / "data" / "golden"


class Golden:
    """One npz file: tensors by name, the state dict, the configuration."""

    def __init__(self, name: str) -> None:
        self.file = np.load(DATA / f"{name}.npz")
        self.meta = json.loads(str(self.file["meta"]))

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.file[key]))

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: self[k] for k in self.file.files if k.startswith(prefix)}

    def config(self) -> dict[str, Any]:
        c = self.meta["cfg"]
        return {
            "frames": c["num_frames"],
            "height": c["img_size"][0],
            "width": c["img_size"][1],
            "patch_size": c["patch_size"],
            "tubelet_size": c["tubelet"],
            "embed_dim": c["embed"],
            "depth": c["depth"],
            "num_heads": c["heads"],
            "mlp_ratio": c["mlp_ratio"],
        }

    def decoder_config(self) -> dict[str, Any]:
        c = self.meta["cfg"]
        return {
            "decoder_embed_dim": c["dec_dim"],
            "decoder_depth": c["dec_depth"],
            "decoder_num_heads": c["dec_heads"],
        }

    def pixels(self, dtype: torch.dtype) -> Tensor:
        """The file's ImageNet-normalised video as pixels in [0, 1]."""
        video = self["video"]
        mean = torch.tensor(IMAGENET_MEAN, dtype=dtype).view(3, 1, 1, 1)
        std = torch.tensor(IMAGENET_STD, dtype=dtype).view(3, 1, 1, 1)
        return video.to(dtype) * std + mean


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """`golden("pretrain_p8")` opens one file."""
    return Golden


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Where the files lie."""
    return DATA
