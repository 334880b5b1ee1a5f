"""Cross-scale gating: every scale may listen to the next coarser one before they are fused."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.upsampling import stack_at_tokens, to_tokens

__all__ = ["CrossScaleGating"]


class CrossScaleGating(nn.Module):
    r"""`G_l = z ∘ C_l + (1 − z) ∘ U(C_{l+1})` with `z = sigmoid(W [C_l; U(C_{l+1})] + b)`.

    `U` repeats each cell for the cells of the scale below that read it, as a token reads a cell (`models.upsampling`).
    Where they read none, `G_l = C_l`. `W` acts on the coarser cells before they are repeated, which is the same and
    costs less.

    Source: equation 12 of the MAHA paper; what happens in causal models is our own derivation.

    Args:
        d_model: number of channels d.
        compression_ratio: r, how many cells of a scale make one of the next.
        causal: whether a cell reads the last complete one of the next scale, rather than the one it belongs to.
    """

    def __init__(self, d_model: int, compression_ratio: int = 2, *, causal: bool = False) -> None:
        super().__init__()
        self.d_model = d_model
        self.compression_ratio = compression_ratio
        self.causal = causal
        self.gate_proj = nn.Linear(2 * d_model, d_model)

    def forward(self, current_scale: Tensor, next_scale: Tensor) -> Tensor:
        """Gates the cells of one scale.

        Args:
            current_scale: (batch, m, d_model), cells of scale l.
            next_scale: (batch, m', d_model), those of scale l + 1; m' = ceil(m/r), or floor(m/r) where causal.

        Returns:
            As `current_scale`.

        Raises:
            ValueError: a shape does not fit; the message names it.
        """
        m, r = current_scale.shape[1], self.compression_ratio
        expected = (current_scale.shape[0], m // r if self.causal else -(-m // r), self.d_model)
        if current_scale.shape[2] != self.d_model:
            needed = (*current_scale.shape[:2], self.d_model)
            raise ValueError(f"current_scale must have shape {needed}, but got {tuple(current_scale.shape)}.")
        if next_scale.shape != expected:
            raise ValueError(f"next_scale must have shape {expected}, but got {tuple(next_scale.shape)}.")
        coarser = to_tokens(next_scale, r, m, causal=self.causal)
        # Where there is no coarser cell the gate is to be 1.
        share = stack_at_tokens([self._share(next_scale)], [r], m, causal=self.causal, missing=math.inf)[:, :, 0]
        return self._blend(current_scale, coarser, share)

    def across(self, scales: Tensor, available: Tensor | None) -> Tensor:
        """Gates all scales of some tokens at once.

        Args:
            scales: (..., L, d_model), what each scale says at a token.
            available: (..., L) bool, True where the scale exists for the token; None: all do.

        Returns:
            As `scales`; the coarsest is left as it is.
        """
        current, coarser = scales[..., :-1, :], scales[..., 1:, :]
        gated = self._blend(current, coarser, self._share(coarser))
        if available is not None:
            gated = torch.where(available[..., 1:, None], gated, current)
        return torch.cat([gated, scales[..., -1:, :]], dim=-2)

    def _share(self, coarser: Tensor) -> Tensor:
        """What the coarser scale adds to the logits of the gate."""
        return linear(coarser, self.gate_proj.weight[:, self.d_model :])

    def _blend(self, current: Tensor, coarser: Tensor, share: Tensor) -> Tensor:
        own = linear(current, self.gate_proj.weight[:, : self.d_model], self.gate_proj.bias)
        z = torch.sigmoid(own + share)
        return torch.lerp(coarser.to(z.dtype), current.to(z.dtype), z).to(current.dtype)
