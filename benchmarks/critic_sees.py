"""What critics of chunks can tell from a run's stored experience: whether an episode will succeed, by decision.

    python benchmarks/critic_sees.py <checkpoint>... [--steps 2000] [--weight_decay 0 1] [--name critic_sees]

<checkpoint> is `global_step_<N>` of a run with a residual that only explored, such as `regrasp train --config_name
pick_cube_sac_groot --model_path base --max_epochs 25 actor.model.residual.random_updates=40
algorithm.replay_buffer.min_decisions=60000 runner.save_interval=25 runner.val_check_interval=-1`.

Fresh critics of the product's sizes learn from three quarters of the episodes whether they succeeded; the others give
the area under the curve (AUC, 0.5 is guessing) by decision, and the cross-entropy of them all: with the executed chunk
as an input, and with the frozen policy's chunk in its place, which tells nothing of the offset. Where both are equal, a
critic cannot tell one offset from another. The lowest cross-entropy of the evaluations is also given: what comes after
it is learned by heart.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tensordict import TensorDict
from torch import Tensor

from regrasp.models.config import QHeadConfig
from regrasp.models.groot.residual import BASE
from regrasp.models.q_head import AttentionReader, QHead
from results_file import save

PREFIX = "algorithm.replay."
BATCH = 256
LEARNING_RATE = 1e-3
EVALUATIONS = 5
SHOWN = 4
"""Decisions of an episode in the table."""


@dataclass
class Episodes:
    """Decisions of whole episodes, in a stored replay's order."""

    inputs: TensorDict
    actions: Tensor
    base: Tensor
    decision: Tensor
    succeeded: Tensor
    episode: Tensor
    count: int

    @staticmethod
    def of(checkpoint: Path) -> Episodes:
        """Of a checkpoint's replay."""
        state = load_file(checkpoint / "trainer" / "tensors.safetensors")
        replay = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        decision, following = replay["column.decision"], replay["column.next"].tolist()
        episode = torch.full_like(decision, -1)
        starts = torch.nonzero(decision == 0).flatten().tolist()
        for number, row in enumerate(starts):
            while row >= 0:
                episode[row] = number
                row = following[row]
        rows = torch.nonzero(episode >= 0).flatten()
        inputs = {name: replay[f"inputs.{name}"][rows] for name in ("context", "state")}
        return Episodes(
            TensorDict(inputs, batch_size=[len(rows)]),
            replay["trace.actions"][rows].float(),
            replay[f"trace.{BASE}"][rows].float(),
            decision[rows],
            replay["column.succeeded"][rows].float(),
            episode[rows],
            len(starts),
        )


def auc(values: Tensor, succeeded: Tensor) -> float:
    """The share of pairs of a success and a failure that values order rightly; (B,) each."""
    ranks = torch.empty(len(values))
    ranks[values.argsort()] = torch.arange(1, len(values) + 1, dtype=torch.float32)
    good = float(succeeded.sum())
    bad = len(values) - good
    return (
        float("nan")
        if not good or not bad
        else (float(ranks[succeeded > 0].sum()) - good * (good + 1) / 2) / (good * bad)
    )


def learned(episodes: Episodes, *, sees_offset: bool, steps: int, weight_decay: float) -> dict[str, Any]:
    """Train critics, and judge the episodes that they have not seen."""
    generator = torch.Generator().manual_seed(0)
    held_out = torch.zeros(episodes.count, dtype=torch.bool)
    held_out[torch.randperm(episodes.count, generator=generator)[: episodes.count // 4]] = True
    others, own = (torch.nonzero(held_out[episodes.episode] == which).flatten() for which in (True, False))
    width, num_decisions = episodes.actions.shape[1], int(episodes.decision.max()) + 1
    context, state = (episodes.inputs[name].shape[-1] for name in ("context", "state"))
    sizes = QHeadConfig(hidden=(192, 192), num_q_heads=4, num_decisions=num_decisions)
    critics = QHead(AttentionReader(context, state, ((BASE, width),)), width, sizes)
    critics.reset_parameters(generator)
    optimizer = torch.optim.AdamW(critics.parameters(), LEARNING_RATE, weight_decay=weight_decay)

    def judged(rows: Tensor) -> Tensor:
        inputs = episodes.inputs[rows].float()
        trace = TensorDict({BASE: episodes.base[rows]}, batch_size=[len(rows)])
        actions = episodes.actions if sees_offset else episodes.base
        return critics(inputs, trace, episodes.decision[rows], actions[rows])

    lowest, outputs = float("inf"), torch.empty(0)
    for step in range(1, steps + 1):
        rows = own[torch.randint(len(own), (BATCH,), generator=generator)]
        values = judged(rows)
        loss = F.binary_cross_entropy_with_logits(values, episodes.succeeded[rows].expand_as(values)) * len(values)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(critics.parameters(), 1.0)
        optimizer.step()
        if step % (steps // EVALUATIONS) == 0:
            with torch.no_grad():
                outputs = torch.cat([judged(part).mean(0) for part in others.split(1024)])
            lowest = min(lowest, float(F.binary_cross_entropy_with_logits(outputs, episodes.succeeded[others])))
    found: dict[str, Any] = {"sees the offset": "yes" if sees_offset else "no", "weight decay": weight_decay}
    for decision in range(SHOWN):
        at = episodes.decision[others] == decision
        found[f"AUC at {decision}"] = auc(outputs[at], episodes.succeeded[others][at])
    last = float(F.binary_cross_entropy_with_logits(outputs, episodes.succeeded[others]))
    return {**found, "cross-entropy": last, "lowest": lowest}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, judge, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=2000, help=f"minibatches of {BATCH}")
    parser.add_argument("--weight_decay", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--name", default="critic_sees")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for checkpoint in options.checkpoints:
        episodes = Episodes.of(checkpoint)
        success = float(episodes.succeeded[episodes.decision == 0].mean())
        experience = {"run": checkpoint.parents[1].parent.name, "episodes": episodes.count, "success": success}
        for weight_decay in options.weight_decay:
            for sees_offset in (True, False):
                judged = learned(episodes, sees_offset=sees_offset, steps=options.steps, weight_decay=weight_decay)
                rows.append({**experience, **judged})
    command = [
        "python benchmarks/critic_sees.py",
        f"<{len(options.checkpoints)} checkpoints>",
        f"--steps {options.steps}",
    ]
    command += ["--weight_decay", *map(str, options.weight_decay)]
    save(options.name, " ".join(command), rows)


if __name__ == "__main__":
    main()
