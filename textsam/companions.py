"""Lets transformers know TextSAM's classes as soon as both are imported.

`import textsam` does not import transformers: that takes seconds. Instead a finder watches for transformers' registries
of classes. When the import that loads one of them ends, in whichever order the user imports, our module that registers
there is imported, too.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# The registry, and the module of ours that registers itself there when it is imported.
COMPANIONS = {
    "transformers.models.auto.configuration_auto": "textsam.model",
    "transformers.models.auto.modeling_auto": "textsam.model",
    "transformers.models.auto.processing_auto": "textsam.huggingface.processing",
    "transformers.pipelines": "textsam.huggingface.pipeline",
}


class CompanionFinder:
    """Finds modules of transformers as Python would, and is told when one has been imported."""

    def __init__(self) -> None:
        # Of all threads together: while one imports a part of transformers, our modules would wait for it, and it for
        # the one that another thread has just finished.
        self._nesting = 0
        self._lock = threading.Lock()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("transformers."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with self._lock:
                self._nesting += 1
            try:
                execute(module)
            finally:
                with self._lock:
                    self._nesting -= 1
                    outermost = self._nesting == 0
            if outermost:  # no module of transformers is half imported now
                import_companions()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch() -> None:
    """Import the companions of what is imported already, and from now on those of what will be."""
    if not any(isinstance(finder, CompanionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, CompanionFinder())  # type: ignore[arg-type]
    import_companions()


def import_companions() -> None:
    """Those whose registry is there. One that is half imported just now registers itself at its end."""
    for registry, companion in COMPANIONS.items():
        if registry in sys.modules and companion not in sys.modules:
            import_module(companion)
    if all(companion in sys.modules for companion in COMPANIONS.values()):
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, CompanionFinder)]
