"""Questions to a vision-language model about a clip, and what becomes of its answers: captions and numbers.

A task asks, looks at the answer, and asks once more where the answer is none; what is still none then is the clip's
problem, in words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...dataset.inputs import InputError, parse_json
from .base import LanguageModel, NoAnswer, Request
from .camera_words import camera_words, without_camera_words

CAPTION_PROMPT = (
    "These pictures are from one place, in order of time. Describe what is there in one paragraph of {words} words at"
    " most: the place, the large things in it and where they are to each other, surfaces, colours, light, weather, and"
    " what lives or moves there. Describe only what is visible, in the present tense. Never mention a camera, a shot, a"
    " view, a viewer, a video, pictures, or any movement of whoever looks: no panning, zooming, moving forward,"
    " close-up or perspective. Begin with the place itself."
)
REWRITE_PROMPT = (
    "Your description speaks of the camera or of whoever looks ({found}). Write it again without that: the same place,"
    " the same things, in plain sentences about what is there. Answer with the description alone."
)
JUDGE_PROMPT = (
    "These pictures are from one clip, in order of time. Count what is in the clip, each thing once however often it is"
    " seen: people, vehicles (cars, lorries, buses, bicycles, boats, aircraft), animals. Then judge the quality: it"
    " passes if the pictures are sharp enough to see the place, are of a real or rendered three-dimensional scene, and"
    " show no menus, large captions, split screens, frames around the picture or slides. Answer with this JSON alone:"
    ' {"people": 0, "vehicles": 0, "animals": 0, "quality_pass": true}'
)
JUDGE_AGAIN = (
    "That is not the JSON that was asked for ({why}). Answer with"
    ' {"people": <number>, "vehicles": <number>, "animals": <number>, "quality_pass": <true or false>} alone.'
)
_MOST_ENTITIES = 10_000
_FEWEST_WORDS = 8
_MOST_CHARACTERS = 4000


class Task(Protocol):
    """Columns of a clip from what a model says of its pictures."""

    @property
    def prompts(self) -> str:
        """Everything that is asked, for the record."""
        ...

    def columns(
        self, model: LanguageModel, pictures: Sequence[tuple[bytes, ...]]
    ) -> list[dict[str, Any] | str]:
        """Values of each clip, or its problem in words.

        Raises:
            ModelGone: as the model.
        """
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        ...


def prompts_digest(task: Task) -> str:
    """Sixteen digits that tell what was asked."""
    return hashlib.sha256(task.prompts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Captions:
    """A caption of the scene, without words of the camera.

    Attributes:
        words: asked for at most.
        kept: least share of the words that writing them out may leave before the model is asked to write anew.
    """

    words: int = 120
    kept: float = 0.7
    max_tokens: int = 512

    names = ("caption", "caption_as_answered", "camera_words", "rewritten_by")

    @property
    def prompts(self) -> str:
        """Question and reply."""
        return CAPTION_PROMPT.format(words=self.words) + REWRITE_PROMPT

    def columns(
        self, model: LanguageModel, pictures: Sequence[tuple[bytes, ...]]
    ) -> list[dict[str, Any] | str]:
        """`caption`; where it was changed also the answer, the words that were found in it, and who wrote them out."""
        prompt = CAPTION_PROMPT.format(words=self.words)
        requests = [Request(pictures=p, prompt=prompt, max_tokens=self.max_tokens) for p in pictures]
        answers = _asked(model, requests)
        again = [
            i for i, a in enumerate(answers) if isinstance(a, str) and not self._rules_do(plain_caption(a))
        ]
        replies = _asked(
            model, [requests[i].after(str(answers[i]), self._reply(str(answers[i]))) for i in again]
        )
        second = dict(zip(again, replies, strict=True))
        return [self._values(a, second.get(i)) for i, a in enumerate(answers)]

    def _rules_do(self, caption: str) -> bool:
        cleaned = without_camera_words(caption)
        return not cleaned.found or (cleaned.kept >= self.kept and len(cleaned.text.split()) >= _FEWEST_WORDS)

    def _reply(self, answer: str) -> str:
        found = dict.fromkeys(camera_words(plain_caption(answer)))
        return REWRITE_PROMPT.format(found=", ".join(repr(f) for f in list(found)[:8]))

    def _values(self, answer: str | NoAnswer, reply: str | NoAnswer | None) -> dict[str, Any] | str:
        if isinstance(answer, NoAnswer):
            return str(answer)
        first = plain_caption(answer)
        used, rewriter = first, "rules"
        if isinstance(reply, str) and reply.strip():
            used, rewriter = plain_caption(reply), "model"
        cleaned = without_camera_words(used)
        if rewriter == "model" and len(cleaned.text.split()) < _FEWEST_WORDS:
            cleaned, rewriter = without_camera_words(first), "rules"
        found = tuple(dict.fromkeys(camera_words(first)))
        if len(cleaned.text.split()) < _FEWEST_WORDS:
            why = f"speaks of {', '.join(found[:5])}" if found else "is too short"
            return f"no caption is left: the answer {why}: {first[:200]!r}"
        if len(cleaned.text) > _MOST_CHARACTERS:
            return f"the answer has {len(cleaned.text)} characters"
        changed = bool(found)
        return {
            "caption": cleaned.text,
            "caption_as_answered": answer if changed else None,
            "camera_words": list(found) if changed else None,
            "rewritten_by": rewriter if changed else None,
        }


@dataclass(frozen=True)
class Judgement:
    """How many people, vehicles and animals there are, and whether the clip is good: SANA-WM's last two filters."""

    max_tokens: int = 128

    names = ("vlm_entities", "vlm_quality", "vlm_people", "vlm_vehicles", "vlm_animals")

    @property
    def prompts(self) -> str:
        """Question and reply."""
        return JUDGE_PROMPT + JUDGE_AGAIN

    def columns(
        self, model: LanguageModel, pictures: Sequence[tuple[bytes, ...]]
    ) -> list[dict[str, Any] | str]:
        """Numbers by the names of the filters."""
        requests = [Request(pictures=p, prompt=JUDGE_PROMPT, max_tokens=self.max_tokens) for p in pictures]
        answers = _asked(model, requests)
        found = [a if isinstance(a, NoAnswer) else read_judgement(a) for a in answers]
        again = [i for i, f in enumerate(found) if isinstance(f, str)]
        replies = _asked(
            model,
            [requests[i].after(str(answers[i]), JUDGE_AGAIN.replace("{why}", str(found[i]))) for i in again],
        )
        for i, reply in zip(again, replies, strict=True):
            found[i] = reply if isinstance(reply, NoAnswer) else read_judgement(reply)
        return [str(f) if isinstance(f, NoAnswer) else f for f in found]


def _asked(model: LanguageModel, requests: Sequence[Request]) -> list[str | NoAnswer]:
    """Answers to all requests, as many as there are."""
    if not requests:
        return []
    answers = model.ask(requests)
    assert len(answers) == len(requests), f"{model.name}: {len(answers)} answers to {len(requests)} requests"
    return answers


def plain_caption(answer: str) -> str:
    """An answer without what models put around it: quotes, headings, lists, what they think aloud."""
    text = re.sub(r"<think>.*?</think>", " ", answer, flags=re.DOTALL)
    text = re.sub(r"```\w*", " ", text)
    text = re.sub(r"(?m)^\s*(?:[#>*-]+|\d+[.)])\s+", "", text)
    text = re.sub(
        r"^\s*(?:\*\*)?(?:caption|description|answer)(?:\*\*)?\s*:\s*", "", text, flags=re.IGNORECASE
    )
    text = " ".join(text.replace("**", "").split())
    if len(text) > 1 and text[0] in "\"'“" and text[-1] in "\"'”":
        text = text[1:-1].strip()
    return text


def read_judgement(answer: str) -> dict[str, Any] | str:
    """Numbers in an answer, or what is wrong with it."""
    text = re.sub(r"<think>.*?</think>", " ", answer, flags=re.DOTALL)
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return f"no JSON: {answer[:120]!r}"
    try:
        content = parse_json(text[start : end + 1], "the answer")
    except InputError as error:
        return f"no JSON ({str(error)[:120]})"
    if not isinstance(content, dict):
        return "no JSON object"
    counts = {}
    for key in ("people", "vehicles", "animals"):
        value = content.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{key} is {value!r:.60}, no number"
        if not (0 <= value <= _MOST_ENTITIES and value == int(value)):
            return f"{key} is {value!r:.60}, no whole number from 0 to {_MOST_ENTITIES}"
        counts[key] = float(value)
    quality = content.get("quality_pass")
    if quality not in (True, False):  # 0 and 1 are equal to them
        return f"quality_pass is {quality!r:.60}, neither true nor false"
    return {
        "vlm_entities": sum(counts.values()),
        "vlm_quality": float(quality),
        **{f"vlm_{key}": value for key, value in counts.items()},
    }
