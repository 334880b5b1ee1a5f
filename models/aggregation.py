"""The fusion of a block under its published name; the work is done by `maha_opt`'s aggregation modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from maha_opt.aggregation import ConvexAggregation, GateAggregation, NashAggregation
from maha_opt.aggregation_base import AggregationOptions
from maha_opt.switching import HasFusions
from models.upsampling import upsample

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["FusionOptions", "OptimizationDrivenAggregation", "Strategy"]

Strategy = Literal["convex", "nash", "gate"]
FUSIONS = {"convex": ConvexAggregation, "nash": NashAggregation, "gate": GateAggregation}


class FusionOptions(AggregationOptions, total=False):
    """Options of `maha_opt.ConvexAggregation`, `NashAggregation` and `GateAggregation`, which document them.

    Attributes:
        target: "linear", "residual" or "consensus"; convex only.
    """

    target: Literal["linear", "residual", "consensus"]


class OptimizationDrivenAggregation(HasFusions, nn.Module):
    """Fuses what the scales say with the weights that solve a convex program or a game between them.

    Args:
        num_scales: number of scales L.
        d_model: number of channels.
        strategy: "convex" (`maha_opt.ConvexAggregation`), "nash" (`maha_opt.NashAggregation`), or for comparison "gate"
            (`maha_opt.GateAggregation`).
        compression_ratio: r, of scale outputs that are given as cells.
        num_heads: number of heads, for the granularities that have weights for each.
        causal: refuses the granularities that leak, and reads the last complete cell of cells.
        options: see `FusionOptions`.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: there is no such option.
    """

    def __init__(
        self,
        num_scales: int,
        d_model: int,
        strategy: Strategy = "convex",
        *,
        compression_ratio: int = 2,
        num_heads: int = 1,
        causal: bool = False,
        **options: Unpack[FusionOptions],
    ) -> None:
        super().__init__()
        if strategy not in FUSIONS:
            raise ValueError(f"strategy must be {' or '.join(map(repr, FUSIONS))}, but got {strategy!r}.")
        if strategy != "convex" and "target" in options:
            raise TypeError(f'target belongs to strategy="convex": {strategy!r} knows no target but its own.')
        self.compression_ratio = compression_ratio
        self.causal = causal
        shared: dict[str, Any] = {"num_heads": num_heads, "causal": causal, **options}
        self.fusion = FUSIONS[strategy](num_scales, d_model, **shared)

    def forward(
        self,
        scale_outputs: Tensor | Sequence[Tensor],
        available: Tensor | None = None,
        inputs: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        cleared: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Fuses the scales.

        Args:
            scale_outputs: (batch, n, L, d_model), what each scale says at each token; or, as published, cells of each
                scale, (batch, n_l, d_model), which are brought to the tokens here.
            available: (batch, n, L) bool, True where a scale exists for a token; None: all do. Not with cells, which
                tell by themselves.
            inputs: (batch, n, d_model), of which a linear target, or the scores of a gate, are made.
            mask: (batch, n) bool, True where the token is real; None: all are.
            cleared: whether `scale_outputs` is known to be zero where a scale does not exist and at padding, as
                `MultiscaleAttention` leaves it; it is copied otherwise.

        Returns:
            The fused output (batch, n, d_model), zero at padding, and the auxiliary loss, a scalar, the mean objective
            of the problems that were solved (`maha_opt.Aggregation.with_objective`), which says how much of the target
            the fusion leaves unexplained. Its gradient is that of the objective, by the envelope theorem.
        """
        if not isinstance(scale_outputs, Tensor):
            if available is not None:
                raise ValueError("available must not be given with cells of each scale, which tell by themselves.")
            scale_outputs, available = upsample(scale_outputs, self.compression_ratio, causal=self.causal)
        aggregated, objective = self.fusion.with_objective(scale_outputs, available, inputs, mask, cleared=cleared)
        return aggregated.output, objective
