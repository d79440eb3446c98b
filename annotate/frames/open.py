"""Clips at 16 fps with exact source frame indices, from videos, image folders and the built-in renderer.

One seam, `open_clip`. Every source is first described by its *timeline*: the presentation time of each frame that a
player would show, in order. The clip's frames are chosen on that timeline once (`choose_frames`), and the same indices
then serve video, poses, intrinsics and depth. Files are read by `dataset/media/`, which the
loader of finished datasets uses as well: both see the same pixels, upright as players show them.

Why PyAV is the default: forward decoding was exact on every file tried (closed and open GOP, B frames, edit list,
discarded frames, variable rate, rotation, AV1, VP9, 10 bit). decord 0.6.0 cannot open AV1, counts discarded
frames, and its seeks land one frame late at open GOPs. Its contiguous reads from the first frame are exact on plain
MP4 and Matroska files (not on MPEG transport streams), but cost 5 to 20 % more CPU time and memory than PyAV,
which converts only the frames that are kept (benchmarks/decode_bench.py).
`backend: decord` (an extra: pip install "theodolite[decord]") reads contiguously, checks its time stamps against the
timeline, and takes PyAV where decord would be wrong, saying so in `notes`.
"""

from __future__ import annotations

from dataclasses import replace

from ..sources.clip import ClipRef, ClipRejection, printable
from .base import ClipFrames, DecodeConfig
from .images import open_image_clip
from .rendered import open_rendered
from .timing import clip_timing, nominal_timeline
from .video import open_video_clip


def open_clip(clip: ClipRef, config: DecodeConfig) -> ClipFrames:
    """Open a clip's media: read its timeline, choose its frames, decode the first one.

    Cuts are looked for during the first complete iteration (rendered clips have none); see `DecodedFrames.cuts`.
    Frames can be iterated any number of times; every iteration decodes anew.

    Args:
        clip: media, window and, for image folders, the frame rate.
        config: which frames, and how large.
    Returns:
        `DecodedFrames`, or the renderer's own `ClipFrames`.
    Raises:
        ClipRejection: `unreadable_video`, `truncated_video`, `corrupt_video`, `frame_size_changed`,
            `unreadable_image`, `image_size_changed`, `mixed_images`, `orientation_unsupported`,
            `file_name_not_utf8`, `no_frame_rate`, `too_short`, `source_fps_below_16`,
            `frame_gap`.
    """
    if printable(str(clip.media_path)) != str(clip.media_path):
        raise ClipRejection(
            "file_name_not_utf8",
            f"clip {clip.clip_id}: {printable(str(clip.media_path))}: the name is no UTF-8, so that a row could not"
            " point to the file; rename it",
        )
    if clip.problem is not None:
        raise ClipRejection(clip.problem[0], f"clip {clip.clip_id}: {clip.problem[1]}")
    if clip.media_kind == "rendered":
        rendered = open_rendered(clip)
        nominal = nominal_timeline(rendered.num_source_frames or 0, rendered.timing.fps, complete=True)
        return replace(rendered, timing=clip_timing(clip, nominal, config))
    if clip.media_kind == "images":
        return open_image_clip(clip, config)
    return open_video_clip(clip, config)
