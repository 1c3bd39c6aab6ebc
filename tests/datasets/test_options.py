"""Every option under conf/dataset composes, and its keys are those that its class asks for."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted(path.stem for path in (CONF / "dataset").glob("[!_]*.yaml"))


def option(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+dataset={name}", "+seed=42"])


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_gives_its_class_every_field_and_nothing_else(name):
    config = option(name).dataset
    fields = {field.name for field in dataclasses.fields(get_class(config._target_))}
    assert set(config) - {"_target_"} == fields
    assert config.seed == 42
    first = (CONF / "dataset" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")


@pytest.mark.parametrize("name", ["digits", "fake"])
def test_options_that_need_no_files_load(name):
    data = instantiate(option(name).dataset, _convert_="all")
    data.setup()
    assert len(data.train) > len(data.val) > 0


def test_folder_demands_a_root():
    assert OmegaConf.missing_keys(option("folder")) == {"dataset.root"}


@pytest.mark.slow
def test_importing_the_data_sets_imports_no_data_library():
    """Beyond what Lightning itself brings along."""
    code = (
        "import sys, pytorch_lightning; before = set(sys.modules)\n"
        "import vaelab.datasets\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "sys.exit(', '.join(new & {'torchvision', 'sklearn', 'h5py', 'scipy'}) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=CONF.parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
