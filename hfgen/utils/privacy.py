"""Removal of local paths and passwords from texts."""

import re
from typing import Any

# Start of a path on any system: /a, \\a, C:\a, ~, file:; not inside a word or URL.
PLACE = re.compile(r"(?<![^\s=:;,\"'`|(\[{@<>])(file:|[A-Za-z]:[\\/]|[\\/]{1,2}(?=[^\s\\/])|~)(?<!://)")

PASSWORD = re.compile(r"(://[^:/]*:).*(?=@)|([?&]password=)[^&]*")  # in a URL


def without_password(text: str) -> str:
    """Mask the password in a URL, such as that of a database."""
    return PASSWORD.sub(r"\1\2***", text)


def public_value(value: Any) -> Any:
    """Remove local paths from any value of a configuration."""
    if isinstance(value, list):
        return [public_value(item) for item in value]
    if isinstance(value, dict):
        return {name: public_value(item) for name, item in value.items()}
    return public_text(value) if isinstance(value, str) else value


def public_text(text: str) -> str:
    """Remove local paths from a text.

    A text that is an absolute path, contains `..`, or starts in a home folder is replaced by its last component. In
    other texts, such as `train_data_dir=/a/b,/c/d` or a sentence, so is everything from the start of such a path to
    the next comma or the end.
    """
    if PLACE.match(text) or _climbs(text):
        return _last_name(text)
    parts = []
    for part in text.split(","):
        found = PLACE.search(part)
        start = found.start() if found else 0 if _climbs(part) else len(part)
        parts.append(part[:start] + (_last_name(part[start:]) if start < len(part) else ""))
    return ",".join(parts)


def _climbs(text: str) -> bool:
    return ".." in re.split(r"[\\/=:\s]", text)


def _last_name(path: str) -> str:
    """Return the last meaningful component of a path of any system, or an empty string."""
    names = [name for name in re.split(r"[\\/]", path) if name.strip() not in ("", ".", "..")]
    of_user = len(names) == 1 and re.match("~|file:|[A-Za-z]:", path)
    of_home = len(names) == 2 and names[0] in ("home", "Users")
    return "" if not names or of_user or of_home else names[-1]
