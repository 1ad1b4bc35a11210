"""What is said of the error on held-out videos while a model trains."""

from __future__ import annotations

import pytest

from vmae.core.train.watch import held_out_warnings


def history(losses: list[float], held_out: list[float | None]) -> list[dict[str, float]]:
    epochs = []
    for number, (loss, error) in enumerate(zip(losses, held_out, strict=True), start=1):
        epochs.append({"epoch": float(number), "loss": loss})
        if error is not None:
            epochs[-1]["val/loss"] = error
    return epochs


def test_a_model_that_memorises_is_said_to() -> None:
    told = held_out_warnings(history([1.0, 0.8, 0.6, 0.5, 0.4], [1.01, 0.9, 0.8, 0.85, 0.9]), True)
    assert told.get("above") is None
    assert "turned" in told
    assert (
        "rises (0.800 after epoch 3, 0.900 now) while the training loss falls (0.600 to 0.400)"
        in told["turned"]
    )
    assert "memorises" in told["turned"]


@pytest.mark.parametrize(
    ("losses", "held_out"),
    [
        ([1.0, 0.8, 0.6, 0.5], [1.0, 0.9, 0.8, 0.9]),  # one measurement may be chance
        ([1.0, 0.8, 0.6, 0.5, 0.4], [1.0, 0.9, 0.8, 0.81, 0.81]),  # within 2%
        ([1.0, 0.8, 0.6, 0.7, 0.9], [1.0, 0.9, 0.8, 0.9, 1.0]),  # the training loss rises too
        ([1.0, 0.8], [1.0, 0.9]),
    ],
)
def test_no_turn_is_called_where_there_is_none(losses: list[float], held_out: list[float | None]) -> None:
    assert held_out_warnings(history(losses, held_out), True).get("turned") is None


def test_only_epochs_that_measured_count() -> None:
    told = held_out_warnings(
        history([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], [0.9, None, 0.95, None, None, 0.97]), True
    )
    assert "turned" in told and "0.900 after epoch 1, 0.970 now" in told["turned"]


def test_above_one_is_worse_than_the_mean_of_each_patch_where_that_is_the_scale() -> None:
    rising = history([1.0, 0.8, 0.6], [1.0, 0.95, 1.2])
    told = held_out_warnings(rising, True).get("above")
    assert told is not None and "rose above 1 (1.200)" in told and "it was 0.950 after epoch 2" in told
    assert held_out_warnings(rising, False).get("above") is None
    falling = history([1.0, 0.8, 0.6], [1.3, 1.2, 1.1])
    assert held_out_warnings(falling, True).get("above") is None, "it was never below"
