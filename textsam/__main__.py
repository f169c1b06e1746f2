"""`python -m textsam` is the `textsam` command."""

from textsam.commands.cli import main

if __name__ == "__main__":
    main()
