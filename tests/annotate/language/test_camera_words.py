"""Words of the camera: what is found, what is not, and what is left of a caption."""

import pytest
from theodolite.annotate.language.camera_words import camera_words, without_camera_words

LEAKED = [
    "The camera pans slowly across a busy street with shops.",
    "A drone shot of a coastline at dusk.",
    "The view tilts up to a church tower.",
    "We move forward along a forest path.",
    "The video shows a market with fruit stalls.",
    "A man walks towards the camera.",
    "Close-up of a flower in the rain.",
    "As the scene transitions, the sky darkens.",
    "The shot zooms in on an old door.",
    "Filmed from a low angle, the tower looms.",
    "Moving forward through a narrow alley, lanterns hang above.",
    "A first-person view of a mountain trail.",
    "In this footage, cyclists ride past.",
    "The perspective shifts to the left.",
    "The handheld camera shakes a little.",
    "A wide-angle view over the harbour.",
    "Pulling back to reveal the whole valley.",
    "The viewer is led into the hall.",
    "A train enters the frame from the left.",
    "The scene is captured with shallow depth of field.",
    "Moving deeper into the forest, the path narrows.",
]

INNOCENT = [
    "A tourist holds a camera and smiles.",
    "A security camera is mounted on the wall.",
    "Her camera hangs from a strap.",
    "The camera shop on the corner is closed.",
    "Copper pans hang over the stove.",
    "Pots and pans across the counter shine.",
    "Cars zoom past a petrol station.",
    "A still lake lies between the hills.",
    "A crane stands on a construction site.",
    "A man pans for gold in the river.",
    "The picture frame on the wall is gilded.",
    "A truck left at the roadside rusts.",
    "Her head is tilted to one side.",
    "A tracking collar is around the wolf's neck.",
    "The view from the hill takes in the whole town.",
    "People walk along a tree-lined avenue.",
    "A film poster is on the wall.",
    "Tall windows let in warm light.",
    "Shot glasses stand on the bar.",
    "A dolly with crates stands by the door.",
]


@pytest.mark.parametrize("text", LEAKED)
def test_found(text: str) -> None:
    assert camera_words(text)


@pytest.mark.parametrize("text", INNOCENT)
def test_not_found(text: str) -> None:
    assert camera_words(text) == ()
    assert without_camera_words(text).text == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (LEAKED[0], "A busy street with shops."),
        ("A drone shot of a coastline at dusk.", "A coastline at dusk."),
        ("A man in a red coat walks towards the camera.", "A man in a red coat walks."),
        (
            "A narrow alley leads to a square, as the camera glides forward.",
            "A narrow alley leads to a square.",
        ),
        (
            "Red roofs cover the hill. The camera then rotates to the left. A church stands above.",
            "Red roofs cover the hill. A church stands above.",
        ),
        ("The video shows a market with fruit stalls.", "A market with fruit stalls."),
        ("The camera moves forward.", ""),
        ("Throughout the clip people cross the square.", "People cross the square."),
        ("In this handheld video, two boats lie at a pier.", "Two boats lie at a pier."),
        ("The camera pulls back to reveal a wide valley with a river.", "A wide valley with a river."),
    ],
)
def test_what_is_left(text: str, left: str) -> None:
    cleaned = without_camera_words(text)
    assert cleaned.text == left
    assert cleaned.found


@pytest.mark.parametrize("text", [*LEAKED, " ".join(LEAKED), "the camera " * 300, "a" * 20_000, "," * 5000])
def test_nothing_is_left_of_them(text: str) -> None:
    cleaned = without_camera_words(text)
    assert camera_words(cleaned.text) == ()
    assert 0 <= cleaned.kept <= 1
