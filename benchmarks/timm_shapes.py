"""The shapes of timm's models: `PYTHONPATH=.venv/peers python -m benchmarks.timm_shapes`.

`make peers` puts timm there. Writes timm_shapes.json, from which the benchmarks read, so that they
need no timm. The parameters stand in the order of the modules, which is that of `parameters()`.
"""

import json
from pathlib import Path

PATH = Path(__file__).with_suffix(".json")
MODELS = {
    "mobilenet_v3": "mobilenetv3_large_100",
    "efficientnet_b0": "efficientnet_b0",
    "vit_s": "vit_small_patch16_224",
    "convnext_t": "convnext_tiny",
    "swin_t": "swin_tiny_patch4_window7_224",
}
"""What timm calls each model of the benchmarks."""


def main() -> None:
    """Build each model without memory for its parameters, and write their shapes."""
    from peers.places import timm as place

    place.places().prepare()  # what torchvision needs to be imported
    import timm
    import torch

    lines: list[str] = []
    with torch.device("meta"):
        for name, known in MODELS.items():
            shapes = [list(p.shape) for p in timm.create_model(known).parameters()]
            lines.append(f"{json.dumps(name)}: {json.dumps(shapes, separators=(',', ':'))}")
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
