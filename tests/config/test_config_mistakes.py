"""Every mistake is one message that names file, key, value, expectation and fix."""
# ruff: noqa: E501 - one row per mistake

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from regrasp.errors import UserError
from regrasp.experiment.load import load_config

SMALL = Path(__file__).with_name("small_experiment.yaml")
MAPPING_END = "      action_mapping: {prefix_pad: 3, scale: 0.5}\n"
DATA_CONFIG = (
    "      data_config:\n        video: [room]\n        state: [arm, hand]\n        action: [{key: arm, mode: q99}]\n"
)


def named(state: str) -> str:
    """The mapping's last key, and GR00T's names."""
    return f"{MAPPING_END}      gr00t_mapping: {{video: {{main_images: room}}, state: [{state}]}}\n"


@dataclass(frozen=True)
class Mistake:
    """What is changed in the small experiment, and what the message must hold."""

    edit: tuple[str, str] | str
    """Old and new text in the file, or one override."""
    key: str
    value: str | None
    """The value as printed, None where there is none to print."""
    expected: str
    fix: str
    in_file: bool
    """The message names a line of the file, not the command line."""


def edit(old: str, new: str, key: str, value: str | None, expected: str, fix: str) -> Mistake:
    return Mistake((old, new), key, value, expected, fix, in_file=True)


def override(text: str, key: str, value: str | None, expected: str, fix: str, *, in_file: bool = False) -> Mistake:
    """An override; `in_file` where it makes a value of the file wrong."""
    return Mistake(text, key, value, expected, fix, in_file)


UNKNOWN = [
    edit("  max_epochs: 10", "  max_epoch: 10", "runner.max_epoch", "10", "one of the keys of runner", "runner.max_epochs"),
    edit("runner:\n", "runer:\n", "runer", "{logger", "one of the keys of the top level", "did you mean runner"),
    edit("experiment_name:", "experimentname:", "runner.logger.experimentname", "'small'", "project_name", "runner.logger.experiment_name"),
    edit("noise_level:", "noise_lvl:", "actor.model.rl_head_config.noise_lvl", "0.5", "noise_method", "noise_level"),
    edit("{prefix_pad: 3,", "{prefixpad: 3,", "env.train.mapping.action_mapping.prefixpad", "3", "suffix_pad", "prefix_pad"),
    edit("slice: [0, 7]", "slices: [0, 7]", "env.train.mapping.states[1].slices", "[0, 7]", "key, slice", "states[1].slice"),
    edit("gamma: 0.99", "lr: 0.1", "algorithm.lr", "0.1", "one of the keys of algorithm", "did you mean actor.optim.lr"),
    override("algorithm.zzz=1", "algorithm.zzz", "1", "gae_lambda", "remove it"),
    override("+env.eval.num_episode=5", "env.eval.num_episode", "5", "inference_block", "env.eval.num_episodes"),
    override("env.test.seed=1", "env.test", "{seed: 1}", "train, eval", "remove it"),
    override("rollout.pipeline_stages=2", "rollout.pipeline_stages", "2", "pipeline_stage_num", "rollout.pipeline_stage_num"),
]  # fmt: skip

TYPES = [
    edit("max_epochs: 10", "max_epochs: ten", "runner.max_epochs", "'ten'", "an integer of at least 1", "set runner.max_epochs"),
    edit("max_epochs: 10", "max_epochs: 10.0", "runner.max_epochs", "10.0", "an integer", "for example runner.max_epochs=1000"),
    edit("max_epochs: 10", "max_epochs: true", "runner.max_epochs", "true", "an integer", "set runner.max_epochs"),
    edit("max_epochs: 10", "max_epochs: null", "runner.max_epochs", "null", "an integer", "set runner.max_epochs"),
    edit("lr: 3e-5", "lr: [3e-5]", "actor.optim.lr", "[3e-05]", "a number above 0", "set actor.optim.lr"),
    edit("lr: 3e-5", 'lr: "3e-5"', "actor.optim.lr", "'3e-5'", "a number above 0", "actor.optim.lr=5e-06"),
    edit("lr: 3e-5", "lr: .nan", "actor.optim.lr", "nan", "a number above 0", "set actor.optim.lr"),
    edit("id: Some-Task-v0\n      max", "id: 7\n      max", "env.train.init_params.id", "7", "a string", "set env.train.init_params.id"),
    edit("scale: 0.5", "scale: [a]", "env.train.mapping.action_mapping.scale", "['a']", "a number or a list, each item a number", "=1.0"),
    edit("- gripper_position", "- 3", "env.train.mapping.states[0]", "3", "an observation key", "env.train.mapping.states[0]"),
    edit("tasks: [Some-Task-v0]", "tasks: Some-Task-v0", "pretrain.tasks", "'Some-Task-v0'", "a non-empty list", "set pretrain.tasks"),
    edit("  optim: {lr: 3e-5, value_lr: 1e-3}", "  optim: 5", "actor.optim", "5", "a block with the keys lr", "as a block of keys"),
    override("runner.only_eval=maybe", "runner.only_eval", "'maybe'", "true or false", "runner.only_eval=false"),
    override("env.eval.mapping=null", "env.eval.mapping", "null", "a block with the keys", "write env.eval.mapping as a block"),
    override("actor.model.value_head_hidden=[8,x]", "actor.model.value_head_hidden[1]", "'x'", "an integer", "set actor.model.value_head_hidden[1]"),
    override("runner.max_epochs.x=1", "runner.max_epochs", "{x: 1}", "an integer", "set runner.max_epochs"),
]  # fmt: skip

RANGES = [
    edit("gamma: 0.99", "gamma: 1.5", "algorithm.gamma", "1.5", "at most 1", "algorithm.gamma=0.99"),
    edit("total_num_envs: 4", "total_num_envs: 0", "env.train.total_num_envs", "0", "at least 1", "set env.train.total_num_envs"),
    edit("clip_ratio_c: 3.0", "clip_ratio_c: 0.5", "algorithm.clip_ratio_c", "0.5", "a number above 1 or null", "set algorithm.clip_ratio_c"),
    edit("slice: [0, 7]", "slice: [7, 7]", "env.train.mapping.states[1].slice", "[7, 7]", "0 <= start < stop", "states[1].slice"),
    edit("slice: [0, 7]", "slice: [-1, 7]", "env.train.mapping.states[1].slice", "[-1, 7]", "0 <= start < stop", "states[1].slice"),
    edit("slice: [0, 7]", "slice: [7]", "env.train.mapping.states[1].slice", "[7]", "[start, stop]", "states[1].slice"),
    edit("prefix_pad: 3", "prefix_pad: -3", "env.train.mapping.action_mapping.prefix_pad", "-3", "at least 0", "prefix_pad=0"),
    edit("env_type: mujoco\n    total_num_envs: 4", "env_type: ''\n    total_num_envs: 4", "env.train.env_type", "''", "one of gymnasium, isaaclab, mujoco", "correct the name"),
    edit("tasks: [Some-Task-v0]", "tasks: []", "pretrain.tasks", "[]", "a non-empty list", "set pretrain.tasks"),
    override("algorithm.clip_ratio_low=1", "algorithm.clip_ratio_low", "1", "below 1", "algorithm.clip_ratio_low=0.2"),
    override("algorithm.value_clip=0", "algorithm.value_clip", "0", "a number above 0 or null", "algorithm.value_clip=0.2"),
    edit(MAPPING_END, f"{MAPPING_END}{DATA_CONFIG.replace('q99', 'q98')}", "env.train.mapping.data_config.action[0].mode", "'q98'", "'min_max' or 'q99'", "action[0].mode=q99"),
    edit(MAPPING_END, f"{MAPPING_END}{DATA_CONFIG}        crop_scale: 1.5\n", "env.train.mapping.data_config.crop_scale", "1.5", "at most 1", "crop_scale=0.95"),
    override("algorithm.target_kl=-0.1", "algorithm.target_kl", "-0.1", "above 0 or null", "set algorithm.target_kl"),
    override("env.train.mapping.embodiment_tag_id=32", "env.train.mapping.embodiment_tag_id", "32", "at most 31", "set env.train.mapping.embodiment_tag_id"),
    override("actor.optim.adam_beta2=1.0", "actor.optim.adam_beta2", "1.0", "below 1", "actor.optim.adam_beta2=0.95"),
    *(override(f"{key}=9223372036854775808", key, "9223372036854775808", "at most 9223372036854775807", f"set {key}") for key in ("runner.seed", "actor.seed", "env.train.seed", "env.eval.seed")),
    *(override(f"runner.logger.experiment_name='{name}'", "runner.logger.experiment_name", repr(name), "the name of one folder", "set runner.logger.experiment_name") for name in ("../..", "..", ".", "/tmp/x", "a/b", "a" * 300, "红" * 90)),
    override("actor.seed=-1", "actor.seed", "-1", "at least 0", "actor.seed=1234"),
    override("algorithm.adv_type=gea", "algorithm.adv_type", "'gea'", "adv_type gae with loss_type actor_critic", "did you mean gae?"),
    override("algorithm.loss_type=actor_critics", "algorithm.loss_type", "'actor_critics'", "actor_critic", "set algorithm.loss_type=actor_critic"),
    override("actor.model.precision=fp16", "actor.model.precision", "'fp16'", "'bf16'", "actor.model.precision"),
    override("actor.model.rl_head_config.noise_method=sde", "actor.model.rl_head_config.noise_method", "'sde'", "'flow_cps'", "=flow_sde"),
    override("algorithm.reward_type=token_level", "algorithm.reward_type", "'token_level'", "'action_level'", "algorithm.reward_type="),
    override("runner.logger.logger_backends=[tensorbord]", "runner.logger.logger_backends[0]", "'tensorbord'", "'wandb'", "=tensorboard"),
]  # fmt: skip

MISSING = [
    edit("    id: Some-Task-v0\n", "", "env.train.init_params.id", None, "a string", "add env.train.init_params.id"),
    edit("  micro_batch_size: 4\n", "", "actor.micro_batch_size", None, "an integer", "add actor.micro_batch_size"),
    edit("    init_params: {id: Some-Task-v0}\n", "", "env.eval.init_params", None, "a block", "add env.eval.init_params"),
    override("~actor.model", "actor.model", None, "a block with the keys model_type", "add actor.model: a block"),
    override("collect.seed=1", "collect.num_demos", None, "an integer of at least 1", "add collect.num_demos", in_file=True),
]  # fmt: skip

ACROSS = [
    edit("max_steps_per_rollout_epoch: 40\n    max_episode_steps: 40\n    init_params:\n", "max_steps_per_rollout_epoch: 42\n    max_episode_steps: 40\n    init_params:\n", "env.train.max_steps_per_rollout_epoch", "42", "a multiple of actor.model.num_action_chunks (4)", "=40"),
    edit("global_batch_size: 8", "global_batch_size: 9", "actor.global_batch_size", "9", "a multiple of actor.micro_batch_size (4)", "=8"),
    override("env.train.init_params.num_envs=5", "env.train.init_params.num_envs", "5", "env.train.total_num_envs (4)", "remove"),
    edit("max_episode_steps: ${env.train.max_episode_steps}", "max_episode_steps: 30", "env.train.init_params.max_episode_steps", "30", "(40)", "remove"),
    override("env.train.max_steps_per_rollout_epoch=80", "env.train.max_steps_per_rollout_epoch", "80", "at most 40", "auto_reset=true"),
    override("algorithm.group_size=4", "algorithm.group_size", "4", "1: advantages come from the value function", "algorithm.group_size=1"),
    override("cluster.num_nodes=2", "cluster.num_nodes", "2", "1, or cluster.address", "cluster.num_nodes=1"),
    override("cluster.address=here", "cluster.address", "'here'", "host:port", "cluster.address=auto"),
    override("cluster.component_placement={actor:all}", "cluster.component_placement", "{actor: 'all'}", "each of actor, env, rollout once", "'actor,env,rollout': all"),
    override("actor.model.rl_head_config.noise_params=[0.3,0.7,400]", "actor.model.rl_head_config.noise_params", "[0.3, 0.7, 400]", "start >= end", "set actor.model.rl_head_config.noise_params"),
    edit("model_type: gr00t\n", "model_type: gr00t\n    is_lora: true\n    trainable: all\n", "actor.model.is_lora", "true", "actor.model.trainable is all", "actor.model.trainable=head"),
    override("actor.model.attn_implementation=flash_attention_2", "actor.model.attn_implementation", "'flash_attention_2'", "actor.model.precision is fp32", "precision=bf16"),
    override("actor.model.add_value_head=false", "actor.model.add_value_head", "false", "actor_critic", "add_value_head=true"),
    override("actor.model.embodiment_tag=gr1", "actor.model.embodiment_tag", "'gr1'", "'new_embodiment'", "the mapping is what counts"),
    override("env.train.mapping.image_transform={nowhere: [rotate_90]}", "env.train.mapping.image_transform", "['nowhere']", "as main_images and extra_view_images have them", "correct the key"),
    override("env.train.mapping.image_transform={front_camera: [rotate_90, rotate_45]}", "env.train.mapping.image_transform.front_camera[1]", "'rotate_45'", "'rotate_180'", "rotate_90"),
    override("env.train.mapping.image_transform={front_camera: rotate_90}", "env.train.mapping.image_transform.front_camera", "'rotate_90'", "a list of rotate_90", "to a list of"),
    override("env.eval.mapping.image_transform={front_camera: [rotate_90]}", "env.eval.mapping.image_transform", "{front_camera: ['rotate_90']}", "{}, as in env.train.mapping", "the value of env.train.mapping.image_transform"),
    override("env.eval.mapping.embodiment_tag=gr1", "env.eval.mapping.embodiment_tag", "'gr1'", "new_embodiment, as in env.train.mapping", "the value of env.train.mapping.embodiment_tag"),
    edit(MAPPING_END, f"{MAPPING_END}      data_config_class: 'my_config:MyRobot'\n", "env.train.mapping.data_config_class", "'my_config:MyRobot'", "so100_dualcam", "in its place, write into the mapping"),
    edit(MAPPING_END, f"{MAPPING_END}      data_config_class: so100\n{DATA_CONFIG}", "env.train.mapping.data_config_class", "'so100'", "env.train.mapping.data_config is given", "remove env.train.mapping.data_config_class"),
    edit(MAPPING_END, f"{MAPPING_END}{DATA_CONFIG.replace('mode: q99', 'mode: sin_cos')}", "env.train.mapping.data_config.action", "'sin_cos'", "min_max", "set env.train.mapping.data_config.action"),
    edit(MAPPING_END, f"{MAPPING_END}{DATA_CONFIG.replace('[room]', '[]')}", "env.train.mapping.data_config.video", "[]", "a non-empty list", "set env.train.mapping.data_config.video"),
    edit(MAPPING_END, f"{MAPPING_END}{DATA_CONFIG.replace('hand', 'arm')}", "env.train.mapping.data_config.state", "['arm', 'arm']", "each key once", "set env.train.mapping.data_config.state"),
    edit(MAPPING_END, named("{gr00t_key: arm, slice: [0, 3]}, {gr00t_key: state.arm, slice: [3, 7]}"), "env.train.mapping.gr00t_mapping.state", "['arm', 'arm']", "each key once", "one range"),
    edit(MAPPING_END, named("{gr00t_key: eef, slice: [0, 3]}, {gr00t_key: gripper, slice: [2, 3]}"), "env.train.mapping.gr00t_mapping.state", "'eef [0, 3] and gripper [2, 3]'", "none has values of another", "such as gripper [3, 4]; a value that is meant for two parts is listed twice in the mapping's states"),
    edit(MAPPING_END, named("{gr00t_key: hand, slice: [4, 5]}, {gr00t_key: arm, slice: [0, 6]}, {gr00t_key: tip, slice: [5, 7]}"), "env.train.mapping.gr00t_mapping.state", "'arm [0, 6] and hand [4, 5]; arm [0, 6] and tip [5, 7]'", "none has values", "hand [6, 7]"),
    override("actor.optim.critic_warmup_steps=400", "actor.optim.critic_warmup_steps", "400", "400 optimizer steps", "critic_warmup_steps"),
    override("env.train.isaaclab.main_images=x", "env.train.isaaclab", "{main_images: 'x'}", "not both", "keep env.train.mapping"),
    override("pretrain.architecture.patch_size=13", "pretrain.architecture.image_size", "84", "patch_size (13)", "=78", in_file=True),
    override("pretrain.architecture.action_horizon=2", "pretrain.architecture.action_horizon", "2", "num_action_chunks (4)", "action_horizon=4"),
    edit("      main_images: front_camera\n", "      extra_view_images: [wrist]\n", "env.train.mapping.main_images", "null", "a camera key", "set env.train.mapping.main_images"),
    override("algorithm.filter_rewards=true", "algorithm.filter_rewards", "true", "false", "set algorithm.filter_rewards to false"),
    override("env.eval.reward_coef=2.0", "env.eval.reward_coef", "2.0", "1.0", "remove it"),
]  # fmt: skip

SHARDING = [
    override("actor.fsdp_config.sharding_strategy=full", "actor.fsdp_config.sharding_strategy", "'full'", "'full_shard' or 'shard_grad_op'", "=no_shard"),
    override("actor.fsdp_config.strategy=ddp", "actor.fsdp_config.strategy", "'ddp'", "'fsdp' or 'fsdp2'", "=fsdp2"),
    override("actor.fsdp_config.fsdp_size=0", "actor.fsdp_config.fsdp_size", "0", "-1, or at least 1", "=-1"),
    override("actor.fsdp_config.fsdp_size=2", "actor.fsdp_config.fsdp_size", "2", "-1 with sharding_strategy no_shard", "sharding_strategy=hybrid_shard"),
    override("actor.fsdp_config.cpu_offload=true", "actor.fsdp_config.cpu_offload", "true", "false with sharding_strategy no_shard", "sharding_strategy=full_shard"),
    override("actor.fsdp_config.mixed_precision.param_dtype=bf16", "actor.fsdp_config.mixed_precision.param_dtype", "'bf16'", "fp32 as actor.model.precision says", "set actor.model.precision=bf16"),
    override("actor.fsdp_config.mixed_precision.reduce_dtype=fp16", "actor.fsdp_config.mixed_precision.reduce_dtype", "'fp16'", "or 'bf16' or null", "reduce_dtype=bf16"),
    override("actor.fsdp_config.backward_prefetch=post", "actor.fsdp_config.backward_prefetch", "'post'", "null: FSDP2 fetches", "to null"),
    override("actor.fsdp_config.use_liger_kernel=true", "actor.fsdp_config.use_liger_kernel", "true", "no Liger kernels", "to false"),
    override("actor.fsdp_config.amp.enabled=true", "actor.fsdp_config.amp.enabled", "true", "under autocast", "to false"),
    override("actor.fsdp_config.grad_scaler.enabled=true", "actor.fsdp_config.grad_scaler.enabled", "true", "no scaling", "to false"),
    override("actor.fsdp_config.fsdp_sise=2", "actor.fsdp_config.fsdp_sise", "2", "one of the keys of actor.fsdp_config", "actor.fsdp_config.fsdp_size"),
]  # fmt: skip

COMPOSITION = [
    edit("gamma: 0.99", "gamma: ${algorithm.gama}", "algorithm.gamma", "'${algorithm.gama}'", "${key} of an existing key", "correct the key"),
    edit("gamma: 0.99", "gamma: ???", "algorithm.gamma", "'???'", "a value instead of ???", "set algorithm.gamma"),
    override("actor.seed=${nowhere}", "actor.seed", "'${nowhere}'", "${key} of an existing key", "correct the key"),
    override("actor.seed=1,2", "actor.seed", "'actor.seed=1,2'", "key=value", "'actor.seed=[1,2]'"),
    override("actor.seed", "actor.seed", "'actor.seed'", "key=value", "write key=value"),
    override("cluster.component_placement={actor,env:0}", "cluster.component_placement", "'cluster.component_placement={actor,env:0}'", "key=value", r"escape commas: '{a\,b:0}'"),
    override("=3", "=3", "'=3'", "key=value", "write key=value"),
    override("actor.seed=[1", "actor.seed", "'actor.seed=[1'", "key=value", "write key=value"),
    override("~actor.nothing", "~actor.nothing", "'~actor.nothing'", "key=value", "set a key that exists"),
    override("model/gr00t@actor.model=x", "model/gr00t@actor.model", "'model/gr00t@actor.model=x'", "key=value", "set a key that exists"),
]  # fmt: skip

MISTAKES = UNKNOWN + TYPES + RANGES + MISSING + ACROSS + SHARDING + COMPOSITION


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{case.key}={case.value}" for case in MISTAKES])
def test_mistake_is_explained(mistake: Mistake, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    text = SMALL.read_text(encoding="utf-8")
    overrides: tuple[str, ...] = ()
    if isinstance(mistake.edit, str):
        overrides = (mistake.edit,)
    else:
        old, new = mistake.edit
        assert old in text
        text = text.replace(old, new, 1)
    place = f"{file}:" if mistake.in_file else "command line"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(UserError) as caught:
        load_config(str(file), overrides)

    message = str(caught.value)
    rows = dict(line.strip().split(": ", 1) for line in message.splitlines()[1:] if ": " in line)
    assert rows["file"].strip().startswith(place), message
    assert rows["key"].strip() == mistake.key, message
    assert mistake.value is None or rows["value"].strip().startswith(mistake.value), message
    assert (mistake.value is None) == ("value" not in rows), message
    assert mistake.expected.lower() in message.lower(), message
    assert mistake.fix in rows["fix"], message


@pytest.mark.parametrize(
    ("old", "new", "line_text"),
    [
        ("gamma: 0.99", "gamma: 2", "gamma: 2"),
        ("slice: [0, 7]", "slice: [3, 1]", "slice: [3, 1]"),
        ("scale: 0.5", "scale: x", "scale: x"),
        ("noise_level: 0.5", "noise_level: -1", "noise_level: -1"),
    ],
)
def test_line_of_the_mistake(old: str, new: str, line_text: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(SMALL.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    lines = file.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if line_text in line)
    with pytest.raises(UserError) as caught:
        load_config(str(file))
    assert f"{file}:{number}\n" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("runner: {max_epochs: 1\n", "Broken YAML", 2),
        ("runner:\n  max_epochs: 1\n\tseed: 2\n", "Broken YAML", 3),
        ("runner:\n  seed: 1\n  seed: 2\n", "duplicate key", 3),
        ("env: *nowhere\n", "undefined alias", 1),
        ("- runner\n- env\n", "not a block of keys", None),
        ("just words\n", "not a block of keys", None),
        ("env: &e\n  <<: *e\n  train: 1\n", "no plain values", 1),
        ("env: &e\n  train: [1, {a: *e}]\n", "no plain values", 1),
        ("runner: 1\n? [a, b]\n: 2\n", "no plain values", 2),
        ("env:\n  ? {a: b}\n  : 2\n", "no plain values", 2),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "Unreadable configuration file", None),
    ],
)
def test_broken_yaml(text: str, problem: str, line: int | None, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=problem) as caught:
        load_config(str(file))
    assert caught.value.file == (f"{file}:{line}" if line else str(file))
    assert caught.value.expected
    assert caught.value.fix


def test_unreadable_text(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"runner: {seed: \xff}")
    with pytest.raises(UserError, match="UTF-8"):
        load_config(str(file))


def test_missing_defaults_entry(tmp_path: Path) -> None:
    file = tmp_path / "child.yaml"
    file.write_text("defaults:\n  - no_such_parent\n", encoding="utf-8")
    with pytest.raises(UserError, match="no_such_parent") as caught:
        load_config(str(file))
    assert caught.value.key == "defaults"
    assert caught.value.file == str(file)


def test_all_problems_in_one_message(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    text = SMALL.read_text(encoding="utf-8").replace("gamma: 0.99", "gama: 0.99").replace("lr: 3e-5", "lr: 0")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(str(file), ["runner.max_steps=x", "actor.model.is_lora=1"])
    message = str(caught.value)
    assert message.startswith("4 problems")
    for key in ("algorithm.gama", "actor.optim.lr", "runner.max_steps", "actor.model.is_lora"):
        assert f"key:      {key}\n" in message
    assert message.count("fix:") == 4


def test_a_shared_value_is_reported_once_where_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "small_experiment.yaml"
    file.write_text(SMALL.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(str(file), ["env.train.max_episode_steps=x"])
    assert caught.value.key == "env.train.max_episode_steps"
    assert caught.value.file == "command line"


def test_problem_in_an_inherited_file_names_that_file(tmp_path: Path) -> None:
    parent, child = tmp_path / "parent.yaml", tmp_path / "child.yaml"
    parent.write_text(SMALL.read_text(encoding="utf-8").replace("gamma: 0.99", "gamma: 2"), encoding="utf-8")
    child.write_text("defaults: [parent, _self_]\nrunner:\n  max_epochs: 0\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(str(child))
    message = str(caught.value)
    assert f"{child}:3\n" in message
    assert f"{parent}:" in message


def test_isaaclab_block_keeps_its_name_in_messages(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    text = (
        SMALL.read_text(encoding="utf-8").replace("mapping: &", "isaaclab: &").replace("slice: [0, 7]", "slice: [7, 0]")
    )
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(str(file))
    assert "env.train.isaaclab.states[1].slice" in str(caught.value)
    assert "env.train.mapping" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "flags", "key"),
    [
        (["runner.seed=-1"], {"runner.seed=-1": "--seed"}, "--seed"),
        (["runner.seed=1", "runner.seed=-1"], {"runner.seed=1": "--seed"}, "runner.seed"),
        (["actor.model.model_path=x", "actor.model=5"], {"actor.model.model_path=x": "--model_path"}, "actor.model"),
        (["runner.logger.logger_backends=[x]"], {"runner.logger.logger_backends=[x]": "--logger"}, "--logger"),
    ],
)
def test_the_flag_that_set_a_value_is_named(overrides: list[str], flags: dict[str, str], key: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(str(SMALL), overrides, flags=flags)
    assert (caught.value.file, caught.value.key) == ("command line", key)


def test_what_a_stage_complains_of_is_located() -> None:
    loaded = load_config(str(SMALL), ["actor.model.model_path=x"], flags={"actor.model.model_path=x": "--model_path"})

    def located(key: str, file: Path | None = None) -> tuple[str | None, str | None]:
        error = loaded.located(UserError("wrong", file=file, key=key, value=None))
        assert "value:    null" in str(error)
        return error.file, error.key

    assert located("actor.model.model_path", loaded.file) == ("command line", "--model_path")
    file, key = located("algorithm.gamma")
    line = SMALL.read_text().splitlines().index("  gamma: 0.99") + 1
    assert (file, key) == (f"{loaded.file}:{line}", "algorithm.gamma")
    assert located("algorithm.gamma", Path("elsewhere")) == ("elsewhere", "algorithm.gamma")
    assert located("--output") == (None, "--output")


def test_a_slot_that_the_new_model_does_not_have_is_a_mistake() -> None:
    sizes = "pretrain.architecture.num_embodiments=4"
    slots = [f"env.{name}.mapping.embodiment_tag_id=4" for name in ("train", "eval")]
    with pytest.raises(UserError, match="No such embodiment slot") as caught:
        load_config(str(SMALL), [sizes, *slots])
    assert "num_embodiments (4)" in str(caught.value)
    load_config(str(SMALL), [sizes])  # without a number it is the slot that `pretrain` trains
