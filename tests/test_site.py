"""The documentation site: every link leads somewhere, nothing is asked of other hosts, and tutorials do as they say."""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_the_network_for_nothing(tmp_path, monkeypatch):
    """Broken links, missing anchors and pages that stand in no menu are warnings, which `strict` turns into errors."""
    config = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.setattr(logging.getLogger("mkdocs"), "handlers", [])
    build(config.load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    for path, text in pages.items():
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"?(https?:[^\s\">]*)", text)
        assert not loaded, path
    text = pages[tmp_path / "vae.html"]
    assert 'href="source/vaelab/models/vae.py"' in text
    assert (tmp_path / "source/vaelab/models/vae.py").read_text() == (ROOT / "vaelab/models/vae.py").read_text()
    assert "<math" in text
    assert "arithmatex" not in text
    reference = pages[tmp_path / "api" / "nn.html"]
    assert 'id="vaelab.nn.likelihoods.Likelihood.log_prob"' in reference


@pytest.mark.slow
def test_the_tutorial_for_developers_does_what_it_says(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "tutorial_developer.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = "\n".join(blocks).replace("max_epochs=20", 'max_epochs=1, report=False, accelerator="cpu"')
    (tmp_path / "tutorial_of_developers.py").write_text(text)
    done = importlib.import_module("tutorial_of_developers")
    assert done.images.shape == (16, 1, 8, 8)
    assert done.quantized.indices.shape == (8, 4, 4)
