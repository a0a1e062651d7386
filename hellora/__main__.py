"""`python -m hellora` is the command `hellora`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, which -m puts there: what lies in it must not stand in for a library
    from hellora.cli.app import main

    main()
