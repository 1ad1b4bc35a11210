"""The Reconstruct page on a real miniature store, control by control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

APP = Path(__file__).resolve().parents[3] / "dashboard" / "app.py"


def start(query: dict[str, str] | None = None) -> Any:
    app = AppTest.from_file(str(APP), default_timeout=60)
    for name, value in (query or {}).items():
        app.query_params[name] = value
    return app.run()


def healthy(app: Any) -> Any:
    assert not app.exception, [e.message for e in app.exception]
    assert not app.error, [e.value for e in app.error]
    assert len(app.get("bidi_component")) == 1
    return app


def headline(app: Any) -> str:
    return str(app.markdown[0].value)


@pytest.fixture
def app(dashboard: Any) -> Any:
    return healthy(start())


def test_opens_on_the_best_checkpoint_at_its_own_ratio(app: Any) -> None:
    assert app.selectbox(key="view_checkpoint").options[0].startswith("ratio0.75_s0 · top-1 ")
    assert r"ratio0.75\_s0" in headline(app)
    assert "clip **0 · left**" in headline(app)
    assert "16 of 64 tokens visible (75% masked)" in headline(app)


def test_the_ratio_slider_changes_what_is_visible_and_the_link(app: Any) -> None:
    healthy(app.slider(key="view_ratio").set_value(0.5).run())
    assert "32 of 64 tokens visible (50% masked)" in headline(app)
    assert app.query_params["ratio"] == ["0.5"] or app.query_params["ratio"] == "0.5"


@pytest.mark.parametrize(
    ("kind", "visible"), [("random", 16), ("frame", 16), ("block", 16), ("causal", 16), ("running_cell", 16)]
)
def test_every_mask_type(app: Any, kind: str, visible: int) -> None:
    healthy(app.selectbox(key="view_mask").set_value(kind).run())
    assert f"{visible} of 64 tokens visible" in headline(app)
    assert kind in headline(app)


def test_a_ratio_that_leaves_nothing_is_a_sentence(app: Any) -> None:
    app.selectbox(key="view_mask").set_value("frame").run()
    app.slider(key="view_ratio").set_value(0.1).run()
    assert not app.exception
    assert "leaves 64 visible and 0 masked of 64 tokens" in app.error[0].value
    # The controls are still there, and mending the value mends the page.
    healthy(app.slider(key="view_ratio").set_value(0.5).run())


def test_seed_and_another_mask(app: Any) -> None:
    healthy(app.button[0].click().run())
    assert app.number_input(key="view_seed").value == 1
    healthy(app.number_input(key="view_seed").set_value(7).run())
    assert app.query_params["seed"] in ("7", ["7"])


def test_clip_stride_and_first_frame(app: Any) -> None:
    healthy(app.selectbox(key="view_clip").set_value(3).run())
    assert "clip **3 · right**" in headline(app)
    healthy(app.number_input(key="view_stride").set_value(2).run())
    healthy(app.number_input(key="view_start").set_value(5).run())
    assert app.query_params["start"] in ("5", ["5"])
    # A longer stride leaves fewer places to start from; the view follows.
    healthy(app.number_input(key="view_stride").set_value(3).run())
    assert app.number_input(key="view_start").value <= 24 - 7 * 3 - 1


def test_form_says_what_it_uses(app: Any) -> None:
    assert app.segmented_control(key="view_form").value == "as_trained"
    healthy(app.segmented_control(key="view_form").set_value("model_only").run())
    assert app.query_params["form"] in ("model_only", ["model_only"])


def test_compare_checkpoint_and_ratio(app: Any) -> None:
    healthy(app.segmented_control(key="view_compare").set_value("checkpoint").run())
    assert r"**A** ratio0.75\_s0" in headline(app)
    assert r"**B** ratio0.5\_s0" in headline(app)
    other = app.selectbox(key="view_other")
    healthy(other.set_value(app.selectbox(key="view_checkpoint").value).run())
    healthy(app.segmented_control(key="view_compare").set_value("ratio").run())
    healthy(app.slider(key="view_other_ratio").set_value(0.5).run())
    assert "**A** ratio 0.75, **B** ratio 0.5" in headline(app)


def test_another_checkpoint(app: Any) -> None:
    options = app.selectbox(key="view_checkpoint").options
    assert [o.split(" ")[0] for o in options[:3]] == ["ratio0.75_s0", "ratio0.5_s0", "random-weights_s0"]
    app.selectbox(key="view_checkpoint").select_index(1).run()
    assert r"ratio0.5\_s0" in headline(healthy(app))
    # The best epoch's weights are a file beside the run's own.
    file = next(i for i, o in enumerate(options) if o.endswith("/best (file)"))
    app.selectbox(key="view_checkpoint").select_index(file).run()
    assert "/best" in headline(healthy(app))


def test_a_link_is_taken_and_what_is_wrong_in_it_is_named(dashboard: Any) -> None:
    app = healthy(start({"ratio": "0.5", "mask": "random", "seed": "3", "clip": "2", "form": "nonsense"}))
    assert "clip **2 · left** · random mask, ratio 0.5" in headline(app)
    assert "'form'" in app.warning[0].value
    app = healthy(start({"checkpoint": "../../etc", "clip": "99999", "ratio": "nan", "hand": "64.AAAA"}))
    assert len(app.warning) >= 3
    assert r"ratio0.75\_s0" in headline(app)


def test_a_mask_by_hand_and_undo(dashboard: Any) -> None:
    import numpy as np

    from vmae.dashboard.state import pack_mask

    hand = np.zeros(64, bool)
    hand[:10] = True
    app = healthy(start({"hand": pack_mask(hand)}))
    assert "mask drawn by hand" in headline(app)
    assert "54 of 64 tokens visible" in headline(app)
    undo = next(b for b in app.button if b.label == "Undo what was drawn")
    healthy(undo.click().run())
    assert "16 of 64 tokens visible" in headline(app)


def test_uploads(app: Any, dashboard: Any) -> None:
    video = dashboard.videos[2].read_bytes()
    app.file_uploader[0].set_value([("../../etc/passwd.mp4", video, "video/mp4")]).run()
    assert "on clip **passwd.mp4**" in headline(healthy(app))
    app.file_uploader[0].set_value([("broken.mp4", b"nothing of a video", "video/mp4")]).run()
    assert not app.exception
    assert app.error[0].value.startswith("Not usable: broken.mp4: ")
    app.file_uploader[0].set_value([]).run()
    healthy(app)


def test_token_colours_where_they_are_asked_for(app: Any) -> None:
    assert not any("principal components" in c.value for c in app.caption)
    app.toggle(key="token_colours").set_value(True).run()
    assert not app.exception and not app.error
    assert any("principal components" in c.value for c in app.caption)


def test_exports_exist(app: Any) -> None:
    assert {b.label for b in app.get("download_button")} == {"PNG", "GIF", "MP4"}
    assert any("?checkpoint=" in c.value for c in app.code)


def test_a_clip_that_cannot_be_read_leaves_the_controls(
    dashboard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from vmae.dashboard.settings import VARIABLE, Settings

    (tmp_path / "broken.mp4").write_bytes(b"nothing of a video")
    csv = tmp_path / "val.csv"
    csv.write_text(f"broken.mp4 0\n{dashboard.videos[0]} 1\n")
    settings = dataclasses.replace(Settings.from_env(), data=(str(csv),))
    monkeypatch.setenv(VARIABLE, settings.to_env())
    app = start()
    ours = next(o for o in app.selectbox(key="view_dataset").options if o.startswith(tmp_path.name))
    app.selectbox(key="view_dataset").select(ours).run()
    assert not app.exception
    assert "broken.mp4" in app.error[0].value
    assert app.slider(key="view_ratio").value == 0.75
    healthy(app.selectbox(key="view_clip").set_value(1).run())


def test_two_viewers_do_not_disturb_each_other(dashboard: Any) -> None:
    one, two = healthy(start()), healthy(start())
    one.slider(key="view_ratio").set_value(0.5).run()
    two.selectbox(key="view_clip").set_value(2).run()
    assert "clip **0 · left**" in headline(healthy(one.run()))
    assert "75% masked" in headline(healthy(two.run()))


def test_a_name_cannot_put_marks_or_links_into_the_page(app: Any, dashboard: Any) -> None:
    video = dashboard.videos[0].read_bytes()
    app.file_uploader[0].set_value([("![x](http:evil.example).mp4", video, "video/mp4")]).run()
    assert r"\!\[x\]\(http:evil.example\)" in headline(healthy(app))
