"""Tokens in the environment while commands run, fail, and meet servers that repeat what they are sent: told nowhere."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

from torture import ROOT, child
from torture.runner import Outcome
from torture.workshop import SETTINGS, Workshop

NAMES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "EMBEDTUNE_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "DATABASE_PASSWORD",
)  # fmt: skip


def make_secrets(random: Random) -> dict[str, str]:
    """Return a token for each variable, with signs that addresses and JSON write otherwise."""
    return {name: f"hf_{random.randbytes(9).hex()}/+{random.randbytes(9).hex()}=" for name in NAMES}


def find_secret(data: bytes, secrets: dict[str, str]) -> str:
    """Return the name of a token that stands in some bytes: as it is, quoted, escaped, in hexadecimal, in base64."""
    for name, secret in secrets.items():
        raw = secret.encode()
        shifted = (base64.b64encode(b" " * n + raw)[4 if n else 0 : -4] for n in range(3))
        shapes = [raw, raw[3:24], raw[-20:-1], quote(secret, safe="").encode(), raw.hex().encode(), *shifted]
        if any(shape in data for shape in shapes):
            return name
    return ""


def search(folder: Path, secrets: dict[str, str]) -> str:
    """Return the file of a folder that holds a token, and whose it is."""
    for path in sorted(folder.rglob("*")):
        if name := find_secret(os.fsencode(path.name), secrets):
            return f"{name} in the name {path}"
        if path.is_file() and not path.is_symlink() and (name := find_secret(path.read_bytes(), secrets)):
            return f"{name} in {path.relative_to(folder)}"
    return ""


def run_commands(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A whole run, its bundle, labelling, doctor: all that they write and say is searched."""
    while True:
        secrets, folder = make_secrets(random), workshop.fresh("told")
        folder.mkdir()
        run = folder / "run"
        commands: list[list[Any]] = [
            ["run", workshop.recipe, "--out", run, "-v", "compare.arms=[floor,frozen,tuned]", *SETTINGS],
            ["predict", run / "bundle", workshop.rows, "-o", folder / "labelled.csv"],
            ["export", run / "bundle", "-o", folder / "alone"],
            ["doctor", workshop.recipe],
            ["report", run, "track=tensorboard"],
        ]
        for number, words in enumerate(commands):
            process = child.start([*words], folder / f"log-{number}", TMPDIR=str(folder), **secrets)
            process.join()
            trouble = search(folder, secrets)
            if process.exitcode != 0:
                trouble = trouble or (folder / f"log-{number}").read_text(encoding="utf-8")[-600:]
            yield Outcome("not found", trouble and f"{words[0]}: {trouble}")


def fail_commands(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """What isn't there, what refuses, and servers that repeat every header: one line, without a token."""
    with serve_echo() as (url, echo):
        while True:
            secrets, folder = make_secrets(random), workshop.fresh("told")
            folder.mkdir()
            echo.update(status=random.choice((200, 200, 401, 403, 404, 418)), kind=random.randrange(4))
            words, environment = _choose_command(workshop, random, url, folder)
            said = f"{' '.join(map(str, words))} {environment} {echo}"
            environment |= {**secrets, "TMPDIR": str(folder), "HF_HOME": str(folder / "hub")}
            if any(
                "team/" in str(word) for word in words
            ):  # the Hub's library reads its address when imported
                told = _call(words, environment)
            else:
                child.start(words, folder / "log", **environment).join()
                told = (folder / "log").read_bytes()
            trouble = find_secret(told, secrets)
            trouble = f"{trouble} was said" if trouble else search(folder, secrets)
            if b"Traceback" in told and "--debug" not in words:
                trouble = trouble or told.decode("utf-8", "replace")[-700:]
            yield Outcome("not found", trouble and f"{said}: {trouble}")


def _choose_command(
    workshop: Workshop, random: Random, url: str, folder: Path
) -> tuple[list[Any], dict[str, str]]:
    prompt = [
        "compare.arms=[floor,prompt]",
        f"prompt.endpoint={url}/v1",
        "prompt.model=m",
        "prompt.n_retries=0",
    ]
    data = ["--data", workshop.rows, "--out", folder / "run", "-q"]
    commands: list[list[Any]] = [
        ["run", *data, *prompt],
        ["doctor", workshop.recipe, *prompt],
        ["doctor", workshop.recipe, "embed.views.bert.model=team/model"],
        ["run", workshop.recipe, "--out", folder / "run", "embed.views.bert.model=team/model", "-q"],
        ["run", "--data", "team/data", "--out", folder / "run"],
        ["export", "team/bundle", "-o", folder / "alone"],
        ["predict", "team/bundle", workshop.rows, "-o", folder / "out.csv"],
        ["run", "--data", "s3://bucket/rows.csv", "--out", folder / "run"],
        ["serve", "team/bundle"],
    ]
    words = random.choice(commands)
    if random.random() < 0.3 and words[0] not in ("doctor", "serve"):
        words = [*words, "--debug"]
    closed = "http://127.0.0.1:9"  # asked again and again, for half a minute
    hub = closed if random.randrange(10) == 0 else url
    return words, {
        "HF_ENDPOINT": hub,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "AWS_ENDPOINT_URL": url,
    }


def _call(words: list[Any], environment: dict[str, str]) -> bytes:
    source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "embedtune", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


@contextlib.contextmanager
def serve_echo() -> Iterator[tuple[str, dict[str, int]]]:
    """Serve whatever is asked with what was sent, headers and all; yield the address and what is to be answered."""
    echo = {"status": 200, "kind": 0}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = str(self.headers.get("Authorization", "nothing"))
            told: list[Any] = [
                sent,
                {"error": {"message": sent}},
                {"data": [{"id": sent}], "detail": sent},
                {"error": sent},
            ]
            body = json.dumps(told[echo["kind"]]).encode()
            self.send_response(echo["status"])
            self.send_header("X-Error-Message", sent)
            self.send_header("X-Request-Id", sent)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_HEAD = do_PUT = _answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", echo
    finally:
        server.shutdown()
        server.server_close()
