"""How much is taken from files of others: the one list of sizes beyond which input is refused instead of read.

Sizes are judged by what a file says of itself, before anything of that size is allocated, and against how large the
file is: a few bytes that unfold into gigabytes are nobody's data.
"""

from __future__ import annotations

MIB = 2**20

MAX_NAME_LENGTH = 120
"""Characters of a clip id or a source's name. File systems end at 255 bytes, and exports, temporaries and partitions
are named by an id with something before and behind it."""
MAX_TEXT_BYTES = 256 * MIB
"""Of a text file (YAML, JSON, CSV, trajectories): the index of a million clips."""
MAX_NESTING = 64
"""Lists within lists of YAML and JSON."""
MAX_UNFOLDED_NODES = 1_000_000
"""Values of a YAML file, its aliases followed: ten thousand clips may share their lens. More only where they are
`MAX_UNFOLDING` times what is written."""
MAX_UNFOLDING = 20
FREE_BYTES = 256 * MIB
"""What a file may unfold into whatever its own size."""
MAX_EXPANSION = 100
"""... and beyond that, how many bytes each of its own may become: floats that hardly change compress to a tenth."""
REPEATING_EXPANSION, REPEATING_BYTES = 700, 1024 * MIB
"""... or how many within a gigabyte: rows that repeat each other fold into nearly nothing, and are honest. What a file
of a megabyte becomes stays below a gigabyte."""
MAX_ZIP_EXPANSION = 1100
"""... all members of a zip together, of which one at a time is in memory: its packing ends at 1032."""
MAX_PIXELS = 2**26
"""Of an image, a video's frame or a depth map (8192 x 8192): 200 MB as RGB, of which stages keep several."""
MAX_ASPECT = 50
"""Of the sides: stages make small pictures of one width, which of a strip of 4x20000 pixels would take a gigabyte."""
MAX_SIDE_PX = 100_000
MAX_PATTERN_WIDTH = 20
"""Digits of a number in a file's name, as patterns pad them."""
MAX_SHOWN = 200
"""Characters of what others wrote that a message repeats."""


def unfolds_too_far(unfolded: int, stored: int) -> str:
    """What is wrong with a file of `stored` bytes that says that it holds `unfolded` ones; empty if nothing is."""
    allowed = may_unfold_into(stored)
    if unfolded <= allowed:
        return ""
    return (
        f"{stored} bytes would become {unfolded / MIB:.0f} MiB in memory, more than {allowed / MIB:.0f} MiB, which are"
        " taken of a file of this size; such a file is refused (if you made it: write it as several, or uncompressed)"
    )


def may_unfold_into(stored: int) -> int:
    """Bytes that a file of `stored` ones may become."""
    return max(FREE_BYTES, MAX_EXPANSION * stored, min(REPEATING_EXPANSION * stored, REPEATING_BYTES))


def too_many_pixels(height: int, width: int) -> str:
    """What is wrong with the size of a picture or map; empty if nothing is."""
    if 0 < MAX_ASPECT * min(height, width) < max(height, width):
        return f"is {width}x{height}, one side at most {MAX_ASPECT} times the other is read; cut it"
    if 0 < height <= MAX_SIDE_PX and 0 < width <= MAX_SIDE_PX and height * width <= MAX_PIXELS:
        return ""
    return f"is {width}x{height}, at most {MAX_PIXELS / 1e6:.0f} million pixels are read; reduce it"
