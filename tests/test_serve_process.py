"""embedtune serve as a command: started, asked, fuzzed, told to stop in the middle, its log read."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import hypothesis
import pytest
import schemathesis
from typer.testing import CliRunner

from embedtune import load_bundle
from embedtune.cli import app
from serve_cases import TEXTS, fit_bert, run_server, start_command, wait_until

#: Those with a body or a parameter.
WITH_PARTS = ["POST /v1/predict", "POST /v1/embeddings", "POST /v1/explain", "GET /v1/models/{name}"]
OPERATIONS = [*WITH_PARTS, "GET /v1/models", "GET /health", "GET /ready", "GET /metrics"]
CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.status_code_conformance,
]
FUZZ = hypothesis.settings(
    max_examples=50,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture(scope="module")
def bundle(tiny_bert, tmp_path_factory):
    return fit_bert(tiny_bert).save(tmp_path_factory.mktemp("bundles") / "moves")


@pytest.fixture(scope="module")
def fuzzed(bundle):
    with run_server({"moves": load_bundle(bundle)}) as running:
        yield running


@pytest.fixture(scope="module")
def description(fuzzed):
    return schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_request_that_keeps_to_the_description_or_breaks_it_is_a_server_error(
    fuzzed, description, operation, mode
):
    method, path = operation.split()
    if mode is schemathesis.GenerationMode.NEGATIVE and operation not in WITH_PARTS:
        pytest.skip("nothing in it could be wrong")

    @FUZZ
    @hypothesis.given(case=description[path][method].as_strategy(generation_mode=mode))
    def ask(case):
        case.call_and_validate(checks=CHECKS)

    ask()
    assert fuzzed.batcher.fault is None


def test_fuzzed_operations_are_all_that_are_described(description):
    assert {result.ok().label for result in description.get_all_operations()} == set(OPERATIONS)


def test_command_answers_and_its_log_holds_no_text_and_no_key(bundle):
    key, text = "open-sesame-4711", "Zanzibar profit rose"
    with start_command([f"ours={bundle}"], environment={"EMBEDTUNE_API_KEY": key}) as (process, url, said):
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            answer = client.post("/v1/predict", json={"input": text})
            client.post(
                "/v1/predict", params={"input": text, "key": key}, json={"input": text, "top_k": text}
            )
            client.post("/v1/embeddings", json={"input": text, text: text})
            client.post("/v1/embeddings", json={"input": [text, 7], "model": text})
            client.get(f"/{text}/{key}")
            client.get("/v1/models", headers={"Authorization": f"Bearer {key}-{text}"})
            client.post("/v1/predict", content=f'{{"input": "{text}'.encode())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        log = said.read_text()
    expected = load_bundle(bundle).predict_proba([text])[0]
    found = {entry["label"]: entry["probability"] for entry in answer.json()["data"][0]["probabilities"]}
    assert answer.json()["model"] == "ours"
    assert [found["down"], found["up"]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert log.startswith("Serving ours at http://127.0.0.1:")
    assert "POST /v1/predict 200" in log
    assert "GET /v1/models 401" in log
    assert "Zanzibar" not in log
    assert key not in log
    assert "Traceback" not in log


def test_sigterm_in_the_middle_finishes_what_was_accepted(bundle):
    # Small batches, so that the work is far from done when the signal comes.
    with (
        start_command([str(bundle), "--batch-tokens", "32"]) as (process, url, said),
        ThreadPoolExecutor(8) as pool,
    ):
        texts = [f"{text} {n}" for n, text in enumerate(TEXTS * 5)]
        asked = [pool.submit(_ask, url, texts[n : n + 40]) for n in range(0, 240, 40)]
        wait_until(lambda: _read_gauge(url, "embedtune_queue_texts") > 100)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        late = [_ask(url, "late") for _ in range(3)]
        answers = [answer.result() for answer in asked]
        assert process.wait(30) == 0
        log = said.read_text()
    assert "Traceback" not in log
    accepted = [answer for answer in answers if answer and answer.status_code == 200]
    assert len(accepted) >= 3  # whose texts were waiting; on a busy machine others come late
    assert len(accepted) == log.count("POST /v1/predict 200")
    assert all(len(answer.json()["data"]) == 40 for answer in accepted)
    assert {answer.status_code for answer in [*answers, *late] if answer} <= {200, 503}
    assert not any(answer and answer.status_code == 200 for answer in late)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the system doesn't tell what is unread")
def test_what_came_before_sigterm_and_was_not_read_yet_is_answered(bundle):
    with start_command([str(bundle)]) as (process, url, _), ThreadPoolExecutor(8) as pool:
        process.send_signal(signal.SIGSTOP)
        asked = [pool.submit(_ask, url, "sales rose") for _ in range(8)]
        port = int(url.rpartition(":")[2])
        wait_until(lambda: _count_unread(port) == 8)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        answers = [answer.result() for answer in asked]
        assert process.wait(30) == 0
    assert [answer and answer.status_code for answer in answers] == [503] * 8


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system doesn't tell a process's time")
def test_stopping_takes_little_work(bundle):
    with start_command([str(bundle)]) as (process, _, _):
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        starting, others = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), _count_seconds()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        stopping = _count_seconds() - others - starting
    assert stopping < 0.12 * starting  # a quarter where the interpreter takes down all that was loaded


def _count_seconds():
    """Return the processor's seconds of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _read_gauge(url, name):
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def _ask(url, texts):
    """Return the answer to a request; None where nobody listens any more."""
    try:
        return httpx.post(f"{url}/v1/predict", json={"input": texts}, timeout=60)
    except httpx.TransportError:
        return None


def _count_unread(port):
    """Return how many connections to a port hold bytes that the server hasn't read."""
    fields = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(field[1].split(":")[1], 16) == port and int(field[4].split(":")[1], 16) > 0
        for field in fields
        if field[3] == "01"
    )


def test_wrong_options_are_told_in_one_line(tmp_path):
    runner = CliRunner()
    for arguments, message in [
        (
            [str(tmp_path), "--max-texts", "0"],
            "error: --max-texts is 0, which is out of range: set it to 1 or more.",
        ),
        (
            [str(tmp_path), "--port", "0"],
            f"error: {tmp_path} is not a bundle (no bundle.json): give the bundle folder",
        ),
    ]:
        result = runner.invoke(app, ["serve", *arguments])
        assert result.exit_code == 2
        assert result.stderr.startswith(message)
        assert result.stderr.count("\n") == 1


def test_missing_extra_is_told_with_the_line_that_installs_it():
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from embedtune.cli import main; sys.argv = ['embedtune', 'serve', 'nothing']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: serving needs prometheus_client, which isn't installed: pip install 'embedtune[serve]'\n"
    )
