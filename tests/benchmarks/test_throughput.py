"""The throughput benchmark's rows, at toy size."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import throughput  # pyright: ignore[reportMissingImports]


def test_a_row_runs_all_epochs_and_has_every_figure() -> None:
    row = throughput.measure("local", num_envs=4, num_updates=2)
    assert row["layout"] == "local"
    assert (row["num_envs"], row["minibatch"], row["epochs_run"]) == (4, 50, throughput.EPOCHS)
    figures = ("env_steps_per_second", "share_of_bare_loop", "round_trip_ms", "startup_s", "num_processes", "peak_gb")
    assert all(row[name] > 0 for name in figures)
