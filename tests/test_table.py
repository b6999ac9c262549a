"""The table of heads."""

import subprocess
import sys

import numpy as np
import pytest

from embedtune.errors import ConfigError
from embedtune.heads.table import HEADS, make_head


@pytest.mark.parametrize("name", HEADS)
def test_make_head_passes_what_it_is_given(name: str) -> None:
    head = make_head(name, widths=(2, 2), random_state=4, class_weight="balanced", views=((0, 1),))
    parameters = head.get_params()
    assert type(head).__name__.lower() == f"{name}head"
    assert (parameters["widths"], parameters["random_state"]) == ((2, 2), 4)
    assert parameters["class_weight"] == "balanced"
    assert parameters.get("views", ((0, 1),)) == ((0, 1),)


@pytest.mark.parametrize("name", HEADS)
def test_make_head_every_head_accepts_groups(name: str) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b"], 20)
    X = rng.normal(size=(40, 4)) + (y == "b")[:, None] * 4
    head = make_head(name, widths=(2, 2))
    if name == "cooccurrence":
        head.set_params(epochs=20, hidden=(16, 8), learning_rate=0.01, device="cpu")
    assert head.fit(X, y, groups=np.arange(40) // 2).score(X, y) > 0.9


def test_make_head_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        make_head("logistics")
    assert str(caught.value) == (
        "head 'logistics' does not exist (did you mean 'logistic'?): use one of auto, logistic, ridge, "
        "stack, cooccurrence."
    )


def test_table_linear_heads_load_no_torch() -> None:
    code = (
        "import sys; from embedtune.heads.table import make_head; make_head('auto'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
