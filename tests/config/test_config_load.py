"""Loading experiments: the reference's file, shipped files, inheritance, overrides, aliases."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from regrasp.config.compose import as_override
from regrasp.config.search import SHIPPED, list_configs
from regrasp.envs.mapping_config import MappingConfig, StateEntry
from regrasp.envs.registry import experiment_folders
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import batch_equation, num_optimizer_steps, num_samples, num_updates
from regrasp.experiment.load import load_config
from regrasp.experiment.paths import require_paths
from regrasp.models.groot.settings import GrootModelConfig

HERE = Path(__file__).parent
REFERENCE = HERE / "reference_experiment.yaml"
SMALL = HERE / "small_experiment.yaml"


def leaves(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(node, dict) or not node:
        return {path: node}
    return {key: value for name, inner in node.items() for key, value in leaves(inner, (*path, name)).items()}


def number(value: Any) -> Any:
    """PyYAML reads `5e-6` as text."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-\d+", value) else value


def test_reference_loads_unchanged() -> None:
    loaded = load_config(str(REFERENCE))
    config = loaded.config
    assert config.env.train.total_num_envs == 4
    assert config.env.train.mapping.states == (
        StateEntry(key="robot_joint_state", slice=(15, 29)),
        StateEntry(key="robot_dex3_joint_state"),
    )
    assert config.env.train.mapping == config.env.eval.mapping  # one anchor
    assert config.env.train.init_params.max_episode_steps == 256  # interpolated
    assert config.env.train.video_cfg.video_base_dir == "../results/video/train"
    assert config.actor.optim.lr == 5e-6
    assert config.actor.model.precision == "bf16"
    assert config.actor.model.obs_converter_type == "dex3"
    assert isinstance(config.actor.model, GrootModelConfig)
    assert config.actor.model.rl_head_config.noise_params == (0.7, 0.3, 400)
    assert config.cluster.component_placement == {"actor,env,rollout": "all"}
    assert config.seed == 1234
    assert (config.pretrain, config.collect, config.sft) == (None, None, None)


def test_every_key_of_the_reference_is_a_field_or_declared_without_effect() -> None:
    loaded = load_config(str(REFERENCE))
    ours = leaves(yaml.safe_load(loaded.to_yaml()))
    copies = {
        ("rollout", "model"),
        ("actor", "model", "rl_head_config", "add_value_head"),
        ("env", "train", "group_size"),
    }
    for path, value in leaves(yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))).items():
        renamed = tuple("mapping" if step == "isaaclab" else step for step in path)
        ignored = any(".".join(path[:depth]) in loaded.ignored_keys for depth in range(1, len(path) + 1))
        copied = any(path[: len(copy)] == copy for copy in copies)
        assert (renamed in ours) + ignored + copied + (path == ("defaults",)) == 1, path
        if renamed in ours and "${" not in str(value) and path[-1] != "states":
            assert number(ours[renamed]) == number(value), path


def test_ignored_keys_are_one_warning() -> None:
    loaded = load_config(str(REFERENCE))
    assert len(loaded.warnings) == 1
    for key in loaded.ignored_keys:
        assert key in loaded.warnings[0]
    assert "actor.model.trust_remote_code" in loaded.ignored_keys
    assert str(REFERENCE) in loaded.warnings[0]


@pytest.mark.parametrize("name", sorted(list_configs()))
def test_shipped_experiment(name: str) -> None:
    loaded = load_config(name)
    assert loaded.file.parent == SHIPPED
    assert loaded.ignored_keys == ()
    assert loaded.warnings == ()
    assert loaded.config.runner.logger.experiment_name == name


@pytest.mark.parametrize("file", [REFERENCE, SMALL])
def test_printed_configuration_loads_to_the_same(file: Path, tmp_path: Path) -> None:
    loaded = load_config(str(file), ["algorithm.target_kl=0.1"])
    copy = tmp_path / "printed.yaml"
    copy.write_text(loaded.to_yaml(), encoding="utf-8")
    assert load_config(str(copy)).config == loaded.config


def test_configuration_is_frozen() -> None:
    config = load_config(str(SMALL)).config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.runner.max_epochs = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert dataclasses.replace(config.runner, max_epochs=3).max_epochs == 3


@pytest.mark.parametrize(
    ("override", "attribute", "value"),
    [
        ("algorithm.update_epoch=2", "algorithm.update_epoch", 2),
        ("env.eval.num_episodes=7", "env.eval.num_episodes", 7),  # not in the file, no + needed
        ("++runner.seed=5", "runner.seed", 5),
        ("+runner.keep_checkpoints=2", "runner.keep_checkpoints", 2),
        ("~actor.optim.lr", "actor.optim.lr", 5e-6),  # back to the default
        ("actor.optim.lr=1", "actor.optim.lr", 1.0),
        ("actor.model.precision='32'", "actor.model.precision", "fp32"),
        ("actor.model.precision=32", "actor.model.precision", "fp32"),
        ("actor.model.value_head_hidden=[8, 4]", "actor.model.value_head_hidden", (8, 4)),
        ("actor.seed=${algorithm.update_epoch}", "actor.seed", 4),
        ("env.train.max_episode_steps=41", "env.train.init_params.max_episode_steps", 41),  # interpolation follows
        ("env.train.mapping.action_mapping.scale=[1, 2.5]", "env.train.mapping.action_mapping.scale", (1.0, 2.5)),
        ("env.train.mapping.states=[a,{key: b}]", "env.train.mapping.states", (StateEntry("a"), StateEntry("b"))),
        ("sft={}", "sft.batch_size", 256),
        ("collect.num_demos=3", "collect.output_dir", "demos"),
        ("runner.resume_dir='/a b/c=d'", "runner.resume_dir", "/a b/c=d"),
    ],
)
def test_override(override: str, attribute: str, value: object) -> None:
    node: Any = load_config(str(SMALL), [override]).config
    for name in attribute.split("."):
        node = getattr(node, name)
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    "value",
    ["/a b/c=d", "it's", "a\\", r"c:\\'x'", "[1,2]", "null", "3", "${actor.seed}", "a,b: {c}", "~/x", r"\'", "ü#%"],
)
def test_any_text_as_an_override(value: str) -> None:
    override = as_override("runner.resume_dir", value)
    assert load_config(str(SMALL), [override]).config.runner.resume_dir == value


@pytest.mark.parametrize(("key", "value"), [("runner.only_eval", True), ("runner.seed", 3), ("runner.seed", None)])
def test_other_values_as_an_override(key: str, value: float | bool | None) -> None:
    runner = load_config(str(SMALL), [as_override(key, value)]).config.runner
    assert getattr(runner, key.partition(".")[2]) == value


def test_later_override_wins() -> None:
    assert load_config(str(SMALL), ["actor.seed=1", "actor.seed=2"]).config.actor.seed == 2


def test_merge_keys(tmp_path: Path) -> None:
    text = SMALL.read_text(encoding="utf-8").replace(
        "    mapping: *mapping", "    mapping: {<<: *mapping, states: [other]}"
    )
    file = tmp_path / "merged.yaml"
    file.write_text(text, encoding="utf-8")
    mapping = load_config(str(file)).config.env.eval.mapping
    assert mapping.main_images == "front_camera"
    assert mapping.states == (StateEntry("other"),)


@pytest.mark.parametrize("folder", ["plain", "with space", "with'quote"])
def test_inheriting_a_shipped_experiment(folder: str, tmp_path: Path) -> None:
    home = tmp_path / folder
    home.mkdir()
    (home / "mine.yaml").write_text(
        "defaults: [pick_cube_ppo_groot, _self_]\nrunner: {max_epochs: 3}\n", encoding="utf-8"
    )
    loaded = load_config("mine", config_path=home)
    assert loaded.config.runner.max_epochs == 3
    assert loaded.config.collect == load_config("pick_cube_ppo_groot").config.collect


def test_given_folder_comes_first(tmp_path: Path) -> None:
    (tmp_path / "pick_cube_ppo_groot.yaml").write_text(SMALL.read_text(encoding="utf-8"), encoding="utf-8")
    assert load_config("pick_cube_ppo_groot", config_path=tmp_path).file.parent == tmp_path
    assert load_config("stack_cube_ppo_groot", config_path=tmp_path).file.parent == SHIPPED


def test_installed_isaac_lab_tasks_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "isaaclab_tasks" / "manipulation" / "config"
    folder.mkdir(parents=True)
    (tmp_path / "isaaclab_tasks" / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (folder / "isaaclab_ppo_trocar.yaml").write_text(REFERENCE.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "rl_games_ppo_cfg.yaml").write_text("params: {seed: 42}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_config("isaaclab_ppo_trocar").config.actor.model.action_dim == 28
    assert "isaaclab_ppo_trocar" in list_configs(more=lambda: experiment_folders(()))
    assert "rl_games_ppo_cfg" not in list_configs(more=lambda: experiment_folders(()))


@pytest.mark.parametrize(
    ("name", "config_path", "key", "fix"),
    [
        ("pick_cube_ppo_grot", None, "--config_name", "did you mean pick_cube_ppo_groot?"),
        ("zzz", None, "--config_name", "--config_path"),
        ("", None, "--config_name", "--config_path"),
        ("/no/such/pick_cube_ppo_mlp.yaml", None, "--config_name", "pick_cube_ppo_mlp"),
        (str(HERE / "test_config_load.py"), None, "--config_name", "--config_path"),
        ("small_experiment", Path("/no/such/folder"), "--config_path", "correct the path"),
    ],
)
def test_unknown_name(name: str, config_path: Path | None, key: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(name, config_path=config_path)
    assert caught.value.file == "command line"
    assert caught.value.key == key
    assert caught.value.fix is not None
    assert fix in caught.value.fix
    assert config_path is not None or "pick_cube_ppo_mlp" in f"{caught.value.expected} {caught.value.fix}"


def test_model_path_of_the_actor_wins() -> None:
    overrides = ["rollout.model.model_path=/a", "actor.model.model_path=/b"]
    loaded = load_config(str(SMALL), overrides)
    assert loaded.config.actor.model.model_path == "/b"
    assert any("/a" in warning and "/b" in warning for warning in loaded.warnings)
    assert load_config(str(SMALL), overrides[:1]).config.actor.model.model_path == "/a"
    assert load_config(str(SMALL), overrides[:1]).warnings == ()


@pytest.mark.parametrize("evaluates", ["runner.only_eval=true", "runner.task_type=embodied_eval"])
def test_model_path_of_the_rollout_wins_in_an_evaluation(evaluates: str, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    text = SMALL.read_text(encoding="utf-8").replace("model_type: gr00t", "model_type: gr00t\n    model_path: /base")
    file.write_text(f"{text}rollout: {{model: {{model_path: /tuned, precision: bf16}}}}\n", encoding="utf-8")
    loaded = load_config(str(file), [evaluates])
    assert (loaded.config.actor.model.model_path, loaded.config.actor.model.precision) == ("/tuned", "bf16")
    assert any("rollout.model.model_path is used" in warning for warning in loaded.warnings)
    assert load_config(str(file)).config.actor.model.model_path == "/base"
    given = load_config(str(file), [evaluates, "actor.model.model_path=/given"])
    assert given.config.actor.model.model_path == "/given"


@pytest.mark.parametrize(
    ("slices", "warning"),
    [
        (("0, 3", "4, 5"), "leaves values of the state out: between eef [0, 3] and gripper [4, 5]."),
        (("1, 4", "4, 5"), "leaves values of the state out: before eef [1, 4]."),
        (("3, 6", "0, 3"), None),
    ],
)
def test_values_that_no_part_of_the_state_takes_are_pointed_out(slices: tuple[str, str], warning: str | None) -> None:
    entries = [f"{{gr00t_key: {key}, slice: [{part}]}}" for key, part in zip(("eef", "gripper"), slices, strict=True)]
    block = f"{{video: {{main_images: room}}, state: [{', '.join(entries)}]}}"
    loaded = load_config(str(SMALL), [f"env.{name}.mapping.gr00t_mapping={block}" for name in ("train", "eval")])
    expected = () if warning is None else (f"env.train.mapping.gr00t_mapping.state {warning}",)
    assert tuple(loaded.warnings) == expected


def test_values_that_the_state_holds_twice_are_pointed_out() -> None:
    def warnings(*entries: str) -> tuple[str, ...]:
        return load_config(str(SMALL), [f"env.train.mapping.states=[{', '.join(entries)}]"]).warnings

    joints = "{key: joints, slice: [%s]}"
    assert warnings(joints % "4, 7", joints % "0, 4", "{key: hand, slice: [3, 5]}") == ()
    (warning,) = warnings(joints % "0, 4", "hand", joints % "3, 5")
    assert all(part in warning for part in ("env.train.mapping.states", "joints [0, 4]", "joints [3, 5]"))
    (warning,) = warnings(joints % "4, 7", "joints")
    assert "joints [4, 7] and joints." in warning


def test_isaaclab_block_becomes_the_mapping(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.read_text(encoding="utf-8").replace("mapping: &", "isaaclab: &"), encoding="utf-8")
    assert load_config(str(file)).config == load_config(str(SMALL)).config


def test_mapping_accepts_bare_keys() -> None:
    assert MappingConfig(states=("a", StateEntry("b"))).states == (StateEntry("a"), StateEntry("b"))  # pyright: ignore


def test_batch_arithmetic_counts_what_a_loop_counts() -> None:
    config = load_config(str(SMALL), ["actor.global_batch_size=12"]).config
    samples = [
        (env, chunk, epoch)
        for epoch in range(config.algorithm.rollout_epoch)
        for chunk in range(0, config.env.train.max_steps_per_rollout_epoch, config.actor.model.num_action_chunks)
        for env in range(config.env.train.total_num_envs)
    ]
    minibatches = [samples[i : i + 12] for i in range(0, len(samples), 12)]
    assert num_samples(config) == len(samples) == 80
    assert num_optimizer_steps(config) == len(minibatches) * config.algorithm.update_epoch
    for number in (4, 10, 2, 80, len(minibatches), 28):
        assert f"{number} " in batch_equation(config)


def test_the_batch_equation_is_a_bound_where_ended_episodes_leave_samples_out() -> None:
    def bound(*overrides: str) -> bool:
        return "at most this many" in batch_equation(load_config(str(SMALL), overrides).config)

    assert bound()
    assert not bound("env.train.auto_reset=true")
    assert not bound("env.train.ignore_terminations=true")


@pytest.mark.parametrize(("max_steps", "expected"), [(-1, 10), (3, 3), (30, 10), (0, 0)])
def test_number_of_updates(max_steps: int, expected: int) -> None:
    assert num_updates(load_config(str(SMALL), [f"runner.max_steps={max_steps}"]).config) == expected


def with_model(path: Path | str | None) -> ExperimentConfig:
    return load_config(str(SMALL), [f"actor.model.model_path={path or 'null'}"]).config


def test_required_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"actor\.model\.model_path"):
        require_paths(with_model(None), "train")
    with pytest.raises(UserError, match="does not exist"):
        require_paths(with_model(tmp_path / "nowhere"), "play")
    with pytest.raises(UserError, match=r"config\.json"):
        require_paths(with_model(tmp_path), "train")
    (tmp_path / "config.json").write_text('{"model_type": "gr00t_n1_5"}')
    require_paths(with_model(tmp_path), "train")

    resumed = load_config(str(SMALL), [f"actor.model.model_path={tmp_path}", "runner.resume_dir=/no/such"]).config
    with pytest.raises(UserError, match=r"runner\.resume_dir"):
        require_paths(resumed, "train")
    require_paths(resumed, "play")


def write_info(folder: Path) -> None:
    """What tells a dataset's folder."""
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").touch()


def test_required_demonstrations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no supervised stage"):
        require_paths(load_config(str(SMALL)).config, "sft")
    with pytest.raises(UserError, match=r"sft\.data"):
        require_paths(load_config(str(SMALL), ["sft={}"]).config, "sft")
    collected = load_config(str(SMALL), ["sft={}", "collect.num_demos=3", f"collect.output_dir={tmp_path}"]).config
    with pytest.raises(UserError, match="holds no dataset") as caught:
        require_paths(collected, "sft")
    assert caught.value.key == "collect.output_dir"
    write_info(tmp_path)
    require_paths(collected, "sft")
    with pytest.raises(UserError, match=r"does not exist[\s\S]*regrasp collect[\s\S]*regrasp convert"):
        require_paths(load_config(str(SMALL), ["sft.data=/no/such"]).config, "sft")
    (tmp_path / "main.hdf5").touch()
    with pytest.raises(UserError, match=r"a file, not a folder[\s\S]*regrasp convert"):
        require_paths(load_config(str(SMALL), [f"sft.data={tmp_path / 'main.hdf5'}"]).config, "sft")


@pytest.mark.parametrize(("pretrain", "cache"), [(["~pretrain"], False), ([], True)])
def test_the_cache_is_offered_only_where_it_can_hold_a_backbone(
    pretrain: list[str], cache: bool, tmp_path: Path
) -> None:
    write_info(tmp_path)
    overrides = [f"sft.data={tmp_path}", "sft.backbone=/no/such", *pretrain]
    with pytest.raises(UserError, match="does not exist") as caught:
        require_paths(load_config(str(SMALL), overrides).config, "sft")
    assert caught.value.key == "sft.backbone"
    assert ("user's cache" in str(caught.value.fix)) == cache
    assert ("--backbone nvidia/GR00T-N1.5-3B downloads" in str(caught.value.fix)) != cache


def test_a_bad_configuration_is_rejected_within_three_seconds_of_work() -> None:
    code = (
        "import sys, time\n"
        "from regrasp.experiment.load import load_config\n"
        "from regrasp.errors import UserError\n"
        "try:\n    load_config(sys.argv[1], ['runner.max_epoch=1'])\n"
        "except UserError as error:\n    print(error)\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
        "print(time.process_time(), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(REFERENCE)], capture_output=True, text=True, check=True)
    assert float(result.stderr) < 3
    assert "runner.max_epochs" in result.stdout


def test_gradient_checkpointing_and_compiling_exclude_each_other() -> None:
    with pytest.raises(UserError, match="do not compute layers twice") as caught:
        load_config(str(SMALL), ["actor.fsdp_config.gradient_checkpointing=true", "actor.model.compile=true"])
    assert caught.value.key == "actor.fsdp_config.gradient_checkpointing"


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (["reshard_after_forward=false"], ["reshard_after_forward"]),
        (["enable_gradient_accumulation=false", "forward_prefetch=true"], ["enable_grad", "forward_prefetch"]),
        (["offload_pin_memory=true"], ["offload_pin_memory"]),
        (["sharding_strategy=shard_grad_op", "reshard_after_forward=false"], ["reshard_after_forward"]),
        (["sharding_strategy=full_shard", "cpu_offload=true", "offload_pin_memory=true", "forward_prefetch=true"], []),
    ],
)
def test_keys_of_sharding_that_others_leave_without_effect_are_named(overrides: list[str], warned: list[str]) -> None:
    warnings = load_config(str(SMALL), [f"actor.fsdp_config.{override}" for override in overrides]).warnings
    assert len(warnings) == len(warned)
    assert all(f"actor.fsdp_config.{name}" in text or name in text for name, text in zip(warned, warnings, strict=True))


def test_groups_of_ranks_that_shard_together_divide_them() -> None:
    settings = load_config(
        str(SMALL), ["actor.fsdp_config.sharding_strategy=hybrid_shard", "actor.fsdp_config.fsdp_size=4"]
    ).config.actor.fsdp_config
    assert [settings.num_shards(count) for count in (1, 4, 8)] == [1, 4, 4]
    with pytest.raises(UserError, match="do not divide") as caught:
        settings.num_shards(6)
    assert caught.value.key == "actor.fsdp_config.fsdp_size"
