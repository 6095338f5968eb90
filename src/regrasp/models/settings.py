"""What RL adds to a pretrained policy: how it is sampled, and its value head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NoiseMethod = Literal["flow_sde", "flow_cps", "flow_noise"]
TokenPooling = Literal["mean_token", "first_token", "last_token"]
TrainablePart = Literal["head", "head_without_context", "all"]


@dataclass(frozen=True)
class RlHeadSettings:
    """Settings of `actor.model` and its `rl_head_config`, under the reference's names."""

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
    """Make all denoising steps stochastic, instead of one drawn for each decision."""
    ignore_last: bool = False
    """Never draw the last denoising step as the stochastic one."""
    disable_dropout: bool = True
    """Build the action head without dropout: a sampled and a recomputed log-probability must agree."""
    trainable: TrainablePart = "head"
    """What is updated, which fixes where `encode` ends: before the action head's context layers, or after them
    (`head_without_context`)."""
    add_value_head: bool = True
    """Without a value head, values are 0 and mode `value` is an error."""
    value_head_hidden: tuple[int, ...] = (1024, 512, 256)
    """Widths of the value head's hidden layers."""
    use_vlm_value: bool = False
    """Value from the context alone, without the state feature."""
    value_vlm_mode: TokenPooling = "mean_token"
    """How `use_vlm_value` pools the context tokens; otherwise their mean is used."""
    detach_critic_input: bool = True
    """No gradient from the value loss into anything but the value head."""
    padding_value: int | None = None
    """Tokens of the whole sequence, words and images, to which instructions are padded; None: as the folder says."""
