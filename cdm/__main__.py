"""``python -m cdm``."""

from cdm.cli import main

if __name__ == "__main__":
    main()
