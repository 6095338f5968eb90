"""GR00T policies on disk: a Hugging Face style folder that is enough by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import RL_PARTS, GrootPolicy
from regrasp.models.groot.processor import GrootProcessor
from regrasp.models.settings import RlHeadSettings
from regrasp.models.weights import WEIGHTS_FILE, assign_weights, read_json, read_weights, write_json, write_weights

CONFIG_FILE = "config.json"
_WRAPPER_PREFIX = "_groot_model."
_VISION_HEAD = "backbone.eagle_model.vision_model.vision_model.head."
_EMBEDDING = "backbone.eagle_model.language_model.model.embed_tokens.weight"
_OUTPUT_LAYER = "backbone.eagle_model.language_model.lm_head.weight"


def save_groot(policy: GrootPolicy, folder: Path) -> None:
    """Write config.json, model.safetensors, processor_config.json, metadata.json and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, policy.config.to_json())
    policy.processor.save(folder)
    write_weights(policy, folder)


def load_processor(folder: Path) -> GrootProcessor:
    """Read the processor of a model folder.

    Raises:
        UserError: A file or a key is missing or malformed.
    """
    file = folder / CONFIG_FILE
    return GrootProcessor.load(GrootConfig.from_json(read_json(file), file=file), folder)


def load_groot(
    folder: Path, rl: RlHeadSettings | None = None, *, processor: GrootProcessor | None = None, seed: int = 0
) -> GrootPolicy:
    """Read a folder written by `save_groot`, as float32.

    Args:
        folder: The model folder.
        rl: None gives a policy without value head that executes the whole chunk.
        processor: Takes the place of the folder's, where the model is trained on other data.
        seed: Draws what RL adds and the folder does not have.

    Raises:
        UserError: A file is missing or damaged, tensors are missing, unexpected or misshapen, or `rl` does not fit.
    """
    processor = processor or load_processor(folder)
    if rl is not None and rl.padding_value is not None:
        processor = processor.padded_to(rl.padding_value)
    config = processor.groot
    settings = rl or RlHeadSettings(config.action_horizon, processor.action.width, add_value_head=False)
    with torch.device("meta"):
        policy = GrootPolicy(config, processor, settings)
    parts: set[str] = {name for name, child in policy.named_children() if name in RL_PARTS and child is not None}
    state = _own_keys(read_weights(folder), unused={*RL_PARTS} - parts)
    assign_weights(policy, state, file=folder / WEIGHTS_FILE, optional=parts)
    policy.backbone.reset_buffers()
    generator = torch.Generator().manual_seed(seed)
    for part in (policy.value_head, policy.noise_net):
        if part is not None and any(parameter.is_meta for parameter in part.parameters()):
            part.to_empty(device="cpu")
            part.reset_parameters(generator)
    return policy


def _own_keys(state: Mapping[str, Tensor], unused: set[str]) -> dict[str, Tensor]:
    """Bring published and fine-tuned key variants to this module's names; drop what it has no use for."""
    named = {name.removeprefix(_WRAPPER_PREFIX): tensor for name, tensor in state.items()}
    output_layer = named.pop(_OUTPUT_LAYER, None)
    if output_layer is not None:
        named.setdefault(_EMBEDDING, output_layer)
    return {
        name: tensor
        for name, tensor in named.items()
        if not name.startswith(_VISION_HEAD) and name.split(".")[0] not in unused
    }
