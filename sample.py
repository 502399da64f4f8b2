"""`python sample.py` is `fourreal sample`."""

from fourreal.cli import main

if __name__ == "__main__":
    main(verb="sample")
