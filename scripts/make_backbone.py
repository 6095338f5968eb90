"""Make the backbone that comes with the package: python scripts/make_backbone.py [FOLDER]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from regrasp.experiment.load import load_config
from regrasp.stages.pretrain import SHIPPED, pretrain, recipe

EXPERIMENT = "pick_cube_sac_groot"
"""The cube tasks' experiments have the same block `pretrain`."""


def make(folder: Path) -> float:
    """Pretrain as the experiment says, and write down what it was made of; returns the median error in centimetres."""
    config = load_config(EXPERIMENT, []).config
    assert config.pretrain is not None
    _, error = pretrain(config, folder, again=True)
    assert error is not None
    folder.with_suffix(".json").write_text(json.dumps(recipe(config.pretrain), indent=2) + "\n", encoding="utf-8")
    return error


if __name__ == "__main__":
    print(f"median error {make(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED / 'cubes'):.2f} cm")
