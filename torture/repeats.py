"""The same again: batch sizes, threads, order of rows. Equal, or within stated bounds."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np

from run_cases import read_figures
from torture.runner import Case, Outcome
from torture.workshop import SETTINGS, Workshop, call

TITLE = "determinism"
#: Of float32 vectors, and of probabilities, whatever is read beside a text.
VECTORS, PROBABILITIES = 1e-5, 1e-5


def repeat_run(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """The same run in another folder, with a store of its own: figures equal to the last digit."""
    expected = read_figures(workshop.run)
    while True:
        out = workshop.fresh("again")
        code, said = call("run", workshop.recipe, "--out", out, "-q", f"embed.store={out}-store", *SETTINGS)
        same = code == 0 and read_figures(out) == expected
        yield Outcome("equal", "" if same else f"other figures {said[-300:]}")


def change_batches(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """Batches of 1 to 512 texts, 1 and 2 threads, rows shuffled: vectors within 1e-5."""
    import torch

    from embedtune import TransformerEncoder

    texts = [f"sales {n} rose " + "in the north " * (n % 7) for n in range(512)]
    options = {"precision": "float32", "layers": "all", "max_length": 64}
    expected = TransformerEncoder(workshop.backbone, **options).transform(texts)
    n_threads = torch.get_num_threads()
    while True:
        n_texts, threads = 2 ** random.randrange(10), random.choice((1, 2))
        order = np.random.default_rng(random.randrange(1 << 30)).permutation(len(texts))
        torch.set_num_threads(threads)
        encoder = TransformerEncoder(workshop.backbone, batch_tokens=32 * n_texts, **options)
        found = encoder.transform([texts[i] for i in order])
        torch.set_num_threads(n_threads)
        difference = float(np.abs(found - expected[order]).max())
        said = f"{n_texts} texts a batch, {threads} threads: {difference:.1e} apart"
        yield Outcome("within 1e-5", "" if difference <= VECTORS else said)


def shuffle_predictions(workshop: Workshop, random: Random) -> Iterator[Outcome]:
    """A bundle's probabilities of shuffled texts, in parts of any size."""
    from embedtune import load_bundle
    from torture.rot import TEXTS

    texts = [f"{TEXTS[n % 6]} {n}" for n in range(200)]
    found = {
        arm: load_bundle(workshop.run / "arms" / arm) for arm in ("floor", "frozen", "tuned", "end-to-end")
    }
    for classifier in found.values():
        for _, view in classifier.views_:
            if hasattr(view, "precision"):
                view.precision = "float32"
    expected = {arm: classifier.predict_proba(texts) for arm, classifier in found.items()}
    while True:
        arm, n_parts = random.choice(list(found)), random.randrange(1, 50)
        order = np.random.default_rng(random.randrange(1 << 30)).permutation(len(texts))
        parts = [
            found[arm].predict_proba([texts[i] for i in part]) for part in np.array_split(order, n_parts)
        ]
        difference = float(np.abs(np.concatenate(parts) - expected[arm][order]).max())
        yield Outcome(
            "within 1e-5", "" if difference <= PROBABILITIES else f"{arm}, {n_parts} parts: {difference:.1e}"
        )


CASES = (
    Case("the same run twice", repeat_run, 20),
    Case("batches of 1 to 512 texts, 1 and 2 threads, shuffled", change_batches, 200),
    Case("a bundle's probabilities of shuffled texts, in parts", shuffle_predictions, 200),
)
