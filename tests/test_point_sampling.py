"""Sampling at points against grid sampling."""

import torch
from torch.nn import functional as F

from mpformer_hf.point_sampling import ByteMasks, sample_maps, uncertain_points


def test_byte_masks_equal_grid_sample():
    masks = torch.rand(5, 13, 21) > 0.5
    rows = torch.tensor([4, 0, 2])
    points = torch.rand(3, 50, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 1.0]])
    expected = F.grid_sample(masks[rows, None].float(), 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]
    torch.testing.assert_close(ByteMasks(masks.view(torch.uint8)).sample(rows, points), expected)


def test_sampling_commutes_with_the_product():
    embeddings, features, points = torch.randn(2, 7, 16), torch.randn(2, 16, 24, 32), torch.rand(2, 40, 2)
    dense = sample_maps(torch.einsum("bqd,bdhw->bqhw", embeddings, features), points)
    torch.testing.assert_close(embeddings @ sample_maps(features, points), dense, atol=1e-5, rtol=1e-5)


def test_uncertain_points_prefer_the_border():
    ramp = torch.linspace(-10, 10, 64).expand(1, 64, 64)
    points = uncertain_points(ramp, 400, 3.0, 0.75, None)
    assert points.shape == (1, 400, 2)
    distance = (points[0, :, 0] - 0.5).abs()
    assert distance[:300].max() < 0.25 < distance[300:].max()
