"""Tiny random checkpoints with real tokenizers, built in-process: what the offline tests read texts with.

Every builder writes a Hugging Face folder (config, safetensors, fast tokenizer) and returns its path. Weights
depend on `seed` alone; they are scaled up so that layers, tokens and texts are far apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
)

HIDDEN = 32

CORPUS = [
    "operating profit rose to eur 13.1 mn from eur 8.7 mn in the corresponding period a year earlier",
    "the company's net loss widened to $4.2 million, compared with $1.1 million a year ago",
    "gold settles lower as the dollar firms; silver ends flat",
    "sales were unchanged and the board proposes a dividend of eur 0.12 per share",
    "shares jump after earnings beat, analysts raise the price target to 57",
    "costs rose, but less than feared; the outlook remains neutral, positive or negative",
    "does the headline talk about the price going up? yes no",
    "Orders FELL by 96 % in the Quarter, Cutting Jobs at Two Sites",
]


def build_tiny_bert(folder: Path, *, seed: int = 0, n_layers: int = 3) -> Path:
    """Write a BERT (word pieces, [CLS] and [SEP], pooler) and return its folder."""
    words = sorted(
        {word for line in CORPUS for word in line.lower().replace("'", " ").split() if word.isalpha()}
    )
    characters = sorted(
        {character for line in CORPUS for character in line.lower() if not character.isspace()}
    )
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *characters,
        *(f"##{c}" for c in characters),
        *words,
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    _save_tokenizer(
        tokenizer,
        folder,
        model_max_length=128,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return _save_model(lambda: BertModel(config), folder, seed)


def build_tiny_roberta(folder: Path, *, seed: int = 0, n_layers: int = 3) -> Path:
    """Write a RoBERTa (byte-level BPE, <s> and </s>, positions after the pad id); return its folder."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    _save_tokenizer(
        tokenizer,
        folder,
        model_max_length=128,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    )
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=130,
        type_vocab_size=1,
        initializer_range=0.2,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    return _save_model(lambda: RobertaModel(config), folder, seed)


def build_tiny_llama(folder: Path, *, seed: int = 0, n_layers: int = 4, hidden: int = HIDDEN) -> Path:
    """Write a LLaMA with its LM head (BPE with byte fallback, <s> first, no pad token, no length limit)."""
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    merged = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    pieces = [*special, *byte_tokens, *(piece for piece in merged if piece not in special)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [(first, second) for first, second in _read_merges(trained) if first + second in vocabulary]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    _save_tokenizer(tokenizer, folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    return _save_model(lambda: LlamaForCausalLM(config), folder, seed)


def build_tiny_qwen3(folder: Path, *, seed: int = 0, n_layers: int = 6) -> Path:
    """Write a Qwen3 as its embedding models are (byte-level BPE, <|endoftext|> last and for padding, no LM head)."""
    tokenizer = _train_byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    _save_tokenizer(
        tokenizer,
        folder,
        model_max_length=512,
        padding_side="left",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=512,
        max_window_layers=n_layers,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _save_model(lambda: Qwen3Model(config), folder, seed)


def build_tiny_modernbert(folder: Path, *, seed: int = 0, n_layers: int = 6) -> Path:
    """Write a ModernBERT (byte-level BPE, [CLS] and [SEP], local attention in two layers of three)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = _train_byte_level(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)
    )
    _save_tokenizer(tokenizer, folder, model_max_length=512, **names)
    config = ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        local_attention=16,
        initializer_range=0.2,
        initializer_cutoff_factor=2.0,
        pad_token_id=0,
        bos_token_id=2,
        cls_token_id=2,
        eos_token_id=3,
        sep_token_id=3,
    )
    return _save_model(lambda: ModernBertModel(config), folder, seed)


def _train_byte_level(special: list[str]) -> Tokenizer:
    """Return a byte-level BPE of the corpus whose first ids are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _read_merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [(first, second) for first, second in json.loads(tokenizer.to_str())["model"]["merges"]]


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, **settings: object) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


def _save_model(build: Callable[[], PreTrainedModel], folder: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.mul_(torch.linspace(0.5, 1.5, parameter.shape[0]))
    model.save_pretrained(folder)
    return folder
