"""Where a study is recorded: a journal file, or a database."""

import contextlib
import logging
import os
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from hfgen.utils.errors import UserError, first_line
from hfgen.utils.privacy import without_password

RACES = 2  # lost at most, with others that prepare the same empty database: for the tables, and for their version


class _Lock:
    """A lock that is free as soon as its owner is dead, and leaves a journal of whole lines to the next one.

    Optuna's own locks are freed after a time.
    """

    def __init__(self, journal: Path):
        self.journal = journal
        self.lock = FileLock(journal.with_name(f"{journal.name}.lock"))

    def acquire(self) -> bool:
        self.lock.acquire()
        _remove_incomplete_line(self.journal)
        return True

    def release(self) -> None:
        self.lock.release()


def open_storage(place: str) -> BaseStorage:
    """Open or create a storage.

    Args:
        place: The path of a file, or the URL of a database.

    Raises:
        UserError: if it cannot be used.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        if "://" in place:
            return _open_database(place)
        file = Path(place).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = _Lock(file)
        lock.acquire()
        lock.release()
        return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
    except (ImportError, OSError, ValueError, SQLAlchemyError, StorageInternalError) as error:
        why = first_line(error.__cause__ or error)
        raise UserError(f"storage {without_password(place)} cannot be used: {why}") from error


def _open_database(url: str) -> RDBStorage:
    """Open a database; if it is empty, Optuna prepares it, which fails where another process is doing so."""
    for _ in range(RACES):
        with contextlib.suppress(SQLAlchemyError):
            return RDBStorage(url)
    return RDBStorage(url)


def _remove_incomplete_line(file: Path) -> None:
    """Remove the end of a journal that a power failure or a full disk left behind, which Optuna could not read."""
    if not file.is_file() or not file.stat().st_size:
        return
    with open(file, "rb") as journal:
        journal.seek(-1, os.SEEK_END)
        is_complete = journal.read() == b"\n"
    if not is_complete:
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
