"""Runs of keyframes without depth: how the first cameras get across them.

Frame after frame, points come from the rays of the frames before, and their scale shrinks or grows with every step;
after a second of little parallax nothing is left of it. So the frames beyond the run are placed by themselves, by
their own depth; both sides are carried into the run until they meet, and joined there by the points that both know.
The bundle of the run, whose ends hold its scale, spreads what is left over its frames.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.cameras.transforms import se3_inverse
from .bundle.priors import focal_prior
from .bundle.problem import Problem, State, state_at_origin
from .bundle.solve import Effort, solve_bundle
from .records import MIN_INLIERS
from .resection import absolute_pose
from .triangulation import keep_known, triangulate_known

if TYPE_CHECKING:
    from .incremental import Placement

log = logging.getLogger(__name__)

_LEAST_GAP = 3
"""Keyframes in a row without depth from which on a run is crossed in this way; tracks reach across fewer."""
_SURE = 40
"""Points that agree with a camera beyond a run before it is taken to be joined by them."""
_ENOUGH = 20
"""The same within a run, and of points by which two sides are joined."""
_LEAST_PIECE = 4  # frames beyond a run that are worth placing by themselves
_MEET = 3  # frames that both sides place
_MOST_MISSES = 3  # frames in a row that cannot be placed, after which a side goes no further
_HOLDING = 4  # frames with depth that hold one end of a bundle


def find_gaps(num_depths: IntArray) -> list[range]:
    """Runs of frames of which `num_depths` (F,) says that they have next to no depth."""
    bare = np.r_[False, num_depths < MIN_INLIERS, False]
    edges = np.flatnonzero(bare[1:] != bare[:-1]).reshape(-1, 2)
    return [range(int(a), int(b)) for a, b in edges if b - a >= _LEAST_GAP]


def cross_gap(near: Placement, last: int, gap: range, gaps: list[range]) -> tuple[int, int]:
    """Go on from frame `last` across a run of frames without depth, and through the frames with depth beyond it.

    Args:
        near: what is placed so far.
        gap: the run, in the direction of the walk.
        gaps: all runs.
    Returns:
        The last frame that was placed, and the one to go on with.
    """
    beyond = _beyond(gap, gaps, near.problem.num_frames)
    after = (beyond or gap)[-1] + gap.step
    for i in beyond[:3]:
        if near.place(i, last, at_least=_SURE):
            reached = _walk(near, i, beyond)
            _carry(_Side(near, last, gap), _Side(near, i, gap[::-1]))
            return reached, after
    far = _piece(near, last, beyond)
    if far is None:
        side = _Side(near, last, gap)
        _carry(side)
        return side.last, gap[-1] + gap.step
    sides = _Side(near, last, gap), _Side(far, next(i for i in beyond if far.placed[i]), gap[::-1])
    _carry(*sides)
    joined = _join(near, far)
    log.debug(
        "run of frames %s: carried to %d and %d, %d points join", gap, sides[0].last, sides[1].last, joined
    )
    if joined < _ENOUGH:
        return sides[0].last, (beyond or gap)[0]
    between = [i for i in gap if near.placed[i]]
    window = np.array([*_holding(near, gap[::-1])[::-1], *between, *_holding(near, gap)])
    # What lies beyond goes along with the frames that hold the far end.
    _settle(near, window, iterations=20, carried=beyond)
    return next(i for i in reversed(beyond) if near.placed[i]), after


def _beyond(gap: range, gaps: list[range], num_frames: int) -> range:
    """The frames from a run to the next one, or to the end of the clip, in its direction."""
    first = gap[-1] + gap.step
    if gap.step > 0:
        return range(first, min([g[0] for g in gaps if g[0] >= first], default=num_frames))
    return range(first, max([g[-1] for g in gaps if g[-1] <= first], default=-1), -1)


def _walk(placement: Placement, last: int, frames: range) -> int:
    """Place frames one after the other; the last one that was."""
    for i in frames:
        if placement.placed[i] or placement.place(i, last):
            last = i
    return last


def _piece(near: Placement, last: int, beyond: range) -> Placement | None:
    """The frames beyond a run, placed by their own depth; None where hardly any can be."""
    solid = [i for i in beyond if near.num_depths[i] >= MIN_INLIERS]
    if len(solid) < _LEAST_PIECE:
        return None
    far = near.fresh(float(np.log(near.focal[last])))
    start = solid[min(len(solid) // 2, 5)]
    far.add(start)
    begin = beyond.index(start)
    _walk(far, start, beyond[begin + 1 :])
    _walk(far, start, beyond[:begin][::-1])
    return far if far.placed.sum() >= _LEAST_PIECE else None


def _holding(placement: Placement, gap: range) -> list[int]:
    """The frames with depth after the last frame of a run."""
    past = range(gap[-1] + gap.step, placement.problem.num_frames if gap.step > 0 else -1, gap.step)
    return [i for i in past if placement.placed[i] and placement.num_depths[i] >= MIN_INLIERS][:_HOLDING]


@dataclass
class _Side:
    """One side of a run on its way into it.

    Attributes:
        placement: what this side knows.
        last: the last frame that it placed.
        gap: the frames that it can go to.
        done, missed: frames of those that were tried, and how many of the latest in vain.
        unsettled: frames placed since the last bundle.
    """

    placement: Placement
    last: int
    gap: range
    done: int = 0
    missed: int = 0
    unsettled: int = 0

    @property
    def goes_on(self) -> bool:
        return self.done < len(self.gap) and self.missed < _MOST_MISSES

    def step(self) -> None:
        """Try the next frame."""
        i = self.gap[self.done]
        if self.placement.placed[i]:
            self.done = len(self.gap)  # here it meets the other side, which is of the same world
            return
        self.done += 1
        if not self.placement.place(i, self.last, at_least=_ENOUGH):
            self.missed += 1
            return
        self.last, self.missed, self.unsettled = i, 0, self.unsettled + 1
        behind = [f for f in self.gap[: self.done] if self.placement.placed[f]]
        # Ever more rarely, so that a long run costs no more than a few times its last bundle.
        if self.unsettled >= max(3, len(behind) // 4):
            window = np.array([*_holding(self.placement, self.gap[::-1])[::-1], *behind])
            _settle(self.placement, window, iterations=8)
            self.unsettled = 0


def _carry(*sides: _Side) -> None:
    """Carry sides into a run until they meet or none goes on."""
    for side in sides:
        side.placement.by_rays = True
    apart = len({id(side.placement) for side in sides}) > 1
    while going := [side for side in sides if side.goes_on]:
        if apart:
            both = [side.placement.placed[side.gap.start :: side.gap.step][: len(side.gap)] for side in sides]
            if (both[0] & both[1][::-1]).sum() >= _MEET:
                break
        min(going, key=lambda side: side.done).step()
    for side in sides:
        side.placement.by_rays = False


def _world_to_camera(placement: Placement, frames: IntArray) -> FloatArray:
    out = np.tile(np.eye(4), (len(frames), 1, 1))
    out[:, :3, :3], out[:, :3, 3] = placement.rotation[frames], placement.translation[frames]
    return out


def _move(placement: Placement, frames: NDArray, move: FloatArray) -> None:
    """Bring cameras to a world in which points are `move` (4, 4) times what they are now."""
    found = _world_to_camera(placement, frames) @ se3_inverse(move[None])
    placement.rotation[frames], placement.translation[frames] = found[:, :3, :3], found[:, :3, 3]


def _seen_from(points_of: Placement, camera_of: Placement, i: int) -> tuple[FloatArray, FloatArray, IntArray]:
    """Points (n, 3) that one side knows, where frame `i` of the other sees them (n, 2), and their numbers (n,)."""
    seen = camera_of.by_frame[i]
    seen = seen[points_of.known()[points_of.point[seen]]]
    number = points_of.point[seen]
    return points_of.total[number] / points_of.count[number][:, None], points_of.uv[seen], number


def _join(near: Placement, far: Placement) -> int:
    """Bring what was placed beyond a run to what was placed before it; the number of points that say how (nothing
    is changed where they are too few).

    Every frame that both placed says how the two worlds lie, and every frame of one that sees enough points of the
    other; the way that most points agree with is taken.
    """
    only_near, only_far = np.flatnonzero(near.placed & ~far.placed), np.flatnonzero(far.placed & ~near.placed)
    both = np.flatnonzero(near.placed & far.placed)
    ways = list(se3_inverse(_world_to_camera(near, both)) @ _world_to_camera(far, both))
    for frames, camera_of, points_of in ((only_far, far, near), (only_near, near, far)):
        for i in frames:
            xyz, uv, _ = _seen_from(points_of, camera_of, int(i))
            pose = absolute_pose(xyz, uv, float(camera_of.focal[i]), near.centre, 2 * near.threshold)
            if pose is None or len(pose[2]) < MIN_INLIERS:
                continue
            there = np.eye(4)
            there[:3, :3], there[:3, 3] = pose[0], pose[1]
            way = np.linalg.inv(there) @ _world_to_camera(camera_of, np.array([i]))[0]
            ways.append(way if camera_of is far else np.linalg.inv(way))
    seen = [
        (
            camera_of is far,
            _world_to_camera(camera_of, np.array([i]))[0],
            camera_of.focal[i],
            *_seen_from(points_of, camera_of, int(i)),
        )
        for frames, camera_of, points_of in (
            (np.flatnonzero(far.placed), far, near),
            (np.flatnonzero(near.placed), near, far),
        )
        for i in frames
    ]
    best, joined = None, 0
    for way in ways:
        inliers = [_inliers(view, way, near) for view in seen]
        count = len(np.unique(np.concatenate(inliers))) if inliers else 0
        if count > joined:
            best, joined = way, count
    if best is None or joined < _ENOUGH:
        return joined
    _merge(near, far, best, both)
    return joined


def _inliers(view: tuple, way: FloatArray, near: Placement) -> IntArray:
    """Numbers of the points of one side that a frame of the other sees where it should."""
    of_far, camera, focal, xyz, uv, number = view
    pose = camera @ (np.linalg.inv(way) if of_far else way)
    local = xyz @ pose[:3, :3].T + pose[:3, 3]
    ahead = np.maximum(local[:, 2], 1e-6)
    error = np.linalg.norm(local[:, :2] / ahead[:, None] * focal + near.centre - uv, axis=1)
    return number[(local[:, 2] > 0) & (error < 3 * near.threshold)]


def _merge(near: Placement, far: Placement, way: FloatArray, both: IntArray) -> None:
    """Take over the frames of the far side, moved by `way`; of those that both placed, the half next to it."""
    placed = np.flatnonzero(far.placed)
    _move(far, placed, way)
    from_far = far.placed & ~near.placed
    if len(both):
        ahead = placed.mean() > np.flatnonzero(near.placed).mean()
        from_far[both[both > np.median(both)] if ahead else both[both < np.median(both)]] = True
    near.rotation[from_far], near.translation[from_far] = far.rotation[from_far], far.translation[from_far]
    near.focal[from_far], near.gain[from_far] = far.focal[from_far], far.gain[from_far]
    near.placed |= far.placed
    near.hits += far.hits
    near.misses += far.misses
    near.back_project_again()


def _settle(placement: Placement, window: IntArray, *, iterations: int, carried: range = range(0)) -> None:
    """Bundle of some frames, the first of which stays where it is.

    Args:
        window: the frames, in the order in which they were placed.
        carried: frames that are moved as the last one is.
    """
    numbers = np.sort(window)
    problem, state, points = _window(placement, numbers)
    if len(problem.frame) < 2 * MIN_INLIERS or len(numbers) < 3:
        return
    config = placement.config.with_held_lens()
    given = torch.as_tensor(placement.log_focal[numbers]) if placement.known_lens else None
    prior = focal_prior("smooth" if given is None else "given", len(numbers), config, given=given)
    effort = Effort(max_iterations=iterations, tolerance=1e-3)
    try:
        found = solve_bundle(problem, state, prior, config, effort=effort).state
    except FloatingPointError as error:
        log.debug("no bundle of a run of frames: %s", error)
        return
    before = _world_to_camera(placement, window)
    placement.rotation[numbers] = found.rotation.numpy()
    placement.translation[numbers] = found.translation.numpy()
    placement.focal[numbers] = found.log_focal.exp().numpy()
    # The solver holds the frame that comes first in the clip.
    back = se3_inverse(before[:1])[0] @ _world_to_camera(placement, window[:1])[0]
    _move(placement, numbers, back)
    along = se3_inverse(_world_to_camera(placement, window[-1:]))[0] @ before[-1]
    _move(placement, np.array([i for i in carried if placement.placed[i] and i not in window], int), along)
    placement.back_project_again()
    placement.put(points, found.points.numpy() @ back[:3, :3].T + back[:3, 3])


def _window(placement: Placement, numbers: IntArray) -> tuple[Problem, State, IntArray]:
    """Problem and state of some frames alone, and the numbers of their points in the placement."""
    whole, inside = placement.problem, np.zeros(placement.problem.num_frames, bool)
    inside[numbers] = True
    places = np.where(placement.known()[:, None], placement.places(), np.nan)
    state = replace(
        state_at_origin(whole, torch.as_tensor(np.log(placement.focal))),
        rotation=torch.as_tensor(placement.rotation),
        translation=torch.as_tensor(placement.translation),
        points=torch.as_tensor(places),
    )
    wanted = torch.as_tensor(placement.count == 0)
    found = triangulate_known(whole, state, inside, wanted)
    state = replace(state, points=torch.where(wanted[:, None], found, state.points))
    # Numbers of points, to be told after the unused ones are left out.
    numbered = replace(
        state, points=torch.cat([state.points, torch.arange(whole.num_points)[:, None].double()], 1)
    )
    used, used_state = keep_known(whole, numbered, inside)
    of_frame = torch.zeros(whole.num_frames, dtype=torch.long)
    of_frame[torch.as_tensor(numbers)] = torch.arange(len(numbers))
    frame = of_frame[used.frame]
    gain = torch.as_tensor(placement.gain)[used.frame]
    used = replace(used, frame=frame, log_depth=used.log_depth - gain, num_frames=len(numbers))
    of_state = replace(
        used_state,
        rotation=state.rotation[numbers],
        translation=state.translation[numbers],
        log_focal=state.log_focal[numbers],
        points=used_state.points[:, :3].contiguous(),
    )
    return used, of_state, used_state.points[:, 3].long().numpy()
