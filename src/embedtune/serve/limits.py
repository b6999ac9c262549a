"""What a server takes at once, and how it puts requests together."""

from __future__ import annotations

from dataclasses import dataclass, fields

from embedtune.errors import ConfigError

_LEAST = {"max_wait_ms": 0, "request_seconds": 0.1}


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
    max_delay_ms : float
        A request is refused if the texts before it are expected to take longer.
    request_seconds : float
        How long a request's head may take to come, and its body.
    max_connections : int
        Open at once; for one more, the one is closed that has waited longest for its client.
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
    max_delay_ms: float = 60_000.0
    request_seconds: float = 10.0
    max_connections: int = 1000
    batch_tokens: int = 4096
    max_wait_ms: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), _LEAST.get(field.name, 1)
            if not least <= value < float("inf"):
                option = "--" + field.name.replace("_", "-")
                raise ConfigError(f"{option} is {value}, which is out of range: set it to {least} or more.")
        if self.queue_texts < self.max_texts:
            raise ConfigError(
                f"--queue-texts {self.queue_texts} is below --max-texts {self.max_texts}, so that a full request could "
                "never be taken: set it to that or more."
            )
