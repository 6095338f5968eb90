"""The GPU benchmark's own code, with a tiny network on a CPU, and its count of arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import groot_gpu  # pyright: ignore[reportMissingImports]
import groot_gpu_profile  # pyright: ignore[reportMissingImports]
from groot_flops import count_flops  # pyright: ignore[reportMissingImports]
from regrasp.models.groot.config import GrootConfig

KEYS = {
    "update_rerun_ms",
    "update_cached_ms",
    "update_frozen_context_ms",
    "rollout4_eager_ms",
    "rollout4_ms",
    "rollout64_eager_ms",
    "rollout64_ms",
    "matmul_tflops",
    "peak_gb",
}


@pytest.mark.full
def test_the_tiny_run_measures_everything_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch._dynamo.reset()
    file = tmp_path / "result.json"
    groot_gpu.main(["--tiny", "--json", str(file), "--commit", "abc"])
    content = json.loads(file.read_text())
    assert content.keys() >= KEYS | {"device", "commit", "versions", "sizes", "samples_ms"}
    assert content["commit"] == "abc"
    assert all(content[key] > 0 for key in KEYS - {"peak_gb"})
    assert all(key in content["samples_ms"] for key in KEYS if key.endswith("_ms"))
    assert content["relative_errors"]["compiled"] < 0.05
    assert "update_cached_ms" in capsys.readouterr().out


def test_counted_operations_are_those_torch_counts() -> None:
    groot = GrootConfig.tiny(SimpleNamespace(**groot_gpu.TINY_ARCHITECTURE))
    sizes = groot_gpu.Sizes(groot, torch.device("cpu"), action_dim=4, state_dim=4)
    policy = groot_gpu.random_policy(sizes, "head").requires_grad_(False)
    inputs = groot_gpu.prepared(sizes, 1)
    head, slot = policy.action_head, 0

    def counted(call) -> tuple[float, object]:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            result = call()
        return counter.get_total_flops(), result

    flops = count_flops(groot, groot_gpu.NUM_VIEWS, sizes.num_tokens)
    backbone, features = counted(lambda: policy.backbone(inputs["images"], inputs["input_ids"]))
    # Attention by plain products counts causal attention as if it were not,
    text = groot.eagle_cfg.text_config
    causal = text.num_hidden_layers * 4 * sizes.num_tokens**2 * text.num_attention_heads * text.head_dim / 2
    # and the features of padded positions, which are all the same, take one more token through the MLPs.
    assert backbone == pytest.approx(flops.backbone + causal, rel=0.01)
    context, processed = counted(lambda: head.process_context(features))
    assert context == pytest.approx(flops.context, rel=1e-6)
    cache = head.cache(processed, head.encode_state(inputs["state"], slot))
    x = torch.zeros(1, groot.action_horizon, groot.action_head_cfg.max_action_dim)
    first, step = (
        counted(lambda: head.velocity(x, torch.zeros(1, dtype=torch.long), cache, slot))[0] for _ in range(2)
    )
    assert step == pytest.approx(flops.step, rel=1e-3)
    assert first - step == pytest.approx(flops.keys_values, rel=1e-6), "computed in the first step, for all of them"


@pytest.mark.full
def test_the_tiny_profile_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    torch._dynamo.reset()
    groot_gpu_profile.main(["--tiny", "--largest", "3"])
    table, largest = capsys.readouterr().out.split("\n\n")
    times = {line[:24].strip(): float(line[24:34]) for line in table.splitlines()}
    whole = times.pop("a minibatch")
    assert sum(times.values()) == pytest.approx(whole, abs=0.05)
    assert times["matrix products"] > 0
    assert len(largest.splitlines()) == 3


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NTT", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", "attention"),
        ("adamw_kernel", "optimizer and clipping"),
        ("multi_tensor_apply_kernel<TensorListMetadata<1>, LpNormFunctor<c10::BFloat16>>", "optimizer and clipping"),
        ("Memcpy DtoD (Device -> Device)", "copies and fills"),
        ("triton_poi_fused_gelu_view_2", "compiled, other"),
        ("void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float>>", "other"),
    ],
)
def test_kernels_are_told_apart_by_name(kernel: str, kind: str) -> None:
    assert groot_gpu_profile.kind_of(kernel) == kind
