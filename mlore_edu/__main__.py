"""``python -m mlore_edu`` is ``mlore-edu``; torchrun needs this form."""

import sys

from mlore_edu.cli import main

sys.exit(main())
