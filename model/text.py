"""What a prompt says, as the world model and the refiner read it: hidden states of released language models.

The world model reads the last hidden states of Gemma-2-2b-it: a long instruction stands before the prompt, and of its
tokens only the first and the last are kept. The refiner reads all hidden states of Gemma-3-12B, normalised and mixed by
LTX-2's connectors. The instruction is its authors' text: it is read from the released configuration, or from diffusers.

Source: the public NVlabs/Sana code (`_encode_prompts`) and diffusers (`SanaWMPipeline`, `SanaWMLTX2Refiner`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from .released import drop_parts, import_diffusers, import_transformers, load_module
from .samplers import Text

log = logging.getLogger(__name__)

TOKENS = 300
"""Positions that the world model sees: the first one and the last 299."""
REFINER_TOKENS = 1024

Overlong = Literal["error", "cut"]

_CONNECTOR_PARTS = ("audio_connector", "audio_text_proj_in")
"""Parts of the connectors that only a sound track needs."""


class TextEncoder(nn.Module):
    """Prompts to the hidden states that the world model attends to.

    Attributes:
        model: transformers' decoder; its device and type are those of the computation.
        tokenizer: transformers' tokenizer.
        instruction: text before every prompt; empty: none.
        stand_in: whether the weights are random numbers.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, instruction: str, tokens: int = TOKENS, stand_in: bool = False
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.instruction = instruction
        self.tokens = tokens
        self.stand_in = stand_in

    @property
    def width(self) -> int:
        """Channels of the hidden states (2304 as released)."""
        return int(self.model.config.hidden_size)

    def streamed_blocks(self) -> list[nn.Module]:
        """What may come to the device one after another (`residence`)."""
        return list(self.model.layers)

    def count_tokens(self, prompt: str, *, instruction: bool = True) -> tuple[int, int]:
        """Tokens of a prompt, and how many the world model sees; the instruction's and the start are not counted."""
        before = self.instruction if instruction else ""
        _check_text(prompt)
        start = len(self.tokenizer.encode(before))
        return len(self.tokenizer.encode(before + prompt)) - start, self._room(before)

    def _room(self, before: str) -> int:
        return self.tokens - 2 if before else self.tokens - 1

    @torch.no_grad()
    def encode(
        self,
        prompt: str,
        *,
        instruction: bool = True,
        overlong: Overlong | None = None,
        name: str = "the prompt",
    ) -> Text:
        """Hidden states of one prompt.

        Args:
            prompt: empty only without the instruction (what guidance compares with).
            instruction: put it before the prompt, as for every prompt but the negative one.
            overlong: what to do with more tokens than the world model sees: an error, or cut with a warning (which the
                released code does without one). None: an error, but for a stand-in, which knows no words, cut.
            name: of the prompt, for messages.
        Returns:
            (1, 300, C) in the encoder's type and on its device, and which positions hold tokens.
        Raises:
            ValueError: the prompt is empty, or too long; the message counts.
        """
        if instruction and not prompt.strip():
            raise ValueError("the prompt is empty: say what the video shows")
        before = self.instruction if instruction else ""
        count, room = self.count_tokens(prompt, instruction=instruction)
        if count > room:
            _too_long(count, room, "world model", overlong, self.stand_in, name)
        length = len(self.tokenizer.encode(before)) + room if before else self.tokens
        found = self.tokenizer(
            [before + prompt],
            max_length=length,
            padding="max_length",
            padding_side="right",
            truncation=True,
            return_tensors="pt",
        )
        device = self.model.embed_tokens.weight.device
        ids, mask = found["input_ids"].to(device), found["attention_mask"].to(device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = [0, *range(length - self.tokens + 1, length)]
        return Text(states=states[:, kept], mask=mask[:, kept].bool())


class RefinerTextEncoder(nn.Module):
    """Prompts to what the refiner attends to: all hidden states of a language model, through LTX-2's connectors.

    Attributes:
        model: transformers' language model, without the part that sees pictures.
        connectors: diffusers' `LTX2TextConnectors` without its half for sound.
    """

    def __init__(
        self,
        model: Any,
        connectors: Any,
        tokenizer: Any,
        *,
        tokens: int = REFINER_TOKENS,
        stand_in: bool = False,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.connectors = connectors.eval().requires_grad_(False)
        drop_parts(self.connectors, _CONNECTOR_PARTS)
        self.connectors.audio_connector = _Silent()
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.stand_in = stand_in

    def streamed_blocks(self) -> list[nn.Module]:
        """What may come to the device one after another (`residence`)."""
        return list(self.model.layers)

    @torch.no_grad()
    def encode(self, prompt: str, *, overlong: Overlong | None = None) -> Text:
        """Hidden states of one prompt.

        Args:
            overlong: as in `TextEncoder.encode`.
        Returns:
            (1, 1024, C) in the encoder's type and on its device, and which positions the refiner attends to.
        Raises:
            ValueError: the prompt is too long; the message counts.
        """
        prompt = prompt.strip()
        _check_text(prompt)
        count = len(self.tokenizer.encode(prompt))
        if count > self.tokens:
            _too_long(count, self.tokens, "refiner", overlong, self.stand_in)
        found = self.tokenizer(
            [prompt],
            max_length=self.tokens,
            padding="max_length",
            padding_side="left",
            truncation=True,
            return_tensors="pt",
        )
        device = self.model.embed_tokens.weight.device
        ids, mask = found["input_ids"].to(device), found["attention_mask"].to(device)
        states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        video, _, kept = self.connectors(torch.stack(states, dim=-1), mask)
        return Text(states=video, mask=kept.bool())


def _check_text(prompt: str) -> None:
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is no text: character {error.start + 1} is half of a pair") from None


def _too_long(
    count: int, room: int, reader: str, overlong: Overlong | None, stand_in: bool, name: str = "the prompt"
) -> None:
    message = f"{name} has {count} tokens, the {reader} sees {room}"
    if overlong == "error" or (overlong is None and not stand_in):
        raise ValueError(f"{message}: shorten it by about {count - room} tokens, or let it be cut")
    if overlong == "cut":
        log.warning("%s: the rest is cut off", message)


class _Silent(nn.Module):
    """Stands where the connectors ask for the sound track's text."""

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return states, mask


def read_instruction(config: Path | None = None) -> str:
    """The instruction that the world model was trained with.

    Args:
        config: `config.yaml` of a release, which has it as `text_encoder.chi_prompt`; None: diffusers' copy of it.
    Raises:
        FileNotFoundError, ValueError: no such file, or there is no instruction in it.
        ModuleNotFoundError: diffusers is not installed.
    """
    if config is None:
        module = import_diffusers("pipelines.sana_wm.pipeline_sana_wm")
        return "\n".join(module.DEFAULT_CHI_PROMPT)
    if not config.is_file():
        raise FileNotFoundError(
            f"{config}: no such file; give the release's config.yaml, which has the instruction"
        )
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
        lines = found["text_encoder"]["chi_prompt"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{config} has no text_encoder.chi_prompt ({type(error).__name__}): give the release's config.yaml"
        ) from error
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{config}: text_encoder.chi_prompt must be a list of lines")
    return "\n".join(lines)


def load_text_encoder(
    folder: Path | str,
    *,
    instruction: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> TextEncoder:
    """Gemma-2-2b-it with its tokenizer, from the folder in which they are released.

    Args:
        instruction: `config.yaml` of the world model's release; None: diffusers' copy of the instruction.
    Raises:
        FileNotFoundError, ValueError: files are missing, damaged or another network's; the message names them.
        ModuleNotFoundError: transformers is not installed.
    """
    transformers = import_transformers()
    folder = Path(folder)
    model = _language_model(transformers.Gemma2ForCausalLM, folder, dtype).model
    return TextEncoder(
        model.to(device), _tokenizer(transformers, folder), instruction=read_instruction(instruction)
    )


def load_refiner_text_encoder(
    folder: Path | str,
    connectors: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> RefinerTextEncoder:
    """Gemma-3-12B with its tokenizer, and the refiner's connectors.

    Args:
        folder: of the language model.
        connectors: folder `connectors` of the refiner's release.
    Raises:
        FileNotFoundError, ValueError: files are missing, damaged or another network's; the message names them.
        ModuleNotFoundError: transformers or diffusers is not installed.
    """
    transformers = import_transformers()
    folder = Path(folder)
    whole = _language_model(transformers.Gemma3ForConditionalGeneration, folder, dtype)
    kind = import_diffusers("pipelines.ltx2.connectors").LTX2TextConnectors
    mixing = load_module(kind, Path(connectors), dtype=dtype, leave_out=_CONNECTOR_PARTS)
    return RefinerTextEncoder(
        whole.model.language_model.to(device), mixing.to(device), _tokenizer(transformers, folder)
    )


def _language_model(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A model of transformers from its own files only; a tensor that is missing is an error."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json: give the folder of the language model's release"
        )
    try:
        model, report = kind.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, low_cpu_mem_usage=True
        )
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} cannot be read as {kind.__name__}: {first}") from error
    missing = sorted(set(report["missing_keys"]) - {"lm_head.weight"})
    wrong = sorted(str(k) for k in report.get("mismatched_keys", ()))
    if missing or wrong:
        shown = ", ".join([*missing, *wrong][:8])
        raise ValueError(
            f"{folder} does not fit {kind.__name__}: {len(missing)} missing, {len(wrong)} of another shape: {shown}"
        )
    return model


def _tokenizer(transformers: Any, folder: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} holds no tokenizer that can be read: {first}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


# --- stand-ins ---------------------------------------------------------------------------------


def byte_tokenizer() -> Any:
    """A tokenizer with one token a byte, made here: for stand-ins, which know no words anyway."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    transformers = import_transformers()
    special = ["<pad>", "<eos>", "<bos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def _tiny_sizes(tokenizer: Any, width: int) -> dict[str, int]:
    """Sizes of a stand-in's language model, in the words of transformers' Gemma configurations."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }


def tiny_text_encoder(seed: int = 0, *, width: int = 16, tokens: int = TOKENS) -> TextEncoder:
    """Random numbers in the shape of the world model's text encoder, on the CPU in float32.

    Args:
        width: channels of the hidden states (`WorldModelConfig.text_width`).
        tokens: positions that are kept (`WorldModelConfig.text_tokens`).
    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    transformers = import_transformers()
    tokenizer = byte_tokenizer()
    config = transformers.Gemma2Config(**_tiny_sizes(tokenizer, width))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.Gemma2Model(config)
    return TextEncoder(model, tokenizer, instruction="Describe in detail: ", tokens=tokens, stand_in=True)


def tiny_refiner_text_encoder(
    seed: int = 0, *, width: int = 16, tokens: int = REFINER_TOKENS
) -> RefinerTextEncoder:
    """Random numbers in the shape of the refiner's text encoder and connectors, on the CPU in float32.

    Raises:
        ModuleNotFoundError: transformers or diffusers is not installed.
    """
    transformers = import_transformers()
    kind = import_diffusers("pipelines.ltx2.connectors").LTX2TextConnectors
    tokenizer = byte_tokenizer()
    config = transformers.Gemma3TextConfig(**_tiny_sizes(tokenizer, width))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.Gemma3TextModel(config)
        connectors = kind(
            caption_channels=width,
            text_proj_in_factor=3,
            video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=width // 2,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=16,
            audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=width // 2,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=16,
        )
    return RefinerTextEncoder(model, connectors, tokenizer, tokens=tokens, stand_in=True)
