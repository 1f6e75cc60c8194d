"""`python -m vmmobility` is `vmmob`."""

from vmmobility.cli.main import main

if __name__ == "__main__":
    main()
