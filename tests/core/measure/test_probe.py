"""Probes: right on separable features, at chance on noise, and never chosen by the test list."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vmae.core.errors import InputError, VideoError
from vmae.core.measure.attentive import (
    AttentiveHeads,
    attentive_logits,
    fit_attentive,
    rungs_of,
    select_attentive,
)
from vmae.core.measure.low_shot import low_shot
from vmae.core.measure.probe import (
    Features,
    ProbeConfig,
    attentive_probe,
    evaluation_loss,
    extract_features,
    folds_of,
    probe,
    train_linear,
)
from vmae.core.model.masking import MaskConfig
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.numerics import make_generator
from vmae.core.video.annotations import read_annotations
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.samples import Sample

CONFIG = ProbeConfig(epochs=30, lrs=(0.03, 0.3), weight_decays=(0.0, 1e-3))


def features(signal: float, n: int = 120, seed: int = 0, tokens: int = 0) -> Features:
    """Four classes around random centres, `signal` apart, in unit noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    centres = torch.randn(4, 16, generator=torch.Generator().manual_seed(99)) * signal
    x = centres[labels] + torch.randn(n, 16, generator=g)
    if tokens:
        # Only the last token carries the class.
        x = torch.cat([torch.randn(n, tokens - 1, 16, generator=g), x[:, None]], 1)
    return Features(x, labels, [str(i) for i in range(n)])


@pytest.mark.parametrize("kind", ["linear", "knn", "attentive"])
def test_separable_features_are_read_out_and_noise_is_not(kind: str) -> None:
    # Attention has to find the one token that tells first: more rounds.
    config = replace(CONFIG, kind=kind, epochs=90 if kind == "attentive" else CONFIG.epochs, batch_size=64)
    tokens = 3 if kind == "attentive" else 0
    good = probe(features(3.0, tokens=tokens), features(3.0, seed=1, tokens=tokens), config)
    noise = probe(features(0.0, tokens=tokens), features(0.0, seed=1, tokens=tokens), config)
    assert good.kind == kind and good.chance == 0.25
    floor = 0.7 if kind == "attentive" else 0.9
    assert good.top1 > floor and good.mean_class > floor and good.top5 == 1.0
    assert noise.top1 < 0.4 and noise.selection_top1 < 0.45


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_the_test_list_chooses_nothing(kind: str) -> None:
    train, test = features(1.0), features(1.0, seed=1)
    other = Features(torch.randn_like(test.x), test.labels.flip(0), test.paths)
    a, b = (probe(train, t, replace(CONFIG, kind=kind)) for t in (test, other))
    assert a.chosen == b.chosen and a.selection_top1 == b.selection_top1


def test_models_trained_at_once_equal_ones_trained_alone_by_torch() -> None:
    f = features(1.0, n=40)
    config = replace(CONFIG, epochs=5, batch_size=16)
    x = f.x / 4
    keep = torch.ones(3, 40)
    keep[2, ::2] = 0
    settings = [(0.01, 0.0), (0.1, 1e-2), (0.1, 1e-2)]
    weight, bias = train_linear(x, F.one_hot(f.labels, 4).float(), keep, settings=settings, config=config)
    for g, (lr, wd) in enumerate(settings):
        layer = torch.nn.Linear(16, 4)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(
            [{"params": [layer.weight], "weight_decay": wd}, {"params": [layer.bias]}], lr=1.0, momentum=0.9
        )
        generator, step, steps = make_generator(config.seed, "linear"), 0, 5 * 3
        for _ in range(5):
            for index in torch.randperm(40, generator=generator).split(16):
                factor = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)))
                losses = F.cross_entropy(layer(x[index]), f.labels[index], reduction="none")
                optimizer.zero_grad()
                ((losses * keep[g, index]).sum() / keep[g, index].sum()).backward()
                for group in optimizer.param_groups:
                    group["lr"] = float(lr * 16**0.5 * factor)
                optimizer.step()
                step += 1
        assert torch.allclose(weight[g], layer.weight.T, atol=1e-5)
        assert torch.allclose(bias[g], layer.bias, atol=1e-5)


def test_knn_equals_a_plain_computation() -> None:
    train, test = features(1.0, n=30), features(1.0, n=20, seed=1)
    result = probe(train, test, replace(CONFIG, kind="knn", neighbours=(3,)))
    centre = train.x.mean(0)
    for i in range(20):
        similarity = F.cosine_similarity((test.x[i] - centre)[None], train.x - centre)
        votes = torch.zeros(4)
        for j in similarity.argsort(descending=True)[:3].tolist():
            votes[train.labels[j]] += torch.exp(similarity[j] / 0.07)
        assert int(result.predictions[i]) == int(votes.argmax())


def test_folds_spread_every_class_evenly() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 15)
    fold = folds_of(labels, 5, 0)
    for label, each in ((0, 2), (1, 1), (2, 3)):
        assert torch.bincount(fold[labels == label], minlength=5).tolist() == [each] * 5
    assert torch.equal(fold, folds_of(labels, 5, 0)) and not torch.equal(fold, folds_of(labels, 5, 1))


@pytest.fixture
def clips(tiny_videos: Path) -> ClipDataset:
    data = DataConfig(frames=4, sampling_rate=1, size=(32, 32), short_side=32, workers=0)
    return ClipDataset(read_annotations(tiny_videos / "train.csv"), data, "val")


@pytest.fixture
def videomae() -> VideoMAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VideoMAE(
            VideoMAEConfig(
                frames=4, height=32, width=32, patch_size=8, embed_dim=32, depth=1, num_heads=2,
                decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
            )
        )  # fmt: skip


def test_pooled_features_are_means_of_the_tokens(clips: ClipDataset, videomae: VideoMAE) -> None:
    tokens = extract_features(videomae, clips, pooling="tokens", batch_size=5)
    mean = extract_features(videomae, clips, pooling="mean", batch_size=7)
    slots = extract_features(videomae, clips, pooling="time")
    assert tokens.x.shape == (24, 32, 32) and tokens.x.dtype == torch.float16
    assert torch.allclose(mean.x, tokens.x.float().mean(1), atol=2e-3)
    # 2 time slots of 4x4 tokens, side by side.
    assert torch.allclose(slots.x, tokens.x.float().reshape(24, 2, 16, 32).mean(2).flatten(1), atol=4e-3)
    assert mean.labels.tolist() == [s.label for s in clips.samples]
    assert videomae.training, "the mode was not put back"


def test_the_evaluation_loss_has_the_same_masks_for_all(clips: ClipDataset, videomae: VideoMAE) -> None:
    mask = MaskConfig(ratio=0.75)
    one = evaluation_loss(videomae, clips, mask, batch_size=1)
    assert evaluation_loss(videomae, clips, mask, batch_size=9) == pytest.approx(one, rel=1e-5)
    assert evaluation_loss(videomae, clips, mask, seed=1) != pytest.approx(one, rel=1e-5)
    assert evaluation_loss(videomae, clips, MaskConfig(ratio=0.5)) != pytest.approx(one, rel=1e-5)


def test_too_few_clips_and_strange_labels_are_refused() -> None:
    few = features(1.0, n=4)
    with pytest.raises(InputError, match=r"at least 5 training clips \(folds\); got 4"):
        probe(few, few, CONFIG)
    with pytest.raises(InputError, match="expected labels 0 to 1; got 3"):
        probe(features(1.0), features(1.0), CONFIG, num_classes=2)
    with pytest.raises(InputError, match="token features"):
        probe(features(1.0), features(1.0), replace(CONFIG, kind="attentive"))


@pytest.mark.parametrize(("field", "value"), [("lrs", ()), ("folds", 1), ("epochs", 0)])
def test_bad_values_are_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"probe\.{field}"):
        ProbeConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["linear", "knn", "attentive"])
def test_clips_that_could_not_be_read_count_as_wrong(kind: str) -> None:
    config = replace(CONFIG, kind=kind, lrs=(0.1,), weight_decays=(0.0,))
    tokens = 2 if kind == "attentive" else 0
    train, test = features(2.0, tokens=tokens), features(2.0, n=40, seed=1, tokens=tokens)
    whole = probe(train, test, config)
    # Ten more of class 1, which has ten that were read.
    partly = probe(train, replace(test, unread=torch.ones(10, dtype=torch.int64)), config)
    assert torch.equal(whole.predictions, partly.predictions)
    right = whole.predictions == test.labels
    assert right.any() and partly.top1 == pytest.approx(float(right.sum()) / 50)
    assert partly.top5 == pytest.approx(40 / 50)
    own = float(right[test.labels == 1].sum())
    assert partly.mean_class == pytest.approx(whole.mean_class + (own / 20 - own / 10) / 4, abs=1e-6)
    assert (whole.unreadable, partly.unreadable) == (0, 10)
    with pytest.raises(InputError, match="expected labels 0 to 3; got 7"):
        probe(train, replace(test, unread=torch.tensor([7])), config, num_classes=4)


def test_what_an_unreadable_file_does_to_features(
    clips: ClipDataset, videomae: VideoMAE, tmp_path: Path
) -> None:
    """Held out it stops or is counted; of a training list it is left out, up to the share training has."""
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    samples = [*clips.samples[:5], Sample(path=str(bad), label=3), *clips.samples[5:]]
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        extract_features(videomae, ClipDataset(samples, clips.config, "val"))
    counted = ClipDataset(samples, replace(clips.config, bad_eval="count"), "val")
    left_out = ClipDataset(samples, replace(clips.config, max_bad_share=0.1), "val", leave_out=True)
    for dataset in (counted, left_out):
        failed: list[dict[str, object]] = []
        found = extract_features(videomae, dataset, failed=failed)
        assert found.labels.tolist() == [s.label for s in clips.samples] and found.unread.tolist() == [3]
        assert [(f["index"], f["path"]) for f in failed] == [(5, str(bad))]
    few = ClipDataset(samples, replace(clips.config, max_bad_share=0.01), "val", leave_out=True)
    with pytest.raises(VideoError, match="too_many_bad_files: 1 of 25"):
        extract_features(videomae, few)


def test_all_settings_at_once_are_each_alone() -> None:
    """The models share batches and nothing else, at every depth."""
    data = features(2.0, tokens=3)
    settings = [(0.003, 0.0), (0.001, 0.1), (0.01, 0.01)]
    for depth in (1, 2):
        how = {"num_classes": 4, "depth": depth, "epochs": 2, "batch_size": 50, "seed": 3}
        together = attentive_logits(fit_attentive(data.x, data.labels, settings, **how), data.x, 64)
        for k, setting in enumerate(settings):
            alone = attentive_logits(fit_attentive(data.x, data.labels, [setting], **how), data.x, 64)
            assert torch.allclose(together[k], alone[0], atol=2e-4), (depth, k)
        assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_one_setting_trains_as_torchs_adamw_does() -> None:
    # Classes of unequal size: of equal ones the biases' gradients are 0, and Adam makes steps of noise.
    data = features(2.0, n=40, tokens=3).rows(torch.arange(0, 40, 3))
    fitted, mean, std = fit_attentive(
        data.x, data.labels, [(0.01, 0.1)], num_classes=4, depth=1, epochs=3, batch_size=40, seed=0
    )
    model = AttentiveHeads(1, 16, 4, depth=1, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):  # one batch an epoch, whose order does not matter
        optimizer.zero_grad()
        F.cross_entropy(model((data.x - mean) / std)[0], data.labels).backward()
        optimizer.step()
        schedule.step()
    for ours, theirs in zip(fitted.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_depth_1_is_attention_with_one_query() -> None:
    """The folded form against keys, values and softmax written out."""
    model = AttentiveHeads(2, 32, 3, depth=1, seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) * 0.2)
    x = torch.randn(4, 5, 32)
    logits = model(x)
    h = model.num_heads
    for g in range(2):
        k = (x @ model.key[g]).reshape(4, 5, h, -1).transpose(1, 2)
        v = (x @ model.value[g]).reshape(4, 5, h, -1).transpose(1, 2)
        q = model.query[g].reshape(1, h, 1, -1).expand(4, -1, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v).reshape(4, 32)
        out = F.layer_norm(out, (32,)) * model.norm[g] + model.norm_bias[g]
        assert torch.allclose(out @ model.head[g] + model.bias[g], logits[g], atol=1e-4)


def test_views_of_a_video_are_averaged() -> None:
    train, test = features(2.0), features(2.0, seed=1)
    twice = replace(test, x=test.x.repeat_interleave(2, 0), views=2)
    config = replace(CONFIG, kind="linear")
    once, both = probe(train, test, config), probe(train, twice, config)
    assert both.top1 == once.top1 and torch.equal(both.predictions, once.predictions)
    noisy = torch.stack((test.x, test.x + 3 * torch.randn(test.x.shape)), 1).flatten(0, 1)
    assert probe(train, replace(test, x=noisy, views=2), config).predictions.shape == (120,)


def test_fewer_labels_tell_less_and_each_seed_draws_its_own() -> None:
    train, test = features(0.7, n=400), features(0.7, seed=1)
    rows = low_shot(train, test, replace(CONFIG, kind="linear"), 4, shares=(0.01, 0.1, 1.0), seeds=3)
    assert [r.videos for r in rows] == [4, 40, 400]
    assert rows[0].top1 < rows[1].top1 < rows[2].top1
    assert len({r.top1 for r in rows[0].results}) > 1 and rows[0].deviation > 0
    with pytest.raises(InputError, match=r"expected shares in \(0, 1\], got 2"):
        low_shot(train, test, CONFIG, 4, shares=(2.0,))


@pytest.mark.parametrize("settings", [2, 4, 5, 12, 40])
def test_a_choice_among_deep_probes_costs_one_probe(settings: int) -> None:
    rungs = rungs_of(settings, 2)
    assert rungs[0].settings == settings
    assert sum(r.settings * r.share for r in rungs) == pytest.approx(1)
    assert len({round(r.settings * r.share, 9) for r in rungs}) == 1
    assert [r.settings for r in rungs] == sorted({r.settings for r in rungs}, reverse=True)
    assert rungs_of(settings, 1) == ((settings, 0.2),)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_setting_that_learns_is_chosen(depth: int) -> None:
    """Of a rate that moves nothing, one that learns and one that blows up; equal ones: the first."""
    data = features(1.0, n=200, tokens=3)
    inside = torch.arange(200) % 5 != 0
    rates = [1e-9, 0.003, 3.0, 1e-9, 1e-8, 30.0, 0.003]
    how = {"num_classes": 4, "depth": depth, "epochs": 60, "batch_size": 50, "seed": 0}

    def score(logits: torch.Tensor, labels: torch.Tensor) -> float:
        return float((logits.argmax(1) == labels).float().mean())

    best, top1 = select_attentive(data.x, data.labels, inside, [(r, 0.0) for r in rates], score, **how)
    assert best == 1 and top1 > 0.5
    only, unknown = select_attentive(data.x, data.labels, inside, [(0.1, 0.0)], score, **how)
    assert only == 0 and math.isnan(unknown)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_probe_of_twelve_settings_takes_at_most_twice_one_of_a_setting(depth: int) -> None:
    """With the choice among them, small tokens; the best of three, in processor time."""
    data = features(2.0, n=200, tokens=25)
    train = replace(data, x=torch.cat([data.x] * 8, 2).half())  # [200, 25, 128]
    many = replace(
        CONFIG, kind="attentive", depth=depth, lrs=(0.01, 0.03, 0.1, 0.3), epochs=24, batch_size=32
    )
    many = replace(many, weight_decays=(0.0, 1e-3, 1e-2))
    few = replace(many, lrs=(0.1,), weight_decays=(0.0,))
    times: dict[int, list[float]] = {1: [], 12: []}
    for _ in range(3):
        for count, config in ((1, few), (12, many)):
            start = time.process_time()
            attentive_probe(train, train.rows(torch.arange(20)), config, 4)
            times[count].append(time.process_time() - start)
    one, twelve = min(times[1]), min(times[12])
    print(f"depth {depth}: one setting {one:.2f} s, twelve {twelve:.2f} s, {twelve / one:.2f}x")
    assert twelve <= 2 * one
