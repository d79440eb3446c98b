"""First weights of a world model that nobody has trained."""

from __future__ import annotations

import torch
from torch import nn

from .attention import DeltaNetAttention, RMSNorm
from .blocks import Block
from .network import WorldModel


@torch.no_grad()
def initialise(model: WorldModel, generator: torch.Generator | None = None) -> None:
    """Initial values from which SANA-WM is trained: gates and convolutions that pass, camera branches that are silent.

    Source: NVlabs/Sana; all linear maps Xavier uniform with zero bias, then the exceptions below.
    """

    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    nn.init.xavier_uniform_(model.x_embedder.proj.weight.flatten(1), generator=generator)
    for part in (model.t_embedder.mlp, model.t_block, model.y_embedder.y_proj):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
    nn.init.normal_(model.y_embedder.y_embedding, std=model.config.text_width**-0.5, generator=generator)
    for embedder in (model.plucker_embedder, model.raymap_embedder):
        nn.init.zeros_(embedder.proj.weight)
        if embedder.proj.bias is not None:
            nn.init.zeros_(embedder.proj.bias)
    std = model.config.width**-0.5
    nn.init.normal_(model.final_layer.scale_shift_table, std=std, generator=generator)
    for block in model.blocks:
        assert isinstance(block, Block)
        nn.init.normal_(block.scale_shift_table, std=std, generator=generator)
        nn.init.zeros_(block.mlp.t_conv.weight)
        attn = block.attn
        nn.init.zeros_(attn.out_proj_cam.weight)
        nn.init.zeros_(attn.beta_proj.weight)
        nn.init.constant_(attn.beta_proj.bias, 5.0)
        nn.init.zeros_(attn.gate_proj.weight)
        nn.init.zeros_(attn.A_log)
        nn.init.constant_(attn.dt_bias, -5.0)
        nn.init.zeros_(attn.output_gate.weight)
        nn.init.constant_(attn.output_gate.bias, _SILU_IS_ONE)
        if isinstance(attn, DeltaNetAttention):
            for conv in (attn.conv_k, attn.conv_k_cam):
                nn.init.zeros_(conv.weight)
                conv.weight[:, 0, -1] = 1.0


_SILU_IS_ONE = 1.278464542761074
"""SiLU of it is 1."""


@torch.no_grad()
def start_camera_from_main(model: WorldModel) -> None:
    """Copy queries, keys, values, norms and convolutions of the main branch into the camera branch of every block.

    Where a stage of training adds cameras to weights that were trained without them (`init_cam_from_base`).
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        attn = block.attn
        for target, source in zip(
            (attn.q_proj_cam, attn.k_proj_cam, attn.v_proj_cam), attn.qkv.weight.chunk(3), strict=True
        ):
            target.weight.copy_(source)
            nn.init.zeros_(target.bias)
        attn.q_norm_cam.weight.copy_(attn.q_norm.weight)
        attn.k_norm_cam.weight.copy_(attn.k_norm.weight)
        if isinstance(attn, DeltaNetAttention):
            attn.conv_k_cam.weight.copy_(attn.conv_k.weight)
