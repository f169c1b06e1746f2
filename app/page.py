"""The layout: a wide picture, one column of controls, and which event leads to which handler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from app import actions
from app.asking import LOWEST_CONFIDENCE, default_threshold
from app.brush import brush_editor
from app.components import extended
from app.downloads import FORMATS
from app.endpoints import Endpoints, number_lists, photo_file, word_list
from app.handlers import VIEW_LENGTH, Handlers
from app.limits import LIMITS, workers
from app.lists import MASKS_HTML, ON_LOAD, PROMPTS_HTML
from app.session import SessionStore
from textsam.predictor import TextSam

FOLDER = Path(__file__).parent
# What the embedded model finds with confidence; see app/README.md for whose photos they are.
EXAMPLES = [("chelsea.jpg", "cat"), ("coffee.jpg", "cup"), ("astronaut.jpg", "person")]

HEAD = "<h1>TextSAM</h1><p>Objects in a picture by words, clicks, boxes and brush.</p>"

# The file goes to the browser's downloads; none came when there was nothing to write.
FETCH = """file => {
  if (file) Object.assign(document.createElement('a'), {href: file.url, download: file.orig_name}).click();
}"""

# For who does not see them: Gradio's thumbnails are buttons without a name.
NAME_EXAMPLES = (
    "() => document.querySelectorAll('#examples .gallery-item').forEach("
    f"(item, i) => item.setAttribute('aria-label', {[f'Try a photo: {asked}' for _, asked in EXAMPLES]}[i]))"
)

# Who types 0.6 has typed 0 before, which Gradio's own refuses.
_Slider = extended(gr.Slider, preprocess=lambda self, payload: payload)

THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    radius_size="md",
    font=["ui-sans-serif", "system-ui", "sans-serif"],  # a font that has to be fetched would be asked of others
    font_mono=["ui-monospace", "monospace"],
)


def build(sam: TextSam, store: SessionStore) -> gr.Blocks:
    """The whole page, with its endpoints for programs.

    Args:
        sam: the loaded model.
        store: where photos are kept.
    """
    handlers = Handlers(sam, store)
    with gr.Blocks(
        title="TextSAM", analytics_enabled=False, fill_width=True, delete_cache=(120, int(LIMITS.session_seconds))
    ) as page:
        key = gr.State(None, delete_callback=store.close)
        gr.HTML(HEAD, elem_id="head")
        with gr.Row(elem_id="main"):
            with gr.Column(scale=3, min_width=320):
                stage = _stage()
            with gr.Column(scale=1, min_width=300, elem_id="controls"):
                controls = _controls(sam)
        _connect(handlers, key, {**stage, **controls}, workers(sam)[0])
        _endpoints(sam, workers(sam)[0])
        page.load(None, js=NAME_EXAMPLES, api_visibility="private")
    return page


def _stage() -> dict[str, Any]:
    """The photo: before it is there, with its masks, and for the brush."""
    with gr.Column() as welcome:
        photo = photo_file(
            sources=["upload", "clipboard", "webcam"], show_label=False, elem_id="photo",
            placeholder="Drop a photo here\n\nor click to choose one",
        )  # fmt: skip
    with gr.Column(visible=False) as stage:
        picture = gr.Image(
            interactive=False, show_label=False, container=False, buttons=["fullscreen"], elem_id="picture",
            alt_text="The photo with its masks",
        )  # fmt: skip
        with gr.Column(visible=False) as painting:
            editor = brush_editor(show_label=False, buttons=[], elem_id="editor")
            painted = gr.Button("Use what is painted", variant="primary", elem_id="painted")
        candidates = gr.Gallery(
            visible=False, columns=3, height="auto", allow_preview=False, show_label=True, buttons=[],
            label="Which one is meant?", object_fit="contain", elem_id="candidates", interactive=False,
        )  # fmt: skip
        status = gr.Markdown(elem_id="status")
    return {
        "welcome": welcome, "photo": photo, "stage": stage, "picture": picture, "painting": painting,
        "editor": editor, "painted": painted, "candidates": candidates, "status": status,
    }  # fmt: skip


def _controls(sam: TextSam) -> dict[str, Any]:
    """One column: words, tools, prompts, masks, files."""
    parts: dict[str, Any] = {}
    parts["words"] = gr.Textbox(
        label="Find by words", placeholder="cat, collar", submit_btn="Find", max_lines=2, elem_id="words"
    )
    parts["negative"] = gr.Textbox(label="But not", placeholder="dog", max_lines=1, elem_id="negative")
    parts["tool"] = gr.Radio(list(actions.TOOLS), value=actions.INCLUDE, label="On the picture", elem_id="tool")
    parts["prompts"] = gr.HTML([], html_template=PROMPTS_HTML, js_on_load=ON_LOAD, elem_id="prompts")
    with gr.Row(elem_id="acts"):
        parts["undo"] = gr.Button("Undo", size="sm", interactive=False, elem_id="undo")
        parts["clear"] = gr.Button("Clear", size="sm", elem_id="clear")
        parts["next"] = gr.Button("Next object", size="sm", interactive=False, elem_id="next")
    parts["masks"] = gr.HTML([], html_template=MASKS_HTML, js_on_load=ON_LOAD, elem_id="masks")
    parts["threshold"] = _Slider(
        LOWEST_CONFIDENCE, 1.0, value=default_threshold(sam), step=0.01, label="Show from confidence",
        elem_id="threshold",
    )  # fmt: skip
    with gr.Row(elem_id="more"):
        parts["everything"] = gr.Button("Everything", size="sm", elem_id="everything")
        parts["another"] = gr.UploadButton("New photo", size="sm", file_types=["image"], elem_id="another")
    with gr.Accordion("Download", open=False, elem_classes="aside", elem_id="downloads"):
        parts["form"] = gr.Radio(list(FORMATS), value="Overlay", show_label=False, container=False, elem_id="form")
        parts["download"] = gr.Button("Download", size="sm", elem_id="download")
        parts["file"] = gr.DownloadButton(elem_id="file")
    with gr.Accordion("Collect for training", open=False, elem_classes="aside", elem_id="collecting"):
        parts["name"] = gr.Textbox(label="Name of masks without one", max_lines=1, elem_id="name")
        parts["collect"] = gr.Button("Add these masks", size="sm", elem_id="collect")
        parts["collected"] = gr.Markdown("Nothing collected yet.", elem_id="collected")
        with gr.Row():
            parts["pack"] = gr.Button("Download data set", size="sm", elem_id="pack")
            parts["empty"] = gr.Button("Start anew", size="sm", elem_id="empty")
        parts["packed"] = gr.DownloadButton(elem_id="collection-file")
    return parts


def _connect(handlers: Handlers, key: gr.State, parts: dict[str, Any], count: int) -> None:
    """Events to handlers. What asks the model shares one queue, sized to the machine."""
    names = "picture prompts masks candidates words negative threshold undo next status"
    view = [parts[name] for name in names.split()]
    assert len(view) == VIEW_LENGTH  # noqa: S101
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}
    asking = {**quiet, "show_progress": "minimal", "show_progress_on": [parts["picture"]]}
    asking |= {"concurrency_id": "model", "concurrency_limit": count}
    words, negative, tool = parts["words"], parts["negative"], parts["tool"]

    opened = [key, parts["photo"], parts["welcome"], parts["stage"], tool, *view]
    opening = {**asking, "show_progress": "full", "show_progress_on": [parts["photo"], parts["picture"]]}
    for trigger, source in ((parts["photo"].input, parts["photo"]), (parts["another"].upload, parts["another"])):
        trigger(handlers.open, [key, source, words, negative], opened, **opening)
    with parts["welcome"]:
        examples = gr.Examples(
            [[str(FOLDER / "pictures" / name), asked] for name, asked in EXAMPLES], [parts["photo"], words],
            cache_examples=False, label="Or try", elem_id="examples", visible_columns=[0], api_visibility="private",
        )  # fmt: skip
    examples.load_input_event.then(handlers.open, [key, parts["photo"], words, negative], opened, **opening)

    for event in (words.submit, negative.submit):
        # A question that comes while the last one is being answered waits for its turn.
        event(handlers.ask_words, [key, words, negative], view, trigger_mode="always_last", **asking)
    parts["everything"].click(handlers.everything, [key], view, **{**asking, "show_progress": "full"})
    parts["picture"].select(handlers.click, [key, tool], view, trigger_mode="multiple", **asking)
    parts["prompts"].delete(handlers.remove_prompt, [key], view, **asking)
    tool.change(handlers.tool, [key, tool], [parts["picture"], parts["painting"], parts["editor"]], **quiet)
    parts["painted"].click(
        handlers.paint, [key, parts["editor"]], [tool, parts["picture"], parts["painting"], *view], **asking
    )

    parts["masks"].select(handlers.choose, [key], view, **quiet)
    parts["masks"].delete(handlers.remove_mask, [key], view, trigger_mode="multiple", **quiet)
    parts["candidates"].select(handlers.candidate, [key], view, **quiet)
    parts["threshold"].input(handlers.threshold, [key, parts["threshold"]], view, trigger_mode="always_last", **quiet)
    parts["undo"].click(handlers.undo, [key], view, trigger_mode="multiple", **quiet)
    for name, handler in (("clear", handlers.clear), ("next", handlers.next_object)):
        parts[name].click(handler, [key], view, **quiet)

    for button, handler, inputs, file in (
        ("download", handlers.download, [key, parts["form"]], "file"),
        ("pack", handlers.download_collection, [key], "packed"),
    ):
        ready = parts[button].click(handler, inputs, parts[file], **quiet)
        ready.then(None, parts[file], js=FETCH, api_visibility="private")
    parts["collect"].click(handlers.collect, [key, parts["name"]], parts["collected"], **quiet)
    parts["empty"].click(handlers.empty_collection, [key], parts["collected"], **quiet)


def _endpoints(sam: TextSam, count: int) -> None:
    """Named endpoints, whose components nobody sees."""
    endpoints = Endpoints(sam)
    with gr.Group(visible=False):
        image = photo_file(label="image")
        text, unwanted = word_list(label="text"), word_list(label="negative_text")
        points, boxes = number_lists(label="points"), number_lists(label="boxes")
        threshold = gr.Number(0.0, label="threshold", minimum=0, maximum=1)
        multimask = gr.Checkbox(label="multimask")
        side = gr.Number(12, label="points_per_side", precision=0, minimum=1, maximum=32)
        found, drawn = gr.JSON(label="masks"), gr.Image(label="picture", format="png")
        shared = {"concurrency_id": "model", "concurrency_limit": count}
        gr.Button().click(
            endpoints.segment, [image, text, points, boxes, unwanted, threshold, multimask], [found, drawn],
            api_name="segment", **shared,
        )  # fmt: skip
        gr.Button().click(endpoints.generate, [image, side], [found, drawn], api_name="generate", **shared)
