"""Decoding 500x375 JPEGs to 224 px: by what is installed, by Pillow alone, and by tf.data.

CPU time of all threads. What must hold: 1,000 pictures a second and core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from benchmarks import _peer, _photographs
from benchmarks._paired import paired
from jgraph._preprocessing import Preprocessing
from jgraph.data import Pictures, _fast, decode_picture, libraries

COUNT = 96
PREPROCESSING = Preprocessing(224, 256, "bicubic", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    with tempfile.TemporaryDirectory() as folder:
        files, _ = _photographs.write(Path(folder), COUNT)
        size = sum(Path(file).stat().st_size for file in files) / COUNT / 1e3
        yield f"{COUNT} pictures of {size:.0f} kB each"

        def ours() -> None:
            for file in files:
                decode_picture(file, PREPROCESSING)

        def pillow() -> None:
            with mock.patch.multiple(_fast, simplejpeg=None, cv2=None, resizer=None):
                ours()

        ratio = paired(ours, pillow, rounds)
        rate = COUNT / ratio.seconds[0]
        yield f"{libraries()} over Pillow alone: {ratio}; {rate:.0f} pictures a second and core"

        def batches() -> None:
            for _ in Pictures(files, None, PREPROCESSING, batch_size=32):
                pass

        yield f"batches, two threads, over decode_picture: {paired(batches, ours, rounds)}"
        with _peer.running("tf_data", "tensorflow", files=files) as peer:
            if peer is None:
                yield f"tf.data: not installed; benchmarks/setup, or {_peer.PYTHON_VARIABLE}"
            else:
                yield f"batches over tf.data: {paired(batches, peer.turn, rounds, timed=True)}"
