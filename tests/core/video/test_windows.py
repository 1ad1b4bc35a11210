"""Overlapping windows show the frames that reading each by itself shows, and each frame is decoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmae.core.errors import InputError, VideoError
from vmae.core.video import augment
from vmae.core.video.probe import probe_video
from vmae.core.video.reader import OpenVideo, read_clip
from vmae.core.video.windows import WindowConfig, read_windows

CONFIG = WindowConfig(frames=4, window=4, stride=2, size=(32, 32))


def by_themselves(path: Path, config: WindowConfig) -> np.ndarray:
    """Every window read alone: [num_windows, views, T, H, W, 3]."""
    info = probe_video(path)
    side = max(config.size)
    short = side if side < min(info.height, info.width) else None
    windows = config.indices(info.num_frames)
    out = np.empty((len(windows), config.views, config.frames, *config.size, 3), np.uint8)
    for row, indices in zip(out, windows, strict=True):
        frames = read_clip(path, indices, short)
        for view, region in zip(
            row,
            augment.view_boxes(*frames.shape[1:3], config.views, config.size[1] / config.size[0]),
            strict=True,
        ):
            augment.crop_resize(frames, region, view)
    return out


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames of 48x80 whose pixels tell the frame, with B-frames and a key frame every 12."""
    import av

    path = tmp_path_factory.mktemp("windows") / "movie.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"g": "12", "bf": "2", "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 48, 80, "yuv420p"
        texture = rng.integers(0, 255, (48, 80, 3), dtype=np.uint8)
        for k in range(60):
            frame = np.roll(texture // 2, 2 * k, axis=1) + np.uint8(2 * k)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("num_frames", "stride"), [(40, 4), (17, 4), (16, 4), (5, 4), (1, 16), (100, 16)])
def test_indices_are_the_official_extractors(num_frames: int, stride: int) -> None:
    windows = WindowConfig(stride=stride).indices(num_frames)
    official = list(range(0, num_frames - 15, stride)) or [0]
    assert windows[:, 0].tolist() == official
    assert windows.tolist() == [[min(s + k, num_frames - 1) for k in range(16)] for s in official]
    assert WindowConfig(frames=8, window=16, stride=5).indices(25).tolist()[1] == list(range(5, 21, 2))


def test_windows_at_a_rate_of_their_own_are_the_same_seconds_of_every_video() -> None:
    config = WindowConfig(frames=4, window=8, stride=5, fps=10)
    assert config.timeline(60, 30) == (20, 10) and config.timeline(50, 25) == (20, 10)
    at_30, at_25 = config.indices(60, 30), config.indices(50, 25)
    assert at_30.tolist() == [[0, 6, 12, 18], [15, 21, 27, 33], [30, 36, 42, 48]]
    assert at_25.tolist() == [[0, 5, 10, 15], [12, 17, 22, 27], [25, 30, 35, 40]]
    twice = WindowConfig(frames=4, window=4, stride=4, fps=50)
    assert twice.indices(5, 25).tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        WindowConfig(frames=4, window=8, stride=3, size=(32, 48), views=3),
        WindowConfig(frames=4, window=4, stride=7, size=(64, 64)),
        WindowConfig(frames=16, window=16, stride=50, size=(16, 16)),
        WindowConfig(frames=16, window=160, stride=4, size=(16, 16)),
    ],
)
def test_windows_are_those_read_by_themselves(movie: Path, config: WindowConfig, batch: int) -> None:
    batches = list(read_windows(str(movie), config, batch=batch))
    assert all(len(b) == batch for b in batches[:-1])
    np.testing.assert_array_equal(np.concatenate(batches), by_themselves(movie, config))


def test_each_frame_is_scaled_once(movie: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    scale = OpenVideo.to_array
    monkeypatch.setattr(
        OpenVideo,
        "to_array",
        lambda self, frame, size=None: (seen.append(frame.pts), scale(self, frame, size))[1],
    )
    count = sum(len(b) for b in read_windows(str(movie), WindowConfig(frames=16, stride=1, size=(32, 32))))
    assert count == 45 and len(seen) == 60 == len(set(seen))


def test_folders_of_images_and_arrays(tmp_path: Path) -> None:
    from PIL import Image

    frames = np.random.default_rng(0).integers(0, 255, (9, 40, 60, 3), dtype=np.uint8)
    (tmp_path / "frames").mkdir()
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{k:05d}.png")
    np.save(tmp_path / "clip.npy", frames)
    for path in (tmp_path / "frames", tmp_path / "clip.npy"):
        got = np.concatenate(list(read_windows(str(path), CONFIG, batch=2)))
        np.testing.assert_array_equal(got, by_themselves(path, CONFIG))


def test_a_video_shorter_than_a_window_gives_one(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8))
    (windows,) = read_windows(str(tmp_path / "clip.npy"), CONFIG)
    assert len(windows) == 1 and (windows[0, 0, 3] == windows[0, 0, 2]).all()


def test_a_file_that_is_cut_short_is_an_error(movie: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.ts"
    import av

    with av.open(str(movie)) as source, av.open(str(cut), "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    info = probe_video(cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(VideoError):
        list(read_windows(str(cut), CONFIG, info=info))


def test_windows_that_cannot_be_are_refused() -> None:
    for change, message in (
        ({"stride": 0}, "stride"),
        ({"window": 18, "frames": 4}, "multiple of the model's 4"),
    ):
        with pytest.raises(InputError, match=message):
            WindowConfig(**change)  # type: ignore[arg-type]
