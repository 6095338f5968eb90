"""Makes pictures of episodes: one of a quickstart, by the base model and by the fine-tuned one, or any videos.

python scripts/before_after.py quickstart-run/seed_0 docs/images/before_after.png
python scripts/before_after.py --row "base model" a.mp4 --row "after PPO" b.mp4 picture.png
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


def strip(rows: list[tuple[str, Path]], output: Path) -> None:
    """A row of frames under its title for each video."""
    width = NUM_FRAMES * (FRAME_SIZE + MARGIN) + MARGIN
    picture = Image.new("RGB", (width, len(rows) * (FRAME_SIZE + LABEL_HEIGHT + MARGIN) + MARGIN), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=18)
    for row, (title, video) in enumerate(rows):
        top = MARGIN + row * (FRAME_SIZE + LABEL_HEIGHT + MARGIN)
        draw.text((MARGIN, top + 4), title, "black", font)
        for column, image in enumerate(frames(video)):
            left = MARGIN + column * (FRAME_SIZE + MARGIN)
            picture.paste(image.resize((FRAME_SIZE, FRAME_SIZE)), (left, top + LABEL_HEIGHT))
    output.parent.mkdir(parents=True, exist_ok=True)
    picture.save(output, optimize=True)


def of_quickstart(run: Path) -> list[tuple[str, Path]]:
    """Titles and videos of one of a quickstart's episodes, before and after."""
    summary = json.loads((run / "summary.json").read_text())
    rows = []
    for title, video, group in zip(
        ("base model", "after PPO"), choose(summary["videos"]), ("base", "finetuned"), strict=True
    ):
        success = f"{summary[group]['success']:.0%} of {summary[group]['episodes']} episodes succeed"
        rows.append((f'{title}: "{video["instruction"]}"   ({success})', run / video["file"]))
    return rows


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="of a quickstart")
    parser.add_argument("output", type=Path)
    parser.add_argument("--row", nargs=2, action="append", metavar=("TITLE", "VIDEO"), help="instead of a quickstart")
    args = parser.parse_args()
    if (args.run is None) == (args.row is None):
        parser.error("give a quickstart's folder, or rows")
    rows = of_quickstart(args.run) if args.run else [(title, Path(video)) for title, video in args.row]
    strip(rows, args.output)


if __name__ == "__main__":
    main()
