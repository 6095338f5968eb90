"""Soft actor-critic on stored experience (arXiv:1812.05905), for policies that propose bounded actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from regrasp.algorithms.base import ACTOR, Algorithm, Bootstrap, Minibatch
from regrasp.algorithms.sac_config import Heads, SacConfig
from regrasp.errors import TrainingHaltedError, UserError

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDict
    from torch import Tensor, nn

    from regrasp.algorithms.replay import Replay
    from regrasp.models.contract import Policy
    from regrasp.models.proposals import Proposal
    from regrasp.models.q_head import QHead
    from regrasp.rollout.decisions import Decisions

CRITIC = "critic"
ALPHA = "alpha"
LATENT_CRITIC = "latent_critic"
"""Optimizer group of the critics of latents."""


class Sac(Algorithm):
    """Critics learn from stored decisions what an action is worth; the actor climbs them."""

    config: SacConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: SacConfig) -> None:
        super().__init__(config)
        self._replay: Replay | None = None
        self._demonstrated: Replay | None = None
        self._policy: Policy | None = None
        self._target: QHead | None = None
        self._latent_target: QHead | None = None
        self._base_alpha: nn.Parameter | None = None
        self._num_critic_steps = 0
        self._env_steps = 0
        self._annealed: Tensor | None = None
        """(2,): the weight of `proximity`, and the share of `monte_carlo`; losses read it where it is."""

    @property
    def bootstrap(self) -> Bootstrap:
        """As `bootstrap_type` says."""
        return "stored" if self.config.bootstrap_type == "standard" else "never"

    @property
    def learns_alpha(self) -> bool:
        """Whether the temperature changes."""
        return self.config.entropy_tuning.alpha_type != "fixed_alpha"

    def lacking(self, need: str) -> UserError:
        """Also: critics."""
        if need != "q_head":
            return super().lacking(need)
        return UserError(
            "The policy has no critics of actions",
            key="actor.model.add_q_head",
            value=False,
            expected="true with loss_type embodied_sac",
            fix="set actor.model.add_q_head=true and actor.model.add_value_head=false",
        )

    def check(self, policy: Policy) -> None:
        """Also: critics of latents where targets are to come from them, and no entropy of a policy without density."""
        super().check(policy)
        if policy.imitates and self.config.counts_entropy:
            raise UserError(
                "A policy that imitates what critics choose has no entropy",
                key="algorithm.entropy_tuning",
                value=f"alpha_type {self.config.entropy_tuning.alpha_type}",
                expected="alpha_type fixed_alpha with initial_alpha 0",
                fix="set algorithm.entropy_tuning.alpha_type=fixed_alpha algorithm.entropy_tuning.initial_alpha=0",
            )
        if self.config.latent_targets and policy.latent_head is None:
            raise UserError(
                "The policy has no critics of latents",
                key="algorithm.latent_targets",
                value=True,
                expected="false, unless a GR00T learns with actor.model.proposal dsrl and its noise_aliasing",
                fix="set algorithm.latent_targets=false",
            )

    def optimizer_settings(self, group: str) -> dict[str, float]:
        """Those of the temperature."""
        return {"lr": self.config.entropy_tuning.optim.lr, "weight_decay": 0.0} if group == ALPHA else {}

    def parameters(self, policy: Policy, trainable: str) -> dict[str, list[nn.Parameter]]:
        """What proposes, the critics, and the temperature; target critics begin as the critics are."""
        import copy

        import torch
        from torch import nn

        del trainable
        groups = {ACTOR: [parameter for _, parameter in policy.prepare_training("proposal")]}
        parts = {CRITIC: "q_head"} if policy.latent_head is None else {CRITIC: "q_head", LATENT_CRITIC: "latent_head"}
        for group, part in parts.items():
            groups[group] = [parameter for _, parameter in policy.trainable(part)]
            for parameter in groups[group]:
                parameter.requires_grad_(True)
        assert policy.q_head is not None
        self._policy = policy
        self._target = copy.deepcopy(policy.q_head).requires_grad_(False)
        if self.config.latent_targets:
            self._latent_target = copy.deepcopy(policy.latent_head)
            assert self._latent_target is not None
            self._latent_target.requires_grad_(False)
        device = groups[CRITIC][0].device
        self._base_alpha = nn.Parameter(torch.tensor(self._initial_base(), device=device))
        self._annealed = torch.zeros(2, device=device)
        self._anneal()
        if self.learns_alpha:
            groups[ALPHA] = [self._base_alpha]
        return groups

    def _anneal(self) -> None:
        """Set what changes with the environment steps of the run."""
        assert self._annealed is not None
        (start, end, steps), (share, until) = self.config.proximity, self.config.monte_carlo
        weight = start + (end - start) * (min(1.0, self._env_steps / steps) if steps else 1.0)
        for place, number in zip(self._annealed, (weight, share if self._env_steps < until else 0.0), strict=True):
            place.fill_(number)

    def _initial_base(self) -> float:
        """The number whose softplus or exponential is the temperature at first."""
        import math

        tuning = self.config.entropy_tuning
        match tuning.alpha_type:
            case "softplus":
                return math.log(math.expm1(max(tuning.initial_alpha, 1e-8)))
            case "exp":
                return math.log(max(tuning.initial_alpha, 1e-8))
            case "fixed_alpha":
                return tuning.initial_alpha

    @property
    def alpha(self) -> Tensor:
        """The temperature (), differentiable."""
        import torch

        assert self._base_alpha is not None
        match self.config.entropy_tuning.alpha_type:
            case "softplus":
                return torch.nn.functional.softplus(self._base_alpha)
            case "exp":
                return self._base_alpha.exp()
            case "fixed_alpha":
                return self._base_alpha.detach()

    def prepare(self, decisions: Decisions) -> Decisions:
        """Store what was collected.

        Raises:
            TrainingHaltedError: A reward is none that a probability of success can be learned from.
        """
        import torch

        config = self.config
        if config.critic_loss == "bce":
            low, high = float(decisions["rewards"].min()), float(decisions["rewards"].max())
            if low < 0 or high > 1:
                raise TrainingHaltedError(
                    f"A reward of {low if low < 0 else high:g} was seen, and algorithm.critic_loss=bce learns"
                    " probabilities of success: rewards are 0, and at most 1 at a success. Set"
                    " algorithm.critic_loss=mse."
                )
        if self._replay is None:
            self._replay = self._new_replay(int(decisions["column"].max()) + 1)
        self._replay.add(decisions)
        self._env_steps += int(decisions["num_executed"].sum())
        final = decisions["is_final"]
        return decisions.rows(torch.nonzero(~final).flatten()) if bool(final.any()) else decisions

    def demonstrate(self, decisions: Decisions) -> None:
        """Store demonstrations apart, for their share of every minibatch."""
        count = len(decisions)
        self._demonstrated = self._made(count, int(decisions["column"].max()) + 1)
        self._demonstrated.add(decisions)

    def _new_replay(self, num_columns: int) -> Replay:
        return self._made(self.config.replay_buffer.capacity, -(-num_columns // self.config.rollout_epoch))

    def _made(self, capacity: int, num_envs: int) -> Replay:
        from regrasp.algorithms.replay import Replay, Room

        config, kept = self.config, self.config.replay_buffer
        room = None if kept.max_memory_gb is None else Room(round(kept.max_memory_gb * 1e9), kept.storage_path)
        return Replay(capacity, num_envs, gamma=config.gamma, reward_type=config.reward_type, room=room)

    def minibatches(self, decisions: Decisions, size: int, generator: torch.Generator) -> Iterator[Minibatch]:
        """Critic steps, each with its share of actor steps on the same decisions; none before there is enough."""
        config, replay, policy = self.config, self._replay, self._policy
        assert replay is not None
        assert policy is not None
        if len(replay) < max(config.replay_buffer.min_decisions, 1):
            return
        self._anneal()
        for _ in range(config.critic_steps(len(decisions)) + max(0, config.critic_only_steps - self._num_critic_steps)):
            batch = replace(decisions, **self._draw(size, generator))
            yield Minibatch(batch, (CRITIC,) if policy.latent_head is None else (CRITIC, LATENT_CRITIC))
            self._num_critic_steps += 1
            acts = self._num_critic_steps > config.critic_only_steps
            if acts and self._num_critic_steps % config.critic_actor_ratio == 0:
                yield Minibatch(batch, (ACTOR, ALPHA) if self.learns_alpha else (ACTOR,))
            if self._num_critic_steps % config.target_update_freq == 0:
                self._follow()

    def _draw(self, size: int, generator: torch.Generator) -> dict[str, Any]:
        """Inputs and record of decisions, with what their losses need, the random numbers included."""
        import torch
        from tensordict import TensorDict

        config, replay, policy = self.config, self._replay, self._policy
        assert replay is not None
        assert policy is not None
        demonstrated, share = self._demonstrated, config.demo_buffer.share if config.demo_buffer else 0.0
        count = 0 if demonstrated is None else round(size * share)
        parts: list[tuple[TensorDict, TensorDict]] = []
        if count < size:
            successful = config.replay_buffer.success_share
            parts.append(replay.sampled(size - count, generator, steps=config.n_step, successful=successful))
        if demonstrated is not None and count:
            parts.append(demonstrated.sampled(count, generator, steps=config.n_step))
        inputs, record = (
            TensorDict.cat([part[number] for part in parts]) if len(parts) > 1 else parts[0][number]
            for number in range(2)
        )
        noise = torch.randn(2, size, policy.noise_width, generator=generator)
        drawn = {"noise": noise[0], "following_noise": noise[1], "heads": self._heads(size, generator)}
        return {"inputs": inputs, "record": record.update(drawn), "are_encoded": True}

    def _heads(self, size: int, generator: torch.Generator) -> Tensor:
        """(size, n) int64, the critics that the targets of a minibatch take: the same ones for all of it."""
        import torch

        assert self._target is not None
        count = self._target.count
        drawn = min(self.config.critic_subsample_size or count, count)
        return torch.randperm(count, generator=generator)[:drawn].expand(size, drawn).clone()

    def _follow(self) -> None:
        """A step of the target critics."""
        import torch

        assert self._policy is not None
        pairs = ((self._target, self._policy.q_head), (self._latent_target, self._policy.latent_head))
        with torch.no_grad():
            for target, own in pairs:
                if target is not None and own is not None:
                    means, news = tuple(target.parameters()), tuple(own.parameters())
                    torch._foreach_lerp_(means, news, self.config.tau)  # pyright: ignore[reportPrivateImportUsage]

    def shares(self, micro: Decisions, batch: Decisions) -> Tensor:
        """(1,): of the minibatch."""
        import torch

        return torch.full((1,), len(micro) / len(batch), device=micro["rewards"].device)

    def loss(
        self, policy: Policy, micro: Decisions, shares: Tensor, groups: tuple[str, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The critics' loss, or that of actor and temperature."""
        loss, metrics = self._critic_loss(policy, micro) if CRITIC in groups else self._actor_loss(policy, micro)
        return shares[0] * loss, {name: shares[0] * value.detach() for name, value in metrics.items()}

    def targets(self, policy: Policy, micro: Decisions) -> Tensor:
        """(B,), what the critics are to give."""
        import torch

        config, record = self.config, micro.record
        following = record["following"]
        with torch.no_grad():
            values = self._value_of_following(policy, following, record["following_noise"], record["heads"][0])
            target = record["rewards"] + record["discounts"] * values
            if config.monte_carlo[0]:
                assert self._annealed is not None
                target = torch.lerp(target, record["returns"], self._annealed[1])
            return target

    def _value_of_following(self, policy: Policy, following: TensorDict, noise: Tensor, heads: Tensor) -> Tensor:
        """(B,), of what the policy does next, by some of the target critics."""
        inputs, trace, decision = following["inputs"], following["trace"], following["decision"]
        assert self._target is not None
        if policy.imitates:
            values = self._of_candidates(self._target, inputs, trace, decision, policy.stored_candidates(trace), heads)
            return values.amax(1)
        if self._latent_target is None:
            critics, proposal = self._target, policy.propose(inputs, trace, noise)
        else:
            critics, proposal = self._latent_target, policy.propose_latent(inputs, noise)
        outputs = critics(inputs, trace, decision, proposal.actions)[heads]
        values = _of_heads(self._as_values(outputs), self.config.agg_q)
        return values - self.alpha * proposal.log_probs if self.config.backup_entropy else values

    def _of_candidates(
        self,
        critics: QHead,
        inputs: TensorDict,
        trace: TensorDict,
        decision: Tensor,
        candidates: Tensor,
        heads: Tensor | None = None,
    ) -> Tensor:
        """(B, N), values of candidates (B, N, D)."""
        batch, count = candidates.shape[:2]
        seen = critics.read(inputs, trace, decision).repeat_interleave(count, 0)
        outputs = critics.judge(seen, candidates.flatten(0, 1))
        outputs = outputs if heads is None else outputs[heads]
        return _of_heads(self._as_values(outputs), self.config.agg_q).unflatten(0, (batch, count))

    def _as_values(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid() if self.config.critic_loss == "bce" else outputs

    def _critic_loss(self, policy: Policy, micro: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        assert policy.q_head is not None
        target = self.targets(policy, micro)
        outputs = policy.q_head(micro.table, micro.trace, micro["decision"], policy.stored_actions(micro.trace))
        loss = self._error(outputs, target.expand_as(outputs))
        values = self._as_values(outputs.detach())
        metrics = {"sac/critic_loss": loss, "critic/q_data": values.mean(), "critic/target": target.mean()}
        total = loss * len(outputs)
        if policy.latent_head is not None:
            metrics["sac/latent_loss"] = error = self._latent_error(policy, policy.q_head, policy.latent_head, micro)
            total = total + error * len(outputs)
        return total, metrics

    def _error(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Of critics' outputs, a mean."""
        import torch.nn.functional as F

        if self.config.critic_loss == "bce":
            return F.binary_cross_entropy_with_logits(outputs, wanted.clamp(0, 1))
        return F.mse_loss(outputs, wanted)

    def _latent_error(self, policy: Policy, critics: QHead, latent_head: QHead, micro: Decisions) -> Tensor:
        """How far each critic of latents is from the critic of the actions that are made from them."""
        import torch

        latents, actions = policy.stored_pairs(micro.trace)
        count = latents.shape[1]
        with torch.no_grad():
            seen = critics.read(micro.table, micro.trace, micro["decision"]).repeat_interleave(count, 0)
            wanted = self._as_values(critics.judge(seen, actions.flatten(0, 1)))
        seen = latent_head.read(micro.table, micro.trace, micro["decision"]).repeat_interleave(count, 0)
        return self._error(latent_head.judge(seen, latents.flatten(0, 1)), wanted)

    def _imitation_loss(self, policy: Policy, micro: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        """Of imitating the candidate that critics choose, where they hold it better than the policy's own."""
        import torch

        assert policy.q_head is not None
        candidates = policy.stored_candidates(micro.trace)
        with torch.no_grad():
            values = self._of_candidates(policy.q_head, micro.table, micro.trace, micro["decision"], candidates)
            best, chosen = values.max(1)
            chosen = torch.where(best - values[:, 0] > self.config.selection_margin, chosen, 0)
            rows = torch.arange(len(chosen), device=chosen.device)
        loss = policy.imitation_errors(micro.table, candidates[rows, chosen], micro["noise"][:, None]).mean()
        return loss, {
            "sac/actor_loss": loss,
            "actor/q_pi": values[:, 0].mean(),
            "actor/q_chosen": values[rows, chosen].mean(),
            "actor/changed": (chosen > 0).float().mean(),
        }

    def _size(self, micro: Decisions, proposal: Proposal) -> Tensor | None:
        """(B,), what `proximity` weighs; None where there is nothing to weigh."""
        import torch

        if self.start is None:
            return proposal.size
        with torch.no_grad():
            if self.start.latent_head is None:
                before = self.start.propose(micro.table, micro.trace, micro["noise"])
            else:
                before = self.start.propose_latent(micro.table, micro["noise"])
        return (proposal.actions - before.actions).square().mean(-1)

    def _actor_loss(self, policy: Policy, micro: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        if policy.imitates:
            return self._imitation_loss(policy, micro)
        config = self.config
        critics = policy.q_head if policy.latent_head is None else policy.latent_head
        assert critics is not None
        if policy.latent_head is None:
            proposal = policy.propose(micro.table, micro.trace, micro["noise"])
        else:
            proposal = policy.propose_latent(micro.table, micro["noise"])
        size = self._size(micro, proposal)
        outputs = critics.frozen(micro.table, micro.trace, micro["decision"], proposal.actions)
        values = _of_heads(self._as_values(outputs), config.actor_agg_q or config.agg_q)
        climbed = values / values.detach().abs().mean().clamp(min=1e-6) if config.normalize_q else values
        entropy = -proposal.log_probs.mean()
        alpha = self.alpha
        loss = -climbed.mean() - alpha.detach() * entropy
        if size is not None and any(config.proximity[:2]):
            assert self._annealed is not None
            loss = loss + self._annealed[0] * size.mean()
        metrics = {"sac/actor_loss": loss, "actor/q_pi": values.mean(), "actor/entropy": entropy, "sac/alpha": alpha}
        if size is not None:
            metrics["actor/size"] = size.mean()
        if self.learns_alpha:
            wanted = config.entropy_tuning.target_entropy
            wanted = -float(policy.proposal_width) if wanted is None else wanted
            alpha_loss = alpha * (entropy.detach() - wanted)
            metrics["sac/alpha_loss"] = alpha_loss
            loss = loss + alpha_loss
        return loss, metrics

    def summary(self, decisions: Decisions, history: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Size of the replay."""
        del decisions, history
        assert self._replay is not None
        found = {
            "replay_buffer/size": float(len(self._replay)),
            "replay_buffer/successful": float(self._replay.num_successful),
        }
        if self._demonstrated is not None and self.config.demo_buffer is not None:
            found |= self.config.demo_buffer.metrics(len(self._demonstrated))
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Target critics, temperature, counters and the replay."""
        import torch

        assert self._target is not None
        assert self._base_alpha is not None
        state = {f"target.{name}": value for name, value in self._target.state_dict().items()}
        if self._latent_target is not None:
            state |= {f"latent_target.{name}": value for name, value in self._latent_target.state_dict().items()}
        state["alpha"] = self._base_alpha.detach()[None]
        state["counters"] = torch.tensor([self._num_critic_steps, self._env_steps])
        if self._replay is not None:
            state |= {f"replay.{name}": value for name, value in self._replay.state_dict().items()}
            state["num_envs"] = torch.tensor([self._replay.num_envs])
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            UserError: It is that of another algorithm, or of a replay of another size.
        """
        import torch

        if "counters" not in state:
            raise UserError(
                "The checkpoint holds no stored experience",
                key="algorithm.loss_type",
                value=self.config.loss_type,
                expected="the algorithm that the run was begun with",
                fix="resume with it, or begin a new run with --model_path",
            )
        assert self._target is not None
        assert self._base_alpha is not None
        self._target.load_state_dict(_part(state, "target."))
        if self._latent_target is not None and (kept := _part(state, "latent_target.")):
            self._latent_target.load_state_dict(kept)  # one that a run had not before goes on as its critics are
        with torch.no_grad():
            self._base_alpha.copy_(state["alpha"][0])
        self._num_critic_steps, self._env_steps = state["counters"].tolist()
        if "num_envs" in state:
            self._replay = self._new_replay(int(state["num_envs"]) * self.config.rollout_epoch)
            self._replay.load_state_dict(_part(state, "replay."))


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _of_heads(values: Tensor, how: Heads) -> Tensor:
    """(B,) of (E, B)."""
    return values.amin(0) if how == "min" else values.mean(0)
