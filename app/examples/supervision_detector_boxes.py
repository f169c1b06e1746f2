"""Any detector's boxes to masks: its `sv.Detections` are the prompt, and its names stay."""

# %% Boxes as a detector would give them (`sv.Detections.from_ultralytics`, `.from_transformers`, ...).
import numpy as np
import supervision as sv
from PIL import Image
from skimage import data

import textsam

photo = data.chelsea()
detections = sv.Detections(
    xyxy=np.array([[5, 0, 395, 299], [120, 80, 330, 230]], np.float32),
    confidence=np.array([0.9, 0.6], np.float32),
    class_id=np.array([15, 7]),
    data={"class_name": np.array(["cat", "face"])},
)

# %%
sam = textsam.load()
masks = sam.predict(photo, boxes=detections)
print(list(zip(masks.data["class_name"], masks.class_id, masks.area, strict=True)))

# %% Into supervision's annotators and data sets.
canvas = sv.LabelAnnotator().annotate(sv.MaskAnnotator().annotate(photo.copy(), masks), masks)
Image.fromarray(canvas).save("boxes.png")
Image.fromarray(photo).save("cat.png")
masks.class_id = np.arange(2)
dataset = sv.DetectionDataset(classes=["cat", "face"], images=["cat.png"], annotations={"cat.png": masks})
dataset.as_yolo(annotations_directory_path="labels", data_yaml_path="data.yaml")
