"""Imports point one way: cli -> commands -> runs -> models, datasets, callbacks -> leaf modules -> torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vaelab

ROOT = Path(vaelab.__file__).parent
LOOKERS = {"sample", "reconstruct", "traverse", "interpolate", "encode", "decode", "export", "explain", "report"}
LOOKERS |= {"dashboard", "list_runs", "watch", "data"}
TRAINERS = {"train", "sweeps", "jobs", "launch", "checks", "bench", "plan", "doctor", "evaluate", "measure", "compare"}
HYDRA = {"command", "config", "runs", "trained", *TRAINERS, *LOOKERS}
PARTS = ("models", "datasets", "callbacks")
COMMANDS = {"cli", "command", "fit", "timing", "forecast", "__main__", *TRAINERS, *LOOKERS}
NEEDS_LIGHTNING = {"fsdp", "loggers", "loop"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it is imported: what stands inside functions does not count."""
    found: set[str] = set()
    blocks: list[ast.AST] = [ast.parse(path.read_text())]
    while blocks:
        for node in ast.iter_child_nodes(blocks.pop()):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif not isinstance(node, ast.FunctionDef) and not is_type_checking(node):
                blocks.append(node)
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


FILES = sorted(ROOT.glob("**/*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_point_downwards(path):
    relative = path.relative_to(ROOT)
    part, names = relative.parts[0], imports(path)
    if part in PARTS:
        others = [p for p in PARTS if p != part]
        assert not [n for n in names if any(n.startswith(f"vaelab.{o}") for o in others)]
        assert not [n for n in names if n.startswith(("hydra", "omegaconf"))]
        assert not [n for n in names if n.startswith("vaelab.") and n.split(".")[1] in COMMANDS | {"runs", "config"}]
    elif relative.stem not in HYDRA:
        assert not [n for n in names if n.startswith(("hydra", "omegaconf"))]
        if relative.stem not in COMMANDS | {"__init__"}:
            assert not [n for n in names if n.startswith("vaelab.") and n.split(".")[1] in {*PARTS, *COMMANDS}]
            if relative.stem not in NEEDS_LIGHTNING:
                assert not [n for n in names if "lightning" in n]


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_slow_libraries_are_imported_when_used(path):
    slow = ("wandb", "matplotlib", "torchvision", "sklearn", "PIL", "h5py", "tensorboard")
    slow = (*slow, "jinja2", "markupsafe", "safetensors", "onnx", "onnxruntime", "onnxscript")
    relative = path.relative_to(ROOT)
    if relative.parts == ("datasets", "files.py"):
        slow = tuple(s for s in slow if s != "PIL")
    assert not [n for n in imports(path) if n.startswith(slow)]
