"""Every reason for which a clip may carry no accepted cameras: the one list that all stages, tables and pages use.

A reason is *judged* or *failed*. Judged: the clip was there and could be read, and what was measured on it says that no
trustworthy cameras come of it; nothing is broken, and trying again gives the same answer. Failed: something has to be
mended before anything can be said of the clip: its files, what the index says of them, or this software.

To add one, put its code into `ReasonCode` and its entry into `REASONS`; the type checker then knows it in every call of
`ClipRejection`, and `tests/dataset/test_reasons.py` reads the sources for codes that are not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, cast, get_args

from .text_table import markdown_table

ReasonKind = Literal["judged", "failed"]
Status = Literal["accepted", "rejected", "failed"]
"""How a clip ended, in the words of every command: `failed` where some reason is no judgement."""

ReasonCode = Literal[
    # The media
    "archive_damaged",
    "archive_member_too_large",
    "archive_member_unsafe",
    "corrupt_video",
    "file_name_not_utf8",
    "frame_size_changed",
    "image_names_not_numbered",
    "image_size_changed",
    "image_too_large",
    "mixed_images",
    "no_frame_rate",
    "orientation_changed",
    "orientation_unsupported",
    "truncated_video",
    "unreadable_image",
    "unreadable_video",
    # Which frames
    "frame_gap",
    "shot_cut",
    "source_fps_below_16",
    "too_short",
    # Depth that comes with the clip
    "anchor_unit_unknown",
    "depth_all_invalid",
    "depth_aspect_mismatch",
    "depth_does_not_fit_images",
    "depth_frame_count_mismatch",
    "depth_missing",
    "depth_not_finite",
    "depth_size_changed",
    "depth_unit_changes",
    "depth_unreadable",
    "given_units_disagree",
    "ray_distance_without_intrinsics",
    # Cameras that come with the clip
    "camera_count_mismatch",
    "cameras_not_on_frames",
    "cameras_unreadable",
    "given_cameras_missing",
    "given_intrinsics_disagree",
    "given_orientation_unknown",
    "given_poses_degenerate",
    "given_poses_disagree",
    "given_poses_axes_swapped",
    "given_poses_flipped",
    "given_poses_inverted",
    "given_poses_opengl",
    "given_poses_rotation_misread",
    "given_poses_shifted",
    "given_poses_wrong_rate",
    "given_poses_wrong_unit",
    "given_poses_sparse",
    "given_poses_too_few",
    "given_scale_disagrees",
    "intrinsics_aspect_varies",
    "intrinsics_count_mismatch",
    "intrinsics_of_another_size",
    "intrinsics_unreadable",
    "pose_count_mismatch",
    "poses_unreadable",
    # Structure and scale
    "keyframes_disconnected",
    "geometry_not_finite",
    "no_anchor_frames",
    "no_depth_on_tracks",
    "no_metric_scale",
    "no_reconstruction",
    "scale_inconsistent",
    "too_few_keyframes",
    "too_few_usable_anchor_frames",
    # The cameras that were found
    "cameras_not_finite",
    "depth_and_path_disagree",
    "depth_scale_wanders",
    "depth_residual_large",
    "metres_implausible",
    "fisheye_lens",
    "focal_axes_differ",
    "focal_uncertain",
    "fov_too_narrow",
    "fov_too_wide",
    "moving_things",
    "no_parallax",
    "picture_shifts",
    "pose_jump",
    "poses_not_rigid",
    "position_uncertain",
    "static_camera",
    "too_few_inliers",
    "too_many_infilled",
    "tracks_lost",
    # The run
    "internal_error",
    "out_of_memory",
    "timed_out",
    "stand_in_weights",
    "worker_died",
]


class Reason(NamedTuple):
    """One reason: its kind, a sentence that says what it means, and one that says what to try."""

    kind: ReasonKind
    meaning: str
    remedy: str


_GIVE_METRES = (
    "Give in the index what is missing: depth_pattern with depth_units_per_metre, or anchor_depth_pattern with"
    " anchor_units_per_metre (read where annotate.geometry.anchor is given); or use the recipe estimate."
)


def _judged(meaning: str, remedy: str) -> Reason:
    return Reason("judged", meaning, remedy)


def _failed(meaning: str, remedy: str) -> Reason:
    return Reason("failed", meaning, remedy)


REASONS: Mapping[ReasonCode, Reason] = {
    "archive_damaged": _failed(
        "The archive that holds the clip ends, or is damaged, in the middle of its file.",
        "Fetch the archive again: theodolite fetch compares its size and digest.",
    ),
    "archive_member_too_large": _failed(
        "Unpacked, the clip's file would be larger than what is allowed or than the disk has room for.",
        "Allow more with --max-member-gib or make room, if the archive is to be trusted.",
    ),
    "archive_member_unsafe": _failed(
        "The archive holds a link, a device, or a name that leads out of the folder, instead of the clip's file.",
        "Do not unpack it by hand; fetch the archive from where the set is published.",
    ),
    "corrupt_video": _failed(
        "A frame of the video cannot be decoded.",
        "Fetch the file again, or set the window (start_s, end_s) to the part before the damage.",
    ),
    "file_name_not_utf8": _failed(
        "The name of the file is no UTF-8, so that a row could not point to it.",
        "Rename the file.",
    ),
    "frame_size_changed": _failed(
        "The video changes its size on the way.",
        "Re-encode it at one size, or set the window to a part of one size.",
    ),
    "image_names_not_numbered": _failed(
        "Images whose names are to count frames hold a name without a number, or numbers that do not increase.",
        "Take foreign images out of the folder, or name those that are frames as media_pattern.",
    ),
    "image_size_changed": _failed(
        "The images of the folder are of different sizes.",
        "Bring them to one size, or take the foreign ones out of the folder.",
    ),
    "image_too_large": _failed(
        "An image, or a frame of the video, has more pixels than are read, or is a strip.",
        "Reduce it (annotation works on images of 1280 pixels).",
    ),
    "mixed_images": _failed(
        "The folder holds images of several kinds, such as colour and depth, and nobody says which are the frames.",
        "Name those that are frames as media_pattern in the index (the detail lists the patterns), or move the others.",
    ),
    "no_frame_rate": _failed(
        "Images carry no time stamps, and nobody says how many there are a second, or a number that is no rate.",
        "Give the clip's source_fps in the index, or annotate.decode.source_fps.",
    ),
    "orientation_changed": _failed(
        "The video is turned another way from some frame on.",
        "Set the window to a part that is turned one way, or re-encode it upright.",
    ),
    "orientation_unsupported": _failed(
        "The file asks to be shown turned by no multiple of 90 degrees, or sheared.",
        "Re-encode it upright and without the flag.",
    ),
    "truncated_video": _failed(
        "The video file ends before its contents do.",
        "Fetch the file again.",
    ),
    "unreadable_image": _failed("An image cannot be read.", "Fetch the file again."),
    "unreadable_video": _failed(
        "The media is missing, or nothing in it can be decoded.",
        "Look at the path in the detail; fetch or convert the file.",
    ),
    "frame_gap": _judged(
        "Frames are missing over more than 1/16 s, and frames are never repeated.",
        "Set the window beside the gap, or keep every frame as it is: annotate.decode.fps=native.",
    ),
    "shot_cut": _judged(
        "The clip shows more than one shot.",
        "Cut the video at the times in the detail and list the shots as clips (start_s, end_s).",
    ),
    "source_fps_below_16": _judged(
        "The source has fewer than 16 frames a second, and frames are never repeated.",
        "Keep every frame as it is: annotate.decode.fps=native.",
    ),
    "too_short": _judged(
        "The clip has too few frames.",
        "Take a longer window, or lower annotate.decode.min_frames.",
    ),
    "anchor_unit_unknown": _failed(
        "Anchor depth is named without its unit, so it is no metric anchor.",
        "Give anchor_units_per_metre in the index.",
    ),
    "depth_all_invalid": _failed(
        "The depth maps hold no valid value.",
        "Look at the maps and at depth_invalid_value and depth_kind in the index.",
    ),
    "depth_aspect_mismatch": _failed(
        "The depth maps have another shape than the images.",
        "Crop or pad them so that they cover exactly the image.",
    ),
    "depth_does_not_fit_images": _judged(
        "The depth maps show something else than the images, or show it in another way than the index says.",
        "The detail says how they would fit: turn them, move them in time, or name what they hold (depth_kind) and how"
        " much of the image they show (depth_view).",
    ),
    "depth_frame_count_mismatch": _failed(
        "The depth maps are not one for every source frame.",
        "Number them from 0 as the source frames are, and look for missing and left-over files.",
    ),
    "depth_missing": _failed(
        "The recipe takes depth as given, but the source names none.",
        "Give depth_pattern in the index, or use the recipe estimate.",
    ),
    "depth_not_finite": _failed("A depth map holds nothing but NaN or infinity.", "Write the map anew."),
    "depth_size_changed": _failed(
        "The depth maps are of different sizes.", "Bring all maps of the clip to one size."
    ),
    "depth_unit_changes": _judged(
        "The unit of the depth changes from frame to frame, as in maps that were normalised one by one.",
        "Write the maps in one unit for the whole clip.",
    ),
    "depth_unreadable": _failed(
        "A depth file is missing or cannot be read.",
        "Look at the path in the detail and at depth_pattern in the index.",
    ),
    "given_units_disagree": _failed(
        "Poses are declared to be in metres while the unit of the depth is unknown.",
        "Give depth_units_per_metre, or leave poses_metric out to have the scale estimated.",
    ),
    "ray_distance_without_intrinsics": _failed(
        "Distances along rays become z-depth only through intrinsics, and there are none.",
        "Give intrinsics_path, or depth_kind: z if the maps hold z-depth.",
    ),
    "camera_count_mismatch": _failed(
        "The given cameras are not one for every source frame.",
        "Look whether they belong to another video or to a cut of it.",
    ),
    "cameras_not_on_frames": _failed(
        "It cannot be told to which frames the given cameras belong.",
        "Look at the names of the images, and at the window of the clip.",
    ),
    "cameras_unreadable": _failed(
        "The file of cameras cannot be read.", "Look at the file, and at cameras_format in the index."
    ),
    "given_cameras_missing": _failed(
        "The recipe takes cameras as given, but the source names none.",
        "Give camera_to_world_path or intrinsics_path in the index, or use another recipe.",
    ),
    "given_intrinsics_disagree": _judged(
        "Images and depth, or images under the given poses, ask for another lens than the given one.",
        "Look whether the intrinsics are of this lens and this image size.",
    ),
    "given_orientation_unknown": _failed(
        "The media is shown turned or mirrored, and nothing says which way up the depth or cameras beside it are.",
        "Say in the index which pixels they are for (given_pixels: shown, or stored).",
    ),
    "given_poses_degenerate": _judged(
        "All given poses lie in one point, so they have no scale.",
        "Look at the file of poses; leave it out to have the poses estimated.",
    ),
    "given_poses_disagree": _judged(
        "The images, or the depth, show another motion than the given poses.",
        "Look at their axes, direction (camera to world), order of numbers, unit, time and noise; or leave them out.",
    ),
    "given_poses_axes_swapped": _judged(
        "The given poses fit the images once their axes are exchanged.",
        "Find out in which axes the source writes them, and convert them before.",
    ),
    "given_poses_flipped": _judged(
        "The given poses fit the images once an axis is mirrored or turned round.",
        "Find out in which axes the source writes them, and convert them before.",
    ),
    "given_poses_inverted": _judged(
        "The given poses are world-to-camera, or half of each is.",
        "Invert them, or name the format that does (cameras_format).",
    ),
    "given_poses_opengl": _judged(
        "The given poses are in OpenGL axes (x right, y up, z backwards).",
        "Multiply them from the right by diag(1, -1, -1, 1), or name the format that does (cameras_format).",
    ),
    "given_poses_rotation_misread": _judged(
        "The rotations of the given poses are transposed, or their quaternions are in another order.",
        "Look whether matrices are by rows and where a quaternion has its scalar.",
    ),
    "given_poses_shifted": _judged(
        "The given poses belong to frames some way before or after theirs.",
        "Look at the first frame that a pose is for, and at dropped frames.",
    ),
    "given_poses_wrong_rate": _judged(
        "The given poses run at another rate than the frames, or backwards.",
        "Look at the rates of poses and video, and at frames that were left out.",
    ),
    "given_poses_wrong_unit": _judged(
        "The given poses are declared to be metres, and depth finds their path of another length.",
        "Look at the unit of the poses; leave poses_metric out to have it found.",
    ),
    "given_poses_sparse": _judged(
        "For too long a time of the clip there is no given pose.",
        "Set the window to where there are poses, or leave them out.",
    ),
    "given_poses_too_few": _judged(
        "Fewer than three given poses lie within the clip.",
        "Take a longer window, or leave the poses out.",
    ),
    "given_scale_disagrees": _judged(
        "Windows of the clip find different lengths for one unit of the given poses, so that they have no metres.",
        "Look whether the poses are of one reconstruction; bridge_value says what each window finds.",
    ),
    "intrinsics_aspect_varies": _judged(
        "The given fx and fy change their ratio within the clip, which no lens does.",
        "Look whether the intrinsics belong to frames of several sizes.",
    ),
    "intrinsics_count_mismatch": _failed(
        "The given intrinsics are not one for every source frame.",
        "Give one 3x3 matrix for the whole clip, or one row for every source frame.",
    ),
    "intrinsics_of_another_size": _failed(
        "The given principal point lies far off the middle of the images.",
        "Give intrinsics in pixels of the source's own size, neither normalised nor of a resized copy.",
    ),
    "intrinsics_unreadable": _failed("The file of intrinsics cannot be read.", "Look at the file."),
    "pose_count_mismatch": _failed(
        "The given poses are not one for every source frame.",
        "Look whether they belong to another video or to a cut of it.",
    ),
    "poses_unreadable": _failed("The file of poses cannot be read.", "Look at the file."),
    "keyframes_disconnected": _judged(
        "The network's windows share too few good points to be joined into one path.",
        "Take a shorter window; fast motion, blur and bare walls do this.",
    ),
    "geometry_not_finite": _judged(
        "The network's answer holds values that are no numbers.",
        "Look at the frames in the detail; a damaged checkpoint does this to every clip.",
    ),
    "no_anchor_frames": _judged(
        "No frame of the clip has metric depth to take the scale from.",
        _GIVE_METRES,
    ),
    "no_depth_on_tracks": _judged(
        "Hardly any point that can be tracked has valid depth.",
        "Look whether the depth maps are empty or belong to other frames; distant scenes are beyond a sensor's range.",
    ),
    "no_metric_scale": _judged(
        "There is nothing to tell how long a metre is.",
        _GIVE_METRES,
    ),
    "no_reconstruction": _judged(
        "No stretch of the clip gives cameras that its points agree with.",
        "Blur, bare walls, moving crowds, cuts and wrong depth do this: look at the clip and its depth, or take another"
        " window of it.",
    ),
    "scale_inconsistent": _judged(
        "The scale found on single frames differs too much along the clip.",
        "Look at scale_value; depth of several units or of other frames does this.",
    ),
    "too_few_keyframes": _judged(
        "The media ended before the last frame that the network was to see.",
        "Look whether the video holds as many frames as it promises.",
    ),
    "too_few_usable_anchor_frames": _judged(
        "Too few frames have metric depth that can be compared with the clip's own.",
        "Give anchor depth on more frames, or raise annotate.geometry.min_anchor_frames.",
    ),
    "cameras_not_finite": _judged(
        "The cameras that were found hold values that are no numbers.", "Please report the clip as a fault."
    ),
    "depth_and_path_disagree": _judged(
        "The camera's path fits the depth best when the depth is scaled.",
        "Look at the unit of the depth (depth_units_per_metre) and at depth_kind.",
    ),
    "depth_scale_wanders": _judged(
        "What a unit of the given depth is worth changes along the clip, so that no frame says what is right.",
        "Look at the depth of single frames, shorten the window, or estimate the geometry.",
    ),
    "depth_residual_large": _judged(
        "The cameras that were found contradict the given depth at most points.",
        "Look whether the depth belongs to these images, and how noisy it is.",
    ),
    "metres_implausible": _judged(
        "No camera goes so fast, or looks at anything so near or so far: what is taken for a metre is none.",
        "Look at depth_units_per_metre (1000 for millimetres, 1 for metres) and poses_metric; for an aircraft raise"
        " annotate.gates.max_speed_m_s and max_scene_depth_m.",
    ),
    "fisheye_lens": _judged(
        "The lens is a fisheye, and a row's cameras are read as pinholes.",
        "Take the clip with --set annotate.gates.allow_fisheye=true; export, encode and load it undistorted.",
    ),
    "focal_axes_differ": _judged(
        "Horizontal and vertical focal length differ more than any lens allows.",
        "Look whether the images were squeezed to another shape.",
    ),
    "focal_uncertain": _judged(
        "The focal length is told too badly: errors that all measurements of a short path share, a zoom that was "
        "taken for a constant lens, or depth that shows another field of view than the images, may be worth more of it "
        "than the gate allows.",
        "Take a longer window, or give the lens (intrinsics_path; focal: prior if it is known roughly); of depth that "
        "is not registered (metrics.depth_view_log is not 0) say how much of the image it shows (depth_view).",
    ),
    "fov_too_narrow": _judged(
        "The field of view of a frame is narrower than the gate allows.",
        "Widen annotate.gates.fov_min_deg if the lens is known to be so long.",
    ),
    "fov_too_wide": _judged(
        "The field of view of a frame is wider than the gate allows.",
        "Widen annotate.gates.fov_max_deg if the lens is known to be so wide.",
    ),
    "moving_things": _judged(
        "The cameras go over from what they agreed with to something else: one of the two moves on its own, and is "
        "large enough to be taken for the scene.",
        "Set the window beside it, or give poses; networks (recipe estimate) help where they know the scene.",
    ),
    "picture_shifts": _judged(
        "The picture shifts within its frame as it does where a stabiliser crops a moving window: turns and steps of "
        "the cameras are wrong by that, too much for so short a path.",
        "Take the recording before it was stabilised, or a longer window.",
    ),
    "no_parallax": _judged(
        "Points are hardly seen from different sides, or a camera that stays and zooms explains the images as well, so "
        "no translation can be checked.",
        "Take a window in which the camera travels.",
    ),
    "pose_jump": _judged(
        "The camera jumps from one frame to the next, or a single frame lies beside the path.",
        "Look at the frames there; take a window beside the jump.",
    ),
    "poses_not_rigid": _judged(
        "A pose is not a rotation and a translation.", "Look at the given poses, if there are any."
    ),
    "position_uncertain": _judged(
        "The place of the camera is known too badly, measured by how far the scene is or, where the lens zooms, by the "
        "path.",
        "Take a window with more texture or a longer path, or give the lens (intrinsics_path).",
    ),
    "static_camera": _judged(
        "The picture does not move: the camera stands still.", "Take a window in which the camera moves."
    ),
    "too_few_inliers": _judged(
        "Too few of the tracked points agree with the cameras.",
        "Moving crowds, water and overlays do this; take another window.",
    ),
    "too_many_infilled": _judged(
        "Too many frames have too few tracks for a camera of their own.",
        "Take a window without the blurred or bare frames.",
    ),
    "tracks_lost": _judged(
        "On too many frames nearly no track survives from the frame before, nor do other points join them to it; or "
        "hardly any point joins one part of the clip to the other.",
        "Blur, flashes, very fast motion and long dissolves do this; take another window.",
    ),
    "internal_error": _failed(
        "The software stopped with an error that is a fault of ours.",
        "Read the traceback in the column error, and please report it.",
    ),
    "out_of_memory": _failed(
        "Memory ran out.",
        "Use fewer workers (--workers), raise annotate.executor.memory_per_worker_gib, or take a shorter window.",
    ),
    "stand_in_weights": _judged(
        "The networks held random numbers, to try a machine or a recipe: their answers mean nothing.",
        "Pull the released weights (theodolite weights pull) and leave annotate.geometry.weights at released.",
    ),
    "timed_out": _failed(
        "The clip took longer than a clip may.",
        "Look whether its files can be read (a stalled mount, a video that its decoder never ends), or raise"
        " annotate.executor.clip_timeout_s.",
    ),
    "worker_died": _failed(
        "The clip ended its worker process, also with nothing else running.",
        "Memory or a crash in a decoder: convert the file, or give workers more memory.",
    ),
}
"""What each code means and what to try."""

assert set(REASONS) == set(get_args(ReasonCode)), set(REASONS) ^ set(get_args(ReasonCode))


_EARLIER_CODES: dict[str, ReasonCode] = {
    "anchors_disconnected": "keyframes_disconnected",
    "too_few_anchors": "too_few_keyframes",
}
"""What rows of earlier versions call a reason."""


def find_reason(code: str) -> Reason | None:
    """Entry of a code that a row holds, or None if the table does not have it (a row of a newer version)."""
    return REASONS.get(cast(ReasonCode, _EARLIER_CODES.get(code, code)))


def is_judgement(code: str) -> bool:
    """True if a reason judges a clip that was there and readable; a code that is not in the table does not."""
    reason = find_reason(code)
    return reason is not None and reason.kind == "judged"


def status_of(verdict: str, reasons: Iterable[str]) -> Status:
    """How a clip ended, from its row: `accepted`, `rejected` (judged), or `failed` if any reason is no judgement."""
    if verdict == "accepted":
        return "accepted"
    return "rejected" if all(is_judgement(code) for code in reasons) else "failed"


def reasons_markdown() -> str:
    """Reference of all reasons as a Markdown table."""
    rows = [(f"`{code}`", r.kind, r.meaning, r.remedy) for code, r in REASONS.items()]
    header = ("reason", "kind", "meaning", "what to try")
    return markdown_table(header, rows, cells_are_markdown=True) + "\n"
