"""Temporal localisation: a small head on the frozen features of untrimmed videos, by average mAP."""

from __future__ import annotations

from vmae.experiments.stages.stage import SHARE, Config, Context, Metric, Numbers, Stage

AVERAGE_MAP = Metric(
    name="localise/average_map",
    title="average mAP at tIoU 0.3:0.7",
    column="average mAP",
    unit=SHARE,
    score=True,
    where="on held-out videos",
    chance="localise/chance",
)


def ready(config: Config) -> None:
    """Raise InputError where no untrimmed videos and annotations are named, or they cannot be read."""
    from vmae.core.errors import InputError
    from vmae.core.video.listing import list_videos
    from vmae.core.video.untrimmed import read_untrimmed

    for name in ("annotations", "videos"):
        if not getattr(config.localise, name):
            raise InputError(f"localise.{name}: expected a path for the stage {STAGE.name}, got none")
    read_untrimmed(config.localise.annotations)
    list_videos(config.localise.videos)


def run(context: Context) -> Numbers:
    """Features of every untrimmed video, then a head on them. VideoError for one that cannot be read."""
    from dataclasses import replace

    from vmae.core.measure.localised import localise_set, read_subsets
    from vmae.core.measure.windowed import window_features
    from vmae.core.numerics import derive_seed
    from vmae.core.train.localise import FeatureVideo
    from vmae.core.video.listing import list_videos, video_ids
    from vmae.core.video.probe_store import cached_info
    from vmae.core.video.untrimmed import UntrimmedVideo, read_untrimmed
    from vmae.core.video.windows import WindowConfig

    config, model = context.config, context.model()
    assert model is not None
    settings = replace(config.localise, seed=derive_seed(config.train.seed, STAGE.name))
    c = model.config
    windows = WindowConfig(
        frames=c.frames, window=settings.window, stride=settings.stride, size=(c.height, c.width)
    )
    known, paths = read_untrimmed(settings.annotations), video_ids(list_videos(settings.videos))
    done = 0

    def features(video: UntrimmedVideo) -> FeatureVideo | None:
        nonlocal done
        if video.name not in paths:
            return None
        info = cached_info(paths[video.name])
        found = window_features(
            model,
            paths[video.name],
            windows,
            device=context.device,
            precision=config.train.precision,
            info=info,
        )
        done += 1
        context.watch.part(min(0.8, 0.8 * done / len(known.videos)))
        return FeatureVideo(
            name=video.name,
            features=found,
            fps=video.fps or info.fps,
            duration_s=video.duration_s or info.duration_s,
            segments=video.segments,
            labels=video.labels,
        )

    subsets = read_subsets(known, features, settings)
    found = localise_set(known, subsets, settings, context.home.evaluation.path, device=context.device)
    return {f"{STAGE.name}/{k}": v for k, v in found.numbers().items()}


STAGE = Stage(
    name="localise",
    metrics=(
        AVERAGE_MAP,
        Metric(name="localise/chance", title="average mAP of random classes and scores", unit=SHARE),
        *(
            Metric(
                name=f"localise/map_{t:g}", title=f"mAP at tIoU {t:g}", unit=SHARE, where=AVERAGE_MAP.where
            )
            for t in (0.3, 0.4, 0.5, 0.6, 0.7)
        ),
    ),
    share=lambda config: 0.3 * config.train.epochs,
    ready=ready,
    run=run,
)
