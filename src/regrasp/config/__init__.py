"""Typed configuration: one YAML file per experiment, composed by Hydra, converted at once into frozen dataclasses."""

from regrasp.config.batches import batch_equation, num_optimizer_steps, num_samples, num_updates
from regrasp.config.compose import as_override
from regrasp.config.load import LoadedConfig, load_config
from regrasp.config.paths import require_paths
from regrasp.config.schema import ExperimentConfig, MappingConfig
from regrasp.config.search import find_config, list_configs

__all__ = [
    "ExperimentConfig",
    "LoadedConfig",
    "MappingConfig",
    "as_override",
    "batch_equation",
    "find_config",
    "list_configs",
    "load_config",
    "num_optimizer_steps",
    "num_samples",
    "num_updates",
    "require_paths",
]
