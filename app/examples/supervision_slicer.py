"""Small things in a large picture: TextSAM as the callback of supervision's `InferenceSlicer`."""

# %% A contact sheet of 100 cats, each 40 px wide.
import numpy as np
import supervision as sv
from PIL import Image
from skimage import data

import textsam

small = np.asarray(Image.fromarray(data.chelsea()).resize((40, 27)))
sheet = np.full((512, 512, 3), 90, np.uint8)
for top in range(12, 510, 51):
    for left in range(5, 510, 51):
        sheet[top : top + 27, left : left + 40] = small

# %% As a whole, and in four slices. The slicer hands over parts of what it was given, here RGB. Of small things the
# model is less sure, so they are taken at a lower threshold.
sam = textsam.load()
whole = sam.predict(sheet, text="cat", threshold=0.3)
slicer = sv.InferenceSlicer(
    lambda tile: sam.predict(tile, text="cat", threshold=0.3), 256, overlap_wh=0, compact_masks=True
)
sliced = slicer(sheet)
names = sorted(set(sliced.data["class_name"].tolist()))
print(f"as a whole: {len(whole)}, in slices: {len(sliced)} {names}")

# %% Compact masks go into supervision's annotators as they are.
canvas = sv.MaskAnnotator(color_lookup=sv.ColorLookup.INDEX).annotate(sheet.copy(), sliced)
Image.fromarray(canvas).save("slices.png")
