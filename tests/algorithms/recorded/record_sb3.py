"""Records what stable-baselines3's soft actor-critic computes on a batch, for `test_sac_recorded.py`.

    python tests/algorithms/recorded/record_sb3.py        in an environment with stable-baselines3

Its own `SAC.train` makes one gradient step on a replay of random transitions, with learning rate 0 so that all losses
are those of the same weights, and with noise that is recorded too.
"""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import stable_baselines3  # pyright: ignore[reportMissingImports]
import torch
from gymnasium import spaces

FILE = Path(__file__).parent / "sb3_sac.json"
BATCH, STATE, ACTION, HIDDEN, SEED = 16, 3, 2, 8, 0


class Space(gymnasium.Env):
    """Spaces, and nothing that is ever stepped."""

    observation_space = spaces.Box(-np.inf, np.inf, (STATE,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (ACTION,), np.float32)

    def reset(self, **_: object) -> tuple[np.ndarray, dict[str, object]]:
        """Nothing."""
        return np.zeros(STATE, np.float32), {}


def main() -> None:
    """Make the step and write what went in and out."""
    model = stable_baselines3.SAC(
        "MlpPolicy",
        Space(),
        learning_rate=0.0,
        buffer_size=BATCH,
        batch_size=BATCH,
        gamma=0.9,
        ent_coef="auto_0.2",
        target_entropy=-1.5,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]},
        seed=SEED,
        device="cpu",
    )
    generator = np.random.default_rng(SEED)
    for _ in range(BATCH):
        model.replay_buffer.add(
            generator.normal(size=(1, STATE)).astype(np.float32),
            generator.normal(size=(1, STATE)).astype(np.float32),
            generator.uniform(-0.9, 0.9, (1, ACTION)).astype(np.float32),
            generator.normal(size=1).astype(np.float32),
            np.array([generator.random() < 0.3]),
            [{}],
        )
    generator_of_weights = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in (*model.actor.parameters(), *model.critic_target.parameters()):
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator_of_weights)
        # A standard deviation that the state does not change: every parametrisation of it can be given this one.
        model.actor.log_std.weight.zero_()
        model.actor.log_std.bias.copy_(torch.tensor([-0.7, -0.2]))
    noise = torch.randn(2, BATCH, ACTION, generator=generator_of_weights)
    batches, draws = [], iter(noise)
    sample = model.replay_buffer.sample

    def recorded(*arguments: object, **named: object) -> object:
        batches.append(sample(*arguments, **named))
        return batches[-1]

    model.replay_buffer.sample = recorded
    normal = torch.distributions.Normal
    original = normal.rsample
    setattr(normal, "rsample", lambda self, *_: self.loc + self.scale * next(draws))  # noqa: B010
    model._setup_learn(1)
    try:
        model.train(1, BATCH)
    finally:
        normal.rsample = original
    values = model.logger.name_to_value
    (batch,) = batches
    content = {
        "version": stable_baselines3.__version__,
        "gamma": 0.9,
        "target_entropy": -1.5,
        "alpha": float(values["train/ent_coef"]),
        "losses": {name: float(values[f"train/{name}"]) for name in ("critic_loss", "actor_loss", "ent_coef_loss")},
        "noise": noise.tolist(),
        "batch": {
            name: getattr(batch, name).tolist()
            for name in ("observations", "actions", "next_observations", "rewards", "dones")
        },
        "actor": {name: value.tolist() for name, value in model.actor.state_dict().items()},
        "critic": {name: value.tolist() for name, value in model.critic.state_dict().items()},
        "critic_target": {name: value.tolist() for name, value in model.critic_target.state_dict().items()},
    }
    FILE.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
