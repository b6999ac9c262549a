"""Named figures in words: what the data audit found, what an arm cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

N_ENTRIES = 10

COST_COLUMNS = {
    "seconds": "Total, s",
    "finetune_seconds": "Fine-tuning, s",
    "embed_seconds": "Embedding, s",
    "fit_seconds": "Head, s",
    "rows_per_second": "Texts read per s",
    "joules": "Energy, J",
    "joules_per_1000": "Energy to read 1,000 texts, J",
    "joules_source": "Energy measured by",
    "trained_parameters": "Trained parameters",
    "total_parameters": "All parameters",
    "peak_memory_bytes": "Peak memory, MB",
}

_KEYS = {
    "macro_f1": "macro-F1",
    "mcc": "MCC",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}

#: Entries of audit.json that the report shows elsewhere: in tables of their own and in config.yaml.
_SHOWN_ELSEWHERE = frozenset(
    {"schema", "name", "settings", "parts", "classes", "near_duplicates.conflicting"}
)

_AUDIT_KEYS = {
    "fingerprint": "Fingerprint of the data",
    "own_test_rows": "Test rows given by the source",
    "rows.read": "Rows read",
    "rows.refused": "Rows left out: label not among the task's",
    "rows.empty": "Rows dropped: no text or no label",
    "rows.conflicting": "Rows dropped: one text, different labels",
    "rows.merged": "Rows merged into an equal one",
    "rows.leaked": "Rows dropped: near-copy of a test row",
    "rows.sampled_out": "Rows left out by max_rows",
    "rows.kept": "Rows kept",
    "characters.min": "Characters: shortest text",
    "characters.median": "Characters: median",
    "characters.mean": "Characters: mean",
    "characters.p95": "Characters: 95 % have at most",
    "characters.max": "Characters: longest text",
    "n_clusters": "Groups that no split divides",
    "n_conflicts": "Texts with conflicting labels",
    "conflicts": "Texts with conflicting labels",
    "near_duplicates.threshold": "Near-duplicates: similarity from",
    "near_duplicates.n_clusters": "Near-duplicates: clusters",
    "near_duplicates.n_rows": "Near-duplicates: rows in them",
    "near_duplicates.n_clusters_of_several_labels": "Near-duplicates: clusters with several labels",
    "near_duplicates.largest": "Largest clusters of near-duplicates",
    "leaks": "Rows dropped as near-copies of test rows",
}


def name_key(key: str) -> str:
    """Return a key in words: the known wording, else the key without its underscores and ``n_``."""
    if key in _KEYS:
        return _KEYS[key]
    return key.removeprefix("n_").replace("_", " ")


def format_value(value: Any) -> str:
    """Format any scalar for a reader: thousands separated, a long dash where nothing was measured."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return " · ".join(format_value(entry) for entry in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {format_value(entry)}" for key, entry in value.items())
    return str(value)


def format_cost(key: str, value: int | float | str | None) -> str:
    """Format a cost in its column's unit."""
    if value is None:
        return "–"
    if key == "peak_memory_bytes" and not isinstance(value, str):
        return f"{value / 1e6:,.0f}"
    if isinstance(value, float):
        if value == 0:
            return "0"
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 1 else f"{value:.1f}"
    return format_value(value)


def describe_audit(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Put an audit's entries in words; entries without a known wording keep their key's words.

    Returns
    -------
    dict
        ``facts``: (name, text) of scalars, nested ones too;
        ``examples``: (name, entries, number of all entries) of lists and of large mappings, the first
        `N_ENTRIES` entries shown; empty lists are left out.
    """
    facts: list[tuple[str, str]] = []
    examples: list[tuple[str, list[str], int]] = []

    def describe(path: str, value: Any) -> None:
        if path in _SHOWN_ELSEWHERE:
            return
        name = _AUDIT_KEYS.get(path) or ": ".join(name_key(part) for part in path.split("."))
        if isinstance(value, Mapping) and len(value) > N_ENTRIES:
            value = [f"{key}: {format_value(entry)}" for key, entry in value.items()]
        if isinstance(value, Mapping):
            for key, entry in value.items():
                describe(f"{path}.{key}", entry)
        elif isinstance(value, list):
            if value:
                examples.append((name, [format_value(entry) for entry in value[:N_ENTRIES]], len(value)))
        else:
            facts.append((name, format_value(value)))

    for key, value in audit.items():
        describe(str(key), value)
    return {"facts": facts, "examples": examples}
