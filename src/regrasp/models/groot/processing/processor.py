"""What travels with a GR00T checkpoint besides weights: normalisation, cameras, words, embodiment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from regrasp.config.types import NEW_EMBODIMENT
from regrasp.device import send
from regrasp.envs.contract import STATE, Observation, numbered_cameras
from regrasp.envs.data_config import DataConfig, KeyConfig
from regrasp.errors import UserError
from regrasp.models.config import DatasetFacts
from regrasp.models.contract import StateRange
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.processing.data_config import EAGLE_WORDS, PROCESSOR_FILE
from regrasp.models.groot.processing.images import prepare_images
from regrasp.models.groot.processing.metadata import Kind, Metadata, read_metadata
from regrasp.models.groot.processing.processor_config import (
    ProcessorConfig,
    check_same,
    given_data_config,
    published_config,
    read_config,
)
from regrasp.models.groot.processing.selection import split_statistics
from regrasp.models.groot.processing.tokenizer import TextEncoder, load_tokenizer, train_tokenizer
from regrasp.models.inputs import InputNames, embodiment_id
from regrasp.models.normalization import Statistics
from regrasp.models.observations import images_of, state_of
from regrasp.models.weights import write_json


class GrootProcessor:
    """Observation to tensors, and actions back to physical units.

    Args:
        groot: Sizes of the network.
        config: Data configuration, prompt and embodiment.
        metadata: Statistics and modalities of the embodiment.
        tokenizer: Turns words into ids.

    Raises:
        UserError: The data configuration, the metadata and the network do not fit together.
    """

    def __init__(
        self,
        groot: GrootConfig,
        config: ProcessorConfig,
        metadata: Metadata,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        head, data = groot.action_head_cfg, config.data_config
        metadata.check_views(data)
        self.groot = groot
        self.config = config
        self.metadata = metadata
        self.tokenizer = tokenizer
        self.state = metadata.scaling("state", data.state)
        self.action = metadata.scaling("action", data.action)
        self.state_range = self._state_range()
        self.text = TextEncoder(
            tokenizer,
            prompt=config.prompt,
            sequence_length=config.sequence_length,
            num_views=self.num_views,
            tokens_per_view=groot.eagle_cfg.vision_config.num_tokens,
            image_token=groot.eagle_cfg.image_token_index,
            pad_token=groot.eagle_cfg.pad_token_index,
        )
        _check_fits("state dimensions", self.state.normalized_width, head.max_state_dim)
        _check_fits("action dimensions", self.action.width, head.max_action_dim)
        _check_fits("tokens in the vocabulary", len(tokenizer), groot.eagle_cfg.text_config.vocab_size)
        if self.action.normalized_width != self.action.width:
            raise UserError(
                "An action whose rotation changes its width",
                key="data_config.action",
                value=self.action.normalized_width,
                expected=f"{self.action.width} values, as the environment takes",
            )
        if not 0 <= config.embodiment_id < head.max_num_embodiments:
            raise UserError(
                "An embodiment id without a slot in this model",
                key="mapping.embodiment_tag_id",
                value=config.embodiment_id,
                expected=f"0 to {head.max_num_embodiments - 1}",
            )

    @classmethod
    def fresh(
        cls,
        groot: GrootConfig,
        sentences: Iterable[str],
        *,
        num_views: int,
        state_dim: int,
        action_dim: int,
        text_length: int,
        text_first: bool,
    ) -> Self:
        """A processor for a new model: tokenizer trained on `sentences`, statistics that change nothing.

        Args:
            groot: Sizes of the network.
            sentences: Instructions to train the tokenizer on.
            num_views: Cameras.
            state_dim: Width of the state.
            action_dim: Width of the action.
            text_length: Positions for the instruction, beside the image tokens.
            text_first: Words before the image tokens, instead of after them as published.

        Raises:
            UserError: The sizes do not fit the network.
        """
        data = DataConfig(numbered_cameras(num_views), (KeyConfig("state"),), (KeyConfig("action"),), crop_scale=1.0)
        config = ProcessorConfig(
            embodiment_tag=NEW_EMBODIMENT,
            embodiment_id=0,
            data_config=data,
            prompt="plain_text_first" if text_first else "plain_images_first",
            sequence_length=text_length + num_views * groot.eagle_cfg.vision_config.num_tokens,
        )
        state, action = Statistics.identity(state_dim), Statistics.identity(action_dim)
        parts: dict[Kind, dict[str, Statistics]] = {"state": {"state": state}, "action": {"action": action}}
        metadata = Metadata.of(NEW_EMBODIMENT, parts, data.video, groot.image_size, fps=10.0)
        return cls(groot, config, metadata, train_tokenizer(sentences, groot.eagle_cfg.text_config.vocab_size))

    @classmethod
    def for_data(cls, groot: GrootConfig, folder: Path, facts: DatasetFacts) -> Self:
        """A processor to train the model of a folder on new data: its words and images, the data's everything else.

        Without a data configuration the state has the keys of `facts.state_names` (or one, `state`) and the action is
        one key, all scaled by `min_max`.

        Args:
            groot: Sizes of the network.
            folder: The model folder.
            facts: What the data are like.

        Raises:
            UserError: The data configuration does not fit the data.
        """
        inputs, tokens, base = facts.inputs, groot.eagle_cfg.vision_config.num_tokens, read_config(folder)
        prompt, words, crop, trained = "eagle", EAGLE_WORDS, DataConfig.crop_scale, None
        if base is not None:
            words = base.sequence_length - len(base.data_config.video) * tokens
            prompt, crop = base.prompt, base.data_config.crop_scale
            trained = (base.embodiment_tag, base.embodiment_id)
        data = given_data_config(inputs) or DataConfig(
            video=facts.cameras,
            state=tuple(map(KeyConfig, facts.state_names or (STATE,))),
            action=(KeyConfig("action"),),
            crop_scale=crop,
        )
        tag, key = inputs.embodiment_tag or NEW_EMBODIMENT, "mapping.embodiment_tag_id"
        config = ProcessorConfig(
            embodiment_tag=tag,
            embodiment_id=embodiment_id(tag, inputs.embodiment_tag_id, key=key, trained=trained),
            data_config=data,
            prompt=prompt,
            sequence_length=words + len(data.video) * tokens,
            quaternions=facts.quaternions,
        )
        parts = split_statistics(data, facts)
        metadata = Metadata.of(tag, parts, data.video, groot.image_size, facts.fps)
        return cls(groot, config, metadata, load_tokenizer(folder, inputs.tokenizer_path))

    def padded_to(self, sequence_length: int) -> Self:
        """This processor with instructions padded so that words and image tokens together have this length.

        Features depend on it, because padding is visible to the action head.

        Raises:
            UserError: It leaves no room for words.
        """
        config = replace(self.config, sequence_length=sequence_length)
        return type(self)(self.groot, config, self.metadata, self.tokenizer)

    @property
    def num_views(self) -> int:
        """Cameras used, V."""
        return len(self.config.data_config.video)

    def parts(self, kind: Kind) -> tuple[tuple[str, int], ...]:
        """Key and width of every part of the state or the action, in the model's order."""
        data = self.config.data_config
        keys = (item.key for item in (data.state if kind == "state" else data.action))
        return tuple((key, self.metadata.width(kind, key)) for key in keys)

    def _state_range(self) -> StateRange | None:
        """Where the states of the data were; None for a processor of no data."""
        parts = self.parts("state")
        known = [self.metadata.statistics("state", key) for key, _ in parts]
        if all(part.is_identity for part in known):
            return None
        return StateRange(parts, torch.cat([part.min for part in known]), torch.cat([part.max for part in known]))

    def check_actions(self, num_action_chunks: int, action_dim: int) -> None:
        """Check that the model predicts so many actions, and that they have the width that it was trained with.

        Raises:
            UserError: It does not; of another width, with the parts that the metadata has.
        """
        horizon = self.groot.action_horizon
        if not 1 <= num_action_chunks <= horizon:
            raise UserError(
                "Not a number of actions this model can predict",
                key="actor.model.num_action_chunks",
                value=num_action_chunks,
                expected=f"1 to {horizon}",
            )
        if action_dim != self.action.width:
            parts = ", ".join(f"{key} {width}" for key, width in self.parts("action"))
            raise UserError(
                "Another action width than the model was trained with",
                file=self.metadata.file,
                key="actor.model.action_dim",
                value=action_dim,
                expected=f"{self.action.width}: {parts} wide ({self.metadata.tag})",
                fix="name the experiment that the model was trained for (--config_name), or a model of this task",
            )

    def prepare(self, observation: Observation) -> TensorDict:
        """Observation of B environments to `images`, `input_ids` and `state`.

        Returns:
            images (B, V, H, W, 3) uint8 at the network's size, input_ids (B, L) int64, state (B, max_state_dim)
            float32, normalised and padded with zeros.

        Raises:
            UserError: A camera or a part of the state is missing or of another layout than the model was trained with,
                or they are of different numbers of environments.
        """
        data, head = self.config.data_config, self.groot.action_head_cfg
        views = images_of(observation, data.video)
        state = state_of(observation, dict(self.parts("state")))
        counts = [*map(len, views), len(state), len(observation)]
        if len(set(counts)) > 1:
            raise UserError(
                "An observation of different numbers of environments",
                key="images, state, instruction",
                value=counts,
                expected="one row of each for every environment",
                fix="give as many instructions as images of each camera and rows of the state",
            )
        return TensorDict(
            {
                "images": prepare_images(views, size=self.groot.image_size, crop_scale=data.crop_scale),
                "input_ids": send(self.text.encode(observation.instruction), state.device),
                "state": F.pad(self.state.normalize(state), (0, head.max_state_dim - self.state.normalized_width)),
            },
            batch_size=[len(observation)],
        )

    def normalize_actions(self, actions: Tensor) -> Tensor:
        """Physical (..., A) to policy units (..., max_action_dim), padded with zeros."""
        return F.pad(self.action.normalize(actions), (0, self.groot.action_head_cfg.max_action_dim - self.action.width))

    def unnormalize_actions(self, actions: Tensor) -> Tensor:
        """Policy units (..., A) to physical units; nothing is clamped."""
        return self.action.unnormalize(actions)

    def save(self, folder: Path) -> None:
        """Write `processor_config.json`, `experiment_cfg/metadata.json` and the tokenizer."""
        write_json(folder / PROCESSOR_FILE, self.config.to_json())
        self.metadata.save(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, groot: GrootConfig, folder: Path, inputs: InputNames | None = None) -> Self:
        """Read the folder of a published model, or what `save` wrote.

        Args:
            groot: Sizes of the network.
            folder: The model folder.
            inputs: The experiment's names; what they leave open the folder decides.

        Raises:
            UserError: A file or a key is missing or malformed, or folder and names disagree.
        """
        inputs = inputs or InputNames()
        config = read_config(folder)
        if config is None:
            metadata = read_metadata(folder, inputs.embodiment_tag)
            config = published_config(groot, metadata, inputs)
        else:
            metadata = read_metadata(folder, config.embodiment_tag)
            check_same(config.data_config, inputs, folder / PROCESSOR_FILE)
        return cls(groot, config, metadata, load_tokenizer(folder, inputs.tokenizer_path))


def _check_fits(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise UserError(
            f"More {what} than the model has room for",
            value=found,
            expected=f"at most {limit}, the size of its network",
            fix="name a model or backbone made for this task's robot; `regrasp pretrain` with the same --config_name"
            " makes one",
        )
