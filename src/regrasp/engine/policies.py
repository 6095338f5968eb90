"""Policies as an experiment asks for them: loaded, overlaid with RL weights, or new."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from regrasp.checkpoint.layout import EXPORT
from regrasp.checkpoint.read import checkpoint_of, load_full_weights
from regrasp.config.types import bare_key
from regrasp.envs.config import EnvName
from regrasp.envs.contract import EnvSpec
from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.quaternions import check_same_order
from regrasp.envs.registry import env_type_of, same_task
from regrasp.envs.selection import ObservationSelection, camera_names, state_names
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.inputs import input_names
from regrasp.experiment.of_model import mapping_differences, naming_its_experiment
from regrasp.models.config import ModelConfig
from regrasp.models.contract import Policy
from regrasp.models.inputs import embodiment_id
from regrasp.models.origin import read_origin
from regrasp.models.registry import check_folder

_log = logging.getLogger(__name__)


def load_model(model: ModelConfig, folder: str | Path, mapping: MappingConfig) -> Policy:
    """The policy of a model folder, as an experiment asks for it.

    Raises:
        UserError: The folder is damaged, holds another model, or does not fit.
    """
    policy = model.load(check_folder(model, folder), input_names(mapping))
    policy.origin = read_origin(Path(folder).expanduser())
    return policy


def create_policy(
    model: ModelConfig, mapping: MappingConfig, env: EnvSpec, seed: int, location: str = "env.train.mapping"
) -> Policy:
    """The policy that training starts from: the folder `actor.model.model_path`, or a new one.

    Args:
        model: The model.
        mapping: Its inputs.
        env: What the environments offer.
        seed: Draws the weights of a new policy.
        location: Where the mapping stands, for errors.

    Raises:
        UserError: There is no folder to load, or the policy does not fit the environments.
    """
    if model.model_path is not None:
        with naming_its_experiment(model.model_path):
            policy = load_model(model, model.model_path, mapping)
            check_fit(policy, mapping, env, location)
    else:
        policy = model.build(env.state_dim, seed)
        check_fit(policy, mapping, env, location)
    if warning := model.slot_warning(input_names(mapping)):
        _log.warning("%s.embodiment_tag_id: %s", location, warning)
    if warning := order_warning(policy, mapping, env, location):
        _log.warning("%s.states: %s", location, warning)
    return policy


def order_warning(policy: Policy, mapping: MappingConfig, env: EnvSpec, location: str) -> str | None:
    """What speaks against the order of a mapping's states; None where nothing does, or where they are named."""
    parts = policy.spec.state_parts
    if mapping.gr00t_mapping is not None or len(parts) != len(mapping.states):
        return None
    sources = ObservationSelection(mapping, env.raw_observations, location).states
    widths = [source.stop - source.start for source in sources]
    if [width for _, width in parts] == widths:
        return None
    given = ", ".join(f"{source.key} {width}" for source, width in zip(sources, widths, strict=True))
    expected = ", ".join(f"{key} {width}" for key, width in parts)
    return f"{given} values wide are taken for {expected}, one after the other; gr00t_mapping.state names what is what"


def check_fit(policy: Policy, mapping: MappingConfig, env: EnvSpec, location: str = "env.train.mapping") -> None:
    """Check that the mapping, which stands at `location`, delivers what the policy was trained on.

    Raises:
        UserError: Embodiment, cameras or state differ, or there is no room for the instructions.
    """
    _check_sizes(policy, mapping, env.state_dim, len(env.cameras), location)
    policy.check_instructions(env.instructions if mapping.task_description is None else [mapping.task_description])
    trained, made = policy.spec.quaternions, "the demonstrations of this model"
    if env.quaternions is not None and trained is not None:
        states = ObservationSelection(mapping, env.raw_observations, location).states
        check_same_order(states, env.quaternions, trained, location=location, made=made)


def check_folder_fits(config: ExperimentConfig, name: EnvName) -> Policy | None:
    """Check the model folder against `env.<name>` before its simulator starts, as far as both tell.

    Returns:
        The policy without the memory of its weights, where there is one.

    Raises:
        UserError: As `check_fit`, or the folder is damaged.
    """
    model = config.actor.model
    if model.model_path is None:
        return None
    with naming_its_experiment(model.model_path):
        return _checked_folder(config, model.model_path, name)


def _checked_folder(config: ExperimentConfig, folder: str, name: EnvName) -> Policy | None:
    model, env, location = config.actor.model, getattr(config.env, name), f"env.{name}.mapping"
    policy = model.preview(check_folder(model, folder), input_names(env.mapping))
    if policy is None:
        return None
    spec = env_type_of(env, name).describe(env, name)
    if spec is not None:
        offered = ObservationSelection(env.mapping, spec.raw_observations, location)
        _check_sizes(policy, env.mapping, offered.state_dim, len(offered.camera_names), location)
    else:
        slices = [state.slice for state in env.mapping.states]
        width = sum(one[1] - one[0] for one in slices if one is not None)
        _check_sizes(policy, env.mapping, None if None in slices else width, len(camera_names(env.mapping)), location)
    return policy


def warn_of_another_task(config: ExperimentConfig, name: EnvName) -> None:
    """Tell where a model was made for another task, other words, or another mapping than those of `env.<name>`.

    Raises:
        UserError: What the folder says is damaged.
    """
    if config.actor.model.model_path is None:
        return
    folder, env = Path(config.actor.model.model_path).expanduser(), getattr(config.env, name)
    origin, task = read_origin(folder), env.init_params.id
    if origin.tasks and not any(same_task(task, made_for) for made_for in origin.tasks):
        _log.warning(
            "env.%s.init_params.id is %s; the model in %s was made for %s.", name, task, folder, ", ".join(origin.tasks)
        )
    given = env.mapping.task_description
    if given is not None and origin.instructions and given not in origin.instructions:
        known = ", ".join(f"'{text}'" for text in origin.instructions[:3])
        _log.warning(
            "env.%s.mapping.task_description is '%s'; the model in %s was made with %s.", name, given, folder, known
        )
    for difference in mapping_differences(origin, config, name):
        _log.warning("%s (%s).", difference, origin.experiment or folder)


def _check_sizes(
    policy: Policy, mapping: MappingConfig, state_dim: int | None, num_cameras: int, location: str
) -> None:
    check_inputs(policy, mapping, location)
    expected, names = policy.spec, state_names(mapping)
    width = max(stop for _, stop in names.values()) if names and expected.state_parts else expected.state_dim
    if state_dim is not None and width not in (0, state_dim):
        raise UserError(
            "The mapping's state does not have the width that the model was trained with",
            key=f"{location}.states",
            value=f"{state_dim} values",
            expected=f"{width} values",
            fix="list the same state keys, in the same order, as for the model's demonstrations"
            + ("; or correct the slices of gr00t_mapping.state" if mapping.gr00t_mapping else ""),
        )
    if expected.cameras and len(expected.cameras) != num_cameras:
        raise UserError(
            "The mapping does not give the model the cameras that it was trained with",
            key=f"{location}.{'main_images' if mapping.main_images is None else 'extra_view_images'}",
            value=f"{num_cameras} cameras in all",
            expected=f"{len(expected.cameras)} cameras in all",
            fix="list the same cameras, in the same order, as for the model's demonstrations",
        )


def check_inputs(policy: Policy, mapping: MappingConfig, location: str = "env.train.mapping") -> None:
    """Check that the mapping, which stands at `location`, names what the policy was trained with.

    Raises:
        UserError: It names another embodiment, other cameras, or other parts of the state.
    """
    if mapping.action_mapping.keys:
        _check_action_parts(policy, mapping.action_mapping.keys, f"{location}.action_mapping")
    if mapping.gr00t_mapping is not None and policy.spec.state_parts:
        _check_names(policy, mapping, f"{location}.gr00t_mapping")
    key, tag, expected = f"{location}.embodiment_tag_id", policy.spec.embodiment_tag, policy.spec.embodiment_id
    if tag is None or expected is None:
        return
    slot = embodiment_id(mapping.embodiment_tag, mapping.embodiment_tag_id, key=key, trained=(tag, expected))
    if slot != expected:
        raise UserError(
            "The mapping names another embodiment than the model was trained for",
            key=key,
            value=slot,
            expected=str(expected),
            fix="correct embodiment_tag_id, or train a base model for this embodiment with `regrasp sft`",
        )


def _check_action_parts(policy: Policy, keys: Sequence[str], location: str) -> None:
    """Check that the parts of the action come in the order that the mapping takes them to be in."""
    parts = [f"{name} ({width} wide)" for name, width in policy.spec.action_parts]
    if [bare_key(key) for key in keys] != [name for name, _ in policy.spec.action_parts]:
        raise UserError(
            "The model gives its action in another order, or in other parts",
            key=f"{location}.keys",
            value=list(keys),
            expected=", ".join(parts) or "no keys: the parts of this model's action have no names",
            fix=f"leave {location}.keys out; where the simulator's order differs, place the parts by {location}.slices",
        )


def _check_names(policy: Policy, mapping: MappingConfig, location: str) -> None:
    """Check the names of cameras, and those and the widths of parts of the state."""
    cameras, parts, names = camera_names(mapping), policy.spec.state_parts, state_names(mapping)
    if sorted(cameras) != sorted(policy.spec.cameras):
        raise UserError(
            "The experiment's cameras are not the model's",
            key=f"{location}.video",
            value=", ".join(cameras),
            expected=", ".join(policy.spec.cameras),
            fix="name main_images and each of extra_view_images as the model calls it",
        )
    wrong = [
        f"{key} {list(names[key])} ({names[key][1] - names[key][0]} wide)" if key in names else f"{key} missing"
        for key, width in parts
        if key not in names or names[key][1] - names[key][0] != width
    ]
    if wrong:
        raise UserError(
            "Slices of the state do not match the model's",
            key=f"{location}.state",
            value="; ".join(wrong),
            expected=", ".join(f"{key} {width} wide" for key, width in parts) + f" ({policy.spec.embodiment_tag})",
            fix="give in gr00t_mapping.state each key its range of the concatenated `states`",
        )


def overlay_rl_weights(policy: Policy, checkpoint: Path) -> None:
    """Load `full_weights.pt` of an RL checkpoint, ours or RLinf's, over a base model, to act without exploration.

    Raises:
        UserError: The weights are those of another architecture.
    """
    weights = load_full_weights(checkpoint)
    if any(".lora_A." in name for name in weights):
        raise UserError(
            "These weights hold adapters beside the base model's weights",
            file=checkpoint,
            key="--rl_model_path",
            expected="weights without adapters",
            fix="give as --model_path the folder model/ of the checkpoint, which holds them merged; of another tool's,"
            " merge them there first",
        )
    added = {name: tensor for name, tensor in policy.state_dict().items() if name.split(".")[0] in policy.RL_PARTS}
    given = policy.own_names(weights, checkpoint)
    unfit = {
        name
        for name, tensor in given.items()
        if name.split(".")[0] in policy.RL_PARTS and (name not in added or tensor.shape != added[name].shape)
    }
    load_weights(
        policy,
        added | {name: tensor for name, tensor in given.items() if name not in unfit},
        problem="The RL weights do not fit the base model",
        file=checkpoint,
        key="--rl_model_path",
        fix="give as --model_path the base model that this RL run started from",
    )
    _check_same_inputs(policy, checkpoint)


def _check_same_inputs(policy: Policy, path: Path) -> None:
    """Check that a base model prepares its inputs as the run that a checkpoint is of did.

    Raises:
        UserError: It does not; the checkpoint's own model folder would.
    """
    checkpoint = checkpoint_of(path)
    folder = None if checkpoint is None else checkpoint / EXPORT
    differ = [] if folder is None or not folder.is_dir() else policy.inputs_unlike(folder)
    if differ:
        raise UserError(
            "The run prepared the model's inputs in another way than this base model and experiment do",
            file=path,
            key="--rl_model_path",
            value=", ".join(differ),
            expected="the same in both",
            fix=f"give {folder} as --model_path, and no --rl_model_path",
        )


def load_weights(
    policy: Policy, weights: Mapping[str, Tensor], *, problem: str, file: Path, key: str, fix: str
) -> None:
    """Load weights of the policy's very architecture.

    Raises:
        UserError: Names or shapes differ; `problem`, `file`, `key` and `fix` are its fields.
    """
    own = policy.state_dict()
    wrong = sorted(
        name
        for name in own.keys() | weights.keys()
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    )
    if wrong:
        raise UserError(
            problem,
            file=file,
            key=key,
            value=", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            expected="tensors of the same names and shapes as the policy's",
            fix=fix,
        )
    policy.load_state_dict(weights)


def choose_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_device(name: str) -> torch.device:
    """The device of a plan's process, which is then also where torch puts what names none."""
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
