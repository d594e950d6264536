"""What the ONNX parser of each TensorRT release reads: operators, and the newest opset.

Sources: ``docs/operators.md`` of onnx/onnx-tensorrt (releases 8.4, at 009d6541; 8.5, at 6d0ab7be; 9.2; 10.15) and its
``docs/Changelog.md``, which says since when an operator is read. ``Reciprocal``, which the table of 8.4 denies, is in
that parser's source. ``Gelu`` and ``Mish`` are in the table of 10.15, and nothing says since when: they are taken for
read as soon as an opset has them. The opset of 8.x, 10.15 and 11 is NVIDIA's own; that of 10.3 and 10.13 is the one of
the ONNX that the parser was built with (1.16; 1.18 since 10.11).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from splitboard.contract.errors import UserError

_SINCE_8_2 = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu
    Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity If InstanceNormalization IsNaN LRN LSTM LeakyRelu Less
    LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean Min Mul Neg NonMaxSuppression Not Or
    PRelu Pad Pow QuantizeLinear RNN RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence Round Scan Scatter ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze
    Upsample Where
"""
_SINCE_8_5 = """
    GridSample HardSwish MeanVarianceNormalization Mod NonZero OneHot RandomNormal RandomNormalLike RoiAlign Shrink
    Trilu Xor
"""
_SINCE_8_6 = "GroupNormalization IsInf LayerNormalization"
_SINCE_10_3 = "CastLike DeformConv Gelu Hardmax Mish"
_SINCE_10_13 = "BlackmanWindow HammingWindow HannWindow STFT"
_SINCE_10_15 = "Attention RMSNormalization RotaryEmbedding TensorScatter"


@dataclass(frozen=True)
class Parser:
    """The ONNX parser of a TensorRT release.

    Attributes:
        tensorrt: the release, e.g. ``8.5``.
        opset: newest that it is documented for.
        operators: of ONNX's own that it reads.
    """

    tensorrt: str
    opset: int
    operators: frozenset[str]


def _parsers() -> tuple[Parser, ...]:
    read: frozenset[str] = frozenset()
    found = []
    for tensorrt, opset, more in (
        ("8.2", 13, _SINCE_8_2),
        ("8.5", 17, _SINCE_8_5),
        ("8.6", 17, _SINCE_8_6),
        ("10.3", 21, _SINCE_10_3),
        ("10.13", 23, _SINCE_10_13),
        ("10.15", 24, _SINCE_10_15),
        ("11.0", 25, ""),
    ):
        read |= set(more.split())
        found.append(Parser(tensorrt, opset, read))
    return tuple(found)


PARSERS = _parsers()
"""The oldest first."""


def parser_of(tensorrt: str) -> Parser:
    """The newest of `PARSERS` of a release's major that is not newer than it.

    Args:
        tensorrt: e.g. ``8.5.2``.

    Raises:
        UserError: it is no release, or the table has none of its major that is as old.
    """
    wanted = release(tensorrt)
    fitting = [one for one in PARSERS if release(one.tensorrt) <= wanted and release(one.tensorrt)[0] == wanted[0]]
    if not fitting:
        known = ", ".join(f"{major}.x from {oldest} on" for major, oldest in _oldest_of_majors().items())
        raise UserError(f'what the parser of TensorRT "{tensorrt}" reads is not known', [known])
    return fitting[-1]


def named_release(tensorrt: str) -> str:
    """The release that a user names: of a major alone (``10``) the oldest that is known, and else what is named.

    Raises:
        UserError: it is no release.
    """
    oldest = _oldest_of_majors().get(release(tensorrt)[0])
    return oldest if oldest is not None and "." not in tensorrt else tensorrt


def release(tensorrt: str) -> tuple[int, int]:
    """Major and minor number of a release.

    Raises:
        UserError: it is none.
    """
    if re.fullmatch(r"[0-9]+(\.[0-9]+){0,3}", tensorrt) is None:
        raise UserError(f'"{tensorrt}" is no release of TensorRT', ["as 8.5 or 10.3.0"])
    major, minor = [int(part) for part in f"{tensorrt}.0".split(".")[:2]]
    return major, minor


def _oldest_of_majors() -> dict[int, str]:
    found: dict[int, str] = {}
    for one in PARSERS:
        found.setdefault(release(one.tensorrt)[0], one.tensorrt)
    return found
