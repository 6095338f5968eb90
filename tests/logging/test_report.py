import base64
import io
import re
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from pydantic import TypeAdapter

from regrasp.errors import UserError
from regrasp.logging.charts import evaluations, learning_curve, series
from regrasp.logging.intervals import wilson_interval
from regrasp.logging.report import EvaluationSummary, Origin, ReportData, VideoItem, write_report
from regrasp.logging.video import write_video
from regrasp.stages.play import print_summary

HOSTILE = "</td><script>alert(1)</script> \"onload=$\\frac{ ' {{ 7*7 }} <img src=x onerror=alert(2)>"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects the elements of a page, and that they are closed in order."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self):
        return [attributes["id"] for attributes in self.all("section")]


def training(updates=6):
    rows = []
    for step in range(1, updates + 1):
        row = {"step": step, "env/total_steps": 100.0 * step, "env/success_once": step / 10}
        row |= {"train/actor/approx_kl": 0.01 * step, "train/actor/ratio": 1.0}
        row["train/critic/explained_variance"] = 0.1 * step
        if step % 3 == 0:
            row |= {"eval/success_once": 0.5, "eval/num_trajectories": 20.0}
        rows.append(row)
    return rows


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, [np.full((32, 48, 3), level, dtype=np.uint8) for level in (50, 150, 250)], fps=10)
    return path


@pytest.fixture
def render(tmp_path):
    def write(run):
        write_report(run, tmp_path / "out" / "report.html")
        return (tmp_path / "out" / "report.html").read_text()

    return write


@pytest.fixture
def full(video):
    return ReportData(
        title="pick cube & co",
        seed=7,
        base=EvaluationSummary.from_counts({"red": (3, 10), HOSTILE: (2, 10)}),
        finetuned=EvaluationSummary.from_counts({"red": (10, 10), HOSTILE: (9, 10)}),
        metrics=training(),
        stage_seconds={"collect": 8.0, "train": 312.0},
        videos=[
            VideoItem(video, HOSTILE, True, "finetuned", 3),
            VideoItem(video, HOSTILE, False, "base", 3),
            VideoItem(video, "red", True, "finetuned", 4),
        ],
        origins=[Origin("regrasp train --config_name a", f"task: {HOSTILE}", {"torch": "2.13.0"})],
    )


def test_page_loads_nothing_from_elsewhere(render, full):
    html = render(full)
    page = Page(html)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "poster", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")


def test_embedded_videos_decode(render, full):
    clips = Page(render(full)).all("video")
    assert len(clips) == 3
    for clip in clips:
        assert {"muted", "loop", "controls"} <= clip.keys()
        kind, data = clip["src"].split(",", 1)
        assert kind == "data:video/mp4;base64"
        with av.open(io.BytesIO(base64.b64decode(data, validate=True)), "r") as container:
            assert [frame.width for frame in container.decode(video=0)] == [48] * 3


def test_episodes_of_one_seed_stand_side_by_side_base_first(render, full):
    labels = [clip["aria-label"].split(":")[0] for clip in Page(render(full)).all("video")]
    assert labels == ["Base", "Fine-tuned", "Fine-tuned"]


def test_hostile_text_is_only_text(render, full):
    page = Page(render(full))
    assert page.all("script") == page.all("img") == []
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(HOSTILE) == 3  # table, video, settings


def test_headline_numbers(render, full):
    text = " ".join(Page(render(full)).text.split())
    low, high = wilson_interval(5, 20)
    assert f"Base 25.0 % 95 % interval {100 * low:.1f} % to {100 * high:.1f} %, 5 of 20 episodes" in text
    assert "+70.0 points; the 95 % intervals do not overlap." in text


def test_overlapping_intervals_are_admitted(render):
    run = ReportData(
        "t", 0, EvaluationSummary.from_counts({"a": (5, 10)}), EvaluationSummary.from_counts({"a": (6, 10)})
    )
    assert "+10.0 points; the 95 % intervals overlap." in render(run)


def test_bars_show_rate_and_interval(render, full):
    bars = [div for div in Page(render(full)).all("div") if div.get("class", "").startswith("bar ")]
    assert len(bars) == 2 + 4
    low, high = wilson_interval(3, 10)
    style = bars[2]["style"] or ""
    shown = [float(number) for number in re.findall(r"([\d.]+)%", style)]
    assert shown == pytest.approx([30, 100 * low, 100 * high])


def test_missing_parts_leave_their_sections_out(render, full):
    assert Page(render(full)).sections == ["headline", "instructions", "curves", "videos", "stages", "reproduce"]
    assert Page(render(ReportData("t", 0))).sections == ["reproduce"]
    assert Page(render(ReportData("t", 0, metrics=training()))).sections == ["curves", "reproduce"]
    assert Page(render(ReportData("t", 0, finetuned=full.finetuned))).sections == [
        "headline",
        "instructions",
        "reproduce",
    ]


def test_charts_follow_the_colour_scheme(render, full):
    html = render(full)
    assert len(Page(html).all("svg")) == 4
    drawn = html[html.index("<svg") : html.rindex("</svg>")]
    assert {"var(--ink)", "var(--muted)", "var(--grid)", "var(--base)", "var(--tuned)"} <= set(
        re.findall(r"var\(--\w+\)", drawn)
    )
    assert not re.findall(r"(?:fill|stroke): #\w+", drawn)


def test_the_base_model_is_the_first_point_of_the_curve(full):
    found = evaluations(full.metrics, (0.25, 20))
    assert (found.x, found.y, found.episodes) == ([0.0, 300.0, 600.0], [0.25, 0.5, 0.5], [20.0, 20.0, 20.0])
    own = [{"step": 0, "eval/success_once": 0.2, "eval/num_trajectories": 10.0}, *full.metrics]
    assert evaluations(own, (0.25, 20)).y == [0.2, 0.5, 0.5]


def test_curves_are_drawn_over_environment_steps():
    rows = [{"step": 0, "eval/x": 0.1}, {"step": 1, "env/total_steps": 40.0, "a": 1.0}, {"step": 1, "eval/x": 0.2}]
    assert series(rows, "eval/x").x == [0.0, 40.0]
    assert series([{"step": 3, "a": float("nan")}, {"step": 4, "a": 1.0}], "a").x == [4]


def test_missing_video_is_a_users_mistake(render, full, video):
    video.unlink()
    with pytest.raises(UserError, match=r"a\.mp4"):
        render(full)


def test_same_data_same_page(render, full):
    assert render(full) == render(full)


def test_summary_survives_json():
    summary = EvaluationSummary.from_counts({"rød": (3, 10), "blå": (0, 5)})
    assert (summary.success, summary.episodes) == (0.2, 15)
    assert summary.ci95 == wilson_interval(3, 15)
    assert TypeAdapter(EvaluationSummary).validate_json(summary.to_json()) == summary


@pytest.mark.parametrize("text", ["[]", "{}", "no", '{"success": 1, "ci95": 2, "episodes": 1, "per_instruction": {}}'])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError):
        TypeAdapter(EvaluationSummary).validate_json(text)


def test_task_measures_have_means_and_intervals(tmp_path):
    stages = {"stage": [0.0, 1.0, 1.0, 2.0], "truly_inserted": [0.0, 0.0, 0.0, 1.0]}
    base = EvaluationSummary.from_counts({"pick": (0, 4)}, stages)
    tuned = EvaluationSummary.from_counts({"pick": (4, 4)}, {"stage": [4.0] * 4})
    assert base.measures["stage"].mean == 1.0
    half = 1.96 * np.std([0, 1, 1, 2], ddof=1) / 2
    assert base.measures["stage"].high == pytest.approx(1.0 + half, abs=1e-4)
    assert (base.measures["truly_inserted"].low, base.measures["truly_inserted"].high) == wilson_interval(1, 4)
    assert TypeAdapter(EvaluationSummary).validate_json(base.to_json()) == base
    write_report(ReportData(title="t", seed=0, base=base, finetuned=tuned), tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text())
    assert "measures" in page.sections
    words = " ".join(page.text.split())
    assert "stage 1.00 0.20 to 1.80 4.00 4.00 to 4.00" in words
    assert "truly inserted 0.25" in words


def test_measures_of_one_episode_have_no_interval(tmp_path, capsys):
    one = EvaluationSummary.without_success({"return": [-3.5]}, "Zero actions")
    assert TypeAdapter(EvaluationSummary).validate_json(one.to_json()) == one
    print_summary(one)
    assert capsys.readouterr().out == "episodes: 1\nreturn: -3.500\n"
    write_report(ReportData(title="t", seed=0, finetuned=one), tmp_path / "r.html")
    assert "return -3.50" in " ".join(Page((tmp_path / "r.html").read_text()).text.split())


def test_task_measures_have_curves_of_their_own(render):
    rows = [row | {"env/stage": 0.2 * row["step"], "env/truly_inserted": 0.0} for row in training()]
    rows[2]["eval/stage"] = 1.0
    html = render(ReportData("run", 0, metrics=rows))
    assert "measure-curves" in Page(html).sections
    titles = re.findall(r"<h3>([^<]*)</h3>", html)
    assert titles[-1:] == ["stage"], "and none of the metrics that every task has, nor what never changes"
    assert "The same throughout: truly inserted 0." in " ".join(Page(html).text.split())
    assert "measure-curves" not in Page(render(ReportData("run", 0, metrics=training()))).sections


def test_summaries_written_before_there_were_measures_are_read():
    summary = EvaluationSummary.from_counts({"pick": (1, 2)})
    text = summary.to_json().replace(',\n  "measures": {}', "")
    assert "measures" not in text
    assert TypeAdapter(EvaluationSummary).validate_json(text) == summary


@pytest.mark.parametrize("success", [0.0, 1.0])
def test_the_legend_of_the_learning_curve_stands_above_it(success):
    rows = [{"step": step, "env/success_once": success, "eval/success_once": success} for step in range(1, 9)]
    chart = learning_curve(rows)
    assert chart is not None
    text = r'<text[^>]*?(?:y="|translate\(\S+ )(-?[\d.]+)[^>]*>{}</text>'
    heights = [float(re.findall(text.format(label), chart.svg)[0]) for label in ("training rollouts", "100%")]
    assert heights[0] < heights[1] - 8, "a line of text above the top of the axes"


def test_a_task_without_success_has_its_return_as_a_measure(render):
    summary = EvaluationSummary.without_success({"return": [-100.0, -200.0]}, "Policy")
    assert TypeAdapter(EvaluationSummary).validate_json(summary.to_json()) == summary
    page = render(ReportData("t", 0, summary))
    assert "-150.00" in page
    assert "Success rate" not in page
