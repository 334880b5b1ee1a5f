"""The bare transformer as a class of `transformers`, over the layers of this package, which know nothing of it."""

from __future__ import annotations

import copy
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from maha_opt.aggregation import NashAggregation
from maha_opt.aggregation_base import FIRST_PRICE, Aggregation
from maha_opt.sets import LearnedTotal, inverse_softplus
from models.columns import as_mask
from models.convolution import DilatedConvolution
from models.decomposition import Taps, average_of
from models.huggingface.cache import MAHACache
from models.huggingface.configuration import MAHAConfig
from models.huggingface.outputs import MAHAModelOutput
from models.huggingface.solver import SavesSolver
from models.inspection import inspect_transformer
from models.transformer import MAHATransformer, initialise
from solvers import Budget

__all__ = ["MAHAModel", "MAHAPreTrainedModel", "ModelInputs", "changed", "wants_names"]


class ModelInputs(TypedDict, total=False):
    """What the task models hand on to `MAHAModel`, which documents it and refuses anything else."""

    encoder_hidden_states: Tensor | None
    encoder_attention_mask: Tensor | None
    position_ids: Tensor | None
    output_hidden_states: bool | None
    output_attentions: bool | None


class MAHAPreTrainedModel(SavesSolver):
    """Loading, saving and first weights. A model has a configuration of its own: that of the caller stays as it is."""

    config_class = MAHAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # `num_items_in_batch`
    _is_stateful = True  # a cache that cannot be cropped: no assisted generation
    _no_split_modules = ["MAHABlock"]  # noqa: RUF012

    def __init__(self, config: MAHAConfig) -> None:
        super().__init__(copy.deepcopy(config))

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module)
        if isinstance(module, (DilatedConvolution, nn.LayerNorm)):
            module.reset_parameters()
        elif isinstance(module, Taps):
            for weight in module:
                init.copy_(weight, average_of(weight))
        elif isinstance(module, Aggregation):
            if module.raw_prices is not None:
                init.constant_(module.raw_prices, inverse_softplus(FIRST_PRICE))
            if module.prices is not None:
                init.copy_(module.prices, torch.tensor(self.config.prices, dtype=torch.float64))
            if isinstance(module, NashAggregation):
                init.zeros_(module.raw_coupling)
        elif isinstance(module, LearnedTotal):
            total = float((self.config.feasible_options or {}).get("total", 1.0))
            init.constant_(module.raw_total, inverse_softplus(total) if module.named is Budget else total)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `MAHAModel` makes its own


class MAHAModel(MAHAPreTrainedModel):
    """The bare transformer: an encoder, or where `config.causal` a decoder with a cache."""

    def __init__(self, config: MAHAConfig) -> None:
        super().__init__(config)
        self.transformer = MAHATransformer(**self.config.transformer_arguments())
        self.post_init()

    @classmethod
    def within(cls, model: MAHAPreTrainedModel) -> MAHAModel:
        """The base of a task model, whose configuration it shares."""
        base = cls(cast(MAHAConfig, model.config))
        base.config = model.config
        return base

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.transformer.token_emb

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of the tokens."""
        self.transformer.token_emb = cast(nn.Embedding, value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: MAHACache | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> MAHAModelOutput | tuple[Any, ...]:
        """Hidden states of the given tokens.

        Args:
            input_ids: (batch, n) integer.
            attention_mask: (batch, n) 0/1 or bool; with a cache, of all columns so far or of the given ones.
            inputs_embeds: (batch, n, d_model), in place of `input_ids`.
            past_key_values: what `use_cache=True` returned before, read without gradients. Tokens that follow are taken
                one by one. An empty `MAHACache` is filled.
            use_cache: whether to return a cache, in which there are no gradients; where they are recorded, the text is
                read a second time for it. None: only if one was given.
            encoder_hidden_states: (batch, m, d_model), where `config.cross_attention`.
            encoder_attention_mask: (batch, m), of these.
            position_ids: (batch, n) or (1, n); None, or what the model counts by itself, the real tokens of each row.
                Texts that are packed into one row would see each other, and are refused.
            output_hidden_states: whether to return those of all layers; None: as the configuration says.
            output_attentions: whether to return who attends to whom, which takes another pass without dropout or
                gradients, and n² numbers for each head; None: as the configuration says.
            return_dict: whether to return an object with names rather than a tuple; None: as the configuration says.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds` are given; positions are not those of the
                tokens; attentions are wanted of a text that only a cache knows; gradients are to pass through a cache;
                a model that is not causal is to return one; or as `MAHATransformer`.
            TypeError: `past_key_values` is not a `MAHACache`, or as `MAHATransformer`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        x = input_ids if inputs_embeds is None else inputs_embeds
        assert x is not None
        if past_key_values is not None and not isinstance(past_key_values, MAHACache):
            raise TypeError(f"past_key_values must be a MAHACache, but got {type(past_key_values).__name__}.")
        if use_cache and not self.config.causal:
            raise ValueError("use_cache=True needs config.causal=True: elsewhere every token changes those before it.")
        if past_key_values is None and use_cache:
            past_key_values = MAHACache(self.config.num_layers, self.config.max_len)
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        layers: list[Tensor] | None = [] if states else None
        memory: dict[str, Any] = {"memory": encoder_hidden_states, "memory_mask": encoder_attention_mask}
        attend = bool(self.config.output_attentions if output_attentions is None else output_attentions)
        aux_loss = None
        if past_key_values is not None and past_key_values.transformer_state is not None:
            if attend:
                raise ValueError("output_attentions needs the text itself, not its cache: use_cache=False.")
            hidden = self._continued(x, attention_mask, position_ids, past_key_values, layers)
        else:
            _check_positions(position_ids, attention_mask, x)
            # With gradients the hidden states are those of `forward`: none come through `prefill`.
            if past_key_values is None or torch.is_grad_enabled():
                hidden, loss = self.transformer(x, attention_mask, **memory, layers=layers)
                # Without them it is kept back: an evaluated loss is the task's own, and beams cannot repeat a scalar.
                aux_loss = loss if torch.is_grad_enabled() else None
                if past_key_values is not None:
                    past_key_values.set_transformer_state(
                        self.transformer.prefill(x, attention_mask, **memory)[1], x.shape[1]
                    )
            else:
                hidden, state = self.transformer.prefill(x, attention_mask, **memory, layers=layers)
                past_key_values.set_transformer_state(state, x.shape[1])
        records = inspect_transformer(self.transformer, x, attention_mask, **memory) if attend else []
        crossed = [record.cross_attention for record in records if record.cross_attention is not None]
        output = MAHAModelOutput(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=None if layers is None else tuple(layers),
            attentions=tuple(record.token_attention() for record in records) if attend else None,
            cross_attentions=tuple(crossed) if crossed else None,
            aux_loss=aux_loss,
        )
        return output if wants_names(self, return_dict) else output.to_tuple()

    def _continued(
        self,
        x: Tensor,
        mask: Tensor | None,
        position_ids: Tensor | None,
        cache: MAHACache,
        layers: list[Tensor] | None,
    ) -> Tensor:
        """Hidden states of the tokens after those of a cache, which is brought forward."""
        state, seen, n = cache.transformer_state, cache.get_seq_length(), x.shape[1]
        assert state is not None
        if self.training and torch.is_grad_enabled():
            raise ValueError("past_key_values would stop the gradients: train on the whole text, without a cache.")
        if mask is not None:
            columns = seen + n if mask.ndim == 2 and mask.shape[1] == seen + n else n
            mask = as_mask("attention_mask", mask, (x.shape[0], columns))[:, -n:]
        _check_positions(position_ids, mask, x, state.lengths)
        steps, by_step = [], []
        for i in range(n):
            kept: list[Tensor] | None = None if layers is None else []
            steps.append(self.transformer.step(x[:, i], state, None if mask is None else mask[:, i], layers=kept))
            by_step.append(kept)
        if layers is not None:
            layers += [torch.stack(same, dim=1) for same in zip(*by_step, strict=True)]
        cache.set_transformer_state(state, seen + n)
        return torch.stack(steps, dim=1)


def changed(config: MAHAConfig, **changes: Any) -> MAHAConfig:
    """A copy of a configuration with some values changed."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def wants_names(model: PreTrainedModel, return_dict: bool | None) -> bool:
    """Whether a model is to return an object with names rather than a tuple."""
    return bool(model.config.return_dict if return_dict is None else return_dict)


def _check_positions(given: Tensor | None, mask: Tensor | None, x: Tensor, before: Tensor | None = None) -> None:
    """Raises ValueError unless positions are None or count the real tokens of each row, after so many before."""
    if given is None:
        return
    shape = x.shape[:2]
    real = torch.ones(shape, dtype=torch.bool, device=x.device)
    if mask is not None:
        real = as_mask("attention_mask", mask, shape)
    counted = real.long().cumsum(1) - 1
    if before is not None:
        counted = counted + before[:, None]
    if given.ndim != 2 or given.shape not in (shape, (1, shape[1])):
        raise ValueError(f"position_ids must have shape {tuple(shape)}, but got {tuple(given.shape)}.")
    if bool(((given != counted) & real).any()):
        raise ValueError(
            "position_ids must count the real tokens of each row, 0, 1, 2, …: these models count by themselves. Texts "
            "that are packed into one row are not told apart; give each a row of its own, padded."
        )
