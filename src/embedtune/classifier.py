"""EmbedClassifier: views, joined, under a head; a scikit-learn classifier over texts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import ClassifierMixin, clone
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.validation import check_is_fitted, has_fit_parameter
from threadpoolctl import threadpool_limits

from embedtune.bundle import (
    BundleParts,
    NamedEncoder,
    Reading,
    find_bundle,
    push_bundle,
    read_bundle,
    write_bundle,
)
from embedtune.embed.crossfitted import CrossFittedEncoder
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.texts import check_texts
from embedtune.errors import ConfigError, DataError, suggest_nearest
from embedtune.heads.auto import AutoHead
from embedtune.heads.calibration import Calibrator, Method, find_sets
from embedtune.heads.decision import DECISIONS, Decision, choose_weights, decide
from embedtune.heads.linear import SoftmaxHead
from embedtune.heads.stack import StackHead
from embedtune.heads.table import make_head
from embedtune.heads.training import ClassWeight
from embedtune.views import join_matrices, list_readings, name_views, normalize_embeddings

#: What a stack's ridge regression on all views taken is called among them.
TOGETHER = "All taken, at once"


class EmbedClassifier(ClassifierMixin, _BaseComposition):  # type: ignore[misc]
    """Classify texts by a head on one or several views of them.

    Parameters
    ----------
    views : sequence of encoder or of (str, encoder), or None
        Their columns are joined in this order. None: the last five layers of all-MiniLM-L6-v2, static token vectors
        and TF-IDF.
    head : str or classifier
        ``"auto"``, ``"logistic"``, ``"ridge"``, ``"stack"``, ``"cooccurrence"``, or any scikit-learn classifier.
    head_options : mapping, optional
        Further parameters of a named head.
    class_weight : {"balanced"} or None
        For the named heads.
    normalize : bool
        Scale each text's vector, layer by layer, to norm one before a linear head or stack reads it. Other heads get
        the vectors as they are.
    calibration : {"auto", "temperature", "adaptive", "isotonic", "none"}
        How a named head's probabilities are calibrated on out-of-fold training rows; see `Calibrator`. With ``"none"``
        there are no prediction sets either. A head of your own is left as it is.
    decision : {"likeliest", "macro_f1"}
        Which label `predict` names: the likeliest, or that of the highest weighted probability, the weights chosen on
        out-of-fold training rows for macro-F1. Probabilities are the same. ``"macro_f1"`` is for named heads.
    random_state : int
        Seeds the head.

    A stack (``"stack"``, and ``"auto"`` but for few rows) takes views while they are worth their cost, and encoders
    that bring nothing are dropped; see `StackHead`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Columns of `predict_proba`.
    views_ : list of (str, encoder)
        Fitted encoders, without those that the head doesn't read.
    head_ : classifier
        Fitted head.
    normalizes_ : bool
        Whether vectors are scaled to norm one.
    calibrator_ : Calibrator or None
        Fitted calibrator.
    decision_weights_ : ndarray of shape (n_classes,) or None
        What probabilities are multiplied by before the highest is taken; None where the likeliest label is named.
    out_of_fold_ : ndarray of shape (n, n_classes) or None
        The training rows' calibrated probabilities, each by a head and a calibrator without its fold; not saved.
    selection_ : list of dict
        What each view brought to a stack, in the order taken: ``view`` (`TOGETHER` is the ridge on all taken),
        ``taken``, ``log_loss`` and ``macro_f1`` of the views taken so far with it, out of fold. Empty for other heads;
        not saved.

    Examples
    --------
    >>> classifier = EmbedClassifier([LexicalEncoder()], head="logistic")
    >>> texts = ["sales rose", "profit rose", "orders rose", "sales fell", "profit fell", "orders fell"]
    >>> classifier.fit(texts, ["up", "up", "up", "down", "down", "down"]).predict(["revenue rose"])
    array(['up'], dtype='<U4')
    """

    def __init__(
        self,
        views: Sequence[Any] | None = None,
        head: Any = "auto",
        *,
        head_options: Mapping[str, Any] | None = None,
        class_weight: ClassWeight = None,
        normalize: bool = True,
        calibration: Method = "auto",
        decision: Decision = "likeliest",
        random_state: int = 0,
    ) -> None:
        self.views = views
        self.head = head
        self.head_options = head_options
        self.class_weight = class_weight
        self.normalize = normalize
        self.calibration = calibration
        self.decision = decision
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return parameters by name; with `deep` those of named views too, as ``NAME__PARAMETER``."""
        found: dict[str, Any] = self._get_params("views", deep=deep)
        return found

    def set_params(self, **params: Any) -> Self:
        """Set parameters by the names that `get_params` gives; a view's name alone replaces the view."""
        self._set_params("views", **params)
        return self

    def fit(
        self,
        texts: Sequence[str],
        labels: Sequence[Any],
        groups: Sequence[Any] | None = None,
        *,
        validation: tuple[Sequence[str], Sequence[Any]] | None = None,
    ) -> Self:
        """Fit the views, then the head on their columns.

        Parameters
        ----------
        texts : sequence of str, length n
        labels : sequence of str or int, length n
        groups : sequence, length n, optional
            Rows with equal groups stay on one side of every cross-validation fold.
        validation : pair of texts and labels, optional
            Rows on which the co-occurrence head chooses its settings, instead of a part of the training rows.

        Raises
        ------
        DataError
            If lengths differ, there is no text, or only one label.
        ConfigError
            If there are validation rows and the head chooses by cross-validation, or `decision` is unknown or needs
            out-of-fold rows that there are none of.
        """
        self._check_decision()
        texts = check_texts(texts)
        y = np.asarray(labels)
        if len(texts) != len(y):
            raise DataError(f"{len(texts)} texts but {len(y)} labels: give one label per text.")
        if len(set(y.tolist())) < 2:
            raise DataError(
                f"all {len(y)} labels are {y[0] if len(y) else 'missing'}: a classifier needs two or more."
            )
        self.views_ = [(name, clone(encoder)) for name, encoder in name_views(self.views)]
        self.normalizes_ = self.normalize and isinstance(self.head, str) and self.head != "cooccurrence"
        with config_context(transform_output="default"):  # whatever the caller's frames are
            X = self._join([encoder.fit_transform(texts) for _, encoder in self.views_])
        head = self._make_head() if isinstance(self.head, str) else clone(self.head)
        options: dict[str, Any] = {} if groups is None else {"groups": np.asarray(groups)}
        if validation is not None:
            if not has_fit_parameter(head, "validation"):
                raise ConfigError(
                    f"{type(head).__name__} chooses by cross-validation inside the training rows: "
                    "leave validation out, or set head to 'cooccurrence'."
                )
            options["validation"] = (self._join_views(validation[0]), np.asarray(validation[1]))
        self.calibrator_, self.out_of_fold_, self.decision_weights_ = None, None, None
        calibrates = isinstance(self.head, str) and self.calibration != "none"
        with threadpool_limits(limits=getattr(head, "n_threads", None)):
            if calibrates:
                raw = head.fit_out_of_fold(X, y, **options)
                calibrator = Calibrator(self.calibration, random_state=self.random_state)
                codes = np.searchsorted(head.classes_, y)
                self.out_of_fold_ = calibrator.fit_transform(raw, codes, options.get("groups"))
                self.calibrator_ = calibrator
                if self.decision == "macro_f1":
                    self.decision_weights_ = choose_weights(self.out_of_fold_, codes)
            else:
                head.fit(X, y, **options)
        self.head_, self.classes_ = head, head.classes_
        self._note_selection()
        return self

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return each text's probability of each class, shape (n, n_classes), columns as `classes_`."""
        check_is_fitted(self, "head_")
        texts = check_texts(texts)
        if not texts:
            return np.empty((0, len(self.classes_)))
        probabilities: NDArray[np.float64] = self.head_.predict_proba(self.transform(texts))
        if self.calibrator_ is not None:
            probabilities = self.calibrator_.transform(probabilities)
        return probabilities

    def predict_sets(self, texts: Sequence[str], *, coverage: float = 0.9) -> list[list[Any]]:
        """Return for each text the labels that can't be ruled out, the likeliest first.

        Over new texts like the training ones, a share `coverage` or more of the sets holds the true label.

        Raises
        ------
        ConfigError
            If the classifier has no calibrator, or `coverage` is not between 0 and 1.
        """
        return self.list_sets(self.predict_proba(texts), coverage=coverage)

    def list_sets(self, probabilities: NDArray[np.float64], *, coverage: float = 0.9) -> list[list[Any]]:
        """Return what `predict_sets` does for rows of probabilities (n, n_classes); raises as it does."""
        check_is_fitted(self, "head_")
        if self.calibrator_ is None:
            raise ConfigError(
                "this classifier has no out-of-fold rows to take sets from: fit a named head with calibration "
                "'auto', 'temperature' or 'isotonic'."
            )
        threshold = self.calibrator_.find_threshold(coverage)
        order = np.argsort(-probabilities, axis=1, kind="stable")
        sizes = find_sets(probabilities, threshold).sum(axis=1) if len(probabilities) else []
        return [np.asarray(self.classes_)[row[:n]].tolist() for row, n in zip(order, sizes, strict=True)]

    def predict(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return each text's class, shape (n,): the most probable one, if `decision` doesn't say otherwise."""
        return self.decide(self.predict_proba(texts))

    def decide(self, probabilities: NDArray[np.float64]) -> NDArray[Any]:
        """Return the class that `predict` names for each row of probabilities (n, n_classes), shape (n,)."""
        check_is_fitted(self, "head_")
        winners: NDArray[Any] = np.asarray(self.classes_)[decide(probabilities, self.decision_weights_)]
        return winners

    def find_cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which texts are longer than a backbone reads and so cut off, shape (n,)."""
        check_is_fitted(self, "head_")
        cut = np.zeros(len(texts), dtype=np.bool_)
        for _, encoder in self.views_:
            if isinstance(encoder, TransformerEncoder | CrossFittedEncoder):
                cut |= encoder.find_cut(texts)
        return cut

    def transform(self, texts: Sequence[str]) -> Any:
        """Return the joined views as the head reads them, (n, sum of widths): dense float32 or CSR."""
        check_is_fitted(self, "head_")
        return self._join_views(texts)

    def _join_views(self, texts: Sequence[str]) -> Any:
        with config_context(transform_output="default"):
            return self._join([encoder.transform(check_texts(texts)) for _, encoder in self.views_])

    def _join(self, matrices: Sequence[Any]) -> Any:
        if self.normalizes_:
            encoders = [encoder for _, encoder in self.views_]
            matrices = [
                normalize_embeddings(matrix, encoder)
                for matrix, encoder in zip(matrices, encoders, strict=True)
            ]
        return join_matrices(matrices)

    def save(
        self, path: str | Path, *, standalone: bool = False, notes: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the fitted classifier as a bundle, with the backbones in it if `standalone`; see `embedtune.bundle`."""
        check_is_fitted(self, "head_")
        parts = BundleParts(
            self.views_,
            self.head_,
            list(self.classes_),
            calibrator=self.calibrator_,
            decision_weights=self.decision_weights_,
            normalizes=self.normalizes_,
            notes=notes or {},
        )
        return write_bundle(parts, path, standalone=standalone)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        standalone: bool = False,
        message: str = "Upload a bundle",
    ) -> str:
        """Save to the Hugging Face Hub as a model, and return its address.

        Parameters
        ----------
        repo_id : str
            ``organisation/name``; made if missing. HF_TOKEN says who writes.
        private : bool
            Of a model that is made.
        standalone : bool
            As in `save`.

        Raises
        ------
        BundleError
            If the Hub refuses or can't be reached.
        """
        with tempfile.TemporaryDirectory() as place:
            folder = self.save(Path(place) / "bundle", standalone=standalone)
            return push_bundle(folder, repo_id, private=private, message=message)

    @classmethod
    def from_finetuned(
        cls, encoder: TransformerEncoder, *, weight: Any, bias: Any, labels: Sequence[str]
    ) -> Self:
        """Return the end-to-end classifier of a fine-tuned backbone: softmax(W x + b) of its pooled last layer.

        Parameters
        ----------
        encoder : TransformerEncoder
            Reads the layer and pooling the head was trained on, with its adapter.
        weight : array of shape (n_labels, width)
        bias : array of shape (n_labels,)
        labels : sequence of str
            In the order of the rows of `weight`.
        """
        return cls.from_fitted([("end-to-end", encoder)], SoftmaxHead.from_weights(weight, bias, labels))

    @classmethod
    def from_fitted(
        cls,
        views: Sequence[NamedEncoder],
        head: Any,
        calibrator: Calibrator | None = None,
        decision_weights: NDArray[np.float64] | None = None,
        normalizes: bool = False,
    ) -> Self:
        """Return a classifier of fitted encoders and a head fitted on their columns."""
        classifier = cls(list(views), head)
        classifier.normalizes_ = normalizes
        classifier.decision_weights_ = decision_weights
        classifier.calibrator_, classifier.out_of_fold_, classifier.selection_ = calibrator, None, []
        classifier.views_, classifier.head_, classifier.classes_ = list(views), head, head.classes_
        return classifier

    def _check_decision(self) -> None:
        if self.decision not in DECISIONS:
            raise ConfigError(
                f"decision {self.decision!r} is unknown{suggest_nearest(str(self.decision), DECISIONS)}: "
                f"choose one of {', '.join(DECISIONS)}."
            )
        if self.decision == "macro_f1" and (not isinstance(self.head, str) or self.calibration == "none"):
            raise ConfigError(
                "decision 'macro_f1' needs out-of-fold rows to choose weights on: name a head, and a calibration other "
                "than 'none'."
            )

    def _make_head(self) -> Any:
        readings = list_readings(self.views_)
        return make_head(
            self.head,
            widths=tuple(width for _, encoder in self.views_ for width in encoder.widths_),
            views=tuple(reading.blocks for reading in readings),
            sources=tuple(reading.source for reading in readings),
            class_weight=self.class_weight,
            random_state=self.random_state,
            options=self.head_options,
        )

    def _note_selection(self) -> None:
        """Name what the head chose among, and drop the encoders it doesn't read."""
        self.selection_ = []
        if not (isinstance(self.head, str) and isinstance(self.head_, AutoHead | StackHead)):
            return
        readings = list_readings(self.views_)
        names = [*(reading.name for reading in readings), TOGETHER]
        self.selection_ = [{**step, "view": names[step["view"]]} for step in self.head_.selection_]
        read = set(self.head_.blocks_)
        first = 0
        views: list[NamedEncoder] = []
        blocks: list[int] = []
        for view in self.views_:
            own = range(first, first + len(view[1].widths_))
            first = own.stop
            if read.intersection(own):
                views.append(view)
                blocks += own
        self.head_.keep_blocks(blocks)
        self.views_ = views


def load_bundle(
    path: str | Path,
    *,
    revision: str | None = None,
    store: Any = None,
    device: str = "auto",
    models: Mapping[str, str | Path] | None = None,
    trust_remote_code: bool = False,
) -> EmbedClassifier:
    """Load a bundle as the fitted EmbedClassifier it was saved from.

    Parameters
    ----------
    path : path or str
        A folder, or the name of a model on the Hugging Face Hub.
    revision : str, optional
        Branch, tag or commit on the Hub.
    store, device
        Given to its transformer views.
    models : mapping, optional
        Where its backbones are, by the name the bundle has for them, if not where they were when it was saved.
    trust_remote_code : bool
        Let backbones run Python code of their own. A bundle can't ask for it.

    Raises
    ------
    BundleError
        If it is damaged, changed, too new, or its backbone differs from the one it was trained on.
    BackboneError
        If a backbone isn't there.
    """
    folder, root = find_bundle(path, revision=revision)
    reading = Reading(store, device, trust_remote_code, models or {})
    parts = read_bundle(folder, root=root, reading=reading)
    return EmbedClassifier.from_fitted(
        parts.views, parts.head, parts.calibrator, parts.decision_weights, parts.normalizes
    )
