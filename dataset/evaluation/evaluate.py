"""Compare cameras with the truth, clip by clip, and say how sure the averages are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..camera_files.match import Match, Matching, match
from ..camera_files.record import CameraSet, ClipCameras
from ..media import suffixes
from ..metrics.image import ImagePairScorer, ImageScorer, compare_videos, revisit_pairs, score_video
from ..reasons import status_of
from .record import Evaluation, names_text
from .score import ClipScore, score_match


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Generated videos to score beside their cameras.

    Attributes:
        folder: holds `<clip_id>.mp4` (or another video suffix), one frame for each true camera; clips without a file
            are left unscored.
        quality: scorer of one image, for the decline over a minute; None: not measured.
        perceptual: distance of two images, for returns (the benchmark's is `lpips_alex`); None: not measured.
        truth: folder of true videos by the same names, of the clips that have one; None: there are none.
    """

    folder: Path
    quality: ImageScorer | None = None
    perceptual: ImagePairScorer | None = None
    truth: Path | None = None

    def find(self, clip_id: str) -> Path | None:
        """The clip's video, or None."""
        return _find_video(self.folder, clip_id)


def _find_video(folder: Path, clip_id: str) -> Path | None:
    return next((p for s in suffixes.VIDEOS if (p := folder / f"{clip_id}{s}").is_file()), None)


def _with_video(score: ClipScore, truth: ClipCameras, videos: Videos) -> ClipScore:
    path = videos.find(score.clip_id)
    if path is None:
        return score
    pairs = truth.returns if truth.returns is not None else revisit_pairs(truth.camera_to_world)
    seen = score_video(score.clip_id, path, pairs, quality=videos.quality, perceptual=videos.perceptual)
    true_video = None if videos.truth is None else _find_video(videos.truth, score.clip_id)
    if true_video is not None:
        beside = compare_videos(score.clip_id, path, true_video, perceptual=videos.perceptual)
        score = replace(score, truth_psnr_db=beside.psnr_db, truth_ssim=beside.ssim, truth_lpips=beside.lpips)
    return replace(
        score,
        revisit_psnr_db=seen.revisit.psnr_db if seen.revisit else None,
        revisit_ssim=seen.revisit.ssim if seen.revisit else None,
        revisit_lpips=seen.revisit.lpips if seen.revisit else None,
        quality_drop=seen.quality_drop,
    )


def evaluate(
    predicted: Mapping[str, ClipCameras],
    truth: Mapping[str, ClipCameras],
    *,
    videos: Videos | None = None,
    matching: Matching | None = None,
) -> Evaluation:
    """Scores of every clip that both have, with those of its video if `videos` has one.

    A clip that cannot be compared costs itself alone: it is in `failed`, with the reason.

    Raises:
        ValueError: no clip in common (except that a single clip on either side is compared whatever its
            name), or none that can be compared.
    """
    ours, theirs = _as_set(predicted), _as_set(truth)
    known = ours.clips.keys() | ours.unreadable.keys() | ours.without_cameras.keys()
    # Cameras that were rejected are no truth, but to say how far off rejected ones are they do.
    untrue = {c for c, t in theirs.items() if t.rejection and not (c in ours and ours[c].rejection)}
    true = (theirs.clips.keys() - untrue) | theirs.unreadable.keys()
    if len(ours) == len(true) == 1 and not known & true:
        (clip_id,) = ours
        theirs, true = replace(theirs, clips={clip_id: theirs[next(iter(true))]}), {clip_id}
    common = sorted(known & true)
    if not common:
        raise ValueError(
            f"no clip id in common; predictions are e.g. {sorted(known)[:3]}, the truth {sorted(true)[:3]}"
        )
    if videos is not None and not any(videos.find(c) for c in common):
        raise ValueError(
            f"{videos.folder}: holds no video of a clip that both have, e.g. {common[0]}{suffixes.VIDEOS[0]}"
        )
    lone = {c: ours.unreadable[c] for c in ours.unreadable.keys() - true}
    lone |= {c: theirs.unreadable[c] for c in theirs.unreadable.keys() - known}
    found = _Findings(notes=[f"not read: {text}" for _, text in sorted(lone.items())])
    if untrue:
        found.notes.append(
            f"{len(untrue)} clips of the truth were rejected themselves and are left out: {names_text(sorted(untrue))}"
        )
    for clip_id in common:
        found.compare(clip_id, ours, theirs, videos=videos, matching=matching)
    if not found.clips and not found.rejected:
        many = f"none of {len(common)} clips can be compared; " if len(common) > 1 else ""
        raise ValueError(many + next(iter(found.failed.values())))
    return Evaluation(
        clips=tuple(found.clips),
        only_predicted=tuple(sorted((ours.clips.keys() | ours.without_cameras.keys()) - true)),
        only_truth=tuple(sorted((theirs.clips.keys() - untrue) - known)),
        rejected=found.rejected,
        failed=found.failed,
        notes=tuple(found.notes),
        matches=found.matches,
    )


@dataclass(kw_only=True)
class _Findings:
    """What comparing clip after clip brings together."""

    notes: list[str]
    clips: list[ClipScore] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    matches: dict[str, Match] = field(default_factory=dict)

    def compare(
        self,
        clip_id: str,
        ours: CameraSet,
        theirs: CameraSet,
        *,
        videos: Videos | None,
        matching: Matching | None,
    ) -> None:
        reasons = ours.without_cameras.get(clip_id, ())
        if reasons and status_of("rejected", reasons) == "rejected":
            self.rejected[clip_id] = reasons
            return
        wrong = ours.unreadable.get(clip_id) or theirs.unreadable.get(clip_id) or " ".join(reasons) or None
        if wrong is not None:
            self.failed[clip_id] = wrong
            return
        p, t = ours[clip_id], theirs[clip_id]
        try:
            self.matches[clip_id] = match(clip_id, p, t, matching)
            score = score_match(clip_id, p, t, self.matches[clip_id])
        except ValueError as error:
            self.failed[clip_id] = str(error)
            return
        if p.rejection:
            self.rejected[clip_id] = p.rejection
        self.notes.extend(f"clip {clip_id}: {note}" for note in (*p.notes, *t.notes))
        if videos is not None:
            try:
                score = _with_video(score, t, videos)
            except ValueError as error:
                self.notes.append(f"video not scored: {error}")
        self.clips.append(score)


def _as_set(cameras: Mapping[str, ClipCameras]) -> CameraSet:
    return cameras if isinstance(cameras, CameraSet) else CameraSet(cameras)
