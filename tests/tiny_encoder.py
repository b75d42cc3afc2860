"""Real encoders with random weights, BERT and decoders, and real tokenizers trained on a few words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

WORDS = ["thing painted black white red green, story of a space adventure for children", "0 1 2 3 4 5 6 7 8 9"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SLIDING_WINDOW = 4
DECODERS: dict[str, Callable[..., Any]] = {
    "qwen3": lambda **sizes: Qwen3Config(
        **sizes, head_dim=8, use_sliding_window=True, sliding_window=SLIDING_WINDOW, max_window_layers=1
    ),
    "llama": LlamaConfig,
    "mistral": lambda **sizes: MistralConfig(**sizes, sliding_window=SLIDING_WINDOW),
    "gemma3": lambda **sizes: Gemma3TextConfig(
        **sizes, head_dim=8, sliding_window=SLIDING_WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
}


def write_tiny_encoder(
    folder: Path, *, hidden_size: int = 32, layers: int = 2, seed: int = 0, words: Sequence[str] = WORDS
) -> Path:
    """Save a BERT model, config and tokenizer as Hugging Face does; returns the folder."""
    tokenizer = _train_wordpiece(words)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * hidden_size, max_position_embeddings=64,
    )
    return _save(folder, tokenizer, config, seed)


def write_tiny_mpnet(folder: Path, *, seed: int = 0) -> Path:
    """The same for MPNet, whose blocks return tuples and share a table of relative positions."""
    tokenizer = _train_wordpiece(WORDS)
    config = MPNetConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )
    return _save(folder, tokenizer, config, seed)


def write_tiny_albert(folder: Path, *, seed: int = 0) -> Path:
    """The same for ALBERT, which has one block for all three layers."""
    tokenizer = _train_wordpiece(WORDS)
    config = AlbertConfig(
        vocab_size=len(tokenizer), embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )
    return _save(folder, tokenizer, config, seed)


def write_tiny_decoder(folder: Path, family: str, *, seed: int = 0) -> Path:
    """The same for one of `DECODERS`: two layers, grouped queries, sliding windows where the family has them.

    Its tokenizer has no pad token and adds nothing to a text, as those of Llama and Mistral.
    """
    tokenizer = _train_byte_pairs()
    config = DECODERS[family](
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )
    return _save(folder, tokenizer, config, seed)


def _save(folder: Path, tokenizer: PreTrainedTokenizerFast, config: Any, seed: int) -> Path:
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def _train_wordpiece(words: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(words, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _train_byte_pairs() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
