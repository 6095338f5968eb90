"""The configuration of one experiment: its blocks, how a file becomes one, and the arithmetic of its updates."""

from regrasp.algorithms.ppo import PpoConfig as AlgorithmConfig
from regrasp.experiment.actor import ActorConfig, OptimConfig
from regrasp.experiment.config import ExperimentConfig
from regrasp.experiment.env import EnvsConfig
from regrasp.experiment.runner import ClusterConfig, LoggerConfig, RunnerConfig
from regrasp.experiment.stages import CollectConfig, SftConfig

__all__ = [
    "ActorConfig",
    "AlgorithmConfig",
    "ClusterConfig",
    "CollectConfig",
    "EnvsConfig",
    "ExperimentConfig",
    "LoggerConfig",
    "OptimConfig",
    "RunnerConfig",
    "SftConfig",
]
