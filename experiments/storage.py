"""Where a run directory's files are kept: in a folder, or on an object store (`--runs-dir s3://bucket/folder`).

`Storage` is what work asks for, wherever it is: in a folder there is nothing to copy. On an object store
training, the trials' small files and the spool work on folders: on every machine they are local ones, and
what must outlive the machine is copied to the store, file by file, at every checkpoint and the end of every
stage (small files also every few seconds). A trial that starts elsewhere fetches its folder first. An object
appears whole or not at all, and a training checkpoint carries its own checksum, so a copy that was cut short
is passed over for the one before.

File systems are pyarrow's, as Ray Tune's are: `s3://`, `gs://`, `hdfs://`, `file://`, and whatever fsspec has
an implementation for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmae.core.errors import InputError, TransientError
from vmae.core.files import replacing
from vmae.experiments.background import repeated
from vmae.experiments.layout import RunsDir
from vmae.experiments.locks import claim, given_up

SCRATCH_ENV = "VMAE_SCRATCH"
SMALL = (".json", ".jsonl", ".offset")
"""Files of a trial's own folder that are copied every few seconds."""
EVERY_S = 3.0
PART = ".part"
"""Ending of a file that is being written, where files appear before they are whole."""
CLAIM = "claim-"
"""Beginning of the object that says whose a name on an object store is."""
Wanted = Callable[[str], bool]
"""Whether a file is asked for, by its name from the run directory on."""
_TRIES = 3
_CLAIMS = 6  # attempts at a name that another machine asks for at the same moment


class StorageAway(TransientError):
    """The object store did not answer; another attempt may find it there."""


def scratch(uri: str, role: str) -> Path:
    """This machine's folder for what it needs of `uri`: `$VMAE_SCRATCH` or the temporary folder's.

    `role` keeps the copies of the driver and of each trial apart: none may overwrite what another one is just
    writing. Decoded clips are shared.
    """
    base = Path(os.environ.get(SCRATCH_ENV) or Path(tempfile.gettempdir()) / f"vmae-{os.getuid()}")
    home = base / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:12]
    folder = home / role
    folder.mkdir(parents=True, exist_ok=True)
    shared = RunsDir(home).cache
    shared.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        RunsDir(folder).cache.symlink_to(shared)
    return folder


@dataclass(frozen=True)
class Seen:
    """A file's size in bytes and when it was written, in seconds since 1970."""

    size: int
    modified: float


class Storage:
    """A run directory as work sees it: files lie below the folder `local`, and what is pushed is kept.

    This one is a folder that every process of the work sees under the same path: nothing is copied.
    All methods take paths below `local`. Those that ask an object store raise StorageAway where it did not
    answer, three times.
    """

    uri = ""
    """Of an object store, else empty."""
    every_s = 1.0
    """Seconds between two looks at what others wrote that nobody minds."""
    locks = True
    """Whether a lock on a file of `local` keeps every other process out, wherever it runs."""
    fs: Any = None
    """pyarrow's file system for `place`; None for this machine's."""

    def __init__(self, local: Path) -> None:
        self.local = local

    def check(self) -> None:
        """Raise InputError where nothing can be written there (of a folder, whoever writes says so)."""

    def url(self, path: Path) -> str:
        """Where a file or folder is found from any machine."""
        return str(path)

    def place(self, path: Path) -> str:
        """Where a file or folder is in the file system `fs`."""
        return str(path.resolve())

    def push(self, folder: Path, *, deep: bool = True) -> None:
        """Keep what changed below `folder`, and delete there what is gone here (deep only).

        Without `deep` only the small files of the folder itself. Hidden files stay here.
        """

    def push_file(self, path: Path) -> None:
        """Keep one file."""

    def pull(self, folder: Path, *, only: Wanted | None = None, fresh: bool = False) -> None:
        """Fetch what is new below `folder`: all of it, or the files that `only` wants.

        With `fresh` what is here and not there (of those files) is deleted first.
        """

    def pull_file(self, path: Path) -> None:
        """Fetch one file; nothing where there is none."""

    def listing(self, folder: Path) -> dict[Path, Seen]:
        """The files kept below `folder`."""
        found = {}
        for inside, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # a run is at work
                    stat = os.lstat(f"{inside}/{name}")
                    found[Path(inside, name)] = Seen(stat.st_size, stat.st_mtime)
        return found

    def delete(self, path: Path) -> None:
        """Delete a file or folder, here and there; nothing where there is none."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def claim(self, folder: Path) -> bool:
        """Make a folder that is not there: whoever does has its name, and only one process anywhere can."""
        return claim(folder)

    @contextlib.contextmanager
    def given_up(self, folder: Path, above: int = 1) -> Iterator[None]:
        """Where the body fails before anything was put into a claimed folder, its name is free again; so many
        folders above it go too, if they are empty then."""
        with given_up(folder, above=above):
            yield

    @contextlib.contextmanager
    def kept_up(self, home: Path) -> Iterator[None]:
        """While the body runs, the small files of `home` are kept every few seconds."""
        yield

    @contextlib.contextmanager
    def own_copy(self, role: str) -> Iterator[Storage]:
        """The same files for a process of its own, perhaps on another machine: `local` may be another folder.

        It holds nothing yet (`pull` what is needed), and is deleted when the body has ended well.
        """
        yield self


class Mirror(Storage):
    """An object store's files under `uri` and their copies under `local`, by the same relative names.

    Sent to another process it is made anew there. Raises InputError where there is no file system for the
    URI.
    """

    every_s = EVERY_S
    locks = False

    def __init__(self, uri: str, local: Path) -> None:
        super().__init__(local)
        self.uri = uri.rstrip("/")
        self._lock = threading.Lock()
        self._sent: dict[str, Seen] = {}
        self._got: dict[str, Seen] = {}
        self.fs, self.root = file_system(uri)

    def __reduce__(self) -> tuple[type[Mirror], tuple[str, Path]]:
        return Mirror, (self.uri, self.local)

    def url(self, path: Path) -> str:
        return f"{self.uri}/{path.relative_to(self.local).as_posix()}"

    def place(self, path: Path) -> str:
        return f"{self.root}/{self._key(path)}"

    def check(self) -> None:
        try:
            self.fs.create_dir(self.root, recursive=True)
            with self.fs.open_output_stream(f"{self.root}/.check") as out:
                out.write(b"ok")
            self.fs.delete_file(f"{self.root}/.check")
        except Exception as e:
            text = (str(e).splitlines() or [type(e).__name__])[0]
            raise InputError(
                f"--runs-dir: expected storage that can be written, got {self.uri}: {text}"
            ) from e

    def push(self, folder: Path, *, deep: bool = True) -> None:
        with self._lock:
            self._again(lambda: self._push(folder, deep))

    def push_file(self, path: Path) -> None:
        with self._lock:
            self._again(lambda: self._send(path))

    def pull_file(self, path: Path) -> None:
        from pyarrow.fs import FileType

        def work() -> None:
            info = self.fs.get_file_info(f"{self.root}/{self._key(path)}")
            if info.type == FileType.File:
                self._fetch(self._key(path), info)

        with self._lock:
            self._again(work)

    def pull(self, folder: Path, *, only: Wanted | None = None, fresh: bool = False) -> None:
        with self._lock:
            self._again(lambda: self._pull(folder, only or (lambda name: True), fresh))

    def listing(self, folder: Path) -> dict[Path, Seen]:
        found: dict[str, Any] = self._again(lambda: self._list(folder))
        return {self.local / key: Seen(info.size, _modified(info)) for key, info in found.items()}

    def delete(self, path: Path) -> None:
        from pyarrow.fs import FileType

        def work() -> None:
            place = f"{self.root}/{self._key(path)}"
            kind = self.fs.get_file_info(place).type
            if kind == FileType.Directory:
                self.fs.delete_dir(place)
            elif kind == FileType.File:
                self.fs.delete_file(place)

        with self._lock:
            self._again(work)
        super().delete(path)

    def claim(self, folder: Path) -> bool:
        if not super().claim(folder):
            return False
        mine = f"{self._key(folder)}/{CLAIM}{uuid.uuid4().hex}"
        try:
            for attempt in range(_CLAIMS):
                alone = self._again(lambda: self._alone(folder, mine))
                if alone is not None:
                    break
                # At the same moment as another machine: neither has it, and who asks first next time does.
                time.sleep(random.uniform(0, 0.2 * 2**attempt))
        except BaseException:
            folder.rmdir()
            raise
        if not alone:
            folder.rmdir()
        return bool(alone)

    def _alone(self, folder: Path, mine: str) -> bool | None:
        """Whether this process alone has a folder's name; None where another tried at the same time.

        Object stores have no exclusive creation that all file systems here offer. But what is written is
        listed at once: of two that both write a claim before they list, at least one sees the other's, and
        whoever sees one takes its own back.
        """
        if set(self._list(folder)) - {mine}:
            return False
        place = f"{self.root}/{mine}"
        if self._local_store:
            self.fs.create_dir(place.rpartition("/")[0], recursive=True)
        with self.fs.open_output_stream(place) as out:
            out.write(b"claimed")
        if not set(self._list(folder)) - {mine}:
            return True
        self.fs.delete_file(place)
        return None

    @contextlib.contextmanager
    def given_up(self, folder: Path, above: int = 1) -> Iterator[None]:
        try:
            with super().given_up(folder, above):
                yield
        except BaseException:
            if not folder.exists():
                with contextlib.suppress(StorageAway):
                    self.delete(folder)
            raise

    @contextlib.contextmanager
    def kept_up(self, home: Path) -> Iterator[None]:
        def copy() -> None:
            with contextlib.suppress(StorageAway):  # waited out
                self.push(home, deep=False)

        with repeated(copy, EVERY_S, "mirror"):
            yield

    @contextlib.contextmanager
    def own_copy(self, role: str) -> Iterator[Storage]:
        local = scratch(self.uri, role)
        yield Mirror(self.uri, local)
        shutil.rmtree(local)

    def _again(self, work: Callable[[], Any]) -> Any:
        for attempt in range(1, _TRIES):
            try:
                return work()
            except OSError:
                time.sleep(attempt)
        try:
            return work()
        except OSError as e:
            text = (str(e).splitlines() or [type(e).__name__])[0]
            raise StorageAway(f"expected {self.uri} to answer, got: {text}") from e

    def _key(self, path: Path) -> str:
        return path.relative_to(self.local).as_posix()

    def _push(self, folder: Path, deep: bool) -> None:
        files = [
            p
            for p in (folder.rglob("*") if deep else folder.glob("*"))
            if p.is_file()
            and not any(part.startswith(".") for part in p.relative_to(folder).parts)
            and (deep or p.suffix in SMALL)
        ]
        for path in sorted(files):
            with contextlib.suppress(FileNotFoundError):  # an old checkpoint, deleted meanwhile
                self._send(path)
        if deep:
            here = {self._key(p) for p in files}
            gone = [k for k in self._sent if k.startswith(self._key(folder) + "/") and k not in here]
            for key in gone:
                if not (self.local / key).exists():
                    with contextlib.suppress(FileNotFoundError):
                        self.fs.delete_file(f"{self.root}/{key}")
                    del self._sent[key]

    def _send(self, path: Path) -> None:
        stat = path.stat()
        now, key = Seen(stat.st_size, stat.st_mtime), self._key(path)
        if self._sent.get(key) == now:
            return
        target = f"{self.root}/{key}"
        if self._local_store:
            self.fs.create_dir(target.rpartition("/")[0], recursive=True)
        name = f"{target}{PART}" if self._local_store else target
        with open(path, "rb") as source, self.fs.open_output_stream(name) as out:
            shutil.copyfileobj(source, out, 1 << 20)
        if self._local_store:
            self.fs.move(name, target)
        self._sent[key] = now

    @property
    def _local_store(self) -> bool:
        # Folders must be made, and files appear before they are whole; an object store has neither trouble.
        return str(self.fs.type_name) == "local"

    def _list(self, folder: Path) -> dict[str, Any]:
        from pyarrow.fs import FileSelector, FileType

        place = f"{self.root}/{self._key(folder)}" if folder != self.local else self.root
        found = self.fs.get_file_info(FileSelector(place, allow_not_found=True, recursive=True))
        return {f.path[len(self.root) + 1 :]: f for f in found if f.type == FileType.File}

    def _pull(self, folder: Path, wanted: Wanted, fresh: bool) -> None:
        files = {k: f for k, f in self._list(folder).items() if wanted(k) and not k.endswith(PART)}
        if fresh:
            for path in folder.rglob("*") if folder.is_dir() else ():
                key = self._key(path)
                if path.is_file() and key not in files and wanted(key):
                    path.unlink()
        for key, info in sorted(files.items()):
            self._fetch(key, info)

    def _fetch(self, key: str, info: Any) -> None:
        there = Seen(info.size, _modified(info))
        path = self.local / key
        if self._got.get(key) == there and path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            with self.fs.open_input_stream(info.path) as source, open(temporary, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            # The latest sweep, or a run that is quiet for long, is told by its files' times.
            os.utime(temporary, (there.modified, there.modified))
        self._got[key] = there
        stat = path.stat()
        self._sent[key] = Seen(stat.st_size, stat.st_mtime)


def _modified(info: Any) -> float:
    return float(info.mtime.timestamp()) if info.mtime else 0.0


def open_storage(uri: str, local: Path) -> Storage:
    """The storage of a run directory: the object store at `uri` with copies in `local`, or `local` alone."""
    return Mirror(uri, local) if uri else Storage(local)


def fetched(uri: str, target: Path) -> Path:
    """A folder of an object store as a local one, in `target`; InputError where there is nothing."""
    from pyarrow.fs import FileSelector, FileType

    fs, root = file_system(uri)
    try:
        found = fs.get_file_info(FileSelector(root, recursive=True))
    except OSError as e:
        raise InputError(f"expected a folder at {uri}, got: {str(e).splitlines()[0]}") from e
    for info in found:
        if info.type == FileType.File:
            path = target / info.path[len(root) + 1 :]
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                replacing(path) as temporary,
                fs.open_input_stream(info.path) as source,
                open(temporary, "wb") as out,
            ):
                shutil.copyfileobj(source, out, 1 << 20)
    return target


def file_system(uri: str) -> tuple[Any, str]:
    """pyarrow's file system of a URI (or an absolute path), and the place in it; InputError without one."""
    import pyarrow.fs

    whole = uri
    if uri.startswith("s3://") and "allow_delayed_open" not in uri:
        # A small file is one request then, not the three of an upload in parts.
        whole += ("&" if "?" in uri else "?") + "allow_delayed_open=true"
    try:
        fs, root = pyarrow.fs.FileSystem.from_uri(whole)
    except Exception as first:
        try:
            import fsspec

            found, root = fsspec.core.url_to_fs(uri)
            fs = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(found))
        except Exception as e:
            text = (str(first).splitlines() or [type(first).__name__])[0]
            raise InputError(
                f"--runs-dir: expected a folder or a URI such as s3://, got {uri}: {text}"
            ) from e
    return fs, str(root).rstrip("/")
