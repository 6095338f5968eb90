"""Runs inside RLinf's own Python: trains with its runner and workers, as its `train_embodied_agent.py` does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ray
from hydra import compose, initialize_config_dir
from ray.cluster_utils import Cluster as Nodes
from rlinf.config import validate_cfg  # pyright: ignore[reportMissingImports]
from rlinf.runners.embodied_runner import EmbodiedRunner  # pyright: ignore[reportMissingImports]
from rlinf.scheduler import Cluster  # pyright: ignore[reportMissingImports]
from rlinf.utils.placement import HybridComponentPlacement  # pyright: ignore[reportMissingImports]
from rlinf.workers.actor.fsdp_actor_worker import EmbodiedFSDPActor  # pyright: ignore[reportMissingImports]
from rlinf.workers.env.env_worker import EnvWorker  # pyright: ignore[reportMissingImports]
from rlinf.workers.rollout.hf.huggingface_worker import MultiStepRolloutWorker  # pyright: ignore[reportMissingImports]

WORKERS = {"actor": EmbodiedFSDPActor, "rollout": MultiStepRolloutWorker, "env": EnvWorker}
NUM_ACTORS = 16
"""At least as many as RLinf starts: the workers, its channels and its managers."""


def train(composed: Any) -> None:
    """What RLinf's script does with a configuration that Hydra has read."""
    cfg = validate_cfg(composed)
    cluster = Cluster(cluster_cfg=cfg.cluster)
    placement = HybridComponentPlacement(cfg, cluster)
    groups = {
        name: kind.create_group(cfg).launch(
            cluster, name=cfg[name].group_name, placement_strategy=placement.get_strategy(name)
        )
        for name, kind in WORKERS.items()
    }
    runner = EmbodiedRunner(cfg=cfg, **groups)
    runner.init_workers()
    runner.run()


def main() -> None:
    """Train as FILE OVERRIDE... say, on a Ray cluster that ends with this process and is not another's."""
    file = Path(sys.argv[1])
    with initialize_config_dir(str(file.parent), version_base="1.1"):
        composed = compose(file.stem, overrides=sys.argv[2:])
    head = {"num_cpus": NUM_ACTORS, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = str(nodes.address)
    try:
        train(composed)
    finally:
        ray.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    main()
