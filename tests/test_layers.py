"""The rooms of the package: what each may import, and what each alone may know (CONTRIBUTING, The rooms)."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import vaelab

ROOT = Path(vaelab.__file__).parent
ROOMS = (
    "core", "nn", "models", "datasets", "runs", "inference", "evaluation", "figures", "report", "training", "sweeps",
    "commands", "lab",
)  # fmt: skip
"""Each imports only what stands before it, itself included; imports inside functions count."""
LIGHTNING = ("models/module.py", "datasets/base.py", "training/", "sweeps/")
PRIVATE = ("training/loop.py",)
"""The one file that knows private parts of Lightning."""
HYDRA = ("core/config/", "runs/", "sweeps/", "commands/")
FILES = ("runs/",)
"""Where the names of files in a run folder stand."""
NAMES = ("config.yaml", "summary.json", "metrics.csv", "kl_per_dim.csv", "code_counts.csv", "run.log", "output.txt",
         "report.html", "evaluation.json", "best.ckpt", "last.ckpt", "sweep.csv", "sweep.json", "multirun.yaml",
         ".lock", "prior.safetensors")  # fmt: skip
SLOW = ("wandb", "mlflow", "matplotlib", "torchvision", "sklearn", "PIL", "h5py", "tensorboard", "jinja2", "markupsafe",
        "safetensors", "onnx", "onnxruntime", "onnxscript", "optuna", "ray", "zuko", "scipy",
        "rich")  # fmt: skip
"""Libraries that are imported where they are used."""
MOST = 15
"""Modules side by side."""


@cache
def sources() -> list[tuple[str, ast.Module]]:
    """Every file of the package: its name, and what is in it."""
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in sorted(ROOT.rglob("*.py"))]


def imported(tree: ast.AST, inside_functions: bool = True) -> set[str]:
    """Modules that a file imports, those for type checkers left out."""
    found: set[str] = set()
    blocks: list[ast.AST] = [tree]
    while blocks:
        for node in ast.iter_child_nodes(blocks.pop()):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)) and (
                inside_functions or not isinstance(node, ast.FunctionDef)
            ):
                blocks.append(node)
    return found


def outside(name: str, places: tuple[str, ...]) -> bool:
    return not any(name == place or (place.endswith("/") and name.startswith(place)) for place in places)


def test_each_room_imports_only_those_before_it():
    wrong = []
    for name, tree in sources():
        room = name.partition("/")[0]
        if room in ROOMS:
            above = ROOMS[ROOMS.index(room) + 1 :]
            wrong += [f"{name}: {m}" for m in imported(tree) if m.startswith(tuple(f"vaelab.{a}" for a in above))]
    assert not wrong


def test_rooms_are_those_of_the_list():
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()} == set(ROOMS)


def test_no_module_imports_a_command():
    shared = ("vaelab.commands.command", "vaelab.commands.answers", "vaelab.commands.trained.viewing")
    shared += ("vaelab.commands.trained.own_images", "vaelab.commands.trained.own_tables")
    wrong = [
        f"{name}: {module}"
        for name, tree in sources()
        for module in imported(tree)
        if module.startswith("vaelab.commands") and not module.startswith(shared) and not name.startswith("lab/")
    ]
    assert not wrong


def test_lightning_and_hydra_are_known_where_they_are_needed():
    wrong = []
    for name, tree in sources():
        modules = {module.partition(".")[0] for module in imported(tree)}
        if "pytorch_lightning" in modules and outside(name, LIGHTNING):
            wrong.append(f"{name}: pytorch_lightning")
        if {"hydra", "omegaconf"} & modules and outside(name, HYDRA):
            wrong.append(f"{name}: hydra")
    assert not wrong


def test_one_file_knows_private_parts_of_lightning():
    """Attributes that begin with an underscore, of anything but self, in what may import Lightning."""
    wrong = []
    for name, tree in sources():
        if outside(name, LIGHTNING) or not outside(name, PRIVATE):
            continue
        for node in ast.walk(tree):
            private = isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr)
            if private and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                text = ast.unparse(node)
                if re.search(r"trainer|strategy|loop|connector|super\(\)\._setup", text):
                    wrong.append(f"{name}: {text}")
        wrong += [f"{name}: {m}" for m in imported(tree) if m.startswith("pytorch_lightning") and "._" in m]
    assert not wrong


def test_names_of_files_in_a_run_folder_stand_in_one_room():
    wrong = []
    for name, tree in sources():
        if not outside(name, FILES):
            continue
        docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in NAMES and id(node) not in docstrings:
                wrong.append(f"{name}:{node.lineno}: {node.value}")
    assert not wrong


def test_slow_libraries_are_imported_when_used():
    wrong = [
        f"{name}: {module}"
        for name, tree in sources()
        for module in imported(tree, inside_functions=False)
        if module.partition(".")[0] in SLOW and (name, module.partition(".")[0]) != ("datasets/files.py", "PIL")
    ]
    assert not wrong


def test_a_folder_can_be_overlooked():
    folders = [ROOT, *(path for path in ROOT.rglob("*") if (path / "__init__.py").is_file())]
    sizes = {f.relative_to(ROOT).as_posix(): len([p for p in f.glob("*.py") if p.name[0] != "_"]) for f in folders}
    assert {name: size for name, size in sizes.items() if size > MOST} == {}
