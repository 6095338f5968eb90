"""How much memory a run will take, before it starts."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from regrasp.config.batches import num_samples
from regrasp.config.schema import ExperimentConfig

_ADAMW_BYTES = 16
"""Weight, gradient and two moments in float32."""


def memory_estimate(config: ExperimentConfig) -> list[str]:
    """Lines about weights, optimizer and rollout storage; without a model folder nothing can be said of the weights."""
    model = config.actor.model
    if model.model_path is None or not (Path(model.model_path) / "config.json").is_file():
        return ["memory: no model folder is given, so its size is not known"]
    shapes = tensor_shapes(Path(model.model_path))
    sizes = {name: _product(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    head = sum(size for name, size in sizes.items() if name.startswith("action_head."))
    unused_slots = sum(size - size // shapes[name][0] for name, size in sizes.items() if name.endswith((".W", ".b")))
    trained = (total if model.trainable == "all" or not head else head) - unused_slots
    lines = [
        f"weights: {total / 1e6:.1f} M parameters, {total * 4 / 2**30:.2f} GiB in float32",
        f"training {trained / 1e6:.1f} M of them: {trained * _ADAMW_BYTES / 2**30:.2f} GiB"
        " (weights, gradients, AdamW's moments)",
    ]
    samples = num_samples(config)
    if head and not (model.trains_backbone or config.runner.recompute_features):
        context = _context_bytes(Path(model.model_path), config)
        lines.append(
            f"cached features: {samples} decisions x {context / 1e3:.0f} kB = {samples * context / 2**30:.2f} GiB"
        )
    return lines


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Names and shapes of a model folder's tensors, from the headers of its safetensors files."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return shapes


def _context_bytes(folder: Path, config: ExperimentConfig) -> int:
    from regrasp.models.groot.config import GrootConfig
    from regrasp.models.groot.data_config import EAGLE_WORDS, PROCESSOR_FILE

    groot = GrootConfig.from_json(json.loads((folder / "config.json").read_text()))
    tokens = config.actor.model.rl_head_config.padding_value
    if tokens is None and (folder / PROCESSOR_FILE).is_file():
        tokens = json.loads((folder / PROCESSOR_FILE).read_text())["sequence_length"]
    if tokens is None:
        views = 1 + len(config.env.train.mapping.extra_view_images)
        tokens = EAGLE_WORDS + views * groot.eagle_cfg.vision_config.num_tokens
    return tokens * groot.action_head_cfg.backbone_embedding_dim * 4


def _product(shape: list[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
