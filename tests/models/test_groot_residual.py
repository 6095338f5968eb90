"""A residual on a GR00T's chunks: it begins as nothing, explores as it is told, and stays with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rl_toys import groot_policy, observation
from tensordict import TensorDict

from regrasp.algorithms.sac import ALPHA
from regrasp.algorithms.sac_config import SacConfig
from regrasp.errors import UserError
from regrasp.models.config import ExportOptions, QHeadConfig
from regrasp.models.contract import Action
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.residual import ACTIONS, BASE, DECISION
from regrasp.models.groot.residual_config import ResidualConfig
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.registry import load_policy
from regrasp.seeding import KeyedNoise
