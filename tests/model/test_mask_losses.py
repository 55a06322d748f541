"""Losses at uncertain points against formed masks, and their gradients."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from mpformer_hf.model import chunks as chunks_module
from mpformer_hf.model import mask_losses as room
from mpformer_hf.model.mask_losses import UncertainPointLosses

COUNTS, UNCERTAIN, RANDOM = [5, 0, 3], 12, 4


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    truth = torch.rand(4, 40, generator=generator, dtype=dtype)
    target = torch.tensor([0, 1, 1, 0, 1, 3, 2, 3])
    return draw(8, 6).requires_grad_(), draw(3, 40, 6).requires_grad_(), truth, target


def plainly(embeddings, features, truth, target, uncertain=UNCERTAIN, random=RANDOM):
    """Mask after mask."""
    images, found = torch.arange(3).repeat_interleave(torch.tensor(COUNTS)), []
    for embedding, image, row in zip(embeddings, images, target, strict=True):
        logits = features[image] @ embedding
        order = logits[: 40 - random].abs().argsort()[:uncertain].tolist() + list(range(40 - random, 40))
        x, t = logits[order], truth[row][order]
        p = torch.sigmoid(x)
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        found.append(torch.stack((F.binary_cross_entropy(p, t), dice)))
    return torch.stack(found).unbind(1)


@pytest.mark.parametrize("chunk", [1, 80, 2**22])
def test_losses_and_gradients_equal_those_of_each_mask_alone(monkeypatch, chunk):
    monkeypatch.setattr(chunks_module, "MASK_LOGITS", chunk)
    embeddings, features, truth, target = case()
    losses = UncertainPointLosses.apply(embeddings, features, truth, target, COUNTS, UNCERTAIN, RANDOM)
    expected = plainly(embeddings, features, truth, target)
    weights = torch.rand(2, 8, dtype=torch.float64)
    for ours, plain in zip(losses, expected, strict=True):
        torch.testing.assert_close(ours, plain)
    ours = torch.autograd.grad((torch.stack(losses) * weights).sum(), (embeddings, features))
    plain = torch.autograd.grad((torch.stack(expected) * weights).sum(), (embeddings, features))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    embeddings, features, truth, target = case()
    assert torch.autograd.gradcheck(
        lambda e, f: UncertainPointLosses.apply(e, f, truth, target, COUNTS, UNCERTAIN, RANDOM), (embeddings, features)
    )


@pytest.mark.parametrize(("uncertain", "random"), [(0, 40), (30, 0)])
def test_all_points_random_or_all_chosen(uncertain, random):
    embeddings, features, truth, target = case()
    losses = UncertainPointLosses.apply(embeddings, features, truth, target, COUNTS, uncertain, random)
    expected = plainly(embeddings, features, truth, target, uncertain, random)
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected))


def test_no_mask_at_all_still_reaches_every_input():
    embeddings, features, truth, target = case()
    empty = embeddings[:0]
    losses = UncertainPointLosses.apply(empty, features, truth[:0], target[:0], [0, 0, 0], UNCERTAIN, RANDOM)
    torch.stack(losses).sum().backward()
    assert not features.grad.any() and not embeddings.grad.any()


def test_images_in_one_chunk_have_the_same_losses_and_gradients(monkeypatch):
    """As on a GPU, where images with fewer masks have unused places."""
    make_chunks, on_cpu = room.make_chunks, []
    embeddings, features, truth, target = case()
    weights, results = torch.rand(2, 8, dtype=torch.float64), []
    for device in ("cpu", "other"):
        monkeypatch.setattr(chunks_module, "to_device", lambda host, device: host)
        monkeypatch.setattr(room, "make_chunks", lambda c, n, _, d=device: make_chunks(c, n, SimpleNamespace(type=d)))
        on_cpu.append(len(room.make_chunks(COUNTS, 40, None)[0]))
        losses = UncertainPointLosses.apply(embeddings, features, truth, target, COUNTS, UNCERTAIN, RANDOM)
        gradients = torch.autograd.grad((torch.stack(losses) * weights).sum(), (embeddings, features))
        results.append((*losses, *gradients))
    assert on_cpu == [2, 1]
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def test_every_mask_has_one_place(monkeypatch):
    monkeypatch.setattr(chunks_module, "to_device", lambda host, device: host)
    for chunk in (1, 40, 100, 2**22):
        monkeypatch.setattr(chunks_module, "MASK_LOGITS", chunk)
        for device in ("cpu", "other"):
            chunks, places = chunks_module.make_chunks([3, 0, 5, 1], 40, SimpleNamespace(type=device))
            rows = torch.cat([part.rows.flatten() for part in chunks])
            used = torch.cat([part.used.flatten() for part in chunks])
            assert rows[places].tolist() == list(range(9)) and used.sum() == 9 and (used[places] == 1).all()
            images = [i for part in chunks for i in range(part.images.start, part.images.stop) for _ in part.rows[0]]
            assert [images[place] for place in places] == [0] * 3 + [2] * 5 + [3]
