"""NYUD-v2: ``python data_scripts/nyud_v2.py fetch``, then ``prepare``, then ``verify`` (chapter 15)."""

import sys

from mlore_edu.data.commands import main

if __name__ == "__main__":
    sys.exit(main("nyud_v2"))
