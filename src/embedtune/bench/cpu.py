"""Extraction on a CPU: pooled layers of all-MiniLM-L6-v2, beside sentence-transformers and the machine's own rate."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedtune.bench.contest import Contestant, Times, hold
from embedtune.bench.machine import describe_machine
from embedtune.bench.suite import Options, Report, Row
from embedtune.bench.texts import choose_texts, load_data
from embedtune.bench.work import count_extraction
from embedtune.embed.backbone import describe_backbone
from embedtune.embed.precision import multiplies_bfloat16
from embedtune.embed.tokens import tokenize

MODEL = "all-MiniLM-L6-v2"
#: What sentence-transformers reads of a text with this model.
MAX_LENGTH = 256
HERE = Path(__file__).parent / "contestants"

#: What sentence-transformers can be told, besides its defaults.
SWEEP = {
    "batch 8": {"batch_size": 8},
    "batch 128": {"batch_size": 128},
    "bfloat16": {"precision": "bfloat16"},
    "ONNX": {"backend": "onnx"},
    "ONNX int8": {"backend": "onnx", "precision": "int8"},
    "OpenVINO": {"backend": "openvino"},
    "OpenVINO bfloat16": {"backend": "openvino", "precision": "bfloat16"},
    "OpenVINO bfloat16, batch 8": {"backend": "openvino", "precision": "bfloat16", "batch_size": 8},
}
#: Lowest cosine to float32 that counts as no loss.
FIDELITY = 0.999

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, five layers, two poolings": {"layers": "last5", "pooling": ["mean", "cls"]},
    "ours, float32 in torch": {"precision": "float32"},
    "ours, float32 in OpenVINO": {"precision": "float32", "backend": "openvino"},
    "ours, bfloat16 in torch": {"precision": "bfloat16", "backend": "torch"},
    "ours, int8": {"precision": "int8", "backend": "openvino"},
}


def run(options: Options) -> Report:
    """Measure extraction; the parts of `only` are ``contest``, ``capstone`` and ``downstream``."""
    machine = describe_machine()
    wanted = options.only or ("contest", "capstone", "downstream")
    texts = choose_texts(n_each=0 if options.smoke else 1500)[: 60 if options.smoke else None]
    rows: list[Row] = []
    details: dict[str, Any] = {"n_texts": len(texts)}
    if "contest" in wanted:
        found = _hold_contest(texts, options, details)
        rows += _judge(found, texts, details)
    if "capstone" in wanted:
        rows.append(_meet_capstone(texts, options, details))
    if "downstream" in wanted:
        rows += _compare_downstream(options)
    return Report(rows, machine, details)


def _hold_contest(texts: list[str], options: Options, details: dict[str, Any]) -> dict[str, Times]:
    contestants = [
        Contestant(
            name,
            HERE / "encode.py",
            {"texts": texts, "settings": {"model": MODEL, "max_length": MAX_LENGTH, **settings}},
        )
        for name, settings in list(OURS.items())[: 3 if options.smoke else None]
    ]
    if multiplies_bfloat16():
        job = {"dtype": "bfloat16", "seconds": 0.1 if options.smoke else 1.0}
        contestants.append(Contestant("matrix product", HERE / "product.py", job))
    if options.peers is not None:
        contestants += _choose_peers(texts, options, details)
    return hold(contestants, rounds=1 if options.smoke else options.rounds)


def _choose_peers(texts: list[str], options: Options, details: dict[str, Any]) -> list[Contestant]:
    """Run every setting of the sweep once; the defaults, the fastest without loss and the own int8 go on."""
    assert options.peers is not None
    script, folder = options.peers / "sentence_transformers_encode.py", str(describe_backbone(MODEL).source)
    peers = {
        name: Contestant(
            name, script, {"texts": texts, "model": folder, "setting": setting}, options.peers_python
        )
        for name, setting in {"defaults": {}, **SWEEP}.items()
    }
    exact = hold([peers["defaults"]], rounds=1, warm_up=False)["defaults"].arrays["vectors"]
    swept = {}
    for name, peer in peers.items():
        times = hold([peer], rounds=1)[name]
        cosine = find_lowest_cosine(times.arrays["vectors"], exact)
        swept[name] = {"seconds": round(times.median, 3), "lowest_cosine": round(cosine, 5)}
    details["sentence_transformers_sweep"] = swept
    faithful = [name for name, found in swept.items() if found["lowest_cosine"] >= FIDELITY]
    best = min(faithful, key=lambda name: swept[name]["seconds"])
    return [peers[name] for name in dict.fromkeys(("defaults", best, "ONNX int8"))]


def _judge(found: dict[str, Times], texts: list[str], details: dict[str, Any]) -> list[Row]:
    details["times"] = {name: times.describe() for name, times in found.items()}
    exact = found["ours, float32 in torch"].arrays["vectors"]
    cosines = {
        name: find_lowest_cosine(times.arrays["vectors"][:, : exact.shape[1]], exact)
        for name, times in found.items()
        if "vectors" in times.arrays
    }
    details["lowest_cosine"] = {name: round(cosine, 6) for name, cosine in cosines.items()}
    described = describe_backbone(MODEL)
    lengths = tokenize(described.tokenizer, texts, max_length=MAX_LENGTH).lengths
    work = count_extraction(lengths, described.config)
    details["gflop"], details["tokens"] = round(work / 1e9, 1), int(lengths.sum())
    ours, reading = found["ours"], found["ours"].facts[-1]["reading"]
    rows = []
    if "defaults" in found:
        rows += _compare_with_peers(found, cosines, reading)
    both = found["ours, five layers, two poolings"].over(ours)
    more, least, most = (round(100 * (part - 1), 1) for part in both)
    rows.append(
        Row("five layers × two poolings", "one layer", more, least, most, "% more", aim=8.0, at_most=True)
    )
    if "matrix product" in found:
        rates = [fact["flops"] for fact in found["matrix product"].facts]
        shares = [100 * work / seconds / rate for seconds, rate in zip(ours.seconds, rates, strict=True)]
        median, low, high = (round(part, 1) for part in (statistics.median(shares), min(shares), max(shares)))
        rows.append(
            Row("extraction's matrix products", "measured bfloat16 rate", median, low, high, "%", aim=90.0)
        )
    return rows


def _compare_with_peers(found: dict[str, Times], cosines: dict[str, float], reading: str) -> list[Row]:
    defaults = found["defaults"]
    (best,) = [name for name in found if name in SWEEP and name != "ONNX int8"] or ["defaults"]
    rows = [
        Row.of(
            f"extraction, {reading}",
            "sentence-transformers, defaults",
            defaults.over(found["ours"]),
            aim=3.5,
            note=f"lowest cosine to float32 {cosines['ours']:.5f}",
        )
    ]
    for where, aim in (("OpenVINO", 1.5), ("torch", None)):
        name = f"ours, float32 in {where}"
        note = f"lowest cosine to torch {cosines[name]:.7f}" if where == "OpenVINO" else "exact"
        ratio = defaults.over(found[name])
        rows.append(
            Row.of(
                f"extraction, float32 in {where}",
                "sentence-transformers, defaults",
                ratio,
                aim=aim,
                note=note,
            )
        )
    rows.append(
        Row.of(
            f"extraction, {reading}",
            f"sentence-transformers, best setting: {best}",
            found[best].over(found["ours"]),
            aim=1.6,
            note=f"lowest cosine {cosines['ours']:.5f} against {cosines[best]:.5f}",
        )
    )
    for peer, aim in (("defaults", 5.0), ("ONNX int8", 2.2)):
        rows.append(
            Row.of(
                "extraction, int8",
                f"sentence-transformers, {peer}",
                found[peer].over(found["ours, int8"]),
                aim=aim,
                note=f"lowest cosine {cosines['ours, int8']:.3f} against {cosines[peer]:.3f}",
            )
        )
    return rows


def _meet_capstone(texts: list[str], options: Options, details: dict[str, Any]) -> Row:
    """Read every tenth text as the capstone reads BERT, and our way."""
    part = texts[::10]
    capstone = {
        "texts": part,
        "model": str(describe_backbone(MODEL).source),
        "batch_size": 64,
        "max_length": 128 if options.smoke else 512,
    }
    settings = {"model": MODEL, "layers": "last5", "max_length": MAX_LENGTH}
    found = hold(
        [
            Contestant("ours", HERE / "encode.py", {"texts": part, "settings": settings}),
            Contestant("capstone", HERE / "capstone_loop.py", capstone),
        ],
        rounds=1 if options.smoke else options.rounds,
        warm_up=not options.smoke,
    )
    details["capstone"] = {name: times.describe() for name, times in found.items()}
    return Row.of(
        "extraction, five layers",
        "the capstone's loop (padded to 512, float32, all layers)",
        found["capstone"].over(found["ours"]),
        aim=60.0,
        note=f"on every tenth text, {len(part)}",
    )


def _compare_downstream(options: Options) -> list[Row]:
    """Train a logistic regression on float32 and on int8 embeddings, and compare what they get right."""
    names = ("sentiment",) if options.smoke else ("phrasebank_allagree", "gold_sentiment", "sst2")
    return [_compare_accuracy(name, limit=80 if options.smoke else 9000) for name in names]


def _compare_accuracy(name: str, *, limit: int) -> Row:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    from embedtune import TransformerEncoder

    data = load_data(name)
    chosen = np.random.default_rng(0).permutation(len(data.texts))[:limit]
    texts, labels = [data.texts[i] for i in chosen], np.asarray(data.labels)[chosen]
    training, test = train_test_split(np.arange(len(texts)), test_size=0.2, random_state=0, stratify=labels)
    accuracies = []
    for settings in (OURS["ours, float32 in torch"], OURS["ours, int8"]):
        vectors = TransformerEncoder(MODEL, **settings).transform(texts)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        head = LogisticRegression(C=10.0, max_iter=2000).fit(vectors[training], labels[training])
        accuracies.append(float(head.score(vectors[test], labels[test])))
    lost = round(100 * (accuracies[0] - accuracies[1]), 2)
    note = f"{100 * accuracies[0]:.2f} and {100 * accuracies[1]:.2f} % of {len(test)} test rows"
    return Row(
        f"accuracy lost by int8, {name}", "float32", lost, unit="points", aim=0.3, at_most=True, note=note
    )


def find_lowest_cosine(left: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    """Return the lowest cosine between rows of the same number."""
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
