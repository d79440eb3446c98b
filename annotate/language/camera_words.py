"""Words of the camera in a caption: found, and written out of it.

A caption says what a scene holds; how the camera moves is told to the world model by poses, and a caption that tells it
as well would be believed instead. Found are cameras that look on, their movements, kinds of shots, the viewer, and
words for the video itself; a camera that somebody holds, a frying pan or a zoom past is none of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ADVERB = r"(?:(?:then|now|also|\w+ly)\s+)*"
_WHERE = (
    r"(?:across|left|right|over|around|up|down|to|towards?|past|along|through|forward|forwards|back|backward|backwards"
    r"|upward|upwards|downward|downwards|in|out|closer|away|ahead|from|into)"
)
_MOVES = (
    r"(?:pan|tilt|zoom|dolly|move|glide|track|follow|shift|rotate|sweep|pull|push|circle|orbit|rise|descend|linger|cut"
    r"|transition|turn|advance|travel|float|fly|drift|swing|spin|approach|pivot|ascend|hover|trail|roll|soar|traverse)"
)
_MOVED = rf"(?:{_MOVES[3:-1]}|dollies|flies)(?:s|es|ed|ing|ning|ned|ting|ts)?"
_SHOWS = r"(?:show|reveal|capture|depict|feature|begin|start|open|continue|remain|stay|focus|settle|end)(?:e?s|ing|d)?"
_PEOPLE = r"(?:his|her|their|its|my|someone's)"
_OBJECTS = r"(?:security|surveillance|cctv|dash|speed|traffic|web|digital|film|vintage|disposable|trail|body)"

_PATTERNS: tuple[str, ...] = (
    # The camera that looks on, not one that is in the picture.
    rf"\bthe\s+camera(?:'s|person|man)?\b(?!\s+(?:store|shop|bag|strap|case|lens|hang|around|on\s+(?:a|the)\s|in\s+{_PEOPLE}))",
    r"(?<!\w)(?:our|handheld|moving|static|steady|stationary|fixed|drone|virtual|unseen)\s+camera\b",
    r"\bcamera[- ]?(?:work|movements?|motions?|angles?|positions?|pans?|tilts?|zooms?|moves|movement)\b",
    r"\b(?:on|off|facing|towards?|past|at|into|from|by|before)\s+(?:the\s+)?camera\b(?!\s+(?:store|shop|bag|strap|case))",
    # What is seen, moving.
    rf"\b(?:the|our|this)\s+(?:view|viewpoint|shot|frame|framing|perspective|lens|footage|video|clip|vantage\s+point|"
    rf"point\s+of\s+view|scene)\s+{_ADVERB}{_MOVED}\b",
    rf"\b(?:the|our|this|a|an)\s+(?:\w+\s+)?(?:shot|footage|video|clip|recording|film|vantage\s+point)\s+{_ADVERB}{_SHOWS}\b",
    # Movements without the word.
    rf"(?<!frying )(?<!and )(?<!sauce)(?<!metal )(?<!copper )(?<!baking )\b(?:pan|pans|panning|panned)\s+{_ADVERB}"
    r"(?:across|left|right|upwards?|downwards?|around|over\s+(?:to|the\s+(?:scene|city|street|area|landscape)))\b",
    r"\b(?:pan|pans|panning)\s+(?:shot|motion|movement)\b",
    rf"\bzoom(?:s|ed|ing)?\s+{_ADVERB}(?:in|out|closer)\b",
    rf"\b(?:dolly|dollies|dollying|trucking)\s+{_ADVERB}(?:in|out|forward|backward|back|left|right|towards?|along)\b",
    r"\b(?:pull|pulls|pulling)\s+back\s+to\s+(?:reveal|show)\b",
    r"\b(?:push|pushes|pushing)\s+in\s+(?:on|towards?|closer)\b",
    r"^(?:moving|gliding|flying|drifting|advancing|soaring|panning|zooming|tracking)\s+(?:\w+ly\s+)*"
    r"(?:forward|backward|ahead|onward|deeper|further|farther|through|along|over|across|past|towards?|around|in|into|out|"
    r"down|up|left|right|under|beneath|between|inside)\b",
    # Kinds of shots and of looking.
    r"\b(?:tracking|dolly|crane|aerial|drone|establishing|wide|medium|long|panning|overhead|low|high|static|handheld|"
    r"hand-held|steadicam|gimbal|continuous|smooth|pov|point[- ]of[- ]view|first[- ]person|third[- ]person|"
    r"bird'?s[- ]eye|top[- ]down|over[- ]the[- ]shoulder|eye[- ]level|wide[- ]angle|low[- ]angle|high[- ]angle|fpv)"
    r"[- ]+(?:angle\s+|level\s+)?(?:shots?|views?|footage|perspective|angles?|camera|video|vantage\s+point|lens)\b",
    r"\b(?:pov|fpv|first[- ]person|third[- ]person|point[- ]of[- ]view)\b",
    r"\bclose[- ]?ups?\b",
    r"\bwide[- ]angle\b|\bfish[- ]?eye\b|\blens\s+flares?\b|\bdepth\s+of\s+field\b|\bbokeh\b|\btime[- ]?lapse\b"
    r"|\bslow[- ]?motion\b|\bhyper[- ]?lapse\b",
    # Whoever looks, and the video itself.
    r"\bthe\s+viewer(?:'s|s)?\b|\bviewers\b",
    r"\b(?:we|we're|we\s+are|as\s+we|you)\s+(?:can\s+)?(?:\w+ly\s+)*(?:see|move|moving|follow|following|travel|walk|"
    r"glide|fly|approach|pass|turn|look|drive|float|watch|enter|head|descend|observe)\b",
    r"\b(?:in|throughout|of|from|over)\s+(?:this|the)\s+(?:\w+\s+)?(?:video|clip|footage|shot|recording|sequence|film)\b",
    r"\b(?:this|the)\s+(?:\w+\s+)?(?:video|footage|clip)\b",
    r"\b(?:shot|filmed|recorded|captured|photographed)\s+(?:from|with|on|by|using|in\s+(?:a\s+)?(?:first|slow|black))\b",
    r"\b(?:in|into|out\s+of|enters?|leaves?|exits?|within|fills?)\s+(?:the\s+)?(?:frame|view|shot)\b(?!\s+of\s+a\s+(?:door|"
    r"window|mirror))",
)
_FOUND = re.compile("|".join(f"(?:{p})" for p in _PATTERNS), re.IGNORECASE)
_IN_PICTURE = re.compile(
    rf"\b{_OBJECTS}\s+cameras?\b|\bcameras?\s+(?:store|shop|bag|strap|case|lens|around)\b|\b(?:a|{_PEOPLE})\s+cameras?\b",
    re.IGNORECASE,
)

_VIDEO = r"(?:video|clip|footage|shot|recording|sequence|film|scene|image|picture|frame)s?"
_SENTENCE = re.compile(r"[^.!?]+(?:[.!?]+(?=\s|$)|[.!?](?=\S)[^.!?]*)*[.!?]*")
_LEAD_IN = re.compile(
    rf"^(?:(?:in|throughout|over)\s+(?:this|the)\s+(?:[\w-]+\s+)?{_VIDEO},?\s*(?:we\s+(?:can\s+)?see\s+|there\s+(?:is|are)\s+)?"
    r"|.{0,120}?\b(?:shows?|showing|reveals?|revealing|to\s+reveal|to\s+show|captures?|capturing|depicts?|depicting|"
    r"features?|featuring|across|through|over|past|along|around|shot\s+of|view\s+of|footage\s+of|close-?up\s+of|video\s+of|"
    r"follows?|following|onto|down|we\s+(?:can\s+)?see)\s+)",
    re.IGNORECASE,
)
_PHRASES = re.compile(
    r"\s+(?:(?:directly|straight)\s+)?(?:towards?|at|facing|past|for|into|to)\s+the\s+(?:camera|viewer)s?\b"
    r"|\s+(?:in|from)\s+(?:a|an)\s+[\w-]+(?:\s+[\w-]+)?\s+(?:shot|angle|perspective|view|close-?up)\b"
    r"|\s+(?:in|into|out\s+of|within)\s+(?:the\s+)?(?:frame|view|shot)\b",
    re.IGNORECASE,
)
_CLAUSES = re.compile(r"(\s*[,;:]\s*|\s+(?=(?:as|while|before|until)\s))", re.IGNORECASE)
_FEWEST_WORDS = 3


@dataclass(frozen=True)
class Cleaned:
    """A caption without words of the camera.

    Attributes:
        text: what is left.
        found: the words that were there, in order.
        kept: share of the words that is left.
    """

    text: str
    found: tuple[str, ...]
    kept: float


def camera_words(text: str) -> tuple[str, ...]:
    """Every place of a caption that speaks of the camera, in order."""
    found = []
    for sentence in sentences(text):
        for match in _FOUND.finditer(sentence):
            if not _IN_PICTURE.fullmatch(match[0].strip()):
                found.append(" ".join(match[0].split()))
    return tuple(found)


def sentences(text: str) -> list[str]:
    """Sentences of a text, their ends included."""
    return [s for match in _SENTENCE.finditer(" ".join(text.split())) if (s := match[0].strip())]


def without_camera_words(text: str) -> Cleaned:
    """The caption with what speaks of the camera written out of it: of a sentence the phrase, the clause or the way it
    begins, else the whole sentence. What is left has no such words."""
    found = camera_words(text)
    if not found:
        return Cleaned(text, (), 1.0)
    left = [clean for sentence in sentences(text) if (clean := _clean_sentence(sentence))]
    result = " ".join(left)
    before = max(1, len(text.split()))
    return Cleaned(result, found, len(result.split()) / before)


def _clean_sentence(sentence: str) -> str:
    """A sentence without words of the camera; empty if nothing is left of it."""
    for attempt in (_same, _without_phrases, _without_lead_in, _without_clauses):
        result = attempt(sentence)
        if result and len(result.split()) >= _FEWEST_WORDS and not camera_words(result):
            return _as_sentence(result)
    return ""


def _same(sentence: str) -> str:
    return sentence


def _without_phrases(sentence: str) -> str:
    return _PHRASES.sub("", sentence)


def _without_lead_in(sentence: str) -> str:
    """What a shot shows, without saying that it does; the first beginning after which nothing is found."""
    rest = _without_phrases(sentence)
    for _ in range(4):
        match = _LEAD_IN.match(rest)
        if match is None or not match[0].strip():
            return ""
        rest = rest[match.end() :]
        trimmed = _without_clauses(rest) if camera_words(rest) else rest
        if trimmed and not camera_words(trimmed) and not _starts_bare(trimmed):
            return trimmed
    return ""


def _starts_bare(text: str) -> bool:
    """Whether a rest is no phrase of its own: begins with a word that needs what was before it."""
    first = text.split()[0].lower().strip(",;:") if text.split() else ""
    return first in _NEED_MORE


_NEED_MORE = frozenset(
    (
        *(
            "and",
            "or",
            "of",
            "to",
            "for",
            "from",
            "in",
            "on",
            "at",
            "by",
            "with",
            "as",
            "while",
            "is",
            "are",
            "was",
        ),
        *(
            "were",
            "be",
            "that",
            "which",
            "who",
            "whose",
            "into",
            "onto",
            "up",
            "down",
            "out",
            "over",
            "forward",
        ),
        *("backward", "left", "right", "then", "before", "after", "until", "slowly", "smoothly", "gently"),
    )
)


def _without_clauses(sentence: str) -> str:
    """A sentence without those of its clauses in which something is found."""
    pieces = _CLAUSES.split(sentence)
    clauses, separators = pieces[::2], ["", *pieces[1::2]]
    kept = [(s, c) for s, c in zip(separators, clauses, strict=True) if c.strip() and not camera_words(c)]
    if not kept:
        return ""
    text = kept[0][1].strip() + "".join(s + c for s, c in kept[1:])
    return "" if _starts_bare(text) else text


def _as_sentence(text: str) -> str:
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split())).strip(" ,;:")
    text = re.sub(r"([,;:])\s*([.!?])", r"\2", text)
    if text and text[-1] not in ".!?":
        text += "."
    return text[:1].upper() + text[1:]
