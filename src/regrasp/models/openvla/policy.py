"""OpenVLA as a policy: frozen or trained vision features, action tokens of Llama, a value head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.algorithms.flow import gaussian_entropy, gaussian_log_prob
from regrasp.device import send
from regrasp.envs.contract import Observation
from regrasp.errors import UserError
from regrasp.models.contract import Action, Evaluation, Noise, Policy, PolicySpec
from regrasp.models.initialization import seeded
from regrasp.models.lora import adapters, add_adapters, merge_adapters
from regrasp.models.openvla.network.language import LanguageModel
from regrasp.models.openvla.network.projector import Projector
from regrasp.models.openvla.network.regression import GaussianHead
from regrasp.models.openvla.network.vision import VisionBackbone
from regrasp.models.openvla.processing.processor import OpenVlaProcessor
from regrasp.models.openvla.processing.prompt import END
from regrasp.models.openvla.sampling import draw, entropy_of, log_distribution, support_of
from regrasp.models.openvla.settings import OpenVlaModelConfig, OpenVlaOftModelConfig
from regrasp.models.rows import rows_at
from regrasp.models.value_head import init_mlp, silu_mlp

_LARGEST_UNIFORM = 1 - 2**-24
_PROJECTOR_TARGETS = ("fc1", "fc2", "fc3")
_VISION_TARGETS = ("qkv", "proj", "fc1", "fc2")


class OpenVlaPolicy(Policy):
    """One class for both ways to decode, and for tiny and published sizes; its weights have the published names.

    Features are `vision` (B, V P, W1 + W2), the towers' patches, and `input_ids` (B, L), the padded prompt. The trace
    of a decision is `tokens` (B, N), the ids of its N = T A action tokens, and with `top_k` `support` (B, N, bins),
    which tokens could be drawn; with a Gaussian head it is `actions` (B, T, A) in policy units.

    Args:
        processor: Prompt, images, statistics, and how it decides.
        settings: Sampling, value head, adapters.
        seed: Draws the initial weights.

    Raises:
        UserError: The settings contradict each other, or `action_dim` does not fit the statistics.
    """

    RL_PARTS = ("value_head",)
    capturable = ("_features", "_decide", "_regress")

    def __init__(self, processor: OpenVlaProcessor, settings: OpenVlaModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        for problem in settings.problems():
            raise problem
        config, width = processor.config, processor.scaling.width
        if settings.action_dim != width:
            raise UserError(
                "Another action width than the model was trained with",
                key="actor.model.action_dim",
                value=settings.action_dim,
                expected=f"{width}, as the statistics of {processor.decoding.unnorm_key} have it",
                fix="set it so, or choose other statistics with actor.model.unnorm_key",
            )
        self.config = config
        self.processor = processor
        self.settings = settings
        self.num_tokens = processor.tokens_per_decision
        self.is_parallel = processor.decoding.method == "parallel"
        chunk = processor.decoding.num_action_chunks
        self.spec = PolicySpec(
            num_action_chunks=chunk,
            action_horizon=chunk,
            action_dim=width,
            state_dim=0,
            cameras=processor.cameras,
        )
        language_width = config.language.hidden_size
        with seeded(seed):
            self.vision_backbone = VisionBackbone(config.towers, config.image_size)
            self.projector = Projector(config.vision_width, language_width)
            self.language_model = LanguageModel(config.language)
            widths = (language_width, *settings.value_head_hidden, 1)
            self.value_head = silu_mlp(widths) if settings.add_value_head else None
            self.action_head = None
            if processor.decoding.head == "gaussian" and isinstance(settings, OpenVlaOftModelConfig):
                self.action_head = GaussianHead(language_width, chunk, width, settings.initial_std)
        if self.value_head is not None:
            init_mlp(self.value_head, torch.Generator().manual_seed(seed))

    @property
    def offers(self) -> frozenset[str]:
        """Log-probabilities and entropy of tokens, and values with a value head."""
        return frozenset({"log_prob", "entropy", *(() if self.value_head is None else ("value",))})

    def prepare(self, observation: Observation) -> TensorDict:
        """Images (B, V, H, W, 3) uint8 and input_ids (B, L); see `OpenVlaProcessor.prepare`."""
        return self.processor.prepare(observation)

    def encode(self, inputs: TensorDict) -> TensorDict:
        """Patch features of both towers, and the prompt as it is."""
        vision = self._features(inputs["images"])
        return TensorDict({"vision": vision, "input_ids": inputs["input_ids"]}, batch_size=inputs.batch_size)

    def act(self, features: TensorDict, noise: Noise, deterministic: bool = False) -> Action:
        """Decide for B rows: draw tokens, or take the likeliest ones; with a Gaussian head, draw, or take the mean."""
        if self.action_head is not None:
            return self._act_by_regression(features, noise, deterministic)
        sampling = self.settings.sampling
        temperature = sampling.temperature_eval if deterministic else sampling.temperature_train
        uniform = None
        if temperature is not None:
            uniform = torch.special.ndtr(noise.normal("tokens", self.num_tokens)).clamp(max=_LARGEST_UNIFORM)
            uniform = send(uniform, features["vision"].device)
        tokens, log_probs, *rest = self._decide(features["vision"], features["input_ids"], uniform, temperature or 1.0)
        values = None if self.value_head is None else rest.pop(0)
        trace = {"tokens": tokens, **({"support": rest[0]} if rest else {})}
        return Action(
            actions=self.processor.decode_actions(tokens),
            log_probs=self._chunk(log_probs),
            values=values,
            trace=TensorDict(trace, batch_size=[len(tokens)]),
        )

    def _act_by_regression(self, features: TensorDict, noise: Noise, deterministic: bool) -> Action:
        mean, std, *values = self._regress(features["vision"], features["input_ids"])
        actions = mean
        if not deterministic:
            drawn = noise.normal("action", self.spec.num_action_chunks, self.spec.action_dim)
            actions = mean + std * send(drawn, mean.device)
        return Action(
            actions=self.processor.scaling.unnormalize(actions),
            log_probs=gaussian_log_prob(actions, mean, std),
            values=values[0] if values else None,
            trace=TensorDict({"actions": actions}, batch_size=[len(mean)]),
        )

    def _regress(self, vision: Tensor, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Means and deviations, both (B, T, A), of a Gaussian head, and values with a value head."""
        assert self.action_head is not None
        hidden = self._hidden(vision, input_ids, None)
        mean, std = self.action_head(hidden)
        values = self._values(hidden[:, 0])
        return mean, std.expand_as(mean), *(() if values is None else (values,))

    def evaluate(self, features: TensorDict, trace: TensorDict) -> Evaluation:
        """Log-probabilities and entropy of stored tokens under the training temperature, or of actions; and values."""
        if self.action_head is not None:
            mean, std, *values = self._regress(features["vision"], features["input_ids"])
            log_probs = gaussian_log_prob(trace["actions"], mean, std)
            return Evaluation(log_probs, values[0] if values else None, gaussian_entropy(std))
        tokens, first = trace["tokens"], self.config.action_ids[0]
        hidden = self._hidden(features["vision"], features["input_ids"], tokens)
        distribution = self._distribution(hidden, trace["support"] if "support" in trace.keys() else None)  # noqa: SIM118
        log_probs = distribution.gather(-1, (tokens - first).unsqueeze(-1)).squeeze(-1)
        return Evaluation(
            log_probs=self._chunk(log_probs),
            values=self._values(hidden[:, 0]),
            entropy=self._chunk(entropy_of(distribution)),
        )

    def value(self, features: TensorDict) -> Tensor:
        """Values (B,) float32; a policy without a value head has none."""
        values = self._values(self.state_before_actions(features))
        if values is None:
            raise ValueError("this policy was built without a value head")
        return values

    def prompt_features(self, features: TensorDict) -> tuple[Tensor, Tensor]:
        """Causal features, after the last norm, of the patches (B, V P, D) and of the prompt's last position (B, D)."""
        sequence = self._prompt(features["vision"], features["input_ids"])
        hidden = self.language_model.model.norm(self.language_model.whole(sequence.embeddings))
        last = self._positions(sequence, self._lengths(features["input_ids"]), 1)
        return hidden[:, 1 : 1 + sequence.num_patches], rows_at(hidden, last).squeeze(1)

    def state_before_actions(self, features: TensorDict) -> Tensor:
        """Features (B, D), after the last norm, of the position that predicts the first action token."""
        return self._hidden(features["vision"], features["input_ids"], None)[:, 0]

    def decode(self, features: TensorDict, initial_noise: Tensor) -> Tensor:
        """The likeliest tokens' actions: this policy has no noise that decides which action is the best one."""
        del initial_noise
        if self.action_head is not None:
            return self.processor.scaling.unnormalize(self._regress(features["vision"], features["input_ids"])[0])
        tokens, *_ = self._decide(features["vision"], features["input_ids"], None, 1.0)
        return self.processor.decode_actions(tokens)

    def sft_loss(self, features: TensorDict, actions: Tensor, valid: Tensor, noise: Noise, repeats: int = 1) -> Tensor:
        """Cross-entropy of the demonstrated tokens over the whole vocabulary, over valid steps; needs no noise.

        With a Gaussian head, the mean's absolute error in policy units, as OFT trains it.
        """
        del noise, repeats
        if actions.shape[1:] != (self.spec.action_horizon, self.spec.action_dim):
            raise ValueError(f"actions of shape {tuple(actions.shape)}, chunk of {self.spec.action_horizon}")
        if self.action_head is not None:
            mean, *_ = self._regress(features["vision"], features["input_ids"])
            return self._mean_over((mean - self.processor.scaling.normalize(actions)).abs(), valid)
        tokens = self.processor.encode_actions(actions)
        hidden = self._hidden(features["vision"], features["input_ids"], tokens)
        logits = self.language_model.logits(hidden, 0, self.config.language.vocab_size)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
        return self._mean_over(self._chunk(loss), valid)

    def demonstrated(self, features: TensorDict, actions: Tensor, noise: Noise) -> TensorDict:
        """The actions in policy units, or their tokens, each of which `top_k` leaves a probability."""
        del features, noise
        if self.action_head is not None:
            return TensorDict({"actions": self.processor.scaling.normalize(actions)}, batch_size=[len(actions)])
        tokens, (first, end) = self.processor.encode_actions(actions), self.config.action_ids
        trace, top_k = {"tokens": tokens}, self.settings.sampling.top_k
        if top_k is not None and top_k < end - first:
            trace["support"] = torch.ones(*tokens.shape, end - first, dtype=torch.bool, device=tokens.device)
        return TensorDict(trace, batch_size=[len(tokens)])

    def _mean_over(self, loss: Tensor, valid: Tensor) -> Tensor:
        """Mean of (B, T, A) over valid steps (B, T)."""
        mask = valid.unsqueeze(-1)
        return (loss * mask).sum() / (mask.sum() * self.spec.action_dim).clamp(min=1)

    def trainable(self, part: str) -> Sequence[tuple[str, nn.Parameter]]:
        """Named parameters of a part.

        `backbone` (the towers, without what no feature depends on), `head` (projector, language model, action head) and
        `value_head` are disjoint, and together are `all`. `head_without_context` is `head`.
        """
        unused = tuple(f"vision_backbone.{name}" for name in self.vision_backbone.unused())
        named = [item for item in self.named_parameters() if not item[0].startswith(unused)]
        match part:
            case "all":
                return named
            case "backbone" | "value_head":
                beginning = "vision_backbone." if part == "backbone" else "value_head."
                return [item for item in named if item[0].startswith(beginning)]
            case "head" | "head_without_context":
                return [item for item in named if not item[0].startswith(("vision_backbone.", "value_head."))]
        raise ValueError(f"unknown part {part!r}")

    def prepare_training(self, part: str) -> Sequence[tuple[str, nn.Parameter]]:
        """Freeze the rest; with adapters, add them to the part's layers, whose own weights stay as they are."""
        lora = self.settings.adapters
        if lora is None:
            return super().prepare_training(part)
        if not adapters(self):
            add_adapters(self.language_model.model.layers, lora, seed=0)
            add_adapters(self.projector, lora, seed=1, targets=_PROJECTOR_TARGETS)
            if part == "all":
                for number, tower in enumerate(self.vision_backbone.towers()):
                    add_adapters(nn.ModuleList(tower.used_blocks), lora, seed=2 + number, targets=_VISION_TARGETS)
        self.requires_grad_(False)
        whole = [item for item in self.named_parameters() if item[0].startswith("action_head.")]
        trained = [*adapters(self), *whole, *(self.trainable("value_head") if part == "all" else ())]
        for _, parameter in trained:
            parameter.requires_grad_(True)
        return trained

    def published_state(self) -> dict[str, Tensor]:
        """Tensors of a model folder, under the published names."""
        lora = self.settings.adapters
        return self.state_dict() if lora is None else merge_adapters(self.state_dict(), lora)

    def save(self, folder: Path) -> None:
        """Write a self-contained folder; see `checkpoint.save_openvla`."""
        from regrasp.models.openvla.checkpoint import save_openvla

        save_openvla(self, folder)

    def check_instructions(self, instructions: Sequence[str]) -> None:
        """See `PromptEncoder.encode`."""
        self.processor.prompts.encode(instructions)

    def inputs_unlike(self, folder: Path) -> list[str]:
        """What of the preparation of inputs and actions differs in another OpenVLA's folder."""
        from regrasp.models.openvla.decoding import read_decoding

        other = read_decoding(folder)
        own = self.processor.decoding
        return [] if other is None else [name for name, value in vars(other).items() if getattr(own, name) != value]

    def describe_inputs(self) -> str:
        """Cameras, statistics, and how it decides."""
        decoding = self.processor.decoding
        return (
            f"model: {decoding.method} decoding of {self.num_tokens} action tokens; actions of {decoding.unnorm_key};"
            f" cameras {', '.join(self.processor.cameras)}; prompts of at most {decoding.max_prompt_length} tokens"
        )

    def stored_bytes(self, *, recomputes: bool) -> int:
        """Of features, or of images, and of words."""
        words = self.processor.decoding.max_prompt_length * torch.int64.itemsize
        views = len(self.processor.cameras)
        if recomputes:
            return words + views * 3 * self.config.image_size**2
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        return words + views * self.config.tokens_per_image * self.config.vision_width * dtype.itemsize

    def methods_to_compile(self) -> Sequence[tuple[nn.Module, str]]:
        """Every transformer layer."""
        towers = [block for tower in self.vision_backbone.towers() for block in tower.used_blocks]
        return [(module, "forward") for module in (*towers, *self.language_model.layers)]

    def stacks(self) -> Sequence[Sequence[nn.Module]]:
        """The layers of the three transformers, and the table of words."""
        towers = [tower.used_blocks for tower in self.vision_backbone.towers()]
        return [*towers, [self.language_model.model.embed_tokens], self.language_model.layers]

    def _features(self, images: Tensor) -> Tensor:
        """Patch features (B, V P, W1 + W2) of images (B, V, H, W, 3) uint8."""
        dtype = self.vision_backbone.featurizer.pos_embed.dtype
        vision = self.vision_backbone(self.processor.pixels(images.flatten(0, 1), dtype))
        return vision.unflatten(0, images.shape[:2]).flatten(1, 2)

    def _prompt(self, vision: Tensor, input_ids: Tensor) -> _Sequence:
        """Embeddings of the beginning of the text, the patches, and the rest of the ids."""
        words, patches = self.language_model.embed(input_ids), self.projector(vision)
        patches = patches.to(words.dtype)
        embeddings = torch.cat([words[:, :1], patches, words[:, 1:]], dim=1)
        return _Sequence(embeddings, patches.shape[1])

    def _decide(
        self, vision: Tensor, input_ids: Tensor, uniform: Tensor | None, temperature: float | Tensor
    ) -> tuple[Tensor, ...]:
        """Tokens (B, N), their log-probabilities, then values with a value head, then the support with `top_k`.

        Log-probabilities are those of the training temperature; the likeliest tokens without `uniform`.
        """
        choose = self._parallel if self.is_parallel else self._autoregressive
        tokens, logits, before = choose(vision, input_ids, uniform, temperature)
        sampling = self.settings.sampling
        support = support_of(logits, sampling.top_k)
        distribution = log_distribution(logits, sampling.temperature_train, support)
        index = (tokens - self.config.action_ids[0]).unsqueeze(-1)
        log_probs = distribution.gather(-1, index).squeeze(-1)
        values = self._values(before)
        return tokens, log_probs, *(part for part in (values, support) if part is not None)

    def _autoregressive(
        self, vision: Tensor, input_ids: Tensor, uniform: Tensor | None, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, N), their logits (B, N, bins) and the feature (B, D) before the first, with a cache."""
        model, sequence = self.language_model, self._prompt(vision, input_ids)
        last = sequence.num_patches + self._lengths(input_ids) - 1
        hidden, cache = model.prefill(sequence.embeddings, self.num_tokens - 1, at=last.unsqueeze(1))
        feature = before = model.model.norm(hidden).squeeze(1)
        tokens, logits = [], []
        for number in range(self.num_tokens):
            logits.append(model.logits(feature, *self.config.action_ids))
            tokens.append(self._choose(logits[-1], None if uniform is None else uniform[:, number], temperature))
            if number + 1 < self.num_tokens:
                hidden = model.step(model.embed(tokens[-1]).unsqueeze(1), last + 1 + number, cache)
                feature = model.model.norm(hidden).squeeze(1)
        return torch.stack(tokens, dim=1), torch.stack(logits, dim=1), before

    def _parallel(
        self, vision: Tensor, input_ids: Tensor, uniform: Tensor | None, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same in one pass."""
        hidden = self._hidden(vision, input_ids, None)
        logits = self.language_model.logits(hidden, *self.config.action_ids)
        return self._choose(logits, uniform, temperature), logits, hidden[:, 0]

    def _choose(self, logits: Tensor, uniform: Tensor | None, temperature: float | Tensor) -> Tensor:
        """Ids (...) of logits (..., bins)."""
        first = self.config.action_ids[0]
        if uniform is None:
            return first + logits.argmax(dim=-1)
        support = support_of(logits, self.settings.sampling.top_k)
        return first + draw(log_distribution(logits, temperature, support), uniform)

    def _hidden(self, vision: Tensor, input_ids: Tensor, tokens: Tensor | None) -> Tensor:
        """Features (B, N, D), after the last norm, of the positions that predict the tokens.

        Args:
            vision: (B, V P, W1 + W2).
            input_ids: (B, L).
            tokens: (B, N), needed token by token; None: only the first position's, (B, 1, D). Decoded in parallel,
                the features depend on no token, and are all given.
        """
        lengths = self._lengths(input_ids)
        if self.is_parallel:
            return self._hidden_in_parallel(vision, input_ids, lengths)
        count = 1 if tokens is None else self.num_tokens
        ids = input_ids
        if tokens is not None:
            ids = F.pad(input_ids, (0, count - 1), value=self.config.pad_token)
            ids = ids.scatter(1, lengths.unsqueeze(1) + torch.arange(count - 1, device=ids.device), tokens[:, :-1])
        sequence = self._prompt(vision, ids)
        positions = self._positions(sequence, lengths, count)
        return self.language_model.model.norm(self.language_model.whole(sequence.embeddings, at=positions))

    def _hidden_in_parallel(self, vision: Tensor, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Empty embeddings in place of the action tokens, and every token sees every other one."""
        stop = int(self.processor.decoding.stop_token)
        ids = F.pad(input_ids, (0, self.num_tokens + stop), value=self.config.pad_token)
        place = torch.arange(ids.shape[1], device=ids.device)
        end = (lengths + self.num_tokens).unsqueeze(1)
        if stop:
            ids = torch.where(place == end, END, ids)
        sequence = self._prompt(vision, ids)
        is_action = (place >= lengths.unsqueeze(1)) & (place < end)
        sees = place < end + stop
        patches = (sequence.num_patches, 0)
        is_action, visible = F.pad(is_action, patches, value=False), F.pad(sees, patches, value=True)
        embeddings = sequence.embeddings.masked_fill(is_action.unsqueeze(-1), 0.0)
        positions = self._positions(sequence, lengths, self.num_tokens)
        return self.language_model.model.norm(self.language_model.whole(embeddings, visible, at=positions))

    def _positions(self, sequence: _Sequence, lengths: Tensor, count: int) -> Tensor:
        """(B, count), those that predict the first action tokens: the last one of the prompt, and on."""
        first = sequence.num_patches + lengths - 1
        return first.unsqueeze(1) + torch.arange(count, device=lengths.device)

    def _lengths(self, input_ids: Tensor) -> Tensor:
        """(B,), tokens of each prompt without its padding."""
        return (input_ids != self.config.pad_token).sum(dim=1)

    def _distribution(self, hidden: Tensor, support: Tensor | None) -> Tensor:
        """Log-probabilities (B, N, bins) under the training temperature."""
        logits = self.language_model.logits(hidden, *self.config.action_ids)
        return log_distribution(logits, self.settings.sampling.temperature_train, support)

    def _values(self, feature: Tensor) -> Tensor | None:
        """Values (B,) float32 of features (B, D)."""
        if self.value_head is None:
            return None
        weight = next(self.value_head.parameters())
        feature = feature.detach() if self.settings.detach_critic_input else feature
        return self.value_head(feature.to(weight.dtype)).squeeze(-1).float()

    def _chunk(self, per_token: Tensor) -> Tensor:
        """(B, T A) as (B, T, A)."""
        return per_token.unflatten(1, (self.spec.num_action_chunks, self.spec.action_dim))


@dataclass(frozen=True)
class _Sequence:
    """What goes into the language model."""

    embeddings: Tensor
    """(B, S, D)."""
    num_patches: int
    """Of all views, after the first token."""
