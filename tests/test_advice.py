"""`vaelab bench advise=true`: it advises what is faster, and nothing else."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import vaelab.training.fit
from tests.conftest import SMALL
from tests.test_bench import Slow
from vaelab.cli import main
from vaelab.sweeps import advice

BF16, COMPILE, GRAPH, LAYOUT = "trainer.precision=bf16-mixed", "compile=true", "cuda_graph=true", "channels_last=true"
ALL = tuple(advice.OPTIONS)


@pytest.fixture
def advise(tmp_path, monkeypatch, capsys):
    """Runs `vaelab bench advise=true` in an empty folder. Returns exit code, figures, printed text, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        common = [*(s for s in SMALL if "epochs" not in s), "bench.steps=3", "bench.rounds=2"]
        code = main(["bench", "advise=true", *common, "bench.output=figures.json", *arguments])
        file = tmp_path / "figures.json"
        return code, json.loads(file.read_text()) if file.exists() else {}, *capsys.readouterr()

    return run


@pytest.fixture
def machine(monkeypatch):
    """Stands in for a machine: a step takes what `of` says of the options that a run has. `lacks` are not tried."""

    def prepare(of, lacks=()):
        class Lab(advice.Lab):
            def round(self, steps):
                chosen = {
                    words for words, option in advice.OPTIONS.items() if option.chosen(self.config) == option.value
                }
                return of(frozenset(chosen))

        monkeypatch.setattr(advice, "Lab", Lab)
        monkeypatch.setattr(vaelab.training.fit, "capture", lambda *_: None)
        told = {
            w: o._replace(lacking=lambda lab, w=w: "none" if w in lacks else None) for w, o in advice.OPTIONS.items()
        }
        monkeypatch.setattr(advice, "OPTIONS", told)

    return prepare


def test_a_step_is_timed_by_the_runs_own_loop(advise, tmp_path, monkeypatch):
    monkeypatch.setattr(advice, "OPTIONS", {BF16: advice.OPTIONS[BF16]._replace(lacking=lambda lab: None)})
    monkeypatch.setattr(advice, "Slow", Slow, raising=False)
    code, figures, out, err = advise("+callbacks.slow={_target_: vaelab.sweeps.advice.Slow}")
    assert code == 0, err
    (row,) = figures["rows"]
    assert row["arguments"] == BF16
    assert min(row["ms"]["least"], row["plain_ms"]["least"]) >= 50
    assert len(row["ratios"]) == 2
    assert "vae-fake on cpu" in out
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_what_pays_is_tried_together_and_advised(advise, machine):
    gains = {BF16: 0.5, COMPILE: 0.8, GRAPH: 1.0, LAYOUT: 0.97}

    def seconds(chosen):
        product = 0.01
        for words in chosen:
            product *= gains[words]
        return product

    machine(seconds, lacks=["matmul_precision=high"])
    code, figures, out, err = advise()
    assert code == 0, err
    assert [row["arguments"] for row in figures["rows"]] == [BF16, LAYOUT, GRAPH, COMPILE, f"{BF16} {COMPILE}"]
    assert figures["add"] == f"{BF16} {COMPILE}"
    assert figures["ratio"]["median"] == pytest.approx(0.4)
    assert figures["not_tried"] == {"matmul_precision=high": "none"}
    assert out.strip().splitlines()[-1] == f"add {BF16} {COMPILE}: a step then takes 0.40 of its time"
    assert "not tried: matmul_precision=high (none)" in out


def test_what_gains_nothing_beside_another_is_left_out(advise, machine):
    machine(lambda chosen: 0.005 if chosen & {BF16, COMPILE} else 0.01)
    assert advise()[1]["add"] in (BF16, COMPILE)


def test_a_graph_and_the_compiler_are_not_combined(advise, machine):
    machine(lambda chosen: 0.01 * 0.5 ** len(chosen & {GRAPH, COMPILE}))
    _, figures, *_ = advise()
    assert figures["add"] in (GRAPH, COMPILE)
    assert "one of these" in figures["not_tried"][f"{GRAPH} {COMPILE}"]


def test_nothing_is_advised_where_nothing_gains(advise, machine):
    machine(lambda chosen: 0.0096 if chosen else 0.01)
    _, figures, out, _ = advise()
    assert figures["add"] is None
    assert out.strip().splitlines()[-1].startswith("add nothing")


def test_the_noise_is_no_gain():
    assert advice.pays([0.9] * 5)
    assert not advice.pays([0.96] * 5)
    assert not advice.pays([0.8, 0.8, 0.8, 1.2, 1.2])
    assert advice.pays([0.8, 0.8, 0.8, 0.8, 1.2])


def test_what_is_given_is_not_tried(advise, machine):
    machine(lambda chosen: 0.01, lacks=[w for w in ALL if w != LAYOUT])
    _, figures, *_ = advise("network=conv", LAYOUT)
    assert figures["not_tried"][LAYOUT] == "channels_last=True is given"
    assert figures["rows"] == []


def test_an_option_that_fails_leaves_the_others(advise, machine):
    def seconds(chosen):
        if COMPILE in chosen:
            raise RuntimeError("no compiler\nat all")
        return 0.005 if BF16 in chosen else 0.01

    machine(seconds)
    code, figures, *_ = advise()
    assert code == 0
    assert figures["not_tried"][COMPILE] == "it failed: no compiler"
    assert figures["add"] == BF16


def test_an_option_that_a_run_goes_without_is_no_gain(advise, monkeypatch):
    monkeypatch.setattr(advice, "OPTIONS", {GRAPH: advice.OPTIONS[GRAPH]._replace(lacking=lambda lab: None)})
    _, figures, _, err = advise()
    assert figures["rows"] == []
    assert "NVIDIA" in figures["not_tried"][GRAPH]
    assert not err


@pytest.mark.parametrize("able", [False, True])
@pytest.mark.parametrize(
    ("layer", "channels_last", "layout"),
    [
        (nn.Linear(2, 2), None, "the model has no convolutions"),
        (nn.Conv2d(1, 1, 3), None, "on a processor it is so without"),
        (nn.Conv2d(1, 1, 3), False, None),
    ],
    ids=["linear", "convolution", "channels_last=false"],
)
def test_what_a_processor_or_the_model_lacks_is_not_tried(monkeypatch, able, layer, channels_last, layout):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: able)
    monkeypatch.setattr(advice, "check_compiler", lambda gpu: SimpleNamespace(state="ok" if able else "bad", says="no"))
    lab: Any = SimpleNamespace(device=torch.device("cpu"), model=layer, config={"channels_last": channels_last})
    assert {words: option.lacking(lab) for words, option in advice.OPTIONS.items()} == {
        BF16: None if able else "this cpu has no bfloat16 instructions",
        COMPILE: None if able else "no",
        LAYOUT: layout,
        GRAPH: "it is for an NVIDIA GPU",
        "matmul_precision=high": "it is for an NVIDIA GPU",
    }


def test_a_wrong_value_is_refused(advise):
    code, _, _, err = advise("advise=maybe")
    assert code == 2
    assert "advise=maybe" in err
