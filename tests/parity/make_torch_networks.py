"""The recipe of tests/data/networks/*-torchvision.* and *-timm.*: the networks by their peers.

    python -m venv peers && . peers/bin/activate
    pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31 safetensors
    PYTHONPATH=. python tests/parity/make_torch_networks.py tests/data/networks [FOLDER]

For each network: a .json with the names, shapes and types of its tensors and its number of
parameters, and a .npz with what it computes with the weights of network_fill.py, in float64. With
FOLDER, the weights also as torch.save and safetensors write them, for compare_networks.py.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportIndexIssue=false
# The reference libraries are in no extra of jgraph.

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.parity.network_fill import CLASSES, LARGE_PICTURES, fill, pictures, probe

# torchvision's own operators are built for one build of torch; networks need none of them.
for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor a, Tensor b, float c) -> Tensor")
import timm  # noqa: E402
import torchvision  # noqa: E402


def kind(name: str, module: torch.nn.Module) -> str:
    if isinstance(module, torch.nn.BatchNorm2d) and name == "weight":
        return "scale"
    return {"weight": "kernel", "running_mean": "mean", "running_var": "var"}.get(name, name)


def fill_network(model: torch.nn.Module) -> None:
    for path, module in model.named_modules():
        for leaf, tensor in module.state_dict(keep_vars=True).items():
            if "." in leaf or leaf == "num_batches_tracked":
                continue
            shape = tuple(tensor.shape)
            values = fill(f"{path}.{leaf}", kind(leaf, module), shape, int(np.prod(shape[1:])))
            tensor.data.copy_(torch.from_numpy(values))


def nchw(x_BHWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x_BHWC.transpose(0, 3, 1, 2).copy()).double()


def reference(model: torch.nn.Module, features: Callable[[Any], Any]) -> dict[str, np.ndarray]:
    model = model.double().eval()
    x = nchw(pictures())
    with torch.no_grad():
        found = {"logits": model(x).numpy(), "features": features(x)[:, :32].numpy()}
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.training = False  # of this module alone: Inception's second head needs 299 pixels
    counts: dict[str, int] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _m, args, name=name: counts.update({name: args[0].numel() // args[0].shape[1]})
        )
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    logits.square().mean().backward()
    found["train_logits"] = logits.detach().numpy()
    named = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    found["gradients"] = np.stack([probe(n, g) for n, g in sorted(named.items())])
    state = {k: v.numpy() for k, v in model.state_dict().items() if "running_" in k}
    state = {k: v for k, v in state.items() if not k.startswith("AuxLogits")}
    found["statistics"] = np.stack([probe(n, v) for n, v in sorted(state.items())])
    # Of how many numbers each variance is: torch's running variance is the one over n - 1.
    found["counts"] = np.array([n for _, n in sorted(counts.items())])
    return found


def train_logits(model: torch.nn.Module) -> np.ndarray:
    """Return the logits in train mode, without dropout as `reference` leaves the model."""
    model.train()
    model.training = False  # of this module alone: without its second head
    with torch.no_grad():
        return model(nchw(pictures("large", LARGE_PICTURES))).numpy()


def auxiliary(model: torch.nn.Module) -> np.ndarray:
    """Return the logits of the second head in eval mode."""
    outputs = []
    model.AuxLogits.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    model.eval()
    model.training = True  # of this module alone: its branch, with the stored statistics
    with torch.no_grad():
        model(nchw(pictures("large", LARGE_PICTURES)))
    return outputs[0].numpy()


def describe(model: torch.nn.Module) -> dict[str, Any]:
    tensors = {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in model.state_dict().items()
    }
    return {"parameters": sum(p.numel() for p in model.parameters()), "tensors": tensors}


def networks() -> dict[str, tuple[torch.nn.Module, Callable]]:
    zoo = torchvision.models
    inception = zoo.inception_v3(
        weights=None, num_classes=CLASSES, aux_logits=True, init_weights=False
    )
    resnet = zoo.resnet50(weights=None, num_classes=CLASSES)
    mobilenet = zoo.mobilenet_v2(weights=None, num_classes=CLASSES)
    made: dict[str, tuple[torch.nn.Module, Callable]] = {}
    for name, model, head in (
        ("inception_v3", inception, "fc"),
        ("resnet50", resnet, "fc"),
        ("mobilenet_v2", mobilenet, "classifier"),
    ):
        made[f"{name}-torchvision"] = (model, _before(model, head))
    for name, theirs in (
        ("inception_v3", "inception_v3"),
        ("resnet50", "resnet50"),
        ("mobilenet_v2", "mobilenetv2_100"),
    ):
        model = timm.create_model(theirs, num_classes=CLASSES)
        made[f"{name}-timm"] = (
            model,
            lambda x, model=model: model.forward_head(model.forward_features(x), pre_logits=True),
        )
    return made


def _before(model: torch.nn.Module, head: str) -> Callable:
    def features(x: torch.Tensor) -> torch.Tensor:
        seen = []
        hook = getattr(model, head).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        model(x)
        hook.remove()
        return seen[0]

    return features


def main(folder: Path, whole: Path | None) -> None:
    folder.mkdir(exist_ok=True)
    for name, (model, features) in networks().items():
        fill_network(model)
        if whole is not None:
            whole.mkdir(exist_ok=True)
            torch.save(model.state_dict(), whole / f"{name}.pth")
            save_file(model.state_dict(), whole / f"{name}.safetensors")
        described = describe(model)
        found = reference(model, features)
        if name == "inception_v3-torchvision":
            found["large_train_logits"] = train_logits(model)
            fill_network(model)  # training moved the statistics
            found["auxiliary"] = auxiliary(model)
        (folder / f"{name}.json").write_text(json.dumps(described) + "\n")
        np.savez_compressed(folder / f"{name}.npz", **found)
        print(name, described["parameters"], float(np.abs(found["logits"]).max()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
