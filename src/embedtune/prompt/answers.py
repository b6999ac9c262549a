"""Reading a server's replies: probabilities of the options from its first token, or from what it wrote."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from embedtune.errors import ConfigError
from embedtune.prompt.endpoint import Reply

#: What an answer that was read from the text alone leaves to the other options together.
SMOOTHING = 0.01

#: First tokens decide if options get at least this much of their probability …
_LEAST_MASS = 0.05
#: … and at most this share of it lies on tokens that several options begin with.
_MOST_SHARED = 0.01

_EDGES = " \t\r\n\"'`“”‘’«»„.,:;!?*#()[]{}<>|"
_OPENING = re.compile(r"^(the )?(correct |right )?(answer|label)( is)?\b[\s:]*")
_ENDS = re.compile(r"[.,;:!?\n(—–]| - ")


def read_reply(reply: Reply, options: Sequence[str]) -> NDArray[np.float64] | None:
    """Return the probability of each option, shape (n_options,), or None if the reply names none."""
    probabilities = read_first_token(reply.first_token, options)
    if probabilities is not None:
        return probabilities
    found = match_answer(reply.text, options)
    if found is None:
        return None
    row = np.full(len(options), SMOOTHING / max(1, len(options) - 1))
    row[found] = 1 - SMOOTHING
    return row


def read_first_token(tokens: Mapping[str, float], options: Sequence[str]) -> NDArray[np.float64] | None:
    """Share out the first token's probabilities among the options that begin with it.

    Options behind the last token listed get its probability, which is the most theirs can be.

    Returns
    -------
    ndarray of float64, shape (n_options,), or None
        None where the first token doesn't tell the options apart, or names none of them.
    """
    names = fold_options(options)
    mass = np.zeros(len(names))
    shared = 0.0
    for token, probability in tokens.items():
        folded = fold(token)
        begun = [k for k, name in enumerate(names) if folded and name.startswith(folded)]
        if len(begun) == 1:
            mass[begun[0]] += probability
        elif begun:
            shared += probability
    if mass.sum() < _LEAST_MASS or shared > _MOST_SHARED * mass.sum():
        return None
    mass = np.maximum(mass, max(min(tokens.values()), 1e-12))
    probabilities: NDArray[np.float64] = mass / mass.sum()
    return probabilities


def match_answer(text: str, options: Sequence[str]) -> int | None:
    """Return the number of the option an answer names, or None.

    Case, quotes, and punctuation around it don't count, nor does "Answer:" before it or a new sentence behind it; an
    option in the middle of a sentence ("no label fits") is not taken for an answer.
    """
    names = fold_options(options)
    whole = fold(text)
    for candidate in (whole, fold(_OPENING.sub("", whole))):
        for one in (candidate, fold(_ENDS.split(candidate, maxsplit=1)[0])):
            if one in names:
                return names.index(one)
    return None


def fold_options(options: Sequence[str]) -> list[str]:
    """Return the options as they are compared with answers.

    Raises
    ------
    ConfigError
        If two of them are then the same, or one is nothing.
    """
    names = [fold(option) for option in options]
    for k, name in enumerate(names):
        if not name or name in names[:k]:
            other = repr(options[names.index(name)]) if name else "nothing"
            raise ConfigError(
                f"the answer {options[k]!r} can't be told from {other} in what a server writes: "
                "give their labels different wordings in options."
            )
    return names


def fold(text: str) -> str:
    """Return a text without what answers vary in: case, width, quotes and punctuation around it."""
    return unicodedata.normalize("NFKC", text).casefold().strip(_EDGES)
