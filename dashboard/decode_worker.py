"""`python -m vmae.dashboard.decode_worker FILE SECONDS`: decode a file that nobody vouches for.

Writes an .npz (frames uint8 [T, H, W, 3], fps, total) to standard output. On a bad file: `reason TAB detail`
on standard error and exit code 3.
"""

from __future__ import annotations

import io
import resource
import sys

import numpy as np

from vmae.core.errors import VmaeError

FAULT = 3
"""Exit code for a file whose fault it could name."""
MAX_FRAMES = 300
SHORT_SIDE = 224
MAX_DECODED_BYTES = 96 * 2**20
_MEMORY_LIMIT = 4 * 2**30


def main(path: str, seconds: float) -> int:
    """Limit this process, decode, write; see the module."""
    from vmae.core.video.reader import open_video

    cpu = max(1, round(seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        with open_video(path, timeout_s=seconds) as video:
            info = video.info
            height, width = info.resized(min(SHORT_SIDE, info.height, info.width))
            if height * width * 3 > MAX_DECODED_BYTES // 8:
                raise VmaeError(
                    f"frames of {info.width}x{info.height} pixels are too long and narrow to show"
                )
            count = min(info.num_frames, MAX_FRAMES, MAX_DECODED_BYTES // (height * width * 3))
            frames = video.read(np.arange(count), min(height, width))
    except VmaeError as e:
        reason = getattr(e, "reason", "unreadable")
        detail = getattr(e, "detail", str(e))
        # The file's place on this machine is nobody's business.
        print(f"{reason}\t{detail.replace(path, 'the file')}", file=sys.stderr)
        return FAULT
    buffer = io.BytesIO()
    np.savez(buffer, frames=frames, fps=info.fps, total=info.num_frames)
    sys.stdout.buffer.write(buffer.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
