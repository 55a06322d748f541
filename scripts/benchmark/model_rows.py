"""Rows of whole models: inference, training steps, their memory, stages of the model, the cost of the pilot."""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from mpformer_hf.utils.compiling import compile_model

from .measuring import compare, compare_memory, measure_memory, seconds
from .models import DEVICE, autocast, build, make_batch, predict, train_step, with_float_masks

MATRIX_SIDE = 8192 if DEVICE.type == "cuda" else 2048  # of the product that measures the device's rate


def inference_rows(args: argparse.Namespace, rounds: int) -> dict:
    ours = build(args.backbone).eval()
    theirs, rows = ours.to_mask2former().eval(), {}
    for size in args.sizes:
        pixels = torch.randn(1, 3, size, size, device=DEVICE)
        works = {
            "transformers": lambda x=pixels: predict(theirs, x, args.dtype),
            "ours": lambda x=pixels: predict(ours, x, args.dtype),
        }
        rows[f"inference {size}"] = compare(works, rounds)
    return rows


def stage_rows(args: argparse.Namespace, rounds: int) -> dict:
    """Stages of eager inference: operations, time, and ratio to the time at the rate of a large matrix product
    (roofline)."""
    ours = build(args.backbone).eval()
    module, size = ours.model.pixel_level_module, args.sizes[0]
    square = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=DEVICE, dtype=args.dtype or torch.float32)
    pixels = torch.randn(1, 3, size, size, device=DEVICE).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), autocast(args.dtype):
        features = list(module.encoder(pixels).feature_maps)
        decoded = module.decoder(features)
    works = {
        "matrix product": lambda: square @ square,
        "backbone": lambda: module.encoder(pixels),
        "pixel decoder": lambda: module.decoder(features),
        "transformer decoder": lambda: ours.model.transformer_module(*decoded),
        "whole model": lambda: ours(pixels),
    }
    with torch.no_grad(), autocast(args.dtype):
        times, rate, rows = compare(works, rounds), None, {}
        for name, work in works.items():
            with FlopCounterMode(display=False) as counter:
                work()
            gflop, seconds_taken = counter.get_total_flops() / 1e9, times[name]["median_s"]
            rate = rate or gflop / seconds_taken
            rows[f"stage, {name} {size}"] = {
                "gflop": round(gflop, 2),
                "median_s": seconds_taken,
                "x_roofline": round(seconds_taken * rate / gflop, 2),
            }
    return rows


def training_rows(args: argparse.Namespace, rounds: int) -> dict:
    ours, rows = build(args.backbone), {}
    theirs = ours.to_mask2former().train()
    for size, batch, targets in training_shapes(args):
        own = make_batch(size, batch, targets)
        other = with_float_masks(own)
        works = {
            "transformers": lambda b=other: train_step(theirs, b, args.dtype),
            "ours, with the pilot": lambda b=own: train_step(ours, b, args.dtype),
        }
        rows[f"training {size}, batch {batch}, {targets} targets"] = compare(works, rounds)
    return rows


def training_shapes(args: argparse.Namespace) -> list[tuple[int, int, int]]:
    """(side, batch size, targets): two images with 20 targets at the first side, one with 50 at the others."""
    return [(size, 2, 20) if index == 0 else (size, 1, 50) for index, size in enumerate(args.sizes)]


def memory_rows(args: argparse.Namespace, rounds: int) -> dict:
    return {
        f"memory, training {size}, batch {batch}, {targets} targets": compare_memory(
            args.backbone, (size, batch, targets), args.dtype
        )
        for size, batch, targets in training_shapes(args)
    }


def pilot_rows(args: argparse.Namespace, rounds: int) -> dict:
    size, batch, targets = training_shapes(args)[0]
    without, own = build(args.backbone, mask_piloting=False), make_batch(size, batch, targets)
    ours = build(args.backbone)
    works = {
        "without pilot": lambda: train_step(without, own, args.dtype),
        "pilot": lambda: train_step(ours, own, args.dtype),
    }
    return {f"the pilot, training {size}, batch {batch}, {targets} targets": compare(works, rounds)}


def option_rows(args: argparse.Namespace, rounds: int) -> dict:
    """Options of `mpformer train`: compiled blocks, compiled model (with the seconds of the first step), and an
    encoder that is not recomputed (with the memory of both)."""
    size, batch, targets = training_shapes(args)[0]
    own, works, first = make_batch(size, batch, targets), {}, {}
    for part in ("none", "blocks", "model"):
        model = build(args.backbone)
        compile_model(model.model, part)
        works[f"torch_compile {part}"] = lambda model=model: train_step(model, own, args.dtype)
    stored = build(args.backbone, recompute_encoder=False)
    works["recompute_encoder false"] = lambda: train_step(stored, own, args.dtype)
    for name, work in works.items():
        first[name] = round(seconds(work), 1)
    row = compare(works, rounds)
    for name in works:
        row[name]["first_step_s"] = first[name]
    for name, recompute in (("torch_compile none", True), ("recompute_encoder false", False)):
        fields, shape = {"recompute_encoder": recompute}, (size, batch, targets)
        row[name]["peak_mib"] = measure_memory(args.backbone, fields, False, shape, args.dtype)
    return {f"options, training {size}, batch {batch}, {targets} targets": row}
