"""Runs inside RLinf's own Python: trains with its runner and workers, as its `train_embodied_agent.py` does."""

from __future__ import annotations

import os
import sys

import ray
from omegaconf import OmegaConf
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
"""At least as many as RLinf starts: these, its channels and its managers."""


def train(file: str, overrides: list[str]) -> None:
    """What RLinf's script does between Hydra and the end."""
    cfg = validate_cfg(OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist(overrides)))
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
    head = {"num_cpus": NUM_ACTORS, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = nodes.address
    try:
        train(sys.argv[1], sys.argv[2:])
    finally:
        ray.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    main()
