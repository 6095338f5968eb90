"""Block `actor`: the policy, its optimizer and its batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.config.types import (
    BLOCK,
    Beta,
    Expect,
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Precision,
    Sizes,
)


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
    value_vlm_mode: Literal["mean_token", "first_token", "last_token"] = "mean_token"
    """Which vision-language tokens the value head reads."""
    disable_dropout: bool = True
    """Switch dropout off during RL; with dropout the probability ratio is noisy."""
    padding_value: PositiveInt | None = None
    """Tokens of the whole sequence, words and images, to which instructions are padded; null: as the model says."""


@dataclass(frozen=True, config=BLOCK)
class MlpConfig:
    """Sizes of the state policy (`model_type: mlp`)."""

    hidden: Sizes = (256, 256)
    """Widths of the hidden layers."""
    initial_std: PositiveFloat = 0.5
    """Standard deviation of the actions before training."""


@dataclass(frozen=True, config=BLOCK)
class LoraConfig:
    """Low-rank adapters on the language model, trained beside the head (`is_lora: true`)."""

    rank: PositiveInt = 16
    """Rank of an adapter."""
    alpha: PositiveInt = 32
    """An adapter's output is scaled by alpha / rank."""
    dropout: Beta = 0.0
    """Dropout on an adapter's input; above 0 the probability ratio is noisy."""


@dataclass(frozen=True, config=BLOCK)
class ModelConfig:
    """The policy."""

    model_type: Name
    """Policy architecture: `gr00t`, `mlp`, or a registered name."""
    action_dim: PositiveInt
    """Width of the policy's action."""
    num_action_chunks: PositiveInt
    """Actions executed per decision."""
    model_path: Name | None = None
    """Folder of the pretrained model; null: given later, or trained from scratch where the architecture allows it."""
    tokenizer_path: Name | None = None
    """Folder of the tokenizer, for a checkpoint without one; null: the model's folder has it."""
    attn_implementation: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """Attention kernel of the vision-language backbone; `flash_attention_2` needs flash-attn, a GPU and `bf16`."""
    precision: Precision = "fp32"
    """Number format of the weights in the forward pass."""
    compile: bool = False
    """Compile the policy's layers with torch.compile, and on a GPU replay its actions as CUDA graphs."""
    denoising_steps: PositiveInt = 4
    """Euler steps of a flow-matching head."""
    trainable: Literal["head", "head_without_context", "all"] = "head"
    """What RL trains: the action head, the head without its layers on the backbone's features, or the whole model."""
    is_lora: bool = False
    """Train low-rank adapters on the language model, beside the part that `trainable` names."""
    lora: LoraConfig = LoraConfig()
    """Sizes of the adapters."""
    add_value_head: bool = True
    """Add a value head to the policy."""
    value_head_hidden: Sizes = (1024, 512, 256)
    """Widths of the value head's hidden layers."""
    obs_converter_type: Name | None = None
    """Second name of the mapping's `obs_converter_type`, which it must equal; null: not given."""
    embodiment_tag: Name | None = None
    """Second name of the mapping's `embodiment_tag`, which it must equal; null: not given."""
    rl_head_config: RlHeadConfig = RlHeadConfig()
    """Exploration and value head of a flow-matching policy."""
    mlp: MlpConfig = MlpConfig()
    """Sizes of the state policy."""

    @property
    def trains_backbone(self) -> bool:
        """Whether training changes the features, so that they cannot be cached."""
        return self.trainable == "all" or self.is_lora


@dataclass(frozen=True, config=BLOCK)
class OptimConfig:
    """AdamW and its learning rates."""

    lr: PositiveFloat = 5e-6
    """Learning rate of the policy."""
    value_lr: PositiveFloat = 1e-4
    """Learning rate of the value head."""
    adam_beta1: Beta = 0.9
    """Decay of the gradient's mean."""
    adam_beta2: Beta = 0.95
    """Decay of the gradient's square."""
    adam_eps: PositiveFloat = 1e-8
    """Added to the denominator of an update."""
    clip_grad: PositiveFloat = 1.0
    """Largest gradient norm."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    critic_warmup_steps: NonNegativeInt = 0
    """First optimizer steps of a run that train the value head only."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rates over the updates of a run."""
    lr_warmup_steps: NonNegativeInt = 0
    """Updates over which the learning rates rise from 0."""
    min_lr_ratio: Fraction = 0.0
    """Learning rate at the end of a decaying schedule, as a fraction of the full one."""


@dataclass(frozen=True, config=BLOCK)
class ActorConfig:
    """The worker that updates the policy."""

    model: ModelConfig
    """The policy."""
    micro_batch_size: PositiveInt
    """Samples of one forward and backward pass."""
    global_batch_size: PositiveInt
    """Samples of one optimizer step, over all devices."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    seed: NonNegativeInt = 1234
    """Seed of the run's random streams where `runner.seed` is null."""
