"""OpenVLA policies on disk: the published folder, and what it cannot say beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from regrasp.checkpoint.hub_folder import StoredTensor, list_safetensors
from regrasp.checkpoint.read import load_full_weights
from regrasp.errors import UserError
from regrasp.models.config import CONFIG_FILE, DatasetFacts
from regrasp.models.inputs import InputNames
from regrasp.models.lora import find_adapters, merge_folder
from regrasp.models.openvla.config import OpenVlaConfig
from regrasp.models.openvla.decoding import Decoding, read_decoding
from regrasp.models.openvla.network.language import LanguageModel
from regrasp.models.openvla.network.projector import Projector
from regrasp.models.openvla.network.regression import GaussianHead
from regrasp.models.openvla.network.vision import VisionBackbone
from regrasp.models.openvla.policy import OpenVlaPolicy
from regrasp.models.openvla.processing.processor import OpenVlaProcessor
from regrasp.models.openvla.settings import OpenVlaModelConfig, OpenVlaOftModelConfig
from regrasp.models.openvla.variants import ACTION_HEAD_FILES, check_head, check_inputs_of, check_variant
from regrasp.models.value_head import init_mlp
from regrasp.models.weights import (
    DtypeRule,
    assign_weights,
    check_tensors,
    check_weights,
    dtype_of,
    read_json,
    write_json,
    write_weights,
)

_LORA_PATH = "actor.model.lora_path"


def save_openvla(policy: OpenVlaPolicy, folder: Path) -> None:
    """Write config.json, model.safetensors, the processor's files and decoding.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, {**policy.config.content, "norm_stats": policy.processor.statistics})
    policy.processor.save(folder)
    write_weights(policy, folder)


def load_config(folder: Path) -> OpenVlaConfig:
    """Read config.json.

    Raises:
        UserError: It is missing or malformed, or is that of another model or variant.
    """
    file = folder / CONFIG_FILE
    content = read_json(file)
    check_variant(content, file)
    check_inputs_of(folder)
    return OpenVlaConfig.read(content, file)


def load_openvla(
    folder: Path,
    settings: OpenVlaModelConfig | None = None,
    inputs: InputNames | None = None,
    *,
    processor: OpenVlaProcessor | None = None,
    seed: int = 0,
    dtype: DtypeRule = None,
) -> OpenVlaPolicy:
    """Read a folder in the published layout, or one written by `save_openvla`.

    Weights are read tensor by tensor into a network on the meta device: the host needs their size once.

    Args:
        folder: The model folder.
        settings: None gives a policy without value head that decides as the folder says.
        inputs: What an experiment calls the inputs, of which this model needs nothing.
        processor: Takes the place of the folder's, where the model is trained on other data.
        seed: Draws a value head that the folder does not have.
        dtype: Of the weights: one for all, or one by parameter name; None: by `settings`, and without them as stored.

    Raises:
        UserError: A file is missing or damaged, tensors are missing, unexpected or misshapen, or `settings` do not fit.
    """
    del inputs
    policy = _skeleton(folder, settings, processor)
    if dtype is None and settings is not None:
        dtype = _dtypes(policy)
    absent = assign_weights(policy, _used_tensors(policy, folder), file=folder, optional=_parts(policy), dtype=dtype)
    policy.language_model.reset_buffers()
    if policy.action_head is not None and "action_head" in absent:
        policy.action_head.to_empty(device="cpu")
        _fill_action_head(policy.action_head, folder, new=processor is not None)
        for name, parameter in policy.action_head.named_parameters():
            parameter.data = parameter.data.to(dtype_of(f"action_head.{name}", parameter.dtype, dtype))
    if settings is not None and settings.lora_path is not None:
        merge_folder(policy, Path(settings.lora_path).expanduser(), _LORA_PATH)
    if policy.value_head is not None and "value_head" in absent:
        policy.value_head.to_empty(device="cpu")
        init_mlp(policy.value_head, torch.Generator().manual_seed(seed))
        for name, parameter in policy.value_head.named_parameters():
            parameter.data = parameter.data.to(dtype_of(f"value_head.{name}", parameter.dtype, dtype))
    return policy


def preview_openvla(folder: Path, settings: OpenVlaModelConfig) -> OpenVlaPolicy:
    """The policy that `load_openvla` would give, on the meta device: its folder is checked, no weights are read.

    Raises:
        UserError: As `load_openvla`, except for damage inside a tensor's data.
    """
    policy = _skeleton(folder, settings, None)
    check_weights(policy, _used_tensors(policy, folder), file=folder, optional=_parts(policy))
    if settings.lora_path is not None:
        find_adapters(policy, Path(settings.lora_path).expanduser(), _LORA_PATH)
    return policy


def base_for_data(settings: OpenVlaModelConfig, folder: Path, data: DatasetFacts, *, whole: bool) -> OpenVlaPolicy:
    """The model of a folder, to be trained on demonstrations.

    Args:
        settings: What the experiment says of the model.
        folder: Whose weights and words it starts from.
        data: Statistics and cameras.
        whole: Train all weights.

    Raises:
        UserError: The folder is damaged.
    """
    from dataclasses import replace

    from regrasp.checkpoint.verify import require_sound_model

    require_sound_model(folder)
    config = load_config(folder)
    stored = read_decoding(folder) or Decoding()
    given = {name: value for name in ("center_crop", "max_prompt_length") if (value := getattr(settings, name))}
    decoding = Decoding(
        **{
            **vars(stored),
            **given,
            "method": settings.method,
            "num_action_chunks": settings.num_action_chunks,
            "unnorm_key": settings.unnorm_key,
        }
    )
    decoding = settings.own_decoding(decoding, known=False)
    check_head(folder, decoding)
    path = None if settings.tokenizer_path is None else Path(settings.tokenizer_path).expanduser()
    processor = OpenVlaProcessor.for_data(config, folder, decoding, data, path)
    trained = replace(
        settings,
        action_dim=data.action.width,
        add_value_head=False,
        is_lora=False,
        trainable="all" if whole else "head",
    )
    return load_openvla(folder, trained, processor=processor)


def published_layout(config: OpenVlaConfig) -> dict[str, Tensor]:
    """The tensors that a model folder holds, without what RL adds, on the meta device."""
    with torch.device("meta"):
        parts = {
            "vision_backbone.": VisionBackbone(config.towers, config.image_size),
            "projector.": Projector(config.vision_width, config.language.hidden_size),
            "language_model.": LanguageModel(config.language),
        }
    return {name: tensor for prefix, part in parts.items() for name, tensor in part.state_dict(prefix=prefix).items()}


def _skeleton(folder: Path, settings: OpenVlaModelConfig | None, processor: OpenVlaProcessor | None) -> OpenVlaPolicy:
    """The policy on the meta device."""
    if processor is None:
        decoding = (read_decoding(folder) or Decoding()) if settings is None else settings.decoding(folder)
        path = settings and settings.tokenizer_path
        check_head(folder, decoding)
        processor = OpenVlaProcessor.read(
            load_config(folder), folder, decoding, None if path is None else Path(path).expanduser()
        )
    if settings is None:
        kind = OpenVlaOftModelConfig if processor.decoding.method == "parallel" else OpenVlaModelConfig
        settings = kind(
            num_action_chunks=processor.decoding.num_action_chunks,
            action_dim=processor.scaling.width,
            add_value_head=False,
        )
    with torch.device("meta"):
        return OpenVlaPolicy(processor, settings)


def _fill_action_head(head: GaussianHead, folder: Path, *, new: bool) -> None:
    """Weights of a head that the model's own weight files do not hold: OFT's file beside them, or new ones.

    Args:
        head: With memory for its weights.
        folder: The model folder.
        new: Whether a head may begin untrained.

    Raises:
        UserError: There is no file, several, or one of another head.
    """
    files = sorted(folder.glob(ACTION_HEAD_FILES))
    if not files and new:
        head.reset_parameters(torch.Generator().manual_seed(0))
        return
    if len(files) != 1:
        raise UserError(
            "The folder holds no action head" if not files else "The folder holds several action heads",
            file=folder,
            key="actor.model.action_head",
            value="gaussian",
            expected=f"one file {ACTION_HEAD_FILES}",
            fix="set actor.model.action_head=tokens, or give a fine-tune with a regression head",
        )
    stored, own = load_full_weights(files[0]), head.state_dict()
    check_tensors({name: tensor for name, tensor in own.items() if name != "log_std"}, stored, file=files[0])
    head.load_state_dict({**{name: stored[name].float() for name in stored}, "log_std": own["log_std"]})
    head.reset_deviation()


def _parts(policy: OpenVlaPolicy) -> tuple[str, ...]:
    parts = {"value_head": policy.value_head, "action_head": policy.action_head}
    return tuple(name for name, part in parts.items() if part is not None)


def _used_tensors(policy: OpenVlaPolicy, folder: Path) -> Mapping[str, StoredTensor]:
    """The folder's tensors, without a value head that the policy does not have."""
    stored = list_safetensors(folder)
    if policy.value_head is not None:
        return stored
    return {name: tensor for name, tensor in stored.items() if not name.startswith("value_head.")}


def _dtypes(policy: OpenVlaPolicy) -> DtypeRule:
    """What trains is float32, whatever the folder holds: small updates are lost in bfloat16."""
    settings = policy.settings
    if settings.precision == "fp32":
        return torch.float32
    named = policy.named_parameters()
    trained = {name for name, _ in named if name.startswith(("value_head.", "action_head."))}
    if not settings.is_lora:
        trained |= {name for name, _ in policy.trainable(settings.trainable)}
    return lambda name: torch.float32 if name in trained else torch.bfloat16
