"""The data section: what older configurations carry is read, what is written is checked."""

from __future__ import annotations

import pytest

from vmae.core.config import from_dict, override
from vmae.core.errors import InputError
from vmae.core.video.config import DataConfig


def test_a_retired_key_of_an_older_configuration_is_left_out_and_cannot_be_set() -> None:
    assert from_dict(DataConfig, {"cache_dir": "runs/cache", "frames": 8}) == DataConfig(frames=8)
    with pytest.raises(InputError, match="unknown key 'cache_dir'"):
        override(DataConfig(), {"cache_dir": "elsewhere"})
