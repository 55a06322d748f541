"""A pretended GPU: finds device mismatches, and counts kernels and host synchronisations, on a machine without one.

python -m tests.pretended_gpu [--sites] [--only TITLE]

Tensors say that they lie on a device that is not the CPU, so that the code takes the paths it takes on CUDA; their
values are real ones in CPU memory, so that the whole step runs, matching included, and can be compared with the CPU's.
A dispatch mode sees every operator, forward and backward:

- operands on two devices (0-dimensional CPU tensors aside) are an error;
- what makes the host wait on CUDA is counted by place: copies to the host, copies to the device that are not
  `non_blocking`, `.item()`, nonzero, boolean indexing, unique, repeat_interleave without a size, tensors made of lists;
- kernels are counted, and apart those of matching and losses (forward, and the backward pass of mask_losses.py).

Exit code 1: a mismatch, a loss or gradient that differs from the CPU's, or more waits or kernels than allowed.
"""

import argparse
import collections
import contextlib
import functools
import sys
import traceback
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

ROOT = Path(__file__).resolve().parents[1]
NAME = "pretend"
aten = torch.ops.aten


class Backend:
    """What torch asks a device module for."""

    is_available = staticmethod(lambda: True)
    is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))
    synchronize = staticmethod(lambda device=None: None)

    @staticmethod
    def device(index):
        return contextlib.nullcontext()


class Pretended(torch.Tensor):
    """A tensor that claims to be on the pretended device."""

    @staticmethod
    def __new__(cls, real: torch.Tensor):
        real = real.detach()
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=torch.device(NAME, 0),
        )
        self.values_ = real
        return self

    def __repr__(self, *, tensor_contents=None):
        return f"Pretended({self.real.shape}, {self.real.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {}, None)


WAITS = {  # the host needs the values
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten._unique2: "unique",
    aten._unique: "unique",
    aten.unique_consecutive: "unique",
    aten.unique_dim: "unique",
    aten.equal: "equal",
    aten.is_nonzero: "is_nonzero",
    aten.bincount: "bincount",
    aten._linalg_check_errors: "linalg",
}


def unwrap(x):
    return x.values_ if isinstance(x, Pretended) else x


def wrap(x):
    return Pretended(x) if isinstance(x, torch.Tensor) and not isinstance(x, Pretended) else x


def on_device(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def run(func, args, kwargs, seen):
    flat = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours, host = [x for x in flat if isinstance(x, Pretended)], [x for x in flat if not isinstance(x, Pretended)]
    packet = func.overloadpacket
    record = seen.record if seen is not None else (lambda *a: None)
    if packet is aten._to_copy or packet is aten._pin_memory:
        target = kwargs.get("device")
        leaves = target is not None and not on_device(target) and ours
        enters = on_device(target) and host
        if leaves or (enters and not kwargs.get("non_blocking")):
            record("wait", "copy to host" if leaves else "copy to device", flat[0])
        plain = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
        out = func(unwrap(args[0]), **plain) if plain else unwrap(args[0]).clone()
        return wrap(out) if (on_device(target) or (target is None and ours)) else out
    if packet is aten.copy_ and len(args) > 1 and isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
        record("wait", "copy_ between devices", args[1])
        unwrap(args[0]).copy_(unwrap(args[1]))
        return args[0]
    if ours:
        indexed = packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)
        indices = [x for x in args[1] if x is not None] if indexed else []
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            record("wait", "boolean index", flat[0])
        if any(not isinstance(x, Pretended) for x in indices):
            record("wait", "index from the host", flat[0])
        strangers = [x for x in host if x.dim() > 0 and not any(x is i for i in indices)]
        if strangers:
            record("mismatch", str(func), strangers[0])
        if packet in WAITS:
            record("wait", WAITS[packet], flat[0])
        if (
            packet is aten.repeat_interleave
            and func is aten.repeat_interleave.Tensor
            and kwargs.get("output_size") is None
        ):
            record("wait", "repeat_interleave without a size", flat[0])
        if not func.is_view and packet not in (aten.empty_like, aten.new_empty, aten.detach):
            record("kernel", str(func), ours[0])
    made = on_device(kwargs.get("device"))
    if "device" in kwargs and made:
        kwargs = {**kwargs, "device": "cpu"}
        if packet is not aten.empty:
            record("kernel", str(func), None)
    if (
        "generator" in kwargs
        and isinstance(kwargs["generator"], torch.Generator)
        and kwargs["generator"].device.type == NAME
    ):
        kwargs = {**kwargs, "generator": None}
    out = func(*pytree.tree_map(unwrap, args), **pytree.tree_map(unwrap, kwargs))
    mutated = [
        a
        for a, s in zip(args, func._schema.arguments, strict=False)
        if s.alias_info is not None and s.alias_info.is_write
    ]
    if mutated and isinstance(mutated[0], torch.Tensor) and func._schema.returns and len(func._schema.returns) == 1:
        return mutated[0]
    return pytree.tree_map(wrap, out) if ours or made else out


class Pretend(TorchDispatchMode):
    """Runs operators and keeps what would be wrong or slow on CUDA."""

    def __init__(self):
        super().__init__()
        self.waits, self.mismatches, self.kernels = collections.Counter(), collections.Counter(), collections.Counter()
        self.in_losses = 0

    def record(self, kind, what, tensor):
        if kind == "kernel":
            self.kernels[what] += 1
            files = {Path(frame.filename).name for frame in traceback.extract_stack()}
            self.in_losses += bool(files & {"criterion.py", "matcher.py", "mask_losses.py"})
            return
        table = self.waits if kind == "wait" else self.mismatches
        size = "" if tensor is None else f" {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        table[(place(), what + size)] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {}, self)


QUICK = (
    *("train noise shift_scale per head", "train noise box", "train bf16 gradient checkpointing", "train no targets"),
    *("train one image without", "train pilot positions", "optimize, 2 images", "optimize, 8 images"),
)
F = nn.functional
HALF = {
    F.linear,
    F.conv2d,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__,
    torch.bmm,
    torch.Tensor.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
    torch.conv2d,
}  # CUDA's autocast lists, as far as used
WIDE = {
    F.layer_norm,
    F.group_norm,
    F.softmax,
    torch.softmax,
    torch.Tensor.softmax,
    F.log_softmax,
    F.softplus,
    F.cross_entropy,
    F.binary_cross_entropy_with_logits,
    torch.sum,
    torch.Tensor.sum,
    torch.Tensor.norm,
    torch.norm,
    torch.Tensor.pow,
    torch.pow,
    torch.exp,
    torch.Tensor.exp,
    torch.log,
    torch.Tensor.log,
    torch.cumsum,
    torch.Tensor.cumsum,
}


def cast_as_cuda(func, args, kwargs):
    """Arguments in the dtype that CUDA's autocast gives them."""
    if not torch.is_autocast_enabled(NAME) or func not in HALF | WIDE:
        return args, kwargs
    dtype = torch.get_autocast_dtype(NAME) if func in HALF else torch.float32

    def cast(x):
        eligible = isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if eligible and x.dtype != dtype else x

    return pytree.tree_map(cast, args), pytree.tree_map(cast, kwargs)


class FromLists(TorchFunctionMode):
    """`torch.tensor(..., device)`, `new_tensor`, assignments and attention, which do not reach a dispatch mode as on
    CUDA."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen
        FromLists.current = self

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args, kwargs = cast_as_cuda(func, args, kwargs or {})
        if func is torch.Tensor.new_tensor and isinstance(args[0], Pretended):
            self.seen.record("wait", "new_tensor of a list", args[0])
            return Pretended(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
        if (
            func in (torch.tensor, torch.as_tensor)
            and on_device(kwargs.get("device"))
            and not isinstance(args[0], torch.Tensor)
        ):
            self.seen.record("wait", "tensor of a list", None)
            return Pretended(func(*args, **{**kwargs, "device": "cpu"}))
        if (
            func is torch.Tensor.__setitem__
            and isinstance(args[0], Pretended)
            and not isinstance(args[2], torch.Tensor)
        ):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if not all(isinstance(place, slice) for place in places):  # seen on a GPU; slices are filled
                self.seen.record("wait", "a number is assigned", args[0])
        if func is torch.Tensor.tolist and isinstance(args[0], Pretended):
            self.seen.record("wait", "tolist", args[0])
            return args[0].values_.tolist()
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], Pretended):
            return attention(*args, **kwargs)
        return func(*args, **kwargs)


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if torch.is_autocast_enabled(NAME):
        low = torch.get_autocast_dtype(NAME)
        query, key, value = (x.to(low) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.dropout(scores.float().softmax(-1).to(value.dtype), dropout_p, True) @ value


def place() -> str:
    """The innermost line of this project, and of another package where there is none."""
    frames = [f for f in traceback.extract_stack() if not f.filename.endswith("pretended_gpu.py")]
    own = [f for f in frames if str(ROOT) in f.filename and "site-packages" not in f.filename]
    other = [
        f
        for f in frames
        if "site-packages" in f.filename
        and not any(
            s in f.filename
            for s in (
                "torch/_ops",
                "_dynamo/eval_frame",
                "torch/_compile",
                "torch/_tensor.py",
                "autograd/graph",
                "autograd/__init__",
                "utils/_contextlib",
                "_python_dispatch",
                "torch/overrides",
                "_pytree",
            )
        )
    ]
    chain = []
    if own:
        chain.append(f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}")
    if other and (not own or frames.index(other[-1]) > frames.index(own[-1])):
        chain.append(f"{other[-1].filename.split('site-packages/')[1]}:{other[-1].lineno}")
    return " <- ".join(reversed(chain)) if chain else "?"


def inside_mode(forward):
    """A forward that is seen by `FromLists` when the backward pass computes it again, where modes are off."""

    @functools.wraps(forward)
    def inner(*args, **kwargs):
        off = not any(isinstance(mode, FromLists) for mode in torch.overrides._get_current_function_mode_stack())
        with FromLists.current if off else contextlib.nullcontext():
            return forward(*args, **kwargs)

    return inner


def pretend(x):
    """A module (in place), tensor or nest of them on the pretended device."""
    if isinstance(x, nn.Module):
        for module in x.modules():
            module.forward = inside_mode(module.forward)
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(Pretended(parameter.data.clone()), parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = Pretended(buffer.clone())
        return x
    return pytree.tree_map(lambda t: Pretended(t) if isinstance(t, torch.Tensor) else t, x)


import torch.utils.checkpoint  # noqa: E402

torch.utils.checkpoint._enable_checkpoint_early_stop = False  # its exception does not pass a dispatch mode
torch.autograd.set_multithreading_enabled(False)
torch.ones(1, requires_grad=True).sum().backward()  # starts the engine before it could make a thread for the device
_setup_privateuseone_for_python_backend(NAME, Backend())
STATE = {
    "enabled": False,
    "dtype": torch.bfloat16,
}  # autocast of the pretended device; torch's own would need C++ kernels
REAL = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype


class Autocast(REAL[0]):
    def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        self.mine = device_type == NAME
        if self.mine:
            self.wanted = {"enabled": enabled, "dtype": dtype or STATE["dtype"]}
        else:
            super().__init__(device_type, dtype, enabled, cache_enabled)

    def __enter__(self):
        if not self.mine:
            return super().__enter__()
        self.before = dict(STATE)
        STATE.update(self.wanted)

    def __exit__(self, *error):
        if not self.mine:
            return super().__exit__(*error)
        STATE.update(self.before)


torch.autocast = torch.amp.autocast = torch.amp.autocast_mode.autocast = Autocast
torch.is_autocast_enabled = lambda device=None: STATE["enabled"] if device == NAME else REAL[1](*filter(None, [device]))
torch.get_autocast_dtype = lambda device: STATE["dtype"] if device == NAME else REAL[2](device)


# --- the checks ---


def step(model, batch, device, dtype, clip=True):
    """A training step as `training/engine.py` does it, without accelerate."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    torch.manual_seed(5)
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        output = model(**batch)
    output.loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 0.01, foreach=False)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    grads = {n: g.detach().clone() for n, g in grads.items()}
    optimizer.step()
    optimizer.zero_grad()
    return output.loss.detach(), grads


def engine_step(model, batch, device, dtype, ema):
    """The project's own `FineTuner.optimize` on a batch that lies on the host, with accelerate's part stood in for, and
    a moving average of the weights."""
    from types import SimpleNamespace

    from mpformer_hf import MPFormerImageProcessor
    from mpformer_hf.data.segments import Segments
    from mpformer_hf.training.engine import FineTuner
    from mpformer_hf.training.packing import Unpacker, pack

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    autocast = lambda: torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None)  # noqa: E731
    clip = lambda parameters, norm: nn.utils.clip_grad_norm_(parameters, norm, foreach=False)  # noqa: E731
    accelerator = SimpleNamespace(
        device=torch.device(device),
        accumulate=lambda m: contextlib.nullcontext(),
        autocast=autocast,
        sync_gradients=True,
        scaler=None,
        backward=lambda loss: loss.backward(),
        clip_grad_norm_=clip,
    )
    options = SimpleNamespace(gradient_accumulation_steps=1, max_grad_norm=0.01)
    generator = torch.Generator().manual_seed(7)
    labels = [x.tolist() for x in batch["class_labels"]]
    draw = functools.partial(torch.randint, generator=generator)
    images = [draw(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in labels]
    maps = [draw(0, len(own) + 1, (64, 96), dtype=torch.int32) for own in labels]
    segments = [Segments(map_, dict(enumerate(own, 1))) for map_, own in zip(maps, labels, strict=True)]
    batch = pack(images, maps, segments, 32, "instance")
    unpack = Unpacker(MPFormerImageProcessor(), torch.device("cpu"))
    unpack.mean, unpack.std = (x.to(device, non_blocking=True) for x in (unpack.mean, unpack.std))
    tuner = SimpleNamespace(
        optimization=options,
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        step=2,
        ema=ema,
        unpack=unpack,
        unwrapped_model=lambda: model,
    )
    torch.manual_seed(5)
    tuner.read_losses = functools.partial(FineTuner.read_losses, tuner)
    losses, _, _ = FineTuner.optimize(tuner, iter([(batch, [0, 1])]))
    return torch.tensor(losses["loss"]), {}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", action="store_true", help="list every place that waits")
    parser.add_argument("--waits", type=int, default=6, help="allowed synchronisations of a training step")
    parser.add_argument("--kernels", type=int, default=1200, help="allowed kernels of matching and losses")
    parser.add_argument("--quick", action="store_true", help="some cases only")
    parser.add_argument("--only", default="", help="cases whose title has this")
    args = parser.parse_args()
    from mpformer_hf.model.configuration_mpformer import PILOT_NOISES
    from mpformer_hf.training.moving_average import MovingAverage
    from tests.tiny import batch_of, tiny_model

    cases = [("inference " + b, dict(backbone=b), None, "infer", (2, 3)) for b in ("resnet", "swin", "convnext")]
    cases += [(f"train {b}", dict(backbone=b), None, "train", (2, 3)) for b in ("resnet", "swin", "convnext")]
    cases += [
        (
            f"train noise {n}{' per head' if h else ''}",
            dict(pilot_noise=n, pilot_noise_scale=0.3, pilot_per_head_noise=h),
            None,
            "train",
            (2, 3),
        )
        for n in PILOT_NOISES
        for h in (False, True)
    ]
    cases += [
        ("train bf16", {}, torch.bfloat16, "train", (2, 3)),
        ("train fp16", {}, torch.float16, "train", (2, 3)),
        ("train gradient checkpointing", {"checkpoint": True}, None, "train", (2, 3)),
        ("train bf16 gradient checkpointing", {"checkpoint": True}, torch.bfloat16, "train", (2, 3)),
        ("train 3 groups", {"pilot_groups": 3}, None, "train", (2, 3)),
        ("train budget", {"pilot_query_budget": 12}, None, "train", (2, 3)),
        ("train first two layers", {"pilot_layers": 2}, None, "train", (2, 3)),
        ("train without pilot", {"mask_piloting": False}, None, "train", (2, 3)),
        ("train no targets", {}, None, "train", (0, 0)),
        ("train one image without", {}, None, "train", (0, 3)),
        ("train 8 images", {}, None, "train", (1, 2, 3, 4, 5, 6, 7, 8)),
        ("train, labels on the host", {"host": True}, None, "train", (2, 3)),
        ("optimize, 2 images", {}, torch.bfloat16, "engine", (2, 3)),
        ("optimize, 8 images", {}, torch.bfloat16, "engine", (1, 2, 3, 4, 5, 6, 7, 8)),
        (
            "optimize, 8 images, 10 predictions",
            {"decoder_layers": 10},
            torch.bfloat16,
            "engine",
            (1, 2, 3, 4, 5, 6, 7, 8),
        ),
    ]
    failed = 0
    cases = [case for case in cases if args.only in case[0] and (not args.quick or case[0] in QUICK)]
    for title, fields, dtype, kind, counts in cases:
        fields = dict(fields)
        checkpoint, host = fields.pop("checkpoint", False), fields.pop("host", False)
        torch.manual_seed(0)
        plain = tiny_model(**fields)
        torch.manual_seed(0)
        fake = tiny_model(**fields)
        if checkpoint:
            plain.gradient_checkpointing_enable(), fake.gradient_checkpointing_enable()
        torch.manual_seed(1)
        batch = batch_of(counts)
        seen = Pretend()
        try:
            if kind == "infer":
                with torch.no_grad():
                    want = plain(batch["pixel_values"]).masks_queries_logits
                fake = pretend(fake)
                with torch.no_grad(), FromLists(seen), seen:
                    got = fake(pretend(batch["pixel_values"])).masks_queries_logits
                wrong = (got.values_ - want).abs().max().item()
            elif kind == "engine":
                ema, own = (MovingAverage(model, 0.5, torch.device("cpu")) for model in (plain, fake))
                loss, grads = engine_step(plain, batch, "cpu", dtype, ema)
                fake, own.module = pretend(fake), pretend(own.module)
                with FromLists(seen), seen:
                    got, _ = engine_step(fake, batch, NAME, dtype, own)
                wrong = abs(got.item() - loss.item()) / abs(loss.item())
            else:
                loss, grads = step(plain, batch, "cpu", dtype)
                fake = pretend(fake)
                given = pretend(batch)
                if host:
                    given = {**given, "mask_labels": batch["mask_labels"], "class_labels": batch["class_labels"]}
                with FromLists(seen), seen:
                    got, theirs = step(fake, given, NAME, dtype)
                wrong = abs(got.values_.item() - loss.item()) / abs(loss.item())
                if set(theirs) != set(grads):
                    wrong = float("inf")
                elif dtype is None:
                    size = max(g.abs().max().item() for g in grads.values())
                    wrong = max(wrong, max((theirs[n].values_ - grads[n]).abs().max().item() for n in grads) / size)
            error = None
        except Exception:
            error, wrong = traceback.format_exc(limit=-6), float("nan")
        waits = sum(seen.waits.values())
        limit = 0 if kind == "infer" else args.waits
        tolerance = 1e-3 if dtype is None else 0.05
        bad = bool(error or seen.mismatches or not wrong <= tolerance or (waits > limit and not host))
        bad = bad or (kind != "infer" and seen.in_losses > args.kernels)
        failed += bad
        print(
            f"{'FAIL' if bad else 'ok  '} {title:38s} waits {waits:3d}  mismatches {sum(seen.mismatches.values()):2d}  "
            f"kernels {sum(seen.kernels.values()):5d}, of matching and losses {seen.in_losses:4d}  "
            f"difference {wrong:.1e}",
            flush=True,
        )
        for (where, what), times in seen.mismatches.items():
            print(f"       MISMATCH x{times} {where}: {what}")
        if args.sites:
            for (where, what), times in seen.waits.items():
                print(f"       x{times} {where}: {what}")
        if error:
            print(error)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
