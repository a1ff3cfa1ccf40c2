"""PASCAL-Context: ``python data_scripts/pascal_context.py fetch``, then ``prepare``, then ``verify`` (chapter 15)."""

import sys

from mlore_edu.data.commands import main

if __name__ == "__main__":
    sys.exit(main("pascal_context"))
