"""Which split and which coding, image by image."""
