"""Block `actor.model`: the keys that every model has, and what everyone else asks a model for.

A model's own block extends `ModelConfig` in the model's folder; `models/registry.py` finds it by `model_type`. Imports
nothing heavy: a configuration is loaded without torch.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from regrasp.config.owned import field_infos
from regrasp.config.types import (
    BLOCK,
    Expect,
    Name,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Precision,
    Sizes,
)
from regrasp.envs.quaternions import QuaternionOrder
from regrasp.errors import UserError
from regrasp.models.inputs import InputNames
from regrasp.models.origin import Origin

if TYPE_CHECKING:
    import torch

    from regrasp.logging.report import EvaluationSummary
    from regrasp.models.contract import Policy
    from regrasp.models.normalization import Statistics

TrainablePart = Literal["head", "head_without_context", "all"]
TokenPooling = Literal["mean_token", "first_token", "last_token", "attention"]
CONFIG_FILE = "config.json"
"""Says which model a folder holds."""


class DatasetFacts(NamedTuple):
    """What demonstrations are like, as far as a model has to know."""

    state: Statistics
    """Of the whole state vector."""
    action: Statistics
    """Of the whole action vector."""
    inputs: InputNames
    cameras: tuple[str, ...]
    """What a policy calls the cameras."""
    state_names: Mapping[str, tuple[int, int]]
    """What it calls parts of the state vector, and where in it they are."""
    fps: float
    """Control frequency in Hz."""
    quaternions: QuaternionOrder | None = None
    """The order of those in the state; None where it is not known."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What to write, and how."""

    model_path: Path
    """The base model's folder."""
    output: Path
    """A folder that does not exist or is empty."""
    rl_model_path: Path | None = None
    """A `global_step_<N>` folder, or a `full_weights.pt`, trained from the base model."""
    dtype: torch.dtype | None = None
    """Of the written weights; None: as they are."""
    max_shard_bytes: int = 5_000_000_000
    """Largest weight file; a tensor is never split."""
    origin: Origin = dataclasses.field(default_factory=Origin)
    """What the written folder says that it was made for."""
    with_value_head: bool = False
    """Keep what RL added, which the published layout does not have: value head and noise network."""
    evaluation: EvaluationSummary | None = None
    """How the policy did, for the model card; None: not known."""


def _not_growing(annealing: tuple[float, float, int]) -> tuple[float, float, int]:
    if annealing[0] < annealing[1]:
        raise ValueError("the noise grows")
    return annealing


@dataclass(frozen=True, config=BLOCK)
class RlHeadConfig:
    """How a flow-matching head explores, and what its value head reads."""

    noise_method: Literal["flow_sde", "flow_cps", "flow_noise"] = "flow_sde"
    """How denoising is made stochastic."""
    noise_level: PositiveFloat = 0.3
    """Scale of the exploration noise of `flow_sde` and `flow_cps`."""
    noise_anneal: bool = False
    """Lower the noise over the run by `noise_params`, instead of a constant `noise_level`."""
    noise_params: Annotated[
        tuple[PositiveFloat, PositiveFloat, PositiveInt],
        Field(strict=False),
        AfterValidator(_not_growing),
        Expect("[start, end, updates] with start >= end > 0"),
    ] = (0.7, 0.3, 400)
    """Annealing of the noise: level at the start, level at the end, updates in between."""
    joint_logprob: bool = False
    """Make every denoising step stochastic and use the chain's joint log-probability, instead of one random step."""
    ignore_last: bool = False
    """Never choose the last denoising step as the stochastic one."""
    noise_color: NonNegativeFloat = 0.0
    """Correlation of the noise over the actions of a chunk: power at frequency k falls as (1 + k)^-noise_color; 0 is
    white, 1 pink, 2 red."""
    detach_critic_input: bool = True
    """Keep the value loss from training the layers below the value head."""
    use_vlm_value: bool = False
    """The value head reads the vision-language tokens only, without the robot state."""
    value_vlm_mode: TokenPooling = "mean_token"
    """Which vision-language tokens the value head reads; `attention`: all, by learned queries."""
    disable_dropout: bool = True
    """Switch dropout off during RL; with dropout the probability ratio is noisy."""
    padding_value: PositiveInt | None = None
    """Tokens of the whole sequence, words and images, to which instructions are padded; null: as the model says."""

    @property
    def skips_last(self) -> bool:
        """Whether the last denoising step is never stochastic: with flow_cps it is deterministic."""
        return self.noise_method == "flow_cps" or (self.ignore_last and not self.joint_logprob)

    @property
    def noise_key(self) -> str | None:
        """The key, in this block, of the exploration noise; None where the noise is learned."""
        if self.noise_method == "flow_noise":
            return None
        return "noise_params" if self.noise_anneal else "noise_level"

    def problems(self, denoising_steps: int) -> Iterator[UserError]:
        """What contradicts itself, for a head that takes this many steps from noise to action."""
        key = "actor.model.rl_head_config"
        level = self.noise_params[0] if self.noise_anneal else self.noise_level
        if self.noise_method == "flow_cps" and level > 1:
            yield UserError(
                "Too much noise for flow_cps, which turns all of a step's noise into fresh noise at level 1",
                key=f"{key}.{self.noise_key}",
                value=level,
                expected="at most 1",
                fix="lower it, or use noise_method flow_sde",
            )
        if self.noise_method == "flow_cps" and self.noise_color:
            yield UserError(
                "Colored noise with flow_cps, which replaces a step's white noise by as much fresh noise",
                key=f"{key}.noise_color",
                value=self.noise_color,
                expected="0",
                fix="use noise_method flow_sde, or set noise_color=0",
            )
        if denoising_steps - self.skips_last < 1:
            yield UserError(
                "No denoising step is left that can be stochastic",
                key="actor.model.denoising_steps",
                value=denoising_steps,
                expected="at least 2 with flow_cps, whose last step is deterministic, and with ignore_last",
                fix="raise denoising_steps, or use noise_method flow_sde without ignore_last",
            )

    def idle(self) -> Iterator[tuple[str, str]]:
        """Keys of this block that others leave without effect, and why."""
        learned = "actor.model.rl_head_config.noise_method is flow_noise, which learns its noise"
        if self.noise_method == "flow_noise":
            yield from (("noise_level", learned), ("noise_params", learned))
        elif self.noise_anneal:
            yield "noise_level", "actor.model.rl_head_config.noise_anneal takes noise_params"
        else:
            yield "noise_params", "actor.model.rl_head_config.noise_anneal is false"

    def oddities(self, num_action_chunks: int) -> Iterator[str]:
        """Keys that are set and that other keys leave without effect."""
        key = "actor.model.rl_head_config"
        if self.joint_logprob and self.ignore_last:
            yield f"{key}.ignore_last says nothing with joint_logprob, which makes every step stochastic."
        if self.noise_color and num_action_chunks == 1:
            yield (
                f"{key}.noise_color says little with num_action_chunks 1: it correlates the actions of a chunk, of"
                " which one is executed."
            )
        if self.noise_anneal and self.noise_method == "flow_noise":
            yield f"{key}.noise_anneal says nothing with flow_noise, which learns its noise."


@dataclass(frozen=True, config=BLOCK)
class QHeadConfig:
    """An ensemble of critics."""

    hidden: Sizes = (256, 256)
    """Widths of the hidden layers."""
    num_q_heads: PositiveInt = 2
    """Critics."""
    num_decisions: PositiveInt | None = None
    """Decisions of an episode, where the number of a decision within its episode is an input of the critics: for tasks
    in which running out of time is failing; null: it is not."""


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class ModelConfig(ABC):
    """The policy."""

    model_type: Name
    """Which model: `gr00t`, `mlp`, or the name of an installed or registered one."""
    action_dim: PositiveInt
    """Width of the policy's action."""
    num_action_chunks: PositiveInt
    """Actions executed per decision."""
    model_path: Name | None = None
    """Folder of the pretrained model; null: given later, or trained from scratch where the architecture allows it."""
    precision: Precision = "fp32"
    """Number format of the weights in the forward pass."""
    compile: bool | Literal["graphs"] = False
    """Compile the policy's layers with torch.compile, and on a GPU replay acting and updates as CUDA graphs. `graphs`:
    replay without compiling, which needs no compiler; on a CPU nothing."""
    trainable: TrainablePart = "head"
    """What RL trains: the action head, the head without its layers on the backbone's features, or the whole model."""
    add_value_head: bool = True
    """Add a value head to the policy."""
    add_q_head: bool = False
    """Add critics of actions, and an actor that they improve: for `loss_type: embodied_sac`, without a value head."""
    q_head: QHeadConfig = QHeadConfig()
    """The critics that `add_q_head` adds."""
    obs_converter_type: Name | None = None
    """Second name of the mapping's `obs_converter_type`, which it must equal; null: not given."""
    embodiment_tag: Name | None = None
    """Second name of the mapping's `embodiment_tag`, which it must equal; null: not given."""

    needs_pretrained: ClassVar[bool] = True
    """RL starts from a model folder, and supervised training from a folder or a backbone: nothing is made from
    scratch."""
    imitates_without_noise: ClassVar[bool] = False
    """Whether the loss of supervised training draws no noise, so that `sft.noise_repeats` changes nothing."""
    uses_images: ClassVar[bool] = True
    """Whether the policy looks at images."""
    written_elsewhere: ClassVar[Mapping[str, str]] = {}
    """Keys of other blocks by which RLinf configures this model, and the key that each of them is here."""

    @property
    def noise_key(self) -> str | None:
        """The key that says how much training explores; None, the default, where none does."""
        return None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every `model_type` that means this model, in an experiment or in a folder's config.json."""
        return get_args(field_infos(cls)["model_type"].annotation)

    @classmethod  # noqa: B027
    def refuse(cls, content: Mapping[str, Any], file: Path | None) -> None:
        """Refuse a model that looks like this one and is another; by default nothing does.

        Args:
            content: Of a folder's config.json, or of this block.
            file: The config.json; None for the block.

        Raises:
            UserError: Naming what it is.
        """

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, inputs: InputNames | None = None) -> Policy:
        """Load a folder as it is, for inference.

        Args:
            folder: The model folder.
            inputs: What an experiment calls the model's inputs; None: as the folder does.

        Raises:
            UserError: The folder is damaged, or does not fit `inputs`.
        """

    def load(self, folder: Path, inputs: InputNames) -> Policy:
        """Load a folder for training or evaluation, as this configuration says.

        Raises:
            UserError: The folder is damaged, or does not fit.
        """
        policy = self.open(folder, inputs)
        for key in ("num_action_chunks", "action_dim"):
            asked, trained = getattr(self, key), getattr(policy.spec, key)
            if asked != trained:
                raise UserError(
                    "Another size than the policy was saved with",
                    file=folder / CONFIG_FILE,
                    key=f"actor.model.{key}",
                    value=asked,
                    expected=str(trained),
                )
        return policy

    def preview(self, folder: Path, inputs: InputNames) -> Policy | None:
        """Check a folder, and give the policy that `load` would without the time and memory of its weights.

        Returns:
            The policy, best on the meta device; None, the default, where only `load` can tell.

        Raises:
            UserError: As `load`.
        """
        return None

    def build(self, state_dim: int, seed: int) -> Policy:
        """A new policy; by default there is none.

        Raises:
            UserError: This model does not start from random weights.
        """
        raise UserError(
            "No pretrained model is given",
            key="actor.model.model_path",
            expected="the folder of a pretrained model",
            fix="pass --model_path; `regrasp sft` trains a base model",
        )

    def from_dataset(self, data: DatasetFacts, *, backbone: Path | None, whole: bool, seed: int) -> Policy:
        """What supervised training starts from; by default the folder `model_path`, or else a new policy.

        Args:
            data: What the demonstrations are like.
            backbone: Folder of the pretrained backbone; None for a model that needs none.
            whole: Train all weights, instead of those after the features.
            seed: Draws what is new.

        Raises:
            UserError: There is neither, or the model does not fit the data.
        """
        if self.model_path is not None:
            return self.load(Path(self.model_path).expanduser(), data.inputs)
        return self.build(data.state.width, seed)

    @classmethod
    def starts_from_backbone(cls) -> bool:
        """Whether supervised training starts from `sft.backbone`: the class makes a policy of it in `from_dataset`."""
        return cls.needs_pretrained and cls.from_dataset is not ModelConfig.from_dataset

    @classmethod
    def export(cls, options: ExportOptions) -> Path:
        """Write a folder in the layout that the model is published in, with `options.origin` in it, and return it.

        Raises:
            UserError: The model cannot be written.
        """
        raise NotImplementedError(f"{cls.__name__} has no layout of its own")

    @classmethod
    def has_published_layout(cls) -> bool:
        """Whether the class defines `export`; other models are exported as they save themselves."""
        return cls.export.__func__ is not ModelConfig.export.__func__

    @property
    def trains_backbone(self) -> bool:
        """Whether training changes the features, so that they cannot be cached."""
        return self.trainable == "all"

    @property
    def sequence_length(self) -> int | None:
        """Tokens to which the experiment pads words and images together; None: as the model says."""
        return None

    def problems(self) -> Iterator[UserError]:
        """What keys that are right one by one say against each other."""
        if self.add_q_head and self.add_value_head:
            yield UserError(
                "Critics of actions and a value head",
                key="actor.model.add_value_head",
                value=True,
                expected="false, since actor.model.add_q_head is true",
                fix="set actor.model.add_value_head=false for loss_type embodied_sac, or actor.model.add_q_head=false",
            )

    def oddities(self) -> Iterator[str]:
        """What is valid and probably not what was meant."""
        yield from ()

    def idle(self) -> Iterator[tuple[str, str]]:
        """Keys and blocks of this block that others leave without effect, and why."""
        if not self.add_q_head:
            yield "q_head", "actor.model.add_q_head is false"

    @property
    def imitates(self) -> bool:
        """Whether the policy learns by imitating what critics choose; by default it does not."""
        return False

    def compiles_on(self, device_type: str) -> bool:
        """Whether `compile` changes anything on a kind of device, `cpu` or `cuda`."""
        return self.compile is True or (self.compile == "graphs" and device_type == "cuda")

    @property
    def measures_proposals(self) -> bool:
        """Whether its `Proposal`s have a `size`; by default they do not."""
        return False

    def slot_warning(self, inputs: InputNames) -> str | None:
        """What speaks against the embodiment's slot that an experiment gives; None where nothing does."""
        return None

    def trained_embodiment(self, inputs: InputNames, key: str) -> tuple[str | None, int] | None:
        """Embodiment and slot that a run trains where the folder leaves them to the experiment; None where it does not.

        Args:
            inputs: The experiment's names.
            key: Where the slot is said, for errors.

        Raises:
            UserError: No slot is known.
        """
        return None
