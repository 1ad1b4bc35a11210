"""What a sweep varies, which trials it makes, when they stop early and how they compare: without Ray."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from vmae.core.config import override, parse_assignments, to_dict
from vmae.core.errors import InputError
from vmae.core.files import write_json
from vmae.core.model.videomae import VideoMAE
from vmae.core.plan import forward_flops, training_flops
from vmae.core.video.samples import Sample, subset
from vmae.core.weights.checkpoint import save_model
from vmae.experiments import recipes
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunsDir, SweepDir
from vmae.experiments.stages import STAGES
from vmae.experiments.sweeps import definitions
from vmae.experiments.sweeps.compare import compare, difference
from vmae.experiments.sweeps.equal import step_cost
from vmae.experiments.sweeps.resources import Resources, parse_stage_resources
from vmae.experiments.sweeps.search import next_setting
from vmae.experiments.sweeps.space import Param, draw_samples, parse_params
from vmae.experiments.sweeps.spec import Plan, Trial, make_plan
from vmae.experiments.sweeps.status import DONE, TrialState, groups
from vmae.experiments.sweeps.stopping import KNN, StoppingConfig, check_stopping, donor, perturbed, verdict
from vmae.experiments.sweeps.trial import run_trial
from vmae.experiments.tracking import store_at

BASE = recipes.get("demo_pretrain")


def _plan(*texts: str, base: ExperimentConfig = BASE, **options: Any) -> Plan:
    params = parse_params(texts, base)
    return make_plan(
        name="s-1",
        sweep="custom",
        title="t",
        params=params,
        metric=base.pipeline.metric,
        base=base,
        **options,
    )


def test_values_are_read_by_their_fields_types() -> None:
    ratio, depth, betas = parse_params(
        ["mask.ratio=0.5,0.75", "model.decoder_depth=1, 2", "optim.betas=[0.9,0.95],[0.9,0.999]"], BASE
    )
    assert ratio == Param(path="mask.ratio", choices=(0.5, 0.75))
    assert [type(v) for v in depth.choices] == [int, int]
    assert betas.choices == ([0.9, 0.95], [0.9, 0.999])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mask.rato=0.5", "did you mean 'mask.ratio'"),
        ("mask.ratio", "expected PATH=V1,V2"),
        ("mask.ratio=0.5,high", "expected a number, got 'high'"),
        ("mask.ratio=0.5,0.5", "expected different values"),
        ("mask.ratio=uniform(0.5,2)", "does not fit the field"),
        ("model.depth=uniform(1,4)", "expected an integer"),
        ("model.depth=randint(1.5,4)", "expected whole numbers"),
        ("optim.base_lr=loguniform(0,1)", "expected loguniform bounds above 0"),
        ("optim.base_lr=uniform(2,1)", "LOW < HIGH"),
        ("optim.base_lr=normal(0,1)", "expected one of uniform, loguniform, randint, choice"),
        ("train.seed=1,2", "use --seeds"),
        ("pipeline.then=[probe],[knn]", "expected a field that a sweep can vary"),
    ],
)
def test_a_bad_param_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_params([text], BASE)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_draws_are_seeded_different_and_inside() -> None:
    params = parse_params(["optim.base_lr=loguniform(1e-5,1e-3)", "model.decoder_depth=randint(1,3)"], BASE)
    draws = draw_samples(params, 30, seed=4)
    assert draws == draw_samples(params, 30, seed=4)
    assert draws != draw_samples(params, 30, seed=5)
    assert len({str(d) for d in draws}) == 30
    assert all(1e-5 <= d["optim.base_lr"] <= 1e-3 for d in draws)
    assert {d["model.decoder_depth"] for d in draws} == {1, 2, 3}
    # Half of a log-uniform draw lies below the geometric mean.
    assert 8 <= sum(d["optim.base_lr"] < 1e-4 for d in draws) <= 22


def test_fewer_draws_where_there_are_not_so_many() -> None:
    (param,) = parse_params(["mask.type=choice(tube,random)"], BASE)
    assert len(draw_samples([param], 10, seed=0)) == 2


def test_a_grid_times_draws_for_every_seed_after_a_baseline() -> None:
    plan = _plan("mask.ratio=0.5,0.75", "optim.base_lr=loguniform(1e-5,1e-3)", samples=3, seeds=2)
    assert len(plan.trials) == 2 * (1 + 2 * 3)
    assert len({t.id for t in plan.trials}) == len(plan.trials)
    assert [t.seed for t in plan.trials] == [0] * 7 + [1] * 7
    assert [t.baseline for t in plan.trials].count(True) == 2
    assert [len(s) for s in plan.settings()] == [2] * 6
    assert plan.search == "random"
    config = plan.trials[-1].config(BASE)
    assert config.optim.base_lr == plan.trials[-1].overrides["optim.base_lr"]
    assert config.train.seed == 1


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = _plan(
        "optim.base_lr=loguniform(1e-5,1e-3)", samples=2, stopping=StoppingConfig(rule="median"), budget_s=9.0
    )
    plan.save(SweepDir(tmp_path))
    assert Plan.load(SweepDir(tmp_path)) == plan


def test_a_name_taken_again_is_another_sweep_and_a_resumed_one_the_same(tmp_path: Path) -> None:
    sweep = RunsDir(tmp_path).sweep("ratio-1")
    plan = _plan("mask.ratio=0.5,0.9")
    first = plan.begun(sweep)
    first.save(sweep)
    assert Plan.load(sweep).begun(sweep).key == first.key
    assert {first.trial_key(t).rpartition("/")[0] for t in first.trials} == {first.key}
    sweep.plan.unlink()
    assert plan.begun(sweep).key != first.key
    plan.save(sweep)  # as versions without identities did
    assert Plan.load(sweep).begun(sweep).key == f"sweep:{plan.name}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "--seeds"),
        ({"samples": 3}, "--samples"),
        ({"search": "random"}, "expected a distribution"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _plan("mask.ratio=0.5,0.75", **options)


def test_a_setting_the_model_refuses_is_refused_before_anything_runs() -> None:
    with pytest.raises(InputError):
        _plan("mask.ratio=0.5,0.001")


@pytest.mark.parametrize("path", ["mask.ratio", "data.sampling_rate", "model.target", "model.loss"])
def test_losses_of_different_tasks_are_never_compared(path: str) -> None:
    with pytest.raises(InputError, match=path):
        check_stopping(StoppingConfig(), ["optim.base_lr", path])
    check_stopping(StoppingConfig(metric=KNN), ["optim.base_lr", path])
    check_stopping(StoppingConfig(), ["optim.base_lr", "model.depth"])


def test_runs_of_different_lengths_are_not_stopped_early() -> None:
    with pytest.raises(InputError, match="one length"):
        check_stopping(StoppingConfig(metric=KNN), ["train.epochs"])


def test_pbt_only_varies_what_can_change_in_the_middle_of_a_run() -> None:
    check_stopping(StoppingConfig(rule="pbt"), ["optim.base_lr", "optim.weight_decay"])
    with pytest.raises(InputError, match=r"model\.depth"):
        check_stopping(StoppingConfig(rule="pbt"), ["optim.base_lr", "model.depth"])


def test_asha_keeps_the_best_third_at_each_rung() -> None:
    asha = StoppingConfig(rule="asha", grace=2, eta=3)
    others = {f"t{i}": [(2, float(i)), (6, float(i))] for i in range(8)}
    # With itself there are nine: three go on.
    assert verdict(asha, [(2, 6.5)], others) is None
    assert verdict(asha, [(2, 5.5)], others) is None
    assert verdict(asha, [(2, 4.5)], others) is not None
    # Between rungs nothing is decided; the first to arrive always goes on.
    assert verdict(asha, [(3, -1.0)], others) is None
    assert verdict(asha, [(2, -1.0)], {}) is None
    assert verdict(asha, [(2, 9.0), (6, 0.5)], others) is not None


def test_median_stopping_needs_three_others_and_stops_the_worse_half() -> None:
    median = StoppingConfig(rule="median", grace=2)
    others = {f"t{i}": [(1, float(i)), (2, float(i))] for i in range(3)}
    assert verdict(median, [(1, -1.0)], others) is None
    assert verdict(median, [(1, -1.0), (2, 0.5)], others) is not None
    assert verdict(median, [(1, 1.5), (2, 0.5)], others) is None
    assert verdict(median, [(2, -1.0)], {k: others[k] for k in ("t0", "t1")}) is None


def test_a_nan_loss_is_the_worst_score() -> None:
    assert StoppingConfig().score(math.nan) == -math.inf
    assert StoppingConfig().score(0.5) > StoppingConfig().score(0.6)


def test_pbt_copies_from_the_top_quarter_and_perturbs() -> None:
    pbt = StoppingConfig(rule="pbt", interval=2)
    others = {f"t{i}": [(2, float(i))] for i in range(1, 8)}
    assert donor(pbt, "t0", [(2, 0.0)], others) in ("t6", "t7")
    assert donor(pbt, "t0", [(1, 0.0)], others) is None
    assert donor(pbt, "t0", [(2, 5.5)], others) is None
    changed = perturbed({"optim.base_lr": 1e-3, "optim.optimizer": "adamw"}, "t0", 2)
    assert changed["optim.base_lr"] in (8e-4, 1.2e-3)
    assert changed["optim.optimizer"] == "adamw"
    assert changed == perturbed({"optim.base_lr": 1e-3, "optim.optimizer": "adamw"}, "t0", 2)


def _state(value: float | None, seed: int, top1: float) -> TrialState:
    overrides = {} if value is None else {"mask.ratio": value}
    trial = Trial(id=f"{value}_{seed}", overrides=overrides, seed=seed, baseline=value is None)
    return TrialState(trial=trial, status=DONE, metrics={"probe/top1": top1})


def test_differences_are_paired_by_seed() -> None:
    assert difference({(0, -1): 0.5, (1, -1): 0.7}, {(2, -1): 0.1}) is None
    paired = difference(
        {(0, -1): 0.5, (1, -1): 0.7, (2, -1): 0.9}, {(0, -1): 0.4, (1, -1): 0.6, (2, -1): 0.8}
    )
    assert paired is not None
    assert paired.mean == pytest.approx(0.1)
    assert paired.error == pytest.approx(0.0, abs=1e-12)  # the seeds differ, the pairs do not
    assert (paired.seeds, paired.higher) == (3, 3)
    folds = difference({(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.6}, {(0, 0): 0.4, (0, 1): 0.4, (1, 0): 0.4})
    assert (
        folds is not None and folds.seeds == 2 and folds.mean == pytest.approx(0.2)
    )  # each seed's folds first


def test_each_value_is_compared_with_the_best_and_the_best_with_the_second() -> None:
    states = [_state(v, s, a + s / 10) for v, a in ((0.5, 0.2), (0.75, 0.4), (None, 0.1)) for s in (0, 1)]
    found = compare(states, groups(states), "probe/top1")
    assert found["0.75"].rival == "0.5"
    assert found["0.5"].rival == "0.75"
    assert found["0.5"].to_rival is not None
    assert found["0.5"].to_rival.mean == pytest.approx(-0.2)
    assert found["0.75"].to_baseline is not None
    assert found["0.75"].to_baseline.mean == pytest.approx(0.3)
    assert found["random weights"].to_baseline is None


def test_a_smaller_share_of_the_list_lies_inside_a_larger_one() -> None:
    samples = [Sample(path=f"{i}.mp4", label=i % 5) for i in range(100)]
    tenth, third = subset(samples, 0.1, 7), subset(samples, 0.3, 7)
    assert (len(tenth), len(third)) == (10, 30)
    assert {s.path for s in tenth} < {s.path for s in third}
    assert {s.label for s in tenth} == set(range(5))
    assert subset(samples, 1.0, 7) == samples
    assert tenth != subset(samples, 0.1, 8)


def test_every_named_sweep_is_a_valid_plan_and_names_its_field() -> None:
    for name in definitions.ALL:
        d = definitions.get(name)
        base = override(BASE, parse_assignments([f"{k}={v}" for k, v in d.fixed.items()]))
        param = Param(path=d.path, choices=d.values)
        plan = make_plan(
            name=name,
            sweep=name,
            title=d.title,
            params=[param],
            metric="probe/top1",
            base=base,
            brings=d.brings(base),
        )
        assert len(plan.trials) == 1 + len(d.values)
        assert len(d.doc.splitlines()[0]) > 20


def test_optuna_asks_the_same_after_a_restart_and_learns_from_results(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    plan = _plan("optim.base_lr=loguniform(1e-5,1e-1)", "mask.type=tube,random", search="optuna", samples=14)
    asked = []
    while (overrides := next_setting(plan, SweepDir(tmp_path))) is not None:
        assert overrides == next_setting(plan, SweepDir(tmp_path))
        plan = plan.with_setting(overrides)
        asked.append(overrides)
        # The nearer log10(lr) is to -3, the better.
        score = 1 - abs(math.log10(overrides["optim.base_lr"]) + 3) / 2
        result = {"metrics": {"probe/top1": score}}
        write_json(SweepDir(tmp_path).trial(plan.trials[-1].id).result, result)
    assert len(asked) == 14
    assert len({str(a) for a in asked}) == 14
    late = [abs(math.log10(a["optim.base_lr"]) + 3) for a in asked[-4:]]
    early = [abs(math.log10(a["optim.base_lr"]) + 3) for a in asked[:10]]
    assert sum(late) / 4 < sum(early) / 10


@pytest.fixture
def tiny(mini_data: Path, tmp_path: Path) -> ExperimentConfig:
    changes = {
        "model.height": 32,
        "model.width": 32,
        "model.embed_dim": 32,
        "model.depth": 2,
        "model.num_heads": 2,
        "model.decoder_embed_dim": 32,
        "model.decoder_depth": 1,
        "data.size": [32, 32],
        "data.short_side": 32,
        "data.sampling_rate": 2,
        "data.segments": 2,
        "data.crops": 1,
        "data.train_csv": str(mini_data / "train.csv"),
        "data.val_csv": str(mini_data / "val.csv"),
        "train.batch_size": 8,
        "train.epochs": 3,
        "train.picture_every": 0,
        "probe.epochs": 4,
        "probe.folds": 2,
        "pipeline.then": ["knn", "finetune"],
        "pipeline.measure_every": 1,
        "pipeline.finetune_train.batch_size": 8,
        "pipeline.finetune_train.epochs": 1,
    }
    return override(BASE, changes)


def test_a_trial_is_a_pipeline_whose_stages_are_kept(tiny: ExperimentConfig, tmp_path: Path) -> None:
    sweep = RunsDir(tmp_path).sweep("s-1")
    plan = _plan("data.train_share=0.5", base=tiny, baseline=False)
    plan.save(sweep)
    (trial,) = plan.trials
    seen: list[dict[str, float]] = []
    result = run_trial(sweep, trial.id, store_at(tmp_path), emit=seen.append)
    metrics = result["metrics"]
    for name in ("pretrain/loss", "pretrain/knn_top1", "eval/loss", "knn/top1", "finetune/top1"):
        assert name in metrics, sorted(metrics)
    assert plan.metric == "finetune/top1"
    # Half of 48 clips in batches of 8, three epochs: the share reaches pre-training alone.
    assert [s["pretrain/epoch"] for s in seen if "pretrain/epoch" in s] == [1, 2, 3]
    assert sorted(p.name for p in (sweep.trial(trial.id).stage("pretrain").checkpoints).iterdir())[
        -1
    ].endswith("0009")
    assert sorted(p.name for p in (sweep.trial(trial.id).stage("finetune").checkpoints).iterdir())[
        -1
    ].endswith("0006")
    # Run again without the last stage's result: only that stage is repeated, to the same numbers.
    home = sweep.trial(trial.id).path
    (home / "result.json").unlink()
    (home / "finetune.json").unlink()
    stamp = (home / "knn.json").stat().st_mtime_ns
    again = run_trial(sweep, trial.id, store_at(tmp_path))["metrics"]
    assert (home / "knn.json").stat().st_mtime_ns == stamp
    assert again["finetune/top1"] == metrics["finetune/top1"]
    assert again["knn/top1"] == metrics["knn/top1"]


def test_a_stopped_trial_has_a_result_without_the_ranking_metric(
    tiny: ExperimentConfig, tmp_path: Path
) -> None:
    sweep = RunsDir(tmp_path).sweep("s-1")
    base = override(tiny, {"pipeline.then": ["knn"]})
    plan = _plan("optim.base_lr=1e-3,2e-3", base=base, baseline=False, stopping=StoppingConfig())
    plan.save(sweep)
    loser, other = plan.trials
    # The other trial has been at the first rung with a loss that nothing beats.
    write_json(sweep.trial(other.id).history, [[1, 0.0]])
    result = run_trial(sweep, loser.id, store_at(tmp_path))
    assert "asha" in result["stopped"]
    assert "knn/top1" not in result["metrics"]
    assert run_trial(sweep, loser.id, store_at(tmp_path)) == result


def test_pbt_goes_on_from_the_donors_weights(tiny: ExperimentConfig, tmp_path: Path) -> None:
    sweep = RunsDir(tmp_path).sweep("s-1")
    base = override(tiny, {"pipeline.then": ["knn"]})
    stopping = StoppingConfig(rule="pbt", interval=1)
    plan = _plan("optim.base_lr=1e-3,2e-3,3e-3,4e-3", base=base, baseline=False, stopping=stopping)
    plan.save(sweep)
    store = store_at(tmp_path)
    best = plan.trials[-1]
    run_trial(sweep, best.id, store)
    # As the others see it at the first look: the best by far, and two in between.
    write_json(sweep.trial(best.id).history, [[1, 0.0]])
    for middle in plan.trials[1:3]:
        write_json(sweep.trial(middle.id).history, [[1, -0.1]])
    run_trial(sweep, plan.trials[0].id, store)
    home = sweep.trial(plan.trials[0].id)
    import json

    (adopted, *_) = json.loads(home.adopted.read_text())
    assert adopted["from"] == best.id
    assert adopted["overrides"]["optim.base_lr"] in (3.2e-3, 4.8e-3)


@pytest.mark.parametrize("name", list(definitions.ALL))
def test_every_value_of_a_named_sweep_changes_what_its_trials_do(name: str) -> None:
    """A sweep over a field that another field switches off would compare equal runs."""
    definition = definitions.get(name)
    base = override(BASE, dict(definition.fixed))
    brings = definition.brings(base)
    trials = [override(base, {definition.path: v, **brings.get(str(v), {})}) for v in definition.values]
    assert len(set(map(repr, trials))) == len(definition.values)
    if definition.path.startswith("mask.decoder"):
        assert all(t.mask.decoder_type is not None for t in trials)


def test_stages_have_resources_of_their_own() -> None:
    texts = ["pretrain:workers=4,gpus=0.5", "probe:cpus=2"]
    plan = _plan("mask.ratio=0.5,0.75", resources=Resources(stages=parse_stage_resources(texts, 1.0, 1.0)))
    assert plan.resources.staged
    pretrain, probe, measure = (plan.resources.of(STAGES[s]) for s in ("pretrain", "probe", "measure"))
    assert (pretrain.workers, pretrain.cpus, pretrain.gpus) == (4, 1.0, 0.5)
    assert (probe.workers, probe.cpus, probe.gpus) == (1, 2.0, 1.0)
    assert (measure.workers, measure.cpus, measure.gpus) == (1, 1.0, 0.0)
    plan = _plan("mask.ratio=0.5", resources=Resources(workers=2))
    assert plan.resources.staged
    assert [plan.resources.of(s).workers for s in plan.stages()] == [2, 1, 1]
    assert not _plan("mask.ratio=0.5").resources.staged


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("probes:cpus=1", "did you mean 'probe'"),
        ("probe:workers=2", "several share pretrain, finetune, "),
        ("pretrain:workers=half", "expected STAGE:workers=N,cpus=X,gpus=Y"),
        ("pretrain", "expected STAGE:workers=N"),
        ("pretrain:cpus=0", "expected workers >= 1, cpus > 0"),
        ("finetune:workers=2", "expected a stage of this sweep"),
        ("pretrain:workers=3", "expected the batch of pretrain to be a multiple of workers x accumulate = 3"),
    ],
)
def test_resources_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        _plan("mask.ratio=0.5", resources=Resources(stages=parse_stage_resources([text], 1.0, 0.0)))


def test_a_plan_with_stage_resources_is_read_back(tmp_path: Path) -> None:
    plan = _plan(
        "mask.ratio=0.5", resources=Resources(stages=parse_stage_resources(["pretrain:workers=2"], 1.0, 0.0))
    )
    plan.save(SweepDir(tmp_path))
    assert Plan.load(SweepDir(tmp_path)) == plan


def test_more_gpus_than_there_are_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmae.experiments.sweeps.ready import check_place

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    own = parse_stage_resources(["pretrain:workers=4,gpus=0.5"], 1.0, 0.0)
    with pytest.raises(InputError, match="expected 2 GPUs for pretrain, got 1 here"):
        check_place(_plan("mask.ratio=0.5", resources=Resources(stages=own)))
    check_place(_plan("mask.ratio=0.5", resources=Resources(gpus=0.25)))


def test_equal_cost_gives_cheap_trials_more_epochs() -> None:
    plan = _plan("mask.ratio=0.5,0.9", base=override(BASE, {"train.epochs": 20}), equal="flops")
    base = plan.base
    budget = step_cost(base, "flops") * 20
    configs = {t.overrides["mask.ratio"]: t.config(base) for t in plan.trials if not t.baseline}
    assert configs[0.5].train.epochs < 20 < configs[0.9].train.epochs  # the recipe hides 0.75
    for config in configs.values():
        per_epoch = step_cost(config, "flops")
        assert abs(config.train.epochs * per_epoch - budget) <= per_epoch / 2
        warmup = base.optim.warmup_epochs * config.train.epochs / 20
        assert config.optim.warmup_epochs == pytest.approx(warmup, abs=1e-3)
    assert [t.id for t in plan.trials] == [t.id for t in _plan("mask.ratio=0.5,0.9").trials]
    again = plan.with_setting({"mask.ratio": 0.9}).trials[-1]
    assert again.config(base).train.epochs == configs[0.9].train.epochs
    with pytest.raises(InputError, match="got a sweep of train"):
        _plan("train.epochs=1,2", equal="flops")


def test_at_equal_cost_trials_are_probed_where_the_shortest_ends_too() -> None:
    """So that the table has what they reach after equal epochs beside what they reach at equal cost."""
    plan = _plan("mask.ratio=0.5,0.9", base=override(BASE, {"train.epochs": 20}), equal="flops")
    shortest = min(t.config(plan.base).train.epochs for t in plan.trials if not t.baseline)
    assert {t.config(plan.base).pipeline.probe_at for t in plan.trials} == {shortest}
    headings = [m.heading(plan.base) for m in plan.columns()]
    assert headings.index(f"after {shortest} epochs") + 1 == headings.index(plan.ranked_by.heading(plan.base))
    for other in (
        _plan("mask.ratio=0.5,0.9"),
        _plan("mask.ratio=0.5,0.9", base=override(BASE, {"pipeline.then": ("knn",)}), equal="flops"),
    ):
        assert other.base.pipeline.probe_at == 0
        assert not any("epochs" in m.heading(other.base) for m in other.columns())


def test_equal_time_is_measured_here() -> None:
    base = override(BASE, {"train.epochs": 50, "model.depth": 1})
    one, six = [t for t in _plan("model.depth=1,6", base=base, equal="time").trials if not t.baseline]
    assert one.config(base).train.epochs == 50  # the base's own step, which is timed once
    assert 5 < six.config(base).train.epochs < 50


def test_objectives_bring_what_they_need_and_a_teacher_is_paid_for(tmp_path: Path) -> None:
    found = definitions.get("objective")
    epochs = {"train.epochs": 40}
    teacher = VideoMAE(BASE.model)
    place = tmp_path / "teacher"
    save_model(place, teacher, meta={"mask": to_dict(BASE.mask), "epochs": 10.0})
    target = f"teacher:{place}"
    base = override(BASE, epochs)
    params = [Param(path="model.target", choices=("normalized", "sigreg", target))]
    plan = make_plan(
        name="o-1", sweep="objective", title="t", params=params, metric=base.pipeline.metric, base=base,
        brings=found.brings(base), equal="flops",
    )  # fmt: skip
    _, pixels, joint, latents = (t.config(base) for t in plan.trials)
    assert (pixels.train.epochs, pixels.data.repeats, pixels.mask) == (40, base.data.repeats, base.mask)
    assert (joint.data.repeats, joint.mask.type, joint.mask.ratio) == (4, "random", 0.75)
    assert joint.train.batch_size == 64  # at the same rate of a step
    assert joint.optim.base_lr * 64 == pytest.approx(base.optim.base_lr * base.train.batch_size)
    assert joint.train.epochs == pytest.approx(
        40 * step_cost(base, "flops") / (training_flops(joint.model, joint.mask) * 4), abs=0.5
    )
    # The teacher took 10 of the 40 epochs, and looks at every clip.
    one = training_flops(base.model, base.mask)
    left = 30 * one / (one + forward_flops(base.model))
    assert latents.train.epochs == pytest.approx(left, abs=0.5 + 0.05 * left)
    assert Plan.load(_kept(plan, tmp_path)).trials == plan.trials

    base = override(BASE, {"train.epochs": 8})
    with pytest.raises(InputError, match="its teacher cost 125% of it"):
        make_plan(
            name="o-2", sweep="objective", title="t", params=params, metric=base.pipeline.metric, base=base,
            brings=found.brings(base), equal="flops",
        )  # fmt: skip


def _kept(plan: Plan, folder: Path) -> SweepDir:
    sweep = RunsDir(folder / "runs").sweep(plan.name)
    sweep.path.mkdir(parents=True)
    plan.save(sweep)
    return sweep
