"""MobileNetV2: inverted residual blocks, in torchvision's version and in Keras's."""

from jgraph.models.mobilenet_v2._config import MobileNetV2Config as MobileNetV2Config
from jgraph.models.mobilenet_v2._modeling import MobileNetV2 as MobileNetV2
