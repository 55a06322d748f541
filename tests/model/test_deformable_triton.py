"""The Triton kernels: equal to the operators of torch, when interpreted and on a GPU if there is one, and compiled for
GPUs that are not here."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpformer_hf.model import deformable_attention
from mpformer_hf.model.deformable_attention import is_fused, use_implementation

triton = pytest.importorskip("triton")


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "interpret", ["1", pytest.param("0", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
)
def test_the_kernels_equal_the_operators_of_torch(interpret):
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    command = [sys.executable, "-W", "ignore", "-m", "tests.triton_cases"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == (5 if interpret == "1" else 6), done.stdout


@pytest.mark.parametrize("capability, dtype", [(80, "fp32"), (90, "bf16"), (100, "fp16")])
def test_they_compile_for_gpus_without_spills(capability, dtype, tmp_path):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mpformer_hf.model.deformable_triton import BLOCK, WARPS, backward_kernel, forward_kernel

    constants = {"N": 8, "D": 32, "D_BLOCK": 32, "L": 3, "P": 4, "M": BLOCK // 32}
    for kernel in (forward_kernel, backward_kernel):
        signature = {}
        for name in kernel.arg_names:
            own = dtype if name in ("value", "out", "grad") else "fp32"
            signature[name] = "constexpr" if name in constants else f"*{own}"
        signature |= {"shapes": ("i32",) * 6, "queries": "i32", "cells": "i32"}
        source = ASTSource(kernel, signature, constexprs=constants)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": WARPS})
        file = tmp_path / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
        registers, stack, local = (int(re.search(f"{name}:(\\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
        assert registers < 255 and stack == local == 0, f"{kernel.fn.__name__}: {usage}"


def test_the_implementation_is_chosen_by_device_and_switch(monkeypatch):
    monkeypatch.setattr(deformable_attention, "chosen", "auto")
    on_cpu, wide = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert not is_fused(on_cpu)
    use_implementation("fused")
    assert is_fused(on_cpu) and not is_fused(wide)
    use_implementation("torch")
    assert not is_fused(on_cpu)
    with pytest.raises(ValueError, match="must be one of auto, fused, torch, got 'cuda'"):
        use_implementation("cuda")
    monkeypatch.setenv("MPFORMER_DEFORMABLE_ATTENTION", "fused")
    spec = importlib.util.spec_from_file_location("a_new_process", deformable_attention.__file__)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    assert module.is_fused(on_cpu)
    monkeypatch.setattr(deformable_attention, "has_triton", lambda: False)
    with pytest.raises(ValueError, match="needs Triton"):
        use_implementation("fused")
