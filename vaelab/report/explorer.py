"""Content of the report's explorer: real images, their codes, and a decoder or pictures made beforehand.

`payload` gives it as JSON, which explorer.js in the same page reads. Small decoders travel whole
(`portable`). For others, a sheet of pictures is decoded here, along one dimension or position at a time.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaelab.core.pixels import to_unit
from vaelab.inference import coding
from vaelab.inference.batches import evaluating
from vaelab.nn.layouts import Layout
from vaelab.nn.posteriors import Usage
from vaelab.nn.quantizers import code_counts
from vaelab.report import portable, resampling

if TYPE_CHECKING:
    from vaelab.models import Model

STARTS = 12
"""Real images that the explorer offers to start from."""
REACH = 3.0
"""Standard deviations, of the prior or of the images' codes, that a slider goes to either side."""
STEPS = 120
"""Steps of a slider over a live decoder."""
SHEET_STARTS, SHEET_DIMENSIONS, SHEET_VALUES = 2, 8, 11
"""Sizes of a sheet of pictures made beforehand: images, dimensions of each, and values of each dimension."""
SHEET_SIDE, SHEET_CODES = 4, 16
"""Sizes of a sheet made beforehand of a map of codes: positions along each side, and codes at each position."""
SHEET_BYTES, SHEET_PIXELS = 2_000_000, 2**23
"""Most bytes of a sheet in the page, and most of its pixels: a phone's browser surely reads so many."""

Json = dict[str, Any]


@torch.no_grad()
def payload(
    model: Model,
    images: Tensor,
    labels: Tensor | None,
    pixel_range: tuple[float, float],
    class_names: Sequence[str] | None = None,
) -> Json | None:
    """Returns a model's explorer as JSON; None if its weights or codes are not all finite.

    model: a `Model`. images: real ones as it sees them, [N, C, H, W]; up to 12 of them are there to start from,
    and all of them say how much each dimension is used. labels: [N] or [N, A], or None. class_names: names of the
    classes, in order.
    """
    posterior, layout = coding.posterior(model, images, labels), model.layout
    codes, used = posterior.code.cpu(), posterior.usage(model.prior) if layout.dimensions else None
    used = used and used._replace(values=used.values.cpu())
    weights = [value for value in model.state_dict().values() if isinstance(value, Tensor)]
    if not _finite([*weights, codes, *([used.values] if used else [])]):
        return None
    labels = None if labels is None else labels.cpu()
    classes = None if labels is None or labels.ndim > 1 else labels
    with evaluating(model):
        found = portable.decoder(model)
    carried, why = (None, found) if isinstance(found, str) else (found, None)

    def decoded(z: Tensor, y: Tensor | None) -> Tensor:
        return coding.decode(model, z, y, pixel_range)

    starts = _starts(classes, len(images), STARTS if carried else SHEET_STARTS if used else 1)
    own = None if labels is None else labels[starts]
    page = {
        "standard": layout.standard,
        "shape": list(model.shape),
        "range": list(pixel_range),
        "names": _names(model, classes, class_names),
        "conditional": model.conditional and model.by_class and (carried is not None or used is not None),
        "labels": None if classes is None else classes[starts].tolist(),
        "originals": sheet(to_unit(images[starts.to(images.device)], pixel_range)),
    }
    if used is None:
        first, several = layout.levels[0], len(layout.levels) > 1
        page |= {"map": list(first.shape), "codes": layout.codes, "level": first.name if several else None}
        label = own[:1] if own is not None and model.conditional else None
        positions = list(range(math.prod(first.shape)))
        if not carried:
            rows, columns = map(_spread, first.shape)
            positions = [row * first.shape[1] + column for row in rows for column in columns]
        choices = resampling.choices(model, codes[starts], own, positions)
        made = None if carried else _sheet_of_codes(codes[starts[0]], codes, layout, label, decoded, positions, choices)
        page |= {"starts": codes[starts].flatten(1).tolist(), "choices": choices}
    else:
        centre, page["dimensions"] = _dimensions(codes, used, layout)
        z = codes[starts]
        made = None if carried else _sheet_of_dimensions(z, own if model.conditional else None, page, decoded)
        page |= {"centre": centre, "starts": z.tolist()}
    return page | {"made": made, "decoder": None if carried is None else _decoder(carried), "why": why}


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _starts(labels: Tensor | None, total: int, count: int) -> Tensor:
    """Returns the indices of images to start from, spread evenly over all, in the order of their classes."""
    order = torch.arange(total) if labels is None else labels.argsort(stable=True)
    return order[torch.linspace(0, total - 1, min(count, total)).long()]


def _names(model: Model, labels: Tensor | None, class_names: Sequence[str] | None) -> list[str] | None:
    """Returns the names of the classes: those given, else their numbers; None if there are no classes."""
    if class_names is not None:
        return list(class_names)
    count = model.num_classes or (0 if labels is None else int(labels.max()) + 1)
    return [str(k) for k in range(count)] or None


def _decoder(carried: portable.Portable) -> Json:
    """Describes a decoder for the page: its weights are little-endian float32 in base64."""
    fields = carried._asdict()
    weights = carried.weights.numpy().astype("<f4").tobytes()
    return fields | {"weights": base64.b64encode(weights).decode(), "count": len(carried.weights)}


def _dimensions(codes: Tensor, used: Usage, layout: Layout) -> tuple[list[float], list[Json]]:
    """Returns the code at which all sliders stand in the middle, and the sliders, most used dimension first.

    codes: [N, d]. used: how much each axis is used. A slider goes to both sides of 0 where the axes have deviation 1
    under the prior, else to both sides of the codes' mean.
    """
    deviation = codes.std(0, correction=0)
    centre, spread = codes.mean(0), REACH * deviation.clamp_min(1e-3)
    if layout.standard:
        centre, spread = torch.zeros_like(centre), torch.full_like(centre, REACH)
    low, high = centre - spread, centre + spread
    measure, use = ("KL", used.values) if used.word == "KL" else ("sd", deviation)
    sliders = [
        {
            "index": index,
            "name": layout.axis(index),
            "measure": measure,
            "use": use[index].item(),
            "unused": used.silent is not None and use[index].item() < used.silent,
            "low": low[index].item(),
            "high": high[index].item(),
            "step": (high - low)[index].item() / STEPS,
        }
        for index in use.argsort(descending=True).tolist()
    ]
    return centre.tolist(), sliders


# --- pictures made beforehand -----------------------------------------------------------------


def _sheet_of_dimensions(codes: Tensor, labels: Tensor | None, page: Json, decoded: Callable[..., Tensor]) -> Json:
    """Decodes each start into a sheet: as it is; under each class, if it is told one; along each dimension.

    codes: [N, d]; labels: [N] or [N, A], of a conditional model. The page's sliders are cut down to those
    that have pictures.
    """
    page["dimensions"] = [d | {"step": (d["high"] - d["low"]) / (SHEET_VALUES - 1)} for d in page["dimensions"]]
    del page["dimensions"][SHEET_DIMENSIONS:]
    z, y = [], []
    for start, code in enumerate(codes):
        own = None if labels is None else labels[start]
        classes = range(len(page["names"])) if page["conditional"] else ()
        z += [code] * (1 + len(classes))
        y += [own, *(own.new_tensor(k) for k in classes)] if own is not None else []
        for slider in page["dimensions"]:
            for value in torch.linspace(slider["low"], slider["high"], SHEET_VALUES).tolist():
                z.append(code.index_fill(0, torch.tensor(slider["index"]), value))
                y += [own] if own is not None else []
    return sheet(decoded(torch.stack(z), torch.stack(y) if y else None)) | {"per_start": len(z) // len(codes)}


def _sheet_of_codes(
    first: Tensor, codes: Tensor, layout: Layout, label: Tensor | None, decoded: Callable[..., Tensor],
    positions: Sequence[int], choices: Sequence[resampling.Choices],
) -> Json:  # fmt: skip
    """Decodes a map of codes into a sheet: as it is, then with each of some codes at some positions.

    first: of one image, [*layout.shape]; codes: of all, [N, *layout.shape], of which the most used codes are taken.
    positions: of the first level. choices: of the first image, the codes to take after its own and before those.
    label: [1], of a conditional model.
    """
    size = layout.require_codes("the model")
    used = code_counts(layout.split(codes)[0], size).argsort(descending=True).tolist()
    probable = choices[0] if choices else [[] for _ in positions]
    flat, most = first.flatten(), min(SHEET_CODES, size)
    taken = [
        list(dict.fromkeys([int(flat[position]), *(code for code, _ in place), *used]))[:most]
        for position, place in zip(positions, probable, strict=True)
    ]
    changed = [
        flat.scatter(0, flat.new_tensor([position]), code)
        for position, some in zip(positions, taken, strict=True)
        for code in some
    ]
    z = torch.stack([flat, *changed]).view(-1, *layout.shape)
    return sheet(decoded(z, label)) | {"positions": list(positions), "codes": taken, "per_start": len(z)}


def _spread(side: int) -> list[int]:
    """Returns up to SHEET_SIDE places spread evenly over 0 … side - 1, away from the edges."""
    count = min(SHEET_SIDE, side)
    return [int((i + 0.5) * side / count) for i in range(count)]


def sheet(images: Tensor) -> Json:
    """Puts images into one picture for the page: exact, unless it would be too big.

    images: [N, C, H, W] in [0, 1]. Returns the picture's data URI, the images in a row of it, and by how much it is
    smaller than they are, a whole factor.
    """
    columns = max(1, round((len(images) * images.shape[2] / images.shape[3]) ** 0.5))
    shrunk = 1
    while True:
        small = torch.nn.functional.avg_pool2d(images.float().cpu(), shrunk)
        picture = _beside(small, columns)
        if picture.shape[0] * picture.shape[1] <= SHEET_PIXELS:
            for options in (
                {"format": "PNG", "optimize": True},
                *({"format": "JPEG", "quality": q, "subsampling": 0} for q in (90, 75)),
            ):
                if len(content := _written(picture, options)) * 4 / 3 <= SHEET_BYTES:
                    uri = f"data:image/{options['format'].lower()};base64,{base64.b64encode(content).decode()}"
                    return {"uri": uri, "columns": columns, "shrunk": shrunk}
        shrunk *= 2


def _beside(images: Tensor, columns: int) -> Tensor:
    """Puts images side by side without gaps: [N, C, H, W] in [0, 1] to [rows, columns, C] uint8."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    tiles = torch.zeros(rows * columns, channels, height, width)
    tiles[:count] = images
    tiles = tiles.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return (tiles.reshape(rows * height, columns * width, channels) * 255).round().to(torch.uint8)


def _written(picture: Tensor, options: Json) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    image = Image.fromarray(picture.squeeze(-1).numpy())
    image.save(file, **options)
    return file.getvalue()
