"""The page: words, clicks, boxes and brush on one picture, for people, `gradio_client` and MCP.

`python -m app` starts it. The package `textsam` does not import it, and there is no model code in it: everything goes
through `textsam.load`, `TextSam` and supervision's annotators.
"""
