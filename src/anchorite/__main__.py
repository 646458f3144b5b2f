"""`python -m anchorite` is the command line."""

from anchorite.cli import main

if __name__ == "__main__":
    main()
