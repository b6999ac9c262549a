"""What must not leave this machine: passwords and keys in addresses, and in the environment."""

from __future__ import annotations

import os
import re

_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@\"']+@")
_IN_QUERY = re.compile(
    r"([?&;][\w.-]*(?:token|key|sig|signature|secret|password|credential)[\w.-]*=)[^&\s\"'<>]+", re.IGNORECASE
)
_NAMED = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
#: Shorter values of such variables are taken for words.
_MIN_LENGTH = 12


def hide_secrets(text: str) -> str:
    """Return a text without passwords in addresses, and without the values of variables such as OPENAI_API_KEY."""
    hidden = _IN_QUERY.sub(r"\1…", _IN_ADDRESS.sub("", text))
    for name, value in os.environ.items():
        if _NAMED.search(name.upper()) and len(value) >= _MIN_LENGTH:
            hidden = hidden.replace(value, "…")
    return hidden
