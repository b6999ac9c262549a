"""Payloads: pickles in all shapes, and files of types that name what isn't theirs."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np


class Touch:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def make_pickle(random: Random, mark: Path) -> bytes:
    """Return a payload in one of the shapes that readers of pickles take."""
    import joblib
    import torch

    out, evil = io.BytesIO(), Touch(mark)
    kind = random.randrange(6)
    if kind == 0:
        np.save(out, np.array([evil], dtype=object), allow_pickle=True)
    elif kind == 1:
        np.savez(out, array=np.array([evil], dtype=object))
    elif kind == 2:
        torch.save({"weight": evil}, out)
    elif kind == 3:
        torch.save({"weight": evil}, out, _use_new_zipfile_serialization=False)
    elif kind == 4:
        joblib.dump({"head": evil}, out)
    else:
        return pickle.dumps(evil, protocol=random.randrange(pickle.HIGHEST_PROTOCOL + 1))
    return out.getvalue()


#: Callables and modules that a file of types must not reach.
NAMES = (
    ("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"), ("builtins", "__import__"), ("builtins", "open"), ("functools", "partial"),
    ("operator", "methodcaller"), ("operator", "attrgetter"), ("pathlib", "Path"), ("types", "FunctionType"),
    ("importlib", "import_module"), ("numpy.f2py.__main__", "main"), ("numpy", "memmap"),
    ("numpy", "fromfile"),
    ("numpy", "load"), ("sklearn.externals._arff", "load"), ("sklearn.utils._testing", "TempMemmap"),
    ("sklearn.tree._tree", "Tree"), ("sklearn.conftest", "pyplot"), ("scipy.sparse", "load_npz"),
    ("torch", "load"),
    ("embedtune.files", "replace_dir"), ("embedtune.heads.together", "torch"), ("torture.forged", "Touch"),
    ("skops.io", "load"), ("", ""), ("__main__", "x"), ("embedtune.heads.auto", "AutoHead.fit"),
    ("this", "s"),
)  # fmt: skip


def put_types(folder: Path, random: Random, mark: Path) -> str:
    """A head whose tree of types names others: another class, another reader of it, other arguments."""
    path = random.choice([folder / "head.skops", folder / "calibrator.skops"])
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(files["schema.json"])
    nodes = list(_walk_nodes(schema))
    said = []
    for _ in range(random.choice((1, 1, 2))):
        node = random.choice(nodes)
        module, name = random.choice(NAMES)
        kind = random.randrange(5)
        if kind in (0, 1):
            node["__module__"], node["__class__"] = module, name
        if kind in (1, 2):
            node["__loader__"] = random.choice(_list_loaders())
        if kind == 3:
            node.update(_make_node(random, module, name, mark))
        if kind == 4 and (arrays := [name for name in files if name.endswith(".npy")]):
            member = random.choice(arrays)
            files[member] = make_pickle(random, mark)
            said.append(f"a pickle as {member}")
        said.append(f"{kind}: {module}.{name}, {node.get('__loader__')}")
    files["schema.json"] = json.dumps(schema).encode()
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return f"{path.name}: {'; '.join(said)}"


def put_object(folder: Path, random: Random, mark: Path) -> str:
    """A head that is something else, or holds it, as skops itself writes it."""
    import functools
    import operator

    import skops.io
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.preprocessing import FunctionTransformer

    path = folder / random.choice(("head.skops", "calibrator.skops"))
    touch = f"touch {mark}"
    made: list[Any] = [
        functools.partial(os.system, touch),
        FunctionTransformer(os.system),
        FunctionTransformer(functools.partial(eval, f"open({str(mark)!r}, 'w')")),
        operator.methodcaller("touch"),
        operator.attrgetter("__class__.__mro__"),
        RandomForestClassifier(n_estimators=2).fit([[0.0], [1.0]], [0, 1]),
        Touch(mark),
        {"classes_": ["up"]},
        [1, 2],
        "up",
        None,
        np.zeros(3),
    ]
    thing = random.choice(made)
    if random.random() < 0.5 and thing is not None:
        head = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
        setattr(head, random.choice(sorted(vars(head))), thing)
        thing = head
    skops.io.dump(thing, path)
    return f"{path.name}: {thing!r:.80}"


def _walk_nodes(value: Any) -> Any:
    if isinstance(value, dict):
        if "__loader__" in value:
            yield value
        for item in value.values():
            yield from _walk_nodes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk_nodes(item)


def _list_loaders() -> list[str]:
    from skops.io._audit import NODE_TYPE_MAPPING

    return sorted({name for name, _ in NODE_TYPE_MAPPING})


def _make_node(random: Random, module: str, name: str, mark: Path) -> dict[str, Any]:
    """Return a node that would call a function with the mark as its argument, in one of skops' shapes."""

    def make(loader: str, module: str, name: str, content: Any) -> dict[str, Any]:
        return {
            "__class__": name,
            "__module__": module,
            "__loader__": loader,
            "__id__": random.randrange(1 << 30),
            "content": content,
        }

    text = make("JsonNode", "builtins", "str", json.dumps(f"touch {mark}"))
    text["is_json"] = True
    parts = make("TupleNode", "builtins", "tuple", [text])
    empty = {
        **make("DictNode", "builtins", "dict", {}),
        "key_types": make("ListNode", "builtins", "list", []),
    }
    function = make("FunctionNode", module, name, None)
    shapes = (
        function,
        make("TypeNode", module, name, None),
        make("ListNode", module, name, [text]),
        make("SetNode", module, name, [text]),
        make("ObjectNode", module, name, empty),
        make(
            "PartialNode",
            "functools",
            "partial",
            {"func": function, "args": parts, "kwds": empty, "namespace": empty},
        ),
        {**make("MethodNode", module, name, {"func": name, "obj": text})},
        {**make("OperatorFuncNode", module, name, None), "attrs": parts},
        {**make("ReduceNode", module, name, empty), "__reduce__": {"args": parts}},
        {**make("LossNode", module, name, empty), "__reduce__": {"args": parts}},
        {**make("TreeNode", module, name, empty), "__reduce__": {"args": parts}},
        {
            **make("DictNode", module, name, {"x": text}),
            "key_types": make("ListNode", "builtins", "list", [function]),
        },
        make("CachedNode", module, name, None),
        make("BytesNode", module, name, None),
        {**make("NdArrayNode", module, name, [text]), "type": "json", "shape": parts},
        {**make("NdArrayNode", module, name, None), "type": "numpy", "file": "../../etc/passwd"},
    )
    return random.choice(shapes)
