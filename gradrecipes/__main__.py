"""Make `python -m gradrecipes` the same as the command `gradrecipes`."""

from gradrecipes.cli.main import leave

if __name__ == "__main__":
    leave()
