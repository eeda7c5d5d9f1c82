"""Play many histories: python -m tests.simulation --histories 100000 --processes 2"""

from tests.simulation.many import main

if __name__ == "__main__":  # not in the processes that it starts
    raise SystemExit(main())
