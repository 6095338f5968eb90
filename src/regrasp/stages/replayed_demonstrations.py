"""Demonstrations as decisions: what learning from stored experience draws beside its own (RLPD, arXiv:2302.02948)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.data.lerobot import DemonstrationDataset
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.models.contract import Policy
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import KeyedNoise
from regrasp.stages.dataset_features import DatasetFeatures, check_sources, find_features
from regrasp.stages.training_frames import prepared_frames

_PART = 128
"""Decisions encoded at once."""
_STREAM = 3
"""Of their noise, apart from those of other stages."""
_REWARD, _SUCCESS = "next.reward", "next.success"


def find_demonstrations(config: ExperimentConfig, folder: Path) -> DatasetFeatures:
    """Open the dataset that `algorithm.demo_buffer` names, and find what the policy sees and does in it.

    Raises:
        UserError: It is none, was made with another mapping, or does not say what its episodes earned.
    """
    if config.sft is None:
        raise UserError(
            "The block that says which features of a dataset are the policy's is missing",
            key="sft",
            expected="an experiment with a block sft, for algorithm.demo_buffer",
            fix="add sft: {}",
        )
    dataset = DemonstrationDataset(folder)
    check_sources(dataset, config)
    features = find_features(dataset, config)
    if not {_REWARD, _SUCCESS} & dataset.features.keys():
        raise UserError(
            "The demonstrations do not say what they earned",
            file=dataset.root,
            key="algorithm.demo_buffer.load_path",
            expected=f"a dataset with the feature {_REWARD}, or with {_SUCCESS}, whose steps are worth 1",
            fix="record them with `regrasp collect`, or add the feature",
        )
    return features


@torch.no_grad()
def replayed_demonstrations(config: ExperimentConfig, features: DatasetFeatures, policy: Policy) -> Decisions:
    """The decisions of demonstrations, as if the policy had made them: a chunk from every frame.

    An episode gives as many chains of decisions as a chunk has steps, each from another of its first frames on. It ends
    where the demonstration does, with a success where one was recorded.

    Args:
        config: The experiment.
        features: Of the dataset.
        policy: On its device, ready for training.
    """
    dataset, length = features.dataset, policy.spec.num_action_chunks
    rows = [row for episode in dataset.episodes for row in _chained(episode.start, episode.stop, length)]
    starts, stops, columns, times = map(np.array, zip(*rows, strict=True))
    steps = np.minimum(starts[:, None] + np.arange(length), stops[:, None] - 1)
    executed = torch.from_numpy(np.minimum(length, stops - starts))
    is_executed = torch.arange(length) < executed[:, None]
    actions = torch.from_numpy(features.load_actions()[steps])
    rewards, success = _earned(dataset)
    device = next(policy.parameters()).device
    inputs, traces = [], []
    prepared = TensorDict.cat(list(prepared_frames(policy, features, config.env.train.mapping, starts)))
    for part in torch.arange(len(starts)).split(_PART):
        seen = policy.encode(prepared[part].to(device))
        seen["decision"] = torch.from_numpy(times)[part].to(device)  # as rollouts have it among the features
        noise = KeyedNoise(config.seed, "data", [(int(row), _STREAM, 0) for row in part])
        traces.append(policy.demonstrated(seen, actions[part].to(device), noise).cpu())
        inputs.append(seen)
    record = TensorDict(
        {
            "column": torch.from_numpy(columns),
            "time": torch.from_numpy(times),
            "decision": torch.from_numpy(times),
            "rewards": rewards[steps] * is_executed,
            "num_executed": executed,
            "ends": torch.from_numpy(starts + length >= stops),
            "success": (success[steps] & is_executed).any(1),
            "is_final": torch.zeros(len(starts), dtype=torch.bool),
            "trace": TensorDict.cat(traces),
        },
        batch_size=[len(starts)],
    )
    chain = torch.argsort(record["column"] * (int(times.max()) + 1) + record["time"], stable=True)
    return Decisions(TensorDict.cat(inputs)[chain.to(device)], record[chain], are_encoded=True)


def _chained(start: int, stop: int, length: int) -> list[tuple[int, int, int, int]]:
    """First frame, end of the episode, chain and number in it, of the decision at every frame of an episode."""
    return [(frame, stop, start + (frame - start) % length, (frame - start) // length) for frame in range(start, stop)]


def _earned(dataset: DemonstrationDataset) -> tuple[Tensor, Tensor]:
    """(N,) float32 rewards, and (N,) bool whether the episode's success was seen at a frame."""
    names = [name for name in (_REWARD, _SUCCESS) if name in dataset.features]
    columns = {name: values.reshape(-1) for name, values in dataset.load_columns(names).items()}
    rewards = columns.get(_REWARD, columns.get(_SUCCESS))
    success = columns.get(_SUCCESS, columns.get(_REWARD))
    assert rewards is not None
    assert success is not None
    return torch.from_numpy(rewards.astype(np.float32)), torch.from_numpy(success > 0)
