"""Block `algorithm` of soft actor-critic. Imports nothing heavy: a configuration is loaded without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.algorithms.base import AlgorithmConfig
from regrasp.algorithms.demo_buffer import DemoBufferConfig
from regrasp.config.types import (
    BLOCK,
    Expect,
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from regrasp.errors import UserError
from regrasp.logging.columns import Column, whole
from regrasp.logging.text import counted

if TYPE_CHECKING:
    from regrasp.algorithms.sac import Sac
    from regrasp.envs.config import TrainEnvConfig
    from regrasp.models.config import ModelConfig

Heads = Literal["min", "mean"]


@dataclass(frozen=True, config=BLOCK)
class AlphaOptimConfig:
    """Optimizer of the temperature."""

    lr: PositiveFloat = 3e-4
    """Learning rate."""


@dataclass(frozen=True, config=BLOCK)
class EntropyTuningConfig:
    """The temperature, the weight of the entropy."""

    alpha_type: Literal["softplus", "exp", "fixed_alpha"] = "softplus"
    """What keeps a learned temperature positive; `fixed_alpha`: it stays what it is at first."""
    initial_alpha: NonNegativeFloat = 0.01
    """Temperature at first."""
    target_entropy: float | None = None
    """Entropy of a decision that a learned temperature aims at; null: minus the width of an action."""
    optim: AlphaOptimConfig = AlphaOptimConfig()
    """Its optimizer."""


@dataclass(frozen=True, config=BLOCK)
class ReplayConfig:
    """What is stored, and what of it is drawn."""

    capacity: PositiveInt = 1_000_000
    """Decisions stored at most; older ones are overwritten."""
    min_decisions: PositiveInt = 1
    """Decisions stored before the first optimizer step."""
    success_share: Fraction = 0.0
    """Share of every minibatch that is drawn from episodes that succeeded, once there are any."""
    max_memory_gb: PositiveFloat | None = None
    """Memory for what decisions saw and did, in GB, and as much again for those of `demo_buffer`; with more, the
    largest tables are memory-mapped files. Null: all of it is in memory, on the device of the features."""
    storage_path: Name | None = None
    """Folder of these files, on a disk with room for them; null: the system's folder for temporary files."""


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class SacConfig(AlgorithmConfig):
    """Soft actor-critic."""

    adv_type: Literal["embodied_sac"] = "embodied_sac"
    """There are no advantages: critics judge actions."""
    loss_type: Literal["embodied_sac"] = "embodied_sac"
    """Soft actor-critic."""
    updates_per_decision: PositiveFloat | None = None
    """Critic steps for each decision collected; null: `update_epoch` critic steps in each update."""
    gamma: Fraction = 0.99
    """Discount, per decision or per environment step (see `reward_type`)."""
    reward_type: Literal["chunk_level", "action_level"] = "chunk_level"
    """`chunk_level`: gamma counts decisions; `action_level`: gamma counts environment steps."""
    bootstrap_type: Literal["standard", "none"] = "standard"
    """`standard`: a return that the step limit cuts continues with the value of the final observation; `none`: it ends
    there, for a task in which running out of time is failing."""
    n_step: PositiveInt = 1
    """Decisions whose rewards a target counts before the critics' value goes on."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Share of the critics in every step of the target critics."""
    target_update_freq: PositiveInt = 1
    """Critic steps between two steps of the target critics."""
    agg_q: Heads = "min"
    """What of the critics' values a target takes."""
    actor_agg_q: Heads | None = None
    """What of them the actor climbs; null: as `agg_q`."""
    latent_targets: bool = False
    """Targets take the value of what follows from critics of latents (DSRL's noise), which spares them denoising."""
    critic_subsample_size: PositiveInt | None = None
    """Critics drawn at random for every target; null: all."""
    backup_entropy: bool = True
    """Targets count the entropy of what the policy does next."""
    critic_actor_ratio: PositiveInt = 1
    """Critic steps for every step of actor and temperature."""
    critic_only_steps: NonNegativeInt = 0
    """First critic steps of a run, made at once when `replay_buffer.min_decisions` is reached, without the actor."""
    critic_loss: Literal["mse", "bce"] = "mse"
    """`bce`: critics give the probability of success, by cross-entropy; returns have to lie between 0 and 1."""
    monte_carlo: Annotated[
        tuple[Fraction, NonNegativeInt], Field(strict=False), Expect("[share, environment steps]")
    ] = (0.0, 0)
    """Share of an episode's own return in its targets, and the environment steps of a run until which it counts."""
    proximity: Annotated[
        tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeInt],
        Field(strict=False),
        Expect("[start, end, environment steps]"),
    ] = (0.0, 0.0, 0)
    """Weight, in the actor's loss, of what `proximity_to` measures: at the start, at the end, steps in between."""
    proximity_to: Literal["proposal", "start"] = "proposal"
    """`proposal`: the mean square of what a residual adds, or of DSRL's noise; `start`: that of the distance to what
    the policy that the run started from would do with the same noise, or for DSRL to the noise that it would choose."""
    selection_margin: NonNegativeFloat = 0.02
    """With a policy that imitates what critics choose: how much better than its own action another one has to be."""
    normalize_q: bool = False
    """Divide the values that the actor climbs by their mean magnitude, so that `proximity` means the same anywhere."""
    entropy_tuning: EntropyTuningConfig = EntropyTuningConfig()
    """The temperature."""
    replay_buffer: ReplayConfig = ReplayConfig()
    """The stored experience."""
    demo_buffer: DemoBufferConfig | None = None
    """Demonstrations drawn beside it; null: none."""

    @property
    def needs(self) -> frozenset[str]:
        """Proposals and critics."""
        return frozenset({"q_head"})

    @property
    def keeps_start(self) -> bool:
        """Whether the policy is compared with the one that the run started from."""
        return self.proximity_to == "start"

    @property
    def counts_entropy(self) -> bool:
        """Whether actor or critics count the policy's entropy."""
        tuning = self.entropy_tuning
        return tuning.alpha_type != "fixed_alpha" or tuning.initial_alpha > 0

    @property
    def shown(self) -> tuple[Column, ...]:
        """What critics and actor come to, the temperature where it is learned, and the stored experience."""
        learns_alpha = self.entropy_tuning.alpha_type != "fixed_alpha"
        return (
            Column("critic", "sac/critic_loss", "loss of the critics"),
            Column("q", "critic/q_data", "mean value of stored actions"),
            Column("actor", "sac/actor_loss", "loss of the actor"),
            Column("entropy", "actor/entropy", "of the actor's proposals", 7),
            *((Column("alpha", "sac/alpha", "temperature"),) if learns_alpha else ()),
            Column("steps", "actor/minibatches", "optimizer steps of the actor", 5, whole),
            Column("stored", "replay_buffer/size", "decisions in the replay", 7, whole),
        )

    @property
    def demonstrations(self) -> str | None:
        """Of the block `demo_buffer`."""
        return None if self.demo_buffer is None else self.demo_buffer.load_path

    @property
    def stored_decisions(self) -> int:
        """In the replay."""
        return self.replay_buffer.capacity

    @property
    def max_stored_bytes(self) -> int | None:
        """Of the replay."""
        limit = self.replay_buffer.max_memory_gb
        return None if limit is None else round(limit * 1e9)

    @property
    def storage_path(self) -> str | None:
        """Of the replay."""
        return None if self.max_stored_bytes is None else self.replay_buffer.storage_path

    def critic_steps(self, samples: int) -> int:
        """Of an update that collected so many decisions."""
        rate = self.updates_per_decision
        return self.update_epoch if rate is None else max(1, round(rate * samples))

    def optimizer_steps(self, samples: int, batch_size: int) -> tuple[int, str]:
        """Of critics, with their share of the actor's."""
        del batch_size
        critic = self.critic_steps(samples)
        actor = critic // self.critic_actor_ratio
        steps = f"{counted(critic, 'critic step')} and {counted(actor, 'actor step')}"
        return critic + actor, f" of stored decisions: {steps} per update"

    def idle(self, model: ModelConfig) -> Iterator[tuple[str, str]]:
        """Keys of the entropy, of files, and of an actor that climbs values or imitates."""
        if self.entropy_tuning.alpha_type == "fixed_alpha":
            for name in ("target_entropy", "optim"):
                yield f"entropy_tuning.{name}", "algorithm.entropy_tuning.alpha_type is fixed_alpha"
            if not self.entropy_tuning.initial_alpha:
                yield "backup_entropy", "algorithm.entropy_tuning.initial_alpha stays 0"
        if self.replay_buffer.max_memory_gb is None:
            yield "replay_buffer.storage_path", "without algorithm.replay_buffer.max_memory_gb there are no files"
        if model.imitates:
            for name in ("proximity", "proximity_to", "normalize_q", "actor_agg_q"):
                yield name, "the policy imitates what critics choose"
            return
        yield "selection_margin", "the policy imitates nothing"
        if not any(self.proximity[:2]):
            yield "proximity_to", "algorithm.proximity weighs nothing"
        elif self.proximity_to == "proposal" and not model.measures_proposals:
            for name in ("proximity", "proximity_to"):
                yield (
                    name,
                    "the policy adds nothing to another one's action; proximity_to start weighs how far it moves",
                )

    def build(self) -> Sac:
        """The algorithm of this configuration."""
        from regrasp.algorithms.sac import Sac

        return Sac(self)

    def problems(self, env: TrainEnvConfig) -> Iterator[UserError]:
        """Groups, more than one pass, and a share of experience that cannot be."""
        yield from self.no_groups("critics")
        if self.updates_per_decision is not None and self.update_epoch != 1:
            yield UserError(
                "Two numbers of critic steps",
                key="algorithm.update_epoch",
                value=self.update_epoch,
                expected=f"1 (the default), since algorithm.updates_per_decision is {self.updates_per_decision:g}",
                fix="remove one of the two",
            )
        if self.replay_buffer.min_decisions > self.replay_buffer.capacity:
            yield UserError(
                "More than the replay can hold",
                key="algorithm.replay_buffer.min_decisions",
                value=self.replay_buffer.min_decisions,
                expected=f"at most algorithm.replay_buffer.capacity ({self.replay_buffer.capacity})",
                fix="change one of the two",
            )
        if self.critic_loss == "bce" and self.entropy_tuning.initial_alpha and self.backup_entropy:
            yield UserError(
                "A probability of success does not count entropy",
                key="algorithm.backup_entropy",
                value=True,
                expected="false, since algorithm.critic_loss is bce",
                fix="set algorithm.backup_entropy=false",
            )
