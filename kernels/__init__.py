"""Frame-wise Gated DeltaNet and its companions; every fast path has a plain torch twin."""

from .frame_gdn.op import frame_gdn, key_scale
from .frame_gdn.reference import (
    Composite,
    Result,
    Rope,
    State,
    compose,
    exclusive_prefix,
    frame_gdn_reference,
    rope_tables,
    world_to_ray,
)

__all__ = [
    "Composite",
    "Result",
    "Rope",
    "State",
    "compose",
    "exclusive_prefix",
    "frame_gdn",
    "frame_gdn_reference",
    "key_scale",
    "rope_tables",
    "world_to_ray",
]
