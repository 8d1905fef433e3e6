"""Claim: the paper's COCO-sized fine-tuning job takes under 30 s on an H200, from JPEG files on (the paper: 2 minutes).

The job: 10,000 images of 640 x 480, 5 epochs, two views of 224 pixels, batches of 256, LoRA of rank 16, 16 bits,
DINOv2-B with registers. The weights are random (from a config; speed does not depend on them), and so are the images:
smooth random gradients with noise, written as JPEG files first, which is not timed. Prints seconds, images a second,
and the share of the device's matrix rate (measured in the same run) that the model's own products come to.

    python benchmarks/finetune.py [--images 10000] [--epochs 5] [--device cuda] [--compile] [--json FILE]

Anything smaller for a look on a CPU:

    python benchmarks/finetune.py --images 64 --image-size 160x120 --epochs 2 --batch-size 16 --hidden 64 --layers 2 \
        --heads 2 --crop 56 --device cpu
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from crovca.encoders.encoder import Encoder
from crovca.encoders.lora import adapt
from crovca.hasher import Hasher
from crovca.hashing.train import Silent


class Stopwatch(Silent):
    """When decoding was over."""

    def __init__(self) -> None:
        self.decoded = 0.0

    def advance(self, stage: str, share: float) -> None:
        self.decoded = time.perf_counter()


def write_images(folder: Path, count: int, size: tuple[int, int]) -> int:
    """JPEG files of quality 90; returns their bytes."""
    folder.mkdir()
    width, height = size

    def one(number: int) -> int:
        random = np.random.default_rng(number)
        colors = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(colors.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + random.integers(-12, 13, smooth.shape, np.int16)).clip(0, 255).astype(np.uint8)
        path = folder / f"{number:06}.jpg"
        Image.fromarray(noisy).save(path, quality=90)
        return path.stat().st_size

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(one, range(count)))


def write_encoder(folder: Path, hidden: int, layers: int, heads: int, crop: int) -> None:
    """DINOv2 with registers, of random weights."""
    import transformers

    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, image_size=518, patch_size=14
    )
    transformers.Dinov2WithRegistersModel(config).save_pretrained(folder)
    settings = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": round(crop * 256 / 224)},
        "crop_size": {"height": crop, "width": crop},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def operations(folder: Path, rank: int) -> tuple[float, float]:
    """Floating-point operations of the encoder for one view: forward alone, and forward and backward with LoRA."""
    encoder = Encoder.load(folder, device="cpu", dtype="float32")
    adapt(encoder, rank=rank)
    pixels = torch.zeros(2, 3, *encoder.preprocessing.size)
    counts = []
    for learning in (False, True):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            with torch.set_grad_enabled(learning):
                output = encoder.forward(pixels)
            if learning:
                output.sum().backward()  # type: ignore[no-untyped-call]
        counts.append(counter.get_total_flops() / len(pixels))
    return counts[0], counts[1]


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square product, the best of several."""
    side = 8192 if device.type == "cuda" else 1024
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def synchronized() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    best = float("inf")
    for _ in range(10):
        started = synchronized()
        torch.mm(one, other)
        best = min(best, synchronized() - started)
    return 2 * side**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--image-size", default="640x480", help="width x height")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    width, height = map(int, arguments.image_size.split("x"))

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        size = write_images(root / "images", arguments.images, (width, height))
        write_encoder(root / "encoder", arguments.hidden, arguments.layers, arguments.heads, arguments.crop)
        forward, both = operations(root / "encoder", arguments.rank)
        hasher = Hasher.for_images(
            root / "encoder",
            arguments.bits,
            nested=False,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            lora_rank=arguments.rank,
            compile=arguments.compile,
            gradient_checkpointing=arguments.gradient_checkpointing,
            device=arguments.device,
            dtype=arguments.dtype,
        )
        watch = Stopwatch()
        started = time.perf_counter()
        hasher.fit(root / "images", observer=watch)
        ended = time.perf_counter()  # the statistics at the end wait for the device

    encoder = hasher.towers_["images"].encoder
    assert encoder is not None
    steps = arguments.images // min(arguments.batch_size, arguments.images)
    views = 2 * steps * min(arguments.batch_size, arguments.images)  # of an epoch
    seconds, training = ended - started, ended - watch.decoded
    work = views * (forward + (arguments.epochs - 1) * both)  # the first epoch trains the head alone
    measured = matrix_rate(encoder.device, encoder.dtype)
    name = torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else platform.processor()
    result: dict[str, Any] = {
        "device": f"{encoder.device} {name}".strip(),
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "images": arguments.images,
        "image_size": arguments.image_size,
        "megabytes_of_jpeg": round(size / 1e6, 1),
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "trained_parameters": hasher.towers_.trained,
        "parameters": hasher.towers_.total,
        "seconds": round(seconds, 2),
        "seconds_of_loading_and_decoding": round(seconds - training, 2),
        "seconds_of_training": round(training, 2),
        "images_per_second": round(arguments.images * arguments.epochs / seconds, 1),
        "views_per_second_of_training": round(views * arguments.epochs / training, 1),
        "gigaflop_per_view": {"forward": round(forward / 1e9, 3), "forward_backward": round(both / 1e9, 3)},
        "matrix_teraflop_per_second": round(measured / 1e12, 3),
        "share_of_matrix_rate": round(work / training / measured, 3),
        "share_of_matrix_rate_in_all": round(work / seconds / measured, 3),
    }
    print(f"{result['device']}, {result['dtype']}: {seconds:.1f} s, {result['images_per_second']:,} images a second")
    print(
        f"  loading and decoding {seconds - training:.1f} s, training {training:.1f} s, in which the encoder's products"
    )
    print(f"  take {100 * result['share_of_matrix_rate']:.1f} % of the measured {measured / 1e12:.1f} Tflop/s")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
