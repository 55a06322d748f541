"""What the labels do not say has no loss."""

import pytest
import torch

from mpformer_hf.model.criterion import MPFormerCriterion
from mpformer_hf.model.incomplete_labels import no_object_or_unknown, unmatched_weights
from mpformer_hf.model.matcher import Prediction
from mpformer_hf.model.point_sampling import ByteMasks
from mpformer_hf.model.targets import CROWD, collect_targets
from tests.tiny import batch_of, random_targets, tiny_config, tiny_model

VOID = torch.zeros(2, 64, 96, dtype=torch.bool)
VOID[0, 20:50, 10:60] = True
VOID[1, :, 70:] = True


def step(fields: dict, batch: dict, **known) -> tuple[dict, list]:
    """Losses and gradients of one training step."""
    torch.manual_seed(0)
    model = tiny_model(**fields).train()
    torch.manual_seed(1)
    output = model(**batch, **known)
    output.loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return output.loss_dict, grads


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def equal(a: tuple[dict, list], b: tuple[dict, list]) -> bool:
    losses = a[0].keys() == b[0].keys() and all(torch.equal(a[0][name], b[0][name]) for name in a[0])
    return losses and all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mask_loss_points": "mask"},
        {"pilot_noise_scale": 0.4},
        {"pilot_noise": "shift", "pilot_noise_scale": 0.5},
        {"pilot_noise": "box", "pilot_noise_scale": 0.5, "pilot_per_head_noise": True},
    ],
)
def test_labels_in_void_change_no_loss_and_no_gradient(fields):
    torch.manual_seed(5)
    batch = batch_of([4, 3])
    other = [masks ^ (VOID[image] & (torch.rand(64, 96) < 0.5)) for image, masks in enumerate(batch["mask_labels"])]
    changed = {**batch, "mask_labels": other}
    known = {"void_mask": VOID}
    if fields.get("pilot_noise") in ("shift", "box"):  # is drawn from the masks' boxes, so those must stay
        batch["mask_labels"] = [masks & ~VOID[image] for image, masks in enumerate(batch["mask_labels"])]
        changed = {**batch, "mask_labels": [masks ^ VOID[i] for i, masks in enumerate(batch["mask_labels"])]}
    assert equal(step(fields, batch, **known), step(fields, changed, **known))
    assert not equal(step(fields, batch), step(fields, changed))


def test_everything_labelled_equals_the_plain_loss():
    torch.manual_seed(5)
    batch = batch_of([4, 3])
    everything = {"annotated_classes": torch.ones(2, 4, dtype=torch.bool), "complete": torch.ones(2, dtype=torch.bool)}
    assert equal(step({}, batch, **everything), step({}, batch))
    assert equal(step({"void_in_loss": "background"}, batch, void_mask=VOID), step({}, batch))


def test_crowds_are_background_of_masks_and_no_error():
    """Mask losses are the plain ones; a query on a crowd has no class loss, as one on void."""
    torch.manual_seed(5)
    batch = batch_of([4, 3])
    plain, crowds = step({}, batch), step({}, batch, void_mask=CROWD * VOID)
    names = [name for name in plain[0] if "cross_entropy" not in name]
    assert names and all(torch.equal(plain[0][name], crowds[0][name]) for name in names)
    criterion = MPFormerCriterion(tiny_config(mask_piloting=False))
    prediction, features = Prediction(torch.randn(2, 8, 5), torch.randn(2, 8, 32)), torch.randn(2, 32, 16, 24)
    everywhere = torch.ones(2, 64, 96)
    weights = []
    for region in (everywhere, CROWD * everywhere):
        targets = collect_targets(*random_targets([2, 1]), (64, 96), 4, void_mask=region)
        [assignment] = criterion.matcher([prediction], features, targets, ByteMasks(targets.masks), seeded())
        weights.append(assignment.unmatched_weights)
    assert torch.equal(*weights) and (weights[0] == 0).any()
    assert targets.masks.any(), "masks stay where crowds overlap them"


def test_predictions_in_void_get_no_gradient():
    criterion = MPFormerCriterion(tiny_config(mask_piloting=False))
    masks, labels = random_targets([3, 2])
    targets = collect_targets(masks, labels, (64, 96), 4, void_mask=VOID)
    features = torch.randn(2, 32, 16, 24, requires_grad=True)
    prediction = Prediction(torch.randn(2, 8, 5), torch.randn(2, 8, 32))
    losses = criterion([prediction], features, targets)
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    inside = torch.zeros(2, 16, 24, dtype=torch.bool)
    inside[0, 6:11, 4:13] = True  # cells of 4x4 pixels whose neighbours are void too
    inside[1, :, 19:] = True
    grad = features.grad.abs().sum(1)
    assert (grad[inside] == 0).all() and (grad[~inside] > 0).any()


def test_the_mask_loss_is_a_mean_over_labelled_points():
    criterion = MPFormerCriterion(tiny_config(mask_piloting=False, importance_sample_ratio=0.0, train_num_points=5000))
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, :, :48] = True
    features = torch.ones(1, 32, 16, 24)
    prediction = Prediction(torch.zeros(1, 1, 5), torch.full((1, 1, 32), 1 / 32))
    for void, expected in ((slice(48, 96), 0.313), (slice(0, 48), 1.313)):  # softplus(-1) and softplus(1)
        void_mask = torch.zeros(1, 64, 96)
        void_mask[:, :, void] = 1
        targets = collect_targets([mask], [torch.tensor([0])], (64, 96), 4, void_mask=void_mask)
        loss = criterion([prediction], features, targets)["loss_mask"] / 5
        assert loss.item() == pytest.approx(expected, abs=0.03)


def test_no_object_or_any_class_that_was_not_annotated():
    logits = torch.randn(3, 2, 7, 5, requires_grad=True)
    annotated = torch.tensor([[True, False, True, False], [True] * 4])
    probability = logits.softmax(-1)
    marginal = torch.stack((probability[:, 0][..., [1, 3, 4]].sum(-1), probability[:, 1, :, 4]), dim=1)
    merged = no_object_or_unknown(logits, annotated).log_softmax(-1)[..., -1]
    torch.testing.assert_close(merged, marginal.log())
    ours, theirs = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (merged, marginal.log()))
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(no_object_or_unknown(logits, annotated)[:, 1], logits[:, 1])


def test_class_loss_of_unmatched_queries_of_partly_annotated_images():
    torch.manual_seed(0)
    config = tiny_config(mask_piloting=False, num_queries=3)
    annotated = torch.tensor([[True, False, False, True]])
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, :30] = True
    targets = collect_targets([mask], [torch.tensor([1])], (64, 96), 4, annotated_classes=annotated)
    logits = torch.randn(1, 3, 5)
    prediction, features = Prediction(logits, torch.randn(1, 3, 32)), torch.randn(1, 32, 16, 24)
    criterion = MPFormerCriterion(config)
    [assignment] = criterion.matcher([prediction], features, targets, ByteMasks(targets.masks), seeded())
    probability = logits.softmax(-1)[0]
    expected = sum(
        -probability[query, 1].log() if query == assignment.query else -0.1 * probability[query, [1, 2, 4]].sum().log()
        for query in range(3)
    )
    loss = criterion([prediction], features, targets, generator=seeded())["loss_cross_entropy"]
    torch.testing.assert_close(loss, config.class_weight * expected / 1.2)


def test_where_the_mask_of_an_unmatched_query_lies():
    left, right = torch.arange(10) < 5, torch.arange(10) >= 5
    logits = torch.stack([torch.where(inside, 1.0, -1.0) for inside in (left, right, left | right, left & right)])[None]
    covered, void = left[None], torch.zeros(1, 10, dtype=torch.bool)
    none, incomplete = torch.tensor([True]), torch.tensor([False])
    assert unmatched_weights(logits, covered, None, none, 0.1).tolist() == [[1, 1, 1, 1]]
    on_object, off, half, empty = unmatched_weights(logits, covered, None, incomplete, 0.25)[0].tolist()
    assert (on_object, off, half, empty) == (1, 0.25, 0.25, 0.25)
    void[:, 4:] = True
    assert unmatched_weights(logits, covered, void, None, 0.25).tolist() == [[1, 0, 0, 1]]
    assert unmatched_weights(logits, covered, void, incomplete, 0.25).tolist() == [[1, 0, 0, 0.25]]


@pytest.mark.parametrize("void", [False, True])
def test_the_class_loss_is_the_mean_over_what_counts(void):
    """As the weighted mean of `torch.nn.functional.cross_entropy`, with a weight for each query; after each layer."""
    config = tiny_config(mask_piloting=False, num_queries=8, incomplete_no_object_weight=0.3)
    masks, labels = random_targets([2, 1])
    known = (
        {"void_mask": torch.tensor([0, 1])[:, None, None].expand(2, 64, 96)}
        if void
        else {"complete": torch.tensor([False, True])}
    )
    targets = collect_targets(masks, labels, (64, 96), 4, **known)
    predictions = [Prediction(torch.randn(2, 8, 5), torch.randn(2, 8, 32)) for _ in range(2)]
    features, criterion = torch.randn(2, 32, 16, 24), MPFormerCriterion(config)
    assignments = criterion.matcher(predictions, features, targets, ByteMasks(targets.masks), seeded())
    losses = criterion(predictions, features, targets, generator=seeded())
    for name, prediction, assignment in zip(
        ("loss_cross_entropy_0", "loss_cross_entropy"), predictions, assignments, strict=True
    ):
        weights, classes = 0.1 * assignment.unmatched_weights, torch.full((2, 8), 4)
        matched = (assignment.batch_index, assignment.query)
        weights[matched], classes[matched] = 1.0, targets.labels[assignment.target]
        assert (weights < 0.1).any()
        entropy = torch.nn.functional.cross_entropy(
            prediction.class_logits.flatten(0, 1), classes.flatten(), reduction="none"
        )
        expected = (weights.flatten() * entropy).sum() / weights.sum()
        torch.testing.assert_close(losses[name], config.class_weight * expected)


@pytest.mark.parametrize("pilot", [True, False])
def test_queries_off_the_objects_of_an_incomplete_image_are_no_negatives(pilot):
    """With full weight the loss is the plain one; without weight, only the class loss changes."""
    torch.manual_seed(3)
    batch = batch_of([2, 2])
    known = {"complete": torch.tensor([False, True])}
    plain = step({"mask_piloting": pilot}, batch)
    assert equal(step({"mask_piloting": pilot, "incomplete_no_object_weight": 1.0}, batch, **known), plain)
    losses, _ = step({"mask_piloting": pilot, "incomplete_no_object_weight": 0.0}, batch, **known)
    assert losses["loss_cross_entropy"] != plain[0]["loss_cross_entropy"]
    assert torch.equal(losses["loss_mask"], plain[0]["loss_mask"])


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({"void_mask": torch.zeros(2, 64, 95)}, r"void_mask has shape \(2, 64, 95\)"),
        ({"annotated_classes": torch.ones(2, 5)}, r"annotated_classes has shape \(2, 5\), expected \(2, 4\)"),
        ({"complete": torch.ones(3)}, r"complete has shape \(3,\), expected \(2,\)"),
    ],
)
def test_other_shapes_are_refused(known, text):
    with pytest.raises(ValueError, match=text):
        tiny_model()(**batch_of([1, 1]), **known)
