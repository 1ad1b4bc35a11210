"""A frozen teacher's latents as what is predicted: against the definition, and no part of the student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vmae.core.errors import InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.encoder import all_indices
from vmae.core.model.masking import sample_mask
from vmae.core.model.target import check_target
from vmae.core.model.teacher import Latents
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.checkpoint import load_model, save_model
from vmae.core.weights.teacher import read_teacher, sized, with_teacher

TEACHER = VideoMAEConfig(
    frames=4, height=32, width=32, patch_size=8, tubelet_size=2, embed_dim=48, depth=3, num_heads=2,
    decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
STUDENT = replace(TEACHER, embed_dim=32, depth=2, target="teacher:x", target_dim=48)


def clips(n: int = 3) -> torch.Tensor:
    g = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (n, 3, 4, 32, 32), generator=g, dtype=torch.uint8)


def models(**changes: object) -> tuple[VideoMAE, VideoMAE]:
    torch.manual_seed(0)
    return VideoMAE(TEACHER), VideoMAE(replace(STUDENT, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1", "cosine"])
def test_the_loss_is_the_definition(layer: int, loss: str) -> None:
    teacher, student = models(loss=loss)
    student.learn_from(Latents(teacher, layer))
    video, mask = clips(), sample_mask("tube", 0.75, STUDENT.grid, 3, torch.Generator().manual_seed(1))
    got = student(video, mask)
    with torch.no_grad():
        x = teacher.encoder.embed(video, all_indices(video, teacher.grid))
        for block in list(teacher.encoder.blocks)[: layer % 3 + 1]:
            x = block(x)
        x = (x - x.mean(2, keepdim=True)) / (x.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()
        wanted = torch.stack([row[index] for row, index in zip(x, mask.masked, strict=True)])
    pred = student.predict(video, mask)
    by_hand = {
        "mse": (pred - wanted).square().mean(),
        "l1": (pred - wanted).abs().mean(),
        "smooth_l1": F.smooth_l1_loss(pred, wanted),
        "cosine": (1 - (pred * wanted).sum(2) / (pred.norm(dim=2) * wanted.norm(dim=2))).mean(),
    }[loss]
    assert got.item() == pytest.approx(by_hand.item(), rel=1e-5)
    got.backward()
    assert student.mask_token.grad is not None and student.mask_token.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_dual_masking_leaves_out_what_the_student_sees() -> None:
    teacher, student = models(loss="cosine")
    student.learn_from(Latents(teacher))
    video, mask = clips(2), sample_mask("tube", 0.5, STUDENT.grid, 2, torch.Generator().manual_seed(1))
    masked = student(video, mask, mask.masked)
    everything = torch.cat([mask.masked, mask.visible], 1).sort(1).values
    assert masked.item() == pytest.approx(student(video, mask).item(), rel=1e-6)
    pred = student.forward_decoder(student.forward_encoder(video, mask.visible), mask.visible, everything)
    labels = Latents(teacher)(video, everything, STUDENT.grid)
    weight = mask.to_bool().gather(1, everything).float()
    by_hand = ((1 - F.cosine_similarity(pred, labels, dim=2)) * weight).sum() / weight.sum()
    assert student(video, mask, everything).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_teacher_sees_the_clip_as_it_does_itself() -> None:
    """A student that subtracts the background learns from one that does not."""
    teacher, student = models(background="subtract")
    student.learn_from(Latents(teacher))
    video, mask = clips(), sample_mask("tube", 0.75, STUDENT.grid, 3, torch.Generator().manual_seed(1))
    labels = Latents(teacher)(video, mask.masked, STUDENT.grid)
    assert student(video, mask).item() == pytest.approx(
        (student.predict(video, mask) - labels).square().mean().item(), rel=1e-5
    )


def test_the_teacher_is_no_part_of_the_student(tmp_path: Path) -> None:
    teacher, student = models()
    before = set(student.state_dict())
    student.learn_from(Latents(teacher))
    assert set(student.state_dict()) == before and not any("teacher" in n for n, _ in student.named_modules())
    save_model(tmp_path / "teacher", teacher, {})
    config = replace(STUDENT, target=f"teacher:{tmp_path / 'teacher'}", target_dim=None)
    config = sized(config, read_teacher(config))
    assert config.target_dim == 48
    torch.manual_seed(1)
    save_model(tmp_path / "student", VideoMAE(config), {})
    again = load_model(tmp_path / "student")[0]
    assert isinstance(again, VideoMAE)
    video, mask = clips(), sample_mask("tube", 0.75, STUDENT.grid, 3, torch.Generator().manual_seed(1))
    with pytest.raises(InputError, match=r"expected the teacher of teacher:.* to be given to the model"):
        again(video, mask)
    assert torch.isfinite(with_teacher(again)(video, mask))


def test_a_classifier_teaches_too() -> None:
    classifier = VideoClassifier(VideoClassifierConfig.from_encoder(TEACHER), 5)
    student = VideoMAE(STUDENT)
    student.learn_from(Latents(classifier))
    mask = sample_mask("tube", 0.75, STUDENT.grid, 3, torch.Generator().manual_seed(1))
    assert torch.isfinite(student(clips(), mask))


def test_what_cannot_teach_is_refused_in_a_line() -> None:
    teacher, student = models()
    with pytest.raises(InputError, match=r"target_layer: expected 0 to 2 .*, got 3"):
        Latents(teacher, 3)
    other = VideoMAE(replace(TEACHER, patch_size=16))
    with pytest.raises(InputError, match=r"student's 2x4x4 tokens, got 2x2x2"):
        student.learn_from(Latents(other))
    narrow = VideoMAE(replace(TEACHER, embed_dim=32))
    with pytest.raises(InputError, match=r"expected the teacher's width 32, got 48"):
        student.learn_from(Latents(narrow))
    with pytest.raises(InputError, match="got cosine with target normalized"):
        replace(TEACHER, loss="cosine")
    with pytest.raises(InputError, match="a frozen model's is teacher:RUN"):
        check_target("teacher:", None)
