"""Evaluation as a command: results, videos, overlays."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import av
import pytest
import torch
from pydantic import TypeAdapter
from run_toys import checkpoint, groot_experiment, mlp_experiment

from regrasp.engine.policies import overlay_rl_weights
from regrasp.errors import UserError
from regrasp.experiment.load import LoadedConfig, load_config
from regrasp.logging.intervals import wilson_interval
from regrasp.logging.report import EvaluationSummary
from regrasp.models.registry import load_policy
from regrasp.stages.play import Kind, PlayOptions, PlayResult, play, print_summary

TASK = (
    "env.eval.total_num_envs=4",
    "env.eval.num_workers=1",
    "env.eval.num_episodes=6",
)


def task(*overrides: str) -> LoadedConfig:
    return load_config("pick_cube_ppo_groot", [*TASK, *overrides])


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlayResult]:
    run = tmp_path_factory.mktemp("expert")
    return run, play(task("env.eval.video_cfg.save_video=true"), run, PlayOptions(kind="expert", num_videos=2))


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_the_expert_always_succeeds(expert: tuple[Path, PlayResult], capsys: pytest.CaptureFixture[str]) -> None:
    run, result = expert
    assert result.summary.success == 1.0
    assert result.summary.episodes == 6
    assert result.summary.ci95 == wilson_interval(6, 6)
    assert TypeAdapter(EvaluationSummary).validate_json((run / "evaluation.json").read_text()) == result.summary


@pytest.mark.parametrize("kind", [pytest.param("zero", marks=pytest.mark.full), "random"])
def test_doing_nothing_and_anything_fails(tmp_path: Path, kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    result = play(task(), tmp_path, PlayOptions(kind=kind))
    assert result.summary.success == 0.0
    assert result.videos == []
    assert not (tmp_path / "videos").exists()
    table = capsys.readouterr().out
    assert "all episodes" in table
    assert "95 % interval" in table
    assert all(instruction in table for instruction in result.summary.per_instruction)


def test_every_episode_has_a_line(expert: tuple[Path, PlayResult]) -> None:
    run, result = expert
    lines = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    assert [line["episode"] for line in lines] == list(range(6))
    for line, episode in zip(lines, result.episodes, strict=True):
        assert line["seed"] == episode.seed
        assert line["instruction"] == episode.instruction
        assert line["success"] is True
        assert line["length"] == episode.length < 40
        assert line["total_reward"] == 1.0
        assert line["wrong_object"] == 0.0


def test_videos_exist_and_decode(expert: tuple[Path, PlayResult]) -> None:
    run, result = expert
    assert sorted(p.name for p in (run / "videos").iterdir()) == [
        "episode_000_success.mp4",
        "episode_001_success.mp4",
    ]
    for index, item in enumerate(sorted(result.videos, key=lambda item: item.file.name)):
        episode = result.episodes[index]
        assert (item.seed, item.instruction, item.success) == (episode.seed, episode.instruction, True)
        assert frames_of(item.file) == episode.length + 10, "the last frame is held for a second"


def test_videos_that_cannot_be_written_cost_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("regrasp.runner.videos.write_episode", refuse)
    result = play(task("env.eval.video_cfg.save_video=true"), tmp_path, PlayOptions(kind="zero", num_videos=2))
    assert result.videos == []
    assert TypeAdapter(EvaluationSummary).validate_json((tmp_path / "evaluation.json").read_text()) == result.summary
    assert caplog.text.count("No space left on device") == 1


def test_a_result_that_cannot_be_written_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evaluation.json").mkdir()
    with pytest.raises(UserError, match="could not be written") as caught:
        play(task(), tmp_path, PlayOptions(kind="zero"))
    assert caught.value.file == str(tmp_path / "evaluation.json")
    assert "all episodes" in capsys.readouterr().out


def test_videos_without_text_go_where_they_were_asked_to(tmp_path: Path) -> None:
    base = tmp_path / "elsewhere"
    video = "env.eval.video_cfg"
    overrides = (f"{video}.save_video=true", f"{video}.info_on_video=false", f"{video}.video_base_dir={base}")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        result = play(task(*overrides, "env.eval.num_episodes=1"), tmp_path / name, PlayOptions(kind="expert"))
        (file,) = (base / name).iterdir()
        assert frames_of(file) == result.episodes[0].length
    assert sorted(folder.name for folder in base.iterdir()) == ["first", "second"]


def test_rl_weights_are_laid_over_the_base_model(finished_run: Path, start_model: Path, tmp_path: Path) -> None:
    base = mlp_experiment(f"actor.model.model_path={start_model}")
    exported = mlp_experiment(f"actor.model.model_path={checkpoint(finished_run, 4) / 'model'}")
    for name in ("overlaid", "exported", "base"):
        (tmp_path / name).mkdir()
    overlaid = play(base, tmp_path / "overlaid", PlayOptions(rl_model_path=checkpoint(finished_run, 4)))
    assert overlaid.episodes == play(exported, tmp_path / "exported", PlayOptions()).episodes

    policy = load_policy(start_model)
    overlay_rl_weights(policy, checkpoint(finished_run, 4))
    expected = load_policy(checkpoint(finished_run, 4) / "model").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in policy.state_dict().items())


def test_rl_weights_of_another_model_are_refused(finished_run: Path, base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not fit the base model") as caught:
        play(
            groot_experiment(f"actor.model.model_path={base_model}"),
            tmp_path,
            PlayOptions(rl_model_path=checkpoint(finished_run, 4)),
        )
    assert caught.value.key == "--rl_model_path"


def test_a_model_for_other_observations_is_refused(base_model: Path, tmp_path: Path) -> None:
    model = f"actor.model.model_path={base_model}"
    for change, key in (
        ("env.eval.mapping.states=[policy/gripper_position]", "states"),
        ("env.eval.mapping.extra_view_images=[wrist_camera]", "extra_view_images"),
        ("env.eval.mapping.main_images=null", "main_images"),
        ("env.eval.mapping.embodiment_tag_id=1", "embodiment_tag_id"),
    ):
        with pytest.raises(UserError) as caught:
            play(groot_experiment(model, change), tmp_path, PlayOptions())
        assert str(caught.value.key).endswith(key)


def test_an_instruction_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(EvaluationSummary.from_counts({"pick \x1b[2J\x1b]0;title\x07 \x9b1m 红色\r": (1, 2)}))
    shown = capsys.readouterr().out
    assert r"pick \x1b[2J\x1b]0;title\x07 \x9b1m 红色\r" in shown
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(shown)
