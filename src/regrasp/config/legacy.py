"""Keys of RLinf's configuration files that are read but have no effect here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from regrasp.config.describe import Path, dotted
from regrasp.errors import UserError

NO_EFFECT: dict[str, str] = {
    "for text generation": """
        runner.seq_length runner.max_prompt_length algorithm.sampling_params.do_sample
        algorithm.sampling_params.temperature_train algorithm.sampling_params.temperature_eval
        algorithm.sampling_params.top_k algorithm.sampling_params.top_p algorithm.sampling_params.repetition_penalty
        algorithm.sampling_params.add_BOS algorithm.length_params.max_new_token algorithm.length_params.max_length
        algorithm.length_params.min_length""",
    "a policy is given as actor.model.model_path": "runner.eval_policy_path",
    "rewards are not scaled": "algorithm.reward_coef env.*.reward_coef",
    "no rollout is filtered out": """
        algorithm.filter_rewards algorithm.rewards_lower_bound algorithm.rewards_upper_bound""",
    "losses are averaged over the valid samples": "algorithm.loss_agg_func",
    "processes and queues need no names": """
        env.group_name env.channel.name env.channel.queue_name env.channel.queue_size
        rollout.group_name rollout.channel.name rollout.channel.queue_name rollout.channel.queue_size
        actor.group_name actor.channel.name actor.channel.queue_name actor.channel.queue_size""",
    "weights stay where they are used": "env.enable_offload rollout.enable_offload actor.enable_offload",
    "rewards are the task's own": "env.*.use_rel_reward",
    "an evaluation's episodes are one each": "env.eval.group_size",
    "every episode has its own seed": "env.*.use_fixed_reset_state_ids",
    "the mapping's task_description is the instruction": "env.*.init_params.task_description",
    "an evaluation runs every episode to its end": "env.eval.auto_reset env.eval.max_steps_per_rollout_epoch",
    "the policy runs inside Regrasp": "rollout.mode rollout.backend rollout.pipeline_stage_num",
    "the engine chooses": "actor.training_backend",
    "code inside a checkpoint is never run": "actor.model.trust_remote_code",
    "robots are described by the mapping": "actor.model.policy_setup",
    "GR00T's log-probability is the Gaussian density either way, and 0 where a step is deterministic": """
        actor.model.rl_head_config.safe_get_logprob""",
    "GR00T's value head reads context and state, as in RLinf; only pi0's reads action tokens": """
        actor.model.rl_head_config.chunk_critic_input""",
    "sharding is set up by the engine": """
        actor.fsdp_config.strategy actor.fsdp_config.sharding_strategy actor.fsdp_config.gradient_checkpointing
        actor.fsdp_config.cpu_offload actor.fsdp_config.offload_pin_memory actor.fsdp_config.reshard_after_forward
        actor.fsdp_config.enable_gradient_accumulation actor.fsdp_config.forward_prefetch
        actor.fsdp_config.limit_all_gathers actor.fsdp_config.backward_prefetch actor.fsdp_config.use_orig_params
        actor.fsdp_config.use_liger_kernel actor.fsdp_config.fsdp_size actor.fsdp_config.mixed_precision.param_dtype
        actor.fsdp_config.mixed_precision.reduce_dtype actor.fsdp_config.mixed_precision.buffer_dtype
        actor.fsdp_config.amp.enabled actor.fsdp_config.amp.precision actor.fsdp_config.amp.use_grad_scaler""",
    "rewards come from the simulator": "reward.use_reward_model",
    "values come from the policy's value head": "critic.use_critic_model",
}
"""The keys without effect, by the reason. `*` stands for any one key."""

NEUTRAL: dict[str, Any] = {
    "runner.eval_policy_path": None,
    "algorithm.reward_coef": 1.0,
    "env.*.reward_coef": 1.0,
    "algorithm.filter_rewards": False,
    "reward.use_reward_model": False,
    "critic.use_critic_model": False,
}
"""The value that asks for nothing; another one would change the training, so it is an error."""

DUPLICATES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("rollout", "model", "model_path"), ("actor", "model", "model_path")),
    (("rollout", "model", "precision"), ("actor", "model", "precision")),
    (("rollout", "model", "obs_converter_type"), ("actor", "model", "obs_converter_type")),
    (("rollout", "model", "embodiment_tag"), ("actor", "model", "embodiment_tag")),
    (("actor", "model", "rl_head_config", "add_value_head"), ("actor", "model", "add_value_head")),
    (("env", "train", "group_size"), ("algorithm", "group_size")),
)
"""Keys that RLinf writes twice, and the one that counts."""

SYNONYMS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("actor", "model", "rl_head_config", "noise_method"), "reinflow", "flow_noise"),
)
"""Values with another name in RLinf: the key, the value's name there, and its name here."""

_REASONS: dict[Path, str] = {tuple(key.split(".")): why for why, keys in NO_EFFECT.items() for key in keys.split()}
_PATHS = [*_REASONS, *(copy for copy, _ in DUPLICATES)]


def known_children(path: Path) -> tuple[str, ...]:
    """The legacy keys, duplicates and legacy sections directly below a path."""
    depth = len(path)
    below = (str(pattern[depth]) for pattern in _PATHS if len(pattern) > depth and _matches(pattern[:depth], path))
    return tuple(dict.fromkeys(name for name in below if name != "*"))


def merge_duplicates(values: dict[str, Any]) -> list[str]:
    """Remove the keys that RLinf writes twice; a warning for each that disagrees with the one that counts.

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
    """Give the values that RLinf names otherwise their names here, in place."""
    for path, theirs, ours in SYNONYMS:
        block = _block(values, path[:-1])
        if block is not None and block.get(path[-1]) == theirs:
            block[path[-1]] = ours


def strip_legacy(values: dict[str, Any], own: Collection[Path] = ()) -> tuple[dict[str, str], list[UserError]]:
    """Remove every legacy key.

    Args:
        values: The configuration.
        own: Keys that have an effect in this one.

    Returns:
        Why each removed key has no effect (a section that held several and nothing else counts as one), and a problem
        for each whose value would have changed the training.
    """
    problems: list[UserError] = []

    def strip(node: dict[str, Any], above: Path) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in list(node):
            path = (*above, name)
            pattern = next((one for one in _REASONS if path not in own and _matches(one, path)), None)
            if pattern is not None:
                found[dotted(path)] = _REASONS[pattern]
                problems.extend(_unsupported(dotted(path), node.pop(name), pattern))
            elif isinstance(node[name], dict):
                found |= strip(node[name], path)
                if not node[name] and name in known_children(above):
                    del node[name]
        whole_section = above and len(found) > 1 and not node and len(set(found.values())) == 1
        return {dotted(above): next(iter(found.values()))} if whole_section else found

    return strip(values, ()), problems


def _unsupported(key: str, value: Any, pattern: Path) -> Iterator[UserError]:
    """The mistake of a legacy key whose value asks for what is not done here, if it does."""
    neutral = NEUTRAL.get(dotted(pattern), value)
    if value != neutral:
        text = "null" if neutral is None else str(neutral).lower()
        expected, fix = f"{text}: {_REASONS[pattern]}", f"set {key} to {text}, or remove it"
        yield UserError("Not supported", key=key, value=value, expected=expected, fix=fix)


def ignored_warning(reasons: Mapping[str, str], file: object) -> str:
    """One text for all ignored keys, grouped by reason."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key, why in reasons.items():
        groups[why].append(key)
    lines = [f"  {', '.join(keys)} ({why})" for why, keys in groups.items()]
    return "\n".join([f"These keys of {file} have no effect here:", *lines])


def _matches(pattern: Path, path: Path) -> bool:
    return len(pattern) == len(path) and all(a in ("*", b) for a, b in zip(pattern, path, strict=True))


def _block(values: dict[str, Any], path: Path) -> dict[str, Any] | None:
    node: Any = values
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None
