"""The comparison of algorithms: its table, its bands and its clock, on runs made by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import compare_algorithms  # pyright: ignore[reportMissingImports]
from regrasp.experiment.load import load_config


def curve(*points: tuple[int, float]) -> list[dict[str, float]]:
    return [{"env_steps": steps, "success": s, "seconds": steps / 10, "cpu_seconds": steps / 5} for steps, s in points]


SLOW, FAST = curve((0, 0.4), (100, 0.6), (200, 0.9)), curve((0, 0.2), (100, 0.8), (180, 0.85))


def test_a_row_has_means_over_the_seeds_and_the_cost_of_what_all_reach() -> None:
    row = compare_algorithms.summary("X", [SLOW, FAST])
    assert row["success"] == pytest.approx(0.875)
    assert (row["lowest"], row["highest"], row["base"], row["env steps"]) == (0.85, 0.9, 0.3, 190)
    assert row["steps to 80%"] == round((100 + 100 * 2 / 3 + 100) / 2)
    assert compare_algorithms.summary("X", [SLOW, curve((0, 0.4), (100, 0.7))])["steps to 80%"] == "-"
    assert compare_algorithms.markdown([row]).splitlines()[2].startswith("| X | 2 | 0.3 |")


def test_a_band_goes_as_far_as_the_shortest_run() -> None:
    grid, success = compare_algorithms.band([SLOW, FAST], "env_steps")
    assert grid[-1] == 180
    assert success[:, 0].tolist() == [0.4, 0.2]
    assert success[:, -1].tolist() == pytest.approx([0.84, 0.85])


def test_every_algorithm_is_a_shipped_experiment() -> None:
    for algorithm in compare_algorithms.ALGORITHMS.values():
        assert load_config(algorithm.config).config.runner.logger.experiment_name == algorithm.config


def test_the_clock_counts_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = 0\\nwhile True: x += 1'])"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while compare_algorithms.tree_cpu_seconds(process.pid) < 0.3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, 9)
        process.wait()
