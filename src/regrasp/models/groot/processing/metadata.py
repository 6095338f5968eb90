"""`experiment_cfg/metadata.json`: statistics and modalities of a GR00T checkpoint, by embodiment tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

from regrasp.config.parse import parse
from regrasp.config.types import Expect, PositiveInt, Rotation
from regrasp.envs.data_config import DataConfig, KeyConfig
from regrasp.errors import UserError
from regrasp.models.groot.processing.rotations import RotationScaling, rotation_bounds, rotation_width
from regrasp.models.normalization import Concatenation, Normalizer, Scaling, Statistics
from regrasp.models.weights import read_json, write_json

METADATA_FILE = "experiment_cfg/metadata.json"
Kind = Literal["state", "action"]


@pydantic_dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class Modality:
    """What the metadata says of a state or action key, beside its statistics."""

    shape: Annotated[tuple[PositiveInt], Expect("[width]")]
    rotation_type: str | None = None
    absolute: bool = True


@dataclass(frozen=True)
class Metadata:
    """What the data of one embodiment looked like.

    Raises:
        UserError: Where something is asked for that is not there, naming what is.
    """

    tag: str
    content: Mapping[str, Any]
    """The tag's entry of the file: `statistics`, `modalities`, `embodiment_tag`."""
    file: Path | None = None
    """Where it was read, for errors."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the checkpoint's other embodiments."""

    @classmethod
    def of(
        cls, tag: str, parts: Mapping[Kind, Mapping[str, Statistics]], video: Sequence[str], image_size: int, fps: float
    ) -> Metadata:
        """Metadata of new data, in the published layout; `parts` are the keys of state and action."""
        cameras = {key: {"resolution": [image_size, image_size], "channels": 3, "fps": fps} for key in video}
        statistics = {kind: {key: part.to_mapping() for key, part in keys.items()} for kind, keys in parts.items()}
        described = {"absolute": True, "rotation_type": None}
        modalities = {
            kind: {key: {**described, "shape": [part.width], "continuous": True} for key, part in keys.items()}
            for kind, keys in parts.items()
        }
        content = {"statistics": statistics, "modalities": {"video": cameras, **modalities}, "embodiment_tag": tag}
        return cls(tag, content)

    def save(self, folder: Path) -> None:
        """Write `experiment_cfg/metadata.json`, the other embodiments' entries included."""
        file = folder / METADATA_FILE
        file.parent.mkdir(exist_ok=True)
        write_json(file, {**self.others, self.tag: self.content})

    def check_views(self, config: DataConfig) -> None:
        """Check that the cameras of the data configuration are there."""
        for name in config.video:
            self._entry("modalities", "video", name)

    def scaling(self, kind: Kind, keys: Sequence[KeyConfig]) -> Concatenation:
        """How a state or action vector with these keys, in this order, is scaled."""
        return Concatenation([self._scaling(kind, item) for item in keys])

    def width(self, kind: Kind, key: str) -> int:
        """Numbers under a key."""
        return self._modality(kind, key).shape[0]

    def statistics(self, kind: Kind, key: str) -> Statistics:
        """Statistics of a key."""
        path = ("statistics", kind, key)
        return Statistics.from_mapping(self._entry(*path), file=self.file, key=self._dotted(*path))

    def _modality(self, kind: Kind, key: str) -> Modality:
        path = ("modalities", kind, key)
        return parse(Modality, self._entry(*path), file=self.file, key=self._dotted(*path))

    def _entry(self, *path: str) -> Any:
        found: Any = self.content
        for depth, name in enumerate(path):
            if not isinstance(found, Mapping):
                raise UserError("Not an object", file=self.file, key=self._dotted(*path[:depth]), expected="{...}")
            if name not in found:
                raise UserError(
                    "A key of the data configuration is not in the metadata",
                    file=self.file,
                    key=self._dotted(*path[: depth + 1]),
                    expected=f"one of {', '.join(found)}",
                    fix="name in mapping.data_config the keys that the checkpoint was trained with",
                )
            found = found[name]
        return found

    def _dotted(self, *path: str) -> str:
        return ".".join((self.tag, *path))

    def _scaling(self, kind: Kind, item: KeyConfig) -> Scaling:
        statistics, modality = self.statistics(kind, item.key), self._modality(kind, item.key)
        of_statistics, of_modality = (self._dotted(part, kind, item.key) for part in ("statistics", "modalities"))
        width = modality.shape[0]
        source: Any = modality.rotation_type
        if statistics.width != width:
            raise UserError(
                "Statistics of another width than the modality",
                file=self.file,
                key=of_statistics,
                value=statistics.width,
                expected=f"{width}, as {of_modality}.shape says",
            )
        if item.rotation is None or item.rotation == source:
            normalizer = Normalizer(statistics, item.mode)
            if not normalizer.is_finite:
                raise UserError(
                    f"Statistics that are not finite, and that mode {item.mode} uses",
                    file=self.file,
                    key=of_statistics,
                    fix="compute them again without missing values, or choose another mode in mapping.data_config",
                )
            return normalizer
        if source not in get_args(Rotation) or rotation_width(source) != width:
            raise UserError(
                "A rotation that cannot be read",
                file=self.file,
                key=f"{of_modality}.rotation_type",
                value=source,
                expected=f"a representation by {width} numbers, to be turned into {item.rotation}:"
                f" {', '.join(get_args(Rotation))}",
            )
        if item.mode != "none" and not (modality.absolute and item.mode == "min_max"):
            raise UserError(
                "A rotation that is turned into another representation has no statistics",
                file=self.file,
                key=of_modality,
                value=item.mode,
                expected="mode none, or min_max for an absolute rotation",
            )
        return RotationScaling(source, item.rotation, Normalizer(rotation_bounds(item.rotation), item.mode))


def read_metadata(folder: Path, tag: str | None) -> Metadata:
    """The metadata of one embodiment; with `tag` None, of the only one.

    Raises:
        UserError: The file is missing or malformed, or does not have the embodiment.
    """
    file = folder / METADATA_FILE
    tags = read_json(file)
    if tag is None and len(tags) == 1:
        tag = next(iter(tags))
    if not tags:
        raise UserError("Metadata of no embodiment", file=file, expected="{tag: {...}}", fix="restore the file")
    if tag in tags and not isinstance(tags[tag], Mapping):
        raise UserError("Not an object", file=file, key=tag, value=tags[tag], expected="{...}")
    if tag is None or tag not in tags:
        raise UserError(
            "Which embodiment of several is not said" if tag is None else "The embodiment is not in the metadata",
            file=file,
            key="mapping.embodiment_tag",
            value=tag,
            expected=f"one of {', '.join(tags)}",
            fix="set mapping.embodiment_tag; for a robot that the checkpoint has not seen, train a base model first"
            " (`regrasp sft`)",
        )
    others = {name: content for name, content in tags.items() if name != tag}
    return Metadata(tag, tags[tag], file, others)
