"""Exceptions with which a command fails, and their exit statuses."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """Invalid input from the user; the message names it and a valid alternative. Exit status 2."""


class Problems:
    """Gathers the messages of several checks, so that all are reported at once."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Note a problem."""
        self.messages.append(message)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Note a UserError instead of raising it."""
        try:
            yield
        except UserError as error:
            self.add(str(error))

    def raise_any(self) -> None:
        """Raise UserError with what was noted, if there is anything."""
        messages = list(dict.fromkeys(self.messages))
        if len(messages) > 1:
            raise UserError("\n- ".join([f"there are {len(messages)} problems:", *messages]))
        if messages:
            raise UserError(messages[0])


class TrainingError(Exception):
    """Training had to stop (divergence, full disk); the message says how to continue. Exit status 1."""


class InterruptedTrainingError(KeyboardInterrupt):
    """Training was stopped by a signal, and the run was saved. Exit status 128 + the signal's number.

    It is no `TrainingError`, so that code that goes on with another training after an error stops at Ctrl-C.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class PublishingError(Exception):
    """An upload failed although the input was valid; nothing is lost. Exit status 1."""


def first_line(error: Exception | str) -> str:
    """Return the first line of an error's message, without a full stop; without a message, its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
