"""The page as a browser shows it: nothing asked of the network, nothing in the console, every figure to be seen.

Needs Debian's chromium and playwright from PyPI (`apt-get install chromium`, `pip install playwright`), neither of
which is installed with the package; skipped where either is absent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anomaly_vae.reporting.report import twin_of, write_report

from .reports import HOSTILE, sections

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")

SMALLEST_TEXT = 9.5
"""Pixels of the smallest text in figures, as shown on a phone."""
SEEN = """
() => [...document.querySelectorAll('figure svg, figure img, svg.spark')].map(e => {
  const box = e.getBoundingClientRect();
  const scroll = e.closest('.scroll');
  return {width: box.width, height: box.height, left: box.left + scrollX, right: box.right + scrollX,
          shown: e.checkVisibility(), inside: !!scroll, loaded: e.tagName !== 'IMG' || e.naturalWidth > 0};
})
"""
TEXTS = """
() => [...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const found = [...svg.querySelectorAll('text')].map(t => ({text: t.textContent, box: t.getBoundingClientRect(),
    size: parseFloat(t.getAttribute('font-size')) * box.width / svg.viewBox.baseVal.width}));
  const cut = found.filter(t => t.box.left < box.left - 2 || t.box.right > box.right + 2 || t.box.top < box.top - 2 ||
    t.box.bottom > box.bottom + 2).map(t => t.text);
  const over = [];
  for (let i = 0; i < found.length; i++) for (let j = i + 1; j < found.length; j++) {
    const a = found[i].box, b = found[j].box;
    const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (x > 2 && y > 4) over.push(found[i].text + ' / ' + found[j].text);
  }
  return {label: svg.getAttribute('aria-label'), cut, over, smallest: Math.min(...found.map(t => t.size))};
})
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sections(), tmp_path_factory.mktemp("page") / "page.html", title=HOSTILE, tiles={"rows": 600})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids=str)
def shown(request: pytest.FixtureRequest, browser: Any, written: Path) -> Iterator[Any]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.said, page.asked = [], []  # type: ignore[attr-defined]
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("dialog", lambda dialog: page.said.append(dialog.message))
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto(written.as_uri())
    yield page
    context.close()


def test_nothing_is_asked_for_and_nothing_goes_wrong(shown: Any, written: Path) -> None:
    assert shown.said == []
    assert [url for url in shown.asked if not url.startswith("data:")] == [written.as_uri()]


def test_every_figure_is_seen_and_the_page_does_not_scroll_sideways(shown: Any, written: Path) -> None:
    figures = shown.evaluate(SEEN)
    twin = json.loads(twin_of(written).read_text())
    assert len(figures) > len(twin["sections"])
    assert all(f["shown"] and f["loaded"] and f["width"] > 20 and f["height"] > 10 for f in figures)
    width = shown.viewport_size["width"]
    assert all(f["left"] >= 0 and f["right"] <= width for f in figures if not f["inside"])
    assert shown.evaluate("document.documentElement.scrollWidth") <= width


def test_text_in_figures_is_whole_apart_and_large_enough(shown: Any) -> None:
    for figure in shown.evaluate(TEXTS):
        assert figure["cut"] == [], figure["label"]
        assert figure["over"] == [], figure["label"]
        assert figure["smallest"] >= SMALLEST_TEXT, figure["label"]


def test_the_keyboard_reaches_the_report_first(shown: Any) -> None:
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.className") == "skip"
    assert shown.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.id") == "main"


def test_the_colours_are_those_of_the_scheme(shown: Any) -> None:
    dark = shown.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    red, green, blue = shown.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red + green + blue < 150) == dark
    text = shown.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill.match(/\\d+/g).map(Number)")
    assert (sum(text) > 380) == dark


def test_it_prints_light_and_whole(browser: Any, written: Path, tmp_path: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(written.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    context.close()
