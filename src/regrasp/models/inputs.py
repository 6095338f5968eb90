"""How an experiment calls a policy's inputs. Imports nothing heavy: the configuration schema uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from regrasp.config.types import NEW_EMBODIMENT
from regrasp.envs.data_config import HUMAN_TASK, DataConfig
from regrasp.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Range = tuple[int, int]
"""(start, stop) in a vector."""

EMBODIMENT_IDS = {NEW_EMBODIMENT: 31, "gr1": 24, "oxe_droid": 17, "agibot_genie1": 26}
"""Slots of the published GR00T N1.5 by embodiment tag."""


@dataclass(frozen=True)
class InputNames:
    """The embodiment, and what a model sees of it.

    None always leaves the question to the model folder.
    """

    embodiment_tag: str | None = None
    embodiment_tag_id: int | None = None
    """Slot of the per-embodiment projectors; None: the model folder's own, else the published slot of the tag."""
    data_config: str | DataConfig | Mapping[str, Any] | None = None
    """Keys and their normalisation, as `data_config` of the GR00T models reads them."""
    tokenizer_path: Path | None = None
    """Where the tokenizer is, if the model folder has none."""

    def problems(self, key: str) -> Iterator[UserError]:
        """What is wrong with the name of the data configuration.

        Args:
            key: Where the mapping stands, for errors.
        """
        from regrasp.models.groot.processing.data_config import data_config

        if isinstance(self.data_config, str):
            try:
                data_config(self.data_config, file=None, key=f"{key}.data_config_class")
            except UserError as error:
                yield error

    def in_dataset(self, state_names: Mapping[str, Range], state_dim: int, action_dim: int) -> DatasetNames:
        """The names that demonstrations for the model carry.

        Args:
            state_names: What the mapping calls parts of the state; empty where it names none.
            state_dim: Width of the state.
            action_dim: Width of the action.

        Raises:
            UserError: The data configuration's parts do not fit the state or the action.
        """
        from regrasp.models.groot.processing.processor_config import given_data_config
        from regrasp.models.groot.processing.selection import key_ranges

        data = given_data_config(self)
        if data is None:
            return DatasetNames(state_names, {}, HUMAN_TASK)
        return DatasetNames(*key_ranges(data, state_names, state_dim, action_dim), data.language)

    def check_actions(self, state_names: Mapping[str, Range], actions: Tensor, source: str) -> None:
        """Check that the data configuration's normalisation gives actions back.

        Args:
            state_names: What the mapping calls parts of the state.
            actions: (N, A), all that a model is to learn.
            source: What they are of, for errors.

        Raises:
            UserError: It does not.
        """
        from regrasp.models.groot.processing.processor_config import given_data_config
        from regrasp.models.groot.processing.selection import check_ways_back

        data = given_data_config(self)
        if data is not None:
            check_ways_back(data, state_names, actions, source)


class DatasetNames(NamedTuple):
    """What the parts of a state and of an action are called, each with its range in the vector; empty: not named."""

    state: Mapping[str, Range]
    action: Mapping[str, Range]
    language: str
    """The annotation that holds the instruction."""


def embodiment_id(tag: str, given: int | None, *, key: str, trained: tuple[str, int] | None = None) -> int:
    """The slot given, else the one that a model was trained in for this tag, else the published one.

    Args:
        tag: The embodiment.
        given: What the experiment says.
        key: The setting that says it, for errors.
        trained: Embodiment and slot of a model that knows its own.

    Raises:
        UserError: No slot is known.
    """
    if given is not None:
        return given
    if trained is not None and trained[0] == tag:
        return trained[1]
    if tag not in EMBODIMENT_IDS:
        published = ", ".join(f"{name} {slot}" for name, slot in EMBODIMENT_IDS.items())
        raise UserError(
            f"No slot of the projectors is known for the embodiment {tag!r}",
            key=key,
            value=None,
            expected=f"an integer; the published slots are {published}",
            fix="set embodiment_tag_id to the slot that the checkpoint was trained with",
        )
    return EMBODIMENT_IDS[tag]
