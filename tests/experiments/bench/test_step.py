"""The whole step as the GPU suite times it, at a tiny size on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vmae.core.errors import InputError
from vmae.core.model.masking import TokenMask, sample_mask
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.train.graph import CapturedBackward, capture_step
from vmae.experiments.bench import step as step_suite
from vmae.kernels import use_kernels
from vmae.kernels.dispatch import interpreting

CASE = step_suite.TINY[0]


@pytest.mark.parametrize("mode", ["torch", "triton"])
def test_the_model_compiles_without_a_graph_break(mode: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    config = VideoMAEConfig.from_size("tiny", frames=4, height=16, width=16, depth=1, decoder_depth=1)
    model = VideoMAE(config)
    mask = sample_mask("tube", 0.5, config.grid, 2, torch.Generator().manual_seed(1))
    video = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    graphs: list[Any] = []

    def backend(module: Any, _inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    def loss_of(visible: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        return model(video, TokenMask(visible, masked))

    with use_kernels(mode):
        eager = loss_of(mask.visible, mask.masked)
        compiled = torch.compile(loss_of, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(mask.visible, mask.masked), eager)
    targets = {str(node.target) for node in graphs[0].graph.nodes}
    opaque = {name for name in targets if name.startswith("vmae.")}
    # In the interpreter mode triton reaches the ops on the CPU too; the torch path leaves none in the graph.
    assert len(graphs) == 1
    if mode == "torch":
        assert not opaque
    elif interpreting() or torch.cuda.is_available():
        assert {name.split(".")[1] for name in opaque} == {
            "gather_patches",
            "attention_fwd",
            "decoder_tokens",
            "patch_loss",
        }


@pytest.mark.usefixtures("honest_interpreter")
def test_eager_variants_agree_and_are_timed() -> None:
    ours = []
    for name, graph, build in step_suite._variants(CASE, "cpu", "aot_eager", every=True):
        if "compile" in name or not name.startswith("ours"):
            continue
        assert not graph
        ours.append(float(build()()))
    assert len(ours) == 3
    assert ours == pytest.approx([ours[0]] * 3, rel=step_suite.LOSS_TOLERANCE)


def test_variants_are_timed_apart_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []
    real = step_suite._time_in_turns

    def watched(ready: Any, *rest: Any) -> None:
        together.append(len(ready))
        real(ready, *rest)

    def eager(*_: Any, **__: Any) -> Any:
        for name in ("ours, a", "ours, b", "ours, c"):
            yield name, False, lambda: lambda: torch.tensor(1.0)

    monkeypatch.setattr(step_suite, "_time_in_turns", watched)
    monkeypatch.setattr(step_suite, "_variants", eager)
    answers = iter([False, True, False])
    monkeypatch.setattr(step_suite, "_memory_is_short", lambda device: next(answers))
    told: list[str] = []
    rows = step_suite.run_case(CASE, "cpu", dry_run=True, announce=told.append)
    assert together == [2, 1]
    assert [row["variant"] for row in rows if row["ms"] > 0] == ["ours, a", "ours, b", "ours, c"]
    assert set(told) == {"ours, a", "ours, b", "ours, c"}


def test_flops_are_those_of_the_plan() -> None:
    """facts: ViT-B at 0.9 is 202.3 GFLOP per clip and training step."""
    case = step_suite.StepCase(size="base", ratio=0.9, batch=1)
    assert case.flops_per_clip() / 1e9 == pytest.approx(202.3, rel=0.01)


def test_capture_is_the_step_itself_without_a_gpu() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(x: torch.Tensor) -> torch.Tensor:
        return x

    assert capture_step(step, (torch.zeros(1),), model=model, optimizer=optimizer) is step


def test_a_captured_backward_gives_fresh_gradients_for_any_batch() -> None:
    """Without a GPU every batch takes the road of the incomplete ones."""
    model = nn.Linear(2, 1)

    def backward(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss.detach()

    captured = CapturedBackward(backward, model, rows=4)
    for rows in (4, 3, 4):
        x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(rows))
        got = captured(x)
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        assert torch.equal(got, backward(x))
        for p, grad in zip(model.parameters(), grads, strict=True):
            assert torch.equal(p.grad, grad)  # type: ignore[arg-type]
    assert captured.replays == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_captured_backward_replays_and_takes_incomplete_batches() -> None:
    model = nn.Linear(2, 1).cuda()

    def backward(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss.detach()

    captured = CapturedBackward(backward, model, rows=4)
    for i, rows in enumerate((3, 4, 3, 4)):
        x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(i)).cuda()
        got = float(captured(x))
        assert got == pytest.approx(float(model(x).square().mean()), rel=1e-5)
        (want,) = torch.autograd.grad(model(x).square().mean(), model.weight)
        torch.testing.assert_close(model.weight.grad, want, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            model.weight -= 0.1 * model.weight.grad
    assert captured.replays == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_captured_step_trains_as_the_plain_one() -> None:
    def train(graph: bool) -> list[float]:
        run = step_suite.our_step(CASE, "cuda", mode="torch", compile_backend=None, graph=graph)
        return [float(run()) for _ in range(5)]

    assert train(True) == pytest.approx(train(False), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_captured_step_needs_a_capturable_optimiser() -> None:
    model = nn.Linear(2, 2).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(InputError, match="capturable"):
        capture_step(lambda x: x, (torch.zeros(1, device="cuda"),), model=model, optimizer=optimizer)
