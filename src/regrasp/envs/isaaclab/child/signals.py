"""Which of a task's terms tell success and reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regrasp.envs.isaaclab.child.observations import as_tensor
from regrasp.envs.isaaclab.child.options import TaskOptions
from regrasp.errors import UserError

_SUCCESS_NAMES = ("success", "task_success")


def success_signal(env: Any, options: TaskOptions) -> Callable[[], Any] | None:
    """A function that gives the task's success (N,) bool after a step, or None if the task does not tell it.

    Manager-based tasks tell it by a termination term, direct ones by an attribute.

    Raises:
        UserError: The term named in the configuration does not exist, or the reward needs one and there is none.
    """
    manager = getattr(env, "termination_manager", None)
    name = options.success_term
    if manager is None:
        value = as_tensor(getattr(env, name, None)) if name else None
        if name and tuple(getattr(value, "shape", ())) == (env.num_envs,):
            return lambda: as_tensor(getattr(env, name)).bool()
        terms = f"the name of a tensor of shape ({env.num_envs},) that the direct environment keeps in `_get_dones`"
    else:
        names = list(manager.active_terms)
        name = name or next((name for name in _SUCCESS_NAMES if name in names), None)
        if name in names:
            return lambda: as_tensor(manager.get_term(name)).clone()
        terms = f"one of the task's terminations {names}"
    if options.success_term is not None or options.reward_source == "success":
        raise UserError(
            "The task has no such termination"
            if options.success_term
            else "The reward is to be the task's success, but the task does not tell which termination is its success",
            key=f"{options.location}.mapping.success_term",
            value=options.success_term,
            expected=terms,
            fix="name it; null looks for a termination called success or task_success",
        )
    return None


def check_reward_source(env: Any, options: TaskOptions) -> None:
    """Check that a manager-based task has a reward where its own reward is asked for.

    Raises:
        UserError: It has none, as the stock imitation tasks.
    """
    manager = getattr(env, "reward_manager", None)
    if options.reward_source == "task" and manager is not None and not manager.active_terms:
        raise UserError(
            "The task has no reward terms, so there is nothing to learn from",
            key=f"{options.location}.mapping.reward_source",
            value="task",
            expected="success, for a task without rewards",
            fix="set reward_source: success, which rewards the first step of success with 1",
        )


def zero_weight_terms(env: Any) -> tuple[str, ...]:
    """Reward terms of weight 0, which Isaac Lab's reward manager never calls."""
    manager = getattr(env, "reward_manager", None)
    if manager is None:
        return ()
    return tuple(name for name in manager.active_terms if manager.get_term_cfg(name).weight == 0.0)


def call_zero_weight_terms(env: Any, options: TaskOptions) -> None:
    """Have the named terms called once per step, before the rewards are computed; what they return is dropped.

    Raises:
        UserError: A name is no reward term of weight 0.
    """
    skipped = zero_weight_terms(env)
    for name in options.call_zero_weight_terms:
        if name not in skipped:
            raise UserError(
                "The task has no such reward term of weight 0",
                key=f"{options.location}.mapping.call_zero_weight_terms",
                value=name,
                expected=f"some of {list(skipped)}" if skipped else "nothing: the task has no reward term of weight 0",
                fix="correct or remove the name; a term with another weight is called by Isaac Lab itself",
            )
    if not options.call_zero_weight_terms:
        return
    manager = env.reward_manager
    compute = manager.compute

    def compute_with_skipped(dt: float) -> Any:
        for name in options.call_zero_weight_terms:
            term = manager.get_term_cfg(name)
            if term.weight == 0.0:  # a curriculum may have raised it
                term.func(env, **term.params)
        return compute(dt=dt)

    manager.compute = compute_with_skipped
