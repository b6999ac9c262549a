"""A Ray cluster of several nodes on this machine: the same figures as one process, a killed node included."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import engine_cases
from embedtune.cli.runs import run_experiment
from embedtune.config import build_experiment
from embedtune.embed import spread
from embedtune.embed.encoder import TransformerEncoder
from embedtune.embed.spread import spread_texts
from embedtune.engine import Engine, open_engine
from embedtune.engine.ray import _Worker
from embedtune.errors import ConfigError, DataError, ResourceError, StoreError
from embedtune.finetune.train import fine_tune
from embedtune.predict import job as predict_job
from embedtune.predict import predict_file
from embedtune.recipe import read_recipe
from run_cases import read_figures, write_recipe
from run_cases import write_rows as write_moves
from test_engine import list_arguments, make_bundle, write_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'embedtune[ray]'"
    ),
    # Ray's own: a socket, a log file and a thread that end with the process
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
    ),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NODE = {"num_cpus": 1, "object_store_memory": 150_000_000}


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    """A head without processors."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    from ray.cluster_utils import Cluster

    running = Cluster(
        initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False}
    )
    yield running
    running.shutdown()


@pytest.fixture
def cluster(running: Any) -> Any:
    """The head with two nodes of a processor each."""
    while len(running.worker_nodes) < 2:
        running.add_node(**NODE)
    running.wait_for_nodes()
    return running


@pytest.fixture
def engine(cluster: Any) -> Iterator[Engine]:
    with open_engine("ray", address=cluster.address) as opened:
        yield opened


@contextmanager
def kill_node_once(
    cluster: Any, happened: Callable[[], bool], *, find: Callable[[], str] | None = None
) -> Iterator[list[str]]:
    """Kill a node, one or the one that `find` names, as soon as something has happened; holds its number."""
    killed: list[str] = []
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.is_set() and not happened():
            time.sleep(0.02)
        if stopped.is_set():
            return
        nodes = {node.node_id: node for node in cluster.worker_nodes}
        killed.append(find() if find else next(iter(nodes)))
        cluster.remove_node(nodes[killed[0]], allow_graceful=False)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        stopped.set()
        thread.join()


def test_actors_do_all_the_work_on_both_nodes(engine: Engine, tmp_path: Path) -> None:
    assert engine.n_workers == 2
    make = partial(engine_cases.make_adder, 10, tmp_path, 2)
    done = list(engine.map(make, [3, 5], engine_cases.count))
    assert sorted(number for number, _ in done) == sorted([*range(10, 13), *range(10, 15)])
    assert len({process for _, process in done} - {os.getpid()}) == 2


def test_what_an_actor_raises_arrives_as_it_is(engine: Engine) -> None:
    with pytest.raises(DataError, match=r"^row 2 has no text: give it one\.$"):
        list(engine.map(engine_cases.make_refuser, [5], engine_cases.count))


def test_actor_that_ends_while_it_starts_is_replaced(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndsOnce(_Worker):
        def __init__(self, packed: bytes, setting: Any) -> None:
            marker = tmp_path / "ended"
            if not marker.exists():
                marker.touch()
                raise OSError("no room to stand")
            super().__init__(packed, setting)

    monkeypatch.setattr("embedtune.engine.ray._Worker", EndsOnce)
    done = list(engine.map(partial(engine_cases.make_adder, 10, tmp_path, 1), [3], engine_cases.count))
    assert sorted(number for number, _ in done) == [10, 11, 12]
    assert (tmp_path / "ended").exists()


def test_actors_that_never_start_are_told_with_their_reason(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ends(_Worker):
        def __init__(self, packed: bytes, setting: Any) -> None:
            raise OSError("no room to stand")

    monkeypatch.setattr("embedtune.engine.ray._Worker", Ends)
    with pytest.raises(
        ResourceError, match=r"didn't finish the work \(OSError: no room to stand\): give the same"
    ):
        list(engine.map(partial(engine_cases.make_adder, 10, tmp_path, 1), [3], engine_cases.count))


def test_node_killed_while_embedding_costs_what_it_had_not_stored(
    engine: Engine, cluster: Any, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedtune.embed.encoder.WINDOW_TEXTS", 60)
    texts = [f"profit rose {'again and ' * (i % 9)}in week {i}" for i in range(60 * 24)]
    windows = [texts[start : start + 60] for start in range(0, len(texts), 60)]
    alone, together = (
        TransformerEncoder(str(tiny_bert), batch_tokens=256, store=tmp_path / name)
        for name in ("alone", "together")
    )
    expected = alone.transform(texts)
    log = tmp_path / "log"
    make = partial(engine_cases.LoggingFiller, together, log)
    with kill_node_once(cluster, lambda: log.exists() and len(log.read_text().split()) > 3) as killed:
        done = list(engine.map(make, windows, partial(spread._split, 1)))
    assert len(done) == 24 and killed
    n_run = sum(map(int, log.read_text().split()))
    assert n_run <= len(texts)  # what the killed actor stored before it could say so isn't in the log
    assert (together.transform(texts) == expected).all()
    assert together.last_n_computed_ == 0


def test_node_killed_while_predicting_leaves_the_same_file(
    engine: Engine, cluster: Any, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_job, "WINDOW_TEXTS", 20)
    bundle = make_bundle(tiny_bert, tmp_path / "bundle")
    rows = write_rows(tmp_path / "rows.csv", n=900)
    one = predict_file(bundle, rows, tmp_path / "one.csv")
    parts = tmp_path / "two.csv.partial"
    with kill_node_once(cluster, lambda: len(list(parts.glob("*.arrow"))) > 4) as killed:
        two = predict_file(bundle, rows, tmp_path / "two.csv", engine=engine)
    assert killed
    assert two._replace(rejected=()) == one._replace(rejected=())
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_node_killed_while_training_goes_on_elsewhere(cluster: Any, tiny_bert: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"epochs": 60, "validation_fraction": 0.2}
    fine_tune(**list_arguments(tiny_bert, tmp_path / "one", **changes))
    arguments = list_arguments(tiny_bert, tmp_path / "two", **changes)
    checkpoints = tmp_path / "two" / "checkpoints"
    where = tmp_path / "two.nodes"
    with (
        open_engine("ray", address=cluster.address, n_workers=1) as engine,
        kill_node_once(
            cluster,
            lambda: any(checkpoints.glob("checkpoint-*/ready.json")),
            find=lambda: where.read_text().split()[0],
        ) as killed,
    ):
        launched = engine.launch(engine_cases.tune_somewhere, [arguments], folder=tmp_path / "scratch")
        assert list(launched) == [(0, 1)]
    first, second = where.read_text().split()
    assert killed == [first] and second != first
    name = "model.safetensors"
    one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not list((tmp_path / "scratch").iterdir())


def test_two_workers_train_to_the_weights_of_one(cluster: Any, tiny_llama: Path, tmp_path: Path) -> None:
    changes = {"method": "lora", "class_weight": "balanced"}
    fine_tune(**list_arguments(tiny_llama, tmp_path / "one", **changes))
    arguments = list_arguments(tiny_llama, tmp_path / "two", **changes)
    with open_engine("ray", address=cluster.address, n_together=2) as engine:
        assert list(engine.launch(engine_cases.tune, [arguments], folder=tmp_path / "scratch")) == [(0, 2)]
    name = "adapter_model.safetensors"
    one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    for key, expected in one.items():
        torch.testing.assert_close(two[key], expected, rtol=0, atol=1e-4, msg=key)


def test_run_on_a_cluster_has_the_figures_of_one_process(
    cluster: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    data = write_moves(tmp_path / "moves.csv")
    for name in ("local", "ray"):
        recipe = write_recipe(
            tmp_path / f"{name}.yaml", model=tiny_bert, data=data, store=tmp_path / f"store-{name}"
        )
        experiment = build_experiment(read_recipe(str(recipe)).settings, where=str(recipe))
        chosen = {"name": name, **({"address": cluster.address} if name == "ray" else {})}
        run_experiment(
            experiment, tmp_path / name, first=None, last="compare", quiet=True, verbose=False, engine=chosen
        )
    assert read_figures(tmp_path / "ray") == read_figures(tmp_path / "local")


def test_store_that_nodes_do_not_share_is_told(
    engine: Engine, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TransformerEncoder(str(tiny_bert), store=tmp_path / "store")
    monkeypatch.setattr(
        encoder, "count_missing", lambda texts: len(texts)
    )  # what another machine's store looks like
    with pytest.raises(StoreError, match=r"2 vectors that workers computed aren't in the store"):
        spread_texts(encoder, ["sales rose", "sales fell"], engine)


def test_cluster_refuses_standard_input_and_too_many_workers(
    engine: Engine, cluster: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"nodes don't see standard input and output"):
        predict_file(tmp_path, "-", tmp_path / "out.csv", format="csv", engine=engine)
    with (
        pytest.raises(
            ConfigError, match=r"--workers 9 is more than the cluster has room for: give 2 or less"
        ),
        open_engine("ray", address=cluster.address, n_workers=9),
    ):
        pass


def test_cluster_that_is_not_there_is_one_line() -> None:
    with (
        pytest.raises(ResourceError, match=r"no Ray cluster at 127\.0\.0\.1:1: .*check --address") as told,
        open_engine("ray", address="127.0.0.1:1"),
    ):
        pass
    assert "\n" not in str(told.value)
