"""The recipe of tests/data/tensors_zip.pth and tensors_legacy.pth: `torch.save` in both formats.

pip install torch==2.13.0
python tests/parity/make_torch_files.py tests/data
"""

# pyright: reportMissingImports=false
# The reference libraries are in no extra of jgraph.

import sys
from collections import OrderedDict
from pathlib import Path

import torch


def tensors() -> OrderedDict[str, torch.Tensor]:
    numbers = torch.arange(12, dtype=torch.float32)
    return OrderedDict(
        single=numbers,
        transposed_view=numbers.reshape(3, 4).T[1:],
        double=torch.tensor([[0.1, -2.5]], dtype=torch.float64),
        half=torch.tensor([0.5, 65504.0], dtype=torch.float16),
        brain=torch.tensor([1.0, 3.140625], dtype=torch.bfloat16),
        int64=torch.tensor(-(2**40)),
        int32=torch.tensor([[7]], dtype=torch.int32),
        int16=torch.tensor([-300], dtype=torch.int16),
        int8=torch.tensor([-128, 127], dtype=torch.int8),
        uint8=torch.tensor([0, 255], dtype=torch.uint8),
        flag=torch.tensor([True, False]),
        empty=torch.zeros((0, 3)),
        parameter=torch.nn.Parameter(torch.full((1, 2), 9.0)),
    )


def main(folder: Path) -> None:
    torch.save(tensors(), folder / "tensors_zip.pth")
    checkpoint = {"epoch": 3, "state_dict": tensors()}
    torch.save(checkpoint, folder / "tensors_legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
