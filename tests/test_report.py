"""The report's HTML, without a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from embedtune.data.dataset import TextDataset
from embedtune.data.prepare import prepare_splits
from embedtune.errors import RunFolderError
from embedtune.report.build import build_report, cut_text
from embedtune.report.content import read_run
from embedtune.report.facts import describe_audit, format_value
from embedtune.report.plots import Curve, Whisker, choose_ticks, draw_curves, draw_whiskers
from report_runs import SHARES, edit_results, write_run

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "]]></title></svg><b>",
    "مرحبا \u202e بالعالم",
    "🚀 {{ 7 * 7 }} &amp;",
    "x" * 5000,
)


class Elements(HTMLParser):
    """Collects start tags, text and whether every tag is closed."""

    VOID = frozenset({"meta", "link", "circle", "rect", "line", "polyline", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def build(tmp_path, **settings):
    path = build_report([write_run(tmp_path / "run", **settings)], tmp_path / "report.html")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return build(tmp_path_factory.mktemp("plain"))


def test_build_report_leads_with_the_verdict(plain):
    text = Elements(plain).text
    answer = text.index("Worth it")
    assert answer < text.index("Arms and their scores")
    assert re.search(r"End-to-end scores \d+\.\d points of macro-F1 above frozen\+", text)
    assert "for 5 minutes of fine-tuning" in text


def test_build_report_has_every_chapter(plain):
    text = Elements(plain).text
    for heading in (
        "Arms and their scores",
        "Which differences are real?",
        "Label by label",
        "Confusion matrix: end-to-end",
        "Layer by layer",
        "The most confident mistakes of end-to-end",
        "The data",
        "What each arm cost",
        "Where and how it ran",
        "embedtune run demo --out run",
        "name: headlines",
    ):
        assert heading in text
    for name in SHARES:
        assert name in text


def test_build_report_asks_for_nothing_outside_and_runs_nothing(plain):
    elements = Elements(plain)
    assert {tag for tag, _ in elements.tags}.isdisjoint({"script", "img", "iframe", "object", "base", "form"})
    addresses = [a.get(k) for _, a in elements.tags for k in ("src", "href", "srcset") if k in a]
    assert set(addresses) <= {"data:,"}
    assert "@import" not in plain
    assert "url(" not in plain
    assert len(plain) < 200_000


def test_build_report_is_well_formed(plain):
    elements = Elements(plain)
    assert elements.open == []
    assert sum(tag == "svg" for tag, _ in elements.tags) == 7
    assert plain.count("<svg") == plain.count("<desc>")


def test_build_report_same_run_gives_same_bytes(tmp_path):
    run = write_run(tmp_path / "run", n_test=60)
    first = build_report([run], tmp_path / "a.html").read_bytes()
    assert build_report([run], tmp_path / "b.html").read_bytes() == first


def test_build_report_escapes_texts_labels_and_names(tmp_path):
    html = build(
        tmp_path, texts=HOSTILE, labels=HOSTILE[:5], task=HOSTILE[0], shares={"tuned": 0.4}, n_test=120
    )
    elements = Elements(html)
    assert elements.open == []
    assert {tag for tag, _ in elements.tags}.isdisjoint({"script", "img", "b"})
    for text in HOSTILE[:5]:
        assert text in elements.text
    assert "{{ 7 * 7 }}" in elements.text
    assert "x" * 390 in html
    assert "x" * 401 not in html


def test_build_report_many_labels_shows_confused_pairs_only(tmp_path):
    labels = tuple(f"label {i:03d}" for i in range(300))
    html = build(tmp_path, labels=labels, shares={"frozen+": 0.5, "tuned": 0.6}, n_test=900)
    assert 'class="confusion' not in html
    assert "Most confused labels: tuned" in html
    assert "The 20 most frequent of" in html
    assert len(html) < 5_000_000


def test_build_report_several_runs_have_a_verdict_each(tmp_path):
    runs = [write_run(tmp_path / name, task=name, n_test=60, seed=i) for i, name in enumerate("ab")]
    html = build_report(runs, tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    tags = Elements(html).tags
    assert sum(a.get("class", "").startswith("verdict ") for t, a in tags if t == "section") == 2
    identifiers = [a["id"] for _, a in tags if "id" in a]
    assert [a["href"] for t, a in tags if t == "a"] == [f"#{identifier}" for identifier in identifiers]


def test_build_report_only_results_leaves_the_rest_out(tmp_path):
    run = write_run(tmp_path / "run", n_test=60)
    for name in ("probes.json", "config.yaml", "data/audit.json", "data/splits.parquet"):
        (run / name).unlink()
    html = build_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Layer by layer" not in html
    assert "<h3>The data</h3>" not in html
    assert "its predictions are not in the run folder" in html


def test_build_report_unmeasured_figures_are_dashes(tmp_path):
    run = write_run(tmp_path / "run", n_test=60)

    def erase(results):
        results["arms"]["prompt"] = {"accuracy": None, "macro_f1": {"value": 0.5, "low": None, "high": None}}
        results["comparisons"][0].update(p=None, p_holm=None, low=None, high=None)
        for arm in results["arms"].values():
            arm["cost"] = {"seconds": None}

    edit_results(run, erase)
    html = build_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "– to –" in html
    assert "What each arm cost" not in html
    assert not re.search(r"\b(nan|None|NaN)\b", Elements(html).text)


def test_read_run_mistakes_are_wrong_rows_of_the_first_seed_most_confident_first(tmp_path):
    run = read_run(write_run(tmp_path / "run", n_test=400))
    confidences = [mistake.confidence for mistake in run.mistakes]
    assert len(confidences) == 20
    assert confidences == sorted(confidences, reverse=True)
    assert all(mistake.label != mistake.predicted for mistake in run.mistakes)
    assert all(mistake.text.endswith(f"({mistake.row_id})") for mistake in run.mistakes)
    assert len({mistake.row_id for mistake in run.mistakes}) == 20


def test_read_run_counts_classes_by_part(tmp_path):
    counts = read_run(write_run(tmp_path / "run", n_test=50)).class_counts
    assert sum(n for parts in counts.values() for n in parts.values()) == 150
    assert all(list(parts) == ["tune", "train", "test"] for parts in counts.values())


def test_build_report_unfinished_run_says_what_to_do(tmp_path):
    with pytest.raises(RunFolderError) as error:
        build_report([tmp_path], tmp_path / "report.html")
    assert str(error.value) == f"{tmp_path} has no results.json: finish the run's compare stage first."
    with pytest.raises(RunFolderError) as error:
        build_report([], tmp_path / "report.html")
    assert str(error.value) == "no run folder given: name at least one for the report."


def test_build_report_damaged_or_other_results_say_so(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"results\.json is damaged .*: run its stage again\.$"):
        build_report([tmp_path], tmp_path / "report.html")
    path.write_text(json.dumps({"schema": 2}), encoding="utf-8")
    with pytest.raises(RunFolderError) as error:
        build_report([tmp_path], tmp_path / "report.html")
    assert str(error.value) == (
        f"{path} was written by a newer release of embedtune (schema 2, and this one reads 1): upgrade embedtune."
    )


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 100.0, [0, 20, 40, 60, 80, 100]),
        (71.3, 94.9, [70, 75, 80, 85, 90, 95]),
        (-1.2, 3.9, [-2, 0, 2, 4]),
        (50.0, 50.0, [49.4, 49.6, 49.8, 50.0, 50.2, 50.4, 50.6]),
    ],
)
def test_choose_ticks_encloses_the_range_with_round_values(low, high, ticks):
    got = choose_ticks(low, high)
    assert got[0] <= low
    assert got[-1] >= high
    assert len(set(got)) >= 2
    if low != high:
        assert got == pytest.approx(ticks)


def test_draw_whiskers_marks_stay_inside_and_names_are_escaped():
    svg = draw_whiskers(
        [Whisker("<i>" * 20, "1.0", 1.0, 0.5, 2.0), Whisker("b", "0.0", 0.0, 0.0, 0.0, "orange")],
        title="a < b",
        description='"quoted"',
        reference=0.0,
    )
    assert "<i>" not in svg
    assert "a &lt; b" in svg
    assert all(0 <= float(x) <= 440 for x in re.findall(r' (?:x1|x2|x|cx)="([^"]+)"', svg))


def test_draw_curves_single_layer_is_drawn():
    svg = draw_curves([Curve("frozen", [3], [71.0])], title="t", description="d", x_label="x", y_label="y")
    assert svg.count("<circle") == 2  # legend and point
    assert "nan" not in svg


def test_describe_audit_names_known_entries_and_keeps_unknown_ones():
    described = describe_audit(
        {
            "schema": 1,
            "rows": {"read": 1234, "new_kind": 2},
            "odd_key": None,
            "conflicts": [{"text": "a", "labels": ["x", "y"]}] * 12,
            "leaks": [],
            "many": {str(i): i for i in range(11)},
        }
    )
    assert described["facts"] == [("Rows read", "1,234"), ("rows: new kind", "2"), ("odd key", "–")]
    conflicts, many = described["examples"]
    assert conflicts == ("Texts with conflicting labels", ["text: a; labels: x · y"] * 10, 12)
    assert (many[0], many[1][-1], many[2]) == ("many", "9: 9", 11)


def test_describe_audit_has_words_for_all_that_prepare_finds():
    texts = [f"{word} {n} headlines about gold" for n in range(40) for word in ("two", "three", "ten")]
    dataset = TextDataset(tuple(texts + texts[:3]), tuple("ab"[i % 2] for i in range(123)))
    _, audit = prepare_splits(dataset)
    described = describe_audit(audit)
    names = [name for name, _ in described["facts"]] + [name for name, _, _ in described["examples"]]
    assert "Rows read" in names
    assert [name for name in names if name[0].islower()] == []


def test_format_value_reads_well():
    shown = [
        format_value(value) for value in (None, True, 12345, 0.123456, 2000.0, [1, 2], {"a": 1, "b": 2}, "x")
    ]
    assert shown == ["–", "yes", "12,345", "0.123", "2,000", "1 · 2", "a: 1; b: 2", "x"]


def test_cut_text_is_never_longer_than_asked():
    assert cut_text("abc", 3) == "abc"
    assert cut_text("ab cd", 4) == "ab…"


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (None, "probabilities are as the model gives them."),
        ({"method": "none", "temperature": None}, "needed no calibration."),
        ({"method": "temperature", "temperature": 1.5}, "by temperature scaling (1.50)."),
        (
            {"method": "adaptive", "temperature": None},
            "by a temperature of each row’s own, by how far its two likeliest labels lie apart.",
        ),
        ({"method": "isotonic", "temperature": None}, "by isotonic regression."),
    ],
)
def test_calibration_is_told_in_words(tmp_path, calibration, said):
    run = write_run(tmp_path / "run")

    def calibrate(results):
        results["arms"][results["best"]] |= {
            "calibration": calibration,
            "reliability": [
                {"confidence": 0.6, "accuracy": 0.5, "n": 9},
                {"confidence": 0.9, "accuracy": 0.8, "n": 9},
            ],
            "risk_coverage": {"coverage": [0.5, 1.0], "error": [0.1, 0.2]},
            "sets": None,
            "abstention": {
                "cost": 0.25, "threshold": 0.75, "abstained": 0.1, "error": 0.1, "mean_cost": 0.1,
                "mean_cost_deciding_all": 0.2,
            },
        }  # fmt: skip

    edit_results(run, calibrate)
    text = Elements(build_report([run], tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert said in re.sub(r"\s+", " ", text)
