"""The configuration of one experiment: its blocks, how a file becomes one, and the arithmetic of its updates."""

from regrasp.experiment.actor import ActorConfig, OptimConfig
from regrasp.experiment.cluster import ClusterConfig, RolloutConfig
from regrasp.experiment.config import ExperimentConfig
from regrasp.experiment.env import EnvsConfig
from regrasp.experiment.runner import LoggerConfig, RunnerConfig
from regrasp.experiment.stages import CollectConfig, DistillConfig, SftConfig

__all__ = [
    "ActorConfig",
    "ClusterConfig",
    "CollectConfig",
    "DistillConfig",
    "EnvsConfig",
    "ExperimentConfig",
    "LoggerConfig",
    "OptimConfig",
    "RolloutConfig",
    "RunnerConfig",
    "SftConfig",
]
