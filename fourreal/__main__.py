"""`python -m fourreal VERB`."""

from fourreal.cli import main

if __name__ == "__main__":
    main()
