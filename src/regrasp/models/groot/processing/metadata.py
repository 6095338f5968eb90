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
        cls,
        tag: str,
        state: Mapping[str, Statistics],
        action: Mapping[str, Statistics],
        *,
        video: Sequence[str],
        image_size: int,
        fps: float,
    ) -> Metadata:
        """Metadata of new data, in the published layout."""
        parts = {"state": state, "action": action}
        numbers = {
            kind: {
                key: {"absolute": True, "rotation_type": None, "shape": [part.width], "continuous": True}
                for key, part in by_key.items()
            }
            for kind, by_key in parts.items()
        }
        resolution = [image_size, image_size]
        content = {
            "statistics": {
                kind: {key: part.to_mapping() for key, part in by_key.items()} for kind, by_key in parts.items()
            },
            "modalities": {
                "video": {key: {"resolution": resolution, "channels": 3, "fps": fps} for key in video},
                **numbers,
            },
            "embodiment_tag": tag,
        }
        return cls(tag, content)

    def save(self, folder: Path) -> None:
        """Write `experiment_cfg/metadata.json`, the other embodiments' entries included."""
        file = folder / METADATA_FILE
        file.parent.mkdir(exist_ok=True)
        write_json(file, {**self.others, self.tag: self.content})

    def check_views(self, config: DataConfig) -> None:
        """Check that the cameras of the data configuration are there."""
        known = self._section("modalities", "video")
        for name in config.video:
            if name not in known:
                raise self._missing("camera", f"modalities.video.{name}", known)

    def scaling(self, kind: Kind, keys: Sequence[KeyConfig]) -> Concatenation:
        """How a state or action vector with these keys, in this order, is scaled."""
        return Concatenation([self._scaling(kind, item) for item in keys])

    def width(self, kind: Kind, key: str) -> int:
        """Numbers under a key."""
        return self._modality(kind, key).shape[0]

    def statistics(self, kind: Kind, key: str) -> Statistics:
        """Statistics of a key."""
        known = self._section("statistics", kind)
        if key not in known:
            raise self._missing(f"{kind} key", f"statistics.{kind}.{key}", known)
        return Statistics.from_mapping(known[key], file=self.file, key=f"{self.tag}.statistics.{kind}.{key}")

    def _scaling(self, kind: Kind, item: KeyConfig) -> Scaling:
        statistics, width = self.statistics(kind, item.key), self.width(kind, item.key)
        if statistics.width != width:
            raise UserError(
                "Statistics of another width than the modality",
                file=self.file,
                key=f"{self.tag}.statistics.{kind}.{item.key}",
                value=statistics.width,
                expected=f"{width}, as {self._dotted(kind, item.key)}.shape says",
            )
        modality = self._modality(kind, item.key)
        source: Any = modality.rotation_type
        if item.rotation is None or item.rotation == source:
            normalizer = Normalizer(statistics, item.mode)
            if not normalizer.is_finite:
                raise UserError(
                    f"Statistics that are not finite, and that mode {item.mode} uses",
                    file=self.file,
                    key=f"{self.tag}.statistics.{kind}.{item.key}",
                    fix="compute them again without missing values, or choose another mode in mapping.data_config",
                )
            return normalizer
        if source not in get_args(Rotation) or rotation_width(source) != width:
            raise UserError(
                "A rotation that cannot be read",
                file=self.file,
                key=f"{self._dotted(kind, item.key)}.rotation_type",
                value=source,
                expected=f"a representation by {width} numbers, to be turned into {item.rotation}:"
                f" {', '.join(get_args(Rotation))}",
            )
        bounded = modality.absolute and item.mode == "min_max"
        if not bounded and item.mode != "none":
            raise UserError(
                "A rotation that is turned into another representation has no statistics",
                file=self.file,
                key=self._dotted(kind, item.key),
                value=item.mode,
                expected="mode none, or min_max for an absolute rotation",
            )
        return RotationScaling(source, item.rotation, Normalizer(rotation_bounds(item.rotation), item.mode))

    def _modality(self, kind: Kind, key: str) -> Modality:
        known = self._section("modalities", kind)
        if key not in known:
            raise self._missing(f"{kind} key", f"modalities.{kind}.{key}", known)
        return parse(Modality, known[key], file=self.file, key=self._dotted(kind, key))

    def _section(self, name: str, kind: str) -> Mapping[str, Any]:
        section = self.content.get(name)
        part = section.get(kind) if isinstance(section, Mapping) else None
        if not isinstance(part, Mapping):
            raise UserError(
                f"Metadata without {name}.{kind}", file=self.file, key=f"{self.tag}.{name}", expected="{...}"
            )
        return part

    def _missing(self, what: str, dotted: str, known: Mapping[str, Any]) -> UserError:
        return UserError(
            f"{'An' if what.startswith('action') else 'A'} {what} of the data configuration is not in the metadata",
            file=self.file,
            key=f"{self.tag}.{dotted}",
            expected=f"one of {', '.join(known)}",
            fix="name in mapping.data_config the keys that the checkpoint was trained with",
        )

    def _dotted(self, kind: str, key: str) -> str:
        return f"{self.tag}.modalities.{kind}.{key}"


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
