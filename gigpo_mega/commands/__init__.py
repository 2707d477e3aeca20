"""Commands of `gigpo-mega` that are not part of a run; each module has `main(argv)`."""
