"""`python -m eguot_sdk`: the command `eguot-sdk`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="eguot-sdk")
