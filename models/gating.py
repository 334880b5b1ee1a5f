"""Cross-scale gating: every scale may listen to the next coarser one before they are fused."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.upsampling import to_tokens

__all__ = ["CrossScaleGating"]


class CrossScaleGating(nn.Module):
    r"""`G_l = z ∘ C_l + (1 − z) ∘ U(C_{l+1})` with `z = sigmoid(W [C_l; U(C_{l+1})] + b)`.

    `U` repeats each cell for the cells of the scale below that read it, as a token reads a cell (`models.upsampling`).
    Where they read none, `G_l = C_l`.

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
        # The first r − 1 cells of a causal scale come before the end of any coarser one.
        first = min(r - 1, m) if self.causal else 0
        coarser = to_tokens(next_scale, r, m, causal=self.causal)
        gated = self._blend(current_scale[:, first:], coarser[:, first:])
        return torch.cat([current_scale[:, :first], gated], dim=1) if first else gated

    def across(self, scales: Tensor, available: Tensor | None) -> Tensor:
        """Gates all scales of some tokens at once.

        Args:
            scales: (..., L, d_model), what each scale says at a token.
            available: (..., L) bool, True where the scale exists for the token; None: all do.

        Returns:
            As `scales`; the coarsest is left as it is.
        """
        current, coarser = scales[..., :-1, :], scales[..., 1:, :]
        gated = self._blend(current, coarser)
        if available is not None:
            gated = torch.where(available[..., 1:, None], gated, current)
        return torch.cat([gated, scales[..., -1:, :]], dim=-2)

    def _blend(self, current: Tensor, coarser: Tensor) -> Tensor:
        z = torch.sigmoid(self.gate_proj(torch.cat([current, coarser.to(current.dtype)], dim=-1)))
        return torch.lerp(coarser.to(z.dtype), current.to(z.dtype), z).to(current.dtype)
