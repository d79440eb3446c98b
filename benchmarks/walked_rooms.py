"""A house of rendered rooms joined by doors, and long walks with loops through them.

Nine rooms in three rows, each furnished and painted by the renderer's own rules (`annotate/rendered/scene.py`), with
an open door in every wall between two of them. A walk goes from room to room at half a metre a second, never back
through the door that it came by, with pans and a hand's tremor; so it comes by a room again after a minute or more,
from whichever side. Only rooms that can be seen through the doors are drawn, so a picture costs as much in the largest
house as in one room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from theodolite.annotate.rendered import render
from theodolite.annotate.rendered import scene as rooms
from theodolite.annotate.rendered.cameras import _looking
from theodolite.annotate.rendered.scene import ROOM_SIZE_M, Quads, Scene, Texture

ROWS, COLUMNS = 3, 3
FPS = 16
WIDTH, HEIGHT = 320, 180
FOCAL_PX = WIDTH / 2 / math.tan(math.radians(31.0))
DEPTH_SIZE = (90, 160)
_DOOR_M = (1.3, 2.15)
_TEXEL_M = 0.012
_CLEAR_M = 1.2
"""Nothing stands within so much of the line from the middle of a room to a door."""
_SPEED = 0.5
_SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Where a wall leads, as steps of (column, row), in the order in which `_box_quads` names the faces of a box."""

Place = tuple[int, int]
"""Column and row of a room."""
F64 = NDArray[np.float64]


def neighbours(place: Place) -> list[tuple[int, Place]]:
    """Walls of a room that have a door, and where they lead."""
    found = [(side, (place[0] + dx, place[1] + dy)) for side, (dx, dy) in enumerate(_SIDES)]
    return [(side, p) for side, p in found if 0 <= p[0] < COLUMNS and 0 <= p[1] < ROWS]


def middle(place: Place) -> F64:
    """(2,) of a room, metres."""
    return (np.array(place) + 0.5) * ROOM_SIZE_M[:2]


# --- the house ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class House:
    """Faces of every room, and their textures; without textures there is depth alone.

    Attributes:
        quads: of each room. textures: as many, or empty.
    """

    quads: dict[Place, Quads]
    textures: dict[Place, list[Texture]]

    def seen_from(self, pose: F64) -> list[Place]:
        """Rooms of which a camera may see something: its own, and those behind the doors in its view."""
        column, row = np.clip(pose[:2, 3] // ROOM_SIZE_M[:2], 0, (COLUMNS - 1, ROWS - 1)).astype(int).tolist()
        here = (column, row)
        found = [here]
        self._look(here, pose, (0.0, WIDTH, 0.0, HEIGHT), found)
        return found

    def _look(self, place: Place, pose: F64, view: tuple[float, float, float, float], found: list) -> None:
        for side, beyond in neighbours(place):
            if beyond in found:
                continue
            narrower = _through(_door(place, side), pose, view)
            if narrower is not None:
                found.append(beyond)
                self._look(beyond, pose, narrower, found)

    def picture(self, pose: F64) -> NDArray[np.uint8]:
        """(HEIGHT, WIDTH, 3) uint8 RGB."""
        seen = self.seen_from(pose)
        quads = _joined([self.quads[p] for p in seen])
        textures = [t for p in seen for t in self.textures[p]]
        scene = Scene(quads, None, textures, len(textures), np.zeros(3), 0.0, 1.0)
        view = render._view(quads, intrinsics((HEIGHT, WIDTH)), pose)
        # Four samples at the borders of faces in place of sixteen: a third of the time.
        with mock.patch.object(render, "_EDGE_GRID", 2):
            image = render._shade(scene, view, render._rasterise(view, HEIGHT, WIDTH))
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    def depth_m(self, pose: F64, size: tuple[int, int]) -> NDArray[np.float32]:
        """(*size) z-depth in metres; it covers the picture."""
        quads = _joined([self.quads[p] for p in self.seen_from(pose)])
        view = render._view(quads, intrinsics(size), pose)
        return render._depth(view, render._rasterise(view, *size))


def intrinsics(size: tuple[int, int]) -> F64:
    """(3, 3) of pictures of (height, width)."""
    height, width = size
    x, y = width / WIDTH, height / HEIGHT
    return np.array([[FOCAL_PX * x, 0, width / 2], [0, FOCAL_PX * y, height / 2], [0, 0, 1.0]])


def _joined(parts: Sequence[Quads]) -> Quads:
    names = ("origin", "a", "b", "tolerance")
    return Quads(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _door(place: Place, side: int) -> F64:
    """(4, 3) corners of a door."""
    dx, dy = _SIDES[side]
    at = middle(place) + np.array([dx, dy]) * ROOM_SIZE_M[:2] / 2
    beside = np.array([dy, dx]) * _DOOR_M[0] / 2
    corners = [(*(at + s * beside), z) for s, z in ((-1, 0), (1, 0), (1, _DOOR_M[1]), (-1, _DOOR_M[1]))]
    return np.array(corners, np.float64)


def _through(
    door: F64, pose: F64, view: tuple[float, float, float, float]
) -> tuple[float, float, float, float] | None:
    """What of a view (left, right, top, bottom) is left of it through a door; None: nothing."""
    local = (door - pose[:3, 3]) @ pose[:3, :3]
    if local[:, 2].min() < 0.2:
        # Beside the camera or about it: its picture has no bounds. Well behind it, it shows nothing.
        return view if local[:, 2].max() > -0.2 else None
    x, y = FOCAL_PX * local[:, 0] / local[:, 2] + WIDTH / 2, FOCAL_PX * local[:, 1] / local[:, 2] + HEIGHT / 2
    left, right = max(view[0], x.min() - 1), min(view[1], x.max() + 1)
    top, bottom = max(view[2], y.min() - 1), min(view[3], y.max() + 1)
    return (left, right, top, bottom) if left < right and top < bottom else None


def build_house(seed: int) -> House:
    """All rooms with textures: about two seconds each."""
    quads, textures = {}, {}
    for row in range(ROWS):
        for column in range(COLUMNS):
            place = (column, row)
            rng = np.random.default_rng([seed, 21, column, row])
            local, textures[place] = _room(rng, {side for side, _ in neighbours(place)})
            quads[place] = local.moved(np.eye(3), np.array([*(place * np.array(ROOM_SIZE_M[:2])), 0.0]))
    return House(quads, textures)


def _room(rng: np.random.Generator, doors: set[int]) -> tuple[Quads, list[Texture]]:
    """A room with doors in some of its walls, its low corner at the origin."""
    size = np.array(ROOM_SIZE_M)
    faces: list[Any] = []
    tolerance: list[float] = []
    textures: list[Texture] = []

    def add(face: tuple[F64, F64, F64], paint: Any, texel_m: float, **how: bool) -> None:
        size_m = (float(np.linalg.norm(face[1])), float(np.linalg.norm(face[2])))
        texture = rooms._darken_borders(
            paint(rng, size_m, texel_m, **how), size_m, strength=0.35, reach_m=0.5
        )
        faces.append(face)
        tolerance.append(1e-4)
        textures.append(rooms._mipmaps(texture))

    for side, face in enumerate(rooms._box_quads(size / 2, size, inward=True)):
        if side == 4:
            add(face, rooms._floor, 1.4 * _TEXEL_M)
        elif side == 5:
            add(face, rooms._ceiling, 2 * _TEXEL_M)
        elif side not in doors:
            add(face, rooms._wall, _TEXEL_M, rich=True)
        else:
            origin, a, b = face
            half, above = _DOOR_M[0] / 2 / np.linalg.norm(a), 1 - _DOOR_M[1] / size[2]
            add((origin, a * (0.5 - half), b), rooms._wall, _TEXEL_M, rich=False)
            add((origin + a * (0.5 + half), a * (0.5 - half), b), rooms._wall, _TEXEL_M, rich=False)
            add((origin + a * (0.5 - half), a * 2 * half, b * above), rooms._plain, _TEXEL_M)
    for centre, box, material in rooms._furniture(rng, size):
        if not _in_the_way(centre, box, doors):
            rooms._add_box(rng, faces, tolerance, textures, centre, box, material, _TEXEL_M)
    return rooms._quads(faces, tolerance), textures


def _in_the_way(centre: F64, box: F64, doors: set[int]) -> bool:
    """Whether something stands before a door; what hangs under the ceiling does not."""
    if centre[2] - box[2] / 2 > 2.0:
        return False
    away = centre[:2] - np.array(ROOM_SIZE_M[:2]) / 2
    return any(
        np.dot(away, _SIDES[side]) > 0 and abs(np.dot(away, _SIDES[side][::-1])) < _CLEAR_M for side in doors
    )


# --- the walk -------------------------------------------------------------------------------------------


def walk(seed: int, num_frames: int) -> F64:
    """(F, 4, 4) camera-to-world; a longer walk of the same seed begins with a shorter one."""
    rng = np.random.default_rng([seed, 22])
    length_m = _SPEED * num_frames / FPS + 12.0
    points, places = _way(rng, length_m)
    chord = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    spline = CubicSpline(chord, points, bc_type="natural")
    fine = spline(np.linspace(0, chord[-1], 200 * len(places)))
    gone = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    t = np.arange(num_frames) / FPS
    phase = np.random.default_rng([seed, 23]).uniform(0, 2 * np.pi, 8)
    # It begins in the middle of its first room, and slows down and speeds up a little.
    at = 2.0 + _SPEED * (t + 0.5 * np.sin(2 * np.pi * t / 9.0 + phase[0]) - 0.5 * np.sin(phase[0]))
    centre = np.stack([np.interp(at, gone, fine[:, k]) for k in range(2)], 1)
    ahead = np.stack([np.interp(at + 0.8, gone, fine[:, k]) for k in range(2)], 1) - centre
    tremor = _tremor(seed, t)

    def wave(period_s: float, k: int) -> F64:
        return np.sin(2 * np.pi * t / period_s + phase[k])

    yaw = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
    yaw = cv2.GaussianBlur(yaw[:, None], (1, 0), sigmaX=0.1, sigmaY=6.0, borderType=cv2.BORDER_REPLICATE)[
        :, 0
    ]
    yaw = yaw + np.deg2rad(28) * wave(11.0, 1) + np.deg2rad(0.4) * tremor[:, 3]
    pitch = np.deg2rad(-6) + np.deg2rad(5) * wave(7.0, 2) + np.deg2rad(0.4) * tremor[:, 4]
    roll = np.deg2rad(2) * wave(9.0, 3) + np.deg2rad(0.3) * tremor[:, 5]
    height = 1.5 + 0.1 * wave(5.3, 4)
    return _looking(np.concatenate([centre, height[:, None]], 1) + 0.006 * tremor[:, :3], yaw, pitch, roll)


def _tremor(seed: int, t: F64) -> F64:
    """(F, 6) of a hand, one to four hertz, as the renderer's."""
    phase = np.random.default_rng([seed, 24]).uniform(0, 2 * np.pi, (6, 3))
    return np.sin(2 * np.pi * t[:, None, None] * np.array([1.3, 2.1, 3.4]) + phase).mean(-1)


def _way(rng: np.random.Generator, length_m: float) -> tuple[F64, list[Place]]:
    """Points (n, 2) on the floor, through doors straight, and the rooms that they lead through."""
    places: list[Place] = [(int(rng.integers(COLUMNS)), int(rng.integers(ROWS)))]
    points = [middle(places[0]) + rng.uniform(-1, 1, 2)]
    gone, came_by = 0.0, (-1, -1)
    while gone < length_m:
        ways = [(side, p) for side, p in neighbours(places[-1]) if p != came_by]
        side, beyond = ways[int(rng.integers(len(ways)))]
        door = _door(places[-1], side)[:, :2].mean(0)
        step = 0.6 * np.array(_SIDES[side])
        for point in (door - step, door + step, middle(beyond) + rng.uniform(-1, 1, 2)):
            gone += float(np.linalg.norm(point - points[-1]))
            points.append(point)
        came_by = places[-1]
        places.append(beyond)
    return np.array(points), places


# --- files ----------------------------------------------------------------------------------------------


def save_faces(path: Path, house: House) -> None:
    """Where the faces of a house are: what depth needs of it."""
    names = ("origin", "a", "b", "tolerance")
    arrays = {
        f"{place[0]}-{place[1]}-{name}": getattr(quads, name)
        for place, quads in house.quads.items()
        for name in names
    }
    np.savez(path, **arrays)


def load_faces(path: Path) -> House:
    """The house of `save_faces`, without textures."""
    found = np.load(path)
    places = sorted({tuple(map(int, name.split("-")[:2])) for name in found.files})
    names = ("origin", "a", "b", "tolerance")
    quads = {(c, r): Quads(*(found[f"{c}-{r}-{name}"] for name in names)) for c, r in places}
    return House(quads, {})
