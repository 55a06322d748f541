"""Layer-wise diagnostics, against hand-made predictions and on real checkpoints of both kinds."""

from types import SimpleNamespace

import pytest
import torch

from mpformer_hf.evaluation.diagnostics import LayerDiagnostics, diagnose, mask_iou
from mpformer_hf.evaluation.plots import plot_diagnostics
from tests.tiny import batch_of, tiny_config, tiny_model


def box(x0, x1):
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[:, x0:x1] = True
    return mask


class Scripted(torch.nn.Module):
    """A model whose predictions are written down: per layer, the mask of each query."""

    def __init__(self, layers):
        super().__init__()
        self.config = tiny_config(num_labels=4, train_num_points=2000)
        self.predictions = []
        for masks in layers:
            logits = 12.0 * torch.stack(masks).float()[None] - 6.0
            classes = torch.zeros(1, len(masks), 5)
            self.predictions.append({"masks_queries_logits": logits, "class_queries_logits": classes})

    def forward(self, pixel_values, output_auxiliary_logits):
        last = self.predictions[-1]

        class Outputs(SimpleNamespace):
            __getitem__ = SimpleNamespace.__getattribute__

        return Outputs(auxiliary_logits=self.predictions[:-1], **last)


def test_definitions_on_a_written_case():
    a, b, half_a, none = box(0, 8), box(12, 24), box(0, 4), box(0, 0)
    # Target A ends at query 0, target B at query 1; in prediction 0 query 2 has A.
    layers = [[half_a, b, a], [a, b, none], [a, b, none]]
    targets = torch.stack([m.repeat_interleave(4, 0).repeat_interleave(4, 1) for m in (a, b)])
    found = diagnose(Scripted(layers), torch.zeros(1, 3, 64, 96), [targets], [torch.tensor([0, 1])])
    assert found.num_targets == 2
    assert found.query_utilisation == [0.5, 1.0, 1.0]
    assert found.mask_consistency == pytest.approx([(0.5 + 1) / 2, 1.0])


def test_mask_iou():
    a, b = torch.stack((box(0, 8), box(0, 0))), torch.stack((box(4, 12), box(0, 0)))
    assert mask_iou(a, b).tolist() == pytest.approx([1 / 3, 1.0])


def test_on_both_kinds_of_checkpoint():
    batch = batch_of((3, 0))
    model = tiny_model()
    ours = diagnose(model, **batch)
    theirs = diagnose(model.to_mask2former(), **batch)
    assert ours == theirs and ours.num_targets == 3
    assert len(ours.mask_consistency) == 4 and len(ours.query_utilisation) == 5
    assert ours.query_utilisation[-1] == 1.0 and all(0 <= v <= 1 for v in ours.mask_consistency)


def test_sums_and_plot(tmp_path):
    total = LayerDiagnostics()
    total += LayerDiagnostics(2, [1.0, 2.0], [1, 1, 2])
    total += LayerDiagnostics()
    total += LayerDiagnostics(2, [1.0, 0.0], [0, 2, 2])
    assert total.mask_consistency == [0.5, 0.5] and total.query_utilisation == [0.25, 0.75, 1.0]
    plot_diagnostics({"a": total, "b": total}, tmp_path / "plots" / "layers.png")
    assert (tmp_path / "plots" / "layers.png").stat().st_size > 5000
