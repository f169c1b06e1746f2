"""A text-region model as a reader of pictures: its words, its encoder and its constants together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from textsam.modeling.text_sam import TextSamNetwork
from textsam.prompting.encoded_image import EncodedImage
from textsam.text_regions.levels import TextRegionConfig, level_of
from textsam.text_regions.maps import STROKE, ReadTile, model_reader
from textsam.text_regions.options import TextReadingOptions
from textsam.text_regions.reading import read_levels
from textsam.text_regions.regions import TextRegions


class TextRegionReader:
    """Reads written text with a model that was trained for it.

    Args:
        model: its config has `text_regions`.
        embed: Q texts to (Q, D) embeddings.
        encode: a square tile to its embeddings, at the tile's own size.
        options: constants of the reading.
    """

    def __init__(
        self,
        model: TextSamNetwork,
        embed: Callable[[Sequence[str]], Tensor],
        encode: Callable[[np.ndarray], EncodedImage],
        config: TextRegionConfig,
        options: TextReadingOptions | None = None,
    ) -> None:
        self.model, self.embed, self.encode, self.config = model, embed, encode, config
        self.options = options or TextReadingOptions(presence_threshold=config.presence_threshold)

    def levels_asked(self, texts: Sequence[str] | None, negative_texts: Sequence[str] = ()) -> list[str]:
        """The levels that texts name, as `level_of` finds them, in their order; empty when none does.

        Raises:
            ValueError: some are levels and some are other words, which are looked for in another way; a level that the
                model was not trained for; or negative texts, which reading does not have.
        """
        level_of_text = {text: level_of(text) for text in texts or ()}
        levels = [level for text in texts or () if (level := level_of_text[text]) is not None]
        if levels and None in level_of_text.values():
            other = next(text for text, level in level_of_text.items() if level is None)
            raise ValueError(
                f"Expected levels of written text ({', '.join(self.config.levels)}) or other words, got "
                f"{levels[0]!r} and {other!r}: ask for them one after the other."
            )
        if levels and negative_texts:
            raise ValueError(
                f"Expected no negative_text with levels of written text, got {negative_texts[0]!r}: leave it out."
            )
        self.config.check_trained(levels)
        return levels

    def read(
        self,
        picture: np.ndarray,
        levels: Sequence[str],
        threshold: float | None = None,
        on_tile: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[dict[str, TextRegions], dict[str, np.ndarray]]:
        """As `textsam.text_regions.reading.read_levels`."""
        return read_levels(
            picture,
            levels,
            self._tile_reader,
            self.config,
            self.options,
            fill=self.model.config.pixel_mean,  # what padding with zeros is, after normalisation
            threshold=threshold,
            on_tile=on_tile,
        )

    def _tile_reader(self, levels: Sequence[str]) -> ReadTile:
        least = self.options.least_presence(STROKE)
        return model_reader(self.model, self.encode, levels, self.embed(levels), least)
