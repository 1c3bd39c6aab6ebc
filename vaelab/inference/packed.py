"""The file of `vaelab compress`: a header of 44 bytes, labels, names, coded codes or images. Nothing in it is run."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from vaelab.core.errors import UserError
from vaelab.core.files import whole

CODES, IMAGES = (b"VAELAB\x00" + bytes([kind]) for kind in (1, 2))
"""What a file begins with: one of entropy-coded codes, and one of images that are coded by bits back."""
HEADER = struct.Struct("<8s8s8sIIIII")
"""Kind; fingerprints of model and prior; number of images; bytes of labels and names; checksums of what is coded and of
the file."""
NO_PRIOR = "0" * 16
"""Fingerprint where no fitted prior is needed."""
LONGEST_NAME = 2000
"""Most bytes of a file's name."""


@dataclass(frozen=True)
class Packed:
    """What a compressed file holds.

    kind: CODES or IMAGES. model, prior: fingerprints, 16 hexadecimal digits; all zeros for no prior. count:
    images. labels: of each, or empty. names: of the images' files, or empty. checksum: CRC-32 of the codes, int32, or
    of the pixels, uint8. words: the coded codes or images.
    """

    kind: bytes
    model: str
    prior: str
    count: int
    labels: list[int]
    names: list[str]
    checksum: int
    words: bytes

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes in the file of the codes or images with the header, and of labels and names."""
        return HEADER.size + len(self.words), len(_packed(_bytes(self.labels))) + len(_packed(_text(self.names)))


def write(path: Path, packed: Packed) -> None:
    """Writes the file, whole or not at all. Raises UserError if it cannot be written."""
    labels, names = _packed(_bytes(packed.labels)), _packed(_text(packed.names))
    prints = bytes.fromhex(packed.model), bytes.fromhex(packed.prior)
    fields = (packed.kind, *prints, packed.count, len(labels), len(names))
    rest = labels + names + packed.words
    check = zlib.crc32(rest, zlib.crc32(HEADER.pack(*fields, packed.checksum, 0)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            partial.write_bytes(HEADER.pack(*fields, packed.checksum, check) + rest)
    except OSError as error:
        raise UserError(f"out={path}: it cannot be written ({error.strerror}): name another file") from error


def begins(path: Path) -> bool:
    """Whether a file begins as those that `write` makes do."""
    with path.open("rb") as file:
        return file.read(len(CODES)) in (CODES, IMAGES)


def read(path: str) -> Packed:
    """Reads a file. Raises UserError for one that is missing, damaged, or of another kind."""
    file, anew = Path(path).expanduser(), "write it anew with vaelab compress"
    if not file.is_file():
        what = "this is a folder" if file.is_dir() else "there is no such file"
        raise UserError(f"input={path}: {what}: vaelab compress writes one")
    content = file.read_bytes()
    if len(content) < HEADER.size or not content.startswith((CODES, IMAGES)):
        raise UserError(f"input={path}: it was not written by vaelab compress, or by another version of it")
    *fields, check = HEADER.unpack_from(content)
    kind, model, prior, count, labels, names, checksum = fields
    blank = HEADER.pack(*fields, 0)
    rest = content[HEADER.size :]
    if zlib.crc32(rest, zlib.crc32(blank)) != check or len(rest) < labels + names or len(rest[labels + names :]) % 4:
        raise UserError(f"input={path}: it is damaged or cut off\n{anew}")
    try:
        classes = [number for (number,) in struct.iter_unpack("<i", _unpacked(rest[:labels], 4 * count))]
        text = _unpacked(rest[labels : labels + names], count * LONGEST_NAME).decode(errors="surrogateescape")
    except (zlib.error, struct.error, ValueError) as error:
        raise UserError(f"input={path}: it is damaged\n{anew}") from error
    listed = text.split("\0") if text else []
    if count == 0 or (classes and len(classes) != count) or (listed and len(listed) != count):
        raise UserError(f"input={path}: it is damaged\n{anew}")
    return Packed(kind, model.hex(), prior.hex(), count, classes, listed, checksum, rest[labels + names :])


def _bytes(labels: list[int]) -> bytes:
    return struct.pack(f"<{len(labels)}i", *labels)


def _text(names: list[str]) -> bytes:
    return "\0".join(names).encode(errors="surrogateescape")


def _packed(content: bytes) -> bytes:
    return zlib.compress(content, 9) if content else b""


def _unpacked(content: bytes, most: int) -> bytes:
    """Unpacks at most so many bytes, whatever the content promises. Raises ValueError if it holds more."""
    if not content:
        return b""
    unpacker = zlib.decompressobj()
    found = unpacker.decompress(content, most)
    if not unpacker.eof:
        raise ValueError("it holds more than it may")
    return found
