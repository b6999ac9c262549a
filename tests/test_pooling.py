import numpy as np
import pytest
import torch

from embedtune.embed.pooling import (
    MODEL_POOLINGS,
    OWN_TOKENS,
    POOLINGS,
    check_pooling,
    pool,
    pool_all_positions,
)
from embedtune.errors import ConfigError

LENGTHS = (1, 3, 5)
N_TOKENS = 6


def make_batch(side: str, filler: float = 7.0) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(len(LENGTHS), N_TOKENS, 4, generator=torch.Generator().manual_seed(0))
    hidden = torch.full((len(LENGTHS), N_TOKENS, 4), filler)
    mask = torch.zeros(len(LENGTHS), N_TOKENS, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        place = slice(0, length) if side == "right" else slice(N_TOKENS - length, N_TOKENS)
        hidden[row, place] = values[row, :length]
        mask[row, place] = 1
    return hidden, mask


def pool_slowly(how: str) -> np.ndarray:
    hidden, _ = make_batch("right")
    rows = [hidden[row, :length].numpy() for row, length in enumerate(LENGTHS)]
    reduce = {
        "mean": lambda x: x.mean(0),
        "weighted_mean": lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
        "cls": lambda x: x[0],
        "last": lambda x: x[-1],
        "max": lambda x: x.max(0),
    }
    return np.stack([reduce[how](row) for row in rows])


@pytest.mark.parametrize("how", sorted(POOLINGS))
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("filler", [7.0, float("nan"), float("inf")])
def test_pool_ignores_padding_on_either_side(how: str, side: str, filler: float) -> None:
    hidden, mask = make_batch(side, filler)
    np.testing.assert_allclose(pool(hidden, mask, how).numpy(), pool_slowly(how), atol=1e-6)


@pytest.mark.parametrize("how", sorted(POOLINGS))
def test_pool_half_precision_gives_float32(how: str) -> None:
    hidden, mask = make_batch("right")
    assert pool(hidden.to(torch.bfloat16), mask.bool(), how).dtype == torch.float32


def test_pool_mean_of_half_precision_sums_in_float32() -> None:
    hidden = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    assert pool(hidden, torch.ones(1, 4096), "mean").item() == 1.0


@pytest.mark.parametrize("how", sorted(OWN_TOKENS))
def test_pool_text_without_tokens_gives_zeros(how: str) -> None:
    assert pool(torch.ones(1, 3, 2), torch.zeros(1, 3), how).tolist() == [[0.0, 0.0]]


def test_pool_all_positions_counts_padding() -> None:
    hidden, mask = make_batch("right")
    np.testing.assert_allclose(pool_all_positions(hidden, mask).numpy(), hidden.numpy().mean(1), atol=1e-6)


def test_pool_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        pool(*make_batch("right"), "meen")
    assert str(caught.value) == (
        "pooling 'meen' is unknown (did you mean 'mean'?): choose one of mean, weighted_mean, cls, last, max."
    )


def test_check_pooling_offers_the_models_own_too() -> None:
    assert [check_pooling(how) for how in MODEL_POOLINGS] == list(MODEL_POOLINGS)
    with pytest.raises(ConfigError) as caught:
        check_pooling("sum")
    assert str(caught.value) == (
        "pooling 'sum' is unknown: choose one of mean, weighted_mean, cls, last, max, pooler, mean_padded."
    )
