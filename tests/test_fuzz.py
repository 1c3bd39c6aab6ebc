"""Whatever is on the command line of a training is answered: trained, or refused with a line that says why.

`FUZZ=1600 pytest -n 0 -s tests/test_fuzz.py -k line` tries so many lines, each time others, and prints a report.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vaelab.training.fit
from tests.test_conf import composed, options
from vaelab.cli import main
from vaelab.core.conf import CONF
from vaelab.runs import read_config

LINES = int(os.environ.get("FUZZ", "30"))
BASE = [
    *("dataset=fake", "dataset.image_shape=[1,8,8]", "dataset.size=96", "dataset.batch_size=32"),
    *("trainer.max_epochs=2", "trainer.accelerator=cpu", "test=false", "report=false"),
]
FIXED = ["trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy=auto", "compile=false"]
"""Words at the end of each line: nothing starts other processes, waits for other machines, or compiles."""
GROUPS = sorted({path.parent.name for path in CONF.glob("*/*.yaml")} - {"experiment", "sweep", "accelerator"})
AVOIDED = {"wandb", "sprites"}
"""Options that start a process, or draw for seconds; those that may download are left out, too."""
NUMBERS = ["0", "1", "2", "3", "-1", "-2", "0.5", "1.5", "-0.0", "1e-300", "1e30", "1e300", "7", "nan", "inf", "-inf",
           "2147483647", "2147483648", "9223372036854775808", "18446744073709551616", "1" + "0" * 300]  # fmt: skip
WORDS = ["null", "true", "false", "none", "auto", "''", "x", "ünï", "'a b'", "[]", "{}", "[1,2]", "[null]", "{a:1}",
         "[[1]]", "${seed}", "${nowhere}", "${model}", "${trainer}", "${oc.env:HOME}", "???", "a,b", "=",
         "{_target_:builtins.len}", "{_target_:torch.nn.ReLU}", "{_target_:nowhere.X,_partial_:7}"]  # fmt: skip


def keys_of(node: Any, prefix: str = "") -> list[str]:
    """All keys of a config, sections included."""
    found = []
    for key, value in node.items() if isinstance(node, dict) else ():
        found += [f"{prefix}{key}", *keys_of(value, f"{prefix}{key}.")]
    return found


def safe(group: str) -> list[str]:
    """Options of a group that need no download and start nothing."""
    texts = {option: (CONF / group / f"{option}.yaml").read_text() for option in options(group)}
    return [option for option, text in texts.items() if option not in AVOIDED and "download" not in text]


CHOICES = [["schedule=linear"], ["model=beta"], ["model=capacity"], ["model=vqvae"], ["lr_schedule=plateau"],
           ["averaging=ema"], ["lr_schedule=cosine"], ["model=cvae"], []]  # fmt: skip
KEYS = {" ".join(chosen): keys_of(composed("dataset=fake", *chosen)) for chosen in CHOICES}
OF_OPTION = {f"{group}={option}" for group in GROUPS for option in safe(group)}


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A choice of options, and one to three words that set, add or remove something."""
    chosen = draw(st.sampled_from(sorted(KEYS)))
    words = []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(KEYS[chosen]))
        value = draw(st.sampled_from(NUMBERS) | st.sampled_from(WORDS) | st.text(max_size=6))
        words.append(
            draw(
                st.sampled_from([f"{key}={value}"] * 6 + [f"+{key}={value}", f"++{key}={value}", f"+{key}.new={value}"])
                | st.sampled_from([f"~{key}", f"{key}x={value}", f"{draw(st.sampled_from(GROUPS))}={value}"])
                | st.sampled_from(sorted(OF_OPTION))
            )
        )
    return [*chosen.split(), *words]


def finite(node: Any) -> bool:
    if isinstance(node, dict | list):
        return all(map(finite, node.values() if isinstance(node, dict) else node))
    return not isinstance(node, float) or math.isfinite(node)


@pytest.fixture
def one_step(monkeypatch):
    """Ends every training after its first step."""
    prepare = vaelab.training.fit.prepare

    def prepared(*arguments: Any) -> Any:
        data, model, trainer = prepare(*arguments)
        trainer.fit_loop.epoch_loop.max_steps = 1
        return data, model, trainer

    monkeypatch.setattr(vaelab.training.fit, "prepare", prepared)


def test_every_line_trains_or_is_refused_with_its_reason(tmp_path, monkeypatch, one_step, capsys):
    """A divergence of the first step is told, too, with exit code 1."""
    monkeypatch.chdir(tmp_path)
    outcomes: Counter[str] = Counter()
    began, count = time.monotonic(), itertools.count()

    @settings(
        max_examples=LINES,
        derandomize="FUZZ" not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=True,
    )
    @given(lines())
    def try_line(line: list[str]) -> None:
        folder = tmp_path / f"run-{next(count)}"
        try:
            code = main(["train", *BASE, *line, *FIXED, f"run.dir={folder}"])
            error = capsys.readouterr().err
        except BaseException as failure:
            outcomes[f"traceback: {type(failure).__name__}"] += 1
            if "FUZZ" in os.environ:
                with capsys.disabled():
                    print(f"\n{line}: {type(failure).__name__}: {str(failure)[:200]}")
                return
            raise
        outcomes[str(code)] += 1
        wrong = fault(code, error, folder)
        if wrong and "FUZZ" in os.environ:
            outcomes[wrong] += 1
            with capsys.disabled():
                print(f"\n{line}: {code}: {wrong}: {error[-200:]}")
            return
        assert not wrong, (line, error)

    try_line()
    with capsys.disabled():
        if "FUZZ" in os.environ:
            print(f"\n{sum(outcomes.values())} lines in {time.monotonic() - began:.0f} s: {dict(outcomes)}")


def fault(code: int, error: str, folder: Path) -> str | None:
    """What is wrong with how a line was answered; None if nothing is."""
    if "Traceback" in error:
        return "traceback"
    if code == 0:
        return None if finite(read_config(folder)) else "accepted what is not finite"
    said = [line for line in error.splitlines() if line.startswith("vaelab: ")]
    if code == 1:
        return None if len(said) == 1 and "diverged" in said[0] else "exit 1"
    if len(said) != 1:
        return "refused without a line"
    return "left a run" if (folder / "config.yaml").exists() else None
