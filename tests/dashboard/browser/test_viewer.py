"""The viewer end to end in a real browser, as someone uses it."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.browser
PATIENCE_S = 120
"""A busy machine is slow, not broken: every wait is for a condition, and this long at most."""


def ready(page: Any, other_than: str = "") -> str:
    """Wait for pictures (of another version than given); returns their version."""
    page.wait_for_selector(f'.viewer[data-ready="true"]:not([data-version="{other_than}"])')
    return str(page.locator(".viewer").get_attribute("data-version"))


def canvas(page: Any, kind: str, side: int = 0) -> Any:
    return page.locator(f'canvas[data-kind="{kind}"][data-side="{side}"]')


def pixels(page: Any, kind: str, side: int = 0) -> np.ndarray:
    """What a canvas shows, uint8 [H, W, 3]."""
    url = canvas(page, kind, side).evaluate("c => c.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def digest(page: Any, kind: str, side: int = 0) -> str:
    return hashlib.sha256(pixels(page, kind, side).tobytes()).hexdigest()


def another_viewer(page: Any, url: str) -> Any:
    """A page of somebody else, with nothing in common but the server."""
    other = page.context.browser.new_page()
    other.set_default_timeout(1000 * PATIENCE_S)
    other.goto(url)
    ready(other)
    return other


def frame(page: Any) -> int:
    return int(page.locator(".viewer").get_attribute("data-frame"))


def halve(page: Any) -> None:
    """Move the ratio from 0.75 to 0.5 with the arrow keys; returns when its pictures are shown."""
    page.get_by_role("slider", name="Mask ratio").focus()
    for _ in range(25):
        page.keyboard.press("ArrowLeft")
    linked(page, "ratio=0.5&")
    visible(page, 32)


def visible(page: Any, tokens: int) -> None:
    """Wait for pictures under a mask with so many visible tokens, of 64."""
    page.wait_for_selector(f'.viewer[data-ready="true"][data-visible="{tokens}"]')
    page.get_by_text(f"{tokens} of 64 tokens visible").wait_for()


def linked(page: Any, text: str) -> None:
    """Wait until the address holds a text."""
    page.wait_for_function("(text) => location.search.includes(text)", arg=text)


def test_moving_the_ratio_changes_the_pictures(page: Any) -> None:
    before = digest(page, "pasted")
    grey_before = (pixels(page, "masked") == 128).all(-1).mean()
    halve(page)
    assert digest(page, "pasted") != before
    assert grey_before == pytest.approx(0.75, abs=0.01)
    assert (pixels(page, "masked") == 128).all(-1).mean() == pytest.approx(0.5, abs=0.01)


def test_a_click_masks_a_tube_and_a_drag_paints(page: Any) -> None:
    version = ready(page)
    masked = canvas(page, "masked")
    box = masked.bounding_box()
    cell = box["width"] / 4
    shown = np.argwhere(
        ~(pixels(page, "masked").reshape(4, -1, 4, pixels(page, "masked").shape[1] // 4, 3) == 128).all(
            (1, 3, 4)
        )
    )
    y, x = (int(v) for v in shown[0])
    page.mouse.click(box["x"] + (x + 0.5) * cell, box["y"] + (y + 0.5) * cell)
    visible(page, 12)
    version = ready(page, version)
    page.get_by_text("mask drawn by hand").wait_for()
    # A drag over the top row from a masked patch unmasks what it passes.
    page.mouse.move(box["x"] + (x + 0.5) * cell, box["y"] + (y + 0.5) * cell)
    page.mouse.down()
    for step in range(4):
        page.mouse.move(box["x"] + (step + 0.5) * cell, box["y"] + (y + 0.5) * cell, steps=3)
    page.mouse.up()
    ready(page, version)
    linked(page, "hand=64.")
    assert (
        not (pixels(page, "masked").reshape(4, -1, pixels(page, "masked").shape[1], 3)[y] == 128)
        .all(-1)
        .any()
    )
    version = ready(page)
    page.get_by_role("button", name="Undo what was drawn").click()
    ready(page, version)
    visible(page, 16)


def test_one_slot_only(page: Any) -> None:
    version = ready(page)
    page.get_by_role("radio", name="one slot").click()
    canvas(page, "masked").click(position={"x": 5, "y": 5})
    ready(page, version)
    page.get_by_text("17 of 64 tokens visible").or_(page.get_by_text("15 of 64 tokens visible")).wait_for()


def test_playing_scrubbing_and_the_keyboard_need_no_server(page: Any) -> None:
    version = ready(page)
    first = digest(page, "original")
    page.keyboard.press("ArrowRight")
    assert frame(page) == 1
    assert digest(page, "original") != first
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert frame(page) == 7
    page.locator(".scrub").fill("3")
    assert frame(page) == 3
    page.locator(".number").fill("6")
    page.locator(".number").press("Enter")
    assert frame(page) == 5
    page.locator(".viewer").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Pause").wait_for()
    viewer = page.locator(".viewer").element_handle()
    page.evaluate("window.seen = new Set()")
    page.wait_for_function("(v) => window.seen.add(v.dataset.frame).size >= 5", arg=viewer)
    page.keyboard.press("Space")
    page.get_by_role("button", name="Play").wait_for()
    assert ready(page) == version


def test_patches_are_masked_from_the_keyboard(page: Any) -> None:
    version = ready(page)
    page.locator(".viewer").focus()
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Enter")
    ready(page, version)
    page.get_by_text("mask drawn by hand").wait_for()


def test_a_link_restores_the_view(page: Any, served: Any) -> None:
    halve(page)
    version = ready(page)
    canvas(page, "masked").click(position={"x": 5, "y": 5})
    ready(page, version)
    linked(page, "hand=")
    link, shown = page.url, digest(page, "pasted")
    other = another_viewer(page, link)
    assert digest(other, "pasted") == shown
    other.close()


def test_comparing_two_checkpoints_shows_two_rows(page: Any) -> None:
    version = ready(page)
    page.get_by_text("a checkpoint", exact=True).click()
    ready(page, version)
    assert canvas(page, "pasted", 1).count() == 1
    assert digest(page, "masked", 0) == digest(page, "masked", 1)
    assert digest(page, "pasted", 0) != digest(page, "pasted", 1)


def test_an_upload_is_shown_and_removed(page: Any, mini: Any, tmp_path: Path) -> None:
    version = ready(page)
    page.get_by_text("Upload a video").click()
    page.locator('input[type="file"]').set_input_files(str(mini.videos[3]))
    ready(page, version)
    page.get_by_text("on clip clip 3.mp4").wait_for()
    assert not list(tmp_path.parent.parent.rglob("vmae-upload-*"))


def test_a_broken_upload_is_a_sentence(page: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video" * 1000)
    page.get_by_text("Upload a video").click()
    page.locator('input[type="file"]').set_input_files(str(broken))
    message = page.get_by_text("Not usable: broken.mp4")
    message.wait_for()
    assert "/" not in message.inner_text().removeprefix("Not usable: ")
    ready(page)


def test_exports_are_files_of_their_kind(page: Any) -> None:
    ready(page)
    for kind, magic in (("PNG", b"\x89PNG"), ("GIF", b"GIF89a"), ("MP4", b"ftyp")):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        data = Path(download.value.path()).read_bytes()
        assert magic in data[:12], kind
        assert download.value.suggested_filename.endswith(f".{kind.lower()}")


@pytest.mark.parametrize("size", [(960, 800), (1280, 1024), (1280, 720), (1440, 1095), (1920, 1080)])
@pytest.mark.parametrize("query", ["", "?compare=ratio"])
def test_no_picture_is_cut_off(browser: Any, served: Any, size: tuple[int, int], query: str) -> None:
    page = browser.new_context(viewport={"width": size[0], "height": size[1]}).new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    page.goto(served.url + query)
    ready(page)
    left, right = page.locator(".viewer").evaluate(
        "v => [v.getBoundingClientRect().left, v.getBoundingClientRect().right]"
    )
    for part in (*page.locator(".viewer figure").all(), page.locator(".viewer .chart")):
        box = part.bounding_box()
        assert left <= box["x"] + 1
        assert box["x"] + box["width"] <= right + 1, f"{size}: cut off by {box['x'] + box['width'] - right}"
    page.context.close()


def test_two_viewers_at_once(page: Any, served: Any) -> None:
    other = another_viewer(page, served.url)
    shown = digest(other, "pasted")
    halve(page)
    assert digest(other, "pasted") == shown
    other.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 1920])
def test_every_page_is_drawn_without_scrolling_sideways(
    browser: Any, served: Any, scheme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(1000 * PATIENCE_S)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda e: errors.append(str(e)))
    opened.goto(served.url)
    ready(opened)
    marks = {
        "Sweeps": "The same clip by every trial",
        "Runs": "Reconstruction by epoch",
        "Data": "What training sees of a clip",
        "Attention and features": "Five nearest clips vote on the class",
        "Kernels": "Active on this machine",
    }
    for name, mark in marks.items():
        opened.get_by_role("link", name=name).click()
        opened.get_by_text(mark).wait_for()
        assert opened.get_by_test_id("stException").count() == 0
        assert opened.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    # Coming back, the view is as it was left.
    opened.get_by_role("link", name="Reconstruct").click()
    ready(opened)
    context.close()
    assert not errors


def test_a_click_on_attention_looks_from_there(page: Any, served: Any) -> None:
    page.goto(served.url + "features")
    player = page.locator(".player").first
    player.locator("canvas").first.wait_for()
    page.locator('.player[data-ready="true"]').first.wait_for()
    before = page.get_by_text("From the patch in row").inner_text()
    player.locator("canvas").first.click(position={"x": 4, "y": 4})
    page.get_by_text("From the patch in row 1, column 1").wait_for()
    assert "row 1, column 1" not in before
    # The same from the keyboard: the frame starts in the middle, row 3 and column 3 of 4.
    page.locator('.player[data-ready="true"]').first.wait_for()
    player.locator("canvas").first.focus()
    for key in ("Shift+ArrowUp", "Shift+ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("From the patch in row 2, column 3").wait_for()
    page.locator('.player[data-ready="true"]').first.wait_for()
    # New pictures leave the frame and the focus where they were.
    for key in ("Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("From the patch in row 2, column 4").wait_for()


@pytest.mark.slow
def test_memory_is_flat_over_200_interactions(page: Any, served: Any) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process(served.pid)
    button = page.get_by_role("button", name="Another mask")

    def interact(times: int) -> None:
        for _ in range(times):
            version = ready(page)
            button.click()
            ready(page, version)

    interact(60)
    before = process.memory_info().rss
    interact(200)
    grown = (process.memory_info().rss - before) / 2**20
    assert grown < 25, f"{grown:.1f} MiB"
