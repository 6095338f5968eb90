"""GR00T policies on disk: a Hugging Face style folder that is enough by itself."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from regrasp.checkpoint.hub_folder import StoredTensor, list_safetensors
from regrasp.config.parse import parse
from regrasp.config.types import BLOCK, NetworkSize
from regrasp.errors import UserError
from regrasp.models.config import CONFIG_FILE
from regrasp.models.groot.config import EagleConfig, GrootConfig
from regrasp.models.groot.dsrl_config import DsrlConfig
from regrasp.models.groot.generations import check_generation
from regrasp.models.groot.network.action_head import ActionHead
from regrasp.models.groot.network.backbone import Backbone
from regrasp.models.groot.network.noise_net import NoiseNet
from regrasp.models.groot.noise_actor import NoiseActor
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.groot.residual import Residual
from regrasp.models.groot.residual_config import ResidualConfig
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.groot.steering import Steering
from regrasp.models.inputs import InputNames
from regrasp.models.q_head import QHead
from regrasp.models.value_head import ValueHead
from regrasp.models.weights import (
    DtypeRule,
    assign_weights,
    check_weights,
    dtype_of,
    read_json,
    write_json,
    write_weights,
)

EAGLE_FILE = "eagle2_hg_model/config.json"
"""Where a folder may hold the sizes of its vision-language model, which the published config.json lacks."""
_WRAPPER_PREFIX = "_groot_model."
_VISION = "backbone.eagle_model.vision_model.vision_model."
_VISION_NESTING = re.compile(r"backbone\.eagle_model\.(vision_model\.)+")
_EMBEDDING = "backbone.eagle_model.language_model.model.embed_tokens.weight"
_OUTPUT_LAYER = "backbone.eagle_model.language_model.lm_head.weight"
_RLINF_PARTS = ("action_head.value_head.", "action_head.reinflow_explore_noise_net.")
"""What RLinf adds for training, as networks of other kinds than ours: with ReLU, or reading other inputs."""

T = TypeVar("T")
Part = ValueHead | NoiseNet | QHead | Steering
_log = logging.getLogger(__name__)


def save_groot(policy: GrootPolicy, folder: Path) -> None:
    """Write config.json, model.safetensors, processor_config.json, metadata.json and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, policy.config.with_denoising_steps(policy.settings.denoising_steps).to_json())
    policy.processor.save(folder)
    for actor in (policy.residual, policy.noise_actor):
        if actor is not None:
            write_json(folder / actor.FILE, {**asdict(actor.config), "chunk": policy.spec.num_action_chunks})
    write_weights(policy, folder)


def load_config(folder: Path) -> GrootConfig:
    """Read config.json, and the sizes of the vision-language model where they are beside it.

    Raises:
        UserError: A file is missing or malformed, or asks for an unsupported variant or another generation.
    """
    file, eagle_file = folder / CONFIG_FILE, folder / EAGLE_FILE
    content = read_json(file)
    check_generation(content, file)
    eagle = EagleConfig.from_published(read_json(eagle_file), file=eagle_file) if eagle_file.is_file() else None
    return GrootConfig.from_json(content, file=file, eagle=eagle)


def load_processor(folder: Path, inputs: InputNames | None = None) -> GrootProcessor:
    """Read the processor of a model folder.

    Args:
        folder: The model folder.
        inputs: How the experiment calls the model's inputs.

    Raises:
        UserError: A file or a key is missing or malformed.
    """
    return GrootProcessor.load(load_config(folder), folder, inputs)


def load_groot(
    folder: Path,
    rl: GrootModelConfig | None = None,
    inputs: InputNames | None = None,
    *,
    processor: GrootProcessor | None = None,
    seed: int = 0,
    dtype: DtypeRule = None,
) -> GrootPolicy:
    """Read a folder in the published layout, or one written by `save_groot`.

    Weights are read tensor by tensor into a network on the meta device: the host needs their size once.

    Args:
        folder: The model folder.
        rl: None gives a policy without value head that executes the whole chunk, in the folder's denoising steps.
        inputs: How the experiment calls the model's inputs; None: as the folder does.
        processor: Takes the place of the folder's, where the model is trained on other data.
        seed: Draws what RL adds and the folder does not have.
        dtype: Of the weights: one for all, or one by parameter name; None: by `rl`, and without it as stored.

    Raises:
        UserError: A file is missing or damaged, tensors are missing, unexpected or misshapen, or `rl` does not fit.
    """
    policy = _skeleton(rl, processor or load_processor(folder, inputs), load_steering(folder))
    parts, used = _parts(policy), _used_tensors(policy, folder)
    if dtype is None and rl is not None:
        dtype = _dtypes(policy)
    absent = assign_weights(policy, used, file=folder, optional=parts, dtype=dtype)
    policy.backbone.reset_buffers()
    generator = torch.Generator().manual_seed(seed)
    for name in (name for name in parts if name in absent):
        _draw(parts[name], name, generator, dtype)
    return policy


def preview_groot(folder: Path, rl: GrootModelConfig, inputs: InputNames | None = None) -> GrootPolicy:
    """The policy that `load_groot` would give, on the meta device: its folder is checked, no weights are read.

    Raises:
        UserError: As `load_groot`, except for damage inside a tensor's data.
    """
    policy = _skeleton(rl, load_processor(folder, inputs), load_steering(folder))
    check_weights(policy, _used_tensors(policy, folder), file=folder, optional=_parts(policy))
    return policy


def published_layout(config: GrootConfig) -> dict[str, Tensor]:
    """The tensors that a model folder holds, without what RL adds, on the meta device."""
    with torch.device("meta"):
        backbone, head = Backbone(config.eagle_cfg), ActionHead(config.action_head_cfg, use_dropout=False)
    return backbone.state_dict(prefix="backbone.") | head.state_dict(prefix="action_head.")


def published_tensors(stored: Mapping[str, T], folder: Path) -> dict[str, T]:
    """Bring the key variants found in the wild to the published names, and drop what no policy uses.

    The variants: a `_groot_model.` prefix, `vision_model.` once or several times, the vision tower's pooling head, the
    word embedding stored as the output layer that it is tied to, beside itself or instead, and RLinf's value head and
    noise network.

    Args:
        stored: Anything by tensor name.
        folder: Named in the error.

    Raises:
        UserError: Two keys mean the same tensor.
    """
    named: dict[str, T] = {}
    for key, value in stored.items():
        name = _VISION_NESTING.sub(_VISION, key.removeprefix(_WRAPPER_PREFIX), count=1)
        if name in named:
            raise UserError(f"Two tensors for one place in the model: {name}", file=folder, value=key)
        if not name.startswith((f"{_VISION}head.", *_RLINF_PARTS)):
            named[name] = value
    if any(name.startswith(_RLINF_PARTS) for name in stored):
        _log.info("RLinf's value head is left out of %s: acting needs none, and training starts a new one.", folder)
    if _OUTPUT_LAYER in named:
        named.setdefault(_EMBEDDING, named.pop(_OUTPUT_LAYER))
    return named


@dataclass(frozen=True, config=BLOCK)
class _StoredResidual(ResidualConfig):
    """`residual.json`."""

    chunk: NetworkSize = 1
    """Actions of the chunk that it was trained on."""


@dataclass(frozen=True, config=BLOCK)
class _StoredDsrl(DsrlConfig):
    """`dsrl.json`."""

    chunk: NetworkSize = 1
    """Actions of the chunk that it was trained on."""


Stored = _StoredResidual | _StoredDsrl
_STORED: dict[type[Stored], type[Residual | NoiseActor]] = {_StoredResidual: Residual, _StoredDsrl: NoiseActor}


def load_steering(folder: Path) -> Stored | None:
    """Sizes of the actor that a folder's policy acts with beside its head; None for a plain policy.

    Raises:
        UserError: The file is damaged.
    """
    for config, actor in _STORED.items():
        if (file := folder / actor.FILE).is_file():
            return parse(config, read_json(file), file=file, fix="restore the file")
    return None


def _skeleton(rl: GrootModelConfig | None, processor: GrootProcessor, stored: Stored | None) -> GrootPolicy:
    """The policy on the meta device; an actor beside the head that the folder has is that of the experiment's sizes."""
    if rl is not None and rl.rl_head_config.padding_value is not None:
        processor = processor.padded_to(rl.rl_head_config.padding_value)
    config = processor.groot
    settings = rl or GrootModelConfig(
        num_action_chunks=config.action_horizon if stored is None else stored.chunk,
        action_dim=processor.action.width,
        denoising_steps=config.action_head_cfg.num_inference_timesteps,
        add_value_head=False,
    )
    if stored is not None:
        _check_stored(stored, settings)
    steering = settings.steering if settings.add_q_head else stored
    with torch.device("meta"):
        return GrootPolicy(config, processor, settings, steering=steering)


def _check_stored(stored: Stored, settings: GrootModelConfig) -> None:
    """Refuse to act or train otherwise than the folder's policy does."""
    actor = _STORED[type(stored)]
    if settings.num_action_chunks != stored.chunk:
        raise UserError(
            f"The model acts with {actor.TITLE}, which was trained on chunks of another length",
            key="actor.model.num_action_chunks",
            value=settings.num_action_chunks,
            expected=str(stored.chunk),
            fix="set it so",
        )
    wanted = settings.steering
    if wanted is not None and not isinstance(stored, type(wanted)):
        raise UserError(
            f"The model acts with {actor.TITLE}, and another way of acting would begin without it",
            key="actor.model.proposal",
            value=settings.proposal,
            expected=f"that of the folder, which has a {actor.FILE}",
            fix="set it so, or train what `regrasp distill` makes of the folder",
        )


def _parts(policy: GrootPolicy) -> dict[str, Part]:
    """What RL adds to this policy, which the folder may lack."""
    return {name: part for name in GrootPolicy.RL_PARTS if (part := getattr(policy, name)) is not None}


def _used_tensors(policy: GrootPolicy, folder: Path) -> dict[str, StoredTensor]:
    """The folder's tensors under the published names, without those of RL parts that the policy does not have."""
    stored = published_tensors(list_safetensors(folder), folder)
    unused = {*GrootPolicy.RL_PARTS} - _parts(policy).keys()
    return {name: tensor for name, tensor in stored.items() if name.split(".")[0] not in unused}


def _dtypes(policy: GrootPolicy) -> DtypeRule:
    """What trains is float32, whatever the folder holds: small updates are lost in bfloat16."""
    settings = policy.settings
    if settings.precision == "fp32":
        return torch.float32
    parts = (settings.trainable, "value_head", "q_head", "latent_head", "proposal")
    trained = {name for part in parts for name, _ in policy.trainable(part)}
    return lambda name: torch.float32 if name in trained else torch.bfloat16


def _draw(part: Part, name: str, generator: torch.Generator, dtype: DtypeRule) -> None:
    """Fresh weights of what RL adds."""
    part.to_empty(device="cpu")
    part.reset_parameters(generator)
    for key, parameter in part.named_parameters():
        parameter.data = parameter.data.to(dtype_of(f"{name}.{key}", parameter.dtype, dtype))
