"""`python -m arlow_vl.cli`: the `arlow` command, wherever its script was installed, or none was."""

from arlow_vl.cli import run

if __name__ == "__main__":
    run()
