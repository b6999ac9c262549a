"""The errors a user can cause, one tree.

::

    EmbedtuneError
    ├── ConfigError         (ValueError)    a setting, recipe or option
    ├── DataError           (ValueError)    a file, column, row or label
    ├── BackboneError       (ValueError)    a model, layer, tokenizer or adapter
    ├── StoreError          (RuntimeError)  the embedding store
    ├── BundleError         (ValueError)    a bundle that can't be trusted or read
    ├── RunFolderError      (RuntimeError)  a run folder in the way
    ├── EndpointError       (RuntimeError)  a server that is asked doesn't answer as it should
    ├── ResourceError       (RuntimeError)  disk or memory ran out
    └── MissingExtraError   (ImportError)   an optional package isn't installed

A message is one line: what is wrong, the value given, what is allowed, what to do next.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

#: Ends of lines, what terminals obey, what turns the direction of writing, lone surrogates.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class EmbedtuneError(Exception):
    """Anything a user can put right; the command line prints it as one line and exits with 2.

    Control characters of what was given are shown by their escapes.
    """

    def __init__(self, message: object = "") -> None:
        lines = re.sub(r"\s*\n\s*", " ", str(message))
        super().__init__(_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], lines))


class ConfigError(EmbedtuneError, ValueError):
    """A setting, recipe or option is unknown or out of range."""


class DataError(EmbedtuneError, ValueError):
    """A data file, column, row or label can't be used."""


class BackboneError(EmbedtuneError, ValueError):
    """A model, one of its layers, its tokenizer or its adapter can't be used."""


class StoreError(EmbedtuneError, RuntimeError):
    """The embedding store is damaged or can't be written."""


class BundleError(EmbedtuneError, ValueError):
    """A bundle is damaged, too new, or holds what we won't load."""


class RunFolderError(EmbedtuneError, RuntimeError):
    """A run folder is in use or belongs to another experiment."""


class EndpointError(EmbedtuneError, RuntimeError):
    """A server that is asked can't be reached, refuses, or doesn't answer as it should."""


class ResourceError(EmbedtuneError, RuntimeError):
    """Disk or memory ran out."""


class MissingExtraError(EmbedtuneError, ImportError):
    """An optional package is needed for this; the message carries the pip line."""


def suggest_nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest allowed name, or an empty string."""
    nearest = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""
