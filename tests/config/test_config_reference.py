"""The generated reference names every key that the reference's file and the schema have."""

from __future__ import annotations

import dataclasses

from generate_config_reference import reference_markdown
from regrasp.config.describe import Spec, dotted
from regrasp.envs.config import EvalEnvConfig
from regrasp.experiment import ExperimentConfig

ROOT = Spec(ExperimentConfig)


def test_every_field_is_described() -> None:
    text = reference_markdown()
    for path in ROOT.paths():
        assert f"| `{path[-1]}` |" in text, dotted(path)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []


def test_tables_have_four_columns() -> None:
    rows = [line.replace("\\|", "") for line in reference_markdown().splitlines() if line.startswith("| `")]
    tables = [row for row in rows if row.count("|") == 5]
    legacy = [row for row in rows if row.count("|") == 4]
    assert len(tables) + len(legacy) == len(rows)
    assert len(tables) > 100


def test_words_of_constraints() -> None:
    def words(*path: str | int) -> str:
        spec = ROOT.at(path)
        assert spec is not None
        return spec.words()

    assert words("runner", "max_epochs") == "an integer of at least 1"
    assert words("runner", "keep_checkpoints") == "an integer of at least 1 or null"
    assert words("algorithm", "clip_ratio_low") == "a number above 0 and below 1"
    assert words("runner", "export_model") == "'always' or 'last'"
    assert words("env", "train", "mapping", "states", 3, "slice").endswith("or null")
    assert words("actor", "model", "rl_head_config", "noise_params") == "[start, end, updates] with start >= end > 0"
    assert ROOT.at(("runner", "nothing")) is None
    assert ROOT.default_at(("actor", "seed")) == 1234
    assert ROOT.default_at(("actor", "model")) is None


def test_fields_agree_with_the_dataclasses() -> None:
    assert list(ROOT.fields()) == [field.name for field in dataclasses.fields(ExperimentConfig)]
    assert "total_num_envs" in Spec(EvalEnvConfig).fields()
