"""From a mapping to what a model is told of its inputs."""

from __future__ import annotations

import dataclasses

from regrasp.experiment import MappingConfig
from regrasp.models.inputs import InputNames, bare_key


def input_names(mapping: MappingConfig) -> InputNames:
    """How an experiment calls the model's inputs."""
    names, block = mapping.gr00t_mapping, mapping.data_config
    return InputNames(
        embodiment_tag=mapping.embodiment_tag,
        embodiment_tag_id=mapping.embodiment_tag_id,
        views=names and tuple(map(bare_key, (names.video.main_images, *names.video.extra_view_images))),
        state=names and tuple((bare_key(entry.gr00t_key), *entry.slice) for entry in names.state),
        data_config=mapping.data_config_class if block is None else dataclasses.asdict(block),
    )
