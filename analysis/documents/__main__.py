"""`python -m analysis.documents` writes every page anew."""

import sys

from analysis.documents.pages import main

sys.exit(main())
