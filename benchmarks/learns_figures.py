"""What came out of `learns_cameras.py`: errors of the generated pictures' cameras, their table, the pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from learns_align import camera_of_pictures
from learns_clips import HeldOut
from theodolite.dataset.cameras.rotations import rotation_angle
from theodolite.model.conditioning import TEMPORAL_STRIDE
from torch import Tensor


@dataclass(frozen=True)
class Figures:
    """Errors of the generated pictures' cameras against the asked path: means over clips, +- standard errors.

    Attributes:
        rotation_deg, translation_m: RotErr and TransErr, in the first camera's frame and in metres, unaligned.
        camera_motion: mean Frobenius distance of the 3x4 poses.
        rotation_median_deg: over clips.
        psnr_db: of the generated pictures against the true ones.
    """

    rotation_deg: float
    rotation_sem_deg: float
    rotation_median_deg: float
    translation_m: float
    translation_sem_m: float
    camera_motion: float
    psnr_db: float


def measure(held: HeldOut, pictures: Tensor, *against: Tensor) -> list[Figures]:
    """Figures of (B, T, 3, H, W) pictures, one for each path (B, T, 4, 4) that they are held against."""
    clips = held.clips
    lens = clips.intrinsics_px[:, ::TEMPORAL_STRIDE]
    found = camera_of_pictures(clips.pictures[:, 0], clips.depth_m, pictures.float(), lens)
    return [figures_of(found, path, held, pictures) for path in against]


def figures_of(found: Tensor, wanted: Tensor, held: HeldOut, pictures: Tensor) -> Figures:
    turn = rotation_angle((wanted[..., :3, :3].mT @ found[..., :3, :3]).double())[:, 1:].rad2deg().mean(dim=1)
    way = (wanted[..., :3, 3] - found[..., :3, 3]).norm(dim=-1)[:, 1:].mean(dim=1)
    motion = (wanted[..., :3, :] - found[..., :3, :]).flatten(-2).norm(dim=-1)[:, 1:].mean(dim=1)
    error = (pictures.float() - held.clips.pictures)[:, 1:].square().mean(dim=(1, 2, 3, 4))
    n = math.sqrt(len(turn))
    return Figures(
        rotation_deg=float(turn.mean()),
        rotation_sem_deg=float(turn.std()) / n,
        rotation_median_deg=float(turn.median()),
        translation_m=float(way.mean()),
        translation_sem_m=float(way.std()) / n,
        camera_motion=float(motion.mean()),
        psnr_db=float((-10 * error.clamp_min(1e-9).log10()).mean()),
    )


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else ""


def table(rows: dict[str, Figures]) -> str:
    lines = [
        "| cameras | RotErr deg | median | TransErr m | CamMC | PSNR dB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {f.rotation_deg:.2f} +- {f.rotation_sem_deg:.2f} | {f.rotation_median_deg:.2f} | "
        f"{f.translation_m:.3f} +- {f.translation_sem_m:.3f} | {f.camera_motion:.3f} | {_number(f.psnr_db)} |"
        for name, f in rows.items()
    ]
    return "\n".join(lines)


def contact_sheet(path: Path, shown: dict[str, Tensor], clips: tuple[int, ...] = (0, 1)) -> None:
    """Rows by name, the pictures of some clips side by side; a PNG of less than 300 KB."""
    import cv2
    from PIL import Image

    rows = []
    for name, pictures in shown.items():
        parts = [pictures[i].float().permute(0, 2, 3, 1).cpu().numpy() for i in clips]
        row = np.concatenate([np.concatenate(list(part), axis=1) for part in parts], axis=1)
        row = np.ascontiguousarray((255 * row).round().clip(0, 255).astype(np.uint8))
        label = np.full((14, row.shape[1], 3), 255, np.uint8)
        cv2.putText(label, name, (2, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
        rows += [label, row]
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    for colours in (256, 128, 64, 32):
        sheet.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < 300_000:
            break
