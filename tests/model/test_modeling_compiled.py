"""Tests of `modeling_compiled`."""

import pytest
import torch
from torch._dynamo.utils import counters

from tests.tiny import random_targets, tiny_model


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def test_inference_compiles_in_one_graph_for_all_sizes(fresh_compiler):
    torch.manual_seed(0)
    model = tiny_model(decoder_layers=4)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    seen = []
    with torch.no_grad():
        for batch, *size in ((2, 64, 96), (3, 96, 64), (2, 128, 160), (4, 160, 160)):
            pixel_values = torch.randn(batch, 3, *size)
            ours, plain = compiled(pixel_values), model(pixel_values)
            torch.testing.assert_close(ours.masks_queries_logits, plain.masks_queries_logits, atol=1e-4, rtol=0)
            torch.testing.assert_close(ours.class_queries_logits, plain.class_queries_logits, atol=1e-4, rtol=0)
            seen.append(graphs())
    assert seen[0] == 1 and seen[-1] == 1, "another size was compiled anew"


def step(model, pixel_values, masks, labels):
    torch.manual_seed(1)
    output = model(pixel_values=pixel_values, mask_labels=masks, class_labels=labels)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return output.loss.detach(), gradients


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_training_compiles_with_pilot_noise_and_criterion_outside(fresh_compiler, noise):
    torch.manual_seed(0)
    model = tiny_model(decoder_layers=4, pilot_noise_scale=noise).train()
    counts = ([2, 3], [1, 5], [4, 0], [0, 0], [7, 2], [3, 3])
    batches = [(torch.randn(2, 3, 64, 96), *random_targets(count)) for count in counts]
    plain = [step(model, *batch) for batch in batches]
    names, seen = set(model.state_dict()), []
    model.model.compile(backend="eager")
    for batch, (loss, gradients) in zip(batches, plain, strict=True):
        compiled_loss, compiled_gradients = step(model, *batch)
        seen.append(graphs())
        torch.testing.assert_close(compiled_loss, loss, atol=0, rtol=1e-5)
        assert set(compiled_gradients) == set(gradients)
        for name, gradient in gradients.items():
            torch.testing.assert_close(compiled_gradients[name], gradient, atol=1e-4, rtol=1e-3, msg=name)
    assert seen[0] == 2 or noise, "backbone and decoders are one graph each"
    assert seen[0] > 0 and seen[-1] == seen[3], "another number of targets was compiled anew"
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_lower_precision_trains_with_finite_numbers_near_the_full_ones(backbone, dtype):
    torch.manual_seed(0)
    model = tiny_model(backbone).train()
    batch = torch.randn(2, 3, 64, 96), *random_targets([2, 3])
    full, gradients = step(model, *batch)
    with torch.autocast("cpu", dtype):
        lower, lower_gradients = step(model, *batch)
    assert lower.dtype == torch.float32 and set(lower_gradients) == set(gradients)
    assert all(gradient.isfinite().all() for gradient in lower_gradients.values())
    assert lower.item() == pytest.approx(full.item(), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_lower_precision_predicts(dtype):
    torch.manual_seed(0)
    model, pixel_values = tiny_model(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        full = model(pixel_values).masks_queries_logits
        lower = model.to(dtype)(pixel_values.to(dtype)).masks_queries_logits
    assert lower.dtype == dtype and lower.isfinite().all()
    assert ((lower > 0) == (full > 0)).float().mean() > 0.9
