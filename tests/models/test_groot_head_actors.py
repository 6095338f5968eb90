"""Ways of learning from critics that train a GR00T's own head: SAC-Flow's density and gradients, and selection."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms import flow
from regrasp.models.config import QHeadConfig
from regrasp.models.groot.head_actors import CANDIDATES, FlowActor
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.selection_config import SelectionConfig
from regrasp.models.groot.steering import ACTIONS, DECISION, Sizes
from regrasp.seeding import KeyedNoise
from rl_toys import ACTION_DIM, CHUNK, groot_policy, observation

BATCH, STEPS, LEVEL = 6, 3, 0.7
HORIZON, WIDTH = 3, 2


class LinearFlow:
    """A flow whose velocity is x W + b at all times, and whose chunk is its first two steps."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64).requires_grad_(True)
        self.bias = torch.randn(WIDTH, generator=generator, dtype=torch.float64)

    def _velocity(self, x: Tensor, step_index: Tensor, rows: Tensor | None) -> Tensor:
        return x @ self.weight + self.bias

    def denoise(self, features: TensorDict, initial_noise: Tensor) -> Tensor:
        return flow.denoise_ode(self._velocity, initial_noise, STEPS).actions[:, :2].flatten(1)

    def sample(self, features: TensorDict, initial_noise: Tensor, step_noise: Tensor) -> tuple[Tensor, Tensor]:
        rule = flow.StepRule("flow_sde", LEVEL)
        found = flow.denoise(self._velocity, initial_noise, STEPS, rule, step_noise, None)
        return found.actions[:, :2].flatten(1), found.log_probs[:, :2].flatten(1).sum(1)

    def flow_errors(self, features: TensorDict, chunk: Tensor, initial_noise: Tensor, time: Tensor) -> Tensor:
        raise AssertionError("SAC-Flow imitates nothing")


def closed_form(given: LinearFlow, weight: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The chunk as a linear function of all that is drawn, and the density of that, by the recursion of its matrices.

    x' = x + v d - s^2 d / (2 (1 - t)) (x - t v), with noise s sqrt(d), s^2 = a^2 (1 - t) / max(t, d).
    """
    drawn = noise.view(len(noise), 1 + STEPS, HORIZON, WIDTH)
    d, x, log_prob = 1 / STEPS, drawn[:, 0], torch.zeros(len(noise), dtype=torch.float64)
    identity = torch.eye(WIDTH, dtype=torch.float64)
    log_prob = log_prob - 0.5 * (drawn[:, 0, :2].square() + math.log(2 * math.pi)).sum((1, 2))
    for k in range(STEPS):
        t = k / STEPS
        pull = 0.5 * d * LEVEL**2 / max(t, d)
        matrix = identity * (1 - pull) + weight * (d + pull * t)
        constant = given.bias * (d + pull * t)
        std = math.sqrt(d * LEVEL**2 / max(t, d) * (1 - t))
        x = x @ matrix + constant + std * drawn[:, k + 1]
        log_prob = log_prob - (0.5 * drawn[:, k + 1, :2].square() + 0.5 * math.log(2 * math.pi) + math.log(std)).sum(
            (1, 2)
        )
    return x[:, :2].flatten(1), log_prob


def test_sac_flows_chunk_density_and_gradient_are_those_of_a_linear_flow_in_closed_form() -> None:
    given = LinearFlow()
    actor = FlowActor(Sizes(1, 1, (2, WIDTH), (HORIZON, WIDTH)), STEPS)
    noise = torch.randn(BATCH, actor.noise_width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    empty = TensorDict({}, batch_size=[BATCH])
    proposal = actor.propose(empty, empty, noise, given)
    expected, density = closed_form(given, given.weight, noise)
    torch.testing.assert_close(proposal.actions, expected)
    torch.testing.assert_close(proposal.log_probs, density)
    wanted = torch.linspace(-1, 1, 2 * WIDTH, dtype=torch.float64)
    (own,) = torch.autograd.grad((proposal.actions - wanted).square().sum(), given.weight)
    step = 1e-6
    for row in range(WIDTH):
        for column in range(WIDTH):
            moved = torch.zeros_like(given.weight)
            moved[row, column] = step
            ends = [
                (closed_form(given, given.weight.detach() + sign * moved, noise)[0] - wanted).square().sum()
                for sign in (1, -1)
            ]
            assert float(own[row, column]) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-5)


def trained(proposal: Literal["sac_flow", "selection"], **changes: Any) -> GrootPolicy:
    heads = QHeadConfig(hidden=(8,), num_q_heads=3, num_decisions=4)
    return groot_policy(proposal=proposal, add_q_head=True, add_value_head=False, q_head=heads, **changes)


def features_of(policy: GrootPolicy) -> TensorDict:
    with torch.no_grad():
        features = policy.encode(policy.prepare(observation(BATCH)))
    features[DECISION] = torch.ones(BATCH, dtype=torch.long)
    return features


def keyed() -> KeyedNoise:
    return KeyedNoise(5, "train", [(row, 0, 1) for row in range(BATCH)])


@pytest.mark.parametrize("method", ["flow_sde", "flow_noise"])
def test_its_density_is_that_of_the_heads_own_joint_chain(method: Any) -> None:
    policy = trained("sac_flow", noise_method=method, joint_logprob=True)
    plain = groot_policy(noise_method=method, joint_logprob=True, add_value_head=False)
    plain.load_state_dict({name: value for name, value in policy.state_dict().items() if "q_head" not in name})
    with torch.no_grad():
        action = plain.act(features_of(plain), keyed())
        chunk = policy.act(features_of(policy), keyed()).trace[ACTIONS]
    expected = action.trace["chain"][:, -1, :CHUNK, :ACTION_DIM].flatten(1)
    torch.testing.assert_close(chunk, expected)
    shape = action.trace["chain"].shape[2:]
    steps = policy.settings.denoising_steps
    noise = torch.cat([keyed().normal("initial", *shape)[:, None], keyed().normal("step", steps, *shape)], 1).flatten(1)
    proposal = policy.propose(features_of(policy), action.trace, noise)
    torch.testing.assert_close(proposal.actions, expected)
    torch.testing.assert_close(proposal.log_probs, action.log_probs.flatten(1).sum(1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("proposal", ["sac_flow", "selection"])
def test_the_head_learns_and_a_plain_model_acts(proposal: Any) -> None:
    policy = trained(proposal, trainable="head_without_context")
    names = {id(weight): name for name, weight in policy.named_parameters()}
    moving = policy.prepare_training("proposal")
    assert moving
    names = {id(weight): name for name, weight in policy.named_parameters()}
    assert all(names[id(weight)].startswith("action_head.") for _, weight in moving)
    noise = torch.randn(BATCH, policy.noise_width, generator=torch.Generator().manual_seed(1))
    if proposal == "sac_flow":
        loss = policy.propose(features_of(policy), TensorDict({}, [BATCH]), noise).actions.square().sum()
    else:
        chunk = torch.zeros(BATCH, CHUNK * ACTION_DIM)
        loss = policy.imitation_errors(features_of(policy), chunk, noise[:, None]).sum()
    loss.backward()
    assert {id(p) for p in policy.parameters() if p.grad is not None} == {id(weight) for _, weight in moving}
    assert policy.student() is None
    with torch.no_grad():
        done = policy.act(features_of(policy), keyed(), deterministic=True).actions
        plain = groot_policy(add_value_head=False)
        plain.load_state_dict({name: value for name, value in policy.state_dict().items() if "q_head" not in name})
        expected = plain.act(features_of(plain), keyed(), deterministic=True).actions
    assert done.equal(expected)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("proposal", ["selection", None])
def test_imitation_errors_are_the_supervised_loss(proposal: Any, repeats: int) -> None:
    policy = groot_policy() if proposal is None else trained(proposal)
    head = policy.config.action_head_cfg
    shape = (head.action_horizon, head.max_action_dim)
    chunk = torch.rand(BATCH, CHUNK * ACTION_DIM, generator=torch.Generator().manual_seed(2)) * 2 - 1
    drawn = keyed()
    flow, times = drawn.normal("flow", repeats, *shape), drawn.normal("time", repeats)
    noise = torch.cat([flow.flatten(2), times[..., None]], 2)
    own = policy.imitation_errors(features_of(policy), chunk, noise)
    actions = policy.processor.unnormalize_actions(chunk.view(BATCH, CHUNK, ACTION_DIM))
    padded = torch.zeros(BATCH, head.action_horizon, ACTION_DIM)
    padded[:, :CHUNK] = actions
    valid = (torch.arange(head.action_horizon) < CHUNK).expand(BATCH, -1)
    if head.action_horizon > CHUNK:
        padded[:, CHUNK:] = policy.processor.unnormalize_actions(torch.zeros(BATCH, 1, ACTION_DIM))
    supervised = policy.sft_loss(features_of(policy), padded, valid, keyed(), repeats)
    torch.testing.assert_close(own.mean(), supervised, rtol=1e-4, atol=1e-5)


def test_critics_choose_among_the_heads_own_chunk_and_slow_offsets_to_it() -> None:
    config = SelectionConfig(candidates=5, scale=(0.3,), base_updates=1, random_updates=1, random_share=0.0)
    policy = trained("selection", selection=config)
    own = policy.act(features_of(policy), keyed(), deterministic=True).trace[ACTIONS]
    chosen, candidates = {}, torch.empty(0)
    for update in range(3):
        policy.begin_update(update)
        with torch.no_grad():
            trace = policy.act(features_of(policy), keyed()).trace
        candidates = trace[CANDIDATES]
        assert candidates.shape == (BATCH, 6, CHUNK * ACTION_DIM)
        torch.testing.assert_close(candidates[:, 0], own)
        assert (candidates - own[:, None]).abs().max() <= 0.3 * 1.5 + 1e-6
        chosen[update] = trace[ACTIONS]
    torch.testing.assert_close(chosen[0], own)
    assert not chosen[1].equal(own)
    assert policy.q_head is not None
    empty = TensorDict({}, batch_size=[BATCH])
    features = features_of(policy)
    with torch.no_grad():
        values = [policy.q_head(features, empty, features[DECISION], c).amin(0) for c in candidates.unbind(1)]
    best = torch.stack(values, 1).argmax(1)
    torch.testing.assert_close(chosen[2], candidates[torch.arange(BATCH), best])


def test_offsets_of_another_width_are_refused() -> None:
    settings = dataclasses.replace(trained("selection").settings, selection=SelectionConfig(scale=(0.5, 0.5)))
    assert [str(problem.key) for problem in settings.problems()] == ["actor.model.selection.scale"]
