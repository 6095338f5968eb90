"""What travels with an OpenVLA besides weights: prompt, images, action statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from tensordict import TensorDict
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from regrasp.device import send
from regrasp.envs.contract import Observation, numbered_cameras
from regrasp.errors import UserError
from regrasp.models.config import CONFIG_FILE, DatasetFacts
from regrasp.models.observations import images_of
from regrasp.models.openvla.config import OpenVlaConfig
from regrasp.models.openvla.decoding import DECODING_FILE, Decoding
from regrasp.models.openvla.processing.action_scaling import (
    STATISTICS_FILE,
    choose_key,
    entry_of,
    known_statistics,
    read_scaling,
)
from regrasp.models.openvla.processing.action_tokens import ActionTokens
from regrasp.models.openvla.processing.images import PREPROCESSOR_FILE, ImageSettings, normalized, prepare_images
from regrasp.models.openvla.processing.prompt import PromptEncoder
from regrasp.models.openvla.processing.tokenizer import load_tokenizer
from regrasp.models.weights import read_json, write_json

OWN_DATA = "regrasp"
"""`unnorm_key` of demonstrations of ours, where the experiment gives none."""


class OpenVlaProcessor:
    """Observation to tensors, and action tokens to physical actions.

    Args:
        config: Sizes of the network.
        decoding: Prompt length, cameras, crop, statistics.
        statistics: Of all data sets, by `unnorm_key`.
        preprocessor: preprocessor_config.json, written back as it is.
        tokenizer: Turns words into ids.
        file: Where the statistics stand, for errors.

    Raises:
        UserError: The statistics are not there, or tokenizer and network do not fit together.
    """

    def __init__(
        self,
        config: OpenVlaConfig,
        decoding: Decoding,
        statistics: Mapping[str, Any],
        preprocessor: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerFast,
        file: Path,
    ) -> None:
        self.decoding = replace(decoding, unnorm_key=choose_key(statistics, decoding.unnorm_key, file))
        self.statistics = dict(statistics)
        self.preprocessor = dict(preprocessor)
        self.tokenizer = tokenizer
        self.config = config
        self.cameras = decoding.cameras or numbered_cameras(1)
        self.images = ImageSettings.read(preprocessor, config.image_size, config.resize_strategy, file)
        self.prompts = PromptEncoder(tokenizer, length=decoding.max_prompt_length, pad_token=config.pad_token)
        self.tokens = ActionTokens(config.vocabulary, config.num_bins)
        assert self.decoding.unnorm_key is not None
        self.scaling = read_scaling(statistics, self.decoding.unnorm_key, "q99", file)
        if len(tokenizer) > config.language.vocab_size:
            raise UserError(
                "More tokens in the tokenizer than the network has room for",
                file=file,
                key="text_config.vocab_size",
                value=len(tokenizer),
                expected=f"at most {config.language.vocab_size}",
                fix="give the tokenizer that the model was trained with",
            )

    @classmethod
    def read(cls, config: OpenVlaConfig, folder: Path, decoding: Decoding, tokenizer_path: Path | None = None) -> Self:
        """Read what a model folder has beside its weights.

        Raises:
            UserError: A file is missing or damaged, or the statistics are not there.
        """
        fine_tuned = folder / STATISTICS_FILE
        stats = known_statistics(
            config.content, read_json(fine_tuned) if fine_tuned.is_file() else None, folder / CONFIG_FILE
        )
        preprocessor = read_json(folder / PREPROCESSOR_FILE)
        tokenizer = load_tokenizer(folder, tokenizer_path)
        return cls(config, decoding, stats, preprocessor, tokenizer, folder / CONFIG_FILE)

    @classmethod
    def for_data(
        cls,
        config: OpenVlaConfig,
        folder: Path,
        decoding: Decoding,
        facts: DatasetFacts,
        tokenizer_path: Path | None = None,
    ) -> Self:
        """A processor to train the model of a folder on new data: its words and images, the data's statistics."""
        decoding = replace(decoding, unnorm_key=decoding.unnorm_key or OWN_DATA, cameras=facts.cameras)
        stats = {str(decoding.unnorm_key): entry_of(facts.action, facts.state)}
        preprocessor = read_json(folder / PREPROCESSOR_FILE)
        tokenizer = load_tokenizer(folder, tokenizer_path)
        return cls(config, decoding, stats, preprocessor, tokenizer, folder / CONFIG_FILE)

    @property
    def tokens_per_decision(self) -> int:
        """N, of actions."""
        return self.decoding.num_action_chunks * self.scaling.width

    def prepare(self, observation: Observation) -> TensorDict:
        """Observation of B environments to `images` (B, V, size, size, 3) uint8 and `input_ids` (B, L) int64.

        Raises:
            UserError: A camera is missing or has no such images, or an instruction is too long.
        """
        views = images_of(observation, self.cameras)
        ids = self.prompts.encode(observation.instruction)
        counts = [*map(len, views), len(ids)]
        if len(set(counts)) > 1:
            raise UserError(
                "An observation of different numbers of environments",
                key="images, instruction",
                value=counts,
                expected="one row of each for every environment",
                fix="give as many instructions as images of each camera",
            )
        images = prepare_images(views, self.images, center_crop=self.decoding.center_crop)
        return TensorDict({"images": images, "input_ids": send(ids, images.device)}, batch_size=[len(ids)])

    def pixels(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, size, size, 3) uint8 to (N, 6, size, size), both towers' normalisations."""
        return normalized(images, self.images, dtype)

    def encode_actions(self, actions: Tensor) -> Tensor:
        """Ids (B, T A) of physical actions (B, T, A)."""
        return self.tokens.encode(self.scaling.normalize(actions)).flatten(1)

    def decode_actions(self, ids: Tensor) -> Tensor:
        """Physical actions (B, T, A) of ids (B, T A)."""
        return self.scaling.unnormalize(self.tokens.decode(ids).unflatten(1, (-1, self.scaling.width)))

    def save(self, folder: Path) -> None:
        """Write decoding.json, dataset_statistics.json, preprocessor_config.json and the tokenizer."""
        from dataclasses import asdict

        write_json(folder / DECODING_FILE, asdict(self.decoding))
        write_json(folder / STATISTICS_FILE, self.statistics)
        write_json(folder / PREPROCESSOR_FILE, self.preprocessor)
        self.tokenizer.save_pretrained(folder)
