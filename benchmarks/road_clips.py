"""Clips, small networks and measured cameras for `road.py`, in the files that the commands read and write.

Rooms are those of `learns_scenes.py`, written as an RGB-D recording: a video, depth in millimetres, an index, and the
true cameras beside them. The text encoder has Gemma's shape and random numbers; it lies in a folder as a release's. The
autoencoder: `road_codec.py`.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from learns_align import camera_of_pictures
from learns_scenes import Draw, random_rooms, render
from numpy.typing import NDArray
from theodolite.annotate.rendered.files import write_depth_png, write_png
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.encoded import EncodedClip, Encoding, Window, begin, window_id, write_shard
from theodolite.dataset.media.write import VideoWriter
from theodolite.model.config import WorldModelConfig
from torch import Tensor

FPS = 16
PROMPT = "A room with boxes."
"""Caption of every clip: what is shown is in its first picture."""
CRF = 28
"""Of H.264: a clip of 97 frames in 35 kB; its 33 dB are clean beside the 24 that the autoencoder leaves of it."""
MOMENTS = 8
"""Video frames from one picture whose camera is measured to the next."""


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """A set of clips.

    Attributes:
        name: its folder, and the first word of the clips' ids.
        clips, frames: how many, and how long.
        height, width: of the pictures.
        seed: of rooms and paths.
        path: of `wandering_path`.
    """

    name: str
    clips: int
    frames: int
    height: int
    width: int
    seed: int
    path: dict[str, Any] = field(default_factory=dict)

    def ids(self) -> list[str]:
        return [f"{self.name}_{number:04d}" for number in range(self.clips)]


@dataclass(frozen=True)
class Rendered:
    """One clip: (F, H, W, 3) uint8, (F, H, W) z-depth, (F, 4, 4) poses, (F, 4) fx, fy, cx, cy."""

    pictures: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    camera_to_world: NDArray[np.float32]
    intrinsics_px: NDArray[np.float32]


def wandering_path(
    draw: Draw,
    num_frames: int,
    *,
    turn: float = 1.0,
    fov_deg: tuple[float, float] = (62.0, 95.0),
    zoom: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """(1, F, 4, 4) poses of a camera that swings to and fro, and (1, F) focal lengths for pictures one wide.

    Each of the six components is a sum of three sines of 4 to 10 seconds, so that every stretch of a long clip moves in
    its own way and none leaves the room: ways stay below 0.75 m, 0.3 m up and down, turns below 40 degrees times
    `turn`. Half of the clips zoom by up to `zoom`.
    """
    device = draw.generator.device
    time_s = torch.arange(num_frames, device=device) / FPS
    rate = 2 * math.pi / draw.uniform(4.0, 10.0, 6, 3, 1)
    phase = draw.uniform(0, 2 * math.pi, 6, 3, 1)
    curve = (0.45 * draw.normal(6, 3, 1) * ((rate * time_s + phase).sin() - phase.sin())).sum(dim=1).T

    def within(x: Tensor, limit: float) -> Tensor:
        length = x.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return x * (limit * torch.tanh(length / limit) / length)

    size = turn * torch.tensor([18.0, 8.0, 5.0], device=device).deg2rad()  # yaw, pitch, roll
    turned = so3_exp(within(curve[:, :3] * size, turn * math.radians(40))[:, [1, 0, 2]])
    way = within(0.5 * curve[:, 3:], 0.75) * torch.tensor([1.0, 0.4, 1.0], device=device)
    yaw = draw.uniform(0, 2 * math.pi, 1)
    heading = so3_exp(torch.cat([0 * yaw, yaw, 0 * yaw])) @ so3_exp(0.08 * draw.normal(3))
    reach = torch.tensor([0.4, 0.3, 0.4], device=device)
    poses = torch.eye(4, device=device).repeat(1, num_frames, 1, 1)
    poses[0, :, :3, :3] = heading @ turned
    poses[0, :, :3, 3] = reach * draw.uniform(-1, 1, 3) + way @ heading.T
    narrow, wide = map(math.radians, fov_deg)
    focal = 0.5 / torch.tan(draw.uniform(narrow, wide, 1) / 2)
    zooms = draw.uniform(-zoom, zoom, 1) * (draw.uniform(0, 1, 1) < 0.5)
    return poses, focal * (zooms * torch.linspace(0, 1, num_frames, device=device)).exp()[None]


def render_one(rooms: Rooms, number: int, device: torch.device, *, samples: int = 1) -> Rendered:
    """Clip `number` of a set; other devices draw other ones."""
    draw = Draw(torch.Generator(device).manual_seed(100_000 * rooms.seed + number))
    poses, focal = wandering_path(draw, rooms.frames, **rooms.path)
    room = random_rooms(draw, 1, poses[:, 0, :3, 3])
    centre = torch.tensor([rooms.width / 2, rooms.height / 2], device=device).expand(*focal.shape, 2)
    lens = torch.cat([(focal * rooms.width)[..., None].expand(*focal.shape, 2), centre], dim=-1)
    parts = [
        render(room, poses[:, part], lens[:, part], rooms.height, rooms.width, samples=samples)[0]
        # A processor's cache holds the rays of one picture.
        for part in torch.arange(rooms.frames, device=device).split(16 if device.type == "cuda" else 1)
    ]
    image = torch.cat(parts).cpu()
    pictures = (255 * image[:, :3]).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    arrays = (poses[0].cpu().numpy(), lens[0].cpu().numpy())
    return Rendered(pictures.contiguous().numpy(), image[:, 3].numpy(), *arrays)


def pictures_of(rooms: Rooms, device: torch.device) -> Tensor:
    """(N, F, H, W, 3) uint8: all clips of a set, on the device."""
    samples = 2 if device.type == "cuda" else 1
    clips = [render_one(rooms, n, device, samples=samples).pictures for n in range(rooms.clips)]
    return torch.stack([torch.from_numpy(clip) for clip in clips]).to(device)


def write_room(rooms: Rooms, number: int, folder: Path, device: torch.device) -> None:
    """Write a clip of a set as a recording, whole or not at all; what is not annotated gets its truth beside it."""
    name = rooms.ids()[number]
    clip, place = render_one(rooms, number, device), folder / f".{name}"
    shutil.rmtree(place, ignore_errors=True)
    (place / "depth").mkdir(parents=True)
    with VideoWriter(place / "rgb.mp4", width=rooms.width, height=rooms.height, fps=FPS, crf=CRF) as video:
        for picture in clip.pictures:
            video.write(picture)
    np.savetxt(place / "poses.txt", clip.camera_to_world.reshape(-1, 16), fmt="%.7f")
    np.savetxt(
        place / "lens.csv",
        clip.intrinsics_px,
        delimiter=",",
        header="fx,fy,cx,cy",
        comments="",
        fmt="%.5f",
    )
    if folder.name == "held":
        _write_truth(clip, place)
    elif folder.name == "depth":
        for frame, depth in enumerate(clip.depth_m):
            write_depth_png(place / "depth" / f"{frame:06d}.png", depth, units_per_metre=1000)
    place.rename(folder / name)


def _write_truth(clip: Rendered, place: Path) -> None:
    """What a held-out clip is generated from and measured by."""
    write_png(place / "first.png", clip.pictures[0])
    lens = np.zeros((len(clip.intrinsics_px), 3, 3), np.float32)
    lens[:, 0, 0], lens[:, 1, 1], lens[:, 0, 2], lens[:, 1, 2] = clip.intrinsics_px.T
    lens[:, 2, 2] = 1
    np.savez_compressed(
        place / "truth.npz",
        camera_to_world=clip.camera_to_world,
        intrinsics_px=lens,
        depth_m=clip.depth_m[0].astype(np.float16),
    )


def index_entry(name: str, recipe: str) -> dict[str, str]:
    """What the index says of a recording: with cameras (`posed`), or with depth and a lens (`rgbd`)."""
    poses = f"{name}/poses.txt"
    given = {"camera_to_world_path": poses}
    if recipe == "rgbd":
        given = {
            "depth_pattern": f"{name}/depth/{{frame:06d}}.png",
            "truth_camera_to_world_path": poses,
        }
    return {
        "clip_id": name,
        "media_path": f"{name}/rgb.mp4",
        "intrinsics_path": f"{name}/lens.csv",
        **given,
    }


def keep_small(folder: Path, verdicts: dict[str, str]) -> None:
    """Remove what is read no more of recordings that are annotated: depth, and the videos of rejected ones."""
    for name, verdict in verdicts.items():
        shutil.rmtree(folder / name / "depth", ignore_errors=True)
        if verdict != "accepted":
            (folder / name / "rgb.mp4").unlink(missing_ok=True)


def verdicts_of(dataset: Path) -> dict[str, str]:
    """Verdicts of a dataset's clips, by id; none where the time was over before the first was done."""
    import theodolite.dataset

    if not any((dataset / "data").rglob("*.parquet")):
        return {}
    table = theodolite.dataset.open(dataset).to_table(["clip_id", "verdict"]).to_pydict()
    return dict(zip(table["clip_id"], table["verdict"], strict=True))


def remove_bare(folder: Path, verdicts: dict[str, str]) -> None:
    """Remove recordings without depth that are not annotated, such as come from another machine: they are written
    anew."""
    for place in folder.glob("*_????"):
        if place.name not in verdicts and not (place / "depth").is_dir():
            shutil.rmtree(place)


def write_index(names: list[str], folder: Path, recipe: str) -> Path:
    """The index of some recordings."""
    unit = {"depth_units_per_metre": 1000} if recipe == "rgbd" else {"poses_metric": True}
    defaults = {"data_licence": "CC0-1.0", "data_redistributable": True, "caption": PROMPT, **unit}
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "clips.yaml"
    entries = [index_entry(name, recipe) for name in names]
    index.write_text(yaml.safe_dump({"defaults": defaults, "clips": entries}), encoding="utf-8")
    return index


# --- the networks that encode -------------------------------------------------------------------


def write_text_encoder(folder: Path, *, width: int) -> None:
    """A language model of Gemma-2's shape with random numbers, one token a byte."""
    import transformers
    from theodolite.model.text import byte_tokenizer, tiny_text_encoder

    own = tiny_text_encoder(width=width)
    outer = transformers.Gemma2ForCausalLM(own.model.config)
    outer.model.load_state_dict(own.model.state_dict())
    outer.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def write_random(folder: Path, size: Any, *, windows: int) -> None:
    """Random numbers as `theodolite encode` writes windows, of the shape that a road of this size learns from."""
    height, width = size.picture
    channels, text_width = (int(size.model[name]) for name in ("latent_channels", "text_width"))
    config = WorldModelConfig(text_width=text_width)
    encoding = Encoding(
        height=height, width=width, fit="cover", fps=FPS, temporal_stride=8, spatial_stride=32,
        latent_channels=channels, text_width=text_width, text_tokens=config.text_tokens, autoencoder="random",
        text_encoder="random", stand_in=True,
    )  # fmt: skip
    real = torch.ones(config.text_tokens, dtype=torch.bool)
    begin(folder, encoding, (torch.zeros(config.text_tokens, text_width), real))
    shape = (channels, (size.window - 1) // 8 + 1, height // 32, width // 32)
    lens = torch.tensor([0.6 * width, 0.6 * width, width / 2, height / 2]).repeat(size.window, 1)
    clips = []
    for number in range(windows):
        poses = torch.eye(4).repeat(size.window, 1, 1)
        poses[:, :3, 3] = 0.02 * torch.randn(size.window, 3).cumsum(0)
        name = f"random_{number:04d}"
        window = Window(
            id=window_id(name, 0), clip_id=name, first_frame=0, num_frames=size.window, caption=PROMPT, cameras=True,
            data_licence="CC0-1.0", stand_in=True,
        )  # fmt: skip
        text = torch.randn(config.text_tokens, text_width)
        clips.append(EncodedClip(window, torch.randn(shape), text, real.clone(), poses, lens.clone()))
    write_shard(folder, clips)


# --- the cameras of what was made ---------------------------------------------------------------


def write_manifest(path: Path, clips: Path, names: list[str]) -> None:
    """Ask for the true paths of clips, from their first pictures."""
    lines = [
        {
            "id": name,
            "image": str(clips / name / "first.png"),
            "prompt": PROMPT,
            "camera": str(clips / name / "truth.npz"),
            "fps": FPS,
        }
        for name in names
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def measure_cameras(videos: Path, names: list[str], clips: Path, folder: Path, device: torch.device) -> None:
    """Cameras of every eighth frame of videos, by direct alignment with the clips' first pictures, whose depth is
    known: `folder/<id>.txt` in TUM's layout, as `theodolite evaluate` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, first, depth, lenses = [], [], [], []
    for name in names:
        truth = np.load(clips / name / "truth.npz")
        shown = read_video(videos / f"{name}.mp4")[::MOMENTS]
        size = (shown.shape[2], shown.shape[1])
        shrunk = size[0] / truth["depth_m"].shape[1]
        pictures.append(shown)
        first.append(
            cv2.resize(read_video(clips / name / "rgb.mp4", 1)[0], size, interpolation=cv2.INTER_AREA)
        )
        depth.append(
            cv2.resize(truth["depth_m"].astype(np.float32), size, interpolation=cv2.INTER_NEAREST_EXACT)
        )
        lens = truth["intrinsics_px"][::MOMENTS][: len(shown)]
        lenses.append(shrunk * lens[:, [0, 1, 0, 1], [0, 1, 2, 2]])
    found = []
    for part in torch.arange(len(names)).split(32):
        index = part.tolist()
        found.append(
            camera_of_pictures(
                _stacked([first[i] for i in index], device)[:, 0],
                torch.from_numpy(np.stack([depth[i] for i in index])).float().to(device),
                _stacked([pictures[i] for i in index], device),
                torch.from_numpy(np.stack([lenses[i] for i in index])).float().to(device),
            ).cpu()
        )
    for name, poses in zip(names, torch.cat(found).double().numpy(), strict=True):
        write_tum(folder / f"{name}.txt", poses)


def write_tum(path: Path, poses: NDArray[np.floating]) -> None:
    """Every eighth frame's pose, with its time."""
    from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation

    quaternion = np.asarray(quaternion_wxyz_from_rotation(poses[:, :3, :3]))
    rows = [
        [i * MOMENTS / FPS, *pose[:3, 3], *q[1:], q[0]]
        for i, (pose, q) in enumerate(zip(poses, quaternion, strict=True))
    ]
    np.savetxt(path, np.array(rows), fmt="%.9f")


def write_paths(folder: Path, clips: Path, names: list[str]) -> None:
    """True paths of clips, every eighth frame, relative to the first, as `theodolite evaluate` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        poses = np.load(clips / name / "truth.npz")["camera_to_world"][::MOMENTS].astype(np.float64)
        write_tum(folder / f"{name}.txt", np.linalg.inv(poses[0]) @ poses)


def first_frame_errors(
    measured: Path | None, paths: Path, names: list[str], *, other: int = 0
) -> list[tuple[float, float]]:
    """Mean angle in degrees and mean distance in metres from the paths, a clip, the first frames made equal and nothing
    else. None: of a camera that rests.

    Args:
        other: against the path of the clip that comes so many later: what a video has by chance that follows none.
    """
    from theodolite.dataset.cameras.rotations import rotation_from_quaternion_wxyz

    found = []
    for i, name in enumerate(names):
        true = np.loadtxt(paths / f"{names[(i + other) % len(names)]}.txt")
        made = np.tile(true[:1], (len(true), 1)) if measured is None else np.loadtxt(measured / f"{name}.txt")
        count = min(len(true), len(made))
        turn = [np.asarray(rotation_from_quaternion_wxyz(x[:count, [7, 4, 5, 6]])) for x in (true, made)]
        cosine = (np.einsum("fij,fij->f", *turn) - 1) / 2
        angle = np.degrees(np.arccos(cosine.clip(-1, 1)))[1:].mean()
        found.append(
            (float(angle), float(np.linalg.norm(true[1:count, 1:4] - made[1:count, 1:4], axis=1).mean()))
        )
    return found


def write_coded(
    vae: Path, clips: Path, names: list[str], folder: Path, picture: tuple[int, int], device: torch.device
) -> None:
    """True videos as they come back from the autoencoder: the best that a world model can show."""
    from theodolite.model.autoencoder import load_autoencoder

    coder = load_autoencoder(vae, device=device, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shown = np.stack(
            [
                cv2.resize(one, picture[::-1], interpolation=cv2.INTER_AREA)
                for one in read_video(clips / name / "rgb.mp4")
            ]
        )
        video = torch.from_numpy(shown).permute(3, 0, 1, 2).float() / 127.5 - 1
        back = torch.cat(list(coder.decode(coder.encode(video))), dim=1)
        pictures = ((back.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).cpu().numpy()
        with VideoWriter(folder / f"{name}.mp4", width=picture[1], height=picture[0], fps=FPS) as writer:
            for one in pictures:
                writer.write(one)


def read_video(path: Path, count: int | None = None) -> NDArray[np.uint8]:
    """(F, H, W, 3) of a video."""
    capture, found = cv2.VideoCapture(str(path)), []
    while count is None or len(found) < count:
        there, picture = capture.read()
        if not there:
            break
        found.append(picture[..., ::-1])
    capture.release()
    if not found:
        raise ValueError(f"{path}: no picture in it")
    return np.ascontiguousarray(np.stack(found))


def _stacked(pictures: list[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """(B, T, 3, H, W) in 0..1."""
    whole = [p if p.ndim == 4 else p[None] for p in pictures]
    return torch.from_numpy(np.stack(whole)).to(device).permute(0, 1, 4, 2, 3).float() / 255
