"""`python -m polyroute` is `polyroute`."""

from polyroute.cli import main

raise SystemExit(main())
