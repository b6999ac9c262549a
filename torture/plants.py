"""What an attacker puts into a bundle or a backbone. All hashes fit, and whatever would run leaves a mark."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from torture.forged import make_pickle, put_object, put_types


class Plant(NamedTuple):
    """A kind of attack.

    Attributes
    ----------
    put : callable
        Takes the folder, a random generator and the file that code would leave; returns what was done.
    may_differ : bool
        Whether a reader that takes it may answer otherwise: numbers are their author's business, code isn't.
    """

    put: Callable[[Path, Random, Path], str]
    may_differ: bool = False


def put_pickle(folder: Path, random: Random, mark: Path) -> str:
    """A pickle in the place of a file, or under a name that some library would take it from."""
    there = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    homes = sorted({str(Path(name).parent) for name in there})
    known = (
        "head.pkl", "pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt",
        "vectors.npy",
        "arrays.npz", "model.joblib", "vocab.pkl", "tf_model.h5", "model.ckpt.index", "flax_model.msgpack",
    )  # fmt: skip
    if random.random() < 0.4:
        name = random.choice(sorted(name for name in there if name != "bundle.json"))
    else:
        name = f"{random.choice(homes)}/{random.choice(known)}"
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(make_pickle(random, mark))
    gone = ""
    if random.random() < 0.4:  # a reader that misses the weights looks for them elsewhere
        for weights in (folder / name).parent.glob("*.safetensors"):
            gone += f", without {weights.name}"
            weights.unlink()
    return f"a pickle as {name}{gone}"


def put_link(folder: Path, random: Random, mark: Path) -> str:
    """A file or a folder that is a link: out of the bundle, into it, in a circle, to nothing, to a device."""
    del mark
    outside = folder.parent / f"{folder.name}-outside"
    if outside.exists():
        shutil.rmtree(outside)
    shutil.copytree(folder, outside)
    paths = sorted(folder.rglob("*"))
    path = random.choice([*paths, folder / "README.md", folder / "bundle.json", folder / "more"])
    inside = path.relative_to(folder)
    targets: list[Any] = [
        "/etc/passwd", "/etc", outside / inside, Path("..") / outside.name / inside, folder / "missing", path,
        "/dev/zero",
        "/proc/self/environ", outside,
    ]  # fmt: skip
    target = random.choice(targets)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if random.random() < 0.1:
        os.mkfifo(path)
        return f"{inside} is a pipe"
    path.symlink_to(target)
    return f"{inside} links to {target}"


def put_name(folder: Path, random: Random, mark: Path) -> str:
    """A list, or an entry of it, that speaks of files elsewhere, under names made to be misread."""
    del mark
    outside = folder.parent / f"{folder.name}-aside.json"
    outside.write_text("{}")
    names = (
        str(outside), f"../{outside.name}", f"adapters/../../{outside.name}", "/etc/passwd.json", "..", ".",
        "",
        "head.skops/", "./head.skops", "HEAD.SKOPS", "head.skops\0.json", "a\\..\\..\\b.json", "C:\\x.json",
        "~/x.json",
        "file:///etc/x.json", "http://127.0.0.1:1/x.json", "con.json", "a" * 5000 + ".json", "\u202ejson.x",
        "//etc/x.json",
        "head.skops:x.json", "$HOME/x.json", "a\nb.json", "%2e%2e/x.json",
    )  # fmt: skip
    name = random.choice(names)
    manifest = read_manifest(folder)
    where = random.choice(("files", "file", "components", "adapter", "packed", "head", "name"))
    if where == "files":
        manifest["files"][name] = "0" * 64
    elif where == "head":
        manifest["head"]["file"] = name
    else:
        random.choice(manifest["views"])[where] = name
    write_manifest(folder, manifest)
    return f"'{where}' is {name!r:.60}"


def put_code(folder: Path, random: Random, mark: Path) -> str:
    """A backbone, tokenizer or adapter that asks for Python code, here or at the Hub."""
    homes = sorted(
        {path.parent for path in folder.rglob("*") if path.name in ("config.json", "adapter_config.json")}
    )
    home = random.choice(homes)
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    code += "from transformers import *\nC = BertConfig\nM = BertModel\n"
    said = []
    if random.random() < 0.7:
        (home / "custom.py").write_text(code)
        said.append("custom.py")
    remote = random.choice(("custom", "attacker/model--custom", str(home / "custom"), "..custom"))
    own = {
        "AutoConfig": f"{remote}.C", "AutoModel": f"{remote}.M",
        "AutoTokenizer": [f"{remote}.T", f"{remote}.T"],
        "AutoModelForCausalLM": f"{remote}.M",
    }  # fmt: skip
    changes: dict[str, dict[str, Any]] = {
        "config.json": random.choice(
            (
                {"auto_map": own}, {"auto_map": own, "model_type": "custom"}, {"model_type": "custom"},
                {"attn_implementation": "attacker/kernel"},
                {"_attn_implementation_internal": "attacker/kernel:f"},
                {"custom_pipelines": {"x": {"impl": "custom.P"}}},
                {"quantization_config": {"quant_method": "custom"}},
                {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
                {"trust_remote_code": True, "auto_map": own},
                {"_name_or_path": "attacker/model", "auto_map": own},
                {"architectures": ["os.system"]}, {"dtype": "load"}, {"torch_dtype": "__import__"},
                {"model_type": "rag"},
                {"use_kernels": True},
                {"model_type": "timm_wrapper", "architecture": "hf_hub:attacker/model"},
            )
        ),
        "tokenizer_config.json": random.choice(
            (
                {"auto_map": {"AutoTokenizer": [f"{remote}.T", None]}}, {"tokenizer_class": "custom.T"},
                {"tokenizer_class": "os.system"}, {"tokenizer_file": "/etc/passwd"},
                {"trust_remote_code": True},
                {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
                {"tokenizer_class": "RagTokenizer"},
                {"auto_map": own, "tokenizer_class": "T"}, {"processor_class": "custom.P"},
                {"backend": "custom"},
            )
        ),
        "adapter_config.json": random.choice(
            (
                {"megatron_config": {"x": 1}, "megatron_core": "custom"},
                {"auto_mapping": {"parent_library": "custom"}},
                {"megatron_config": {"x": 1}, "megatron_core": "this"}, {"peft_type": "PROMPT_TUNING"},
                {"peft_type": "XLORA", "adapters": {"0": "attacker/adapter"}}, {"peft_type": "os.system"},
                {"base_model_name_or_path": "attacker/model"}, {"task_type": "custom"},
                {"target_modules": "(\\w+\\.?)+!"},
                {"runtime_config": {"x": 1}}, {"eva_config": {}}, {"layer_replication": [[0, 10**6]]},
                {"r": 10**9},
                {"modules_to_save": ["encoder"]}, {"use_dora": True}, {"rank_pattern": {"(a|a?)+$": 3}},
            )
        ),
    }  # fmt: skip
    name = random.choice([name for name in changes if (home / name).exists()])
    if name == "config.json" and random.random() < 0.1:
        name = "adapter_config.json"  # transformers looks for one beside every config
    edit_json(home / name, changes[name])
    return f"{home.name}/{name}: {changes[name]}, {said}"[:300]


def put_json(folder: Path, random: Random, mark: Path) -> str:
    """JSON that isn't what a reader expects: another type, another number, depth, a name twice."""
    del mark
    path = random.choice(sorted(folder.rglob("*.json")))
    value = json.loads(path.read_text(encoding="utf-8"))
    found = list(_walk_places(value))
    holder, key = random.choice(found)
    evil = random.choice(
        (
            None, True, -1, 0, 10**9, 10**30, 1e308, 0.5, "", "x", "\0", "../..", [], {}, [None], {"x": 1},
            "9" * 400, [[1]],
            {"__class__": "os.system"}, "\u202e", ["up", "up"], -(10**9), "nan",
        )
    )  # fmt: skip
    raw = random.choice(
        ("", "", "", "[" * 100_000, "1e999", "9" * 5000, "NaN", '{"a": 1, "a": 2}', '"\\ud800"')
    )
    if not raw:
        holder[key] = evil
    if path.name == "bundle.json" and not raw:
        write_manifest(folder, value)
    else:
        holder[key] = "@here@" if raw else evil
        path.unlink()
        path.write_text(json.dumps(value).replace('"@here@"', raw or "null"), encoding="utf-8")
    return f"{path.relative_to(folder)}: {key!r:.40} is {raw[:20] or repr(evil)[:40]}"


def put_tensors(folder: Path, random: Random, mark: Path) -> str:
    """A safetensors file whose header lies: sizes, offsets, kinds, names."""
    del mark
    path = random.choice(sorted(folder.rglob("*.safetensors")))
    data = path.read_bytes()
    (n_bytes,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + n_bytes]), data[8 + n_bytes :]
    name = random.choice([name for name in header if name != "__metadata__"])
    entry, kind = header[name], random.randrange(9)
    raw, length = b"", None
    if kind == 0:
        length = random.choice((0, 1, 2**63, 2**64 - 1, len(data), 100_000_001, n_bytes - 1, n_bytes + 1))
    elif kind == 1:
        entry["data_offsets"] = random.choice(
            ([0, 2**63], [0, 4], [8, 0], [-8, 0], [0, len(rest) + 8], "x", [0])
        )
    elif kind == 2:
        entry["shape"] = random.choice(([2**62, 4], [0], [-1], [], [2**63], ["x"], [1e999], [10**30]))
    elif kind == 3:
        entry["dtype"] = random.choice(
            ("F64", "I64", "BOOL", "OBJ", "", None, "F8_E4M3", "U8", "BF16", "C64")
        )
    elif kind == 4:
        raw = b"[" * 1_000_000
    elif kind == 5:
        for other in header:
            if other != "__metadata__":
                header[other]["data_offsets"] = entry["data_offsets"]
    elif kind == 6:
        header["../../" + name] = header.pop(name)
    elif kind == 7:
        rest = rest[: len(rest) // 2]
    else:
        raw = (
            json.dumps(header)
            .replace("{", '{"' + name + '": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, ', 1)
            .encode()
        )
    raw = raw or json.dumps(header).encode()
    path.unlink()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + rest)
    return f"{path.relative_to(folder)}: kind {kind}, {name}, {entry}, {length}"[:300]


def put_setting(folder: Path, random: Random, mark: Path) -> str:
    """A view's setting that isn't its author's to give, or of another kind than it should be."""
    del mark
    manifest = read_manifest(folder)
    view = random.choice([view for view in manifest["views"] if "params" in view])
    own = ("store", "adapter", "device", "trust_remote_code", "backend", "__class__", "cache_dir", "token")
    name = random.choice([*view["params"], *random.sample(own, 2)])
    value = random.choice(
        (
            True,
            None,
            -1,
            0,
            10**9,
            "",
            "x",
            "/etc/passwd",
            "../x",
            [],
            {},
            [[1]],
            ["x"],
            0.5,
            "attacker/model",
            [1, -1],
        )
    )
    view["params"][name] = value
    write_manifest(folder, manifest)
    return f"{view['name']}.{name} is {value!r}"


def edit_json(path: Path, changes: dict[str, Any]) -> None:
    """Change keys of a JSON file, which may not be there yet."""
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.unlink(missing_ok=True)
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return value


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write bundle.json with the hash it should have."""
    from embedtune.files import write_sealed

    manifest.pop("sha256", None)
    write_sealed(folder / "bundle.json", manifest)


def relist(folder: Path, random: Random) -> None:
    """Give all files the hashes they have now, as their author would; mostly list those that weren't there, too."""
    from embedtune.bundle.paths import list_files
    from embedtune.files import hash_file

    if not (folder / "bundle.json").is_file():
        return
    try:
        manifest = read_manifest(folder)
        before = manifest["files"]
        names = list(before) if random.random() < 0.2 else [*before, *list_files(folder)]
        at_hand = (name for name in dict.fromkeys(names) if (folder / name).is_file())
        manifest["files"] = {**before, **{name: hash_file(folder / name) for name in at_hand}}
        for name in [
            name for name in manifest["files"] if not (folder / name).exists() and random.random() < 0.8
        ]:
            del manifest["files"][name]
        describe_anew(folder, manifest)
        write_manifest(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # the manifest itself was the target


def describe_anew(folder: Path, manifest: dict[str, Any]) -> None:
    """Give finetune.json and the manifest's backbones the hashes they have now, as far as they can be read."""
    from embedtune import TransformerEncoder
    from embedtune.bundle.views import identify
    from embedtune.embed.checkpoints import hash_adapter
    from embedtune.files import hash_file, refuse_endless, write_sealed

    for view in manifest["views"]:
        adapter = None
        if "adapter" in view and (facts := folder / view["adapter"] / "finetune.json").exists():
            refuse_endless(facts)
            told = json.loads(facts.read_text(encoding="utf-8"))
            told.pop("sha256", None)
            told["backbone_sha256"] = hash_adapter(facts.parent)
            write_sealed(facts, told)
            manifest["files"][str(facts.relative_to(folder))] = hash_file(facts)
            adapter = str(facts.parent)
        if "backbone" in view and "packed" in view:
            with contextlib.suppress(Exception):
                view["backbone"] = identify(TransformerEncoder(str(folder / view["packed"]), adapter=adapter))


def _walk_places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in list(keys)[:40]:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _walk_places(value[key])


BUNDLE = {
    "pickles": Plant(put_pickle),
    "types": Plant(put_types),
    "objects": Plant(put_object, may_differ=True),
    "links": Plant(put_link),
    "names": Plant(put_name),
    "code": Plant(put_code, may_differ=True),
    "JSON": Plant(put_json, may_differ=True),
    "tensors": Plant(put_tensors, may_differ=True),
    "settings": Plant(put_setting, may_differ=True),
}
BACKBONE = ("pickles", "links", "code", "JSON", "tensors")
