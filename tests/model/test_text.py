"""Prompts as the world model and the refiner read them: equal to diffusers' pipelines, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from theodolite.model.text import (
    byte_tokenizer,
    load_refiner_text_encoder,
    load_text_encoder,
    read_instruction,
    tiny_refiner_text_encoder,
    tiny_text_encoder,
)

from ..support import needs_packages
from ..typed import known
from .cases import relative

pytestmark = needs_packages("diffusers", "transformers", extra="generate")

PROMPT = "A red bus drives through a street in the rain."


class Outer:
    """diffusers goes through the model around the decoder."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, **arguments: Any) -> Any:
        arguments.pop("return_dict", None)
        return self.model(**arguments)


def their_prompt(own: Any, prompt: str, negative: str) -> list[torch.Tensor]:
    from diffusers import SanaWMPipeline

    pipe = SanaWMPipeline.__new__(SanaWMPipeline)
    object.__setattr__(pipe, "tokenizer", own.tokenizer)
    object.__setattr__(pipe, "text_encoder", Outer(own.model))
    with torch.no_grad():
        return cast(Any, SanaWMPipeline).encode_prompt(
            pipe,
            prompt,
            negative,
            device=torch.device("cpu"),
            max_sequence_length=own.tokens,
            chi_prompt=own.instruction.split("\n"),
        )


@pytest.mark.parametrize("tokens", [300, 60])
def test_equal_to_the_pipeline_of_diffusers(tokens: int) -> None:
    own = tiny_text_encoder(tokens=tokens)
    own.instruction = "Say more:\nUser Prompt: "
    states, mask, negative, negative_mask = their_prompt(own, PROMPT, "")
    made, empty = own.encode(PROMPT), own.encode("", instruction=False)
    assert made.states.shape == (1, tokens, 16)
    assert relative(made.states, states[:, 0]) < 1e-6
    assert torch.equal(known(made.mask), mask.bool())
    assert relative(empty.states, negative[:, 0]) < 1e-6
    assert torch.equal(known(empty.mask), negative_mask.bool())
    assert int(known(empty.mask).sum()) == 1


def test_what_is_kept() -> None:
    """The first token, the last one of the instruction, and those of the prompt."""
    own = tiny_text_encoder(tokens=60)
    assert int(known(own.encode(PROMPT).mask).sum()) == len(PROMPT) + 2
    other = tiny_text_encoder(tokens=60)
    other.instruction = "Another text of other length, "
    changed = relative(other.encode(PROMPT).states, own.encode(PROMPT).states)
    assert changed > 1e-3, "the prompt is read after the instruction"


def test_overlong_prompts_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    own = tiny_text_encoder(tokens=30)
    assert own.count_tokens("x" * 28) == (28, 28)
    assert bool(known(own.encode("x" * 28).mask).all())
    with pytest.raises(ValueError, match="31 tokens, the world model sees 28: shorten it by about 3"):
        own.encode("x" * 31, overlong="error")
    assert bool(known(own.encode("x" * 31).mask).all())
    assert not caplog.text
    own.stand_in = False
    with pytest.raises(ValueError, match="the world model sees 28"):
        own.encode("x" * 31)
    with caplog.at_level("WARNING"):
        cut = own.encode("x" * 31, overlong="cut")
    assert "31 tokens" in caplog.text
    assert relative(cut.states, own.encode("x" * 28).states) < 1e-6
    with pytest.raises(ValueError, match="sees 29"):
        own.encode("x" * 30, instruction=False)


def test_what_is_no_text_is_refused_and_any_text_is_read() -> None:
    own, reader = tiny_text_encoder(), tiny_refiner_text_encoder(tokens=64)
    for encoder in (own, reader):
        with pytest.raises(ValueError, match="character 3 is half of a pair"):
            encoder.encode("a \ud800")
        for prompt in ("\0", "<bos><eos><pad>", "\N{BUS} \u202e"):
            assert bool(encoder.encode(prompt).states.isfinite().all())


def test_an_empty_prompt_is_for_guidance_only() -> None:
    own = tiny_text_encoder()
    for prompt in ("", " \n"):
        with pytest.raises(ValueError, match="prompt is empty"):
            own.encode(prompt)


def test_the_refiners_text_equals_the_pipeline_of_diffusers() -> None:
    from diffusers import SanaWMLTX2Refiner

    own = tiny_refiner_text_encoder(tokens=64)
    pipe = SanaWMLTX2Refiner.__new__(SanaWMLTX2Refiner)
    for name, value in dict(
        tokenizer=own.tokenizer,
        text_encoder=Outer(own.model),
        connectors=own.connectors,
        text_max_sequence_length=64,
    ).items():
        object.__setattr__(pipe, name, value)
    with torch.no_grad():
        states, mask = SanaWMLTX2Refiner._encode_prompt(
            pipe, PROMPT, device=torch.device("cpu"), dtype=torch.float32
        )
    made = own.encode(PROMPT)
    assert relative(made.states, states) < 1e-5
    assert torch.equal(known(made.mask), mask.bool())
    assert relative(own.encode("another").states, states) > 1e-2
    with pytest.raises(ValueError, match="71 tokens, the refiner sees 64"):
        own.encode("x" * 70, overlong="error")
    assert own.encode("x" * 70).states.shape == made.states.shape
    assert own.encode("").states.isfinite().all()


def test_the_instruction_comes_from_the_release(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with pytest.raises(FileNotFoundError, match="release's config"):
        read_instruction(file)
    file.write_text("text_encoder: {chi_prompt: [one, 'two: ']}\n")
    assert read_instruction(file) == "one\ntwo: "
    for text in ("text_encoder: {}\n", "- 1\n", "a: [\n", "text_encoder: {chi_prompt: one}\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match="chi_prompt"):
            read_instruction(file)
    assert read_instruction().endswith("User Prompt: ")


@pytest.mark.slow
def test_released_folders_load(tmp_path: Path) -> None:
    import transformers

    own = tiny_text_encoder()
    outer = transformers.Gemma2ForCausalLM(own.model.config)
    outer.model.load_state_dict(own.model.state_dict())
    outer.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    again = load_text_encoder(tmp_path, dtype=torch.float32)
    again.instruction = own.instruction
    assert relative(again.encode(PROMPT).states, own.encode(PROMPT).states) < 1e-6
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_text_encoder(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder of the language model"):
        load_text_encoder(tmp_path / "nothing")


@pytest.mark.slow
def test_the_refiners_released_folders_load(tmp_path: Path) -> None:
    import transformers

    own = tiny_refiner_text_encoder(tokens=64)
    vision = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28
    )
    config = transformers.Gemma3Config(
        text_config=own.model.config.to_dict(), vision_config=vision, mm_tokens_per_image=4
    )
    whole = transformers.Gemma3ForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(own.model.state_dict())
    whole.save_pretrained(tmp_path / "gemma")
    byte_tokenizer().save_pretrained(tmp_path / "gemma")
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    mixing = LTX2TextConnectors(**own.connectors.config)
    mixing.load_state_dict(own.connectors.state_dict(), strict=False)
    mixing.save_pretrained(tmp_path / "connectors")
    again = load_refiner_text_encoder(tmp_path / "gemma", tmp_path / "connectors", dtype=torch.float32)
    again.tokens = 64
    assert relative(again.encode(PROMPT).states, own.encode(PROMPT).states) < 1e-6
