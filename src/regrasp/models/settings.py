"""What RL adds to a pretrained policy: how it is sampled, and its value head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regrasp.errors import UserError

NoiseMethod = Literal["flow_sde", "flow_cps", "flow_noise"]
TokenPooling = Literal["mean_token", "first_token", "last_token"]
TrainablePart = Literal["head", "head_without_context", "all"]
Precision = Literal["fp32", "bf16"]
AttentionKernel = Literal["sdpa", "flash_attention_2"]


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters on the language model (Hu et al. 2021): W x becomes W x + alpha / rank B A x."""

    rank: int
    """Rows of A and columns of B."""
    alpha: int
    """Scale of the update, times the rank."""
    dropout: float = 0.0
    """On the adapters' input, in training mode."""


@dataclass(frozen=True)
class RlHeadSettings:
    """Settings of `actor.model` and its `rl_head_config`, under the reference's names.

    Raises:
        UserError: Settings that contradict each other.
    """

    num_action_chunks: int
    """Actions executed of each predicted chunk, T."""
    action_dim: int
    """Action dimensions the embodiment uses, A."""
    denoising_steps: int = 4
    """Euler steps from noise to action, K."""
    noise_method: NoiseMethod = "flow_sde"
    """How a stochastic denoising step is distributed."""
    noise_level: float = 0.3
    """a of Flow-SDE and Flow-CPS, without unit; Flow-Noise learns its standard deviation instead."""
    noise_anneal: tuple[float, float, int] | None = None
    """First noise level, last one, and the number of updates between them; None keeps `noise_level`."""
    joint_logprob: bool = False
    """Make all denoising steps stochastic, instead of one drawn for each decision; `ignore_last` then says nothing."""
    ignore_last: bool = False
    """Never draw the last denoising step as the stochastic one."""
    noise_color: float = 0.0
    """Exponent of the noise's spectrum over the actions of a chunk: 0 white, 1 pink, 2 red."""
    disable_dropout: bool = True
    """Build the action head without dropout: a sampled and a recomputed log-probability must agree."""
    trainable: TrainablePart = "head"
    """What is updated, which fixes where `encode` ends: before the action head's context layers, or after them
    (`head_without_context`)."""
    lora: LoraSettings | None = None
    """Adapters trained beside `trainable`; None: the language model's weights stay as they are."""
    precision: Precision = "fp32"
    """How weights are loaded: as float32, or (bf16) with those that stay frozen in bfloat16."""
    attn_implementation: AttentionKernel = "sdpa"
    """Attention kernel of the backbone."""
    add_value_head: bool = True
    """Without a value head, values are 0 and mode `value` is an error."""
    value_head_hidden: tuple[int, ...] = (1024, 512, 256)
    """Widths of the value head's hidden layers."""
    use_vlm_value: bool = False
    """Value from the context alone, without the state feature."""
    value_vlm_mode: TokenPooling = "mean_token"
    """How the context tokens are pooled for the value."""
    detach_critic_input: bool = True
    """No gradient from the value loss into anything but the value head."""
    padding_value: int | None = None
    """Tokens of the whole sequence, words and images, to which instructions are padded; None: as the folder says."""

    def __post_init__(self) -> None:
        highest = max(self.noise_anneal[:2]) if self.noise_anneal else self.noise_level
        if self.noise_method == "flow_cps" and highest > 1:
            raise UserError(
                "Too much noise for flow_cps, which turns all of a step's noise into fresh noise at level 1",
                key=f"actor.model.rl_head_config.{'noise_params' if self.noise_anneal else 'noise_level'}",
                value=highest,
                expected="at most 1",
                mend="lower it, or use noise_method flow_sde",
            )
        if self.noise_method == "flow_cps" and self.noise_color:
            raise UserError(
                "Colored noise with flow_cps, which replaces a step's white noise by as much fresh noise",
                key="actor.model.rl_head_config.noise_color",
                value=self.noise_color,
                expected="0",
                mend="use noise_method flow_sde, or set noise_color=0",
            )
        skips_last = self.noise_method == "flow_cps" or (self.ignore_last and not self.joint_logprob)
        if self.denoising_steps - skips_last < 1:
            raise UserError(
                "No denoising step is left that can be stochastic",
                key="actor.model.denoising_steps",
                value=self.denoising_steps,
                expected="at least 2 with flow_cps, whose last step is deterministic, and with ignore_last",
                mend="raise denoising_steps, or use noise_method flow_sde without ignore_last",
            )
