"""The configuration folder, and the names that its options have."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
"""The configuration folder: inside the installed package, beside it in a checkout."""


def options(group: str) -> list[str]:
    """Lists the options of a group, in the order of the alphabet."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem[0] != "_")


def target_names() -> dict[str, str]:
    """Maps the `_target_` of each model, data set, likelihood and prior to its name on the command line."""
    files = [path for group in ("model", "dataset", "likelihood", "prior") for path in (CONF / group).glob("*.yaml")]
    matches = ((re.search(r"^_target_: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE), path) for path in files)
    return {match[1]: path.stem for match, path in matches if match}
