"""Data-parallel and sharded training of GR00T N1.5 on several GPUs of one host, with random weights.

    python benchmarks/scaling.py --gpus 2 --json benchmarks/results/scaling_2.json
    python benchmarks/scaling.py --gpus 2 --tiny     the same code with a tiny network on CPU processes

Every rank has 16 environments and 32 samples of a minibatch, so that ideal scaling keeps all times. Updates are timed
as the learner runs them: exchange of rows, forward, backward, sums over the ranks, clipping, AdamW, metrics. What one
rank computes of the same decisions is compared with what all do.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import groot_gpu as single
from regrasp.config.types import Precision
from regrasp.engine.weights import WeightSync
from regrasp.experiment.fsdp import FsdpConfig, MixedPrecision
from regrasp.learner.compilation import capture_updates, compile_policy
from regrasp.learner.learner import Learner
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.models.config import TrainablePart
from regrasp.ranks import ProcessGroupRanks, Ranks, group_of
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.decisions import Decisions
from regrasp.rollout.shared import share
from regrasp.seeding import KeyedNoise
from results_file import revision

ENVS_PER_RANK = 16
SHARDED_BATCHES = (4, 8)
"""Samples of a rank where everything trains."""
CHUNKS = 8
UPDATES: dict[str, tuple[TrainablePart, bool, bool]] = {
    "update cached": ("head", True, True),
    "update frozen context": ("head_without_context", True, True),
    "update backbone re-run": ("head", False, True),
}
"""What trains, whether features are cached, and whether it is compiled."""


@dataclasses.dataclass(frozen=True)
class Place:
    """One rank, and what it measures with."""

    sizes: single.Sizes
    ranks: Ranks
    envs_per_rank: int
    repeats: int
    updates: Sequence[str] = ()
    """Which of `UPDATES` to time; none for all."""

    @property
    def device(self) -> torch.device:
        """The rank's own."""
        return self.sizes.device

    def timed(self, call: Callable[[], Any], repeats: int) -> float:
        """Median milliseconds of a call that all ranks make at the same time, of the slowest rank."""
        samples = []
        for number in range(repeats + 1):
            self.wait()
            started = time.perf_counter()
            call()
            self.wait()
            if number:
                samples.append((time.perf_counter() - started) * 1e3)
        slowest = torch.tensor(statistics.median(samples), device=self.device)
        self.ranks.largest(slowest)
        return float(slowest)

    def wait(self) -> None:
        """Until all that was asked of the devices of all ranks is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.ranks.any(False)

    def peak_gb(self) -> float:
        """Memory that torch has taken of the GPU, at most."""
        return torch.cuda.max_memory_reserved() / 1e9 if self.device.type == "cuda" else 0.0


class Made:
    """A learner and the decisions that it trains on."""

    def __init__(
        self,
        place: Place,
        trainable: TrainablePart,
        *,
        cached: bool,
        compiled: bool,
        fsdp: FsdpConfig | None = None,
        micro: int | None = None,
        reduce: Precision = "bf16",
    ) -> None:
        single.release(place.device)
        sizes, ranks = place.sizes, place.ranks
        policy = single.random_policy(sizes, trainable)
        model = single.model_config(trainable)
        apply_precision(policy, model, place.device)
        actor = single.actor_config(sizes, trainable)
        actor.fsdp_config = fsdp or FsdpConfig(mixed_precision=MixedPrecision(reduce_dtype=reduce))
        actor.micro_batch_size = micro or sizes.minibatch
        actor.global_batch_size = actor.micro_batch_size * (place.envs_per_rank * ranks.count // ENVS_PER_RANK)
        self.batch_size = actor.global_batch_size
        algorithm = single.ALGORITHM.build()
        self.learner = Learner(policy, algorithm, actor, num_updates=1, seed=0, device=place.device, ranks=ranks)
        source = self.learner.sharded or self.learner.bfloat16
        self.acting = ActingPolicy(policy, model, place.device, source)
        self.acting.refresh()
        decisions = algorithm.prepare(collected(place, self.acting.policy, cached=cached))
        self.num_minibatches = max(1, len(decisions) // actor.global_batch_size)
        self.decisions = decisions.rows(
            torch.arange(min(len(decisions), self.num_minibatches * actor.global_batch_size))
        )
        single.release(place.device)
        if compiled:
            compile_policy(self.learner.computing, {sizes.minibatch}, place.device, backend=sizes.backend)
            if place.device.type == "cuda":
                capture_updates(self.learner, sizes.minibatch, backend=sizes.backend)
        self.learner.computing.train()

    def update(self) -> dict[str, float]:
        """One pass over the decisions."""
        return self.learner.update(self.decisions, 0, lambda: False)


def collected(place: Place, acting: Any, *, cached: bool) -> Decisions:
    """A rollout with random rewards, of which every rank has its environments, whatever their number."""
    sizes, ranks, own = place.sizes, place.ranks, place.envs_per_rank
    total = own * ranks.count
    buffer = RolloutBuffer(own * CHUNKS, holds_features=cached)
    rows = torch.arange(total)[ranks.share(total)]
    generator = torch.Generator().manual_seed(3)
    for chunk in range(CHUNKS):
        inputs = single.prepared(sizes, total, seed=chunk)
        rewards = torch.rand((total, sizes.groot.action_horizon), generator=generator)
        for block in rows.split(ENVS_PER_RANK):  # of one shape, so that all numbers of ranks see the same
            seen = inputs[block.to(place.device)]
            noise = KeyedNoise(0, "train", [(row, 0, chunk) for row in block.tolist()])
            with torch.no_grad():
                features = acting.encode(seen)
                action = acting.act(features, noise, deterministic=False)
            executed, ends = (
                torch.full((len(block),), action.actions.shape[1]),
                torch.zeros(len(block), dtype=torch.bool),
            )
            buffer.add(chunk, block, features if cached else seen, action, rewards[block], executed, ends, version=0)
    return share(buffer.build(), ranks, total)


def measure(place: Place, parts: list[str]) -> list[dict[str, Any]]:
    """All rows of this number of ranks."""
    count, minibatch, rows = place.ranks.count, place.sizes.minibatch, list[dict[str, Any]]()

    def row(what: str, milliseconds: float, samples: int, **more: float) -> None:
        rate = 1e3 * samples * count / milliseconds
        rows.append({"what": what, "gpus": count, "ms": milliseconds, "samples_per_second": rate, **more})
        if not place.ranks.index:
            print(json.dumps(rows[-1]), flush=True)

    if "update" in parts:
        for what, (trainable, cached, compiled) in UPDATES.items():
            if place.updates and what not in place.updates:
                continue
            made = Made(place, trainable, cached=cached, compiled=compiled)
            first = made.update()
            milliseconds = place.timed(made.update, place.repeats) / made.num_minibatches
            row(what, milliseconds, minibatch, peak_gb=place.peak_gb(), first_loss=first["actor/total_loss"])
            if what == "update cached":
                compile_policy(made.acting.policy, {place.envs_per_rank}, place.device, backend=place.sizes.backend)
                inputs = single.prepared(place.sizes, place.envs_per_rank)
                acting: Any = made.acting.policy
                row(
                    "rollout",
                    place.timed(lambda acting=acting, inputs=inputs: single.act(acting, inputs), 2 * place.repeats),
                    place.envs_per_rank,
                )
            del made
    if "sync" in parts and count > 1:
        row("weight sync", *sync(place))
    if "shard" in parts:
        for strategy, micro in itertools.product(("no_shard", "full_shard"), SHARDED_BATCHES):
            made = Made(
                place, "all", cached=False, compiled=False, fsdp=FsdpConfig(sharding_strategy=strategy), micro=micro
            )
            made.update()
            row(
                f"all trains, {strategy}, {micro} samples per rank",
                place.timed(made.update, 2) / made.num_minibatches,
                micro,
                peak_gb=place.peak_gb(),
                allocated_gb=torch.cuda.max_memory_allocated() / 1e9 if place.device.type == "cuda" else 0.0,
            )
            del made
    return rows


def largest_minibatches(rows: list[dict[str, Any]], memory_gb: float) -> list[dict[str, Any]]:
    """About how many samples of a minibatch fit where everything trains: memory grows by as much for each."""
    found = []
    measured = [row for row in rows if "allocated_gb" in row]
    for fewer, more in zip(measured[::2], measured[1::2], strict=True):
        few, many = SHARDED_BATCHES
        each = (more["allocated_gb"] - fewer["allocated_gb"]) / (many - few)
        strategy = fewer["what"].split(",")[1].strip()
        samples = int(few + (memory_gb - fewer["allocated_gb"]) / each) if each > 0 else None
        found.append({"strategy": strategy, "gpus": fewer["gpus"], "GB a sample": each, "samples that fit": samples})
    return found


def sync(place: Place) -> tuple[float, int]:
    """Milliseconds in which the head's float32 weights go from the first rank to the others, and their megabytes."""
    policy = single.random_policy(place.sizes, "head")
    policy.prepare_training("head")
    weights = {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}
    channel = WeightSync(group_of(range(place.ranks.count)), 0, place.device)
    call = (lambda: channel.receive(weights)) if place.ranks.index else (lambda: channel.send(weights.items()))
    return place.timed(call, place.repeats), sum(weight.nbytes for weight in weights.values()) // 10**6


def compare(place: Place) -> dict[str, float]:
    """Loss and gradient norm of a first optimizer step."""
    made = Made(place, "head", cached=True, compiled=False, reduce="fp32")
    made.decisions = made.decisions.rows(torch.arange(made.batch_size))
    found = made.update()
    return {name: found[f"actor/{name}"] for name in ("total_loss", "grad_norm")}


def work(
    rank: int, count: int, total_envs: int, tiny: bool, parts: list[str], updates: list[str], meeting: str, out: str
) -> None:
    """One rank."""
    torch.set_num_threads(1 if tiny else 8)
    sizes = single.sizes_of(tiny=tiny)
    if not tiny:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        sizes = dataclasses.replace(sizes, device=device)
    ranks = Ranks()
    if count > 1:
        backend = "gloo" if tiny else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=count)
        ranks = ProcessGroupRanks(sizes.device)
    place = Place(sizes, ranks, total_envs // count, 1 if tiny else 5, updates)
    found: Any = compare(place) if parts == ["compare"] else measure(place, parts)
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    if count > 1:
        dist.destroy_process_group()


def run(count: int, total_envs: int, tiny: bool, parts: list[str], updates: list[str]) -> Any:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        spawn(work, (count, total_envs, tiny, parts, updates, f"{folder}/meeting", str(out)), nprocs=count)
        return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, required=True, help="the largest number of ranks; 1, 2, 4, ... up to it")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on CPU processes")
    parser.add_argument("--parts", default="update,sync,shard,compare", help="which of them to measure")
    parser.add_argument("--only", nargs="+", default=[], choices=[*UPDATES], help="of the updates, those to time")
    args = parser.parse_args()
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    parts = args.parts.split(",")
    counts = [count for count in (1, 2, 4, 8) if count <= args.gpus]
    measured = [part for part in parts if part != "compare"]
    rows = [
        row for count in counts if measured for row in run(count, count * ENVS_PER_RANK, args.tiny, measured, args.only)
    ]
    alone = {row["what"]: row["samples_per_second"] for row in rows if row["gpus"] == 1}
    for row in rows:
        if row["what"] in alone:
            row["efficiency"] = row["samples_per_second"] / alone[row["what"]] / row["gpus"]
    same = {}
    if "compare" in parts:
        total = args.gpus * ENVS_PER_RANK
        one, several = (run(count, total, args.tiny, ["compare"], []) for count in (1, args.gpus))
        same = {name: {"one": one[name], "several": several[name]} for name in one}
    device = "CPU" if args.tiny else torch.cuda.get_device_name(0)
    memory_gb = 0.0 if args.tiny else torch.cuda.get_device_properties(0).total_memory / 1e9
    document = {
        "command": " ".join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
        "commit": revision(),
        "device": device,
        "torch": torch.__version__,
        "rows": rows,
        "largest_minibatches": largest_minibatches(rows, memory_gb),
        "same": same,
    }
    for row in rows:
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    print(same)
    if args.json is not None:
        args.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
