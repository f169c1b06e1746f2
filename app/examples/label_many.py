"""Label a folder; the command line does the same: textsam label photos --classes classes.txt --out labels."""

# %%
import sys
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image
from skimage import data

from textsam.labelling.engines import RayOptions, run_local, run_ray
from textsam.labelling.shards import RunFolder
from textsam.labelling.sources import list_pictures
from textsam.labelling.step import LabelSettings

Path("photos").mkdir(exist_ok=True)
for name in ("chelsea", "coffee", "rocket"):
    Image.fromarray(getattr(data, name)()).save(f"photos/{name}.jpg")

# %% What to find, and which picture belongs to which shard. A folder that was begun goes on where it stopped.
settings = LabelSettings(classes=("cat = cat | kitten", "cup", "rocket @ 0.3"))
folder = RunFolder("labels")
folder.check_settings(settings.identity())
sizes = folder.plan(list_pictures("photos"), shard_size=2)
todo = [shard for shard, size in sizes.items() if folder.left(shard, size)]

# %% Here, or on the workers of Ray: `python label_many.py ray`; RayOptions("ray://head:10001") is a cluster.
if "ray" in sys.argv:
    counts = run_ray(settings, str(folder.out.resolve()), todo, RayOptions(workers=2))
else:
    counts = run_local(settings, "labels", todo)
for good, bad in counts:
    print(f"{good} labelled, {bad} failed")
folder.gather(list(sizes), ["cat", "cup", "rocket"])

# %%
for row in pq.read_table("labels/shards").to_pylist():
    print(row["key"], [found["category_name"] for found in row["annotations"]])
