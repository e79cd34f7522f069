"""Texts without the places on this machine."""

import re
from typing import Any

# What begins a path of any machine: /a, \\a, C:\a, ~, file:; not what stands within a word or an address.
PLACE = re.compile(r"(?<![^\s=:;,\"'`|(\[{@<>])(file:|[A-Za-z]:[\\/]|[\\/]{1,2}(?=[^\s\\/])|~)(?<!://)")


def public_value(value: Any) -> Any:
    """Take the places on this machine from a value of a configuration, whatever it holds."""
    if isinstance(value, list):
        return [public_value(item) for item in value]
    if isinstance(value, dict):
        return {name: public_value(item) for name, item in value.items()}
    return public_text(value) if isinstance(value, str) else value


def public_text(text: str) -> str:
    """Take the places on this machine from a text, and leave everything else as it is.

    What is a path as a whole, absolute, with `..`, or from someone's home, becomes its last name; of other texts, such
    as `train_data_dir=/a/b,/c/d` or a sentence, so does what begins like such a path, up to the next comma or the end.
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
    """Return the last part of a path of any system that names something, or nothing."""
    names = [name for name in re.split(r"[\\/]", path) if name.strip() not in ("", ".", "..")]
    of_user = len(names) == 1 and re.match("~|file:|[A-Za-z]:", path)
    of_home = len(names) == 2 and names[0] in ("home", "Users")
    return "" if not names or of_user or of_home else names[-1]
