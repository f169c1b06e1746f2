"""Words to objects through transformers' `pipeline`: one photo, a batch, and photos with prompts of their own."""

# %% Importing textsam registers the task. Without a model it is textsam-tiny; a path or Hub id works as usual.
from skimage import data
from transformers import pipeline

import textsam  # noqa: F401

segmenter = pipeline("text-prompted-segmentation")

# %% One photo. Each result has score, label, mask (PIL) and box, as in transformers' own pipelines.
(cat,) = segmenter(data.chelsea(), text="cat")
print(f"{cat['label']} {cat['score']:.2f} {cat['box']}")
cat["mask"].save("cat-mask.png")

# %% Lists, generators and data sets, encoded several at a time.
for found in segmenter([data.chelsea(), data.coffee()], text=["cat", "cup"], batch_size=2):
    print([result["label"] for result in found])

# %% A photo may bring its own prompts: words, points, boxes.
clicked = segmenter({"image": data.chelsea(), "points": [[230, 150]]})
print(f"clicked: {clicked[0]['score']:.2f}")
