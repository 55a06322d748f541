"""Sampling at points against grid sampling."""

import torch
from torch.nn import functional as F

from mpformer_hf.model.point_sampling import ByteMasks, sample_features


def test_byte_masks_equal_grid_sample():
    masks = torch.rand(5, 13, 21) > 0.5
    rows = torch.tensor([4, 0, 2])
    points = torch.rand(3, 50, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 1.0]])
    expected = F.grid_sample(masks[rows, None].float(), 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]
    torch.testing.assert_close(ByteMasks(masks.view(torch.uint8)).sample(rows, points), expected)


def test_features_equal_grid_sample_even_at_the_edges():
    features, points = torch.randn(2, 16, 24, 33), torch.rand(2, 40, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.999, 0.001]])
    expected = F.grid_sample(features, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]
    torch.testing.assert_close(sample_features(features, points).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)


def test_sampling_commutes_with_the_product():
    embeddings, features, points = torch.randn(2, 7, 16), torch.randn(2, 16, 24, 32), torch.rand(2, 40, 2)
    masks = torch.einsum("bqd,bdhw->bqhw", embeddings, features)
    dense = F.grid_sample(masks, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]
    product = embeddings @ sample_features(features, points).transpose(1, 2)
    torch.testing.assert_close(product, dense, atol=1e-5, rtol=1e-5)
