"""TensorBoard: figures and words in the run folder's ``logs``; fine-tunings lie beside their adapters anyway."""

from __future__ import annotations

import shutil
from pathlib import Path

from embedtune.trackers import About, Found


class Tracker:
    """Event files in the run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "logs"

    @property
    def place(self) -> str:
        """Nothing: it is in the run folder, wherever that is."""
        return ""

    def start(self, about: About) -> str:
        """Return a name: there is nothing to begin."""
        return self.folder.name

    def knows(self, run_id: str) -> bool:
        """Tell whether the results are there, or are still to come."""
        return True

    def watch(self, run_id: str, about: About) -> None:
        """Return none: each training has a writer of its own."""

    def write(self, run_id: str, about: About, found: Found) -> None:
        """Write the results in the place of earlier ones."""
        if about.parent is not None:
            return
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(self.folder, ignore_errors=True)
        with SummaryWriter(str(self.folder)) as writer:
            for name, value in found.figures.items():
                writer.add_scalar(name, value, 0)
            for name, words in {**about.settings, **found.words}.items():
                writer.add_text(name, words)
