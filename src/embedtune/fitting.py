"""The fit stage's work: training one arm, asking a decoder, probing layers."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedtune.assemble import (
    build_classifier,
    build_encoder,
    build_prompt_classifier,
    choose_end_to_end,
    read_at_test_length,
    read_end_to_end,
)
from embedtune.classifier import EmbedClassifier
from embedtune.data.splits import Splits
from embedtune.embed.checkpoints import name_model
from embedtune.files import write_json
from embedtune.heads.calibration import Calibrator
from embedtune.heads.decision import choose_weights, decide
from embedtune.heads.probe import probe_blocks
from embedtune.plan import (
    ARM_ROWS,
    TUNED_ON,
    TaskRun,
    Training,
    adapter_dir,
    adapter_key,
    adapter_step,
    arm_dir,
    find_scan,
    list_head_parts,
    list_reads,
    list_scans,
    list_trainings,
    list_tuned_reads,
    list_witnesses,
    scan_key,
)
from embedtune.runfolder import digest
from embedtune.scan import draw_curves
from embedtune.tables import list_cells

log = logging.getLogger(__name__)


def require_adapters(run: TaskRun, arm: str) -> None:
    """Make sure the arm's backbones were fine-tuned with the present settings."""
    for view in list_tuned_reads(run, arm) if arm in TUNED_ON else []:
        for seed in run.experiment.seeds:
            for training in list_trainings(run, arm):
                step = adapter_step(view.model, training, seed)
                run.record(step, adapter_key(run, view, training, seed))


class FittedArm(NamedTuple):
    """What training an arm with one seed gave.

    Attributes
    ----------
    probabilities : ndarray of shape (n_test, n_labels)
        On the test rows.
    predicted : ndarray of int, shape (n_test,)
        The columns of the labels named.
    cells : list of dict
        The settings its head tried.
    calibration : dict or None
        ``method``, ``temperature``, ``log_losses`` by method, and the ``threshold`` of its sets of labels.
    out_of_fold : ndarray of shape (n_rows, n_labels) or None
        What heads without each row's fold said of the training rows.
    views : list of dict
        What each view brought; see `EmbedClassifier.selection_`.
    """

    probabilities: NDArray[np.float64]
    predicted: NDArray[np.int64]
    cells: list[dict[str, Any]]
    calibration: dict[str, Any] | None
    out_of_fold: NDArray[np.float64] | None
    views: list[dict[str, Any]]


def fit_arm(run: TaskRun, splits: Splits, arm: str, seed: int) -> FittedArm:
    """Train one arm with one seed, and keep the first seed's classifier."""
    rows = splits.rows(*list_head_parts(run.experiment, arm))
    test = splits.rows("test")
    if arm == "majority":
        shares = np.bincount(splits.codes[rows], minlength=len(splits.label_names)) / len(rows)
        tiled = np.tile(shares, (len(test), 1))
        return FittedArm(tiled, tiled.argmax(axis=1), [], None, None, [])
    if arm == "end-to-end":
        classifier = _open_end_to_end(run, splits, seed)
    else:
        classifier = build_classifier(run, arm, seed)
        chooses_on_test = arm != "floor" and run.experiment.fit.choose_rows == "test"
        classifier.fit(
            *_take(splits, rows),
            groups=[splits.groups[i] for i in rows],
            validation=_take(splits, test) if chooses_on_test else None,
        )
    reader = read_at_test_length(run, classifier)
    probabilities = reader.predict_proba(_take(splits, test)[0])
    if seed == run.experiment.seeds[0]:
        fingerprint = run.record("prepare")["key"]
        notes = {"task": run.task, "arm": arm, "seed": seed, "data_fingerprint": fingerprint}
        classifier.save(arm_dir(run, arm), notes=notes)
    return FittedArm(
        probabilities,
        decide(probabilities, reader.decision_weights_),
        list_cells(classifier.head_),
        _describe_calibration(run, classifier),
        classifier.out_of_fold_,
        classifier.selection_,
    )


def _open_end_to_end(run: TaskRun, splits: Splits, seed: int) -> EmbedClassifier:
    """Return the end-to-end classifier, calibrated where the run has fine-tunings that left training rows unseen."""
    view = choose_end_to_end(run, seed)
    classifier = read_end_to_end(run, view, Training(TUNED_ON["end-to-end"]), seed)
    witnesses = list_witnesses(run, splits, view, seed)
    if not witnesses:
        return classifier
    rows = np.concatenate([unseen for _, unseen in witnesses])
    opinions = [
        read_end_to_end(run, view, training, seed).predict_proba(_take(splits, unseen)[0])
        for training, unseen in witnesses
    ]
    order = np.argsort(rows)
    rows, raw = rows[order], np.concatenate(opinions)[order]
    codes = splits.codes[rows]
    calibrator = Calibrator(run.experiment.fit.calibration, random_state=seed)
    found = calibrator.fit_transform(raw, codes, np.asarray(splits.groups)[rows])
    weights = choose_weights(found, codes) if run.experiment.fit.decision == "macro_f1" else None
    calibrated = EmbedClassifier.from_fitted(classifier.views_, classifier.head_, calibrator, weights)
    calibrated.out_of_fold_ = found if len(rows) == len(splits.rows(*TUNED_ON["end-to-end"])) else None
    return calibrated


def _describe_calibration(run: TaskRun, classifier: EmbedClassifier) -> dict[str, Any] | None:
    calibrator, weights = classifier.calibrator_, classifier.decision_weights_
    if calibrator is None:
        return None
    return {
        "decision_weights": None if weights is None else weights.tolist(),
        "method": calibrator.method_,
        "temperature": calibrator.temperature_,
        "log_losses": calibrator.log_losses_,
        "threshold": calibrator.find_threshold(run.experiment.fit.coverage),
    }


def _take(splits: Splits, rows: NDArray[np.int64]) -> tuple[list[str], list[str]]:
    """Return the texts and labels of some rows."""
    return [splits.texts[i] for i in rows], [splits.labels[i] for i in rows]


def check_wording(run: TaskRun) -> None:
    """Refuse a prompt whose wording or number of examples doesn't fit the rows, before anything long starts."""
    splits = run.splits
    classifier = build_prompt_classifier(run, run.experiment.seeds[0], labels=splits.label_names)
    classifier.fit(*_take(splits, splits.rows(*ARM_ROWS["prompt"])))


def ask_decoder(run: TaskRun, splits: Splits) -> tuple[dict[int, NDArray[np.float64]], dict[str, Any]]:
    """Ask about the test rows with each seed's examples, once for all seeds where none are shown.

    Returns
    -------
    by_seed : dict of int to ndarray of shape (n_test, n_labels)
    facts : dict
        ``rows_per_second``, ``n_asked``, ``total_parameters`` (None for a server), ``asked`` (the model) and
        ``unmatched_answers``.
    """
    rows, test = splits.rows(*ARM_ROWS["prompt"]), splits.rows("test")
    texts, labels = _take(splits, rows)
    seeds = run.experiment.seeds if run.experiment.prompt.n_examples else run.experiment.seeds[:1]
    by_seed: dict[int, NDArray[np.float64]] = {}
    asked = []
    for seed in seeds:
        classifier = build_prompt_classifier(run, seed, labels=splits.label_names).fit(texts, labels)
        by_seed[seed] = classifier.predict_proba(_take(splits, test)[0])
        asked.append(classifier)
    n_unmatched = sum(one.last_n_unmatched_ for one in asked)
    n_asked, seconds = sum(one.last_n_asked_ for one in asked), sum(one.last_seconds_ for one in asked)
    if n_unmatched:
        log.warning(
            "%s: %d of %d answers to the prompt named no label; their rows count as undecided",
            run.task, n_unmatched, n_asked,
        )  # fmt: skip
    facts = {
        "rows_per_second": n_asked / seconds if seconds else None,
        "n_asked": n_asked,
        "total_parameters": asked[0].n_parameters_,
        "asked": asked[0].asked_,
        "unmatched_answers": n_unmatched,
    }
    return {seed: by_seed.get(seed, by_seed[seeds[0]]) for seed in run.experiment.seeds}, facts


def probe_layers(run: TaskRun, splits: Splits) -> None:
    """Write probes.json: how well each layer separates the labels, cross-validated inside the train rows."""
    rows = splits.rows("train")
    texts = [splits.texts[i] for i in rows]
    y, groups = splits.codes[rows], np.asarray(splits.groups)[rows]
    seed = run.experiment.seeds[0]
    training = Training(TUNED_ON["tuned"])
    settings = run.experiment.compare
    is_tuned = settings.probe_layers and "tuned" in settings.arms
    tuned = {view.model for view in list_tuned_reads(run)} if is_tuned else set()

    def compute() -> dict[str, Any]:
        curves: list[dict[str, Any]] = []
        for view in list_reads(run):
            scan = find_scan(run, view)
            if scan is None and not settings.probe_layers:
                continue
            for state in ("frozen", "tuned") if view.model in tuned else ("frozen",):
                adapter = adapter_dir(run, view.model, training, seed) if state == "tuned" else None
                if scan is not None:
                    curves += draw_curves(run, scan, adapter=adapter)
                    continue
                encoder = build_encoder(run, view, adapter=adapter)
                X = encoder.transform(texts)
                scores = probe_blocks(X, y, widths=encoder.widths_, groups=groups, random_state=seed)
                name = name_model(view.model)
                curves.append(
                    {"view": name, "adapter": state, "layers": list(encoder.layers_), "scores": scores}
                )
        write_json(run.path / "probes.json", {"metric": "macro_f1", "curves": curves})
        return {}

    keys = [adapter_key(run, view, training, seed) for view in list_tuned_reads(run) if view.model in tuned]
    scan_keys = [scan_key(run, view) for view in list_scans(run)]
    key = digest(
        run.record("prepare")["key"], [view.model_dump() for view in list_reads(run)], keys, *scan_keys
    )
    run.folder.run_step("fit.probe", key, compute, outputs=[run.path / "probes.json"])
