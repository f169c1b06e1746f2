"""Automatic masks of a photo of 12 megapixels, with crops, stay within the memory of a laptop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A decoder of SAM's size behind a small encoder; thresholds let every mask through, more than a trained model would.
PROGRAM = """
import resource, sys
import numpy as np
sys.path.insert(0, "tests")
from tiny_models import tiny_model
from textsam.prompting.automatic import generate
from textsam.prompting.automatic_options import AutomaticOptions

model = tiny_model(image_size=1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
options = AutomaticOptions(
    points_per_side=16,
    pred_iou_thresh=-1e9,
    stability_score_thresh=0.0,
    box_nms_thresh=1.0,
    crop_nms_thresh=1.0,
    crop_n_layers=1,
)
photo = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
masks = generate(model, photo, options)
print(len(masks), before / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.slow
@pytest.mark.parametrize("native", ["0", "wait"])
def test_peak_memory(native: str) -> None:
    root = Path(__file__).parent.parent
    environment = os.environ | {"TEXTSAM_NATIVE": native, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, before, peak = (float(x) for x in done.stdout.split())
    assert count > 700
    # 4 GB in all: ViT-B's weights and its encoder's 0.2 GB, which this small encoder does not have, are 0.6 GB.
    assert peak < 3.4
    assert peak - before < 2.4
