"""`vaelab export` writes a model's weights as safetensors, and its encoder and decoder as ONNX files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vaelab.commands import command
from vaelab.core.errors import UserError
from vaelab.runs import Files

ONNX = ("encoder.onnx", "decoder.onnx")


class Options(NamedTuple):
    """The keys of conf/export.yaml, which explains them."""

    run: str
    checkpoint: Literal["best", "last"]
    out: str | None
    onnx: bool
    trust: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab export` with these arguments. Returns the exit code."""
    return command.single("export", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: checks what is asked, writes the files and says what was compared."""
    from vaelab import runs
    from vaelab.core.config import options
    from vaelab.inference import onnx
    from vaelab.runs import exported

    asked = options(Options, config)
    run = runs.find(asked.run)
    if asked.onnx:
        onnx.require()
    out = Path(asked.out).expanduser() if asked.out else Files(run).export
    earlier = _earlier(out)
    from vaelab.runs.trained import Trained

    trained = Trained(run, asked.checkpoint, "cpu", trust=asked.trust)
    about = exported.describe(trained) | {"onnx": list(ONNX) if asked.onnx else []}
    differences = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
            if asked.onnx:
                print("comparing encoder.onnx and decoder.onnx with torch…", flush=True)
                differences = onnx.write(trained.model, Path(folder), trained.pixel_range, _metadata(about))
            exported.save(trained.model, Path(folder), about)
            for name in earlier:
                (out / name).unlink(missing_ok=True)
            for path in sorted(Path(folder).iterdir()):
                os.replace(path, out / path.name)
    except OSError as error:
        raise UserError(f"out={out}: it cannot be written ({error.strerror}): name another folder") from error
    _report(out, about, differences)


def _earlier(out: Path) -> list[str]:
    """Returns ONNX files of an earlier export, which would be of other weights. Raises UserError for others' files."""
    from vaelab.runs import exported

    if out.exists() and not out.is_dir():
        raise UserError(f"out={out}: this is a file: name a folder")
    if not any((out / name).exists() for name in (exported.DESCRIPTION, exported.WEIGHTS, *ONNX)):
        return []
    try:
        exported.read_description(out)
    except UserError as error:
        raise UserError(f"out={out}: the folder holds a model that is not of vaelab export: name another") from error
    return list(ONNX)


def _metadata(about: dict[str, Any]) -> dict[str, str]:
    """Returns the entries of model.json that go into the ONNX files: text by name."""
    import json

    kept = ("class", "shape", "num_classes", "latents", "likelihood", "pixel_range", "images", "run", "versions")
    texts = {name: about[name] if isinstance(about[name], str) else json.dumps(about[name]) for name in kept}
    return {f"vaelab.{name}": text for name, text in texts.items()}


def _report(out: Path, about: dict[str, Any], differences: dict[str, float | None]) -> None:
    from vaelab.inference import onnx
    from vaelab.runs import exported, gate

    origin = about["run"]
    print(f"{about['class']} of {origin['name']}, {origin['checkpoint']} checkpoint (epoch {origin['epoch']})")
    if differences:
        sizes = ", ".join(map(str, onnx.BATCHES[:-1])) + f" and {onnx.BATCHES[-1]}"
        print(f"onnxruntime against torch, batches of {sizes}, largest difference (allowed: {onnx.TOLERANCE:.0e}):")
        for name, gap in differences.items():
            print(f"  {name:16} {'equal' if gap is None else f'{gap:.1e}'}")
    if deed := next(gate.deeds(about["model"], "model"), None):
        print(f"note: {deed.key} {deed.does}: vaelab.load does so from {exported.DESCRIPTION} with trust=True alone")
    for path in sorted(out.glob("*")):
        if path.name in (exported.DESCRIPTION, exported.WEIGHTS, *about["onnx"]):
            print(f"  {path}  {path.stat().st_size / 1024:,.0f} KiB")
    print(f"export: {out}")
