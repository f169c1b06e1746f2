"""Written text in pictures: read over tiles, taken apart into words and lines, in reading order, cut out."""
