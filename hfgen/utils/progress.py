"""Progress bars: widgets in a notebook, else lines on standard error."""

import sys
from typing import Any

from tqdm.auto import tqdm

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 10  # between updates


def progress_bar(*arguments: Any, **options: Any) -> tqdm:
    """Return a bar with tqdm's arguments, which is updated less often where its lines pile up, as in a log file."""
    return tqdm(*arguments, **{"mininterval": TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS} | options)
