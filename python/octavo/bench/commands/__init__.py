"""The commands of `octavo bench`, one a file. octavo.cli.bench registers them."""
