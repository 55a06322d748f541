"""The pilot: layout, masks, every noise and every option."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F

from mpformer_hf.model import pilot_noise as room
from mpformer_hf.model.boxes import mask_boxes
from mpformer_hf.model.configuration_mpformer import MASK_NOISES, PILOT_NOISES
from mpformer_hf.model.mask_piloting import build_pilot, pool_masks
from mpformer_hf.model.targets import collect_targets
from tests.tiny import batch_of, random_targets, tiny_config, tiny_model

SHAPES = [(2, 3), (4, 6), (8, 12)]


GEOMETRIC = MASK_NOISES


def targets_of(counts, size=(64, 96), num_labels=4):
    return collect_targets(*random_targets(counts, size, num_labels=num_labels), size)


def pilot_of(counts=(3, 1), targets=None, **fields):
    return build_pilot(targets or targets_of(counts), SHAPES, tiny_config(**fields))


def square(size=(64, 96), box=(20, 30, 16, 24)):
    """One target: a rectangle at (y, x, height, width)."""
    mask = torch.zeros(1, *size, dtype=torch.uint8)
    y, x, height, width = box
    mask[0, y : y + height, x : x + width] = 1
    return mask


def test_slots_groups_and_targets():
    pilot = pilot_of((3, 0, 1), pilot_groups=2)
    assert pilot.num_queries == 6
    assert pilot.batch_index.tolist() == [0] * 6 + [2] * 2
    assert pilot.slot.tolist() == [0, 1, 2, 3, 4, 5, 0, 3]
    assert pilot.target.tolist() == [0, 1, 2, 0, 1, 2, 3, 3]
    assert pilot.counts == [6, 0, 2]
    assert pilot.valid.sum(1).tolist() == [6, 0, 2]


def test_who_sees_whom():
    pilot = pilot_of((3, 1), pilot_groups=2)
    seen = pilot.self_attention_mask[:, 0]
    assert not seen[:, 6:, :6].any(), "matching queries see the pilot"
    assert seen[:, :, 6:].all(), "a query does not see the matching queries"
    assert seen[0, :3, :3].all() and not seen[0, :3, 3:6].any() and not seen[0, 3:6, :3].any()
    assert seen[1, :6, :6].any(0).tolist() == [True, False, False, True, False, False], "unused slots are seen"


def test_a_batch_without_targets_has_no_pilot_queries():
    pilot = pilot_of((0, 0))
    assert pilot.num_queries == 0 and pilot.counts == [0, 0]
    assert pilot.self_attention_mask.all() and pilot.sample_attention_mask(0).shape[2] == 0
    assert pilot_of((2, 1), mask_piloting=False) is None


def test_query_budget_sets_the_groups():
    assert pilot_of((3, 1), pilot_query_budget=12).groups == 4
    assert pilot_of((3, 1), pilot_query_budget=2).groups == 1
    assert pilot_of((3, 1), pilot_groups=5, pilot_query_budget=6).groups == 2


def test_piloted_layers():
    assert [pilot_of(pilot_layers=2).uses_gt_mask(i) for i in range(4)] == [True, True, False, False]
    assert not pilot_of(pilot_layers=0).uses_gt_mask(0)
    assert pilot_of().uses_gt_mask(100)


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (5, 7)])
@pytest.mark.parametrize("shape", [(2, 3), (8, 12)])
def test_pooling_sets_a_cell_if_any_pixel_is(size, shape):
    masks = (torch.rand(6, *size) > 0.97).to(torch.uint8)
    expected = F.adaptive_max_pool2d(masks.float(), shape) > 0
    assert torch.equal(pool_masks(masks, shape), expected)
    if size == (64, 96):
        assert torch.equal(expected, F.interpolate(masks[None].float(), size=shape, mode="area")[0] > 1e-8)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16])
def test_any_mask_dtype(dtype):
    masks, labels = random_targets((2,))
    targets = collect_targets([masks[0].to(dtype)], labels, (64, 96))
    plain = collect_targets(masks, labels, (64, 96))
    masks = [pilot_of(targets=t).sample_attention_mask(2) for t in (targets, plain)]
    assert torch.equal(*masks)


@pytest.mark.parametrize("noise", PILOT_NOISES)
def test_no_noise_is_the_clean_mask(noise):
    targets = targets_of((3, 1))
    pilot = pilot_of(targets=targets, pilot_noise=noise, pilot_groups=2)
    for level, shape in enumerate(SHAPES):
        clean = pool_masks(targets.masks, shape).flatten(1)
        cells = pilot.sample_attention_mask(level)
        for row in range(len(pilot.target)):
            assert torch.equal(cells[pilot.batch_index[row], 0, pilot.slot[row]], clean[pilot.target[row]])
        assert not cells[~pilot.valid[:, None].expand(-1, cells.shape[1], -1)].any()


def grid(noise, scale=0.5, per_head=False, masks=None, labels_seed=0):
    masks = square() if masks is None else masks
    targets = collect_targets([masks], [torch.zeros(len(masks), dtype=torch.int64)], tuple(masks.shape[1:]))
    return pilot_of(targets=targets, pilot_noise=noise, pilot_noise_scale=scale, pilot_per_head_noise=per_head)


@pytest.mark.parametrize("noise", PILOT_NOISES)
@pytest.mark.parametrize("scale", [0.3, 0.9, 5.0])
def test_every_noise_changes_the_mask_and_none_inverts_it(noise, scale):
    masks = square().expand(50, -1, -1)
    pilot = grid(noise, scale, masks=masks)
    clean = pool_masks(masks, SHAPES[2]).flatten(1)
    noisy = pilot.sample_attention_mask(2)[0, 0]
    assert (noisy != clean).any()
    if scale <= 1:
        assert (noisy & clean).sum() / clean.sum() > (noisy & ~clean).sum() / (~clean).sum(), "background is preferred"


@pytest.mark.parametrize("noise", PILOT_NOISES)
def test_cell_noise_is_fresh_at_each_use_and_geometry_is_not(noise):
    pilot = grid(noise, 0.6)
    first, second = pilot.sample_attention_mask(2), pilot.sample_attention_mask(2)
    assert torch.equal(first, second) == (noise in GEOMETRIC)


@pytest.mark.parametrize("noise", GEOMETRIC)
def test_geometry_is_the_same_object_at_all_levels(noise):
    pilot = grid(noise, 1.0)
    fine = pilot.sample_attention_mask(2)[0, 0].view(1, *SHAPES[2])
    for level in (0, 1):
        cells = pilot.sample_attention_mask(level)[0, 0].view(1, *SHAPES[level])
        assert torch.equal(pool_masks(fine.to(torch.uint8), SHAPES[level]), cells)


@pytest.mark.parametrize("noise", PILOT_NOISES)
def test_noise_per_head(noise):
    # Wide objects: at the finest level heads that draw alone all but surely differ.
    together = grid(noise, 0.6).sample_attention_mask(2)
    apart = grid(noise, 0.6, per_head=True).sample_attention_mask(2)
    assert together.shape[1] == 1 and apart.shape[1] == 4
    assert not all(torch.equal(apart[:, 0], apart[:, head]) for head in range(1, 4))


def test_point_flip_rate_equals_its_formula():
    cells = torch.zeros(4000, 1, 96, dtype=torch.bool)
    cells[:, :, :24] = True
    flipped = room.flip_points(cells, 0.4, None) ^ cells
    assert flipped[..., :24].float().mean().item() == pytest.approx(0.4 * 24 / 96, abs=0.005)
    assert flipped[..., 24:].float().mean().item() == pytest.approx(0.4 * 24 / 96, abs=0.005)


def test_dropout_rate_equals_its_formula():
    cells = torch.rand(2000, 1, 96) > 0.5
    kept = room.drop_cells(cells, 0.3, None)
    assert not (kept & ~cells).any()
    assert (kept.sum() / cells.sum()).item() == pytest.approx(0.7, abs=0.005)


def test_label_noise_rate_equals_its_formula():
    labels = torch.arange(20000) % 5
    shown = room.replace_labels(labels, 5, 0.2, None)
    assert (shown != labels).float().mean().item() == pytest.approx(0.2 * 4 / 5, abs=0.01)
    assert shown.min() == 0 and shown.max() == 4
    assert torch.equal(room.replace_labels(labels, 5, 0.0, None), labels)


def test_shift_moves_along_its_own_axis_within_its_bound():
    masks = square(box=(24, 20, 8, 40)).expand(400, -1, -1)
    boxes = mask_boxes(room.GEOMETRIC_NOISES["shift"](masks, 0.5, None)).float()
    dx, dy = boxes[:, 0] - 20, boxes[:, 1] - 24
    assert dx.abs().max() <= 10.5 and dy.abs().max() <= 2.5, "bounds: 0.5 x half the width, half the height"
    assert dx.abs().max() > 8 and dy.abs().max() > 1.4
    assert abs(dx.mean()) < 1 and abs(dy.mean()) < 0.3, "biased"
    assert torch.equal(boxes[:, 2] - boxes[:, 0], torch.full((400,), 40.0))


def test_what_leaves_the_frame_is_lost_and_nothing_is_smeared():
    masks, one = square(box=(0, 0, 8, 8)), torch.ones(1)
    inward = room.transform_masks(masks, torch.tensor([[5.0, 3.0]]), one)
    assert torch.equal(inward, square(box=(3, 5, 8, 8)))
    outward = room.transform_masks(masks, torch.tensor([[-5.0, 0.0]]), one)
    assert torch.equal(outward, square(box=(0, 0, 8, 3)))
    assert not room.transform_masks(masks, torch.tensor([[-50.0, 0.0]]), one).any()


def test_zoom_keeps_the_centre_and_the_bounds():
    masks = square(box=(24, 60, 8, 16)).expand(400, -1, -1)
    boxes = mask_boxes(room.GEOMETRIC_NOISES["scale"](masks, 1.0, None)).float()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert width.min() >= 7 and width.max() <= 33 and width.min() < 10 and width.max() > 28
    assert ((width < 16).float().mean() - 0.5).abs() < 0.1, "as often smaller as larger"
    assert ((boxes[:, 0] + boxes[:, 2]) / 2 - 68).abs().max() <= 1
    assert (width / height - 2).abs().max() < 0.6


def test_patches_are_added_near_their_area():
    masks = square(box=(20, 30, 20, 20)).expand(300, -1, -1)
    patched = room.add_patches(masks, 0.25, None)
    assert (patched >= masks).all()
    added = (patched - masks).flatten(1).sum(1).float()
    assert added.max() <= 130 and added.max() > 80 and (added > 0).float().mean() > 0.8
    tiny = room.add_patches(torch.zeros(5, 8, 8, dtype=torch.uint8), 0.1, None)
    assert tiny.flatten(1).sum(1).tolist() == [1] * 5
    assert room.add_patches(torch.ones(2, 8, 8, dtype=torch.uint8), 9.0, None).all()


def test_boxes_and_empty_masks():
    masks = torch.cat((square(), torch.zeros(1, 64, 96, dtype=torch.uint8)))
    assert mask_boxes(masks).tolist() == [[30, 20, 54, 36], [0, 0, 0, 0]]
    for noise in ("shift", "scale", "shift_scale"):
        assert not grid(noise, 1.0, masks=masks).sample_attention_mask(2)[0, 0, 1].any()


def outputs_of(model, batch, seed=5):
    """Class logits of the last prediction `[pilot | matching]`, in training mode, and the pilot."""
    targets = collect_targets(batch["mask_labels"], batch["class_labels"], tuple(batch["pixel_values"].shape[-2:]))
    model.train()
    with torch.no_grad():
        out = model.model(
            batch["pixel_values"], targets=targets, output_masks=False, generator=torch.Generator().manual_seed(seed)
        )
    return out.transformer_decoder_intermediate_states[-1], out.pilot


@pytest.fixture
def model():
    model = tiny_model("swin")
    model.config.backbone_config.drop_path_rate = 0.0
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model


@pytest.mark.parametrize("noise", [*PILOT_NOISES, ["box", "shift", "clean"]])
def test_matching_queries_do_not_see_the_pilot(model, noise):
    batch = batch_of((3, 1))
    for name, value in {"pilot_noise": noise, "pilot_noise_scale": 0.5, "pilot_groups": 2}.items():
        setattr(model.config, name, value)
    model.eval()
    with torch.no_grad():
        expected = model.model(batch["pixel_values"]).transformer_decoder_intermediate_states[-1]
    states, pilot = outputs_of(model, batch)
    torch.testing.assert_close(states[:, pilot.num_queries :], expected, atol=2e-5, rtol=0)


def test_groups_are_equal_without_noise_and_differ_with_it(model):
    batch = batch_of((3, 1))
    model.config.pilot_groups = 3
    model.config.pilot_label_noise = 0.0
    states, _ = outputs_of(model, batch)
    groups = states[:, :9].unflatten(1, (3, 3))
    torch.testing.assert_close(groups[:, 0], groups[:, 1], atol=2e-5, rtol=0)
    torch.testing.assert_close(groups[:, 0], groups[:, 2], atol=2e-5, rtol=0)
    model.config.pilot_noise_scale = 1.0
    states, _ = outputs_of(model, batch)
    groups = states[0, :9].unflatten(0, (3, 3))
    assert (groups[0] - groups[1]).abs().max() > 1e-3


def test_permuting_targets_permutes_the_pilot(model):
    batch = batch_of((4,))
    model.config.pilot_label_noise = 0.0
    states, _ = outputs_of(model, batch)
    order = torch.tensor([2, 0, 3, 1])
    permuted = {
        **batch,
        "mask_labels": [batch["mask_labels"][0][order]],
        "class_labels": [batch["class_labels"][0][order]],
    }
    again, _ = outputs_of(model, permuted)
    torch.testing.assert_close(again[:, :4], states[:, :4][:, order], atol=2e-5, rtol=0)
    torch.testing.assert_close(again[:, 4:], states[:, 4:], atol=2e-5, rtol=0)


def test_an_image_does_not_depend_on_its_neighbours(model):
    batch = batch_of((2, 7))
    model.config.pilot_label_noise = 0.0
    model.config.pilot_groups = 2
    both, pilot = outputs_of(model, batch)
    alone, own = outputs_of(model, {key: value[:1] for key, value in batch.items()})
    rows, own_rows = pilot.slot[pilot.batch_index == 0], own.slot
    torch.testing.assert_close(both[0, rows], alone[0, own_rows], atol=2e-5, rtol=0)
    torch.testing.assert_close(both[0, pilot.num_queries :], alone[0, own.num_queries :], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"pilot_noise_scale": 1.0},
        {"pilot_noise_scale": 1.0, "pilot_noise": "dropout"},
        {"pilot_layers": 1},
        {"pilot_label_noise": 1.0},
        {"pilot_noise_scale": 1.0, "pilot_per_head_noise": True},
    ],
)
def test_each_option_reaches_the_pilot_queries(model, change):
    batch = batch_of((6, 6))
    model.config.pilot_label_noise = 0.0
    if "pilot_per_head_noise" in change:
        model.config.pilot_noise_scale = 1.0
    before, _ = outputs_of(model, batch)
    for name, value in change.items():
        setattr(model.config, name, value)
    after, _ = outputs_of(model, batch)
    assert (before[:, :6] - after[:, :6]).abs().max() > 1e-3
    torch.testing.assert_close(before[:, 6:], after[:, 6:], atol=2e-5, rtol=0)


def test_boxes_cover_the_object_and_move_by_the_share_of_their_sides():
    disc = square()
    disc[0, 20:24, 30:40] = 0  # not a rectangle
    exact = room.box_masks(disc, 0.0, None)
    assert torch.equal(exact, square()) and not room.box_masks(torch.zeros_like(disc), 0.5, None).any()
    boxes = mask_boxes(room.box_masks(disc.expand(200, -1, -1), 0.5, None)).float()
    moved = (boxes - torch.tensor([30.0, 20, 54, 36])).abs() / torch.tensor([24, 16, 24, 16])
    assert 0.2 < moved.max() <= 0.25 + 0.5 / 16 and (boxes[:, 2:] > boxes[:, :2]).all()
    assert (room.box_masks(disc.expand(50, -1, -1), 9.0, None).flatten(1).sum(1) > 0).all()


def test_outlines_are_moved_by_pixels():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(6, 30, 40, generator=generator) < 0.02).to(torch.uint8)
    radius = torch.tensor([0, 1, 2, 3, 5, 40])
    for mask, grown, r in zip(masks, room.grow_masks(masks, radius), radius.tolist(), strict=True):
        assert torch.equal(grown[None].float(), F.max_pool2d(mask[None].float(), 2 * r + 1, 1, r))
    areas = room.move_outlines(square().expand(100, -1, -1), 0.5, generator).flatten(1).sum(1)
    assert areas.min() < 16 * 24 < areas.max() and (areas == 16 * 24).sum() < 40
    full = torch.ones(20, 8, 8, dtype=torch.uint8)
    assert room.move_outlines(full, 1.0, generator).all(), "the border of the image does not erode"


def test_each_query_draws_one_of_several_noises():
    masks = square()
    masks[0, 20:24, 30:40] = 0
    rows = masks.expand(4000, -1, -1)
    changed = room.change_masks(rows, ("box", "box", "shift", "clean"), 0.0, torch.Generator().manual_seed(0))
    box = (changed == room.box_masks(masks, 0.0, None)).flatten(1).all(1)
    clean = (changed == masks).flatten(1).all(1)
    assert (box ^ clean).all() and 0.45 < box.float().mean() < 0.55
    strong = room.change_masks(rows, ("patch", "clean"), 0.5, torch.Generator().manual_seed(0))
    assert 0.45 < (strong == masks).flatten(1).all(1).float().mean() < 0.56


@pytest.mark.parametrize("noise", [[], ["point", "box"], ["box", "circle"], "clean", "circle"])
def test_noises_that_cannot_be(noise):
    with pytest.raises(StrictDataclassError, match="pilot_noise must be"):
        tiny_config(pilot_noise=noise)


def test_one_noise_in_a_list_is_that_noise(tmp_path):
    assert tiny_config(pilot_noise=["point"]).pilot_noise == "point"
    tiny_config(pilot_noise=["box", "shift"]).save_pretrained(tmp_path)
    assert type(tiny_config()).from_pretrained(tmp_path).pilot_noises == ("box", "shift")


def test_gradients_reach_the_class_embedding(model):
    model.train()
    embedding = model.model.transformer_module.pilot_class_embedder.weight
    batch = batch_of((2, 0))
    model.config.pilot_label_noise = 0.0
    model(**batch).loss.backward()
    used = batch["class_labels"][0].unique()
    assert (embedding.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == used.tolist()


def test_groups_share_the_weight_of_one(model):
    batch = batch_of((3, 1))
    model.config.pilot_label_noise = 0.0
    model.train()
    losses = []
    for groups in (1, 3):
        model.config.pilot_groups = groups
        losses.append(model(**batch).loss_dict)
    for name in (name for name in losses[0] if "cross_entropy_pilot" in name):
        torch.testing.assert_close(losses[0][name], losses[1][name], atol=1e-4, rtol=1e-4)
    assert 0.5 < losses[1]["loss_dice_pilot"] / losses[0]["loss_dice_pilot"] < 2


def test_no_pilot_outside_of_training(model):
    batch = batch_of((3, 1))
    targets = collect_targets(batch["mask_labels"], batch["class_labels"], (64, 96))
    with torch.no_grad():
        assert model.eval().model(batch["pixel_values"], targets=targets).pilot is None
        assert model.train().model(batch["pixel_values"], targets=targets).pilot is not None
