"""Render Dollhouse: ``python data_scripts/dollhouse.py --root data/dollhouse`` is ``mlore-edu dollhouse …``."""

import sys

from mlore_edu.cli import main

if __name__ == "__main__":
    sys.exit(main(["dollhouse", *sys.argv[1:]]))
