"""RLinf's own experiment files: loaded, or refused first and by name for what is not in this release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from regrasp.config.describe import Spec, split_key
from regrasp.config.legacy import COPIES, NEUTRAL, NEWER_NAMES, NO_EFFECT, NOT_IN_THIS_RELEASE, SYNONYMS
from regrasp.envs.isaaclab.config import IsaacLabInitParams
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import LoadedConfig, load_config

REFERENCE = Path(__file__).with_name("reference_experiment.yaml")
SMALL = Path(__file__).with_name("small_experiment.yaml")
ENV = """\
env_type: isaaclab
total_num_envs: null
auto_reset: False
ignore_terminations: False
use_rel_reward: True
seed: 0
group_size: 1
reward_coef: 1.0
use_fixed_reset_state_ids: False
is_eval: False
max_steps_per_rollout_epoch: 256
max_episode_steps: 256
video_cfg: {save_video: False, info_on_video: True, fps: 20, video_base_dir: "${runner.logger.log_path}/video"}
init_params:
  id: Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0
  num_envs: null
  max_episode_steps: ${env.train.max_episode_steps}
  task_description: Stack the red block on the blue block.
  table_cam: {height: 256, width: 256}
  wrist_cam: {height: 256, width: 256}
"""
MAPPING = """\
isaaclab:
  hold_pose_on_midchunk_reset: True
  main_images: table_cam
  extra_view_images: [wrist_cam]
  states: [eef_pos, eef_quat, gripper_pos]
  obs_converter_type: isaaclab_stack_cube
  embodiment_tag: gr1
"""
MODEL = """\
model_type: gr00t
model_path: base
precision: bf16
trust_remote_code: True
is_lora: False
lora_rank: 32
action_dim: 7
num_action_chunks: 5
denoising_steps: 4
policy_setup: widowx_bridge
obs_converter_type: libero
embodiment_tag: libero_franka
add_value_head: True
rl_head_config: {noise_method: flow_sde, safe_get_logprob: False, add_value_head: "${..add_value_head}"}
"""
ENGINE = """\
strategy: fsdp
sharding_strategy: full_shard
hybrid_shard_size: -1
mixed_precision: {param_dtype: null, reduce_dtype: null, buffer_dtype: null}
amp_autocast: {enabled: False, precision: bf16}
grad_scaler: {enabled: False}
"""
EXPERIMENT = """\
defaults:
  - env/stack@env.train
  - env/stack@env.eval
  - model/gr00t@actor.model
  - hybrid_engines/fsdp@actor.fsdp_config
  - weight_syncer/patch_syncer@weight_syncer
  - override hydra/job_logging: stdout
hydra:
  run: {dir: .}
  output_subdir: null
  searchpath: ["file://${oc.env:EMBODIED_PATH}/config/"]
cluster:
  num_nodes: 1
  component_placement:
    env: 0-3
    rollout: {node_group: rollout, placement: "0-3"}
    actor: 0-1:0-3,2-3:4-7
  node_groups:
    - {label: rollout, node_ranks: all, env_configs: [{node_ranks: all, env_vars: [{OMP_NUM_THREADS: 8}]}]}
runner:
  task_type: embodied
  logger: {log_path: ../results, project_name: p, experiment_name: mine, logger_backends: [tensorboard]}
  max_epochs: 10
  only_eval: False
  weight_sync_interval: 1
  ckpt_path: null
  per_worker_log: False
algorithm:
  kl_penalty: k3
  group_size: 1
  reward_coef: 1.0
  update_epoch: 2
  adv_type: gae
  loss_type: actor_critic
  loss_agg_func: token-mean
  filter_rewards: False
env:
  group_name: EnvGroup
  train: {rollout_epoch: 2, total_num_envs: 8, max_episode_steps: 448, max_steps_per_rollout_epoch: 448}
  eval:
    rollout_epoch: "${int_div:7,2}"
    total_num_envs: "${multiply:2,4}"
    max_episode_steps: 448
    max_steps_per_rollout_epoch: 448
    auto_reset: True
    ignore_terminations: True
rollout:
  group_name: RolloutGroup
  generation_backend: huggingface
  enable_offload: True
  pipeline_stage_num: 1
  recompute_logprobs: False
  collect_transitions: False
  sampling_params: {do_sample: True, temperature_train: 1.0, max_new_tokens: 7}
  model: {model_path: base, precision: "${actor.model.precision}"}
actor:
  group_name: ActorGroup
  training_backend: fsdp
  micro_batch_size: 32
  global_batch_size: 224
  seed: 1234
  enable_offload: False
  model: {add_value_head: True, embodiment_tag: gr1, obs_converter_type: isaaclab_stack_cube, num_action_chunks: 16}
  optim: {lr: 1.0e-5, value_lr: 2.0e-5, lr_scheduler: openpi_cosine, min_lr_rate: 0.1, lr_warmup_steps: 1}
  fsdp_config: {strategy: fsdp, gradient_checkpointing: True}
reward: {use_reward_model: False, group_name: RewardGroup}
critic: {use_critic_model: False}
"""


def written(folder: Path, *, env: str = ENV + MAPPING, experiment: str = EXPERIMENT) -> str:
    """RLinf's layout: the experiment, and the folder `config` that EMBODIED_PATH leads to."""
    parts = {"env/stack": env, "model/gr00t": MODEL, "hybrid_engines/fsdp": ENGINE}
    for name, text in {**parts, "weight_syncer/patch_syncer": "type: patch\n"}.items():
        file = folder / "rlinf" / "config" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    file = folder / "mine.yaml"
    file.write_text(experiment, encoding="utf-8")
    return str(file)


@pytest.fixture(autouse=True)
def embodied_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBODIED_PATH", str(tmp_path / "rlinf"))


@pytest.mark.filterwarnings("error")
def test_an_experiment_of_rlinf_loads(tmp_path: Path) -> None:
    loaded = load_config(written(tmp_path))
    config = loaded.config
    assert (config.algorithm.rollout_epoch, config.algorithm.eval_rollout_epoch) == (2, 3)
    assert config.env.eval.total_num_envs == 8
    assert isinstance(config.env.train.init_params, IsaacLabInitParams)
    assert config.env.train.init_params.camera_size == (256, 256)
    assert (config.actor.optim.lr_scheduler, config.actor.optim.min_lr_ratio) == ("cosine", 0.1)
    assert vars(config.algorithm)["kl_penalty"] == "low_var_kl"
    assert (config.actor.fsdp_config.strategy, config.actor.fsdp_config.sharding_strategy) == ("fsdp", "full_shard")
    assert config.actor.fsdp_config.gradient_checkpointing
    for key in (
        "weight_syncer",
        "actor.fsdp_config.grad_scaler",
        "rollout.sampling_params",
        "cluster.node_groups",
        "reward",
    ):
        assert key in loaded.ignored_keys
    assert "weight_syncer" in loaded.warnings[0]


def test_a_key_without_effect_is_named_with_the_place_that_it_was_given_at(tmp_path: Path) -> None:
    file = written(tmp_path)
    of_file, _, of_command = (
        load_config(file, ["actor.enable_offload=true", "rollout.sampling_params.temperature_train=2"])
        .warnings[0]
        .partition("These mean")[0]
        .partition("These keys of the command line have no effect here:")
    )
    assert of_file.startswith(f"These keys of {file} have no effect here:\n")
    assert "weight_syncer" in of_file
    assert "actor.enable_offload" not in of_file
    assert "actor.enable_offload" in of_command
    assert "rollout.sampling_params" in of_command
    assert "weight_syncer" not in of_command


def notice(*overrides: str) -> str:
    """What is said at start of RLinf's own file."""
    return load_config(str(REFERENCE), overrides).warnings[0].partition("something else than in RLinf")[2]


def test_what_means_something_else_is_said_at_start() -> None:
    text = notice()
    for key in ("bootstrap_type", "loss_weighting", "clip_ratio_c", "num_episodes", "video_base_dir"):
        assert text.count(f"{key}:") == 1
    assert "500 episodes" in text
    alike = ("algorithm.bootstrap_type=none", "algorithm.loss_weighting=trajectory", "algorithm.clip_ratio_c=null")
    assert notice(*alike, "env.eval.num_episodes=4", "env.eval.video_cfg.video_base_dir=null") == ""
    assert "loss_weighting" not in notice("env.train.auto_reset=true")
    assert "bootstrap_type" not in notice("env.train.auto_reset=true")
    assert "kl_beta:" in notice("algorithm.kl_beta=0.1")
    assert "normalize_advantages:" in notice("algorithm.normalize_advantages=false")


def test_every_difference_of_the_notice_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rlinf.md").read_text(encoding="utf-8")
    for line in notice("algorithm.kl_beta=0.1", "algorithm.normalize_advantages=false").splitlines()[1:]:
        assert f"| `{line.strip().partition(':')[0]}" in page, line


def test_a_task_whose_observations_are_in_rlinfs_code_is_asked_for_them_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config(written(tmp_path, env=ENV))
    message = str(caught.value)
    assert message.startswith("2 problems")
    assert "Missing key: env.train.mapping" in message
    assert "Missing key: env.eval.mapping" in message
    assert "isaaclab_stack_cube_ppo_groot" in message


def test_a_place_in_an_inherited_file_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, env=ENV.replace("use_rel_reward", "use_real_reward") + MAPPING)
    with pytest.raises(UserError, match=r"rlinf/config/env/stack\.yaml:5"):
        load_config(file)


def test_cameras_of_different_sizes_are_a_mistake(tmp_path: Path) -> None:
    file = written(tmp_path, env=ENV.replace("wrist_cam: {height: 256", "wrist_cam: {height: 128") + MAPPING)
    with pytest.raises(UserError, match=r"Cameras of different sizes[\s\S]*env\.train\.init_params"):
        load_config(file)


MISSING = [
    (["env.train.env_type=libero"], "LIBERO", "env.train.env_type"),
    (["env.eval.env_type=maniskill"], "ManiSkill", "env.eval.env_type"),
    (["actor.model.model_type=starvla"], "StarVLA", "actor.model.model_type"),
    (["actor.model.model_type=openpi", "actor.model.openpi={a: 1}"], "pi0", "actor.model.model_type"),
    (["algorithm.adv_type=embodied_dagger", "algorithm.tau=0.005"], "DAgger", "algorithm.adv_type"),
    (["algorithm.loss_type=decoupled_actor_critic"], "asynchronous PPO", "algorithm.loss_type"),
    (["runner.task_type=reasoning"], "language models", "runner.task_type"),
    (["actor.model.model_type=gr00t_n1d7", "actor.model.backbone_model_path=x"], "N1.7", "actor.model.model_type"),
    (["env.train.env_type=my_simulator"], "Unknown simulator", "env.train.env_type"),
    (["reward.use_reward_model=true"], "rewards come from the simulator", "reward.use_reward_model"),
    (["rollout.expert_model={model_path: x}"], "no teacher", "rollout.expert_model"),
    (["env.train.gym_id=PandaPickCube-v0"], "MuJoCo tasks", "env.train.gym_id"),
]


@pytest.mark.parametrize(("overrides", "name", "key"), MISSING, ids=[key for *_, key in MISSING])
def test_what_is_missing_is_said_first_and_by_name(overrides: list[str], name: str, key: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(str(SMALL), [*overrides, "actor.model.unnorm_key=bridge", "env.train.obs_mode=rgb"])
    message = str(caught.value)
    assert name in message
    assert f"key:      {key}" in message
    assert "Unknown key" not in message


def test_what_is_missing_is_said_before_a_variable_that_its_assets_need() -> None:
    with pytest.raises(UserError, match="Not in this release: RoboTwin"):
        load_config(str(SMALL), ["env.train.env_type=robotwin", "env.train.assets_path=${oc.env:NO_SUCH_NAME}"])


def paths(key: str) -> list[str]:
    return [key.replace("*", name) for name in ("train", "eval")] if "*" in key else [key]


def test_the_tables_name_nothing_that_has_an_effect() -> None:
    root = Spec(ExperimentConfig)
    values = {"algorithm": {"adv_type": "gae"}, "env": {"train": {"env_type": "isaaclab"}}}
    for key in [key for keys in NO_EFFECT.values() for key in keys] + [*COPIES, *NEWER_NAMES]:
        assert all(root.at(split_key(path), values) is None for path in paths(key)), key
    for key in [*COPIES.values(), *NEWER_NAMES.values(), *SYNONYMS, *NOT_IN_THIS_RELEASE]:
        assert all(root.at(split_key(path)) is not None for path in paths(key)), key
    known = [key for keys in NO_EFFECT.values() for key in keys]
    assert all(any(f"{key}.".startswith(f"{above}.") for above in known) for key in NEUTRAL)


def test_every_key_without_effect_is_accepted_and_named() -> None:
    overrides = []
    every = [path for keys in NO_EFFECT.values() for key in keys for path in paths(key)]
    for key in [path for path in every if "isaaclab" not in path]:
        inner = [name for name in NEUTRAL if any(f"{path}.".startswith(f"{key}.") for path in paths(name))]
        for name in inner or [key]:
            value = NEUTRAL.get(name, 3)
            text = yaml.safe_dump(value[0] if isinstance(value, list) else value).split("\n")[0]
            overrides += [f"{path}={text}" for path in paths(name) if path.startswith(key)]
    loaded = load_config(str(SMALL), overrides)
    assert len(loaded.ignored_keys) > 60
    for override in overrides:
        assert any(override.startswith(key) for key in loaded.ignored_keys), override


@pytest.mark.parametrize(
    ("overrides", "attribute", "value"),
    [
        (["env.train.rollout_epoch=3"], "algorithm.rollout_epoch", 3),
        (["env.eval.rollout_epoch=3"], "algorithm.eval_rollout_epoch", 3),
        (["env.eval.rollout_epoch=3", "algorithm.eval_rollout_epoch=5"], "algorithm.eval_rollout_epoch", 5),
        (["actor.model.is_lora=true", "actor.model.lora_rank=8"], "actor.model.lora.rank", 8),
        (["algorithm.kl_penalty=k2"], "algorithm.kl_penalty", "mse"),
        (["actor.model.model_path=''", "rollout.model.model_path=''"], "actor.model.model_path", None),
        (["actor.model.model_type=mlp_policy", "actor.model.hidden_dim=64"], "actor.model.model_type", "mlp"),
        (["actor.model.precision=bf16-mixed"], "actor.model.precision", "bf16"),
        (["actor.model.precision='32-true'"], "actor.model.precision", "fp32"),
        (["rollout.model.value_head_hidden=[8]"], "actor.model.value_head_hidden", (8,)),
        (["actor.optim.min_lr_rate=0.5"], "actor.optim.min_lr_ratio", 0.5),
        (["runner.logger.logger_backends=null"], "runner.logger.logger_backends", ()),
        (["runner.logger.logger_backends=wandb"], "runner.logger.logger_backends", ("wandb",)),
    ],
)
def test_other_names(overrides: list[str], attribute: str, value: object) -> None:
    node: Any = load_config(str(SMALL), overrides).config
    for name in attribute.split("."):
        node = getattr(node, name)
    assert node == value


def in_file(folder: Path, old: str, new: str) -> LoadedConfig:
    file = folder / "small.yaml"
    file.write_text(SMALL.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return load_config(str(file))


def test_the_newer_of_two_names_counts_and_both_are_named(tmp_path: Path) -> None:
    loaded = in_file(
        tmp_path,
        "    env_type: mujoco\n    total_num_envs: 4\n",
        "    env_type: mujoco\n    total_num_envs: 4\n    rollout_epoch: 5\n",
    )
    assert loaded.config.algorithm.rollout_epoch == 5
    (warning,) = loaded.warnings
    assert (
        "env.train.rollout_epoch (5) differs from algorithm.rollout_epoch (2): env.train.rollout_epoch is used"
        in warning
    )


@pytest.mark.parametrize(
    ("old", "new", "key", "line"),
    [
        ("  val_check_interval: 5", "  val_check_intervall: ${runner.max_epochs}", "runner.val_check_intervall", 6),
        ("  gamma: 0.99", "  gamma: 0.99\nnotes: ${runner}", "notes", 12),
        ("  gamma: 0.99", "  gamma: 0.99\n  reward_coef: ${algorithm.rollout_epoch}", "algorithm.reward_coef", 12),
        (
            "num_action_chunks: 4",
            "num_action_chunks: 4\n    embodiment_tag: ${runner.logger.experiment_name}",
            "actor.model.embodiment_tag",
            41,
        ),
        ("    mapping: *mapping", "    mapping: *mapping\n    isaaclab: ${env.train.mapping}", "env.eval.isaaclab", 34),
    ],
)
def test_a_key_that_is_to_go_is_named_itself_and_not_where_its_value_is_from(
    old: str, new: str, key: str, line: int, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        in_file(tmp_path, old, new)
    assert f"  file:     {tmp_path / 'small.yaml'}:{line}\n  key:      {key}\n" in str(caught.value)


def test_a_check_of_the_simulator_names_the_key_that_is_to_go(tmp_path: Path) -> None:
    loaded = in_file(tmp_path, "    total_num_envs: 8", "    total_num_envs: 8\n    seed: ${runner.val_check_interval}")
    file = tmp_path / "small.yaml"
    lines = file.read_text(encoding="utf-8").splitlines()
    line = lines.index("    seed: ${runner.val_check_interval}") + 1
    located = loaded.located(UserError("No such thing", key="env.eval.seed", fix="remove it"))
    assert (located.file, located.key) == (f"{file}:{line}", "env.eval.seed")
    assert (
        loaded.located(UserError("Too large", key="env.eval.seed", fix="lower it")).key == "runner.val_check_interval"
    )


def test_a_key_in_a_block_that_is_an_interpolation_is_named_where_it_is_written(tmp_path: Path) -> None:
    text = SMALL.read_text(encoding="utf-8").replace("mapping: *mapping", "mapping: ${env.train.mapping}")
    file = tmp_path / "small.yaml"
    file.write_text(text.replace("main_images: front", "main_image: front"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(str(file))
    assert caught.value.key == "env.train.mapping.main_image"


def test_an_environment_variable_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBODIED_PATH")
    with pytest.raises(UserError, match="variable EMBODIED_PATH is not set") as caught:
        load_config(written(tmp_path))
    assert "examples/embodiment" in str(caught.value.expected)
    monkeypatch.setenv("EMBODIED_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(
        UserError, match=r"Could not load 'weight_syncer/patch_syncer'[\s\S]*nowhere/config/ is not available"
    ):
        load_config(written(tmp_path))
    in_list = 'defaults: ["env/${oc.env:NO_SUCH_NAME}@env.train", _self_]\n' + SMALL.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="variable NO_SUCH_NAME is not set"):
        load_config(written(tmp_path, experiment=in_list))
    with pytest.raises(UserError, match="variable NO_SUCH_NAME is not set") as caught:
        load_config(str(SMALL), ["actor.model.model_path=${oc.env:NO_SUCH_NAME}"])
    assert caught.value.key == "actor.model.model_path"
