"""`python train.py` is `fourreal train`."""

from fourreal.cli import main

if __name__ == "__main__":
    main(verb="train")
