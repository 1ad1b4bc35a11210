"""`python -m vmae` is `vmae`."""

from vmae.cli.main import run

if __name__ == "__main__":
    run()
