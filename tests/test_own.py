"""Modules and options of one's own in the working folder, and errors in one's own code."""

from __future__ import annotations

import sys

import pytest

from vaelab.core import own

BETA = """
from vaelab.models import BetaVAE

class Mine(BetaVAE):
    def objective(self, terms):
        return super().objective(terms) {more}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes a model of one's own, and its option, into the working folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(more: str = "") -> None:
        (tmp_path / "conf/model").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine.py").write_text(BETA.format(more=more))
        (tmp_path / "conf/model/mine.yaml").write_text("defaults: [beta, _self_]\n_target_: mine.Mine\n")

    yield write
    sys.modules.pop("mine", None)


def test_an_option_in_the_working_folder_is_found_and_resumed(train, mine):
    mine()
    done = train("model=mine", "model.beta=2", "trainer.max_epochs=1")
    assert done.code == 0, done.err
    again = train(f"resume={done.run}", "trainer.max_epochs=2")
    assert again.code == 0, again.err
    swept = train("-m", "model=mine", "seed=0,1", "trainer.max_epochs=1", "sweep.dir=swept")
    assert swept.code == 0, swept.err


def test_an_error_in_it_shows_its_own_lines_alone(train, mine):
    mine("+ nothing")
    done = train("model=mine")
    assert done.code == 1
    assert 'mine.py", line 6, in objective' in done.err
    assert done.err.rstrip().endswith("NameError: name 'nothing' is not defined")
    assert "site-packages" not in done.err
    assert "launch.py" not in done.err
    swept = train("-m", "model=mine", "seed=0", "sweep.dir=swept")
    assert (swept.code, "mine.py" in swept.err, "loop.py" in swept.err) == (1, True, False)


def test_an_objective_that_is_no_scalar_is_named(train, mine):
    mine('+ terms["kl"]')
    done = train("model=mine")
    assert done.code == 2
    assert "vaelab: Mine.objective returns a tensor [32]: a tensor of one number is wanted, a mean" in done.err
    assert not (done.run / "config.yaml").exists()


def test_an_option_that_is_no_yaml_is_named(train, mine, tmp_path):
    mine()
    (tmp_path / "conf/model/mine.yaml").write_text("defaults: [beta, _self_]\nbeta: [\n")
    done = train("model=mine")
    assert done.code == 2
    assert "conf/model/mine.yaml, line 3: no YAML" in done.err
    assert "Traceback" not in done.err


def test_an_error_while_it_is_imported_names_its_line(train, mine):
    mine("+")
    done = train("model=mine")
    assert done.code == 2
    assert "mine.py, line 6: invalid syntax" in done.err


def test_a_folder_of_another_program_is_none_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert own.options_folder() is None
    (tmp_path / "conf/db").mkdir(parents=True)
    (tmp_path / "conf/db/mysql.yaml").write_text("")
    assert own.options_folder() is None
    (tmp_path / "conf/hydra/launcher").mkdir(parents=True)
    (tmp_path / "conf/hydra/launcher/ours.yaml").write_text("")
    assert own.options_folder() == tmp_path / "conf"


def test_the_labs_own_options_are_nobodys_own(monkeypatch):
    monkeypatch.chdir(own.CONF.parent)
    assert own.options_folder() is None


def test_the_working_folder_takes_no_library_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    own.make_importable("torch.optim.Adam")
    assert str(tmp_path) not in sys.path
    own.make_importable("nowhere_else.Net")
    assert sys.path[-1] == str(tmp_path)
