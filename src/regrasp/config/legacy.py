"""Keys of the reference's configuration files that are read but have no effect here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from regrasp.config.describe import Path, dotted

_ANY = "*"


@dataclass(frozen=True)
class Legacy:
    """Keys of one block without effect. `*` in `block` stands for any one key."""

    block: str
    names: tuple[str, ...]
    why: str
    neutral: tuple[Any, ...] = ()
    """The values that ask for nothing; another value would change the training, so it is an error. Empty: any value."""


_CHANNEL = ("name", "queue_name", "queue_size")
_PROCESS = "processes and queues need no names"
_OFFLOAD = "weights stay where they are used"
_TEXT = "for text generation"
_SHARDING = "sharding is set up by the engine"

LEGACY: tuple[Legacy, ...] = (
    Legacy("runner", ("seq_length", "max_prompt_length"), _TEXT),
    Legacy("runner", ("eval_policy_path",), "a policy is given as actor.model.model_path", (None,)),
    Legacy("algorithm", ("reward_coef",), "rewards are not scaled", (1.0,)),
    Legacy("algorithm", ("filter_rewards",), "no rollout is filtered out", (False,)),
    Legacy("algorithm", ("rewards_lower_bound", "rewards_upper_bound"), "no rollout is filtered out"),
    Legacy("algorithm", ("loss_agg_func",), "losses are averaged over the valid samples"),
    Legacy(
        "algorithm.sampling_params",
        ("do_sample", "temperature_train", "temperature_eval", "top_k", "top_p", "repetition_penalty", "add_BOS"),
        _TEXT,
    ),
    Legacy("algorithm.length_params", ("max_new_token", "max_length", "min_length"), _TEXT),
    Legacy("env", ("group_name",), _PROCESS),
    Legacy("env", ("enable_offload",), _OFFLOAD),
    Legacy("env.channel", _CHANNEL, _PROCESS),
    Legacy("env.*", ("use_rel_reward",), "rewards are the task's own"),
    Legacy("env.*", ("reward_coef",), "rewards are not scaled", (1.0,)),
    Legacy("env.eval", ("group_size",), "an evaluation's episodes are one each"),
    Legacy("env.*", ("use_fixed_reset_state_ids",), "every episode has its own seed"),
    Legacy("env.*.init_params", ("task_description",), "the mapping's task_description is the instruction"),
    Legacy("env.eval", ("auto_reset", "max_steps_per_rollout_epoch"), "an evaluation runs every episode to its end"),
    Legacy("rollout", ("group_name",), _PROCESS),
    Legacy("rollout", ("enable_offload",), _OFFLOAD),
    Legacy("rollout", ("mode", "backend", "pipeline_stage_num"), "the policy runs inside Regrasp"),
    Legacy("rollout.channel", _CHANNEL, _PROCESS),
    Legacy("rollout.model", (), "the policy is described in actor.model"),
    Legacy("actor", ("group_name",), _PROCESS),
    Legacy("actor", ("enable_offload",), _OFFLOAD),
    Legacy("actor", ("training_backend",), "the engine chooses"),
    Legacy("actor.channel", _CHANNEL, _PROCESS),
    Legacy("actor.model", ("trust_remote_code",), "code inside a checkpoint is never run"),
    Legacy("actor.model", ("policy_setup",), "robots are described by the mapping"),
    Legacy(
        "actor.model.rl_head_config",
        ("safe_get_logprob",),
        "GR00T's log-probability is the Gaussian density either way, and 0 where a step is deterministic",
    ),
    Legacy(
        "actor.model.rl_head_config",
        ("chunk_critic_input",),
        "GR00T's value head reads context and state, as in the reference; only pi0's reads action tokens",
    ),
    Legacy(
        "actor.fsdp_config",
        (
            "strategy",
            "sharding_strategy",
            "gradient_checkpointing",
            "cpu_offload",
            "offload_pin_memory",
            "reshard_after_forward",
            "enable_gradient_accumulation",
            "forward_prefetch",
            "limit_all_gathers",
            "backward_prefetch",
            "use_orig_params",
            "use_liger_kernel",
            "fsdp_size",
        ),
        _SHARDING,
    ),
    Legacy("actor.fsdp_config.mixed_precision", ("param_dtype", "reduce_dtype", "buffer_dtype"), _SHARDING),
    Legacy("actor.fsdp_config.amp", ("enabled", "precision", "use_grad_scaler"), _SHARDING),
    Legacy("reward", ("use_reward_model",), "rewards come from the simulator", (False,)),
    Legacy("critic", ("use_critic_model",), "values come from the policy's value head", (False,)),
)

DUPLICATES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("rollout", "model", "model_path"), ("actor", "model", "model_path")),
    (("rollout", "model", "precision"), ("actor", "model", "precision")),
    (("rollout", "model", "obs_converter_type"), ("actor", "model", "obs_converter_type")),
    (("rollout", "model", "embodiment_tag"), ("actor", "model", "embodiment_tag")),
    (("actor", "model", "rl_head_config", "add_value_head"), ("actor", "model", "add_value_head")),
    (("env", "train", "group_size"), ("algorithm", "group_size")),
)
"""Keys that the reference writes twice, and the one that counts."""

SYNONYMS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("actor", "model", "rl_head_config", "noise_method"), "reinflow", "flow_noise"),
)
"""Values with another name in the reference: the key, the value's name there, and its name here."""


@dataclass(frozen=True)
class Active:
    """A legacy key whose value asks for something that is not done here."""

    path: Path
    value: Any
    legacy: Legacy


def known_children(path: Path) -> tuple[str, ...]:
    """The legacy keys, duplicates and legacy sections directly below a path."""
    names: dict[str, None] = {}
    for legacy in LEGACY:
        block = tuple(legacy.block.split("."))
        if _matches(block, path):
            names.update(dict.fromkeys(legacy.names))
        elif len(block) > len(path) and _matches(block[: len(path)], path) and block[len(path)] != _ANY:
            names[block[len(path)]] = None
    for copy, _ in DUPLICATES:
        if copy[:-1] == path:
            names[copy[-1]] = None
    return tuple(names)


def merge_duplicates(values: dict[str, Any]) -> list[str]:
    """Remove the keys that the reference writes twice; a warning for each that disagrees with the one that counts.

    A copy fills the place of an original that is missing or null.
    """
    warnings: list[str] = []
    for copy, original in DUPLICATES:
        source, target = _block(values, copy[:-1]), _block(values, original[:-1])
        if source is None or target is None or copy[-1] not in source:
            continue
        value = source.pop(copy[-1])
        if target.get(original[-1]) is None:
            target[original[-1]] = value
        elif value not in (None, target[original[-1]]):
            warnings.append(
                f"{dotted(copy)} ({value}) differs from {dotted(original)} ({target[original[-1]]}): "
                f"{dotted(original)} is used."
            )
    return warnings


def translate_synonyms(values: dict[str, Any]) -> None:
    """Give the values that the reference names otherwise their names here, in place."""
    for path, theirs, ours in SYNONYMS:
        block = _block(values, path[:-1])
        if block is not None and block.get(path[-1]) == theirs:
            block[path[-1]] = ours


def strip_legacy(values: dict[str, Any], own: Collection[Path] = ()) -> tuple[dict[str, str], list[Active]]:
    """Remove every legacy key.

    Args:
        values: The configuration.
        own: Keys that have an effect in this one.

    Returns:
        Why each removed key has no effect (a section that held several and nothing else counts as one), and the
        removed keys whose value would have changed the training.
    """
    reasons: dict[str, str] = {}
    active: list[Active] = []
    _strip(values, (), own, reasons, active)
    return reasons, active


def ignored_warning(reasons: Mapping[str, str], file: object) -> str:
    """One text for all ignored keys, grouped by reason."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key, why in reasons.items():
        groups[why].append(key)
    lines = [f"  {', '.join(keys)} ({why})" for why, keys in groups.items()]
    return "\n".join([f"These keys of {file} have no effect here:", *lines])


def _strip(
    node: dict[str, Any], path: Path, own: Collection[Path], reasons: dict[str, str], active: list[Active]
) -> None:
    found: dict[str, str] = {}
    for key in list(node):
        legacy = None if (*path, key) in own else _legacy_of(path, key)
        if legacy is not None:
            value = node.pop(key)
            found[dotted((*path, key))] = legacy.why
            if legacy.neutral and value not in legacy.neutral:
                active.append(Active((*path, key), value, legacy))
        elif isinstance(node[key], dict):
            below: dict[str, str] = {}
            _strip(node[key], (*path, key), own, below, active)
            found |= below
            if not node[key] and key in known_children(path):
                del node[key]
    whole_section = path and len(found) > 1 and not node and len(set(found.values())) == 1
    reasons |= {dotted(path): next(iter(found.values()))} if whole_section else found


def _legacy_of(path: Path, key: str) -> Legacy | None:
    for legacy in LEGACY:
        if key in legacy.names and _matches(tuple(legacy.block.split(".")), path):
            return legacy
    return None


def _matches(pattern: tuple[str, ...], path: Path) -> bool:
    return len(pattern) == len(path) and all(a in (_ANY, b) for a, b in zip(pattern, path, strict=True))


def _block(values: dict[str, Any], path: Path) -> dict[str, Any] | None:
    node: Any = values
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None
