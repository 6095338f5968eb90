"""Self-imitation: what turned out better than usual is imitated, as a demonstration is.

In the family of filtered behaviour cloning, expert iteration and self-imitation learning (arXiv:1806.05635): no critic
and no density, and no step leads away from what the policy has done. It asks of a policy what supervised training does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from pydantic.dataclasses import dataclass

from regrasp.algorithms.base import ACTOR, Algorithm, AlgorithmConfig, Minibatch
from regrasp.algorithms.demo_buffer import DemoBufferConfig
from regrasp.algorithms.schedule import cosine
from regrasp.config.types import BLOCK, PositiveInt
from regrasp.errors import UserError
from regrasp.logging.columns import Column, percent, whole
from regrasp.logging.text import counted

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDict
    from torch import Tensor, nn

    from regrasp.envs.config import TrainEnvConfig
    from regrasp.models.config import ModelConfig
    from regrasp.models.contract import Policy
    from regrasp.rollout.decisions import Decisions

WINDOW = 4
"""Decisions of an episode that are taken to be equally far in it."""
LEVELS = 10
"""Parts of the highest return that earlier earnings are compared by."""


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class SelfImitationConfig(AlgorithmConfig):
    """Imitation of the decisions after which more was earned than usual."""

    adv_type: Literal["self_imitation"] = "self_imitation"
    """Advantage estimator: what an episode still earned, less the mean of others that were as far and had earned as
    much."""
    loss_type: Literal["imitation"] = "imitation"
    """Loss: that of `regrasp sft`, on decisions with a positive advantage."""
    update_epoch: PositiveInt = 4
    """Passes over all decisions that are kept in one update."""
    noise_repeats: PositiveInt = 4
    """Draws of noise for each decision of a minibatch, where the loss is an expectation over noise, as of a flow."""
    capacity: PositiveInt = 8192
    """Decisions with a positive advantage that are kept from earlier updates, the newest ones."""
    demo_buffer: DemoBufferConfig | None = None
    """Demonstrations imitated beside them; null: none."""

    @property
    def needs(self) -> frozenset[str]:
        """Nothing that every policy has not: it imitates, or has a density."""
        return frozenset()

    @property
    def stored_decisions(self) -> int:
        """Those that are kept."""
        return self.capacity

    @property
    def demonstrations(self) -> str | None:
        """Of the block `demo_buffer`."""
        return None if self.demo_buffer is None else self.demo_buffer.load_path

    def num_demonstrated(self, batch_size: int) -> int:
        """Decisions of demonstrations in a minibatch; at least one is the policy's own."""
        share = 0.0 if self.demo_buffer is None else self.demo_buffer.share
        return min(math.ceil(share * batch_size), batch_size - 1)

    def optimizer_steps(self, samples: int, batch_size: int) -> tuple[int, str]:
        """Of an update that keeps as many decisions as there is room for."""
        del samples
        beside = self.num_demonstrated(batch_size)
        own = batch_size - beside
        count = -(-self.capacity // own) * self.update_epoch
        parts = f"{own} kept decisions and {beside} of demonstrations" if beside else "kept decisions"
        epochs = counted(self.update_epoch, "epoch")
        return count, f" of {parts}, {epochs}: at most {counted(count, 'optimizer step')} per update"

    @property
    def shown(self) -> tuple[Column, ...]:
        """The loss, and how much there is to imitate."""
        return (
            Column("loss", "actor/imitation_loss", "of imitating decisions that did better than usual"),
            Column("better", "imitation/share", "share of the update's decisions that did", 6, percent),
            Column("kept", "imitation/kept", "decisions that are trained on", 6, whole),
            Column("steps", "actor/minibatches", "optimizer steps", 5, whole),
            Column("grad", "actor/grad_norm", "norm of the policy's gradient", 5),
        )

    def idle(self, model: ModelConfig) -> Iterator[tuple[str, str]]:
        """Draws of noise that a loss does without."""
        if model.imitates_without_noise:
            yield "noise_repeats", f"actor.model.model_type {model.model_type} imitates without noise"

    def problems(self, env: TrainEnvConfig) -> Iterator[UserError]:
        """Groups, demonstrations alone, and rollouts that are shorter than an episode."""
        yield from self.no_groups("self-imitation")
        if self.demo_buffer is not None and self.demo_buffer.share == 1:
            yield UserError(
                "Demonstrations alone leave nothing of what the policy has done",
                key="algorithm.demo_buffer.share",
                value=self.demo_buffer.share,
                expected="less than 1",
                fix="lower it; `regrasp sft` imitates demonstrations alone",
            )
        if env.max_steps_per_rollout_epoch < env.max_episode_steps:
            yield UserError(
                "Only whole episodes are judged, and a rollout is shorter than one",
                key="env.train.max_steps_per_rollout_epoch",
                value=env.max_steps_per_rollout_epoch,
                expected=f"at least env.train.max_episode_steps ({env.max_episode_steps})",
                fix=f"set env.train.max_steps_per_rollout_epoch={env.max_episode_steps}",
            )

    def build(self) -> SelfImitation:
        """The algorithm of this configuration."""
        return SelfImitation(self)


class SelfImitation(Algorithm):
    """Imitates the newest decisions with a positive advantage, those of the present update among them."""

    config: SelfImitationConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: SelfImitationConfig) -> None:
        super().__init__(config)
        self._policy: Policy | None = None
        self._kept: _Stored | None = None
        self._demonstrated: _Stored | None = None
        self._share = 0.0

    def check(self, policy: Policy) -> None:
        """Whether the policy can imitate.

        Raises:
            UserError: What critics improve can not.
        """
        if not policy.offers & {"imitation", "log_prob"}:
            raise self.lacking("imitation")

    def parameters(self, policy: Policy, trainable: str) -> dict[str, list[nn.Parameter]]:
        """The policy."""
        self._policy = policy
        return {ACTOR: [parameter for _, parameter in policy.prepare_training(trainable)]}

    def prepare(self, decisions: Decisions) -> Decisions:
        """Those with a positive advantage (B,), which are kept."""
        from regrasp.algorithms.advantages import chunk_rewards

        earned, _ = chunk_rewards(decisions["rewards"], decisions["num_executed"], reward_type="chunk_level", gamma=1.0)
        places = {name: decisions[name] for name in ("column", "time", "decision", "ends")}
        advantages = advantages_over_alike(earned, **places)
        better = (advantages > 0).nonzero().flatten()
        self._share = len(better) / max(1, len(decisions))
        chosen = decisions.with_columns(advantages=advantages.to(decisions["rewards"].dtype)).rows(better)
        if len(chosen):
            self._keep(chosen)
        return chosen

    def demonstrate(self, decisions: Decisions) -> None:
        """Keep demonstrations apart, for their share of every minibatch."""
        self._demonstrated = self._stored(decisions)

    def why_nothing(self, decisions: Decisions) -> str:
        """That nothing was better than the rest."""
        return (
            f"None of the update's {len(decisions)} decisions led to more than others that were as far and had earned"
            " as much: every episode earned the same, or none was whole."
        )

    def _keep(self, chosen: Decisions) -> None:
        """Put decisions after those that are kept, and drop what is too old."""
        newest = slice(-self.config.capacity, None)
        stored = self._stored(chosen)
        self._kept = (stored if self._kept is None else self._kept.followed_by(stored)).rows(newest)

    def _stored(self, decisions: Decisions) -> _Stored:
        import torch
        from tensordict import TensorDict

        inputs = decisions.inputs
        return _Stored(
            inputs if isinstance(inputs, TensorDict) else inputs.to(torch.device("cpu")), self._record(decisions)
        )

    def _record(self, decisions: Decisions) -> TensorDict:
        """What imitation reads of a record, and of its trace no more than that."""
        policy, read = self._policy, decisions.record.select("num_executed", "trace")
        assert policy is not None
        if "imitation" not in policy.offers:
            return read
        return read.exclude("trace").update({"done": policy.stored_actions(decisions.trace)})

    def minibatches(self, decisions: Decisions, size: int, generator: torch.Generator) -> Iterator[Minibatch]:
        """`update_epoch` passes over all that is kept, in random orders; rates fall to nothing within the update."""
        import torch

        if self._kept is None:
            return
        assert self._policy is not None
        kept = self._kept.among(decisions)
        num_demonstrated = self.config.num_demonstrated(size)
        own, draws = size - num_demonstrated, (self.config.noise_repeats, self._policy.noise_width)
        passes = (kept.minibatches(own, generator) for _ in range(self.config.update_epoch))
        num_steps = -(-len(kept) // own) * self.config.update_epoch
        for number, batch in enumerate(chain.from_iterable(passes)):
            whole = self._with_demonstrations(batch, num_demonstrated, generator)
            noise = torch.randn(len(whole), *draws, generator=generator).to(whole["num_executed"].device)
            yield Minibatch(whole.with_columns(noise=noise), (ACTOR,), cosine(number, num_steps=num_steps))

    def _with_demonstrations(self, batch: Decisions, count: int, generator: torch.Generator) -> Decisions:
        """A minibatch, and `count` random decisions of demonstrations after its own."""
        import torch

        if self._demonstrated is None or not count:
            return batch
        drawn = torch.randint(len(self._demonstrated), (count,), generator=generator)
        return _Stored(batch.table, batch.record).followed_by(self._demonstrated.rows(drawn)).among(batch)

    def shares(self, micro: Decisions, batch: Decisions) -> Tensor:
        """(1,): of the minibatch."""
        import torch

        return torch.full((1,), len(micro) / len(batch), device=micro["num_executed"].device)

    def loss(
        self, policy: Policy, micro: Decisions, shares: Tensor, groups: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean error of imitating what was done; see `Algorithm.loss`."""
        del groups
        loss = shares[0] * self._errors(policy, micro).mean()
        return loss, {"actor/imitation_loss": loss.detach()}

    def _errors(self, policy: Policy, micro: Decisions) -> Tensor:
        """(B,), of the policy's own supervised loss, or of a density the negative logarithm for each number."""
        from regrasp.algorithms.reduce import reduce_log_probs

        if "imitation" in policy.offers:
            return policy.imitation_errors(micro.table, micro["done"], micro["noise"])
        log_probs = policy.evaluate(micro.features(policy), micro.trace).log_probs
        summed, _ = reduce_log_probs(log_probs, micro["num_executed"], "chunk_level")
        return -summed / (micro["num_executed"] * log_probs.shape[-1]).clamp(min=1)

    def summary(self, decisions: Decisions, history: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """How much is imitated."""
        del decisions, history
        found = {"imitation/share": self._share, "imitation/kept": float(len(self._kept)) if self._kept else 0.0}
        if self.config.demo_buffer is not None and self._demonstrated is not None:
            found |= self.config.demo_buffer.metrics(len(self._demonstrated))
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept; demonstrations are read anew."""
        if self._kept is None:
            return {}
        state: dict[str, Any] = {}
        for part, table in (("inputs", self._kept.inputs), ("record", self._kept.record)):
            state |= {f"{part}.{name}": value.contiguous() for name, value in table.flatten_keys(".").items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        from tensordict import TensorDict

        if not state:
            return
        parts: dict[str, dict[str, Any]] = {"inputs": {}, "record": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        count = len(parts["record"]["num_executed"])
        inputs, record = (TensorDict(part, batch_size=[count]).unflatten_keys(".") for part in parts.values())
        self._kept = _Stored(inputs, record)


@plain_dataclass(frozen=True)
class _Stored:
    """Decisions that outlast their update, by what they were taken on and what imitation reads of their record."""

    inputs: TensorDict
    record: TensorDict

    def __len__(self) -> int:
        return self.record.batch_size[0]

    def rows(self, index: Tensor | slice) -> _Stored:
        return _Stored(self.inputs[index], self.record[index])

    def followed_by(self, other: _Stored) -> _Stored:
        """Both, with the columns of this one, on the device of the other one."""
        from tensordict import TensorDict

        device = next(iter(other.inputs.values())).device
        inputs = self.inputs.to(device), other.inputs.select(*self.inputs.keys())
        return _Stored(TensorDict.cat(inputs), TensorDict.cat([self.record, other.record]))

    def among(self, decisions: Decisions) -> Decisions:
        """As decisions."""
        return replace(decisions, inputs=self.inputs, record=self.record, are_encoded=True)


def advantages_over_alike(earned: Tensor, column: Tensor, time: Tensor, decision: Tensor, ends: Tensor) -> Tensor:
    """What episodes still earned from each decision on, less the mean over decisions that were alike until then.

    Alike are those that are about as far in their episodes (`WINDOW`) and had earned about as much (`LEVELS`), the
    decision itself included.

    Args:
        earned: (B,), the reward of each decision.
        column: (B,) int64, which decisions follow each other.
        time: (B,) int64, in which order.
        decision: (B,) int64, the place in the episode.
        ends: (B,) bool, whether the episode ended there.

    Returns:
        (B,) float64, 0 for decisions of episodes whose beginning or end is not there.
    """
    import torch

    order = torch.argsort(column * (int(time.max()) + 1) + time)
    earned, column, decision, ends = earned.double()[order], column[order], decision[order], ends[order]
    is_first = (decision == 0) | (torch.diff(column, prepend=column[:1] - 1) != 0)
    episode = is_first.cumsum(0) - 1
    count = int(episode[-1]) + 1
    totals = torch.zeros(count, dtype=torch.float64).index_add(0, episode, earned)
    begins = torch.zeros(count, dtype=torch.bool).index_put((episode[decision == 0],), torch.tensor(True))
    over = torch.zeros(count, dtype=torch.bool).index_put((episode[ends],), torch.tensor(True))
    sums = earned.cumsum(0)
    before = sums - earned - (sums - earned)[is_first][episode]
    rest = totals[episode] - before
    whole = (begins & over)[episode]
    highest = float(totals.abs().max())
    level = (before / highest * LEVELS).round().long() if highest else torch.zeros_like(episode)
    _, alike = torch.unique(torch.stack([decision // WINDOW, level], dim=1), dim=0, return_inverse=True)
    weights = whole.double()
    size = int(alike.max()) + 1
    members = torch.zeros(size, dtype=torch.float64).index_add(0, alike, weights)
    means = torch.zeros(size, dtype=torch.float64).index_add(0, alike, weights * rest) / members.clamp(min=1)
    found = torch.where(whole, rest - means[alike], 0.0)
    return torch.empty_like(found).index_copy(0, order, found)
