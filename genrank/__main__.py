"""`python -m genrank`: the command."""

from genrank.command import main

if __name__ == "__main__":
    main()
