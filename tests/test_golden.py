"""Vectors computed by the published LLMEmbed scripts, matched within 1e-4."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from embedtune.embed.encoder import TransformerEncoder

DATA = Path(os.environ.get("EMBEDTUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
GOLDEN = DATA.parent / "golden" / "paper"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="no golden/paper beside the data sets"),
]

CASES = {
    "bert": ("bert", {"pooling": "pooler", "max_length": 512}),
    "roberta": ("roberta", {"pooling": "cls", "max_length": 512}),
    "llama_maxlen128": ("llama", {"pooling": "mean_padded", "layers": "last5", "max_length": 128}),
    "llama_maxlen48": ("llama", {"pooling": "mean_padded", "layers": "last5", "max_length": 48}),
    "llama_masked_last5": ("llama", {"pooling": "mean", "layers": "last5", "max_length": 512}),
    "llama_last_token_last5": ("llama", {"pooling": "last", "layers": "last5", "max_length": 512}),
}


@pytest.mark.parametrize("key", sorted(CASES))
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_transform_matches_published_vectors(key: str, batch_tokens: int) -> None:
    texts = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["texts"]
    expected = load_file(GOLDEN / "expected.safetensors")[key]
    model, settings = CASES[key]
    encoder = TransformerEncoder(GOLDEN / model, precision="float32", batch_tokens=batch_tokens, **settings)
    found = encoder.transform(texts)
    np.testing.assert_allclose(found, expected.reshape(len(texts), -1), rtol=0, atol=1e-4)
