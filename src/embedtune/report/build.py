"""The HTML report: run folders in, one file out that opens anywhere, without a network or a script."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from embedtune.errors import RunFolderError
from embedtune.evaluate.arms import ARMS
from embedtune.files import write_text
from embedtune.report.advice import advise
from embedtune.report.content import RunContent, hide_texts, read_run
from embedtune.report.facts import COST_COLUMNS, describe_audit, format_cost, format_value, name_key
from embedtune.report.plots import Curve, Whisker, choose_ticks, draw_curves, draw_whiskers

#: Labels up to which a confusion matrix is drawn whole; beyond, only the most confused pairs.
N_MATRIX_LABELS = 20
N_PAIRS = 20
N_TEXT_CHARACTERS = 400

#: Metric, its title, its factor and its decimals: shares are shown in per cent.
_COLUMNS = (
    ("accuracy", "Accuracy, %", 100, 1),
    ("macro_f1", "Macro-F1, %", 100, 1),
    ("mcc", "MCC", 1, 3),
    ("log_loss", "Log loss", 1, 3),
    ("calibration_error", "Calibration error, %", 100, 1),
)
_TONES = {"better": "blue", "worse": "orange"}
_VERDICT_TONES = {"Worth it": "blue", "Worse": "orange"}


def build_report(
    run_dirs: Sequence[Path],
    report_path: Path,
    *,
    across: Mapping[str, Any] | None = None,
    with_texts: bool = True,
) -> Path:
    """Write the report of one or more finished runs.

    Parameters
    ----------
    run_dirs : sequence of Path
        Run folders, one per task, in the order shown.
    report_path : Path
        The HTML file; its folder is made, an older report is replaced at once.
    across : mapping, optional
        What `embedtune.across.compare_runs` found, where the runs are to be compared.
    with_texts : bool
        Whether texts of single rows may stand in it.

    Returns
    -------
    Path
        `report_path`.

    Raises
    ------
    RunFolderError
        If no folder is given, or one holds no finished run.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not run_dirs:
        raise RunFolderError("no run folder given: name at least one for the report.")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cut=cut_text, value=format_value)
    runs = [read_run(Path(run_dir)) for run_dir in run_dirs]
    tasks = [
        _describe_task(run if with_texts else hide_texts(run), f"task{i}") for i, run in enumerate(runs, 1)
    ]
    page = environment.get_template("template.html").render(
        tasks=tasks, across=None if across is None else _describe_across(across), version=version("embedtune")
    )
    # a lone surrogate, possible in JSON, has no UTF-8 form
    write_text(Path(report_path), page.encode("utf-8", "replace").decode("utf-8"))
    return Path(report_path)


def _describe_across(across: Mapping[str, Any]) -> dict[str, Any]:
    pairs = {pair["a"]: pair for pair in across["pairs"]}
    rows = []
    for anchor, run in enumerate(across["runs"], 1):
        score, pair = run["macro_f1"], pairs.get(run["name"])
        rows.append(
            {
                **{key: run[key] for key in ("name", "task", "arm", "n_test")},
                "anchor": f"task{anchor}",
                "score": f"{100 * score['value']:.1f}",
                "interval": f"{100 * score['low']:.1f} to {100 * score['high']:.1f}",
                "seconds": run["cost"]["seconds"],
                "pair": None
                if pair is None
                else {
                    "b": pair["b"],
                    "difference": f"{100 * pair['difference']:+.1f}",
                    "interval": f"{100 * pair['low']:+.1f} to {100 * pair['high']:+.1f}",
                    "p_holm": f"{pair['p_holm']:.3f}",
                    "verdict": pair["verdict"],
                },
            }
        )
    return {"rows": rows}


def cut_text(text: str, n: int = N_TEXT_CHARACTERS) -> str:
    """Return at most `n` characters, an ellipsis the last of them where something was cut."""
    return text if len(text) <= n else text[: n - 1].rstrip() + "…"


def _describe_task(run: RunContent, anchor: str) -> dict[str, Any]:
    results = run.results
    arms = sort_arms(results["arms"])
    opening, _, rest = str(results["verdict"]).partition(": ")
    return {
        "anchor": anchor,
        "name": str(results["task"]),
        "labels": results["labels"],
        "n": results["n"],
        "verdict": opening,
        "verdict_rest": rest[:1].upper() + rest[1:],
        "verdict_tone": _VERDICT_TONES.get(opening, "grey"),
        "best": results.get("best"),
        "advice": advise(results),
        "columns": [title for _, title, _, _ in _COLUMNS],
        "arms": [_describe_arm(name, arm) for name, arm in arms.items()],
        "interval_plots": [draw_metric(arms, results.get("best"), *column) for column in _COLUMNS[:2]],
        "comparisons": [_describe_comparison(row) for row in results["comparisons"]],
        "difference_plot": draw_differences(results["comparisons"]),
        "confusions": [_describe_confusion(name, arm, results["labels"]) for name, arm in arms.items()],
        "per_class": _describe_classes(arms, results["labels"]),
        "learning_by_contrast": "contrastive" in (run.learning.get("arms") or {}),
        "curve_plots": draw_layers(run.curves),
        "layer_choices": [
            _describe_choice(curve) for curve in run.curves.get("curves") or () if "chosen" in curve
        ],
        "curve_metric": name_key(str(run.curves.get("metric", "macro_f1"))),
        "class_counts": run.class_counts,
        "audit": describe_audit(run.audit),
        "trust": _describe_trust(arms.get(str(results.get("best"))) or {}),
        "learning_plot": draw_learning(run.learning),
        "views": _describe_views(arms, str(results.get("best"))),
        "searches": [
            {"model": model, **found, "gain": 100 * (found["macro_f1"] - found["given_macro_f1"])}
            for model, found in (results.get("search") or {}).items()
        ],
        "cascade": results.get("cascade"),
        "cascade_plot": draw_cascade(results.get("cascade")),
        "sources": results.get("sources"),
        "suspects": run.suspects,
        "n_suspects": (results.get("suspects") or {}).get("n") or {},
        "mistakes": run.mistakes,
        "costs": _describe_costs(arms),
        "prompting": [
            {"name": name, **{key: "–" if v is None else f"{100 * v:.3g} %" for key, v in shares.items()}}
            for name, shares in (results.get("against_prompting") or {}).items()
        ],
        "environment": results.get("environment") or {},
        "config": run.config,
    }


def sort_arms(arms: Mapping[str, Any]) -> dict[str, Any]:
    """Return arms in the order of `ARMS`, unknown ones last."""
    order = [name for name in ARMS if name in arms] + [name for name in arms if name not in ARMS]
    return {name: arms[name] for name in order}


def _describe_arm(name: str, arm: Mapping[str, Any]) -> dict[str, Any]:
    known = ARMS.get(name)
    cells = []
    for metric, _, factor, n_decimals in _COLUMNS:
        score = arm.get(metric) or {}
        figures = [_format_score(score.get(key), factor, n_decimals) for key in ("value", "low", "high")]
        spread = _format_score(score.get("seed_sd"), factor, n_decimals)
        cells.append({"value": figures[0], "interval": f"{figures[1]} to {figures[2]}", "spread": spread})
    return {
        "name": name,
        "title": known.title if known else name,
        "backbones": known.backbones if known else "–",
        "trained_on": known.trained_on if known else "–",
        "question": known.question if known else "",
        "cells": cells,
        "n_seeds": len(arm.get("seeds") or ()),
        "asked": arm.get("asked"),
        "n_unmatched": arm.get("unmatched_answers") or 0,
    }


def _format_score(value: float | None, factor: float, n_decimals: int) -> str:
    return "–" if value is None else f"{factor * value:.{n_decimals}f}".replace("-", "\N{MINUS SIGN}")


def draw_metric(
    arms: Mapping[str, Any], best: str | None, metric: str, title: str, factor: float, n_decimals: int
) -> Markup:
    """Draw one metric of every arm that has it; an empty string where none has."""
    rows = [
        Whisker(
            name,
            _format_score(arm[metric]["value"], factor, n_decimals),
            factor * arm[metric]["value"],
            factor * arm[metric]["low"],
            factor * arm[metric]["high"],
            "blue" if name == best else "grey",
        )
        for name, arm in arms.items()
        # far below the others, the majority would squeeze them together
        if _is_measured(arm.get(metric)) and (name != "majority" or len(arms) == 1)
    ]
    if not rows:
        return Markup("")
    said = "; ".join(f"{row.label} {row.text} ({row.low:.1f} to {row.high:.1f})" for row in rows)
    return draw_whiskers(rows, title=f"{title} of each arm", description=f"Value and interval: {said}.")


def draw_differences(comparisons: Sequence[Mapping[str, Any]], *, metric: str = "macro_f1") -> Markup:
    """Draw the differences in one metric, in points, around zero."""
    rows = [
        Whisker(
            f"{row['a']} − {row['b']}",
            f"{100 * row['difference']:+.1f}".replace("-", "\N{MINUS SIGN}"),
            100 * row["difference"],
            100 * row["low"],
            100 * row["high"],
            _TONES.get(row["verdict"], "grey"),
        )
        for row in comparisons
        if row["metric"] == metric and _is_measured(row, value="difference")
    ]
    if not rows:
        return Markup("")
    said = "; ".join(f"{row.label}: {row.text} points" for row in rows)
    return draw_whiskers(
        rows,
        title="Differences in macro-F1, in points",
        description=f"Value and interval around zero: {said}.",
        reference=0.0,
    )


def draw_layers(curves: Mapping[str, Any]) -> list[Markup]:
    """Draw one plot per view: its score by layer, frozen and fine-tuned."""
    by_view: dict[str, list[Curve]] = {}
    pooled: dict[str, set[str]] = defaultdict(set)
    for curve in curves.get("curves") or ():
        pooled[str(curve["view"])].add(str(curve.get("pooling")))
    for curve in curves.get("curves") or ():
        pairs = zip(curve["layers"], curve["scores"], strict=True)
        points = [(layer, 100 * score) for layer, score in pairs if score is not None]
        if points:
            layers, scores = zip(*sorted(points), strict=True)
            name, is_open = str(curve["adapter"]), len(pooled[str(curve["view"])]) > 1
            tone = "orange" if name == "tuned" else "grey" if is_open and "chosen" not in curve else "blue"
            by_view.setdefault(str(curve["view"]), []).append(
                Curve(f"{name}, {curve['pooling']}" if is_open else name, layers, scores, tone)
            )
    metric = name_key(str(curves.get("metric", "macro_f1")))
    return [
        draw_curves(
            drawn,
            title=f"{view}: {metric} by layer",
            description="; ".join(
                f"{curve.label}: " + ", ".join(f"layer {i} {s:.1f}" for i, s in zip(*curve[1:3], strict=True))
                for curve in drawn
            ),
            x_label="layer (0 is the embedding layer)",
            y_label=f"{cut_text(view, 30)}: {metric}, %",
        )
        for view, drawn in by_view.items()
    ]


def draw_cascade(cascade: Mapping[str, Any] | None) -> Markup:
    """Draw macro-F1 by the share of texts that the dear arm is asked about; an empty string without a cascade."""
    if not cascade:
        return Markup("")
    shares = [100 * share for share in cascade["share"]]
    scores = [100 * score for score in cascade["macro_f1"]]
    pairs = zip(shares, scores, strict=True)
    return draw_curves(
        [Curve(f"{cascade['cheap']}, then {cascade['dear']}", shares, scores)],
        title="Macro-F1 by the share of texts that the dear arm reads",
        description="; ".join(f"{share:.0f} % read, {score:.1f}" for share, score in pairs),
        x_label=f"texts that {cascade['dear']} reads, %",
        y_label="macro-F1, %",
        x_ticks=[0, 20, 40, 60, 80, 100],
    )


def draw_learning(learning: Mapping[str, Any]) -> Markup:
    """Draw each arm's mean over the seeds by labels per class; an empty string where no curve was asked for."""
    if not learning.get("counts"):
        return Markup("")
    counts = [int(n) for n in learning["counts"]]
    curves = [
        Curve(
            name,
            counts,
            [100 * sum(each) / len(each) for each in scores],
            {"end-to-end": "orange", "contrastive": "grey"}.get(name, "blue"),
        )
        for name, scores in learning["arms"].items()
    ]
    return draw_curves(
        curves,
        title="Macro-F1 by labels per class",
        description="; ".join(
            f"{curve.label}: "
            + ", ".join(f"{n} labels {y:.1f}" for n, y in zip(counts, curve.ys, strict=True))
            for curve in curves
        ),
        x_label="labels per class",
        y_label="macro-F1, %",
    )


def _describe_trust(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what an arm's probabilities are worth; empty where a run didn't measure it."""
    if not arm.get("reliability"):
        return {}
    confidences = [100 * part["confidence"] for part in arm["reliability"]]
    accuracies = [100 * part["accuracy"] for part in arm["reliability"]]
    risk, sets, abstention = arm["risk_coverage"], arm.get("sets"), arm["abstention"]
    decided = [100 * share for share in risk["coverage"]]
    errors = [100 * share for share in risk["error"]]
    pairs = zip(confidences, accuracies, strict=True)
    plots = [
        draw_curves(
            [Curve("test rows, in tenths", confidences, accuracies)],
            title="Reliability: accuracy by confidence",
            description="; ".join(f"{c:.0f} % sure, {a:.0f} % right" for c, a in pairs),
            x_label="mean confidence, %",
            y_label="right, %",
            x_ticks=choose_ticks(min(confidences), 100),
            diagonal=True,
        ),
        draw_curves(
            [Curve("most confident first", decided, errors)],
            title="Errors among the rows decided",
            description="; ".join(
                f"{c:.0f} % decided, {e:.1f} % wrong" for c, e in zip(decided, errors, strict=True)
            ),
            x_label="rows decided, %",
            y_label="wrong, %",
            x_ticks=[0, 20, 40, 60, 80, 100],
        ),
    ]
    return {"plots": plots, "calibration": arm.get("calibration"), "sets": sets, "abstention": abstention}


def _describe_views(arms: Mapping[str, Any], best: str) -> dict[str, Any]:
    """Describe what each view brought to a stack, in the best arm or in the first that has one; empty without."""
    name = next((name for name in (best, *arms) if arms.get(name, {}).get("views")), None)
    if name is None:
        return {}
    rows = [
        {
            "view": step["view"],
            "taken": step["taken"],
            "macro_f1": _format_score(step["macro_f1"], 100, 1),
            "log_loss": _format_score(step["log_loss"], 1, 3),
        }
        for step in arms[name]["views"]
    ]
    return {"arm": name, "rows": rows}


def _describe_choice(curve: Mapping[str, Any]) -> str:
    layers = curve["chosen"]
    read = f"layers {layers[-1]} to {layers[0]}" if len(layers) > 1 else f"layer {layers[0]}"
    return (
        f"{curve['view']}: {read} of {curve['layers'][-1]} are read by the frozen arms, pooling {curve['pooling']}, "
        f"chosen on {curve['n_rows']:,} train rows. Each point of its plot reads a layer and those just below it, "
        f"{curve['n_together']} together; the lowest within one standard error of the best was taken."
    )


def _is_measured(score: Mapping[str, Any] | None, *, value: str = "value") -> bool:
    return score is not None and all(score.get(key) is not None for key in (value, "low", "high"))


def _describe_comparison(row: Mapping[str, Any]) -> dict[str, Any]:
    points = {
        key: "–" if row[key] is None else f"{100 * row[key]:+.1f}".replace("-", "\N{MINUS SIGN}")
        for key in ("difference", "low", "high")
    }
    return {
        **points,
        "a": row["a"],
        "b": row["b"],
        "metric": name_key(row["metric"]),
        "detectable": _format_score(row.get("detectable"), 100, 1),
        "p": _format_p(row["p"]),
        "p_holm": _format_p(row["p_holm"]),
        "test": row.get("test", ""),
        "verdict": row["verdict"],
        "tone": _TONES.get(row["verdict"], "grey"),
    }


def _format_p(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _describe_confusion(name: str, arm: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Describe the matrix, rows true, or its largest off-diagonal cells where it is too big to read."""
    counts = arm.get("confusion") or []
    totals = [max(1, sum(row)) for row in counts]
    cells = [
        [{"count": n, "share": n / total} for n in row] for row, total in zip(counts, totals, strict=True)
    ]
    pairs = sorted(
        ((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n),
        key=lambda pair: (-pair[0], pair[1:]),
    )
    return {
        "name": name,
        "cells": cells if len(labels) <= N_MATRIX_LABELS else [],
        "pairs": [
            {"label": labels[i], "predicted": labels[j], "count": n, "share": n / totals[i]}
            for n, i, j in pairs[:N_PAIRS]
        ],
        "n_pairs": len(pairs),
    }


def _describe_classes(arms: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    names = [name for name, arm in arms.items() if arm.get("per_class")]
    rows: list[dict[str, Any]] = []
    for label in labels:
        scores = [arms[name]["per_class"].get(label) or {} for name in names]
        support = next((score["support"] for score in scores if score.get("support") is not None), None)
        rows.append(
            {
                "label": label,
                "support": support,
                "f1": [_format_score(score.get("f1"), 100, 1) for score in scores],
            }
        )
    rows.sort(key=lambda row: row["support"] or 0, reverse=True)
    return {"arms": names, "rows": rows if names else []}


def _describe_costs(arms: Mapping[str, Any]) -> dict[str, Any]:
    """Describe every cost that at least one arm has measured, known ones first."""
    measured = [key for arm in arms.values() for key, v in (arm.get("cost") or {}).items() if v is not None]
    keys = [key for key in COST_COLUMNS if key in measured]
    keys += [key for key in dict.fromkeys(measured) if key not in COST_COLUMNS]
    rows = [
        {"name": name, "cells": [format_cost(key, (arm.get("cost") or {}).get(key)) for key in keys]}
        for name, arm in arms.items()
    ]
    return {"titles": [COST_COLUMNS.get(key, name_key(key)) for key in keys], "rows": rows if keys else []}
