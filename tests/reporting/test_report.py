"""The page: whole in itself, escaped, described, small, and a picture of its JSON and nothing else."""

from __future__ import annotations

import copy
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape

from anomaly_vae import Schema
from anomaly_vae.errors import ConfigError, OutputExistsError
from anomaly_vae.reporting.drawing import DRAWINGS, svg
from anomaly_vae.reporting.findings import drift_section
from anomaly_vae.reporting.parts import custom, plain, png
from anomaly_vae.reporting.report import MOST_BYTES, number, page, percent, report_of, twin_of, write_report
from anomaly_vae.reporting.scorecards import scorecard_section
from anomaly_vae.reporting.sections import calibration_section, data_section, latent_section, thinned, training_section
from anomaly_vae.reporting.svg import PALETTE
from anomaly_vae.scorecard import Scorecard

from .reports import HOSTILE, card, frame, history, sections

VOID = {"meta", "link", "img", "path", "rect", "br"}


class Page(HTMLParser):
    """The elements of a page: tag, attributes and the text in each; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "page.html"
    return write_report(sections(), path, title=HOSTILE, subtitle=HOSTILE, tiles={HOSTILE: HOSTILE, "rows": 600})


@pytest.fixture(scope="module")
def html(written: Path) -> str:
    return written.read_text(encoding="utf-8")


def figures_of(value: Any) -> list[dict[str, Any]]:
    """All figures of a report's JSON."""
    if isinstance(value, dict):
        own = value.get("figures", [])
        return [*own, *(f for key, part in value.items() if key != "figures" for f in figures_of(part))]
    return [f for part in value for f in figures_of(part)] if isinstance(value, list) else []


def test_the_page_is_a_picture_of_its_json(written: Path, html: str) -> None:
    """From the JSON on the disk alone, the very same page; with another number in it, another page."""
    twin = json.loads(twin_of(written).read_text(encoding="utf-8"))
    assert page(twin) == html
    kinds = {figure["kind"] for figure in figures_of(twin)}
    assert kinds == {*DRAWINGS, "images"}
    changed = copy.deepcopy(twin)
    histogram = next(f for f in figures_of(changed) if f["kind"] == "histogram")
    histogram["data"]["series"][0]["heights"][3] += 0.5
    assert page(changed) != html


def test_every_bar_is_as_high_as_the_json_says() -> None:
    """Heights read off the SVG's path are those of the data."""
    heights = [4.0, 1.0, 3.0]
    drawn = svg(
        {
            "kind": "histogram",
            "title": "t",
            "text": "x",
            "data": {"edges": [0, 1, 2, 3], "series": [{"heights": heights, "colour": "blue"}]},
        }
    )
    path = re.search(r'<path d="([^"]+)" fill="var\(--blue', drawn)
    assert path
    points = np.array([[float(v) for v in pair.split()] for pair in re.findall(r"[ML]([-\d. ]+)", path[1])])
    base = points[:, 1].max()
    tops = [base - points[(points[:, 0] > x - 0.1) & (points[:, 0] < x + 0.1), 1].min() for x in
            np.linspace(points[:, 0].min(), points[:, 0].max(), 4)]  # fmt: skip
    assert tops[0] / tops[3] == pytest.approx(4 / 3, rel=0.01)


def test_parts_of_a_waterfall_end_where_the_score_does() -> None:
    parts = [{"label": "a", "nats": 5.0}, {"label": "b", "nats": -2.0}]
    data = {"parts": parts, "total": 3.0}
    drawn = svg({"kind": "waterfall", "title": "t", "text": "x", "data": data})
    bars = re.findall(r'<path d="M([-\d.]+) [-\d.]+L([-\d.]+) [^"]*" fill="var\(--(vermillion|blue|ink)', drawn)
    first, second, total = [(float(a), float(b)) for a, b, _ in bars]
    assert [colour for *_, colour in bars] == ["vermillion", "blue", "ink"]
    assert total[0] == first[0]
    assert max(second) == max(first)
    assert min(second) == max(total)


def test_markup_in_names_and_cells_is_text(html: str) -> None:
    parsed = Page(html)
    assert not parsed.all("script")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "".join(parsed.text).count("<script>alert") > 20  # shown, as text
    assert not [name for _, attributes in parsed.found for name in attributes if name.startswith("on")]


def test_the_page_loads_nothing(html: str) -> None:
    parsed = Page(html)
    policy = next(a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    sources = [a[name] or "" for _, a in parsed.found for name in ("src", "href", "xlink:href") if name in a]
    assert [s for s in sources if not s.startswith(("#", "data:"))] == []
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", html)


def test_every_figure_has_words_for_those_who_do_not_see_it(written: Path, html: str) -> None:
    parsed = Page(html)
    images = parsed.all("img")
    assert len(images) == 3
    assert all(image["alt"] for image in images)
    drawings = parsed.all("svg")
    assert all(a.get("role") == "img" and a.get("aria-label") for a in drawings)
    twin = json.loads(twin_of(written).read_text(encoding="utf-8"))
    drawn = [f for f in figures_of(twin) if f["kind"] != "images"]
    assert len([a for a in drawings if "spark" not in (a.get("class") or "")]) == len(drawn)
    assert all(len(f["text"]) > 10 and f["title"] for f in drawn)
    assert all(
        a.get("tabindex") == "0" and a.get("aria-label") for a in parsed.all("div") if a.get("class") == "scroll"
    )


def test_headings_are_in_order_and_landmarks_are_there(html: str) -> None:
    parsed = Page(html)
    levels = [int(tag[1]) for tag, _ in parsed.found if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    tags = [tag for tag, _ in parsed.found]
    for landmark in ("header", "nav", "main", "footer"):
        assert tags.count(landmark) == 1
    ids = [a["id"] for _, a in parsed.found if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] or "" for a in parsed.all("a")]
    assert links[0] == "#main"  # the skip link comes first
    assert all(link[1:] in ids for link in links)
    assert parsed.all("html")[0]["lang"] == "en"


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    shares = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_meets_wcag(scheme: int) -> None:
    """4.5 for text (1.4.3), 3 for what must be told apart in figures (1.4.11), on every surface it stands on."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    shades = {name: pair[scheme] for name, pair in PALETTE.items()}
    for surface in ("page", "panel"):
        for name in ("ink", "muted", "link"):
            assert contrast(shades[name], shades[surface]) >= 4.5, (name, surface)
    for name in ("blue", "vermillion", "green", "purple", "gold", "pale"):
        assert contrast(shades[name], shades["panel"]) >= 3, name
    assert contrast(shades["blue"], shades["band"]) >= 3
    assert contrast(shades["ink"], shades["band"]) >= 4.5
    assert contrast(shades["muted"], shades["band"]) >= 3  # the line of what is promised


def test_colours_follow_the_page(html: str) -> None:
    """Figures name variables; each is defined for light, dark and paper."""
    used = set(re.findall(r"var\(--([a-z]+)", html)) - {"mark"}
    assert {"ink", "blue", "vermillion", "grid"} <= used <= set(PALETTE)
    for rule in (":root {", "(prefers-color-scheme: dark) { :root {", "print { :root {"):
        block = html.split(rule, 1)[1].split("}", 1)[0]
        assert all(f"--{name}:" in block for name in PALETTE)


def test_a_report_is_small_whatever_is_in_it(tmp_path: Path) -> None:
    """Long tables are cut, and a section that is too large is left to the JSON; the page says so both times."""
    rows = [[f"cell {i} {'x' * 9000}", i] for i in range(400)]
    one = {"caption": "c", "columns": ["a", "b"], "rows": rows}
    sections = [{"title": "One", "table": one}, {"title": "Six", "tables": [one] * 6}, {"title": "Small"}]
    path = write_report(sections, tmp_path / "r.html")
    text, twin = path.read_text(), json.loads(twin_of(path).read_text())
    assert len(text.encode()) < MOST_BYTES
    assert text.count("200 more rows are in the JSON") == 1
    assert text.count("make the page larger than 2 MB") == 1
    assert re.findall(r"<h2[^>]*>([^<]*)<", text) == ["One", "Six", "Small"]
    assert [len(t["rows"]) for one in twin["sections"] for t in one.get("tables", [])] == [400] * 7


def test_many_categories_and_columns_stay_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = frame(50)
    many = rows.assign(id=[f"{i} {'y' * 300}" for i in range(50)])
    wide = many.join(pd.DataFrame(rng.normal(size=(50, 300)), columns=[f"c{i}" for i in range(300)]))
    schema = Schema.fit(wide, kinds={"id": "categorical"})
    one = data_section(schema, rows=50, sample=wide, missing=wide.isna().sum().to_dict())
    assert "The first 60 of" in " ".join(one["sentences"])
    path = write_report([one], tmp_path / "r.html")
    assert path.stat().st_size < 200_000


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = write_report([{"title": "A"}], tmp_path / "r.html")
    with pytest.raises(OutputExistsError, match="must not exist yet"):
        write_report([{"title": "B"}], path)
    path.unlink()
    with pytest.raises(OutputExistsError, match=r"r\.json"):  # the twin alone is in the way, too
        write_report([{"title": "B"}], path)
    write_report([{"title": "B"}], path, overwrite=True)
    assert ">B</h2>" in path.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json"]


@pytest.mark.parametrize(
    ("name", "words"), [("r.txt", r"must end in \.html"), ("absent/r.html", "folder must exist"), ("d.html", "a file")]
)
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "d.html").mkdir()
    with pytest.raises(ConfigError, match=words):
        write_report([{"title": "A"}], tmp_path / name, overwrite=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sentence": "x"}, "must have a title"),
        ({"title": "x", "colour": 1}, "got 'colour'"),
        ({"title": "x", "figure": {"kind": "pie"}}, "got 'pie'"),
        ({"title": "x", "figure": {"kind": "bars", "title": "t", "data": {"a": 1}}}, "got none as text"),
    ],
)
def test_a_section_that_is_none_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        custom(given)


def test_sections_with_nothing_to_show_are_one_sentence_each() -> None:
    made = [
        training_section([]),
        calibration_section(None, calibration_rows=0, which="rows"),
        latent_section(np.zeros((2, 3)), [0.5, 0.5], [1.0, 1.0]),
        drift_section({}),
    ]
    assert all(set(one) == {"key", "title", "absent"} for one in made)
    html = page(report_of(made, title="t"))
    assert html.count("<h2") == 1
    assert all(str(escape(one["absent"])) in html for one in made)


def test_two_rows_one_dimension_and_constants_make_a_map() -> None:
    for codes in (np.zeros((5, 1)), np.ones((5, 3)), np.arange(5.0)[:, None]):
        one = latent_section(codes, np.full(5, np.nan), np.arange(5.0))
        page(report_of([one], title="t"))
        assert sum(len(g["x"]) for g in one["figures"][0]["data"]["groups"]) == 5


def test_thinning_keeps_thin_places_and_the_flagged() -> None:
    rng = np.random.default_rng(0)
    flat = np.concatenate([rng.normal(size=(20_000, 2)), rng.normal(size=(30, 2)) + 40])
    flagged = np.zeros(len(flat), dtype=bool)
    flagged[7] = True
    kept = thinned(flat, flagged, most=1000)
    assert len(kept) == len(set(kept.tolist())) == 1000
    assert (kept >= 20_000).sum() > 5
    assert 7 in kept


def test_the_best_epoch_is_marked() -> None:
    made = training_section(history())
    best = max(history(), key=lambda e: e.validation_elbo)
    mark = made["figures"][0]["data"]["marks"][0]
    assert (mark["x"], mark["y"]) == (best.step, best.validation_elbo)
    long = training_section(history(2000))
    assert len(long["figures"][0]["data"]["series"][0]["x"]) <= 302


def test_drift_of_any_shape_is_shown() -> None:
    plain_tests = {"a": {"p_value": 0.001}, "b": {"p_value": 0.5, "note": "few rows"}}
    made = drift_section(plain_tests)
    assert made["sentences"][0] == "1 of 2 columns have drifted: a."
    assert made["tables"][0]["columns"] == ["column", "p value", "note"]
    said = drift_section({"a": {"p_value": 0.001, "drifted": False, "psi": 0.3}})
    assert said["sentences"][0] == "0 of 1 columns have drifted."
    assert said["figures"][0]["data"]["rows"] == [{"label": "a", "values": [0.3]}]


def test_a_scorecard_is_shown_with_its_own_figures() -> None:
    made = plain(scorecard_section(Scorecard.from_dict(card())))
    tables = {one["caption"]: one for one in made["tables"]}
    first, data = tables["Samples, and baselines, beside held-out rows"]["rows"]
    assert first[1:] == ["1.250 ± –", "0.800 (0.750 to 0.850)", 0.9, 1.1, 0.8, "0.750 of 0.970", "1 of 2", HOSTILE,
                         "1.50 of 2"]  # fmt: skip
    assert data[0::9] == ["data", None]
    assert tables["Known factors"]["rows"][1] == ["b", 0.5, 0.95, 0, 0]
    facts = {one["name"]: one["value"] for one in made["facts"]}
    assert facts["FactorVAE score"] == "0.875 ± 0.010, by chance 0.500"
    assert facts["rows drawn a second"] == "12,346"
    bound = next(one for one in made["figures"] if one["kind"] == "lines")
    assert bound["data"]["series"][0] == {"x": [0, 4], "y": [-9.5, -8.75], "colour": "blue", "style": "solid"}


def test_a_scorecard_of_any_numbers_is_a_page() -> None:
    def spoiled(value: Any, number: float | None) -> Any:
        if isinstance(value, dict):
            return {key: spoiled(inner, number) for key, inner in value.items()}
        if isinstance(value, list):
            return [spoiled(inner, number) for inner in value]
        return number if isinstance(value, float) else value

    for odd in (None, 1e308, -1e308, float("inf"), 0.0):
        html = page(report_of([scorecard_section(Scorecard.from_dict(spoiled(card(), odd)))], title="t"))
        assert "Samples, and baselines" in html
    bare = card() | {"samples": [], "smoothness": None, "prior": None, "factors": None, "bounds": [], "notes": []}
    assert Page(page(report_of([scorecard_section(Scorecard.from_dict(bare))], title="t"))).all("table")


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0, 12_345, 0.123456, -1.5, None, 123456.7)] == [
        "0", "12,345", "0.1235", "−1.5", "–", "123,457",
    ]  # fmt: skip
    assert [percent(v) for v in (0.5, 0.0, 0.00001, None)] == ["50.0 %", "0 %", "0.001 %", "–"]
    assert plain({"a": np.array([1.0, np.inf])}) == {"a": [1.0, None]}


def test_images_are_small_pictures() -> None:
    small = png(np.zeros((8, 8, 1), dtype=np.uint8), least=96)
    large = png(np.random.default_rng(0).integers(0, 255, (600, 400, 3), dtype=np.uint8))
    assert small.startswith("data:image/png;base64,")
    assert len(large) < 80_000
