"""Speed of OpenVLA on a GPU, with random weights: rollout inference and PPO updates.

    python benchmarks/openvla_gpu.py --json benchmarks/results/openvla_gpu.json [--commit REVISION]
    python benchmarks/openvla_gpu.py --tiny     the same code with a tiny network, in seconds on a CPU

The 7 B shape in bfloat16, one 224 x 224 image, prompts of 32 tokens. "Plain" is transformers' own Llama with the same
weights: `generate` after the same towers, for a chunk decoded in parallel one pass of its model over the whole
sequence with all logits. Everything else runs what training runs. Needs torch, transformers, tensordict and peft, no
files.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tensordict import TensorDict
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from groot_gpu import matmul_tflops, relative_error, timed
from regrasp.algorithms.ppo import PpoConfig
from regrasp.experiment.fsdp import FsdpConfig
from regrasp.learner.compilation import compile_policy
from regrasp.learner.learner import Learner
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.learner.recompute import recompute_layers
from regrasp.models.lora_config import LoraConfig
from regrasp.models.openvla.architecture import OpenVlaArchitectureConfig
from regrasp.models.openvla.config import PUBLISHED_TOWERS, OpenVlaConfig
from regrasp.models.openvla.decoding import Decoding
from regrasp.models.openvla.network.language import llama_config
from regrasp.models.openvla.policy import OpenVlaPolicy
from regrasp.models.openvla.processing.processor import OpenVlaProcessor
from regrasp.models.openvla.processing.tokenizer import train_tokenizer
from regrasp.models.openvla.settings import OpenVlaModelConfig, OpenVlaOftModelConfig
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import KeyedNoise
from results_file import revision

HEAD = ("", "plain ms", "ms", "times as fast", "of matmul")
"""Of the table."""
ACTION_DIM = 7
CHUNK = 8
"""Actions that OFT decides on at once."""
PROMPT = 32
MINIBATCHES = 4
"""Of an update that is timed."""
ALGORITHM = PpoConfig(update_epoch=1)


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    config: OpenVlaConfig
    device: torch.device
    num_envs: tuple[int, ...] = (1, 8, 32)
    minibatch: int = 32
    rank: int = 32
    repeats: int = 15
    matmul: int = 8192
    backend: str = "inductor"


@dataclass
class Report:
    """Milliseconds, and how far results are from those of another path."""

    values: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)

    def add(self, key: str, samples: list[float]) -> None:
        """Keep the milliseconds of some calls, and their median."""
        self.samples[key], self.values[key] = samples, statistics.median(samples)
        print(f"{key}: {self.values[key]:.2f} ms", flush=True)


def published_config() -> OpenVlaConfig:
    content = {
        "model_type": "openvla",
        "timm_model_ids": list(PUBLISHED_TOWERS),
        "text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000},
    }
    return OpenVlaConfig.read(content, Path("config.json"))


def random_policy(sizes: Sizes, settings: OpenVlaModelConfig) -> OpenVlaPolicy:
    """Weights drawn on the device in bfloat16: fan-in scaled products, unit norms, no biases."""
    action = {"q01": [-1.0] * ACTION_DIM, "q99": [1.0] * ACTION_DIM}
    decoding = Decoding(method=settings.method, num_action_chunks=settings.num_action_chunks, max_prompt_length=PROMPT)
    processor = OpenVlaProcessor(
        sizes.config, decoding, {"random": {"action": action}}, {}, train_tokenizer(["pick it up"], 300), Path("-")
    )
    with torch.device("meta"):
        policy = OpenVlaPolicy(processor, settings).to(torch.bfloat16)
    policy.to_empty(device=sizes.device)
    generator = torch.Generator(sizes.device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(float(name.endswith((".weight", "scale_factor"))))
            else:
                fan_in = parameter[0].numel() if parameter.ndim == 4 else parameter.shape[-1]
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    for part in (policy.value_head,):
        if part is not None:
            part.float()
    policy.language_model.reset_buffers()
    return policy.eval()


def prepared(sizes: Sizes, batch: int, seed: int = 0) -> TensorDict:
    """Random images, and prompts of the full length."""
    generator, size = torch.Generator().manual_seed(seed), sizes.config.image_size
    images = torch.randint(0, 256, (batch, 1, size, size, 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(3, 200, (batch, PROMPT), generator=generator)
    ids[:, 0] = 1
    return TensorDict({"images": images, "input_ids": ids}, batch_size=[batch]).to(sizes.device)


def noise_of(batch: int, decision: int = 0) -> KeyedNoise:
    return KeyedNoise(0, "train", [(row, 0, decision) for row in range(batch)])


def library_model(policy: OpenVlaPolicy) -> LlamaForCausalLM:
    """Transformers' Llama on the same weights."""
    config = llama_config(policy.config.language)
    config.use_cache = True
    with torch.device("meta"):
        library = LlamaForCausalLM(config)
    library.load_state_dict(policy.language_model.state_dict(), assign=True)
    library.model.rotary_emb = LlamaRotaryEmbedding(config).to(policy.language_model.lm_head.weight.device)
    return library.eval()


@torch.no_grad()
def plain_embeddings(policy: OpenVlaPolicy, inputs: TensorDict) -> Tensor:
    patches = policy.projector(policy.encode(inputs)["vision"])
    words = policy.language_model.embed(inputs["input_ids"])
    return torch.cat([words[:, :1], patches.to(words.dtype), words[:, 1:]], dim=1)


@torch.no_grad()
def generated(policy: OpenVlaPolicy, library: LlamaForCausalLM, inputs: TensorDict, count: int) -> Tensor:
    """Tokens (B, count) by transformers' greedy `generate`."""
    embeddings = plain_embeddings(policy, inputs)
    decoder: Any = library  # its base class says that it has no `generate`
    return decoder.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=policy.config.pad_token,
    )


@torch.no_grad()
def plain_parallel(policy: OpenVlaPolicy, library: LlamaForCausalLM, inputs: TensorDict) -> Tensor:
    """Tokens (B, N) by one pass of transformers' model, in which every token sees every other one."""
    embeddings = plain_embeddings(policy, inputs)
    empty = embeddings.new_zeros(len(embeddings), policy.num_tokens + 1, embeddings.shape[-1])
    whole = torch.cat([embeddings, empty], dim=1)
    length = whole.shape[1]
    mask = torch.ones(len(whole), 1, length, length, dtype=torch.bool, device=whole.device)
    logits = library(inputs_embeds=whole, attention_mask=mask, use_cache=False).logits
    start = embeddings.shape[1] - 1
    return logits[:, start : start + policy.num_tokens].argmax(-1)


@torch.no_grad()
def act(policy: OpenVlaPolicy, inputs: TensorDict, *, decision: int = 0, deterministic: bool = False) -> Any:
    """Features and decision, as in a rollout."""
    features = policy.encode(inputs)
    return features, policy.act(features, noise_of(len(inputs), decision), deterministic=deterministic)


def model_config() -> Any:
    return SimpleNamespace(precision="bf16", trainable="head", trains_backbone=False)


def measure_rollouts(sizes: Sizes, report: Report, name: str, settings: OpenVlaModelConfig) -> None:
    """Plain against ours, compiled."""
    policy = random_policy(sizes, settings)
    library = library_model(policy)
    plain: Callable[[TensorDict], Tensor]
    if policy.is_parallel:
        plain = lambda inputs: plain_parallel(policy, library, inputs)  # noqa: E731
    else:
        plain = lambda inputs: generated(policy, library, inputs, policy.num_tokens)  # noqa: E731
    for num_envs in sizes.num_envs:
        inputs = prepared(sizes, num_envs)
        report.add(
            f"{name}_{num_envs}_plain_ms", timed(lambda inputs=inputs: plain(inputs), sizes.device, sizes.repeats)
        )
        if policy.is_parallel:
            samples = timed(
                lambda inputs=inputs: generated(policy, library, inputs, policy.num_tokens), sizes.device, 3, warm_up=1
            )
            report.add(f"{name}_{num_envs}_generate_ms", samples)
    checked = prepared(sizes, sizes.num_envs[-1], seed=1)
    logits = [policy.evaluate(policy.encode(checked), act(policy, checked)[1].trace).log_probs.detach()]
    apply_precision(policy, model_config(), sizes.device)
    acting: Any = ActingPolicy(policy, model_config(), sizes.device).policy
    compile_policy(acting, sizes.num_envs, sizes.device, backend=sizes.backend)
    logits.append(act(acting, checked)[1].log_probs)
    report.agreement[f"{name} log-probabilities, compiled rollout against eager update"] = relative_error(
        logits[1], logits[0]
    )
    for num_envs in sizes.num_envs:
        inputs = prepared(sizes, num_envs)
        samples = timed(lambda inputs=inputs: act(acting, inputs), sizes.device, sizes.repeats)
        report.add(f"{name}_{num_envs}_ms", samples)


def collected(sizes: Sizes, acting: OpenVlaPolicy, *, keep_features: bool) -> Decisions:
    """A rollout of random images with random rewards."""
    buffer = RolloutBuffer(MINIBATCHES * sizes.minibatch, holds_features=keep_features)
    generator = torch.Generator().manual_seed(3)
    for time_index in range(MINIBATCHES):
        inputs = prepared(sizes, sizes.minibatch, seed=time_index)
        features, action = act(acting, inputs, decision=time_index)
        chunk = action.actions.shape[1]
        buffer.add(
            time_index,
            torch.arange(sizes.minibatch),
            features if keep_features else inputs,
            action,
            torch.rand(action.actions.shape[:2], generator=generator),
            torch.full((sizes.minibatch,), chunk),
            torch.zeros(sizes.minibatch, dtype=torch.bool),
            version=0,
        )
    return ALGORITHM.build().prepare(buffer.build())


def measure_update(
    sizes: Sizes, report: Report, key: str, settings: OpenVlaModelConfig, *, recompute: bool, compiled: bool
) -> None:
    """Milliseconds of a minibatch of PPO with adapters and gradient checkpointing."""
    release(sizes.device)
    policy = random_policy(sizes, replace(settings, is_lora=True, lora=LoraConfig(rank=sizes.rank, alpha=sizes.rank)))
    apply_precision(policy, model_config(), sizes.device)
    policy.to(sizes.device)
    recompute_layers(policy)
    optim = SimpleNamespace(
        lr=1e-4,
        value_lr=3e-3,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-8,
        clip_grad=10.0,
        weight_decay=0.0,
        critic_warmup_steps=0,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        min_lr_ratio=0.0,
    )
    actor: Any = SimpleNamespace(
        model=model_config(),
        micro_batch_size=sizes.minibatch,
        global_batch_size=sizes.minibatch,
        optim=optim,
        fsdp_config=FsdpConfig(),
    )
    learner = Learner(policy, ALGORITHM.build(), actor, num_updates=1, seed=0, device=sizes.device)
    acting: Any = ActingPolicy(policy, model_config(), sizes.device, learner.bfloat16).policy
    if compiled:
        compile_policy(learner.computing, {sizes.minibatch}, sizes.device, backend=sizes.backend)
    rollout = collected(sizes, acting, keep_features=not recompute)
    learner.computing.train()

    def update() -> Any:
        return learner.update(rollout, 0, lambda: False)

    report.agreement[f"{key} first ratio error"] = update()["actor/first_ratio_error"]
    samples = timed(update, sizes.device, max(sizes.repeats // 3, 1), warm_up=1)
    report.add(key, [sample / MINIBATCHES for sample in samples])
    if sizes.device.type == "cuda":
        report.values[key.replace("_ms", "_peak_gb")] = torch.cuda.max_memory_reserved() / 1e9


def release(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def flops_per_decision(config: OpenVlaConfig, num_tokens: int, *, parallel: bool) -> float:
    """Operations of the products of a decision's forward pass: two for each weight that a token meets."""
    towers = sum((tower.layers - 1) * (4 * tower.width**2 + 2 * tower.width * tower.mlp) for tower in config.towers)
    language = config.language
    heads = 2 + 2 * config.key_value_heads / language.num_attention_heads
    layer = heads * language.hidden_size**2 + 3 * language.hidden_size * language.intermediate_size
    fused = 4 * config.vision_width * (config.vision_width + language.hidden_size) + language.hidden_size**2
    patches = config.tokens_per_image
    tokens = patches + PROMPT + (num_tokens + 1 if parallel else num_tokens - 1)
    logits = num_tokens * config.num_bins * language.hidden_size
    return 2 * (patches * (towers + fused) + tokens * language.num_hidden_layers * layer + logits)


KINDS = {
    "openvla": OpenVlaModelConfig(action_dim=ACTION_DIM, precision="bf16", value_head_hidden=(512, 128)),
    "oft": OpenVlaOftModelConfig(action_dim=ACTION_DIM, precision="bf16", num_action_chunks=CHUNK),
}
UPDATES = {
    "plain": {"recompute": True, "compiled": False},
    "cached": {"recompute": False, "compiled": False},
    "compiled": {"recompute": False, "compiled": True},
}


def measure(sizes: Sizes, parts: Sequence[str]) -> tuple[Report, list[tuple[str, ...]]]:
    """Everything, in one process; the table has the share of the measured matrix-product ceiling."""
    report = Report()
    report.values["matmul_tflops"] = matmul_tflops(sizes)  # pyright: ignore[reportArgumentType]
    table: list[tuple[str, ...]] = []
    if "rollouts" in parts:
        for name, settings in KINDS.items():
            measure_rollouts(sizes, report, name, settings)
            release(sizes.device)
            table += rollout_rows(sizes, report, name, settings)
    if "updates" in parts:
        for name, settings in KINDS.items():
            for kind, flags in UPDATES.items():
                measure_update(sizes, report, f"{name}_update_{kind}_ms", settings, **flags)
            plain = report.values[f"{name}_update_plain_ms"]
            for kind in ("cached", "compiled"):
                own, title = report.values[f"{name}_update_{kind}_ms"], f"{name}, update of {sizes.minibatch}, {kind}"
                table.append((title, f"{plain:.1f}", f"{own:.1f}", f"{plain / own:.2f}", ""))
    return report, table


def rollout_rows(sizes: Sizes, report: Report, name: str, settings: OpenVlaModelConfig) -> list[tuple[str, ...]]:
    """Of the table."""
    num_tokens, is_parallel = settings.num_action_chunks * ACTION_DIM, settings.method == "parallel"
    work, rows = flops_per_decision(sizes.config, num_tokens, parallel=is_parallel), []
    for num_envs in sizes.num_envs:
        plain, own = (report.values[f"{name}_{num_envs}{kind}_ms"] for kind in ("_plain", ""))
        share = num_envs * work / (own * 1e9) / report.values["matmul_tflops"]
        title = f"{name}, {num_envs} environments"
        rows.append((title, f"{plain:.1f}", f"{own:.1f}", f"{plain / own:.2f}", f"{share:.0%}"))
    return rows


def sizes_of(*, tiny: bool) -> Sizes:
    """The published size on a GPU, or a tiny one on the CPU."""
    if not tiny:
        return Sizes(published_config(), torch.device("cuda"))
    small = OpenVlaArchitectureConfig(image_size=28, vision_width=16, vision_mlp=16, language_width=24, language_mlp=32)
    config = OpenVlaConfig.read(small.to_json(), Path("config.json"))
    few: dict[str, Any] = {"minibatch": 2, "rank": 2, "repeats": 1, "matmul": 64}
    return Sizes(config, torch.device("cpu"), num_envs=(1, 2), backend="eager", **few)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", default=None, help="what is measured, where the folder has no git history")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on the CPU; the numbers mean nothing")
    parser.add_argument("--parts", nargs="+", choices=("rollouts", "updates"), default=["rollouts", "updates"])
    options = parser.parse_args(arguments)
    sizes, started = sizes_of(tiny=options.tiny), time.monotonic()
    report, table = measure(sizes, options.parts)
    for row in (HEAD, *table):
        print("{:36}{:>10}{:>10}{:>15}{:>11}".format(*row))
    print("agreement:", {name: f"{value:.1e}" for name, value in report.agreement.items()})
    if options.json is not None:
        on_gpu = sizes.device.type == "cuda"
        content = {
            "command": "python benchmarks/openvla_gpu.py --json benchmarks/results/openvla_gpu.json",
            "commit": revision() if options.commit is None else options.commit,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            **report.values,
            "rows": [dict(zip(HEAD, row, strict=True)) for row in table],
            "agreement": report.agreement,
            "samples_ms": report.samples,
            "minutes": (time.monotonic() - started) / 60,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
