from gatelab.cli.main import main

main()
