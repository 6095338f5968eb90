"""The manifest: size and SHA-256 of every file of a checkpoint, guarded by a checksum of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic_core import from_json

from regrasp.folders import sha256

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What one file must be."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint by their path relative to its folder, with `/` as separator."""

    step: int
    files: Mapping[str, Entry]


def describe(file: Path) -> Entry:
    """Size and SHA-256 of a file."""
    return Entry(file.stat().st_size, sha256(file))


def encode(manifest: Manifest) -> bytes:
    """The one byte string that stands for a manifest."""
    files = {name: asdict(entry) for name, entry in sorted(manifest.files.items())}
    body = {"format": FORMAT, "step": manifest.step, "files": files}
    checksum = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return (json.dumps({**body, "checksum": checksum}, indent=1) + "\n").encode()


def decode(data: bytes) -> Manifest:
    """The manifest that `encode` turned into `data`.

    Raises:
        ValueError: The bytes are not exactly what `encode` writes, so at least one of them has changed.
    """
    try:
        content = from_json(data)
        found = content["format"]
        files = {str(name): Entry(entry["size"], entry["sha256"]) for name, entry in content["files"].items()}
        manifest = Manifest(content["step"], files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("is damaged: it does not parse as a manifest") from error
    if isinstance(found, int) and found > FORMAT:
        raise ValueError(f"has format {found}: written by a newer Regrasp than this one, which reads format {FORMAT}")
    if encode(manifest) != data:
        raise ValueError("is damaged: its own checksum does not match")
    return manifest
