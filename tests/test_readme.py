"""The README's first command, literally, from an empty folder; and every command that the docs give."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vaelab.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """(page, command) for each `vaelab …` line of a code block, with continuation lines joined."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(), re.S | re.M)
        for block in (text for language, text in blocks if language in ("", "bash", "sh", "console")):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("$ ").partition("  #")[0].strip()
                if line.startswith(tuple(f"vaelab {command}" for command in COMMANDS)):
                    found.append((page.name, line))
    return sorted(set(found))


def words_of(command: str) -> list[str]:
    return [word for word in shlex.split(command)[1:] if word not in ("-m", "--multirun")]


@pytest.mark.slow
def test_the_first_command_trains_in_time(tmp_path):
    text = (ROOT / "README.md").read_text()
    first = re.search(r"```(?:bash|sh)?\n(.*?)```", text, re.S)[1].strip()
    install, _, command = first.partition(" && ")
    assert install == "pip install -e ."
    started = time.monotonic()
    words = shlex.split(command)
    path = Path(sys.executable).parent / words[0]
    done = subprocess.run([path, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert "run: outputs/" in done.stdout
    assert time.monotonic() - started < 300  # under 90 s on two free cores; tests share theirs


def composable() -> list[tuple[str, str]]:
    """Those that stand by themselves: none that goes on with an earlier run, or prints help."""
    return [at for at in commands() if not any(w.startswith(("resume=", "-")) for w in words_of(at[1]))]


@pytest.mark.parametrize(("page", "command"), composable())
def test_every_documented_command_composes(page, command, monkeypatch, capsys, tmp_path):
    """Unknown options and keys would be refused here."""
    from vaelab.cli import main

    if command.startswith("vaelab data check"):  # which takes a file and no config
        command = "vaelab data prepare out=x"
    words = words_of(command)
    monkeypatch.chdir(tmp_path)
    if begun := re.search(r"(model|network|dataset|metric)=mine", command):  # what `vaelab new` writes
        assert main(["new", begun[1], "mine"]) == 0
    # a sweep's lists and spaces become their first value
    words = [re.sub(r"=(?:tag\(\w+, *)?(?:interval|range)\(([^,]*),.*", r"=\1", w) for w in words]
    single = [re.sub(r"=([^\[{(]*?),.*", r"=\1", w) for w in words]
    assert main([*single, "--cfg", "job"]) == 0, capsys.readouterr().err


def test_documented_evaluations_name_their_run():
    assert not [at for at in commands() if at[1].startswith("vaelab eval") and "run=" not in at[1]]


@pytest.mark.parametrize("word", COMMANDS)
def test_every_command_has_help_a_page_and_a_config_of_the_keys_that_it_reads(word, capsys, monkeypatch, tmp_path):
    """A new command is tested by being in COMMANDS."""
    from vaelab.cli import main
    from vaelab.core.conf import CONF

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^0$"):
        main([word, "--help"])
    assert f"vaelab {word}" in capsys.readouterr().out
    assert any(re.search(rf"vaelab {word}\b", page.read_text()) for page in PAGES)
    options = getattr(importlib.import_module(COMMANDS[word][0]), "Options", None)
    if dataclasses.is_dataclass(options):
        config = yaml.safe_load((CONF / f"{word}.yaml").read_text())
        groups = {key for entry in config["defaults"] if isinstance(entry, dict) for key in entry if " " not in key}
        names = {field.name for field in dataclasses.fields(options)}
        keys = {"from" if name == "start" else name for name in names}  # `from` is no name in Python
        assert keys == groups | set(config) - {"defaults", "hydra"}
