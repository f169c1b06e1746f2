"""Many pictures: sources, the one step that labels some of them, and the engines that run it."""
