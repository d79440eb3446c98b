"""What every worker needs, imported once by the process that workers are forked from (see `cluster.py`)."""

from __future__ import annotations

import gc

import distributed.nanny

from .. import pipeline
from . import worker
from .steady_clock import use_steady_clock

__all__ = ["distributed", "pipeline", "worker"]

use_steady_clock()
# A worker that looks for garbage would write into every page of what it shares with the others, and so copy it.
gc.collect()
gc.freeze()
