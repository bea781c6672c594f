"""The arrows of the method, one file each; every stage reads files and writes files."""
