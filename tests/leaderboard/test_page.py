"""The leaderboard page: what is in the file, and what a real browser makes of it. All numbers are made up."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adpe.errors import UserError
from adpe.leaderboard.html.figures import Chart, Picture
from adpe.leaderboard.html.page import write_page
from adpe.leaderboard.html.report import write_report
from adpe.leaderboard.html.runs import Run, facts, grouped
from adpe.leaderboard.published import read_published
from adpe.leaderboard.ranking import build_leaderboard

HOSTILE = "<script>document.documentElement.dataset.owned='yes'</script>'\"&<img src=x onerror=alert(1)>"
UPERNET = {"head": "UperNet", "crop": [112, 112]}
WIDE = {"head": "UperNet", "crop": [224, 224]}


class Page(HTMLParser):
    """Elements of a page with their attributes, and the visible cells of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.protocols: list[str] = []
        self.hidden = self.in_cell = self.in_heading = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.in_cell &= tag not in ("table", "tr")  # cells may stand without an end
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.hidden = "hidden" in dict(attrs)
            self.in_heading = dict(attrs).get("class") == "protocol" and not self.hidden
            if self.in_heading:
                self.protocols.append("")
            elif not self.hidden:
                self.tables[-1].append([])
        elif tag in ("td", "th") and not self.hidden and not self.in_heading:
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "table"):
            self.in_cell = self.in_heading = False

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.tables[-1][-1][-1] += data
        if self.in_heading:
            self.protocols[-1] += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.elements)

    def attributes(self, tag: str, name: str) -> list[str]:
        return [str(found[name]) for element, found in self.elements if element == tag and name in found]

    def rows(self, table: int = 0) -> list[list[str]]:
        return [[cell.strip() for cell in row] for row in self.tables[table][1:]]


def record(method: str, start: str, seed: int, miou: float, protocol: dict[str, Any] = UPERNET) -> dict[str, Any]:
    return {
        "run": f"{method} {start} {seed} {protocol['crop'][0]}",
        "method": method,
        "task": "segmentation",
        "dataset": "scenes",
        "start": start,
        "seed": seed,
        "metrics": {"mIoU": miou, "aAcc": 80.0},
        "fingerprint": protocol,
        "checkpoint": None,
        "wall_time_s": 61.2,
        "peak_memory_bytes": 3 * 2**29,
    }


def records() -> list[dict[str, Any]]:
    values = {"AdPE pretrained": (40.0, 42.0), "BEiT pretrained": (45.0, 46.0), "AdPE random": (36.0, 37.0)}
    ours = [record(*name.split(), seed, value) for name, pair in values.items() for seed, value in enumerate(pair)]
    return [*ours, record("AdPE", "pretrained", 0, 60.0, WIDE), record("AdPE", "random", 0, 50.0, WIDE)]


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(path)
    return Picture(path, "A grey rectangle")


def page_of(path: Path, picture: Picture, all_records: list[dict[str, Any]], title: str = "Made-up page") -> Page:
    curves = {"AdPE": [(10.0, 2.0), (20.0, math.nan), (30.0, 1.0)]}
    chart = Chart("Training loss", "iteration", "loss", curves)
    points = Chart("Speed against accuracy", "images/s", "mIoU", {"AdPE": [(9.5, 41.0, 40.0, 42.0)]}, lines=False)
    write_page(
        path,
        title,
        build_leaderboard(all_records),
        introduction=["What was run."],
        charts=[chart, points],
        pictures=[picture],
        runs=[Run(one, [chart], [picture]) for one in all_records],
    )
    return Page(path.read_text())


def test_the_file_is_self_contained(tmp_path: Path, picture: Picture) -> None:
    page = page_of(tmp_path / "index.html", picture, records())
    links = page.attributes("a", "href")
    assert links and all(link.startswith("#") for link in links)
    images = [source for source in page.attributes("img", "src") if source]
    # One picture stands in nine places, and is embedded once.
    assert len(images) == 1 and images[0].startswith("data:image/png;base64,")
    assert page.count("figure", id="picture-1") == 1 and links.count("#picture-1") == 8
    assert page.attributes("link", "href") == ["data:,"] and page.attributes("script", "src") == []
    text = (tmp_path / "index.html").read_text()
    assert "@import" not in text and "url(" not in text


def test_the_same_input_gives_the_same_file(tmp_path: Path, picture: Picture) -> None:
    page_of(tmp_path / "a.html", picture, records())
    page_of(tmp_path / "b.html", picture, records())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_tables_keep_protocols_apart(tmp_path: Path, picture: Picture) -> None:
    page = page_of(tmp_path / "index.html", picture, records())
    assert page.count("tbody") == 2
    assert [row[:3] for row in page.rows()] == [
        ["A", "BEiT", "pretrained"],
        ["A", "AdPE", "pretrained"],
        ["A", "AdPE", "random"],
        ["B", "AdPE", "pretrained"],
        ["B", "AdPE", "random"],
    ]
    assert [text.strip() for text in page.protocols] == [
        "Protocol A head UperNet, crop 112x112, recorded protocol before version 2",
        "Protocol B head UperNet, crop 224x224, recorded protocol before version 2",
    ]
    # Two seeds, the differences 4 and 5: t(0.975, 1) = 12.706 times 0.5 on either side of 4.5.
    assert page.rows()[1][4:] == ["41.00 ± 1.41", "+4.50 (-1.85 to +10.85)"]


def test_the_count_of_seeds_leads_to_the_sections_of_their_runs(tmp_path: Path, picture: Picture) -> None:
    page = page_of(tmp_path / "index.html", picture, records())
    assert [row[3] for row in page.rows()] == ["2seed 0, 1"] * 3 + ["1seed 0"] * 2
    targets = [found["id"] for tag, found in page.elements if tag == "details" and "id" in found]
    assert targets == [f"run-{number}" for number in range(1, 9)]
    text = (tmp_path / "index.html").read_text().partition('<section id="runs">')[0]
    links = [link for link in Page(text).attributes("a", "href") if link.startswith("#run-")]
    # BEiT, the best of protocol A, stands first; its runs are the third and fourth records.
    assert links == ["#run-3", "#run-4", "#run-1", "#run-2", "#run-5", "#run-6", "#run-7", "#run-8"]


def test_a_further_seed_tells_what_differs_from_the_first(tmp_path: Path, picture: Picture) -> None:
    found = records()
    page_of(tmp_path / "index.html", picture, found)
    sections = (tmp_path / "index.html").read_text().split('<details id="run-')[1:]
    assert "<dt>task<dd>" in sections[0] and 'as <a href="#run-1">' not in sections[0]
    own = sections[1].partition("</dl>")[0]
    assert "<dt>task<dd>" not in own and 'as <a href="#run-1">' in own
    # Seed and metrics stand in its line.
    assert "seed 1 · mIoU 42.00, pixel accuracy 80.00</small>" in own
    assert "<dt>seed<dd>" not in own and "<dt>mIoU<dd>" not in own
    # A record with other fields than the first is told in full.
    page_of(tmp_path / "index.html", picture, [found[0], found[1] | {"precision": "bfloat16"}])
    sections = (tmp_path / "index.html").read_text().split('<details id="run-')[1:]
    assert "<dt>task<dd>" in sections[1] and "<dt>precision<dd>" in sections[1]


def test_runs_that_differ_in_their_seed_share_a_section(tmp_path: Path, picture: Picture) -> None:
    found = [one | {"run": f"{one['method']}/{one['start']}/seed{one['seed']}"} for one in records()]
    found[1]["precision"] = "bfloat16"
    board = build_leaderboard(found)
    write_page(tmp_path / "index.html", "x", board, runs=[Run(one) for one in found])
    page = Page((tmp_path / "index.html").read_text())
    rows = list(dict.fromkeys((one["run"].rpartition("/")[0], str(one["fingerprint"])) for one in found))
    targets = [element["id"] for tag, element in page.elements if tag == "details" and "id" in element]
    assert targets == [f"run-{number}" for number in range(1, len(rows) + 1)] and len(rows) == 5
    sections = (tmp_path / "index.html").read_text().split('<details id="run-')[1:]
    assert f"<span>{rows[0][0]}</span> <small>seed 0 · seed 1</small>" in sections[0]
    assert "<dt>task<dd>" in sections[0] and "<dt>seed<dd>" not in sections[0] and "<dt>mIoU<dd>" not in sections[0]
    assert page.tables[1][0][:2] == ["seed", "mIoU"]
    columns = dict(zip(map(str.strip, page.tables[1][0]), zip(*page.rows(1), strict=True), strict=True))
    assert columns["seed"] == ("0", "1") and columns["mIoU"] == ("40.00", "42.00")
    assert columns["precision"] == ("", "bfloat16") and "pixel accuracy" not in columns
    # Both seeds of the row lead there.
    links = Page((tmp_path / "index.html").read_text().partition('<section id="runs">')[0]).attributes("a", "href")
    assert [link for link in links if link.startswith("#run-")].count("#run-1") == 2
    # A run with a picture keeps a section of its own, the first of all, too.
    runs = [Run(one, pictures=[picture] * (number == 0)) for number, one in enumerate(found)]
    assert [len(members) for members in grouped(runs)] == [1, 1, 2, 2, 1, 1]


def test_runs_of_another_method_are_no_seeds() -> None:
    """A run by itself is named by its folder and its seed, which others may be, too."""
    one = {"run": "finetune-0", "method": "A", "seed": 0}
    others = [one | {"method": "B"}, one | {"start": "random"}, one | {"run": "finetune-1", "seed": 1}]
    assert [len(members) for members in grouped([Run(one), *map(Run, others)])] == [2, 1, 1]


def test_metrics_of_one_label_are_all_told() -> None:
    assert facts({"metrics": {"val/mIoU": 40.0, "test/mIoU": 0.5}}) == [("val/mIoU", "40.00"), ("test/mIoU", "0.50")]


@pytest.mark.parametrize(("text", "shown"), [
    ("2026-11-21T17:10:02+02:00", "2026-11-21 15:10 UTC"), ("yesterday", "yesterday"),
    ("2026-11-21T17:10:02", "2026-11-21T17:10:02"),
])  # fmt: skip
def test_times_are_of_one_zone(text: str, shown: str) -> None:
    assert facts({"time": text}) == [("time", shown)]


def test_curves_are_valid_json_with_gaps_for_nan(tmp_path: Path, picture: Picture) -> None:
    page = page_of(tmp_path / "index.html", picture, records()[:1])
    charts = [json.loads(text) for text in page.attributes("figure", "data-chart")]
    assert [chart["title"] for chart in charts] == [
        "mIoU by method",
        "Training loss",
        "Speed against accuracy",
        "Training loss",
    ]
    assert charts[1]["series"] == [{"name": "AdPE", "points": [[10.0, 2.0], [20.0, None], [30.0, 1.0]]}]
    assert charts[2]["series"][0]["points"] == [[9.5, 41.0, 40.0, 42.0]] and charts[2]["lines"] is False


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    curve = [(float(step), 1.0 / (step + 1)) for step in range(5000)]
    write_page(
        tmp_path / "index.html", "x", build_leaderboard([]), charts=[Chart("Loss", "step", "loss", {"a": curve})]
    )
    (text,) = Page((tmp_path / "index.html").read_text()).attributes("figure", "data-chart")
    points = json.loads(text)["series"][0]["points"]
    assert len(points) == 1000 and points[0] == [0.0, 1.0] and points[-1][0] == 4999.0


def test_everything_from_files_is_escaped(tmp_path: Path, picture: Picture) -> None:
    hostile = record(HOSTILE, HOSTILE, 0, 40.0, {HOSTILE: HOSTILE, "crop": [1]}) | {"run": HOSTILE, "commit": HOSTILE}
    path = tmp_path / "index.html"
    chart = Chart(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [(0.0, 1.0)]})
    write_page(
        path,
        HOSTILE,
        build_leaderboard([hostile, hostile, record("AdPE", "random", 1, 30.0)], faults=[HOSTILE]),
        introduction=[HOSTILE],
        charts=[chart],
        pictures=[Picture(picture.path, HOSTILE)],
        runs=[Run(hostile, [chart], [picture])],
    )
    page = Page(path.read_text())
    assert page.count("script") == 1
    assert not any("onerror" in found for _, found in page.elements)
    assert page.rows()[0][1:3] == [HOSTILE, HOSTILE]
    assert json.loads(page.attributes("figure", "data-chart")[-1])["title"] == HOSTILE


def test_facts_have_units() -> None:
    assert facts(record("AdPE", "random", 0, 36.0)) == [
        ("method", "AdPE"),
        ("task", "segmentation"),
        ("dataset", "scenes"),
        ("start", "random"),
        ("seed", "0"),
        ("mIoU", "36.00"),
        ("pixel accuracy", "80.00"),
        ("fingerprint", "head UperNet, crop 112x112"),
        ("wall time", "1 min 1 s"),
        ("peak memory", "1.50 GiB"),
    ]
    # The seed of a pretraining is told where it is not the run's own.
    for seed, text in ((3, "epochs 4"), (0, "epochs 4, seed 0")):
        start = {"epochs": 4, "seed": seed, "config_sha256": "0a"}
        assert facts({"seed": 3, "pretrained_from": start})[1] == ("pretrained from", text)
    lines = facts({"commit": "0123456789abcdef01234567-dirty", "time": "2026-11-21T17:10:02+00:00"})
    assert lines == [("commit", "0123456789ab-dirty"), ("time", "2026-11-21 17:10 UTC")]


def test_missing_and_broken_pictures_are_named(tmp_path: Path) -> None:
    target = tmp_path / "index.html"
    with pytest.raises(UserError, match=r"gone\.png: there is no such picture"):
        write_page(target, "x", build_leaderboard([]), pictures=[Picture(tmp_path / "gone.png", "")])
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UserError, match=r"text\.png: not an image"):
        write_page(target, "x", build_leaderboard([]), pictures=[Picture(tmp_path / "text.png", "")])
    assert not target.exists()


# What a browser makes of it ------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("profile")


def browse(address: str, profile: Path) -> tuple[str, list[str]]:
    """The page after its scripts ran, and what they wrote to the console."""
    offline = "--no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", *offline.split()]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom", address]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_the_browser_reports_faults(tmp_path: Path, profile: Path) -> None:
    (tmp_path / "broken.html").write_text("<!DOCTYPE html><title>x</title><script>nothing.here()</script>")
    _, messages = browse((tmp_path / "broken.html").as_uri(), profile)
    assert len(messages) == 1 and "nothing is not defined" in messages[0]


@needs_browser
def test_the_page_draws_sorts_and_filters_in_a_browser(tmp_path: Path, picture: Picture, profile: Path) -> None:
    path = tmp_path / "index.html"
    page_of(path, picture, records())
    html, messages = browse(path.as_uri(), profile)
    page = Page(html)
    assert messages == []
    assert page.count("html", **{"data-ready": "true"}) == 1
    # One bar chart and two charts of curves; some browsers draw those of the runs only when their section opens.
    assert page.count("svg", role="img") in (3, 3 + 8)
    assert page.count("circle", **{"class": "mean"}) == 5 and page.count("text", **{"class": "group"}) == 2
    assert page.count("circle", **{"class": "seed"}) == 6 and page.count("path", **{"class": "whisker"}) == 3
    assert not any("NaN" in path for path in page.attributes("path", "d"))

    assert [row[1] for row in page.rows()] == ["BEiT", "AdPE", "AdPE", "AdPE", "AdPE"]
    page = Page(browse(f"{path.as_uri()}#sort=5", profile)[0])
    assert [row[0] + row[4][:2] for row in page.rows()] == ["A36", "A41", "A45", "B50", "B60"]
    assert page.attributes("th", "aria-sort")[4] == "ascending"
    page = Page(browse(f"{path.as_uri()}#sort=-2", profile)[0])
    assert [row[0] + row[1] for row in page.rows()] == ["ABEiT", "AAdPE", "AAdPE", "BAdPE", "BAdPE"]

    html, messages = browse(f"{path.as_uri()}#filter=random%20a", profile)
    assert [row[:3] for row in Page(html).rows()] == [["A", "AdPE", "random"], ["B", "AdPE", "random"]]
    assert messages == [] and "2 of 5 rows" in html

    # Across protocols only when asked, under a caption that says so; every row once.
    html, messages = browse(f"{path.as_uri()}#mixed=1&sort=-5", profile)
    page = Page(html)
    assert [row[0] + row[4][:2] for row in page.rows()] == ["B60", "B50", "A45", "A41", "A36"] and messages == []
    assert [found for _, found in page.elements if found.get("id") == "mixing"] == [
        {"id": "mixing", "class": "caption"}
    ]
    page = Page(browse(f"{path.as_uri()}#mixed=0&sort=-5", profile)[0])
    assert [row[0] for row in page.rows()] == ["A", "A", "A", "B", "B"]
    assert any(found.get("id") == "mixing" and "hidden" in found for _, found in page.elements)

    page = Page(browse(f"{path.as_uri()}#run-2", profile)[0])
    assert [found["id"] for tag, found in page.elements if tag == "details" and "open" in found] == ["run-2"]
    page = Page(browse(f"{path.as_uri()}#filter=BEiT", profile)[0])
    assert [text[:10] for text in page.protocols] == ["Protocol A"]
    assert Page(browse(f"{path.as_uri()}#mixed=1", profile)[0]).protocols == []


@needs_browser
def test_nothing_from_files_runs_in_a_browser(tmp_path: Path, picture: Picture, profile: Path) -> None:
    path = tmp_path / "index.html"
    page_of(path, picture, [record(HOSTILE, "pretrained", 0, 40.0), record("AdPE", "random", 0, 36.0)], HOSTILE)
    html, messages = browse(path.as_uri(), profile)
    page = Page(html)
    assert page.count("html", **{"data-ready": "true"}) == 1 and messages == []
    assert page.attributes("html", "data-owned") == [] and page.count("script") == 1


def full_record(method: str, seed: int, miou: float, epochs: int) -> dict[str, Any]:
    return {
        **record(method, "pretrained", seed, miou),
        "dataset": "ADE20K",
        "pretraining_epochs": epochs,
        "effective_batch": 16,
        "wall_time_s": 100.0,
        "fingerprint": {"backbone": "adpe_vit_base_patch16", "head": "UPerHead", "iterations": 50},
        "hardware": {"device": "A100", "processes": 8},
    }


@needs_browser
def test_published_rows_stand_against_ours_in_a_browser(tmp_path: Path, profile: Path) -> None:
    ours = [full_record("AdPE", seed, value, 1600) for seed, value in enumerate((50.0, 51.0))]
    published = read_published()
    board = build_leaderboard(ours, published=published)
    path = write_report(tmp_path / "index.html", board, [(one, tmp_path / "gone") for one in ours], published)
    html, messages = browse(f"{path.as_uri()}#filter=AdPE%20UPerHead%20ours", profile)
    page = Page(html)
    assert messages == [] and page.count("html", **{"data-ready": "true"}) == 1
    assert page.count("table") == len(board.tables) >= 14 and "undefined" not in html
    total = len(published) + 1
    assert f" of {total} rows" in html
    page = Page(browse(f"{path.as_uri()}#filter=implied:%20AdPE", profile)[0])
    assert [row[1] for number in range(len(page.tables)) for row in page.rows(number)] == ["AdPE", "AdPE"]
    charts = {spec["title"]: spec for spec in map(json.loads, page.attributes("figure", "data-chart"))}
    series = {
        one["name"]: one["points"] for one in charts["Segmentation on ADE20K: mIoU by length of pretraining"]["series"]
    }
    (name,) = [name for name in series if name.endswith("ours")]
    (point,) = series[name]
    assert point == [1600.0, 50.5, pytest.approx(50.5 - 0.5**0.5), pytest.approx(50.5 + 0.5**0.5)]
    assert series["CAE, ViT-B/16, UperNet, published"] == [[300.0, 48.1], [800.0, 49.7], [1600.0, 50.3]]
    (speed,) = charts["Segmentation on ADE20K: mIoU by speed"]["series"]
    assert speed["points"][0][:2] == [8.0, 50.5] and speed["name"] == "AdPE (pretrained), A100"
