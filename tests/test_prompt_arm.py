"""The arm that asks a decoder: which examples it shows, what it says, and its place in a run."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.base import clone
from typer.testing import CliRunner

from embedtune import PromptClassifier
from embedtune.assemble import build_prompt_classifier
from embedtune.cli import app
from embedtune.config import build_experiment
from embedtune.data.splits import read_splits
from embedtune.errors import BackboneError, ConfigError, DataError
from embedtune.plan import TaskRun
from embedtune.prompt.decoder import load_decoder
from embedtune.prompt.examples import choose_examples
from embedtune.prompt.likelihood import rate_answers, score_answers
from embedtune.prompt.questions import encode_questions
from embedtune.prompt.template import render_prompt, write_messages
from embedtune.runfolder import RunFolder
from prompt_server import Response, complete, serve
from run_cases import write_recipe, write_rows

TEXTS = ["gold rose", "gold fell", "oil rose", "oil fell", "sales rose", "sales fell"]
LABELS = ["up", "down", "up", "down", "up", "down"]


def make(model: Path, **options: Any) -> PromptClassifier:
    return PromptClassifier(str(model), precision="float32", device="cpu", **options)


@pytest.mark.parametrize("n", [0, 1, 5, 6, 11])
def test_choose_examples_is_as_even_as_it_can_be(n: int) -> None:
    labels = ["a"] * 20 + ["b"] * 20 + ["c"] * 2
    texts = [f"text {i}" for i in range(42)]
    rows = choose_examples(texts, labels, n, random_state=3)
    counts = Counter(labels[row] for row in rows)
    assert len(rows) == len(set(rows)) == n
    if n <= 6:
        assert all(counts[label] in (n // 3, n // 3 + (n % 3 > 0)) for label in "abc")
    else:
        assert counts["c"] == 2
        assert abs(counts["a"] - counts["b"]) <= 1
    assert rows == choose_examples(texts, labels, n, random_state=3)
    assert n < 5 or rows != choose_examples(texts, labels, n, random_state=4)


def test_choose_examples_never_shows_a_text_twice() -> None:
    rows = choose_examples(["x", "x", "y", "x"], ["a", "a", "b", "a"], 2)
    assert sorted(rows) == [0, 2]
    with pytest.raises(ConfigError) as caught:
        choose_examples(["x", "x", "y", "x"], ["a", "a", "b", "a"], 3)
    assert str(caught.value) == "n_examples 3 is more than the 2 distinct training texts: set it lower."


def test_classifier_is_a_softmax_of_likelihoods(tiny_llama: Path) -> None:
    classifier = make(tiny_llama, n_examples=2, random_state=1).fit(TEXTS, LABELS)
    found = classifier.predict_proba(["coal rose", "coal fell", "coal rose"])
    decoder = load_decoder(tiny_llama, precision="float32", device="cpu")
    prompts = [
        render_prompt(decoder.tokenizer, write_messages(text, ["down", "up"], examples=classifier.examples_))
        for text in ("coal rose", "coal fell")
    ]
    questions = encode_questions(decoder.tokenizer, prompts, [" down", " up"])
    exp = np.exp(rate_answers(score_answers(decoder, questions), questions))
    np.testing.assert_allclose(found[:2], exp / exp.sum(axis=1, keepdims=True), rtol=1e-4)
    np.testing.assert_array_equal(found[0], found[2])
    assert sorted(label for _, label in classifier.examples_) == ["down", "up"]
    assert {text for text, _ in classifier.examples_} <= set(TEXTS)
    assert list(classifier.predict(["coal rose"])) == [classifier.classes_[found[0].argmax()]]
    assert classifier.n_parameters_ == decoder.n_parameters
    assert clone(classifier).get_params() == classifier.get_params()
    assert classifier.predict_proba([]).shape == (0, 2)


def test_calibration_divides_by_what_nothing_gets(tiny_llama: Path) -> None:
    plain = make(tiny_llama).fit(TEXTS, LABELS)
    calibrated = make(tiny_llama, calibrate=True).fit(TEXTS, LABELS)
    p, nothing = plain.predict_proba(["coal rose", "coal fell"]), plain.predict_proba(["N/A"])
    np.testing.assert_allclose(
        calibrated.predict_proba(["coal rose", "coal fell"]),
        (p / nothing) / (p / nothing).sum(axis=1, keepdims=True),
        rtol=1e-4,
    )
    np.testing.assert_allclose(calibrated.predict_proba(["N/A"]), [[0.5, 0.5]], rtol=1e-5)


def test_normalisation_counts_tokens(tiny_llama: Path) -> None:
    whole, mean = (
        make(tiny_llama, normalisation=how).fit(TEXTS, LABELS).predict_proba(["coal"])
        for how in ("sum", "mean")
    )
    assert abs(whole - mean).max() > 1e-3


def test_wording_takes_the_labels_place(tiny_llama: Path) -> None:
    worded = make(tiny_llama, options={0: "down", 1: "up"}, n_examples=2).fit(TEXTS, [1, 0, 1, 0, 1, 0])
    named = make(tiny_llama, n_examples=2).fit(TEXTS, LABELS)
    assert worded.classes_.tolist() == [0, 1]
    np.testing.assert_array_equal(worded.predict_proba(TEXTS[:2]), named.predict_proba(TEXTS[:2]))


def test_long_texts_keep_the_prompts_end(tiny_llama: Path) -> None:
    texts = ["gold rose " * 99, "oil fell " * 99]
    shown = make(tiny_llama, max_length=8, n_examples=2).fit(texts, ["up", "down"])
    assert np.isfinite(shown.predict_proba(["sales rose in the north and so on " * 99])).all()
    decoder = load_decoder(tiny_llama, precision="float32", device="cpu")
    text = "sales rose in the north and so on"
    n = len(decoder.tokenizer(text, add_special_tokens=False)["input_ids"])
    long, whole = make(tiny_llama, max_length=n).fit(TEXTS, LABELS).predict_proba([f"{text} " * 99, text])
    np.testing.assert_array_equal(long, whole)


def test_prompt_beyond_the_models_positions_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        make(tiny_llama).fit(TEXTS, LABELS).predict(["gold " * 400])
    assert str(caught.value).endswith(
        f"tokens is longer than the 256 that '{tiny_llama.name}' reads: set max_length or n_examples lower."
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"options": {"upp": "rise"}},
            ConfigError,
            "options words the label 'upp', which no text has (did you mean 'up'?): the labels are down, up.",
        ),
        (
            {"options": {"up": "down"}},
            ConfigError,
            "2 labels are called 'down' in the prompt: give each a wording of its own in options.",
        ),
        (
            {"n_examples": 7},
            ConfigError,
            "n_examples 7 is more than the 6 distinct training texts: set it lower.",
        ),
    ],
)
def test_fit_refuses_what_it_cannot_do(
    tiny_llama: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        make(tiny_llama, **options).fit(TEXTS, LABELS)
    assert str(caught.value) == message


def test_check_says_what_is_missing(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        PromptClassifier().check()
    assert str(caught.value) == (
        "there is nothing to ask: set model to a decoder's folder or Hub name, or endpoint to a server."
    )
    with pytest.raises(ConfigError) as caught:
        make(tiny_llama, normalisation="max").check()
    assert str(caught.value) == "normalisation 'max' is unknown: choose sum or mean."
    with pytest.raises(DataError) as caught:
        make(tiny_llama).fit(TEXTS, ["up"] * 6)
    assert str(caught.value) == "all 6 labels are up: a classifier needs two or more."


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def refuse(*words: Any) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def recipe(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = write_rows(folder / "moves.csv")
    path = write_recipe(folder / "tiny.yaml", model=tiny_bert, data=rows, store=folder / "store")
    settings = {
        "compare": {"n_resamples": 100, "arms": ["majority", "frozen+", "prompt"], "probe_layers": False}
    }
    path.write_text(json.dumps({**yaml.safe_load(path.read_text()), **settings}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    result = call(
        "run", recipe, f"prompt.model={tiny_llama}", "prompt.n_examples=2", "seeds=[0, 1]", "--out", out
    )
    assert result.exit_code == 0, result.output
    assert "Best of the trained arms on the test rows (*): frozen+." in result.output
    return out


def list_times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / ".state").glob("*.json")}


def test_run_lists_the_prompt_beside_the_others(finished: Path, tiny_llama: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert list(results["arms"]) == ["majority", "frozen+", "prompt"]
    arm = results["arms"]["prompt"]
    decoder = load_decoder(tiny_llama)
    assert arm["cost"]["total_parameters"] == decoder.n_parameters
    assert arm["cost"]["trained_parameters"] == 0
    assert arm["cost"]["seconds"] > 0
    assert arm["cost"]["rows_per_second"] > 0
    assert (arm["asked"], arm["unmatched_answers"]) == (tiny_llama.name, 0)
    assert {(row["a"], row["b"]) for row in results["comparisons"]} == {("frozen+", "prompt")}
    assert results["best"] == "frozen+"
    assert (finished / "bundle" / "bundle.json").exists()
    report = (finished / "report.html").read_text()
    assert "A decoder asked for the label" in report
    assert "Best macro-F1 of all trained arms" in report


def test_run_sets_the_cost_of_reading_against_that_of_asking(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    frozen, asked = (results["arms"][arm]["cost"] for arm in ("frozen+", "prompt"))
    found = results["against_prompting"]
    assert list(found) == ["frozen+"]
    assert found["frozen+"]["time"] == pytest.approx(asked["rows_per_second"] / frozen["rows_per_second"])
    assert found["frozen+"]["parameters"] == pytest.approx(
        frozen["total_parameters"] / asked["total_parameters"]
    )
    assert found["frozen+"]["energy"] is None or found["frozen+"]["energy"] > 0
    assert "Against asking the decoder, frozen+ reads a text in" in (finished / "report.html").read_text()


def test_run_shows_each_seed_its_own_training_rows(finished: Path, tiny_llama: Path) -> None:
    splits = read_splits(finished / "data")
    train, test = splits.rows("tune", "train"), splits.rows("test")
    table = pq.read_table(finished / "predictions" / "prompt.parquet").to_pylist()
    for seed in (0, 1):
        classifier = PromptClassifier(str(tiny_llama), n_examples=2, random_state=seed)
        classifier.fit([splits.texts[i] for i in train], [splits.labels[i] for i in train])
        expected = classifier.predict_proba([splits.texts[i] for i in test])
        found = [[row["p:down"], row["p:up"]] for row in table if row["seed"] == seed]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert classifier.classes_.tolist() == ["down", "up"]


@pytest.mark.parametrize(
    ("setting", "redone"),
    [("prompt.calibrate=true", True), ("prompt.n_examples=0", True), ("prompt.batch_tokens=500", False)],
)
def test_changed_prompt_redoes_its_own_fit_only(
    recipe: Path, finished: Path, tiny_llama: Path, tmp_path: Path, setting: str, redone: bool
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = list_times(out)
    words = (f"prompt.model={tiny_llama}", "prompt.n_examples=2", "seeds=[0, 1]", setting)
    assert call("run", recipe, "--out", out, *words).exit_code == 0
    changed = {name for name, at in list_times(out).items() if before.get(name) != at}
    again = {"fit.prompt.json", "compare.json", "report.json", "bundle.json"}  # the bundle for its card
    assert changed == (again if redone else set())


def test_prompt_alone_leaves_no_bundle(recipe: Path, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("run", recipe, "--out", out, f"prompt.model={tiny_llama}")
    assert call(*words, "compare.arms=[frozen+]").exit_code == 0
    assert (out / "bundle").exists()
    result = call(*words, "compare.arms=[majority, prompt]")
    assert result.exit_code == 0, result.output
    assert "leaves no classifier to keep" in result.output
    assert not (out / "bundle").exists()
    assert call(*words, "compare.arms=[frozen+]").exit_code == 0
    assert (out / "bundle" / "bundle.json").exists()


def test_prompt_without_examples_is_asked_once_for_all_seeds(recipe: Path, tmp_path: Path) -> None:
    with serve(answer) as server:
        result = call(
            "run", recipe, "--out", tmp_path / "run", f"prompt.endpoint={server.url}", "seeds=[0, 1, 2]",
            "compare.arms=[majority, prompt]",
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    n = results["n"]["test"]
    assert len(server.questions) == n
    assert results["arms"]["prompt"]["seeds"] == [0, 1, 2]
    assert results["arms"]["prompt"]["asked"] == "tiny"
    assert results["arms"]["prompt"]["cost"]["total_parameters"] is None
    n_unmatched = results["arms"]["prompt"]["unmatched_answers"]
    assert 0 < n_unmatched < n
    assert (
        f"{n_unmatched} of {n} answers to the prompt named no label; their rows count as undecided"
        in result.output
    )
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"asked: tiny; {n_unmatched} of its answers named no label and count as undecided" in report
    assert results["best"] == "prompt"


def answer(content: dict[str, Any], number: int) -> Response:
    text = content["messages"][-1]["content"]
    if "jumped" in text:
        return complete("hard to say")
    return complete("up" if "rose" in text or "grew" in text else "down")


def test_wordings_go_to_the_task_whose_labels_they_are(recipe: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(recipe.read_text())
    settings["prompt"] = {"model": "tiny", "options": {"up": "rise", "yes": "agree"}}
    one = build_experiment(settings, where="it")
    settings["tasks"]["questions"] = settings["tasks"]["moves"]
    two = build_experiment(settings, where="it")
    for experiment, labels, options in (
        (two, ["down", "up"], {"up": "rise"}),
        (two, ["no", "yes"], {"yes": "agree"}),
        (one, ["down", "up"], {"up": "rise", "yes": "agree"}),
    ):
        run = TaskRun(experiment, "moves", RunFolder(tmp_path / "run", identity="x"), "")
        assert build_prompt_classifier(run, 3, labels=labels).options == options
    assert build_prompt_classifier(run, 3).random_state == 3


def test_key_is_written_nowhere_in_a_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-" + "q" * 40
    monkeypatch.setenv("OPENAI_API_KEY", key)
    out = tmp_path / "run"
    with serve(answer) as server:
        result = call(
            "run",
            recipe,
            "--out",
            out,
            "-v",
            f"prompt.endpoint={server.url}",
            "compare.arms=[majority, prompt]",
        )
    assert result.exit_code == 0, result.output
    assert server.headers[0]["Authorization"] == f"Bearer {key}"
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if key.encode() in path.read_bytes()]
    assert key not in result.output


def test_what_cannot_be_asked_is_told_before_anything_is_read(
    recipe: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with serve(answer) as server:
        url = server.url
        message = refuse("run", recipe, "--out", out, f"prompt.endpoint={url}", "prompt.model=other")
        assert message == f"{url} has no model 'other': it has tiny."
    message = refuse("run", recipe, "--out", out, f"prompt.endpoint={url}")
    assert message.startswith(f"{url} can't be reached (Connection refused)")
    assert "is no decoder" in refuse("run", recipe, "--out", out, f"prompt.model={tiny_bert}")
    assert not (out / "data").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "prompt.options={upp: rise}",
            "options words the label 'upp', which no text has (did you mean 'up'?)",
        ),
        ("prompt.n_examples=9999", "n_examples 9999 is more than the "),
    ],
)
def test_prompt_that_does_not_fit_the_rows_is_refused_before_they_are_read(
    recipe: Path, tiny_llama: Path, tmp_path: Path, setting: str, message: str
) -> None:
    out = tmp_path / "run"
    result = call("run", recipe, f"prompt.model={tiny_llama}", setting, "--out", out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert {path.stem.split(".")[0] for path in (out / ".state").glob("*.json")} == {"identity", "prepare"}


def test_finished_run_does_not_need_its_server(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with serve(answer) as server:
        words = ("run", recipe, "--out", out, f"prompt.endpoint={server.url}")
        assert call(*words, "compare.arms=[majority, prompt]").exit_code == 0
    result = call(*words, "compare.arms=[majority, prompt]", "compare.n_resamples=200")
    assert result.exit_code == 0, result.output


def test_doctor_looks_for_whom_the_prompt_asks(
    recipe: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    settings = yaml.safe_load(recipe.read_text())
    monkeypatch.setenv("COLUMNS", "400")

    def ask(**prompt: str) -> str:
        path.write_text(json.dumps({**settings, "prompt": prompt}), encoding="utf-8")
        return " ".join(call("doctor", path).output.split())

    with serve(answer) as server:
        assert "answers, and has tiny" in ask(endpoint=server.url)
        assert "has no model 'other': it has tiny." in ask(endpoint=server.url, model="other")
    assert "can't be asked" in ask(endpoint=server.url)
    assert f"model {tiny_llama}" in ask(model=str(tiny_llama))
    assert "is no decoder" in ask(model=settings["embed"]["views"]["bert"]["model"])
