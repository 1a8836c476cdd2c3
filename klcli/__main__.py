"""``python -m klcli`` is the program ``klcli``."""

from klcli.cli import main

if __name__ == "__main__":
    main()
