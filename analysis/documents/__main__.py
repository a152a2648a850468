"""`python -m analysis.documents.pages` writes every page anew."""

import sys

from analysis.documents.pages import main

sys.exit(main())
