"""`python -m routed.testing.lab`: see main."""

import sys

from routed.testing.lab.main import main

sys.exit(main())
