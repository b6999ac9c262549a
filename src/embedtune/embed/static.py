"""StaticEncoder: texts to the mean of static token vectors, without running any network."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from embedtune.embed.checkpoints import check_kinds
from embedtune.embed.texts import FrozenEncoder, check_texts, find_distinct
from embedtune.errors import BackboneError, EmbedtuneError, MissingExtraError
from embedtune.progress import track

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Token ids are turned into vectors this many texts at a time.
_N_TEXTS_PER_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class TokenTable:
    """A tokenizer and one vector per token.

    Attributes
    ----------
    tokenizer : tokenizers.Tokenizer
        Adds nothing, cuts nothing, pads nothing.
    vectors : ndarray of float32, shape (n_tokens, width)
    skipped : int or None
        A token id that is left out of the mean: model2vec's unknown token.
    normalizes : bool
        Whether rows are scaled to length 1.
    """

    tokenizer: Tokenizer
    vectors: NDArray[np.float32]
    skipped: int | None
    normalizes: bool


class StaticEncoder(FrozenEncoder):
    """Average the static vectors of a text's tokens.

    Parameters
    ----------
    source : str or Path
        ``"wordllama"``, the LLaMA-derived table in the package of that name, or a model2vec folder
        (model.safetensors, tokenizer.json, config.json).

    Attributes
    ----------
    widths_ : tuple of int
        One block.
    n_parameters_ : int
        Size of the table.

    References
    ----------
    WordLlama: https://github.com/dleemiller/WordLlama. model2vec: https://github.com/MinishLab/model2vec.
    """

    def __init__(self, source: str | Path = "wordllama") -> None:
        self.source = source

    def fit(self, X: Sequence[str], y: Any = None) -> Self:
        """Do nothing: the table is as it is."""
        return self

    def transform(self, X: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; special tokens don't count, and a text without tokens gives zeros.

        Returns
        -------
        ndarray of float32, shape (n_texts, width)

        Raises
        ------
        DataError
            If `X` isn't made of strings.
        BackboneError
            If the source is no such table.
        MissingExtraError
            If it is ``"wordllama"`` and the package isn't installed.
        """
        texts, index = find_distinct(check_texts(X))
        table = load_table(self.source)
        rows = np.zeros((len(texts), table.vectors.shape[1]), dtype=np.float32)
        with track(f"embed with {Path(self.source).name}", len(texts), unit="texts") as bar:
            for start in range(0, len(texts), _N_TEXTS_PER_BLOCK):
                block = texts[start : start + _N_TEXTS_PER_BLOCK]
                rows[start : start + len(block)] = _average(table, block)
                bar.advance(len(block))
        return rows[index]

    @property
    def widths_(self) -> tuple[int, ...]:
        return (load_table(self.source).vectors.shape[1],)

    @property
    def n_parameters_(self) -> int:
        return int(load_table(self.source).vectors.size)


def load_table(source: str | Path) -> TokenTable:
    """Read a token table, or return the one already read; raises as `StaticEncoder.transform` does."""
    if str(source) == "wordllama":
        return _load_wordllama()
    folder = Path(source).expanduser()
    files = [folder / name for name in ("model.safetensors", "tokenizer.json")]
    lacking = [file.name for file in files if not file.exists()]
    if lacking:
        raise BackboneError(
            f"static source '{source}' lacks {' and '.join(lacking)}: "
            "give 'wordllama' or a folder saved by model2vec."
        )
    return _load_model2vec(folder, *(file.stat().st_mtime_ns for file in files))


@functools.lru_cache(maxsize=1)
def _load_wordllama() -> TokenTable:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    # Found, not imported: importing it sets up the root logger.
    spec = importlib.util.find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the 'wordllama' table isn't installed: pip install 'embedtune[demo]'.")
    folder = Path(spec.submodule_search_locations[0])
    weights_path = folder / "weights" / "l2_supercat_256.safetensors"
    tokenizer_path = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
    if not weights_path.exists() or not tokenizer_path.exists():
        raise BackboneError(
            "the installed wordllama lacks its table: pip install --force-reinstall 'embedtune[demo]'."
        )
    vectors = load_file(weights_path)["embedding.weight"].astype(np.float32)
    return TokenTable(
        _plain(Tokenizer.from_file(str(tokenizer_path))), vectors, skipped=None, normalizes=False
    )


@functools.lru_cache(maxsize=2)
def _load_model2vec(folder: Path, *stamps: int) -> TokenTable:
    from safetensors.numpy import load_file

    check_kinds(folder)
    try:
        tensors = load_file(folder / "model.safetensors")
        if "embeddings" not in tensors:
            raise BackboneError(
                f"static source '{folder}' holds {', '.join(sorted(tensors)) or 'nothing'}, not 'embeddings': "
                "give a folder saved by model2vec."
            )
        return _make_table(folder, tensors)
    except (EmbedtuneError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises that very class
        raise BackboneError(f"static source '{folder}' can't be read: {error}") from error


def _make_table(folder: Path, tensors: dict[str, Any]) -> TokenTable:
    from tokenizers import Tokenizer

    vectors = tensors["embeddings"].astype(np.float32)
    if "mapping" in tensors:
        vectors = vectors[tensors["mapping"]]
    if "weights" in tensors:
        vectors = vectors * tensors["weights"].astype(np.float32)[:, None]
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.exists() else {}
    tokenizer = _plain(Tokenizer.from_file(str(folder / "tokenizer.json")))
    if vectors.ndim != 2 or tokenizer.get_vocab_size() > len(vectors):
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens, and vectors of shape {vectors.shape}")
    unknown = json.loads(tokenizer.to_str())["model"].get("unk_token")
    return TokenTable(
        tokenizer,
        vectors,
        skipped=tokenizer.token_to_id(unknown) if unknown else None,
        normalizes=bool(config.get("normalize", False)),
    )


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _average(table: TokenTable, texts: Sequence[str]) -> NDArray[np.float32]:
    encoded = table.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    rows = np.zeros((len(texts), table.vectors.shape[1]), dtype=np.float32)
    for row, encoding in zip(rows, encoded, strict=True):
        ids = [token for token in encoding.ids if token != table.skipped]
        if ids:
            row[:] = table.vectors[ids].mean(axis=0)
    if table.normalizes:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return rows
