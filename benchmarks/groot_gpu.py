"""Speed and memory of GR00T N1.5 on a GPU, with random weights: PPO updates and rollout inference.

    python benchmarks/groot_gpu.py --json benchmarks/results/groot_gpu.json [--commit REVISION]
    python benchmarks/groot_gpu.py --tiny     the same code with a tiny network, in seconds on a CPU

Three cameras at 224 x 224, sequences of 850 tokens, bfloat16. "Plain eager" is the computation of the published code:
no compilation, bfloat16 weights, and the context's keys and values computed again in every denoising step. Everything
else runs what training runs: its actor, its rollout's policy, its compilation. Needs torch, transformers and
tensordict, no files.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import transformers
from tensordict import TensorDict
from torch import Tensor

from groot_flops import Flops, count_flops
from regrasp.algorithms.ppo import PpoConfig
from regrasp.experiment.fsdp import FsdpConfig
from regrasp.learner.compilation import capture_updates, compile_policy, num_compilations
from regrasp.learner.learner import Learner
from regrasp.learner.precision import ActingPolicy, apply_precision
from regrasp.models.config import TrainablePart
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.kernels.few_queries import KeysValues
from regrasp.models.groot.network import transformer
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import KeyedNoise
from results_file import revision

NUM_STEPS = 4
NUM_VIEWS = 3
SEQUENCE_LENGTH = 850
NUM_PADDED = 40
"""Padding on the left of every sequence."""
MINIBATCHES = 16
"""Of the updates that are timed."""
TINY_ARCHITECTURE = {
    "image_size": 28,
    "patch_size": 14,
    "vision_width": 32,
    "vision_layers": 2,
    "vision_heads": 2,
    "vision_mlp": 48,
    "language_width": 32,
    "language_layers": 2,
    "language_heads": 2,
    "language_kv_heads": 1,
    "language_head_dim": 16,
    "language_mlp": 48,
    "vocab_size": 300,
    "head_width": 32,
    "head_layers": 3,
    "head_heads": 2,
    "vl_self_attention_layers": 2,
    "num_future_tokens": 2,
    "action_horizon": 4,
    "max_state_dim": 8,
    "max_action_dim": 6,
    "num_embodiments": 3,
}


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    groot: GrootConfig
    device: torch.device
    text_length: int = 48
    num_envs: tuple[int, int] = (4, 64)
    num_chunks: int = 16
    minibatch: int = 32
    matmul: int = 8192
    repeats: int = 15
    backend: str = "inductor"
    action_dim: int = 28
    state_dim: int = 28

    @property
    def num_tokens(self) -> int:
        """S, of one sequence."""
        return self.text_length + NUM_VIEWS * self.groot.eagle_cfg.vision_config.num_tokens


@dataclass
class Report:
    """Everything measured."""

    values: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    compilations: dict[str, int] = field(default_factory=dict)

    def add(self, key: str, samples: list[float]) -> None:
        """Keep raw milliseconds and their median."""
        self.samples[key] = samples
        self.values[key] = statistics.median(samples)
        print(f"{key}: {self.values[key]:.2f} ms", flush=True)


def timed(call: Callable[[], Any], device: torch.device, repeats: int, warm_up: int = 3) -> list[float]:
    """Milliseconds of each of `repeats` calls, by CUDA events on a GPU."""
    for _ in range(warm_up):
        call()
    samples = []
    for _ in range(repeats):
        if device.type != "cuda":
            started = time.perf_counter()
            call()
            samples.append((time.perf_counter() - started) * 1e3)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end))
    return samples


def random_policy(sizes: Sizes, trainable: TrainablePart) -> GrootPolicy:
    """See `random_weights`: fan-in scaled products, unit norms, no biases."""
    processor = GrootProcessor.fresh(
        sizes.groot,
        ["pick it up"],
        num_views=NUM_VIEWS,
        state_dim=sizes.state_dim,
        action_dim=sizes.action_dim,
        text_length=sizes.text_length,
        text_first=False,
    )
    horizon = sizes.groot.action_horizon
    settings = GrootModelConfig(num_action_chunks=horizon, action_dim=sizes.action_dim, trainable=trainable)
    with torch.device("meta"):
        policy = GrootPolicy(sizes.groot, processor, settings)
    return random_weights(policy, sizes.device)


def random_weights(policy: GrootPolicy, device: torch.device) -> GrootPolicy:
    """The policy, which is on the meta device, with float32 weights that are drawn where they stay."""
    policy.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(float(name.endswith(".weight")))
            elif name.endswith(".b"):
                parameter.zero_()
            else:
                fan_in = parameter[0].numel() if parameter.ndim == 4 else parameter.shape[1]
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    policy.backbone.reset_buffers()
    return policy.to(device).eval()


def prepared(sizes: Sizes, batch: int, seed: int = 0) -> TensorDict:
    """Random images, words and states of `batch` environments, on the device."""
    groot, generator = sizes.groot, torch.Generator().manual_seed(seed)
    size, eagle = groot.image_size, groot.eagle_cfg
    ids = torch.randint(2, 200, (batch, sizes.num_tokens), generator=generator)
    ids[:, :NUM_PADDED] = eagle.pad_token_index
    num_image_tokens = NUM_VIEWS * eagle.vision_config.num_tokens
    ids[:, NUM_PADDED : NUM_PADDED + num_image_tokens] = eagle.image_token_index
    images = torch.randint(0, 256, (batch, NUM_VIEWS, size, size, 3), generator=generator, dtype=torch.uint8)
    state = torch.randn(batch, groot.action_head_cfg.max_state_dim, generator=generator)
    return TensorDict({"images": images, "input_ids": ids, "state": state}, batch_size=[batch]).to(sizes.device)


def noise_of(batch: int, decision: int = 0) -> KeyedNoise:
    return KeyedNoise(0, "train", [(row, 0, decision) for row in range(batch)])


def plain_attention(queries: Tensor, to: KeysValues) -> Tensor:
    return F.scaled_dot_product_attention(queries, to.keys, to.values)


@torch.no_grad()
@mock.patch.object(transformer, "attend", plain_attention)
def plain_actions(policy: GrootPolicy, inputs: TensorDict, num_steps: int = NUM_STEPS) -> Tensor:
    """Actions as the published code computes them, with torch's attention; `policy` is bfloat16 throughout."""
    head, slot = policy.action_head, policy.processor.config.embodiment_id
    context = head.process_context(policy.backbone(inputs["images"], inputs["input_ids"]))
    state = head.encode_state(inputs["state"], slot)
    horizon, width = policy.config.action_horizon, policy.config.action_head_cfg.max_action_dim
    x = noise_of(len(inputs)).normal("initial", horizon, width).to(inputs.device)
    for step in range(num_steps):
        bucket = torch.full((len(x),), int(1000 * step / num_steps), device=x.device)
        x = x + head.velocity(x, bucket, head.cache(context, state), slot) / num_steps
    return policy.processor.unnormalize_actions(x[..., : policy.settings.action_dim])


@torch.no_grad()
def act(policy: GrootPolicy, inputs: TensorDict, *, decision: int = 0, deterministic: bool = False) -> tuple[Any, Any]:
    """Features and decision, as in a rollout."""
    features = policy.encode(inputs)
    return features, policy.act(features, noise_of(len(inputs), decision), deterministic=deterministic)


def relative_error(found: Tensor, reference: Tensor) -> float:
    """||found - reference|| / ||reference||."""
    return float((found.double() - reference.double()).norm() / reference.double().norm())


def matmul_tflops(sizes: Sizes) -> float:
    """Rate of a large bfloat16 product of random matrices."""
    n = sizes.matmul
    a, b = (torch.randn(n, n, device=sizes.device, dtype=torch.bfloat16) for _ in range(2))
    milliseconds = statistics.median(timed(lambda: a @ b, sizes.device, sizes.repeats))
    return 2 * n**3 / milliseconds / 1e9


def measure_rollouts(sizes: Sizes, report: Report) -> None:
    """Plain eager against compiled inference, and how far both are from float32."""
    policy = random_policy(sizes, "head")
    checked = prepared(sizes, sizes.num_envs[0], seed=1)
    exact = act(policy, checked, deterministic=True)[1].actions
    apply_precision(policy, model_config("head"), sizes.device)
    plain = copy.deepcopy(policy).to(torch.bfloat16)
    report.errors["plain eager"] = relative_error(plain_actions(plain, checked), exact)
    for num_envs, key in zip(sizes.num_envs, ("rollout4_eager_ms", "rollout64_eager_ms"), strict=True):
        inputs = prepared(sizes, num_envs)
        report.add(
            key, timed(lambda inputs=inputs, plain=plain: plain_actions(plain, inputs), sizes.device, sizes.repeats)
        )
    del plain
    acting = ActingPolicy(policy, model_config("head"), sizes.device).policy
    report.errors["eager"] = relative_error(act(acting, checked, deterministic=True)[1].actions, exact)
    compile_policy(acting, sizes.num_envs, sizes.device, parts={"act": sizes.minibatch}, backend=sizes.backend)
    for num_envs, key in zip(sizes.num_envs, ("rollout4_ms", "rollout64_ms"), strict=True):
        before, inputs = num_compilations(), prepared(sizes, num_envs)
        report.add(key, timed(lambda inputs=inputs: act(acting, inputs), sizes.device, sizes.repeats))
        report.compilations[key] = num_compilations() - before
    report.errors["compiled"] = relative_error(act(acting, checked, deterministic=True)[1].actions, exact)
    before = num_compilations()
    act(acting, prepared(sizes, sizes.num_envs[0] - 1))
    report.compilations["smaller batch"] = num_compilations() - before


def made_decision(sizes: Sizes, *, compiled: bool) -> Callable[[], Any]:
    """Features and actions of the larger number of environments, as in a rollout."""
    policy = random_policy(sizes, "head")
    apply_precision(policy, model_config("head"), sizes.device)
    acting, inputs = ActingPolicy(policy, model_config("head"), sizes.device).policy, prepared(sizes, sizes.num_envs[1])
    if compiled:
        compile_policy(acting, {sizes.num_envs[1]}, sizes.device, backend=sizes.backend)
    return lambda: act(acting, inputs)


def model_config(trainable: TrainablePart) -> Any:
    return SimpleNamespace(precision="bf16", trainable=trainable, trains_backbone=False)


def actor_config(sizes: Sizes, trainable: TrainablePart) -> Any:
    optim = SimpleNamespace(
        lr=5e-6,
        value_lr=1e-4,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-8,
        clip_grad=1.0,
        weight_decay=0.01,
        critic_warmup_steps=0,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        min_lr_ratio=0.0,
    )
    model, size = model_config(trainable), sizes.minibatch
    return SimpleNamespace(
        model=model, micro_batch_size=size, global_batch_size=size, optim=optim, fsdp_config=FsdpConfig()
    )


ALGORITHM = PpoConfig(update_epoch=1)
FIRST_RATIO_ERROR = 1e-3
"""What the first minibatch's ratio may be away from 1."""


def measure_update(sizes: Sizes, report: Report, key: str, **settings: Any) -> None:
    """A minibatch's share of an update, see `made_update`."""
    update, num_minibatches = made_update(sizes, **settings)
    report.values[key.replace("_ms", "_first_ratio_error")] = update()["actor/first_ratio_error"]
    samples = timed(update, sizes.device, max(sizes.repeats // 2, 1), warm_up=1)
    report.add(key, [sample / num_minibatches for sample in samples])
    if sizes.device.type == "cuda":
        report.values[key.replace("_ms", "_peak_gb")] = torch.cuda.max_memory_reserved() / 1e9


def made_update(
    sizes: Sizes,
    *,
    trainable: TrainablePart = "head",
    recompute: bool = False,
    compiled: bool = True,
    whole_rollout: bool = False,
) -> tuple[Callable[[], Any], int]:
    """An update to time (forward, backward, clipping, AdamW, metrics), and the number of its minibatches.

    With `whole_rollout` the rollout that a run of `Sizes` trains on is taken before and kept on the device meanwhile.
    """
    release(sizes.device)
    policy = random_policy(sizes, trainable)
    apply_precision(policy, model_config(trainable), sizes.device)
    learner = Learner(
        policy, ALGORITHM.build(), actor_config(sizes, trainable), num_updates=1, seed=0, device=sizes.device
    )
    acting = ActingPolicy(policy, model_config(trainable), sizes.device, learner.bfloat16).policy
    release(sizes.device)  # the float32 weights that precision has replaced
    if compiled:
        compile_policy(learner.computing, {sizes.minibatch}, sizes.device, backend=sizes.backend)
        if sizes.device.type == "cuda":
            capture_updates(learner, sizes.minibatch, backend=sizes.backend)
        parts = {"act": sizes.minibatch} | ({"encode": sizes.minibatch} if recompute else {})
        compile_policy(acting, {sizes.num_envs[1]}, sizes.device, parts=parts, backend=sizes.backend)
    num_chunks = sizes.num_chunks if whole_rollout else sizes.num_chunks // 2
    rollout = collected(sizes, acting, keep_features=not recompute, num_chunks=num_chunks)
    num_minibatches = min(MINIBATCHES, len(rollout) // sizes.minibatch)
    part = rollout.rows(torch.arange(num_minibatches * sizes.minibatch))
    learner.computing.train()
    return (lambda: learner.update(part, 0, lambda: False)), num_minibatches


def collected(sizes: Sizes, acting: GrootPolicy, *, keep_features: bool, num_chunks: int) -> Decisions:
    """A rollout with random rewards."""
    num_envs = sizes.num_envs[1]
    buffer = RolloutBuffer(num_envs * num_chunks, holds_features=keep_features)
    generator = torch.Generator().manual_seed(3)
    for time_index in range(num_chunks):
        inputs = prepared(sizes, num_envs, seed=time_index)
        features, action = act(acting, inputs, decision=time_index)
        buffer.add(
            time_index,
            torch.arange(num_envs),
            features if keep_features else inputs,
            action,
            torch.rand(action.actions.shape[:2], generator=generator),
            torch.full((num_envs,), action.actions.shape[1]),
            torch.zeros(num_envs, dtype=torch.bool),
            version=0,
        )
    return ALGORITHM.build().prepare(buffer.build())


def release(device: torch.device) -> None:
    """Give back what earlier parts held, and forget their compiled code and their peak."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


UPDATES: dict[str, dict[str, Any]] = {
    "update_rerun_ms": {"recompute": True, "compiled": False},
    "update_rerun_compiled_ms": {"recompute": True},
    "update_cached_eager_ms": {"compiled": False},
    "update_cached_ms": {"whole_rollout": True},
    "update_frozen_context_eager_ms": {"trainable": "head_without_context", "compiled": False},
    "update_frozen_context_ms": {"trainable": "head_without_context"},
}


def measure(sizes: Sizes, only: Sequence[str] = ()) -> Report:
    """Everything, in one process, or some of the updates alone."""
    report = Report()
    report.values["matmul_tflops"] = matmul_tflops(sizes)
    if not only:
        measure_rollouts(sizes, report)
    for key in only or UPDATES:
        measure_update(sizes, report, key, **UPDATES[key])
        print({name: value for name, value in report.values.items() if name.startswith(key.removesuffix("_ms"))})
    report.values["peak_gb"] = report.values.get("update_cached_peak_gb", 0.0)
    return report


def check_ratios(report: Report) -> None:
    """Ratios begin at 1."""
    first_ratios = {key: value for key, value in report.values.items() if key.endswith("_first_ratio_error")}
    assert all(value < FIRST_RATIO_ERROR for value in first_ratios.values()), first_ratios


def check(report: Report) -> None:
    """Compiled results are as near to float32 as plain ones, and nothing compiles too often."""
    assert report.errors["compiled"] <= 1.5 * report.errors["plain eager"] + 1e-3, report.errors
    assert report.compilations["rollout64_ms"] <= report.compilations["rollout4_ms"], report.compilations
    assert report.compilations["smaller batch"] == 0, report.compilations


def rows(report: Report, flops: Flops, sizes: Sizes) -> list[tuple[str, str, str, str, str]]:
    """Measured value, target, whether it is met, and the share of the matrix-product ceiling."""
    v = report.values
    small, large = sizes.num_envs
    acting, plain = flops.rollout(NUM_STEPS), flops.rollout(NUM_STEPS) + (NUM_STEPS - 1) * flops.keys_values
    work = {
        "update_rerun_ms": (sizes.minibatch * flops.update_rerun, None),
        "update_rerun_compiled_ms": (sizes.minibatch * flops.update_rerun, None),
        "update_cached_eager_ms": (sizes.minibatch * flops.update_cached, None),
        "update_cached_ms": (sizes.minibatch * flops.update_cached, v["update_rerun_ms"] / 3),
        "update_frozen_context_eager_ms": (sizes.minibatch * flops.update_frozen_context, None),
        "update_frozen_context_ms": (sizes.minibatch * flops.update_frozen_context, v["update_rerun_ms"] / 7),
        "rollout4_eager_ms": (small * plain, 80.0),
        "rollout4_ms": (small * acting, 0.5 * v["rollout4_eager_ms"]),
        "rollout64_eager_ms": (large * plain, 430.0),
        "rollout64_ms": (large * acting, 0.8 * v["rollout64_eager_ms"]),
    }
    table = []
    for key, (operations, target) in work.items():
        share = operations / (v[key] * 1e9) / v["matmul_tflops"]
        met = "" if target is None else "yes" if v[key] <= target else "NO"
        table.append((key, f"{v[key]:.1f}", "" if target is None else f"{target:.1f}", met, f"{share:.0%}"))
    table.append(("peak_gb", f"{v['peak_gb']:.1f}", "48.0", "yes" if v["peak_gb"] < 48 else "NO", ""))
    table.append(("matmul_tflops", f"{v['matmul_tflops']:.0f}", "", "", ""))
    return table


def sizes_of(*, tiny: bool) -> Sizes:
    """The published size on a GPU, or a tiny one on the CPU."""
    if not tiny:
        return Sizes(GrootConfig(), torch.device("cuda"), SEQUENCE_LENGTH - NUM_VIEWS * 256)
    groot = GrootConfig.tiny(SimpleNamespace(**TINY_ARCHITECTURE))
    few = {"num_chunks": 2, "minibatch": 4, "matmul": 64, "repeats": 2, "action_dim": 4, "state_dim": 4}
    return Sizes(groot, torch.device("cpu"), num_envs=(3, 5), backend="eager", **few)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, check, and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", default=None, help="what is measured, where the folder has no git history")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on the CPU; the numbers mean nothing")
    parser.add_argument("--only", nargs="+", choices=list(UPDATES), default=[], help="these updates, and no table")
    options = parser.parse_args(arguments)
    sizes = sizes_of(tiny=options.tiny)
    started = time.monotonic()
    report = measure(sizes, options.only)
    flops = count_flops(sizes.groot, NUM_VIEWS, sizes.num_tokens)
    if options.json is not None:
        options.json.write_text(json.dumps(document(report, flops, sizes, options.commit, started), indent=2) + "\n")
    check_ratios(report)
    if options.only:
        return
    table = rows(report, flops, sizes)
    for row in (("", "measured", "target", "met", "of matmul"), *table):
        print("{:32}{:>10}{:>10}{:>6}{:>11}".format(*row))
    print("relative error against float32:", {name: f"{error:.1e}" for name, error in report.errors.items()})
    print("compilations:", report.compilations)
    check(report)


def document(report: Report, flops: Flops, sizes: Sizes, commit: str | None, started: float) -> dict[str, Any]:
    """What `--json` writes."""
    on_gpu = sizes.device.type == "cuda"
    return {
        "command": "python benchmarks/groot_gpu.py --json benchmarks/results/groot_gpu.json",
        "commit": revision() if commit is None else commit,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **report.values,
        "sizes": {
            "num_envs": sizes.num_envs,
            "num_views": NUM_VIEWS,
            "image_size": sizes.groot.image_size,
            "num_tokens": sizes.num_tokens,
            "minibatch": sizes.minibatch,
            "num_chunks": sizes.num_chunks,
            "denoising_steps": NUM_STEPS,
        },
        "tflop_per_observation": {name: value / 1e12 for name, value in vars(flops).items()},
        "relative_errors": report.errors,
        "compilations": report.compilations,
        "samples_ms": report.samples,
        "minutes": (time.monotonic() - started) / 60,
    }


if __name__ == "__main__":
    main()
