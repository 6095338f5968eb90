"""Frozen dataclasses of the configuration, one module per top-level block."""

from regrasp.config.schema.actor import ActorConfig, LoraConfig, MlpConfig, ModelConfig, OptimConfig, RlHeadConfig
from regrasp.config.schema.algorithm import AlgorithmConfig
from regrasp.config.schema.env import (
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
from regrasp.config.schema.experiment import ExperimentConfig
from regrasp.config.schema.runner import ClusterConfig, LoggerConfig, RunnerConfig
from regrasp.config.schema.stages import ArchitectureConfig, CollectConfig, PretrainConfig, SftConfig

__all__ = [
    "ActionMapping",
    "ActorConfig",
    "AlgorithmConfig",
    "ArchitectureConfig",
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
    "LoraConfig",
    "MappingConfig",
    "MlpConfig",
    "ModelConfig",
    "OptimConfig",
    "PretrainConfig",
    "RlHeadConfig",
    "RunnerConfig",
    "SftConfig",
    "StateEntry",
    "TimeoutsConfig",
    "TrainEnvConfig",
    "VideoConfig",
]
