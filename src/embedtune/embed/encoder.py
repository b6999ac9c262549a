"""TransformerEncoder: texts to the hidden layers of a backbone, one row per text."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from embedtune.embed.backend import name_reading, resolve_backend
from embedtune.embed.batching import plan_batches
from embedtune.embed.pieces import Pieces, check_long_texts, split_texts
from embedtune.embed.pooling import MODEL_POOLINGS, check_pooling
from embedtune.embed.precision import resolve_device, resolve_precision
from embedtune.embed.runner import Column, Runner, Vectors
from embedtune.embed.store import EmbeddingStore, EmbeddingTable, StoreKey, column_name, hash_text
from embedtune.embed.texts import FrozenEncoder, check_texts, find_distinct
from embedtune.embed.tokens import Tokens, find_longer, tokenize
from embedtune.embed.waiting import Waiting
from embedtune.errors import BackboneError, ConfigError
from embedtune.progress import track

if TYPE_CHECKING:
    from embedtune.embed.backbone import Backbone, Description

#: Padded tokens per batch, by kind of device.
BATCH_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}

#: Texts that are tokenized, sorted by length and cut into batches together. Memory for tokens stays below this many
#: texts' however many there are; of so many, most batches are of one length.
WINDOW_TEXTS = 16_384


class StoredTexts(NamedTuple):
    """What `TransformerEncoder.store_texts` did.

    Attributes
    ----------
    n_texts : int
        Texts read, repeats included.
    n_computed : int
        Those that were run through the backbone: the store lacked them.
    seconds : float
    n_parameters : int or None
        Of the backbone; None if it wasn't needed.
    """

    n_texts: int
    n_computed: int
    seconds: float
    n_parameters: int | None


class TransformerEncoder(FrozenEncoder):
    """Read texts with chosen hidden layers of a frozen transformer.

    Distinct texts are run once, in batches of similar length; layers above the highest one asked for aren't
    run. The backbone is loaded when a text needs it, shared between encoders, and never part of a pickle.

    Parameters
    ----------
    model : str or Path
        A folder, a Hub name, or ``"all-MiniLM-L6-v2"``, which comes as a package.
    layers : sequence of int, int, ``"all"`` or ``"lastK"``
        Hidden states: 0 is the embedding layer, negative numbers count from the end.
    pooling : {"mean", "weighted_mean", "cls", "last", "max", "pooler", "mean_padded"}, or several of the first five
        Several are read in one pass: all layers under the first, then all under the second, and so on.
        ``weighted_mean`` gives the i-th token weight i, which suits a decoder (arXiv 2202.08904).
        ``pooler`` is the model's own pooler (last layer only); ``mean_padded`` pads to `max_length` and
        averages over padding too, as published LLMEmbed does. In a decoder the first token sees nothing but
        itself, so ``cls`` is the same vector for every text.
    max_length : int
        Tokens per text, special tokens and prefix included.
    long_texts : {"cut", "split"}
        What becomes of longer texts: the rest is cut off, or they are read in pieces of so many tokens, whose vectors
        are averaged, weighted by tokens (under ``max`` pooling the maximum). A store keeps the pieces.
    precision : {"auto", "float32", "bfloat16", "float16", "int8", "nf4"}
        ``int8`` and ``nf4`` hold the weights in 8 and 4 bits (bitsandbytes; CUDA, or slowly a CPU) and compute in what
        ``auto`` would be. An adapter stays beside such weights unmerged. Under OpenVINO ``int8`` also rounds
        what the weights are multiplied with.
    backend : {"auto", "torch", "openvino"}
        What runs the model; see `embed.backend`. OpenVINO is the fastest on a CPU, and torch the exact one.
    adapter : str or Path, optional
        A folder that `embedtune.finetune.fine_tune` wrote.
    prefix : str
        Put before every text. Mean and max leave its tokens out.
    store : str, Path or EmbeddingStore, optional
        Where embeddings are kept. With a store, values are the stored ones, rounded to float16.
    batch_tokens : int or "auto"
        Padded tokens per forward pass.
    device : str
        ``"auto"`` or a torch device.
    device_map : {None, "auto", "balanced", "sequential"}
        Spread a model that is too large for one device over all of them.
    revision : str, optional
        Branch, tag or commit on the Hub.
    trust_remote_code : bool
        Run the model's own Python code.

    Attributes
    ----------
    layers_ : tuple of int
        Hidden-state numbers from 0, in the order of `layers`.
    widths_ : tuple of int
        Columns per layer (and pooling), in the same order.
    n_parameters_ : int or None
        Parameters of the backbone; None before it was loaded.
    last_n_computed_ : int
        Texts that the last `transform` ran through the backbone.
    last_seconds_ : float
        Seconds that the last `transform` took.

    References
    ----------
    Pooled layers as features: arXiv 2406.03725, section 3.
    """

    def __init__(
        self,
        model: str | Path = "all-MiniLM-L6-v2",
        *,
        layers: int | str | Sequence[int] = (-1,),
        pooling: str | Sequence[str] = "mean",
        max_length: int = 128,
        long_texts: str = "cut",
        precision: str = "auto",
        backend: str = "auto",
        adapter: str | Path | None = None,
        prefix: str = "",
        store: str | Path | EmbeddingStore | None = None,
        batch_tokens: int | str = "auto",
        device: str = "auto",
        device_map: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.model = model
        self.layers = layers
        self.pooling = pooling
        self.max_length = max_length
        self.long_texts = long_texts
        self.precision = precision
        self.backend = backend
        self.adapter = adapter
        self.prefix = prefix
        self.store = store
        self.batch_tokens = batch_tokens
        self.device = device
        self.device_map = device_map
        self.revision = revision
        self.trust_remote_code = trust_remote_code

    n_parameters_: int | None = None

    def fit(self, X: Sequence[str], y: Any = None) -> Self:
        """Do nothing: the backbone is as it is."""
        return self

    def transform(self, X: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts.

        Parameters
        ----------
        X : list, tuple, ndarray of shape (n_texts,) or Series of str

        Returns
        -------
        ndarray of float32, shape (n_texts, n_poolings * n_layers * width)
            The layers side by side, in the order asked, pooling by pooling.

        Raises
        ------
        DataError
            If `X` isn't made of strings.
        ConfigError
            If a setting is unknown or out of range.
        BackboneError, MissingExtraError
            If the model, a layer, its pooler or the adapter can't be used.
        ResourceError
            If not even one text fits into memory.
        StoreError
            If the store is damaged.
        """
        started = time.perf_counter()
        distinct, index = find_distinct(check_texts(X))
        columns = self.columns_
        pieces = self._split(distinct)
        read, place = (distinct, None) if pieces is None else find_distinct(pieces.texts)
        if self.store is None:
            vectors, missing = self._compute_all(read, columns), np.ones(len(read), dtype=np.bool_)
        else:
            vectors, missing = self._compute_missing(read, columns, self._open_table())
        if pieces is not None:
            vectors = {
                column: pieces.pool(values[place], pooling=column[1]) for column, values in vectors.items()
            }
        self.last_n_computed_ = _count_texts(missing, pieces, place)
        embeddings = np.concatenate([vectors[column][index] for column in columns], axis=1)
        self.last_seconds_ = time.perf_counter() - started
        return embeddings

    def store_texts(self, texts: Iterable[str], *, part: tuple[int, int] = (0, 1)) -> StoredTexts:
        """Put the embeddings of any number of texts into the store, and hold none of them longer than it takes.

        Texts are taken from the iterator `WINDOW_TEXTS` at a time, and only what the store lacks is run, so memory
        doesn't grow with their number. A killed call that is repeated goes on where it was.

        Parameters
        ----------
        texts : iterable of str
            A list, a generator over a file's lines, …
        part : (int, int)
            Number of a part, from 0, and of how many: of each window's batches only those of the part are run. All
            parts together run the batches that one process would.

        Returns
        -------
        StoredTexts
            What was read and what of it was run.

        Raises
        ------
        ConfigError
            If the encoder has no store, and as `transform` does.
        DataError, BackboneError, MissingExtraError, ResourceError, StoreError
            As `transform` does.
        """
        started = time.perf_counter()
        if self.store is None:
            raise ConfigError("the encoder has no store to put texts into: set store to a folder.")
        columns = self.columns_
        table = self._open_table()
        remaining = iter(check_texts(texts) if isinstance(texts, str) else texts)
        n_texts = n_computed = 0
        while window := check_texts(itertools.islice(remaining, WINDOW_TEXTS)):
            distinct = list(dict.fromkeys(window))
            pieces = self._split(distinct)
            read, place = (distinct, None) if pieces is None else find_distinct(pieces.texts)
            hashes = [hash_text(text) for text in read]
            missing = self._store_missing(read, hashes, columns, table, part=part)
            n_computed += _count_texts(missing, pieces, place)
            n_texts += len(window)
        self.last_n_computed_ = n_computed
        self.last_seconds_ = time.perf_counter() - started
        return StoredTexts(n_texts, n_computed, self.last_seconds_, self.n_parameters_)

    def count_missing(self, texts: Sequence[str]) -> int:
        """Return how many texts, or pieces of long ones, the store lacks."""
        distinct = list(dict.fromkeys(check_texts(texts)))
        pieces = self._split(distinct)
        read = distinct if pieces is None else list(dict.fromkeys(pieces.texts))
        names = [column_name(*column) for column in self.columns_]
        missing = self._open_table().find_missing([hash_text(text) for text in read], names)
        return int(missing.sum())

    def find_cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which texts have more tokens than are read, shape (n_texts,); none where long texts are split."""
        if self.long_texts == "split":
            return np.zeros(len(texts), dtype=np.bool_)
        from embedtune.embed.quiet import hush_libraries

        with hush_libraries():  # a warning that texts are longer than the model reads
            return find_longer(
                self._describe().tokenizer, texts, max_length=self.max_length, prefix=self.prefix
            )

    @property
    def layers_(self) -> tuple[int, ...]:
        """Hidden-state numbers from 0, in the order of `layers`; reads the model's config."""
        return self._check()

    @property
    def columns_(self) -> tuple[Column, ...]:
        """Layer and pooling of each block, in order; reads the model's config."""
        layers = self._check()
        return tuple((layer, pooling) for pooling in self._poolings for layer in layers)

    @property
    def widths_(self) -> tuple[int, ...]:
        """Columns per layer and pooling; reads the model's config."""
        return (self._describe().width,) * (len(self._check()) * len(self._poolings))

    @property
    def reading_(self) -> str:
        """What decides how values are rounded, as in ``"bfloat16+openvino"``; reads the model's config."""
        return name_reading(self.precision, resolve_device(self.device), self._resolve_backend())

    @property
    def _poolings(self) -> tuple[str, ...]:
        return (self.pooling,) if isinstance(self.pooling, str) else tuple(self.pooling)

    def _split(self, texts: list[str]) -> Pieces | None:
        """Return the texts' pieces, None where they are read whole, or cut."""
        if self.long_texts == "cut" or not texts:
            return None
        from embedtune.embed.quiet import hush_libraries

        with hush_libraries():  # a warning that texts are longer than the model reads
            return split_texts(
                self._describe().tokenizer, texts, max_length=self.max_length, prefix=self.prefix
            )

    def _resolve_backend(self) -> str:
        bound = self.device_map is not None or self.trust_remote_code
        return resolve_backend(
            self.backend,
            precision=self.precision,
            device=resolve_device(self.device),
            pooling=self._poolings,
            description=None if bound else self._describe(),
        )

    def _check(self) -> tuple[int, ...]:
        """Validate the settings and return the layers' numbers."""
        from embedtune.embed.backbone import check_device_map, resolve_layers

        for pooling in self._poolings:
            check_pooling(pooling)
        if len(set(self._poolings)) < len(self._poolings) or not self._poolings:
            raise ConfigError(f"pooling is {self.pooling!r}: give one name, or several different ones.")
        if len(self._poolings) > 1 and set(self._poolings) & set(MODEL_POOLINGS):
            raise ConfigError(
                f"pooling {', '.join(MODEL_POOLINGS)} stands alone: give each an encoder of its own."
            )
        check_long_texts(self.long_texts)
        check_device_map(self.device_map, self.device)
        resolve_precision(self.precision, resolve_device(self.device), backend=self._resolve_backend())
        described = self._describe()
        layers = resolve_layers(self.layers, described.n_layers, name=described.model_id)
        if "pooler" in self._poolings and set(layers) != {described.n_layers}:
            raise ConfigError(
                f"pooling 'pooler' reads the last layer only, not {self.layers!r}: set layers to (-1,)."
            )
        limit = described.max_positions
        if not 1 <= self.max_length <= (limit or self.max_length):
            raise ConfigError(
                f"max_length {self.max_length} is out of range for '{described.model_id}': set it to 1"
                + (f" to {limit}." if limit else " or more.")
            )
        if self.batch_tokens != "auto" and not (isinstance(self.batch_tokens, int) and self.batch_tokens > 0):
            raise ConfigError(
                f"batch_tokens {self.batch_tokens!r} is not valid: set it to 'auto' or a positive number."
            )
        return layers

    def _describe(self) -> Description:
        from embedtune.embed.backbone import describe_backbone

        return describe_backbone(
            self.model, adapter=self.adapter, revision=self.revision, trust_remote_code=self.trust_remote_code
        )

    def _load(self) -> Backbone:
        from embedtune.embed.backbone import load_backbone

        backbone = load_backbone(
            self.model,
            adapter=self.adapter,
            revision=self.revision,
            # What is converted is converted exactly; OpenVINO rounds.
            precision="float32" if self._resolve_backend() == "openvino" else self.precision,
            device=self.device,
            device_map=self.device_map,
            trust_remote_code=self.trust_remote_code,
        )
        if "pooler" in self._poolings and not backbone.has_pooler:
            raise BackboneError(
                f"'{backbone.model_id}' has no trained pooler: set pooling to mean, cls or last."
            )
        self.n_parameters_ = backbone.n_parameters
        return backbone

    def _make_runner(self, backbone: Backbone, columns: tuple[Column, ...]) -> Runner:
        if self._resolve_backend() == "openvino":
            from embedtune.embed.openvino import OpenVinoRunner

            precision = resolve_precision(self.precision, backbone.device, backend="openvino")
            return OpenVinoRunner(backbone, columns, precision=precision)
        if (
            backbone.device.startswith("cuda")
            and self.device_map is None
            and not set(self._poolings) & set(MODEL_POOLINGS)
        ):
            from embedtune.embed.packed import PackedRunner, can_pack

            if can_pack(backbone):
                return PackedRunner(backbone, columns)
        from embedtune.embed.forward import TorchRunner

        return TorchRunner(backbone, columns, max_length=self.max_length)

    def _open_table(self) -> EmbeddingTable:
        described = self._describe()
        store = self.store if isinstance(self.store, EmbeddingStore) else EmbeddingStore(self.store)
        key = StoreKey(
            backbone=described.model_id,
            weights=f"{described.weights_hash}/{described.config_hash[:16]}",
            adapter=described.adapter_hash or None,
            tokenizer=described.tokenizer_hash,
            max_length=self.max_length,
            prefix=self.prefix,
            precision=self.reading_,
        )
        return store.table(key)

    def _compute_all(self, texts: list[str], columns: tuple[Column, ...]) -> Vectors:
        width = self._describe().width
        vectors = {column: np.empty((len(texts), width), dtype=np.float32) for column in columns}
        missing = np.ones(len(texts), dtype=np.bool_)
        with closing(self._run(texts, missing, columns)) as batches:
            for rows, found in batches:
                for column, values in found.items():
                    vectors[column][rows] = values
        return vectors

    def _compute_missing(
        self, texts: list[str], columns: tuple[Column, ...], table: EmbeddingTable
    ) -> tuple[Vectors, NDArray[np.bool_]]:
        """Compute and store what the table lacks, then return what it holds, and what it lacked: no repeat differs."""
        hashes = [hash_text(text) for text in texts]
        names = {column: column_name(*column) for column in columns}
        missing = self._store_missing(texts, hashes, columns, table)
        stored = table.read(hashes, list(names.values())) if texts else {}
        width = self._describe().width
        empty = np.empty((0, width), dtype=np.float32)
        return {
            column: stored[name].astype(np.float32) if texts else empty for column, name in names.items()
        }, missing

    def _store_missing(
        self,
        texts: list[str],
        hashes: list[bytes],
        columns: tuple[Column, ...],
        table: EmbeddingTable,
        *,
        part: tuple[int, int] = (0, 1),
    ) -> NDArray[np.bool_]:
        """Compute and store what the table lacks of (a part of) distinct texts, and return which those are."""
        names = {column: column_name(*column) for column in columns}
        missing = table.find_missing(hashes, list(names.values()))
        computed = np.zeros(len(texts), dtype=np.bool_)
        waiting = Waiting(table, hashes, names)
        try:
            with closing(self._run(texts, missing, columns, part=part)) as batches:
                for rows, found in batches:
                    waiting.add(rows, found)
                    computed[rows] = True
        finally:
            waiting.commit()
        return computed

    def _run(
        self,
        texts: list[str],
        missing: NDArray[np.bool_],
        columns: tuple[Column, ...],
        *,
        part: tuple[int, int] = (0, 1),
    ) -> Generator[tuple[NDArray[np.intp], Vectors], None, None]:
        """Yield (rows, vectors) batch by batch for the missing texts.

        Batches are planned over all texts of a window and those without a missing one skipped, so an interrupted
        run goes on with the batches that it would have had.
        """
        if not missing.any():
            return
        backbone = self._load()
        runner = self._make_runner(backbone, columns)
        with backbone.lock, track(f"embed with {backbone.model_id}", int(missing.sum()), unit="texts") as bar:
            for start in range(0, len(texts), WINDOW_TEXTS):
                lacking = missing[start : start + WINDOW_TEXTS]
                if not lacking.any():
                    continue
                tokens = tokenize(
                    backbone.tokenizer,
                    texts[start : start + WINDOW_TEXTS],
                    max_length=self.max_length,
                    prefix=self.prefix,
                )
                planned = plan_batches(self._measure(tokens), max_tokens=self._budget(backbone.device))
                batches = (batch[lacking[batch]] for batch in planned[part[0] :: part[1]])
                for rows, found in runner.run(tokens, (rows for rows in batches if len(rows))):
                    yield start + rows, found
                    bar.advance(len(rows))

    def _measure(self, tokens: Tokens) -> NDArray[np.int64]:
        if "mean_padded" in self._poolings:
            return np.full(len(tokens.ids), self.max_length, dtype=np.int64)
        return tokens.lengths

    def _budget(self, device: str) -> int:
        return (
            BATCH_TOKENS.get(device.partition(":")[0], 8192)
            if self.batch_tokens == "auto"
            else int(self.batch_tokens)
        )


def _count_texts(missing: NDArray[np.bool_], pieces: Pieces | None, place: NDArray[np.intp] | None) -> int:
    """Return of how many texts any piece was missing; `place` numbers each piece's text among those read."""
    if pieces is None or place is None:
        return int(missing.sum())
    return len(np.unique(pieces.owner[missing[place]]))
