"""RLinf's experiments for OpenVLA: every key has its meaning, or is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrasp.algorithms.grpo import GrpoConfig
from regrasp.algorithms.ppo import PpoConfig
from regrasp.errors import UserError
from regrasp.experiment.load import LoadedConfig, load_config
from regrasp.models.openvla.settings import OpenVlaModelConfig, OpenVlaOftModelConfig

ENV = """\
env:
  group_name: EnvGroup
  enable_offload: False
  train: &env
    env_type: mujoco
    total_num_envs: 64
    max_episode_steps: 24
    max_steps_per_rollout_epoch: 24
    auto_reset: False
    use_fixed_reset_state_ids: False
    init_params: {id: Regrasp-Pick-Cube-v0}
    mapping: {main_images: camera_images/front_camera, states: [policy/gripper_position]}
  eval: *env
"""
PPO = """\
runner:
  task_type: embodied
  seq_length: 4096
  max_prompt_length: 30
algorithm:
  kl_penalty: kl
  reward_type: action_level
  logprob_type: action_level
  entropy_type: action_level
  adv_type: gae
  loss_type: actor_critic
  loss_agg_func: token-mean
  entropy_bonus: 0
  value_clip: 0.2
  huber_delta: 10.0
  sampling_params:
    use_greedy: False
    temperature_train: 1.0
    temperature_eval: 0.6
    top_k: 0
    top_p: 1.0
    repetition_penalty: 1.0
  length_params: {max_new_token: 7, max_length: 1024, min_length: 1}
rollout:
  backend: huggingface
  enable_offload: True
  model: {model_path: openvla-7b-warmup, precision: "${actor.model.precision}"}
actor:
  training_backend: fsdp
  micro_batch_size: 40
  global_batch_size: 640
  enable_offload: True
  model:
    model_type: openvla
    model_path: openvla-7b-warmup
    precision: bf16
    action_dim: 4
    num_action_chunks: 1
    use_proprio: False
    unnorm_key: bridge_orig
    center_crop: False
    vocab_size: 32000
    hidden_size: 4096
    image_size: [224, 224]
    max_prompt_length: 30
    add_value_head: True
    add_bias_linear: False
    add_qkv_bias: True
    is_lora: True
    lora_rank: 16
    lora_path: null
    policy_setup: widowx_bridge
    low_cpu_mem_usage: True
    trust_remote_code: True
    attn_implementation: flash_attention_2
  optim: {lr: 1.0e-4, value_lr: 3.0e-3, adam_beta2: 0.999, adam_eps: 1.0e-05, clip_grad: 10.0}
  tokenizer: {tokenizer_type: HuggingFaceTokenizer, tokenizer_model: x, padding_side: right}
  fsdp_config: {strategy: fsdp, gradient_checkpointing: True}
"""
GRPO = """\
algorithm:
  group_size: 8
  reward_type: action_level
  logprob_type: token_level
  entropy_type: token_level
  adv_type: grpo
  loss_type: actor
  clip_ratio_high: 0.28
rollout:
  sampling_params: {do_sample: True, temperature_train: 1.6, temperature_eval: 1.6, top_k: -1}
actor:
  micro_batch_size: 32
  global_batch_size: 64
  model:
    model_type: openvla_oft
    implement_version: rlinf
    model_path: oft-sft
    precision: bf16
    value_type: ${algorithm.reward_type}
    action_dim: 4
    num_action_chunks: 8
    use_proprio: False
    use_film: False
    unnorm_key: libero_10_no_noops
    center_crop: True
    max_prompt_length: 128
    num_images_in_input: 1
    add_value_head: False
    force_musa_eager_sdpa: True
  optim: {lr: 2.0e-5}
"""


def loaded(tmp_path: Path, text: str, *overrides: str) -> LoadedConfig:
    file = tmp_path / "experiment.yaml"
    file.write_text(text + ENV, encoding="utf-8")
    return load_config(str(file), overrides)


def test_its_ppo_experiment_loads(tmp_path: Path) -> None:
    found = loaded(tmp_path, PPO)
    model, algorithm = found.config.actor.model, found.config.algorithm
    assert isinstance(model, OpenVlaModelConfig)
    assert isinstance(algorithm, PpoConfig)
    sampling = model.sampling
    assert (sampling.temperature_train, sampling.temperature_eval, sampling.top_k) == (1.0, 0.6, None)
    assert (model.unnorm_key, model.max_prompt_length, model.is_lora, model.lora.rank) == ("bridge_orig", 30, True, 16)
    assert (algorithm.logprob_type, algorithm.reward_type) == ("action_level", "action_level")
    assert found.config.actor.fsdp_config.gradient_checkpointing
    ignored = {"actor.model.vocab_size", "actor.model.use_proprio", "actor.tokenizer", "algorithm.length_params"}
    assert ignored <= {*found.ignored_keys}
    assert not any(key.startswith("actor.model.sampling") for key in found.ignored_keys)
    assert any("attn_implementation" in warning for warning in found.warnings)


def test_its_grpo_experiment_of_oft_loads(tmp_path: Path) -> None:
    model = loaded(tmp_path, GRPO).config.actor.model
    assert isinstance(model, OpenVlaOftModelConfig)
    assert isinstance(loaded(tmp_path, GRPO).config.algorithm, GrpoConfig)
    sampling = model.sampling
    assert (sampling.temperature_train, sampling.temperature_eval, sampling.top_k) == (1.6, 1.6, None)
    assert (model.implement_version, model.center_crop, model.num_action_chunks) == ("rlinf", True, 8)
    assert not model.add_value_head


def test_the_newer_place_of_sampling_counts(tmp_path: Path) -> None:
    text = PPO.replace("rollout:\n", "rollout:\n  sampling_params: {temperature_train: 0.8, top_k: 50}\n")
    model = loaded(tmp_path, text).config.actor.model
    assert isinstance(model, OpenVlaModelConfig)
    assert (model.sampling.temperature_train, model.sampling.top_k) == (0.8, 50)


@pytest.mark.parametrize("key", ["use_proprio", "use_film"])
def test_further_inputs_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images and words only"):
        loaded(tmp_path, GRPO, f"actor.model.{key}=true")
