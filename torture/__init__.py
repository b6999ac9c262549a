"""Faults, load and hostile input, tried for real: `make torture`, or `python -m torture --help`.

One module per fault. It has a `TITLE` and `CASES`; a case yields an `Outcome` for each thing it tried.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"

sys.path.insert(0, str(TESTS))  # tiny backbones and recipes are the tests' own
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
