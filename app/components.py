"""Gradio's components with methods of our own."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any, TypeVar

Component = TypeVar("Component")


def extended(component: type[Component], **members: Any) -> type[Component]:
    """A class that looks like its base to the browser, with members replaced.

    A class, because a session makes an instance anew with every update of it, and forgets what was set on the former.
    Made past Gradio's own metaclass, which writes a file beside the source of every class that extends a component.
    """
    members = {"is_template": True, "__module__": component.__module__, **members}
    return ABCMeta.__new__(type(component), component.__name__, (component,), members)
