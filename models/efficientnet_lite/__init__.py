"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation, with ReLU6, for small devices."""

from jgraph.models.efficientnet_lite._config import EfficientNetLiteConfig as EfficientNetLiteConfig
from jgraph.models.efficientnet_lite._modeling import EfficientNetLite as EfficientNetLite
