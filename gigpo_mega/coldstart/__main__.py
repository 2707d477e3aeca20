"""`python -m gigpo_mega.coldstart ...`, the same as `gigpo-mega coldstart ...`."""

from gigpo_mega.coldstart.program import main
from gigpo_mega.program import run_main

if __name__ == "__main__":
    run_main(main)
