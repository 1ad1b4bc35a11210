"""One tree of frozen dataclasses from recipe to checkpoint to MLflow parameters."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmae.core.config import from_dict, to_dict
from vmae.core.errors import InputError, nearest
from vmae.core.files import write_text
from vmae.core.measure.monitors import MonitorConfig
from vmae.core.measure.probe import ProbeConfig
from vmae.core.model.masking import MaskConfig
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.train.config import TrainConfig
from vmae.core.train.detect import DetectConfig
from vmae.core.train.finetune import FinetuneConfig
from vmae.core.train.localise import LocaliseConfig
from vmae.core.train.optim import OptimConfig
from vmae.core.video.config import DataConfig
from vmae.experiments import stages
from vmae.experiments.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What follows pre-training in a sweep's trial; the last stage ranks the trials."""

    then: tuple[str, ...] = ("probe",)
    """In this order. probe: as the probe section says; knn: nearest neighbours on the same features;
    finetune: a classifier trained end to end (finetune section, with the optimiser and loop below), then
    measured over `data.segments x data.crops` views of each held-out video; detection: a detector trained end
    to end on key frames (detect section, the same optimiser and loop); localise: a head on windowed features
    of untrimmed videos (localise section); `module:object`: a stage of your own."""
    measure_every: int = 0
    """Epochs between measurements of `pretrain/knn_top1` during pre-training; 0: none."""
    probe_at: int = 0
    """Epoch of pre-training after which the probe section's read-out is made too (`pretrain/probe_top1`); 0:
    none. `vmae sweep --equal` takes the length of the shortest trial: all are compared there as well."""
    finetune_optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            base_lr=5e-4, min_lr=1e-6, betas=(0.9, 0.999), warmup_epochs=5.0, layer_decay=0.75
        )
    )
    """Defaults: VideoMAE's fine-tuning script for ViT-B on Kinetics-400."""
    finetune_train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=75, batch_size=384))
    """Its seed is the trial's."""
    finetune_share: float = 1.0
    """Share of the training list whose labels the fine-tuning has (of every class alike). Fewer are gone
    through more often: epochs and warm-up are divided by it, so that the steps stay the same."""
    scratch: bool = False
    """Whether a trial leaves the pre-training out: what follows starts from random weights."""

    def __post_init__(self) -> None:
        if not 0 < self.finetune_share <= 1:
            raise InputError(
                f"pipeline.finetune_share: expected a share in (0, 1], got {self.finetune_share}"
            )
        if not self.then or len(set(self.then)) != len(self.then):
            raise InputError(
                f"pipeline.then: expected one or more different stages, got {', '.join(self.then) or 'none'}"
            )
        for name in self.then:
            stages.check_name(name)
        sharing = [name for name, stage in stages.STAGES.items() if stage.takes_share]
        if self.finetune_share < 1 and not set(sharing) & set(self.then):
            raise InputError(
                f"pipeline.finetune_share: expected {' or '.join(sharing)} among the stages (--then), got "
                f"{', '.join(self.then)}"
            )
        for field_name in ("measure_every", "probe_at"):
            if getattr(self, field_name) < 0:
                got = getattr(self, field_name)
                raise InputError(f"pipeline.{field_name}: expected 0 or more, got {got}")

    @property
    def metric(self) -> str:
        """What ranks trials: the last stage's first metric. Raises InputError without such a stage."""
        return stages.get(self.then[-1]).metric.name


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that decides a run's numbers. The same configuration and seed give the same numbers."""

    name: str = "pretrain"
    """What the run is called in lists."""
    recipe: str = ""
    """The named recipe it started from, if any."""
    job: str = stages.JOBS[0]
    """The stage that it trains by itself, for which the optimiser, the loop and the data section are."""
    init: str = ""
    """Weights to start from: a path, a name of `vmae zoo list`, or hf://org/name. Empty: fresh weights."""
    resize_patch_embed: bool = False
    """Resample the patch weights of `init` where `model` has another patch or tubelet size; refused else."""
    model: VideoMAEConfig = field(default_factory=lambda: VideoMAEConfig.from_size("tiny"))
    mask: MaskConfig = field(default_factory=MaskConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(frames=8, size=(64, 64), short_side=64))
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    localise: LocaliseConfig = field(default_factory=LocaliseConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    evaluation_ratio: float = 0.75
    """Mask ratio (tube) at which reconstruction error is measured, the same for every run, so that runs
    trained at different ratios can be compared."""
    evaluation_every: int | None = None
    """Epochs of pre-training between measurements of that error; none: about ten times in a run; 0: only
    after the last epoch."""
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.data.frames != self.model.frames:
            raise InputError(
                f"expected data.frames = model.frames, got {self.data.frames} and {self.model.frames}"
            )
        if self.data.size != (self.model.height, self.model.width):
            raise InputError(
                f"expected data.size = model.height, model.width; got {self.data.size} and "
                f"{(self.model.height, self.model.width)}"
            )
        if self.data.channels != self.model.channels:
            raise InputError(
                f"expected data.channels = model.channels, got {self.data.channels} and {self.model.channels}"
            )
        if self.job not in stages.JOBS:
            raise InputError(
                f"job: expected one of {', '.join(stages.JOBS)}, got '{self.job}'"
                f"{nearest(self.job, stages.JOBS)}"
            )
        if self.evaluation_every is not None and self.evaluation_every < 0:
            raise InputError(f"evaluation_every: expected 0 or more or none, got {self.evaluation_every}")
        if self.data.more_lists and stages.STAGES[self.job].labels:
            raise InputError(
                "data.more_lists: expected one list where labels are learnt, got several (--data given more "
                "than once): their labels mean different classes"
            )
        stages.STAGES[self.job].check(self)

    def with_size(self, size: str) -> ExperimentConfig:
        """The same experiment with a model of another named size, on the same clips and tubelets."""
        old = self.model
        keep = ["frames", "height", "width", "channels", "patch_size", "tubelet_size"]
        keep += ["mean", "std", "background", "target", "loss"]
        model = VideoMAEConfig.from_size(size, **{k: getattr(old, k) for k in keep})
        return replace(self, model=model)

    def save(self, path: Path) -> None:
        """Write as YAML; `load` reads it back to an equal configuration."""
        import yaml

        write_text(path, yaml.safe_dump(to_dict(self), sort_keys=False), durable=True)

    @classmethod
    def load(cls, path: Path) -> ExperimentConfig:
        """Read a YAML (or JSON) file; InputError for a missing file, a syntax error or an unknown key."""
        import yaml

        try:
            data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise InputError(f"--config: expected a readable file, got {path} ({e.strerror})") from e
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise InputError(f"--config: expected YAML, got {path}: {str(e).splitlines()[0]}") from e
        config: ExperimentConfig = from_dict(cls, data)
        return config
