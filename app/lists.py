"""The list of prompts and the list of masks: their content, and the templates that draw it."""

from __future__ import annotations

from typing import Any

from app.drawing import hex_colour
from app.scene import Prompts, Scene

# Handlebars, which escapes what it fills in: names are what somebody typed.
PROMPTS_HTML = """
<div class="chips" role="list" aria-label="Prompts">
{{#each value}}<span class="chip {{kind}}" role="listitem"><span class="dot"></span>{{text}}<button
 data-remove="{{key}}" title="Remove" aria-label="Remove {{text}}">&times;</button></span>{{/each}}
</div>
"""

MASKS_HTML = """
<div class="masks" role="list" aria-label="Masks">
{{#each value}}<div class="mask{{#if chosen}} chosen{{/if}}" role="listitem"><button class="row" data-choose="{{id}}"
 aria-pressed="{{#if chosen}}true{{else}}false{{/if}}" title="{{pixels}} px"><span class="swatch"
 style="background:{{colour}}"></span><span class="name">{{name}}</span><span class="number">{{confidence}}</span><span
 class="number">{{area}}</span></button><button class="remove" data-remove="{{id}}" title="Remove"
 aria-label="Remove {{name}}">&times;</button></div>{{else}}<p class="empty">No masks yet.</p>{{/each}}
</div>
"""

# One listener on the component itself: its content is replaced with every change.
ON_LOAD = """
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.remove !== undefined) trigger('delete', {key: button.dataset.remove});
  else if (button.dataset.choose !== undefined) trigger('select', {key: button.dataset.choose});
});
"""


def prompt_list(prompts: Prompts) -> list[dict[str, str]]:
    """What `PROMPTS_HTML` shows, one entry for each prompt that can be removed."""
    entries = [{"key": f"word:{i}", "kind": "word", "text": word} for i, word in enumerate(prompts.words)]
    entries += [{"key": f"not:{i}", "kind": "not", "text": word} for i, word in enumerate(prompts.negative_words)]
    if prompts.everything:
        entries.append({"key": "everything", "kind": "word", "text": "everything"})
    if prompts.target is not None and prompts.refine:
        entries.append({"key": "target", "kind": "area", "text": f"correcting {prompts.target.name}"})
    for i, point in enumerate(prompts.points):
        kind, sign = ("positive", "+") if point.positive else ("negative", "−")
        entries.append({"key": f"point:{i}", "kind": kind, "text": f"{sign} {point.x:.0f}, {point.y:.0f}"})
    if prompts.corner is not None:
        entries.append({"key": "corner", "kind": "area", "text": "box: click the opposite corner"})
    if prompts.box is not None:
        left, top, right, bottom = prompts.box
        entries.append({"key": "box", "kind": "area", "text": f"box {right - left:.0f} × {bottom - top:.0f}"})
    if prompts.brush is not None:
        entries.append({"key": "brush", "kind": "area", "text": "brush"})
    return entries


def mask_list(scene: Scene) -> list[dict[str, Any]]:
    """What `MASKS_HTML` shows, one entry for each row of the scene."""
    entries = []
    for row in scene.rows():
        height, width = row.rle["size"]
        entries.append(
            {
                "id": row.id,
                "name": row.name,
                "confidence": f"{row.confidence:.2f}",
                "area": f"{100 * row.area / (height * width):.1f} %",
                "pixels": f"{row.area:,}",
                "colour": hex_colour(row),
                "chosen": row.id == scene.chosen,
            }
        )
    return entries
