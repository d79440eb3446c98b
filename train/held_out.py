"""Held-out windows as all ranks see them: one that a rank cannot read is handled alike on all.

A rank that ended alone, or went on with fewer, would leave the others waiting for it in the next collective call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .feed import BadClip
from .objective import Batch

if TYPE_CHECKING:
    from .training import Training


class LeftOut(Exception):
    """Windows were left out on all ranks: what was being measured begins again, without them."""


def read_together(training: Training, indices: Sequence[int]) -> list[Batch]:
    """This rank's held-out windows, which lie readable before any rank goes on; a collective call.

    Raises:
        BadClip: a window of any rank cannot be read, and the recipe does not skip such windows, or none is left.
        LeftOut: one cannot, and was left out on all ranks.
    """
    batches, faults = [], dict[str, str]()
    for index in indices:
        try:
            batches.append(training.held_out_batch(index))
        except (ValueError, OSError) as error:
            faults[training.data.windows[index].id] = str(error)
    told = training.ranks.told(json.dumps(faults) if faults else None, training.device)
    if not told:
        return batches
    found = {name: why for text in told for name, why in json.loads(text).items()}
    if training.recipe.data.on_bad_clip == "stop":
        raise BadClip(
            f"a held-out window cannot be read: {'; '.join(found.values())} (data.on_bad_clip: skip leaves it out)"
        )
    leave_out(training, found)
    raise LeftOut


def leave_out(training: Training, faults: Mapping[str, str]) -> None:
    """Go on without windows, counted with the others that could not be read; the same on all ranks.

    Raises:
        BadClip: none is left.
    """
    training.feed_faults |= faults
    good = [i for i in training.held_out if training.data.windows[i].id not in training.feed_faults]
    if training.held_out and not good:
        raise BadClip(f"none of the {len(training.held_out)} held-out windows can be read: see data.held_out")
    training.held_out = good
