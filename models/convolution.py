"""The dilated convolution in front of a block: a little of what stands around each token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from models.columns import last_columns, real_columns

__all__ = ["DilatedConvolution"]


class DilatedConvolution(nn.Module):
    r"""`y_t = x_t + ReLU(b + Σ_i W_i x_{t + (i − c)·dilation})`, with `c` the tap that lies on the token itself.

    Bidirectional: c is the middle tap. Causal: c is the last one, so that nothing but the past is read. Beyond the
    ends of a row, padding included, there is zero.

    Source: equation 11 of the MAHA paper, which convolves across channels and leaves `x_t` out: behind a ReLU, half of
    the token would be lost to the attention.

    Args:
        d_model: number of channels d.
        kernel_size: number of taps; odd where bidirectional.
        dilation: tokens from tap to tap.
        causal: whether only the past is read.
        dense: convolve across channels, as published; the default convolves each channel by itself (depthwise).

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self, d_model: int, kernel_size: int = 3, dilation: int = 2, *, causal: bool = False, dense: bool = False
    ) -> None:
        super().__init__()
        for name, number in (("d_model", d_model), ("kernel_size", kernel_size), ("dilation", dilation)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, but got {number}.")
        if not causal and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd where bidirectional, but got {kernel_size}.")
        self.d_model = d_model
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.causal = causal
        self.dense = dense
        channels = (d_model, d_model) if dense else (d_model,)
        self.weight = nn.Parameter(torch.empty(kernel_size, *channels))  # dense: from input to output channel
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the taps as torch draws those of a convolution, uniformly in ±1/√(number of inputs)."""
        inputs = self.kernel_size * (self.d_model if self.dense else 1)
        nn.init.uniform_(self.weight, -(inputs**-0.5), inputs**-0.5)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return (
            f"d_model={self.d_model}, kernel_size={self.kernel_size}, dilation={self.dilation}, "
            f"causal={self.causal}, dense={self.dense}"
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None, *, before: Tensor | None = None) -> Tensor:
        """The convolved sequence.

        Args:
            x: (batch, n, d_model), floating point.
            lengths: (batch,) integer, number of real tokens of each row, which stand in front; None: all are real.
            before: (batch, span, d_model), what stands before a causal sequence; None: zero.

        Returns:
            As `x`. What it holds at padding means nothing.
        """
        if before is not None:
            return x + self._convolve(torch.cat([before, x], dim=1), x.shape[1])
        if lengths is not None and not self.causal:  # causal: padding comes last and is not read
            x = x.masked_fill(~real_columns(x.shape[1], lengths)[..., None], 0)
        reach = self.span if self.causal else self.span // 2
        return x + self._convolve(pad(x, (0, 0, reach, self.span - reach)), x.shape[1])

    @property
    def span(self) -> int:
        """How many tokens lie between the first and the last tap: what a causal step has to remember."""
        return (self.kernel_size - 1) * self.dilation

    def remember(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The last inputs of each row, (batch, span, d_model), as `step` takes them; zero before the first."""
        return last_columns(x, lengths, self.span)

    def step(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """One more token of a causal sequence.

        Args:
            x: (batch, d_model).
            before: (batch, span, d_model), the inputs of the tokens before.

        Returns:
            The convolved token (batch, d_model), and what `before` is for the next one.
        """
        x = x[:, None]
        return self(x, before=before)[:, 0], torch.cat([before, x], dim=1)[:, 1:]

    def _convolve(self, x: Tensor, n: int) -> Tensor:
        """ReLU of the convolution of (batch, n + span, d), written as sums: faster than `conv1d` where depthwise."""
        taps = [x[:, i * self.dilation : i * self.dilation + n] for i in range(self.kernel_size)]
        y = self.bias.to(x.dtype)
        for tap, weight in zip(taps, self.weight, strict=True):
            weight = weight.to(x.dtype)
            y = y + tap @ weight if self.dense else torch.addcmul(y, tap, weight)
        return y.relu().to(x.dtype)
