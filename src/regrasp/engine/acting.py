"""What acts where nothing is learned; a policy acts alike in a training run's evaluations, by itself and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from regrasp.engine.compiling import prepare_policy
from regrasp.engine.policies import choose_device, create_policy, overlay_rl_weights
from regrasp.envs.mapping import ActionMapping
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.rollout.choosers import expert_chooser, policy_chooser, random_chooser, script_chooser, zero_chooser
from regrasp.rollout.episodes import Choose
from regrasp.rollout.inference import Inference, block_size
from regrasp.rollout.state_watch import StateWatch

if TYPE_CHECKING:
    from regrasp.envs.contract import VecEnv
    from regrasp.experiment import ExperimentConfig
    from regrasp.models.contract import Policy

Split = Literal["train", "eval"]


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
    prepare_policy(acting, model, {block_size(config.env.eval.inference_block, device)}, device)
    return acting


def acting_chooser(
    acting: Policy,
    config: ExperimentConfig,
    env: VecEnv,
    split: Split,
    seed: int,
    device: torch.device,
    watch: StateWatch | None = None,
) -> Choose:
    """Deterministic actions of a policy.

    Args:
        acting: What `policy_to_evaluate` returned, or a training run's acting policy.
        config: `env.<split>`, `env.eval.inference_block` and `actor.model.action_dim`.
        env: The environments.
        split: Which block of the configuration they are of: "eval", or "train" for demonstrations.
        seed: The initial noise of a flow head is drawn from (seed, "eval" or "data", key).
        device: Where the policy lives.
        watch: Sees every state that is decided on.
    """
    role = "eval" if split == "eval" else "data"
    inference = Inference(acting, seed, role, device=device, keep_features=True, watch=watch)
    mapping = getattr(config.env, split).mapping
    place = ActionMapping(mapping, config.actor.model.action_dim, env.spec.action_dim, f"env.{split}.mapping")
    return policy_chooser(inference, place, config.env.eval.inference_block)


def create_chooser(
    acts: str,
    config: ExperimentConfig,
    env: VecEnv,
    split: Split,
    seed: int,
    rl_weights: Path | None = None,
    watch: StateWatch | None = None,
) -> Choose:
    """What acts in an evaluation or a recording by itself.

    Args:
        acts: "model", the policy of `actor.model`; "expert", the task's own; "zero", no motion; "random"; or
            `module:function`, see `script_chooser`.
        config: The experiment.
        env: The environments.
        split: See `acting_chooser`.
        seed: See `acting_chooser`.
        rl_weights: Weights of a checkpoint to lay over the model's.
        watch: See `acting_chooser`.

    Raises:
        UserError: There is no such model, expert or function, or the policy does not fit the environments.
    """
    if acts == "expert":
        return expert_chooser(env, f"env.{split}")
    if acts == "zero":
        return zero_chooser(env)
    if acts == "random":
        return random_chooser(env, seed)
    if acts != "model":
        return script_chooser(acts, env)
    mapping = getattr(config.env, split).mapping
    policy = create_policy(config.actor.model, mapping, env.spec, seed, f"env.{split}.mapping")
    if rl_weights is not None:
        overlay_rl_weights(policy, rl_weights)
    device = choose_device()
    return acting_chooser(policy_to_evaluate(policy, config, device), config, env, split, seed, device, watch)
