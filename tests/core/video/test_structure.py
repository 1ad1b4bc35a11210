"""What a file claims is held against what it can hold, and a path is a file whatever its name."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from vmae.core.errors import VideoError
from vmae.core.video.check import check_samples
from vmae.core.video.optimize import OptimizeConfig, optimize_file
from vmae.core.video.probe import probe_video
from vmae.core.video.reader import open_video, read_clip
from vmae.core.video.samples import Sample
from vmae.core.video.structure import ends_inside, require_bounded


def table(kind: bytes, *numbers: int) -> bytes:
    return struct.pack(f">I4s{len(numbers)}I", 8 + 4 * len(numbers), kind, *numbers)


def replaced(data: bytes, kind: bytes, new: bytes) -> bytes:
    """An MP4 (index last) with the first table of that kind replaced, and the lengths around it."""
    at = data.index(kind) - 4
    old = int.from_bytes(data[at : at + 4], "big")
    out = bytearray(data[:at] + new + data[at + old :])
    for outer in (b"moov", b"trak", *([b"edts"] if kind == b"elst" else [b"mdia", b"minf", b"stbl"])):
        place = out.index(outer) - 4
        out[place : place + 4] = (int.from_bytes(out[place : place + 4], "big") + len(new) - old).to_bytes(
            4, "big"
        )
    return bytes(out)


def bombs(data: bytes) -> dict[str, bytes]:
    """Small files of which FFmpeg would make gigabytes."""
    moov = data.index(b"moov") - 4
    one_size = replaced(data, b"stsz", table(b"stsz", 0, 1, 89_000_000))
    compressed = zlib.compress(one_size[moov:])
    cmov = (
        table(b"dcom", int.from_bytes(b"zlib", "big"))
        + struct.pack(">I4sI", 12 + len(compressed), b"cmvd", len(one_size) - moov)
        + compressed
    )
    cmov = struct.pack(">I4s", 8 + len(cmov), b"cmov") + cmov
    trun = table(b"trun", 0x000000, 89_000_000)
    traf = table(b"tfhd", 0x020028, 1, 512, 1) + trun
    traf = struct.pack(">I4s", 8 + len(traf), b"traf") + traf
    moof = table(b"mfhd", 0, 1) + traf
    sound = one_size.replace(b"vide", b"soun", 1)
    return {
        "samples of one size": one_size,
        "samples of one size, of sound": sound,
        "a table of samples": replaced(data, b"stsz", table(b"stsz", 0, 0, 89_000_000)),
        "durations": replaced(data, b"stts", table(b"stts", 0, 1, 89_000_000, 512)),
        "entries of durations": replaced(data, b"stts", table(b"stts", 0, 89_000_000, 1, 512)),
        "offsets of time": replaced(data, b"ctts", table(b"ctts", 0, 1, 89_000_000, 512)),
        "samples in chunks": replaced(data, b"stsc", table(b"stsc", 0, 1, 1, 0xFFFFFFFF, 1)),
        "stretches": replaced(data, b"elst", table(b"elst", 0, 900_000, *[1000, 0, 1 << 16] * 900_000)),
        "a compressed index": data[:moov] + struct.pack(">I4s", 8 + len(cmov), b"moov") + cmov,
        "a fragment": data + struct.pack(">I4s", 8 + len(moof), b"moof") + moof,
    }


def test_an_index_may_not_claim_more_than_the_file_holds(
    video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    data = video_kind("h264_bframes").read_bytes()
    for name, content in bombs(data).items():
        path = tmp_path / "bomb.mp4"
        path.write_bytes(content)
        start = time.monotonic()
        with pytest.raises(VideoError, match=r"corrupt: its .* claim") as caught:
            probe_video(path)
        assert time.monotonic() - start < 5, name
        assert "89,000,000" in str(caught.value) or name in ("samples in chunks", "stretches")


def test_a_small_file_takes_little_memory(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    """89 million samples in 16 kB: 5 GiB in FFmpeg."""
    (tmp_path / "bomb.mp4").write_bytes(bombs(video_kind("h264_bframes").read_bytes())["samples of one size"])
    code = (
        "import sys; from vmae.core.video.check import check_file;"
        "from vmae.core.numerics import peak_resident; from vmae.core.video.samples import Sample;"
        "r = check_file(Sample(path=sys.argv[1], label=0)); print(r.reason, r.detail);"
        "print(peak_resident() // 2**20)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    limit = 8 * 2**30
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "bomb.mp4"],
        env=environment, capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    reason, megabytes = done.stdout.splitlines()
    assert reason.startswith("corrupt its index claims 89,000,000 samples")
    assert int(megabytes) < 700


def test_good_files_claim_what_they_hold(any_kind: Path) -> None:
    require_bounded(str(any_kind), lambda: None)
    assert ends_inside(str(any_kind)) in ("", None)
    assert ends_inside(str(any_kind)) == "" or any_kind.suffix not in (
        ".mp4",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
    )


def test_fragments_and_sound_are_no_false_alarm(tmp_path: Path) -> None:
    for name, options in (("fragments", {"movflags": "frag_keyframe+empty_moov"}), ("whole", {})):
        path = tmp_path / f"{name}.mov"
        with av.open(str(path), "w", options=options) as container:
            video = container.add_stream("libx264", rate=25, options={"g": "5"})
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            sound = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
            for i in range(25):
                image = np.full((48, 64, 3), 10 * i, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="mono")
                frame.rate, frame.pts = 48_000, 1920 * i
                container.mux(sound.encode(frame))
            container.mux(video.encode())
            container.mux(sound.encode())
        assert probe_video(path).num_frames == 25


@pytest.mark.parametrize("suffix", ["gif", "avi"])
def test_frames_of_absurd_size_are_refused_before_memory_is_taken(
    suffix: str, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    kind = {"codec": "gif", "pix_fmt": "rgb8"} if suffix == "gif" else {"codec": "ffv1"}
    path = make_video(tmp_path / f"a.{suffix}", frames=3, size=(48, 64), **kind)
    data = bytearray(path.read_bytes())
    if suffix == "gif":
        data[6:10] = struct.pack("<HH", 12_000, 12_000)
    else:
        at = data.index(b"strf") + 12
        data[at : at + 8] = struct.pack("<ii", 12_000, 12_000)
    path.write_bytes(data)
    if suffix == "avi":  # FFmpeg by itself takes the memory
        with av.open(str(path)) as container:
            assert next(container.decode(video=0)).width == 12_000
    with pytest.raises(VideoError) as caught:
        probe_video(path)
    assert caught.value.reason in ("too_large", "corrupt")


# -- paths are files -----------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A port of this machine and the connections that reached it."""
    seen: list[object] = []
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                connection, address = server.accept()
                seen.append(address)
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1], seen
    stop.set()
    thread.join()
    server.close()


def test_nothing_in_a_list_reaches_the_network(
    listener: tuple[int, list[object]],
    video_kind: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port, seen = listener
    where = f"127.0.0.1:{port}/a.mp4"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
        f'bandwidth="1"><BaseURL>http://{where}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    )
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://{where}\n#EXT-X-ENDLIST\n"
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    documents = {
        "list.m3u8": hls,
        "hls.mp4": hls,
        "concat.mp4": f"ffconcat version 1.0\nfile 'http://{where}'\n",
        "session.sdp": f"{sdp}m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "page.mpd": dash,
        "ram.rm": f"http://{where}\n",
        "asx.wmv": f'<asx version="3.0"><entry><ref href="http://{where}"/></entry></asx>',
    }
    for name, text in documents.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    # Files of that very name: FFmpeg would rather call the address.
    named = [f"{scheme}://{where}" for scheme in ("http", "tcp", "rtmp", "udp", "ftp", "rtp", "tls")]
    for name in named:
        os.makedirs(os.path.dirname(name))
        Path(name).write_bytes(video_kind("h264_bframes").read_bytes())
    address = f"http://{where}".replace("a.mp4", "absent.mp4")
    absent = [address, *(f"{p}:{address}" for p in ("concat", "subfile,,start,0,end,9,,", "async", "cache"))]
    names = [*documents, *named, *absent]
    result = check_samples([Sample(path=n, label=0) for n in names], workers=2, timeout_s=10)
    assert [r.path for r in result.reports if r.status == "ok"] == named
    for name in names:
        with contextlib.suppress(VideoError):
            probe_video(name)
        with contextlib.suppress(VideoError):
            optimize_file((name, str(tmp_path / "out.mp4")), config=OptimizeConfig())
    time.sleep(0.2)
    assert seen == []


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_names_with_colons_and_every_printable_letter(
    reader: str, video_kind: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = video_kind("h264_bframes").read_bytes()
    monkeypatch.chdir(tmp_path)
    printable = [chr(c) for c in range(32, 127) if chr(c) not in "/"]
    names = [
        "2024-05-01T10:20:00.mp4",
        "file:a.mp4",
        "pipe:0.mp4",
        "data:x,y.mp4",
        "subfile,,start,0,end,0,,:b.mp4",
        "-i.mp4",
        "C:\\v\\a.mp4",
        "%03d.mp4",
        "é:日.mp4",
    ]
    names += [f"a{c}b{c}.mp4" for c in printable]
    for name in names:
        Path(name).write_bytes(data)
        with open_video(name, backend="decord" if reader == "decord" else None) as video:
            assert video.read([0, 59]).shape == (2, 96, 128, 3)
    optimize_file(("2024-05-01T10:20:00.mp4", "out:put.mp4"), config=OptimizeConfig(short_side=64))
    assert read_clip("out:put.mp4", [0]).shape[1:3] == (64, 84)


def test_a_playlist_may_not_name_other_files(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    secret = video_kind("h264_mpegts")
    for name, text in (
        ("a.mp4", f"ffconcat version 1.0\nfile '{secret}'\n"),
        ("b.mp4", f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{secret}\n#EXT-X-ENDLIST\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(VideoError, match="unreadable"):
            probe_video(tmp_path / name)


def test_where_a_file_ends_inside_itself(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    for kind, what in (
        ("h264_bframes", "mdat box"),
        ("h264_mkv", "segment"),
        ("mpeg4_avi", "last RIFF chunk"),
        ("vp9", "segment"),
    ):
        data = video_kind(kind).read_bytes()
        path = tmp_path / "a"
        path.write_bytes(data[: len(data) // 2])
        assert ends_inside(str(path)) == f"the file ends at {len(data) // 2} bytes, inside its {what}"
        path.write_bytes(data + bytes(5000))  # what follows is no fault
        assert ends_inside(str(path)) in ("", None)
    path.write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    assert ends_inside(str(path)) is None
    live = bytearray(video_kind("vp9").read_bytes())
    at = live.index(b"\x18\x53\x80\x67") + 4
    live[at : at + 8] = b"\x01" + b"\xff" * 7  # a length that is not known
    path.write_bytes(live)
    assert ends_inside(str(path)) is None
