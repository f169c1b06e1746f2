"""The model as transformers' users know it: `AutoModel`, `AutoProcessor`, tensors in between."""

# %%
import sys

import torch
from skimage import data
from transformers import AutoModel, AutoProcessor

from textsam.checkpoints.encoders import packaged_folder

# A folder that TextSAM saved, or a Hub id.
name = sys.argv[1] if len(sys.argv) > 1 else packaged_folder("textsam-tiny")
processor = AutoProcessor.from_pretrained(name)
model = AutoModel.from_pretrained(name, dtype=torch.float32).eval()

# %% A word with a box in one decoder call.
inputs = processor(images=data.chelsea(), text="cat", input_boxes=[[10, 5, 400, 295]])
with torch.inference_mode():
    outputs = model(**inputs, multimask_output=False)

# %%
(masks,) = processor.post_process_masks(outputs.low_res_logits, inputs["original_sizes"])
(segments,) = processor.post_process_instance_segmentation(outputs, inputs["original_sizes"])
print(tuple(masks.shape), segments["segments_info"])
