"""GR00T with every block sharded by FSDP2, on one process: the same losses and gradients as without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from groot_toys import ACTION_DIM, keyed_noise, toy_observation, toy_policy
from torch import Tensor, nn
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from regrasp.models.groot.kernels.few_queries import KeysValues
from regrasp.models.groot.network.transformer import Attention
from regrasp.models.groot.policy import GrootPolicy

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
BATCH = 5


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def blocks(policy: GrootPolicy) -> list[nn.Module]:
    """What is wrapped by itself: every layer of the four transformers, and all of the head's smaller parts."""
    eagle, head = policy.backbone.eagle_model, policy.action_head
    parts = (
        *eagle.vision_model.vision_model.encoder.layers,
        eagle.mlp1,
        eagle.language_model.model.embed_tokens,
        *eagle.language_model.model.layers,
        *head.vl_self_attention.transformer_blocks,
        head.vlln,
        head.state_encoder,
        head.action_encoder,
        head.action_decoder,
        head.future_tokens,
        head.position_embedding,
        head.model.timestep_encoder,
        *head.model.transformer_blocks,
        policy.value_head,
        policy.noise_net,
    )
    return [part for part in parts if part is not None]


def shard(policy: GrootPolicy, mesh: DeviceMesh, *, by_block: bool = True, **options: Any) -> None:
    for block in blocks(policy) if by_block else ():
        fully_shard(block, mesh=mesh, **options)
    fully_shard(policy, mesh=mesh, **options)
    for name in (*policy.METHODS, "sft_loss"):
        register_fsdp_forward_method(policy, name)


def perturbed(policy: GrootPolicy) -> GrootPolicy:
    """With weights that are nowhere zero, so that every gradient says something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sft(policy: GrootPolicy) -> Tensor:
    features = policy.encode(policy.prepare(toy_observation(BATCH)))
    actions = 0.3 * torch.randn(BATCH, 4, ACTION_DIM, generator=torch.Generator().manual_seed(1))
    return policy.sft_loss(features, actions, torch.ones(BATCH, 4, dtype=torch.bool), keyed_noise(BATCH), repeats=2)


def ppo(policy: GrootPolicy) -> Tensor:
    inputs = policy.prepare(toy_observation(BATCH))
    with torch.no_grad():
        action = policy.act(policy.encode(inputs), keyed_noise(BATCH))
    evaluation = policy.evaluate(policy.encode(inputs), action.trace)
    assert evaluation.values is not None
    ratio = (evaluation.log_probs - action.log_probs + 0.1).exp()
    return -ratio.clamp(max=1.2).mean() + (evaluation.values - 1).square().mean()


def value(policy: GrootPolicy) -> Tensor:
    inputs = policy.prepare(toy_observation(BATCH))
    with torch.no_grad():
        features = policy.encode(inputs)
        action = policy.act(features, keyed_noise(BATCH))
    values = policy.evaluate(features, action.trace).values
    assert values is not None
    return values.square().mean()


def decode(policy: GrootPolicy) -> Tensor:
    features = policy.encode(policy.prepare(toy_observation(BATCH)))
    initial = torch.randn(BATCH, 4, 4, generator=torch.Generator().manual_seed(2))
    return policy.decode(features, initial).square().sum()


@pytest.mark.parametrize("loss", [sft, ppo, value, decode])
@pytest.mark.parametrize(
    "settings",
    [
        {"trainable": "all"},
        {"trainable": "head"},
        {"trainable": "head_without_context"},
        {"trainable": "all", "noise_method": "flow_noise", "joint_logprob": True},
    ],
    ids=["all", "head", "head_without_context", "flow_noise_joint"],
)
def test_losses_and_gradients_are_those_of_the_whole_policy(
    mesh: DeviceMesh, loss: Callable[[GrootPolicy], Tensor], settings: dict[str, Any]
) -> None:
    plain, sharded = (perturbed(toy_policy(**settings)) for _ in range(2))
    for policy in (plain, sharded):
        for _, parameter in (*policy.prepare_training(settings["trainable"]), *policy.trainable("value_head")):
            parameter.requires_grad_(True)
    shard(sharded, mesh)
    losses = [loss(policy) for policy in (plain, sharded)]
    assert torch.equal(*losses)
    for one in losses:
        one.backward()
    gradients = 0
    for (name, expected), found in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        assert isinstance(found, DTensor), name
        assert (found.grad is None) == (expected.grad is None), name
        if found.grad is not None and expected.grad is not None:
            torch.testing.assert_close(whole(found.grad), expected.grad, rtol=1e-4, atol=1e-6, msg=name)
            gradients += 1
    assert gradients > 5


def test_mixed_precision_computes_the_contexts_keys_and_values_once(
    mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, sharded = (perturbed(toy_policy()) for _ in range(2))
    shard(sharded, mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    layers: list[Attention] = []
    compute = Attention.keys_values

    def counted(layer: Attention, context: Tensor) -> KeysValues:
        layers.append(layer)
        return compute(layer, context)

    monkeypatch.setattr(Attention, "keys_values", counted)
    actions = [policy.predict(toy_observation(BATCH)) for policy in (plain, sharded)]
    torch.testing.assert_close(*actions, rtol=0.1, atol=0.1)
    assert not torch.equal(*actions)
    attending = [block.attn1 for block in sharded.action_head.model.transformer_blocks if block.attends_to_context]
    assert layers[-len(attending) :] == attending
    assert len(layers) == 2 * len(attending)


def test_a_policy_sharded_as_one_is_trained_through_what_it_returns(mesh: DeviceMesh) -> None:
    plain, sharded = (perturbed(toy_policy()) for _ in range(2))
    shard(sharded, mesh, by_block=False)
    for policy in (plain, sharded):
        value(policy).backward()
    for (name, expected), found in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None), name
        if found.grad is not None and expected.grad is not None:
            assert torch.equal(whole(found.grad), expected.grad), name
    assert plain.value_head is not None
    assert all(parameter.grad is not None for parameter in plain.value_head.parameters())


def test_a_sharded_policy_has_the_published_state(mesh: DeviceMesh) -> None:
    plain, sharded = toy_policy(), toy_policy()
    sharded.prepare_training("head")
    expected = plain.state_dict()
    shard(sharded, mesh)
    found = sharded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(whole(found[name]), tensor) for name, tensor in expected.items())
