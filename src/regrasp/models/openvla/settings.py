"""Block `actor.model` of OpenVLA and OpenVLA-OFT. Imports nothing heavy: a configuration is loaded without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Expect, Name, NetworkSize, PositiveFloat, PositiveInt, Sizes
from regrasp.errors import UserError
from regrasp.models.config import DatasetFacts, ExportOptions, ModelConfig
from regrasp.models.inputs import InputNames
from regrasp.models.lora_config import LoraConfig
from regrasp.models.openvla.decoding import Decoding, Head, Method, read_decoding
from regrasp.models.openvla.variants import check_variant

if TYPE_CHECKING:
    from regrasp.models.openvla.policy import OpenVlaPolicy


def _off_is_null(value: Any) -> Any:
    """RLinf writes 0 and -1 for no limit."""
    return None if value in (0, -1) and not isinstance(value, bool) else value


def _greedy_is_null(value: Any) -> Any:
    """A temperature of 0 takes the likeliest token."""
    return None if value == 0 and not isinstance(value, bool) else value


@dataclass(frozen=True, config=BLOCK)
class SamplingConfig:
    """How action tokens are drawn."""

    temperature_train: PositiveFloat = 1.0
    """What logits are divided by, in rollout and update alike."""
    temperature_eval: Annotated[
        PositiveFloat | None, BeforeValidator(_greedy_is_null), Expect("a number of at least 0 or null")
    ] = None
    """The same where an evaluation draws; null (or 0): it takes the likeliest token."""
    top_k: Annotated[PositiveInt | None, BeforeValidator(_off_is_null), Expect("an integer or null")] = None
    """Draw from so many of the likeliest tokens only; null (or 0, -1): from all."""


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class OpenVlaModelConfig(ModelConfig):
    """The policy, an OpenVLA, which decides token by token."""

    model_type: Literal["openvla"] = "openvla"
    """Which model."""
    num_action_chunks: PositiveInt = 1
    """Actions executed per decision; the published OpenVLA decides on one."""
    tokenizer_path: Name | None = None
    """Folder of the tokenizer, for a checkpoint without one; null: the model's folder has it."""
    unnorm_key: Name | None = None
    """Whose statistics the actions have, among those of the model's folder; null: the only ones."""
    center_crop: bool | None = None
    """Look at the middle 90 % of an image's area, for a model trained on random crops; null: as the folder says, else
    false."""
    max_prompt_length: NetworkSize | None = None
    """Tokens to which prompts are padded, on the right; null: as the folder says, else 48."""
    sampling: SamplingConfig = SamplingConfig()
    """How action tokens are drawn."""
    is_lora: bool = False
    """Train low-rank adapters in the part that `trainable` names, instead of its weights."""
    lora: LoraConfig = LoraConfig(rank=32, alpha=32)
    """Sizes of the adapters."""
    lora_path: Name | None = None
    """Folder of adapters written by peft, which are merged into the model's weights when it is loaded; null: none."""
    value_head_hidden: Sizes = (512, 128)
    """Widths of the value head's hidden layers."""
    detach_critic_input: bool = False
    """Keep the value loss from training the layers below the value head."""

    imitates_without_noise: ClassVar[bool] = True
    method: ClassVar[Method] = "autoregressive"
    written_elsewhere: ClassVar[Mapping[str, str]] = {
        f"{block}.sampling_params.{name}": f"actor.model.sampling.{name}"
        for block in ("algorithm", "rollout")
        for name in ("temperature_train", "temperature_eval", "top_k")
    }

    @classmethod
    def refuse(cls, content: Mapping[str, Any], file: Path | None) -> None:
        """Refuse what looks like an OpenVLA and is another model."""
        check_variant(content, file)

    @classmethod
    def open(cls, folder: Path, inputs: InputNames | None = None) -> OpenVlaPolicy:
        """Load a folder without a value head; it decides as the folder says, a published one token by token."""
        from regrasp.models.openvla.checkpoint import load_openvla

        return load_openvla(folder, None, inputs)

    def load(self, folder: Path, inputs: InputNames) -> OpenVlaPolicy:
        """Load a folder; a value head that it lacks starts fresh."""
        from regrasp.models.openvla.checkpoint import load_openvla

        return load_openvla(folder, self, inputs)

    def preview(self, folder: Path, inputs: InputNames) -> OpenVlaPolicy:
        """The policy on the meta device, from a folder of which everything but the weights' data is read."""
        from regrasp.models.openvla.checkpoint import preview_openvla

        return preview_openvla(folder, self)

    def from_dataset(self, data: DatasetFacts, *, backbone: Path | None, whole: bool, seed: int) -> OpenVlaPolicy:
        """The pretrained model of a folder, with the data's statistics."""
        from regrasp.models.openvla.checkpoint import base_for_data

        assert backbone is not None
        return base_for_data(self, backbone, data, whole=whole)

    @classmethod
    def export(cls, options: ExportOptions) -> Path:
        """Write a folder as OpenVLA is published."""
        from regrasp.models.openvla.export import export

        return export(options)

    def decoding(self, folder: Path) -> Decoding:
        """How the model of a folder decides in this experiment.

        Raises:
            UserError: The folder was trained to decide otherwise.
        """
        stored = read_decoding(folder)
        found = stored or Decoding(method=self.method, num_action_chunks=self.num_action_chunks)
        trained = {"model_type": _MODEL_TYPES[found.method], "num_action_chunks": found.num_action_chunks}
        for key, value in trained.items():
            if value != getattr(self, key):
                raise UserError(
                    "The model was trained to decide in another way",
                    file=folder,
                    key=f"actor.model.{key}",
                    value=getattr(self, key),
                    expected=str(value),
                    fix="set it so, or give another --model_path",
                )
        given = {
            name: value
            for name in ("unnorm_key", "center_crop", "max_prompt_length")
            if (value := getattr(self, name)) is not None
        }
        return self.own_decoding(Decoding(**{**vars(found), **given}), stored is not None)

    def own_decoding(self, decoding: Decoding, known: bool) -> Decoding:
        """The same with what only this model knows; `known` where the folder says it."""
        del known
        return decoding

    @property
    def adapters(self) -> LoraConfig | None:
        """Sizes of the adapters that are trained; None without."""
        return self.lora if self.is_lora else None

    @property
    def noise_key(self) -> str | None:
        """The temperature."""
        return "actor.model.sampling.temperature_train"

    def problems(self) -> Iterator[UserError]:
        """Also: critics, which this model has not."""
        yield from super().problems()
        if self.add_q_head:
            yield UserError(
                "Critics of actions for a model of action tokens",
                key="actor.model.add_q_head",
                value=True,
                expected="false",
                fix="set actor.model.add_q_head=false, and train by gae, grpo or reinpp",
            )

    def idle(self) -> Iterator[tuple[str, str]]:
        """Also: keys of the parts that are not there."""
        yield from super().idle()
        if not self.add_value_head:
            yield from ((name, "there is no value head") for name in ("value_head_hidden", "detach_critic_input"))
        if not self.is_lora:
            yield "lora", "actor.model.is_lora is false"

    def oddities(self) -> Iterator[str]:
        """Keys that others leave without effect."""
        if self.trainable == "head_without_context":
            yield "actor.model.trainable: head_without_context is the same as head: there are no context layers."
        if self.sampling.top_k == 1:
            yield "actor.model.sampling.top_k is 1: training takes the likeliest tokens too, and explores nothing."


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class OpenVlaOftModelConfig(OpenVlaModelConfig):
    """The policy, an OpenVLA-OFT, which decides on a whole chunk at once."""

    model_type: Literal["openvla_oft"] = "openvla_oft"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which model."""
    num_action_chunks: PositiveInt = 8
    """Actions executed per decision."""
    action_head: Head | None = None
    """What gives the actions: `tokens` of the vocabulary, or `gaussian`, OFT's regression head with a learned standard
    deviation; null: as the folder says, else `tokens`."""
    initial_std: PositiveFloat = 0.1
    """Standard deviation of a `gaussian` head before training, where actions are in [-1, 1]."""
    implement_version: Literal["rlinf", "official"] | None = None
    """Whether the end of the text stands after the actions (`official`) or not (`rlinf`); null: as the folder says,
    else `official`."""

    method: ClassVar[Method] = "parallel"

    def idle(self) -> Iterator[tuple[str, str]]:
        """Also: the deviation of a head that is not there, and the sampling of tokens where there are none."""
        yield from super().idle()
        if self.action_head == "tokens":
            yield "initial_std", "actor.model.action_head is tokens"
        elif self.action_head == "gaussian":
            yield "sampling", "actor.model.action_head is gaussian"

    def own_decoding(self, decoding: Decoding, known: bool) -> Decoding:
        """The same, with or without the stop token, and with the head that is asked for.

        Raises:
            UserError: The folder was trained with another head.
        """
        head = self.action_head or decoding.head
        if known and head != decoding.head:
            raise UserError(
                "The model was trained with another action head",
                key="actor.model.action_head",
                value=head,
                expected=decoding.head,
                fix="set it so, or give another --model_path",
            )
        has_stop = decoding.stop_token if self.implement_version is None else self.implement_version == "official"
        return Decoding(**{**vars(decoding), "stop_token": has_stop, "head": head})

    @property
    def noise_key(self) -> str | None:
        """The temperature, or the deviation."""
        return "actor.model.initial_std" if self.action_head == "gaussian" else super().noise_key


_MODEL_TYPES: dict[Method, str] = {"autoregressive": "openvla", "parallel": "openvla_oft"}
