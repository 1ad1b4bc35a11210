"""Our model on the official state dicts gives the official code's numbers, stage by stage.

The vectors were made by running MCG-NJU/VideoMAE and VideoMAE V2 on random weights and clips. float64
comparisons (1e-9) show quiet mistakes that float32 (1e-5) hides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vmae.core.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.masking import mask_from_bool
from vmae.core.videomae import IMAGENET_MEAN, IMAGENET_STD, VideoMAE, VideoMAEConfig

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


def pixels(video: Tensor, dtype: torch.dtype) -> Tensor:
    """The ImageNet-normalised video of the file as pixels in [0, 1]."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=dtype).view(3, 1, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=dtype).view(3, 1, 1, 1)
    return video.to(dtype) * std + mean


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for key, value in state.items():
        out[key] = value.permute(0, 2, 3, 4, 1).flatten(1) if value.dim() == 5 else value
    return out


def pretrain_model(golden: Golden, dtype: torch.dtype) -> VideoMAE:
    model = VideoMAE(VideoMAEConfig(**golden.config(), **golden.decoder_config()))
    model.load_state_dict(from_official(golden.group("sd/")))
    return model.to(dtype)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.to(theirs.dtype), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["pretrain_p16", "pretrain_p8"])
class TestPretrain:
    def test_stages_in_float32(self, name: str) -> None:
        golden = Golden(name)
        model = pretrain_model(golden, torch.float32)
        mask = mask_from_bool(golden["mask"])
        video = golden["video_u8"]
        close(model.encoder.embed(video, mask.visible), golden["enc_tokens"], 1e-5)
        out = model.forward_encoder(video, mask.visible)
        close(out, golden["enc_out"], 1e-5)
        close(model.encoder_to_decoder(out), golden["e2d"], 1e-5)
        close(model.forward_decoder(out, mask.visible, mask.masked), golden["pred"], 1e-5)
        close(model(video, mask), golden["loss"], 1e-5)
        close(model.encoder.pos_embed, golden["pos_embed_encoder"][0], 0)
        close(model.pos_embed, golden["pos_embed_decoder"][0], 0)

    def test_loss_and_gradients_in_float64(self, name: str) -> None:
        golden = Golden(name)
        model = pretrain_model(golden, torch.float64)
        loss = model(pixels(golden["video"], torch.float64), mask_from_bool(golden["mask"]))
        close(loss, golden["loss64"], 1e-9)
        loss.backward()
        norms = golden.group("grad_norm64/")
        assert norms.keys() == dict(model.named_parameters()).keys()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None
            close(parameter.grad.norm(), norms[key], 1e-9)


def test_dual_masking() -> None:
    golden = Golden("pretrain_p8")
    model = pretrain_model(golden, torch.float32)
    mask = mask_from_bool(golden["mask"])
    decode = mask_from_bool(golden["v2/decode_mask"]).visible
    tokens = model.forward_encoder(golden["video_u8"], mask.visible)
    close(model.forward_decoder(tokens, mask.visible, decode), golden["v2/pred"], 1e-5)
    loss = model(golden["video_u8"], mask, decode)
    close(loss, golden["v2/loss"], 1e-5)
    loss.backward()
    for key, norm in golden.group("v2/grad_norm/").items():
        close(model.get_parameter(key).grad.norm(), norm, 1e-5)


def test_classifier() -> None:
    golden = Golden("finetune_p8")
    classes = golden.meta["cfg"]["num_classes"]
    model = VideoClassifier(VideoClassifierConfig(**golden.config()), classes)
    state = {
        k if k.startswith(("fc_norm", "head")) else f"encoder.{k}": v
        for k, v in from_official(golden.group("sd/")).items()
    }
    model.load_state_dict(state)
    close(model(pixels(golden["video"], torch.float32)), golden["logits"], 1e-5)
    close(model.forward_features(pixels(golden["video"], torch.float32)), golden["features"], 1e-5)
    model.double()
    close(model(pixels(golden["video"], torch.float64)), golden["logits64"], 1e-9)
