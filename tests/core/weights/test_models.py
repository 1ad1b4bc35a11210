"""A model of one's own is one class and one entry; what a task cannot use is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from vmae.core.errors import CheckpointError, InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.encoder import Encoder, EncoderConfig, VideoModel, all_indices
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.checkpoint import adapt_model, load_model, save_model
from vmae.core.weights.convert import write_model
from vmae.core.weights.models import MODELS, build_model, expect_model

SHAPE: dict[str, Any] = {"frames": 4, "height": 16, "width": 16, "patch_size": 8, "embed_dim": 16, "depth": 1}


class Boxes(VideoModel):
    """Four numbers a token: a detector's skeleton."""

    title = "a detector"

    def __init__(self, config: EncoderConfig, numbers: int) -> None:
        super().__init__()
        self.config, self.numbers = config, numbers
        self.encoder = Encoder(config)
        self.head = nn.Linear(config.embed_dim, numbers)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "numbers": self.numbers}

    @classmethod
    def from_description(cls, values: dict[str, Any]) -> Self:
        return cls(EncoderConfig.from_dict(values["config"]), values["numbers"])

    def forward(self, video: Tensor) -> Tensor:
        return self.head(self.encoder(video, all_indices(video, self.grid)))


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> Boxes:
    monkeypatch.setitem(MODELS, "Boxes", Boxes)
    torch.manual_seed(0)
    return Boxes(EncoderConfig(**SHAPE, num_heads=2), 4)


def test_a_model_of_ones_own_is_saved_loaded_and_adapted(boxes: Boxes, tmp_path: Path) -> None:
    save_model(tmp_path / "m", boxes, {"epochs": 3})
    loaded, meta = load_model(tmp_path / "m")
    assert isinstance(loaded, Boxes) and loaded.numbers == 4 and meta == {"epochs": 3}
    video = torch.rand(2, 3, 4, 16, 16)
    assert torch.equal(loaded(video), boxes(video))
    larger, notes = adapt_model(loaded, height=32, width=32)
    assert isinstance(larger, Boxes) and larger(torch.rand(2, 3, 4, 32, 32)).shape == (2, 32, 4)
    assert len(notes) == 1
    # Its encoder starts a classifier as any other does.
    classifier = VideoClassifier(VideoClassifierConfig.from_encoder(boxes.config), 3)
    classifier.load_encoder(loaded)
    weight = "patch_embed.proj.weight"
    assert torch.equal(classifier.encoder.state_dict()[weight], boxes.encoder.state_dict()[weight])


@pytest.mark.parametrize(
    ("to", "message"), [("official", "official files hold"), ("hf", "transformers knows")]
)
def test_formats_that_have_no_such_model_refuse_it(
    boxes: Boxes, tmp_path: Path, to: str, message: str
) -> None:
    with pytest.raises(
        CheckpointError, match=f"{message} pre-trained models and classifiers, got a detector"
    ):
        write_model(tmp_path / "out", boxes, to)
    assert not (tmp_path / "out").exists()


def test_a_task_says_what_it_needs_and_what_came(boxes: Boxes) -> None:
    pretrained = VideoMAE(VideoMAEConfig.from_size("tiny"))
    assert expect_model(pretrained, VideoMAE, "here") is pretrained
    with pytest.raises(InputError, match=r"^expected a classifier, got a pre-trained model at runs/x$"):
        expect_model(pretrained, VideoClassifier, Path("runs/x"))
    with pytest.raises(InputError, match=r"^expected a pre-trained model, got a detector at y$"):
        expect_model(boxes, VideoMAE, "y")
    with pytest.raises(CheckpointError, match=r"of VideoMAE or VideoClassifier or .*Boxes, got 'Nothing'"):
        build_model({"model": "Nothing"})
