"""A run that cannot learn says so, with the likely causes, instead of burning a week of GPU time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, NonNegativeInt
from regrasp.errors import NoSignalError
from regrasp.rollout.episodes import EpisodeResult

_log = logging.getLogger(__name__)

_PATIENCE = 5
"""Updates in a row that learn nothing, or are cut short, after which a run stops or warns."""
_UNREWARDED = 3
"""Updates in a row without any reward after which the run says so."""
_QUIET = 20
"""Updates before it is told again that one had nothing to learn from."""
_RATIO_ERROR = 0.02
"""Distance of the first minibatch's probability ratio from 1 above which a run warns."""
_MIN_EPISODES = 64
"""Finished episodes after which a base model without any success is refused."""


@dataclass(config=BLOCK)
class Signal:
    """What the updates so far showed."""

    episodes: NonNegativeInt = 0
    """Finished in training."""
    rewarded: bool = False
    """Whether any of them had a success or a reward."""
    unrewarded: NonNegativeInt = 0
    """Last updates in a row none of whose episodes had a success or a reward."""
    flat_advantages: NonNegativeInt = 0
    """Last updates in a row whose advantages did not vary."""
    zero_gradients: NonNegativeInt = 0
    """Last updates in a row without a gradient."""
    cut_short: NonNegativeInt = 0
    """Last updates in a row that the target KL ended within their first quarter."""


class SignalGuard:
    """Watches success, advantages and gradients of successive updates.

    Args:
        force: Warn instead of stopping.
        num_steps: Optimizer steps of a whole update; 0 where nothing cuts updates short.
        noise_key: The key that says how much the policy explores, if there is one.
        on_policy: Whether the policy that an update begins with is the one that acted.
    """

    def __init__(
        self, *, force: bool, num_steps: int = 1, noise_key: str | None = None, on_policy: bool = True
    ) -> None:
        self._force = force
        self._on_policy = on_policy
        self._noise_key = "" if noise_key is None else f" ({noise_key})"
        self._num_steps = num_steps
        self._signal = Signal()
        self._warned: set[str] = set()
        self._quiet = 0
        """Updates for which it is not told again that there was nothing to learn from."""

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as plain numbers."""
        return asdict(self._signal)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._signal = Signal(**state)

    def after_rollout(self, episodes: Sequence[EpisodeResult], *, is_flat: bool, why_nothing: str = "") -> None:
        """Check the experience of one update.

        Args:
            episodes: Those that ended.
            is_flat: Whether the advantages do not vary.
            why_nothing: Why there is nothing at all to learn from, if so.

        Raises:
            NoSignalError: No episode of the first ones earned any reward, or the advantages do not vary.
        """
        signal = self._signal
        signal.episodes += len(episodes)
        is_rewarded = any(episode.success or episode.total_reward != 0 for episode in episodes)
        signal.rewarded |= is_rewarded
        if episodes:
            signal.unrewarded = 0 if is_rewarded else signal.unrewarded + 1
        signal.flat_advantages = signal.flat_advantages + 1 if is_flat else 0
        if not signal.rewarded and signal.episodes >= _MIN_EPISODES:
            self._stop(
                "no reward",
                f"None of the first {signal.episodes} episodes had a success or any reward, so there is nothing to"
                " learn from. Likely causes: the base model cannot do the task at all (see `regrasp play --model_path"
                " <base> --video`); its action normalisation or the action mapping does not fit the task; the"
                f" instruction differs from the training data's; exploration noise is too large{self._noise_key}.",
            )
        if signal.unrewarded >= _UNREWARDED and "no reward" not in self._warned:
            self._warn(
                "unrewarded",
                f"No episode of the last {signal.unrewarded} updates had a success or any reward, so they teach"
                " nothing. If that goes on, look at the policy (`regrasp play --video`): too much exploration"
                f" noise{self._noise_key}, too short episodes (env.train.max_episode_steps), a task that is too hard"
                " for its start.",
            )
        self._quiet = max(0, self._quiet - 1)
        if why_nothing and not self._quiet:
            self._quiet = _QUIET
            _log.warning("An update had nothing to learn from, and changed nothing. %s", why_nothing)
        if signal.flat_advantages >= _PATIENCE:
            self._stop(
                "flat advantages",
                f"The advantages of {_PATIENCE} updates in a row do not vary, so the policy cannot improve. Likely"
                " causes: every episode succeeds, or none does; the reward is constant (a reward term of weight 0?);"
                " the episodes are cut before anything happens (env.train.max_episode_steps).",
            )

    def after_update(self, metrics: Mapping[str, float]) -> None:
        """Check one update's gradients and its first ratio, and warn if updates in a row were cut short.

        Raises:
            NoSignalError: The gradient of the policy was zero for several updates.
        """
        norms = [value for name, value in metrics.items() if name.endswith("/grad_norm")]
        zero = bool(norms) and not any(norms)
        self._signal.zero_gradients = self._signal.zero_gradients + 1 if zero else 0
        if self._signal.zero_gradients >= _PATIENCE:
            self._stop(
                "zero gradients",
                f"The gradient was zero in {_PATIENCE} updates in a row. Likely causes: nothing is trainable"
                " (actor.model.trainable); every sample is clipped (algorithm.clip_ratio_*); the policy acts almost"
                f" without exploration noise{self._noise_key}.",
            )
        error = metrics.get("actor/first_ratio_error", 0.0)
        if self._on_policy and error > _RATIO_ERROR:
            self._warn(
                "first ratio",
                f"Before any step, the probability ratio of a decision was {error:.3f} away from 1, where the update's"
                " policy is the one that acted. Samples are clipped for rounding's sake. Likely causes: dropout while"
                " training (actor.model.rl_head_config.disable_dropout=false); with actor.model.compile and bf16,"
                " fewer environments that act at a time than actor.micro_batch_size.",
            )
        made = metrics.get("actor/minibatches", self._num_steps)
        self._signal.cut_short = self._signal.cut_short + 1 if 4 * made < self._num_steps else 0
        if self._signal.cut_short >= _PATIENCE:
            self._warn(
                "cut short",
                f"{_PATIENCE} updates in a row were cut short, the last one after {made:.0f} of {self._num_steps}"
                " optimizer steps: the policy moved past algorithm.target_kl. Most of the experience goes unused."
                " Likely causes: actor.optim.lr is too large; with actor.model.precision=bf16, the rounding of weights"
                " moves the policy more than small steps do.",
            )

    def _stop(self, reason: str, text: str) -> None:
        """End the run, or under `force` warn once for each reason."""
        if not self._force:
            raise NoSignalError(f"{text} `--force` (runner.force=true) continues all the same.")
        self._warn(reason, f"{text} Continuing because runner.force is true.")

    def _warn(self, reason: str, text: str) -> None:
        """Say it once for each reason."""
        if reason not in self._warned:
            self._warned.add(reason)
            _log.warning(text)
