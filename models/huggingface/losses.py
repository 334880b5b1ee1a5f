"""How the task models put their loss and what they return together."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from models.huggingface.base import MAHAPreTrainedModel, wants_names

__all__ = ["finished", "share_of"]


def share_of(counted: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | float:
    """The part of the whole batch's labels that stand here, so many; 1 where nothing is known of the whole."""
    return 1.0 if num_items_in_batch is None else counted / num_items_in_batch


def finished(model: MAHAPreTrainedModel, output: ModelOutput, share: Tensor | float, return_dict: bool | None) -> Any:
    """The output with the auxiliary loss in its loss, as an object with names or a tuple."""
    loss, aux_loss = output.get("loss"), output.get("aux_loss")
    if loss is not None and aux_loss is not None:
        output["loss"] = loss + share * (model.config.aux_weight * aux_loss)
    return output if wants_names(model, return_dict) else output.to_tuple()
