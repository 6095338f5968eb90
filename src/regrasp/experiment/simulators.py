"""The values of the block `env` before they are checked: whose keys they are, and the other names of some."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from regrasp.config.describe import Spec, dotted
from regrasp.config.foreign import take_foreign
from regrasp.envs.registry import EnvTypes
from regrasp.errors import UserError, spelled
from regrasp.experiment.env import EnvBlocks

_NAMES = ("train", "eval")


@dataclass
class Settled:
    """What was found in the block `env`."""

    renamed: dict[str, str] = field(default_factory=dict)
    """Keys as they are now, and as they were written."""
    problems: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def settle_simulators(envs: Any, task: str | None, overridden: Collection[str]) -> Settled:
    """Give every simulator the keys that it understands, in place.

    Args:
        envs: The block `env`; it may be anything, mistakes are left for the check of the types.
        task: The task of `--task`, which moves the environments to its simulator.
        overridden: Keys that the user set; an `env_type` among them stays.
    """
    found, known = Settled(), EnvTypes()
    blocks = {name: envs[name] for name in _NAMES if isinstance(envs, dict) and isinstance(envs.get(name), dict)}
    moved = {name for name, env in blocks.items() if task and f"env.{name}.env_type" not in overridden}
    moved = {name for name in moved if _moves(blocks[name], task or "", known)}
    if isinstance(envs, dict):
        _share(envs, blocks, known, found)
    for name, env in blocks.items():
        if isinstance(env.get("env_type"), str) and env["env_type"] in known:
            _settle(env, name, known, found, task if name in moved else None)
    return found


def _moves(env: dict[str, Any], task: str, known: EnvTypes) -> bool:
    """Whether a task moves the environments to another simulator, which becomes their `env_type`."""
    present, owner = env.get("env_type"), known.of_task(task)
    leaves = isinstance(present, str) and present in known and known[present].owns_task(task) is False
    if leaves and owner is not None:
        env["env_type"] = owner
    return leaves and owner is not None


def _share(envs: dict[str, Any], blocks: dict[str, dict[str, Any]], known: EnvTypes, found: Settled) -> None:
    """Spread each block `env.<env_type>` over the environments of that type; keys that it cannot have stay."""
    for env_type in [key for key in envs if key not in _NAMES and key in known]:
        shared, targets = envs[env_type], known[env_type].shared
        if shared is None:
            del envs[env_type]
        if not isinstance(shared, dict):
            continue
        users = {name: env for name, env in blocks.items() if env.get("env_type") == env_type}
        for key in targets.keys() & shared.keys():
            value, (*parents, last) = shared.pop(key), targets[key]
            for name, env in users.items():
                block = env.setdefault(parents[0], {}) if parents else env
                if isinstance(block, dict) and block.get(last) is None:
                    block[last] = value
                    found.renamed[dotted(("env", name, *parents, last))] = f"env.{env_type}.{key}"
        if not shared:
            del envs[env_type]
        if not users:
            found.warnings.append(f"env.{env_type} has no effect: no environment has env_type {env_type}.")


def _settle(env: dict[str, Any], name: str, known: EnvTypes, found: Settled, task: str | None) -> None:
    """Rename the mapping, drop its nulls, which stand for defaults, and the keys of other simulators."""
    table = EnvBlocks(name)
    kind = table[env["env_type"]]
    own = Spec(kind)
    _rename_mapping(env, name, own, known, found)
    mapping, keys = env.get("mapping"), own.child("mapping")
    if isinstance(mapping, dict) and keys is not None:
        for key in [key for key, value in mapping.items() if value is None and keys.child(key)]:
            del mapping[key]
    foreign = [key for key in take_foreign(env, kind, table, ("env", name)) if key.value is not None]
    if foreign and task:
        idle = ", ".join(key.key for key in foreign)
        found.warnings.append(f"{task} runs in {env['env_type']}; without effect there: {idle}.")
    elif foreign:
        found.problems += [
            UserError(
                f"The key has an effect with {key.owner} only",
                key=key.key,
                value=key.value,
                expected=f"{spelled(key.default)} with env_type {env['env_type']}",
                fix=f"remove it, or set env.{name}.env_type={key.owner}",
            )
            for key in foreign
        ]


def _rename_mapping(env: dict[str, Any], name: str, own: Spec, known: EnvTypes, found: Settled) -> None:
    """Give the block `mapping` its name where it was written under an alias."""
    strangers = [key for key in env if own.child(key) is None]
    alias = next((key for key in strangers if any(known[other].mapping_alias == key for other in known)), None)
    if alias is None:
        return
    block, key = env.pop(alias), f"env.{name}.{alias}"
    if "mapping" not in env:
        env["mapping"] = block
        found.renamed[f"env.{name}.mapping"] = key
        return
    found.problems.append(
        UserError(
            "Two names of one block",
            key=key,
            value=block,
            expected=f"{key} or env.{name}.mapping, not both: they are two names of the same block",
            fix=f"keep env.{name}.mapping and remove {key}, or set the keys of {key} itself",
        )
    )
