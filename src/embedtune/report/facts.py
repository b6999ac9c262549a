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
    "joules_per_1000": "Energy per 1,000 texts, J",
    "trained_parameters": "Trained parameters",
    "total_parameters": "All parameters",
    "peak_memory_bytes": "Peak memory, MB",
}

_KEYS = {
    "macro_f1": "macro-F1",
    "mcc": "MCC",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "n_read": "Rows read",
    "n_dropped": "Rows without text or label, dropped",
    "n_empty_dropped": "Empty rows dropped",
    "n_duplicates_merged": "Exact duplicates merged",
    "n_conflicts": "Texts with conflicting labels",
    "conflicts": "Texts with conflicting labels",
    "n_near_duplicate_clusters": "Clusters of near-duplicates",
    "near_duplicate_clusters": "Clusters of near-duplicates",
    "leaks": "Leaks between the parts",
    "n_leaks": "Leaks between the parts",
    "per_class": "Rows per label",
    "fingerprint": "Fingerprint of the data",
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
        return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(format_value(entry) for entry in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {format_value(entry)}" for key, entry in value.items())
    return str(value)


def format_cost(key: str, value: int | float | str | None) -> str:
    """Format a cost in its column's unit."""
    if value is None:
        return "–"
    if key == "peak_memory_bytes" and not isinstance(value, str):
        return f"{value / 1e6:,.0f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 1 else f"{value:.1f}"
    return format_value(value)


def describe_audit(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Sort an audit's entries by shape.

    Returns
    -------
    dict
        ``facts``: (name, text) of scalars, and of mappings of scalars flattened one level;
        ``examples``: (name, entries, number of all entries) of lists, the first `N_ENTRIES` shown.
    """
    facts: list[tuple[str, str]] = []
    examples: list[tuple[str, list[str], int]] = []
    for key, value in audit.items():
        if isinstance(value, list):
            if value and not all(isinstance(entry, int | float) for entry in value):
                examples.append((name_key(key), [format_value(e) for e in value[:N_ENTRIES]], len(value)))
            else:
                facts.append((name_key(key), format_value(value) or "none"))
        elif isinstance(value, Mapping):
            _describe_mapping(name_key(key), value, facts, examples)
        else:
            facts.append((name_key(key), format_value(value)))
    return {"facts": facts, "examples": examples}


def _describe_mapping(
    name: str,
    value: Mapping[str, Any],
    facts: list[tuple[str, str]],
    examples: list[tuple[str, list[str], int]],
) -> None:
    if not value:
        facts.append((name, "none"))
    elif len(value) > N_ENTRIES:
        shown = [f"{key}: {format_value(entry)}" for key, entry in list(value.items())[:N_ENTRIES]]
        examples.append((name, shown, len(value)))
    else:
        facts.extend((f"{name}: {name_key(str(key))}", format_value(entry)) for key, entry in value.items())
