"""``python -m embedtune``."""

from embedtune.cli import main

main()
