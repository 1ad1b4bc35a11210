"""Our model on the official and Hugging Face state dicts gives their numbers, stage by stage.

The vectors were made by running MCG-NJU/VideoMAE, VideoMAE V2 and transformers on random weights and clips.
float64 comparisons (1e-9) show quiet mistakes that float32 (1e-5) hides.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.masking import mask_from_bool
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.hf import hf_keys
from vmae.core.weights.official import load_official_state, official_keys
from vmae.kernels import patch_targets

Open = Callable[[str], Any]
PRETRAIN = pytest.mark.parametrize("name", ["pretrain_p16", "pretrain_p8"])


def pretrain_model(file: Any, dtype: torch.dtype, **overrides: Any) -> VideoMAE:
    model = VideoMAE(VideoMAEConfig(**file.config(), **file.decoder_config(), **overrides))
    load_official_state(model, file.group("sd/"), "golden")
    return model.to(dtype)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.to(theirs.dtype), theirs, rtol=tolerance, atol=tolerance)


def grad_norms_close(model: torch.nn.Module, norms: dict[str, Tensor], tolerance: float) -> None:
    assert norms.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        close(parameter.grad.norm().double(), norms[key].double(), tolerance)


@PRETRAIN
def test_stages_in_float32(golden: Open, name: str) -> None:
    file = golden(name)
    model = pretrain_model(file, torch.float32)
    mask = mask_from_bool(file["mask"])
    video = file["video_u8"]
    x = model.encoder.embed(video, mask.visible)
    close(x, file["enc_tokens"], 1e-5)
    for i, block in enumerate(model.encoder.blocks):
        x = block(x)
        close(x, file[f"enc_block{i}"], 1e-5)
    out = model.forward_encoder(video, mask.visible)
    close(out, file["enc_out"], 1e-5)
    close(model.encoder_to_decoder(out), file["e2d"], 1e-5)
    pred = model.forward_decoder(out, mask.visible, mask.masked)
    close(pred, file["pred"], 1e-5)
    close(model.encoder.pos_embed, file["pos_embed_encoder"][0], 0)
    close(model.pos_embed, file["pos_embed_decoder"][0], 0)
    loss = model(video, mask)
    close(loss, file["loss"], 1e-5)
    loss.backward()
    grad_norms_close(model, file.group("grad_norm/"), 1e-5)
    total = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    close(total, file["grad_norm_total"], 1e-5)


@PRETRAIN
@pytest.mark.parametrize(("target", "suffix"), [("normalized", ""), ("raw", "_raw")])
def test_targets_and_losses(golden: Open, name: str, target: str, suffix: str) -> None:
    file = golden(name)
    model = pretrain_model(file, torch.float32, target=target)
    mask = mask_from_bool(file["mask"])
    got = patch_targets(
        file["video_u8"], mask.masked, patch_size=model.grid.patch_size, tubelet_size=2, target=target
    )
    close(got, file[f"targets{suffix}"], 1e-5)
    close(model(file["video_u8"], mask), file[f"loss{suffix}"], 1e-5)


def test_targets_of_flat_patches(golden: Open) -> None:
    file = golden("targets_edge")
    indices = torch.arange(48)[None]
    size = {"patch_size": 8, "tubelet_size": 2}
    exact = patch_targets(file["video_u8"].double() / 255, indices, **size, dtype=torch.float64)
    close(exact.float(), file["targets64"], 1e-5)
    single = patch_targets(file["video_u8"], indices, **size)
    # The official float32 targets of (nearly) flat patches are rounding noise, amplified by 1 / 1e-6.
    keep = ~(file["flat"] | file["one_level"])
    close(single[:, keep], file["targets"][:, keep], 1e-5)
    close(single[:, keep], file["targets64"][:, keep], 1e-5)


@PRETRAIN
def test_loss_and_gradient_norms_in_float64(golden: Open, name: str) -> None:
    file = golden(name)
    model = pretrain_model(file, torch.float64)
    loss = model(file.pixels(torch.float64), mask_from_bool(file["mask"]))
    close(loss, file["loss64"], 1e-9)
    loss.backward()
    grad_norms_close(model, file.group("grad_norm64/"), 1e-9)


def test_whole_gradients(golden: Open) -> None:
    file = golden("pretrain_p8")
    model = pretrain_model(file, torch.float32)
    model(file["video_u8"], mask_from_bool(file["mask"])).backward()
    gradients = file.group("grad/")
    for key, parameter in model.named_parameters():
        wanted = gradients.pop(key)
        if wanted.dim() == 5:
            wanted = wanted.permute(0, 2, 3, 4, 1).flatten(1)
        assert parameter.grad is not None
        close(parameter.grad, wanted, 1e-5)
    assert not gradients


def test_trajectory_of_adamw(golden: Open, golden_dir: Path) -> None:
    file = golden("pretrain_p8")
    model = pretrain_model(file, torch.float32)
    mask = mask_from_bool(file["mask"])
    # Recorded with the published optimiser at a constant rate: no decay for vectors and the mask token.
    decay = json.loads((golden_dir / "keys.json").read_text())["optimizer_groups"]["pretrain"]
    groups = [{"params": [p], "weight_decay": decay[k][0]} for k, p in model.named_parameters()]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    for wanted in file["traj_loss"]:
        loss = model(file["video_u8"], mask)
        close(loss.double(), wanted, 1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, norm in file.group("traj_param_norm/").items():
        close(model.get_parameter(key).norm().double(), norm.double(), 1e-5)


def test_dual_masking(golden: Open) -> None:
    file = golden("pretrain_p8")
    model = pretrain_model(file, torch.float32)
    mask = mask_from_bool(file["mask"])
    decode = mask_from_bool(file["v2/decode_mask"]).visible
    tokens = model.forward_encoder(file["video_u8"], mask.visible)
    close(model.forward_decoder(tokens, mask.visible, decode), file["v2/pred"], 1e-5)
    loss = model(file["video_u8"], mask, decode)
    close(loss, file["v2/loss"], 1e-5)
    loss.backward()
    grad_norms_close(model, file.group("v2/grad_norm/"), 1e-5)


def test_classifier(golden: Open) -> None:
    file = golden("finetune_p8")
    config = VideoClassifierConfig(**file.config())
    model = VideoClassifier(config, 7)
    load_official_state(model, file.group("sd/"), "golden")
    video = file.pixels(torch.float32)
    close(model(video), file["logits"], 1e-5)
    close(model.features(video), file["features"], 1e-5)
    loss = torch.nn.functional.cross_entropy(model(video), file["labels"])
    close(loss, file["loss"], 1e-5)
    model.double()
    close(model(file.pixels(torch.float64)), file["logits64"], 1e-9)


@pytest.mark.parametrize("eps", ["eps_hub", "eps_1e-6"])
def test_hugging_face_weights(golden: Open, tmp_path: Path, eps: str) -> None:
    from safetensors.torch import save_file

    from vmae.core.weights.convert import read_model

    file = golden("hf_p8")
    values = hf_config(file.meta["cfg"]) | {"layer_norm_eps": 1e-12 if eps == "eps_hub" else 1e-6}
    models = {}
    for kind in ("pretrain", "classifier"):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(values | {"use_mean_pooling": kind == "classifier"}))
        save_file(file.group(f"{kind}/sd/"), folder / "model.safetensors")
        loaded = read_model(folder)
        models[kind] = loaded.model
        assert loaded.format == "hf"
        if eps == "eps_1e-6":
            for module in loaded.model.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.eps = 1e-6
    video = file.pixels(torch.float32)
    mask = mask_from_bool(file["mask"])
    pretrain = models["pretrain"]
    assert isinstance(pretrain, VideoMAE)
    out = pretrain.forward_encoder(video, mask.visible)
    close(out, file[f"pretrain/{eps}/enc_out"], 1e-5)
    close(pretrain.forward_decoder(out, mask.visible, mask.masked), file[f"pretrain/{eps}/logits"], 1e-5)
    loss = pretrain(video, mask)
    close(loss, file[f"pretrain/{eps}/loss"], 1e-5)
    loss.backward()
    norms = file.group(f"pretrain/{eps}/grad_norm/")
    for key, parameter in pretrain.named_parameters():
        # q, k, v are one parameter here: the norm over the three is the root of the sum of squares.
        names = [_v5(k) for k in hf_keys(key, pretrain)]
        wanted = torch.stack([norms[n] for n in names]).square().sum().sqrt()
        assert parameter.grad is not None
        close(parameter.grad.norm().double(), wanted.double(), 1e-5)
    close(models["classifier"](video), file[f"classifier/{eps}/logits"], 1e-5)


def test_key_names_are_the_recorded_ones(golden: Open, golden_dir: Path) -> None:
    recorded = json.loads((golden_dir / "keys.json").read_text())
    file = golden("pretrain_p8")
    pretrain = pretrain_model(file, torch.float32)
    classifier = VideoClassifier(VideoClassifierConfig(**file.config()), 7)
    for model, table in ((pretrain, recorded["pretrain"]), (classifier, recorded["classifier"])):
        ours = {official_keys(k, model)[0]: hf_keys(k, model) for k in model.state_dict()}
        assert ours == {k: tuple(v["hub"]) for k, v in table.items()}


def hf_config(cfg: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "videomae",
        "image_size": cfg["img_size"],
        "patch_size": cfg["patch_size"],
        "num_frames": cfg["num_frames"],
        "tubelet_size": cfg["tubelet"],
        "hidden_size": cfg["embed"],
        "num_hidden_layers": cfg["depth"],
        "num_attention_heads": cfg["heads"],
        "intermediate_size": cfg["embed"] * cfg["mlp_ratio"],
        "decoder_hidden_size": cfg["dec_dim"],
        "decoder_num_hidden_layers": cfg["dec_depth"],
        "decoder_num_attention_heads": cfg["dec_heads"],
        "decoder_intermediate_size": cfg["dec_dim"] * cfg["mlp_ratio"],
        "hidden_act": "gelu",
    }


def _v5(key: str) -> str:
    return key.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias")
