"""Metadata lives in pyproject.toml; this file says which packages are ours."""

from setuptools import find_packages, setup

setup(packages=find_packages(include=["gigpo_mega*", "kernels*", "envs*"]))
