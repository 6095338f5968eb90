"""Makes the README's picture: one episode of a quickstart, by the base model and by the fine-tuned one.

python scripts/before_after.py quickstart-run/seed_0 docs/images/before_after.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

NUM_FRAMES = 4
FRAME_SIZE = 256
MARGIN = 8
LABEL_HEIGHT = 30


def frames(file: Path) -> list[Image.Image]:
    """Evenly spaced frames of a video, the last one included."""
    with av.open(str(file)) as container:
        images = [frame.to_image() for frame in container.decode(video=0)]
    last = len(images) - 1
    return [images[round(i * last / (NUM_FRAMES - 1))] for i in range(NUM_FRAMES)]


def choose(videos: list[dict]) -> tuple[dict, dict]:
    """The first episode that the base model fails and the fine-tuned one solves."""
    by_seed = {(video["seed"], video["group"]): video for video in videos}
    for video in videos:
        after = by_seed.get((video["seed"], "finetuned"))
        if video["group"] == "base" and not video["success"] and after is not None and after["success"]:
            return video, after
    raise SystemExit("no recorded episode is failed by the base model and solved by the fine-tuned one")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    summary = json.loads((args.run / "summary.json").read_text())
    rows = zip(("base model", "after PPO"), choose(summary["videos"]), ("base", "finetuned"), strict=True)
    width = NUM_FRAMES * (FRAME_SIZE + MARGIN) + MARGIN
    picture = Image.new("RGB", (width, 2 * (FRAME_SIZE + LABEL_HEIGHT + MARGIN) + MARGIN), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=18)
    for row, (title, video, group) in enumerate(rows):
        top = MARGIN + row * (FRAME_SIZE + LABEL_HEIGHT + MARGIN)
        success = f"{summary[group]['success']:.0%} of {summary[group]['episodes']} episodes succeed"
        draw.text((MARGIN, top + 4), f'{title}: "{video["instruction"]}"   ({success})', "black", font)
        for column, image in enumerate(frames(args.run / video["file"])):
            left = MARGIN + column * (FRAME_SIZE + MARGIN)
            picture.paste(image.resize((FRAME_SIZE, FRAME_SIZE)), (left, top + LABEL_HEIGHT))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.output, optimize=True)


if __name__ == "__main__":
    main()
