"""What trains: one embodiment's slot of the projectors, and adapters on the language model."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from groot_toys import ACTION_DIM, keyed_noise, toy_config, toy_observation, toy_policy
from safetensors.torch import load_file
from torch import Tensor, nn

from regrasp.checkpoint.hub_folder import load_safetensors
from regrasp.errors import UserError
from regrasp.models.groot.checkpoint import load_groot
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.network.action_head import ActionHead
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.lora_config import LoraConfig

SLOT = 2
NUM_SLOTS = 3
BATCH = 6
LORA = LoraConfig(rank=3, alpha=5)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def is_projector(name: str) -> bool:
    return name.endswith((".W", ".b"))


def state_of(policy: GrootPolicy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def sft_steps(policy: GrootPolicy, parameters: Sequence[nn.Parameter], *, weight_decay: float, count: int = 4) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=weight_decay)
    inputs = policy.prepare(toy_observation(BATCH))
    actions = torch.randn(BATCH, 4, ACTION_DIM, generator=torch.Generator().manual_seed(1)) * 0.3
    valid = torch.ones(BATCH, 4, dtype=torch.bool)
    for step in range(count):
        optimizer.zero_grad()
        features = policy.encode(inputs)
        policy.sft_loss(features, actions, valid, keyed_noise(BATCH, seed=step)).backward()
        optimizer.step()


def test_training_one_slot_is_training_all_of_them_seen_from_the_slot() -> None:
    whole, apart = toy_policy(), toy_policy()
    before = state_of(whole)
    sft_steps(whole, [p for _, p in whole.trainable("head")], weight_decay=0.01)
    sft_steps(apart, [p for _, p in apart.prepare_training("head")], weight_decay=0.01)
    expected, found = state_of(whole), state_of(apart)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if is_projector(name):
            assert not torch.equal(tensor[SLOT], before[name][SLOT]), name
            assert torch.equal(tensor[SLOT], expected[name][SLOT]), name
            assert torch.equal(tensor[:SLOT], before[name][:SLOT]), "weight decay used to shrink the others"
        else:
            assert torch.equal(tensor, expected[name]), name


def test_only_the_slot_has_gradients_and_moments() -> None:
    policy = toy_policy()
    projectors = {name: p.shape for name, p in policy.named_parameters() if is_projector(name)}
    assert len(projectors) == 14
    before = sum(p.numel() for _, p in policy.trainable("head"))
    trained = policy.prepare_training("head")
    saved = (NUM_SLOTS - 1) * sum(shape.numel() // NUM_SLOTS for shape in projectors.values())
    assert sum(p.numel() for _, p in trained) == before - saved
    assert {name for name, _ in trained} == {name for name, p in policy.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for _, p in trained])
    features = policy.encode(policy.prepare(toy_observation(BATCH)))
    policy.decode(features, torch.randn(BATCH, 4, 4)).sum().backward()
    optimizer.step()
    moments = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    assert moments == before - saved
    slots = {name: p for name, p in trained if ".slot_" in name}
    assert len(slots) == len(projectors)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in slots.values())
    for name in projectors:
        layer, tensor = name.rsplit(".", 1)
        assert not getattr(policy.get_submodule(layer), tensor).requires_grad


def test_published_sizes_train_a_third_less() -> None:
    config = GrootConfig().action_head_cfg
    with torch.device("meta"):
        head = ActionHead(config, use_dropout=False)
    head.train_only(31)
    slot = 64 * 1024 + 1024 + 1024 * 1536 + 1536  # state encoder
    slot += 32 * 1536 + 1536 + 3072 * 1536 + 1536 + 1536 * 1536 + 1536  # action encoder
    slot += 1024 * 1024 + 1024 + 1024 * 32 + 32  # action decoder
    assert sum(p.numel() for p in head.parameters()) == pytest.approx(1068.8e6 - 31 * slot, rel=1e-4)
    assert 31 * slot == pytest.approx(305.5e6, rel=1e-3)


def test_a_saved_folder_is_bit_equal_outside_the_slot(tmp_path: Path) -> None:
    policy = toy_policy()
    policy.save(tmp_path / "before")
    sft_steps(policy, [p for _, p in policy.prepare_training("head")], weight_decay=0.1)
    policy.save(tmp_path / "after")
    before, after = (load_safetensors(tmp_path / name) for name in ("before", "after"))
    assert before.keys() == after.keys()
    for name in filter(is_projector, before):
        assert torch.equal(before[name][:SLOT], after[name][:SLOT])
        assert not torch.equal(before[name][SLOT], after[name][SLOT])
    frozen_shard = load_file(tmp_path / "after" / "model-00001-of-00002.safetensors")
    assert frozen_shard
    assert not any(is_projector(name) for name in frozen_shard)
    again = load_groot(tmp_path / "after")
    assert torch.equal(decide(again, horizon=True), decide(policy, horizon=True))


@torch.no_grad()
def decide(policy: GrootPolicy, *, horizon: bool = False) -> Tensor:
    features = policy.encode(policy.prepare(toy_observation(BATCH)))
    action = policy.act(features, keyed_noise(BATCH), deterministic=True)
    return action.trace["chain"][:, -1] if horizon else action.actions


def test_weights_are_loaded_into_what_trains() -> None:
    source, target = toy_policy(seed=1), toy_policy(seed=2)
    target.prepare_training("head")
    assert not torch.equal(decide(source), decide(target))
    target.load_state_dict(source.state_dict())
    assert torch.equal(decide(source), decide(target))
    target.load_state_dict({"backbone.eagle_model.mlp1.0.bias": torch.zeros(24)}, strict=False)
    assert target.state_dict().keys() == source.state_dict().keys()


def test_a_copy_trains_by_itself() -> None:
    policy = toy_policy()
    trained = [p for _, p in policy.prepare_training("head")]
    start, actions = copy.deepcopy(policy), decide(policy)
    sft_steps(policy, trained, weight_decay=0.0)
    assert not torch.equal(decide(policy), actions)
    assert torch.equal(decide(start), actions)
    policy.prepare_training("head")
    assert [p for _, p in policy.prepare_training("head")] == trained


# Adapters


def lora_policy(**settings: Any) -> GrootPolicy:
    return toy_policy(lora=LORA, **settings)


def language_weights(policy: GrootPolicy) -> int:
    words = toy_config().eagle_cfg.text_config
    heads, groups = words.num_attention_heads * words.head_dim, words.num_key_value_heads * words.head_dim
    ends = [(words.hidden_size, heads), (words.hidden_size, groups), (words.hidden_size, groups)]
    ends += [(heads, words.hidden_size), *[(words.hidden_size, words.intermediate_size)] * 3]
    return words.num_hidden_layers * LORA.rank * sum(a + b for a, b in ends)


def test_adapters_are_single_precision_beside_weights_that_are_not() -> None:
    policy = lora_policy().to(torch.bfloat16)
    policy.prepare_training("head")
    formats = {parameter.dtype for name, parameter in policy.named_parameters() if ".lora_" in name}
    assert formats == {torch.float32}


@pytest.mark.parametrize("trainable", ["head", "head_without_context"])
def test_adapters_train_beside_the_head(trainable: str) -> None:
    policy, plain = lora_policy(trainable=trainable), toy_policy(trainable=trainable)
    before = decide(policy)
    state = torch.random.get_rng_state()
    trained = policy.prepare_training(trainable)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(decide(policy), before), "an adapter starts at zero"
    names = {name for name, _ in trained}
    expected = {name for name, _ in plain.prepare_training(trainable)}
    added = names - expected
    assert expected <= names
    assert {name.split(".")[-4] for name in added} == set(PROJECTIONS)
    assert sum(p.numel() for name, p in trained if name in added) == language_weights(policy)
    frozen = {name: p.clone() for name, p in policy.named_parameters() if not p.requires_grad}
    policy.train()
    sft_steps(policy, [p for _, p in trained], weight_decay=0.1)
    policy.eval()
    own = dict(policy.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in frozen.items())
    assert all(own[name].abs().sum() > 0 for name in added)
    assert policy.prepare_training(trainable) == trained


def adapted() -> GrootPolicy:
    """A policy whose adapters say something."""
    policy = lora_policy()
    generator = torch.Generator().manual_seed(4)
    for _, parameter in policy.prepare_training("head"):
        with torch.no_grad():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def test_merged_adapters_are_the_update_of_the_weights() -> None:
    policy = adapted()
    state, merged = policy.state_dict(), policy.published_state()
    assert merged.keys() == toy_policy().state_dict().keys()
    layer = "backbone.eagle_model.language_model.model.layers.1.mlp.up_proj"
    update = torch.einsum("or,ri->oi", state[f"{layer}.lora_B.default.weight"], state[f"{layer}.lora_A.default.weight"])
    expected = state[f"{layer}.base_layer.weight"] + 5 / 3 * update
    torch.testing.assert_close(merged[f"{layer}.weight"], expected)
    plain = toy_policy()
    assert not torch.allclose(decide(plain), decide(policy), atol=1e-3)
    plain.load_state_dict(merged)
    torch.testing.assert_close(decide(plain), decide(policy), atol=1e-5, rtol=1e-5)


def test_a_saved_folder_needs_no_adapters(tmp_path: Path) -> None:
    policy = adapted()
    policy.save(tmp_path)
    assert not any("lora" in name or "base_layer" in name for name in load_safetensors(tmp_path))
    again = load_groot(tmp_path)
    torch.testing.assert_close(decide(again, horizon=True), decide(policy, horizon=True), atol=1e-5, rtol=1e-5)


def test_the_state_resumes_bit_for_bit() -> None:
    policy, resumed = adapted(), lora_policy()
    resumed.prepare_training("head")
    resumed.load_state_dict(state_of(policy))
    assert torch.equal(decide(resumed), decide(policy))


def test_without_peft_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="peft") as caught:
        toy_policy(lora=LORA).prepare_training("head")
    assert "peft" in str(caught.value.fix)
