"""What TensorRT 8.6 reads, as far as a graph can be checked without it: operators and their restrictions.

Facts of https://github.com/onnx/onnx-tensorrt, docs/operators.md of TensorRT 8.5, and docs/Changelog.md for 8.6. Later
versions read more.
"""

OPERATORS = set(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "And",
        "ArgMax",
        "ArgMin",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "ConvTranspose",
        "Cos",
        "Cosh",
        "CumSum",
        "DepthToSpace",
        "DequantizeLinear",
        "Div",
        "Dropout",
        "Einsum",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "EyeLike",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gemm",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "Greater",
        "GreaterOrEqual",
        "GridSample",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "If",
        "InstanceNormalization",
        "IsInf",
        "IsNaN",
        "LayerNormalization",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "LogSoftmax",
        "Loop",
        "LpNormalization",
        "LpPool",
        "LRN",
        "LSTM",
        "MatMul",
        "Max",
        "MaxPool",
        "Mean",
        "MeanVarianceNormalization",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "NonMaxSuppression",
        "NonZero",
        "Not",
        "OneHot",
        "Or",
        "Pad",
        "Pow",
        "PRelu",
        "QuantizeLinear",
        "RandomNormal",
        "RandomUniform",
        "Range",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Relu",
        "Reshape",
        "Resize",
        "ReverseSequence",
        "RNN",
        "RoiAlign",
        "Round",
        "Scan",
        "ScatterElements",
        "ScatterND",
        "Selu",
        "Shape",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Size",
        "Slice",
        "Softmax",
        "Softplus",
        "Softsign",
        "SpaceToDepth",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Upsample",
        "Where",
        "Xor",
    ]
)
UNWANTED = {"GridSample", "If", "Loop", "Scan"}  # LightlyTrain found the fusion of GridSample silently wrong
RESIZED = {"mode": (b"nearest", b"linear"), "coordinate_transformation_mode": (b"half_pixel", b"pytorch_half_pixel")}


def problems(graph) -> list[str]:
    """What TensorRT does not read, or may read wrongly, of the nodes of an ONNX graph."""
    constants = {row.name for row in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    found = []
    for node in graph.node:
        fields = {attribute.name: attribute for attribute in node.attribute}
        fits = node.op_type in OPERATORS - UNWANTED
        if node.op_type == "Einsum":
            fits = b"..." not in fields["equation"].s and len(node.input) == 2
        elif node.op_type == "Resize":
            fits = all(fields[name].s in values for name, values in RESIZED.items())
        elif node.op_type == "MaxPool":
            fits = len(node.output) == 1
        elif node.op_type in ("InstanceNormalization", "Squeeze", "Unsqueeze", "QuantizeLinear", "DequantizeLinear"):
            fits = {*node.input[1:]} <= constants
        elif node.op_type == "Slice":
            fits = {*node.input[3:4]} <= constants  # axes
        found += [] if fits else [f"{node.op_type} {node.name}"]
    return found
