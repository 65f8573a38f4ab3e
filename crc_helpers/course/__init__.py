"""The command line: run the lessons, look after data, check the machine."""
