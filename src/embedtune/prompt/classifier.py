"""PromptClassifier: a decoder asked about each text, with no or a few examples; a scikit-learn classifier."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from embedtune.embed.texts import check_texts, find_distinct
from embedtune.errors import BackboneError, ConfigError, DataError, suggest_nearest
from embedtune.prompt.answers import fold_options, read_reply
from embedtune.prompt.endpoint import Endpoint
from embedtune.prompt.examples import choose_examples
from embedtune.prompt.template import (
    INSTRUCTION,
    Messages,
    cut_text,
    render_answer,
    render_prompt,
    write_messages,
)

#: Says nothing either way; what a model answers to it is its bias (Zhao et al., 2021).
CONTENT_FREE = "N/A"

#: A server doesn't tell its tokens: texts for it are cut at this many characters per token.
_CHARACTERS_PER_TOKEN = 4


class PromptClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify texts by how likely a decoder finds each label as the answer to a prompt.

    Nothing is trained: `fit` notes the labels and draws the examples that prompts show.

    Parameters
    ----------
    model : str, optional
        A decoder's folder or Hub name; with `endpoint`, the name the server knows it by, None for its only one.
    endpoint : str, optional
        An OpenAI-compatible server, ``http://127.0.0.1:8000/v1``, asked instead of a local model. Its key is read from
        the environment variable OPENAI_API_KEY.
    n_examples : int
        Solved questions in the prompt, in all, as evenly over the labels as can be.
    instruction : str
        Holds ``{options}``, which become the labels.
    options : mapping of label to str, optional
        What a label is called in the prompt, where not by its own name.
    max_length : int
        Tokens of one text, examples included; longer ones are cut. On an endpoint, four characters pass for a token.
    normalisation : {"sum", "mean"}
        Likelihood of the whole answer, or its geometric mean per token. Local models only.
    calibrate : bool
        Divide each answer's likelihood by the one it has when the text is "N/A" (contextual calibration). Local models
        only.
    revision, trust_remote_code, precision, device
        As `embedtune.embed.encoder.TransformerEncoder`.
    batch_tokens : int or "auto"
        Tokens per forward pass, the shared part of the prompts counted for each.
    n_parallel : int
        Requests to the endpoint at a time.
    timeout : float
        Seconds that a request may take.
    random_state : int
        Seeds the choice of examples.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Columns of `predict_proba`.
    examples_ : list of (str, label)
        In the order shown.
    asked_ : str
        The model that answered the last `predict_proba`.
    n_parameters_ : int or None
        Of the local model, once it has been asked.
    last_seconds_ : float
        What the last `predict_proba` took, loading the model not included.
    last_n_asked_ : int
        Distinct texts it asked about.
    last_n_unmatched_ : int
        Answers of the endpoint that named no label; such texts get the same probability for each.

    References
    ----------
    Brown et al. 2020, arXiv 2005.14165 (labels by their likelihood, examples in the prompt); Zhao et al. 2021, arXiv
    2102.09690 (calibration).
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        endpoint: str | None = None,
        n_examples: int = 0,
        instruction: str = INSTRUCTION,
        options: Mapping[Any, str] | None = None,
        max_length: int = 512,
        normalisation: str = "sum",
        calibrate: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
        precision: str = "auto",
        device: str = "auto",
        batch_tokens: int | str = "auto",
        n_parallel: int = 4,
        timeout: float = 60.0,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.endpoint = endpoint
        self.n_examples = n_examples
        self.instruction = instruction
        self.options = options
        self.max_length = max_length
        self.normalisation = normalisation
        self.calibrate = calibrate
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self.precision = precision
        self.device = device
        self.batch_tokens = batch_tokens
        self.n_parallel = n_parallel
        self.timeout = timeout
        self.random_state = random_state

    n_parameters_: int | None = None

    def check(self) -> None:
        """Look for the model's files or the server, without loading or asking anything.

        Raises
        ------
        ConfigError
            If a setting is wrong.
        BackboneError, MissingExtraError
            If the model can't be had, or is no decoder.
        EndpointError
            If the server can't be reached, or lacks the model.
        """
        if self.endpoint is not None:
            if self.calibrate or self.normalisation != "sum":
                raise ConfigError(
                    "calibrate and normalisation need the likelihoods of a local model: leave them out, or endpoint."
                )
            self._connect().find_model()
            return
        if self.model is None:
            raise ConfigError(
                "there is nothing to ask: set model to a decoder's folder or Hub name, or endpoint to a server."
            )
        if self.normalisation not in ("sum", "mean"):
            raise ConfigError(f"normalisation {self.normalisation!r} is unknown: choose sum or mean.")
        from embedtune.prompt.decoder import describe_decoder

        describe_decoder(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def fit(self, texts: Sequence[str], labels: Sequence[Any]) -> Self:
        """Note the labels and draw the examples.

        Parameters
        ----------
        texts : sequence of str, length n
        labels : sequence of str or int, length n

        Raises
        ------
        DataError
            If lengths differ, or there is only one label.
        ConfigError
            If there are fewer texts than `n_examples`, or `options` names an unknown label or one wording twice.
        """
        texts, y = check_texts(texts), np.asarray(labels)
        if len(texts) != len(y):
            raise DataError(f"{len(texts)} texts but {len(y)} labels: give one label per text.")
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise DataError(
                f"all {len(y)} labels are {y[0] if len(y) else 'missing'}: a classifier needs two or more."
            )
        self._word_options()
        rows = choose_examples(texts, y.tolist(), self.n_examples, random_state=self.random_state)
        self.examples_ = [(texts[row], y[row]) for row in rows]
        return self

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return each text's probability of each class, shape (n, n_classes), columns as `classes_`.

        Raises
        ------
        ConfigError, BackboneError, MissingExtraError, EndpointError
            As `check` does.
        BackboneError
            If a prompt is longer than the model can read.
        """
        check_is_fitted(self, "classes_")
        self.check()
        distinct, index = find_distinct(check_texts(texts))
        self.last_n_asked_, self.last_n_unmatched_, self.last_seconds_ = len(distinct), 0, 0.0
        if not distinct:
            return np.empty((0, len(self.classes_)))
        rows = self._score(distinct) if self.endpoint is None else self._ask(distinct)
        probabilities: NDArray[np.float64] = rows[index]
        return probabilities

    def predict(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return each text's most probable class, shape (n,)."""
        winners: NDArray[Any] = self.classes_[self.predict_proba(texts).argmax(axis=1)]
        return winners

    def _score(self, texts: list[str]) -> NDArray[np.float64]:
        from embedtune.prompt.decoder import load_decoder
        from embedtune.prompt.likelihood import rate_answers, score_answers
        from embedtune.prompt.questions import encode_questions

        assert self.model is not None
        decoder = load_decoder(
            self.model,
            revision=self.revision,
            precision=self.precision,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
        )
        self.asked_, self.n_parameters_ = decoder.model_id, decoder.n_parameters
        started = time.monotonic()
        tokenizer, names = decoder.tokenizer, self._word_options()
        asked = [*texts, CONTENT_FREE] if self.calibrate else texts
        with decoder.lock:
            examples = [
                (cut_text(tokenizer, text, max_tokens=self.max_length), label)
                for text, label in self._examples()
            ]
            prompts = []
            for text in asked:
                text = cut_text(tokenizer, text, max_tokens=self.max_length)
                messages = write_messages(text, names, instruction=self.instruction, examples=examples)
                prompts.append(render_prompt(tokenizer, messages))
            answers = [render_answer(tokenizer, name) for name in names]
            questions = encode_questions(tokenizer, prompts, answers)
        longest = max(len(one.context) + max(map(len, one.answers)) for one in questions)
        limit = decoder.description.max_positions
        if limit is not None and longest > limit:
            raise BackboneError(
                f"a prompt of {longest} tokens is longer than the {limit} that '{decoder.model_id}' reads: "
                "set max_length or n_examples lower."
            )
        scores = score_answers(decoder, questions, batch_tokens=self.batch_tokens)
        scores = rate_answers(scores, questions, normalisation=self.normalisation)
        if self.calibrate:
            scores = scores[:-1] - scores[-1]
        self.last_seconds_ = time.monotonic() - started
        return _softmax(scores)

    def _ask(self, texts: list[str]) -> NDArray[np.float64]:
        started = time.monotonic()
        names = self._word_options()
        n_characters = _CHARACTERS_PER_TOKEN * self.max_length
        examples = [(text[:n_characters], label) for text, label in self._examples()]
        conversations: list[Messages] = [
            write_messages(text[:n_characters], names, instruction=self.instruction, examples=examples)
            for text in texts
        ]
        endpoint = self._connect()
        endpoint.model = self.asked_ = endpoint.find_model()
        # room for the longest label and a word or two around it
        replies = endpoint.ask(conversations, max_tokens=16 + max(map(len, names)))
        rows = [read_reply(reply, names) for reply in replies]
        self.last_n_unmatched_ = sum(row is None for row in rows)
        self.last_seconds_ = time.monotonic() - started
        undecided = np.full(len(names), 1 / len(names))
        return np.stack([undecided if row is None else row for row in rows])

    def _examples(self) -> list[tuple[str, str]]:
        """Return the examples, their labels worded."""
        wording = dict(zip(self.classes_.tolist(), self._word_options(), strict=True))
        return [(text, wording[np.asarray(label).item()]) for text, label in self.examples_]

    def _connect(self) -> Endpoint:
        assert self.endpoint is not None
        return Endpoint(self.endpoint, self.model, n_parallel=self.n_parallel, timeout=self.timeout)

    def _word_options(self) -> list[str]:
        """Return what each class is called in the prompt."""
        labels = self.classes_.tolist()
        for label in self.options or {}:
            if label not in labels:
                shown = [str(one) for one in labels]
                raise ConfigError(
                    f"options words the label {label!r}, which no text has{suggest_nearest(str(label), shown)}: "
                    f"the labels are {', '.join(shown)}."
                )
        names = [str((self.options or {}).get(label, label)).strip() for label in labels]
        if self.endpoint is not None:
            fold_options(names)
        else:
            _check_distinct(names)
        return names


def _check_distinct(names: Sequence[str]) -> None:
    for name in names:
        if not name or names.count(name) > 1:
            raise ConfigError(
                f"{names.count(name)} labels are called {name!r} in the prompt: give each a wording of its own "
                "in options."
            )


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exp = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exp / exp.sum(axis=1, keepdims=True)
    return probabilities
