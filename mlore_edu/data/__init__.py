"""Data: rendered rooms, the readers of PASCAL-Context and NYUD-v2, joint transforms and loaders (chapters 1 and 15)."""
