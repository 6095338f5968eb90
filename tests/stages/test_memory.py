"""The memory estimate, compared with the tensors of a real policy and optimizer after an update."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from run_toys import checkpoint, groot_experiment, mlp_experiment
from torch import Tensor

from regrasp.cli.main import main
from regrasp.engine.local import LocalEngine
from regrasp.engine.memory import PolicyMemory, check_disk, memory_estimate, model_memory, policy_memory
from regrasp.engine.policies import create_policy
from regrasp.envs.registry import create_env
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.inputs import input_names
from regrasp.learner.learner import Learner
from regrasp.models.contract import Policy
from regrasp.models.groot.policy import GrootPolicy
from regrasp.rollout.decisions import Decisions
from regrasp.stages.train import train

BF16 = "actor.model.precision=bf16"
LORA = ("actor.model.is_lora=true", "actor.model.lora.rank=2")


def trainable(part: str) -> str:
    return f"actor.model.trainable={part}"


def estimate(config: ExperimentConfig) -> list[str]:
    return memory_estimate(config, model_memory(config))


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address: what is shared is there once."""
    return {tensor.data_ptr(): tensor.nbytes for tensor in tensors}


def measured(engine: LocalEngine, gradients: int) -> PolicyMemory:
    """Of an engine that has made a step, from nothing but its tensors and the bytes of its gradients."""
    policy, reference = engine.policy, engine.algorithm.start
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    moments = [value for state in engine.learner.optimizer.state.values() for value in state.values() if value.ndim]
    own = storages((*policy.parameters(), *policy.buffers()))
    copies = (engine.rollouts._acting.policy, engine.learner.computing)
    copied = storages(parameter for one in copies for parameter in one.parameters())
    start = storages(reference.parameters()) if reference is not None else {}
    return PolicyMemory(
        num_parameters=sum(value.numel() for value in policy.published_state().values()),
        num_trained=sum(parameter.numel() for parameter in trained),
        weights=sum(own.values()),
        training=sum(storages(moments).values()) + gradients,
        half_copy=sum(size for address, size in copied.items() if address not in own),
        acting=ahead(engine.rollouts._acting.policy),
        start=sum(size for address, size in start.items() if address not in own),
    )


def ahead(policy: Policy) -> int:
    """Bytes of what a GR00T that acts has computed of its weights; one that trains has nothing."""
    assert isinstance(policy, GrootPolicy)
    if policy._modulations is None:
        return 0
    padding = policy.backbone.eagle_model.language_model._padding_feature
    joined = [block.attn1._packed for block in policy.action_head.model._blocks]
    tensors = [
        policy._modulations,
        *([] if padding is None else [padding]),
        *(x for pair in joined if pair for x in pair),
    ]
    return sum(tensor.nbytes for tensor in tensors)


def watch_gradients(actor: Learner) -> list[int]:
    """A list that every backward pass adds to: the bytes that gradients take after it."""
    found, backward = [], actor.backward

    def watched(micro: Decisions, shares: Tensor, groups: tuple[str, ...]) -> dict[str, Tensor]:
        metrics = backward(micro, shares, groups)
        weights = (*actor.policy.parameters(), *actor.computing.parameters())
        found.append(sum(storages(weight.grad for weight in weights if weight.grad is not None).values()))
        return metrics

    actor.backward = watched
    return found


def preview(config: ExperimentConfig) -> GrootPolicy:
    model = config.actor.model
    assert model.model_path is not None
    policy = model.preview(Path(model.model_path), input_names(config.env.train.mapping))
    assert isinstance(policy, GrootPolicy)
    return policy


@pytest.mark.parametrize(
    "overrides",
    [
        (trainable("head"),),
        pytest.param((trainable("head"), BF16), marks=pytest.mark.full),
        pytest.param((trainable("head"), BF16, "actor.micro_batch_size=8"), marks=pytest.mark.full),
        (trainable("head_without_context"), BF16, "algorithm.kl_beta=0.1"),
        pytest.param((trainable("head_without_context"), "runner.feature_storage=host"), marks=pytest.mark.full),
        pytest.param((trainable("head"), BF16, "runner.recompute_features=true"), marks=pytest.mark.full),
        (trainable("all"), "algorithm.kl_beta=0.1"),
        pytest.param((trainable("all"), BF16), marks=pytest.mark.full),
        pytest.param((trainable("head"), *LORA), marks=pytest.mark.full),
        (trainable("head"), *LORA, BF16, "runner.feature_storage=host"),
    ],
    ids=" ".join,
)
def test_the_estimate_is_what_an_update_holds(groot_start: Path, overrides: tuple[str, ...]) -> None:
    config = groot_experiment(f"actor.model.model_path={groot_start}", *overrides).config
    env = create_env(config.env.train, "train", 4, 0)
    policy = create_policy(config.actor.model, config.env.train.mapping, env.spec, 0)
    engine = LocalEngine(config, policy, [env], 0, torch.device("cpu"), Path("never-written"))
    try:
        engine.collect(0, lambda: False)
        gradients = watch_gradients(engine.learner)
        engine.update(0, lambda: False)
        found = measured(engine, max(gradients))
    finally:
        env.close()
    policy = preview(config)
    assert {parameter.device.type for parameter in policy.parameters()} == {"meta"}
    assert engine.decisions is not None
    stored = sum(value.nbytes for value in engine.decisions.inputs.to_dict().values())
    recomputes = config.runner.recompute_features or config.actor.model.trains_backbone
    assert policy.stored_bytes(recomputes=recomputes) == stored / len(engine.decisions)
    assert policy_memory(policy, config) == found


@pytest.mark.parametrize(
    ("settings", "weights", "training", "copy"),
    [
        (["sharding_strategy=no_shard"], 2000, 4800, 0),
        (["sharding_strategy=full_shard"], 2000 - 1600 + 400, 3 * 400 + 1600, 1600),
        (["sharding_strategy=full_shard", "enable_gradient_accumulation=false"], 2000 - 1600 + 400, 3 * 400, 1600),
        (["sharding_strategy=hybrid_shard", "fsdp_size=2"], 2000 - 1600 + 800, 3 * 800 + 1600, 1600),
        (["sharding_strategy=full_shard", "cpu_offload=true"], 2000 - 1600, 1600, 1600),
    ],
)
def test_ranks_that_shard_have_parts(settings: list[str], weights: int, training: int, copy: int) -> None:
    batches = ["actor.global_batch_size=64", "actor.micro_batch_size=8"]
    config = groot_experiment(*batches, *(f"actor.fsdp_config.{setting}" for setting in settings)).config
    whole = PolicyMemory(500, 400, 2000, 4800, 0, 0, 0)
    assert whole.of_rank(config, 1) == whole
    assert whole.of_rank(config, 4) == PolicyMemory(500, 400, weights, training, copy, 0, 0)


def test_the_lines_name_what_takes_memory(groot_start: Path) -> None:
    model = f"actor.model.model_path={groot_start}"
    plain = "\n".join(estimate(groot_experiment(model).config))
    assert "copy of them" not in plain
    assert "cached features: 18 decisions" in plain
    assert "on the device" in plain
    half = estimate(groot_experiment(model, BF16, "runner.feature_storage=host", "algorithm.kl_beta=1").config)
    lines = "\n".join(half)
    assert all(part in lines for part in ("copy of them in bfloat16", "copy of the start, which", "in host memory"))
    together = "\n".join(estimate(groot_experiment(model, BF16, "algorithm.kl_beta=1").config))
    assert lines.splitlines()[-2] != together.splitlines()[-2], "features on the host are not on the device"


def test_features_of_half_precision_take_half(groot_start: Path) -> None:
    model = f"actor.model.model_path={groot_start}"
    single, half = (groot_experiment(model, *overrides).config for overrides in ((), (BF16,)))
    state = 4 * preview(single).config.action_head_cfg.max_state_dim
    whole, less = (preview(config).stored_bytes(recomputes=False) for config in (single, half))
    assert whole - state == 2 * (less - state)


def test_a_model_of_another_machine_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dry_run", "--model_path", "/mnt/elsewhere"]) == 0
    printed = capsys.readouterr()
    assert "/mnt/elsewhere is not on this machine" in printed.out
    assert printed.err.startswith("[WARN] The folder does not exist.\n")
    assert "key:      --model_path\n" in printed.err
    assert main(["train", "--dry_run"]) == 0
    printed = capsys.readouterr()
    assert "no model folder is given" in printed.out
    assert printed.err == ""


def test_a_file_is_no_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").touch()
    assert main(["train", "--dry_run", "--model_path", str(tmp_path / "model.safetensors")]) == 2
    assert "This is a file, not a folder" in capsys.readouterr().err


def test_a_state_policy_stores_no_features(start_model: Path) -> None:
    lines = estimate(mlp_experiment(f"actor.model.model_path={start_model}").config)
    assert not any("features" in line for line in lines)


def test_stored_experience_is_told_of_and_counted_in_checkpoints(base_model: Path) -> None:
    sac = (
        "algorithm.adv_type=embodied_sac",
        "algorithm.loss_type=embodied_sac",
        "algorithm.replay_buffer.capacity=1000",
    )
    heads = ("actor.model.add_q_head=true", "actor.model.add_value_head=false")
    config = groot_experiment(f"actor.model.model_path={base_model}", *heads, *sac).config
    model = model_memory(config)
    assert model is not None
    assert model.stored is not None
    assert model.policy.experience == 1000 * (model.stored // 2)
    assert any(line.startswith("stored experience: up to 1000 decisions") for line in memory_estimate(config, model))
    assert model.policy.checkpoints(2, 0) > 2 * model.policy.experience


@pytest.mark.parametrize("limit", [None, 1e-5])
def test_replayed_demonstrations_are_told_of_and_in_no_checkpoint(
    base_model: Path, demos: Path, limit: float | None
) -> None:
    frames = json.loads((demos / "meta" / "info.json").read_text())["total_frames"]
    sac = ("algorithm.adv_type=embodied_sac", "algorithm.loss_type=embodied_sac", "algorithm.replay_buffer.capacity=1")
    heads = ("actor.model.add_q_head=true", "actor.model.add_value_head=false")
    limits = () if limit is None else (f"algorithm.replay_buffer.max_memory_gb={limit}",)
    settings = (f"actor.model.model_path={base_model}", *heads, *sac, *limits)
    plain = model_memory(groot_experiment(*settings).config)
    config = groot_experiment(*settings, f"algorithm.demo_buffer.load_path={demos}").config
    model = model_memory(config)
    assert plain is not None
    assert model is not None
    assert model.stored is not None
    each = model.stored // 2
    shown = frames * each if limit is None else 10_000
    assert (model.policy.demonstrated, model.policy.demonstrated_mapped) == (shown, frames * each - shown)
    assert model.policy.total == plain.policy.total + shown
    assert model.policy.checkpoints(1, 1) == plain.policy.checkpoints(1, 1)
    (line,) = (line for line in memory_estimate(config, model) if line.startswith("demonstrations: "))
    assert line.startswith(f"demonstrations: {frames} decisions, about ")
    assert ("memory-mapped" in line) == (limit is not None)


def test_the_estimate_begins_with_what_the_model_reads_and_writes(base_model: Path) -> None:
    first = estimate(groot_experiment(f"actor.model.model_path={base_model}").config)[0]
    assert first.startswith("model: embodiment new_embodiment in slot 0; cameras ")
    assert "; state state 4; action action 4; " in first


def test_the_disk_holds_what_checkpoints_are_estimated_to_take(tmp_path: Path) -> None:
    loaded = mlp_experiment("actor.model.mlp.hidden=[256,256]", "runner.val_check_interval=-1")
    assert train(loaded, tmp_path)
    memory = policy_memory(loaded.config.actor.model.build(4, seed=0), loaded.config)
    folders = [checkpoint(tmp_path, step) for step in (1, 2, 3, 4)]
    found = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    assert memory.checkpoints(4, 4) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize(("free", "keep", "told"), [(1.5, "null", True), (1.5, "1", True), (4.5, "1", False)])
def test_a_disk_that_will_be_full_is_told_before_the_run(
    start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, keep: str, told: bool
) -> None:
    config = mlp_experiment(f"runner.keep_checkpoints={keep}", "runner.max_epochs=100").config
    memory = PolicyMemory(500, 500, 2000, 6000, 0, 0, 0)
    one = memory.checkpoints(1, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free * one)))
    warning = check_disk(config, memory, tmp_path / "run")
    assert (warning is not None) == told
    if warning is not None:
        assert "runner.keep_checkpoints" in warning
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=one - 1))
    with pytest.raises(UserError, match="no room for a checkpoint"):
        check_disk(config, memory, tmp_path / "run")
