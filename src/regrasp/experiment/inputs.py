"""From a mapping to what a model is told of its inputs."""

from __future__ import annotations

from regrasp.envs.mapping_config import MappingConfig
from regrasp.models.inputs import InputNames


def input_names(mapping: MappingConfig) -> InputNames:
    """What an experiment says of the model's inputs, beside their names."""
    return InputNames(
        embodiment_tag=mapping.embodiment_tag,
        embodiment_tag_id=mapping.embodiment_tag_id,
        data_config=mapping.data_config or mapping.data_config_class,
    )
