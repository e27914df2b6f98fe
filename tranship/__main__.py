"""Run the command line interface as `python -m tranship`."""

from tranship.cli import main

if __name__ == "__main__":
    main()
