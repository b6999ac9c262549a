"""Running a backbone through OpenVINO on the CPU: converted once, batches side by side, pooled inside the graph."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import signal
import sys
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from embedtune.embed.backbone import Backbone, Description, count_kept
from embedtune.embed.graph import PooledReading, make_example
from embedtune.embed.precision import multiplies_bfloat16
from embedtune.embed.quiet import hush_libraries
from embedtune.embed.runner import Column, Vectors, check_finite, refuse_long_text
from embedtune.embed.tokens import Tokens, pad_tokens, pick_pad_id
from embedtune.errors import BackboneError
from embedtune.memory import is_out_of_memory

#: Columns of a weight matrix's input that share a scale, found anew for each token.
ACTIVATION_GROUP = 128


class _Key(NamedTuple):
    """What a compiled graph depends on."""

    description: Description
    columns: tuple[Column, ...]
    precision: str
    n_streams: int


#: Compiled graphs' requests, kept for the next encoder that reads the same columns.
_compiled: OrderedDict[_Key, tuple[Any, ...]] = OrderedDict()
_lock = threading.RLock()


class OpenVinoRunner:
    """Runs a float32 backbone as a compiled graph that puts out pooled columns.

    One stream per thread, each a batch of its own: a small model's layers are too short to share between cores. A
    text's vector does not depend on the number of threads.

    Parameters
    ----------
    backbone : Backbone
        In float32 on the CPU.
    columns : sequence of (int, str)
    precision : {"float32", "bfloat16", "int8"}
        ``int8`` holds weights in 8 bits with a scale per output channel, and rounds their input to 8 bits with a
        scale per token and `ACTIVATION_GROUP` columns; all else is computed in bfloat16 where the processor has it.

    Raises
    ------
    BackboneError
        If OpenVINO can't convert the model.

    References
    ----------
    Dynamic quantization of activations: Zafrir et al. 2019, "Q8BERT", arXiv:1910.06188.
    """

    def __init__(self, backbone: Backbone, columns: Sequence[Column], *, precision: str) -> None:
        self.backbone, self.columns, self.precision = backbone, tuple(columns), precision
        self._key = _Key(backbone.description, self.columns, precision, torch.get_num_threads())
        self._requests = _compile(self._key, backbone)

    def run(
        self, tokens: Tokens, batches: Iterable[NDArray[np.intp]]
    ) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
        """Yield each batch's rows and vectors; the batches after it are already being read.

        A batch that memory doesn't hold is read, and yielded, in parts.
        """
        pad_id = pick_pad_id(self.backbone.tokenizer)
        planned = iter(batches)
        todo: deque[NDArray[np.intp]] = deque()
        idle, running = list(self._requests), deque[tuple[Any, NDArray[np.intp]]]()
        try:
            while True:
                if not todo:
                    todo.extend(itertools.islice(planned, 1))
                if todo and idle:
                    rows = self._pick(todo, tokens)
                    batch = pad_tokens(tokens, rows, pad_id=pad_id)
                    running.append((idle.pop(), rows))
                    running[-1][0].start_async([batch.ids, batch.mask, batch.counted])
                elif running:
                    request, rows = running[0]
                    try:
                        request.wait()
                    except RuntimeError as error:
                        _compiled.pop(
                            self._key, None
                        )  # a failed request's stream keeps shapes that fit no more
                        self._lower_limit(error, tokens, rows)
                    else:
                        running.popleft()
                        yield rows, self._collect(request)
                        idle.append(request)
                        continue
                    todo.extendleft(rows for _, rows in reversed(running))
                    _wait(running)
                    del request
                    idle, self._requests = (
                        [],
                        (),
                    )  # let go before new ones are made, which take over their threads
                    self._requests = _compile(self._key, self.backbone)
                    idle = list(self._requests)
                else:
                    return
        finally:
            _wait(running)

    def _pick(self, todo: deque[NDArray[np.intp]], tokens: Tokens) -> NDArray[np.intp]:
        """Take rows that may be tried at once."""
        while True:
            rows = todo.popleft()
            if len(rows) == 1 or self.backbone.limit.allows(_count_padded(tokens, rows)):
                return rows
            middle = len(rows) // 2
            todo.extendleft((rows[middle:], rows[:middle]))

    def _lower_limit(self, error: RuntimeError, tokens: Tokens, rows: NDArray[np.intp]) -> None:
        """Remember that memory doesn't hold these rows; raise the error if it is another one."""
        if not is_out_of_memory(error):
            raise error
        n_tokens = _count_padded(tokens, rows)
        if len(rows) == 1:
            raise refuse_long_text(n_tokens, self.backbone.device) from error
        self.backbone.limit.lower(n_tokens // 2)

    def _collect(self, request: Any) -> Vectors:
        vectors = {
            column: request.get_output_tensor(number).data.copy()
            for number, column in enumerate(self.columns)
        }
        check_finite(
            vectors,
            model_id=self.backbone.model_id,
            precision=f"OpenVINO's {self.precision}",
            advice="set backend to torch",
        )
        return vectors


def _wait(running: deque[tuple[Any, NDArray[np.intp]]]) -> None:
    """Wait until nothing runs, however it ends."""
    while running:
        with contextlib.suppress(RuntimeError):
            running.popleft()[0].wait()


def _count_padded(tokens: Tokens, rows: NDArray[np.intp]) -> int:
    return len(rows) * max(len(tokens.ids[row]) for row in rows)


def _import_openvino() -> Any:
    """Import OpenVINO as if its telemetry weren't installed, which reports each import to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _compile(key: _Key, backbone: Backbone) -> tuple[Any, ...]:
    """Return the graph's requests, one for each stream and one to be filled meanwhile; a new one is slow at first."""
    openvino = _import_openvino()
    with _lock:
        if key not in _compiled:
            while len(_compiled) >= count_kept():
                _compiled.popitem(last=False)
            graph = _convert(backbone, key.columns)
            _part_gated_products(graph)
            settings = {
                "INFERENCE_PRECISION_HINT": "f32",
                "NUM_STREAMS": str(key.n_streams),
                "INFERENCE_NUM_THREADS": str(key.n_streams),
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            }
            if key.precision == "bfloat16" or (key.precision == "int8" and multiplies_bfloat16()):
                settings["INFERENCE_PRECISION_HINT"] = "bf16"
            if key.precision == "int8":
                _quantize_weights(graph)
                settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(ACTIVATION_GROUP)
            compiled = openvino.Core().compile_model(graph, "CPU", settings)
            _compiled[key] = tuple(compiled.create_infer_request() for _ in range(key.n_streams + 1))
        _compiled.move_to_end(key)
        return _compiled[key]


def _convert(backbone: Backbone, columns: tuple[Column, ...]) -> Any:
    """Return the graph, with batch and length left open; what lies above the highest layer asked for falls away."""
    openvino = _import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        with _hold_interrupts(), hush_libraries(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            frontend = FrontEndManager().load_by_framework("pytorch")
            traced = TorchScriptPythonDecoder(
                PooledReading(backbone.model, columns),
                example_input=make_example(),
                trace_kwargs={"check_trace": False},  # it would trace all again to compare
            )
            graph = frontend.convert(frontend.load(traced))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BackboneError(
            f"'{backbone.model_id}' can't be converted for OpenVINO ({str(error).strip().splitlines()[0][:200]}): "
            "set backend to torch."
        ) from error
    for parameter in graph.inputs:
        parameter.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    graph.validate_nodes_and_infer_types()
    return graph


@contextlib.contextmanager
def _hold_interrupts() -> Iterator[None]:
    """Have Ctrl-C wait for the block's end: OpenVINO would take it for a model that can't be converted."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(held[0], None)


def _part_gated_products(graph: Any) -> None:
    """Keep OpenVINO from fusing gated feed-forward layers, by a bound that nothing reaches.

    The fused layer of 2026.4 in bfloat16 divides by zero on some processors where a stream has one thread, as ours do,
    and that ends the process.
    """
    from openvino import opset13 as operations

    most = float(np.finfo(np.float32).max)
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        product = node.input(0).get_source_output().get_node()
        if product.get_type_name() == "Multiply" and any(
            given.get_source_output().get_node().get_type_name() == "Swish" for given in product.inputs()
        ):
            node.input(0).replace_source_output(operations.clamp(product, -most, most).output(0))
    graph.validate_nodes_and_infer_types()


def _quantize_weights(graph: Any) -> None:
    """Put 8-bit weights with a scale per output channel in the place of every matrix that texts are multiplied with."""
    openvino = _import_openvino()
    from openvino import opset13 as operations

    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        constant = node.input(1).get_source_output().get_node()
        if constant.get_type_name() == "Convert":
            constant = constant.input(0).get_source_output().get_node()
        if constant.get_type_name() != "Constant" or constant.data.ndim != 2:
            continue
        weights = constant.data.astype(np.float32)
        inputs_axis = 1 if node.get_attributes()["transpose_b"] else 0
        scale = np.abs(weights).max(axis=inputs_axis, keepdims=True) / 127
        scale[scale == 0] = 1
        rounded = np.round(weights / scale).astype(np.int8)
        restored = operations.multiply(
            operations.convert(operations.constant(rounded, dtype=openvino.Type.i8), "f32"),
            operations.constant(scale.astype(np.float32)),
        )
        node.input(1).replace_source_output(restored.output(0))
    graph.validate_nodes_and_infer_types()
