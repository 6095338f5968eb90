import av
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from regrasp.logging import overlay
from regrasp.logging.overlay import annotate
from regrasp.logging.video import write_episode, write_video

GREY = 128


def grey(height=128, width=128, value=GREY):
    return np.full((height, width, 3), value, dtype=np.uint8)


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        about = stream.codec_context
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, about.name, about.pix_fmt, stream.average_rate


def test_video_has_the_frames_it_was_given(tmp_path):
    path = tmp_path / "new" / "a.mp4"
    levels = [40, 90, 140, 190, 240]

    def record():
        for level in levels:
            assert not path.exists()
            yield grey(value=level)

    write_video(path, record(), fps=10)
    frames, codec, pixels, rate = decode(path)
    assert (codec, pixels, rate) == ("h264", "yuv420p", 10.0)
    assert [round(float(frame.mean())) for frame in frames] == pytest.approx(levels, abs=2)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.mp4"]
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")


def test_odd_sizes_are_padded_at_the_far_edges(tmp_path):
    frame = grey(33, 51)
    frame[:, -1] = 250
    write_video(tmp_path / "a.mp4", [frame], fps=12.5)
    frames, _, _, rate = decode(tmp_path / "a.mp4")
    assert frames[0].shape == (34, 52, 3)
    assert rate == 12.5
    assert frames[0][:, -1].mean() > 230
    assert frames[0][:, :48].mean() == pytest.approx(GREY, abs=3)


def test_an_exception_leaves_no_file(tmp_path):
    def record():
        for _ in range(80):
            yield grey()
        raise OSError

    with pytest.raises(OSError):
        write_video(tmp_path / "a.mp4", record(), fps=10)
    assert list(tmp_path.iterdir()) == []


def test_no_frame_no_file(tmp_path):
    write_video(tmp_path / "a.mp4", [], fps=10)
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_kind_are_refused(tmp_path):
    for other, named in ((grey(64, 64), "expected a frame"), (grey().astype(np.float32), "float32")):
        with pytest.raises(ValueError, match=named):
            write_video(tmp_path / "a.mp4", [grey(), other], fps=10)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(84, 84), (256, 256), (480, 640)])
def test_overlay_draws_above_and_below_only(size):
    frame = grey(*size)
    drawn = annotate(frame, instruction="pick up the red cube", step=3, reward=0.5)
    changed = np.any(drawn != frame, axis=(1, 2))
    height = size[0]
    assert (frame == GREY).all()
    assert drawn.shape == frame.shape
    assert changed[: height // 12].all()
    assert changed[-height // 12 :].all()
    assert not changed[height * 2 // 5 : height * 3 // 5].any()
    assert drawn.max() > 240


def corner(outcome, extra=None):
    """Mean colour of the bottom right corner, where the outcome stands."""
    drawn = annotate(grey(256, 256), instruction="x", step=3, reward=0.5, outcome=outcome, extra=extra)
    return drawn[-6:, -6:].reshape(-1, 3).mean(0)


def test_outcome_is_green_or_red():
    red, green, blue = corner("success")
    assert green > red + 60
    assert green > blue + 60
    red, green, blue = corner("failure")
    assert red > green + 60
    assert red > blue + 60
    assert np.ptp(corner(None)) < 5


def test_extra_text_takes_one_more_line():
    plain, more = (annotate(grey(), instruction="x", step=1, reward=0.0, extra=extra) for extra in (None, "stage 2"))
    strips = [int(np.any(frame[64:] != GREY, axis=(1, 2)).sum()) for frame in (plain, more)]
    assert strips[1] > strips[0] + 8


def test_long_extra_text_is_wrapped_between_its_parts():
    parts = "stage 2  lifted 1  tips met 1  inserted 0  placed 0  truly inserted 0"
    one, more = (annotate(grey(256, 256), instruction="x", step=1, reward=0.0, extra=e) for e in ("stage 2", parts))
    heights = [int((image[128:, 4] != 128).any(-1).sum()) for image in (one, more)]
    line = heights[0] // 2
    assert heights[1] - heights[0] in range(line, 2 * line + 2), "one or two lines more"


def test_long_instructions_are_wrapped_then_cut():
    def strip(instruction):
        drawn = annotate(grey(256, 256), instruction=instruction, step=1, reward=0.0)
        return int(np.any(drawn[:128] != GREY, axis=(1, 2)).sum())

    assert strip("cube") < strip("put the red cube onto the green cube") < strip("cube " * 20)
    assert strip("cube " * 20) == strip("cube " * 200) == strip("cube" * 20 + " cube" * 60)


def test_episode_holds_its_outcome(tmp_path):
    frames = np.stack([grey(84, 84)] * 6)
    write_episode(tmp_path / "a.mp4", frames, "pick", np.zeros(6), success=True, fps=10, hold_last_s=0.5)
    decoded, *_ = decode(tmp_path / "a.mp4")
    assert len(decoded) == 11
    assert decoded[0].shape == (336, 336, 3)
    greenness = [float(frame[-8:, -8:, 1].mean() - frame[-8:, -8:, 0].mean()) for frame in decoded]
    assert max(greenness[:5]) < 30
    assert min(greenness[5:]) > 60


def test_episode_needs_one_reward_per_frame(tmp_path):
    with pytest.raises(ValueError):
        write_episode(tmp_path / "a.mp4", np.stack([grey()] * 3), "pick", np.zeros(2), success=False, fps=10)


def test_the_last_frame_shows_the_tasks_measures(tmp_path):
    frames = np.stack([grey(256, 256)] * 3)
    for name, measures in (("plain", None), ("measured", {"stage": 3.0, "truly_inserted": 1.0})):
        path = tmp_path / f"{name}.mp4"
        write_episode(path, frames, "pick", np.zeros(3), False, fps=10, hold_last_s=0.0, measures=measures)
    plain, measured = (decode(tmp_path / f"{name}.mp4")[0] for name in ("plain", "measured"))
    changes = [np.abs(a.astype(int) - b.astype(int)).mean() for a, b in zip(plain, measured, strict=True)]
    assert max(changes[:-1]) < 0.5
    assert changes[-1] > 2


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine whose fonts are those that come with Regrasp."""
    caches = (overlay._readable, overlay._warn_of_lacking_font)
    for cached in caches:
        cached.cache_clear()
    monkeypatch.setattr(overlay, "findSystemFonts", list)
    yield
    for cached in caches:
        cached.cache_clear()


def test_characters_without_a_font_are_marked_and_told_once(no_fonts, caplog):
    marked = annotate(grey(), instruction="[?] cube", step=1, reward=0.0)
    assert np.array_equal(annotate(grey(), instruction="红色 cube", step=1, reward=0.0), marked)
    assert np.array_equal(annotate(grey(), instruction="红 cube", step=1, reward=0.0), marked)
    alone = annotate(grey(), instruction="拿起红色方块", step=1, reward=0.0)
    assert np.array_equal(alone, annotate(grey(), instruction="[text without a font]", step=1, reward=0.0))
    assert caplog.text.count("fonts-noto-cjk") == 1


def test_an_installed_font_draws_what_the_shipped_one_lacks(no_fonts, monkeypatch, tmp_path, caplog):
    font = FontBuilder(1000, isTTF=True)
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    font.setupGlyphOrder([".notdef", "full"])
    font.setupCharacterMap({ord("拿"): "full"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "full": pen.glyph()})
    font.setupHorizontalMetrics(dict.fromkeys((".notdef", "full"), (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Toy", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "toy.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fonts = [str(tmp_path / "broken.ttf"), str(tmp_path / "toy.ttf")]
    monkeypatch.setattr(overlay, "findSystemFonts", lambda: fonts)
    drawn = annotate(grey(), instruction="拿" * 25, step=1, reward=0.0)
    white = (drawn[:64] == 255).all(axis=2).mean(axis=1)
    assert (white > 0.5).sum() > 12, "two lines of full squares"
    assert not caplog.text
