"""What a server takes at once, and how it puts requests together."""

from __future__ import annotations

from dataclasses import dataclass, fields

from embedtune.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds of requests, queue and batches.

    Attributes
    ----------
    max_texts : int
        Texts per request.
    max_chars : int
        Characters per text.
    max_body_bytes : int
        Bytes of a request's body.
    queue_texts : int
        Texts that may wait for the worker; at least `max_texts`.
    batch_tokens : int
        Tokens that the worker reads at once, padding not counted; a batch may exceed it by one text.
    max_wait_ms : float
        How long the first text of a batch waits for others.

    Raises
    ------
    ConfigError
        If one is out of range.
    """

    max_texts: int = 256
    max_chars: int = 20_000
    max_body_bytes: int = 4 * 2**20
    queue_texts: int = 2048
    batch_tokens: int = 4096
    max_wait_ms: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "max_wait_ms" else 1
            if not least <= value < float("inf"):
                option = "--" + field.name.replace("_", "-")
                raise ConfigError(f"{option} is {value}, which is out of range: set it to {least} or more.")
        if self.queue_texts < self.max_texts:
            raise ConfigError(
                f"--queue-texts {self.queue_texts} is below --max-texts {self.max_texts}, so that a full request could "
                "never be taken: set it to that or more."
            )
