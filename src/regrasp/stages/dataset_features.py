"""Which features of a dataset are a policy's cameras, state, action and instruction: by name, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired

import numpy as np
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from regrasp.data.lerobot import DemonstrationDataset
from regrasp.data.lerobot.metadata import damaged
from regrasp.data.lerobot.schema import INFO_PATH, MODALITY_PATH, SOURCES_PATH
from regrasp.envs.mapping_config import MappingConfig, StateEntry
from regrasp.envs.quaternions import QuaternionOrder, check_same_order
from regrasp.envs.registry import EnvTypes, same_task
from regrasp.envs.selection import StateSource, camera_names, image_transforms, is_name_of, state_names
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.stages import FeaturesConfig
from regrasp.stages.demonstrations import ACTION, CAMERA, STATE, camera_features

_NAMES = {"states": (STATE, "state"), "action": (ACTION, "actions")}
"""What a whole state and action is called: by LeRobot, else by openpi's converters."""
_TASK = "task_index"


@dataclass(frozen=True)
class Part:
    """A range of a feature that goes into a vector."""

    feature: str
    start: int
    stop: int


@dataclass(frozen=True)
class DatasetFeatures:
    """What a policy sees and does, by the features of a dataset."""

    dataset: DemonstrationDataset
    cameras: Mapping[str, str]
    """What the policy calls each camera, and the feature."""
    states: tuple[Part, ...]
    action: tuple[Part, ...]
    instruction: str

    def load_states(self) -> np.ndarray:
        """(N, D) float32, frames in order."""
        return self._load(self.states)

    def load_actions(self) -> np.ndarray:
        """(N, A) float32, frames in order."""
        return self._load(self.action)

    def load_instructions(self) -> list[str]:
        """The instruction of every frame.

        Raises:
            UserError: The feature is neither text nor an index of the dataset's tasks.
        """
        dataset = self.dataset
        if dataset.features[self.instruction].dtype == "string":
            return dataset.load_texts(self.instruction)
        tasks = dataset.load_columns([self.instruction])[self.instruction]
        known = np.isin(tasks, np.arange(len(dataset.tasks)))
        if tasks.ndim != 1 or not known.all():
            row = int((~known).reshape(len(tasks), -1).any(1).argmax())
            raise UserError(
                f"The instruction is not known: {dataset.row_name(row)}",
                file=dataset.root / INFO_PATH,
                key=self.instruction,
                value=tasks[row].tolist(),
                expected=f"an index of the {len(dataset.tasks)} tasks, or a column of texts",
                fix="name another column with sft.features.instruction",
            )
        return [dataset.tasks[int(index)] for index in tasks]

    def _load(self, parts: Sequence[Part]) -> np.ndarray:
        columns = self.dataset.load_columns(dict.fromkeys(part.feature for part in parts))
        pieces = [
            columns[part.feature].reshape(self.dataset.num_frames, -1)[:, part.start : part.stop] for part in parts
        ]
        return np.concatenate(pieces, axis=1).astype(np.float32)


def find_features(dataset: DemonstrationDataset, config: ExperimentConfig) -> DatasetFeatures:
    """Find the features of an experiment's inputs and outputs.

    What the experiment does not give is found by name: by meta/modality.json, where the experiment names cameras and
    parts as it does; else by the names that Regrasp writes; cameras also by the names of their observations. Other
    features are left alone.

    Raises:
        UserError: A feature is not there or of another kind, which it is cannot be told, or the action has another
            width than the policy's.
    """
    assert config.sft is not None
    mapping, given, uses_images = config.env.train.mapping, config.sft.features, config.actor.model.uses_images
    names = _modality(dataset)
    parts = mapping.data_config.action if mapping.data_config else ()
    ordered = sorted(state_names(mapping).items(), key=lambda item: item[1])
    instruction = given.instruction or _TASK
    if instruction not in dataset.features:
        raise _unknown(dataset, "instruction", instruction, list(dataset.features))
    found = DatasetFeatures(
        dataset,
        _cameras(dataset, mapping, given.cameras, names.video) if uses_images else {},
        _vector(dataset, "states", given.states, [name for name, _ in ordered], names.state),
        _vector(dataset, "action", given.action, [part.key for part in parts], names.action),
        instruction,
    )
    action_dim = sum(part.stop - part.start for part in found.action)
    if config.actor.model.action_dim != action_dim:
        raise _other_mapping(dataset, "actor.model.action_dim", config.actor.model.action_dim, str(action_dim))
    return found


def check_sources(dataset: DemonstrationDataset, config: ExperimentConfig) -> list[str]:
    """Check that the experiment maps to a policy what the demonstrations were made of.

    Datasets of other programs do not say what they were made of, and features that the experiment names are taken as
    they are.

    Returns:
        Warnings.

    Raises:
        UserError: Cameras or states differ.
    """
    mapping, uses_images = config.env.train.mapping, config.actor.model.uses_images
    asked = [name for name in (mapping.main_images, *mapping.extra_view_images) if name is not None]
    text, warnings = mapping.task_description, []
    if text is not None and text not in dataset.tasks:
        known = ", ".join(f"'{task}'" for task in dataset.tasks[:3])
        warnings = [
            f"env.train.mapping.task_description is '{text}'; the demonstrations in {dataset.root} say {known}."
        ]
    task, recorded = config.env.train.init_params.id, dataset.robot_type
    if isinstance(recorded, str) and EnvTypes().of_task(recorded) is not None and not same_task(task, recorded):
        warnings.append(
            f"env.train.init_params.id is {task}; the demonstrations in {dataset.root} were made of {recorded}."
        )
    found = _read_sources(dataset)
    if found is None or (config.sft is not None and config.sft.features != FeaturesConfig()):
        return warnings
    cameras, states = found["cameras"], found["states"]
    if uses_images and len(asked) != len(cameras):
        key = "env.train.mapping.extra_view_images" if asked else "env.train.mapping.main_images"
        raise _other_mapping(dataset, key, asked, f"{len(cameras)} camera(s) in all")
    named = [is_name_of(*pair) for pair in zip(asked, cameras, strict=False)]
    if uses_images and not (all(named) and len(asked) == len(cameras)):
        key = "extra_view_images" if named[:1] == [True] else "main_images"
        raise _other_mapping(dataset, f"env.train.mapping.{key}", asked, ", ".join(cameras))
    transforms = [list(names) for names in image_transforms(mapping)]
    made_with = found.get("image_transforms", [[]] * len(cameras))
    if uses_images and transforms != made_with:
        raise _other_mapping(
            dataset, "env.train.mapping.image_transform", mapping.image_transform, _by_camera(asked, made_with)
        )
    same = len(mapping.states) == len(states) and all(
        is_name_of(entry.key, part.key)
        and (part.start == 0 if entry.slice is None else entry.slice == (part.start, part.stop))
        for entry, part in zip(mapping.states, states, strict=True)
    )
    if not same:
        expected = ", ".join(f"{part.key}[{part.start}:{part.stop}]" for part in states)
        asked_states = [
            entry.key if entry.slice is None else f"{entry.key}{list(entry.slice)}" for entry in mapping.states
        ]
        raise _other_mapping(dataset, "env.train.mapping.states", asked_states, expected)
    return warnings


@pydantic_dataclass(frozen=True)
class _NamedRange:
    """A part of a state or an action in meta/modality.json."""

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=1, le=2**31)]
    original_key: str | None = None

    def entry(self, default: str) -> StateEntry:
        """The range of its feature, by default of this one."""
        return StateEntry(self.original_key or default, (self.start, self.end))

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError(f"start {self.start} is not below end {self.end}")


@pydantic_dataclass(frozen=True)
class _NamedView:
    """A camera there."""

    original_key: str | None = None


@pydantic_dataclass(frozen=True)
class _Modality:
    """What of meta/modality.json is used."""

    video: dict[str, _NamedView] = field(default_factory=dict)
    state: dict[str, _NamedRange] = field(default_factory=dict)
    action: dict[str, _NamedRange] = field(default_factory=dict)


_MODALITY = TypeAdapter(_Modality)


class _Sources(TypedDict):
    """Content of meta/sources.json."""

    cameras: list[str]
    image_transforms: NotRequired[list[list[str]]]
    """Absent where images were taken as they came."""
    states: list[StateSource]
    quaternions: NotRequired[QuaternionOrder | None]


_SOURCES = TypeAdapter(_Sources)


def quaternion_order(dataset: DemonstrationDataset, mapping: MappingConfig) -> QuaternionOrder | None:
    """The order of the quaternions that the demonstrations hold, as they say or else the mapping; None: neither.

    Raises:
        UserError: They are in another order than the mapping says.
    """
    found = _read_sources(dataset)
    recorded = None if found is None else found.get("quaternions")
    if found is not None:
        made, location = f"the demonstrations in {dataset.root}", "env.train.mapping"
        check_same_order(found["states"], mapping.quaternions, recorded, location=location, made=made)
    return recorded or mapping.quaternions


def _read_sources(dataset: DemonstrationDataset) -> _Sources | None:
    path = dataset.root / SOURCES_PATH
    if not path.exists():
        return None
    try:
        return _SOURCES.validate_json(path.read_bytes(), strict=True)
    except (OSError, ValueError) as error:
        raise damaged(path, f"it does not list cameras and states ({error})") from error


def _by_camera(cameras: Sequence[str], transforms: Sequence[Sequence[str]]) -> str:
    """`{'table_cam': ['rotate_180']}`."""
    pairs = zip(cameras, transforms, strict=False)
    return str({name: list(names) for name, names in pairs if names})


def _other_mapping(dataset: DemonstrationDataset, key: str, value: Any, expected: str) -> UserError:
    return UserError(
        f"Another mapping than the demonstrations in {dataset.root} were made with",
        key=key,
        value=value,
        expected=expected,
        fix="correct it, or record or convert the demonstrations again with this mapping",
    )


def _vector(
    dataset: DemonstrationDataset,
    kind: str,
    given: Sequence[StateEntry] | None,
    parts: Sequence[str],
    named: Mapping[str, _NamedRange],
) -> tuple[Part, ...]:
    """The ranges that make up a state or an action."""
    if given is None and parts and all(name in named for name in parts):
        default = _NAMES[kind][0]
        given = [named[name].entry(default) for name in parts]
    if given is None:
        numeric = [name for name, feature in dataset.features.items() if feature.is_numeric]
        found = [name for name in _NAMES[kind] if name in numeric][:1]
        found = found or [name for name in numeric if name.startswith(f"{_NAMES[kind][0]}.")]
        if len(found) != 1:
            raise _unknown(dataset, kind, found or list(_NAMES[kind]), numeric)
        given = [StateEntry(found[0])]
    return tuple(_part(dataset, kind, entry) for entry in given)


def _part(dataset: DemonstrationDataset, kind: str, entry: StateEntry) -> Part:
    feature = dataset.features.get(entry.key)
    if feature is None or not feature.is_numeric:
        numeric = [name for name, other in dataset.features.items() if other.is_numeric]
        raise _unknown(dataset, kind, entry.key, numeric)
    start, stop = entry.slice or (0, feature.shape[0])
    if not 0 <= start < stop <= feature.shape[0]:
        raise UserError(
            f"The range reaches past the end of '{entry.key}'",
            file=dataset.root / INFO_PATH,
            key=f"sft.features.{kind}",
            value=[start, stop],
            expected=f"0 <= start < stop <= {feature.shape[0]}, the width of the feature",
            fix="correct the range, here or in meta/modality.json",
        )
    return Part(entry.key, start, stop)


def _cameras(
    dataset: DemonstrationDataset,
    mapping: MappingConfig,
    given: Sequence[str] | None,
    named: Mapping[str, _NamedView],
) -> dict[str, str]:
    """What the policy calls the cameras, and the features that have their images."""
    views = camera_names(mapping)
    observations = [name for name in (mapping.main_images, *mapping.extra_view_images) if name is not None]
    by_name = [
        next((name for name in (CAMERA.format(short), short) if name in dataset.cameras), "")
        for short in (observation.rpartition("/")[2] for observation in observations)
    ]
    by_modality = [named[view].original_key or CAMERA.format(view) for view in views if view in named]
    choices = [given] if given is not None else [by_modality, camera_features(len(views)), by_name]
    for names in choices:
        if len(names) == len(views) and len(set(names)) == len(views) and set(names) <= set(dataset.cameras):
            return dict(zip(views, names, strict=True))
    raise UserError(
        "Which features of the dataset are the cameras cannot be told by their names",
        file=dataset.root / INFO_PATH,
        key="sft.features.cameras",
        value=list(given) if given is not None else None,
        expected=f"for each of {observations} one of {list(dataset.cameras)}",
        fix="say which, in this order: sft.features.cameras=[...]",
    )


def _modality(dataset: DemonstrationDataset) -> _Modality:
    """Content of meta/modality.json; empty without it."""
    path = dataset.root / MODALITY_PATH
    if not path.is_file():
        return _Modality()
    try:
        return _MODALITY.validate_json(path.read_bytes(), strict=True)
    except (OSError, ValueError) as error:
        raise damaged(path, f"it does not name cameras and ranges ({error})") from error


def _unknown(dataset: DemonstrationDataset, kind: str, value: object, offered: Sequence[str]) -> UserError:
    return UserError(
        f"The dataset does not tell which feature is the {kind.removesuffix('s')}",
        file=dataset.root / INFO_PATH,
        key=f"sft.features.{kind}",
        value=value,
        expected=f"one of {list(offered)}",
        fix=f"name it: sft.features.{kind}=" + ("NAME" if kind == "instruction" else "[NAME]"),
    )
