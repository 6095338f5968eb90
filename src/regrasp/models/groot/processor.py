"""What travels with a GR00T checkpoint besides weights: normalisation, cameras, words, embodiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from regrasp.envs.contract import Observation
from regrasp.errors import UserError
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.tokenizer import TextEncoder, load_tokenizer, train_tokenizer
from regrasp.models.normalization import NORMALIZATION_MODES, NormalizationMode, Normalizer, Statistics
from regrasp.models.weights import read_json, write_json

PROCESSOR_FILE = "processor_config.json"
METADATA_FILE = "experiment_cfg/metadata.json"


@dataclass(frozen=True)
class ProcessorConfig:
    """What the published metadata.json cannot say."""

    embodiment_tag: str = "new_embodiment"
    embodiment_id: int = 0
    """Slot of the head's per-embodiment projectors."""
    video_keys: tuple[str, ...] = ("main",)
    """Cameras: the main one, then the extra views in order."""
    state_keys: tuple[str, ...] = ("state",)
    """Keys of the state statistics, in the order they make up the state vector."""
    action_keys: tuple[str, ...] = ("action",)
    """Keys of the action statistics, in the order they make up the action vector."""
    state_mode: NormalizationMode = "min_max"
    action_mode: NormalizationMode = "min_max"
    fps: float = 10.0
    """Control frequency in Hz."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, file: Any = None) -> Self:
        """Read `processor_config.json`.

        Raises:
            UserError: A key is missing or unknown, or a mode is unknown.
        """
        expected = set(asdict(cls()))
        if set(content) != expected:
            wrong = sorted(expected ^ set(content))
            raise UserError(f"Missing or unknown keys: {', '.join(wrong)}", file=file, expected=", ".join(expected))
        for key in ("state_mode", "action_mode"):
            if content[key] not in NORMALIZATION_MODES:
                raise UserError(
                    "Unknown normalisation",
                    file=file,
                    key=key,
                    value=content[key],
                    expected=", ".join(NORMALIZATION_MODES),
                )
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in content.items()}
        return cls(**values)


class GrootProcessor:
    """Observation to tensors, and actions back to physical units.

    Args:
        groot: Sizes of the network.
        config: Cameras, keys, modes and embodiment.
        state: Statistics by state key.
        action: Statistics by action key.
        tokenizer: Turns words into ids.

    Raises:
        UserError: The state, the action or the embodiment does not fit the network.
    """

    def __init__(
        self,
        groot: GrootConfig,
        config: ProcessorConfig,
        state: Mapping[str, Statistics],
        action: Mapping[str, Statistics],
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        self.groot = groot
        self.config = config
        self.statistics = {"state": dict(state), "action": dict(action)}
        self.tokenizer = tokenizer
        self.state = Normalizer(Statistics.concatenate([state[key] for key in config.state_keys]), config.state_mode)
        self.action = Normalizer(
            Statistics.concatenate([action[key] for key in config.action_keys]), config.action_mode
        )
        self.text = TextEncoder(
            tokenizer,
            text_length=groot.text_length,
            num_image_tokens=len(config.video_keys) * groot.eagle_cfg.vision_config.num_tokens,
            image_token=groot.eagle_cfg.image_token_index,
            pad_token=groot.eagle_cfg.pad_token_index,
            text_first=groot.text_first,
        )
        head = groot.action_head_cfg
        _check_fits("state dimensions", self.state.width, head.max_state_dim)
        _check_fits("action dimensions", self.action.width, head.max_action_dim)
        _check_fits("tokens in the vocabulary", len(tokenizer), groot.eagle_cfg.text_config.vocab_size)
        if not 0 <= config.embodiment_id < head.max_num_embodiments:
            raise UserError(
                "An embodiment id without a slot in this model",
                key="embodiment_tag_id",
                value=config.embodiment_id,
                expected=f"0 to {head.max_num_embodiments - 1}",
            )

    @classmethod
    def fresh(
        cls, groot: GrootConfig, sentences: Iterable[str], *, num_views: int, state_dim: int, action_dim: int
    ) -> Self:
        """A processor for a new model: tokenizer trained on `sentences`, statistics that change nothing."""
        return cls(
            groot,
            ProcessorConfig(video_keys=("main", *(f"extra_{index}" for index in range(num_views - 1)))),
            {"state": Statistics.identity(state_dim)},
            {"action": Statistics.identity(action_dim)},
            train_tokenizer(sentences, groot.eagle_cfg.text_config.vocab_size),
        )

    def with_statistics(self, state: Statistics, action: Statistics, **changes: Any) -> Self:
        """This processor for other data, whose states and actions are one key each.

        Args:
            state: Statistics of the state vector.
            action: Statistics of the action vector.
            **changes: Fields of `ProcessorConfig` to replace.
        """
        config = replace(self.config, state_keys=("state",), action_keys=("action",), **changes)
        return type(self)(self.groot, config, {"state": state}, {"action": action}, self.tokenizer)

    def padded_to(self, sequence_length: int) -> Self:
        """This processor with instructions padded so that words and image tokens together have this length.

        Features depend on it, because padding is visible to the action head.

        Raises:
            UserError: The image tokens alone are as many.
        """
        num_image_tokens = self.num_views * self.groot.eagle_cfg.vision_config.num_tokens
        if sequence_length <= num_image_tokens:
            raise UserError(
                "The padded sequence has no room for words",
                key="actor.model.rl_head_config.padding_value",
                value=sequence_length,
                expected=f"more than the {num_image_tokens} image tokens of {self.num_views} cameras",
                mend="raise padding_value, or leave it out to pad as the model folder says",
            )
        groot = replace(self.groot, text_length=sequence_length - num_image_tokens)
        return type(self)(groot, self.config, self.statistics["state"], self.statistics["action"], self.tokenizer)

    @property
    def num_views(self) -> int:
        """Cameras used, V."""
        return len(self.config.video_keys)

    def prepare(self, observation: Observation) -> TensorDict:
        """Observation of B environments to `images`, `input_ids` and `state`.

        Returns:
            images (B, V, H, W, 3) uint8 at the network's size, input_ids (B, L) int64, state (B, max_state_dim)
            float32, normalised and padded with zeros.

        Raises:
            UserError: The number of cameras, the image layout, or the width of the state is not what the model expects.
        """
        device = observation.states.device
        return TensorDict(
            {
                "images": self._images(observation),
                "input_ids": self.text.encode(observation.task_descriptions).to(device),
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
        write_json(folder / PROCESSOR_FILE, asdict(self.config))
        metadata = folder / METADATA_FILE
        metadata.parent.mkdir(exist_ok=True)
        write_json(metadata, {self.config.embodiment_tag: self._metadata()})
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, groot: GrootConfig, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: A file or a key is missing or malformed.
        """
        file = folder / PROCESSOR_FILE
        config = ProcessorConfig.from_json(read_json(file), file=file)
        metadata = folder / METADATA_FILE
        tags = read_json(metadata)
        tag = config.embodiment_tag
        if tag not in tags:
            raise UserError("No statistics for the embodiment", file=metadata, key=tag, expected=", ".join(tags))
        statistics = tags[tag]["statistics"]
        parts = {
            kind: {key: _read_statistics(statistics, kind, key, tag, metadata) for key in keys}
            for kind, keys in (("state", config.state_keys), ("action", config.action_keys))
        }
        return cls(groot, config, parts["state"], parts["action"], load_tokenizer(folder))

    def _images(self, observation: Observation) -> Tensor:
        views = observation.main_images.unsqueeze(1)
        if observation.extra_view_images is not None:
            views = torch.cat([views, observation.extra_view_images], dim=1)
        if views.dtype != torch.uint8 or views.ndim != 5 or views.shape[-1] != 3:
            raise UserError(
                "Images of the wrong layout",
                key="main_images",
                value=f"{tuple(views.shape)} {views.dtype}",
                expected="(B, H, W, 3) uint8",
            )
        if views.shape[1] != self.num_views:
            raise UserError(
                "Another number of cameras than the model was trained with",
                key="extra_view_images",
                value=views.shape[1] - 1,
                expected=f"{self.num_views - 1} extra views ({', '.join(self.config.video_keys)})",
            )
        size = self.groot.image_size
        return views if views.shape[2:4] == (size, size) else _resize(views, size)

    def _state(self, states: Tensor) -> Tensor:
        if states.ndim != 2 or states.shape[-1] != self.state.width:
            raise UserError(
                "States of another width than the model was trained with",
                key="states",
                value=tuple(states.shape),
                expected=f"(B, {self.state.width})",
                mend="compare the mapping's `states` with the one the base model was trained with",
            )
        return F.pad(self.state.normalize(states), (0, self.groot.action_head_cfg.max_state_dim - self.state.width))

    def _metadata(self) -> dict[str, Any]:
        size = self.groot.image_size
        return {
            "statistics": {
                kind: {key: part.to_mapping() for key, part in parts.items()} for kind, parts in self.statistics.items()
            },
            "modalities": {
                "video": {
                    key: {"resolution": [size, size], "channels": 3, "fps": self.config.fps}
                    for key in self.config.video_keys
                },
                **{
                    kind: {
                        key: {"absolute": True, "rotation_type": None, "shape": [part.width], "continuous": True}
                        for key, part in parts.items()
                    }
                    for kind, parts in self.statistics.items()
                },
            },
            "embodiment_tag": self.config.embodiment_tag,
        }


def _resize(views: Tensor, size: int) -> Tensor:
    """(B, V, H, W, 3) uint8 to (B, V, size, size, 3) uint8, bilinear with antialiasing."""
    pixels = views.flatten(0, 1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).unflatten(0, views.shape[:2])


def _read_statistics(statistics: Mapping[str, Any], kind: str, key: str, tag: str, file: Path) -> Statistics:
    dotted = f"{tag}.statistics.{kind}.{key}"
    known: Sequence[str] = list(statistics.get(kind, {}))
    if key not in known:
        raise UserError("No statistics for a key of the processor", file=file, key=dotted, expected=", ".join(known))
    return Statistics.from_mapping(statistics[kind][key], file=file, key=dotted)


def _check_fits(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise UserError(f"More {what} than the model has room for", value=found, expected=f"at most {limit}")
