"""How good a model is, with one solver or another."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from maha_opt.aggregation_base import Aggregation, fusions_of
from models import CausalLanguageModel, MAHATransformer
from models.training.evaluation import bleu_and_chrf, guess, scores, solved_by, translate
from models.training.loading import load


@pytest.fixture(scope="module")
def model(finished):
    return load(finished.folder).model


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(3, 259, (5, 40), generator=torch.Generator().manual_seed(0))


def test_the_loss_of_every_token_is_its_surprise_and_their_mean_that_of_the_model(model, tokens):
    found = guess(model, tokens, batch=2)
    with torch.no_grad():
        output = model(tokens, labels=tokens)
    expected = cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(found.losses.flatten(), expected.double(), rtol=1e-5, atol=1e-5)  # float32 rounding
    assert found.loss == pytest.approx(float(output.loss), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte(2.0) == pytest.approx(found.loss / math.log(2) / 2)
    assert torch.equal(found.best, output.logits[:, :-1].argmax(-1))


def test_a_plain_torch_model_guesses_like_those_of_transformers(tokens):
    model = CausalLanguageModel(MAHATransformer(259, 40, 16, 2, 1, 32, 2, causal=True, window=8))
    found = guess(model, tokens, batch=2)
    assert model.training
    with torch.no_grad():
        assert found.loss == pytest.approx(float(model.eval()(tokens, labels=tokens).loss), rel=1e-6)


def test_positions_are_averaged_between_their_borders(model, tokens):
    found = guess(model, tokens)
    first, rest = found.by_position([0, 8, 40])
    assert first == pytest.approx(float(found.losses[:, :7].mean()))  # the token at position 0 is not guessed
    assert (7 * first + 32 * rest) / 39 == pytest.approx(found.loss)


def test_the_exact_reference_changes_the_loss_of_an_exactly_solved_model_by_rounding_only(model, tokens):
    own = guess(model, tokens[:1])
    with solved_by(model, "cvxpylayers"):
        reference = guess(model, tokens[:1])
    torch.testing.assert_close(reference.losses, own.losses, rtol=0, atol=1e-4)  # float32, weights to 1e-6
    with solved_by(model, "mean"):
        assert abs(guess(model, tokens[:1]).loss - own.loss) > 1e-5


def test_a_model_has_its_own_solver_again_afterwards_also_where_something_fails(model):
    def solvers():
        fusions = [module for module in model.modules() if isinstance(module, Aggregation)]
        return [(fusion.solver, fusion.solver_options) for fusion in fusions]

    before = solvers()
    with pytest.raises(ZeroDivisionError), solved_by(model, "projected_gradient", unroll=3):  # noqa: PT012
        assert solvers() == [("projected_gradient", {"unroll": 3})]
        raise ZeroDivisionError
    assert solvers() == before


def test_a_model_that_learned_through_unrolled_steps_can_be_judged_by_an_exact_solver(model, tokens):
    exact = guess(model, tokens[:1])
    own = [(fusion, fusion.solver, fusion.gradient, fusion.solver_options) for fusion in fusions_of(model)]
    with solved_by(model, "projected_gradient", unroll=3):
        for fusion, *_ in own:
            fusion.gradient = "unrolled"
        with solved_by(model, "pivot"):
            assert torch.equal(guess(model, tokens[:1]).losses, exact.losses)
        assert {fusion.gradient for fusion, *_ in own} == {"unrolled"}
    assert own == [(fusion, fusion.solver, fusion.gradient, fusion.solver_options) for fusion in fusions_of(model)]


def test_scores_do_not_depend_on_the_batches():
    from transformers import ByT5Tokenizer, DataCollatorWithPadding

    from models import MAHAConfig, MAHAForSequenceClassification

    tokenizer = ByT5Tokenizer(extra_ids=0)
    torch.manual_seed(0)
    small = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 16, "max_len": 32, "window": 9, "num_scales": 2}
    classifier = MAHAForSequenceClassification(MAHAConfig(vocab_size=259, num_labels=3, pad_token_id=0, **small)).eval()
    rows = [{"input_ids": tokenizer(text).input_ids, "labels": 0} for text in ("a", "longer text", "two words", "x y")]
    collator = DataCollatorWithPadding(tokenizer)
    together = scores(classifier, rows, collator)
    assert together.shape == (4, 3)
    torch.testing.assert_close(scores(classifier, rows, collator, batch=3), together, rtol=0, atol=1e-5)


def test_translations_come_in_the_order_of_their_sources_whatever_the_batch():
    from transformers import ByT5Tokenizer

    from models import MAHAConfig, MAHAForConditionalGeneration

    tokenizer = ByT5Tokenizer(extra_ids=0)
    torch.manual_seed(0)
    small = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 16, "max_len": 32, "window": 9, "num_scales": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    translator = MAHAForConditionalGeneration(MAHAConfig(vocab_size=259, **small, **special)).eval()
    for weight in translator.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    sources = ["one", "a longer one", "two"]
    together = translate(translator, tokenizer, sources, most_tokens=12)
    assert together == [
        text for source in sources for text in translate(translator, tokenizer, [source], most_tokens=12)
    ]
    assert len(set(together)) > 1


def test_bleu_and_chrf_are_those_of_sacrebleu():
    pytest.importorskip("sacrebleu")
    same = ["the cat sat on the mat today", "it rains a lot here"]
    assert bleu_and_chrf(same, same) == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    assert bleu_and_chrf(["xyz"], ["the cat sat on the mat"])["bleu"] == 0
