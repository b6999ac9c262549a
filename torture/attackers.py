"""Somebody else's bundle, backbone, data, settings or request: refused, nothing runs, and no secret is told."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from torture import folders, inputs, offers, plants, secrecy, wire
from torture.rot import TEXTS, forget, is_same
from torture.runner import Case, Outcome
from torture.workshop import Workshop

TITLE = "attackers"


def judge(act: Callable[[], Any], said: str, mark: Path, *, expected: Any = None) -> Outcome:
    """Do it: refused in one line, or the answer expected, and no code has left its mark."""
    found = []
    forget()
    outcome = inputs.judge(lambda: found.append(act()), said)
    if mark.exists():
        return Outcome("code ran", said)
    if outcome.how != "read" or expected is None:
        return outcome
    same = is_same(found[0], expected)
    return Outcome("ignored", "" if same else f"{said}: another answer")


# -- bundles and backbones


def load_bundles(workshop: Workshop, random: Random, kinds: tuple[str, ...]) -> Iterator[Outcome]:
    """A bundle that holds all it needs, changed by somebody who can write right hashes."""
    from embedtune import load_bundle

    whole = make_bundle(workshop)

    def read(bundle: Path) -> Any:
        classifier = load_bundle(bundle)
        probabilities = classifier.predict_proba(TEXTS)
        classifier.decide(probabilities)
        return probabilities

    expected = read(whole)
    while True:
        folder, mark = workshop.fresh("bundle"), workshop.fresh("mark")
        shutil.copytree(whole, folder)
        name = random.choice(kinds)
        plant = plants.BUNDLE[name]
        said = f"{name}: {plant.put(folder, random, mark)}"
        plants.relist(folder, random)
        yield judge(lambda at=folder: read(at), said, mark, expected=None if plant.may_differ else expected)
        shutil.rmtree(folder)


def load_backbones(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A model folder, or an adapter for an honest one, as --model or a recipe would name it."""
    from embedtune import TransformerEncoder

    bundle = make_bundle(workshop)
    while True:
        folder, mark = workshop.fresh("backbone"), workshop.fresh("mark")
        own = random.random() < 0.7
        shutil.copytree(bundle / ("backbones/tuned" if own else "adapters/tuned"), folder)
        name = random.choice(plants.BACKBONE)
        said = f"{name}: {plants.BUNDLE[name].put(folder, random, mark)}"
        given = {"model": str(folder)} if own else {"model": str(workshop.backbone), "adapter": str(folder)}
        encoder = TransformerEncoder(**given, max_length=32)
        yield judge(lambda encoder=encoder: encoder.transform(TEXTS), said, mark)
        shutil.rmtree(folder)


def make_bundle(workshop: Workshop) -> Path:
    """Return a bundle with a view of each kind, its backbones in it."""
    from embedtune import EmbedClassifier, LexicalEncoder, StaticEncoder, TransformerEncoder
    from embedtune.finetune.train import fine_tune
    from test_static import write_model2vec

    bundle = workshop.folder / "attacked"
    if bundle.exists():
        return bundle
    labels = ["up", "down"] * 12
    tuned = fine_tune(
        workshop.backbone, TEXTS * 4, labels=labels, label_names=["down", "up"], method="lora", epochs=1,
        max_length=32,
        output_dir=workshop.fresh("lora"), device="cpu",
    )  # fmt: skip
    views = [
        ("tuned", TransformerEncoder(str(workshop.backbone), max_length=32, adapter=str(tuned.path))),
        ("words", LexicalEncoder(n_components=4)),
        ("table", StaticEncoder(str(write_model2vec(workshop.folder / "table", normalize=True)))),
    ]
    return EmbedClassifier(views, "logistic").fit(TEXTS * 4, labels).save(bundle, standalone=True)


# -- the server


def attack_server(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Never a 5xx, an honest request is answered right after, and nothing of it is logged."""
    with serve(workshop, random) as (url, key, watch):
        while True:
            sent, said = wire.make_request(random, key)
            statuses = wire.list_statuses(answer := wire.send(url, sent))
            trouble = "a secret came back" if key.encode() in answer else ""
            if any(status >= 500 for status in statuses):
                trouble = f"{statuses}"
            kinds = sorted({"answered" if status < 400 else f"{status}" for status in statuses}) or ["closed"]
            yield Outcome(kinds[-1], (trouble := trouble or watch()) and f"{said}: {trouble}")


def guess_keys(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Whatever isn't the key is answered by 401, or is no HTTP."""
    with serve(workshop, random) as (url, key, watch):
        while True:
            lines = wire.make_guess(random, key)
            path = random.choice(
                (b"POST /v1/predict", b"GET /v1/models", b"GET /metrics", b"GET /v1/models/moves")
            )
            head = [path + b" HTTP/1.1", b"Host: here", b"Connection: close", *lines]
            answer = wire.send(url, b"\r\n".join(head) + b"\r\n\r\n")
            statuses = wire.list_statuses(answer)
            trouble = watch() if statuses in ([401], [400]) else f"{statuses}"
            yield Outcome(
                f"{statuses[0]}" if statuses else "closed", trouble and f"{lines!r:.200}: {trouble}"
            )


@contextlib.contextmanager
def serve(workshop: Workshop, random: Random) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """Start the command with a key; yield its address, the key, and what tells whether it is still well."""
    from embedtune import EmbedClassifier, LexicalEncoder
    from serve_cases import start_command

    bundle = workshop.folder / "served" / "moves"
    if not bundle.exists():
        EmbedClassifier([LexicalEncoder()], "logistic").fit(TEXTS * 4, ["up", "down"] * 12).save(bundle)
    key = random.randbytes(12).hex()
    options = [str(bundle), "--request-seconds", "1"]
    with start_command(options, environment={"EMBEDTUNE_API_KEY": key}) as (process, url, log):
        expected = wire.ask(url, key, wire.HONEST).rpartition(b"\r\n")[2]

        def watch() -> str:
            said = log.read_text(encoding="utf-8", errors="replace")
            if process.poll() is not None:
                return f"it ended: {said[-300:]}"
            if wire.ask(url, key, wire.HONEST).rpartition(b"\r\n")[2] != expected:
                return "an honest request got another answer"
            found = [word for word in ("Traceback", key, "sales", "passwd", " failed ") if word in said]
            return f"its log holds {found[0]}" if found else ""

        yield url, key, watch


def _of(*kinds: str) -> Callable[[Workshop, Random], Iterator[Outcome]]:
    return lambda workshop, random: load_bundles(workshop, random, kinds)


def _judged(
    attempts: Callable[[Workshop, Random, Callable[..., Outcome]], Iterator[Outcome]],
) -> Callable[[Workshop, Random], Iterator[Outcome]]:
    return lambda workshop, random: attempts(workshop, random, judge)


CASES = (
    Case("bundles with pickles", _of("pickles"), 500),
    Case("bundles with foreign types", _of("types", "objects"), 1000),
    Case("bundles with links, names that lead elsewhere", _of("links", "names"), 500),
    Case("bundles whose backbones ask for code", _of("code"), 500),
    Case("bundles with forged JSON, tensors, settings", _of("JSON", "tensors", "settings"), 1000),
    Case("backbones given by their folder", load_backbones, 500),
    Case("run folders of somebody else", folders.take_over, 300),
    Case("sources that would run code", _judged(offers.read_data), 1000),
    Case("settings that would run code", _judged(offers.read_settings), 5000),
    Case("chat templates of decoders", _judged(offers.ask_decoders), 500),
    Case("checkpoints of a stopped fine-tuning with pickles", _judged(offers.read_checkpoints), 200),
    Case("labels and texts that would act in a table or a page", offers.write_outputs, 100),
    Case("requests to the server: lines, headers, JSON", attack_server, 5000),
    Case("guesses of the server's key", guess_keys, 5000),
    Case("tokens in the environment of a run, its bundle, labelling, doctor", secrecy.run_commands, 20),
    Case("tokens in the environment of what fails, servers that repeat them", secrecy.fail_commands, 200),
)
