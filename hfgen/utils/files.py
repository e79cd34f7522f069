"""Files and folders that are complete or absent, whatever happens while they are written."""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from tqdm import tqdm

INCOMPLETE = ".incomplete-"


def local_path(name: str) -> Path:
    """Return the path of a name in which `~` is a home folder; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(name))


@contextlib.contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write a file or a folder to; it takes the name `path` at the end.

    The data is on disk before the name is (fsync, then rename), so that neither a kill nor a power cut leaves half
    a file under the final name. A file that was there is replaced; a folder must not be there. When the block
    raises, what it wrote is removed.
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
    """Give a temporary folder whose parts then move into `folder`, the one named `last` (an index, say) at the end."""
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
    """Remove a file, a link or a folder, if it is there; a folder loses its name first: no half of it is ever seen."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f"{INCOMPLETE}{os.getpid()}-removed-{path.name.removeprefix(INCOMPLETE)}")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what processes that were killed were writing in `folder` (not below it), under one name or any."""
    for leftover in folder.iterdir() if folder.is_dir() else []:
        written = re.fullmatch(rf"{re.escape(INCOMPLETE)}(\d+)-(?:removed-)?(.*)", leftover.name, re.DOTALL)
        if written and name in ("*", written[2]) and not _is_written_by_another(int(written[1])):
            remove(leftover)


def _is_written_by_another(process: int) -> bool:
    return process != os.getpid() and psutil.pid_exists(process)


def say_damaged(path: Path) -> None:
    """Say that a file which can be made anew cannot be read, and is made anew."""
    tqdm.write(f"hfgen: {path} is damaged, and is made anew", file=sys.stderr)


def _flush_to_disk(path: Path) -> None:
    on_windows = os.name == "nt"
    if on_windows and path.is_dir():  # which it flushes itself, and cannot open
        return
    descriptor = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
