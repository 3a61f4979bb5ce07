"""The command line: parsing and printing only; each command makes one call of the library."""
