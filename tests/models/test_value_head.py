from __future__ import annotations

import pytest
import torch
from groot_toys import toy_settings

from regrasp.models.value_head import ValueHead

CONTEXT = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
STATE = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def build(**settings) -> ValueHead:
    head = ValueHead(4, 3, toy_settings(value_head_hidden=(6,), **settings))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return head


@pytest.mark.parametrize(
    ("settings", "inputs"),
    [
        ({}, torch.cat([CONTEXT.mean(1), STATE], 1)),
        ({"value_vlm_mode": "last_token"}, torch.cat([CONTEXT.mean(1), STATE], 1)),
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
