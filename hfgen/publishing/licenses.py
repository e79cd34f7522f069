"""Licences: the Hub's identifiers, and the licences of training data."""

import difflib
import re
from pathlib import Path

import yaml
from huggingface_hub import DatasetCard, constants
from huggingface_hub.file_download import repo_folder_name

from hfgen.utils.errors import UserError

# Identifiers of the Hub: https://huggingface.co/docs/hub/repositories-licenses
LICENSES = [
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m",
    "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2",
    "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "grok2-community",
    "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by",
    "ofl-1.1", "open-mdw", "openmdw-1.0", "openrail", "openrail++", "osl-3.0", "other", "pddl", "postgresql",
    "unknown", "unlicense", "wtfpl", "zlib",
]  # fmt: skip

# Licences of well-known data sets, None if none is stated, and where this stands.
OF_DATA = {
    "digits": ("cc-by-4.0", "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"),
    "uoft-cs/cifar10": (None, "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "ylecun/mnist": ("cc-by-sa-3.0", "https://keras.io/api/datasets/mnist/"),
    "zalando-datasets/fashion_mnist": ("mit", "https://github.com/zalandoresearch/fashion-mnist"),
}


def check_license(spdx_license: str) -> None:
    """Validate a licence offline.

    Raises:
        UserError: naming the invalid one and similar valid ones.
    """
    if spdx_license not in LICENSES:
        word = re.sub(r"[\s_]+", "-", spdx_license.strip().lower())
        near = [word] if word in LICENSES else difflib.get_close_matches(word, LICENSES, n=3)
        meant = f"did you mean {' or '.join(near)}?" if near else "such as apache-2.0, mit, cc-by-4.0 or other"
        raise UserError(f"license must be an identifier of the Hub, not {spdx_license!r}; {meant}")


def data_license(name: str) -> dict[str, str | None]:
    """Return the licence of a data set as far as it is known offline.

    Args:
        name: Its public name: `digits`, a Hub id, or the name of a folder or file.

    Returns:
        `name`, `license` (an identifier of the Hub, or None) and `source` (an address, or None if nothing is known).
        The licence of another data set of the Hub is that of its card, if the cache has it.
    """
    stated, source = OF_DATA.get(name) or (_on_its_card(name), f"https://huggingface.co/datasets/{name}")
    return {"name": name, "license": stated, "source": source if stated or name in OF_DATA else None}


def _on_its_card(repo_id: str) -> str | None:
    """Return the licence on the newest cached card of a data set of the Hub, or None."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
        return None
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="dataset"))
    cards = sorted(folder.glob("snapshots/*/README.md"), key=lambda path: path.stat().st_mtime)
    try:
        stated = DatasetCard.load(cards[-1], ignore_metadata_errors=True).data.license if cards else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return ", ".join(map(str, stated)) if isinstance(stated, list) else stated and str(stated)
