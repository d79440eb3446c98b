"""Small encoded datasets of random numbers, and annotated ones with pictures to encode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from theodolite.dataset.cameras.transforms import relative_to_first, se3_exp
from theodolite.dataset.encoded import EncodedClip, Encoding, Window, begin, window_id, write_shard
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.rows import Row
from theodolite.dataset.store import write_dataset
from theodolite.model.config import WorldModelConfig

MODEL = WorldModelConfig(depth=4, width=48, heads=2, latent_channels=8, text_width=16, text_tokens=10)
HEIGHT, WIDTH = 64, 96


def path_of(frames: int, rng: np.random.Generator) -> np.ndarray:
    """(F, 4, 4) a camera that wanders."""
    step = np.cumsum(rng.normal(size=(frames, 6)) * [0.02, 0.02, 0.02, 0.01, 0.01, 0.01], axis=0)
    return np.asarray(relative_to_first(se3_exp(step)))


def encoding(**changes: Any) -> Encoding:
    values: dict[str, Any] = dict(
        height=HEIGHT,
        width=WIDTH,
        fit="cover",
        fps=16.0,
        temporal_stride=8,
        spatial_stride=32,
        latent_channels=8,
        text_width=16,
        text_tokens=10,
        autoencoder="vae 1234",
        text_encoder="text 1234",
        stand_in=False,
    )
    return Encoding(**{**values, **changes})


def encoded_clip(number: int, *, frames: int = 33, cameras: bool = True, channels: int = 8) -> EncodedClip:
    rng = np.random.default_rng(number)
    generator = torch.Generator().manual_seed(number)
    clip_id = f"clip_{number:04d}"
    window = Window(
        id=window_id(clip_id, 0),
        clip_id=clip_id,
        first_frame=0,
        num_frames=frames,
        caption=f"room {number}",
        cameras=cameras,
        data_licence="CC-BY-4.0",
    )
    latent_frames = (frames - 1) // 8 + 1
    lens = torch.tensor([80.0, 82.0, 48.0, 32.0]).repeat(frames, 1)
    return EncodedClip(
        window,
        torch.randn(channels, latent_frames, HEIGHT // 32, WIDTH // 32, generator=generator),
        torch.randn(10, 16, generator=generator),
        torch.arange(10) < 6,
        torch.from_numpy(path_of(frames, rng)).float() if cameras else None,
        lens if cameras else None,
    )


def write_encoded(out: Path, count: int = 6, *, per_shard: int = 2, frames: int = 33, **changes: Any) -> Path:
    """A folder of encoded windows `clip_0000_w000000`, ..."""
    begin(out, encoding(**changes), (torch.zeros(10, 16), torch.arange(10) < 1))
    channels = changes.get("latent_channels", 8)
    for first in range(0, count, per_shard):
        numbers = range(first, min(first + per_shard, count))
        write_shard(out, [encoded_clip(n, frames=frames, channels=channels) for n in numbers])
    return out


def row_with_pictures(root: Path, number: int = 0, *, frames: int = 20, **changes: Any) -> Row:
    """A row whose video shows noise that drifts, 160 x 96."""
    rng = np.random.default_rng(number)
    media = root / f"{number}.mp4"
    texture = rng.integers(0, 255, (96, 400, 3), dtype=np.uint8)
    with VideoWriter(media, width=160, height=96, fps=16) as video:
        for i in range(frames):
            video.write(texture[:, i : i + 160])
    values: dict[str, Any] = dict(
        clip_id=f"clip_{number:04d}",
        source="demo",
        original_id=str(number),
        media_kind="video",
        media=media.name,
        mode="given_depth",
        data_licence="CC-BY-4.0",
        data_redistributable=True,
        stand_in=False,
        recipe_hash="recipe1",
        package_version="0",
        height=96,
        width=160,
        source_fps=16.0,
        fps=16.0,
        frame_index=np.arange(frames),
        time_s=np.arange(frames) / 16,
        camera_to_world=path_of(frames, rng),
        focal_px=np.tile([100.0, 110.0], (frames, 1)),
        principal_point_px=np.tile([80.0, 48.0], (frames, 1)),
        pose_source=["solved"] * frames,
        focal_model="constant",
        metres_per_unit=1.0,
        scale_model="constant",
        scale_frame=np.array([0]),
        scale_value=np.array([1.0]),
        verdict="accepted",
        captions={"scene": "A room."},
    )
    return Row(**{**values, **changes})


def write_annotated(root: Path, rows: list[Row]) -> Path:
    out = root / "dataset"
    write_dataset(out, rows)
    return out
