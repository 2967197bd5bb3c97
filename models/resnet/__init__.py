"""ResNet: residual networks of bottleneck blocks, in torchvision's version and in Keras's."""

from jgraph.models.resnet._config import ResNetConfig as ResNetConfig
from jgraph.models.resnet._modeling import ResNet as ResNet
