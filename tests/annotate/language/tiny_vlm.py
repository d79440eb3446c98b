"""A Qwen3-VL of a few thousand weights in a folder as the hub has it: transformers' own classes, nothing of the real
model but its layout. Its weights are random, or such that it says one sentence whatever it is asked.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_vlm(folder: Path, sentence: str | None = None) -> Path:
    """The folder; with a sentence of words that are all different, the model says that and ends."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    words = [] if sentence is None else [f" {word}" for word in sentence.split()]
    assert len(set(words)) == len(words), "a word has one successor"
    tokenizer = _tokenizer(folder, words)
    ids: dict[str, int] = {name: tokenizer.convert_tokens_to_ids(name) for name in (*SPECIAL, *words)}
    _write_settings(folder)
    size = 32 if sentence is None else len(tokenizer)
    config = Qwen3VLConfig(
        text_config={
            "hidden_size": size,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_theta": 5e5, "rope_type": "default", "mrope_section": [4, 2, 2]},
            "initializer_range": 0.5,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": size,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
            "initializer_range": 0.5,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    if words:
        newline = tokenizer.encode("\n")[-1]
        chain = [newline, *(ids[word] for word in words), ids["<|im_end|>"]]
        _say(model, chain)
    model.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path, words: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    inner.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _write_settings(folder: Path) -> None:
    pictures = {
        "size": {"longest_edge": 65_536, "shortest_edge": 1024},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    videos = pictures | {"video_processor_type": "Qwen3VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)


def _say(model: Any, chain: list[int]) -> None:
    """Each token is followed by the next of a chain: layers add nothing to one-hot embeddings."""
    import torch

    with torch.no_grad():
        text = model.model.language_model
        text.embed_tokens.weight.copy_(torch.eye(len(text.embed_tokens.weight)))
        for layer in text.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token, following in itertools.pairwise(chain):
            model.lm_head.weight[following, token] = 1.0
