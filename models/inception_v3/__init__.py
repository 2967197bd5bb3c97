"""Inception V3: branches of small convolutions, in torchvision's version and in Keras's."""

from jgraph.models.inception_v3._config import InceptionV3Config as InceptionV3Config
from jgraph.models.inception_v3._modeling import InceptionV3 as InceptionV3
