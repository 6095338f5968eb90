"""Weights arrive as they were sent, or the run is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import in_processes
from torch import Tensor

from regrasp import ranks
from regrasp.engine import weights
from regrasp.engine.weights import WeightSync
from regrasp.errors import RegraspError

CPU = torch.device("cpu")


def sent() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    own = {f"layer.{number}": torch.randn(number, 5, generator=generator) for number in range(1, 6)}
    return {**own, "half": torch.ones(7, dtype=torch.bfloat16), "last": torch.full((), 3.0)}


def communicate(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    ranks.BUCKET_BYTES = 64
    for damaged in (False, True):
        channel = WeightSync(dist.new_group([0, 1]), 0, CPU)  # pyright: ignore[reportArgumentType]
        exchange(channel, rank, damaged)
    dist.destroy_process_group()


def exchange(channel: WeightSync, rank: int, damaged: bool) -> None:
    if rank == 0:
        channel.send(sent().items())
    elif damaged:
        checksum = weights._checksum
        weights._checksum = lambda flat: checksum(flat) + (flat.numel() == 7)
        with pytest.raises(RegraspError, match="did not arrive as they were sent"):
            channel.receive({name: torch.zeros_like(weight) for name, weight in sent().items()})
    else:
        received = {name: torch.zeros_like(weight) for name, weight in sent().items()}
        channel.receive(received)
        assert all(torch.equal(received[name], weight) for name, weight in sent().items())


def test_weights_arrive_or_the_run_is_told(tmp_path: Path) -> None:
    in_processes(communicate, (tmp_path,), 2)
