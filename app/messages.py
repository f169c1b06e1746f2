"""What the page says to people when something cannot be done."""

from __future__ import annotations

NO_PHOTO = "Drop in a photo first."
GONE = "This photo was put away, because it was idle for long or many people are here. Drop it in again."

ADDRESS = "Nothing is fetched from an address: upload the file, or send its bytes as a data: URL."
NO_LINKS = "This page keeps no links to its states: download what was found."


def sentence(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def escaped(text: str) -> str:
    """Toasts and Markdown take HTML; what somebody typed is none."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
