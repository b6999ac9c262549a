"""The server's pages in a headless Chromium: typed, clicked, words coloured, nothing hostile run, nobody else asked."""

from __future__ import annotations

import shutil

import pytest

from serve_cases import fit_bert, run_server
from test_report_browser import FLAGS

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def classifier(tiny_bert):
    return fit_bert(tiny_bert)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    pages = []

    def open_at(url, width=900, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        pages.append(page)
        page.seen = {"messages": [], "requests": []}
        page.on("console", lambda message: page.seen["messages"].append(message.text))
        page.on("pageerror", lambda error: page.seen["messages"].append(str(error)))
        page.on("request", lambda request: page.seen["requests"].append(request.url))
        page.goto(url)
        return page

    yield open_at
    for page in pages:
        page.close()


def test_page_shows_probabilities_and_colours_words(open_page, classifier):
    text = "sales 𝛑 rose in the north, costs fell"
    with run_server({"moves": classifier}) as running:
        page = open_page(running.url)
        page.fill("#text", text)
        page.click("#ask")
        page.wait_for_selector("#answer:not([hidden])")
        expected = running.post("/v1/explain", {"input": text}).json()
        assert page.inner_text("#label") == expected["label"]
        shown = page.eval_on_selector_all(
            "#probabilities tr", "rows => rows.map(row => row.innerText.split('\\t'))"
        )
        for (label, _, percent), entry in zip(shown, expected["probabilities"], strict=True):
            assert (label, percent) == (entry["label"], f"{100 * entry['probability']:.1f} %")
        words = page.eval_on_selector_all(
            ".word",
            "words => words.map(w => [w.textContent, w.className, getComputedStyle(w).backgroundColor])",
        )
        assert [word for word, _, _ in words] == text.split()
        strongest = max(range(len(words)), key=lambda n: abs(expected["words"][n]["change"]))
        change = expected["words"][strongest]["change"]
        assert words[strongest][1] == ("word for" if change >= 0 else "word against")
        assert words[strongest][2].endswith("0.55)")
        assert page.eval_on_selector("#words", "words => words.textContent") == text
        bars = page.eval_on_selector_all(".bar", "bars => bars.map(bar => bar.getBoundingClientRect().width)")
        assert bars[0] > bars[1] > 0
        assert page.seen["messages"] == []
        assert all(url.startswith(running.url) for url in page.seen["requests"])


def test_page_runs_nothing_that_a_text_or_a_name_brings(open_page, classifier):
    text = "<img src=x onerror=console.log('ran')> <script>console.log('ran')</script> sales rose"
    with run_server({"moves": classifier}) as running:
        page = open_page(running.url)
        page.fill("#text", text)
        page.click("#ask")
        page.wait_for_selector("#answer:not([hidden])")
        assert page.eval_on_selector("#words", "words => words.textContent") == text
        assert page.locator("#words img, #words script").count() == 0
        page.evaluate(
            "document.body.appendChild(document.createElement('script')).textContent = 'window.ran = 1'"
        )
        assert page.evaluate("window.ran") is None
        assert all("Content Security Policy" in message for message in page.seen["messages"])
        assert all(url.startswith(running.url) for url in page.seen["requests"])


def test_page_asks_for_the_key_and_for_the_model(open_page, classifier):
    with run_server({"moves": classifier, "other": classifier}, key="sesame") as running:
        page = open_page(running.url)
        page.wait_for_selector("#key")
        assert "API key is missing" in page.inner_text("#problem")
        page.fill("#key", "sesame")
        page.fill("#text", "sales rose")
        page.click("#ask")
        page.wait_for_selector("#answer:not([hidden])")
        assert page.is_hidden("#problem")
        assert page.eval_on_selector_all("#model option", "all => all.map(one => one.value)") == [
            "moves",
            "other",
        ]


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_quiet_and_fit_a_phone(open_page, classifier, path, scheme):
    with run_server({"moves": classifier}) as running:
        page = open_page(running.url + path, 360, scheme)
        page.wait_for_load_state("networkidle")
        assert page.seen["messages"] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert all(url.startswith(running.url) for url in page.seen["requests"])
        if path == "/docs":
            assert page.locator("h2").all_inner_texts()[0] == "POST /v1/predict"
