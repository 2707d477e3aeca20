"""Metadata is in pyproject.toml; this file lists our packages."""

import sys

from setuptools import find_packages, setup

# An editable installation also makes `tools` importable (tools/__init__.py says why); a wheel does not.
editable = "editable_wheel" in sys.argv
packages = find_packages(include=["gigpo_mega*", "kernels*", "envs*", *(["tools*"] if editable else [])])
if editable:
    setup(packages=packages)
else:  # configs/ becomes a folder of the package, where gigpo_mega/config/recipes.py finds it
    setup(packages=[*packages, "gigpo_mega.recipes"], package_dir={"gigpo_mega.recipes": "configs"})
