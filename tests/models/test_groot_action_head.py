from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from groot_toys import keyed_noise, toy_config, toy_observation, toy_processor, toy_settings
from torch import Tensor

from regrasp.models.groot.config import ActionHeadConfig, GrootConfig
from regrasp.models.groot.network.action_head import ActionHead
from regrasp.models.groot.network.backbone import Backbone
from regrasp.models.groot.policy import GrootPolicy

SLOT = 2
Weights = Mapping[str, Tensor]


def build(config: ActionHeadConfig, *, use_dropout: bool = False) -> ActionHead:
    """A head with every parameter random, biases and norms too."""
    head = ActionHead(config, use_dropout=use_dropout)
    head.reset_parameters(torch.Generator().manual_seed(2))
    return perturbed(head).eval()


def perturbed(head: ActionHead) -> ActionHead:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return head


def uneven_config() -> GrootConfig:
    """The published structure with no two sizes alike, as the published ones are not."""
    sizes = {"head_layers": 5, "head_width": 30, "language_width": 30, "head_heads": 3, "action_horizon": 6}
    content = toy_config(**sizes, num_embodiments=7).to_json()
    head = content["action_head_cfg"]
    head |= {"hidden_size": 20, "input_embedding_dim": 24, "max_seq_len": 13, "num_target_vision_tokens": 5}
    head["diffusion_model_cfg"] |= {"attention_head_dim": 6, "num_attention_heads": 4, "output_dim": 20}
    head["vl_self_attention_cfg"] |= {"attention_head_dim": 10, "num_attention_heads": 3, "num_layers": 3}
    return GrootConfig.from_json(content)


def draw(config: ActionHeadConfig, batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, 6, config.backbone_embedding_dim, generator=generator)
    state = torch.randn(batch, config.max_state_dim, generator=generator)
    x = torch.randn(batch, config.action_horizon, config.max_action_dim, generator=generator)
    bucket = torch.randint(0, 1000, (batch,), generator=generator)
    return features, state, x, bucket


def ours(head: ActionHead, features: Tensor, state: Tensor, x: Tensor, bucket: Tensor) -> Tensor:
    cache = head.cache(head.process_context(features), head.encode_state(state, SLOT))
    return head.velocity(x, bucket, cache, SLOT)


def plain(w: Weights, config: ActionHeadConfig, features: Tensor, state: Tensor, x: Tensor, bucket: Tensor) -> Tensor:
    """The published head written down plainly: einsum, nothing cached, no library layers."""
    ids = torch.full((len(x),), SLOT)

    def linear(name: str, value: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", value, w[f"{name}.weight"]) + w[f"{name}.bias"]

    def category(name: str, value: Tensor) -> Tensor:
        return torch.einsum("bti,bio->bto", value, w[f"{name}.W"][ids]) + w[f"{name}.b"][ids][:, None]

    def norm(value: Tensor, eps: float = 1e-5) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()

    def affine_norm(name: str, value: Tensor) -> Tensor:
        return norm(value) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def silu(value: Tensor) -> Tensor:
        return value / (1 + torch.exp(-value))

    def gelu(value: Tensor) -> Tensor:
        return 0.5 * value * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    def attention(name: str, queries: Tensor, context: Tensor, num_heads: int) -> Tensor:
        q, k, v = (
            linear(f"{name}.to_{part}", source).unflatten(-1, (num_heads, -1))
            for part, source in (("q", queries), ("k", context), ("v", context))
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        return linear(f"{name}.to_out.0", mixed.flatten(2))

    def feed_forward(name: str, value: Tensor) -> Tensor:
        return linear(f"{name}.net.2", gelu(linear(f"{name}.net.0.proj", value)))

    context = affine_norm("vlln", features)
    for i in range(config.vl_self_attention_cfg.num_layers):
        name = f"vl_self_attention.transformer_blocks.{i}"
        normed = affine_norm(f"{name}.norm1", context)
        context = context + attention(f"{name}.attn1", normed, normed, config.vl_self_attention_cfg.num_attention_heads)
        context = context + feed_forward(f"{name}.ff", affine_norm(f"{name}.norm3", context))

    state_token = category("state_encoder.layer2", category("state_encoder.layer1", state[:, None]).clamp(min=0))
    actions = category("action_encoder.W1", x)
    width = actions.shape[-1]
    rates = torch.tensor([10_000 ** (-i / (width // 2)) for i in range(width // 2)])
    angles = bucket[:, None] * rates
    time_tokens = torch.cat([angles.sin(), angles.cos()], -1)[:, None].repeat(1, x.shape[1], 1)
    actions = silu(category("action_encoder.W2", torch.cat([actions, time_tokens], -1)))
    actions = category("action_encoder.W3", actions) + w["position_embedding.weight"][: x.shape[1]]
    future = w["future_tokens.weight"][None].repeat(len(x), 1, 1)
    tokens = torch.cat([state_token, future, actions], dim=1)

    rates = torch.tensor([10_000 ** (-i / 127) for i in range(128)])
    angles = bucket[:, None] * rates
    time = linear("model.timestep_encoder.timestep_embedder.linear_1", torch.cat([angles.cos(), angles.sin()], -1))
    time = linear("model.timestep_encoder.timestep_embedder.linear_2", silu(time))
    for i in range(config.diffusion_model_cfg.num_layers):
        name = f"model.transformer_blocks.{i}"
        scale, shift = linear(f"{name}.norm1.linear", silu(time))[:, None].chunk(2, -1)
        normed = norm(tokens) * (1 + scale) + shift
        source = normed if i % 2 else context
        tokens = tokens + attention(f"{name}.attn1", normed, source, config.diffusion_model_cfg.num_attention_heads)
        tokens = tokens + feed_forward(f"{name}.ff", norm(tokens))
    shift, scale = linear("model.proj_out_1", silu(time))[:, None].chunk(2, -1)
    outputs = linear("model.proj_out_2", norm(tokens, 1e-6) * (1 + scale) + shift)
    decoded = category("action_decoder.layer2", category("action_decoder.layer1", outputs).clamp(min=0))
    return decoded[:, -x.shape[1] :]


@pytest.mark.parametrize("head_layers", [3, 4])
@torch.no_grad()
def test_equals_a_plain_implementation(head_layers):
    config = toy_config(head_layers=head_layers).action_head_cfg
    head, inputs = build(config), draw(config, 5)
    expected = plain(head.state_dict(), config, *inputs)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(ours(head, *inputs), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_equals_a_plain_implementation_where_no_two_sizes_are_alike():
    config = uneven_config().action_head_cfg
    head, inputs = build(config), draw(config, 5)
    expected = plain(head.state_dict(), config, *inputs)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(ours(head, *inputs), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_sample_equals_four_plain_steps_from_the_same_noise():
    config = uneven_config()
    policy = GrootPolicy(config, toy_processor(config), toy_settings()).eval()
    head = perturbed(policy.action_head)
    features = policy.encode(policy.prepare(toy_observation(5)))
    sample = policy.act(features, keyed_noise(5), deterministic=True).trace["chain"]
    x = keyed_noise(5).normal("initial", *sample.shape[2:])
    torch.testing.assert_close(sample[:, 0], x, atol=0, rtol=0)
    for k in range(4):
        bucket = torch.full((5,), int(k / 4 * 1000))
        inputs = (features["context"], features["state"], x, bucket)
        x = x + plain(head.state_dict(), config.action_head_cfg, *inputs) / 4
        torch.testing.assert_close(sample[:, k + 1], x, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_reused_cache_changes_nothing():
    config = toy_config().action_head_cfg
    head = build(config)
    features, state, x, _ = draw(config, 4)
    cache = head.cache(head.process_context(features), head.encode_state(state, SLOT))
    for step in range(4):
        bucket = torch.full((4,), 250 * step)
        reused = head.velocity(x, bucket, cache, SLOT)
        assert torch.equal(reused, ours(head, features, state, x, bucket))
        x = x + reused / 4


@torch.no_grad()
def test_repeated_rows_of_a_cache_are_the_rows_repeated():
    config = toy_config().action_head_cfg
    head = build(config)
    features, state, x, bucket = draw(config, 6)
    rows = torch.tensor([0, 0, 1, 2, 1, 2])
    cache = head.cache(head.process_context(features[:3]), head.encode_state(state[:3], SLOT))
    repeated = head.velocity(x, bucket, cache.rows(rows), SLOT)
    torch.testing.assert_close(repeated, ours(head, features[rows], state[rows], x, bucket), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_rows_are_independent():
    config = toy_config().action_head_cfg
    head, inputs = build(config), draw(config, 5)
    together = ours(head, *inputs)
    for row in range(5):
        alone = ours(head, *(part[row : row + 1] for part in inputs))
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_only_the_embodiment_in_use_gets_gradients():
    config = toy_config().action_head_cfg
    head = build(config)
    ours(head, *draw(config, 3)).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        if parameter.shape[0] == config.max_num_embodiments and name.split(".")[-1] in ("W", "b"):
            used = parameter.grad.flatten(1).abs().sum(1) > 0
            assert used.tolist() == [slot == SLOT for slot in range(config.max_num_embodiments)], name


def test_dropout_acts_only_when_configured_and_training():
    tiny = toy_config().to_json()
    for block in ("diffusion_model_cfg", "vl_self_attention_cfg"):
        tiny["action_head_cfg"][block]["dropout"] = 0.5
    config = GrootConfig.from_json(tiny).action_head_cfg
    inputs = draw(config, 3)
    for use_dropout in (True, False):
        head = build(config, use_dropout=use_dropout)
        assert torch.equal(ours(head, *inputs), ours(head, *inputs))
        head.train()
        assert torch.equal(ours(head, *inputs), ours(head, *inputs)) is not use_dropout


def test_initial_weights_follow_the_seed_and_keep_signals_in_scale():
    config = toy_config(head_width=64, language_width=64).action_head_cfg
    heads = [ActionHead(config, use_dropout=False) for _ in range(2)]
    for head in heads:
        head.reset_parameters(torch.Generator().manual_seed(3))
    for one, other in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.equal(one, other)
    weight = heads[0].action_encoder.W2.W
    assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.05)
    velocity = ours(heads[0], *draw(config, 64))
    assert 0.01 < velocity.std() < 1.0


def test_published_sizes_have_the_published_keys_and_parameters():
    config = GrootConfig()
    with torch.device("meta"):
        head, backbone = ActionHead(config.action_head_cfg, use_dropout=True), Backbone(config.eagle_cfg)
    count = sum(p.numel() for p in head.parameters())
    assert count == pytest.approx(1068.8e6, rel=1e-4)
    assert count + sum(p.numel() for p in backbone.parameters()) == pytest.approx(2.4e9, rel=0.01)
    shapes = {name: tuple(tensor.shape) for name, tensor in (head.state_dict() | backbone.state_dict()).items()}
    expected = {
        "eagle_model.vision_model.vision_model.embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        "eagle_model.vision_model.vision_model.embeddings.position_embedding.weight": (256, 1152),
        "eagle_model.vision_model.vision_model.encoder.layers.26.self_attn.out_proj.weight": (1152, 1152),
        "eagle_model.vision_model.vision_model.encoder.layers.0.mlp.fc1.weight": (4304, 1152),
        "eagle_model.vision_model.vision_model.post_layernorm.weight": (1152,),
        "eagle_model.mlp1.0.weight": (2048, 1152),
        "eagle_model.language_model.model.embed_tokens.weight": (151680, 2048),
        "eagle_model.language_model.model.layers.11.self_attn.k_proj.weight": (1024, 2048),
        "eagle_model.language_model.model.layers.0.self_attn.q_norm.weight": (128,),
        "eagle_model.language_model.model.layers.0.mlp.gate_proj.weight": (6144, 2048),
        "eagle_model.language_model.model.norm.weight": (2048,),
        "state_encoder.layer1.W": (32, 64, 1024),
        "state_encoder.layer2.b": (32, 1536),
        "action_encoder.W1.W": (32, 32, 1536),
        "action_encoder.W2.W": (32, 3072, 1536),
        "action_encoder.W3.b": (32, 1536),
        "action_decoder.layer2.W": (32, 1024, 32),
        "future_tokens.weight": (32, 1536),
        "position_embedding.weight": (1024, 1536),
        "vlln.weight": (2048,),
        "vl_self_attention.transformer_blocks.3.norm3.bias": (2048,),
        "vl_self_attention.transformer_blocks.0.ff.net.0.proj.weight": (8192, 2048),
        "model.timestep_encoder.timestep_embedder.linear_1.weight": (1536, 256),
        "model.transformer_blocks.0.attn1.to_k.weight": (1536, 2048),
        "model.transformer_blocks.1.attn1.to_k.weight": (1536, 1536),
        "model.transformer_blocks.15.attn1.to_out.0.bias": (1536,),
        "model.transformer_blocks.15.norm1.linear.weight": (3072, 1536),
        "model.transformer_blocks.15.ff.net.2.weight": (1536, 6144),
        "model.proj_out_1.weight": (3072, 1536),
        "model.proj_out_2.weight": (1024, 1536),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert not any("model.transformer_blocks.0.norm3" in name for name in head.model.state_dict(prefix="model."))
