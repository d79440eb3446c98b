"""Vision-language models in this process: through transformers on one device, or through vLLM.

Both take any model that their library calls one for images and text; Qwen3-VL is the one that the paper's captions are
named after. Weights come from a folder or, by the library, from the hub.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .base import ModelGone, NoAnswer, Request


def _messages(request: Request, picture: str) -> list[dict[str, Any]]:
    """The talk as chat templates take it, a place for each picture."""
    content: list[dict[str, Any]] = [{"type": picture} for _ in request.pictures]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [*content, {"type": "text", "text": request.prompt}]}
    ]
    for turn in request.turns:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        messages.append({"role": "user", "content": [{"type": "text", "text": turn.reply}]})
    return messages


@dataclass
class TransformersModel:
    """A model of transformers, several requests a batch.

    Attributes:
        name: folder or name on the hub.
        processor, model: as transformers' Auto classes give them.
        batch: requests at once.
    """

    name: str
    processor: Any
    model: Any
    batch: int = 4

    @property
    def at_once(self) -> int:
        """The batch."""
        return self.batch

    def ask(self, requests: Sequence[Request]) -> list[str | NoAnswer]:
        """Answers, batch by batch, always the likeliest word."""
        import torch

        answers: list[str | NoAnswer] = []
        for start in range(0, len(requests), self.batch):
            part = requests[start : start + self.batch]
            try:
                answers += self._batch(part)
            except torch.cuda.OutOfMemoryError as error:
                fewer = max(1, len(part) // 2)
                raise ModelGone(
                    f"{self.name}: out of GPU memory with {len(part)} requests at once: --jobs {fewer}, or fewer or"
                    " smaller pictures (--pictures, --longest-px)"
                ) from error
        return answers

    def _batch(self, requests: Sequence[Request]) -> list[str | NoAnswer]:
        import torch
        from PIL import Image

        texts = [
            self.processor.apply_chat_template(
                _messages(r, "image"), tokenize=False, add_generation_prompt=True
            )
            for r in requests
        ]
        images = [[Image.open(io.BytesIO(data)) for data in r.pictures] for r in requests]
        inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        most = max(r.max_tokens for r in requests)
        with torch.inference_mode():
            made = self.model.generate(**inputs, max_new_tokens=most, do_sample=False)
        new = made[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        ends = _end_tokens(self.model)
        answers: list[str | NoAnswer] = []
        for text, tokens, request in zip(texts, new.tolist(), requests, strict=True):
            if len(tokens) >= request.max_tokens and not ends.intersection(tokens):
                answers.append(NoAnswer("the answer was cut off at its greatest length (--max-tokens)"))
            else:
                answers.append(text if text.strip() else NoAnswer("the answer is empty"))
        return answers


def _end_tokens(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def _processor(name: str) -> Any:
    """What makes a model's inputs of text and pictures.

    Processors of models that take videos as well want torchvision for those alone. Pictures do without it, and a build
    of it that is not of torch's own version keeps transformers from being imported at all, so it is not asked for.

    Raises:
        OSError, ValueError, ImportError: as transformers.
    """
    from transformers import PROCESSOR_MAPPING, AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer

    if importlib.util.find_spec("torchvision") is not None:
        return AutoProcessor.from_pretrained(name)
    kind: Any = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(name)), None)
    if kind is None or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(name)

    class OfPictures(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor" and argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    settings, _ = kind.get_processor_dict(name)
    template = settings.get("chat_template") or tokenizer.chat_template
    images = AutoImageProcessor.from_pretrained(name)
    return OfPictures(
        image_processor=images, tokenizer=tokenizer, video_processor=None, chat_template=template
    )


def load_transformers(name: str, *, device: str, batch: int) -> TransformersModel:
    """A model of a folder or of the hub, in bfloat16 on a GPU.

    Raises:
        ImportError: a package is missing, with what brings it.
        ValueError: no such model, or one of another kind.
    """
    import torch

    try:
        from PIL import Image as _image  # noqa: F401
        from transformers import AutoModelForImageTextToText
    except ImportError as error:
        raise ImportError(
            f"captions in this process need transformers and Pillow ({error}): pip install theodolite[captions], or"
            " name a server (--server)"
        ) from None
    try:
        processor = _processor(name)
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        model = model.to(device).eval()
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{name}: transformers cannot load it: {str(error)[:300]}") from None
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"  # what is generated follows the last word of each request
    return TransformersModel(name, processor, model, batch)


@dataclass
class VllmModel:
    """A model of vLLM, which makes its own batches.

    Attributes:
        name: folder or name on the hub.
        engine: `vllm.LLM`.
        sampling: makes `vllm.SamplingParams` of a greatest length.
        at_once: requests that are handed over together.
    """

    name: str
    engine: Any
    sampling: Any
    at_once: int = 64

    def ask(self, requests: Sequence[Request]) -> list[str | NoAnswer]:
        """Answers, as vLLM schedules them."""
        talks = [self._talk(request) for request in requests]
        settings = [self.sampling(request.max_tokens) for request in requests]
        answers: list[str | NoAnswer] = []
        for result in self.engine.chat(talks, settings, use_tqdm=False):
            said = result.outputs[0]
            if said.finish_reason == "length":
                answers.append(NoAnswer("the answer was cut off at its greatest length (--max-tokens)"))
            else:
                answers.append(said.text if said.text.strip() else NoAnswer("the answer is empty"))
        return answers

    def _talk(self, request: Request) -> list[dict[str, Any]]:
        messages = _messages(request, "image_url")
        for place, data in zip(messages[0]["content"], request.pictures, strict=False):
            place["image_url"] = {"url": "data:image/jpeg;base64," + base64.b64encode(data).decode()}
        return messages


def load_vllm(name: str, *, pictures: int, batch: int) -> VllmModel:
    """A model of a folder or of the hub on all GPUs that vLLM is given.

    Raises:
        ImportError: vLLM is missing.
    """
    try:
        # brought by whoever wants it
        vllm: Any = importlib.import_module("vllm")
    except ImportError:
        raise ImportError(
            "--runner vllm needs vLLM, which brings its own torch: pip install vllm in an environment of its own, start"
            " `vllm serve MODEL` there, and name it with --server"
        ) from None
    engine = vllm.LLM(model=name, limit_mm_per_prompt={"image": pictures}, seed=0)
    return VllmModel(
        name, engine, lambda most: vllm.SamplingParams(temperature=0, max_tokens=most), at_once=batch
    )
