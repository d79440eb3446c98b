"""A language model behind a server that is slow, busy or wrong."""

from __future__ import annotations

from typing import Any

import pytest
from theodolite.annotate.language.base import ModelGone, NoAnswer, Request
from theodolite.annotate.language.server import ChatServer, Patience
from theodolite.annotate.language.tasks import Captions, Judgement, plain_caption, read_judgement

from .chat_server import SCENE, Chat, chatting, pictures_of

QUESTION = Request(pictures=(b"one", b"two"), prompt="What is there?")


@pytest.fixture(scope="module")
def running():
    with chatting(Chat()) as chat:
        yield chat


@pytest.fixture
def chat(running: Chat) -> Chat:
    running.__dict__.update({k: v for k, v in Chat().__dict__.items() if k != "url"})
    running.answer = lambda _messages: SCENE
    return running


def server(chat: Chat, waits: list[float] | None = None, **changes) -> ChatServer:
    patience = Patience(tries=3, answer_s=changes.pop("answer_s", 20.0))
    sleep = (lambda _s: None) if waits is None else waits.append
    return ChatServer(url=chat.url, model="m", patience=patience, sleep=sleep, **changes)


def test_pictures_come_first_and_in_order(chat: Chat) -> None:
    assert server(chat, key="secret").ask([QUESTION.after("A.", "Again.")]) == [SCENE]
    (request,) = chat.requests
    assert pictures_of(request) == [b"one", b"two"]
    assert [m["role"] for m in request["messages"]] == ["user", "assistant", "user"]
    assert request["temperature"] == 0
    assert chat.keys == ["Bearer secret"]
    assert "secret" not in repr(server(chat, key="secret"))


@pytest.mark.parametrize(
    "fault", ["429", "503", "500", "529", "no json", "no choices", "other json", "breaks off", "huge"]
)
def test_what_passes_is_waited_out(chat: Chat, fault: str) -> None:
    chat.faults = [fault, fault]
    waits: list[float] = []
    assert server(chat, waits).ask([QUESTION]) == [SCENE]
    assert len(waits) == 2
    assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 2.0


def test_a_server_that_says_how_long_is_waited_for(chat: Chat) -> None:
    chat.faults = ["429 after 7"]
    waits: list[float] = []
    server(chat, waits).ask([QUESTION])
    assert waits == [7.0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("429", "no answer after 3 tries"),
        ("no json", "502 from a proxy"),
        ("401", "key is missing or wrong"),
        ("403", "may not use"),
        ("404", "no model 'm' there"),
        ("redirect", "HTTP 302"),
    ],
)
def test_what_stays_ends_the_run_with_what_to_do(chat: Chat, fault: str, message: str) -> None:
    chat.always = fault
    with pytest.raises(ModelGone, match=message):
        server(chat).ask([QUESTION])


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("400 context too long", "context too long"),
        ("413", "HTTP 413"),
        ("empty", "empty"),
        ("null", "content_filter"),
        ("cut", "cut off"),
    ],
)
def test_what_is_about_one_clip_is_its_problem(chat: Chat, fault: str, problem: str) -> None:
    chat.faults = [fault]
    first, second = server(chat, jobs=1).ask([QUESTION, QUESTION])
    assert isinstance(first, NoAnswer)
    assert problem in str(first)
    assert second == SCENE


def test_too_many_pictures_for_the_server(chat: Chat) -> None:
    chat.most_pictures = 1
    with pytest.raises(ModelGone, match="--pictures 1"):
        server(chat).ask([QUESTION])


def test_an_answer_that_trickles_is_given_up(chat: Chat) -> None:
    chat.faults = ["trickles"]
    assert server(chat, answer_s=0.3).ask([QUESTION]) == [SCENE]
    assert len(chat.requests) == 2


def test_nobody_there() -> None:
    gone = ChatServer(
        url="http://127.0.0.1:9/v1", model="m", patience=Patience(tries=2), sleep=lambda _s: None
    )
    with pytest.raises(ModelGone, match="same command again"):
        gone.ask([QUESTION])
    with pytest.raises(ValueError, match="without user or password"):
        ChatServer(url="http://me:secret@host/v1", model="m")
    with pytest.raises(ValueError, match="--server"):
        ChatServer(url="file:///etc", model="m")


# --- tasks ----------------------------------------------------------------------------------------


def found(values: dict[str, Any] | str) -> dict[str, Any]:
    """Values, not a problem in words."""
    assert isinstance(values, dict), values
    return values


class Says:
    """A model that says what a test wants, in turn."""

    name, at_once = "said", 2

    def __init__(self, *answers: str | NoAnswer) -> None:
        self.answers, self.asked = list(answers), []

    def ask(self, requests):
        self.asked += requests
        return [self.answers.pop(0) for _ in requests]


def test_a_caption_without_camera_words_is_taken_as_it_is() -> None:
    (values,) = Captions().columns(Says(SCENE), [(b"",)])
    assert values == {
        "caption": SCENE,
        "caption_as_answered": None,
        "camera_words": None,
        "rewritten_by": None,
    }


def test_a_few_camera_words_are_written_out() -> None:
    answer = f"{SCENE} Ivy climbs over the walls of the houses. The camera pans left."
    model = Says(answer)
    (values,) = Captions().columns(model, [(b"",)])
    values = found(values)
    assert values["caption"] == f"{SCENE} Ivy climbs over the walls of the houses."
    assert (values["rewritten_by"], values["caption_as_answered"]) == ("rules", answer)
    assert values["camera_words"]
    assert len(model.asked) == 1


def test_many_are_asked_to_be_written_anew() -> None:
    answer = (
        "We move forward along a street. The camera pans left. The shot zooms in on a green door in a wall."
    )
    model = Says(answer, SCENE)
    (values,) = Captions().columns(model, [(b"",)])
    values = found(values)
    assert (values["caption"], values["rewritten_by"]) == (SCENE, "model")
    assert "'The camera'" in model.asked[1].turns[0].reply
    stubborn = Says(answer, answer)
    (values,) = Captions().columns(stubborn, [(b"",)])
    assert "no caption is left" in values or "camera" not in found(values)["caption"].lower()
    (problem,) = Captions().columns(Says("The camera pans left.", NoAnswer("busy")), [(b"",)])
    assert "no caption is left" in problem


def test_what_models_put_around_a_caption() -> None:
    for text in (f'"{SCENE}"', f"**Caption:** {SCENE}", f"<think>The camera…</think>\n{SCENE}", f"- {SCENE}"):
        assert plain_caption(text) == SCENE


@pytest.mark.parametrize(
    ("answer", "entities", "quality"),
    [
        ('{"people": 3, "vehicles": 2, "animals": 0, "quality_pass": true}', 5, 1),
        ('```json\n{"people": 0, "vehicles": 0, "animals": 1.0, "quality_pass": 0}\n```', 1, 0),
    ],
)
def test_judgements(answer: str, entities: int, quality: int) -> None:
    values = found(read_judgement(answer))
    assert (values["vlm_entities"], values["vlm_quality"]) == (entities, quality)


@pytest.mark.parametrize(
    "answer",
    [
        "Three people.",
        "{people: 3}",
        '{"people": 3}',
        '{"people": "3", "vehicles": 0, "animals": 0, "quality_pass": true}',
        '{"people": -1, "vehicles": 0, "animals": 0, "quality_pass": true}',
        '{"people": 1.5, "vehicles": 0, "animals": 0, "quality_pass": true}',
        '{"people": NaN, "vehicles": 0, "animals": 0, "quality_pass": true}',
        '{"people": Infinity, "vehicles": 0, "animals": 0, "quality_pass": true}',
        '{"people": true, "vehicles": 0, "animals": 0, "quality_pass": true}',
        '{"people": 1, "vehicles": 0, "animals": 0, "quality_pass": "good"}',
        '{"people": 1, "vehicles": 0, "animals": 0, "quality_pass": [1]}',
        "[" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
    ],
)
def test_what_is_no_judgement_is_asked_again_and_then_a_problem(answer: str) -> None:
    assert isinstance(read_judgement(answer), str)
    good = '{"people": 1, "vehicles": 0, "animals": 0, "quality_pass": true}'
    (values,) = Judgement().columns(Says(answer, good), [(b"",)])
    assert found(values)["vlm_entities"] == 1
    (problem,) = Judgement().columns(Says(answer, answer), [(b"",)])
    assert isinstance(problem, str)
