"""Block `actor.model` of a GR00T N1.5. Imports nothing heavy: a configuration is loaded without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Name, PositiveInt, Sizes
from regrasp.errors import UserError
from regrasp.models.config import DatasetFacts, ExportOptions, ModelConfig, RlHeadConfig
from regrasp.models.groot.dsrl_config import DsrlConfig
from regrasp.models.groot.generations import check_generation
from regrasp.models.groot.processing.data_config import PROCESSOR_FILE
from regrasp.models.groot.residual_config import ResidualConfig
from regrasp.models.groot.selection_config import SelectionConfig
from regrasp.models.inputs import EMBODIMENT_IDS, InputNames, embodiment_id
from regrasp.models.lora_config import LoraConfig

if TYPE_CHECKING:
    from regrasp.models.groot.policy import GrootPolicy

_NOISE = {
    "residual": "residual.std",
    "dsrl": "dsrl.bound",
    "selection": "selection.scale",
    "sac_flow": "rl_head_config.noise_level",
}
"""Which key says how much a proposal explores."""

_NOISES = ("noise_method", "noise_level", "noise_anneal", "noise_params", "noise_color")
"""How denoising is stochastic: for a density, or for `sac_flow`; other proposals denoise by the ODE."""
_CHOICE = ("joint_logprob", "ignore_last")
"""Which steps are; with critics all or none."""
_OF_VALUES = tuple(f"rl_head_config.{name}" for name in ("detach_critic_input", "use_vlm_value", "value_vlm_mode"))

AttentionKernel = Literal["sdpa", "flash_attention_2"]


@dataclass(frozen=True)
class SacFlowConfig:
    """The head explores by the noise of `rl_head_config`: SAC-Flow has no keys of its own."""


SteeringConfig = ResidualConfig | DsrlConfig | SelectionConfig | SacFlowConfig
_SAC_FLOW = SacFlowConfig()


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class GrootModelConfig(ModelConfig):
    """The policy, a GR00T N1.5."""

    model_type: Literal["gr00t", "gr00t_n1_5", "gr00t_n1d5"] = "gr00t"
    """Which model; the names mean the same."""
    tokenizer_path: Name | None = None
    """Folder of the tokenizer, for a checkpoint without one; null: the model's folder has it."""
    attn_implementation: AttentionKernel = "sdpa"
    """Attention kernel of the vision-language backbone; `flash_attention_2` needs flash-attn, a GPU and `bf16`."""
    denoising_steps: PositiveInt = 4
    """Euler steps of a flow-matching head."""
    is_lora: bool = False
    """Train low-rank adapters on the language model, beside the part that `trainable` names."""
    lora: LoraConfig = LoraConfig()
    """Sizes of the adapters."""
    value_head_hidden: Sizes = (1024, 512, 256)
    """Widths of the value head's hidden layers."""
    rl_head_config: RlHeadConfig = RlHeadConfig()
    """Exploration and value head of a flow-matching policy."""
    proposal: Literal["residual", "dsrl", "sac_flow", "selection"] = "residual"
    """What `add_q_head` trains: beside the policy, which stays as it is, an offset on its chunks (`residual`) or the
    noise that they are denoised from (`dsrl`); or the part that `trainable` names, through the denoising steps
    (`sac_flow`) or by imitating what critics choose (`selection`)."""
    residual: ResidualConfig = ResidualConfig()
    """The offset, with `proposal: residual`."""
    dsrl: DsrlConfig = DsrlConfig()
    """The noise, with `proposal: dsrl`."""
    selection: SelectionConfig = SelectionConfig()
    """What is chosen from, with `proposal: selection`."""

    @classmethod
    def refuse(cls, content: Mapping[str, Any], file: Path | None) -> None:
        """Refuse other generations of GR00T by their name."""
        check_generation(content, file)

    @classmethod
    def open(cls, folder: Path, inputs: InputNames | None = None) -> GrootPolicy:
        """Load a folder without a value head: it executes the whole chunk, in the folder's denoising steps."""
        from regrasp.models.groot.checkpoint import load_groot

        return load_groot(folder, inputs=inputs)

    def load(self, folder: Path, inputs: InputNames) -> GrootPolicy:
        """Load a folder; what it lacks of the parts that RL adds starts fresh."""
        from regrasp.models.groot.checkpoint import load_groot

        return load_groot(folder, self, self._names(inputs))

    def preview(self, folder: Path, inputs: InputNames) -> GrootPolicy:
        """The policy on the meta device, from a folder of which everything but the weights' data is read."""
        from regrasp.models.groot.checkpoint import preview_groot

        return preview_groot(folder, self, self._names(inputs))

    def from_dataset(self, data: DatasetFacts, *, backbone: Path | None, whole: bool, seed: int) -> GrootPolicy:
        """The pretrained backbone with its untrained head, and the data's statistics."""
        from regrasp.checkpoint.verify import require_sound_model
        from regrasp.models.groot.checkpoint import load_config, load_groot
        from regrasp.models.groot.processing.processor import GrootProcessor

        assert backbone is not None
        require_sound_model(backbone)
        facts = data._replace(inputs=self._names(data.inputs))
        processor = GrootProcessor.for_data(load_config(backbone), backbone, facts)
        settings = GrootModelConfig(
            num_action_chunks=self.num_action_chunks,
            action_dim=data.action.width,
            denoising_steps=self.denoising_steps,
            trainable=self.trainable,
            precision="fp32" if whole else self.precision,
            add_value_head=False,
            rl_head_config=RlHeadConfig(padding_value=self.rl_head_config.padding_value),
        )
        return load_groot(backbone, settings, processor=processor)

    @classmethod
    def export(cls, options: ExportOptions) -> Path:
        """Write a folder as GR00T N1.5 is published."""
        from regrasp.models.groot.export import export

        return export(options)

    @property
    def noise_key(self) -> str | None:
        """That of the head, or of the residual where that is what explores."""
        if self.add_q_head:
            return f"actor.model.{_NOISE[self.proposal]}"
        key = self.rl_head_config.noise_key
        return key and f"actor.model.rl_head_config.{key}"

    @property
    def steering(self) -> SteeringConfig | None:
        """Sizes of what `add_q_head` trains; None without it."""
        blocks = {"residual": self.residual, "dsrl": self.dsrl, "selection": self.selection, "sac_flow": _SAC_FLOW}
        return blocks[self.proposal] if self.add_q_head else None

    def idle(self) -> Iterator[tuple[str, str]]:
        """Also: the other proposals' blocks, the noise of a head that does not explore, and the absent parts' keys."""
        yield from super().idle()
        blocks = ("residual", "dsrl", "selection")
        if not self.add_q_head:
            yield from ((name, "actor.model.add_q_head is false") for name in ("proposal", *blocks))
            yield from ((f"rl_head_config.{name}", why) for name, why in self.rl_head_config.idle())
        else:
            proposal = f"actor.model.proposal is {self.proposal}"
            yield from ((name, proposal) for name in blocks if name != self.proposal)
            flow = self.proposal == "sac_flow"
            yield from ((f"rl_head_config.{name}", proposal) for name in (_CHOICE if flow else (*_NOISES, *_CHOICE)))
            if flow:
                yield from ((f"rl_head_config.{name}", why) for name, why in self.rl_head_config.idle())
            if self.proposal == "dsrl" and not self.dsrl.noise_aliasing:
                yield "dsrl.pairs", "actor.model.dsrl.noise_aliasing is false"
        if not self.add_value_head:
            yield from ((name, "there is no value head") for name in ("value_head_hidden", *_OF_VALUES))
        if not self.is_lora:
            yield "lora", "actor.model.is_lora is false"

    @property
    def imitates(self) -> bool:
        """Whether it is the head that imitates."""
        return self.add_q_head and self.proposal == "selection"

    @property
    def measures_proposals(self) -> bool:
        """Whether an actor stands beside the head."""
        return self.add_q_head and self.proposal in ("residual", "dsrl")

    @property
    def trains_head(self) -> bool:
        """Whether critics improve the head itself."""
        return self.add_q_head and self.proposal in ("sac_flow", "selection")

    @property
    def trains_backbone(self) -> bool:
        """Whether training changes the features, so that they cannot be cached."""
        return super().trains_backbone or self.is_lora

    @property
    def sequence_length(self) -> int | None:
        """Tokens to which the experiment pads words and images together; None: as the model says."""
        return self.rl_head_config.padding_value

    @property
    def adapters(self) -> LoraConfig | None:
        """Sizes of the adapters that are trained; None without."""
        return self.lora if self.is_lora else None

    def problems(self) -> Iterator[UserError]:
        """Also: adapters on trained weights, a kernel without its number format, noise that cannot be."""
        yield from super().problems()
        if self.is_lora and self.trainable == "all":
            yield UserError(
                "Adapters on weights that are trained themselves",
                key="actor.model.is_lora",
                value=True,
                expected="false, since actor.model.trainable is all",
                fix="set actor.model.trainable=head to train the adapters and the head",
            )
        if self.attn_implementation == "flash_attention_2" and self.precision != "bf16":
            yield UserError(
                "A kernel for half precision only",
                key="actor.model.attn_implementation",
                value=self.attn_implementation,
                expected=f"sdpa, since actor.model.precision is {self.precision}",
                fix="set actor.model.precision=bf16, or actor.model.attn_implementation=sdpa",
            )
        yield from self.rl_head_config.problems(self.denoising_steps)
        for name, block in (("residual", self.residual), ("selection", self.selection)):
            if self.steering is block and len(block.scale) not in (1, self.action_dim):
                yield UserError(
                    "Offsets of another width than the action",
                    key=f"actor.model.{name}.scale",
                    value=list(block.scale),
                    expected=f"one number, or one for each of the {self.action_dim} action dimensions",
                    fix="correct it",
                )

    def oddities(self) -> Iterator[str]:
        """Keys of the head that others leave without effect."""
        yield from self.rl_head_config.oddities(self.num_action_chunks)

    def slot_warning(self, inputs: InputNames) -> str | None:
        """What speaks against the slot that is given for a published folder; None where nothing does."""
        published = EMBODIMENT_IDS.get(inputs.embodiment_tag or "")
        given = inputs.embodiment_tag_id
        if self._knows_slot or published is None or given in (None, published):
            return None
        return (
            f"the projectors of slot {given} were not trained for {inputs.embodiment_tag}, whose published slot is"
            f" {published}; leave embodiment_tag_id out, unless this checkpoint has it there"
        )

    def trained_embodiment(self, inputs: InputNames, key: str) -> tuple[str | None, int] | None:
        """Embodiment and slot that a run of a published folder trains; None for a folder that knows its own."""
        if self._knows_slot:
            return None
        tag = inputs.embodiment_tag
        return tag, embodiment_id(tag or "", inputs.embodiment_tag_id, key=key)

    @property
    def _knows_slot(self) -> bool:
        """Whether the folder says which slot it was trained in: a published one leaves it open."""
        return self.model_path is None or (Path(self.model_path).expanduser() / PROCESSOR_FILE).is_file()

    def _names(self, inputs: InputNames) -> InputNames:
        path = self.tokenizer_path
        return inputs if path is None else replace(inputs, tokenizer_path=Path(path).expanduser())
