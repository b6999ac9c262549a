"""Bundles made ready to be served: named, loaded, warmed up, their tokens countable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from embedtune.bundle import find_bundle
from embedtune.classifier import EmbedClassifier, load_bundle
from embedtune.embed.backbone import describe_backbone, keep_backbones
from embedtune.embed.crossfitted import CrossFittedEncoder, list_backbones
from embedtune.embed.encoder import TransformerEncoder
from embedtune.errors import ConfigError

#: What a text is read for: probabilities of the labels, or its vector.
Kind = Literal["predict", "embed"]

#: Joined views with more columns than this are no embedding that one would send.
MAX_WIDTH = 16_384


class TokenCounts(NamedTuple):
    """Per text: the tokens that backbones read, int64 (n_texts,), and whether any are left out, bool (n_texts,)."""

    read: NDArray[np.int64]
    cut: NDArray[np.bool_]


class ServedModel:
    """A classifier under a name.

    Parameters
    ----------
    name : str
    classifier : EmbedClassifier
        Fitted.
    created : int
        Unix time of the bundle.

    Attributes
    ----------
    labels : list
        Columns of the probabilities.
    width : int or None
        Length of a vector; None where the joined views have more than `MAX_WIDTH` columns.
    """

    def __init__(self, name: str, classifier: EmbedClassifier, *, created: int = 0) -> None:
        self.name, self.classifier, self.created = name, classifier, created
        self.labels: list[Any] = np.asarray(classifier.classes_).tolist()
        backbones = [encoder for _, encoder in classifier.views_ if _is_backbone(encoder)]
        self._backbones = [_first_fold(encoder) for encoder in backbones]
        self._embedder = backbones[0] if backbones else None
        self.width = self._measure_width()

    def read(self, kind: Kind, texts: Sequence[str]) -> NDArray[Any]:
        """Return probabilities, float64 (n_texts, n_labels), or vectors of norm one, float32 (n_texts, width)."""
        return self.classifier.predict_proba(texts) if kind == "predict" else self._embed(texts)

    def count_tokens(self, kind: Kind, texts: Sequence[str]) -> TokenCounts:
        """Count tokens of all backbones that `kind` reads; words where no backbone is read."""
        encoders = self._backbones if kind == "predict" else self._backbones[:1]
        if not encoders:
            words = np.array([len(text.split()) for text in texts], dtype=np.int64)
            return TokenCounts(words, np.zeros(len(texts), dtype=np.bool_))
        read = np.zeros(len(texts), dtype=np.int64)
        cut = np.zeros(len(texts), dtype=np.bool_)
        for encoder in encoders:
            counts = _count(encoder, texts)
            if encoder.long_texts == "cut":
                cut |= counts > encoder.max_length
                counts = np.minimum(counts, encoder.max_length)
            read += counts
        return TokenCounts(read, cut)

    def warm_up(self) -> None:
        """Load what is loaded by the first text."""
        for kind in ("predict", "embed") if self.width else ("predict",):
            self.count_tokens(kind, ["a text"])
            self.read(kind, ["a text", "a somewhat longer text"])

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self._embedder is None:
            vectors = self.classifier.transform(texts)
            dense = vectors.toarray() if sparse.issparse(vectors) else np.asarray(vectors)
        else:
            dense = self._embedder.transform(texts)[:, self._last_layer()]
        norms = np.linalg.norm(dense, axis=1, keepdims=True)
        scaled: NDArray[np.float32] = (dense / np.where(norms > 0, norms, 1)).astype(np.float32)
        return scaled

    def _last_layer(self) -> slice:
        """Return the columns of the highest layer that is read, under the first pooling."""
        assert self._embedder is not None
        width = self._embedder.widths_[0]
        start = int(np.argmax(self._embedder.layers_)) * width
        return slice(start, start + width)

    def _measure_width(self) -> int | None:
        if self._embedder is not None:
            return int(self._embedder.widths_[0])
        total = sum(sum(encoder.widths_) for _, encoder in self.classifier.views_)
        return total if total <= MAX_WIDTH else None


def load_models(
    bundles: Sequence[str], *, device: str = "auto", precision: str | None = None
) -> dict[str, ServedModel]:
    """Load bundles, each given as a path or as ``name=path``, and return them by name.

    Parameters
    ----------
    bundles : sequence of str
        Without a name, the folder's is taken.
    device : str
        Given to the transformer views.
    precision : str, optional
        Read backbones in this one, whatever the bundle says.

    Raises
    ------
    ConfigError
        If none is given, two have one name, or a name has other than letters, digits, ``.``, ``_`` and ``-``.
    BundleError
        If one can't be trusted.
    """
    if not bundles:
        raise ConfigError(
            "no bundle is given: name the bundle folder of a run, such as runs/demo/sentiment/bundle."
        )
    paths: dict[str, Path] = {}
    for bundle in bundles:
        name, path = _split_name(bundle)
        if name in paths:
            raise ConfigError(
                f"two bundles are called '{name}' ({paths[name]} and {path}): name one, as in other={path}."
            )
        paths[name] = path
    models = {}
    for name, path in paths.items():
        classifier = load_bundle(path, device=device)
        if precision is not None:
            for _, encoder in list_backbones(classifier.views_):
                encoder.set_params(precision=precision)
        models[name] = ServedModel(
            name, classifier, created=int((find_bundle(path)[0] / "bundle.json").stat().st_mtime)
        )
    keep_backbones(sum(len(list(list_backbones(model.classifier.views_))) for model in models.values()))
    for model in models.values():
        model.warm_up()
    return models


def _split_name(bundle: str) -> tuple[str, Path]:
    name, is_named, path = bundle.partition("=")
    if not is_named or Path(bundle).exists():
        name, path = Path(bundle).resolve().name, bundle
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ConfigError(
            f"'{name}' can't name a model: use letters, digits, '.', '_' and '-', as in my-model={path}."
        )
    return name, Path(path)


def _is_backbone(encoder: Any) -> bool:
    return isinstance(encoder, TransformerEncoder | CrossFittedEncoder)


def _first_fold(encoder: Any) -> TransformerEncoder:
    """Return an encoder that cuts texts into tokens as this one does: folds differ in their adapters alone."""
    first: TransformerEncoder = encoder.encoders[0] if isinstance(encoder, CrossFittedEncoder) else encoder
    return first


def _count(encoder: TransformerEncoder, texts: Sequence[str]) -> NDArray[np.int64]:
    tokenizer = describe_backbone(
        encoder.model,
        adapter=encoder.adapter,
        revision=encoder.revision,
        trust_remote_code=encoder.trust_remote_code,
    ).tokenizer
    encoded = tokenizer(
        [encoder.prefix + text for text in texts],
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # else it warns of every text that is longer than the model reads
    )
    return np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
