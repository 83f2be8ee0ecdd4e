"""The ops that a graph is made of. Front ends lower everything else to these.

Importing this package fills the rule tables of certify.rules.
"""

from certify.ops.affine import Linear, Scale
from certify.ops.base import Relaxation, Slopes, Weighted
from certify.ops.conv import Conv, ConvTranspose
from certify.ops.relu import Relu
from certify.ops.shape import Add, Concat, Input, MaxOfTwo, Reshape, Select, SumAxes
from certify.ops.sigmoid import Sigmoid

AFFINE_OPS = (Linear, Scale, Conv, ConvTranspose, Reshape, Select, SumAxes, Concat, Add, MaxOfTwo)
NONLINEAR_OPS = (Relu, Sigmoid)

__all__ = [
    "AFFINE_OPS",
    "NONLINEAR_OPS",
    "Add",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Input",
    "Linear",
    "MaxOfTwo",
    "Relaxation",
    "Relu",
    "Reshape",
    "Scale",
    "Select",
    "Sigmoid",
    "Slopes",
    "SumAxes",
    "Weighted",
]
