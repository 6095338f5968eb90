"""Several processes that train together do what one does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import in_processes
from rank_toys import ALGORITHMS, SAVED, Job, abandon, train
from safetensors.torch import load_file

OVER_EPOCHS = ("env.train.auto_reset=true", "env.train.max_steps_per_rollout_epoch=16")
LENGTH = SAVED + 2
QUICK = [Job("ppo", "ppo", updates=LENGTH)]
OTHERS = [
    *(Job(name, name, updates=LENGTH) for name in ALGORITHMS if name != "ppo"),
    Job("over_epochs", "ppo", OVER_EPOCHS, updates=LENGTH),
    Job("one_pass", "ppo", ("actor.micro_batch_size=15",), updates=LENGTH),
    Job("recomputed", "ppo", ("rollout.recompute_logprobs=true",), updates=LENGTH),
]
FULL = ("actor.fsdp_config.sharding_strategy=full_shard",)
RECOMPUTED = (*FULL, "rollout.recompute_logprobs=true")
GATHERED = (
    "actor.fsdp_config.sharding_strategy=shard_grad_op",
    "actor.fsdp_config.enable_gradient_accumulation=false",
    "actor.fsdp_config.gradient_checkpointing=true",
    "actor.fsdp_config.cpu_offload=true",
)
HYBRID = ("actor.fsdp_config.sharding_strategy=hybrid_shard", "actor.fsdp_config.fsdp_size=2")
SHARDED = [
    Job("ppo_full_shard", "ppo", FULL, updates=LENGTH),
    Job("grpo_full_shard", "grpo", FULL, updates=3),
    Job("reinpp_full_shard", "reinpp", FULL, updates=3),
    Job("ppo_recomputed", "ppo", RECOMPUTED, updates=3),
    Job("ppo_on_host", "ppo", (*FULL, "runner.feature_storage=host"), updates=2),
    Job("ppo_shard_grad_op", "ppo", GATHERED, updates=3),
]


def run(folder: Path, count: int, jobs: Sequence[Job]) -> Path:
    """Run jobs in `count` processes; a single one is this one."""
    if count > 1:
        in_processes(train, (count, folder, jobs), count)
        return folder
    before = torch.get_default_dtype()
    try:
        train(0, 1, folder, jobs)
    finally:
        torch.set_default_dtype(before)
    return folder


def results(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], list[list[float]]]:
    """Metrics of each update, weights at the end, and the episodes of an evaluation in their order."""
    parts = [json.loads(file.read_text()) for file in sorted(folder.glob("episodes_*.json"))]
    episodes = [episode for episode in chain.from_iterable(zip_longest(*parts)) if episode]
    return json.loads((folder / "metrics.json").read_text()), load_file(folder / "weights.safetensors"), episodes


def assert_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process."""
    return run(tmp_path_factory.mktemp("alone"), 1, QUICK)


@pytest.fixture(scope="module")
def others_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other jobs in one process."""
    return run(tmp_path_factory.mktemp("others_alone"), 1, OTHERS)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, and the first job with sharded weights."""
    return run(tmp_path_factory.mktemp("two"), 2, [*QUICK, SHARDED[0]])


@pytest.fixture(scope="module")
def others_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other jobs in two processes."""
    return run(tmp_path_factory.mktemp("others_two"), 2, OTHERS)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other jobs with sharded weights, in two processes."""
    return run(tmp_path_factory.mktemp("sharded"), 2, SHARDED[1:])


def assert_same_updates(alone: Path, two: Path, name: str) -> None:
    expected = results(alone / name)
    assert len({line["actor/total_loss"] for line in expected[0]}) == LENGTH
    assert_equal(expected, results(two / name))


def test_updates_of_two_ranks_are_those_of_one_process(alone: Path, two: Path) -> None:
    assert_same_updates(alone, two, "ppo")


@pytest.mark.full
@pytest.mark.parametrize("name", [job.name for job in OTHERS])
def test_so_are_those_of_other_algorithms_and_rollouts(others_alone: Path, others_two: Path, name: str) -> None:
    assert_same_updates(others_alone, others_two, name)


def assert_turns_change_nothing(alone: Path, folder: Path, jobs: Sequence[Job]) -> None:
    run(folder, 1, [replace(job, num_stages=2) for job in jobs])
    for job in jobs:
        assert_equal(results(alone / job.name), results(folder / job.name))


def test_stages_that_take_turns_do_what_one_does(alone: Path, tmp_path: Path) -> None:
    assert_turns_change_nothing(alone, tmp_path, QUICK)


@pytest.mark.full
def test_so_do_those_of_other_algorithms_and_rollouts(others_alone: Path, tmp_path: Path) -> None:
    assert_turns_change_nothing(others_alone, tmp_path, OTHERS)


@pytest.mark.full
def test_a_run_is_resumed_by_another_number_of_ranks(others_alone: Path, others_two: Path, tmp_path: Path) -> None:
    place = Path("over_epochs") / "checkpoints" / f"global_step_{SAVED}"
    run(
        tmp_path,
        3,
        [
            Job("from_two", "ppo", OVER_EPOCHS, others_two / place, updates=LENGTH),
            Job("from_one", "ppo", OVER_EPOCHS, others_alone / place, 2, LENGTH),
        ],
    )
    run(tmp_path, 1, [Job("by_one", "ppo", OVER_EPOCHS, others_two / place, updates=LENGTH)])
    expected = results(others_alone / "over_epochs")
    for name in ("from_two", "from_one", "by_one"):
        metrics, *rest = results(tmp_path / name)
        assert_equal(expected[0][SAVED:], metrics)
        assert_equal(list(expected[1:]), rest)


def test_updates_of_sharded_weights_are_those_of_one_process(alone: Path, two: Path) -> None:
    job = SHARDED[0]
    assert_starts_alike(alone / job.algorithm, two / job.name, job.updates)


@pytest.mark.full
@pytest.mark.parametrize("job", SHARDED[1:], ids=[job.name for job in SHARDED[1:]])
def test_updates_are_the_same_however_weights_are_sharded(
    alone: Path, others_alone: Path, sharded: Path, job: Job
) -> None:
    whole = (alone if job.algorithm == "ppo" else others_alone) / job.algorithm
    if job.overrides == RECOMPUTED:
        whole = others_alone / "recomputed"
    assert_starts_alike(whole, sharded / job.name, job.updates)


@pytest.mark.full
def test_updates_of_weights_sharded_within_copies_are_those_of_one_process(alone: Path, tmp_path: Path) -> None:
    run(tmp_path, 4, [Job("hybrid", "ppo", HYBRID, updates=3)])
    assert_starts_alike(alone / "ppo", tmp_path / "hybrid", 3)


def assert_starts_alike(whole: Path, begun: Path, updates: int) -> None:
    """Compare a training with one that may have ended earlier."""
    expected, found = results(whole), results(begun)
    assert len(found[0]) == updates
    assert_equal(expected[0][:updates], found[0])
    if updates == LENGTH:
        assert_equal(expected[1:], found[1:])


@pytest.mark.parametrize(
    ("written", "count", "resumed"),
    [
        ("ppo_full_shard", 1, ()),
        pytest.param("ppo_full_shard", 2, (), marks=pytest.mark.full),
        pytest.param("ppo_full_shard", 3, FULL, marks=pytest.mark.full),
        pytest.param("ppo", 2, FULL, marks=pytest.mark.full),
    ],
)
def test_a_checkpoint_does_not_tell_how_it_was_sharded(
    alone: Path, two: Path, tmp_path: Path, written: str, count: int, resumed: tuple[str, ...]
) -> None:
    checkpoint = (two if written.endswith("shard") else alone) / written / "checkpoints" / f"global_step_{SAVED}"
    run(tmp_path, count, [Job("resumed", "ppo", resumed, checkpoint, updates=LENGTH)])
    expected, found = results(alone / "ppo")[0], results(tmp_path / "resumed")[0]
    assert_equal(expected[SAVED:LENGTH], found)


@pytest.mark.full
def test_all_ranks_abandon_an_update_that_one_wants_to_end(tmp_path: Path) -> None:
    in_processes(abandon, (2, tmp_path), 2)
    assert [(tmp_path / f"ending_{rank}").read_text() for rank in range(2)] == ["abandoned after 2"] * 2
