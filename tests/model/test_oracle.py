"""Equal to diffusers' implementation of the released model (its camera cap and logit scale switched on)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from .cases import TINY, filled, relative, tiny_inputs, tiny_model

RECORDED = Path(__file__).with_name("diffusers_0.42.1.npz")
"""What diffusers 0.42.1 gave in float32; `test_against_diffusers_itself` compares where it is installed."""

AS_DIFFUSERS = TINY.model_copy(update={"camera_rms_cap": "all", "camera_softmax_scale": 128**-0.5})


def ours(gradients: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = tiny_model(AS_DIFFUSERS)
    inputs = tiny_inputs()
    out = model(**inputs)
    if gradients:
        out.square().mean().backward()
    return out.detach(), {k: v.grad for k, v in model.named_parameters() if v.grad is not None}


def diffusers_model():
    module = pytest.importorskip("diffusers.models.transformers.transformer_sana_wm")
    model = module.SanaWMTransformer3DModel(
        in_channels=TINY.latent_channels,
        num_layers=TINY.depth,
        hidden_size=TINY.width,
        num_attention_heads=TINY.heads,
        linear_head_dim=TINY.head_size,
        caption_channels=TINY.text_width,
        chunk_plucker_post_attn_blocks=TINY.depth,
    ).eval()
    own = {k: tuple(v.shape) for k, v in tiny_model().state_dict().items()}
    weights = filled(own)

    def name(theirs: str) -> str:
        return theirs.replace("linear_1", "mlp.0").replace("linear_2", "mlp.2")

    model.load_state_dict({k: weights[name(k)] for k in model.state_dict()})
    return model, name


def run_diffusers(model) -> torch.Tensor:
    inputs = tiny_inputs()
    cameras = inputs["cameras"]
    return model(
        inputs["latents"],
        encoder_hidden_states=inputs["text"][:, None],
        timestep=inputs["times"][:, None],
        encoder_attention_mask=inputs["text_mask"],
        camera_conditions=torch.cat([cameras.camera_to_world.flatten(2), cameras.intrinsics], dim=-1),
        chunk_plucker=cameras.plucker,
        return_dict=False,
    )[0]


def test_equals_what_diffusers_gave() -> None:
    out, gradients = ours(gradients=True)
    with np.load(RECORDED) as recorded:
        assert relative(out, torch.from_numpy(recorded["out"])) < 1e-5
        norms = dict(zip(recorded["names"].tolist(), recorded["gradient_norms"].tolist(), strict=True))
    assert set(norms) == set(gradients)
    for name, gradient in gradients.items():
        # Keys and queries are rounded to bfloat16 for softmax attention, which gradients feel.
        assert float(gradient.norm()) == pytest.approx(norms[name], rel=1e-3, abs=1e-6), name


@pytest.mark.slow
def test_against_diffusers_itself() -> None:
    model, name = diffusers_model()
    theirs = run_diffusers(model)
    theirs.square().mean().backward()
    out, gradients = ours(gradients=True)
    assert relative(out, theirs) < 1e-5
    for theirs_name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name(theirs_name) not in gradients
        else:
            assert relative(gradients[name(theirs_name)], parameter.grad) < 1e-3, theirs_name
