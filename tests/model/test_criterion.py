"""The criterion against the official one's recorded losses, and its behaviour at the edges."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mpformer_hf.model.criterion import LossGroup, MPFormerCriterion
from mpformer_hf.model.mask_piloting import build_pilot
from mpformer_hf.model.matcher import Assignment, HungarianMatcher, Prediction, mask_costs
from mpformer_hf.model.point_sampling import ByteMasks
from mpformer_hf.model.targets import collect_targets
from tests.tiny import GoldenDecoder, random_targets, tiny_config, tiny_model

WEIGHTS = {"ce": 2.0, "mask": 5.0, "dice": 5.0}


@pytest.fixture(scope="module")
def golden():
    return GoldenDecoder()


def golden_losses(golden, monkeypatch, variant):
    """Losses and the arguments of the mask losses, at the recorded points of a variant."""
    case, rand = golden.criterion["cases"]["train"][variant], torch.rand
    if variant == "fixed":  # all points are given, none is selected
        draws = iter((golden.points["match_points"], golden.points["loss_points"].expand(2, -1, -1)))
        monkeypatch.setattr(torch, "rand", lambda *a, **k: next(draws))
        monkeypatch.setattr(golden.model.criterion.config, "importance_sample_ratio", 0.0)
    else:
        monkeypatch.setattr(torch, "rand", lambda *size, **k: rand(*size, generator=seeded()))
    model = golden.model.train()
    model.zero_grad()
    pilot = build_pilot(golden.targets, golden.level_shapes, golden.config)
    decoded = model.model.transformer_module(golden.mask_features, golden.levels, pilot)
    predictions = [
        Prediction(model.class_predictor(state), embedding)
        for state, embedding in zip(decoded.normed_states, decoded.mask_embeddings, strict=True)
    ]
    calls, mask_losses = [], MPFormerCriterion.mask_losses
    monkeypatch.setattr(MPFormerCriterion, "mask_losses", lambda *args: calls.append(args) or mask_losses(*args))
    losses = model.criterion(predictions, golden.mask_features, golden.targets, pilot)
    monkeypatch.setattr(MPFormerCriterion, "mask_losses", mask_losses)
    return case, losses, calls[0]


def seeded():
    return torch.Generator().manual_seed(2024)


@pytest.mark.parametrize("variant", ["fixed", "seeded_rand"])
def test_losses_and_assignments_equal_official(golden, monkeypatch, variant):
    """With `seeded_rand` every mask has its own candidates in the official code; see the next test."""
    case, losses, (_, groups, *_) = golden_losses(golden, monkeypatch, variant)
    for official, value in case["losses_unweighted"].items():
        kind = official.split("_")[1]
        ours = losses[official.replace("loss_ce", "loss_cross_entropy")].item()
        if variant == "fixed" or kind == "ce":
            assert ours == pytest.approx(value * WEIGHTS[kind], rel=1e-5), official
    assert len(losses) == len(case["losses_unweighted"])
    assignments = [group.assignment for group in groups[: len(case["hungarian"])]]
    for index, assignment in enumerate(assignments):
        pairs = case["hungarian"]["last" if index == len(assignments) - 1 else f"aux_{index}"]
        for image, (queries, targets) in enumerate(pairs):
            here = assignment.batch_index == image
            assert assignment.query[here].tolist() == queries
            assert (assignment.target[here] - 3 * image).tolist() == targets
    if variant == "fixed":
        assert sum(losses.values()).item() == pytest.approx(case["weighted_total"], rel=1e-5)


def test_selected_points_equal_official(golden, monkeypatch):
    """Each mask with its own candidates of the official draw: all predictions, matching and pilot."""
    case, _, (criterion, groups, *rest) = golden_losses(golden, monkeypatch, "seeded_rand")
    monkeypatch.undo()
    uncertain, random = criterion.point_counts()
    candidates = torch.rand(6, 3 * (uncertain + random), 2, generator=seeded())
    candidates = torch.cat((candidates, torch.rand(6, random, 2, generator=seeded())), dim=1)
    for group in groups:
        pairs, sums = group.assignment, torch.zeros(2)
        for row, points in enumerate(candidates):
            monkeypatch.setattr(criterion, "candidate_points", lambda *_, p=points: p.expand(2, -1, -1))
            image = int(pairs.batch_index[row])
            single = [values[row : row + 1] for values in (pairs.batch_index, pairs.query, pairs.target)]
            one = replace(group, assignment=Assignment(*single, counts=[1 - image, image]))
            sums += torch.cat(criterion.mask_losses([one], *rest)).detach()
        official = [case["losses_unweighted"][f"loss_{kind}{group.suffix}"] for kind in ("mask", "dice")]
        torch.testing.assert_close(sums / 6, torch.tensor(official), rtol=1e-5, atol=0)


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
    queries = num_queries + pilot.num_queries
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


def test_unused_pilot_slots_are_excluded_from_the_loss():
    config = tiny_config(pilot_label_noise=0.0)
    criterion = MPFormerCriterion(config).train()
    targets = collect_targets(*random_targets((3, 1)), (64, 96))
    pilot = build_pilot(targets, [(2, 3), (4, 6), (8, 12)], config)
    logits, embeddings = torch.randn(2, 11, 5), torch.randn(2, 11, 32)
    changed, features = logits.clone(), torch.randn(2, 32, 16, 24)
    assert pilot.valid.tolist() == [[True] * 3, [True, False, False]]
    changed[:, :3][~pilot.valid] = torch.randn(2, 5)
    losses = [
        criterion([Prediction(x, embeddings)], features, targets, pilot, torch.Generator().manual_seed(0))
        for x in (logits, changed)
    ]
    assert losses[0] == losses[1] and losses[0]["loss_cross_entropy_pilot"] > 0


def test_matching_accepts_nan_predictions():
    config = tiny_config()
    targets = collect_targets(*random_targets((2,)), (64, 96))
    embeddings = torch.full((1, 8, 32), float("nan"))
    prediction, features = Prediction(torch.zeros(1, 8, 5), embeddings), torch.randn(1, 32, 16, 24)
    [assignment] = HungarianMatcher(config)([prediction], features, targets, ByteMasks(targets.masks))
    assert sorted(assignment.target.tolist()) == [0, 1]


def test_another_cost_can_be_used():
    class ByIndex(HungarianMatcher):
        def cost(self, class_logits, mask_logits, labels, truth):
            queries, targets = torch.arange(class_logits.shape[1]), torch.arange(labels.shape[1])
            return (queries[:, None] - 3 - targets).abs().float()[None]  # target t prefers query t + 3

    criterion = MPFormerCriterion(tiny_config())
    criterion.matcher = ByIndex(criterion.config)
    targets = collect_targets(*random_targets((2,)), (64, 96))
    prediction, features = Prediction(torch.zeros(1, 8, 5), torch.randn(1, 8, 32)), torch.randn(1, 32, 16, 24)
    [assignment] = criterion.matcher([prediction], features, targets, ByteMasks(targets.masks))
    assert assignment.query.tolist() == [3, 4] and assignment.target.tolist() == [0, 1]


def test_loss_weights_are_read_from_the_config():
    criterion = MPFormerCriterion(tiny_config())
    targets = collect_targets(*random_targets((2,)), (64, 96))
    prediction, features = Prediction(torch.randn(1, 8, 5), torch.randn(1, 8, 32)), torch.randn(1, 32, 16, 24)

    def losses():
        return criterion([prediction], features, targets, generator=torch.Generator().manual_seed(0))

    def costs():
        truth = torch.rand(1, 2, 16, generator=torch.Generator().manual_seed(0))
        return criterion.matcher.cost(prediction.class_logits, torch.ones(1, 8, 16), targets.labels[None], truth)

    before, cost_before = losses(), costs()
    criterion.config.class_weight = criterion.config.mask_weight = criterion.config.dice_weight = 0.0
    assert any(before.values()) and not any(losses().values())
    assert cost_before.any() and not costs().any()


def test_mask_losses_are_sums_over_predictions_and_masks():
    criterion = MPFormerCriterion(tiny_config())
    targets = collect_targets(*random_targets((3, 1)), (64, 96))
    features = torch.randn(2, 32, 16, 24)
    images, queries, target = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 4, 7, 2]), torch.tensor([2, 0, 1, 3])

    def losses(embeddings, chosen):
        groups, one = [], torch.ones(())
        for embedding, rows in zip(embeddings, chosen, strict=True):
            counts = [int((images[rows] == i).sum()) for i in (0, 1)]
            pairs = Assignment(images[rows], queries[rows], target[rows], counts)
            groups.append(LossGroup("", Prediction(torch.zeros(2, 8, 5), embedding), pairs, 4, one, one, {}))
        generator = torch.Generator().manual_seed(0)
        truth = ByteMasks(targets.masks)
        return torch.stack(criterion.mask_losses(groups, features, targets, truth, generator))

    first, second = torch.randn(2, 8, 32), torch.randn(2, 8, 32)
    together = losses([first, second], [[0, 1, 2, 3], [3, 1]])
    for row in range(4):
        assert (losses([first], [[row]]) > 0).all()
    torch.testing.assert_close(together[:, 0], sum(losses([first], [[row]])[:, 0] for row in range(4)))
    torch.testing.assert_close(together[:, 1], sum(losses([second], [[row]])[:, 0] for row in (1, 3)))


def test_a_step_has_one_collective(monkeypatch):
    torch.manual_seed(0)
    model, (masks, labels) = tiny_model().train(), random_targets([2, 3])
    reduced = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: reduced.append(tensor.shape))
    output = model(pixel_values=torch.randn(2, 3, 64, 96), mask_labels=masks, class_labels=labels)
    assert len(output.loss_dict) == 6 * model.config.decoder_layers and reduced == [
        torch.Size([2 + model.config.decoder_layers])
    ]


def test_ground_truth_stays_in_bytes():
    masks, labels = random_targets([2, 3])
    targets = collect_targets([mask.float() for mask in masks], labels, (64, 96))
    assert targets.masks.dtype == torch.uint8 and targets.masks.shape == (5, 64, 96)
    assert ByteMasks(targets.masks).windows.dtype == torch.uint8


def test_void_is_background_as_officially():
    """A prediction pays for pixels that no mask covers."""
    criterion = MPFormerCriterion(tiny_config(mask_piloting=False, train_num_points=2048))
    truth = torch.zeros(1, 32, 32, dtype=torch.uint8)
    truth[:, :16] = 1
    targets = collect_targets([truth], [torch.tensor([1])], (32, 32))
    features = torch.stack((torch.full((8, 8), 8.0), torch.full((8, 8), 8.0)))[None]
    features[0, 0, 4:] = -8  # the first channel stops where the mask does, the second goes on into void
    losses = []
    for embedding in ([1.0, 0.0], [0.0, 1.0]):
        prediction = Prediction(torch.zeros(1, 1, 5), torch.tensor([[embedding]]))
        losses.append(criterion([prediction], features, targets)["loss_mask"].item())
    assert losses[1] > 5 * losses[0]
