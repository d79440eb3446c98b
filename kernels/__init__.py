"""Frame-wise Gated DeltaNet and its companions; every fast path has a plain torch twin."""

from .attention import frame_attention, visible_frames
from .block_ops.op import (
    add_modulated_norm,
    gated_add,
    gated_shift_add,
    glu_conv,
    modulated_norm,
    norm_rotate,
)
from .frame_gdn.arguments import ScanOptions, Tokens
from .frame_gdn.op import frame_gdn, key_scale
from .frame_gdn.reference import (
    Composite,
    Result,
    State,
    compose,
    exclusive_prefix,
    frame_gdn_reference,
    rope_tables,
    world_to_ray,
)
from .frame_gdn.shards import Shard, frame_gdn_context_parallel, frame_gdn_shards
from .head_rotation.op import rotate_heads
from .output_gate.op import output_gate
from .output_gate.reference import output_gate_reference
from .short_conv.op import short_conv
from .short_conv.reference import short_conv_reference

__all__ = [
    "Composite",
    "Result",
    "ScanOptions",
    "Shard",
    "State",
    "Tokens",
    "add_modulated_norm",
    "compose",
    "exclusive_prefix",
    "frame_attention",
    "frame_gdn",
    "frame_gdn_context_parallel",
    "frame_gdn_reference",
    "frame_gdn_shards",
    "gated_add",
    "gated_shift_add",
    "glu_conv",
    "key_scale",
    "modulated_norm",
    "norm_rotate",
    "output_gate",
    "output_gate_reference",
    "rope_tables",
    "rotate_heads",
    "short_conv",
    "short_conv_reference",
    "visible_frames",
    "world_to_ray",
]
