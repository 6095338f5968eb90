# pyright: reportMissingImports=false, reportIncompatibleMethodOverride=false
"""How Isaac Lab 3.x reads a task's configuration: before the simulator runs, with presets from the command line."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym


def resolve_task_config(task: str, agent: str) -> tuple[Any, None]:
    config = gym.spec(task).kwargs["env_cfg_entry_point"]()
    config.presets = sys.argv[1:]
    return config, None
