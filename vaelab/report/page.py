"""Makes report.html: one file that holds everything it shows, and asks the network for nothing."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

from vaelab.core.files import write_text

HERE = Path(__file__).parent / "templates"
INCH = 96
"""CSS pixels in an inch."""
THUMBNAIL = (480, 960)
"""Most pixels of a thumbnail, across and down."""
COLOURS = 64
"""Colours of a thumbnail."""


class Picture(NamedTuple):
    """An image within a page: its data, and its size in CSS pixels."""

    source: str
    width: int
    height: int


def render(template: str, /, **content: Any) -> str:
    """Renders a template of templates/ with its content, which is escaped wherever it stands."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    jinja = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    jinja.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}  # JSON.parse knows no NaN
    jinja.globals["inline"] = lambda name: Markup((HERE / name).read_text(encoding="utf-8"))
    return jinja.get_template(template).render(content)


def save(path: Path, page: str) -> None:
    """Writes a page whole or not at all."""
    write_text(path, page)


def picture(path: Path) -> Picture:
    """Embeds a PNG as it is, as large as its resolution says."""
    from PIL import Image

    with Image.open(path) as image:
        scale = INCH / image.info.get("dpi", (INCH, INCH))[0]
        width, height = image.size
    return Picture(_source(path.read_bytes()), round(width * scale), round(height * scale))


def description(path: Path) -> str | None:
    """Returns the word on a PNG that `style.save` has put into it; None if there is none, or no such file."""
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get("Description")


def thumbnail(path: Path) -> Picture:
    """Embeds a small version of a PNG, of a few kilobytes."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.quantize(COLOURS).save(file, "png", optimize=True)
    return Picture(_source(file.getvalue()), *small.size)


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
