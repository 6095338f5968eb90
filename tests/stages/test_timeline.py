"""A run is one timeline: going on from an earlier step is a branch, and nobody else writes into it meanwhile."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_toys import SMALL, checkpoint, metrics, mlp_experiment, same_weights, saved_steps

from regrasp.checkpoint.read import find_checkpoint
from regrasp.checkpoint.run_record import LOCK_FILE, RECORD_FILE, RunRecord, only_writer, run_of, versions
from regrasp.cli.main import main
from regrasp.errors import UserError
from regrasp.models.registry import load_policy
from regrasp.stages.report import report_run
from regrasp.stages.train import train

TRAIN = ["train", "--config_name", "pick_cube_ppo_mlp", *SMALL, "runner.val_check_interval=-1"]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """Four updates, each with its checkpoint."""
    return shutil.copytree(finished_run, tmp_path / "run")


def go_on(run: Path, start_model: Path, *overrides: str) -> bool:
    settings = (f"actor.model.model_path={start_model}", "runner.val_check_interval=-1", "actor.optim.lr=1e-2")
    return train(mlp_experiment(*settings, *overrides), run)


def test_going_on_from_an_earlier_step_sets_the_later_ones_aside(
    run: Path, start_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = shutil.copytree(run, run.with_name("before"))
    resume = f"runner.resume_dir={checkpoint(run, 1)}"
    assert go_on(run, start_model, resume, "runner.max_epochs=2")
    aside = checkpoint(run, 1).parent / "set_aside_after_step_1"
    assert str(aside) in caplog.text
    assert saved_steps(run) == [1, 2]
    assert find_checkpoint(run) == checkpoint(run, 2)
    assert not same_weights(checkpoint(run, 2), checkpoint(before, 2))
    assert [line["step"] for line in metrics(run)] == [1, 2]
    assert metrics(aside) == metrics(before)[1:]
    for step in (2, 3, 4):
        assert same_weights(aside / f"global_step_{step}", checkpoint(before, step))
    assert go_on(run, start_model, resume, "runner.max_epochs=2")
    assert same_weights(aside.with_name(f"{aside.name}.2") / "global_step_2", checkpoint(run, 2))


def lr_of(file: Path) -> float:
    return yaml.safe_load(file.read_text())["actor"]["optim"]["lr"]


def test_the_run_knows_what_commands_and_settings_made_it(run: Path, start_model: Path) -> None:
    first = lr_of(run / "config.yaml")
    model = f"actor.model.model_path={start_model}"
    for command, step, lr, epochs in (("two", 4, 1e-2, 5), ("three", 5, 1e-2, 6), ("four", 2, 1e-3, 3)):
        settings = (model, f"runner.resume_dir={checkpoint(run, step)}", f"actor.optim.lr={lr}")
        assert train(mlp_experiment(*settings, f"runner.max_epochs={epochs}"), run, command)
    starts = RunRecord(run).starts
    assert [(start.update, start.command) for start in starts] == [(0, ""), (4, "two"), (5, "three"), (2, "four")]
    assert [lr_of(run / start.config) for start in starts] == [first, 1e-2, 1e-2, 1e-3]
    assert starts[-1].config == "config.yaml"
    assert (run / "command.txt").read_text() == "\ntwo\nthree\nfour\n"
    assert all(start.versions == versions() for start in starts)
    page = report_run(run, run / "report.html").read_text()
    titles = re.findall("<h3>(.*[Uu]pdate.*)</h3>", page)
    gone = "none of it is left, the run went on from update 2"
    assert titles == ["Updates 1 to 2", f"From update 5; {gone}", f"From update 6; {gone}", "From update 3"]
    assert "actor.optim.lr was 0.01 and is 0.001" in page
    assert all(f'<pre class="wrap">{name}</pre>' in page for name in ("two", "three", "four"))


def test_a_run_that_recorded_no_commands_is_known_by_its_first(run: Path, start_model: Path) -> None:
    record = json.loads((run / RECORD_FILE).read_text())
    del record["starts"]
    (run / RECORD_FILE).write_text(json.dumps(record))
    (run / "command.txt").write_text("regrasp train\n")
    before = (run / "config.yaml").read_text()
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")
    first, second = RunRecord(run).starts
    assert (first.command, second.update) == ("regrasp train", 4)
    assert (run / first.config).read_text() == before


def test_what_is_run_again_is_told(run: Path, start_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(checkpoint(run, 4))
    shutil.rmtree(checkpoint(run, 3))
    caplog.set_level(logging.INFO)
    assert go_on(run, start_model, f"runner.resume_dir={run}")
    again = f"Going on from update 2 ({checkpoint(run, 2)}); 2 updates logged after it are run again."
    assert again in caplog.messages
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]


def test_a_finished_run_says_so(run: Path, start_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    files = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != LOCK_FILE}
    assert go_on(run, start_model, f"runner.resume_dir={run}")
    (said,) = (text for text in caplog.messages if "finished" in text)
    assert "4 of 4 updates" in said
    assert "runner.max_epochs above 4 (--max_iterations)" in said
    assert {file: file.read_bytes() for file in files} == files
    caplog.clear()
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_steps=3")
    assert "runner.max_steps above 4" in caplog.text


def test_a_finished_run_without_a_model_is_not_taken_for_one_with(run: Path, start_model: Path) -> None:
    settings = (f"runner.resume_dir={run}", "runner.export_model=last", "runner.save_interval=5")
    assert go_on(run, start_model, *settings, "runner.max_epochs=6")
    with pytest.raises(UserError, match="as many updates already") as caught:
        go_on(run, start_model, f"runner.resume_dir={checkpoint(run, 5)}", "runner.max_epochs=5")
    assert (caught.value.key, caught.value.expected) == ("runner.max_epochs", "more than 5")
    assert saved_steps(run)[-1] == 6


def test_a_copy_of_a_finished_run_is_nothing_to_go_on_from(
    finished_run: Path, start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    copy = shutil.copytree(checkpoint(finished_run, 4), tmp_path / "global_step_4")
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--model_path", str(start_model), "--resume_dir", str(copy)]) == 2
    assert "as many updates already" in capfd.readouterr().err
    assert not (tmp_path / "logs").exists(), "no empty folder is left"


def test_a_run_killed_before_its_first_checkpoint_begins_again(start_model: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "old": 1}\n{"step": 2, "old": 1}\n')
    assert go_on(tmp_path, start_model, "runner.max_epochs=1")
    (line,) = metrics(tmp_path)
    assert "old" not in line


def test_the_newest_is_what_the_run_wrote_last(run: Path, start_model: Path) -> None:
    foreign = shutil.copytree(checkpoint(run, 3), checkpoint(run, 9))
    assert find_checkpoint(run) == checkpoint(run, 4)
    assert run_of(foreign) is None
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5", "runner.keep_checkpoints=1")
    assert saved_steps(run) == [5], "the foreign one is later than step 4, and so it was set aside"
    assert (foreign.parent / "set_aside_after_step_4" / foreign.name).is_dir()


def test_pruning_keeps_the_present_timeline(run: Path, start_model: Path) -> None:
    resume = f"runner.resume_dir={checkpoint(run, 1)}"
    assert go_on(run, start_model, resume, "runner.keep_checkpoints=2", "runner.max_epochs=3")
    assert saved_steps(run) == [2, 3]


def test_a_run_of_an_earlier_version_is_known_by_its_folders(run: Path, start_model: Path) -> None:
    (run / RECORD_FILE).unlink()
    (run / "config.yaml").write_text("{}")
    assert find_checkpoint(run) == checkpoint(run, 4)
    assert run_of(checkpoint(run, 2)) == run
    assert go_on(run, start_model, f"runner.resume_dir={checkpoint(run, 2)}", "runner.max_epochs=3")
    assert find_checkpoint(run) == checkpoint(run, 3)


@pytest.mark.parametrize(
    "place",
    [
        "one/checkpoints",
        "run/small/checkpoints/best",
        *(pytest.param(place, marks=pytest.mark.full) for place in ("a/b", "global")),
    ],
)
def test_a_copied_checkpoint_begins_a_new_run(
    finished_run: Path, start_model: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    copy = shutil.copytree(checkpoint(finished_run, 2), tmp_path / place / "global_step_2")
    above = copy.parents[2] / "metrics.jsonl"
    if not above.exists():
        above.write_text('{"step": 7, "precious": 1}\n')
    monkeypatch.chdir(tmp_path)
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert main([*TRAIN, "runner.max_epochs=3", "--model_path", str(start_model), "--resume_dir", str(copy)]) == 0
    assert {file: file.read_bytes() for file in kept} == kept
    (new,) = (tmp_path / "logs/regrasp").iterdir()
    assert saved_steps(new) == [3]
    assert [line["step"] for line in metrics(new)] == [3]


def test_a_checkpoint_below_the_root_of_the_disk(finished_run: Path) -> None:
    assert run_of(Path("/global_step_2")) is None
    assert run_of(checkpoint(finished_run, 2)) == finished_run


def test_one_writer_at_a_time(run: Path, start_model: Path) -> None:
    with only_writer(run), pytest.raises(UserError, match="Another process") as caught:
        go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")
    assert "process" in str(caught.value.value)
    assert saved_steps(run) == [1, 2, 3, 4]
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")


def test_the_lock_of_a_dead_process_is_none(run: Path, start_model: Path) -> None:
    hold = f"import fcntl, os; fcntl.flock(os.open({str(run / LOCK_FILE)!r}, os.O_RDWR), fcntl.LOCK_EX); os.abort()"
    assert subprocess.run([sys.executable, "-c", hold], check=False).returncode != 0
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 4096,
        b'{"step": "5"}\n',
        *(pytest.param(line, marks=pytest.mark.full) for line in (b"{\n", b'{"step": 5, "a": [1]}\n', b"\xff\xfe\n")),
    ],
)
def test_a_damaged_line_of_metrics_is_cut(
    run: Path, start_model: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")
    assert "damaged lines are left out: 1" in caplog.text
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"checkpoints": 3}',
        '{"checkpoints": [1]}',
        '{"checkpoints": ["../x/global_step_1"]}',
        '{"checkpoints": [], "tracking_id": 3}',
        '{"checkpoints": [], "tracking_id": "../x"}',
        '{"checkpoints": [], "starts": 3}',
        '{"checkpoints": [], "starts": [{"update": -1, "command": "", "config": "config.yaml"}]}',
        '{"checkpoints": [], "starts": [{"update": 0, "command": "", "config": "../config.yaml"}]}',
    ],
)
def test_a_damaged_record_is_refused(run: Path, content: str) -> None:
    (run / RECORD_FILE).write_text(content)
    with pytest.raises(UserError, match="record is damaged") as caught:
        find_checkpoint(run)
    assert caught.value.file == str(run / RECORD_FILE)


def test_services_know_a_resumed_run_again_and_a_branch_as_a_new_one(run: Path) -> None:
    begun = RunRecord(run).tracking_id(None)
    assert RunRecord(run).tracking_id(4) == begun
    branch = RunRecord(run).tracking_id(2)
    assert branch != begun
    record = RunRecord(run)
    record.end_at(2)
    assert RunRecord(run).tracking_id(2) == branch


def test_a_crash_between_record_and_checkpoint_loses_nothing(run: Path) -> None:
    record = RunRecord(run)
    record.add(checkpoint(run, 5))
    assert find_checkpoint(run) == checkpoint(run, 4)
    assert json.loads((run / RECORD_FILE).read_text())["checkpoints"][-1] == "small/checkpoints/global_step_5"


def test_a_damaged_model_in_a_checkpoint_is_not_used(run: Path, start_model: Path) -> None:
    weights = checkpoint(run, 4) / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"model/model\.safetensors is damaged"):
        load_policy(weights.parent)
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")


def test_versions_are_those_of_what_is_installed() -> None:
    import torch

    assert versions()["torch"] == torch.__version__
    assert set(versions()) >= {"regrasp", "python", "torch", "transformers", "mujoco-core", "numpy"}
