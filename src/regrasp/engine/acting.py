"""How a policy acts when it is evaluated: the same in a training run and in an evaluation by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from regrasp.envs.mapping import ActionMapping
from regrasp.learner.compilation import compile_policy
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.rollout.evaluation import Choose, policy_chooser
from regrasp.rollout.inference import RolloutWorker, block_size

if TYPE_CHECKING:
    from regrasp.envs.contract import VecEnv
    from regrasp.experiment import ExperimentConfig
    from regrasp.models.contract import Policy


def policy_to_evaluate(policy: Policy, config: ExperimentConfig, device: torch.device) -> Policy:
    """The policy that a training run's evaluations would run, of one that is not going to train.

    In bf16 that is the acting copy; the policy given is of no use afterwards, and its float32 weights can be freed.

    Args:
        policy: With its weights, on the CPU.
        config: `actor.model` and `env.eval.inference_block`.
        device: Where it will live.

    Raises:
        UserError: `actor.model.compile` is set for a policy that has nothing to compile.
    """
    model = config.actor.model
    apply_precision(policy, model, device)
    for _, parameter in policy.trainable("value_head"):
        parameter.requires_grad_(True)
    acting = ActingPolicy(policy, model, device).policy.eval()
    if model.compile:
        compile_policy(acting, {block_size(config.env.eval.inference_block, device)}, device)
    return acting


def evaluation_chooser(
    acting: Policy, config: ExperimentConfig, env: VecEnv, seed: int, device: torch.device
) -> Choose:
    """Deterministic actions for the evaluation environments.

    Args:
        acting: What `policy_to_evaluate` returned, or a training run's acting policy.
        config: `env.eval` and `actor.model.action_dim`.
        env: The evaluation environments.
        seed: The initial noise of a flow head is drawn from (seed, "eval", key).
        device: Where the policy lives.
    """
    rollout = RolloutWorker(acting, seed, "eval", device=device, keep_features=True)
    mapping = ActionMapping(
        config.env.eval.mapping, config.actor.model.action_dim, env.spec.action_dim, "env.eval.mapping"
    )
    return policy_chooser(rollout, mapping, config.env.eval.inference_block)
