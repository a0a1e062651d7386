"""`python -m hellora` is the command `hellora`."""

from hellora.cli.app import main

if __name__ == "__main__":
    main()
