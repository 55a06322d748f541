"""The criterion against the official one's recorded losses, and its behaviour at the edges."""

import pytest
import torch
from torch.nn import functional as F

from mpformer_hf import criterion as room
from mpformer_hf.criterion import Assignment, MPFormerCriterion, Prediction, mask_costs
from mpformer_hf.mask_piloting import build_pilot
from mpformer_hf.point_sampling import ByteMasks
from mpformer_hf.targets import collect_targets
from tests.tiny import GoldenDecoder, random_targets, tiny_config

WEIGHTS = {"ce": 2.0, "mask": 5.0, "dice": 5.0}


@pytest.fixture(scope="module")
def golden():
    return GoldenDecoder()


def golden_losses(golden, monkeypatch, variant):
    case = golden.criterion["cases"]["train"][variant]
    rand = torch.rand
    if variant == "fixed":
        monkeypatch.setattr(torch, "rand", lambda *a, **k: golden.points["match_points"])
        monkeypatch.setattr(room, "uncertain_points", lambda masks, *a: golden.points["loss_points"])
    else:
        fresh = lambda: torch.Generator().manual_seed(2024)  # noqa: E731
        monkeypatch.setattr(torch, "rand", lambda *size, **k: rand(*size, generator=fresh()))
    model = golden.model.train()
    model.zero_grad()
    pilot = build_pilot(golden.targets, golden.level_shapes, golden.config)
    decoded = model.model.transformer_module(golden.mask_features, golden.levels, pilot)
    predictions = [
        Prediction(model.class_predictor(state), embedding)
        for state, embedding in zip(decoded.normed_states, decoded.mask_embeddings, strict=True)
    ]
    assignments = []
    match = MPFormerCriterion.match
    monkeypatch.setattr(
        MPFormerCriterion, "match", lambda *args: assignments.append(match(*args)) or assignments[-1], raising=True
    )
    losses = model.criterion(predictions, golden.mask_features, golden.targets, pilot)
    return case, losses, assignments[0]


@pytest.mark.parametrize("variant", ["fixed", "seeded_rand"])
def test_losses_and_assignments_equal_official(golden, monkeypatch, variant):
    case, losses, assignments = golden_losses(golden, monkeypatch, variant)
    for official, value in case["losses_unweighted"].items():
        kind = official.split("_")[1]
        ours = losses[official.replace("loss_ce", "loss_cross_entropy")].item()
        assert ours == pytest.approx(value * WEIGHTS[kind], rel=1e-5), official
    assert len(losses) == len(case["losses_unweighted"])
    for index, assignment in enumerate(assignments):
        pairs = case["hungarian"]["last" if index == len(assignments) - 1 else f"aux_{index}"]
        for image, (queries, targets) in enumerate(pairs):
            here = assignment.batch_index == image
            assert assignment.query[here].tolist() == queries
            assert (assignment.target[here] - 3 * image).tolist() == targets
    assert sum(losses.values()).item() == pytest.approx(case["weighted_total"], rel=1e-5)


def test_gradients_equal_official(golden, monkeypatch):
    _, losses, _ = golden_losses(golden, monkeypatch, "fixed")
    sum(losses.values()).backward()
    module = golden.model.model.transformer_module
    ours = {
        "class_embed.weight": golden.model.class_predictor.weight,
        "label_enc.weight": module.pilot_class_embedder.weight,
        "level_embed.weight": module.level_embed.weight,
        "query_feat.weight": module.queries_features.weight,
        "mask_embed.layers.2.bias": module.decoder.mask_predictor.mask_embedder[2][0].bias,
    }
    for name, parameter in ours.items():
        expected = golden.points[f"train.grad.{name}"]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_mask_costs_equal_their_definition():
    logits, truth = 3 * torch.randn(4, 30), torch.rand(3, 30)
    cross_entropy, dice = mask_costs(logits, truth)
    for q in range(4):
        for t in range(3):
            expected = F.binary_cross_entropy_with_logits(logits[q], truth[t])
            torch.testing.assert_close(cross_entropy[q, t], expected)
            p = logits[q].sigmoid()
            torch.testing.assert_close(dice[q, t], 1 - (2 * (p * truth[t]).sum() + 1) / (p.sum() + truth[t].sum() + 1))


def losses_of(counts, num_queries=8, mutate=None, **fields):
    config = tiny_config(num_queries=num_queries, **fields)
    model = MPFormerCriterion(config).train()
    masks, labels = random_targets(counts)
    if mutate:
        mutate(masks)
    targets = collect_targets(masks, labels, (64, 96))
    pilot = build_pilot(targets, [(2, 3), (4, 6), (8, 12)], config)
    queries = num_queries + (pilot.num_queries if pilot else 0)
    predictions = [
        Prediction(torch.randn(len(counts), queries, 5), torch.randn(len(counts), queries, 32, requires_grad=True))
        for _ in range(3)
    ]
    return model(predictions, torch.randn(len(counts), 32, 16, 24), targets, pilot), predictions


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (0, 2), (12, 1), (20, 20)])
def test_any_number_of_targets(counts):
    losses, predictions = losses_of(counts)
    assert len(losses) == 18
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.mask_embeddings.grad is not None for p in predictions)
    if not any(counts):
        assert all(losses[key] == 0 for key in losses if "pilot" in key or "mask" in key or "dice" in key)


def test_zero_masks_give_finite_losses():
    def clear(masks):
        masks[0].zero_()

    losses, _ = losses_of((3, 2), mutate=clear)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_pilot_options_of_the_criterion_act():
    torch.manual_seed(1)
    plain, _ = losses_of((3, 2), pilot_label_noise=0.0)
    torch.manual_seed(1)
    doubled, _ = losses_of((3, 2), pilot_label_noise=0.0, pilot_loss_weight=2.0)
    for key in plain:
        torch.testing.assert_close(doubled[key], plain[key] * (2 if "pilot" in key else 1))
    without, _ = losses_of((3, 2), pilot_class_loss=False)
    assert not [key for key in without if "cross_entropy_pilot" in key]
    assert "loss_mask_pilot" in without


def test_broken_predictions_do_not_break_the_matching():
    config = tiny_config()
    targets = collect_targets(*random_targets((2,)), (64, 96))
    embeddings = torch.full((1, 8, 32), float("nan"))
    [found] = MPFormerCriterion(config).match(
        [Prediction(torch.zeros(1, 8, 5), embeddings)], torch.randn(1, 32, 16, 24), targets, ByteMasks(targets.masks)
    )
    assert sorted(found.target.tolist()) == [0, 1]


def test_mask_losses_are_sums_over_the_normaliser():
    criterion = MPFormerCriterion(tiny_config())
    truth = ByteMasks(random_targets((3,))[0][0].view(torch.uint8))
    pairs = Assignment(torch.zeros(3, dtype=torch.int64), torch.tensor([0, 4, 7]), torch.tensor([2, 0, 1]), [3])
    prediction, features = Prediction(torch.zeros(1, 8, 5), torch.randn(1, 8, 32)), torch.randn(1, 32, 16, 24)

    def losses(norm, which=slice(None)):
        part = Assignment(pairs.batch_index[which], pairs.query[which], pairs.target[which], [len(pairs.query[which])])
        return criterion.mask_losses(prediction, features, truth, part, torch.tensor(norm), generator=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            room, "uncertain_points", lambda *_: torch.rand(1, 64, 2, generator=torch.Generator().manual_seed(0))
        )
        whole, quarter = losses(1.0), losses(4.0)
        alone = [losses(1.0, slice(i, i + 1)) for i in range(3)]
    for name in ("mask", "dice"):
        torch.testing.assert_close(whole[name], 4 * quarter[name])
        torch.testing.assert_close(whole[name], sum(one[name] for one in alone))
