"""Links: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae.core.model.masking import MASK_TYPES
from vmae.dashboard.state import COMPARE, ViewState, from_query, pack_mask, to_query, unpack_mask

MASKS = st.lists(st.booleans(), min_size=2, max_size=300).filter(lambda m: 0 < sum(m) < len(m))


@settings(deadline=None)
@given(MASKS)
def test_a_mask_survives_its_text(bits: list[bool]) -> None:
    mask = np.array(bits)
    back = unpack_mask(pack_mask(mask))
    assert back is not None
    assert back.tolist() == bits


@pytest.mark.parametrize(
    "text",
    [
        "",
        "64",
        "64.",
        "64.AAAA",
        "0.",
        "1.gA",
        "2.AA",
        "2.wA",
        "99999999.AAAA",
        "8.é",
        "8.../etc",
        "٣.AA",
        "8.A" * 50,
    ],
)
def test_what_is_no_mask_is_none(text: str) -> None:
    assert unpack_mask(text) is None


@settings(deadline=None)
@given(
    st.builds(
        ViewState,
        checkpoint=st.text("0123456789abcdef", min_size=1, max_size=12),
        clip=st.integers(0, 10_000),
        mask=st.sampled_from(MASK_TYPES),
        ratio=st.integers(5, 98).map(lambda n: n / 100),
        seed=st.integers(0, 9999),
        start=st.integers(-1, 1000),
        stride=st.integers(1, 16),
        compare=st.sampled_from(COMPARE),
        hand=MASKS.map(lambda m: pack_mask(np.array(m))),
    )
)
def test_a_link_restores_its_view(state: ViewState) -> None:
    back, refused = from_query(to_query(state), ViewState())
    assert refused == []
    assert back == state


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(ViewState)]), st.text(max_size=40))
)
def test_whatever_a_link_says_the_view_is_valid(query: dict[str, str]) -> None:
    state, _ = from_query(query, ViewState())
    assert state.mask in MASK_TYPES
    assert 0.05 <= state.ratio <= 0.98
    assert 0 <= state.seed <= 9999
    assert 1 <= state.stride <= 16
    assert not state.hand or unpack_mask(state.hand) is not None
    for id in (state.checkpoint, state.dataset, state.other):
        assert id == "" or (id.isalnum() and len(id) <= 16)


def test_what_is_refused_is_named_with_what_was_expected() -> None:
    query = {"mask": "tubes", "ratio": "1.5", "seed": "-1", "checkpoint": "../x", "hand": "x"}
    state, refused = from_query(query, ViewState(seed=4))
    assert state == ViewState(seed=4)
    assert len(refused) == 5
    assert "expected one of tube, random" in next(r for r in refused if "'mask'" in r)
    assert "from 0 to 9999" in next(r for r in refused if "'seed'" in r)
