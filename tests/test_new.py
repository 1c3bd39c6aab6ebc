"""vaelab new: what it writes works as it is, from training to export, and passes its own test."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import SMALL
from vaelab.cli import main
from vaelab.commands.new import NEXT

QUICK = ["importance_samples=4", "generated=20", "gap_images=4", "trust=true"]


@pytest.fixture
def started(tmp_path, monkeypatch, capsys):
    """Writes a start of a kind into an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def start(kind: str, name: str = "deep_mine") -> None:
        assert main(["new", kind, name]) == 0, capsys.readouterr().err

    yield start
    sys.modules.pop("deep_mine", None)


@pytest.mark.parametrize("kind", [kind for kind in NEXT if kind != "metric"])
def test_it_trains_resumes_and_is_looked_at(started, train, kind):
    started(kind)
    more = [] if kind == "dataset" else ["dataset=fake", "dataset.image_shape=[1,8,8]", "dataset.size=96"]
    done = train(f"{kind}=deep_mine", *more, "report=true", "trainer.max_epochs=1", small=False)
    assert done.code == 0, done.err
    assert (done.run / "report.html").is_file()
    again = train(f"resume={done.run}", "trainer.max_epochs=2", "report=false")
    assert again.code == 0, again.err
    assert main(["eval", f"run={done.run}", "sections=[likelihood]", *QUICK]) == 0
    assert main(["export", f"run={done.run}", "trust=true"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("more", [["-m", "hydra/launcher=joblib"], ["accelerator=ddp_cpu"]], ids=" ".join)
def test_it_goes_with_every_launcher_and_in_several_processes(started, more):
    started("model")
    words = ["model=deep_mine", *SMALL, "trainer.max_epochs=1", *more]
    words = [word for word in words if "ddp" not in more[0] or word != "trainer.accelerator=cpu"]
    done = subprocess.run([sys.executable, "-m", "vaelab", "train", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_metric_is_measured_beside_the_others(started, train, capsys):
    started("metric")
    done = train("trainer.max_epochs=1")
    assert main(["eval", f"run={done.run}", "sections=[reconstruction]", "metric=deep_mine"]) == 0
    figures = json.loads((done.run / "evaluation.json").read_text())["figures"]
    assert figures["deep_mine/sharpness"] > 0
    assert "reconstruction/mse_mean" in figures
    assert main(["new", "metric", "other"]) == 0
    assert main(["eval", f"run={done.run}", "sections=[reconstruction]", "metric=[deep_mine,other]"]) == 0
    figures = json.loads((done.run / "evaluation.json").read_text())["figures"]
    assert figures["deep_mine/sharpness"] == figures["other/sharpness"]
    capsys.readouterr()
    both = f"run=[{done.run},{train('trainer.max_epochs=1').run}]"
    assert main(["eval", both, "sections=[reconstruction]", "metric=deep_mine", "report=false"]) == 0
    heading = capsys.readouterr().out.splitlines()[-4:]
    assert any(line.split() == ["run", "mse", "sharpness"] for line in heading), heading


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("{'sharpness': 1.0}", "it must return a Section of vaelab.evaluation.subject, and gives dict"),
        ("None", "and gives NoneType"),
        ("Section({'sharpness': 'high'}, 'by eye')", "sharpness is 'high', and no number"),
        ("Section({'sharpness': __import__('torch').ones(3)}, 'by eye')", "and no number"),
    ],
)
def test_a_metric_that_measures_nothing_is_said_in_a_line(finished, tmp_path, capsys, returned, said):
    run, module = finished("trainer.max_epochs=1").run, tmp_path.name  # which no other test imports
    option = tmp_path / "conf/metric/odd.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(f"odd:\n  _target_: {module}.odd\n  _partial_: true\n")
    code = f"def odd(subject: Subject) -> Section: return {returned}\n"
    (tmp_path / f"{module}.py").write_text(f"from vaelab.evaluation.subject import Section, Subject\n{code}")
    assert main(["eval", f"run={run}", "sections=[reconstruction]", "metric=odd"]) == 2
    assert said in (out := "".join(capsys.readouterr()))
    assert "Traceback" not in out
    option.write_text(f"_target_: {module}.odd\n_partial_: true\n")
    assert main(["eval", f"run={run}", "metric=odd"]) == 2
    assert f"a name stands first: NAME: {{_target_: {module}.odd" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [*NEXT])
def test_its_own_test_passes_and_can_fail(started, tmp_path, monkeypatch, kind):
    started(kind)
    source = (tmp_path / "test_deep_mine.py").read_text()
    space: dict = {}
    monkeypatch.syspath_prepend(str(tmp_path))
    exec(compile(source, "test_deep_mine.py", "exec"), space)
    for name, test in [*space.items()]:
        if name.startswith("test_"):
            test()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what and its name"),
        (["model"], "say what and its name"),
        (["modle", "mine"], "kind='modle'"),
        (["model", "Mine"], "name=Mine: it names a Python module"),
        (["model", "vae"], "model=vae is an option of vaelab"),
        (["network", "json"], "there is an installed module"),
        (["model", "mine", "more"], "more"),
    ],
)
def test_a_name_that_cannot_be_is_refused(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["new", *words]) == 2
    assert said in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_nothing_is_overwritten(started, tmp_path, capsys):
    (tmp_path / "test_deep_mine.py").write_text("kept")
    assert main(["new", "model", "deep_mine"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_deep_mine.py"]
