"""The whole experiment: every top-level block of a configuration file."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from regrasp.algorithms.ppo import PpoConfig
from regrasp.algorithms.registry import AnyAlgorithmConfig
from regrasp.config.types import BLOCK
from regrasp.experiment.actor import ActorConfig
from regrasp.experiment.cluster import ClusterConfig, RolloutConfig
from regrasp.experiment.env import EnvsConfig
from regrasp.experiment.runner import RunnerConfig
from regrasp.experiment.stages import CollectConfig, DistillConfig, SftConfig
from regrasp.models.pretraining import PretrainConfig


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class ExperimentConfig:
    """One experiment, from demonstrations to evaluation."""

    runner: RunnerConfig = RunnerConfig()
    """Length of the run, files, checkpoints."""
    cluster: ClusterConfig = ClusterConfig()
    """Machines and placement."""
    env: EnvsConfig
    """Simulators, tasks, observations and actions."""
    actor: ActorConfig
    """The policy and its optimizer."""
    rollout: RolloutConfig = RolloutConfig()
    """The policy in the environments."""
    algorithm: AnyAlgorithmConfig = PpoConfig()
    """Rollout, advantages and loss."""
    pretrain: PretrainConfig | None = None
    """Grounding of a tiny backbone; null: the backbone exists."""
    collect: CollectConfig | None = None
    """Demonstrations; null: they exist."""
    sft: SftConfig | None = None
    """Training of the base model; null: it exists."""
    distill: DistillConfig = DistillConfig()
    """What `regrasp distill` does."""

    @property
    def seed(self) -> int:
        """Seed of every random stream: `runner.seed`, or `actor.seed` where that is null."""
        return self.actor.seed if self.runner.seed is None else self.runner.seed
