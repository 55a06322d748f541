"""Graphs for the runtimes of phones, which know fewer operators and memory layouts than PyTorch."""

import torch
from torch.export import ExportedProgram

aten = torch.ops.aten
SAME = {
    aten.__or__.Tensor: aten.logical_or.default,  # of bools, as all that follow
    aten.bitwise_or.Tensor: aten.logical_or.default,
    aten.bitwise_and.Tensor: aten.logical_and.default,
    aten.bitwise_not.default: aten.logical_not.default,
    aten.alias.default: aten.clone.default,
    aten.detach.default: aten.clone.default,
}


def portable(program: ExportedProgram) -> ExportedProgram:
    """The same function without channels-last copies (ExecuTorch refuses them), and with operators that Core ML has:
    logical ones for bools, `clamp` by tensors as minimum and maximum, rows that are gathered as int32."""
    program = program.run_decompositions({})
    graph = program.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.kwargs.get("memory_format") is not None:
            node.kwargs = {**node.kwargs, "memory_format": torch.contiguous_format}
        node.target = SAME.get(node.target, node.target)
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is aten.clamp.Tensor:
            values, lowest, highest = node.args
            with graph.inserting_before(node):
                raised = graph.call_function(aten.maximum.default, (values, lowest))
            node.target, node.args = aten.minimum.default, (raised, highest)
        elif node.target is aten.index_select.default:
            with graph.inserting_before(node):
                rows = graph.call_function(aten._to_copy.default, (node.args[2],), {"dtype": torch.int32})
            node.args = (*node.args[:2], rows)
    program.graph_module.recompile()
    return program
