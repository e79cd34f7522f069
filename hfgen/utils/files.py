"""Atomic writing of files and folders."""

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from tqdm import tqdm

from hfgen.utils.errors import UserError

INCOMPLETE = ".incomplete-"


def local_path(name: str) -> Path:
    """Return a path with `~` expanded, except for an unknown user."""
    return Path(os.path.expanduser(name))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UserError with one message where a file or folder cannot be written, as on a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.EPIPE):  # of a connection, or of standard output
            raise
        place = path if error.filename is None or INCOMPLETE in str(error.filename) else error.filename
        raise UserError(f"{place} cannot be written: {error.strerror}") from error


def check_output(path: Path, *, is_folder: bool) -> None:
    """Check that a file or a folder can be written, before the work of which it is the result.

    Raises:
        UserError: naming what is in the way.
    """
    with writing(path):
        there = next(place for place in (path, *path.parents) if place.exists())
        if there == path and path.is_dir() != is_folder:
            raise UserError(f"{path} is a {'file' if is_folder else 'folder'}; choose another output")
        if there != path and not there.is_dir():
            raise UserError(f"{path} cannot be written: {there} is a file")
        folder = there if there.is_dir() else there.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{path} cannot be written: {folder} is read-only")


@contextlib.contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file or a folder, and rename it to `path` at the end.

    The data are flushed to disk before the rename (fsync), so that neither a kill nor a power failure leaves a partial
    file under the final name. An existing file is replaced; a folder must not exist. If the block raises, the
    temporary path is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{INCOMPLETE}{os.getpid()}-{path.name}")
    try:
        yield temporary
        for written in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            _flush_to_disk(written)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)
    except BaseException:
        remove(temporary)
        raise


@contextlib.contextmanager
def parts_complete_or_absent(folder: Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder, then move its contents to `folder`, the entry `last` (such as an index) at the end."""
    temporary = folder / f"{INCOMPLETE}{os.getpid()}-parts"
    temporary.mkdir()
    try:
        yield temporary
        for part in sorted(temporary.iterdir(), key=lambda path: path.name == last):
            remove(folder / part.name)
            with complete_or_absent(folder / part.name) as place:
                os.replace(part, place)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file, link or folder if it exists; a folder is renamed first, so that it is never seen half-removed."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f"{INCOMPLETE}{os.getpid()}-removed-{path.name.removeprefix(INCOMPLETE)}")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove temporary files of killed processes in `folder` (not below it), for one name or any."""
    for leftover in folder.iterdir() if folder.is_dir() else []:
        written = re.fullmatch(rf"{re.escape(INCOMPLETE)}(\d+)-(?:removed-)?(.*)", leftover.name, re.DOTALL)
        if written and name in ("*", written[2]) and not _is_written_by_another(int(written[1])):
            remove(leftover)


def _is_written_by_another(process: int) -> bool:
    return process != os.getpid() and psutil.pid_exists(process)


def say_damaged(path: Path) -> None:
    """Print that a damaged cache file will be recreated."""
    tqdm.write(f"hfgen: {path} is damaged and will be recreated", file=sys.stderr)


def _flush_to_disk(path: Path) -> None:
    on_windows = os.name == "nt"
    if on_windows and path.is_dir():  # Windows flushes folders itself, and cannot open them
        return
    descriptor = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
