"""`python -m lottery_nb`: the command line."""
import sys

from lottery_nb.cli import main

if __name__ == "__main__": sys.exit(main())
