"""The report in a headless Chromium: quiet, self-contained, drawn, and fitting a phone."""

from __future__ import annotations

import shutil

import pytest

from embedtune.report.build import build_report
from report_runs import write_run

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    hostile = (
        "<script>console.error('ran')</script>",
        "\"><img src='http://x.invalid/'>",
        "مرحبا",
        "w" * 5000,
    )
    runs = [
        write_run(folder / "plain"),
        write_run(folder / "hostile", task="t" * 200, texts=hostile, labels=hostile, n_test=80),
        write_run(folder / "many", labels=tuple(f"label {i}" for i in range(300)), shares={"frozen": 0.5}),
    ]
    return build_report(runs, folder / "report.html")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_report(browser, report):
    pages = []

    def open_at(width, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.seen = {"errors": [], "requests": []}
        page.on("console", lambda message: page.seen["errors"].append(message.text))
        page.on("pageerror", lambda error: page.seen["errors"].append(str(error)))
        page.on("request", lambda request: page.seen["requests"].append(request.url))
        page.goto(report.as_uri())
        return page

    yield open_at
    for page in pages:
        page.close()


def test_report_opens_without_console_message_or_further_request(open_report, report):
    page = open_report(1280)
    page.wait_for_timeout(200)
    assert page.seen["errors"] == []
    assert [url for url in page.seen["requests"] if not url.startswith("data:")] == [report.as_uri()]
    assert page.locator("script, img").count() == 0


def test_report_plots_are_drawn(open_report):
    page = open_report(1280)
    plots = page.locator("svg.plot")
    assert plots.count() >= 9
    for i in range(plots.count()):
        box = plots.nth(i).bounding_box()
        assert box["width"] > 200
        assert box["height"] > 40
    marks = page.eval_on_selector_all(
        ".plot .mark", "marks => marks.map(mark => mark.getBoundingClientRect().width)"
    )
    assert len(marks) > 30
    assert min(marks) > 3


def test_report_plot_labels_stay_inside_their_plot(open_report):
    outside = open_report(1280).eval_on_selector_all(
        ".plot text",
        """texts => texts.filter(text => {
            const box = text.getBoundingClientRect(), plot = text.closest("svg").getBoundingClientRect();
            return box.left < plot.left - 1 || box.right > plot.right + 1 || box.bottom > plot.bottom + 1;
        }).map(text => text.textContent)""",
    )
    assert outside == []


@pytest.mark.parametrize("width", [1280, 400])
def test_report_never_scrolls_sideways(open_report, width):
    page = open_report(width)
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_text_has_contrast_in_both_schemes(open_report, scheme):
    ratios = open_report(1280, scheme).evaluate(
        """() => {
            const light = color => {
                const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
                    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const page = light(getComputedStyle(document.body).backgroundColor);
            return [".answer", ".note", ".plot .tick", ".plot .grey", "td"].map(selector => {
                const style = getComputedStyle(document.querySelector(selector));
                const ink = light(selector.includes("tick") ? style.fill : style.color);
                return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
            });
        }"""
    )
    assert min(ratios) >= 4.5
