"""Cases of tests/test_deformable_triton.py that need a process of their own: on a GPU if there is one, on the CPU with
`TRITON_INTERPRET=1`, with NumPy instead of a compiler."""

import os
import sys

import torch

from mpformer_hf.model.deformable_attention import deformable_sampling, use_implementation
from mpformer_hf.model.deformable_triton import fused_sampling
from tests.tiny import tiny_model

CASES = [  # images, heads, channels, points, queries, levels
    (2, 2, 32, 4, 10, [(3, 4), (6, 8)]),
    (1, 3, 24, 2, 33, [(1, 1), (5, 2), (7, 3)]),
    (2, 4, 12, 4, 9, [(2, 3), (4, 6), (8, 12)]),
    (3, 1, 256, 1, 5, [(9, 4)]),
]
ON_GPU = os.environ.get("TRITON_INTERPRET") != "1"
TOO_SLOW_INTERPRETED = ("test_equality_at_the_size_of_an_encoder_layer",)
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def make_case(case, dtype):
    images, heads, channels, points, queries, shapes = case
    value = torch.randn(images, sum(h * w for h, w in shapes), heads, channels).to(dtype)
    size = (images * queries, heads, len(shapes) * points)
    x, y, weights = torch.rand(size) * 14 - 2, torch.rand(size) * 12 - 2, torch.rand(size)
    x[0, 0, 0], y[-1, 0, 0], x[1, 0, 0] = 1e9, float("-inf"), -0.4999  # far away, and on the border
    return value, shapes, x, y, weights


def flat(shapes):
    return [side for shape in shapes for side in shape]


def test_equality():
    for case in CASES:
        for dtype, rounding in ROUNDING.items() if case is CASES[0] else [(torch.float32, 1e-5)]:
            value, shapes, *rest = make_case(case, dtype)
            ours = [t.clone().requires_grad_() for t in (value, *rest)]
            theirs = [t.clone().float().requires_grad_() for t in (value, *rest)]
            out = fused_sampling(ours[0], flat(shapes), *ours[1:])
            expected = deformable_sampling(theirs[0], shapes, *theirs[1:])
            grad = torch.randn_like(expected).to(dtype)
            out.backward(grad)
            expected.backward(grad.float())
            assert out.dtype == dtype
            torch.testing.assert_close(out.float(), expected, atol=rounding, rtol=rounding)
            for a, b in zip(ours, theirs, strict=True):
                assert a.grad.dtype == a.dtype
                own = rounding if a is ours[0] else 1e-5
                torch.testing.assert_close(a.grad.float(), b.grad, atol=own, rtol=own)


def test_equality_at_the_size_of_an_encoder_layer():
    for dtype in ROUNDING:
        case = make_case((2, 8, 32, 4, 5376, [(16, 16), (32, 32), (64, 64)]), dtype)
        grad = torch.randn(2 * 5376, 256)
        results = []
        for wide, operator in ((False, "fused"), (True, "torch")):  # torch in float64
            value, shapes, *rest = case
            inputs = [t.double() if wide else t for t in (value, *rest)]
            inputs = [t.clone().requires_grad_() for t in inputs]
            use_implementation(operator)
            out = deformable_sampling(inputs[0], shapes, *inputs[1:])
            out.backward(grad.to(out.dtype))
            results.append([out.double(), *(t.grad.double() for t in inputs)])
        use_implementation("auto")
        for ours, expected in zip(*results, strict=True):
            error = (ours - expected).norm() / expected.norm()
            limit = 1e-3 if dtype == torch.float32 else ROUNDING[dtype]
            assert error < limit, f"{dtype}: {error}"


def test_nan_positions_stay_visible_and_harm_nothing_else():
    value, shapes, x, y, weights = make_case(CASES[0], torch.float32)
    before = fused_sampling(value, flat(shapes), x, y, weights)
    x[3, 1, 2] = float("nan")
    after = fused_sampling(value, flat(shapes), x, y, weights).view(len(x), 2, -1)
    assert after[3, 1].isnan().all()
    after[3, 1] = before.view(len(x), 2, -1)[3, 1]
    assert torch.equal(after.flatten(1), before)


def test_torch_knows_the_operator():
    value, shapes, x, y, weights = make_case((1, 1, 4, 1, 2, [(2, 3)]), torch.float32)
    tensors = [t.nan_to_num(0.0, 9.0, -9.0).requires_grad_() for t in (value, x, y, weights)]
    arguments = (tensors[0], flat(shapes), *tensors[1:])
    torch.library.opcheck(torch.ops.mpformer.deformable_sampling, arguments)

    class Sampling(torch.nn.Module):
        def forward(self, value, x, y, weights):
            return fused_sampling(value, flat(shapes), x, y, weights) * 2

    plain = tuple(t.detach() for t in tensors)
    expected = Sampling()(*plain)
    assert torch.equal(torch.export.export(Sampling(), plain).module()(*plain), expected)
    compiled = torch.compile(Sampling(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*plain), expected)
    compiled(*tensors).sum().backward()
    assert all(t.grad is not None for t in tensors)


def test_no_queries():
    value, shapes, x, y, weights = make_case(CASES[0], torch.float32)
    empty = [t[:0].clone().requires_grad_() for t in (x, y, weights)]
    out = fused_sampling(value, flat(shapes), *empty)
    assert out.shape == (0, 64)


def test_the_model_is_the_same_with_both():
    model, results = tiny_model().train(), []
    image = torch.rand(2, 3, 64, 96)
    masks, labels = [torch.ones(2, 64, 96), torch.ones(1, 64, 96)], [torch.tensor([0, 1]), torch.tensor([2])]
    for name in ("torch", "fused"):
        use_implementation(name)
        model.zero_grad()
        torch.manual_seed(5)
        out = model(image, mask_labels=masks, class_labels=labels)
        out.loss.backward()
        gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        results.append((out.masks_queries_logits, out.loss, gradients))
    use_implementation("auto")
    (one, loss, gradients), (two, other_loss, others) = results
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss, other_loss, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == others.keys()
    for key in gradients:
        torch.testing.assert_close(gradients[key], others[key], atol=2e-3, rtol=2e-2, msg=key)


if __name__ == "__main__":
    if ON_GPU:
        torch.set_default_device("cuda")
    torch.manual_seed(0)
    for name, test in list(globals().items()):
        chosen = name in sys.argv[1:] if len(sys.argv) > 1 else ON_GPU or name not in TOO_SLOW_INTERPRETED
        if name.startswith("test_") and chosen:
            test()
            print(name)
