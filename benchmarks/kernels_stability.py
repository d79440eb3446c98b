"""The three scalings of the keys at full frame size, and the step at which a state blows up.

    python benchmarks/kernels_stability.py --out stability.csv --figure stability.svg [--device cuda]

The frame-wise delta rule steps by M_t = g_t (I - K diag(beta) K^T). With the scale (D S)^-1/2 ("dim_spatial")
the eigenvalues of K diag(beta) K^T stay in [0, 1] where a head has its even share of the norm that runs over
all heads, and within the 2 that |M| <= g allows up to twice that share; with D^-1/2 ("dim") or none they do
not, and the state grows by up to |1 - eigenvalue| a frame. Prints a table and draws the norm of the state as
text; --out writes every frame's numbers, --figure draws them (needs matplotlib). Keys: random; adversarial,
every token of a frame in one direction; and those with the share of 2 and of 20 heads, the most that the
model's norm lets one of its 20 heads take.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import torch
from theodolite.kernels.frame_gdn.reference import frame_products, prepare

SCALINGS = ("dim_spatial", "dim", "none")


def scale_of(scaling: str, head_size: int, tokens: int) -> float:
    return {"dim_spatial": (head_size * tokens) ** -0.5, "dim": head_size**-0.5, "none": 1.0}[scaling]


SHARES = {"random": 1.0, "adversarial": 1.0, "adversarial x2": 2.0, "adversarial x20": 20.0}
"""Mean squared key of the head, as a multiple of the head size."""


def roll(scaling: str, keys: str, frames: int, tokens: int, size: int, device: str) -> list[dict[str, float]]:
    """Norms of transition and state after each frame, one head, float64, as initialised (beta 0.993, decay 0.9933)."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    state = torch.zeros(size, size, dtype=torch.float64, device=device)
    weight = torch.full((size,), SHARES[keys] ** 0.5, dtype=torch.float64, device=device)
    for t in range(frames):
        k = torch.randn(1, 1, tokens, 1, size, generator=generator, dtype=torch.float64)
        if keys != "random":  # every token the same direction, so that the eigenvalues add up in one
            k = torch.zeros_like(k)
            k[..., t % 2] = 1.0
        v = torch.randn(1, 1, tokens, 1, size, generator=generator, dtype=torch.float64).to(device)
        beta = torch.full((1, 1, tokens, 1), 0.993, dtype=torch.float64, device=device)
        ready = prepare(
            None, k.to(device), v, beta, q_weight=None, k_weight=weight, rope=None, rays=None,
            key_scale=scale_of(scaling, size, tokens), norm_eps=1e-5,
        )  # fmt: skip
        p, u = (x[0, 0, 0] for x in frame_products(ready.key, ready.value, ready.beta))
        step = 0.9933 * (torch.eye(size, dtype=torch.float64, device=device) - p)
        state = state @ step + u
        rows.append(
            {
                "frame": t,
                "transition_norm": float(torch.linalg.matrix_norm(step, ord=2)),
                "state_norm": float(state.norm()),
            }
        )
        if not math.isfinite(rows[-1]["state_norm"]):
            break
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """State norm over frames, one panel for each kind of keys."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(SHARES), 3.2), layout="constrained")
    for axes, keys in zip(figure.subplots(1, len(SHARES), sharey=True), SHARES, strict=True):
        for scaling in SCALINGS:
            mine = [r for r in rows if r["keys"] == keys and r["scaling"] == scaling]
            axes.plot([r["frame"] for r in mine], [r["state_norm"] for r in mine], label=scaling)
        axes.axhline(3.4e38, color="grey", linestyle=":", label="float32 ends")
        axes.set(title=keys, xlabel="latent frame", yscale="log", ylim=(1, 1e60))
    figure.axes[0].set_ylabel("norm of the state")
    figure.axes[0].legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV of every frame")
    parser.add_argument("--figure", type=Path, help="drawing, by the ending of its name")
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--tokens", type=int, default=880)
    parser.add_argument("--head-size", type=int, default=112)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    everything = []
    for keys in SHARES:
        for scaling in SCALINGS:
            rows = roll(scaling, keys, args.frames, args.tokens, args.head_size, args.device)
            everything += [{"keys": keys, "scaling": scaling, **row} for row in rows]
            worst = max(row["transition_norm"] for row in rows)
            first = rows[0]["state_norm"]

            def passes(limit: float, rows: list[dict[str, float]] = rows) -> str:
                return next((str(int(r["frame"])) for r in rows if not r["state_norm"] <= limit), "never")

            print(
                f"{keys:15} {scaling:11} worst |M| {worst:10.4g} (decay 0.9933); state norm {first:9.3g} -> "
                f"{rows[-1]['state_norm']:9.3g} at frame {len(rows) - 1}; past 1e6 x the first at frame "
                f"{passes(1e6 * first)}, past float32 at {passes(3.4e38)}, past float64 at {passes(1.7e308)}"
            )
            levels = [
                math.log10(max(r["state_norm"], 1e-3)) if math.isfinite(r["state_norm"]) else 308
                for r in rows
            ]
            picks = levels[:: max(1, len(levels) // 60)]
            top = max(max(picks), 1.0)
            print(
                "   log10 |S| "
                + "".join(" .:-=+*#%@"[min(9, max(0, int(9 * x / top)))] for x in picks)
                + f" (@ = 1e{top:.0f})"
            )
    if args.figure:
        draw(everything, args.figure)
    if args.out:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(everything[0]))
            writer.writeheader()
            writer.writerows(everything)


if __name__ == "__main__":
    main()
