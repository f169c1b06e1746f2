"""A model to the Hugging Face Hub and back, by `textsam.load` and by transformers. Needs `hf auth login` once."""

# %%
import sys

from skimage import data
from transformers import pipeline

import textsam

repository = sys.argv[1] if len(sys.argv) > 1 else "your-name/my-sam"
sam = textsam.load()
print(textsam.push_to_hub(sam, repository))

# %%
again = textsam.load(repository)
print(len(again.predict(data.chelsea(), text="cat")), "found")

# %%
segmenter = pipeline("text-prompted-segmentation", model=repository)
print([result["label"] for result in segmenter(data.chelsea(), text="cat")])
