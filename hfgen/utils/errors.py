"""The ways in which a command ends without success."""


class UserError(Exception):
    """What the user gave cannot work; the message names it and what would. The command exits with status 2."""


class TrainingError(Exception):
    """Training had to stop (divergence, no disk left); the message says how to go on. Exit status 1."""


class InterruptedTrainingError(TrainingError):
    """A signal asked training to stop, and the run was saved. Exit status 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class PublishingError(Exception):
    """An upload failed although nothing was wrong with what was asked; nothing is lost. Exit status 1."""


def first_line(error: Exception | str) -> str:
    """Return the first line of an error's message, without a full stop; without a message, its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
