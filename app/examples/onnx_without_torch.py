"""Export with PyTorch, run with NumPy and onnxruntime alone."""

# %% On a machine with PyTorch (or: textsam export --onnx exported).
import subprocess
import sys
from pathlib import Path

from PIL import Image
from skimage import data

import textsam
from textsam.deployment.onnx_export import export_onnx

files = export_onnx(textsam.load(device="cpu", dtype="float32"), Path("exported"))
print([path.name for path in files])

# %% On a machine without it: the folder brings its own script, which writes cat.png here.
Image.fromarray(data.chelsea()).save("cat.jpg")
subprocess.run([sys.executable, "exported/segment.py", "cat.jpg", "cat"], check=True)
