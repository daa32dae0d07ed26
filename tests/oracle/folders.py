"""Model folders as fine-tuning leaves them: a small tokenizer, and what its configuration adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "user assistant system",
    "你好 世界 héllo <|x|> [INST] 0123456789",
]

OWN = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "named tokens": OWN,
    "a token that is a word": OWN | {"eos_token": "fox"},
    "a token that is new": OWN | {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"},
    "tokens without a name": OWN | {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<s>"]},
    "tokens without a name, as now": OWN | {"extra_special_tokens": ["<|im_start|>", "[INST]"]},
    "tokens with names of their own": OWN | {"image_token": "<img>", "extra_special_tokens": {"video_token": "<vid>"}},
    "new tokens in no order": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "zebra_token": "<think>",
        "mask_token": "[INST]",
        "ant_token": "<|im_start|>",
        "pad_token": "<|im_end|>",
        "cls_token": "<|endoftext|>",
        "extra_special_tokens": {"bee_token": "<|im_"},
    },
    "tokens by their ids": OWN
    | {
        "added_tokens_decoder": {
            "1": {"content": "<s>", "special": True},
            "2": {"content": "</s>", "special": True, "rstrip": True, "lstrip": True},
            "401": {"content": "<think>", "special": False, "normalized": False},
            "400": {"content": "<|im_end|>", "special": True, "lstrip": False, "rstrip": True},
            "402": {"content": "quick", "special": False, "single_word": True},
        },
        "eos_token": "<|im_end|>",
    },
    "special tokens that are split": OWN | {"split_special_tokens": True},
    "beginnings and ends": OWN | {"add_bos_token": True, "add_eos_token": True},
}


def model_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with a trained tokenizer, one that cuts, fills up and adds a BOS when asked, and *config*."""
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s?\w+|\s+|[^\s\w]+"), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(CORPUS * 9, trainer)
    core.add_tokens([AddedToken("dog", lstrip=True)])
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    core.enable_truncation(8)
    core.enable_padding(length=64, pad_token="<unk>")
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
