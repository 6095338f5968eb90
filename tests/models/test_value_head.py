from __future__ import annotations

import pytest
import torch
from groot_toys import toy_observation, toy_policy
from torch import nn

from regrasp.models.config import RlHeadConfig
from regrasp.models.value_head import ValueHead

CONTEXT = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
STATE = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def build(**settings) -> ValueHead:
    head = ValueHead(4, 3, (6,), RlHeadConfig(**settings))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return head


@pytest.mark.parametrize(
    ("settings", "inputs"),
    [
        ({}, torch.cat([CONTEXT.mean(1), STATE], 1)),
        ({"value_vlm_mode": "first_token"}, torch.cat([CONTEXT[:, 0], STATE], 1)),
        ({"value_vlm_mode": "last_token"}, torch.cat([CONTEXT[:, -1], STATE], 1)),
        ({"use_vlm_value": True}, CONTEXT.mean(1)),
        ({"use_vlm_value": True, "value_vlm_mode": "first_token"}, CONTEXT[:, 0]),
        ({"use_vlm_value": True, "value_vlm_mode": "last_token"}, CONTEXT[:, -1]),
    ],
)
def test_what_the_value_is_read_from(settings, inputs):
    head = build(**settings)
    first, _, last = head.mlp
    hidden = inputs @ first.weight.T + first.bias
    expected = (hidden * torch.sigmoid(hidden)) @ last.weight.T + last.bias
    torch.testing.assert_close(head(CONTEXT, STATE), expected.squeeze(1))


@pytest.mark.parametrize("alone", [True, False])
def test_attention_is_torchs_own(alone):
    head = build(value_vlm_mode="attention", use_vlm_value=alone)
    assert head.reader is not None
    queries = head.reader.queries.expand(5, -1, -1)
    read = nn.functional.scaled_dot_product_attention(queries, head.reader.keys(CONTEXT), head.reader.values(CONTEXT))
    inputs = read.flatten(1) if alone else torch.cat([read.flatten(1), STATE], 1)
    torch.testing.assert_close(head(CONTEXT, STATE), head.mlp(inputs).squeeze(1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_policys_value_pools_padding_too():
    policy = toy_policy()
    inputs = policy.prepare(toy_observation(6))
    is_padding = inputs["input_ids"] == 0
    assert len(set(is_padding.sum(1).tolist())) > 1
    features = policy.encode(inputs)
    context = policy.action_head.process_context(features["context"])
    state = policy.action_head.encode_state(features["state"], policy.processor.config.embodiment_id)
    assert policy.value_head is not None
    linear = torch.nn.Linear(context.shape[2] + state.shape[1], 1)
    policy.value_head.mlp = torch.nn.Sequential(linear)
    everything = torch.stack([row.sum(0) / len(row) for row in context])
    expected = torch.cat([everything, state], 1) @ linear.weight[0] + linear.bias
    torch.testing.assert_close(policy.value(features), expected)
    words_and_images = torch.stack([row[~pad].mean(0) for row, pad in zip(context, is_padding, strict=True)])
    assert (words_and_images - everything).abs().max() > 1e-3


@pytest.mark.parametrize("detached", [True, False])
def test_the_gradient_of_the_value_reaches_the_action_head_unless_detached(detached):
    policy = toy_policy(detach_critic_input=detached)
    assert policy.value_head is not None
    for parameter in policy.value_head.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = policy.encode(policy.prepare(toy_observation(3)))
    policy.value(features).sum().backward()
    trained = {name.partition(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == ({"value_head"} if detached else {"value_head", "action_head"})


def test_fresh_values_are_zero_and_can_learn():
    head = build()
    head.reset_parameters(torch.Generator().manual_seed(0))
    values = head(CONTEXT, STATE)
    assert not values.any()
    values.sum().backward()
    last = head.mlp[-1]
    assert isinstance(last, torch.nn.Linear)
    assert last.weight.grad is not None
    assert last.weight.grad.abs().sum() > 0
