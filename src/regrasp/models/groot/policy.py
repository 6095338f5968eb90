"""GR00T N1.5 as a policy: frozen or trained features, a flow-matching head, a value head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.algorithms import flow
from regrasp.algorithms.noise_color import NoiseColor
from regrasp.device import send
from regrasp.envs.contract import Observation
from regrasp.models.contract import Action, Evaluation, Noise, PolicySpec
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.network.action_head import ActionHead, CategoryLinear
from regrasp.models.groot.network.backbone import Backbone
from regrasp.models.groot.network.noise_net import NoiseNet
from regrasp.models.groot.network.transformer import ContextCache, DiffusionBlock
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.groot.settings import GrootModelConfig, SteeringConfig
from regrasp.models.groot.steered import SteeredPolicy
from regrasp.models.groot.steering import ACTIONS, Sizes, Steering
from regrasp.models.initialization import seeded
from regrasp.models.lora import adapters, add_adapters, merge_adapters
from regrasp.models.value_head import ValueHead

CONTEXT_LAYERS = ("action_head.vlln.", "action_head.vl_self_attention.")


class GrootPolicy(SteeredPolicy):
    """One class for the tiny and the published configuration.

    Features are `context` (B, S, D), raw backbone features or (with `trainable: head_without_context`) what the DiT
    attends to, and `state` (B, max_state_dim). The trace of a decision is `chain` (B, K + 1, H, max_action_dim) and
    `step` (B,) int64, the stochastic denoising step (-1 where all are).

    Args:
        config: Sizes.
        processor: Normalisation, cameras, words, embodiment.
        settings: Sampling and value head.
        steering: Sizes of what critics improve, see `steering.Steering`: the policy then acts by it, and `evaluate`
            gives no densities.
        seed: Draws the initial weights.

    Raises:
        UserError: The settings contradict each other, or `num_action_chunks` or `action_dim` does not fit the model.
    """

    RL_PARTS = ("value_head", "noise_net", "q_head", "latent_head", "residual", "noise_actor")
    capturable = ("_context", "_sample")
    product_layers = (*SteeredPolicy.product_layers, CategoryLinear)

    def __init__(
        self,
        config: GrootConfig,
        processor: GrootProcessor,
        settings: GrootModelConfig,
        *,
        steering: SteeringConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        head = config.action_head_cfg
        for problem in settings.problems():
            raise problem
        processor.check_actions(settings.num_action_chunks, settings.action_dim)
        self.config = config
        self.processor = processor
        self.settings = settings
        self._rl = settings.rl_head_config
        self._caches_context = settings.trainable == "head_without_context"
        self._slot = processor.config.embodiment_id
        self._chunk_shape = (head.action_horizon, head.max_action_dim)
        self.spec = PolicySpec(
            num_action_chunks=settings.num_action_chunks,
            action_horizon=head.action_horizon,
            action_dim=settings.action_dim,
            state_dim=processor.state.width,
            cameras=processor.config.data_config.video,
            state_parts=processor.parts("state"),
            action_parts=processor.parts("action"),
            embodiment_tag=processor.config.embodiment_tag,
            embodiment_id=self._slot,
            quaternions=processor.config.quaternions,
        )
        self.state_range = processor.state_range
        self.noise_level: float | Tensor = self._rl.noise_level
        self._color = NoiseColor(self._rl.noise_color, head.action_horizon) if self._rl.noise_color else None
        self._modulations: Tensor | None = None
        widths = (head.backbone_embedding_dim, head.input_embedding_dim)
        with seeded(seed):
            self.backbone = Backbone(config.eagle_cfg, settings.attn_implementation)
            self.action_head = ActionHead(head, use_dropout=not self._rl.disable_dropout)
            self.value_head = (
                ValueHead(*widths, settings.value_head_hidden, self._rl) if settings.add_value_head else None
            )
            learns_noise = self._rl.noise_method == "flow_noise"
            self.noise_net = NoiseNet(*widths, self._chunk_shape) if learns_noise else None
            self._add_steering(steering, settings, Sizes.of(head, settings))
        self.begin_update(0)
        generator = torch.Generator().manual_seed(seed)
        self.action_head.reset_parameters(generator)
        for name in self.RL_PARTS:
            if (part := getattr(self, name)) is not None:
                part.reset_parameters(generator)

    @property
    def offers(self) -> frozenset[str]:
        """Values with a value head, an entropy where the noise is learned; with what critics improve, critics alone."""
        if self.steering is not None:
            return frozenset() if self.q_head is None else frozenset({"q_head"})
        parts = {"value": self.value_head, "entropy": self.noise_net}
        return frozenset({"log_prob", "imitation", *(name for name, part in parts.items() if part is not None)})

    def prepare(self, observation: Observation) -> TensorDict:
        """Images (B, V, H, W, 3) uint8, input_ids (B, L), state (B, max_state_dim); see `GrootProcessor.prepare`."""
        return self.processor.prepare(observation)

    @property
    def schedule(self) -> tuple[float | Tensor, ...]:
        """The noise level."""
        return (self.noise_level,)

    @schedule.setter
    def schedule(self, numbers: tuple[float | Tensor, ...]) -> None:
        (self.noise_level,) = numbers

    def begin_update(self, update: int) -> None:
        """Set the noise level of the coming update, if it is annealed, and how what critics improve explores."""
        if (steering := self.steering) is not None:
            steering.update = update
        if self._rl.noise_anneal:
            self.noise_level = flow.noise_anneal(*self._rl.noise_params, update)

    def prepare_acting(self) -> None:
        """Compute what decisions need of the weights alone: the time's effect, and the feature of padded positions."""
        transformer = self.action_head.model
        steps = torch.arange(self.settings.denoising_steps, device=transformer.proj_out_1.weight.device)
        table = torch.stack(transformer.modulations(self._bucket(steps)), dim=1)
        table.requires_grad_(transformer.proj_out_1.weight.requires_grad)
        transformer.pack()
        if self._modulations is not None:
            self._modulations.copy_(table)  # a recorded CUDA graph reads it where it is
            return
        self._modulations = table
        if self.settings.trainable != "all" and self.settings.adapters is None:
            self.backbone.eagle_model.keep_padding_feature()

    def trainable(self, part: str) -> Sequence[tuple[str, nn.Parameter]]:
        """Named parameters of a part.

        `backbone` (all before the features), `head` (all after them but the value head) and `value_head` are disjoint,
        and together are `all`. `head_without_context` is the head less its context layers, wherever features end.
        """
        named = list(self.named_parameters())
        match part:
            case "all":
                return named
            case "proposal":
                if self.steering is not None and self.steering.trains_head:
                    return self.trainable(self.settings.trainable)
                return [item for item in named if item[0].startswith(("residual.", "noise_actor."))]
            case "backbone" | "head" | "value_head" | "q_head" | "latent_head":
                return [item for item in named if self._part_of(item[0]) == part]
            case "head_without_context":
                return [item for item in self.trainable("head") if not item[0].startswith(CONTEXT_LAYERS)]
        raise ValueError(f"unknown part {part!r}")

    def prepare_training(self, part: str) -> Sequence[tuple[str, nn.Parameter]]:
        """Set the embodiment's weights apart, add adapters where asked for, and freeze the rest."""
        if part != "proposal" or self.settings.trains_head:
            self.action_head.train_only(self._slot)
        lora = self.settings.adapters
        assert lora is None or part != "all", "adapters are for weights that are not trained themselves"
        if lora is not None and not adapters(self):
            add_adapters(self.backbone.eagle_model.language_model.model, lora, seed=0)
        trained = [*super().prepare_training(part), *adapters(self)]
        for _, parameter in trained:
            parameter.requires_grad_(True)
        return trained

    def published_state(self) -> dict[str, Tensor]:
        """Tensors of a model folder, under the published names."""
        lora = self.settings.adapters
        return self.state_dict() if lora is None else merge_adapters(self.state_dict(), lora)

    def save(self, folder: Path) -> None:
        """Write a self-contained folder; see `checkpoint.save_groot`."""
        from regrasp.models.groot.checkpoint import save_groot

        save_groot(self, folder)

    def own_names(self, weights: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
        """See `checkpoint.published_tensors`."""
        from regrasp.models.groot.checkpoint import published_tensors

        return published_tensors(weights, file)

    def check_instructions(self, instructions: Sequence[str]) -> None:
        """See `TextEncoder.encode`."""
        self.processor.text.encode(instructions)

    def inputs_unlike(self, folder: Path) -> list[str]:
        """What of the processor differs in another GR00T's folder."""
        from regrasp.models.groot.checkpoint import load_processor

        own, other = self.processor, load_processor(folder)
        differ = [name for name, value in vars(other.config).items() if getattr(own.config, name) != value]
        return differ if own.metadata.content == other.metadata.content else [*differ, "statistics"]

    def describe_inputs(self) -> str:
        """Embodiment, cameras, parts of state and action, and the length of the sequence."""
        config, parts = self.processor.config, self.processor.parts
        state, action = (", ".join(f"{key} {width}" for key, width in parts(kind)) for kind in ("state", "action"))
        return (
            f"model: embodiment {config.embodiment_tag} in slot {config.embodiment_id}; cameras"
            f" {', '.join(config.data_config.video)}; state {state}; action {action}; {config.sequence_length} tokens"
        )

    def stored_bytes(self, *, recomputes: bool) -> int:
        """Of features, or of images and words."""
        head, tokens = self.config.action_head_cfg, self.processor.config.sequence_length
        state = head.max_state_dim * torch.float32.itemsize
        if recomputes:
            return state + tokens * torch.int64.itemsize + self.processor.num_views * 3 * self.config.image_size**2
        # A wholly frozen backbone computes in the format that it is stored in.
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        return state + tokens * head.backbone_embedding_dim * dtype.itemsize

    def sft_loss(self, features: TensorDict, actions: Tensor, valid: Tensor, noise: Noise, repeats: int = 1) -> Tensor:
        """Flow-matching loss: mean squared error of the velocity, over valid steps and used action dimensions.

        Args:
            features: What `encode` gave, B rows.
            actions: (B, H, A) in physical units, H the head's horizon.
            valid: (B, H) bool.
            noise: Draws `flow` (B, R, H, max_action_dim) and `time` (B, R).
            repeats: R, draws of noise and time for each row, which share its context.
        """
        head, batch = self.config.action_head_cfg, len(actions)
        if actions.shape[1:] != (head.action_horizon, self.settings.action_dim):
            raise ValueError(f"actions of shape {tuple(actions.shape)}, head of horizon {head.action_horizon}")
        device = actions.device
        rows = torch.arange(batch, device=device).repeat_interleave(repeats)
        start = send(noise.normal("flow", repeats, head.action_horizon, head.max_action_dim), device).flatten(0, 1)
        uniform = torch.special.ndtr(send(noise.normal("time", repeats), device)).flatten()
        time = flow.flow_matching_time(uniform, head.noise_s)
        target_actions = self.processor.normalize_actions(actions)[rows]
        cache = self._read(features["context"], features["state"]).cache.rows(rows)
        mask = valid[rows].unsqueeze(-1)
        error = self._flow_errors(cache, target_actions, start, time)[..., : self.settings.action_dim] * mask
        return error.sum() / (mask.sum() * self.settings.action_dim).clamp(min=1)

    def methods_to_compile(self) -> Sequence[tuple[nn.Module, str]]:
        """Every transformer layer, and as one the few of the context: there, what lies between layers is memory.

        The DiT's layers compile up to their attention and from there: it is no part of what is compiled.
        """
        eagle, head = self.backbone.eagle_model, self.action_head
        whole = (
            *eagle.vision_model.vision_model.encoder.layers,
            *eagle.language_model.model.layers,
            head.vl_self_attention,
            head.action_encoder,
        )
        halves = [(block, name) for name in DiffusionBlock.COMPILED for block in head.model.transformer_blocks]
        return [*((module, "forward") for module in whole), *halves]

    def stacks(self) -> Sequence[Sequence[nn.Module]]:
        """The layers of the four transformers, and the table of words."""
        eagle, head = self.backbone.eagle_model, self.action_head
        return [
            [*eagle.vision_model.vision_model.encoder.layers],
            [eagle.language_model.model.embed_tokens],
            [*eagle.language_model.model.layers],
            [*head.vl_self_attention.transformer_blocks],
            [*head.model.transformer_blocks],
        ]

    def methods_to_recompute(self) -> Sequence[tuple[nn.Module, str]]:
        """Every layer; those of the DiT up to their attention and from there: keys and values are kept by the cache."""
        *others, dit = self.stacks()
        halves = [(block, name) for name in DiffusionBlock.COMPILED for block in dit]
        return [*((layer, "forward") for stack in others for layer in stack), *halves]

    def encode(self, inputs: TensorDict) -> TensorDict:
        """Features of images, words and state; see the class."""
        context = self._context(inputs["images"], inputs["input_ids"])
        return TensorDict({"context": context, "state": inputs["state"]}, batch_size=inputs.batch_size)

    def _context(self, images: Tensor, input_ids: Tensor) -> Tensor:
        context = self.backbone(images, input_ids)
        return self.action_head.process_context(context) if self._caches_context else context

    def act(self, features: TensorDict, noise: Noise, deterministic: bool = False) -> Action:
        """Denoise a chunk for B rows."""
        if self.steering is not None:
            return self._act_steered(self.steering, features, noise, deterministic)
        device, num_steps = features["state"].device, self.settings.denoising_steps
        shape = self._chunk_shape
        step, step_noise = None, None
        if not deterministic:
            joint = self._rl.joint_logprob
            step_noise = send(noise.normal("step", *((num_steps, *shape) if joint else shape)), device)
            step = None if joint else send(noise.integers("index", num_steps - self._rl.skips_last), device)
        initial = send(noise.normal("initial", *shape), device)
        chunk, log_probs, chain, *values = self._sample(
            features["context"], features["state"], initial, step_noise, step, self.noise_level
        )
        batch = len(chain)
        stored_step = torch.full((batch,), -1, device=device) if step is None else step
        return Action(
            actions=self._physical(chunk),
            log_probs=self._executed(log_probs),
            values=values[0] if values else None,
            trace=TensorDict({"chain": chain, "step": stored_step}, batch_size=[batch]),
        )

    def _act_steered(self, steering: Steering, features: TensorDict, noise: Noise, deterministic: bool) -> Action:
        trace = steering.act(features, noise, self, deterministic=deterministic, critics=self.q_head)
        chunk = trace[ACTIONS].unflatten(1, (self.settings.num_action_chunks, self.settings.action_dim))
        return Action(self.processor.unnormalize_actions(chunk), torch.zeros_like(chunk), values=None, trace=trace)

    def denoise(self, features: TensorDict, initial_noise: Tensor) -> Tensor:
        """See `steering.Flow`."""
        chunk, *_ = self._sample(features["context"], features["state"], initial_noise, None, None, self.noise_level)
        return self._executed(chunk).flatten(1).float()

    def sample(self, features: TensorDict, initial_noise: Tensor, step_noise: Tensor) -> tuple[Tensor, Tensor]:
        """See `steering.Flow`."""
        context, state = features["context"], features["state"]
        chunk, log_probs, *_ = self._sample(context, state, initial_noise, step_noise, None, self.noise_level)
        return self._executed(chunk).flatten(1).float(), self._executed(log_probs).flatten(1).sum(1)

    def flow_errors(self, features: TensorDict, chunk: Tensor, initial_noise: Tensor, time: Tensor) -> Tensor:
        """See `SteeredPolicy.flow_errors`; of the executed steps and used dimensions."""
        executed = chunk.unflatten(1, (self.settings.num_action_chunks, -1))
        target = torch.zeros_like(initial_noise[:, 0])
        target[:, : executed.shape[1], : executed.shape[2]] = executed
        batch, repeats = time.shape
        rows = torch.arange(batch, device=time.device).repeat_interleave(repeats)
        cache = self._read(features["context"], features["state"]).cache.rows(rows)
        errors = self._flow_errors(cache, target[rows], initial_noise.flatten(0, 1), time.flatten())
        return self._executed(errors).mean((1, 2)).unflatten(0, (batch, repeats)).mean(1)

    def _flow_errors(self, cache: ContextCache, actions: Tensor, start: Tensor, time: Tensor) -> Tensor:
        """Squared errors (B, H, max_action_dim) of the velocity between noise and normalised actions."""
        x, target = flow.flow_matching_target(actions, start, time)
        bucket = flow.time_bucket(time, self.config.action_head_cfg.num_timestep_buckets)
        return (self.action_head.velocity(x, bucket, cache, self._slot) - target).square()

    def demonstrated(self, features: TensorDict, actions: Tensor, noise: Noise) -> TensorDict:
        """See `Policy.demonstrated`; what else the trace has is what an actor beside the head would have done."""
        chunk = self._executed(self.processor.normalize_actions(actions))
        if self.steering is None:
            return TensorDict({"chain": chunk.unsqueeze(1)}, batch_size=[len(chunk)])
        trace = self.steering.act(features, noise, self, deterministic=False, critics=None)
        return self.steering.demonstrated(trace, chunk.flatten(1))

    def student(self) -> GrootPolicy | None:
        """Without the actor beside the head, where there is one."""
        if self.steering is None or self.steering.trains_head:
            return None
        copied = copy.deepcopy(self)
        copied.residual = copied.noise_actor = copied.q_head = copied.latent_head = None
        return copied

    def _sample(
        self,
        context: Tensor,
        state: Tensor,
        initial_noise: Tensor,
        step_noise: Tensor | None,
        step: Tensor | None,
        noise_level: float | Tensor,
    ) -> tuple[Tensor, ...]:
        """Action chunk, its log-probabilities, the denoising chain and, with a value head, values.

        Deterministic without `step_noise`.
        """
        decision = self._read(context, state)
        velocity, num_steps = self._velocity_fn(decision.cache), self.settings.denoising_steps
        if step_noise is None:
            denoised = flow.denoise_ode(velocity, initial_noise, num_steps)
        else:
            rule = self._step_rule(decision, noise_level)
            denoised = flow.denoise(velocity, initial_noise, num_steps, rule, step_noise, step)
        values = () if self.value_head is None else (self.value_head(decision.context, decision.state),)
        return denoised.actions, denoised.log_probs, denoised.chain, *values

    def evaluate(self, features: TensorDict, trace: TensorDict) -> Evaluation:
        """Log-probabilities of stored denoising chains, and values; what critics improve has none."""
        if self.steering is not None:
            raise ValueError("this policy learns from critics, not from log-probabilities")
        decision = self._read(features["context"], features["state"])
        evaluated = flow.evaluate_chain(
            self._velocity_fn(decision.cache),
            trace["chain"],
            None if self._rl.joint_logprob else trace["step"],
            self._step_rule(decision, self.noise_level),
            with_entropy=self.noise_net is not None,
        )
        return Evaluation(
            log_probs=self._executed(evaluated.log_probs),
            values=None if self.value_head is None else self.value_head(decision.context, decision.state),
            entropy=None if evaluated.entropy is None else self._executed(evaluated.entropy),
        )

    def value(self, features: TensorDict) -> Tensor:
        """Values (B,) float32; a policy without a value head has none."""
        if self.value_head is None:
            raise ValueError("this policy was built without a value head")
        decision = self._read(features["context"], features["state"])
        return self.value_head(decision.context, decision.state)

    def decode(self, features: TensorDict, initial_noise: Tensor) -> Tensor:
        """Denoise the given initial noise (B, H, max_action_dim) without further noise."""
        velocity = self._velocity_fn(self._read(features["context"], features["state"]).cache)
        return self._physical(flow.denoise_ode(velocity, initial_noise, self.settings.denoising_steps).actions)

    def _read(self, context: Tensor, state: Tensor) -> _Decision:
        if not self._caches_context:
            context = self._as_it_learns(self.action_head.process_context, context)
        context = context.to(self.action_head.dtype)
        return _Decision(self.action_head, context, self.action_head.encode_state(state, self._slot))

    def _velocity_fn(self, cache: ContextCache) -> flow.RowFn:
        def velocity(x: Tensor, step_index: Tensor, rows: Tensor | None) -> Tensor:
            own = cache if rows is None else cache.rows(rows)
            known = None if self._modulations is None else self._modulations[step_index].unbind(dim=1)
            return self._as_it_learns(self.action_head.velocity, x, self._bucket(step_index), own, self._slot, known)

        return velocity

    def _as_it_learns(self, compute: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """The result of what is compiled, see `acts_as_it_learns`; without gradients, nothing of them stays."""
        if torch.is_grad_enabled() or not self.acts_as_it_learns:
            return compute(*arguments)
        with torch.enable_grad():
            return compute(*arguments).detach()

    def _step_rule(self, decision: _Decision, noise_level: float | Tensor) -> flow.StepRule:
        net, method = self.noise_net, self._rl.noise_method
        if net is None:
            return flow.StepRule(method, noise_level, self._color)
        pooled = decision.context.mean(dim=1)

        def std(_x: Tensor, step_index: Tensor, rows: Tensor | None) -> Tensor:
            own = slice(None) if rows is None else rows
            return net(pooled[own], decision.state[own], self._bucket(step_index))

        return flow.StepRule(method, noise_level, self._color, std)

    def _bucket(self, step_index: Tensor) -> Tensor:
        # In float64, as int(1000 * (k / K)) is computed by the published sampler.
        time = step_index.double() / self.settings.denoising_steps
        return flow.time_bucket(time, self.config.action_head_cfg.num_timestep_buckets)

    def _executed(self, chunk: Tensor) -> Tensor:
        return chunk[:, : self.settings.num_action_chunks, : self.settings.action_dim]

    def _physical(self, chunk: Tensor) -> Tensor:
        return self.processor.unnormalize_actions(self._executed(chunk))

    def _part_of(self, name: str) -> str:
        part = name.split(".")[0]
        if part in ("value_head", "q_head", "latent_head", "residual", "noise_actor"):
            return part
        before_features = name.startswith("backbone.") or (self._caches_context and name.startswith(CONTEXT_LAYERS))
        return "backbone" if before_features else "head"


@dataclass
class _Decision:
    """What one forward call knows of B observations."""

    head: ActionHead
    context: Tensor
    """(B, S, D), after the head's context layers."""
    state: Tensor
    """(B, width), encoded."""

    @cached_property
    def cache(self) -> ContextCache:
        """Computed on first use: a value needs none."""
        return self.head.cache(self.context, self.state)
