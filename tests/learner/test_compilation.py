"""Compiled policies against plain ones: values, gradients, fixed batch sizes, and how often something compiles."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.envs.contract import Observation
from regrasp.errors import UserError
from regrasp.learner.bfloat16 import Bfloat16Policy
from regrasp.learner.compilation import CapturedBackward, CapturedMethod, compile_policy, num_compilations
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.models.contract import Action, Evaluation
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import KeyedNoise

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "image_size": 28,
    "patch_size": 14,
    "vision_width": 16,
    "vision_layers": 2,
    "vision_heads": 2,
    "vision_mlp": 32,
    "language_width": 24,
    "language_layers": 2,
    "language_heads": 2,
    "language_kv_heads": 1,
    "language_head_dim": 8,
    "language_mlp": 32,
    "vocab_size": 300,
    "head_width": 16,
    "head_layers": 3,
    "head_heads": 2,
    "vl_self_attention_layers": 2,
    "num_future_tokens": 2,
    "action_horizon": 4,
    "max_state_dim": 5,
    "max_action_dim": 4,
    "num_embodiments": 3,
}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def policy() -> GrootPolicy:
    config = GrootConfig.tiny(SimpleNamespace(**SIZES))
    processor = GrootProcessor.fresh(
        config, ["pick it up"], num_views=1, state_dim=3, action_dim=2, text_length=10, text_first=True
    )
    made = GrootPolicy(
        config, processor, GrootModelConfig(num_action_chunks=3, action_dim=2, value_head_hidden=(8,))
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made


def prepared(one: GrootPolicy, batch: int) -> TensorDict:
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (batch, 28, 28, 3), generator=generator, dtype=torch.uint8)
    observation = Observation(
        {"main": images}, {"state": torch.randn(batch, 3, generator=generator)}, ["pick it up"] * batch
    )
    return one.prepare(observation)


@torch.no_grad()
def encode(one: GrootPolicy, batch: int) -> TensorDict:
    return one.encode(prepared(one, batch))


def decide(one: GrootPolicy, batch: int) -> tuple[TensorDict, Action, Evaluation]:
    features = encode(one, batch)
    noise = KeyedNoise(0, "train", [(row, 0, 0) for row in range(batch)])
    with torch.no_grad():
        action = one.act(features, noise)
    return features, action, one.evaluate(features, action.trace)


def assert_same(one: GrootPolicy, other: GrootPolicy, batch: int) -> None:
    (features, action, evaluation), expected = decide(one, batch), decide(other, batch)
    torch.testing.assert_close(features["context"], expected[0]["context"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(action.trace["chain"], expected[1].trace["chain"], rtol=1e-5, atol=1e-5)
    assert torch.equal(action.trace["step"], expected[1].trace["step"])
    for found, wanted in ((action, expected[1]), (evaluation, expected[2])):
        for name in ("actions", "log_probs", "values"):
            if hasattr(wanted, name):
                torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-4)
    evaluation.log_probs.sum().backward()
    expected[2].log_probs.sum().backward()
    for trained, wanted in zip(one.parameters(), other.parameters(), strict=True):
        if wanted.grad is not None:
            assert trained.grad is not None
            torch.testing.assert_close(trained.grad, wanted.grad, rtol=1e-4, atol=1e-4)
    one.zero_grad()
    other.zero_grad()


def test_batches_are_filled_up_without_changing_a_result() -> None:
    compiled, plain = policy(), policy()
    compile_policy(compiled, {4}, CPU, backend="eager")
    for batch in (1, 3, 4):
        assert_same(compiled, plain, batch)


def test_each_batch_size_compiles_a_kind_of_layer_once() -> None:
    compiled = policy()
    compile_policy(compiled, {4, 6}, CPU, backend="eager")
    counts = []
    for batch in (4, 6, 3, 5, 6, 4):
        before = num_compilations()
        encode(compiled, batch)
        counts.append(num_compilations() - before)
    assert counts == [2, 2, 0, 0, 0, 0], "SigLIP's and Qwen3's layers, for each of two sizes"


def test_a_larger_batch_than_an_update_evaluates_is_acted_on_in_parts() -> None:
    compiled, plain, sizes = policy(), policy(), []
    sample = compiled._sample

    def seen(context: Tensor, *others: Any) -> Any:
        sizes.append(len(context))
        return sample(context, *others)

    setattr(compiled, "_sample", seen)  # noqa: B010
    compile_policy(compiled, {1, 7}, CPU, parts={"act": 3}, backend="eager")
    for batch in (7, 1):
        assert_same(compiled, plain, batch)
    assert sizes == [3, 3, 3, 1], "the last part is filled up; a batch that is compiled for as it is, is not"


def test_acting_as_it_learns_leaves_no_gradients() -> None:
    compiled = policy()
    compile_policy(compiled, {4}, CPU, parts={"act": 4}, backend="eager")
    _, action, _ = decide(compiled, 4)
    tensors = (action.actions, action.log_probs, action.values, action.trace["chain"])
    assert not any(tensor is None or tensor.requires_grad for tensor in tensors)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_in_bfloat16_the_first_ratio_is_one() -> None:
    model: Any = SimpleNamespace(precision="bf16", trainable="head")
    trained = policy()
    apply_precision(trained, model, CPU)
    source = Bfloat16Policy(trained)
    acting: Any = ActingPolicy(trained, model, CPU, source).policy
    compile_policy(acting, {8}, CPU, parts={"act": 8, "encode": 8})
    compile_policy(source.policy, {8}, CPU)
    features = encode(acting, 8)
    with torch.no_grad():
        action = acting.act(features, KeyedNoise(0, "train", [(row, 0, 0) for row in range(8)]))
    learning: Any = source.policy.train()
    assert torch.equal(learning.evaluate(features, action.trace).log_probs, action.log_probs)
    inputs = prepared(learning, 8)
    assert (inputs["input_ids"] == learning.config.eagle_cfg.pad_token_index).any()
    assert torch.equal(learning.encode(inputs)["context"], features["context"])  # as where features are not stored


def test_a_larger_batch_than_compiled_for_is_refused() -> None:
    compiled = policy()
    compile_policy(compiled, {4}, CPU, backend="eager")
    with pytest.raises(AssertionError, match="5 rows"):
        encode(compiled, 5)


def test_a_failure_to_compile_is_an_error_and_no_fallback() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler here")

    compiled = policy()
    compile_policy(compiled, {4}, CPU, backend=broken)
    with pytest.raises(UserError, match="no compiler here") as error:
        encode(compiled, 4)
    assert error.value.key == "actor.model.compile"


def test_a_policy_without_layers_cannot_be_compiled() -> None:
    small = MlpPolicy(state_dim=4, action_dim=2, num_action_chunks=2, hidden=(8,))
    with pytest.raises(UserError, match="nothing to compile"):
        compile_policy(small, {4}, CPU)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_generated_code_gives_the_same_results() -> None:
    compiled, plain = policy(), policy()
    compile_policy(compiled, {4}, CPU)
    assert_same(compiled, plain, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_method_reads_its_weights_anew_and_keeps_its_results_apart() -> None:
    weight = torch.ones(3, device="cuda")
    captured = CapturedMethod(lambda x, shift: (x * weight + shift, x.sum()), torch.cuda.graph_pool_handle())
    x = torch.arange(3.0, device="cuda")
    with torch.no_grad():
        first, total = captured(x, 1.0)
        weight.fill_(2)
        second, _ = captured(x + 1, 1.0)
        third, _ = captured(x, 5.0)
    assert first.tolist() == [1, 2, 3]
    assert float(total) == 3
    assert second.tolist() == [3, 5, 7]
    assert third.tolist() == [5, 7, 9]


class _Squares(nn.Module):
    """One weight, whose loss is the mean of (weight x observation)^2 times a scheduled number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.unused = nn.Parameter(torch.tensor(1.0))
        self.schedule = (1.0,)


def _gradient(net: _Squares) -> float:
    assert net.weight.grad is not None
    return float(net.weight.grad)


def _decisions(values: list[float]) -> Decisions:
    column = torch.tensor(values)
    table = TensorDict({"x": column}, batch_size=[len(values)])
    record = TensorDict({"trace": table.clone(), "log_probs": column}, batch_size=[len(values)])
    return Decisions(table, record, are_encoded=True).to(torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_gradients_are_those_of_the_micro_batch_and_add_up() -> None:
    net = _Squares().cuda()

    def backward(micro: Decisions, shares: Tensor, _groups: tuple[str, ...]) -> dict[str, Tensor]:
        loss = ((net.weight * micro.trace["x"]) ** 2).mean() * shares[0] * net.schedule[0]
        loss.backward()
        return {"loss": loss.detach()}

    policy: Any = net
    captured = CapturedBackward(backward, [policy], [net.weight, net.unused], size=2)
    shares = torch.ones(3, device="cuda")
    losses = [float(captured(_decisions(values), shares, ("actor",))["loss"]) for values in ([1.0, 1.0], [1.0, 3.0])]
    assert losses == [4, 20]
    assert _gradient(net) == 4 + 20  # 2 w mean(x^2) of both
    net.weight.grad = None
    net.schedule = (0.5,)
    captured(_decisions([1, 3]), shares, ("actor",))
    assert _gradient(net) == 10
    captured(_decisions([1, 1, 1]), shares, ("actor",))  # another size is not the recorded one
    assert _gradient(net) == 12
