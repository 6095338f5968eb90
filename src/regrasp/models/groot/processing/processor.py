"""What travels with a GR00T checkpoint besides weights: normalisation, cameras, words, embodiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from regrasp.envs.contract import Observation
from regrasp.errors import UserError
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.processing.data_config import EAGLE_WORDS, PROCESSOR_FILE, DataConfig, KeyConfig
from regrasp.models.groot.processing.images import prepare_images
from regrasp.models.groot.processing.metadata import Kind, Metadata, read_metadata
from regrasp.models.groot.processing.processor_config import (
    ProcessorConfig,
    check_same,
    given_data_config,
    published_config,
    read_config,
)
from regrasp.models.groot.processing.selection import Selection, split_statistics
from regrasp.models.groot.processing.tokenizer import TextEncoder, load_tokenizer, save_tokenizer, train_tokenizer
from regrasp.models.inputs import InputNames, embodiment_id
from regrasp.models.normalization import Statistics
from regrasp.models.weights import write_json


class GrootProcessor:
    """Observation to tensors, and actions back to physical units.

    Args:
        groot: Sizes of the network.
        config: Data configuration, prompt and embodiment.
        metadata: Statistics and modalities of the embodiment.
        tokenizer: Turns words into ids.
        inputs: How the experiment calls cameras and state; by default both come as the data configuration has them.

    Raises:
        UserError: The data configuration, the metadata, the experiment's names and the network do not fit together.
    """

    def __init__(
        self,
        groot: GrootConfig,
        config: ProcessorConfig,
        metadata: Metadata,
        tokenizer: PreTrainedTokenizerFast,
        inputs: InputNames | None = None,
    ) -> None:
        head, data = groot.action_head_cfg, config.data_config
        metadata.check_views(data)
        self.groot = groot
        self.config = config
        self.metadata = metadata
        self.tokenizer = tokenizer
        self.inputs = inputs or InputNames()
        self.state = metadata.scaling("state", data.state)
        self.action = metadata.scaling("action", data.action)
        self._selection = Selection(data, metadata, self.inputs)
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
        data = DataConfig(_camera_names(num_views), (KeyConfig("state"),), (KeyConfig("action"),), crop_scale=1.0)
        config = ProcessorConfig(
            embodiment_tag=NEW_EMBODIMENT,
            embodiment_id=0,
            data_config=data,
            prompt="plain_text_first" if text_first else "plain_images_first",
            sequence_length=text_length + num_views * groot.eagle_cfg.vision_config.num_tokens,
        )
        state, action = Statistics.identity(state_dim), Statistics.identity(action_dim)
        metadata = _new_metadata(groot, config, {"state": state}, {"action": action}, fps=10.0)
        return cls(groot, config, metadata, train_tokenizer(sentences, groot.eagle_cfg.text_config.vocab_size))

    @classmethod
    def for_data(
        cls,
        groot: GrootConfig,
        folder: Path,
        inputs: InputNames,
        state: Statistics,
        action: Statistics,
        *,
        num_views: int,
        fps: float,
    ) -> Self:
        """A processor to train the model of a folder on new data: its words and images, the data's everything else.

        Args:
            groot: Sizes of the network.
            folder: The model folder.
            inputs: Embodiment, names and data configuration; without a data configuration the state has the keys of
                `inputs.state` (or one, `state`) and the action is one key, all scaled by `min_max`.
            state: Statistics of the whole state vector.
            action: Statistics of the whole action vector.
            num_views: Cameras of the data.
            fps: Control frequency in Hz.

        Raises:
            UserError: The data configuration does not fit the data.
        """
        tokens = groot.eagle_cfg.vision_config.num_tokens
        base = read_config(folder)
        prompt, words, crop = "eagle", EAGLE_WORDS, DataConfig.crop_scale
        if base is not None:
            words = base.sequence_length - len(base.data_config.video) * tokens
            prompt, crop = base.prompt, base.data_config.crop_scale
        tag = inputs.embodiment_tag or NEW_EMBODIMENT
        trained = None if base is None else (base.embodiment_tag, base.embodiment_id)
        given = given_data_config(inputs)
        data = given or DataConfig(
            video=inputs.views or _camera_names(num_views),
            state=tuple(KeyConfig(key) for key, _, _ in inputs.state or (("state", 0, 0),)),
            action=(KeyConfig("action"),),
            crop_scale=crop,
        )
        config = ProcessorConfig(
            embodiment_tag=tag,
            embodiment_id=embodiment_id(
                tag, inputs.embodiment_tag_id, key="mapping.embodiment_tag_id", trained=trained
            ),
            data_config=data,
            prompt=prompt,
            sequence_length=words + len(data.video) * tokens,
        )
        parts = split_statistics(data, inputs, state, action)
        metadata = _new_metadata(groot, config, *parts, fps=fps)
        return cls(groot, config, metadata, load_tokenizer(folder, inputs.tokenizer_path), inputs)

    def with_statistics(self, state: Statistics, action: Statistics, *, embodiment_id: int) -> Self:
        """This processor for other data, whose states and actions are one key each, in another slot."""
        data = replace(self.config.data_config, state=(KeyConfig("state"),), action=(KeyConfig("action"),))
        config = replace(self.config, data_config=data, embodiment_id=embodiment_id)
        metadata = _new_metadata(self.groot, config, {"state": state}, {"action": action}, fps=10.0)
        return type(self)(self.groot, config, metadata, self.tokenizer)

    def padded_to(self, sequence_length: int) -> Self:
        """This processor with instructions padded so that words and image tokens together have this length.

        Features depend on it, because padding is visible to the action head.

        Raises:
            UserError: It leaves no room for words.
        """
        config = replace(self.config, sequence_length=sequence_length)
        return type(self)(self.groot, config, self.metadata, self.tokenizer, self.inputs)

    @property
    def num_views(self) -> int:
        """Cameras used, V."""
        return len(self.config.data_config.video)

    @property
    def state_dim(self) -> int:
        """Width of an observation's states."""
        return self._selection.state_dim

    def parts(self, kind: Kind) -> tuple[tuple[str, int], ...]:
        """Key and width of every part of the state or the action, in the model's order."""
        data = self.config.data_config
        keys = (item.key for item in (data.state if kind == "state" else data.action))
        return tuple((key, self.metadata.width(kind, key)) for key in keys)

    def check_action_dim(self, action_dim: int) -> None:
        """Check that the experiment's action has the width that the model was trained with.

        Raises:
            UserError: It has another, naming the parts that the metadata has.
        """
        if action_dim != self.action.width:
            parts = ", ".join(f"{key} {width}" for key, width in self.parts("action"))
            raise UserError(
                "Another action width than the model was trained with",
                file=self.metadata.file,
                key="actor.model.action_dim",
                value=action_dim,
                expected=f"{self.action.width}: {parts} wide ({self.metadata.tag})",
                mend="name the experiment that the model was trained for (--config_name), or a model of this task",
            )

    def prepare(self, observation: Observation) -> TensorDict:
        """Observation of B environments to `images`, `input_ids` and `state`.

        Returns:
            images (B, V, H, W, 3) uint8 at the network's size, input_ids (B, L) int64, state (B, max_state_dim)
            float32, normalised and padded with zeros.

        Raises:
            UserError: The number of cameras, the image layout, or the width of the state is not what the model expects,
                or the parts are of different numbers of environments.
        """
        device = observation.states.device
        counts = [len(observation.main_images), len(observation.states), len(observation)]
        if len(set(counts)) > 1:
            raise UserError(
                "An observation of different numbers of environments",
                key="main_images, states, task_descriptions",
                value=counts,
                expected="one row of each for every environment",
            )
        return TensorDict(
            {
                "images": self._images(observation),
                "input_ids": send(self.text.encode(observation.task_descriptions), device),
                "state": self._state(observation.states),
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
        save_tokenizer(self.tokenizer, folder)

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
        return cls(groot, config, metadata, load_tokenizer(folder, inputs.tokenizer_path), inputs)

    def _images(self, observation: Observation) -> Tensor:
        views = _all_views(observation.main_images, observation.extra_view_images)
        if views.shape[1] != self.num_views:
            raise UserError(
                "Another number of cameras than the model was trained with",
                key="extra_view_images",
                value=views.shape[1] - 1,
                expected=f"{self.num_views - 1} extra views ({', '.join(self.config.data_config.video)})",
            )
        return prepare_images(
            self._selection.views(views), size=self.groot.image_size, crop_scale=self.config.data_config.crop_scale
        )

    def _state(self, states: Tensor) -> Tensor:
        if states.ndim != 2 or states.shape[-1] != self.state_dim:
            raise UserError(
                "States of another width than the model was trained with",
                key="states",
                value=tuple(states.shape),
                expected=f"(B, {self.state_dim})",
                mend="compare the mapping's `states` with the one the base model was trained with",
            )
        state = self.state.normalize(self._selection.state(states))
        return F.pad(state, (0, self.groot.action_head_cfg.max_state_dim - self.state.normalized_width))


def _all_views(main: Tensor, extra: Tensor | None) -> Tensor:
    """Both kinds of images in one tensor (B, V, H, W, 3)."""
    if main.dtype != torch.uint8 or main.ndim != 4 or main.shape[-1] != 3 or min(main.shape[1:]) < 2:
        raise _wrong_images("main_images", main, "(B, H, W, 3) uint8")
    if extra is None:
        return main.unsqueeze(1)
    batch, height, width, _ = main.shape
    alike = extra.ndim == 5 and extra.dtype == torch.uint8 and (len(extra), *extra.shape[2:]) == tuple(main.shape)
    if not alike:
        raise _wrong_images("extra_view_images", extra, f"({batch}, V, {height}, {width}, 3) uint8, as main_images")
    return torch.cat([main.unsqueeze(1), extra], dim=1)


def _wrong_images(key: str, found: Tensor, expected: str) -> UserError:
    layout = f"{tuple(found.shape)} {str(found.dtype).removeprefix('torch.')}"
    return UserError("Images of the wrong size or type", key=key, value=layout, expected=expected)


def _new_metadata(
    groot: GrootConfig,
    config: ProcessorConfig,
    state: Mapping[str, Statistics],
    action: Mapping[str, Statistics],
    *,
    fps: float,
) -> Metadata:
    views = config.data_config.video
    return Metadata.of(config.embodiment_tag, state, action, video=views, image_size=groot.image_size, fps=fps)


def _camera_names(num_views: int) -> tuple[str, ...]:
    return ("main", *(f"extra_{index}" for index in range(num_views - 1)))


def _check_fits(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise UserError(
            f"More {what} than the model has room for",
            value=found,
            expected=f"at most {limit}, the size of its network",
            mend="name a model or backbone made for this task's robot; `regrasp pretrain` with the same --config_name"
            " makes one",
        )
