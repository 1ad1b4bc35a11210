"""Detection without a person detector: which tokens stay, whose guess is whose, and what it costs."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vmae.core.errors import InputError
from vmae.core.model.detector import VideoDetector, VideoDetectorConfig
from vmae.core.model.dropping import DroppingBlock, dropping_blocks, key_frame_first
from vmae.core.model.end_to_end import EndToEndConfig, EndToEndDetector, end_to_end_loss, widened
from vmae.core.model.layers import Block
from vmae.core.model.matching import assign, generalised_iou, matched_loss
from vmae.core.weights.checkpoint import load_model, save_model

CONFIG = EndToEndConfig(
    frames=8,
    height=32,
    width=32,
    patch_size=8,
    embed_dim=32,
    depth=4,
    num_heads=2,
    queries=6,
    context_depth=1,
)


def model(**changes: object) -> EndToEndDetector:
    torch.manual_seed(0)
    return EndToEndDetector(dataclasses.replace(CONFIG, **changes), 3).eval()  # type: ignore[arg-type]


def video(height: int = 32, width: int = 32) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(256, (2, 3, 8, height, width), dtype=torch.uint8, generator=g)


def test_the_key_frame_comes_first_and_blocks_are_those_of_the_paper() -> None:
    order = key_frame_first(CONFIG.grid)
    assert order.tolist() == [*range(32, 48), *range(32), *range(48, 64)]
    assert dropping_blocks(12) == (3, 6, 9) and dropping_blocks(24) == (6, 12, 18)
    assert dropping_blocks(3) == (0, 1, 2) and dropping_blocks(1) == (0,)


@torch.no_grad()
def test_a_block_keeps_the_key_frame_and_what_is_attended_to_most() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 2, 32, norm_eps=1e-6), torch.randn(3, 20, 16)
    whole = block(x)
    everything, kept = DroppingBlock(block, 1.0)(x, 5)
    torch.testing.assert_close(everything, whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(kept, torch.arange(20).expand(3, -1))
    left, kept = DroppingBlock(block, 0.5)(x, 5)
    assert left.shape == (3, 10, 16)
    # What is left is what the whole block makes of it: dropping comes after attention.
    torch.testing.assert_close(
        left, whole.gather(1, kept[..., None].expand(-1, -1, 16)), atol=1e-5, rtol=1e-5
    )
    weights = block.attn.attention_map(block.norm1(x)).mean((1, 2))
    for row, chosen in zip(weights, kept, strict=True):
        assert chosen[:5].tolist() == list(range(5))
        best = sorted(range(5, 20), key=lambda i: -row[i])[:5]
        assert chosen[5:].tolist() == sorted(best)
    # What the key frame's queries attend to counts four times; with a weight of 0 it does not count.
    for weight in (4.0, 0.0):
        _, kept = DroppingBlock(block, 0.5, weight)(x, 5)
        weights = block.attn.attention_map(block.norm1(x)).mean(1)
        weights[:, :5] *= weight
        for row, chosen in zip(weights.mean(1), kept, strict=True):
            assert chosen[5:].tolist() == sorted(sorted(range(5, 20), key=lambda i: -row[i])[:5])
    assert not torch.equal(DroppingBlock(block, 0.5, 4.0)(x, 5)[1], DroppingBlock(block, 0.5)(x, 5)[1])
    least, kept = DroppingBlock(block, 0.1)(x, 5)
    assert least.shape[1] == 5 and torch.equal(kept, torch.arange(5).expand(3, -1))


@torch.no_grad()
def test_tokens_that_all_stay_are_those_of_the_plain_detector() -> None:
    plain = VideoDetector(VideoDetectorConfig.from_encoder(CONFIG), 3).eval()
    m = model()
    m.load_encoder(plain)
    for size in ((32, 32), (32, 56)):
        x, places = m.forward_tokens(video(*size))
        back = torch.zeros_like(x).scatter(1, places[..., None].expand_as(x), x)
        maps = back.unflatten(1, (4, size[0] // 8, size[1] // 8)).mean(1).permute(0, 3, 1, 2)
        torch.testing.assert_close(maps, plain.forward_map(video(*size)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("rate", "left"), [(0.7, 23), (0.5, 16)])
def test_tokens_that_stay_have_their_places(rate: float, left: int) -> None:
    m = model(keep_rate=rate)
    x, places = m.forward_tokens(video())
    assert x.shape == (2, left, 32)  # 64, 45, 32, 23; 64, 32, 16, and never fewer
    assert (places[:, :16] == torch.arange(32, 48)).all()
    assert all(len(set(row)) == len(row) for row in places.tolist())


@torch.no_grad()
def test_guesses_are_boxes_in_the_frame_for_frames_of_any_shape() -> None:
    found = model(keep_rate=0.7)(video(32, 56))
    assert found.first_box.shape == (2, 28, 4) and found.box.shape == (2, 6, 4)
    assert found.actions.shape == (2, 6, 3)
    for box in (found.first_box, found.box):
        assert (box >= 0).all() and (box <= 1).all() and (box[..., 2:] > box[..., :2]).all()
    assert model(queries=100)(video()).box.shape == (2, 16, 4)  # as many as the key frame has tokens


def test_an_extended_box_is_cut_at_the_frame() -> None:
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 1.0, 1.0]])
    expected = torch.tensor([[4.8, 6.4, 27.2, 25.6], [0, 0, 32, 32]])
    torch.testing.assert_close(widened(boxes, CONFIG.grid), expected)


def test_generalised_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    b = torch.tensor([[1.0, 1, 3, 3], [0, 0, 1, 1], [2, 0, 3, 1], [0, 0, 0, 0]])
    # 1/7 - 2/9; equal; apart by one: 0 - 1/3; two points are not NaN.
    torch.testing.assert_close(generalised_iou(a, b), torch.tensor([1 / 7 - 2 / 9, 1.0, -1 / 3, 0.0]))


def test_guesses_are_given_to_boxes_at_the_least_cost() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        low = torch.rand(2, 4, 2, generator=g) * 0.6
        boxes = torch.cat((low, low + 0.1 + 0.3 * torch.rand(2, 4, 2, generator=g)), 2)
        corner = torch.rand(5, 2, generator=g) * 0.6
        true = torch.cat((corner, corner + 0.2), 1)
        person, clips = torch.randn(2, 4, generator=g), torch.tensor([0, 1, 0, 0, 1])
        clip, guess, row = assign(person, boxes, true, clips)
        assert sorted(row.tolist()) == list(range(5)) and torch.equal(clip, clips[row])

        def cost(k: int, q: int, person=person, boxes=boxes, true=true, clips=clips) -> float:  # type: ignore[no-untyped-def]
            own = boxes[clips[k], q]
            edges, overlap = (own - true[k]).abs().sum(), generalised_iou(own, true[k])
            return float(5 * edges - 2 * overlap - 2 * person[clips[k], q].sigmoid())

        for c in (0, 1):
            mine = [k for k in range(5) if clips[k] == c]
            best = min(
                sum(cost(k, q) for k, q in zip(mine, order, strict=True))
                for order in itertools.permutations(range(4), len(mine))
            )
            got = sum(cost(int(k), int(q)) for i, q, k in zip(clip, guess, row, strict=True) if i == c)
            assert got == pytest.approx(best, abs=1e-5)


def test_more_people_than_guesses_and_none_at_all() -> None:
    person, boxes = torch.zeros(1, 1), torch.tensor([[[0.1, 0.1, 0.4, 0.4]]])
    true = torch.tensor([[0.6, 0.6, 0.9, 0.9], [0.1, 0.1, 0.4, 0.5]])
    _, guess, row = assign(person, boxes, true, torch.tensor([0, 0]))
    assert guess.tolist() == [0] and row.tolist() == [1]
    actions, targets = torch.zeros(1, 1, 3), torch.zeros(0, 3)
    none = matched_loss(person, boxes, true[:0], torch.zeros(0, dtype=torch.int64), actions, targets)
    # Of nobody: focal loss of one wrong half, times 2.
    assert none.item() == pytest.approx(2 * 0.75 * 0.25 * F.softplus(torch.tensor(0.0)).item())


def test_a_perfect_guess_costs_least_and_every_weight_has_a_gradient() -> None:
    true, clips = torch.tensor([[0.1, 0.1, 0.4, 0.5]]), torch.tensor([0])
    sure = torch.tensor([[12.0, -12.0]])
    boxes = torch.stack((true[0], torch.tensor([0.5, 0.5, 0.9, 0.9])))[None]
    actions, targets = torch.tensor([[[12.0, -12], [0, 0]]]), torch.tensor([[1.0, 0]])
    assert matched_loss(sure, boxes, true, clips, actions, targets).item() < 1e-3
    m = model(keep_rate=0.7).train()
    for k in (1, 0):
        m.zero_grad()
        end_to_end_loss(m(video()), true[:k], clips[:k], torch.ones(k, 3)).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in m.parameters())


def test_it_is_kept_and_read_with_its_rate(tmp_path: Path) -> None:
    m = model(keep_rate=0.5, key_weight=4.0)
    save_model(tmp_path / "model", m)
    again, _ = load_model(tmp_path / "model")
    assert isinstance(again, EndToEndDetector) and again.config == m.config
    with torch.no_grad():
        for a, b in zip(m(video()), again.eval()(video()), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "change",
    [{"keep_rate": 0.0}, {"keep_rate": 1.1}, {"key_weight": -1.0}, {"queries": 0}, {"context_depth": 0}],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)  # type: ignore[arg-type]
