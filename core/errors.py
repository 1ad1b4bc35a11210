"""The errors a user can cause. Each message says what was expected and what came."""

from __future__ import annotations


class VmaeError(Exception):
    """Base of all errors that the command line shows as one line with exit code 2."""


class InputError(VmaeError, ValueError):
    """A value, option, file or csv line that cannot be used as given."""


class VideoError(VmaeError):
    """A video file that cannot be decoded.

    `path` is the file; `reason` is the classified fault (for example `unreadable`,
    `truncated`, `no_video_stream`, `timeout`).
    """

    def __init__(self, path: str, reason: str, detail: str = "") -> None:
        self.path = str(path)
        self.reason = reason
        self.detail = detail
        super().__init__(f"{self.path}: {reason}" + (f": {detail}" if detail else ""))

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str, str]]:
        # Exceptions cross process boundaries (loader workers, Ray); the default would lose arguments.
        return type(self), (self.path, self.reason, self.detail)


class CheckpointError(VmaeError):
    """A checkpoint that is cut short, of another architecture, or unsafe to load."""


class TransientError(VmaeError):
    """What another attempt, later or elsewhere, may not meet: storage that is away, a full disk."""


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return `" (did you mean 'x'?)"` for the closest known word, or an empty string."""
    import difflib

    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
