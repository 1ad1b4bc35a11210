"""Small moving pictures of clips, for galleries."""

from __future__ import annotations

import numpy as np
import streamlit as st

from vmae.dashboard import render
from vmae.dashboard.clips import ClipInfo, data_grid, read_frames

THUMB_FRAMES = 12
THUMB_SIZE = 96


@st.cache_data(max_entries=512, show_spinner=False)
def thumbnail(clip: ClipInfo) -> str:
    """A few frames spread over the whole clip, small, as a sprite sheet."""
    grid = data_grid(THUMB_FRAMES, THUMB_SIZE, THUMB_SIZE)
    spread = np.linspace(0, clip.num_frames - 1, THUMB_FRAMES).round().astype(np.int64)
    return render.sprite_sheet(read_frames(clip, spread, grid), quality=80)
