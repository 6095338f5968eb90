"""The configuration of one experiment: its blocks, how a file becomes one, and the arithmetic of its updates."""

from regrasp.algorithms.ppo import PpoConfig as AlgorithmConfig
from regrasp.experiment.actor import ActorConfig, OptimConfig
from regrasp.experiment.config import ExperimentConfig
from regrasp.experiment.env import (
    ActionMapping,
    DataConfigBlock,
    DataKeyEntry,
    EnvConfig,
    EnvsConfig,
    EvalEnvConfig,
    Gr00tMapping,
    Gr00tStateEntry,
    Gr00tVideoMapping,
    InitParams,
    MappingConfig,
    StateEntry,
    TimeoutsConfig,
    TrainEnvConfig,
    VideoConfig,
)
from regrasp.experiment.runner import ClusterConfig, LoggerConfig, RunnerConfig
from regrasp.experiment.stages import CollectConfig, SftConfig

__all__ = [
    "ActionMapping",
    "ActorConfig",
    "AlgorithmConfig",
    "ClusterConfig",
    "CollectConfig",
    "DataConfigBlock",
    "DataKeyEntry",
    "EnvConfig",
    "EnvsConfig",
    "EvalEnvConfig",
    "ExperimentConfig",
    "Gr00tMapping",
    "Gr00tStateEntry",
    "Gr00tVideoMapping",
    "InitParams",
    "LoggerConfig",
    "MappingConfig",
    "OptimConfig",
    "RunnerConfig",
    "SftConfig",
    "StateEntry",
    "TimeoutsConfig",
    "TrainEnvConfig",
    "VideoConfig",
]
