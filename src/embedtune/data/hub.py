"""Read a data set of the Hugging Face Hub, or a local folder in its layout, as a table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from embedtune.errors import DataError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(source: str) -> bool:
    """Say whether `source` has the form ``organisation/name``."""
    return _HUB_ID.fullmatch(source) is not None


def read_hub(source: str, *, config: str | None, split: str, encoding: str | None = None) -> pd.DataFrame:
    """Read one split of a Hub data set or of a data set folder; class labels become their names.

    Parameters
    ----------
    source : str
        ``organisation/name``, a folder of data files, or a folder written by ``save_to_disk``.
    config : str or None
        The data set's configuration, where it has several.
    split : str
        Such as ``"train"``; the datasets library's slices work too (``"train[:1000]"``).

    Raises
    ------
    DataError
        If the data set, configuration or split isn't there, access is refused, or the Hub can't be reached.
    """
    data = _load(source, config, split)
    frame = {}
    for column, feature in data.features.items():
        cells: list[Any] = data[column][:]
        names = getattr(feature, "names", None)
        if names:
            cells = [names[v] if isinstance(v, int) and 0 <= v < len(names) else None for v in cells]
        frame[column] = pd.Series(cells, dtype=object)
    if not len(data):
        raise DataError(f"{source}, split '{split}', has no rows: name another split.")
    return pd.DataFrame(frame)


def _load(source: str, config: str | None, split: str) -> Any:
    import datasets
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

    folder = Path(source)
    try:
        if folder.is_dir() and any((folder / f).exists() for f in ("state.json", "dataset_dict.json")):
            return _pick_split(datasets.load_from_disk(source), source, split)
        return datasets.load_dataset(source, name=config, split=split)
    except DataFilesNotFoundError as error:
        raise DataError(
            f"{source} holds no data files that the datasets library reads: name a file."
        ) from error
    except DatasetNotFoundError as error:
        if "gated" in str(error).lower():
            raise DataError(
                f"data set '{source}' is gated: accept its terms on its Hub page and set HF_TOKEN."
            ) from error
        raise DataError(
            f"data set '{source}' isn't on the Hub, or is private: check its name, or set HF_TOKEN."
        ) from error
    except (ConnectionError, OSError, RuntimeError) as error:
        if "scripts are no longer supported" in str(error):
            raise DataError(
                f"data set '{source}' wants a script of its own run, which isn't done: name a data file of it."
            ) from error
        raise DataError(
            f"data set '{source}' can't be fetched: the Hub can't be reached and it isn't in the local cache. "
            "Check the network, or give a file."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged or forged description makes of it
        raise DataError(f"data set '{source}' can't be read so: {_first_line(error)}") from error


def _pick_split(data: Any, source: str, split: str) -> Any:
    if not isinstance(data, dict):
        return data
    if split not in data:
        raise ValueError(f'Unknown split "{split}". Should be one of {sorted(data)}.')
    return data[split]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") + "."
