"""`python -m gigpo_mega COMMAND ...`, the same as `gigpo-mega COMMAND ...`."""

from gigpo_mega.program import console

if __name__ == "__main__":
    console()
