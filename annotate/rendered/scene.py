"""The room that `render.py` looks at: furniture, a moving object and procedural textures, all from one seed."""

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F32, F64, U8

ROOM_SIZE_M = (8.4, 7.6, 2.9)
WALK_RADIUS_M = 2.4
_NUM_LEVELS = 7


@dataclass(frozen=True)
class Texture:
    levels: tuple[U8, ...]  # level k is exactly half the size of level k - 1, averaged 2x2


@dataclass(frozen=True)
class Quads:
    """Parallelograms `origin + s a + t b`, 0 <= s, t <= 1; seen from outside, a points right and b down."""

    origin: F64  # (N, 3)
    a: F64
    b: F64
    tolerance: F64  # (N,)

    def moved(self, rotation: F64, translation: F64) -> Quads:
        return Quads(
            self.origin @ rotation.T + translation, self.a @ rotation.T, self.b @ rotation.T, self.tolerance
        )


@dataclass(frozen=True)
class Scene:
    fixed: Quads
    moving: Quads | None
    textures: list[Texture]
    first_moving_quad: int
    walk_phase: F64
    start_angle: float
    speed: float

    def quads_at(self, time_s: float) -> Quads:
        if self.moving is None:
            return self.fixed
        t = self.speed * time_s
        angle = (
            self.start_angle
            + math.radians(4.0) * t
            + math.radians(24) * math.sin(1.05 * t + self.walk_phase[0])
        )
        radius = WALK_RADIUS_M + 0.15 * math.sin(0.8 * t + self.walk_phase[1])
        turn = angle + 0.5 * math.sin(0.9 * t + self.walk_phase[2])
        rotation = np.array(
            [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0.0, 0.0, 1.0]]
        )
        place = np.array(
            [
                ROOM_SIZE_M[0] / 2 + radius * math.cos(angle),
                ROOM_SIZE_M[1] / 2 + radius * math.sin(angle),
                0.03 * abs(math.sin(3.5 * t)),
            ]
        )
        parts = self.fixed, self.moving.moved(rotation, place)
        return Quads(
            *(np.concatenate([getattr(p, name) for p in parts]) for name in ("origin", "a", "b", "tolerance"))
        )


def _box_quads(centre: F64, size: F64, *, inward: bool) -> list[tuple[F64, F64, F64]]:
    """Six faces (origin, a, b) of an upright box: -x, +x, -y, +y, bottom, top; `inward` for a room."""
    low, high = centre - size / 2, centre + size / 2
    faces = []
    for axis in range(3):
        for side in (0, 1):
            outward = np.zeros(3)
            outward[axis] = 1.0 if side else -1.0
            normal = -outward if inward else outward
            if axis == 2:
                right = np.array([1.0, 0, 0])
                down = np.cross(right, normal)
            else:
                down = np.array([0, 0, -1.0])
                right = np.cross(normal, down)
            # A corner of this face from which `right` and `down` stay on it.
            direction = right + down
            origin = np.where(direction > 0, low, high)
            origin[axis] = high[axis] if side else low[axis]
            faces.append((origin, right * np.abs(right @ size), down * np.abs(down @ size)))
    return faces


def _quads(faces: list[tuple[F64, F64, F64]], tolerance: list[float]) -> Quads:
    origin, a, b = (np.stack([f[k] for f in faces]).astype(np.float64) for k in range(3))
    return Quads(origin, a, b, np.asarray(tolerance, np.float64))


@lru_cache(maxsize=2)  # a clip's pictures and its depth are asked for apart, and drawing takes two seconds
def build_scene(
    *,
    seed: int,
    longest_focal_px: float,
    start_angle: float,
    speed: float,
    moving_object: bool,
    furniture: bool,
) -> Scene:
    """Make the room.

    Args:
        seed: chooses furniture and textures.
        longest_focal_px: longest focal length of the clip, which sets the size of a texel.
        start_angle: direction from the middle of the room in which the moving object starts, radians.
        speed: factor on the moving object's speed.
        moving_object: whether there is one.
        furniture: whether there is any.
    """
    rng = np.random.default_rng([seed, 2])
    # A texel is about a pixel at 4 m through the longest lens, and never finer than printed matter needs.
    texel_m = float(np.clip(4.0 / longest_focal_px, 0.0022, 0.03))
    room = np.array(ROOM_SIZE_M)
    boxes = _furniture(rng, room) if furniture else []
    faces, tolerance, textures = [], [], []

    floor_shadow = [(c - s / 2, c + s / 2) for c, s, _ in boxes if c[2] - s[2] / 2 < 0.05]
    for k, (origin, a, b) in enumerate(_box_quads(room / 2, room, inward=True)):
        faces.append((origin, a, b))
        tolerance.append(1e-4)
        size_m = (float(np.linalg.norm(a)), float(np.linalg.norm(b)))
        if k < 4:
            texture = _wall(rng, size_m, texel_m, rich=k != 2)
        elif k == 4:
            texture = _floor(rng, size_m, texel_m * 1.4)
            _contact_shadows(texture, origin, a, b, floor_shadow)
        else:
            texture = _ceiling(rng, size_m, texel_m * 2)
        textures.append(_mipmaps(_darken_borders(texture, size_m, strength=0.35, reach_m=0.5)))
    for centre, size, material in boxes:
        _add_box(rng, faces, tolerance, textures, centre, size, material, texel_m)

    moving = None
    first_moving_quad = len(faces)
    if moving_object:
        body: list[tuple[F64, F64, F64]] = []
        body_tolerance: list[float] = []
        for centre, size, material in (
            (np.array([0, 0, 0.45]), np.array([0.26, 0.34, 0.9]), "fabric"),
            (np.array([0, 0, 1.2]), np.array([0.3, 0.44, 0.6]), "print"),
            (np.array([0, 0, 1.62]), np.array([0.22, 0.2, 0.24]), "carton"),
        ):
            _add_box(rng, body, body_tolerance, textures, centre, size, material, texel_m)
        moving = _quads(body, body_tolerance)
    return Scene(
        fixed=_quads(faces, tolerance),
        moving=moving,
        textures=textures,
        first_moving_quad=first_moving_quad,
        walk_phase=np.array([0.4, 2 * np.pi, 2 * np.pi]) * rng.uniform(0, 1, 3),
        start_angle=start_angle,
        speed=speed,
    )


def _add_box(
    rng: np.random.Generator,
    faces: list[tuple[F64, F64, F64]],
    tolerance: list[float],
    textures: list[Texture],
    centre: F64,
    size: F64,
    material: str,
    texel_m: float,
) -> None:
    light = (0.82, 0.92, 0.78, 0.97, 0.5, 1.05)  # a soft light from above and one side
    for k, (origin, a, b) in enumerate(_box_quads(centre, size, inward=False)):
        size_m = (float(np.linalg.norm(a)), float(np.linalg.norm(b)))
        kind = "plain" if k >= 4 and material == "books" else material
        texture = _MATERIALS[kind](rng, size_m, texel_m)
        texture = _darken_borders(texture, size_m, strength=0.25, reach_m=0.12)
        faces.append((origin, a, b))
        tolerance.append(2e-6)
        textures.append(_mipmaps(np.clip(texture * np.float32(light[k]), 0, 255)))


def _furniture(rng: np.random.Generator, room: F64) -> list[tuple[F64, F64, str]]:
    """Boxes (centre, size, material) along the walls, on one another, free-standing and under the ceiling.

    What stands is further than 2.75 m from the middle, where the camera and the moving object walk.
    """
    boxes: list[tuple[F64, F64, str]] = []

    def stand(x: float, y: float, size: tuple[float, float, float], material: str, z: float = 0.0) -> None:
        boxes.append((np.array([x, y, z + size[2] / 2]), np.array(size), material))

    kinds = ("shelf", "cabinet", "desk", "crates")
    for wall in range(4):
        along = room[1] if wall < 2 else room[0]
        for slot in range(3):
            kind = kinds[(wall + slot + int(rng.integers(0, 2))) % 4]
            s = along * (slot + 0.5 + rng.uniform(-0.12, 0.12)) / 3
            wide = rng.uniform(0.9, 1.5)
            deep = {"shelf": 0.34, "cabinet": 0.48, "desk": 0.7, "crates": 0.5}[kind]
            if wall < 2:
                x, y = (deep / 2 + 0.02 if wall == 0 else room[0] - deep / 2 - 0.02), s
                foot = (deep, wide)
            else:
                x, y = s, (deep / 2 + 0.02 if wall == 2 else room[1] - deep / 2 - 0.02)
                foot = (wide, deep)
            if kind == "shelf":
                stand(x, y, (*foot, rng.uniform(1.6, 2.1)), "books")
            elif kind == "cabinet":
                high = rng.uniform(0.8, 1.1)
                stand(x, y, (*foot, high), "wood")
                stand(x, y, (0.3, 0.26, rng.uniform(0.25, 0.45)), "carton", high)
            elif kind == "desk":
                high = 0.74
                stand(x, y, (*foot, 0.05), "wood", high - 0.05)
                stand(x, y, (foot[0] * 0.5, foot[1] * 0.5, high - 0.05), "plain")
                screen = (0.06, 0.6, 0.38) if wall < 2 else (0.6, 0.06, 0.38)
                stand(x, y, screen, "print", high + 0.08)
            else:
                z = 0.0
                for _ in range(int(rng.integers(2, 5))):
                    edge = rng.uniform(0.38, 0.5)
                    stand(
                        x + rng.uniform(-0.04, 0.04),
                        y + rng.uniform(-0.04, 0.04),
                        (edge, edge, edge),
                        "carton",
                        z,
                    )
                    z += edge
    for corner in range(4):
        x = 1.35 if corner % 2 == 0 else room[0] - 1.35
        y = 1.3 if corner < 2 else room[1] - 1.3
        stand(x, y, (0.35, 0.35, rng.uniform(0.9, 1.9)), ("print", "fabric", "carton", "wood")[corner])
    for _ in range(5):
        x, y = rng.uniform(1.0, room[0] - 1.0), rng.uniform(0.9, room[1] - 0.9)
        high = rng.uniform(0.2, 0.3)
        stand(x, y, (0.45, 0.45, high), "fabric", 2.55 - high)
    return boxes


# --- textures: (height, width, 3) float32 in 0..255 --------------------------------------------


def _shape(size_m: tuple[float, float], texel_m: float) -> tuple[int, int]:
    """(height, width) in texels, multiples of 2^(levels - 1), so that every level halves exactly."""
    step = 2 ** (_NUM_LEVELS - 1)
    height, width = (max(1, round(m / texel_m / step)) * step for m in (size_m[1], size_m[0]))
    return height, width


def _mipmaps(texture: F32) -> Texture:
    level = np.clip(np.rint(texture), 0, 255).astype(np.uint8)
    levels = [level]
    for _ in range(_NUM_LEVELS - 1):
        level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
        levels.append(level)
    return Texture(tuple(levels))


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> F32:
    """(h, w) smooth noise of about unit amplitude with features `cell` texels wide."""
    grid = rng.standard_normal(
        (max(2, int(shape[0] / cell) + 2), max(2, int(shape[1] / cell) + 2)), dtype=np.float32
    )
    return cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def _filled(shape: tuple[int, int], colour: NDArray | tuple[float, ...]) -> F32:
    return np.broadcast_to(np.asarray(colour, np.float32), (*shape, 3)).copy()


def _random_colour(
    rng: np.random.Generator, low: float = 25, high: float = 235
) -> tuple[float, float, float]:
    r, g, b = rng.uniform(
        low, high, 3
    ).tolist()  # thousands of colours: plain numbers are quicker than arrays of three
    grey = 0.4 * ((r + g + b) / 3)
    return 0.6 * r + grey, 0.6 * g + grey, 0.6 * b + grey


def _plaster(rng: np.random.Generator, shape: tuple[int, int], colour: tuple[float, float, float]) -> F32:
    """A nearly blank surface: broad stains and a faint grain."""
    image = _filled(shape, colour)
    image += 2.5 * _noise(rng, shape, 160)[..., None] + 1.2 * _noise(rng, shape, 24)[..., None]
    image += 1.2 * _noise(rng, shape, 3)[..., None]
    return image


def _scribble(rng: np.random.Generator, image: F32, num_shapes: int) -> None:
    """Draw shapes with corners, from a hundredth to half of the image high, in place."""
    height, width = image.shape[:2]
    small = min(height, width)
    shift = 4
    smallest, largest = math.log(0.015), math.log(0.4)
    for _ in range(num_shapes):
        size = small * float(np.exp(rng.uniform(smallest, largest)))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        colour = _random_colour(rng)
        kind = int(rng.integers(0, 5))
        angle = rng.uniform(0, 2 * np.pi)
        if kind <= 1:
            half = np.array([size, size * rng.uniform(0.3, 1.0)]) / 2
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            corners = (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half) @ turn.T + (x, y)
            cv2.fillPoly(image, [np.rint(corners * 2**shift).astype(np.int32)], colour, cv2.LINE_8, shift)
        elif kind == 2:
            centre = round(x * 2**shift), round(y * 2**shift)
            cv2.circle(image, centre, round(size / 2 * 2**shift), colour, -1, cv2.LINE_8, shift)
        elif kind == 3:
            corners = np.array([x, y]) + size * rng.uniform(-0.5, 0.5, (int(rng.integers(3, 6)), 2))
            cv2.fillPoly(image, [np.rint(corners * 2**shift).astype(np.int32)], colour, cv2.LINE_8, shift)
        else:
            # A row of glyph-like strokes.
            for glyph in range(int(rng.integers(2, 7))):
                strokes = rng.uniform(0, 1, (int(rng.integers(3, 6)), 2)) * (0.3 * size, 0.5 * size)
                points = np.rint((strokes + (x + 0.38 * size * glyph, y)) * 2**shift).astype(np.int32)
                cv2.polylines(image, [points], False, colour, max(1, round(size / 25)), cv2.LINE_8, shift)


def _print(rng: np.random.Generator, size_m: tuple[float, float], texel_m: float) -> F32:
    shape = _shape(size_m, texel_m)
    image = _filled(shape, _random_colour(rng, 90, 230))
    _scribble(rng, image, int(60 + 120 * min(1.5, size_m[0] * size_m[1])))
    image += 3 * _noise(rng, shape, 4)[..., None]
    return image


def _wood(rng: np.random.Generator, size_m: tuple[float, float], texel_m: float) -> F32:
    shape = _shape(size_m, texel_m)
    image = _filled(shape, np.array([150, 110, 70]) * rng.uniform(0.6, 1.2))
    grain = _noise(rng, (shape[0], max(2, shape[1] // 16)), 4)
    image += 10 * cv2.resize(grain, (shape[1], shape[0]))[..., None] + 6 * _noise(rng, shape, 40)[..., None]
    for _ in range(int(2 + 4 * size_m[0])):  # doors, drawers and handles
        x, y = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        w, h = rng.uniform(0.1, 0.45, 2) / texel_m
        cv2.rectangle(
            image,
            (round(x), round(y)),
            (round(x + w), round(y + h)),
            (55, 38, 24),
            max(1, round(0.006 / texel_m)),
        )
        cv2.rectangle(
            image,
            (round(x + 0.45 * w), round(y + 0.2 * h)),
            (round(x + 0.6 * w), round(y + 0.26 * h)),
            (205, 200, 190),
            -1,
        )
    knots = rng.uniform(0, 1, (int(10 + 60 * size_m[0] * size_m[1]), 3))
    for kx, ky, kr in knots:
        radius = max(1, round((0.003 + 0.012 * kr) / texel_m))
        cv2.circle(image, (round(kx * shape[1]), round(ky * shape[0])), radius, (70, 45, 28), -1)
    return image


def _carton(rng: np.random.Generator, size_m: tuple[float, float], texel_m: float) -> F32:
    shape = _shape(size_m, texel_m)
    image = _filled(shape, np.array([176, 138, 96]) * rng.uniform(0.8, 1.15))
    image += 4 * _noise(rng, shape, 20)[..., None] + 2.5 * _noise(rng, shape, 2)[..., None]
    tape = 0.05 / texel_m
    y = shape[0] * rng.uniform(0.3, 0.6)
    cv2.rectangle(image, (0, round(y)), (shape[1], round(y + tape)), (205, 188, 150), -1)
    for _ in range(int(rng.integers(2, 5))):  # labels
        w, h = round(shape[1] * rng.uniform(0.2, 0.5)), round(shape[0] * rng.uniform(0.15, 0.4))
        x0, y0 = int(rng.integers(0, max(1, shape[1] - w))), int(rng.integers(0, max(1, shape[0] - h)))
        label = image[y0 : y0 + h, x0 : x0 + w]
        if min(label.shape[:2]) < 4:
            continue
        patch = _filled((label.shape[0], label.shape[1]), _random_colour(rng, 150, 245))
        _scribble(rng, patch, 25)
        label[:] = patch
    return image


def _fabric(rng: np.random.Generator, size_m: tuple[float, float], texel_m: float) -> F32:
    shape = _shape(size_m, texel_m)
    first, second = np.array(_random_colour(rng)), np.array(_random_colour(rng))
    blotch = np.clip(0.5 + 0.8 * _noise(rng, shape, 0.06 / texel_m), 0, 1)[..., None]
    image = (first * blotch + second * (1 - blotch)).astype(np.float32)
    image += 10 * _noise(rng, shape, max(2.0, 0.012 / texel_m))[..., None]
    return image


def _books(rng: np.random.Generator, size_m: tuple[float, float], texel_m: float) -> F32:
    shape = _shape(size_m, texel_m)
    image = _filled(shape, (60, 42, 30))
    board = max(1, round(0.025 / texel_m))
    y = board
    while y < shape[0] - 2 * board:
        high = round(rng.uniform(0.26, 0.36) / texel_m)
        end = min(shape[0] - board, y + high)
        image[y:end] = (24, 18, 14)
        x = float(board)
        while x < shape[1] - board:
            wide = rng.uniform(0.018, 0.065) / texel_m
            if rng.uniform() < 0.93:
                top = round(end - (end - y) * rng.uniform(0.6, 0.95))
                x1 = min(round(x + wide), shape[1] - board)
                colour = _random_colour(rng)
                cv2.rectangle(image, (round(x), top), (x1 - 1, end - 1), colour, -1)
                for _ in range(3):
                    stripe = top + (end - top) * rng.uniform(0.05, 0.9)
                    thick = (end - top) * rng.uniform(0.02, 0.12)
                    first = round(x + 0.15 * wide), round(stripe)
                    last = round(x + 0.8 * wide), round(stripe + thick)
                    cv2.rectangle(image, first, last, _random_colour(rng), -1)
            x += wide
        y = end + board
    image += 2 * _noise(rng, shape, 3)[..., None]
    return image


def _plain(rng: np.random.Generator, size_m: tuple[float, float], texel_m: float) -> F32:
    return _plaster(rng, _shape(size_m, texel_m), _random_colour(rng, 120, 190))


_MATERIALS = {
    "print": _print,
    "wood": _wood,
    "carton": _carton,
    "fabric": _fabric,
    "books": _books,
    "plain": _plain,
}


def _wall(rng: np.random.Generator, size_m: tuple[float, float], texel_m: float, *, rich: bool) -> F32:
    """Plaster with pictures; a wall that is not `rich` has few of them."""
    shape = _shape(size_m, texel_m)
    image = _plaster(rng, shape, _random_colour(rng, 165, 205))
    slots = 7 if rich else 3
    for slot in range(slots):
        w_m, h_m = rng.uniform(0.45, 0.95), rng.uniform(0.5, 1.0)
        picture = _print(rng, (w_m, h_m), texel_m)
        frame = max(1, round(0.03 / texel_m))
        cv2.rectangle(
            picture, (0, 0), (picture.shape[1] - 1, picture.shape[0] - 1), _random_colour(rng, 20, 90), frame
        )
        y0 = round(shape[0] * rng.uniform(0.08, 0.32))
        x0 = round(shape[1] * (slot + 0.5 + rng.uniform(-0.1, 0.1)) / slots - picture.shape[1] / 2)
        x0 = min(max(x0, 0), shape[1] - picture.shape[1])
        part = image[y0 : y0 + picture.shape[0], x0 : x0 + picture.shape[1]]
        part[:] = picture[: part.shape[0], : part.shape[1]]
    skirting = round(0.08 / texel_m)
    image[-skirting:] = _random_colour(rng, 90, 140)
    return image


def _floor(rng: np.random.Generator, size_m: tuple[float, float], texel_m: float) -> F32:
    shape = _shape(size_m, texel_m)
    image = _filled(shape, (140, 105, 72))
    plank = 0.16 / texel_m
    gap = max(1, round(0.005 / texel_m))
    for row in range(int(shape[0] / plank) + 1):
        y0, y1 = round(row * plank), round((row + 1) * plank)
        x = -rng.uniform(0, 1.2) / texel_m
        while x < shape[1]:
            length = rng.uniform(0.7, 1.6) / texel_m
            x0, x1 = max(0, round(x)), min(shape[1], round(x + length))
            image[y0:y1, x0:x1] *= np.float32(rng.uniform(0.7, 1.25))
            image[y0:y1, x0 : x0 + gap] = (45, 32, 22)
            x += length
        image[y0 : y0 + gap] = (45, 32, 22)
    image += (
        8 * cv2.resize(_noise(rng, (shape[0], max(2, shape[1] // 16)), 3), (shape[1], shape[0]))[..., None]
    )
    rug = _fabric(rng, (2.4, 1.7), texel_m)
    _scribble(rng, rug, 150)
    y0, x0 = (shape[0] - rug.shape[0]) // 2, (shape[1] - rug.shape[1]) // 2
    image[y0 : y0 + rug.shape[0], x0 : x0 + rug.shape[1]] = rug
    return image


def _ceiling(rng: np.random.Generator, size_m: tuple[float, float], texel_m: float) -> F32:
    shape = _shape(size_m, texel_m)
    image = _plaster(rng, shape, (205, 205, 200))
    tile = 1.2 / texel_m
    line = max(1, round(0.012 / texel_m))
    for k in range(1, int(max(shape) / tile) + 1):
        position = round(k * tile)
        image[position : position + line] = 150
        image[:, position : position + line] = 150
    for _ in range(8):  # lamps
        x, y = (int(rng.uniform(0.08, 0.85) * n) for n in (shape[1], shape[0]))
        cv2.rectangle(
            image, (x, y), (x + round(0.55 / texel_m), y + round(0.2 / texel_m)), (250, 250, 245), -1
        )
    return image


def _darken_borders(texture: F32, size_m: tuple[float, float], *, strength: float, reach_m: float) -> F32:
    """Soft shade towards the borders, as where two surfaces of a room meet."""
    height, width = texture.shape[:2]

    def shade(n: int, length_m: float) -> F32:
        position = (np.arange(n, dtype=np.float32) + 0.5) / n * length_m
        return np.float32(1) - np.float32(strength) * np.exp(
            -np.minimum(position, length_m - position) / np.float32(reach_m)
        )

    texture *= shade(height, size_m[1])[:, None, None]
    texture *= shade(width, size_m[0])[None, :, None]
    return texture


def _contact_shadows(texture: F32, origin: F64, a: F64, b: F64, boxes: list[tuple[F64, F64]]) -> None:
    """Darken the floor under and beside `boxes` (low and high corners), in place."""
    height, width = texture.shape[:2]
    coarse = np.ones((height // 16, width // 16), np.float32)
    for low, high in boxes:
        x, y = (
            sorted(((p - origin) @ e) / (e @ e) * n for p in (low, high))
            for e, n in ((a, width // 16), (b, height // 16))
        )
        cv2.rectangle(coarse, (round(x[0]), round(y[0])), (round(x[1]), round(y[1])), 0.45, -1)
    sigma = 0.1 * (width // 16) / float(np.linalg.norm(a))
    coarse = cv2.GaussianBlur(coarse, (0, 0), max(0.5, sigma))
    texture *= cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
