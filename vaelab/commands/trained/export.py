"""`vaelab export` writes a model's weights as safetensors, its networks as ONNX, and a page for the hub."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.core.errors import UserError, require
from vaelab.core.words import listed
from vaelab.runs import Files, hub

if TYPE_CHECKING:
    from vaelab.runs.trained import Trained

ONNX = ("encoder.onnx", "decoder.onnx", "classifier.onnx")
"""Files that an export may have."""


class Options(NamedTuple):
    """The keys of conf/export.yaml, which explains them."""

    run: str
    checkpoint: Literal["best", "last"]
    out: str | None
    onnx: bool
    hub: str | None
    private: bool
    trust: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab export` with these arguments. Returns the exit code."""
    return command.single("export", job, arguments)


def job(config: Any) -> Path:
    """Hydra's job: checks what is asked, writes the files and says what was compared. Returns the folder."""
    from vaelab import runs
    from vaelab.core.config import options
    from vaelab.inference import onnx
    from vaelab.runs import exported

    asked = options(Options, config)
    run = runs.find(asked.run)
    if asked.onnx:
        onnx.require()
    key, repository, out = _place(asked, run)
    earlier = _earlier(key, out, bool(asked.hub))
    from vaelab.runs.trained import Trained

    trained = Trained(run, asked.checkpoint, "cpu", trust=asked.trust)
    networks = [f"{part.name}.onnx" for part in onnx.parts(trained.model)] if asked.onnx else []
    about = exported.describe(trained) | {"onnx": networks}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
            address = f"{hub.SCHEME}{repository}" if repository else out.name
            differences = _write(Path(folder), trained, about, address if asked.hub else None)
            for name in earlier:
                (out / name).unlink(missing_ok=True)
            files = _put(Path(folder), out)
    except OSError as error:
        raise UserError(f"{key}={out}: it cannot be written ({error.strerror}): name another folder") from error
    _report(out, about, differences, files)
    if asked.hub and not any(name.endswith(".png") for name in files):
        print(f"the run has no figures for its card: vaelab report {shlex.quote(f'run={run}')} makes them")
    if repository:
        _push(out, repository, asked.private, files)
    return out


def _write(folder: Path, trained: Trained, about: dict[str, Any], address: str | None) -> dict[str, float | None]:
    """Writes all files of an export to a folder. Returns the differences between onnxruntime and torch.

    address: what loads the export from where the hub has it; None for one that is not in its layout.
    """
    from vaelab.inference import onnx
    from vaelab.report.hosted import card
    from vaelab.runs import exported

    differences: dict[str, float | None] = {}
    if about["onnx"]:
        print(f"comparing {listed(about['onnx'])} with torch…", flush=True)
        differences = onnx.write(trained.model, folder, trained.pixel_range, _metadata(about))
    exported.save(trained.model, folder, about, exported.HUB_DESCRIPTION if address else exported.DESCRIPTION)
    if address:
        card.write(folder, trained.folder, about, address)
    return differences


def _place(asked: Options, run: Path) -> tuple[str, str | None, Path]:
    """Returns the key that says where to write, the repository to push to if there is one, and the folder."""
    if asked.hub is None:
        return "out", None, Path(asked.out).expanduser() if asked.out else Files(run).export
    name = asked.hub.removeprefix(hub.SCHEME)
    if hub.NAME.fullmatch(name):
        require("huggingface_hub", f"hub={asked.hub}", "hub")
        return "out", name, Path(asked.out).expanduser() if asked.out else Files(run).hub
    if name != asked.hub:
        raise UserError(f"hub={asked.hub}: no name of a repository: write hub=USER/NAME")
    if asked.out:
        raise UserError(f"out={asked.out}: hub={asked.hub} is a folder, too: give one of them")
    return "hub", None, Path(asked.hub).expanduser()


def _put(source: Path, out: Path) -> list[str]:
    """Moves all files of a folder to another, each in the place of what it is to replace. Returns their names."""
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    for name in names:
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(source / name, out / name)
    return names


def _push(out: Path, repository: str, private: bool, files: list[str]) -> None:
    """Pushes the files to the hub, or says how to, and how to load them from there."""
    if address := hub.push(out, repository, private, files):
        print(f'pushed: {address}; vaelab.load("{hub.SCHEME}{repository}") loads it')
    else:
        print(f"not pushed, there is no token: hf auth login, then {hub.upload_line(out, repository)}")


def _earlier(key: str, out: Path, for_hub: bool) -> list[str]:
    """Returns files of an earlier export that this one may not write anew. Raises UserError for others' files."""
    from vaelab.report.hosted import card
    from vaelab.runs import exported

    if out.exists() and not out.is_dir():
        raise UserError(f"{key}={out}: this is a file: name a folder")
    ours = [exported.DESCRIPTION, exported.HUB_DESCRIPTION, *ONNX]
    written = [exported.HUB_DESCRIPTION, card.CARD] if for_hub else []
    if not any((out / name).exists() for name in (exported.DESCRIPTION, exported.WEIGHTS, *ONNX, *written)):
        return []
    try:
        exported.read_description(out)
    except UserError as error:
        raise UserError(f"{key}={out}: the folder holds files that are not of vaelab export: name another") from error
    return ours


def _metadata(about: dict[str, Any]) -> dict[str, str]:
    """Returns the entries of model.json that go into the ONNX files: text by name."""
    import json

    kept = ("class", "shape", "num_classes", "latents", "likelihood", "pixel_range", "images", "run", "versions")
    texts = {name: about[name] if isinstance(about[name], str) else json.dumps(about[name]) for name in kept}
    return {f"vaelab.{name}": text for name, text in texts.items()}


def _report(out: Path, about: dict[str, Any], differences: dict[str, float | None], files: list[str]) -> None:
    from vaelab.inference import onnx
    from vaelab.runs import gate

    origin = about["run"]
    print(f"{about['class']} of {origin['name']}, {origin['checkpoint']} checkpoint (epoch {origin['epoch']})")
    if differences:
        sizes = ", ".join(map(str, onnx.BATCHES[:-1])) + f" and {onnx.BATCHES[-1]}"
        print(f"onnxruntime against torch, batches of {sizes}, largest difference (allowed: {onnx.TOLERANCE:.0e}):")
        for name, gap in differences.items():
            print(f"  {name:16} {'equal' if gap is None else f'{gap:.1e}'}")
    if deed := next(gate.deeds(about["model"], "model"), None):
        print(f"note: {deed.key} {deed.does}: vaelab.load does so with trust=True alone")
    for name in files:
        print(f"  {out / name}  {(out / name).stat().st_size / 1024:,.0f} KiB")
    print(f"export: {out}")
