"""Looks at a page in Chromium, before and after a line of input; run by an environment that has Playwright."""

from __future__ import annotations

import json
import os
import sys

from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

MEASURE = """() => {
  const shown = (one) => one.getClientRects().length > 0;
  const charts = [...document.querySelectorAll('.chart:has(.wide)')];
  const texts = [...document.querySelectorAll('.chart svg text')].filter(shown);
  return {
    scroll_width: document.documentElement.scrollWidth,
    state: document.querySelector('#state').innerText,
    charts: charts.map((one) => Object.fromEntries(
      ['wide', 'narrow'].map((name) => [name, shown(one.querySelector('.' + name))]))),
    chart_right: Math.max(...[...document.querySelectorAll('.chart svg')].filter(shown)
      .map((one) => one.getBoundingClientRect().right)),
    letters: texts.map((one) => one.getBoundingClientRect().height),
    video_ready: [...document.querySelectorAll('video')].every((one) => one.readyState >= 2),
    same_video: document.querySelector('video').seen === true,
  };
}"""


def main(url: str, width: int) -> None:
    with sync_playwright() as playwright:
        chromium = os.environ.get("REGRASP_TEST_CHROMIUM")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 850})
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.wait_for_function("document.querySelector('video').readyState >= 2")
        print(json.dumps({**page.evaluate(MEASURE), "errors": errors}), flush=True)
        page.evaluate("document.querySelector('video').seen = true")
        before = page.inner_text("#state b + span")
        sys.stdin.readline()
        page.wait_for_function("(old) => document.querySelector('#state b + span').innerText !== old", arg=before)
        print(json.dumps({**page.evaluate(MEASURE), "errors": errors}), flush=True)
        browser.close()


main(sys.argv[1], int(sys.argv[2]))
