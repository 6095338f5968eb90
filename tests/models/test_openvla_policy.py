"""Decisions of OpenVLA: with and without a cache, drawn and greedy, and what an update sees of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from groot_toys import keyed_noise
from openvla_layout import INSTRUCTION, write_openvla, write_regression_head
from tensordict import TensorDict
from torch import Tensor

from regrasp.envs.contract import Observation
from regrasp.errors import UserError
from regrasp.learner.compilation import compile_policy
from regrasp.models.config import ExportOptions
from regrasp.models.contract import Policy
from regrasp.models.openvla.checkpoint import load_openvla
from regrasp.models.openvla.policy import OpenVlaPolicy
from regrasp.models.openvla.sampling import draw, entropy_of, log_distribution, support_of
from regrasp.models.openvla.settings import OpenVlaModelConfig, OpenVlaOftModelConfig, SamplingConfig

BATCH = 5
GAUSSIAN = OpenVlaOftModelConfig(action_dim=7, num_action_chunks=2, action_head="gaussian", initial_std=0.2)
WARM = SamplingConfig(temperature_train=1.6, temperature_eval=0.6, top_k=30)
SETTINGS: dict[str, OpenVlaModelConfig] = {
    "openvla": OpenVlaModelConfig(action_dim=7),
    "openvla_chunk": OpenVlaModelConfig(action_dim=7, num_action_chunks=2, sampling=WARM),
    "openvla_oft": OpenVlaOftModelConfig(action_dim=7, num_action_chunks=3),
    "openvla_oft_top_k": OpenVlaOftModelConfig(
        action_dim=7, num_action_chunks=2, sampling=WARM, implement_version="rlinf"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openvla")
    write_openvla(path, dtype=torch.float32)
    return path


@pytest.fixture(params=SETTINGS)
def policy(request: pytest.FixtureRequest, folder: Path) -> OpenVlaPolicy:
    built = load_openvla(folder, replace(SETTINGS[request.param], value_head_hidden=(8,))).eval()
    assert built.value_head is not None
    for parameter in built.value_head.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    return built


def features_of(policy: OpenVlaPolicy, batch: int = BATCH) -> TensorDict:
    images = torch.randint(0, 256, (batch, 40, 30, 3), generator=torch.Generator().manual_seed(batch)).to(torch.uint8)
    words = [INSTRUCTION, "push it", "pick up the red green blue cube"]
    instruction = [words[row % 3] for row in range(batch)]
    with torch.no_grad():
        return policy.encode(policy.prepare(Observation({"main": images}, {}, instruction)))


def trace_of(policy: OpenVlaPolicy, batch: int) -> TensorDict:
    """Of decisions without gradients."""
    with torch.no_grad():
        return policy.act(features_of(policy, batch), keyed_noise(batch)).trace


def logits_one_by_one(policy: OpenVlaPolicy, features: TensorDict, row: int) -> tuple[list[int], list[Tensor]]:
    """Greedy tokens of one row without padding, mask or cache: the whole sequence anew for each token."""
    model, first = policy.language_model, policy.config.action_ids[0]
    ids = features["input_ids"][row]
    ids = ids[ids != policy.config.pad_token].unsqueeze(0)
    patches = policy.projector(features["vision"][row : row + 1])
    tokens: list[int] = []
    found: list[Tensor] = []
    for _ in range(policy.num_tokens):
        words = model.embed(torch.cat([ids, torch.tensor([tokens], dtype=torch.long)], dim=1))
        hidden = model.whole(torch.cat([words[:, :1], patches, words[:, 1:]], dim=1))
        logits = model.lm_head(model.model.norm(hidden[0, -1]))[first : policy.config.action_ids[1]]
        found.append(logits)
        tokens.append(first + int(logits.argmax()))
    return tokens, found


@torch.no_grad()
@pytest.mark.parametrize("name", ["openvla", "openvla_chunk"])
def test_greedy_decoding_with_a_cache_is_that_without(name: str, folder: Path) -> None:
    greedy = replace(SETTINGS[name], sampling=SamplingConfig())
    policy = load_openvla(folder, greedy).eval()
    features = features_of(policy)
    action = policy.act(features, keyed_noise(BATCH), deterministic=True)
    for row in range(BATCH):
        tokens, logits = logits_one_by_one(policy, features, row)
        assert action.trace["tokens"][row].tolist() == tokens
        expected = torch.stack(logits).log_softmax(-1).amax(-1)
        torch.testing.assert_close(action.log_probs[row].flatten(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_row_does_not_depend_on_the_padding_of_its_prompt(policy: OpenVlaPolicy, folder: Path) -> None:
    features = features_of(policy)
    longer = load_openvla(folder, replace(policy.settings, max_prompt_length=60)).eval()
    wide = TensorDict(
        {
            "vision": features["vision"],
            "input_ids": torch.nn.functional.pad(features["input_ids"], (0, 12), value=policy.config.pad_token),
        },
        batch_size=[BATCH],
    )
    trace = policy.act(features, keyed_noise(BATCH)).trace
    own, other = policy.evaluate(features, trace), longer.evaluate(wide, trace)
    torch.testing.assert_close(own.log_probs, other.log_probs, atol=1e-5, rtol=1e-5)


def test_layers_compile_for_many_batch_sizes(folder: Path) -> None:
    """More variants of a layer than torch compiles of a function by itself."""
    policy = load_openvla(folder, SETTINGS["openvla_chunk"]).eval()
    sizes = (2, 3, 4, BATCH)
    expected = [policy.evaluate(features_of(policy, size), trace_of(policy, size)).log_probs for size in sizes]
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        compile_policy(policy, sizes, torch.device("cpu"), backend="eager")
        for size, log_probs in zip(sizes, expected, strict=True):
            found = policy.evaluate(features_of(policy, size), trace_of(policy, size)).log_probs
            torch.testing.assert_close(found, log_probs, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


def test_the_first_ratio_is_one(policy: OpenVlaPolicy) -> None:
    features = features_of(policy)
    with torch.no_grad():
        action = policy.act(features, keyed_noise(BATCH))
    evaluation = policy.evaluate(features, action.trace)
    torch.testing.assert_close(evaluation.log_probs, action.log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(evaluation.values, action.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(policy.value(features), action.values, atol=1e-5, rtol=1e-5)
    assert evaluation.entropy is not None
    assert evaluation.log_probs.shape == (BATCH, policy.spec.num_action_chunks, 7)
    evaluation.log_probs.sum().backward()
    gradients = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {"projector.fc1.weight", "language_model.lm_head.weight"} <= gradients
    assert not any(name.startswith("vision_backbone.") for name in gradients)


def test_log_probabilities_stay_finite_under_other_weights(policy: OpenVlaPolicy) -> None:
    features = features_of(policy)
    with torch.no_grad():
        action = policy.act(features, keyed_noise(BATCH))
        for parameter in policy.language_model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    evaluation = policy.evaluate(features, action.trace)
    assert evaluation.log_probs.isfinite().all()
    evaluation.log_probs.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


@torch.no_grad()
def test_a_draw_follows_its_key_alone(policy: OpenVlaPolicy) -> None:
    features = features_of(policy)
    whole = policy.act(features, keyed_noise(BATCH)).trace["tokens"]
    part = policy.act(features[:2], keyed_noise(2)).trace["tokens"]
    other = policy.act(features, keyed_noise(BATCH, seed=1)).trace["tokens"]
    assert torch.equal(whole[:2], part)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize(
    "policy",
    [pytest.param(name, marks=() if name in ("openvla", "openvla_oft") else pytest.mark.full) for name in SETTINGS],
    indirect=True,
)
def test_imitation_ends_at_the_demonstrated_actions(policy: OpenVlaPolicy) -> None:
    features = features_of(policy, 2)
    chunk = policy.spec.num_action_chunks
    low, high = -0.9, 1.4
    actions = torch.rand(2, chunk, 7, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    valid = torch.ones(2, chunk, dtype=torch.bool)
    parameters = [p for _, p in policy.prepare_training("head")]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    losses = []
    for _ in range(250):
        optimizer.zero_grad()
        loss = policy.sft_loss(features, actions, valid, keyed_noise(2))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1
    with torch.no_grad():
        decided = policy.decode(features, torch.zeros(2))
    expected = policy.processor.decode_actions(policy.processor.encode_actions(actions))
    torch.testing.assert_close(decided, expected)


def test_what_was_demonstrated_has_a_probability(policy: OpenVlaPolicy) -> None:
    features = features_of(policy)
    with torch.no_grad():
        action = policy.act(features, keyed_noise(BATCH))
    trace = policy.demonstrated(features, action.actions, keyed_noise(BATCH))
    assert trace.keys() == action.trace.keys()
    torch.testing.assert_close(policy.processor.decode_actions(trace["tokens"]), action.actions)
    assert all(trace[name].shape == value.shape for name, value in action.trace.items())
    assert policy.evaluate(features, trace).log_probs.isfinite().all()


def test_adapters_change_nothing_at_first_and_are_merged_into_what_is_saved(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    for trainable in ("head", "all"):
        policy = load_openvla(folder, replace(SETTINGS["openvla"], is_lora=True, trainable=trainable)).eval()
        features = features_of(policy)
        before = policy.act(features, keyed_noise(BATCH))
        trained = policy.prepare_training(trainable)
        assert all(".lora_" in name or name.startswith("value_head.") for name, _ in trained)
        assert any("vision_backbone." in name for name, _ in trained) == (trainable == "all")
        torch.testing.assert_close(policy.act(features, keyed_noise(BATCH)).log_probs, before.log_probs)
        with torch.no_grad():
            for name, parameter in trained:
                if ".lora_B." in name:
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        policy.write_folder(tmp_path / trainable)
        merged = load_openvla(tmp_path / trainable, SETTINGS["openvla"]).eval()
        moved = policy.act(features_of(policy), keyed_noise(BATCH), deterministic=True)
        assert not torch.allclose(moved.log_probs, before.log_probs, atol=1e-3)
        again = merged.act(features_of(merged), keyed_noise(BATCH), deterministic=True)
        torch.testing.assert_close(again.log_probs, moved.log_probs, atol=1e-4, rtol=1e-4)


def test_recomputed_layers_give_the_same_gradients(folder: Path) -> None:
    from regrasp.learner.recompute import recompute_layers

    gradients = []
    for recomputes in (False, True):
        policy: Policy = load_openvla(folder, replace(SETTINGS["openvla"], trainable="all"))
        if recomputes:
            recompute_layers(policy)
        policy.prepare_training("all")
        observation = Observation({"main": torch.zeros(2, 28, 28, 3, dtype=torch.uint8)}, {}, [INSTRUCTION] * 2)
        features = policy.encode(policy.prepare(observation))
        with torch.no_grad():
            trace = policy.act(features, keyed_noise(2)).trace
        policy.evaluate(features, trace).log_probs.sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


def test_draws_have_the_probabilities_of_their_logits() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0])
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    for support in (None, support_of(logits, 3)):
        log_probs = log_distribution(logits, 1.6, support)
        expected = (logits / 1.6).softmax(0)
        if support is not None:
            assert support.tolist() == [True, False, True, False, True]
            expected = expected * support / (expected * support).sum()
        drawn = draw(log_probs.expand(20_000, -1), uniform)
        frequencies = torch.bincount(drawn, minlength=5) / 20_000
        torch.testing.assert_close(frequencies, expected, atol=1e-3, rtol=0)
        library = torch.distributions.Categorical(probs=expected)
        torch.testing.assert_close(entropy_of(log_probs), library.entropy())


def test_a_draw_never_leaves_the_support() -> None:
    log_probs = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log()
    assert draw(log_probs, torch.tensor([1.0])).item() == 1
    assert draw(log_probs, torch.tensor([0.0])).item() == 0
    assert support_of(torch.zeros(4), None) is None


@pytest.fixture(scope="module")
def regressing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OFT folder with the published file of a regression head."""
    path = tmp_path_factory.mktemp("regressing")
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    write_regression_head(path)
    return path


def test_a_regression_head_becomes_a_gaussian(regressing: Path, tmp_path: Path) -> None:
    policy = load_openvla(regressing, GAUSSIAN).eval()
    features = features_of(policy)
    with torch.no_grad():
        action = policy.act(features, keyed_noise(BATCH))
        greedy = policy.act(features, keyed_noise(BATCH), deterministic=True)
        mean = policy.decode(features, torch.zeros(BATCH))
    torch.testing.assert_close(greedy.actions, mean)
    evaluation = policy.evaluate(features, action.trace)
    library = torch.distributions.Normal(greedy.trace["actions"], 0.2)
    torch.testing.assert_close(evaluation.log_probs, library.log_prob(action.trace["actions"]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(evaluation.log_probs, action.log_probs)
    torch.testing.assert_close(evaluation.entropy, library.entropy())
    again = policy.demonstrated(features, action.actions, keyed_noise(BATCH))
    torch.testing.assert_close(again["actions"][..., :6], action.trace["actions"][..., :6].clamp(-1, 1))
    assert "action_head.log_std" in {name for name, _ in policy.prepare_training("head")}
    policy.write_folder(tmp_path / "saved")
    again = load_openvla(tmp_path / "saved", GAUSSIAN).eval()
    torch.testing.assert_close(again.act(features, keyed_noise(BATCH)).actions, action.actions)
    output = OpenVlaModelConfig.export(ExportOptions(tmp_path / "saved", tmp_path / "out"))
    given = torch.load(regressing / "action_head--5000_checkpoint.pt", weights_only=True)
    written = torch.load(output / "action_head--latest_checkpoint.pt", weights_only=True)
    assert {f"module.{name}" for name in written} == given.keys()
    assert all(torch.equal(written[name], given[f"module.{name}"]) for name in written)


def test_a_regression_head_is_not_decoded_as_tokens(regressing: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="no density"):
        load_openvla(regressing, SETTINGS["openvla_oft"])
    with pytest.raises(UserError, match="no density"):
        load_openvla(regressing)
    with pytest.raises(UserError, match="holds no action head"):
        load_openvla(folder, GAUSSIAN)
