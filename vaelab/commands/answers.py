"""Words an error for the user: the key, what is wrong with it, the remedy."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Sequence
from typing import Any

from vaelab.core import own
from vaelab.core.conf import CONF, options
from vaelab.core.errors import UserError
from vaelab.core.words import listed

EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Extra of the package that each launcher needs."""
OF_SEARCH = ("optimize", "direction", "n_trials", "n_jobs", "pruning")
"""Keys of hydra/sweeper=optuna that are written without `hydra.sweeper.`"""
SWEEPING = ("train", "plan")
"""Commands that take a sweep."""
OWN_KEYS = {"dataset@ood": "ood", "metric@metrics": "metric"}
"""Keys of `vaelab eval` that choose an option of a group, by what Hydra calls them."""
ALSO_CALLED = {
    "l2": "mse",
    "l1": "laplace",
    "mae": "laplace",
    "cuda": "gpu",
}
"""Names by which others call some options."""


def key_of(argument: str) -> str:
    """Returns the key of an argument, without the marks that add or remove it."""
    return argument.partition("=")[0].lstrip("+~")


def key_for(word: str, name: str) -> str:
    """Returns the key that a bare word may be meant for: the group with such an option, or the run."""
    groups = [path.parent.name for path in sorted(CONF.glob("*/*.yaml")) if path.stem == word.lower()]
    if "\nrun: " in (CONF / f"{name}.yaml").read_text():
        return "run"
    return groups[0] if groups else "model"


def raised_by_hydra(error: Exception) -> bool:
    """Whether Hydra or OmegaConf stumbled over the arguments: the innermost code that raised the error is theirs."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].partition(".")[0] in ("hydra", "omegaconf")


def message(error: Exception, name: str, arguments: list[str]) -> str:
    """Words an error for the user: the key, what is wrong, the remedy."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    text = str(error)
    if isinstance(error, UserError):
        return text
    if found := re.search(r"Ambiguous value for argument '([^'=]*)=([^']*)'", text):
        key, is_option = OWN_KEYS.get(found[1], found[1]), (CONF / found[1].partition("@")[0]).is_dir()
        of_list = "" if is_option else f"write [{found[2]}] for a list"
        in_sweep = f"several values are a sweep: vaelab {name} -m …" if name in SWEEPING else ""
        return f"{key}={found[2]}: {', or '.join(filter(None, (in_sweep, of_list))) or 'takes one option'}"
    if isinstance(error, MissingConfigException) and (found := re.search(r"Could not (?:find|load) '([^']*)'", text)):
        group, _, option = found[1].rpartition("/")
        listed = text.partition("Available options")[2].partition("Config search path")[0].splitlines()[1:]
        takes = [o.strip() for o in listed if o.strip() and not o.strip().startswith("_")] or options(group)
        if group == "hydra/launcher" and option in EXTRAS:
            return f'{group}={option} needs another package: pip install "vaelab[{EXTRAS[option]}]"'
        if not group or not takes:
            return f"there is no config '{found[1]}'"
        near = difflib.get_close_matches(option.lower(), takes, 1, 0.65) or [ALSO_CALLED.get(option.lower(), "")]
        hint = f"; did you mean {near[0]}?" if near[0] in takes else ""
        key = next((own for full, own in OWN_KEYS.items() if f"{full}={option}" in arguments), group)
        return f"{key}={option}: no such option{hint}\n  {key}= takes {', '.join(takes)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, and quote values with special characters"
    if found := re.search(r"Could not override '([^']*)'", text):
        key = found[1]
        if key.startswith("hydra.sweeper.") and key.rpartition(".")[2] in OF_SEARCH:
            return f"{key.rpartition('.')[2]}= is for a search: add hydra/sweeper=optuna, with -m"
        value = next((a.partition("=")[2] for a in arguments if key_of(a) == key), "")
        known = [k for k in keys_of(name, arguments, hydra=key.startswith("hydra.")) if k != key]
        hint = _option(key, value) or _renamed(key, known) or _elsewhere(key, known) or _near(key, known)
        return f"{key}: no such key{_in_jobs(key, name, arguments)}{hint}\n  vaelab {name} --cfg job prints all keys"
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or text.rpartition(": ")[2]
        return f"{key}: this value must be given: {key}=…"
    lines = [line.strip() for line in text.strip().splitlines()] or [type(error).__name__]
    if lines[0].startswith("Error merging override ") and len(lines) > 1:
        return f"{lines[0].removeprefix('Error merging override ')}: {lines[1]}"
    return lines[0]


def _in_jobs(key: str, name: str, arguments: list[str]) -> str:
    """Says with which options of its group a sweep has no such key, where others have it."""
    group = key.partition(".")[0]
    swept = next((a.partition("=")[2].split(",") for a in arguments if key_of(a) == group and "," in a), [])
    without = [option for option in swept if key not in keys_of(name, [*arguments, f"{group}={option}"])]
    return f" with {group}={listed(without)}" if 0 < len(without) < len(swept) else ""


def _option(key: str, value: str) -> str:
    """Recognises an option that was given to a key of its group: dataset.name=mnist is dataset=mnist."""
    group = key.partition(".")[0]
    there = "." in key and value in options(group)
    return f"; did you mean {group}={value}?" if there else ""


def _renamed(key: str, known: Sequence[str]) -> str:
    """Names what has taken a key's place: network.batch_norm=true is network.norm=batch."""
    return "; it is network.norm=batch or none" if key == "network.batch_norm" and "network.norm" in known else ""


def _elsewhere(key: str, known: Sequence[str]) -> str:
    """Names the options of the group that have such a key where the chosen one has not: model.beta is of model=beta."""
    group, _, rest = key.partition(".")
    first = rest.partition(".")[0]
    having = _having(group, first) if _takes(group, known) and f"{group}.{first}" not in known else []
    return f"; it belongs to {group}={listed(having)}" if having else ""


def _takes(group: str, known: Sequence[str]) -> bool:
    """Whether a command that knows these keys has options of a group to choose from."""
    return any(key.partition(".")[0] == group for key in known)


def _having(group: str, key: str) -> list[str]:
    """Returns the options of a group whose files have such a key."""
    return [option for option in options(group) if key and key in _keys(group, option)]


def _keys(group: str, option: str) -> set[str]:
    """Returns the keys in the file of an option, and in those of its group that it starts from."""
    import yaml

    content = yaml.safe_load((CONF / group / f"{option}.yaml").read_text()) or {}
    from_ = [entry for entry in content.get("defaults", []) if isinstance(entry, str) and entry in options(group)]
    return set(content).union(*(_keys(group, entry) for entry in from_))


def _near(key: str, known: Sequence[str]) -> str:
    """Says which of the known keys may be meant: one beside it, one of that name elsewhere, or one that looks alike."""
    parent, _, last = key.rpartition(".")
    beside = [k.rpartition(".")[2] for k in known if parent and k.rpartition(".")[0] == parent and k[-1] != "_"]
    if near := _alike(last, beside):
        return f"; did you mean {parent}.{near[0]}?"
    if beside:
        return f"; {parent} has {', '.join(beside)}"
    if parent in known:
        choices = options(parent)
        return f"; {parent} has no keys as it is" + (f": {parent}= takes {', '.join(choices)}" if choices else "")
    leaves = [k for k in known if not any(other.startswith(f"{k}.") for other in known)]
    for names in (f".{last}", f"_{last}"):
        if found := [k for k in leaves if k.endswith(names)]:
            return f"; did you mean {found[0]}?"
    for group in ("model", *sorted(path.name for path in CONF.iterdir() if path.is_dir())):
        if not parent and _takes(group, known) and (having := _having(group, last)):
            return f"; did you mean {group}.{last}? It belongs to {group}={listed(having)}"
    near = difflib.get_close_matches(key, known, 1, 0.65)
    return f"; did you mean {near[0]}?" if near else ""


def _alike(word: str, known: Sequence[str]) -> list[str]:
    """Returns the known words that `word` is the end of, or else the one that looks like it."""
    return [k for k in known if k.endswith(f"_{word}")] or difflib.get_close_matches(word, known, 1, 0.6)


def keys_of(name: str, arguments: list[str], hydra: bool = False) -> list[str]:
    """Returns all keys and groups of the config, composed from the arguments that choose an option of a group.

    hydra: whether Hydra's own are among them.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    groups = sorted(p.name for p in CONF.iterdir() if p.is_dir())
    own_groups = ("hydra/launcher", "hydra/sweeper") if hydra else ()
    chosen = [a for a in arguments if a.partition("=")[0] in (*groups, *own_groups) and "," not in a]
    mine = [f"hydra.searchpath=[{folder.as_uri()}]"] if (folder := own.options_folder()) else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(name, overrides=[*chosen, *mine], return_hydra_config=hydra)
    except HydraException:
        return keys_of(name, [], hydra) if chosen else groups

    def walk(node: Any, prefix: str) -> list[str]:
        keys = []
        for key in node:
            keys.append(f"{prefix}{key}")
            value = node._get_node(key)
            if isinstance(value, DictConfig) and not value._is_interpolation() and not value._is_none():
                keys += walk(value, f"{prefix}{key}.")
        return keys

    return walk(config, "") + [group for group in groups if group in config]
