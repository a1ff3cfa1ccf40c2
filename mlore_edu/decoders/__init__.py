"""Decoders: from the backbone's feature maps to one feature map per task. One paper, one file."""
