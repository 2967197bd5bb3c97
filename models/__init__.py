"""Networks in Flax NNX: pictures are NHWC and RGB, preprocessing and class names belong to them."""

import os

if __name__ != "jgraph.models":
    raise ImportError(
        "import jgraph.models, not models: the folder at the top of the checkout is reached "
        "through the link jgraph/models"
    )

# One file, one path: debuggers and type checkers then agree on where a breakpoint is.
__path__ = [os.path.realpath(path) for path in __path__]

from jgraph.models._classifier import Backbone as Backbone
from jgraph.models._classifier import Classifier as Classifier
from jgraph.models._create import Published as Published
from jgraph.models._create import create as create
from jgraph.models._create import load_weights as load_weights
from jgraph.models._create import names as names
from jgraph.models._create import published as published
from jgraph.models._imagenet import imagenet_class_names as imagenet_class_names
from jgraph.models._network import PictureNetwork as PictureNetwork
from jgraph.models._weights import LoadedWeights as LoadedWeights
from jgraph.models._weights import read_weights as read_weights
from jgraph.models._weights import set_weights as set_weights
from jgraph.models._weights import weights_of as weights_of
from jgraph.models.efficientnet_lite import EfficientNetLite as EfficientNetLite
from jgraph.models.efficientnet_lite import EfficientNetLiteConfig as EfficientNetLiteConfig
from jgraph.models.gpt import GPT as GPT
from jgraph.models.gpt import GPTConfig as GPTConfig
from jgraph.models.inception_v3 import InceptionV3 as InceptionV3
from jgraph.models.inception_v3 import InceptionV3Config as InceptionV3Config
from jgraph.models.mobilenet_v2 import MobileNetV2 as MobileNetV2
from jgraph.models.mobilenet_v2 import MobileNetV2Config as MobileNetV2Config
from jgraph.models.resnet import ResNet as ResNet
from jgraph.models.resnet import ResNetConfig as ResNetConfig
