"""Do the rows called suspect have labels that people disagree on? PhraseBank tells by its levels of agreement.

    python benchmarks/label_errors.py FOLDER_OF_PHRASEBANK [--seeds 0 1 2 3 4]

All sentences (Sentences_50Agree.txt) are judged out of fold by the default classifier; a suspect is right if not all
annotators agreed, that is, if the sentence is missing in Sentences_AllAgree.txt (or in a file between).
docs/quality.md has the figures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from embedtune import EmbedClassifier, load_dataset
from embedtune.data.prepare import prepare_splits
from embedtune.evaluate.suspects import find_label_errors, rank_labels

LEVELS = {"all agree": "AllAgree", "75 % agree": "75Agree", "66 % agree": "66Agree"}
SHARES = (0.01, 0.05, 0.10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args()
    agreed = {
        level: set(load_dataset(given.folder / f"Sentences_{name}.txt").texts)
        for level, name in LEVELS.items()
    }
    splits, _ = prepare_splits(load_dataset(given.folder / "Sentences_50Agree.txt"))
    texts = np.array(splits.texts, dtype=object)
    found: dict[tuple[str, str], list[float]] = {}
    for seed in given.seeds:
        classifier = EmbedClassifier(random_state=seed).fit(splits.texts, splits.labels, groups=splits.groups)
        order = np.argsort(rank_labels(splits.codes, classifier.out_of_fold_), kind="stable")
        flagged = [one.place for one in find_label_errors(splits.codes, classifier.out_of_fold_)]
        for level, known in agreed.items():
            disputed = np.array([text not in known for text in texts])
            parts = {f"first {100 * share:g} %": order[: round(share * len(order))] for share in SHARES}
            for name, rows in {**parts, "flagged": flagged}.items():
                found.setdefault((level, name), []).append(100 * disputed[rows].mean())
            found.setdefault((level, "any row"), []).append(100 * disputed.mean())
        sys.stderr.write(f"seed {seed}: {len(flagged)} of {len(texts)} rows flagged\n")
    for (level, name), shares in found.items():
        spread = np.std(shares, ddof=1) if len(shares) > 1 else 0.0
        sys.stdout.write(f"not {level}, {name}: {np.mean(shares):.1f} % (± {spread:.1f} over seeds)\n")


if __name__ == "__main__":
    main()
