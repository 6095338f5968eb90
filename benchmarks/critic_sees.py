"""What critics of chunks can tell from a run's stored experience: whether an episode will succeed, by decision.

    python benchmarks/critic_sees.py NAME=CHECKPOINT... [--steps 2000] [--weight_decay 0] [--hidden 192 192]

CHECKPOINT is `global_step_<N>` of a run with a residual that only explored, such as `regrasp train --config_name
pick_cube_sac_groot --model_path base --max_epochs 25 actor.model.residual.random_updates=40
algorithm.replay_buffer.min_decisions=60000 runner.save_interval=25 runner.val_check_interval=-1`; NAME is what the
table calls it. All of its experience has to be in the replay.

Freshly initialised critics are trained on three quarters of the episodes to tell whether they succeed, from a
decision's features, the frozen policy's chunk and the executed one. The rest gives the area under the ROC curve (AUC;
0.5 is guessing) by decision, with its standard error, where their cross-entropy was lowest. The second row of a pair
has the frozen policy's chunk in the place of the executed one, so that it is not told the offset of this decision
(those before it show in the state). Where both are equal, critics cannot tell one offset from another.
"""

from __future__ import annotations

import argparse
import math
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
INTERVAL = 200
"""Optimizer steps between two looks at the held-out episodes."""
SHOWN = 4
"""Decisions of an episode in the table."""


@dataclass
class Experience:
    """N decisions of whole episodes."""

    inputs: TensorDict
    actions: Tensor
    """(N, T * A), executed."""
    base: Tensor
    """(N, T * A), the frozen policy's."""
    decision: Tensor
    succeeded: Tensor
    episode: Tensor
    num_episodes: int

    @staticmethod
    def of(checkpoint: Path) -> Experience:
        """Of a checkpoint's replay; episodes that have not ended are left out."""
        state = load_file(checkpoint / "trainer" / "tensors.safetensors")
        replay = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        following, is_over = replay["column.next"].tolist(), replay["column.is_over"].tolist()
        episode = torch.full_like(replay["column.decision"], -1)
        count = 0
        for start in torch.nonzero(replay["column.decision"] == 0).flatten().tolist():
            rows, row = [], start
            while row >= 0:
                rows.append(row)
                row = following[row]
            if is_over[rows[-1]]:
                episode[rows] = count
                count += 1
        rows = torch.nonzero(episode >= 0).flatten()
        inputs = {name: replay[f"inputs.{name}"][rows] for name in ("context", "state")}
        return Experience(
            TensorDict(inputs, batch_size=[len(rows)]),
            replay["trace.actions"][rows].float(),
            replay[f"trace.{BASE}"][rows].float(),
            replay["column.decision"][rows],
            replay["column.succeeded"][rows].float(),
            episode[rows],
            count,
        )


def auc(values: Tensor, succeeded: Tensor) -> tuple[float, float]:
    """The share of pairs of a success and a failure that values (B,) order rightly, and its standard error.

    The error is that of Hanley and McNeil (Radiology, 1982).
    """
    ranks = torch.empty(len(values))
    ranks[values.argsort()] = torch.arange(1, len(values) + 1, dtype=torch.float32)
    good = float(succeeded.sum())
    bad = len(values) - good
    if not good or not bad:
        return float("nan"), float("nan")
    area = (float(ranks[succeeded > 0].sum()) - good * (good + 1) / 2) / (good * bad)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (good - 1) * (q1 - area**2) + (bad - 1) * (q2 - area**2)
    return area, math.sqrt(max(0.0, variance) / (good * bad))


def train_and_score(
    experience: Experience, *, told_offset: bool, steps: int, weight_decay: float, hidden: Sequence[int]
) -> dict[str, Any]:
    """Train critics, and score held-out episodes where their cross-entropy is lowest."""
    generator = torch.Generator().manual_seed(0)
    is_held_out = torch.zeros(experience.num_episodes, dtype=torch.bool)
    is_held_out[torch.randperm(experience.num_episodes, generator=generator)[: experience.num_episodes // 4]] = True
    held_out = torch.nonzero(is_held_out[experience.episode]).flatten()
    training = torch.nonzero(~is_held_out[experience.episode]).flatten()
    width, num_decisions = experience.actions.shape[1], int(experience.decision.max()) + 1
    context, state = (experience.inputs[name].shape[-1] for name in ("context", "state"))
    sizes = QHeadConfig(hidden=tuple(hidden), num_q_heads=4, num_decisions=num_decisions)
    critics = QHead(AttentionReader(context, state, ((BASE, width),)), width, sizes)
    critics.reset_parameters(generator)
    optimizer = torch.optim.AdamW(critics.parameters(), LEARNING_RATE, weight_decay=weight_decay)
    told = experience.actions if told_offset else experience.base

    def outputs(rows: Tensor) -> Tensor:
        trace = TensorDict({BASE: experience.base[rows]}, batch_size=[len(rows)])
        return critics(experience.inputs[rows].float(), trace, experience.decision[rows], told[rows])

    lowest, last, best = float("inf"), float("inf"), torch.zeros(len(held_out))
    for step in range(1, steps + 1):
        rows = training[torch.randint(len(training), (BATCH,), generator=generator)]
        values = outputs(rows)
        loss = F.binary_cross_entropy_with_logits(values, experience.succeeded[rows].expand_as(values)) * len(values)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(critics.parameters(), 1.0)
        optimizer.step()
        if step % INTERVAL == 0 or step == steps:
            with torch.no_grad():
                found = torch.cat([outputs(part).mean(0) for part in held_out.split(1024)])
            last = float(F.binary_cross_entropy_with_logits(found, experience.succeeded[held_out]))
            if last < lowest:
                lowest, best = last, found
    row: dict[str, Any] = {"told the offset": "yes" if told_offset else "no", "weight decay": weight_decay}
    for decision in range(SHOWN):
        at = experience.decision[held_out] == decision
        area, error = auc(best[at], experience.succeeded[held_out][at])
        row[f"AUC at {decision}"] = f"{area:.3f} ± {error:.3f}"
    return {**row, "cross-entropy": lowest, "at the end": last}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--steps", type=int, default=2000, help=f"optimizer steps on minibatches of {BATCH}")
    parser.add_argument("--weight_decay", type=float, nargs="+", default=[0.0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[192, 192], help="widths of the critics")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for named in options.checkpoints:
        name, _, checkpoint = named.partition("=")
        if not (Path(checkpoint) / "trainer").is_dir():
            parser.error(f"{named}: expected NAME=CHECKPOINT, a folder global_step_<N> with its trainer/")
        experience = Experience.of(Path(checkpoint))
        success = float(experience.succeeded[experience.decision == 0].mean())
        about = {"experience": name, "episodes": experience.num_episodes, "success": success}
        for weight_decay in options.weight_decay:
            for told_offset in (True, False):
                settings = {"steps": options.steps, "weight_decay": weight_decay, "hidden": options.hidden}
                rows.append({**about, **train_and_score(experience, told_offset=told_offset, **settings)})
    names = [f"'{named.partition('=')[0]}'=<checkpoint>" for named in options.checkpoints]
    command = ["python benchmarks/critic_sees.py", *names, f"--steps {options.steps}"]
    save("critic_sees", " ".join([*command, "--weight_decay", *map(str, options.weight_decay)]), rows)


if __name__ == "__main__":
    main()
