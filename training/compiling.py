"""Compilation of a model, whole or by block."""

from collections.abc import Iterator

from torch import nn


def compile_model(model: nn.Module, part: str) -> None:
    """Compile in place; names of modules and parameters stay.

    Args:
        model: a module.
        part: `"none"`; `"model"`, as one graph; or `"blocks"`, the layers of backbone and decoders one by one, which
            compiles sooner, since layers of equal shapes share their code.
    """
    if part == "model":
        model.compile()
    elif part == "blocks":
        for block in repeated_blocks(model):
            block.compile()


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists of modules of which two have parameters of equal shapes."""
    children = list(module.children())
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        shapes = [(type(child), *(parameter.shape for parameter in child.parameters())) for child in children]
        if any(len(shape) > 1 and shapes.count(shape) > 1 for shape in shapes):
            yield from children
            return
    for child in children:
        yield from repeated_blocks(child)
