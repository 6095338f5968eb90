"""Environment steps per second of whole updates where environment and policy cost next to nothing.

    python benchmarks/throughput.py [--layouts local ray] [--num_envs 64 256 1024] [--json PATH]

A vector environment with 42 observations and 8 actions, 50 steps per update, PPO with 8 epochs, an MLP policy of three
layers of 256, and as large a one for the values. Layouts: `local`, one process; `ray`, all roles in one Ray actor;
`ray_env_apart`, the environments in a second one. Every row is measured in processes of its own.

The measure of a row is `share_of_bare_loop`: its speed over that of a bare torch loop that makes the same update (same
networks, minibatches, epochs, losses, clipping and AdamW, on tensors that are there: no rollout, metrics or checks).
Both are timed in turn, so that they have the same machine. `round_trip_ms` is the whole rollout over its 50 steps;
`overhead_ms` is that without what environment and policy themselves compute, timed alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

LAYOUTS = {
    "local": {"actor,env,rollout": 0},
    "ray": {"actor,env,rollout": 0},
    "ray_env_apart": {"env": 0, "actor,rollout": 1},
}
MINIBATCH = {64: 800, 256: 3200, 1024: 6400}
NUM_STEPS = 50
ACTION_DIM = 8
EPOCHS = 8


def experiment(layout: str, num_envs: int) -> Any:
    """The experiment of a row."""
    from regrasp.experiment import ClusterConfig
    from regrasp.experiment.load import load_config

    minibatch = MINIBATCH.get(num_envs, num_envs * NUM_STEPS // 4)
    overrides = [
        f"env.train.total_num_envs={num_envs}",
        f"env.train.max_steps_per_rollout_epoch={NUM_STEPS}",
        f"env.train.max_episode_steps={NUM_STEPS}",
        "env.train.auto_reset=true",
        "runner.val_check_interval=-1",
        f"actor.global_batch_size={minibatch}",
        f"actor.micro_batch_size={minibatch}",
        "actor.model.num_action_chunks=1",
        f"actor.model.action_dim={ACTION_DIM}",
        "actor.model.mlp.hidden=[256,256,256]",
        f"algorithm.update_epoch={EPOCHS}",
        "algorithm.target_kl=null",
        "algorithm.rollout_epoch=1",
    ]
    config = load_config("pick_cube_ppo_mlp", overrides).config
    return dataclasses.replace(config, cluster=ClusterConfig(component_placement=LAYOUTS[layout]))


@contextlib.contextmanager
def started(layout: str, config: Any, folder: Path) -> Iterator[Any]:
    """The engine of a layout."""
    import torch

    import trivial_env
    from regrasp.engine.local import LocalEngine

    if layout == "local":
        env = trivial_env.create_env(config.env.train, "train", 1, 0)
        policy = trivial_env.create_policy(config, env.spec, None)
        yield LocalEngine(config, policy, [env], config.seed, torch.device("cpu"), folder)
        return
    from regrasp.engine.placement import Resources, plan
    from regrasp.engine.ray.cluster import connected
    from regrasp.engine.ray.engine import RayEngine
    from regrasp.engine.ray.processes import Makers

    with connected(None, len(plan(config, Resources.of_this_machine()).processes)) as machines:
        makers = Makers(trivial_env.create_env, trivial_env.create_policy)
        placed = plan(config, machines.resources)
        with contextlib.closing(RayEngine(config, placed, machines, config.seed, folder, makers)) as engine:
            yield engine


class BareLoop:
    """The update of a row in plain torch."""

    def __init__(self, config: Any, num_envs: int) -> None:
        import torch

        import trivial_env as sizes
        from regrasp.models.value_head import silu_mlp

        self._config, self._size = config, config.actor.global_batch_size
        count = num_envs * NUM_STEPS
        generator = torch.Generator().manual_seed(0)
        self._states = torch.randn(count, sizes.STATE_DIM, generator=generator)
        self.actor = silu_mlp((sizes.STATE_DIM, *sizes.HIDDEN, sizes.ACTION_DIM))
        self.critic = silu_mlp((sizes.STATE_DIM, *sizes.HIDDEN, 1))
        self.log_std = torch.nn.Parameter(torch.full((sizes.ACTION_DIM,), -0.7))
        self._groups = [[*self.actor.parameters(), self.log_std], [*self.critic.parameters()]]
        optim = config.actor.optim
        self._optimizer = torch.optim.AdamW(
            [{"params": own, "lr": rate} for own, rate in zip(self._groups, (optim.lr, optim.value_lr), strict=True)],
            betas=(optim.adam_beta1, optim.adam_beta2),
            eps=optim.adam_eps,
            weight_decay=optim.weight_decay,
        )
        with torch.no_grad():
            self._actions = self.actor(self._states) + 0.5 * torch.randn(count, sizes.ACTION_DIM, generator=generator)
            self._log_probs = self._log_prob(self._states, self._actions)
            self._values = self.critic(self._states).squeeze(-1)
        self._advantages = torch.randn(count, generator=generator)
        self._returns = torch.randn(count, generator=generator)

    def _log_prob(self, states: Any, actions: Any) -> Any:
        distances = (actions - self.actor(states)) * (-self.log_std).exp()
        return (-0.5 * distances.square() - self.log_std).sum(-1)

    def update(self) -> float:
        """Every epoch over all minibatches; returns the seconds that it took."""
        import torch
        from torch.nn.functional import huber_loss

        started = time.perf_counter()
        algorithm, count = self._config.algorithm, len(self._states)
        low, high = 1 - algorithm.clip_ratio_low, 1 + algorithm.clip_ratio_high
        delta, clip = algorithm.huber_delta, algorithm.value_clip
        for _ in range(EPOCHS):
            for rows in torch.randperm(count).split(self._size):
                states, advantages, returns = self._states[rows], self._advantages[rows], self._returns[rows]
                ratio = (self._log_prob(states, self._actions[rows]) - self._log_probs[rows]).exp()
                loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high)).mean()
                values, old = self.critic(states).squeeze(-1), self._values[rows]
                losses = huber_loss(values, returns, reduction="none", delta=delta)
                clipped = old + (values - old).clamp(-clip, clip)
                clipped_losses = huber_loss(clipped, returns, reduction="none", delta=delta)
                loss = loss + torch.maximum(losses, clipped_losses).mean()
                self._optimizer.zero_grad()
                loss.backward()
                for group in self._groups:
                    torch.nn.utils.clip_grad_norm_(group, self._config.actor.optim.clip_grad)
                self._optimizer.step()
        return time.perf_counter() - started


def own_arithmetic(loop: BareLoop, num_envs: int) -> float:
    """Seconds that environment and policy themselves compute in a rollout."""
    import torch

    import trivial_env

    env = trivial_env.TrivialEnv(num_envs)
    state = env.reset(range(num_envs), range(num_envs)).state["state"]
    started = time.perf_counter()
    with torch.no_grad():
        for _ in range(NUM_STEPS):
            mean, std = loop.actor(state), loop.log_std.exp()
            loop.critic(state)
            noise = torch.randn(mean.shape)
            (-0.5 * noise.square() - std.log()).sum(-1)
            state = env.step((mean + std * noise)[:, None]).observation.state["state"]
    return time.perf_counter() - started


def measure(layout: str, num_envs: int, num_updates: int) -> dict[str, Any]:
    """A row, in this process."""
    config = experiment(layout, num_envs)
    with tempfile.TemporaryDirectory() as folder, started(layout, config, Path(folder)) as engine:
        startup = time.time() - psutil.Process().create_time()
        loop = BareLoop(config, num_envs)
        times: dict[str, list[float]] = {name: [] for name in ("collect", "update", "bare", "own")}
        minibatches = 0.0
        for number in range(num_updates + 1):  # the first one warms up
            begun = time.perf_counter()
            collected = engine.collect(number, lambda: False)
            between = time.perf_counter()
            metrics = engine.update(number, lambda: False)
            times["collect"].append(between - begun)
            times["update"].append(time.perf_counter() - between)
            times["bare"].append(loop.update())
            times["own"].append(own_arithmetic(loop, num_envs))
            minibatches = metrics["actor/minibatches"]
            assert collected.num_steps == num_envs * NUM_STEPS
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        peak = sum(map(_peak_bytes, processes))
        count = len(processes)
    collects, updates, bares, owns = ([*values[1:]] for values in times.values())
    whole = [sum(both) for both in zip(collects, updates, strict=True)]
    median = statistics.median
    return {
        "layout": layout,
        "num_envs": num_envs,
        "env_steps_per_second": round(num_envs * NUM_STEPS / median(whole)),
        "share_of_bare_loop": round(median(b / w for b, w in zip(bares, whole, strict=True)), 3),
        "round_trip_ms": round(1e3 * median(collects) / NUM_STEPS, 3),
        "overhead_ms": round(1e3 * median(c - o for c, o in zip(collects, owns, strict=True)) / NUM_STEPS, 3),
        "update_ms": round(1e3 * median(updates), 1),
        "bare_update_ms": round(1e3 * median(bares), 1),
        "startup_s": round(startup, 2),
        "num_processes": count,
        "peak_gb": round(peak / 1e9, 2),
        "epochs_run": round(minibatches * config.actor.global_batch_size / (num_envs * NUM_STEPS), 3),
        "minibatch": config.actor.global_batch_size,
    }


def _peak_bytes(process: psutil.Process) -> int:
    """The most memory that a process has had; what several share counts for each of them."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return 1024 * int(line.split()[1])


def main() -> None:
    """Measure all rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--num_envs", nargs="+", type=int, default=list(MINIBATCH))
    parser.add_argument("--updates", type=int, default=9, help="timed ones of a row")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows there too")
    parser.add_argument("--row", action="store_true", help="measure one row in this process and print it")
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.layouts[0], args.num_envs[0], args.updates)))
        return
    rows = []
    for num_envs in args.num_envs:
        for layout in args.layouts:
            command = [sys.executable, __file__, "--row", "--layouts", layout, "--num_envs", str(num_envs)]
            done = subprocess.run(
                [*command, "--updates", str(args.updates)], stdout=subprocess.PIPE, text=True, check=True
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
