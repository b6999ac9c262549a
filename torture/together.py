"""Several processes on one store, one run folder, one output; some of them killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from run_cases import read_figures
from torture import child
from torture.runner import Case, Outcome
from torture.workshop import SETTINGS, Workshop

TITLE = "several processes at once"
N_PROCESSES, N_TEXTS = 8, 160


def write_store(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Eight embed the same texts, two are killed and a prune runs beside them: every vector once, all of them right."""
    from embedtune import TransformerEncoder
    from embedtune.embed.store import EmbeddingStore

    texts = [f"sales {n} rose in the north" for n in range(N_TEXTS)]
    expected = TransformerEncoder(workshop.backbone, store=workshop.fresh("store"), max_length=32).transform(
        texts
    )
    while True:
        store, log = workshop.fresh("store"), workshop.fresh("log")
        seeds = [random.randrange(1 << 30) for _ in range(N_PROCESSES)]
        crowd = [child.start_call(embed, workshop.backbone, store, texts, seed, log=log) for seed in seeds]
        pruner = child.start_call(prune, store, log=log)
        time.sleep(random.uniform(0, 1.5))
        for process in random.sample(crowd, 2):
            process.kill()
        for process in (*crowd, pruner):
            process.join()
        trouble = (
            log.read_text(encoding="utf-8")
            if any(p.exitcode not in (0, -9) for p in (*crowd, pruner))
            else ""
        )
        whole = EmbeddingStore(store)
        if not trouble and (problems := whole.verify()):
            trouble = problems[0].message
        last = TransformerEncoder(workshop.backbone, store=store, max_length=32)
        found = last.transform(texts)
        n_wrong = int((~np.isclose(found, expected, atol=2e-3)).any(axis=1).sum())
        if not trouble and (n_wrong or last.last_n_computed_ or whole.list()[0].n_texts != N_TEXTS):
            trouble = f"{n_wrong} wrong, {last.last_n_computed_} lacking, {whole.list()[0].n_texts} there"
        yield Outcome("every vector once", trouble[-600:])


def embed(backbone: Path, store: Path, texts: list[str], seed: int) -> None:
    from embedtune import TransformerEncoder

    order = np.random.default_rng(seed).permutation(len(texts))
    encoder = TransformerEncoder(backbone, store=store, max_length=32)
    for part in np.array_split(order, 8):
        encoder.transform([texts[i] for i in part])


def prune(store: Path) -> None:
    from embedtune.embed.store import EmbeddingStore

    for _ in range(10):
        EmbeddingStore(store).prune(older_than_days=1)
        time.sleep(0.1)


def share_folder(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Two runs into one folder: one is refused in a line; the lock of a killed one holds nobody up."""
    expected = read_figures(workshop.run)
    while True:
        out, kills = workshop.fresh("run"), random.random() < 0.5
        words = ["run", workshop.recipe, "--out", out, "-q", f"embed.store={out}-store", *SETTINGS]
        logs = [workshop.fresh("log"), workshop.fresh("log")]
        first = child.start(words, logs[0])
        while first.is_alive() and not (out / ".state" / "lock").exists():
            time.sleep(0.005)
        time.sleep(random.uniform(0.05, 1.0))
        second = child.start(words, logs[1])
        second.join()
        said = logs[1].read_text(encoding="utf-8")
        is_refused = second.exitcode == 2 and said.startswith("error: another process is running in ")
        trouble = "" if is_refused or not first.is_alive() else f"not refused: {said[-300:]}"
        if kills:
            first.kill()
        first.join()
        if first.exitcode:
            third = child.start(words, logs[0])
            third.join()
            trouble = trouble or ("" if third.exitcode == 0 else logs[0].read_text(encoding="utf-8")[-300:])
        if not trouble and read_figures(out) != expected:
            trouble = "other figures"
        yield Outcome("refused, and the owner was killed" if kills else "refused", trouble)


CASES = (
    Case("8 on one store, 2 killed, a prune beside them", write_store, 60),
    Case("2 in one run folder", share_folder, 60),
)
