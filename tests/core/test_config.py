"""The configuration tree: strict keys, typed overrides, lossless round trip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from vmae.core.config import flatten, from_dict, known_paths, override, parse_assignments, to_dict
from vmae.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Optim:
    base_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = None
    fused: bool = True


@dataclass(frozen=True, kw_only=True)
class Root:
    name: str = "a"
    epochs: int = 3
    loss: Literal["mse", "l1"] = "mse"
    optim: Optim = field(default_factory=Optim)


def test_round_trip_and_flatten() -> None:
    root = Root(epochs=7, optim=Optim(clip_grad=0.02))
    assert from_dict(Root, to_dict(root)) == root
    assert flatten(root)["optim.clip_grad"] == 0.02
    assert set(flatten(root)) == set(known_paths(Root))


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("optim.base_lr", "3e-4", 3e-4),
        ("optim.betas", "0.9,0.999", (0.9, 0.999)),
        ("optim.betas", "[0.5, 0.6]", (0.5, 0.6)),
        ("optim.clip_grad", "none", None),
        ("optim.clip_grad", "1", 1.0),
        ("optim.fused", "False", False),
        ("epochs", "12", 12),
        ("loss", "l1", "l1"),
        ("name", "12", "12"),
    ],
)
def test_override_reads_text_by_the_fields_type(path: str, text: str, expected: object) -> None:
    assert flatten(override(Root(), {path: text}))[path] == (
        list(expected) if isinstance(expected, tuple) else expected
    )


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("optim.base_lrr", "1", r"unknown key 'optim.base_lrr' \(did you mean 'optim.base_lr'\?\)"),
        ("optim.fused", "yes", "optim.fused: expected true or false, got 'yes'"),
        ("epochs", "2.5", "epochs: expected an integer, got '2.5'"),
        ("loss", "mes", r"loss: expected one of mse, l1, got 'mes' .*did you mean 'mse'"),
        ("optim.betas", "1,2,3", "optim.betas: expected 2 values, got 3"),
    ],
)
def test_override_refuses_with_expected_and_got(path: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(Root(), {path: text})


def test_from_dict_names_the_nearest_key() -> None:
    with pytest.raises(InputError, match=r"optim: unknown key 'beta' \(did you mean 'betas'"):
        from_dict(Root, {"optim": {"beta": [1, 2]}})
    with pytest.raises(InputError, match="epochs: expected an integer, got True"):
        from_dict(Root, {"epochs": True})


def test_assignments_need_an_equals_sign() -> None:
    assert parse_assignments(["a.b=1", "c=x=y"]) == {"a.b": "1", "c": "x=y"}
    with pytest.raises(InputError, match="expected KEY=VALUE"):
        parse_assignments(["optim.base_lr"])
