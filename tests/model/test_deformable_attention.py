"""The operator against per-level grid sampling, and its gradients."""

import runpy

import pytest
import torch
from torch.nn import functional as F

from mpformer_hf.model import deformable_attention
from mpformer_hf.model.deformable_attention import (
    MultiScaleDeformableAttention,
    deformable_sampling,
    sum_in_parts,
    weighted_row_sum,
)

SHAPES = [(3, 4), (6, 8), (5, 7)]


def in_cells(locations):
    """Positions in units of a level's sides to positions in its cells."""
    return locations * torch.tensor([(width, height) for height, width in SHAPES], dtype=locations.dtype)[:, None]


def sample(value, locations, weights):
    x, y = in_cells(locations).flatten(0, 1).flatten(2, 3).unbind(-1)
    return deformable_sampling(value, SHAPES, x, y, weights.flatten(0, 1).flatten(2)).unflatten(0, (len(value), -1))


def case(dtype=torch.float32, batch=2, heads=2, dim=4, queries=9, points=3):
    total = sum(h * w for h, w in SHAPES)
    value = torch.randn(batch, total, heads, dim, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(SHAPES), points, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(SHAPES), points, dtype=dtype)
    return value, locations, weights


def reference(value, locations, weights):
    """One `grid_sample` per level."""
    batch, _, heads, dim = value.shape
    total = 0
    for level, part in enumerate(value.split([h * w for h, w in SHAPES], dim=1)):
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, dim, *SHAPES[level])
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled = F.grid_sample(maps, grid, align_corners=False)  # [B N, D, Q, P]
        total = total + (sampled * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return total.view(batch, heads * dim, -1).transpose(1, 2)


def test_equals_grid_sampling_in_value_and_gradient():
    inputs = [x.requires_grad_() for x in case(torch.float64)]
    ours, theirs = sample(*inputs), reference(*inputs)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    inputs = [x.requires_grad_() for x in case(torch.float64, batch=1, queries=3, dim=2)]
    assert torch.autograd.gradcheck(sample, inputs)


def test_outside_is_zero():
    value, locations, weights = case()
    for shift in (5, -5, 1e9, float("inf")):
        assert (sample(value, locations + shift, weights) == 0).all()


def test_positions_that_are_no_number_give_none_and_read_nothing_else():
    value, locations, weights = case()
    locations[1, 2, 0, 0, 0] = float("nan")
    sampled = sample(value, locations, weights)
    assert sampled[1, 2, :4].isnan().all() and sampled.isnan().sum() == 4


def test_both_ways_to_differentiate_agree():
    table = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    rows = torch.randint(20, (7, 5), dtype=torch.int32)
    rows[0] = 3  # one row several times in one bag
    plain = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
    upstream = torch.randn_like(plain)
    sums = plain, weighted_row_sum(table, rows, weights), sum_in_parts(table, rows, weights, entries=11)
    expected, *others = (torch.autograd.grad(out, (table, weights), upstream) for out in sums)
    for gradients in others:
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a, b)
    for out in sums[1:]:
        torch.testing.assert_close(out, plain)


def test_many_samples_on_a_gpu_are_summed_in_parts(monkeypatch):
    monkeypatch.setattr(deformable_attention, "GPU_NUMBERS", 20 * 32)
    calls, embedding_bag = [], F.embedding_bag
    monkeypatch.setattr(
        F, "embedding_bag", lambda rows, *a, **k: calls.append(len(rows)) or embedding_bag(rows, *a, **k)
    )
    table, rows = torch.zeros(9, 4, device="meta"), torch.zeros(7, 5, dtype=torch.int32, device="meta")
    weighted_row_sum(table, rows, torch.zeros(7, 5, device="meta"))
    assert calls == [4, 3]


def test_initial_offsets_point_in_all_directions():
    attention = MultiScaleDeformableAttention(32, num_heads=4)
    offsets = attention.sampling_offsets.initial_bias().view(4, 3, 4, 2)
    assert torch.allclose(offsets[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))
    assert torch.allclose(offsets[1, 2, 0], torch.tensor([0.0, 1.0]), atol=1e-6)
    assert torch.equal(offsets[:, 0], offsets[:, 2])


def test_module_in_double_and_under_autocast():
    torch.manual_seed(0)
    attention = MultiScaleDeformableAttention(8, num_heads=2)
    total = sum(h * w for h, w in SHAPES)
    query, places = torch.randn(2, total, 8), torch.rand(total, 2)
    single = attention(query, query, places, SHAPES)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(query, query, places, SHAPES).dtype == torch.bfloat16
    double = attention.double()(query.double(), query.double(), places.double(), SHAPES)
    torch.testing.assert_close(single.double(), double, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_wrong_environment_variable_is_named(monkeypatch):
    monkeypatch.setenv("MPFORMER_DEFORMABLE_ATTENTION", "tritn")
    with pytest.raises(ValueError, match=r"MPFORMER_DEFORMABLE_ATTENTION: The implementation must be .* got 'tritn'"):
        runpy.run_module("mpformer_hf.model.deformable_attention")
