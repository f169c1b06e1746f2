"""TextSAM: words, clicks, boxes and masks to objects in a picture.

`import textsam` is light: the names below are imported when they are first used, so that nobody waits for PyTorch
to print a help text. transformers learns of the pipeline and of the classes for its `Auto...` when both are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from textsam.companions import watch

if TYPE_CHECKING:
    from textsam.checkpoints.loading import load
    from textsam.checkpoints.publishing import push_adapter, push_to_hub
    from textsam.huggingface.processing import TextSamProcessor
    from textsam.language.clip import CropEncoder, TextEncoder
    from textsam.language.queries import QueryList
    from textsam.model import TextSamConfig, TextSamModel
    from textsam.predictor import TextSam
    from textsam.queries import find_queries
    from textsam.slicing import find_in_slices
    from textsam.text_regions.read import read_text_regions

__version__ = "0.1.0"
__all__ = [
    "CropEncoder",
    "QueryList",
    "TextEncoder",
    "TextSam",
    "TextSamConfig",
    "TextSamModel",
    "TextSamProcessor",
    "__version__",
    "find_in_slices",
    "find_queries",
    "load",
    "push_adapter",
    "push_to_hub",
    "read_text_regions",
]

_HOME = {
    "CropEncoder": "textsam.language.clip",
    "QueryList": "textsam.language.queries",
    "TextEncoder": "textsam.language.clip",
    "TextSam": "textsam.predictor",
    "TextSamConfig": "textsam.model",
    "TextSamModel": "textsam.model",
    "TextSamProcessor": "textsam.huggingface.processing",
    "find_in_slices": "textsam.slicing",
    "find_queries": "textsam.queries",
    "load": "textsam.checkpoints.loading",
    "push_adapter": "textsam.checkpoints.publishing",
    "push_to_hub": "textsam.checkpoints.publishing",
    "read_text_regions": "textsam.text_regions.read",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'textsam' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next access is a plain look-up
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


watch()
